"""Fine-tunes, what they go on from, their events and checkpoints, and the models that they make."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_STATES = "'validating_files', 'queued', 'running', 'paused', 'succeeded', 'failed', 'cancelled'"


def upgrade() -> None:
    _finetunes()
    op.create_table(
        "finetune_progress",
        sa.Column("finetune_id", sa.String(), nullable=False),
        sa.Column("training", sa.LargeBinary(), nullable=False),
        sa.Column("validation", sa.LargeBinary(), nullable=True),
        sa.Column("snapshot", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["finetune_id"], ["finetunes.id"], name=op.f("fk_finetune_progress_finetune_id")
        ),
        sa.PrimaryKeyConstraint("finetune_id", name=op.f("pk_finetune_progress")),
    )
    op.create_table(
        "finetune_events",
        sa.Column("finetune_id", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("level", sa.String(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("data", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["finetune_id"], ["finetunes.id"], name=op.f("fk_finetune_events_finetune_id")
        ),
        sa.PrimaryKeyConstraint("finetune_id", "number", name=op.f("pk_finetune_events")),
    )
    op.create_table(
        "finetune_checkpoints",
        sa.Column("finetune_id", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("metrics", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["finetune_id"], ["finetunes.id"], name=op.f("fk_finetune_checkpoints_finetune_id")
        ),
        sa.PrimaryKeyConstraint("finetune_id", "number", name=op.f("pk_finetune_checkpoints")),
    )
    _tuned_models()


def _finetunes() -> None:
    op.create_table(
        "finetunes",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("member_id", sa.String(), nullable=False),
        sa.Column("key_id", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("result", sa.String(), nullable=False),
        sa.Column("training_file_id", sa.String(), nullable=False),
        sa.Column("training_sha256", sa.String(), nullable=False),
        sa.Column("training_bytes", sa.BigInteger(), nullable=False),
        sa.Column("validation_file_id", sa.String(), nullable=True),
        sa.Column("validation_sha256", sa.String(), nullable=True),
        sa.Column("validation_bytes", sa.BigInteger(), nullable=False),
        sa.Column("wanted", sa.Text(), nullable=False),
        sa.Column("plan", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("expires_at", sa.Float(), nullable=False),
        sa.Column("notes", sa.Text(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("quote", sa.BigInteger(), nullable=False),
        sa.Column("charge", sa.BigInteger(), nullable=False),
        sa.Column("steps_done", sa.Integer(), nullable=False),
        sa.Column("trained_tokens", sa.BigInteger(), nullable=False),
        sa.Column("fault", sa.Text(), nullable=False),
        sa.Column("result_files", sa.Text(), nullable=False),
        sa.Column("moments", sa.Text(), nullable=False),
        sa.CheckConstraint(f"state IN ({_STATES})", name=op.f("ck_finetunes_state")),
        sa.CheckConstraint(
            "quote >= 0 AND charge >= 0 AND charge <= quote", name=op.f("ck_finetunes_amounts")
        ),
        sa.CheckConstraint("steps_done >= 0 AND trained_tokens >= 0", name=op.f("ck_finetunes_counts")),
        sa.CheckConstraint(
            "(validation_file_id IS NULL) = (validation_sha256 IS NULL)", name=op.f("ck_finetunes_validation")
        ),
        sa.ForeignKeyConstraint(["member_id"], ["members.id"], name=op.f("fk_finetunes_member_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_finetunes")),
        sa.UniqueConstraint("job_id", name=op.f("uq_finetunes_job_id")),
    )
    for columns in (["member_id", "created_at"], ["result"], ["training_file_id"], ["validation_file_id"]):
        op.create_index(f"ix_finetunes_{'_'.join(columns)}", "finetunes", columns, unique=False)


def _tuned_models() -> None:
    op.create_table(
        "tuned_models",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("base", sa.String(), nullable=False),
        sa.Column("member_id", sa.String(), nullable=False),
        sa.Column("finetune_id", sa.String(), nullable=False),
        sa.Column("shared", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("weights_sha256", sa.String(), nullable=False),
        sa.Column("weights_bytes", sa.BigInteger(), nullable=False),
        sa.Column("config_sha256", sa.String(), nullable=False),
        sa.Column("config_bytes", sa.BigInteger(), nullable=False),
        sa.Column("card_sha256", sa.String(), nullable=False),
        sa.Column("card_bytes", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "weights_bytes > 0 AND config_bytes > 0 AND card_bytes > 0", name=op.f("ck_tuned_models_bytes")
        ),
        sa.ForeignKeyConstraint(["member_id"], ["members.id"], name=op.f("fk_tuned_models_member_id")),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_tuned_models")),
    )
    op.create_index("ix_tuned_models_finetune_id", "tuned_models", ["finetune_id"], unique=False)
    op.create_index("ix_tuned_models_member_id", "tuned_models", ["member_id"], unique=False)

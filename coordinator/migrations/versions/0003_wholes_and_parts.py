"""Batches and fine-tunes are jobs of their own, done in parts: jobs that name the whole they belong to.

SQLite cannot alter constraints, so there the table is copied, made anew and filled again.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

KINDS = "kind IN ('chat', 'completion', 'embedding', 'batch', 'finetune')"
PARTS = "(whole_id IS NULL) = (part = 0) AND part >= 0"
_OPEN = sa.text("ended_at IS NULL")
_PART = sa.text("whole_id IS NOT NULL")


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        _alter()
        return
    old = [column["name"] for column in sa.inspect(op.get_bind()).get_columns("jobs")]
    op.execute("CREATE TABLE old_jobs AS SELECT * FROM jobs")
    op.execute("DROP TABLE jobs")
    jobs()
    names = ", ".join(old)
    op.execute(f"INSERT INTO jobs ({names}, part) SELECT {names}, 0 FROM old_jobs")  # noqa: S608 -- names of columns
    op.execute("DROP TABLE old_jobs")


def _alter() -> None:
    op.drop_constraint(op.f("ck_jobs_kind"), "jobs", type_="check")
    op.create_check_constraint(op.f("ck_jobs_kind"), "jobs", KINDS)
    op.add_column("jobs", sa.Column("whole_id", sa.String(), nullable=True))
    op.add_column("jobs", sa.Column("part", sa.Integer(), nullable=False, server_default="0"))
    op.alter_column("jobs", "part", server_default=None)
    op.create_foreign_key(op.f("fk_jobs_whole_id"), "jobs", "jobs", ["whole_id"], ["id"])
    op.create_check_constraint(op.f("ck_jobs_part"), "jobs", PARTS)
    _index_parts()


def _index_parts() -> None:
    op.create_index(
        "ix_jobs_parts", "jobs", ["whole_id", "part"], unique=True, sqlite_where=_PART, postgresql_where=_PART
    )


def jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("member_id", sa.String(), nullable=False),
        sa.Column("account_id", sa.String(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("quote", sa.BigInteger(), nullable=False),
        sa.Column("hold", sa.BigInteger(), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), nullable=False),
        sa.Column("max_tokens", sa.BigInteger(), nullable=False),
        sa.Column("choices", sa.Integer(), nullable=False),
        sa.Column("key_id", sa.String(), nullable=False),
        sa.Column("whole_id", sa.String(), nullable=True),
        sa.Column("part", sa.Integer(), nullable=False),
        sa.Column("settled", sa.BigInteger(), nullable=False),
        sa.Column("settlements", sa.Integer(), nullable=False),
        sa.Column("stored", sa.Boolean(), nullable=False),
        sa.Column("own_only", sa.Boolean(), nullable=False),
        sa.Column("only_workers", sa.Text(), nullable=False),
        sa.Column("expires_at", sa.Float(), nullable=True),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("charge", sa.BigInteger(), nullable=True),
        sa.Column("output_tokens", sa.BigInteger(), nullable=False),
        sa.Column("started_at", sa.Float(), nullable=True),
        sa.Column("ended_at", sa.Float(), nullable=True),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("code", sa.String(), nullable=False),
        sa.CheckConstraint(
            "(ended_at IS NULL) = (state IN ('queued', 'running', 'paused'))", name=op.f("ck_jobs_ended")
        ),
        sa.CheckConstraint(KINDS, name=op.f("ck_jobs_kind")),
        sa.CheckConstraint(PARTS, name=op.f("ck_jobs_part")),
        sa.CheckConstraint(
            "state IN ('queued', 'running', 'paused', 'succeeded', 'failed', 'cancelled', 'expired')",
            name=op.f("ck_jobs_state"),
        ),
        sa.CheckConstraint("charge IS NULL OR (charge >= 0 AND charge <= hold)", name=op.f("ck_jobs_charge")),
        sa.CheckConstraint("hold >= 0 AND quote >= 0", name=op.f("ck_jobs_amounts")),
        sa.CheckConstraint("settled >= 0 AND settled <= hold", name=op.f("ck_jobs_settled")),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_jobs_account_id")),
        sa.ForeignKeyConstraint(["member_id"], ["members.id"], name=op.f("fk_jobs_member_id")),
        sa.ForeignKeyConstraint(["whole_id"], ["jobs.id"], name=op.f("fk_jobs_whole_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
    )
    op.create_index("ix_jobs_created_at", "jobs", ["created_at"], unique=False)
    op.create_index("ix_jobs_ended_at", "jobs", ["ended_at"], unique=False)
    op.create_index("ix_jobs_member_id_created_at", "jobs", ["member_id", "created_at"], unique=False)
    op.create_index(
        "ix_jobs_open",
        "jobs",
        ["id"],
        unique=False,
        sqlite_where=_OPEN,
        postgresql_where=_OPEN,
    )
    _index_parts()

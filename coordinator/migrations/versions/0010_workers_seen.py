"""What workers earned is read from an index; pauses that were asked for from afar."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "worker_pauses",
        sa.Column("worker_id", sa.String(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("member_id", sa.String(), nullable=False),
        sa.Column("by_owner", sa.Boolean(), nullable=False),
        sa.Column("until", sa.Float(), nullable=True),
        sa.Column("why", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["member_id"], ["members.id"], name=op.f("fk_worker_pauses_member_id")),
        sa.ForeignKeyConstraint(["worker_id"], ["workers.id"], name=op.f("fk_worker_pauses_worker_id")),
        sa.PrimaryKeyConstraint("worker_id", name=op.f("pk_worker_pauses")),
    )
    op.drop_index("ix_attempts_worker_id", table_name="attempts")
    op.create_index("ix_attempts_earned", "attempts", ["worker_id", "ended_at", "paid"], unique=False)

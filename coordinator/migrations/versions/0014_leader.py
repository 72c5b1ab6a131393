"""Which of several coordinators on one database leads, and who waits."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    leader = op.create_table(
        "leader",
        sa.Column("epoch", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("beat", sa.BigInteger(), nullable=False),
        sa.Column("held", sa.Boolean(), nullable=False),
        sa.Column("http", sa.Text(), nullable=False),
        sa.Column("grpc", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("epoch", name=op.f("pk_leader")),
    )
    op.create_table(
        "standbys",
        sa.Column("grpc", sa.String(), nullable=False),
        sa.Column("seen_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("grpc", name=op.f("pk_standbys")),
    )
    op.bulk_insert(leader, [{"epoch": 0, "beat": 0, "held": False, "http": "", "grpc": ""}])

"""Members' files."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "files",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("member_id", sa.String(), nullable=False),
        sa.Column("purpose", sa.String(), nullable=False),
        sa.Column("filename", sa.String(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("expires_at", sa.Float(), nullable=False),
        sa.CheckConstraint(
            "purpose IN ('fine-tune', 'batch', 'fine-tune-results', 'batch_output')",
            name=op.f("ck_files_purpose"),
        ),
        sa.CheckConstraint("bytes >= 0", name=op.f("ck_files_bytes")),
        sa.ForeignKeyConstraint(["member_id"], ["members.id"], name=op.f("fk_files_member_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_files")),
    )
    op.create_index("ix_files_expires_at", "files", ["expires_at"], unique=False)
    op.create_index("ix_files_member_id_created_at", "files", ["member_id", "created_at"], unique=False)
    op.create_index("ix_files_sha256", "files", ["sha256"], unique=False)

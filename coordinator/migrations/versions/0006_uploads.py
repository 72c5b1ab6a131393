"""Uploads of files in parts."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "uploads",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("member_id", sa.String(), nullable=False),
        sa.Column("purpose", sa.String(), nullable=False),
        sa.Column("filename", sa.String(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("file_expires_s", sa.Float(), nullable=True),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("expires_at", sa.Float(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("file_id", sa.String(), nullable=True),
        sa.CheckConstraint(
            "purpose IN ('fine-tune', 'batch', 'fine-tune-results', 'batch_output')",
            name=op.f("ck_uploads_purpose"),
        ),
        sa.CheckConstraint(
            "state IN ('pending', 'completed', 'cancelled', 'expired')", name=op.f("ck_uploads_state")
        ),
        sa.CheckConstraint("bytes > 0", name=op.f("ck_uploads_bytes")),
        sa.CheckConstraint("(state = 'completed') = (file_id IS NOT NULL)", name=op.f("ck_uploads_file")),
        sa.ForeignKeyConstraint(["member_id"], ["members.id"], name=op.f("fk_uploads_member_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_uploads")),
    )
    op.create_index("ix_uploads_expires_at", "uploads", ["expires_at"], unique=False)
    op.create_index("ix_uploads_member_id_state", "uploads", ["member_id", "state"], unique=False)
    op.create_table(
        "upload_parts",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("upload_id", sa.String(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.CheckConstraint("bytes > 0", name=op.f("ck_upload_parts_bytes")),
        sa.ForeignKeyConstraint(["upload_id"], ["uploads.id"], name=op.f("fk_upload_parts_upload_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_upload_parts")),
        sa.UniqueConstraint("upload_id", "sha256", name=op.f("uq_upload_parts_upload_id_sha256")),
    )
    op.create_index("ix_upload_parts_sha256", "upload_parts", ["sha256"], unique=False)

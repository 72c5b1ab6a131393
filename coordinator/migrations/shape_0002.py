"""The tables that revision 0002 makes anew, as it makes them. Frozen, as revisions are."""

import sqlalchemy as sa
from alembic import op

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def create_tables() -> None:
    """Those referred to before those that refer."""
    for create in (people, letters, workers, jobs, attempts, ledger, evidence):
        create()


def people() -> None:
    op.create_table(
        "members",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("name_folded", sa.String(), nullable=False),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("limits", sa.Text(), nullable=False),
        sa.CheckConstraint("role IN ('member', 'admin')", name=op.f("ck_members_role")),
        sa.CheckConstraint("state IN ('active', 'frozen', 'closed')", name=op.f("ck_members_state")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_members")),
        sa.UniqueConstraint("name_folded", name=op.f("uq_members_name_folded")),
    )
    op.create_table(
        "accounts",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("member_id", sa.String(), nullable=True),
        sa.Column("opening_line", sa.BigInteger(), nullable=False),
        sa.Column("lender_id", sa.String(), nullable=True),
        sa.Column("lent", sa.BigInteger(), nullable=False),
        sa.Column("credit_line", sa.BigInteger(), nullable=False),
        sa.Column("main", sa.BigInteger(), nullable=False),
        sa.Column("reserved", sa.BigInteger(), nullable=False),
        sa.Column("held", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("id = 'lines' OR credit_line >= 0", name=op.f("ck_accounts_credit_line")),
        sa.CheckConstraint("id = 'lines' OR main >= -credit_line", name=op.f("ck_accounts_floor")),
        sa.CheckConstraint("held >= 0", name=op.f("ck_accounts_held")),
        sa.CheckConstraint("opening_line >= 0 AND lent >= 0", name=op.f("ck_accounts_lines")),
        sa.CheckConstraint("reserved >= 0", name=op.f("ck_accounts_reserved")),
        sa.ForeignKeyConstraint(["lender_id"], ["accounts.id"], name=op.f("fk_accounts_lender_id")),
        sa.ForeignKeyConstraint(["member_id"], ["members.id"], name=op.f("fk_accounts_member_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_accounts")),
        sa.UniqueConstraint("member_id", name=op.f("uq_accounts_member_id")),
    )
    op.create_index("ix_accounts_lender_id", "accounts", ["lender_id"], unique=False)


def letters() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("member_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("display", sa.String(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("expires_at", sa.Float(), nullable=True),
        sa.Column("revoked_at", sa.Float(), nullable=True),
        sa.Column("scopes", sa.Text(), nullable=False),
        sa.Column("models", sa.Text(), nullable=False),
        sa.Column("limits", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["member_id"], ["members.id"], name=op.f("fk_api_keys_member_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
        sa.UniqueConstraint("digest", name=op.f("uq_api_keys_digest")),
    )
    op.create_index("ix_api_keys_member_id", "api_keys", ["member_id"], unique=False)
    op.create_table(
        "invites",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("member_id", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("credit_line", sa.BigInteger(), nullable=False),
        sa.Column("from_pool", sa.Boolean(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("expires_at", sa.Float(), nullable=False),
        sa.Column("accepted_by", sa.String(), nullable=True),
        sa.Column("accepted_at", sa.Float(), nullable=True),
        sa.Column("revoked_at", sa.Float(), nullable=True),
        sa.CheckConstraint("accepted_at IS NULL OR revoked_at IS NULL", name=op.f("ck_invites_ended")),
        sa.CheckConstraint("credit_line >= 0", name=op.f("ck_invites_credit_line")),
        sa.ForeignKeyConstraint(["accepted_by"], ["members.id"], name=op.f("fk_invites_accepted_by")),
        sa.ForeignKeyConstraint(["member_id"], ["members.id"], name=op.f("fk_invites_member_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_invites")),
        sa.UniqueConstraint("accepted_by", name=op.f("uq_invites_accepted_by")),
        sa.UniqueConstraint("digest", name=op.f("uq_invites_digest")),
    )
    op.create_index("ix_invites_member_id", "invites", ["member_id"], unique=False)


def workers() -> None:
    op.create_table(
        "workers",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("member_id", sa.String(), nullable=False),
        sa.Column("join_token_id", sa.String(), nullable=False),
        sa.Column("receipt_key", sa.LargeBinary(), nullable=False),
        sa.Column("tls_key", sa.LargeBinary(), nullable=False),
        sa.Column("certificate_serial", sa.String(), nullable=False),
        sa.Column("certificate_until", sa.Float(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("revoked_at", sa.Float(), nullable=True),
        sa.Column("good_jobs", sa.Integer(), nullable=False),
        sa.Column("first_job_at", sa.Float(), nullable=True),
        sa.Column("proven_at", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(["join_token_id"], ["join_tokens.id"], name=op.f("fk_workers_join_token_id")),
        sa.ForeignKeyConstraint(["member_id"], ["members.id"], name=op.f("fk_workers_member_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_workers")),
        sa.UniqueConstraint("receipt_key", name=op.f("uq_workers_receipt_key")),
        sa.UniqueConstraint("tls_key", name=op.f("uq_workers_tls_key")),
    )
    op.create_index("ix_workers_member_id", "workers", ["member_id"], unique=False)


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
        sa.CheckConstraint("kind IN ('chat', 'completion', 'embedding')", name=op.f("ck_jobs_kind")),
        sa.CheckConstraint(
            "state IN ('queued', 'running', 'paused', 'succeeded', 'failed', 'cancelled', 'expired')",
            name=op.f("ck_jobs_state"),
        ),
        sa.CheckConstraint("charge IS NULL OR (charge >= 0 AND charge <= hold)", name=op.f("ck_jobs_charge")),
        sa.CheckConstraint("hold >= 0 AND quote >= 0", name=op.f("ck_jobs_amounts")),
        sa.CheckConstraint("settled >= 0 AND settled <= hold", name=op.f("ck_jobs_settled")),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_jobs_account_id")),
        sa.ForeignKeyConstraint(["member_id"], ["members.id"], name=op.f("fk_jobs_member_id")),
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
        sqlite_where=sa.text("ended_at IS NULL"),
        postgresql_where=sa.text("ended_at IS NULL"),
    )


def attempts() -> None:
    op.create_table(
        "attempts",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("worker_id", sa.String(), nullable=False),
        sa.Column("owner_id", sa.String(), nullable=False),
        sa.Column("assigned_at", sa.Float(), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("ended_at", sa.Float(), nullable=True),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.Column("paid", sa.BigInteger(), nullable=False),
        sa.Column("held", sa.Boolean(), nullable=False),
        sa.CheckConstraint(
            "state IN ('assigned', 'running', 'succeeded', 'refused', 'failed', 'lost', 'cancelled')",
            name=op.f("ck_attempts_state"),
        ),
        sa.CheckConstraint("paid >= 0 AND tokens >= 0", name=op.f("ck_attempts_amounts")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_attempts_job_id")),
        sa.ForeignKeyConstraint(["owner_id"], ["accounts.id"], name=op.f("fk_attempts_owner_id")),
        sa.ForeignKeyConstraint(["worker_id"], ["workers.id"], name=op.f("fk_attempts_worker_id")),
        sa.PrimaryKeyConstraint("job_id", "number", name=op.f("pk_attempts")),
    )
    op.create_index(
        "ix_attempts_held",
        "attempts",
        ["worker_id"],
        sqlite_where=sa.text("held"),
        postgresql_where=sa.text("held"),
    )
    op.create_index("ix_attempts_worker_id", "attempts", ["worker_id"], unique=False)


def ledger() -> None:
    op.create_table(
        "entries",
        sa.Column("number", _NUMBER, autoincrement=False, nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("at", sa.String(), nullable=False),
        sa.Column("code", sa.String(), nullable=False),
        sa.Column("job_id", sa.String(), nullable=True),
        sa.Column("details", sa.Text(), nullable=False),
        sa.Column("previous", sa.String(), nullable=False),
        sa.Column("hash", sa.String(), nullable=False),
        sa.CheckConstraint(
            "code IN ('hold', 'settle', 'close', 'grant', 'transfer', 'line', 'release', 'retire')",
            name=op.f("ck_entries_code"),
        ),
        sa.CheckConstraint("number >= 1", name=op.f("ck_entries_number")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_entries_job_id")),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_entries")),
        sa.UniqueConstraint("id", name=op.f("uq_entries_id")),
    )
    op.create_index("ix_entries_at", "entries", ["at"], unique=False)
    op.create_index("ix_entries_job_id", "entries", ["job_id"], unique=False)
    transfers = sa.text("code = 'transfer'")
    op.create_index(
        "ix_entries_transfers", "entries", ["at"], sqlite_where=transfers, postgresql_where=transfers
    )
    op.create_table(
        "postings",
        sa.Column("entry_number", _NUMBER, nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("account_id", sa.String(), nullable=False),
        sa.Column("bucket", sa.String(), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "bucket IN ('main', 'reserved', 'held', 'credit_line')", name=op.f("ck_postings_bucket")
        ),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_postings_account_id")),
        sa.ForeignKeyConstraint(["entry_number"], ["entries.number"], name=op.f("fk_postings_entry_number")),
        sa.PrimaryKeyConstraint("entry_number", "position", name=op.f("pk_postings")),
    )
    op.create_index(
        "ix_postings_account_id_entry_number", "postings", ["account_id", "entry_number"], unique=False
    )


def evidence() -> None:
    op.create_table(
        "receipts",
        sa.Column("number", _NUMBER, autoincrement=False, nullable=False),
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("worker_id", sa.String(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("signature", sa.LargeBinary(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("at", sa.String(), nullable=False),
        sa.Column("previous", sa.String(), nullable=False),
        sa.Column("hash", sa.String(), nullable=False),
        sa.Column("countersignature", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint("state IN ('matched', 'late', 'refused', 'void')", name=op.f("ck_receipts_state")),
        sa.CheckConstraint("number >= 1", name=op.f("ck_receipts_number")),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_receipts")),
        sa.UniqueConstraint(
            "job_id", "attempt", "worker_id", name=op.f("uq_receipts_job_id_attempt_worker_id")
        ),
    )
    op.create_index("ix_receipts_worker_id", "receipts", ["worker_id"], unique=False)
    op.create_table(
        "heads",
        sa.Column("number", _NUMBER, autoincrement=False, nullable=False),
        sa.Column("hash", sa.String(), nullable=False),
        sa.Column("receipts_number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("receipts_hash", sa.String(), nullable=False),
        sa.Column("at", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("signature", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint("reason IN ('daily', 'request')", name=op.f("ck_heads_reason")),
        sa.PrimaryKeyConstraint("number", "receipts_number", name=op.f("pk_heads")),
    )

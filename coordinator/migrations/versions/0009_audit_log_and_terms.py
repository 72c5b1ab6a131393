"""The audit log, terms and who accepted them, and when members were last seen."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "audit_events",
        sa.Column("number", _NUMBER, autoincrement=False, nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("member_id", sa.String(), nullable=True),
        sa.Column("key_id", sa.String(), nullable=False),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("details", sa.Text(), nullable=False),
        sa.CheckConstraint("number >= 1", name=op.f("ck_audit_events_number")),
        sa.ForeignKeyConstraint(["member_id"], ["members.id"], name=op.f("fk_audit_events_member_id")),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_audit_events")),
    )
    for column in ("member_id", "action", "subject"):
        op.create_index(f"ix_audit_events_{column}_number", "audit_events", [column, "number"], unique=False)
    op.create_table(
        "terms",
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("member_id", sa.String(), nullable=False),
        sa.CheckConstraint("version >= 1", name=op.f("ck_terms_version")),
        sa.ForeignKeyConstraint(["member_id"], ["members.id"], name=op.f("fk_terms_member_id")),
        sa.PrimaryKeyConstraint("version", name=op.f("pk_terms")),
    )
    op.create_table(
        "terms_acceptances",
        sa.Column("member_id", sa.String(), nullable=False),
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["member_id"], ["members.id"], name=op.f("fk_terms_acceptances_member_id")),
        sa.ForeignKeyConstraint(["version"], ["terms.version"], name=op.f("fk_terms_acceptances_version")),
        sa.PrimaryKeyConstraint("member_id", "version", name=op.f("pk_terms_acceptances")),
    )
    op.create_table(
        "sightings",
        sa.Column("member_id", sa.String(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["member_id"], ["members.id"], name=op.f("fk_sightings_member_id")),
        sa.PrimaryKeyConstraint("member_id", name=op.f("pk_sightings")),
    )
    _append_only("audit_events", "number = NEW.number", "audit log")
    _append_only("terms", "version = NEW.version", "history of the terms")


def _append_only(table: str, taken: str, of: str) -> None:
    said = f"the {of} is append-only: {table} are"
    if op.get_context().dialect.name == "sqlite":
        op.execute(f"""CREATE TRIGGER {table}_no_update BEFORE UPDATE ON {table} BEGIN
  SELECT RAISE(ABORT, '{said} never changed');
END""")
        op.execute(f"""CREATE TRIGGER {table}_no_delete BEFORE DELETE ON {table} BEGIN
  SELECT RAISE(ABORT, '{said} never deleted');
END""")
        op.execute(f"""CREATE TRIGGER {table}_no_replace BEFORE INSERT ON {table}
WHEN EXISTS (SELECT 1 FROM {table} WHERE {taken}) BEGIN
  SELECT RAISE(ABORT, '{said} recorded once');
END""")  # noqa: S608 -- literals of this file
        return
    op.execute(f"""CREATE FUNCTION {table}_append_only() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  RAISE EXCEPTION '{said} never changed or deleted';
END $$""")
    op.execute(f"""CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table}
FOR EACH STATEMENT EXECUTE FUNCTION {table}_append_only()""")

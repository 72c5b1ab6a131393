"""Run by Alembic for every command; the connection comes from `configuration`."""

from alembic import context

from coordinator.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    compare_type=True,
    transactional_ddl=True,  # SQLite can, since BEGIN is ours (dialect.prepare_sqlite)
    render_as_batch=True,  # SQLite alters tables by copying them
)
with context.begin_transaction():
    context.run_migrations()

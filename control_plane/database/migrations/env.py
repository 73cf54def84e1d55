"""Alembic's entry. Runs on the connection that migrate.py hands over; reads no configuration file."""

from alembic import context

from control_plane.database.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transaction_per_migration=False,
)
with context.begin_transaction():
    context.run_migrations()

"""What alembic runs: the steps, within the transaction and under the lock of whoever calls."""

from alembic import context

from adapters.jobs.tables import SCHEMA_TABLE

context.configure(connection=context.config.attributes["connection"], version_table=SCHEMA_TABLE)
context.run_migrations()

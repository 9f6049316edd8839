"""Runs migrations on the catalog that `storage.db.migrate` names."""

from alembic import context

from storage.db import connect
from storage.tables import Base

engine = connect(context.config.attributes["database"])
with engine.execution_options(writes=True).connect() as connection:
    # render_as_batch: SQLite cannot alter a column, Alembic then copies the table.
    context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()
engine.dispose()

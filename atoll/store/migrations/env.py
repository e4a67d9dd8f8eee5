"""Run by alembic: `migrate` passes the open connection, whose transaction is the caller's."""

from __future__ import annotations

from alembic import context

from atoll.store.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()

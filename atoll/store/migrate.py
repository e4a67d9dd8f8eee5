"""Brings a database to the schema of this code, by the alembic scripts in `migrations/`."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection

from atoll.core.errors import SetupError

SCRIPTS = Path(__file__).parent / "migrations"


def migrate(connection: Connection) -> None:
    """Run inside a transaction. Raises SetupError when a newer Atoll has written the database."""
    from alembic import command
    from alembic.config import Config
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    scripts = ScriptDirectory.from_config(config)
    current = MigrationContext.configure(connection).get_current_revision()
    if current == scripts.get_current_head():
        return
    if current is not None and current not in {s.revision for s in scripts.walk_revisions()}:
        raise SetupError(
            f"the database {connection.engine.url.render_as_string(hide_password=True)} has schema {current}, which is "
            "newer than this Atoll knows: upgrade Atoll, or restore a backup made before the upgrade"
        )
    command.upgrade(config, "head")

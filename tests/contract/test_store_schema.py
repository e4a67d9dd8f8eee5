"""Migrating an empty database gives exactly the tables that the code describes."""

from __future__ import annotations

import re

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, create_engine, inspect, text

from atoll.core.errors import SetupError
from atoll.core.types import Entry, Key, Limits, Usage
from atoll.store import open_store
from atoll.store.schema import metadata


def engine_for(url: str) -> Engine:
    return create_engine(url.replace("postgresql:", "postgresql+psycopg:"))


def definitions(engine: Engine) -> set[str]:
    """The text of every table and index as the database itself gives it, without spacing and quotes."""
    if engine.dialect.name == "sqlite":
        query = "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL AND tbl_name <> 'alembic_version'"
    else:
        query = "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' AND tablename <> 'alembic_version'"
    with engine.connect() as connection:
        return {re.sub(r'[\s"]+', "", row[0]) for row in connection.execute(text(query))}


async def test_migrations_equal_the_metadata(durable_url: str):
    await (await open_store(durable_url)).close()
    engine = engine_for(durable_url)
    with engine.connect() as connection:
        options = {"compare_type": True, "compare_server_default": True}
        assert compare_metadata(MigrationContext.configure(connection, opts=options), metadata) == []
    migrated = definitions(engine)
    metadata.drop_all(engine)
    assert definitions(engine) == set()
    metadata.create_all(engine)
    assert definitions(engine) == migrated
    assert len(migrated) >= 6
    engine.dispose()


async def test_the_tables_can_be_taken_away_again(durable_url: str):
    """Down and up once more, so that a migration can be tried out and undone."""
    from alembic import command
    from alembic.config import Config

    from atoll.store.migrate import SCRIPTS

    await (await open_store(durable_url)).close()
    engine = engine_for(durable_url)
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    config.set_main_option("path_separator", "os")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
        assert set(inspect(connection).get_table_names()) == {"alembic_version"}
    engine.dispose()
    await (await open_store(durable_url)).close()


async def test_what_an_older_atoll_wrote_is_still_there(durable_url: str):
    """Rows of the first schema come through the migration with the defaults of what they never had."""
    from alembic import command
    from alembic.config import Config

    from atoll.store.migrate import SCRIPTS

    await (await open_store(durable_url)).close()
    engine = engine_for(durable_url)
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    config.set_main_option("path_separator", "os")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "0001")
        connection.execute(text("INSERT INTO keys VALUES ('k', 'old', 'user', 'd', 'h', NULL, 5, NULL, 1.5, NULL, 2)"))
        connection.execute(
            text("INSERT INTO entries VALUES ('e', 'k', 'm', 'eu', '/', 9.5, 'done', 1, 3, 4, 0, 7, 200, 1, 2, NULL)")
        )
    engine.dispose()
    store = await open_store(durable_url)
    assert await store.keys.all() == [
        Key("k", "old", "user", "d", "h", Limits(None, 5, None), created_at=1.5, revoked_at=2.0)
    ]
    assert await store.ledger.entries() == [Entry("e", "k", "m", "eu", "/", 9.5, "done", Usage(3, 4), 7, 200, 1.0, 2.0)]
    await store.close()


async def test_a_policy_that_cannot_be_read_names_the_key(durable_url: str):
    store = await open_store(durable_url)
    await store.keys.add(Key("k7", "name", "user", "d", "h"))
    engine = engine_for(durable_url)
    with engine.begin() as connection:
        connection.execute(text("""UPDATE keys SET policy = '{"recovery": "quick"}'"""))
    engine.dispose()
    with pytest.raises(SetupError, match=r"policy of key 'k7' .* recovery must be one of exact, fast, hot, none"):
        await store.keys.all()
    await store.close()

"""The tables, and how a ledger entry becomes a row.

`alembic` migrations in `migrations/` build exactly this metadata; a test compares the two on every database.
"""

from __future__ import annotations

import re
from typing import Any

from sqlalchemy import BigInteger, Column, Double, Index, Integer, MetaData, Row, Table, Text, text

from atoll.core.errors import SetupError
from atoll.core.types import Entry, Key, Limits, Usage
from atoll.store.months import period, settled_at
from atoll.store.policies import policy_text, read_policy

LARGEST = 1 << 53
UNSTORABLE = re.compile("[\x00\ud800-\udfff]")

metadata = MetaData()

entries = Table(
    "entries",
    metadata,
    Column("id", Text, primary_key=True),
    Column("key_id", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("region", Text, nullable=False),
    Column("route", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("status", Text, nullable=False),
    Column("period", Integer, nullable=False),
    Column("input", BigInteger, nullable=False),
    Column("output", BigInteger, nullable=False),
    Column("cached", BigInteger, nullable=False),
    Column("cost", BigInteger, nullable=False),
    Column("http_status", Integer, nullable=False),
    Column("first_token_ms", Double),
    Column("duration_ms", Double),
    Column("error", Text),
    Column("path", Text, nullable=False, server_default=text("''")),
    Column("stored_in", Text, nullable=False, server_default=text("''")),
    Column("rule", Text, nullable=False, server_default=text("''")),
    Column("grade", Text, nullable=False, server_default=text("''")),
    Column("gateway", Text, nullable=False, server_default=text("''")),
    sqlite_with_rowid=False,
)
Index("entries_created_at", entries.c.created_at, entries.c.id)
Index(
    "entries_open",
    entries.c.id,
    sqlite_where=entries.c.status == "open",
    postgresql_where=entries.c.status == "open",
)

spend = Table(
    "spend",
    metadata,
    Column("key_id", Text, primary_key=True),
    Column("period", Integer, primary_key=True, autoincrement=False),
    Column("nano", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

keys = Table(
    "keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("digest", Text, nullable=False, unique=True),
    Column("hint", Text, nullable=False),
    Column("requests_per_minute", BigInteger),
    Column("tokens_per_minute", BigInteger),
    Column("budget_per_month", BigInteger),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double),
    Column("revoked_at", Double),
    Column("policy", Text, nullable=False, server_default="{}"),
)

gateways = Table(
    "gateways",
    metadata,
    Column("id", Text, primary_key=True),
    Column("started", Double, nullable=False),
    Column("seen", Double, nullable=False),
)

places = Table(
    "places",
    metadata,
    Column("region_id", Text, primary_key=True),
    Column("status", Text, nullable=False),
    Column("at", Double, nullable=False),
)

facts = Table(
    "facts",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
)

pools = Table(
    "pools",
    metadata,
    Column("key_id", Text, primary_key=True),
    Column("pool", Text, nullable=False),
)

reported = Table(
    "reported",
    metadata,
    Column("holder", Text, primary_key=True),
    Column("key_id", Text, primary_key=True),
    Column("period", Integer, primary_key=True, autoincrement=False),
    Column("nano", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

responses = Table(
    "responses",
    metadata,
    Column("id", Text, primary_key=True),
    Column("key_id", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("expires_at", Double, nullable=False),
    Column("size", BigInteger, nullable=False, server_default=text("0")),
)
Index("responses_expires_at", responses.c.expires_at)
Index("responses_of_key", responses.c.key_id, responses.c.expires_at, responses.c.size)


def to_row(entry: Entry, gateway: str) -> tuple[Any, ...]:
    """Values in the order of the columns of `entries`. `gateway` answers the request, or answered it."""
    usage = entry.usage
    return (
        entry.id,
        entry.key_id,
        entry.model,
        entry.region,
        entry.route,
        entry.created_at,
        entry.status,
        period(settled_at(entry)),
        usage.input,
        usage.output,
        usage.cached,
        entry.cost,
        entry.http_status,
        entry.first_token_ms,
        entry.duration_ms,
        entry.error,
        entry.path,
        entry.stored_in,
        entry.rule,
        entry.grade,
        gateway,
    )


def storable(entry: Entry) -> Entry:
    """The entry with what no database holds replaced: NUL and lone surrogates in texts, numbers beyond 2**53."""
    texts = ("id", "key_id", "model", "region", "route", "error", "path", "stored_in", "rule", "grade")
    clean = {n: UNSTORABLE.sub("\ufffd", value) for n in texts if (value := getattr(entry, n)) is not None}
    usage = Usage(*(_within(n) for n in (entry.usage.input, entry.usage.output, entry.usage.cached)))
    http_status = max(0, min(entry.http_status, 999))
    return entry._replace(usage=usage, cost=_within(entry.cost), http_status=http_status, **clean)


def _within(number: int) -> int:
    return max(-LARGEST, min(number, LARGEST))


def to_entry(row: Row) -> Entry:
    (id, key_id, model, region, route, created_at, status, _, input, output, cached, *rest, _) = row
    return Entry(id, key_id, model, region, route, created_at, status, Usage(input, output, cached), *rest)


def key_values(key: Key) -> dict[str, Any]:
    names = ("id", "name", "role", "digest", "hint", "created_at", "expires_at", "revoked_at")
    limits = ("requests_per_minute", "tokens_per_minute", "budget_per_month")
    columns = {n: getattr(key, n) for n in names} | {n: getattr(key.limits, n) for n in limits}
    return columns | {"policy": policy_text(key.policy)}


def to_key(row: Row) -> Key:
    """Raises SetupError when the policy cannot be read: a key must not lose its rules."""
    id, name, role, digest, hint, rpm, tpm, budget, *times, policy = row
    try:
        return Key(id, name, role, digest, hint, Limits(rpm, tpm, budget), *times, read_policy(policy))
    except ValueError as error:
        raise SetupError(f"the policy of key '{id}' in the database cannot be read: {error}") from None

"""The ledger's contract, the same over memory, SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
import itertools
from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atoll.core.quota import Slot
from atoll.core.types import Entry, Usage
from atoll.store import Store, open_store

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC).timestamp()
NOVEMBER = 2026 * 12 + 10
OPEN = Entry("req-1", "key-1", "max", "eu-west", "/v1/chat/completions", NOW)
DONE = OPEN._replace(
    status="done",
    usage=Usage(120, 60, 20),
    cost=12_345,
    http_status=200,
    first_token_ms=35.5,
    duration_ms=1200.25,
)


async def record_all(store: Store, *entries: Entry) -> None:
    await asyncio.gather(*(store.ledger.record(e) for e in entries))


async def test_an_entry_comes_back_as_it_was_recorded(store: Store):
    failed = DONE._replace(id="req-2", status="failed", error="the engine died: «\u2028»", created_at=NOW + 0.125)
    moved = DONE._replace(id="req-3", created_at=NOW + 1, path="eu-central-1:120 eu-west-1:80", grade="exact")
    moved = moved._replace(stored_in="eu-west-1", rule="process in eu; store in eu; reject")
    await record_all(store, DONE, failed, moved)
    assert await store.ledger.entries() == [moved, failed, DONE]
    assert await store.ledger.entry("req-3") == moved
    assert await store.ledger.entry("req-4") is None


async def test_the_last_record_of_an_id_wins_flushed_or_not(store: Store):
    await store.ledger.record(OPEN)
    await store.ledger.record(DONE)
    store.ledger.record(OPEN._replace(id="req-2"))
    await store.ledger.record(DONE._replace(id="req-2"))
    assert await store.ledger.entries() == [DONE._replace(id="req-2"), DONE]
    assert (await store.ledger.recover(NOW))["key-1"].spent == 2 * DONE.cost


async def test_a_request_keeps_the_time_it_began(store: Store):
    await store.ledger.record(OPEN)
    await store.ledger.record(DONE._replace(created_at=NOW + 5))
    assert await store.ledger.entries() == [DONE]


async def test_recording_again_spends_once(store: Store):
    for _ in range(3):
        await store.ledger.record(DONE)
    assert (await store.ledger.recover(NOW))["key-1"].spent == DONE.cost
    await store.ledger.record(DONE._replace(cost=10_000))
    assert (await store.ledger.recover(NOW))["key-1"].spent == 10_000
    await store.ledger.record(DONE._replace(key_id="key-2", cost=9_000))
    accounts = await store.ledger.recover(NOW)
    assert accounts["key-2"].spent == 9_000
    assert "key-1" not in accounts


async def test_recover_closes_open_rows_and_rebuilds_accounts(store: Store):
    await record_all(
        store,
        OPEN._replace(id="cut-off", created_at=NOW - 3.5),
        DONE._replace(id="a", created_at=NOW - 3.25),
        DONE._replace(id="b", created_at=NOW - 60),
        DONE._replace(id="too-old-for-the-window", created_at=NOW - 61),
        DONE._replace(id="other", key_id="key-2", created_at=NOW - 4000),
        DONE._replace(id="last-month", key_id="key-3", created_at=NOW - 40 * 86_400),
    )
    accounts = await store.ledger.recover(NOW)
    assert accounts.keys() == {"key-1", "key-2"}
    one, two = accounts["key-1"], accounts["key-2"]
    assert (one.period, one.spent, one.held, one.open) == (NOVEMBER, 3 * DONE.cost, 0, 0)
    assert one.slots == (Slot(int(NOW) - 60, 1, 180), Slot(int(NOW) - 4, 2, 180))
    assert (two.spent, two.slots) == (DONE.cost, ())
    cut_off = {e.id: e for e in await store.ledger.entries()}["cut-off"]
    assert (cut_off.status, cut_off.cost) == ("interrupted", 0)
    assert cut_off.error == "gateway stopped before this request finished"


async def test_money_counts_in_the_month_a_request_ends_in(store: Store):
    december = datetime(2026, 12, 1, tzinfo=UTC).timestamp()
    await store.ledger.record(DONE._replace(created_at=december - 1, duration_ms=1500.0))
    assert (await store.ledger.recover(december - 1))["key-1"].spent == 0
    assert (await store.ledger.recover(december + 1))["key-1"].spent == DONE.cost


async def test_pages_follow_each_other_through_equal_times(store: Store):
    rows = [DONE._replace(id=f"r{n:02}", created_at=NOW + n // 3, key_id=f"key-{n % 2}") for n in range(20)]
    await record_all(store, *rows)
    seen: list[Entry] = []
    page = await store.ledger.entries(limit=7)
    while page:
        seen += page
        page = await store.ledger.entries(limit=7, before=page[-1].created_at, before_id=page[-1].id)
    assert seen == rows[::-1]
    assert await store.ledger.entries(key_id="key-1", limit=2) == [rows[19], rows[17]]
    assert await store.ledger.entries(before=NOW + 1) == rows[2::-1]


async def test_usage_sums_by_time_key_and_model(store: Store):
    start = NOW - NOW % 60
    await record_all(
        store,
        DONE._replace(id="a", created_at=start),
        DONE._replace(id="b", created_at=start + 59.999),
        DONE._replace(id="c", created_at=start + 60, status="failed", cost=0),
        OPEN._replace(id="d", created_at=start + 61, model="omni"),
        DONE._replace(id="e", created_at=start + 62, key_id="key-2"),
        DONE._replace(id="outside", created_at=start + 120),
    )
    nothing = dict.fromkeys(("input", "output", "cached", "cost"), 0)
    zero = {"failed": 0, "input": 120, "output": 60, "cached": 20, "cost": 12_345, "requests": 1}
    first = zero | {"start": start, "key_id": "key-1", "model": "max", "requests": 2} | {"input": 240, "output": 120}
    first |= {"cached": 40, "cost": 24_690}
    expected = [
        first,
        zero | {"start": start + 60, "key_id": "key-1", "model": "max", "failed": 1, "cost": 0},
        zero | {"start": start + 60, "key_id": "key-1", "model": "omni"} | nothing,
        zero | {"start": start + 60, "key_id": "key-2", "model": "max"},
    ]
    got = await store.ledger.usage(since=start, until=start + 120, step=60)
    assert got == expected
    assert {type(v) for row in got for k, v in row.items() if k not in ("start", "key_id", "model")} == {int}
    assert await store.ledger.usage(since=start, until=start + 120, step=60, key_id="key-2") == expected[3:]
    [hour] = await store.ledger.usage(since=0, until=NOW + 9e9, step=3600.0, key_id="key-2")
    assert hour["start"] % 3600 == 0


async def test_a_cancelled_waiter_leaves_the_others_alone(store: Store):
    tasks = [asyncio.ensure_future(store.ledger.record(DONE._replace(id=str(n)))) for n in range(3)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert results[0] is None
    assert results[2] is None
    assert len(await store.ledger.entries()) == 3


async def test_values_no_database_holds_do_not_stop_the_ledger(store: Store):
    odd = DONE._replace(id="odd", error="a\x00b\ud800", path="\x00", usage=Usage(1 << 70, 1, 0))
    await record_all(store, odd, DONE)
    by_id = {e.id: e for e in await store.ledger.entries()}
    assert by_id.keys() == {"odd", "req-1"}
    assert by_id["odd"].cost == DONE.cost


ids = itertools.count()
changes = st.tuples(
    st.integers(0, 3),
    st.sampled_from(["open", "done", "failed", "cancelled"]),
    st.integers(0, 1 << 40),
    st.sampled_from([None, 10.0, 40 * 86_400_000.0]),
    st.booleans(),
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(history=st.lists(changes, max_size=12), repeats=st.integers(1, 3))
async def test_any_history_repeated_any_number_of_times_spends_the_last_costs(store: Store, history, repeats):
    example = f"x{next(ids)}"
    last: dict[str, Entry] = {}
    for number, status, cost, duration, flush in history * repeats:
        cost = 0 if status == "open" else cost
        entry = DONE._replace(id=f"{example}-{number}", key_id=example, status=status, cost=cost, duration_ms=duration)
        last[entry.id] = entry
        written = store.ledger.record(entry)
        if flush:
            await written
    if history:
        await written
    for now, late in ((NOW, False), (NOW + 40 * 86_400, True)):
        owed = sum(e.cost for e in last.values() if (e.duration_ms == 40 * 86_400_000.0) == late)
        account = (await store.ledger.recover(now)).get(example)
        assert (account.spent if account else 0) == owed
    stored = await store.ledger.entries(key_id=example)
    assert {e.id: e.cost for e in stored} == {e.id: e.cost for e in last.values()}
    assert all(e.status != "open" for e in stored)


async def test_what_was_recorded_is_there_after_reopening(durable_url: str):
    store = await open_store(durable_url)
    store.ledger.record(OPEN._replace(id="not-awaited"))
    store.ledger.record(DONE)
    await store.close()
    store = await open_store(durable_url)
    assert {e.id for e in await store.ledger.entries()} == {"not-awaited", "req-1"}
    assert (await store.ledger.recover(NOW))["key-1"].spent == DONE.cost
    await store.close()


@pytest.mark.parametrize("rows", [1, 7, 64, 700])
async def test_groups_of_every_size_are_complete(store: Store, rows: int):
    entries = [DONE._replace(id=f"{n:04}", key_id=f"key-{n % 5}") for n in range(rows)]
    await record_all(store, *(e._replace(status="open", cost=0) for e in entries))
    await record_all(store, *entries)
    assert await store.ledger.entries(limit=1000) == entries[::-1]
    accounts = await store.ledger.recover(NOW)
    assert sum(a.spent for a in accounts.values()) == rows * DONE.cost

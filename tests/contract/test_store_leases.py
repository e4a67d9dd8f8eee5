"""The contract of quota pools: over memory, SQLite and PostgreSQL, and with several gateways at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

import psycopg
import pytest
from sqlalchemy import URL, Connection

from atoll.core.errors import InvalidRequest, Overloaded
from atoll.core.leases import (
    Amount,
    Drawn,
    Lent,
    Recall,
    Report,
    Stale,
    Wallet,
    Want,
    acknowledge,
    ask,
    give_up,
    receive,
    report,
    reserve,
    settle,
)  # fmt: skip
from atoll.core.quota import Ask, Reject
from atoll.core.types import Entry, Limits, Usage
from atoll.store import Store, gateways, open_store
from atoll.store.sql import open_sql
from atoll.store.sqlite import SqliteBackend

LIMITS = Limits(budget_per_month=1000)
DONE = Entry("e", "key-1", "max", "eu", "/v1/chat", 0.0, "done", Usage(2, 3), http_status=200, duration_ms=1.0)
T = TypeVar("T")
Open = Callable[[], Awaitable[Store]]


class Unlocked(SqliteBackend):
    """Lets a second connection write to the file, which gateways do not."""

    def __init__(self, url: URL):
        super().__init__(url)
        self.journal = None

    def claim(self, connection: Connection) -> None: ...


@pytest.fixture(params=["sqlite", "postgresql"])
def another(request: pytest.FixtureRequest, new_url: Callable[[str], str]) -> Open:
    """Opens one more store on the same database."""
    url = new_url(request.param)
    return (lambda: open_sql(url, Unlocked)) if request.param == "sqlite" else (lambda: open_store(url))


def money(least: int, most: int = 0) -> tuple[Amount, Amount]:
    return Amount(1, 0, least), Amount(1, 0, max(least, most))


async def test_what_is_lent_is_reported_and_lent_again(store: Store):
    leases, wallet = store.leases, Wallet(store.leases.holder)
    wallet, want = ask(wallet, *money(100, 900))
    lent = await leases.grant("key-1", LIMITS, want)
    assert isinstance(lent, Lent)
    assert (lent.holder, lent.n, lent.amount.cost) == (leases.holder, 1, 500)
    assert 5 < lent.expires_at - time.time() < 11
    assert await leases.grant("key-1", LIMITS, want) == lent, "asked again, answered again"
    other = Want("other", 1, *money(600))
    assert isinstance(refused := await leases.grant("key-1", LIMITS, other), Recall)
    assert refused.holders == (leases.holder,)
    assert isinstance(await leases.grant("key-2", LIMITS, other), Lent), "each key has a pool of its own"
    wallet, drawn = reserve(receive(wallet, lent), Ask(0, 100), time.time())
    assert isinstance(drawn, Drawn)
    wallet, reports = report(settle(wallet, drawn, 0, 70), time.time(), give_back=True)
    await leases.record("key-1", reports)
    await leases.record("key-1", reports)
    assert isinstance(await leases.grant("key-1", LIMITS, want), Stale)
    assert isinstance(await leases.grant("key-1", LIMITS, replace(other, least=Amount(1, 0, 931))), Reject)
    assert isinstance(await leases.grant("key-1", LIMITS, replace(other, least=Amount(1, 0, 930))), Lent)


async def test_a_report_that_contradicts_its_lease_changes_nothing(store: Store):
    lent = await store.leases.grant("key-1", LIMITS, Want(store.leases.holder, 1, *money(400)))
    assert isinstance(lent, Lent)
    good = Report(store.leases.holder, 1, 1, Amount(1, 0, 100), Amount(1, 0, 100), time.time())
    bad = replace(good, seq=2, spent=Amount(1, 0, 401), ceiling=Amount(1, 0, 401))
    with pytest.raises(InvalidRequest, match="contradicts the lease"):
        await store.leases.record("key-1", [good, bad])
    await store.leases.record("key-1", [good])
    assert isinstance(await store.leases.grant("key-1", LIMITS, Want("b", 1, *money(900))), Lent)


async def test_a_pool_begins_with_what_the_ledger_says_and_outlives_a_restart(durable_url: str):
    store = await open_store(durable_url)
    await store.ledger.record(DONE._replace(created_at=time.time(), cost=300))
    assert isinstance(await store.leases.grant("key-1", LIMITS, Want("b", 1, *money(701))), Reject)
    lent = await store.leases.grant("key-1", LIMITS, Want("b", 2, *money(600)))
    assert isinstance(lent, Lent)
    await store.close()
    store = await open_store(durable_url)
    assert isinstance(await store.leases.grant("key-1", LIMITS, Want("c", 1, *money(200))), Recall)
    assert isinstance(await store.leases.grant("key-1", LIMITS, Want("c", 1, *money(100))), Lent)
    await store.close()


async def test_a_gateway_that_stops_gives_back_all_but_what_it_spent(another: Open):
    first = await another()
    lent = await first.leases.grant("key-1", LIMITS, Want(first.leases.holder, 1, *money(800)))
    assert isinstance(lent, Lent)
    first.ledger.record(DONE._replace(created_at=time.time(), cost=250))
    told = Report(first.leases.holder, 1, 1, Amount(1, 0, 100), lent.amount, time.time())
    await first.leases.record("key-1", [told])
    await first.close()
    second = await another()
    assert isinstance(await second.leases.grant("key-1", LIMITS, Want("b", 1, *money(751))), Reject)
    assert isinstance(await second.leases.grant("key-1", LIMITS, Want("b", 1, *money(750))), Lent)
    await second.close()


async def test_what_a_dead_gateway_spent_is_taken_from_its_rows(new_url: Callable[[str], str]):
    """It told of 100, its rows say 250; three other keys tell nothing of it. Twice, as two may notice at once."""
    url = new_url("postgresql")
    dead, alive = await open_store(url), await open_store(url)
    for number, cost in enumerate((0, 250, 7)):
        lent = await dead.leases.grant(f"key-{number}", LIMITS, Want(dead.leases.holder, 1, *money(800)))
        assert isinstance(lent, Lent)
        row = DONE._replace(id=str(number), key_id=f"key-{number}", created_at=time.time(), cost=cost)
        await dead.ledger.record(row)
    told = Report(dead.leases.holder, 1, 1, Amount(1, 0, 100), lent.amount, time.time())
    await dead.leases.record("key-1", [told])
    with psycopg.connect(url, autocommit=True) as admin:
        silent = "UPDATE gateways SET seen = seen - %s WHERE id = %s"
        admin.execute(silent, (gateways.SILENT_S, dead.leases.holder))
        await alive.ledger.recover(time.time())
        held = await alive.leases.grant("key-1", LIMITS, Want("b", 1, *money(750)))
        assert isinstance(held, Recall), "its claim holds"
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
        await asyncio.sleep(0.1)
        for _ in range(2):
            await again(lambda: alive.ledger.recover(time.time()))
    for number, left in enumerate((1000, 750, 993)):
        for want, answer in ((left + 1, Reject), (left, Lent)):
            told_b = await alive.leases.grant(f"key-{number}", LIMITS, Want("b", 2, *money(want)))
            assert isinstance(told_b, answer), (number, want, told_b)
    late = await alive.leases.grant("key-1", LIMITS, Want(dead.leases.holder, 2, *money(1)))
    assert isinstance(late, Stale), "it is not heard any more"
    await alive.close()
    await dead.close()


async def again(call: Callable[[], Awaitable[T]]) -> T:
    """The answer, once the database has time for us."""
    while True:
        with suppress(Overloaded):
            return await call()


class Gateway:
    """Spends from one key's pool as a gateway does: in small reservations, on leases that it asks for when short."""

    def __init__(self, store: Store, name: str) -> None:
        self.store = store
        self.wallet = Wallet(name)
        self.spent = 0
        self.lent = 0

    async def run(self, ask_for: Ask, cost: int) -> None:
        """Until the pool says that the budget is used up."""
        while True:
            self.wallet, drawn = reserve(self.wallet, ask_for, time.time())
            if isinstance(drawn, Drawn):
                await asyncio.sleep(0)
                self.wallet = settle(self.wallet, drawn, 0, cost)
                self.spent += cost
                continue
            await again(lambda: self.tell(give_back=True))
            self.wallet, want = ask(self.wallet, *money(ask_for.cost, 5 * ask_for.cost))
            limits = Limits(budget_per_month=BUDGET)
            answer = await again(lambda want=want, limits=limits: self.store.leases.grant("key-1", limits, want))
            if isinstance(answer, Lent):
                self.wallet = receive(self.wallet, answer)
                continue
            self.wallet = give_up(self.wallet, want.n)
            if isinstance(answer, Reject):
                return
            await asyncio.sleep(0.01)

    async def tell(self, give_back: bool) -> None:
        self.wallet, reports = report(self.wallet, time.time(), give_back)
        await self.store.leases.record("key-1", reports)
        for told in reports:
            self.wallet = acknowledge(self.wallet, told.n, told.seq)


BUDGET = 6_000


async def test_gateways_that_race_spend_the_budget_to_the_last_and_not_more(another: Open):
    """Reservations of 100 settle for 40: all but what no request fits into is spent, by many at once."""
    stores = [await another() for _ in range(2)]
    racing = [Gateway(stores[n % 2], f"g{n}") for n in range(6)]
    async with asyncio.timeout(60):
        await asyncio.gather(*(gateway.run(Ask(0, 100), 40) for gateway in racing))
    total = sum(gateway.spent for gateway in racing)
    assert BUDGET - 100 < total <= BUDGET
    assert sum(gateway.spent > 0 for gateway in racing) >= 2
    left = await stores[0].leases.grant("key-1", Limits(budget_per_month=BUDGET), Want("z", 1, *money(BUDGET - total)))
    assert isinstance(left, Lent), "the pool knows of every nanodollar"
    for store in stores:
        await store.close()

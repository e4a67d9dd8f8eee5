"""Accounts of a gateway that shares its database with others: limited keys are spent from leases (`core.leases`).

A request that fits what is held asks nobody. What is short is fetched from the pool, ahead of need where it can be;
what is spent or unused is told every second. A key without limits needs no lease.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from atoll.core import leases
from atoll.core.errors import AtollError, QuotaExceeded
from atoll.core.leases import Amount, Drawn, Lent, Recall, Stale, Wallet
from atoll.core.ports import Keys, Leases
from atoll.core.quota import Account, Admit, Ask, Reject, Ticket, reserve
from atoll.core.types import Key, Limits
from atoll.gateway.accounts import Accounts, month

log = logging.getLogger("atoll.gateway")

PATIENCE = 45.0
"""Longer than what a gateway that died held stays in doubt."""
TELL_EVERY = 1.0
IDLE = 2.0
AHEAD = 8
MANY = 64
RETRY = 0.25
UNLIMITED = Limits()


@dataclass(frozen=True, slots=True)
class Loaned(Ticket):
    drawn: Drawn | None = None


@dataclass(slots=True, eq=False)
class Purse:
    """What this gateway holds for one key. `task` fetches more; until `barred` nothing is fetched ahead, and until
    `again` nothing at all. `refused`: what the pool said of which wish under which limits, good until when."""

    wallet: Wallet
    limits: Limits
    used: float = 0.0
    barred: float = 0.0
    again: float = 0.0
    refused: tuple[Limits, Ask, Reject, float] | None = None
    give_back: bool = False
    task: asyncio.Task[Lent | Reject | Recall | Stale] | None = None
    telling: asyncio.Lock = field(default_factory=asyncio.Lock)
    settled: asyncio.Event = field(default_factory=asyncio.Event)

    def rejection(self, limits: Limits, ask: Ask, now: float) -> Reject | None:
        """Who asks for as much as what was refused a moment ago need not ask the pool."""
        if self.refused is None:
            return None
        under, wish, answer, until = self.refused
        least = ask.tokens >= wish.tokens and ask.cost >= wish.cost
        return answer if now < until and under == limits and least else None

    def low(self, ask: Ask, now: float) -> bool:
        """Whether what is held would not do for a few more requests like this one, or ends soon."""
        need = Amount(AHEAD, AHEAD * ask.tokens, AHEAD * ask.cost)
        return not any(
            now < x.expires_at - 3 and need.within(x.ceiling - x.spent - x.held) for x in self.wallet.leases
        )


class LeasedAccounts(Accounts):
    """`start` keeps pools told and keys up to date; `close` gives everything back."""

    def __init__(
        self, keys: Iterable[Key], accounts: dict[str, Account], now: float, pool: Leases, store: Keys
    ) -> None:
        super().__init__(keys, accounts, now)
        self._pool = pool
        self._store = store
        self._purses: dict[str, Purse] = {}
        self._tasks: set[asyncio.Task] = set()
        self._changes = 0

    def start(self) -> None:
        self._begin(self._keep_telling())
        self._begin(self._keep_keys())

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for key_id, purse in self._purses.items():
            await self._told(key_id, purse, True)

    def put(self, key: Key) -> None:
        self._changes += 1
        super().put(key)

    async def reserve(self, key: Key, ask: Ask) -> Ticket:
        if key.limits == UNLIMITED:
            return await super().reserve(key, ask)
        purse = self._purses.get(key.id)
        if purse is None:
            purse = self._purses[key.id] = Purse(Wallet(self._pool.holder), key.limits)
        if purse.limits != key.limits:  # what was lent under other limits may be too much now
            purse.limits = key.limits
            await self._told(key.id, purse, True)
        deadline = time.monotonic() + PATIENCE
        while True:
            now = self._now()
            purse.wallet, got = leases.reserve(purse.wallet, ask, now)
            if isinstance(got, Drawn):
                purse.used = now
                if purse.task is None and now >= purse.barred and purse.low(ask, now):
                    self._fetch(key, purse, ask)
                return self._hold(key.id, got, now)
            await self._refill(key, purse, ask, deadline)

    def settle(self, key_id: str, ticket: Ticket, tokens: int = 0, cost: int = 0) -> None:
        super().settle(key_id, ticket, tokens, cost)
        if isinstance(ticket, Loaned) and ticket.drawn is not None:
            purse = self._purses[key_id]
            purse.wallet = leases.settle(purse.wallet, ticket.drawn, tokens, cost)
            purse.refused = None
            purse.settled.set()

    def _hold(self, key_id: str, drawn: Drawn, now: float) -> Ticket:
        """The gateway's own account goes along, for what it shows."""
        if now >= self._period_ends:
            self._period, self._period_ends = month(now)
        account = self.account(key_id)
        self._accounts[key_id], admit = reserve(account, UNLIMITED, drawn.ask, now, self._period, self._period_ends)
        assert isinstance(admit, Admit)
        return Loaned(drawn.ask, admit.ticket.second, drawn)

    async def _refill(self, key: Key, purse: Purse, ask: Ask, deadline: float) -> None:
        """Returns when another try may succeed. Raises QuotaExceeded, or what the store raised."""
        left = deadline - time.monotonic()
        now, answer = self._now(), None
        if purse.task is not None:
            await asyncio.wait({purse.task}, timeout=max(0.0, left))
        elif (answer := purse.rejection(key.limits, ask, now)) is None and now >= purse.again:
            task = self._fetch(key, purse, ask)
            await asyncio.wait({task}, timeout=max(0.0, left))
            answer = task.result() if task.done() else None
        if isinstance(answer, Reject):
            code = "insufficient_quota" if answer.limit == "budget" else "rate_limit_exceeded"
            error = QuotaExceeded(answer.reason, code=code, retry_after=answer.retry_after)
            error.retryable = answer.limit != "budget" and answer.retry_after is not None
            raise error
        if left <= 0:
            raise QuotaExceeded("the rest of this key's quota is reserved by requests that still run", retry_after=1.0)
        if now < purse.again or isinstance(answer, Recall):
            purse.settled.clear()
            try:
                async with asyncio.timeout(RETRY):
                    await purse.settled.wait()
            except TimeoutError:
                return

    def _fetch(self, key: Key, purse: Purse, ask: Ask) -> asyncio.Task[Lent | Reject | Recall | Stale]:
        purse.task = self._begin(self._lend(key, purse, ask))
        purse.task.add_done_callback(lambda _: setattr(purse, "task", None))
        return purse.task

    async def _lend(self, key: Key, purse: Purse, ask: Ask) -> Lent | Reject | Recall | Stale:
        """Ask the pool. What could not be used for the last such wish is given back first: it may be what lacks."""
        await self._told(key.id, purse, purse.give_back)
        least = Amount(1, ask.tokens, ask.cost)
        purse.wallet, want = leases.ask(purse.wallet, least, Amount(MANY, MANY * ask.tokens, MANY * ask.cost))
        try:
            answer = await self._pool.grant(key.id, key.limits, want)
        except AtollError:
            purse.wallet = leases.give_up(purse.wallet, want.n)
            raise
        if isinstance(answer, Lent):
            purse.wallet = leases.receive(purse.wallet, answer)
        else:
            purse.wallet = leases.give_up(purse.wallet, want.n)
            now = self._now()
            purse.barred = now + TELL_EVERY
            if isinstance(answer, Recall):
                purse.again = now + RETRY
            if isinstance(answer, Reject):
                until = now + min(TELL_EVERY, answer.retry_after or TELL_EVERY)
                purse.refused = (key.limits, ask, answer, until)
        purse.give_back = isinstance(answer, Recall)
        return answer

    async def _told(self, key_id: str, purse: Purse, give_back: bool) -> None:
        """Tell the pool what is spent, and what is not needed."""
        async with purse.telling:
            purse.wallet, reports = leases.report(purse.wallet, self._now(), give_back)
            try:
                await self._pool.record(key_id, reports)
            except AtollError as error:
                log.warning("the quota of %s could not be told: %s", key_id, error.message)
                return
            for told in reports:
                purse.wallet = leases.acknowledge(purse.wallet, told.n, told.seq)

    async def _keep_telling(self) -> None:
        while True:
            await asyncio.sleep(TELL_EVERY)
            now = self._now()
            for key_id, purse in list(self._purses.items()):
                if purse.wallet.leases:
                    await self._told(key_id, purse, purse.give_back or now - purse.used > IDLE)

    async def _keep_keys(self) -> None:
        """Keys made, changed and revoked at other gateways."""
        while True:
            await asyncio.sleep(TELL_EVERY)
            before = self._changes
            try:
                keys = await self._store.all()
            except AtollError as error:
                log.warning("keys could not be read: %s", error.message)
                continue
            if before == self._changes:
                self._renew(keys)

    def _renew(self, keys: Sequence[Key]) -> None:
        self._by_digest = {key.digest: key for key in keys}

    def _begin(self, doing: object) -> asyncio.Task:
        task = asyncio.create_task(doing)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("a quota could not be fetched: %s", error)

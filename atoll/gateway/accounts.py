"""Who calls, and what they may still use: keys by digest, and one quota account a key."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Iterable
from datetime import UTC, datetime

from atoll.core.errors import QuotaExceeded, Unauthenticated
from atoll.core.quota import Account, Admit, Ask, Queue, Ticket, reserve, settle
from atoll.core.types import Key

PATIENCE = 30.0
MAX_WAITERS = 256


def digest(secret: str) -> str:
    """What is stored of a key. Secrets are 256 random bits, so a plain SHA-256 cannot be searched."""
    return hashlib.sha256(secret.encode()).hexdigest()


class Accounts:
    """The gateway's living copy of keys and quota accounts. Decisions are `core.quota`'s."""

    def __init__(self, keys: Iterable[Key], accounts: dict[str, Account], now: float | None = None) -> None:
        self._by_digest = {k.digest: k for k in keys}
        self._accounts = accounts
        self._waiting: dict[str, list[asyncio.Future[None]]] = {}
        self._latest = now or time.time()
        self._period, self._period_ends = month(self._latest)

    def put(self, key: Key) -> None:
        self._by_digest = {d: k for d, k in self._by_digest.items() if k.id != key.id} | {key.digest: key}

    def everyone(self) -> list[Key]:
        return list(self._by_digest.values())

    def account(self, key_id: str) -> Account:
        return self._accounts.get(key_id) or Account(self._period)

    def identify(self, secret: str | None) -> Key:
        """Raises Unauthenticated: absent, unknown, expired or revoked."""
        if not secret:
            raise Unauthenticated("no API key: send 'Authorization: Bearer <key>'", code="missing_api_key")
        key = self._by_digest.get(digest(secret))
        if key is None or not key.usable(time.time()):
            raise Unauthenticated("the API key is unknown, expired or revoked")
        return key

    async def reserve(self, key: Key, ask: Ask) -> Ticket:
        """Hold the upper bound `ask`. Waits while only other reservations stand in the way. Raises QuotaExceeded."""
        deadline = time.monotonic() + PATIENCE
        while True:
            now = self._now()
            if now >= self._period_ends:
                self._period, self._period_ends = month(now)
            account, decision = reserve(
                self.account(key.id), key.limits, ask, now, self._period, self._period_ends
            )
            self._accounts[key.id] = account
            if isinstance(decision, Admit):
                return decision.ticket
            if isinstance(decision, Queue):
                await self._settled(key.id, deadline, decision.reason)
                continue
            code = "insufficient_quota" if decision.limit == "budget" else "rate_limit_exceeded"
            error = QuotaExceeded(decision.reason, code=code, retry_after=decision.retry_after)
            error.retryable = decision.limit != "budget" and decision.retry_after is not None
            raise error

    def settle(self, key_id: str, ticket: Ticket, tokens: int = 0, cost: int = 0) -> None:
        """Replace a reservation by what was used; nothing used is a refund."""
        now = self._now()
        period = self._period if now < self._period_ends else month(now)[0]
        self._accounts[key_id] = settle(self.account(key_id), ticket, tokens, cost, now, period)
        for waiter in self._waiting.pop(key_id, ()):
            if not waiter.done():
                waiter.set_result(None)

    def _now(self) -> float:
        """A clock that is set back must not renew anything: time stands still until it catches up."""
        self._latest = max(self._latest, time.time())
        return self._latest

    async def _settled(self, key_id: str, deadline: float, reason: str) -> None:
        waiters = self._waiting.setdefault(key_id, [])
        if len(waiters) >= MAX_WAITERS or time.monotonic() >= deadline:
            raise QuotaExceeded(reason, retry_after=1.0)
        waiter = asyncio.get_running_loop().create_future()
        waiters.append(waiter)
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                await waiter
        except TimeoutError:
            raise QuotaExceeded(reason, retry_after=1.0) from None


def month(now: float) -> tuple[int, float]:
    """The UTC month of `now` as year * 12 + month - 1, and when the next one begins."""
    today = datetime.fromtimestamp(now, UTC)
    year, following = divmod(today.year * 12 + today.month, 12)
    return today.year * 12 + today.month - 1, datetime(year, following + 1, 1, tzinfo=UTC).timestamp()

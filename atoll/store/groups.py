"""Group commit: many records share one transaction, and one awaitable that resolves when it is on disk."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import Any

from atoll.core.errors import AtollError, Overloaded
from atoll.core.types import Entry

BACK_OFF = (0.05, 2.0)
PATIENCE = 0.05

Batch = dict[str, Entry]
Commit = Callable[[Batch, Callable[[Any, AtollError | None], None]], None]
log = logging.getLogger(__name__)


class Group:
    """The records of one commit. May be awaited by any number of tasks, any number of times, or never;
    a cancelled waiter leaves the others alone. Raises Overloaded when the commit failed."""

    __slots__ = ("_error", "_loop", "_settled", "_urge", "_waiters")

    def __init__(self, loop: asyncio.AbstractEventLoop, urge: Callable[[], None]):
        self._loop = loop
        self._urge = urge
        self._waiters: list[asyncio.Future[None]] = []
        self._settled = False
        self._error: str | None = None

    def __await__(self) -> Generator[Any, None, None]:
        if not self._settled:
            waiter = self._loop.create_future()
            self._waiters.append(waiter)
            self._urge()
            yield from waiter
        if self._error:
            raise Overloaded(self._error, retry_after=1.0)

    @property
    def awaited(self) -> bool:
        return bool(self._waiters)

    def settle(self, error: str | None) -> None:
        self._settled, self._error = True, error
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()


class Groups:
    """Collects records on the event loop while the previous group is being written.

    A group is written as soon as somebody waits for it, and after `PATIENCE` seconds in any case: a row that
    opens a request, which nobody waits for, mostly goes to disk together with a row that closes one.
    `commit(batch, done)` writes a batch elsewhere and calls `done(result, error)` on the loop. A batch that
    failed stays pending and is tried again with back-off; a newer record of the same id replaces the older.
    `limit` bounds the pending rows: beyond it, new requests are refused, while results of requests already
    accepted are taken up to twice the limit.
    """

    def __init__(self, commit: Commit, limit: int, linger: float, large: int):
        self._loop = asyncio.get_running_loop()
        self._commit = commit
        self._limit = limit
        self._linger = linger
        self._large = large
        self._pending: Batch = {}
        self._group = Group(self._loop, self._urge)
        self._urgent = False
        self._scheduled: asyncio.Handle | None = None
        self._writing = False
        self._failure: str | None = None
        self._delay = BACK_OFF[0]
        self._closing = False

    def add(self, entry: Entry) -> Group:
        pending = self._pending
        if self._failure and entry.status == "open":
            raise Overloaded(self._failure, retry_after=self._delay)
        if len(pending) >= self._limit:
            self._refuse_beyond(entry)
        pending[entry.id] = entry
        if not self._writing and self._scheduled is None:
            self._scheduled = self._loop.call_later(PATIENCE, self._hand_over)
        return self._group

    def _urge(self) -> None:
        """Somebody waits for the group that is being collected."""
        if self._writing or self._urgent or not self._pending:
            return
        self._urgent = True
        if self._scheduled:
            self._scheduled.cancel()
        self._scheduled = self._loop.call_soon(self._hand_over)

    async def close(self) -> int:
        """Write what is pending, with one more try if that fails; the number of rows that could not be written."""
        self._closing = True
        for _ in range(2):
            while self._writing:
                await _quietly(self._writing_group)
            if not self._pending:
                break
            if self._scheduled:
                self._scheduled.cancel()
            self._hand_over()
            await _quietly(self._writing_group)
        return len(self._pending)

    def _refuse_beyond(self, entry: Entry) -> None:
        if entry.id in self._pending or (entry.status != "open" and len(self._pending) < 2 * self._limit):
            return
        why = self._failure or f"{len(self._pending)} ledger rows wait to be written"
        raise Overloaded(f"too much unwritten: {why}", retry_after=self._delay)

    def _hand_over(self) -> None:
        batch, group = self._pending, self._group
        self._pending, self._group = {}, Group(self._loop, self._urge)
        self._urgent = False
        self._scheduled, self._writing, self._writing_group = None, True, group
        self._commit(batch, lambda _, error: self._done(batch, group, error))

    def _done(self, batch: Batch, group: Group, error: AtollError | None) -> None:
        self._writing = False
        if error:
            batch.update(self._pending)
            self._pending = batch
            wait, self._delay = self._delay, min(2 * self._delay, BACK_OFF[1])
            self._report(error.message)
        else:
            wait, self._delay = self._linger if len(batch) >= self._large else 0.0, BACK_OFF[0]
            self._report(None)
        group.settle(self._failure)
        if self._pending and not self._closing:
            self._next(wait)

    def _next(self, wait: float) -> None:
        """Write what was collected meanwhile: at once, after `wait`, or when it has to be."""
        if not self._group.awaited:
            self._scheduled = self._loop.call_later(max(wait, PATIENCE), self._hand_over)
        elif wait:
            self._urgent = True
            self._scheduled = self._loop.call_later(wait, self._hand_over)
        else:
            self._hand_over()

    def _report(self, failure: str | None) -> None:
        """One log line when writing starts to fail, and one when it works again."""
        if failure and failure != self._failure:
            log.error("%s; %d rows are kept and tried again", failure, len(self._pending))
        elif self._failure and not failure:
            log.warning("the ledger can be written again")
        self._failure = failure


async def _quietly(group: Group) -> None:
    with suppress(Overloaded):
        await group

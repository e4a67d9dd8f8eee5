"""The worker's queue: a few threads, a bounded line before them, the urgent first."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from atoll.core.errors import Overloaded

T = TypeVar("T")
DONE = object()
RETRY_AFTER_S = 1.0


class Pool:
    """At most `threads` jobs at work and `waiting` in line. Lower `rank` goes first, then the earlier."""

    def __init__(self, threads: int, waiting: int):
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="media")
        self._free, self._waiting = threads, waiting
        self._line: list[tuple[int, int, asyncio.Future[None]]] = []
        self._count = itertools.count()

    @property
    def queued(self) -> int:
        return sum(not turn.done() for _, _, turn in self._line)

    @asynccontextmanager
    async def turn(self, rank: int) -> AsyncIterator[None]:
        """Hold one of the places at work. Raises Overloaded when the line is full; cancel to leave the line."""
        if self._free:
            self._free -= 1
        else:
            if self.queued >= self._waiting:
                raise Overloaded("The media engine has too many requests waiting.", retry_after=RETRY_AFTER_S)
            mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            heapq.heappush(self._line, (rank, next(self._count), mine))
            try:
                await mine
            except asyncio.CancelledError:
                if mine.done() and not mine.cancelled():
                    self._pass_on()
                raise
        try:
            yield
        finally:
            self._pass_on()

    def _pass_on(self) -> None:
        while self._line:
            _, _, turn = heapq.heappop(self._line)
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

    async def call(self, job: Callable[..., T], *args: Any) -> T:
        """Run `job` in a thread. A job that has started is waited for, even when cancelled: its place is not free."""
        started = self._executor.submit(job, *args)
        work = asyncio.wrap_future(started)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            if not started.cancel():
                await asyncio.wait([work])
                work.exception()
            raise

    async def steps(self, source: Iterator[T]) -> AsyncIterator[T]:
        """Iterate `source` in a thread, one step at a time: a cancelled job ends after the step it is in."""
        while (item := await self.call(next, source, DONE)) is not DONE:
            yield item

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)

"""Who is served next at a region, as awaitables around the decisions of the core."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from atoll.core.errors import Overloaded

CAPACITY = 64


@dataclass(frozen=True, slots=True)
class Ticket:
    """Who asks, how urgent it is (0 to 9), and by when (monotonic seconds) it must have begun."""

    key: str
    priority: int
    deadline: float


class Queue:
    def __init__(self, name: str, limit: int, capacity: int = CAPACITY) -> None:
        self._name = name
        self._limit = limit
        self._capacity = capacity
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._running: set[asyncio.Future[None]] = set()

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def enter(self, ticket: Ticket) -> asyncio.Future[None]:
        """Done when it is this request's turn. Raises Overloaded at once when there is no place to wait."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not self._limit or self.running < self._limit:
            self._running.add(turn)
            turn.set_result(None)
        elif len(self._waiting) < self._capacity:
            self._waiting.append(turn)
        else:
            raise Overloaded(f"{self._name} is at its limit of waiting requests", retry_after=1.0)
        return turn

    def leave(self, turn: asyncio.Future[None]) -> None:
        if turn in self._running:
            self._running.discard(turn)
        elif turn in self._waiting:
            self._waiting.remove(turn)
        while self._waiting and self.running < self._limit:
            following = self._waiting.popleft()
            self._running.add(following)
            if not following.done():
                following.set_result(None)

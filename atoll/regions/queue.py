"""Who is served next at a region, as awaitables around the decisions of `core.admission`."""

from __future__ import annotations

import asyncio

from atoll.core.admission import (
    UNKNOWN,
    Admit,
    Refuse,
    State,
    Ticket,
    cancel,
    expected_wait,
    expire,
    next_deadline,
    offer,
    release,
)
from atoll.core.errors import DeadlineExceeded, Overloaded

CAPACITY = 64


class Turn(asyncio.Future[None]):
    """Done when it is this request's turn; fails with Overloaded or DeadlineExceeded."""

    ticket: Ticket


class Queue:
    """One per region and model. Deadlines are on the clock of the running loop."""

    def __init__(self, name: str, limit: int, capacity: int = CAPACITY) -> None:
        self._name = name
        self._state = State(limit, capacity)
        self._loop = asyncio.get_running_loop()
        self._turns: dict[Ticket, Turn] = {}
        self._timer: asyncio.TimerHandle | None = None

    @property
    def running(self) -> int:
        return len(self._state.running)

    @property
    def waiting(self) -> int:
        return len(self._state.places)

    def enter(self, ticket: Ticket) -> Turn:
        """Raises Overloaded at once when there is no place to wait, or no hope to begin in time."""
        decision = offer(self._state, ticket, self._loop.time())
        if isinstance(decision, Refuse):
            raise Overloaded(f"{self._name}: {decision.reason}", retry_after=decision.retry_after)
        turn = Turn(loop=self._loop)
        turn.ticket = ticket
        if isinstance(decision, Admit):
            turn.set_result(None)
            return turn
        self._turns[ticket] = turn
        if decision.evicted is not None:
            after = expected_wait(self._state, len(self._state.places), self._loop.time())
            why = f"{self._name}: others wait for fewer requests"
            self._fail(decision.evicted, Overloaded(why, retry_after=UNKNOWN if after is None else after))
        self._watch()
        return turn

    def leave(self, turn: Turn) -> None:
        """The request is over, or was given up."""
        now, ticket = self._loop.time(), turn.ticket
        self._turns.pop(ticket, None)
        if ticket not in self._state.running:
            cancel(self._state, ticket)
            return
        for begun in release(self._state, ticket, now):
            if not (waiting := self._turns.pop(begun)).done():
                waiting.set_result(None)
        self._watch()

    def _watch(self) -> None:
        due = next_deadline(self._state)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(due, self._expire) if due is not None and due < float("inf") else None

    def _expire(self) -> None:
        for late in expire(self._state, self._loop.time()):
            self._fail(late, DeadlineExceeded(f"{self._name}: not its turn before the deadline"))
        self._watch()

    def _fail(self, ticket: Ticket, error: Exception) -> None:
        turn = self._turns.pop(ticket, None)
        if turn is not None and not turn.done():
            turn.set_exception(error)

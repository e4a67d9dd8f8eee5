"""One session as messages: what a client says becomes events of `core.session`, what is decided becomes messages."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import asdict
from typing import Any

import numpy as np

from atoll.core.errors import AtollError, InvalidRequest
from atoll.core.session import (
    Act,
    Agreed,
    Ended,
    Event,
    Infer,
    Inferred,
    Latch,
    Observed,
    Refuse,
    Released,
    Session,
    Stopped,
    Ticked,
    step,
)
from atoll.core.types import Key
from atoll.physical.serve.record import plain
from atoll.physical.serve.served import Seen, Served
from atoll.physical.serve.wire import number

PROTOCOL = 1
EARLY = 1e-4
CONSENT = "nobody has agreed that the robot moves: send {type: begin, consent: true} first"

Send = Callable[[dict[str, Any]], None]


class Line:
    """`send` takes a message and must not wait. `leave` is called once, with the reason, when the service ends the
    session. Used on one event loop."""

    def __init__(self, served: Served, by: Key, send: Send, leave: Callable[[str], None]):
        self.id = f"ses_{secrets.token_hex(8)}"
        self.by = by
        self._served, self._send, self._leave = served, send, leave
        self._session = Session(served.rules, served.latch)
        self._seen: dict[int, Seen] = {}
        self._took: dict[int, float] = {}
        self._met: Counter[str] = Counter()
        self._answered = 0
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        served.lines.add(self)
        self._note("session_begins", version=served.version)

    @property
    def name(self) -> str:
        return self._served.name

    def metadata(self) -> dict[str, Any]:
        """The first message: what is served, and under which rules."""
        rules, latch = self._served.rules, self._served.latch
        return {
            "type": "metadata",
            "protocol": PROTOCOL,
            "policy": self._served.name,
            "version": self._served.version,
            "session": self.id,
            "manifest": plain(asdict(self._served.manifest)),
            "max_age_ms": rules.max_age * 1e3,
            "watchdog_ms": rules.watchdog * 1e3,
            "deadline_ms": rules.deadline * 1e3,
            "polled": rules.polled,
            "stopped": None if latch is None else {"by": latch.by, "reason": latch.reason, "at": latch.at},
        }

    def begin(self, message: Mapping[str, Any]) -> None:
        """Raises InvalidRequest unless `consent` is true."""
        if message.get("consent") is not True:
            raise InvalidRequest(CONSENT, param="consent", code="consent_required")
        simulated = message.get("simulated") is True
        self._note("consent", simulated=simulated)
        self.tell(Agreed(simulated, message.get("polls") is True))
        self._send({"type": "ready", "session": self.id})

    def observe(self, message: Mapping[str, Any]) -> None:
        """Raises InvalidRequest where the message is not an observation of this policy."""
        seq = message.get("seq")
        if type(seq) is not int or seq < 0:
            raise InvalidRequest("'seq' must be a whole number, larger with each observation", param="seq")
        now = time.monotonic()
        at = number(message, "time", now)
        given = message.get("deadline_ms")
        deadline = None if given is None else number(message, "deadline_ms") / 1e3
        if deadline is not None and deadline <= 0:
            raise InvalidRequest("'deadline_ms' must be above 0", param="deadline_ms")
        seen = self._served.read(message)
        if seq > self._session.seq:
            self._seen[seq] = seen
        self.tell(Observed(seq, at, now, deadline, self._served.measured(seen)))
        waiting = self._session.waiting
        self._seen = {} if waiting is None else {waiting.seq: self._seen[waiting.seq]}

    def stop(self, latch: Latch) -> None:
        self.tell(Stopped(latch, time.monotonic()))
        self._send({"type": "stopped", "by": latch.by, "reason": latch.reason, "at": latch.at})

    def release(self, token: str) -> None:
        self.tell(Released(token, time.monotonic()))
        self._send({"type": "released", "message": CONSENT})

    def end(self, why: str) -> None:
        """The service ends it: the robot is told to be safe, then that nobody is here any more."""
        self.tell(Ended(time.monotonic()))
        self._leave(why)

    def close(self) -> None:
        """The client has left, or was told to. Safe to call twice."""
        if self in self._served.lines:
            self._served.lines.discard(self)
            if self._timer is not None:
                self._timer.cancel()
            self._note("session_ends", answered=self._answered, met=dict(self._met))

    def tell(self, event: Event) -> None:
        if self not in self._served.lines:
            return  # a slow policy answers a client that has left
        for command in step(self._session, event):
            match command:
                case Infer():
                    self._infer(command.seq)
                case Act():
                    self._act(command)
                case Refuse():
                    self._count(command.code)
                    error = InvalidRequest(command.message, param="seq", code=command.code)
                    self._send(refusal(error, command.seq))
        self._watch()

    def _infer(self, seq: int) -> None:
        seen, start = self._seen.pop(seq), time.perf_counter()

        def answer(actions: np.ndarray | None) -> None:
            self._took[seq] = (time.perf_counter() - start) * 1e3
            self.tell(Inferred(seq, None if actions is None else actions.tolist(), time.monotonic()))
            self._took.pop(seq, None)

        def done(future: Future[np.ndarray | None]) -> None:
            if not future.cancelled() and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(answer, None if future.exception() else future.result())

        if self._served.quick:
            answer(self._served.infer(seen))
        else:
            self._served.submit(seen, done)

    def _act(self, act: Act) -> None:
        self._answered += 1
        for hit in act.hits:
            self._count(f"limit {hit.dimension}: {hit.limit}")
        message: dict[str, Any] = {"type": "safe" if act.safe else "action", "seq": act.seq, "time": act.time}
        message |= {"dt": self._served.rules.dt, "actions": self._array(act), "dropped": act.dropped}
        if act.safe:
            self._count(act.safe)
            message["reason"] = act.safe
        else:
            message["infer_ms"] = self._took.get(act.seq or 0, 0.0)
            message["limited"] = [hit._asdict() for hit in act.hits]
        self._send(message)

    def _array(self, act: Act) -> np.ndarray:
        return np.array(act.actions, np.float32).reshape(-1, len(self._served.rules.bounds))

    def _watch(self) -> None:
        """Have a timer for the next deadline. One that is early asks again, so most answers set none."""
        due = self._session.wake()
        if due is None or (self._timer is not None and self._due <= due):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._due = due
        self._timer = self._loop.call_later(max(due - time.monotonic(), 0.0) + EARLY, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self.tell(Ticked(time.monotonic()))

    def _count(self, what: str) -> None:
        """The first of a kind goes to the audit at once; how many there were when the session ends."""
        self._met[what] += 1
        if self._met[what] == 1:
            self._note("met", what=what)

    def _note(self, event: str, **facts: Any) -> None:
        self._served.audit.write(event, self.by.id, session=self.id, **facts)


def refusal(error: AtollError, seq: Any = None) -> dict[str, Any]:
    told = {"code": error.code, "message": error.message, "param": error.param, "kind": type(error).__name__}
    return {"type": "error", "seq": seq, **told}

"""One client that a policy moves a robot for: events in, commands out, no clock and no wire.

An observation is answered once: by actions of the policy; by safe ones (it is stale, the answer is late, the robot is
stopped); by a refusal (nobody agreed to motion, or one after it came first); or by a notice that a newer one replaced
it. All actions are within the limits and continue those before, whoever made them. When observations stay away, the
watchdog sends safe actions until the robot rests. After an emergency stop only safe actions come, until it is released
by its token, and then none before somebody agrees to motion again.

Clients have clocks of their own. The age of an observation is measured against the one that arrived fastest, which is
forgotten by a ten-thousandth of the time that passes, more than clocks drift apart.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite
from typing import NamedTuple

from atoll.core.errors import InvalidRequest
from atoll.core.manifest import Manifest
from atoll.core.safety import Bounds, Course, Hit, Motion, Vector, begin, bounds_of, course, settle, within

DRIFT = 1e-4
EARLY = 0.1
SHORTEST = 1e-6
SETTLING = 64


@dataclass(frozen=True, slots=True)
class Rules:
    """What a session is held to. `rest` is the safe action (None: brake and hold). Times are seconds: observations
    older than `max_age` are refused; `watchdog` after the last answer safe actions are sent; an observation that says
    nothing of a deadline has `deadline`."""

    bounds: Bounds
    dt: float
    chunk: int
    rest: Vector | None = None
    max_age: float = 0.2
    watchdog: float = 0.5
    deadline: float = 1.0

    @property
    def polled(self) -> int:
        """How many actions one that polls is given at once."""
        return min(max(int(self.watchdog / self.dt + EARLY), 1), self.chunk)


class Latch(NamedTuple):
    """An emergency stop. The token that releases it is known by its SHA-256 only."""

    digest: str
    by: str
    reason: str
    at: float

    def opens(self, token: str) -> bool:
        return hmac.compare_digest(self.digest, token_digest(token))


class Agreed(NamedTuple):
    """Somebody who may agrees that what is connected moves. `simulated`: it is a simulation, whose clock may stand
    still, so that nothing is stale and nobody need watch. `polls`: it hears answers only. Nothing is sent unasked, it
    is taken to carry out all that it was given, and it is given no more than the watchdog's time of actions."""

    simulated: bool = False
    polls: bool = False


class Observed(NamedTuple):
    """`time` is on the client's clock, `now` on ours; `deadline` seconds from now an answer is of no use any more.
    `measured` is where the robot is, in terms of the action, where the observation tells it."""

    seq: int
    time: float
    now: float
    deadline: float | None = None
    measured: Sequence[float] | None = None


class Inferred(NamedTuple):
    """The policy's answer to `Infer`: actions one after another, or None where it failed."""

    seq: int
    actions: Sequence[Sequence[float]] | None
    now: float


class Ticked(NamedTuple):
    now: float


class Stopped(NamedTuple):
    latch: Latch
    now: float


class Released(NamedTuple):
    token: str
    now: float


class Ended(NamedTuple):
    """The service, not the client, ends the session."""

    now: float


Event = Agreed | Observed | Inferred | Ticked | Stopped | Released | Ended


class Infer(NamedTuple):
    """Ask the policy about observation `seq`; `due` is when its answer is too late."""

    seq: int
    due: float


class Act(NamedTuple):
    """Carry out `actions` one after another, the first at `time` on the client's clock. `safe` says why they are not
    the policy's (empty: they are); `seq` is the observation they answer, None where nothing was asked; `hits` are the
    limits met; `dropped` are observations that newer ones replaced since the last answer."""

    seq: int | None
    time: float
    actions: tuple[Vector, ...]
    safe: str = ""
    hits: tuple[Hit, ...] = ()
    dropped: tuple[int, ...] = ()


class Refuse(NamedTuple):
    """Observation `seq` is answered by nothing but this; the robot goes on with what it was told."""

    seq: int
    code: str
    message: str


Command = Infer | Act | Refuse


class Plan(NamedTuple):
    """What the client was told last: motion i from `time` + i dt on, on its clock."""

    time: float
    motions: tuple[Motion, ...]


@dataclass(slots=True)
class Session:
    """Owned by its caller; changed by `step` only. `asked` is with the policy (`late`: and answered already), `waiting`
    is the newest that came meanwhile, after those that it `replaced`. `offset` is our clock minus the client's, as the
    fastest observation showed it, at `synced`. `acted` is when the last answer was given, None once the robot is at
    rest and nobody need watch. `fresh`: nothing was told yet, or not since a release, so that the robot is where it is
    measured."""

    rules: Rules
    latch: Latch | None = None
    agreed: bool = False
    simulated: bool = False
    polls: bool = False
    seq: int = -1
    time: float = -inf
    offset: float = inf
    synced: float = 0.0
    asked: Observed | None = None
    late: bool = False
    waiting: Observed | None = None
    replaced: tuple[int, ...] = ()
    plan: Plan | None = None
    acted: float | None = None
    fresh: bool = True

    def wake(self) -> float | None:
        """When the next `Ticked` is due."""
        times = [] if self.asked is None or self.late else [_due(self, self.asked)]
        if self.waiting is not None:
            times.append(_due(self, self.waiting))
        if self.acted is not None:
            times.append(self.acted + self.rules.watchdog)
        return min(times, default=None)


def step(session: Session, event: Event) -> list[Command]:
    """Change the session; what is to be done."""
    match event:
        case Observed():
            return _observed(session, event)
        case Inferred():
            return _inferred(session, event)
        case Ticked():
            return _ticked(session, event.now)
        case Agreed():
            session.agreed, session.simulated, session.polls = True, event.simulated, event.polls
        case Stopped():
            return _stopped(session, event)
        case Released():
            if session.latch is not None and session.latch.opens(event.token):
                session.latch, session.agreed, session.fresh = None, False, True
        case Ended():
            session.agreed = False
            if session.plan is not None:
                return [_safe(session, None, event.now - session.offset, event.now, "ended")]
    return []


def _observed(session: Session, seen: Observed) -> list[Command]:
    if not session.agreed:
        return [Refuse(seen.seq, "consent_required", "nobody has agreed that the robot moves")]
    if seen.seq <= session.seq or seen.time <= session.time:
        message = f"observation {seen.seq} at {seen.time:g} came after {session.seq} at {session.time:g}"
        return [Refuse(seen.seq, "out_of_order", message)]
    fastest = session.offset + DRIFT * (seen.now - session.synced) if isfinite(session.offset) else inf
    session.offset, session.synced = min(seen.now - seen.time, fastest), seen.now
    session.seq, session.time = seen.seq, seen.time
    if session.fresh and seen.measured is not None:
        session.plan = Plan(seen.time - session.rules.dt, (begin(session.rules.bounds, seen.measured),))
    if session.latch is not None:
        return [_safe(session, seen.seq, seen.time, seen.now, "stopped")]
    if not session.simulated and seen.now - seen.time - session.offset > session.rules.max_age:
        return [_safe(session, seen.seq, seen.time, seen.now, "stale")]
    if session.asked is None:
        session.asked = seen
        return [Infer(seen.seq, _due(session, seen))]
    if session.waiting is not None:
        session.replaced += (session.waiting.seq,)
    session.waiting = seen
    return []


def _inferred(session: Session, answer: Inferred) -> list[Command]:
    asked, late = session.asked, session.late
    if asked is None or answer.seq != asked.seq:
        return []
    session.asked, session.late = session.waiting, False
    session.waiting = None
    following = [] if session.asked is None else [Infer(session.asked.seq, _due(session, session.asked))]
    if late:
        return following
    if answer.now > _due(session, asked):
        return [_safe(session, asked.seq, asked.time, answer.now, "deadline"), *following]
    if answer.actions is None:
        return [_safe(session, asked.seq, asked.time, answer.now, "policy_failed"), *following]
    first, previous = _before(session, asked.time)
    actions = answer.actions[: session.rules.polled] if session.polls else answer.actions
    told = course(actions, previous, session.rules.bounds, first, session.rules.dt)
    return [_act(session, told, asked.seq, asked.time, answer.now), *following]


def _ticked(session: Session, now: float) -> list[Command]:
    commands: list[Command] = []
    if (asked := session.asked) is not None and not session.late and now >= _due(session, asked):
        session.late = True
        commands.append(_safe(session, asked.seq, asked.time, now, "deadline"))
    if (waiting := session.waiting) is not None and now >= _due(session, waiting):
        session.waiting = None
        commands.append(_safe(session, waiting.seq, waiting.time, now, "deadline"))
    if session.acted is not None and now >= session.acted + session.rules.watchdog:
        why = "stopped" if session.latch else "watchdog"
        commands.append(_safe(session, None, now - session.offset, now, why))
    return commands


def _stopped(session: Session, stop: Stopped) -> list[Command]:
    """At once, whatever the policy is doing."""
    if session.latch is not None:
        session.latch = stop.latch
        return []
    session.latch = stop.latch
    owed = [seen.seq for seen in (None if session.late else session.asked, session.waiting) if seen is not None]
    session.late, session.waiting = session.asked is not None, None
    session.replaced += tuple(owed[1:])
    if session.polls and not owed:
        return []
    seq = owed[0] if owed else None
    return [_safe(session, seq, max(stop.now - session.offset, 0.0), stop.now, "stopped")]


def _safe(session: Session, seq: int | None, time: float, now: float, why: str) -> Act:
    """Go to the safe action, or brake and hold, from where the robot was last told to be. Where it was told nothing,
    there is nothing to do."""
    first, previous = _before(session, time)
    rules = session.rules
    if previous is None:
        act = Act(seq, time, (), why, (), session.replaced)
        session.replaced = ()
        return act
    least = rules.chunk
    going = settle(rules.rest, previous, rules.bounds, first, rules.dt, least, max(least, SETTLING))
    return _act(session, going, seq, time, now, why)


def _act(session: Session, told: Course, seq: int | None, time: float, now: float, why: str = "") -> Act:
    motions, rest = told.motions, session.rules.rest
    act = Act(seq, time, tuple(motion.value for motion in motions), why, told.hits, session.replaced)
    at_rest = bool(why) and not any(motions[-1].velocity) and rest in (None, motions[-1].value)
    session.acted = None if at_rest or session.simulated or session.polls else now
    session.plan, session.replaced, session.fresh = Plan(time, motions), (), session.fresh and bool(why)
    return act


def _before(session: Session, time: float) -> tuple[float, Motion | None]:
    """Seconds from the command that holds at `time` to the one after it, at most a step; and the command."""
    plan, dt = session.plan, session.rules.dt
    if plan is None:
        return dt, None
    done = int(min(max((time - plan.time) / dt + EARLY, 1), len(plan.motions)))
    return min(max(time - plan.time - (done - 1) * dt, SHORTEST), dt), plan.motions[done - 1]


def _due(session: Session, seen: Observed) -> float:
    most = session.rules.deadline
    return seen.now + (most if seen.deadline is None else min(seen.deadline, most))


def rules_of(manifest: Manifest, **seconds: float) -> Rules:
    """`seconds` are those of `Rules`. Raises InvalidRequest where limits or the safe action make no sense."""
    bounds, safe = bounds_of(manifest), manifest.safe or None
    if not manifest.rate_hz > 0 or manifest.chunk < 1:
        raise InvalidRequest("'rate_hz' must be above 0 and 'chunk' at least 1", param="rate_hz")
    if safe is not None and (len(safe) != manifest.action_size or not within(safe, bounds)):
        raise InvalidRequest(f"'safe' must be {manifest.action_size} values within the limits", param="safe")
    return Rules(bounds, 1.0 / manifest.rate_hz, manifest.chunk, safe, **seconds)


def token_digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()

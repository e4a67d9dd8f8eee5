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
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from atoll.core.errors import InvalidRequest
from atoll.core.manifest import Manifest
from atoll.core.safety import Array, Bounds, Course, Hit, Motion, begin, bounds_of, course, settle

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
    rest: Array | None = None
    max_age: float = 0.2
    watchdog: float = 0.5
    deadline: float = 1.0


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
    still, so that nothing is stale and nobody need watch."""

    simulated: bool = False


class Observed(NamedTuple):
    """`time` is on the client's clock, `now` on ours; `deadline` seconds from now an answer is of no use any more.
    `measured` is where the robot is, in terms of the action, where the observation tells it."""

    seq: int
    time: float
    now: float
    deadline: float | None = None
    measured: Array | None = None


class Inferred(NamedTuple):
    """The policy's answer to `Infer`: (chunk, a), or None where it failed."""

    seq: int
    actions: Array | None
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
    """Carry out `actions` (n, a), the first at `time` on the client's clock. `safe` says why they are not the policy's
    (empty: they are); `seq` is the observation they answer, None where nothing was asked; `hits` are the limits met;
    `dropped` are observations that newer ones replaced since the last answer."""

    seq: int | None
    time: float
    actions: Array
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
    """What the client was told last: row i from `time` + i dt on, on its clock."""

    time: float
    course: Course


@dataclass(frozen=True, slots=True)
class Session:
    """`asked` is with the policy (`late`: and answered already), `waiting` is the newest that came meanwhile, after
    those that it `replaced`. `offset` is our clock minus the client's, as the fastest observation showed it, at
    `synced`. `acted` is when the last answer was given, None once the robot is at rest and nobody need watch. `fresh`:
    nothing was told yet, or not since a release, so that the robot is where it is measured."""

    rules: Rules
    latch: Latch | None = None
    agreed: bool = False
    simulated: bool = False
    seq: int = -1
    time: float = -np.inf
    offset: float = np.inf
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


Outcome = tuple[Session, tuple[Command, ...]]


def step(session: Session, event: Event) -> Outcome:
    """What has become of the session, and what is to be done."""
    match event:
        case Observed():
            return _observed(session, event)
        case Inferred():
            return _inferred(session, event)
        case Ticked():
            return _ticked(session, event.now)
        case Agreed():
            return replace(session, agreed=True, simulated=event.simulated), ()
        case Stopped():
            return _stopped(session, event)
        case Released():
            if session.latch is None or not session.latch.opens(event.token):
                return session, ()
            return replace(session, latch=None, agreed=False, fresh=True), ()
        case Ended():
            return _ended(session, event.now)


def _observed(session: Session, seen: Observed) -> Outcome:
    if not session.agreed:
        return session, (Refuse(seen.seq, "consent_required", "nobody has agreed that the robot moves"),)
    if seen.seq <= session.seq or seen.time <= session.time:
        message = f"observation {seen.seq} at {seen.time:g} came after {session.seq} at {session.time:g}"
        return session, (Refuse(seen.seq, "out_of_order", message),)
    fastest = session.offset + DRIFT * (seen.now - session.synced) if np.isfinite(session.offset) else np.inf
    offset = min(seen.now - seen.time, fastest)
    session = replace(session, seq=seen.seq, time=seen.time, offset=offset, synced=seen.now)
    if session.fresh and seen.measured is not None:
        at = begin(session.rules.bounds, seen.measured)
        start = Course(at.value[None], at.velocity[None], ())
        session = replace(session, plan=Plan(seen.time - session.rules.dt, start))
    if session.latch is not None:
        return _safe(session, seen.seq, seen.time, seen.now, "stopped")
    if not session.simulated and seen.now - seen.time - offset > session.rules.max_age:
        return _safe(session, seen.seq, seen.time, seen.now, "stale")
    if session.asked is None:
        return replace(session, asked=seen), (Infer(seen.seq, _due(session, seen)),)
    replaced = session.replaced if session.waiting is None else (*session.replaced, session.waiting.seq)
    return replace(session, waiting=seen, replaced=replaced), ()


def _inferred(session: Session, answer: Inferred) -> Outcome:
    asked, late = session.asked, session.late
    if asked is None or answer.seq != asked.seq:
        return session, ()
    session, commands = replace(session, asked=None, late=False), ()
    if late:
        pass
    elif answer.now > _due(session, asked):
        session, commands = _safe(session, asked.seq, asked.time, answer.now, "deadline")
    elif answer.actions is None:
        session, commands = _safe(session, asked.seq, asked.time, answer.now, "policy_failed")
    else:
        first, previous = _before(session, asked.time)
        rules = session.rules
        session, commands = _act(
            session, course(answer.actions, previous, rules.bounds, first, rules.dt), asked.seq, asked.time, answer.now
        )
    if session.waiting is None:
        return session, commands
    asked = session.waiting
    return replace(session, asked=asked, waiting=None), (*commands, Infer(asked.seq, _due(session, asked)))


def _ticked(session: Session, now: float) -> Outcome:
    commands: tuple[Command, ...] = ()
    if (asked := session.asked) is not None and not session.late and now >= _due(session, asked):
        session, commands = _safe(replace(session, late=True), asked.seq, asked.time, now, "deadline")
    if (waiting := session.waiting) is not None and now >= _due(session, waiting):
        session, more = _safe(replace(session, waiting=None), waiting.seq, waiting.time, now, "deadline")
        commands += more
    if session.acted is not None and now >= session.acted + session.rules.watchdog:
        session, more = _safe(session, None, now - session.offset, now, "stopped" if session.latch else "watchdog")
        commands += more
    return session, commands


def _stopped(session: Session, stop: Stopped) -> Outcome:
    """At once, whatever the policy is doing."""
    if session.latch is not None:
        return replace(session, latch=stop.latch), ()
    replaced = session.replaced if session.waiting is None else (*session.replaced, session.waiting.seq)
    seq = None if session.asked is None or session.late else session.asked.seq
    session = replace(session, latch=stop.latch, late=session.asked is not None, waiting=None, replaced=replaced)
    return _safe(session, seq, max(stop.now - session.offset, 0.0), stop.now, "stopped")


def _ended(session: Session, now: float) -> Outcome:
    moving, session = session.plan is not None, replace(session, agreed=False)
    return _safe(session, None, now - session.offset, now, "ended") if moving else (session, ())


def _safe(session: Session, seq: int | None, time: float, now: float, why: str) -> Outcome:
    """Go to the safe action, or brake and hold, from where the robot was last told to be. Where it was told nothing,
    there is nothing to do."""
    first, previous = _before(session, time)
    rules = session.rules
    if previous is None:
        act = Act(seq, time, np.empty((0, len(rules.bounds.low))), why, (), session.replaced)
        return replace(session, replaced=()), (act,)
    least = rules.chunk
    going = settle(rules.rest, previous, rules.bounds, first, rules.dt, least, max(least, SETTLING))
    return _act(session, going, seq, time, now, why)


def _act(session: Session, told: Course, seq: int | None, time: float, now: float, why: str = "") -> Outcome:
    at_rest = bool(why) and not told.velocities[-1].any() and _arrived(session.rules, told.values[-1])
    act = Act(seq, time, told.values, why, told.hits, session.replaced)
    acted = None if at_rest or session.simulated else now
    return replace(session, plan=Plan(time, told), acted=acted, replaced=(), fresh=session.fresh and bool(why)), (act,)


def _arrived(rules: Rules, value: Array) -> bool:
    return rules.rest is None or bool((value == rules.rest).all())


def _before(session: Session, time: float) -> tuple[float, Motion | None]:
    """Seconds from the command that holds at `time` to the one after it, at most a step; and the command."""
    plan, dt = session.plan, session.rules.dt
    if plan is None:
        return dt, None
    passed = (time - plan.time) / dt
    done = int(min(max(passed + EARLY, 1), len(plan.course.values)))
    now = Motion(plan.course.values[done - 1], plan.course.velocities[done - 1])
    return min(max(time - plan.time - (done - 1) * dt, SHORTEST), dt), now


def _due(session: Session, seen: Observed) -> float:
    most = session.rules.deadline
    return seen.now + (most if seen.deadline is None else min(seen.deadline, most))


def rules_of(manifest: Manifest, **seconds: float) -> Rules:
    """`seconds` are those of `Rules`. Raises InvalidRequest where limits or the safe action make no sense."""
    bounds = bounds_of(manifest)
    if not manifest.rate_hz > 0 or manifest.chunk < 1:
        raise InvalidRequest("'rate_hz' must be above 0 and 'chunk' at least 1", param="rate_hz")
    if not manifest.safe:
        return Rules(bounds, 1.0 / manifest.rate_hz, manifest.chunk, None, **seconds)
    safe = np.array(manifest.safe, np.float64)
    if len(safe) != manifest.action_size or not ((bounds.low <= safe) & (safe <= bounds.high)).all():
        raise InvalidRequest(f"'safe' must be {manifest.action_size} values within the limits", param="safe")
    return Rules(bounds, 1.0 / manifest.rate_hz, manifest.chunk, safe, **seconds)


def token_digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()

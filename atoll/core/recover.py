"""What to do when an attempt failed: again elsewhere, on from the exact token, visibly anew, or give up.

Before the first token a request is tried elsewhere, within its deadline and a retry budget, so that failure does not
multiply load. After it the stream goes on, by grade:

- exact: generate again from the prompt with the same seed, check what was sent token by token, drop it, go on.
- fast: prefill prompt and sent tokens; equal in distribution. Cannot carry the state of a grammar, a JSON schema or a
  tool call, nor several choices at once: these become exact.
- hot: a standby has generated alongside; it is checked as exact is.

A check that fails falls back to fast. Where only other weights are left, the key's `on_mismatch` decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from atoll.core.types import Grade, Policy

AT_ONCE = 4
"""Attempts in a row that may bring no new token before a stream waits for the next."""

Kind = Literal["unreachable", "died", "stalled", "slow", "garbage", "overloaded", "mismatch", "request", "gone"]
Left = Literal["same", "other", "none"]
Why = Literal["request", "gone", "deadline", "engine", "overloaded", "residency", "mismatch"]


@dataclass(frozen=True, slots=True)
class Attempt:
    """A request that failed. `number`: attempts in a row that brought no new token, this one included; `max_attempts`
    of them may fail before the first token, `max_resumes` after it, the later ones ever further apart. `ids`: the ids
    of all tokens sent are known. `structured`: a grammar, JSON schema or tool call binds the answer. `drifted`: a part
    was continued by fast or by other weights, so that generating again cannot give the same. `standby`: one generates
    alongside. `pace`: seconds a token takes, 0 if not known."""

    number: int
    deadline: float
    policy: Policy = Policy()
    ids: bool = True
    structured: bool = False
    choices: int = 1
    drifted: bool = False
    standby: bool = False
    pace: float = 0.0
    max_attempts: int = 6
    max_resumes: int = 16


@dataclass(frozen=True, slots=True)
class Failure:
    """`left`: whether an allowed, healthy endpoint with the same weights (by digest) is left, or only others, or none.
    `retry_after`: seconds, as the endpoint said."""

    kind: Kind
    left: Left = "same"
    retry_after: float | None = None


@dataclass(frozen=True, slots=True)
class Retry:
    """Nothing was sent: ask another endpoint, after so many seconds."""

    after: float = 0.0


@dataclass(frozen=True, slots=True)
class Continue:
    """Go on behind token number `from_token`; with `same_weights` false, on an endpoint of other weights."""

    grade: Grade
    from_token: int
    after: float = 0.0
    same_weights: bool = True


@dataclass(frozen=True, slots=True)
class Restart:
    """Begin anew and tell the client that what it has is void."""

    after: float = 0.0


@dataclass(frozen=True, slots=True)
class GiveUp:
    why: Why
    reason: str
    retry_after: float | None = None


Action = Retry | Continue | Restart | GiveUp


class Budget(NamedTuple):
    """Retries that may still be made: each request earns `ratio`, each second `per_second`, and `most` are kept. Below
    zero, down to minus `most`, retries are paced: each waits until its own is earned."""

    ratio: float = 0.2
    per_second: float = 3.0
    most: float = 30.0
    balance: float = 30.0
    at: float = 0.0


def earn(budget: Budget, now: float, requests: int = 1) -> Budget:
    """To be called for each request that arrives (not for its retries)."""
    grown = budget.balance + budget.ratio * requests + budget.per_second * max(0.0, now - budget.at)
    return Budget(budget.ratio, budget.per_second, budget.most, min(grown, budget.most), max(now, budget.at))


def spend(budget: Budget, now: float) -> tuple[Budget, float]:
    """One retry, and the seconds that it must wait first: infinite where too many wait already."""
    budget = earn(budget, now, requests=0)
    balance = budget.balance - 1
    if balance < -budget.most or (balance < 0 and not budget.per_second):
        return budget._replace(balance=max(balance, -budget.most)), float("inf")
    return budget._replace(balance=balance), max(0.0, -balance / budget.per_second if budget.per_second else 0.0)


def recover(attempt: Attempt, failure: Failure, emitted: int, now: float, budget: Budget) -> tuple[Action, Budget]:
    """`emitted`: tokens that the client has. The budget changes where a request that has none yet is tried again, and
    makes such retries wait. A stream that has begun costs it nothing, or many that break would use it up for all that
    have not: it goes on at once, `AT_ONCE` times in a row, and then ever later. An endpoint that merely refused costs
    nothing either."""
    if stop := _hopeless(attempt, failure, emitted, now):
        return stop, budget
    action = _after(attempt, failure, emitted, now) if emitted else _before(attempt, failure)
    if isinstance(action, GiveUp) or (isinstance(action, Continue) and action.grade == "hot"):
        return action, budget
    paid = budget
    if isinstance(action, Retry) and failure.kind != "overloaded":
        paid, wait = spend(budget, now)
        action = Retry(max(action.after, wait))
    if now + action.after < attempt.deadline:
        return action, paid
    why: Why = "overloaded"
    if failure.kind != "overloaded":
        why = "residency" if failure.left == "none" else "deadline" if emitted else "overloaded"
    return GiveUp(why, "another attempt could not begin before the deadline", failure.retry_after), budget


def _hopeless(attempt: Attempt, failure: Failure, emitted: int, now: float) -> GiveUp | None:
    if failure.kind == "request":
        return GiveUp("request", "the request itself was refused; it would be refused elsewhere too")
    if failure.kind == "gone":
        return GiveUp("gone", "the client went away")
    if now >= attempt.deadline:
        return GiveUp("deadline", f"the deadline passed; the last attempt: {failure.kind}")
    if attempt.number >= (attempt.max_resumes if emitted else attempt.max_attempts):
        why: Why = "overloaded" if failure.kind == "overloaded" else "engine"
        reason = f"{attempt.number} attempts in a row failed; the last: {failure.kind}"
        return GiveUp(why, reason, failure.retry_after)
    return None


def _before(attempt: Attempt, failure: Failure) -> Action:
    if attempt.standby:
        return Continue("hot", 0)
    if failure.left == "none":
        return _nowhere(attempt, failure) or Retry(_pause(attempt, failure))
    return Retry()


def _after(attempt: Attempt, failure: Failure, emitted: int, now: float) -> Action:
    grade = attempt.policy.recovery
    if grade == "none":
        return GiveUp("engine", f"the answer broke after {emitted} tokens and this key asks for no recovery")
    if failure.kind == "mismatch":
        return _fast(attempt, emitted) or _differ(attempt, "the check of what was sent failed")
    if attempt.standby:
        return Continue("hot", emitted)
    after = min(4.0, 0.25 * 2.0 ** (attempt.number - AT_ONCE)) if attempt.number > AT_ONCE else 0.0
    if failure.left == "none":
        if stop := _nowhere(attempt, failure, begun=True):
            return stop
        after = _pause(attempt, failure)
    elif failure.left == "other":
        return _other(attempt, emitted, after)
    fast = _fast(attempt, emitted, after)
    late = attempt.pace > 0 and now + after + emitted * attempt.pace >= attempt.deadline
    if fast and (grade == "fast" or attempt.drifted or late):
        return fast
    if attempt.drifted:
        return _differ(attempt, "this answer cannot be generated again")
    return Continue("exact", emitted, after)


def _nowhere(attempt: Attempt, failure: Failure, begun: bool = False) -> GiveUp | None:
    """None where waiting is allowed: the rule says so, or a stream has begun and the regions are merely busy."""
    busy = failure.kind == "overloaded"
    if attempt.policy.residency.on_unavailable == "queue" or (begun and busy):
        return None
    if busy:
        return GiveUp("overloaded", "every allowed region is at its limit", failure.retry_after)
    return GiveUp("residency", f"no allowed region is left; the last attempt: {failure.kind}")


def _pause(attempt: Attempt, failure: Failure) -> float:
    return failure.retry_after if failure.retry_after is not None else min(8.0, 0.25 * 2.0**attempt.number)


def _fast(attempt: Attempt, emitted: int, after: float = 0.0) -> Continue | None:
    possible = attempt.ids and not attempt.structured and attempt.choices == 1
    return Continue("fast", emitted, after) if possible else None


def _other(attempt: Attempt, emitted: int, after: float) -> Action:
    if attempt.policy.on_mismatch == "continue" and (fast := _fast(attempt, emitted, after)):
        return replace(fast, same_weights=False)
    return _differ(attempt, "only other weights are left")


def _differ(attempt: Attempt, reason: str) -> Action:
    if attempt.policy.on_mismatch == "restart":
        return Restart()
    return GiveUp("mismatch", f"{reason}; this key's rule then: {attempt.policy.on_mismatch}")


@dataclass(frozen=True, slots=True)
class Fresh:
    """What is new in a piece: to be sent on. `ids` is None where they are not known."""

    ids: tuple[int, ...] | None
    text: str


@dataclass(frozen=True, slots=True)
class Differs:
    """The first difference, at token `at` (None where only text could be compared) and character `char`."""

    at: int | None
    char: int
    reason: str


@dataclass(frozen=True, slots=True)
class Verifier:
    """Checks a stream that is generated again against what was sent, and drops just that. `ids` are all tokens sent
    (None: not known); `texts` what they said, by channel (`content`, `reasoning_content`, ...). Cuts between pieces
    may lie elsewhere than they did."""

    ids: tuple[int, ...] | None
    texts: Mapping[str, str] = field(default_factory=dict)
    seen: int = 0
    said: Mapping[str, int] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        """All that was sent has come again."""
        return (self.ids is None or self.seen >= len(self.ids)) and all(
            self.said.get(channel, 0) >= len(text) for channel, text in self.texts.items()
        )

    def feed(
        self, ids: tuple[int, ...] | None, text: str, channel: str = "content"
    ) -> tuple[Verifier, Fresh | Differs]:
        """The next piece. One without ids makes the rest of the check one of text alone."""
        known = self.ids if ids is not None else None
        if known is not None and ids is not None:
            for at, (old, new) in enumerate(zip(known[self.seen : self.seen + len(ids)], ids, strict=False), self.seen):
                if old != new:
                    return self, Differs(at, self.said.get(channel, 0), f"token {at} was {old} and is {new} now")
        sent, said = self.texts.get(channel, ""), self.said.get(channel, 0)
        again = text[: max(0, len(sent) - said)]
        if again and not sent.startswith(again, said):
            char = said + next(i for i, letter in enumerate(again) if letter != sent[said + i])
            return self, Differs(self.seen if known is not None else None, char, f"'{channel}' differs at {char}")
        if known is not None and ids is not None:
            fresh = ids[max(0, len(known) - self.seen) :]
        else:
            fresh = ids if self.done else None
        after = Verifier(known, self.texts, self.seen + len(ids or ()), {**self.said, channel: said + len(text)})
        return after, Fresh(fresh, text[len(again) :])

    def end(self) -> Differs | None:
        """The stream has ended: was everything there?"""
        if self.done:
            return None
        told = f"{len(self.ids)} tokens were sent" if self.ids is not None else "more text was sent"
        return Differs(self.seen, sum(self.said.values()), f"{told}, but the answer ended after {self.seen}")


@dataclass(frozen=True, slots=True)
class Hedging:
    """Ask a second endpoint when the first token takes `factor` times as long as expected, at least `least` seconds."""

    enabled: bool = False
    factor: float = 3.0
    least: float = 0.25


def hedge(now: float, started: float, ttft_estimate: float, policy: Hedging) -> float | None:
    """When to send the second request (not before `now`), or None. It costs a retry of the budget."""
    if not policy.enabled:
        return None
    return max(now, started + max(policy.least, policy.factor * ttft_estimate))

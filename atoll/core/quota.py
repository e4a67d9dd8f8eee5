"""Exact quotas: reserve an upper bound, settle the actual use, refund the rest.

An `Account` is all that is known about one key now. `reserve` answers Admit, Queue or Reject:

- Admit: even if every open reservation is used to the full, no limit is passed.
- Queue: it would fit if open reservations settle for less; ask again when one does.
- Reject: it does not fit beside what has already been used. Never caused by a mere reservation.

So spend cannot pass a limit, and nobody is refused because of money that was not spent.
Rates hold in every window of 60 s: use is counted in slots of one second and a slot counts
until it lies entirely outside the window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from atoll.core.types import Limits

WINDOW = 60


class Slot(NamedTuple):
    """Use in one second: `requests` and `tokens` admitted; `held` of the tokens are only reserved."""

    second: int
    requests: int = 0
    tokens: int = 0
    held: int = 0


class Account(NamedTuple):
    """`period` is the UTC month (year * 12 + month - 1) that `spent` belongs to; `held` is reserved nanodollars."""

    period: int
    spent: int = 0
    held: int = 0
    open: int = 0
    slots: tuple[Slot, ...] = ()


class Ask(NamedTuple):
    """Upper bounds for one request: tokens (input plus output) and nanodollars."""

    tokens: int
    cost: int


@dataclass(frozen=True, slots=True)
class Ticket:
    """A reservation, to be settled exactly once."""

    ask: Ask
    second: int


class Admit(NamedTuple):
    ticket: Ticket


@dataclass(frozen=True, slots=True)
class Queue:
    reason: str


@dataclass(frozen=True, slots=True)
class Reject:
    """`retry_after` is None when waiting does not help (the request alone is over the limit)."""

    reason: str
    limit: str
    retry_after: float | None


Decision = Admit | Queue | Reject


def reserve(
    account: Account, limits: Limits, ask: Ask, now: float, period: int, period_ends: float
) -> tuple[Account, Decision]:
    """Decide on one request and, if admitted, hold its upper bound. `period_ends` is when the next month begins."""
    account = _roll(account, now, period)
    refusal = _rate(account, limits, ask, now)
    if not isinstance(refusal, Reject):
        refusal = _budget(account, limits, ask, now, period_ends) or refusal
    if refusal:
        return account, refusal
    second = max(int(now), account.slots[-1].second) if account.slots else int(now)
    slots = _add(account.slots, Slot(second, 1, ask.tokens, ask.tokens))
    account = Account(account.period, account.spent, account.held + ask.cost, account.open + 1, slots)
    return account, Admit(Ticket(ask, second))


def settle(account: Account, ticket: Ticket, tokens: int, cost: int, now: float, period: int) -> Account:
    """Replace a reservation by what was used. (0, 0) is a refund. Money counts in the month it is settled in."""
    account = _roll(account, now, period)
    held = ticket.ask.tokens
    slots = _add(account.slots, Slot(ticket.second, 0, tokens - held, -held), present_only=True)
    return Account(account.period, account.spent + cost, account.held - ticket.ask.cost, account.open - 1, slots)


def _roll(account: Account, now: float, period: int) -> Account:
    """Forget what no longer counts. A month never comes back: a clock set back must not renew the budget."""
    oldest = int(now) - WINDOW
    slots = account.slots
    if slots and slots[0].second < oldest:
        slots = tuple(s for s in slots if s.second >= oldest)
    if period > account.period:
        return account._replace(period=period, spent=0, slots=slots)
    if slots is not account.slots:
        return account._replace(slots=slots)
    return account


def _add(slots: tuple[Slot, ...], change: Slot, present_only: bool = False) -> tuple[Slot, ...]:
    for i in range(len(slots) - 1, -1, -1):
        s = slots[i]
        if s.second == change.second:
            merged = Slot(
                s.second, s.requests + change.requests, s.tokens + change.tokens, s.held + change.held
            )
            return (*slots[:i], merged, *slots[i + 1 :])
        if s.second < change.second:
            break
    return slots if present_only else (*slots, change)


def _rate(account: Account, limits: Limits, ask: Ask, now: float) -> Queue | Reject | None:
    slots = account.slots
    rpm, tpm = limits.requests_per_minute, limits.tokens_per_minute
    if rpm is not None and sum([s.requests for s in slots]) + 1 > rpm:
        after = _until_free([(s.second, s.requests) for s in slots], rpm - 1, now)
        return Reject(f"limit of {rpm} requests per minute reached", "requests", after)
    if tpm is None:
        return None
    if ask.tokens > tpm:
        reason = f"the request may use {ask.tokens} tokens, over the limit of {tpm} tokens per minute; lower max_tokens"
        return Reject(reason, "tokens", None)
    total = sum([s.tokens for s in slots]) + ask.tokens
    if total <= tpm:
        return None
    held = sum(s.held for s in slots)
    if total - held <= tpm:
        return Queue("tokens of this minute are reserved by requests that still run")
    after = _until_free([(s.second, s.tokens - s.held) for s in slots], tpm - ask.tokens, now)
    return Reject(f"limit of {tpm} tokens per minute reached", "tokens", after)


def _until_free(used: list[tuple[int, int]], allowed: int, now: float) -> float | None:
    """Seconds until at most `allowed` of `used` remains in the window."""
    if allowed < 0:
        return None
    total, free_at = sum(n for _, n in used), now
    for second, n in used:
        if total <= allowed:
            break
        total -= n
        free_at = second + WINDOW + 1
    return max(0.0, free_at - now)


def _budget(account: Account, limits: Limits, ask: Ask, now: float, period_ends: float) -> Queue | Reject | None:
    budget = limits.budget_per_month
    if budget is None or account.spent + account.held + ask.cost <= budget:
        return None
    if account.spent + ask.cost <= budget:
        return Queue("the rest of this month's budget is reserved by requests that still run")
    if ask.cost > budget:
        reason = f"the request may cost ${ask.cost / 1e9:.6f}, over the budget of ${budget / 1e9:.6f} per month"
        return Reject(reason, "budget", None)
    left = max(0, budget - account.spent) / 1e9
    reason = f"the request may cost ${ask.cost / 1e9:.6f}, but ${left:.6f} of this month's budget is left"
    return Reject(reason, "budget", max(0.0, period_ends - now))

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
    """`period` is the UTC month (year * 12 + month - 1) that `spent` belongs to; `held` is reserved nanodollars.
    `total` is the sum of the slots, kept so that a decision need not add up a minute; None until the first one."""

    period: int
    spent: int = 0
    held: int = 0
    open: int = 0
    slots: tuple[Slot, ...] = ()
    total: Slot | None = None


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
    slots, total, second = account.slots, account.total, int(now)
    if slots and slots[-1].second >= second:
        second, requests, tokens, held = slots[-1]
        slots = (*slots[:-1], Slot(second, requests + 1, tokens + ask.tokens, held + ask.tokens))
    else:
        slots = (*slots, Slot(second, 1, ask.tokens, ask.tokens))
    total = Slot(0, total.requests + 1, total.tokens + ask.tokens, total.held + ask.tokens)
    account = Account(account.period, account.spent, account.held + ask.cost, account.open + 1, slots, total)
    return account, Admit(Ticket(ask, second))


def settle(account: Account, ticket: Ticket, tokens: int, cost: int, now: float, period: int) -> Account:
    """Replace a reservation by what was used. (0, 0) is a refund. Money counts in the month it is settled in."""
    account = _roll(account, now, period)
    slots, total, held = account.slots, account.total, ticket.ask.tokens
    for i in range(len(slots) - 1, -1, -1):
        second, requests, counted, reserved = slots[i]
        if second == ticket.second:
            slots = (*slots[:i], Slot(second, requests, counted + tokens - held, reserved - held), *slots[i + 1 :])
            total = Slot(0, total.requests, total.tokens + tokens - held, total.held - held)
            break
        if second < ticket.second:
            break
    return Account(
        account.period, account.spent + cost, account.held - ticket.ask.cost, account.open - 1, slots, total
    )


def _roll(account: Account, now: float, period: int) -> Account:
    """Forget what no longer counts. A month never comes back: a clock set back must not renew the budget."""
    oldest = int(now) - WINDOW
    slots, total = account.slots, account.total
    if slots and slots[0].second < oldest:
        slots, total = tuple(s for s in slots if s.second >= oldest), None
    if period > account.period:
        account = account._replace(period=period, spent=0)
    if total is None:
        _, *used = zip(Slot(0), *slots, strict=True)
        account = account._replace(slots=slots, total=Slot(0, *map(sum, used)))
    return account


def _rate(account: Account, limits: Limits, ask: Ask, now: float) -> Queue | Reject | None:
    slots, total = account.slots, account.total
    rpm, tpm = limits.requests_per_minute, limits.tokens_per_minute
    if rpm is not None and total.requests + 1 > rpm:
        after = _until_free([(s.second, s.requests) for s in slots], rpm - 1, now)
        return Reject(f"limit of {rpm} requests per minute reached", "requests", after)
    if tpm is None:
        return None
    if ask.tokens > tpm:
        reason = f"the request may use {ask.tokens} tokens, over the limit of {tpm} tokens per minute; lower max_tokens"
        return Reject(reason, "tokens", None)
    if total.tokens + ask.tokens <= tpm:
        return None
    if total.tokens - total.held + ask.tokens <= tpm:
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

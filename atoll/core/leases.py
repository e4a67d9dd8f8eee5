"""Exact quotas over many gateways: a pool per key lends requests, tokens and money; gateways spend what they hold.

    gateway                                   pool (one row per key, changed under its lock)
    short of quota: `ask`      -- Want -->    `grant`: lends what no other use, present or possible, can need
    `receive`                  <- Lent --
    `reserve`, `settle` locally, no message
    `report`, now and then     - Report ->    `record`: what is spent, and the ceiling of what may yet be
    `acknowledge`              <- (n, seq) -

What is lent counts as used until a report says otherwise, so no interleaving, crash, partition, lost, doubled or late
message passes a limit; what is returned can be lent again at once. Reports are cumulative and numbered: the newest
counts. A lease ends at `expires_at`: its holder reserves nothing on it from `SKEW` before (clocks differ by at most
that), and ends what was reserved within `GRACE`, longer than any message is under way. Requests and tokens of a silent
holder come back a window after the lease ended. Its money stays in doubt until it reports or, if it died, `bury` tells
from the ledger what it spent: without either nobody can know, and the pool does not guess. Doubt ends with the month.

`core.quota` stays the gateway's own account of a key: it refuses what this gateway alone has used up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from atoll.core.quota import WINDOW, Ask, Reject
from atoll.core.types import Limits

TTL = 10.0
SKEW = 0.5
GRACE = 3600.0
NEVER = 1 << 62


@dataclass(frozen=True, slots=True)
class Amount:
    """`cost` in nanodollars."""

    requests: int = 0
    tokens: int = 0
    cost: int = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.requests + other.requests, self.tokens + other.tokens, self.cost + other.cost)

    def __sub__(self, other: Amount) -> Amount:
        return Amount(self.requests - other.requests, self.tokens - other.tokens, self.cost - other.cost)

    def within(self, other: Amount) -> bool:
        return self.requests <= other.requests and self.tokens <= other.tokens and self.cost <= other.cost


@dataclass(frozen=True, slots=True)
class Moment:
    """`period` is the UTC month (year * 12 + month - 1); `ends` is when the next begins."""

    now: float
    period: int
    ends: float


@dataclass(frozen=True, slots=True)
class Want:
    """Number `n` of a holder's wishes: at least `least`, or nothing; up to `most`."""

    holder: str
    n: int
    least: Amount
    most: Amount


@dataclass(frozen=True, slots=True)
class Lent:
    holder: str
    n: int
    amount: Amount
    expires_at: float


@dataclass(frozen=True, slots=True)
class Report:
    """All that was spent of lease `n`, and the `ceiling` that it can reach: spent plus reserved, once no more is to be
    reserved. `at`: the holder's time of the last reservation spent."""

    holder: str
    n: int
    seq: int
    spent: Amount
    ceiling: Amount
    at: float


@dataclass(frozen=True, slots=True)
class Recall:
    """It would fit if `holders` gave back what they do not use; `until` is when the first of their leases ends. Without
    holders, money is in doubt."""

    limit: str
    reason: str
    holders: tuple[str, ...]
    until: float | None


@dataclass(frozen=True, slots=True)
class Stale:
    """A wish that was answered and settled, or given up, before."""


@dataclass(frozen=True, slots=True)
class Loan:
    """One lease, as the pool sees it. `uses`: (second, requests, tokens) as reported."""

    holder: str
    n: int
    amount: Amount
    ceiling: Amount
    expires_at: float
    period: int
    spent: Amount = Amount()
    seq: int = 0
    uses: tuple[tuple[int, int, int], ...] = ()

    @property
    def open(self) -> Amount:
        return self.ceiling - self.spent


@dataclass(frozen=True, slots=True)
class Pool:
    """All that is known of one key's quota. `spent` nanodollars in month `period`; `last` tells by holder the last wish
    heard of and when."""

    period: int
    spent: int = 0
    loans: tuple[Loan, ...] = ()
    last: Mapping[str, tuple[int, float]] = field(default_factory=dict)


def grant(pool: Pool, limits: Limits, want: Want, when: Moment) -> tuple[Pool, Lent | Reject | Recall | Stale]:
    """Lend up to half of what is free, at least `want.least`. The same wish again gets the same answer."""
    pool = _roll(pool, when)
    for loan in pool.loans:
        if (loan.holder, loan.n) == (want.holder, want.n) and not loan.seq:
            return pool, Lent(loan.holder, loan.n, loan.amount, loan.expires_at)
    if want.n <= pool.last.get(want.holder, (0, 0.0))[0]:
        return pool, Stale()
    if refusal := _refusal(pool, limits, want, when):
        return pool, refusal
    used = _used(pool, when.now) + _lent(pool, when.now)
    amount = Amount(*(
        max(least, most) if limit is None else max(least, min(most, (limit - taken) // 2))
        for limit, taken, least, most in _columns(limits, used, want.least, want.most)
    ))  # fmt: skip
    expires_at = min(when.now + TTL, when.ends)
    loan = Loan(want.holder, want.n, amount, amount, expires_at, when.period)
    pool = _heard(replace(pool, loans=(*pool.loans, loan)), want.holder, want.n, when.now)
    return pool, Lent(want.holder, want.n, amount, expires_at)


def record(pool: Pool, report: Report, when: Moment) -> Pool:
    """Take note of a report; older ones and doubles change nothing. Acknowledge (n, seq) to the holder in any case.
    Raises ValueError for a report that contradicts what is known."""
    pool = _heard(_roll(pool, when), report.holder, report.n, when.now)
    for i, loan in enumerate(pool.loans):
        if (loan.holder, loan.n) == (report.holder, report.n) and report.seq > loan.seq:
            loans = (*pool.loans[:i], _reported(loan, report, when.now), *pool.loans[i + 1 :])
            return _roll(replace(pool, spent=pool.spent + report.spent.cost - loan.spent.cost, loans=loans), when)
    return pool


def bury(pool: Pool, holder: str, spent: Mapping[int, Amount], when: Moment) -> Pool:
    """A gateway died for good. `spent` by lease, as the ledger proves it; of a lease not listed nothing was spent
    beyond what was reported. Nothing is lent to this name again, and late reports of it are ignored."""
    for loan in pool.loans:
        if loan.holder == holder:
            proven = spent.get(loan.n, loan.spent)
            pool = record(pool, Report(holder, loan.n, NEVER, proven, proven, when.now), when)
    return _heard(pool, holder, NEVER, when.now)


def doubt(pool: Pool, now: float) -> int:
    """Nanodollars that leases which have ended may have spent."""
    return sum(loan.open.cost for loan in pool.loans if now >= loan.expires_at)


def dump(pool: Pool) -> dict[str, Any]:
    """As JSON types, for the row that keeps it."""
    return asdict(pool)


def load(row: Mapping[str, Any]) -> Pool:
    """What `dump` gave, also after a way through JSON."""
    loans = (
        Loan(
            x["holder"], x["n"], Amount(**x["amount"]), Amount(**x["ceiling"]), x["expires_at"], x["period"],
            Amount(**x["spent"]), x["seq"], tuple((s, r, t) for s, r, t in x["uses"]),
        )
        for x in row["loans"]
    )  # fmt: skip
    return Pool(row["period"], row["spent"], tuple(loans), {h: (n, at) for h, (n, at) in row["last"].items()})


def _refusal(pool: Pool, limits: Limits, want: Want, when: Moment) -> Reject | Recall | None:
    used, lent = _used(pool, when.now), _lent(pool, when.now)
    names = ("requests", "tokens", "budget")
    rows = zip(names, _columns(limits, used, lent, want.least), strict=True)
    for name, (limit, taken, away, least) in rows:
        if limit is None or taken + away + least <= limit:
            continue
        if least > limit:
            return Reject(f"the request needs {least}, over the limit of {limit} ({name})", name, None)
        if taken + least > limit:
            after = when.ends - when.now if name == "budget" else _until_free(pool, name, limit - least, when.now)
            left = max(0, limit - taken)
            reason = f"{taken} of {limit} are used ({name})"
            if name == "budget":
                cost = f"the request may cost ${least / 1e9:.6f}"
                reason = f"{cost}, but ${left / 1e9:.6f} of this month's budget is left"
            return Reject(reason, name, max(0.0, after))
        return _recall(pool, name, f"{away} of {limit} are lent to other gateways ({name})", when.now)
    return None


def _recall(pool: Pool, name: str, reason: str, now: float) -> Recall:
    lent = [loan for loan in pool.loans if loan.open != Amount()]
    holders = tuple(dict.fromkeys(loan.holder for loan in lent if now < loan.expires_at))
    ends = [loan.expires_at for loan in lent if now < loan.expires_at]
    if name != "budget":
        ends += [int(x.expires_at) + WINDOW + 1.0 for x in lent if int(now) - WINDOW <= int(x.expires_at) <= now]
    return Recall(name, reason, holders, min(ends, default=None))


def _columns(limits: Limits, *amounts: Amount) -> Iterable[tuple]:
    bounds = (limits.requests_per_minute, limits.tokens_per_minute, limits.budget_per_month)
    return zip(bounds, *((a.requests, a.tokens, a.cost) for a in amounts), strict=True)


def _used(pool: Pool, now: float) -> Amount:
    """Spent for certain: money this month, requests and tokens in the window."""
    recent = [use for loan in pool.loans for use in loan.uses if use[0] >= int(now) - WINDOW]
    return Amount(sum(r for _, r, _ in recent), sum(t for _, _, t in recent), pool.spent)


def _lent(pool: Pool, now: float) -> Amount:
    """What may be spent yet, or was without our knowing."""
    loans = [loan for loan in pool.loans if int(loan.expires_at) >= int(now) - WINDOW]
    rates = sum((loan.open for loan in loans), Amount())
    return replace(rates, cost=sum(loan.open.cost for loan in pool.loans))


def _reported(loan: Loan, report: Report, now: float) -> Loan:
    new = report.spent - loan.spent
    if not (Amount().within(new) and report.spent.within(report.ceiling) and report.ceiling.within(loan.ceiling)):
        raise ValueError(f"the report contradicts the lease: {report} {loan}")
    uses = loan.uses
    if new.requests or new.tokens:
        second = max(int(min(now, report.at + SKEW)), uses[-1][0] if uses else 0)
        uses = (*(use for use in uses if use[0] >= int(now) - WINDOW), (second, new.requests, new.tokens))
    return replace(loan, ceiling=report.ceiling, spent=report.spent, seq=report.seq, uses=uses)


def _heard(pool: Pool, holder: str, n: int, now: float) -> Pool:
    heard = {name: known for name, known in pool.last.items() if now - known[1] < GRACE}
    return replace(pool, last={**heard, holder: (max(n, pool.last.get(holder, (0, 0.0))[0]), now)})


def _until_free(pool: Pool, name: str, allowed: int, now: float) -> float:
    column = 1 if name == "requests" else 2
    uses = sorted((use[0], use[column]) for loan in pool.loans for use in loan.uses if use[0] >= int(now) - WINDOW)
    total, free_at = sum(n for _, n in uses), now
    for second, n in uses:
        if total <= allowed:
            break
        total, free_at = total - n, second + WINDOW + 1
    return free_at - now


def _roll(pool: Pool, when: Moment) -> Pool:
    """Forget what no longer counts. A month never comes back."""
    if when.period > pool.period:
        pool = replace(pool, period=when.period, spent=0)
    kept = tuple(loan for loan in pool.loans if _counts(loan, pool.period, when.now))
    return pool if len(kept) == len(pool.loans) else replace(pool, loans=kept)


def _counts(loan: Loan, period: int, now: float) -> bool:
    oldest = int(now) - WINDOW
    if loan.uses and loan.uses[-1][0] >= oldest:
        return True
    if not loan.open.cost or (loan.period < period and now >= loan.expires_at + GRACE):
        return loan.open != Amount() and int(loan.expires_at) >= oldest
    return True


@dataclass(frozen=True, slots=True)
class Lease:
    """One lease, as its holder sees it. `sent`: what the pool was told last (spent, ceiling), by report `seq`."""

    n: int
    ceiling: Amount
    expires_at: float
    spent: Amount = Amount()
    held: Amount = Amount()
    at: float = 0.0
    seq: int = 0
    acknowledged: int = 0
    sent: tuple[Amount, Amount] | None = None


@dataclass(frozen=True, slots=True)
class Wallet:
    """A gateway's leases on one key. `holder` is new with each start of the gateway. `asked`: wishes not answered."""

    holder: str
    n: int = 0
    asked: frozenset[int] = frozenset()
    leases: tuple[Lease, ...] = ()


@dataclass(frozen=True, slots=True)
class Drawn:
    """A reservation on lease `n`, to be settled exactly once."""

    n: int
    ask: Ask
    at: float


@dataclass(frozen=True, slots=True)
class Short:
    """No lease has room: ask the pool. `queued`: it would fit if open reservations settle for less."""

    queued: bool


def ask(wallet: Wallet, least: Amount, most: Amount) -> tuple[Wallet, Want]:
    n = wallet.n + 1
    return replace(wallet, n=n, asked=wallet.asked | {n}), Want(wallet.holder, n, least, most)


def receive(wallet: Wallet, lent: Lent) -> Wallet:
    """Doubles, and answers to wishes that were given up, change nothing."""
    if lent.holder != wallet.holder or lent.n not in wallet.asked:
        return wallet
    lease = Lease(lent.n, lent.amount, lent.expires_at, sent=(Amount(), lent.amount))
    return replace(wallet, asked=wallet.asked - {lent.n}, leases=(*wallet.leases, lease))


def give_up(wallet: Wallet, n: int) -> Wallet:
    """Wait for the answer to wish `n` no longer (refused, or lost): should it come, it is returned unused."""
    if n not in wallet.asked:
        return wallet
    return replace(wallet, asked=wallet.asked - {n}, leases=(*wallet.leases, Lease(n, Amount(), 0.0)))


def reserve(wallet: Wallet, wanted: Ask, now: float) -> tuple[Wallet, Drawn | Short]:
    """Hold the upper bound of one request on the lease that ends first among those with room."""
    need = Amount(1, wanted.tokens, wanted.cost)
    live = sorted((x for x in wallet.leases if now < x.expires_at - SKEW), key=lambda x: x.expires_at)
    for lease in live:
        if (lease.spent + lease.held + need).within(lease.ceiling):
            changed = replace(lease, held=lease.held + need)
            return _swap(wallet, changed), Drawn(lease.n, wanted, now)
    return wallet, Short(any((lease.spent + need).within(lease.ceiling) for lease in live))


def settle(wallet: Wallet, drawn: Drawn, tokens: int, cost: int) -> Wallet:
    """What was used takes the place of what was reserved. (0, 0) is a refund. Raises ValueError beyond the bound."""
    if not (0 <= tokens <= drawn.ask.tokens and 0 <= cost <= drawn.ask.cost):
        raise ValueError(f"{tokens} tokens and {cost} nanodollars pass the reservation {drawn.ask}")
    lease = next(lease for lease in wallet.leases if lease.n == drawn.n)
    held = lease.held - Amount(1, drawn.ask.tokens, drawn.ask.cost)
    spent = lease.spent + Amount(1, tokens, cost)
    return _swap(wallet, replace(lease, held=held, spent=spent, at=max(lease.at, drawn.at)))


def report(wallet: Wallet, now: float, give_back: bool = False) -> tuple[Wallet, tuple[Report, ...]]:
    """A report of each lease with news, or whose last one was not acknowledged. What is not reserved of leases that
    have ended, or of all to `give_back`, is returned, and not used from here on."""
    leases, reports = [], []
    for lease in wallet.leases:
        if give_back or now >= lease.expires_at - SKEW:
            lease = replace(lease, ceiling=lease.spent + lease.held)
        fresh = lease.sent != (lease.spent, lease.ceiling)
        if fresh or lease.acknowledged < lease.seq:
            lease = replace(lease, seq=lease.seq + fresh, sent=(lease.spent, lease.ceiling))
            reports.append(Report(wallet.holder, lease.n, lease.seq, lease.spent, lease.ceiling, lease.at))
        leases.append(lease)
    return replace(wallet, leases=tuple(leases)), tuple(reports)


def acknowledge(wallet: Wallet, n: int, seq: int) -> Wallet:
    """The pool has recorded report `seq` of lease `n`; a lease that is spent or returned is then forgotten."""
    kept = []
    for lease in wallet.leases:
        if lease.n == n:
            lease = replace(lease, acknowledged=max(lease.acknowledged, seq))
            over = lease.spent == lease.ceiling and lease.sent == (lease.spent, lease.ceiling)
            if over and lease.acknowledged == lease.seq:
                continue
        kept.append(lease)
    return replace(wallet, leases=tuple(kept))


def _swap(wallet: Wallet, changed: Lease) -> Wallet:
    return replace(wallet, leases=tuple(changed if lease.n == changed.n else lease for lease in wallet.leases))

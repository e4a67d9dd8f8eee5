"""Leases: a conversation between gateways and the pool, and a network that loses, doubles and reorders all of it."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from atoll.core.leases import (
    GRACE,
    SKEW,
    TTL,
    Amount,
    Drawn,
    Lent,
    Moment,
    Pool,
    Recall,
    Report,
    Short,
    Stale,
    Wallet,
    Want,
    acknowledge,
    ask,
    bury,
    doubt,
    dump,
    give_up,
    grant,
    load,
    receive,
    record,
    report,
    reserve,
    settle,
)
from atoll.core.quota import Ask, Reject
from atoll.core.types import Limits

MONTH = 10_000.0
LIMITS = Limits(10, 1000, 500)


def at(now: float) -> Moment:
    period = int(now // MONTH)
    return Moment(now, period, (period + 1) * MONTH)


def lend(pool: Pool, wallet: Wallet, least: Amount, most: Amount, now: float) -> tuple[Pool, Wallet]:
    wallet, want = ask(wallet, least, most)
    pool, lent = grant(pool, LIMITS, want, at(now))
    assert isinstance(lent, Lent)
    return pool, receive(wallet, lent)


def give_back(pool: Pool, wallet: Wallet, now: float) -> tuple[Pool, Wallet]:
    wallet, reports = report(wallet, now, give_back=True)
    for told in reports:
        pool = record(pool, told, at(now))
        wallet = acknowledge(wallet, told.n, told.seq)
    return pool, wallet


def test_a_conversation():
    pool, a, b = Pool(0), Wallet("a"), Wallet("b")
    a, answer = reserve(a, Ask(100, 50), 0.0)
    assert answer == Short(queued=False)
    pool, a = lend(pool, a, Amount(1, 100, 50), Amount(8, 800, 400), 0.0)
    assert a.leases[0].ceiling == Amount(5, 500, 250), "half of what is free"
    a, drawn = reserve(a, Ask(100, 50), 1.0)
    a = settle(a, drawn, 60, 30)
    b, want = ask(b, Amount(1, 900, 50), Amount(1, 900, 50))
    pool, refused = grant(pool, LIMITS, want, at(2.0))
    assert refused == Recall("tokens", "500 of 1000 are lent to other gateways (tokens)", ("a",), TTL)
    pool, a = give_back(pool, a, 3.0)
    assert a.leases == ()
    pool, answer = grant(pool, LIMITS, want, at(4.0))
    assert answer == Lent("b", 1, Amount(1, 900, 50), 4.0 + TTL)
    assert pool.spent == 30


@pytest.mark.parametrize(
    ("least", "limit", "retry_after"),
    [
        (Amount(1, 400, 10), None, None),
        (Amount(1, 601, 10), "tokens", 60.0),
        (Amount(1, 1001, 10), "tokens", None),
        (Amount(6, 10, 10), "requests", 60.0),
        (Amount(11, 10, 10), "requests", None),
        (Amount(1, 10, 301), "budget", MONTH - 2.0),
        (Amount(1, 10, 501), "budget", None),
    ],
)
def test_what_was_spent_is_refused_with_when_it_comes_back(least: Amount, limit: str | None, retry_after: float | None):
    pool, a = lend(Pool(0), Wallet("a"), Amount(5, 400, 200), Amount(5, 400, 200), 0.0)
    for _ in range(5):
        a, drawn = reserve(a, Ask(80, 40), 1.0)
        a = settle(a, drawn, 80, 40)
    pool, a = give_back(pool, a, 1.0)
    refused = grant(pool, LIMITS, Want("b", 1, least, least), at(2.0))[1]
    assert isinstance(refused, Reject) == (limit is not None)
    assert limit is None or (refused.limit, refused.retry_after) == (limit, retry_after)


def test_a_lost_answer_is_answered_again_and_one_given_up_is_not_lent():
    a, want = ask(Wallet("a"), Amount(1, 10, 10), Amount(1, 10, 10))
    pool, lost = grant(Pool(0), LIMITS, want, at(0.0))
    assert grant(pool, LIMITS, want, at(1.0))[1] == lost
    a = give_up(a, want.n)
    assert receive(a, lost) == a
    pool, a = give_back(pool, a, 2.0)
    assert a.leases == ()
    assert grant(pool, LIMITS, want, at(3.0))[1] == Stale()
    assert pool.loans == ()


def test_a_wish_that_was_given_up_before_it_came_lends_nothing():
    a, want = ask(Wallet("a"), Amount(1, 10, 10), Amount(1, 10, 10))
    pool, a = give_back(Pool(0), give_up(a, want.n), 0.0)
    pool, answer = grant(pool, LIMITS, want, at(1.0))
    assert (answer, pool.loans) == (Stale(), ())


def test_a_partitioned_gateway_spends_until_its_lease_ends_and_its_money_is_in_doubt_until_it_is_back():
    pool, a = lend(Pool(0), Wallet("a"), Amount(2, 200, 200), Amount(2, 200, 200), 0.0)
    a, first = reserve(a, Ask(100, 100), TTL - SKEW - 0.1)
    assert isinstance(first, Drawn)
    assert reserve(a, Ask(100, 100), TTL - SKEW)[1] == Short(queued=False)
    wants = Amount(1, 1, 400)
    assert isinstance(grant(pool, LIMITS, Want("b", 1, wants, wants), at(TTL + 100))[1], Recall)
    assert doubt(pool, TTL + 100) == 200
    pool, a = give_back(pool, settle(a, first, 50, 60), TTL + 200)
    assert (pool.spent, doubt(pool, TTL + 200), a.leases) == (60, 0, ())
    assert isinstance(grant(pool, LIMITS, Want("b", 1, wants, wants), at(TTL + 201))[1], Lent)


def test_rates_of_a_silent_gateway_come_back_a_window_after_its_lease_ended():
    pool, _ = lend(Pool(0), Wallet("a"), Amount(10, 1000, 0), Amount(10, 1000, 0), 0.0)
    want = Want("b", 1, Amount(1, 1, 0), Amount(1, 1, 0))
    refused = grant(pool, LIMITS, want, at(TTL + 60.5))[1]
    assert refused == Recall("requests", "10 of 10 are lent to other gateways (requests)", (), TTL + 61)
    assert isinstance(grant(pool, LIMITS, want, at(TTL + 61.0))[1], Lent)


def test_a_dead_gateway_is_settled_from_the_ledger_and_heard_no_more():
    pool, a = lend(Pool(0), Wallet("a"), Amount(1, 100, 400), Amount(1, 100, 400), 0.0)
    a, drawn = reserve(a, Ask(100, 400), 1.0)
    a, late = report(settle(a, drawn, 100, 30), 2.0)
    pool = bury(pool, "a", {1: Amount(1, 100, 30)}, at(3.0))
    assert (pool.spent, doubt(pool, 99.0)) == (30, 0)
    assert record(pool, late[0], at(4.0)).spent == 30
    assert grant(pool, LIMITS, Want("a", 2, Amount(1), Amount(1)), at(5.0))[1] == Stale()


def test_reports_out_of_order_and_acknowledgements_of_older_ones():
    pool, a = lend(Pool(0), Wallet("a"), Amount(2, 200, 200), Amount(2, 200, 200), 0.0)
    a, one = reserve(a, Ask(100, 100), 1.0)
    a, two = reserve(a, Ask(100, 100), 1.0)
    a, first = report(settle(a, one, 100, 60), 2.0)
    a, second = report(settle(a, two, 100, 70), 3.0)
    pool = record(record(pool, second[0], at(4.0)), first[0], at(5.0))
    assert pool.spent == 130
    a, last = report(a, 4.0, give_back=True)
    a = acknowledge(acknowledge(a, 1, first[0].seq), 1, second[0].seq)
    assert len(a.leases) == 1, "the last report is not known to have come"
    assert report(a, 5.0)[1] == last, "so it is sent again"
    assert acknowledge(a, 1, last[0].seq).leases == ()


def test_what_a_dead_gateway_sent_before_is_ignored_whatever_its_number():
    pool, a = lend(Pool(0), Wallet("a"), Amount(2, 200, 200), Amount(2, 200, 200), 0.0)
    late = []
    for _ in range(2):
        a, drawn = reserve(a, Ask(100, 100), 1.0)
        a, reports = report(settle(a, drawn, 50, 20), 2.0)
        late += reports
    pool = bury(pool, "a", {1: Amount(2, 100, 40)}, at(3.0))
    for told in late:
        pool = record(pool, told, at(4.0))
    assert pool.spent == 40


def test_a_use_counts_for_a_window_from_when_it_may_have_been_at_the_latest():
    pool, a = lend(Pool(0), Wallet("a"), Amount(10, 10, 0), Amount(10, 10, 0), 0.0)
    for _ in range(10):
        a, drawn = reserve(a, Ask(0, 0), 1.6)
        a = settle(a, drawn, 0, 0)
    pool, a = give_back(pool, a, 9.0)
    want = Want("b", 1, Amount(1), Amount(1))
    assert isinstance(grant(pool, LIMITS, want, at(62.9))[1], Reject), "at 2.1 by the pool's clock, perhaps"
    assert isinstance(grant(pool, LIMITS, want, at(63.0))[1], Lent)


def test_doubt_ends_with_the_month_once_all_reservations_have_ended():
    pool, _ = lend(Pool(0), Wallet("a"), Amount(1, 1, 500), Amount(1, 1, 500), MONTH - 1)
    want = Want("b", 1, Amount(1, 1, 500), Amount(1, 1, 500))
    assert pool.loans[0].expires_at == MONTH
    assert isinstance(grant(pool, LIMITS, want, at(MONTH + GRACE - 1))[1], Recall)
    assert isinstance(grant(pool, LIMITS, want, at(MONTH + GRACE))[1], Lent)


def test_settling_beyond_the_reservation_and_reports_that_contradict_are_refused():
    pool, a = lend(Pool(0), Wallet("a"), Amount(1, 10, 10), Amount(1, 10, 10), 0.0)
    a, drawn = reserve(a, Ask(10, 10), 1.0)
    with pytest.raises(ValueError, match="pass the reservation"):
        settle(a, drawn, 11, 0)
    for spent, ceiling in [(Amount(2, 0, 0), Amount(1, 0, 0)), (Amount(), Amount(2, 10, 10)), (Amount(-1), Amount())]:
        with pytest.raises(ValueError, match="contradicts"):
            record(pool, Report("a", 1, 1, spent, ceiling, 0.0), at(1.0))


@dataclass
class Gateway:
    wallet: Wallet
    skew: float
    open: list[tuple[Drawn, Use]] = field(default_factory=list)
    alive: bool = True
    buried: bool = False


@dataclass
class Use:
    """What really happened: when, and how much at most, or in fact once `month` is set."""

    gateway: str
    lease: int
    second: float
    tokens: int
    cost: int
    month: int | None = None


FATES = st.sampled_from(["now", "now", "doubled", "later"])
SIZES = st.sampled_from([0, 10, 20, 30])
SKEWS = st.sampled_from([-SKEW, 0.0, SKEW])


class Network(RuleBasedStateMachine):
    """Any gateway may crash at any time, and any message be lost (later than the end), doubled or late."""

    @initialize(
        limits=st.sampled_from(
            [Limits(4, 60, 60), Limits(3, None, None), Limits(None, 60, None), Limits(None, None, 60)]
        ),
        skews=st.lists(SKEWS, min_size=2, max_size=3),
        start=st.sampled_from([0.0, 9.3, MONTH - 30]),
    )
    def begin(self, limits: Limits, skews: list[float], start: float):
        self.limits = limits
        self.now, self.began, self.born = start, start, len(skews)
        self.pool = Pool(at(start).period)
        self.gateways = {f"g{i}": Gateway(Wallet(f"g{i}"), skew) for i, skew in enumerate(skews)}
        self.uses: list[Use] = []
        self.wire: list[object] = []

    def living(self) -> list[str]:
        return [name for name, g in self.gateways.items() if g.alive]

    @rule(seconds=st.sampled_from([0.2, 1.0, TTL - 2 * SKEW, TTL - SKEW, TTL - 0.1, TTL, 50.0, 59.5, 60.0, 61.0]))
    def time_passes(self, seconds: float):
        self.now += seconds

    @rule(data=st.data(), tokens=SIZES, cost=SIZES, fate=FATES)
    def serve(self, data, tokens: int, cost: int, fate: str):
        name = data.draw(st.sampled_from(self.living()))
        g = self.gateways[name]
        if not self.reserved(name, tokens, cost):
            least = Amount(1, tokens, cost)
            g.wallet, want = ask(g.wallet, least, least + least)
            self.send(want, fate)
            self.reserved(name, tokens, cost)

    def reserved(self, name: str, tokens: int, cost: int) -> bool:
        g = self.gateways[name]
        g.wallet, drawn = reserve(g.wallet, Ask(tokens, cost), self.now + g.skew)
        if isinstance(drawn, Short):
            assert not drawn.queued or g.open
            return False
        self.uses.append(Use(name, drawn.n, self.now, tokens, cost))
        g.open.append((drawn, self.uses[-1]))
        return True

    def send(self, message: object, fate: str):
        """It arrives at once, or also once more later, or later if at all."""
        if fate != "later":
            self.arrive(message, fate)
        if fate != "now":
            self.wire.append(message)

    @rule(data=st.data(), share=st.sampled_from([0.0, 0.5, 1.0]))
    def finish(self, data, share: float):
        busy = [name for name in self.living() if self.gateways[name].open]
        if busy:
            g = self.gateways[data.draw(st.sampled_from(busy))]
            drawn, use = g.open.pop(data.draw(st.integers(0, len(g.open) - 1)))
            self.end(use, share)
            g.wallet = settle(g.wallet, drawn, use.tokens, use.cost)

    def end(self, use: Use, share: float):
        use.tokens, use.cost, use.month = int(use.tokens * share), int(use.cost * share), at(self.now).period

    @rule(data=st.data(), all_back=st.booleans(), fate=FATES)
    def tell(self, data, all_back: bool, fate: str):
        g = self.gateways[data.draw(st.sampled_from(self.living()))]
        g.wallet, reports = report(g.wallet, self.now + g.skew, all_back)
        for told in reports:
            self.send(told, fate)

    @rule(data=st.data())
    def wait_no_longer(self, data):
        g = self.gateways[data.draw(st.sampled_from(self.living()))]
        if g.wallet.asked:
            g.wallet = give_up(g.wallet, data.draw(st.sampled_from(sorted(g.wallet.asked))))

    @precondition(lambda self: self.wire)
    @rule(data=st.data(), fate=FATES)
    def what_was_late_arrives(self, data, fate: str):
        self.send(self.wire.pop(data.draw(st.integers(0, len(self.wire) - 1))), fate)

    def arrive(self, message: object, fate: str):
        if isinstance(message, Want):
            self.pool, answer = grant(self.pool, self.limits, message, at(self.now))
            if isinstance(answer, Lent):
                self.send(answer, fate)
        elif isinstance(message, Report):
            self.pool = record(self.pool, message, at(self.now))
            self.send((message.holder, message.n, message.seq), fate)
        elif isinstance(message, Lent):
            g = self.gateways[message.holder]
            g.wallet = receive(g.wallet, message) if g.alive else g.wallet
        else:
            g = self.gateways[message[0]]
            g.wallet = acknowledge(g.wallet, *message[1:]) if g.alive else g.wallet

    @precondition(lambda self: len(self.living()) > 1)
    @rule(data=st.data(), share=st.sampled_from([0.0, 0.5, 1.0]))
    def crash(self, data, share: float):
        """Memory is lost; what each open request had used by then was used."""
        g = self.gateways[data.draw(st.sampled_from(self.living()))]
        g.alive = False
        for _, use in g.open:
            self.end(use, share)
        g.open.clear()

    @rule(skew=SKEWS)
    def replace_the_dead(self, skew: float):
        if len(self.living()) < 3:
            name, self.born = f"g{self.born}", self.born + 1
            self.gateways[name] = Gateway(Wallet(name), skew)

    @rule()
    def read_the_ledger(self):
        for name, g in self.gateways.items():
            if not g.alive and not g.buried:
                g.buried = True
                spent: dict[int, Amount] = {}
                for use in self.uses:
                    if use.gateway == name:
                        spent[use.lease] = spent.get(use.lease, Amount()) + Amount(1, use.tokens, use.cost)
                self.pool = bury(self.pool, name, spent, at(self.now))

    @invariant()
    def a_pool_outlives_its_process(self):
        if hasattr(self, "pool"):
            assert load(json.loads(json.dumps(dump(self.pool)))) == self.pool

    @invariant()
    def no_month_passes_its_budget(self):
        if hasattr(self, "uses") and self.limits.budget_per_month is not None:
            current = at(self.now).period
            for month in {u.month for u in self.uses} - {None} | {current}:
                spent = sum(u.cost for u in self.uses if (u.month if u.month is not None else current) == month)
                assert spent <= self.limits.budget_per_month

    @invariant()
    def no_window_of_60_seconds_passes_a_limit(self):
        for last in getattr(self, "uses", ()):
            window = [u for u in self.uses if last.second - 60 < u.second <= last.second]
            if self.limits.requests_per_minute is not None:
                assert len(window) <= self.limits.requests_per_minute
            if self.limits.tokens_per_minute is not None:
                assert sum(u.tokens for u in window) <= self.limits.tokens_per_minute

    def teardown(self):
        """All is settled and returned, on a copy of the network that works: the whole unspent amount can be lent."""
        if not hasattr(self, "uses"):
            return
        self.read_the_ledger()
        for name in self.living():
            g = self.gateways[name]
            for drawn, use in copy.copy(g.open):
                g.wallet = settle(g.wallet, drawn, 0, 0)
                use.tokens = use.cost = 0
                use.month = at(self.now).period
            for n in g.wallet.asked:
                g.wallet = give_up(g.wallet, n)
            self.pool, g.wallet = give_back(self.pool, g.wallet, self.now)
            assert g.wallet.leases == ()
        assert doubt(self.pool, self.now + 1e6) == 0
        spent = sum(u.cost for u in self.uses)
        if at(self.now).period == at(self.began).period:
            assert self.pool.spent == spent
        self.lends_all(self.now + 62, self.limits.budget_per_month, self.pool.spent)
        self.lends_all(self.now + MONTH, self.limits.budget_per_month, 0)

    def lends_all(self, now: float, budget: int | None, spent: int):
        if at(now).period != self.pool.period:
            spent = 0
        whole = Amount(
            self.limits.requests_per_minute or 0, self.limits.tokens_per_minute or 0, (budget or spent) - spent
        )
        assert isinstance(grant(self.pool, self.limits, Want("new", 1, whole, whole), at(now))[1], Lent)


TestNetwork = Network.TestCase
TestNetwork.settings = settings(max_examples=500, stateful_step_count=60, deadline=None)

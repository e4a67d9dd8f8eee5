"""Quotas: decisions as tables, and a state machine that looks for any history that breaks a limit."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from atoll.core.quota import Account, Admit, Ask, Decision, Queue, Reject, Slot, Ticket, reserve, settle
from atoll.core.types import Limits

MONTH, ENDS = 24_322, 10_000.0
FREE = Account(MONTH)
NOW = 1000.25
RATE = Limits(requests_per_minute=3, tokens_per_minute=100)
BUDGET = Limits(budget_per_month=1000)


def ask(limits: Limits, account: Account, tokens: int = 0, cost: int = 0, now: float = NOW) -> Decision:
    return reserve(account, limits, Ask(tokens, cost), now, MONTH, ENDS)[1]


def used(second: int, requests: int, tokens: int, held: int = 0) -> Account:
    return FREE._replace(slots=(Slot(second, requests, tokens, held),))


def known(account: Account) -> Account:
    """The account without the sum, which follows from the rest."""
    return account._replace(total=None)


@pytest.mark.parametrize(
    ("limits", "account", "tokens", "cost", "expected"),
    [
        (Limits(), FREE, 1 << 40, 1 << 60, Admit),
        (RATE, FREE, 100, 0, Admit),
        (RATE, used(999, 2, 40), 60, 0, Admit),
        (RATE, used(940, 2, 40), 61, 0, ("tokens", 0.75)),
        (RATE, used(939, 3, 100), 100, 0, Admit),
        (RATE, used(999, 3, 0), 0, 0, ("requests", 59.75)),
        (RATE, used(999, 1, 100), 1, 0, ("tokens", 59.75)),
        (RATE, used(999, 1, 100, held=1), 1, 0, Queue),
        (RATE, used(999, 1, 100, held=1), 2, 0, ("tokens", 59.75)),
        (RATE, FREE, 101, 0, ("tokens", None)),
        (Limits(requests_per_minute=0), FREE, 1, 0, ("requests", None)),
        (Limits(tokens_per_minute=0), FREE, 0, 0, Admit),
        (BUDGET, FREE, 0, 1000, Admit),
        (BUDGET, FREE._replace(spent=999), 0, 1, Admit),
        (BUDGET, FREE._replace(spent=999), 0, 2, ("budget", ENDS - NOW)),
        (BUDGET, FREE._replace(spent=500, held=400, open=1), 0, 101, Queue),
        (BUDGET, FREE._replace(spent=500, held=400, open=1), 0, 501, ("budget", ENDS - NOW)),
        (BUDGET, FREE, 0, 1001, ("budget", None)),
        (BUDGET, FREE._replace(period=MONTH - 1, spent=1000), 0, 1000, Admit),
        (replace(RATE, budget_per_month=9), used(999, 1, 100, 50)._replace(spent=9), 50, 1, ("budget", ENDS - NOW)),
    ],
)
def test_decisions(limits: Limits, account: Account, tokens: int, cost: int, expected):
    decision = ask(limits, account, tokens, cost)
    if isinstance(decision, Reject):
        assert (decision.limit, decision.retry_after) == expected
    else:
        assert isinstance(decision, expected)


def test_each_refusal_names_the_limit_and_the_numbers():
    assert ask(RATE, used(999, 3, 0)).reason == "limit of 3 requests per minute reached"
    assert "may use 101 tokens, over the limit of 100 tokens per minute" in ask(RATE, FREE, 101).reason
    assert "over the budget of $0.000001 per month" in ask(BUDGET, FREE, 0, 2000).reason
    assert "$0.000000 of this month's budget is left" in ask(BUDGET, FREE._replace(spent=1000), 0, 1).reason


def test_a_refusal_changes_nothing_and_an_admission_holds_the_upper_bound():
    account, decision = reserve(used(999, 3, 7), RATE, Ask(1, 1), NOW, MONTH, ENDS)
    assert isinstance(decision, Reject)
    assert known(account) == used(999, 3, 7)
    account, decision = reserve(FREE, RATE, Ask(60, 9), NOW, MONTH, ENDS)
    assert decision == Admit(Ticket(Ask(60, 9), 1000))
    assert known(account) == Account(MONTH, spent=0, held=9, open=1, slots=(Slot(1000, 1, 60, 60),))


@pytest.mark.parametrize(("tokens", "cost"), [(0, 0), (20, 4), (60, 9), (75, 12)])
def test_settling_replaces_the_reservation_by_the_use(tokens: int, cost: int):
    account, decision = reserve(FREE, RATE, Ask(60, 9), NOW, MONTH, ENDS)
    account = settle(account, decision.ticket, tokens, cost, NOW + 5, MONTH)
    assert known(account) == Account(MONTH, spent=cost, held=0, open=0, slots=(Slot(1000, 1, tokens, 0),))


def test_a_request_longer_than_the_window_settles_its_money_only():
    account, decision = reserve(FREE, RATE, Ask(60, 9), NOW, MONTH, ENDS)
    account = settle(account, decision.ticket, 50, 7, NOW + 61, MONTH)
    assert known(account) == Account(MONTH, spent=7)


def test_money_counts_in_the_month_it_is_settled_in():
    account, decision = reserve(FREE._replace(spent=990), BUDGET, Ask(0, 10), NOW, MONTH, ENDS)
    account = settle(account, decision.ticket, 0, 10, ENDS, MONTH + 1)
    assert (account.period, account.spent, account.held) == (MONTH + 1, 10, 0)


def test_a_clock_set_back_into_last_month_does_not_renew_the_budget():
    account = FREE._replace(spent=1000)
    account, decision = reserve(account, BUDGET, Ask(0, 1), NOW, MONTH - 1, ENDS)
    assert isinstance(decision, Reject)
    assert known(account) == FREE._replace(spent=1000)


@dataclass
class Request:
    """What the model knows of an admitted request; `settled_in` is None while it is open."""

    at: float
    ask: Ask
    ticket: Ticket
    tokens: int
    cost: int = 0
    settled_in: int | None = None


class Quota(RuleBasedStateMachine):
    """Months of 150 s, so that histories cross several."""

    open_requests = Bundle("open_requests")

    @initialize(
        rpm=st.none() | st.integers(0, 4),
        tpm=st.none() | st.integers(0, 100),
        budget=st.none() | st.integers(0, 200),
        now=st.floats(0, 150),
    )
    def start(self, rpm: int | None, tpm: int | None, budget: int | None, now: float):
        self.limits = Limits(rpm, tpm, budget)
        self.now = now
        self.account = Account(self.period)
        self.requests: list[Request] = []

    @property
    def period(self) -> int:
        return int(self.now // 150)

    @property
    def ends(self) -> float:
        return (self.period + 1) * 150.0

    @rule(seconds=st.floats(0, 2) | st.floats(0, 70) | st.sampled_from([1.0, 59.999, 60.0, 61.0]))
    def time_passes(self, seconds: float):
        self.now += seconds

    @rule(target=open_requests, tokens=st.integers(0, 60), cost=st.integers(0, 120))
    def ask_for(self, tokens: int, cost: int) -> Request | None:
        asked = Ask(tokens, cost)
        before = self.account
        self.account, decision = reserve(before, self.limits, asked, self.now, self.period, self.ends)
        if isinstance(decision, Admit):
            request = Request(self.now, asked, decision.ticket, tokens)
            self.requests.append(request)
            return request
        if isinstance(decision, Queue):
            assert any(r.settled_in is None for r in self.requests), "queued behind nobody"
        else:
            self.deserved(decision, asked)
            self.pays_to_wait(decision, asked)
        return None

    @rule(request=consumes(open_requests), share=st.floats(0, 1))
    def finish(self, request: Request | None, share: float):
        if request is None:
            return
        request.tokens, request.cost = int(share * request.ask.tokens), int(share * request.ask.cost)
        request.settled_in = self.period
        arguments = (request.tokens, request.cost, self.now, self.period)
        self.account = settle(self.account, request.ticket, *arguments)

    def deserved(self, refusal: Reject, asked: Ask):
        """What was used, without anything merely reserved, leaves no room."""
        recent = [r for r in self.requests if int(r.at) >= int(self.now) - 60]
        if refusal.limit == "requests":
            assert len(recent) + 1 > self.limits.requests_per_minute
        elif refusal.limit == "tokens":
            tokens = sum(r.tokens for r in recent if r.settled_in is not None)
            assert tokens + asked.tokens > self.limits.tokens_per_minute
        else:
            spent = sum(r.cost for r in self.requests if r.settled_in == self.period)
            assert spent + asked.cost > self.limits.budget_per_month

    def pays_to_wait(self, refusal: Reject, asked: Ask):
        """After `retry_after` the same limit refuses no more; without it, no wait would ever help."""
        wait = 1e7 if refusal.retry_after is None else refusal.retry_after + 0.001
        later = self.now + wait
        period, ends = int(later // 150), (later // 150 + 1) * 150
        again = reserve(self.account, self.limits, asked, later, period, ends)[1]
        refused_again = isinstance(again, Reject) and again.limit == refusal.limit
        assert refused_again == (refusal.retry_after is None)

    @invariant()
    def no_window_of_60_seconds_passes_a_limit(self):
        for last in getattr(self, "requests", ()):
            window = [r for r in self.requests if last.at - 60 < r.at <= last.at]
            if self.limits.requests_per_minute is not None:
                assert len(window) <= self.limits.requests_per_minute
            if self.limits.tokens_per_minute is not None:
                assert sum(r.tokens for r in window) <= self.limits.tokens_per_minute

    @invariant()
    def no_month_passes_its_budget(self):
        if not hasattr(self, "requests") or self.limits.budget_per_month is None:
            return
        reserved = sum(r.ask.cost for r in self.requests if r.settled_in is None)
        for month in {r.settled_in for r in self.requests} - {None} | {self.period}:
            spent = sum(r.cost for r in self.requests if r.settled_in == month)
            assert spent + (reserved if month == self.period else 0) <= self.limits.budget_per_month

    @invariant()
    def reservations_are_those_of_open_requests(self):
        if not hasattr(self, "requests"):
            return
        still = [r for r in self.requests if r.settled_in is None]
        assert self.account.open == len(still)
        assert self.account.held == sum(r.ask.cost for r in still)
        for slot in self.account.slots:
            assert slot.held == sum(r.ask.tokens for r in still if r.ticket.second == slot.second)
        if (total := self.account.total) is not None:
            assert total[1:] == tuple(sum(s[i] for s in self.account.slots) for i in (1, 2, 3))


TestQuota = Quota.TestCase
TestQuota.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)

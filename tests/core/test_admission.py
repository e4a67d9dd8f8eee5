"""Admission: conversations with a queue, its shares and bounds, and a state machine that looks for a lost ticket."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from atoll.core.admission import (
    Admit,
    Refuse,
    State,
    Ticket,
    Wait,
    cancel,
    expected_wait,
    expire,
    next_deadline,
    offer,
    release,
    resize,
)


def busy(limit: int = 1, capacity: int = 8, seconds: float | None = None) -> tuple[State, list[Ticket]]:
    """A queue whose every slot was taken at time 0."""
    state = State(limit, capacity, seconds)
    running = [Ticket("first") for _ in range(limit)]
    assert all(offer(state, t, 0.0) == Admit() for t in running)
    return state, running


def drain(state: State, running: list[Ticket], turns: int = 1000) -> list[Ticket]:
    """One request after another is over; who began, in order. Takes no time."""
    order: list[Ticket] = []
    for _ in range(turns):
        if not running:
            break
        begun = release(state, running.pop(0), 0.0)
        order += begun
        running += begun
    return order


def test_a_conversation():
    state, [a] = busy()
    b, c = Ticket("kim"), Ticket("ann")
    assert offer(state, b, 1.0) == Wait(0)
    assert offer(state, c, 1.0) == Wait(1)
    assert release(state, a, 2.0) == (b,)
    assert cancel(state, c)
    assert not cancel(state, c)
    assert release(state, b, 3.0) == ()
    assert offer(state, Ticket("kim"), 3.0) == Admit()


def test_a_limit_of_zero_is_no_limit():
    state = State(limit=0, capacity=0)
    assert all(offer(state, Ticket("kim"), 0.0) == Admit() for _ in range(100))


def test_keys_take_turns_however_many_requests_one_of_them_sends():
    state, running = busy(capacity=10)
    for _ in range(6):
        offer(state, Ticket("flood"), 0.0)
    for _ in range(2):
        offer(state, Ticket("kim"), 0.0)
    keys = [t.key for t in drain(state, running)]
    assert keys == ["flood", "kim", "flood", "kim", "flood", "flood", "flood", "flood"]


def test_weights_share_turns():
    state, running = busy(capacity=40)
    for _ in range(20):
        offer(state, Ticket("kim", weight=3.0), 0.0)
        offer(state, Ticket("ann"), 0.0)
    assert Counter(t.key for t in drain(state, running, 20)) == {"kim": 15, "ann": 5}


def test_a_long_request_counts_for_more_than_a_short_one():
    state, running = busy(capacity=40)
    for _ in range(20):
        offer(state, Ticket("long", cost=4.0), 0.0)
        offer(state, Ticket("short"), 0.0)
    assert Counter(t.key for t in drain(state, running, 20)) == {"long": 4, "short": 16}


def test_each_priority_gets_twice_the_turns_of_the_one_below():
    state, running = busy(capacity=60)
    for _ in range(20):
        for p in (4, 5, 6):
            offer(state, Ticket("kim", p), 0.0)
    assert Counter(t.priority for t in drain(state, running, 21)) == {6: 12, 5: 6, 4: 3}


def test_a_lone_urgent_request_goes_next():
    state, running = busy(capacity=20)
    for i in range(10):
        offer(state, Ticket(f"batch{i}", 0), 0.0)
    running = drain(state, running, 1) + running
    urgent = Ticket("kim", 9)
    assert offer(state, urgent, 0.0) == Wait(1)
    assert urgent in drain(state, running[:1], 2)


@pytest.mark.parametrize(("late", "expected"), [(Ticket("kim"), 5), (Ticket("flood", 4), 3), (Ticket("flood", 6), 7)])
def test_who_was_silent_has_no_claim_on_the_past(late: Ticket, expected: int):
    """After ten turns of one key, another (or another priority) gets its share of what follows and no more."""
    state, running = busy(capacity=50)
    for _ in range(25):
        offer(state, Ticket("flood"), 0.0)
    running = drain(state, running, 10)[-1:]
    for _ in range(10):
        offer(state, Ticket(late.key, late.priority), 0.0)
    turns = [(t.key, t.priority) for t in drain(state, running, 10)]
    assert turns.count((late.key, late.priority)) == pytest.approx(expected, abs=1)


def test_one_at_a_time_is_no_way_around_ones_share():
    """The next request of a key that just had a long turn waits as if it had been there."""
    state, running = busy(capacity=50)
    for _ in range(40):
        offer(state, Ticket("short"), 0.0)
    turns = []
    for _ in range(24):
        if not any(t.key == "long" for t in state.places):
            offer(state, Ticket("long", cost=5.0), 0.0)
        running = [*release(state, running[0], 0.0)]
        turns.append(running[0].key)
    assert turns.count("long") in (4, 5)


def test_waiting_and_leaving_costs_a_key_nothing():
    state, running = busy(capacity=20)
    gone = [Ticket("kim") for _ in range(5)]
    for t in gone:
        offer(state, t, 0.0)
    ann = [Ticket("ann"), Ticket("ann")]
    for t in ann:
        offer(state, t, 0.0)
    assert all(cancel(state, t) for t in gone)
    back = Ticket("kim")
    offer(state, back, 0.0)
    assert drain(state, running) == [ann[0], back, ann[1]]


def test_in_a_full_queue_the_longest_makes_room_with_its_newest_and_nobody_loses_a_last_place():
    state, _ = busy(capacity=3)
    flood = [Ticket("flood") for _ in range(3)]
    for t in flood:
        offer(state, t, 0.0)
    assert offer(state, Ticket("kim"), 0.0) == Wait(2, evicted=flood[2])
    assert isinstance(offer(state, Ticket("kim"), 0.0), Refuse)
    assert offer(state, Ticket("ann"), 0.0) == Wait(2, evicted=flood[1])
    assert isinstance(offer(state, Ticket("flood"), 0.0), Refuse)
    assert isinstance(offer(state, Ticket("bob", 9), 0.0), Refuse)


def test_retry_after_is_how_long_the_queue_needs_at_the_rate_observed():
    state, running = busy(limit=2, capacity=2)
    assert release(state, running[0], 4.0) == ()
    offer(state, Ticket("a"), 4.0)
    for key in "bc":
        offer(state, Ticket(key), 4.0)
    refused = offer(state, Ticket("d"), 4.0)
    assert refused == Refuse("all places to wait are taken", retry_after=6.0)


def test_what_cannot_begin_in_time_is_refused_at_once_with_the_time_it_takes():
    state, _ = busy(limit=1, seconds=10.0)
    assert isinstance(offer(state, Ticket("kim", deadline=11.0), 0.0), Wait)
    refused = offer(state, Ticket("ann", deadline=11.0), 0.0)
    assert refused == Refuse("it would wait for 20.0 s, past its deadline", 20.0)
    assert offer(state, Ticket("ann", deadline=0.0), 0.0) == Refuse("the deadline has passed", None)


def test_an_engine_that_stalls_is_noticed_before_it_answers():
    state, _ = busy(limit=1, seconds=0.5)
    assert isinstance(offer(state, Ticket("kim", deadline=3.0), 1.0), Wait)
    assert isinstance(offer(state, Ticket("kim", deadline=33.0), 30.0), Refuse)


def test_slow_times_long_ago_lock_nobody_out():
    state, running = busy(limit=1, seconds=1000.0)
    assert isinstance(offer(state, Ticket("kim", deadline=1.0), 0.0), Refuse)
    release(state, running[0], 0.1)
    assert offer(state, Ticket("kim", deadline=1.0), 0.1) == Admit()


def test_deadlines_pass_while_waiting():
    state, [a] = busy()
    early, late = Ticket("kim", deadline=5.0), Ticket("kim", deadline=50.0)
    offer(state, early, 0.0)
    offer(state, late, 0.0)
    assert next_deadline(state) == 5.0
    assert release(state, a, 6.0) == (late,)
    assert expire(state, 6.0) == (early,)
    assert expire(state, 6.0) == ()
    assert next_deadline(state) is None


def test_bounds_change_while_requests_wait():
    state, _ = busy(limit=1, capacity=4)
    waiting = [Ticket(k) for k in "abcd"]
    for t in waiting:
        offer(state, t, 0.0)
    assert resize(state, 3, 4, 1.0) == tuple(waiting[:2])
    assert resize(state, 1, 0, 1.0) == ()
    assert isinstance(offer(state, Ticket("e"), 1.0), Refuse)
    assert resize(state, 0, 0, 1.0) == tuple(waiting[2:])


@pytest.mark.parametrize("bad", [Ticket("a", 10), Ticket("a", -1), Ticket("a", cost=-1.0), Ticket("a", weight=0.0)])
def test_nonsense_is_a_programming_error(bad: Ticket):
    with pytest.raises(ValueError, match="priority 0 to 9"):
        offer(State(1, 1), bad, 0.0)


def test_a_ticket_is_offered_once():
    state, [a] = busy()
    with pytest.raises(ValueError, match="offered before"):
        offer(state, a, 0.0)


def test_memory_follows_what_waits_and_not_what_was():
    state, _ = busy(capacity=20)
    for p in range(10):
        offer(state, Ticket("stays", p), 0.0)
    for i in range(5000):
        ticket = Ticket(f"key{i}", i % 10, deadline=1e9)
        offer(state, ticket, 0.0)
        cancel(state, ticket)
    kept = len(state.deadlines) + sum(len(b.flows) + len(b.order) for b in state.bands) + len(state.lengths)
    assert kept < 1000


def bound(ticket: Ticket, own: int, keys: int, bands: set[int]) -> int:
    """The bound that the module promises."""
    n = own + 1 + keys * (own + 2)
    return n + sum(int(n * 2.0 ** (q - ticket.priority)) + 1 for q in bands - {ticket.priority})


ARRIVALS = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([0, 4, 5, 9])), max_size=4)


@settings(max_examples=300, deadline=None)
@given(ARRIVALS, st.lists(ARRIVALS, max_size=30), st.lists(st.tuples(st.sampled_from("abc"), st.integers(3, 6))))
def test_nobody_starves_whatever_arrives(before: list, meanwhile: list, past: list):
    """Any history, then one ticket, then arrivals as many as they like at each turn."""
    state, running = busy(capacity=10_000)
    for key, priority in [*past, *before]:
        offer(state, Ticket(key, priority), 0.0)
    drained = drain(state, running, len(past))
    running = drained[-1:] or running
    own = sum(t.key == "t" and t.priority == 4 for t in state.places)
    ticket = Ticket("t", 4)
    offer(state, ticket, 0.0)
    turns, keys, bands = 0, {"a", "b", "c"}, {0, 3, 4, 5, 6, 9}
    while ticket not in state.running:
        for key, priority in meanwhile[turns % len(meanwhile)] if meanwhile else ():
            offer(state, Ticket(key, priority), 0.0)
        running = [*release(state, running[0], 0.0)]
        turns += 1
        assert turns <= bound(ticket, own, len(keys), bands) + 1


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 3), st.sampled_from([0, 5, 8]), st.integers(1, 5))
def test_nobody_starves_below_a_queue_that_never_empties(own: int, priority: int, flooders: int):
    state, running = busy(capacity=100_000)
    for p in range(10):
        for k in range(flooders):
            for _ in range(20):
                offer(state, Ticket(f"flood{k}", p), 0.0)
    running = drain(state, running, 50)[-1:]
    tickets = [Ticket("t", priority) for _ in range(own + 1)]
    for t in tickets:
        offer(state, t, 0.0)
    turns = 0
    while tickets[-1] not in state.running:
        begun = release(state, running[0], 0.0)
        offer(state, Ticket(begun[0].key, begun[0].priority), 0.0)
        running = [*begun]
        turns += 1
        assert turns <= bound(tickets[-1], own, flooders, set(range(10))) + 1


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from([2, 5, 6])), max_size=40), st.integers(0, 20))
def test_no_more_than_the_position_told_go_first(waiting: list, served: int):
    state, running = busy(capacity=1000)
    for key, priority in waiting:
        offer(state, Ticket(key, priority), 0.0)
    running = drain(state, running, served)[-1:] or running
    if not state.running:
        return
    ticket = Ticket("a", 5)
    told = offer(state, ticket, 0.0)
    assert drain(state, [*state.running]).index(ticket) <= told.position <= len(waiting)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0.1, 9.0), min_size=60, max_size=60), st.floats(0.5, 4.0), st.integers(10, 40))
def test_shares_differ_by_at_most_one_request_each(costs: list[float], weight: float, turns: int):
    """Goyal, Vin, Cheng 1996, theorem 1: |W_a/w_a - W_b/w_b| <= c_a/w_a + c_b/w_b while both wait."""
    state, running = busy(capacity=100)
    for i, cost in enumerate(costs):
        offer(state, Ticket("a", cost=cost, weight=weight) if i % 2 else Ticket("b", cost=cost), 0.0)
    work = {"a": 0.0, "b": 0.0}
    for ticket in drain(state, running, turns):
        work[ticket.key] += ticket.cost / ticket.weight
        if min(sum(t.key == k for t in state.places) for k in "ab") == 0:
            break
        assert abs(work["a"] - work["b"]) <= max(costs) / weight + max(costs) + 1e-9


class Region(RuleBasedStateMachine):
    """Every ticket has exactly one fate, bounds hold, and no slot idles while someone waits."""

    @initialize(limit=st.integers(1, 3), capacity=st.integers(0, 6))
    def start(self, limit: int, capacity: int):
        self.state = State(limit, capacity)
        self.now = 0.0
        self.runs: list[Ticket] = []
        self.waits: list[Ticket] = []

    def begin(self, begun: tuple[Ticket, ...]):
        for t in begun:
            assert t.deadline > self.now, "began after its deadline"
            self.waits.remove(t)
            self.runs.append(t)

    @rule(
        key=st.sampled_from("abc"), priority=st.integers(0, 9), patience=st.floats(0, 20), cost=st.floats(0, 3),
        weight=st.floats(0.1, 4),
    )  # fmt: skip
    def arrive(self, key: str, priority: int, patience: float, cost: float, weight: float):
        ticket = Ticket(key, priority, cost, self.now + patience, weight)
        idle = not self.waits and len(self.runs) < self.state.limit
        decision = offer(self.state, ticket, self.now)
        if isinstance(decision, Admit):
            assert len(self.runs) < self.state.limit
            self.runs.append(ticket)
        elif isinstance(decision, Wait):
            assert 0 <= decision.position <= len(self.waits)
            self.waits.append(ticket)
            if decision.evicted:
                assert decision.evicted.key != key or decision.evicted.priority != priority
                self.waits.remove(decision.evicted)
        else:
            assert not idle or ticket.deadline <= self.now, "refused though a slot was free"
            assert decision.retry_after is None or decision.retry_after >= 0

    @precondition(lambda self: self.runs)
    @rule(data=st.data())
    def finish(self, data: st.DataObject):
        ticket = data.draw(st.sampled_from(self.runs))
        self.runs.remove(ticket)
        self.begin(release(self.state, ticket, self.now))

    @precondition(lambda self: self.waits)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject):
        ticket = data.draw(st.sampled_from(self.waits))
        self.waits.remove(ticket)
        assert cancel(self.state, ticket)

    @rule(seconds=st.floats(0, 10))
    def time_passes(self, seconds: float):
        self.now += seconds

    @rule()
    def look_at_the_clock(self):
        due = {t for t in self.waits if t.deadline <= self.now}
        assert set(expire(self.state, self.now)) == due
        self.waits = [t for t in self.waits if t not in due]
        assert next_deadline(self.state) == min((t.deadline for t in self.waits), default=None)

    @rule(limit=st.integers(1, 3), capacity=st.integers(0, 6))
    def change_bounds(self, limit: int, capacity: int):
        self.begin(resize(self.state, limit, capacity, self.now))

    @invariant()
    def every_ticket_is_where_it_was_said_to_be(self):
        if not hasattr(self, "state"):
            return
        assert set(self.state.running) == set(self.runs)
        assert set(self.state.places) | set(self.state.late) == set(self.waits)
        assert len(self.state.places) + len(self.state.late) == len(self.waits)
        assert not self.state.places or len(self.runs) >= self.state.limit, "a slot idles"

    @invariant()
    def the_books_agree(self):
        if not hasattr(self, "state"):
            return
        flows = {(f.band, f.key): f for f in self.state.places.values()}
        assert sum(b.waiting for b in self.state.bands) == len(self.state.places)
        assert sum(b.keys for b in self.state.bands) == len(flows)
        listed = {place: length for length, row in enumerate(self.state.lengths) for place in row}
        assert listed == {place: len(f.waiting) for place, f in flows.items()}
        wait = expected_wait(self.state, 0, self.now)
        assert wait is None or wait >= 0


TestRegion = Region.TestCase
TestRegion.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)

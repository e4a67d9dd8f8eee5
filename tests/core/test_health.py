"""Health: circuits that open and close, gray failures, and outliers among peers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from atoll.core.health import (
    DEFAULTS,
    Ejected,
    Health,
    Outcome,
    Vitals,
    backoff,
    blames,
    eject,
    examine,
    next_probe,
    observe,
    stall_after,
)

GOOD = Vitals(count=20, errors=0.0, ttft=0.2, gap=0.02, usual_ttft=0.2, usual_gap=0.02, at=100.0)
PEERS = {"b": GOOD, "c": GOOD}
ANSWER = Outcome(None, 0.2, 51, 1.0)


def test_a_circuit_in_a_conversation():
    state = Health()
    for _ in range(2):
        state = observe(state, False, 10.0)
        assert state.admits(10.0)
    state = observe(state, False, 10.0)
    assert (state.admits(10.9), state.admits(11.0)) == (False, True)
    state = observe(state, False, 11.0)
    assert (state.admits(12.9), state.admits(13.0)) == (False, True)
    assert observe(state, True, 13.0) == Health()


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 100)), max_size=3000))
def test_a_circuit_opens_after_three_failures_in_a_row_for_at_most_30_seconds(history: list[tuple[bool, float]]):
    state, now, row = Health(), 0.0, 0
    for ok, wait in history:
        now += wait
        state = observe(state, ok, now)
        row = 0 if ok else row + 1
        assert state.admits(now) == (row < 3)
        assert state.admits(now + 30)


def test_a_circuit_that_failed_for_a_week_still_counts():
    state = Health()
    for i in range(5000):
        state = observe(state, False, 31.0 * i)
    assert state.retry_at == 31.0 * 4999 + 30 and state.opened > 1024


def test_backoff_doubles_up_to_a_bound():
    assert [backoff(n) for n in (0, 1, 2, 5, 500)] == [1, 2, 4, 30, 30]


@pytest.mark.parametrize("kind", ["overloaded", "request", "gone", "mismatch"])
def test_what_is_not_the_endpoints_fault(kind: str):
    assert not blames(kind)
    assert all(map(blames, ("unreachable", "died", "stalled", "slow", "garbage")))


@pytest.mark.parametrize(
    ("outcome", "peers", "fault"),
    [
        (ANSWER, PEERS, None),
        (Outcome("garbage", 0.2), PEERS, "garbage"),
        (Outcome("stalled", 0.2, 3, 0.1), PEERS, "stalled"),
        (replace(ANSWER, ttft=0.81), PEERS, "slow"),
        (replace(ANSWER, ttft=0.79), PEERS, None),
        (replace(ANSWER, seconds=4.1), PEERS, "slow"),
        (replace(ANSWER, seconds=3.9), PEERS, None),
        (replace(ANSWER, tokens=1, seconds=9.0), PEERS, None),
        (replace(ANSWER, ttft=9.0), {"b": GOOD}, None),
        (replace(ANSWER, ttft=9.0), {n: replace(v, ttft=5.0) for n, v in PEERS.items()}, None),
    ],
)
def test_gray_failures(outcome: Outcome, peers: dict[str, Vitals], fault: str | None):
    assert examine(GOOD, outcome, peers, 101.0)[1] == fault


def test_an_endpoint_that_was_never_fast_is_not_slow_and_a_new_one_is_not_judged():
    always = replace(GOOD, usual_ttft=2.0, ttft=2.0)
    assert examine(always, replace(ANSWER, ttft=3.0), PEERS, 101.0)[1] is None
    assert examine(replace(GOOD, count=4), replace(ANSWER, ttft=3.0), PEERS, 101.0)[1] is None
    assert examine(Vitals(), replace(ANSWER, ttft=3.0), PEERS, 101.0)[1] is None


def test_short_answers_do_not_make_a_long_one_look_slow():
    vitals = dict.fromkeys("abc", Vitals())
    for _ in range(20):
        for name in vitals:
            peers = {other: seen for other, seen in vitals.items() if other != name}
            vitals[name], fault = examine(vitals[name], Outcome(None, 0.2, 3, 0.001), peers, 100.0)
            assert fault is None
    peers = {"b": vitals["b"], "c": vitals["c"]}
    assert examine(vitals["a"], ANSWER, peers, 101.0)[1] is None


def test_times_are_not_compared_with_those_of_peers_that_rest():
    assert examine(GOOD, replace(ANSWER, ttft=9.0), PEERS, 130.0)[1] == "slow"
    assert examine(GOOD, replace(ANSWER, ttft=9.0), PEERS, 131.0)[1] is None
    assert examine(GOOD, replace(ANSWER, ttft=9.0), PEERS | {"b": replace(GOOD, at=131.0)}, 131.0)[1] is None
    late = replace(GOOD, ttft=2.0)
    assert list(eject(fleet(a=late), {}, 130.0)) == ["a"]
    assert eject(fleet(a=late), {}, 131.0) == {}
    assert list(eject(fleet(a=replace(late, errors=0.5)), {}, 131.0)) == ["a"], "errors are not a matter of load"


def test_slow_requests_do_not_become_usual():
    vitals = GOOD
    for i in range(100):
        peers = {name: replace(peer, at=100.0 + i) for name, peer in PEERS.items()}
        vitals, fault = examine(vitals, replace(ANSWER, ttft=2.0), peers, 101.0 + i)
        assert fault == "slow"
    assert vitals.usual_ttft == 0.2
    assert vitals.errors > 0.99
    assert vitals.ttft == pytest.approx(2.0)


def test_three_slow_answers_open_the_circuit():
    health, vitals = Health(), GOOD
    for i in range(3):
        vitals, fault = examine(vitals, replace(ANSWER, seconds=60.0), PEERS, 101.0 + i)
        health = observe(health, fault is None, 101.0 + i)
    assert not health.admits(103.5)


def test_a_stall_is_8_usual_gaps_and_at_least_a_second():
    assert stall_after(Vitals(), begun=True) == 1.0
    assert stall_after(GOOD, begun=True) == 1.0
    assert stall_after(replace(GOOD, usual_gap=0.5), begun=True) == 4.0
    assert stall_after(GOOD, begun=False) == 5.0
    assert stall_after(replace(GOOD, usual_ttft=3.0), begun=False) == 24.0


def test_before_the_first_token_a_long_prompt_may_take_as_long_as_it_plausibly_does():
    assert stall_after(GOOD, begun=False, unread=100, prefill=0.2) == 5.0
    assert stall_after(GOOD, begun=False, unread=4000) == 80.0, "whatever was foreseen of an engine hardly known"
    assert stall_after(GOOD, begun=False, unread=4000, prefill=30.0) == 240.0
    assert stall_after(replace(GOOD, usual_ttft=40.0), begun=False, unread=4000, prefill=30.0) == 320.0
    assert stall_after(GOOD, begun=True, unread=4000, prefill=30.0) == 1.0, "it is read by then"


def test_probes_go_where_no_traffic_goes():
    assert next_probe(Health(), GOOD, 105.0) == 110.0
    assert next_probe(Health(), GOOD, 200.0) == 200.0
    assert next_probe(Health(3, 1, 230.0), GOOD, 200.0) == 230.0


def fleet(**changes: Vitals) -> dict[str, Vitals]:
    return {name: GOOD for name in "abcdefghij"} | changes


def test_outliers_are_left_out_the_worst_first_and_never_too_many():
    slow, worse = replace(GOOD, ttft=0.7), replace(GOOD, ttft=2.0)
    out = eject(fleet(a=slow, b=replace(GOOD, errors=0.5), c=worse, d=replace(GOOD, ttft=0.8)), {}, 101.0)
    assert list(out) == ["b", "c", "d"]
    assert out["b"] == Ejected(111.0, 1, "50% of requests fail; the median of its peers is 0%")
    assert out["c"].reason == "first token after 2.00 s; the median of its peers is 0.20 s"


@pytest.mark.parametrize(
    "odd", [replace(GOOD, errors=0.19), replace(GOOD, ttft=0.59), replace(GOOD, errors=1.0, count=4), Vitals()]
)
def test_who_is_no_outlier(odd: Vitals):
    assert eject(fleet(a=odd), {}, 101.0) == {}


def test_a_first_token_within_half_a_second_is_never_too_slow():
    quick = {n: replace(GOOD, ttft=0.02, usual_ttft=0.02) for n in "abcdef"}
    late = replace(GOOD, ttft=0.5, usual_ttft=0.02)
    assert eject(quick | {"a": late}, {}, 101.0) == {}
    assert list(eject(quick | {"a": replace(late, ttft=0.51)}, {}, 101.0)) == ["a"]
    assert examine(late, replace(ANSWER, ttft=0.5), quick, 101.0)[1] is None
    assert examine(late, replace(ANSWER, ttft=0.51), quick, 101.0)[1] == "slow"


def test_when_all_fail_nobody_is_an_outlier():
    assert eject({n: replace(GOOD, errors=0.9, ttft=9.0) for n in "abcd"}, {}, 101.0) == {}
    assert eject({"a": replace(GOOD, errors=1.0), "b": GOOD}, {}, 101.0) == {}


def test_who_comes_back_is_judged_by_new_requests_and_stays_out_longer_each_time():
    bad = replace(GOOD, errors=0.9)
    first = eject(fleet(a=bad), {}, 101.0)
    assert eject(fleet(a=bad), first, 112.0) == first, "no request since it came back"
    again = eject(fleet(a=replace(bad, at=112.0)), first, 113.0)
    assert (again["a"].until, again["a"].times) == (133.0, 2)
    assert eject(fleet(), again, 133.0 + DEFAULTS.longest) == {}


class Fleet(RuleBasedStateMachine):
    """Any outcomes at any endpoint: never more than the share is left out, and each comes back."""

    @initialize(size=st.integers(1, 8))
    def start(self, size: int):
        self.now = 0.0
        self.vitals = {f"e{i}": Vitals() for i in range(size)}
        self.out: dict[str, Ejected] = {}

    @rule(
        data=st.data(), times=st.integers(1, 6), fault=st.sampled_from([None, None, "died", "garbage"]),
        ttft=st.sampled_from([None, 0.1, 0.2, 1.0, 9.0]), tokens=st.integers(0, 50), seconds=st.floats(0, 50),
    )  # fmt: skip
    def answers(self, data, times, fault, ttft, tokens, seconds):
        name = data.draw(st.sampled_from(sorted(self.vitals)))
        peers = {n: v for n, v in self.vitals.items() if n != name}
        for _ in range(times):
            self.vitals[name], found = examine(
                self.vitals[name], Outcome(fault, ttft, tokens, seconds), peers, self.now
            )
            assert found == fault or (fault is None and found == "slow")

    @rule(seconds=st.sampled_from([0.5, 9.0, 10.0, 50.0, 400.0]))
    def time_passes(self, seconds: float):
        self.now += seconds

    @rule()
    def look(self):
        before = {n for n, e in self.out.items() if self.now < e.until}
        self.out = eject(self.vitals, self.out, self.now)
        assert before <= {n for n, e in self.out.items() if self.now < e.until}

    @invariant()
    def most_of_the_fleet_stays(self):
        if hasattr(self, "out"):
            gone = [e for e in self.out.values() if self.now < e.until]
            small = len(self.vitals) <= DEFAULTS.peers
            assert len(gone) <= (0 if small else max(1, int(DEFAULTS.share * len(self.vitals))))
            assert all(e.until <= self.now + DEFAULTS.longest for e in gone)

    @invariant()
    def vitals_are_means(self):
        for v in getattr(self, "vitals", {}).values():
            assert 0 <= v.errors <= 1
            assert v.ttft is None or 0.1 <= v.ttft <= 9.0
            assert stall_after(v, begun=True) >= 1.0


TestFleet = Fleet.TestCase
TestFleet.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)

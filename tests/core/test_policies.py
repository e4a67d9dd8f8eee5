"""Baseline policies: each does what its name says, none breaks a filter."""

from __future__ import annotations

import random
from collections import Counter
from math import ceil

import pytest
from fleets import MODEL, NOW, worlds
from hypothesis import given

from atoll.core.policies import POLICIES
from atoll.core.prefix import Memory, blocks
from atoll.core.route import OBJECTIVES, ORDER, Decision, Request, closed, unfit
from atoll.core.types import Price
from atoll.core.view import Spot, View

PROMPT = bytes(range(256)) * 16
ASKED = Request("r", MODEL, prompt=1000, output=100, prompt_bytes=len(PROMPT), blocks=blocks(PROMPT))
BALANCED = OBJECTIVES["balanced"]


def decide(policy: str, request: Request, view: View, memory: Memory | None = None, seed: int = 1) -> Decision:
    return POLICIES[policy](request, view, memory or Memory(), BALANCED, random.Random(seed), NOW)


def three(**given) -> View:
    """near: 10 ms, dear, dirty; middle: 50 ms, cheap; far: 200 ms, clean. Two endpoints each, of four slots."""
    view = View()
    for region, rtt, carbon, price in (("near", 0.01, 700, 9), ("middle", 0.05, 400, 1), ("far", 0.2, 20, 5)):
        view.region(region, "live", carbon, rtt)
        for i in (1, 2):
            view.join(MODEL, Spot(f"{region}{i}", region, price=Price(price, price), slots=4, **given))
    return view


def load(view: View, name: str, requests: int, tokens: int = 0) -> None:
    for _ in range(requests):
        view.begin(MODEL, view.spot(MODEL, name), tokens, NOW)


@pytest.mark.parametrize("policy", POLICIES)
@given(worlds)
def test_filters_are_hard_and_the_order_is_complete(policy: str, world) -> None:
    request, view, memory, objective = world
    everyone = view.groups[MODEL].spots.values() if MODEL in view.groups else []
    fit = {s.name for s in everyone if not (closed(s, request) or unfit(s, request, NOW))}
    decision = POLICIES[policy](request, view, memory, objective, random.Random(7), NOW)
    again = POLICIES[policy](request, view, memory, objective, random.Random(7), NOW)
    assert set(decision.order) <= fit
    assert len(decision.order) == len(set(decision.order)) == min(ORDER, len(fit))
    assert decision == again and decision.policy == policy
    assert decision.reason and all(c.reason for c in decision.candidates())


def test_round_robin_takes_turns() -> None:
    view, memory, seen = three(), Memory(), []
    for _ in range(12):
        decision = decide("round_robin", ASKED, view, memory)
        memory.apply(decision)
        seen.append(decision.chosen)
    assert seen == ["near1", "near2", "middle1", "middle2", "far1", "far2"] * 2


@pytest.mark.parametrize(
    "policy, chosen",
    [("nearest", "near2"), ("cheapest", "middle2"), ("greenest", "far2"), ("least_outstanding", "far2")],
)
def test_the_best_by_one_measure_and_the_idler_of_equals(policy: str, chosen: str) -> None:
    view = three()
    for name in ("near1", "middle1", "far1"):
        load(view, name, 3)
    for name in ("near2", "middle2"):
        load(view, name, 1)
    assert decide(policy, ASKED, view).chosen == chosen


def test_the_cheapest_of_one_price_is_where_electricity_is() -> None:
    view = three()
    for name in ("near1", "near2", "middle1", "middle2", "far1", "far2"):
        view.join(MODEL, Spot(name, name[:-1], price=Price(9, 9), slots=4))
    for region, electricity in (("near", 0.28), ("middle", 0.19), ("far", 0.07)):
        view.region(region, electricity=electricity)
    assert decide("cheapest", ASKED, view).order == ("far1", "far2", "middle1", "middle2", "near1", "near2")


def test_latency_ewma_explores_then_weighs_by_load() -> None:
    view = three()
    for name, seconds in (("near1", 0.1), ("near2", 0.3), ("middle1", 0.2), ("middle2", 0.2), ("far1", 0.4)):
        view.first(view.begin(MODEL, view.spot(MODEL, name), 0, NOW), NOW + seconds)
    assert decide("latency_ewma", ASKED, view).chosen == "far2"
    view.first(view.begin(MODEL, view.spot(MODEL, "far2"), 0, NOW), NOW + 0.4)
    assert decide("latency_ewma", ASKED, view).chosen == "near1"
    load(view, "near1", 3)
    assert decide("latency_ewma", ASKED, view).chosen == "middle1"


def test_bounded_hash_is_sticky_bounded_and_moves_little() -> None:
    view, home = three(), {}
    for i in range(200):
        request = Request(f"r{i}", MODEL, key=f"k{i}")
        home[i] = decide("bounded_hash", request, view).chosen
        assert decide("bounded_hash", request, view).chosen == home[i]
    assert set(home.values()) == set(view.groups[MODEL].spots)
    view.leave(MODEL, "far1")
    moved = [i for i in home if decide("bounded_hash", Request("r", MODEL, key=f"k{i}"), view).chosen != home[i]]
    assert all(home[i] == "far1" for i in moved)
    for n in range(1, 60):
        load(view, decide("bounded_hash", ASKED, view).chosen, 1)
        assert max(s.load for s in view.groups[MODEL].spots.values()) <= ceil(1.25 * n / 5)


def test_prefix_trie_follows_the_cache_until_loads_drift_apart() -> None:
    view, memory = three(), Memory()
    memory.hold(ASKED.blocks, "far2")
    load(view, "far2", 30)
    assert decide("prefix_trie", ASKED, view, memory).chosen == "far2"
    load(view, "far2", 5)
    assert decide("prefix_trie", ASKED, view, memory).chosen == "near1"
    memory.hold(ASKED.blocks[:4], "middle1")
    few = Request("r", MODEL, prompt=1000, prompt_bytes=4096, blocks=ASKED.blocks[:4])
    assert decide("prefix_trie", few, three(), memory).chosen == "near1", "a quarter of the prompt is no good match"


def test_power_of_two_takes_the_idler_of_two() -> None:
    view = three()
    load(view, "near1", 9)
    chosen = Counter(decide("power_of_two", ASKED, view, seed=seed).chosen for seed in range(300))
    assert set(chosen) == set(view.groups[MODEL].spots) - {"near1"}
    assert min(chosen.values()) > 30


def test_selective_push_goes_abroad_only_when_home_has_a_queue_and_the_other_has_none() -> None:
    view, memory = three(), Memory()
    memory.hold(ASKED.blocks, "far1")
    assert decide("selective_push", ASKED, view, memory).chosen == "near1"
    load(view, "near1", 4)
    load(view, "near2", 4)
    assert decide("selective_push", ASKED, view, memory).chosen == "far1"
    view.report(MODEL, "far1", running=2, waiting=1)
    assert decide("selective_push", ASKED, view, memory).chosen == "middle1"
    for name in ("middle1", "middle2", "far2"):
        load(view, name, 4)
    assert decide("selective_push", ASKED, view, memory).chosen == "near1"


def test_gorgo_cost_weighs_distance_against_prefill_and_queued_tokens() -> None:
    view, memory = three(per_token=0.0001), Memory()
    memory.hold(ASKED.blocks, "middle1")
    assert decide("gorgo_cost", ASKED, view, memory).chosen == "middle1"
    load(view, "middle1", 1, tokens=2000)
    assert decide("gorgo_cost", ASKED, view, memory).chosen == "near1"
    load(view, "near1", 1, tokens=3000)
    load(view, "near2", 1, tokens=3000)
    assert decide("gorgo_cost", ASKED, view, memory).chosen == "middle2"

"""Routing: hard filters, the score, bounded affinity, the order. Fleets and histories are drawn by hypothesis."""

from __future__ import annotations

import random
from dataclasses import replace
from math import ceil

import pytest
from fleets import MODEL, NOW, worlds
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.core.health import Health
from atoll.core.prefix import Memory, blocks
from atoll.core.route import OBJECTIVES, ORDER, Decision, Objective, Request, closed, explain, left, route, unfit
from atoll.core.types import Price
from atoll.core.view import Spot, View

FASTEST, BALANCED = OBJECTIVES["fastest"], OBJECTIVES["balanced"]
RNG = random.Random(0)

def decide(request: Request, view: View, memory: Memory | None = None, objective: Objective = FASTEST) -> Decision:
    return route(request, view, memory or Memory(), objective, RNG, NOW)


def even(regions: int, each: int, **given) -> View:
    view = View()
    for r in range(regions):
        view.region(f"r{r}", "live", rtt=0.01)
        for i in range(each):
            view.join(MODEL, Spot(f"r{r}-{i}", f"r{r}", **given))
    return view


@settings(max_examples=300)
@given(worlds)
def test_filters_are_hard_and_the_order_is_complete(world) -> None:
    request, view, memory, objective = world
    decision = decide(request, view, memory, objective)
    everyone = view.groups[MODEL].spots.values() if MODEL in view.groups else []
    fit = {s.name for s in everyone if not (closed(s, request) or unfit(s, request, NOW))}
    assert set(decision.order) <= fit
    assert len(decision.order) == len(set(decision.order)) == min(ORDER, len(fit))
    for name in decision.order:
        spot = view.groups[MODEL].spots[name]
        assert view.places[spot.region].status == "live"
        assert request.allowed is None or spot.region in request.allowed
        assert not {name, spot.region} & request.excluded
        assert request.modalities <= spot.modalities
        assert not spot.context or request.overlong or request.prompt + request.output <= spot.context
        assert not request.digest or spot.digest == request.digest
        assert not spot.limit or spot.outstanding < spot.limit
        assert spot.health.admits(NOW)


@settings(max_examples=300)
@given(worlds)
def test_the_parts_add_up_and_every_loser_has_a_reason(world) -> None:
    request, view, memory, objective = world
    decision, told = explain(request, view, memory, objective, RNG, NOW)
    assert {c.name for c in told} == set(view.groups[MODEL].spots if MODEL in view.groups else ())
    assert all(c.reason for c in told)
    scores = [s[0] for s in decision.ranked]
    assert scores == sorted(scores)
    for c in told:
        if c.score is not None:
            assert c.score == pytest.approx(sum(c.parts.values()))
            assert c.name != decision.chosen or c is told[0]
    assert decision.order or decision.reason.startswith("no endpoint")


@given(worlds)
def test_same_inputs_same_decision_and_nothing_is_changed(world) -> None:
    request, view, memory, objective = world
    entries = dict(memory.entries)
    first, second = decide(request, view, memory, objective), decide(request, view, memory, objective)
    assert first == second and first.candidates() == second.candidates()
    assert dict(memory.entries) == entries


@pytest.mark.parametrize("raise_it", ["rtt", "carbon", "electricity", "price", "wait", "load"])
@given(rng=st.randoms(use_true_random=False), n=st.integers(2, 10))
def test_worse_is_never_better(raise_it: str, rng: random.Random, n: int) -> None:
    """Raising one cost of one endpoint never moves it up, and never moves others down."""
    objective = Objective("all", seconds_per_dollar=1e3, seconds_per_gram=10, seconds_per_load=0.2)
    request = Request("r", MODEL, prompt=800, output=100)
    view = View()
    for i in range(n):
        view.region(f"r{i}", "live", carbon=rng.uniform(1, 900), rtt=rng.uniform(0, 0.3))
        price = Price(rng.randrange(1000), rng.randrange(1000))
        view.join(MODEL, Spot(f"e{i}", f"r{i}", price=price, slots=4, outstanding=rng.randrange(6)))
    before = decide(request, view, objective=objective)
    victim = view.groups[MODEL].spots[f"e{rng.randrange(n)}"]
    was = next(s[0] for s in before.ranked if s[2] is victim)
    if raise_it == "rtt":
        view.region(victim.region, rtt=victim.place.rtt + 0.1)
    elif raise_it == "carbon":
        view.region(victim.region, carbon=victim.place.carbon + 100)
    elif raise_it == "electricity":
        view.region(victim.region, electricity=victim.place.electricity + 0.1)
    elif raise_it == "price":
        view.join(MODEL, replace(victim, price=Price(victim.price.input + 500, victim.price.output), shelf=None))
    elif raise_it == "wait":
        view.begin(MODEL, victim, 50_000, NOW)
    else:
        view.report(MODEL, victim.name, running=victim.outstanding + 8, waiting=0)
    after = decide(request, view, objective=objective)
    assert next(s[0] for s in after.ranked if s[2].name == victim.name) > was
    others = [name for name in before.order if name != victim.name]
    assert [name for name in after.order if name in others] == [name for name in others if name in after.order]
    if victim.name in after.order:
        assert victim.name in before.order
        assert after.order.index(victim.name) >= before.order.index(victim.name)


def test_a_cached_prefix_wins_over_distance_when_prefill_costs_more() -> None:
    view, memory = View(), Memory()
    view.region("near", "live", rtt=0.001)
    view.region("far", "live", rtt=0.2)
    view.join(MODEL, Spot("n", "near", per_token=1 / 1000))
    view.join(MODEL, Spot("f", "far", per_token=1 / 1000))
    prompt = b"once upon a time " * 1000
    memory.hold(blocks(prompt), "f")
    long = Request("r", MODEL, prompt=4000, prompt_bytes=len(prompt), blocks=blocks(prompt))
    decision = decide(long, view, memory)
    assert decision.chosen == "f" and decision.cached > 3500 and decision.region == "far"
    short = Request("r", MODEL, prompt=100, prompt_bytes=400, blocks=blocks(prompt[:400]))
    assert decide(short, view, memory).chosen == "n"


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 8), st.integers(1, 3), st.sampled_from([1.0, 1.25, 2.0]),
    st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=250),
)  # fmt: skip
def test_affinity_cannot_herd(regions, each, slots, c, history) -> None:
    """Equal endpoints, any mix of hot prompts, requests that end in any order: a request sent where its prefix is found
    a free slot there, or leaves the endpoint with at most ceil(c x its share of the load)."""
    view, memory = even(regions, each, slots=slots, per_token=0.01), Memory()
    objective, under_way = Objective("fastest", bound=c), []
    for step, (hot, ends) in enumerate(history):
        prompt = bytes([hot]) * 4096
        request = Request(str(step), MODEL, prompt=1000, prompt_bytes=4096, blocks=blocks(prompt))
        decision = decide(request, view, memory, objective)
        assert decision.chosen
        memory.apply(decision)
        spot = view.spot(MODEL, decision.chosen)
        under_way.append(view.begin(MODEL, spot, 1000 - decision.cached, NOW + step))
        if decision.cached:
            total = sum(s.load for s in view.groups[MODEL].spots.values())
            assert spot.load <= max(slots, ceil(c * total / (regions * each)))
        if ends:
            ticket = under_way.pop(hot % len(under_way))
            view.finish(ticket, NOW + step)


def test_one_hot_prompt_alone_is_spread_as_evenly_as_the_bound_says() -> None:
    view, memory = even(4, 8, slots=4, per_token=0.01), Memory()
    hot = blocks(b"x" * 8192)
    for i in range(640):
        decision = decide(Request(str(i), MODEL, prompt=2000, prompt_bytes=8192, blocks=hot), view, memory)
        memory.apply(decision)
        view.begin(MODEL, view.spot(MODEL, decision.chosen), 2000 - decision.cached, NOW)
    loads = [s.load for s in view.groups[MODEL].spots.values()]
    assert sum(loads) == 640 and max(loads) <= ceil(1.25 * 640 / 32)


def test_of_equal_prices_the_region_with_cheap_electricity_wins_and_is_explained() -> None:
    view = even(3, 1, price=Price(10, 40), joules=2.0)
    for region, electricity in (("r0", 0.28), ("r1", 0.07), ("r2", 0.19)):
        view.region(region, electricity=electricity)
    request, objective = Request("r", MODEL, prompt=1000, output=800), Objective("o", seconds_per_dollar=3.6e6)
    assert decide(request, view).chosen == "r0-0"
    decision, told = explain(request, view, Memory(), objective, RNG, NOW)
    assert decision.order == ("r1-0", "r2-0", "r0-0") and "energy 252" in decision.reason
    parts = {c.name: c.parts for c in told}
    assert [parts[name]["energy"] for name in decision.order] == pytest.approx([252, 684, 1008])
    assert len({p["price"] for p in parts.values()}) == 1


def test_an_open_circuit_lets_one_attempt_through() -> None:
    view = even(1, 2)
    view.health(MODEL, "r0-0", Health(3, 1, NOW - 1))
    request = Request("r", MODEL)
    assert decide(request, view).chosen == "r0-0"
    ticket = view.begin(MODEL, view.spot(MODEL, "r0-0"), 0, NOW)
    assert decide(request, view).order == ("r0-1",)
    view.finish(ticket, NOW, ok=True)
    assert set(decide(request, view).order) == {"r0-0", "r0-1"}
    assert view.groups[MODEL].sick == {}


def test_why_there_is_no_endpoint() -> None:
    assert "none has joined" in decide(Request("r", MODEL), View()).reason
    view = even(2, 1, limit=1)
    held = [view.begin(MODEL, spot, 0, NOW) for spot in view.groups[MODEL].spots.values()]
    assert [why for _, _, why in decide(Request("r", MODEL), view).lost] == ["full: 1 of 1 requests"] * 2
    view.finish(held[0], NOW)
    assert decide(Request("r", MODEL, allowed=frozenset({"r1"})), view).reason == (
        "no endpoint: r0: residency: region not allowed; r1-0: full: 1 of 1 requests"
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("bbfxhrjl"), st.integers(0, 7), st.integers(0, 3)), max_size=120))
def test_the_view_keeps_its_books(steps) -> None:
    """After any history, shelves agree with a count from scratch, and the head has the least load of its shelf."""
    view, tickets, now = even(2, 4, slots=2), [], NOW
    for what, i, n in steps:
        now += 0.25
        spot = view.spot(MODEL, f"r{i // 4}-{i % 4}")
        if what == "b" and spot:
            tickets.append(view.begin(MODEL, spot, 100 * n, now))
        elif what == "f" and tickets:
            view.first(tickets[i % len(tickets)], now)
        elif what == "x" and tickets:
            view.finish(tickets.pop(i % len(tickets)), now, output=10 * n, ok=(True, False, None, True)[n])
        elif what == "h" and spot:
            view.health(MODEL, spot.name, Health(3, n, now + n))
        elif what == "r" and spot:
            view.report(MODEL, spot.name, running=n, waiting=i)
        elif what == "j":
            view.join(MODEL, Spot(f"r{i // 4}-{i % 4}", f"r{i // 4}", slots=2))
        elif what == "l":
            view.leave(MODEL, f"r{i // 4}-{i % 4}")
        group = view.groups[MODEL]
        shelved = {}
        for shelf in group.shelves.values():
            here = [s for level in shelf.levels for s in level.values()]
            assert all(shelf.levels[s.load][s.name] is s and s.key() == shelf.key for s in here)
            assert (shelf.spots, shelf.load, shelf.slots) == (len(here), sum(s.load for s in here), 2 * len(here))
            assert shelf.head.load == min(s.load for s in here)
            shelved |= {s.name: s for s in here}
        assert shelved | group.sick == group.spots and not set(shelved) & set(group.sick)
        assert len(group.ring) == 8 * len(group.spots) and group.ring == sorted(group.ring)
        assert all(s.outstanding >= 0 and s.backlog >= 0 for s in group.spots.values())
    for ticket in tickets:
        view.finish(ticket, now)
    assert all(s.outstanding == 0 and s.backlog == 0 for s in view.groups[MODEL].spots.values())


def test_the_view_learns_how_fast_an_endpoint_is() -> None:
    view, rng, now = even(1, 1, per_token=0.001), random.Random(3), NOW
    spot = view.spot(MODEL, "r0-0")
    for _ in range(400):
        tokens = rng.randrange(10, 4000)
        ticket = view.begin(MODEL, spot, tokens, now)
        view.first(ticket, now + 0.01 + 0.08 + tokens * 0.0002)
        view.finish(ticket, now + 5, output=100, ok=True)
        now += 6
    assert spot.per_token == pytest.approx(0.0002, rel=0.05)
    assert spot.base == pytest.approx(0.08, rel=0.1)
    assert spot.wait == pytest.approx(0.08, rel=0.1)


def test_an_endpoint_whose_cache_forgets_is_believed_less() -> None:
    view, memory = even(1, 1, per_token=0.001), Memory()
    view.join(MODEL, Spot("other", "r0", per_token=0.001))
    prompt = b"x" * 4096
    memory.hold(blocks(prompt), "r0-0")
    request = Request("r", MODEL, prompt=1000, prompt_bytes=4096, blocks=blocks(prompt))
    assert decide(request, view, memory).cached == 999
    for told in (0, 0, 0, 999):
        spot = view.spot(MODEL, "r0-0")
        ticket = view.begin(MODEL, spot, 1, NOW, cached=999)
        view.first(ticket, NOW + 1)
        view.finish(ticket, NOW + 2, output=9, ok=True, cached=told)
    trust = view.spot(MODEL, "r0-0").trust
    assert trust == pytest.approx(0.8**3 + 0.2 * (1 - 0.8**3))
    assert {s[2].name: s[3] for s in decide(request, view, memory).ranked} == {"r0-0": int(999 * trust), "other": 0}


def test_an_endpoint_that_was_slow_is_tried_again_after_a_while() -> None:
    view = even(1, 2)
    slow = view.spot(MODEL, "r0-0")
    ticket = view.begin(MODEL, slow, 100, NOW)
    view.first(ticket, NOW + 20)
    view.finish(ticket, NOW + 21, output=10, ok=True)
    request, asked = Request("r", MODEL, prompt=100), 0
    assert decide(request, view).chosen == "r0-1"
    quick = view.begin(MODEL, view.spot(MODEL, "r0-1"), 100, NOW)
    view.first(quick, NOW + 0.5)
    view.finish(quick, NOW + 1, output=10, ok=True)
    while decide(request, view).chosen == "r0-1" and asked < 50:
        asked += 1
        view.forgive(NOW + 21 + 5 * asked, after=30)
        view.spot(MODEL, "r0-1").seen_at = NOW + 21 + 5 * asked
    assert 6 < asked < 20


@pytest.mark.parametrize(
    ("allowed", "dead", "status", "hoping", "now"),
    [
        (None, (), "live", "same", "same"),
        (None, ("same",), "live", "same", "other"),
        (None, ("other",), "live", "same", "same"),
        (None, ("same", "other"), "live", "same", "same"),
        (None, (), "draining", "other", "other"),
        ({"other"}, (), "live", "other", "other"),
        ({"other"}, ("other",), "live", "other", "other"),
        ({"same"}, ("same",), "live", "same", "same"),
        ({"same"}, (), "draining", "same", "none"),
        ({"elsewhere"}, (), "live", "same", "none"),
    ],
)
def test_what_is_left_for_a_broken_answer(allowed, dead: tuple[str, ...], status, hoping: str, now: str) -> None:
    """Each region is named after its weights; the answer began with `same`, whose region has this status."""
    view = View()
    for name in ("same", "other"):
        view.region(name, status if name == "same" else "live")
        view.join(MODEL, Spot(name, name, digest=name))
    for name in dead:
        view.health(MODEL, name, Health(3, 1, NOW + 1))
    request = Request("", MODEL, allowed=allowed, digest="same", excluded=frozenset({"same"}))
    assert (left(request, view, NOW, True), left(request, view, NOW, False)) == (hoping, now)
    assert left(request._replace(model="another"), view, NOW, False) == "same"


def test_weights_that_have_left_the_fleet_are_hoped_for() -> None:
    view = View()
    view.region("other", "live")
    view.join(MODEL, Spot("other", "other", digest="other"))
    request = Request("", MODEL, digest="same")
    assert (left(request, view, NOW, True), left(request, view, NOW, False)) == ("same", "other")

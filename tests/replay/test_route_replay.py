"""Recorded decisions give the same decision again, byte for byte, from nothing but their line."""

from __future__ import annotations

import json
import random

import pytest
from fleets import MODEL, NOW, worlds
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.core.errors import InvalidRequest
from atoll.core.policies import POLICIES
from atoll.core.prefix import Memory, blocks
from atoll.core.replay import record, replay
from atoll.core.route import OBJECTIVES, Request
from atoll.core.types import Price
from atoll.core.view import Spot, View


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=150)
@given(worlds, st.integers(0, 2**31))
def test_any_decision_replays(policy: str, world, seed: int) -> None:
    request, view, memory, objective = world
    decision = POLICIES[policy](request, view, memory, objective, random.Random(seed), NOW)
    line = record(request, view, memory, objective, seed, NOW, decision)
    assert line.endswith(b"\n") and line.count(b"\n") == 1
    [(number, expected, got)] = replay([line], random.Random)
    assert number == 1 and got == expected


def history(policy: str, requests: int, seed: int) -> list[bytes]:
    """A log of decisions over a fleet that is used, learns, breaks and heals."""
    rng, view, memory, lines, under_way = random.Random(seed), View(), Memory(500), [], []
    for r in range(9):
        view.region(f"r{r}", "live", carbon=rng.uniform(20, 800), rtt=rng.uniform(0.001, 0.2))
        for i in range(rng.randrange(1, 9)):
            spot = Spot(f"r{r}-{i}", f"r{r}", slots=2, limit=6, price=Price(r * 10, 40), per_token=0.0005)
            view.join(MODEL, spot)
    prompts = [rng.randbytes(3000) for _ in range(12)]
    for n in range(requests):
        now = NOW + n * 0.05
        prompt = rng.choice(prompts)[: rng.randrange(200, 3000)] + rng.randbytes(rng.randrange(600))
        request = Request(
            f"q{n}", MODEL, prompt=len(prompt) // 4, output=100, prompt_bytes=len(prompt), blocks=blocks(prompt, MODEL),
            allowed=rng.choice([None, frozenset({"r0", "r1", "r2"})]),
        )  # fmt: skip
        objective = OBJECTIVES[rng.choice(list(OBJECTIVES))]
        decision = POLICIES[policy](request, view, memory, objective, random.Random(n), now)
        lines.append(record(request, view, memory, objective, n, now, decision))
        memory.apply(decision)
        if decision.chosen:
            spot = view.spot(MODEL, decision.chosen)
            under_way.append(view.begin(MODEL, spot, request.prompt - decision.cached, now))
        while len(under_way) > 60 or (under_way and rng.random() < 0.45):
            ticket = under_way.pop(rng.randrange(len(under_way)))
            view.first(ticket, now)
            view.finish(ticket, now + 0.01, output=50, ok=rng.random() < 0.85)
        if n % 50 == 0:
            view.region(f"r{rng.randrange(9)}", rng.choice(["live", "draining"]))
    return lines


@pytest.mark.parametrize("policy", POLICIES)
def test_a_whole_history_replays(policy: str) -> None:
    lines = history(policy, 400, seed=11)
    replayed = list(replay(lines, random.Random))
    assert [n for n, _, _ in replayed] == list(range(1, 401))
    assert all(expected == got for _, expected, got in replayed)
    assert len({json.loads(expected)["region"] for _, expected, _ in replayed}) > 1


def test_a_record_of_route_is_small_though_the_fleet_is_not() -> None:
    view = View()
    for r in range(29):
        view.region(f"r{r}", "live", rtt=r / 100)
        for i in range(64):
            view.join(MODEL, Spot(f"r{r}-{i}", f"r{r}"))
    request, objective = Request("q", MODEL, prompt=100), OBJECTIVES["balanced"]
    decision = POLICIES["atoll"](request, view, Memory(), objective, random.Random(0), NOW)
    assert len(record(request, view, Memory(), objective, 0, NOW, decision)) < 12_000


def test_a_changed_decision_is_found() -> None:
    line = json.loads(history("atoll", 1, seed=3)[0])
    line["decision"]["order"].reverse()
    [(_, expected, got)] = replay([json.dumps(line).encode()], random.Random)
    assert expected != got


@pytest.mark.parametrize(
    "line, message",
    [
        (b"nonsense", "line 2: not a recorded decision"),
        (b"[]", "line 2: not a recorded decision"),
        (b'{"v": 2}', "line 2: not a recorded decision"),
        (b'{"v": 99}', "line 2: version 99; this replays version 2"),
    ],
)
def test_a_bad_line_is_named(line: bytes, message: str) -> None:
    good = history("atoll", 1, seed=3)[0]
    replayed = replay([good, line], random.Random)
    next(replayed)
    with pytest.raises(InvalidRequest, match=message):
        next(replayed)

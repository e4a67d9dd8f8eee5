"""Hypothesis strategies of routing: requests, fleets, memories and objectives that fit together."""

from __future__ import annotations

from hypothesis import strategies as st

from atoll.core.health import Health
from atoll.core.prefix import Memory, blocks
from atoll.core.route import OBJECTIVES, Request
from atoll.core.types import Price
from atoll.core.view import Spot, View

MODEL, NOW = "talker", 100.0

spots = st.builds(
    Spot,
    name=st.just(""),
    region=st.sampled_from(["fra", "par", "iad", "sgp"]),
    limit=st.sampled_from([0, 0, 2]),
    slots=st.integers(1, 4),
    context=st.sampled_from([0, 1000, 8000]),
    modalities=st.sampled_from([frozenset({"text"}), frozenset({"text", "image"})]),
    price=st.builds(Price, st.integers(0, 500), st.integers(0, 500), st.integers(0, 50)),
    digest=st.sampled_from(["d1", "d1", "d2"]),
    per_token=st.floats(1e-5, 1e-2),
    hold=st.floats(0.1, 5),
    health=st.sampled_from([Health(), Health(), Health(3, 1, NOW - 1), Health(3, 1, NOW + 9)]),
    outstanding=st.integers(0, 3),
    backlog=st.integers(0, 3000),
)
prompts = st.tuples(st.integers(0, 2), st.integers(0, 1)).map(
    lambda ij: bytes([ij[0]]) * (750 * ij[0]) + bytes(500 * ij[1])
)
requests = st.builds(
    lambda text, **rest: Request("r", MODEL, blocks=blocks(text), prompt_bytes=len(text), **rest),
    prompts,
    prompt=st.integers(0, 3000),
    output=st.integers(1, 500),
    modalities=st.sampled_from([frozenset({"text"}), frozenset({"text", "image"})]),
    rtts=st.none() | st.dictionaries(st.sampled_from(["fra", "par", "iad"]), st.floats(0, 0.5)),
    allowed=st.none() | st.frozensets(st.sampled_from(["fra", "par", "iad"])),
    excluded=st.frozensets(st.sampled_from(["e0", "e1", "sgp"])),
    digest=st.sampled_from(["", "", "d1"]),
    overlong=st.sampled_from([False, False, True]),
)


@st.composite
def fleets(draw: st.DrawFn) -> View:
    view = View()
    for id in ("fra", "par", "iad", "sgp"):
        status = draw(st.sampled_from(["live", "live", "live", "draining"]))
        view.region(id, status, draw(st.floats(0, 900)), draw(st.floats(0, 0.3)), draw(st.floats(0, 0.5)))
    for i, spot in enumerate(draw(st.lists(spots, max_size=24))):
        spot.name = f"e{i}"
        view.join(MODEL, spot)
    return view


@st.composite
def memories(draw: st.DrawFn) -> Memory:
    memory = Memory()
    for prompt, i in draw(st.lists(st.tuples(prompts, st.integers(0, 23)), max_size=6)):
        memory.hold(blocks(prompt), f"e{i}")
    return memory


objectives = st.sampled_from(list(OBJECTIVES.values()))
worlds = st.tuples(requests, fleets(), memories(), objectives)

"""Prefix hashes, and the memory of who holds what."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.core.prefix import HOLDERS, OFFSETS, Memory, blocks
from atoll.core.route import OBJECTIVES, Request, route
from atoll.core.view import Spot, View

REST = OBJECTIVES["fastest"], Random(0), 0.0


@given(st.integers(0, 3_000_000))
def test_one_hash_for_each_cut_within_the_prompt(size: int) -> None:
    assert len(OFFSETS) == 64 and list(OFFSETS) == sorted(set(OFFSETS))
    assert OFFSETS[:16] == tuple(range(256, 4097, 256)) and OFFSETS[-1] == 1 << 20
    assert all(b / a < 1.125 for a, b in pairwise(OFFSETS[15:]))
    assert len(blocks(bytes(size))) == sum(cut <= size for cut in OFFSETS)


@given(st.binary(max_size=3000), st.binary(max_size=3000), st.binary(max_size=3000))
def test_prompts_share_hashes_as_far_as_they_are_equal(common: bytes, a: bytes, b: bytes) -> None:
    common, a, b = common * 3, b"a" + a * 2, b"b" + b * 2
    shared = sum(cut <= len(common) for cut in OFFSETS)
    first, second = blocks(common + a), blocks(common + b)
    assert first[:shared] == second[:shared] == blocks(common)
    assert not set(first[shared:]) & set(second[shared:])
    assert first == blocks(common + a)


def test_what_must_not_be_mixed_is_salted() -> None:
    assert not set(blocks(bytes(4096), "one")) & set(blocks(bytes(4096), "two"))


def test_the_longest_holders_come_first() -> None:
    memory, prompt = Memory(), bytes(range(256)) * 8
    memory.hold(blocks(prompt[:512]), "short")
    memory.hold(blocks(prompt), "long")
    assert memory.holders(blocks(prompt)) == {"long": 8, "short": 2}
    assert memory.holders(blocks(prompt[:1024])) == {"long": 4, "short": 2}
    assert memory.holders(blocks(b"?" * 2048)) == {}


def test_the_newest_four_holders_are_kept() -> None:
    memory, hashes = Memory(), blocks(bytes(1024))
    for i in range(9):
        memory.hold(hashes, f"e{i}")
    assert list(memory.holders(hashes)) == ["e8", "e7", "e6", "e5"]
    memory.hold(hashes, "e6")
    assert list(memory.holders(hashes)) == ["e6", "e8", "e7", "e5"]
    memory.forget("e6")
    assert list(memory.holders(hashes)) == ["e8", "e7", "e5"]


@settings(max_examples=50)
@given(
    st.integers(1, 40),
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 12), st.booleans()), max_size=80),
)
def test_bounded_and_least_recently_used(capacity: int, history) -> None:
    """Against a plain model: a list of keys by last use."""
    memory, model, names = Memory(capacity), {}, {}
    for prompt, name, length, forget in history:
        if forget:
            memory.forget(f"e{name}")
            names = {k: [n for n in v if n != f"e{name}"] for k, v in names.items()}
            names = {k: v for k, v in names.items() if v}
            model = {k: None for k in model if k in names}
        hashes = blocks(bytes([prompt]) * 256 * length)
        memory.hold(hashes, f"e{name}")
        for key in reversed(hashes):
            model.pop(key, None)
            model[key] = None
            names[key] = [f"e{name}", *[n for n in names.get(key, []) if n != f"e{name}"]][:HOLDERS]
        for key in list(model)[: max(0, len(model) - capacity)]:
            del model[key], names[key]
        assert len(memory.entries) <= capacity
        assert {k: list(v) for k, v in memory.entries.items()} == names
        assert list(memory.entries) == list(model)


def test_memory_applies_what_a_decision_leaves_behind() -> None:
    view, memory, prompt = View(), Memory(), bytes(2048)
    for name in ("a", "b"):
        view.join("m", Spot(name, name))
    request = Request("r", "m", prompt=500, prompt_bytes=2048, blocks=blocks(prompt))
    decision = route(request, view, memory, *REST)
    memory.apply(decision)
    assert memory.holders(request.blocks) == {"a": 8} and memory.turns == {"m": 1}
    memory.apply(decision, served="b")
    assert list(memory.holders(request.blocks)) == ["b", "a"]
    memory.apply(route(Request("r", "unknown"), view, memory, *REST))
    assert len(memory.entries) == 8


def test_bytes_per_entry_is_what_python_allocates() -> None:
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        memory = Memory()
        for i in range(2500):
            memory.hold(blocks(i.to_bytes(4, "big") * 512), f"e{i % 50}")
            if i % 3 == 0:
                memory.hold(blocks(i.to_bytes(4, "big") * 512), f"e{i % 49}")
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(memory.entries) == 20_000
    assert memory.bytes_per_entry() == pytest.approx((after - before) / 20_000, rel=0.15)

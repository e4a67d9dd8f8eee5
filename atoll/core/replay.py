"""Recorded decisions, and the proof that the same inputs give the same decision again, byte for byte.

A record is one line of JSON: the request, the objective, the seed, the time, the part of the view and of the memory
that the decision read, and the decision. For `route` that part is small (nominees, holders, endpoints passed over); the
other policies read every endpoint of the card, so their records hold every endpoint.
Take a record before the view and the memory are changed by what was decided.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from typing import Any

from atoll.core.errors import InvalidRequest
from atoll.core.health import Health
from atoll.core.policies import POLICIES
from atoll.core.prefix import Memory
from atoll.core.route import Decision, Objective, Request, Rng
from atoll.core.types import Price
from atoll.core.view import Group, Spot, View

VERSION = 2
STATE = (
    "name", "region", "limit", "slots", "context", "digest", "joules", "base", "per_token", "decode", "hold", "ttft",
    "trust", "outstanding", "others", "queued", "backlog", "seq", "speed",
)  # fmt: skip

Dice = Callable[[int], Rng]


def record(
    request: Request, view: View, memory: Memory, objective: Objective, seed: int, now: float, decision: Decision
) -> bytes:
    """One line, newline included. `seed` is what the policy's `rng` was made from; 0 where it takes no chance."""
    group = view.groups.get(request.model, Group())
    read = _read(group, decision)
    shelves = group.shelves.values()
    standing = [s for shelf in shelves for level in shelf.levels for s in level.values() if s.name in read]
    spots = [*standing, *(s for s in group.sick.values() if s.name in read)]
    places = {s.region: s.place for s in spots}
    held = memory.holders(request.blocks)
    line = {
        "v": VERSION,
        "request": {name: _plain(value) for name, value in request._asdict().items()},
        "objective": asdict(objective),
        "seed": seed,
        "now": now,
        "turn": memory.turns.get(request.model, 0),
        "held": list(held.items()),
        "places": [[p.id, p.status, p.carbon, p.rtt, p.electricity] for p in places.values()],
        "shelves": [[shelf.load, shelf.slots, shelf.spots] for shelf in shelves],
        "spots": [_spot(s) for s in spots],
        "decision": told(decision),
    }
    return _json(line) + b"\n"


def told(decision: Decision) -> dict[str, Any]:
    """A decision as plain JSON values."""
    return {
        "policy": decision.policy,
        "order": decision.order,
        "region": decision.region,
        "cached": decision.cached,
        "remember": decision.remember,
        "ranked": [[s[2].name, s[0], *s[3:]] for s in decision.ranked],
        "lost": sorted(decision.lost),
        "spilled": decision.spilled,
    }


def replay(lines: Iterable[bytes], dice: Dice) -> Iterator[tuple[int, bytes, bytes]]:
    """(line number from 1, decision as recorded, decision as it is now), both canonical JSON. `dice` makes an rng of a
    seed. Raises InvalidRequest naming the line and what is wrong with it."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
            if data["v"] != VERSION:
                raise InvalidRequest(f"line {number}: version {data['v']}; this replays version {VERSION}", param="v")
            expected = _json(data["decision"])
            decide = POLICIES[data["decision"]["policy"]]
            request = _request(data["request"])
            arguments = request, _view(data), _memory(data, request), Objective(**data["objective"])
            got = _json(told(decide(*arguments, dice(data["seed"]), data["now"])))
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise InvalidRequest(f"line {number}: not a recorded decision ({error!r})") from error
        yield number, expected, got


def _read(group: Group, decision: Decision) -> set[str]:
    """The names of the endpoints that the decision read."""
    if decision.policy != "atoll":
        return set(group.spots)
    heads = {shelf.head.name for shelf in group.shelves.values()}
    return heads | {s[2].name for s in decision.ranked} | {name for name, _, _ in decision.lost if name}


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def _plain(value: object) -> object:
    if isinstance(value, frozenset):
        return sorted(value)
    return dict(value) if hasattr(value, "items") else value


def _spot(spot: Spot) -> list[Any]:
    health, price = spot.health, spot.price
    state = [getattr(spot, name) for name in STATE]
    return [
        *state, sorted(spot.modalities), [price.input, price.output, price.cached],
        [health.failures, health.opened, health.retry_at],
    ]  # fmt: skip


def _request(data: dict[str, Any]) -> Request:
    sets = {
        name: None if data[name] is None else frozenset(data[name]) for name in ("modalities", "allowed", "excluded")
    }
    return Request(**{**data, **sets, "blocks": tuple(data["blocks"])})


def _view(data: dict[str, Any]) -> View:
    view = View()
    for place in data["places"]:
        view.region(*place)
    model = data["request"]["model"]
    for *state, modalities, price, health in data["spots"]:
        spot = Spot(
            **dict(zip(STATE, state, strict=True)),
            modalities=frozenset(modalities), price=Price(*price), health=Health(*health),
        )  # fmt: skip
        view.join(model, spot)
    group = view.groups.setdefault(model, Group())
    group.spots = dict(sorted(group.spots.items(), key=lambda named: named[1].seq))
    for shelf, (load, slots, spots) in zip(group.shelves.values(), data["shelves"], strict=True):
        shelf.load, shelf.slots, shelf.spots = load, slots, spots
    return view


def _memory(data: dict[str, Any], request: Request) -> Memory:
    memory = Memory()
    memory.turns[request.model] = data["turn"]
    by_depth: dict[int, list[str]] = {}
    for name, depth in data["held"]:
        by_depth.setdefault(depth, []).append(name)
    memory.entries.update({request.blocks[depth - 1]: tuple(names) for depth, names in by_depth.items()})
    return memory

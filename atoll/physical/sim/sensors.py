"""Sensors as they are: noisy, biased, late, coarse. Each function makes one for `Task.sensors`, which apply in order.

Observations are named as in the task. All chance comes from each simulation's own generator.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from atoll.core.errors import InvalidRequest
from atoll.physical.sim.sim import Sim
from atoll.physical.sim.task import Array, Sensor

Memory = dict[str, Array]


def noise(std: Mapping[str, float]) -> Sensor:
    """Gaussian noise, anew in each step. `std` is by observation, in its unit."""

    def sensor(sim: Sim, seen: Array, begun: Array | None, own: Memory) -> Array:
        drawn = _normal(sim, _ids(sim, begun), sum(_size(sim, name) for name in std))
        for name, values in _split(sim, drawn, list(std)):
            seen[:, sim.observed[name]] += std[name] * values
        return seen

    return sensor


def bias(std: Mapping[str, float]) -> Sensor:
    """An offset that stays through an episode, normally distributed over episodes."""

    def sensor(sim: Sim, seen: Array, begun: Array | None, own: Memory) -> Array:
        size, ids = sum(_size(sim, name) for name in std), _ids(sim, begun)
        offset = own.setdefault("offset", np.zeros((sim.n, size)))
        if begun is not None:
            offset[begun] = _normal(sim, begun, size)
        for name, values in _split(sim, offset[ids], list(std)):
            seen[:, sim.observed[name]] += std[name] * values
        return seen

    return sensor


def delay(low: int, high: int, *names: str) -> Sensor:
    """Observations as they were `low`..`high` steps ago, drawn for each episode; before its first, as at the first.
    Without names, all of them."""
    if not 0 <= low <= high <= 1000:
        raise InvalidRequest(f"a delay must be 0 <= low <= high <= 1000 steps, not {low}..{high}", param="low")

    def sensor(sim: Sim, seen: Array, begun: Array | None, own: Memory) -> Array:
        ids = _ids(sim, begun)
        past = own.setdefault("past", np.zeros((sim.n, high + 1, seen.shape[1]), seen.dtype))
        late = own.setdefault("late", np.zeros(sim.n, np.int64))
        if begun is None:
            past[:, 1:], past[:, 0] = past[:, :-1].copy(), seen
        else:
            past[begun] = seen[:, None]
            late[begun] = [sim.rng[i].integers(low, high + 1) for i in begun.tolist()]
        for name in names or sim.observed:
            seen[:, sim.observed[name]] = past[ids, late[ids], sim.observed[name]]
        return seen

    return sensor


def dropout(probability: float, *names: str) -> Sensor:
    """Each of the named observations (without names, each) is lost with `probability`: the last one stays."""
    if not 0 <= probability < 1:
        raise InvalidRequest(f"the probability must be 0 <= p < 1, not {probability}", param="probability")

    def sensor(sim: Sim, seen: Array, begun: Array | None, own: Memory) -> Array:
        last, lossy = own.setdefault("last", np.zeros((sim.n, seen.shape[1]), seen.dtype)), names or tuple(sim.observed)
        if begun is None:
            lost = np.stack([rng.random(len(lossy)) < probability for rng in sim.rng])
            for k, name in enumerate(lossy):
                part = sim.observed[name]
                seen[:, part] = np.where(lost[:, k, None], last[:, part], seen[:, part])
        last[_ids(sim, begun)] = seen
        return seen

    return sensor


def resolution(step: Mapping[str, float]) -> Sensor:
    """Readings come in multiples of `step`, as from an encoder."""

    def sensor(sim: Sim, seen: Array, begun: Array | None, own: Memory) -> Array:
        for name, size in step.items():
            part = sim.observed[name]
            seen[:, part] = np.round(seen[:, part] / size) * size
        return seen

    return sensor


def _ids(sim: Sim, begun: Array | None) -> Array:
    return sim.all if begun is None else begun


def _size(sim: Sim, name: str) -> int:
    return sim.observed[name].stop - sim.observed[name].start


def _normal(sim: Sim, ids: Array, size: int) -> Array:
    return np.stack([sim.rng[i].standard_normal(size) for i in ids.tolist()])


def _split(sim: Sim, values: Array, names: list[str]) -> list[tuple[str, Array]]:
    ends = np.cumsum([_size(sim, name) for name in names])[:-1]
    return list(zip(names, np.split(values, ends, axis=1), strict=True))

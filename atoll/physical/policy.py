"""Policies as folders: `policy.json` (a Manifest) and `weights.safetensors`, loaded only where digests and spec hold.

A kind of policy is a class with `manifest`, `weights()` and `act`; KINDS maps its name to what rebuilds it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from atoll.core.errors import InvalidRequest, NotFound, SetupError
from atoll.core.manifest import ActionLimits, Channel, Manifest, PolicyKind
from atoll.core.session import rules_of

if TYPE_CHECKING:
    from atoll.physical.sim.sim import Sim

Array = np.ndarray
WEIGHTS, SPEC = "weights.safetensors", "policy.json"
KINDS = {
    "mlp": "atoll.physical.policy:MlpPolicy",
    **dict.fromkeys(("cnn", "act", "diffusion"), "atoll.physical.imitation.policies:TorchPolicy"),
}
"""kind -> "module:name" of a callable (manifest, weights) -> Policy."""


class Policy(Protocol):
    """What gives actions for observations."""

    manifest: Manifest

    def act(self, observation: Array, images: Mapping[str, Array] | None = None) -> Array:
        """Observations (n, o) float32, and pictures by name (n, h, w, 3) uint8, to actions (n, chunk, a) float32 in
        the units of the manifest. Deterministic: the same input gives the same actions."""
        ...

    def weights(self) -> Mapping[str, Array]:
        """All that `act` needs beside the manifest."""
        ...


ACTIVATIONS = {"tanh": np.tanh, "relu": lambda x, out: np.maximum(x, 0, out=out)}


class MlpPolicy:
    """A perceptron in numpy. `network` of the manifest has `activation` (tanh or relu) and `squash` (clip or tanh).

    Weights: `observation.mean` and `observation.scale` (o,): the input is (observation - mean) * scale, within +-10;
    `<i>.weight` (in, out) and `<i>.bias` (out,) of layer i; `action.shift`, `action.scale` (a,): the action is
    shift + scale * squash(output), where clip is to +-1, and both are skipped where `squash` is none.
    """

    def __init__(self, manifest: Manifest, weights: Mapping[str, Array]):
        self.manifest, self._weights = manifest, dict(weights)
        self._check(manifest, self._weights)
        self._mean, self._gain = weights["observation.mean"], weights["observation.scale"]
        self._shift, self._scale = weights["action.shift"], weights["action.scale"]
        count = sum(name.endswith(".weight") for name in weights)
        self._layers = [(weights[f"{i}.weight"], weights[f"{i}.bias"]) for i in range(count)]
        self._activation = ACTIVATIONS[str(manifest.network.get("activation", "tanh"))]
        self._squash = str(manifest.network.get("squash", "clip"))

    def act(self, observation: Array, images: Mapping[str, Array] | None = None) -> Array:
        x = np.asarray(observation, np.float32) - self._mean
        x *= self._gain
        np.maximum(x, -10, out=x)
        np.minimum(x, 10, out=x)
        for weight, bias in self._layers[:-1]:
            x = x @ weight
            x += bias
            self._activation(x, out=x)
        weight, bias = self._layers[-1]
        x = (x @ weight + bias).reshape(len(x), self.manifest.chunk, -1)
        if self._squash == "tanh":
            np.tanh(x, out=x)
        elif self._squash == "clip":
            np.maximum(x, -1, out=x)
            np.minimum(x, 1, out=x)
        x *= self._scale
        x += self._shift
        return x

    def weights(self) -> Mapping[str, Array]:
        return self._weights

    @staticmethod
    def _check(manifest: Manifest, weights: Mapping[str, Array]) -> None:
        seen, given, chunk = manifest.observation_size, manifest.action_size, manifest.chunk
        count = sum(name.endswith(".weight") for name in weights)
        expected = {"observation.mean": (seen,), "observation.scale": (seen,)}
        expected |= {"action.shift": (given,), "action.scale": (given,)}
        inside = seen
        for i in range(count):
            outside = given * chunk if i == count - 1 else weights.get(f"{i}.bias", np.empty(0)).size
            expected |= {f"{i}.weight": (inside, outside), f"{i}.bias": (outside,)}
            inside = outside
        for name, shape in expected.items():
            if name not in weights:
                raise InvalidRequest(f"the policy's weights lack '{name}'", param=name)
            if weights[name].shape != shape:
                raise InvalidRequest(f"'{name}' is {weights[name].shape}, but the spec asks for {shape}", param=name)
        if not count or manifest.network.get("activation", "tanh") not in ACTIVATIONS:
            raise InvalidRequest("'network' must name an activation, tanh or relu, and have a layer", param="network")
        if manifest.network.get("squash", "clip") not in ("clip", "tanh", "none"):
            raise InvalidRequest("'network.squash' must be clip, tanh or none", param="network")


def spec(sim: Sim) -> tuple[tuple[Channel, ...], tuple[Channel, ...]]:
    """Observation and action channels of a task: those that it declares, or its terms and actuators by name."""
    task = sim.task
    rows = {name: np.reshape(term(sim), (sim.n, -1)).shape[1] for name, term in task.observations.items()}
    seen = task.channels or tuple(Channel(name, size) for name, size in rows.items())
    bounds = zip(sim.action_low.tolist(), sim.action_high.tolist(), strict=True)
    names = [sim.model.actuator(i).name or f"actuator-{i}" for i in range(sim.model.nu)]
    if len(names) != len(sim.action_low):
        names = [f"action-{i}" for i in range(len(sim.action_low))]
    given = task.actions or tuple(
        Channel(name, 1, low=low, high=high) for name, (low, high) in zip(names, bounds, strict=True)
    )
    return seen, given


def limits(sim: Sim) -> ActionLimits:
    """What a server is to enforce on the actions of a task, per dimension."""
    task = sim.task
    low, high = tuple(sim.action_low.tolist()), tuple(sim.action_high.tolist())
    return ActionLimits(low, high, task.velocity, task.acceleration)


def manifest_of(sim: Sim, kind: PolicyKind, **more: Any) -> Manifest:
    """Of a policy for the simulation's task. Raises InvalidRequest where what the task says of it makes no sense."""
    task, (seen, given) = sim.task, spec(sim)
    starts = dict(zip((c.name for c in seen), np.cumsum([0, *(c.size for c in seen)]).tolist(), strict=False))
    sizes = {c.name: c.size for c in seen}
    measured = tuple(starts[name] + i for name in task.measured for i in range(sizes[name]))
    manifest = Manifest(
        task.name, kind, 1 / sim.dt, seen, given, limits=limits(sim), safe=task.safe, measured=measured, **more
    )
    rules_of(manifest)
    return manifest


def check_fit(manifest: Manifest, sim: Sim) -> None:
    """Raise InvalidRequest, naming the first channel that differs, where a policy does not fit an environment."""
    for what, theirs, ours in zip(
        ("observation", "action"), (manifest.observation, manifest.action), spec(sim), strict=True
    ):
        for i in range(max(len(theirs), len(ours))):
            mine = f"'{ours[i].name}' of {ours[i].size}" if i < len(ours) else "nothing"
            its = f"'{theirs[i].name}' of {theirs[i].size}" if i < len(theirs) else "nothing"
            if mine != its:
                raise InvalidRequest(
                    f"the policy is for '{manifest.task}': its {what} has {its} where '{sim.task.name}' has {mine}",
                    param=what,
                )


def check_rate(manifest: Manifest, sim: Sim) -> None:
    """Raise InvalidRequest where a policy's actions are not as long as the environment's steps."""
    if abs(manifest.rate_hz * sim.dt - 1) > 1e-6:
        told = f"the policy acts at {manifest.rate_hz:g} Hz, but '{sim.task.name}' steps at {1 / sim.dt:g} Hz"
        raise InvalidRequest(told, param="rate_hz")


def save_policy(policy: Policy, folder: Path, lineage: Mapping[str, str] | None = None) -> Manifest:
    """Write the policy into `folder`, `policy.json` last; returns the manifest with the files' digests, and with
    `lineage` where it is given.

    Equal policies give equal files."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: np.ascontiguousarray(value) for name, value in sorted(policy.weights().items())}
    data = save_tensors(weights)
    write(folder / WEIGHTS, data)
    told = dataclasses.asdict(policy.manifest) | ({"lineage": lineage} if lineage else {})
    told |= {"files": {WEIGHTS: hashlib.sha256(data).hexdigest()}}
    manifest = TypeAdapter(Manifest).validate_python(told)
    write(folder / SPEC, json.dumps(_finite(dataclasses.asdict(manifest)), indent=1, sort_keys=True).encode() + b"\n")
    return manifest


def load_policy(folder: Path, sim: Sim | None = None) -> Policy:
    """The policy in `folder`; with `sim`, one that fits it. Raises NotFound where there is none, InvalidRequest where
    the manifest breaks a rule, a file's SHA-256 is not the manifest's, or the policy does not fit."""
    manifest = load_manifest(folder)
    if sim is not None:
        check_fit(manifest, sim)
        check_rate(manifest, sim)
    data = b""
    for name, digest in manifest.files.items():
        if Path(name).name != name or not (folder / name).is_file():
            raise NotFound(f"the policy's file '{name}' is missing", param="files")
        content = (folder / name).read_bytes()
        if hashlib.sha256(content).hexdigest() != digest:
            raise InvalidRequest(
                f"'{name}' is not the file that the manifest describes: its SHA-256 differs", param="files"
            )
        if name == WEIGHTS:
            data = content
    try:
        weights = load_tensors(data)
    except SafetensorError as error:
        raise InvalidRequest(f"'{WEIGHTS}' cannot be read: {error}", param="files") from None
    module, _, name = KINDS[manifest.kind].partition(":")
    return getattr(import_module(module), name)(manifest, weights)


def load_manifest(folder: Path) -> Manifest:
    """The manifest in `folder`. Raises NotFound, or InvalidRequest naming the field that breaks a rule."""
    try:
        raw = (folder / SPEC).read_bytes()
    except OSError:
        raise NotFound(f"there is no policy here: '{SPEC}' is missing", param="policy") from None
    try:
        manifest = TypeAdapter(Manifest).validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or SPEC
        raise InvalidRequest(f"'{where}' in {SPEC}: {first['msg']}", param=where) from None
    if manifest.kind not in KINDS:
        raise InvalidRequest(f"there is no policy kind '{manifest.kind}'; there are: {', '.join(KINDS)}", param="kind")
    if WEIGHTS not in manifest.files:
        raise InvalidRequest(f"'files' in {SPEC} has no digest of '{WEIGHTS}'", param="files")
    return manifest


def write(path: Path, data: bytes) -> None:
    """Write whole or not at all, also when the machine stops. Raises SetupError, for example where the disk is full."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise SetupError(f"'{path.name}' cannot be written: {error.strerror}") from None


def _finite(value: Any) -> Any:
    """Without infinite bounds, which JSON cannot say and which are the defaults."""
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items() if not (isinstance(v, float) and math.isinf(v))}
    return [_finite(v) for v in value] if isinstance(value, list | tuple) else value

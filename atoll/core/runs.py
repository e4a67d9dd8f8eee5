"""Runs: what the stages of the physical loop are made of. A recipe is a chain of stages; a run is one passage through
it, under one id; what a stage leaves behind is an artifact, named by its digest and by the artifacts it came from."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from atoll.core.errors import InvalidRequest, NotFound

State = Literal["queued", "running", "done", "failed", "cancelled"]
Kind = Literal["dataset", "policy", "report", "rollout", "service"]


UNFINISHED = frozenset({"queued", "running"})
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
DIGEST = re.compile(r"[0-9a-f]{64}")
MAX_STEPS = 32


class Cancelled(Exception):
    """The run was asked to stop. Raised by `Reporter.progress`, and passed on by the stage that called it."""


class Reporter(Protocol):
    """How a stage tells how far it is. Stages call `progress` at least once a second."""

    def progress(self, done: float, total: float, **figures: float) -> None:
        """`figures` become curves over `done` (return, loss, success, frames_per_second). Raises Cancelled."""
        ...


@dataclass(frozen=True, slots=True)
class Stage:
    """One kind of work. `run(config, inputs, out, report)` reads the folders `inputs` (by role), and writes what it
    makes into the folder `out`. Called again on an `out` that was left half done, it goes on where it stopped, and
    ends with the same files: it depends on nothing but `config` and `inputs`. What it keeps to go on lies in
    `out/.work`, which is not part of the artifact; `out/.work/view.jpg`, if there is one, is shown live, and
    `out/.work/renderer` names what draws. `config` is a frozen dataclass type whose fields all have defaults. Roles
    in `takes` that end with "?" are optional."""

    name: str
    about: str
    config: type
    run: Callable[[Any, Mapping[str, Path], Path, Reporter], None]
    makes: Kind
    takes: tuple[str, ...] = ()

    @property
    def roles(self) -> frozenset[str]:
        """All roles of `takes`, whose optional ones end with a question mark."""
        return frozenset(role.removesuffix("?") for role in self.takes)

    @property
    def required(self) -> frozenset[str]:
        return frozenset(role for role in self.takes if not role.endswith("?"))


@dataclass(frozen=True, slots=True)
class Artifact:
    """A folder that a stage has finished. `digest` names its content, `files` maps paths inside to SHA-256."""

    kind: Kind
    digest: str
    stage: str
    config: Mapping[str, Any]
    parents: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Step:
    """One stage of a recipe. `inputs` maps roles to the names of earlier steps, or to digests of finished artifacts."""

    name: str
    stage: str
    config: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Order:
    """A run as it is asked for. `seed` is added to that of every step whose config has one and does not name its own.
    `ray` is the address of the cluster on which the steps run ("local" starts one); empty: the worker does them."""

    steps: tuple[Step, ...]
    name: str = ""
    seed: int = 0
    ray: str = ""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Steps that belong together."""

    name: str
    about: str
    steps: tuple[Step, ...]


def order_of(wanted: Mapping[str, Any], recipes: Mapping[str, Recipe]) -> Order:
    """The order that `wanted` asks for: a `recipe` by name or `steps` (fields of Step), with `set` over the configs of
    steps by their names, `name`, `seed` and `ray`. Raises InvalidRequest, or NotFound for the recipe."""
    recipe, given = wanted.get("recipe"), wanted.get("steps")
    if bool(recipe) == bool(given):
        raise InvalidRequest("name a recipe, or give steps", param="recipe")
    if recipe and recipe not in recipes:
        raise NotFound(f"there is no recipe '{recipe}'; there are: {', '.join(recipes)}", param="recipe")
    steps = recipes[recipe].steps if recipe else tuple(Step(**step) for step in given or ())
    changes: Mapping[str, Mapping[str, Any]] = wanted.get("set") or {}
    for name in changes:
        if name not in (names := [step.name for step in steps]):
            raise InvalidRequest(f"there is no step '{name}'; there are: {', '.join(names)}", param=f"set.{name}")
    steps = tuple(replace(step, config={**step.config, **changes.get(step.name, {})}) for step in steps)
    name = wanted.get("name") or recipe or steps[0].stage
    return Order(steps, name, wanted.get("seed", 0), wanted.get("ray", ""))


def check_order(order: Order, stages: Mapping[str, Stage]) -> None:
    """Raises InvalidRequest where a step has no name of its own, or an input that nothing before it makes."""
    if not 1 <= len(order.steps) <= MAX_STEPS:
        raise InvalidRequest(f"a run has 1 to {MAX_STEPS} steps, not {len(order.steps)}", param="steps")
    made: set[str] = set()
    for i, step in enumerate(order.steps):
        stage, where = stages[step.stage], f"steps[{i}]"
        if not NAME.fullmatch(step.name) or step.name in made:
            rule = "must be unique: lower-case letters, digits, '-' and '_', at most 40"
            raise InvalidRequest(f"{rule}, not '{step.name}'", param=f"{where}.name")
        if odd := sorted(step.inputs.keys() - stage.roles):
            known = ", ".join(sorted(stage.roles)) or "nothing"
            raise InvalidRequest(f"stage '{stage.name}' takes {known}, not '{odd[0]}'", param=f"{where}.inputs")
        if missing := sorted(stage.required - step.inputs.keys()):
            raise InvalidRequest(f"stage '{stage.name}' needs the input '{missing[0]}'", param=f"{where}.inputs")
        for role, source in step.inputs.items():
            if source not in made and not DIGEST.fullmatch(source):
                rule = "must be the name of an earlier step or the digest of an artifact"
                raise InvalidRequest(f"{rule}, not '{source}'", param=f"{where}.inputs.{role}")
        made.add(step.name)


def digest_of(files: Mapping[str, str]) -> str:
    """The digest of a folder: SHA-256 over its files' paths and their SHA-256, sorted by path."""
    listing = json.dumps(sorted(files.items()), separators=(",", ":"))
    return hashlib.sha256(listing.encode()).hexdigest()

"""Runs: what the stages of the physical loop are made of. A recipe is a chain of stages; a run is one passage through
it, under one id; what a stage leaves behind is an artifact, named by its digest and by the artifacts it came from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

Kind = Literal["dataset", "policy", "report", "rollout", "service"]


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
    ends with the same files: it depends on nothing but `config` and `inputs`. `config` is a frozen dataclass type
    whose fields all have defaults."""

    name: str
    about: str
    config: type
    run: Callable[[Any, Mapping[str, Path], Path, Reporter], None]
    makes: Kind
    takes: tuple[str, ...] = ()


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


def digest_of(files: Mapping[str, str]) -> str:
    """The digest of a folder: SHA-256 over its files' paths and their SHA-256, sorted by path."""
    listing = json.dumps(sorted(files.items()), separators=(",", ":"))
    return hashlib.sha256(listing.encode()).hexdigest()

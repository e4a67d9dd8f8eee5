"""One step of a run: its stage on a folder, until the folder is a finished artifact. Done again, it changes nothing."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from atoll.core.errors import InvalidRequest, SetupError
from atoll.core.runs import Artifact, Order, Reporter, Stage, Step
from atoll.jobs.artifacts import LABEL, WORK, Corrupt, Shelf, discard, verify

LoadStage = Callable[[str], Stage]
VERSIONS = ("atoll", "mujoco", "numpy", "torch", "gymnasium", "pyarrow", "av", "safetensors")


class Job(NamedTuple):
    """A stage about to run: what it reads lies in the folders `inputs` (by role), what it makes goes into `out`."""

    stage: Stage
    config: Any
    inputs: Mapping[str, Path]
    out: Path


Run = Callable[[Job, Reporter], Mapping[str, str]]
"""Does a job; the versions of what did it."""


@dataclass(frozen=True, slots=True)
class Bench:
    """Where the steps of one run are done: `folder` is the run's, `run` does them."""

    shelf: Shelf
    folder: Path
    load: LoadStage
    run: Run


def here(job: Job, report: Reporter) -> Mapping[str, str]:
    """In this process."""
    job.stage.run(job.config, job.inputs, job.out, report)
    return made_with(job.out)


def execute(bench: Bench, order: Order, index: int, report: Reporter) -> str:
    """Do step `index`, whose earlier ones are done; the digest of what it made. What is finished is checked, and
    made anew where it is corrupt. Raises Cancelled, AtollError, or what the stage raises."""
    step = order.steps[index]
    out = bench.folder / step.name
    if (out / LABEL).exists():
        try:
            artifact = verify(out)
            bench.shelf.index(out, artifact)
            return artifact.digest
        except Corrupt:
            discard(out)
    stage = bench.load(step.stage)
    config = configure(stage, seeded(stage, step.config, order.seed))
    inputs = {role: _input(bench, source) for role, source in step.inputs.items()}
    out.mkdir(parents=True, exist_ok=True)
    done_with = bench.run(Job(stage, config, {role: folder for role, (folder, _) in inputs.items()}, out), report)
    parents = {role: digest for role, (_, digest) in inputs.items()}
    made = Artifact(stage.makes, "", stage.name, plain(stage, config), parents, versions=done_with)
    return bench.shelf.seal(out, made).digest


def _input(bench: Bench, source: str) -> tuple[Path, str]:
    """A finished folder and its digest, every byte checked. Raises NotFound or Corrupt."""
    near = bench.folder / source
    folder = near if near.is_dir() else bench.shelf.folder(source)
    return folder, verify(folder).digest


def seeded(stage: Stage, config: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """`config` with the run's seed added to the stage's own, if it has a field for it that `config` does not name.
    Stages whose seeds begin elsewhere, so that they do not meet those of others, stay apart."""
    own = {field.name: field.default for field in fields(stage.config)}.get("seed")
    return {"seed": own + seed, **config} if isinstance(own, int) else dict(config)


def configure(stage: Stage, given: Mapping[str, Any]) -> Any:
    """`given` as the stage's config. Raises InvalidRequest naming the field."""
    from pydantic import TypeAdapter, ValidationError

    known = [field.name for field in fields(stage.config)]
    for name in given:
        if name not in known:
            raise InvalidRequest(f"stage '{stage.name}' has no setting '{name}'; it has {', '.join(known)}", param=name)
    try:
        return TypeAdapter(stage.config).validate_python(dict(given))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"] if isinstance(part, int) or str(part).isidentifier())
        raise InvalidRequest(f"{where}: {first['msg']}", param=where or None) from None


def plain(stage: Stage, config: Any) -> dict[str, Any]:
    """A config as JSON values."""
    from pydantic import TypeAdapter

    return TypeAdapter(stage.config).dump_python(config, mode="json")


def schema(stage: Stage) -> dict[str, Any]:
    """JSON schema of the stage's config."""
    from pydantic import TypeAdapter

    return TypeAdapter(stage.config).json_schema()


def made_with(out: Path) -> dict[str, str]:
    """Versions, and what drew the pictures of the stage in `out`."""
    return versions() | ({"renderer": engine} if (engine := renderer(out)) else {})


def versions() -> dict[str, str]:
    """What this machine makes artifacts with."""
    found = {"python": platform.python_version()}
    for name in VERSIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def renderer(out: Path) -> str | None:
    """What draws the pictures of the stage at work in `out`, once it has told."""
    try:
        return (out / WORK / "renderer").read_text()
    except FileNotFoundError:
        return None


def load_named(name: str) -> Any:
    """The object at "module:attribute". Raises SetupError."""
    from importlib import import_module

    module, _, attribute = name.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise SetupError(f"cannot load '{name}': {error}") from None


def to_json(order: Order) -> dict[str, Any]:
    return {**asdict(order), "steps": [asdict(step) for step in order.steps]}


def from_json(told: Mapping[str, Any]) -> Order:
    return Order(**{**told, "steps": tuple(Step(**step) for step in told["steps"])})

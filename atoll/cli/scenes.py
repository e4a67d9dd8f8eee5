"""`atoll sim --model FILE`: a scene of one's own, looked at before anything is learned in it. `--usd`: a scene to take
elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from atoll.cli.shared import errors, show
from atoll.core.errors import InvalidRequest, SetupError


def looking(command: click.Command) -> click.Command:
    """`command` with the options `--model` and `--usd`, which do something else instead."""
    otherwise = command.callback

    def run(model: Path | None, usd: Path | None, as_json: bool, **options: Any) -> None:
        if model is None and usd is None:
            return otherwise(as_json=as_json, **options)
        with errors(as_json), _installed():
            if usd is not None:
                return _export(usd, model, options["task"], as_json)
            sys.exit(1 if _inspect(model, as_json) else 0)

    command.callback = run
    about = "Look at a scene of your own (MJCF or URDF) with random actions, and do nothing else."
    command.params.append(click.Option(["--model"], type=click.Path(path_type=Path), help=about))
    about = "Write the scene of --task or --model as OpenUSD to this file (.usda, .usdc), and do nothing else."
    command.params.append(click.Option(["--usd"], type=click.Path(path_type=Path), help=about))
    return command


@contextmanager
def _installed() -> Iterator[None]:
    """Raises SetupError for what of `make physical` is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("atoll"):
            raise
        raise SetupError(f"'{error.name}' is not installed; run: make physical") from None


def _export(path: Path, model: Path | None, task: str | None, as_json: bool) -> None:
    if (model is None) == (task is None):
        raise InvalidRequest("'--usd' needs either --task or --model", param="usd")
    from atoll.physical.sim import load_task
    from atoll.physical.sim.load import load_scene
    from atoll.physical.sim.usd import export

    scene = load_scene(model) if model else load_task(task)
    export(scene, path)
    show({"scene": scene.name, "usd": str(path)}) if as_json else print(f"{path} is the scene of {scene.name}")


def _inspect(path: Path, as_json: bool) -> int:
    """Tell what is in the scene; returns how often its physics broke."""
    from dataclasses import asdict

    from atoll import terminal
    from atoll.physical.sim.load import inspect

    found = inspect(path)
    if as_json:
        show(asdict(found))
        return found.broken
    rows = [
        ("bodies", found.bodies), ("joints", found.joints), ("actuators", found.actuators),
        ("mass", f"{found.mass_kg:.3g} kg"), ("random actions", f"{found.sims} x {found.seconds:g} s"),
        ("physics broke", f"{found.broken} times"), ("fastest joint", f"{found.fastest:.3g} rad/s or m/s"),
    ]  # fmt: skip
    terminal.table((path.name, ""), [(name, str(value)) for name, value in rows])
    print("\n" + ("\n".join(f"- {finding}" for finding in found.findings) or "Nothing odd was found."))
    return found.broken

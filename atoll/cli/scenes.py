"""`atoll sim --model FILE`: a scene of one's own, looked at before anything is learned in it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from atoll.cli.shared import errors, show


def looking(command: click.Command) -> click.Command:
    """`command` with the option `--model`, which does something else instead."""
    otherwise = command.callback

    def run(model: Path | None, as_json: bool, **options: Any) -> None:
        if model is None:
            return otherwise(as_json=as_json, **options)
        with errors(as_json):
            sys.exit(1 if _inspect(model, as_json) else 0)

    command.callback = run
    about = "Look at a scene of your own (MJCF or URDF) with random actions, and do nothing else."
    command.params.append(click.Option(["--model"], type=click.Path(path_type=Path), help=about))
    return command


def _inspect(path: Path, as_json: bool) -> int:
    """Tell what is in the scene; returns how often its physics broke."""
    from dataclasses import asdict

    from atoll import terminal
    from atoll.core.errors import SetupError

    try:
        from atoll.physical.sim.load import inspect
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("atoll"):
            raise
        raise SetupError(f"'{error.name}' is not installed; run: make physical") from None
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

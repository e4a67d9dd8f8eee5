"""Stages that take moments, for tests of what carries stages out. They keep every promise that real ones make."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from atoll.core.errors import InvalidRequest
from atoll.core.runs import Reporter, Stage

MODULE = "job_fakes:load"


@dataclass(frozen=True, slots=True)
class Draw:
    """`count` random numbers, one every `pause` seconds."""

    count: int = 20
    pause: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 1:
            raise InvalidRequest(f"must be at least 1, not {self.count}", param="count")


@dataclass(frozen=True, slots=True)
class Nothing:
    pass


@dataclass(frozen=True, slots=True)
class Trip:
    """Fails in the way of `kind` for as long as there is no file at `until`."""

    kind: str = "value"
    until: str = ""


def draw(config: Draw, inputs: Mapping[str, Path], out: Path, report: Reporter) -> None:
    """Goes on behind the numbers that it finds."""
    work = out / ".work"
    work.mkdir(exist_ok=True)
    kept = work / "numbers"
    lines = kept.read_text().split("\n")[:-1] if kept.exists() else []
    chance = random.Random(config.seed)
    with kept.open("w") as file:
        for i in range(config.count):
            number = str(chance.random())
            file.write(number + "\n")
            file.flush()
            if i >= len(lines):
                time.sleep(config.pause)
            report.progress(i + 1, config.count, mean=float(number))
    (out / ".numbers").write_bytes(kept.read_bytes())
    (out / ".numbers").rename(out / "numbers.txt")


def add(config: Nothing, inputs: Mapping[str, Path], out: Path, report: Reporter) -> None:
    total = sum(float(line) for line in (inputs["numbers"] / "numbers.txt").read_text().split())
    (out / "nested").mkdir(exist_ok=True)
    (out / "nested" / "sum.txt").write_text(repr(total))
    report.progress(1, 1, sum=total)


def trip(config: Trip, inputs: Mapping[str, Path], out: Path, report: Reporter) -> None:
    if not (config.until and Path(config.until).exists()):
        if config.kind == "disk":
            raise OSError(28, "No space left on device", str(out / "big.bin"))
        if config.kind == "crash":
            os.abort()
        if config.kind == "vanish":
            raise SystemExit
        if config.kind == "atoll":
            raise InvalidRequest("the scene has no floor", param="scene")
        raise ValueError("the reward is not a number")
    (out / "made.txt").write_text("made")


def deaf(config: Nothing, inputs: Mapping[str, Path], out: Path, report: Reporter) -> None:
    """Never asks whether it was cancelled."""
    report.progress(0, 1)
    time.sleep(120)


STAGES = {
    "draw": Stage("draw", "random numbers", Draw, draw, "dataset"),
    "add": Stage("add", "their sum", Nothing, add, "report", ("numbers", "more?")),
    "trip": Stage("trip", "fails", Trip, trip, "report", ("numbers?",)),
    "deaf": Stage("deaf", "does not listen", Nothing, deaf, "report"),
}


def load(name: str) -> Stage:
    """One of these, or a real one."""
    from atoll.physical.stages import load_stage

    return STAGES[name] if name in STAGES else load_stage(name)

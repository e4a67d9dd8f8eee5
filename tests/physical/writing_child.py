"""Writes parts of a data set until it is killed, or has no room left: python writing_child.py FOLDER [LIMIT_BYTES]"""

from __future__ import annotations

import resource
import signal
import sys
from pathlib import Path

import numpy as np

from atoll.core.errors import SetupError
from atoll.core.manifest import Channel, Image
from atoll.physical.synth.episode import Episode
from atoll.physical.synth.writers.lerobot import Format, Writer

FORM = Format("Do it.", 10, "panda", (Channel("q", 3, "rad"),), (Channel("q", 2, "rad"),), (Image("front", 32, 32),))


def episode(seed: int) -> Episode:
    chance = np.random.default_rng(seed)
    steps = int(chance.integers(5, 15))
    return Episode(
        chance.normal(size=(steps, 3)).astype(np.float32),
        chance.normal(size=(steps, 2)).astype(np.float32),
        chance.normal(size=steps).astype(np.float32),
        np.arange(steps) == steps - 1,
        {"front": chance.integers(0, 255, (steps, 32, 32, 3), np.uint8)},
        {"seed": seed},
    )


def part(number: int) -> list[Episode]:
    """Some parts are empty, and the seventh is large."""
    return [episode(100 * number + i) for i in range(30 if number == 6 else (number * 3) % 5)]


def write(folder: Path, parts: int) -> Writer:
    writer = Writer(folder, FORM)
    while writer.parts < parts:
        writer.add(part(writer.parts), {"tried": 5})
        print(writer.parts, flush=True)
    return writer


if __name__ == "__main__":
    if len(sys.argv) > 2:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
    try:
        write(Path(sys.argv[1]), 1000)
    except SetupError as error:
        print(error.message, flush=True)

"""Formats of annotated pictures. A writer takes frames one after the other; `close` writes what is told of all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image

from atoll.physical.synth.annotate import Annotation, Object
from atoll.physical.synth.render import Camera, Picture


class Frame(NamedTuple):
    """One annotated picture. `visible` are, by object id, the pixels it would have if nothing hid it (BOP)."""

    number: int
    picture: Picture
    camera: Camera
    annotations: Sequence[Annotation]
    silhouettes: dict[int, np.ndarray]


class Writer(Protocol):
    """Writes into a folder that it makes."""

    def add(self, frame: Frame) -> None: ...

    def close(self) -> None: ...


WRITERS = {
    "coco": "atoll.physical.synth.writers.coco:Coco",
    "bop": "atoll.physical.synth.writers.bop:Bop",
    "kitti": "atoll.physical.synth.writers.kitti:Kitti",
    "mcap": "atoll.physical.synth.writers.mcap:Mcap",
    "rerun": "atoll.physical.synth.writers.rerun:Rerun",
}


def save_png(path: Path, pixels: np.ndarray) -> None:
    """uint8 (h, w) or (h, w, 3), or uint16 (h, w). Fast compression: pictures of a CPU are many and small."""
    Image.fromarray(np.ascontiguousarray(pixels)).save(path, compress_level=1)


def categories(objects: Sequence[Object]) -> dict[int, str]:
    return {thing.id: thing.name for thing in objects}

"""What a stage simulates now, as a picture in its work folder, for those who watch (`out/.work/view.jpg`)."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from atoll.core.manifest import Image
from atoll.physical.policy import write
from atoll.physical.sim.sim import Sim
from atoll.physical.synth.cameras import Cameras

EVERY_S = 0.4
SHARE = 0.02
"""Of the time, at most, goes into pictures, but for the first, which opens the graphics context."""
SIZE = (360, 480)
QUALITY = 80


def drawn_by(work: Path, engine: str) -> None:
    """Tell those who watch what draws the pictures."""
    work.mkdir(parents=True, exist_ok=True)
    write(work / "renderer", engine.encode())


class View:
    """Shows the first simulation of what is given to `show`, which may be called at every step. Looking changes nothing
    of what is simulated. A context manager: it holds a graphics context."""

    def __init__(self, work: Path):
        self.path = work / "view.jpg"
        self._cameras: Cameras | None = None
        self._not_before = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
        self.path.unlink(missing_ok=True)

    def show(self, sim: Sim) -> None:
        began = time.monotonic()
        if began < self._not_before:
            return
        opened = self._cameras is None or self._cameras.sim is not sim
        if opened:
            self._close()
            self._cameras = Cameras(sim, [Image(camera_of_task(sim), *SIZE)])
        (picture,) = self._cameras(np.array([0])).values()
        self._write(picture[0])
        now = time.monotonic()
        self._not_before = now + (EVERY_S if opened else max(EVERY_S, (now - began) / SHARE))

    def _write(self, picture: np.ndarray) -> None:
        from PIL import Image as Pictures

        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_name("view.part")
        Pictures.fromarray(picture).save(part, "JPEG", quality=QUALITY)
        part.replace(self.path)

    def _close(self) -> None:
        if self._cameras is not None:
            self._cameras.__exit__(None, None, None)
            self._cameras = None


def camera_of_task(sim: Sim) -> str:
    """The name of the camera that the task is watched by; empty: the free one."""
    camera = sim.task.camera
    if isinstance(camera, str):
        return camera
    return sim.model.camera(camera).name if camera >= 0 else ""

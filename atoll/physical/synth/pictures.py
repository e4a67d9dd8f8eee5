"""The stage `pictures`: annotated pictures of a task's scene, in the formats that perception is trained from.

Each picture is a scene of its own: the task's reset, then a few steps of random actions, then other looks. It depends
on its seed alone, so a run that was cut begins anew and ends with the same files.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from atoll.core.errors import InvalidRequest, SetupError
from atoll.core.runs import Reporter, Stage
from atoll.physical.sim import load_task
from atoll.physical.sim.sim import Sim
from atoll.physical.synth.annotate import Annotator, Object, objects_of, silhouette
from atoll.physical.synth.card import CARD, LICENCE, versions
from atoll.physical.synth.live import drawn_by
from atoll.physical.synth.looks import Amounts, Looks
from atoll.physical.synth.render import Renderer, camera_id, camera_of, open_renderer
from atoll.physical.synth.tally import Tally
from atoll.physical.synth.writers import WRITERS, Frame, Writer

BATCH = 32
LIBRARIES = {"mcap": "mcap", "rerun": "rerun-sdk"}
"""Packages that formats are written by, where those are not our own."""
HIDING = {"bop", "kitti"}
"""Formats that tell how much of an object is hidden, which takes a pass an object."""


@dataclass(frozen=True, slots=True)
class Config:
    """`count` pictures of `height` x `width` from `camera` (empty: the task's), after `steps` random actions.

    `objects` are names of bodies (empty: all that can move freely); `formats` of coco, bop, kitti, mcap, rerun."""

    task: str = "pick-place"
    count: int = 200
    height: int = 128
    width: int = 128
    camera: str = ""
    steps: int = 4
    objects: tuple[str, ...] = ()
    formats: tuple[str, ...] = ("coco", "bop")
    looks: Amounts = field(default_factory=Amounts)
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (("count", 1, 10_000_000), ("steps", 0, 1000), ("seed", 0, 2**62)):
            if not low <= getattr(self, name) <= high:
                raise InvalidRequest(f"'{name}' must be between {low} and {high}", param=name)
        for name in self.formats:
            if name not in WRITERS:
                known = ", ".join(WRITERS)
                raise InvalidRequest(f"'formats' must be of {known}, not '{name}'", param="formats")


def run(config: Config, inputs: Mapping[str, Path], out: Path, report: Reporter) -> None:
    """Raises AtollError."""
    work = out / ".work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    with Studio(config) as studio:
        drawn_by(work, studio.renderer.engine)
        writers = [open_writer(name, work / name, studio.objects) for name in config.formats]
        tally = Tally(thing.name for thing in studio.objects)
        for frame in studio.frames():
            for writer in writers:
                writer.add(frame)
            tally.add(frame)
            report.progress(frame.number + 1, config.count)
        for writer in writers:
            writer.close()
        card = _card(config, studio, tally)
    for name in config.formats:
        shutil.rmtree(out / name, ignore_errors=True)
        (work / name).rename(out / name)
    (work / CARD).write_text(json.dumps(card, indent=2))
    (work / CARD).rename(out / CARD)


class Studio:
    """Simulations, their looks and a renderer. A context manager."""

    def __init__(self, config: Config, *, gl: bool = True):
        self.config = config
        self.sim = Sim(load_task(config.task), min(BATCH, config.count))
        self.model = copy.copy(self.sim.model)
        self.camera = camera_id(self.model, config.camera or self.sim.task.camera)
        self.objects = objects_of(self.model, config.objects)
        self.annotator = Annotator(self.model, self.objects)
        self.looks = Looks(self.model, config.looks)
        self.data = mujoco.MjData(self.model)
        self.renderer: Renderer = open_renderer(self.model, config.height, config.width, gl=gl)

    def __enter__(self) -> Studio:
        return self

    def __exit__(self, *_: object) -> None:
        self.renderer.close()

    def frames(self) -> Iterator[Frame]:
        config, number = self.config, 0
        while number < config.count:
            self._scenes(number)
            for i in range(min(self.sim.n, config.count - number)):
                yield self.frame(number + i, i)
            number += self.sim.n

    def frame(self, number: int, i: int) -> Frame:
        """Simulation `i` as it stands, in looks drawn for picture `number`."""
        self.looks.vary(np.random.default_rng((self.config.seed, number, 1)))
        self.sim.physics.batch.get_data(i, self.data)
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_camlight(self.model, self.data)
        picture = self.renderer.picture(self.data, self.camera)
        camera = camera_of(self.model, self.data, self.camera, self.config.height, self.config.width)
        annotations = self.annotator.annotate(self.data, picture, camera)
        hidden = [a.object for a in annotations] if HIDING & set(self.config.formats) else []
        whole = {thing.id: silhouette(self.renderer, self.data, self.camera, thing) for thing in hidden}
        return Frame(number, picture, camera, annotations, whole)

    def _scenes(self, number: int) -> None:
        sim = self.sim
        sim.reset([self.config.seed + number + i for i in range(sim.n)])
        chance = np.random.default_rng((self.config.seed, number, 0))
        for _ in range(self.config.steps):
            sim.step(chance.uniform(sim.action_low, sim.action_high, sim.action.shape).astype(np.float32))


def open_writer(name: str, folder: Path, objects: tuple[Object, ...]) -> Writer:
    """Raises SetupError where the format's library is not installed."""
    module, _, kind = WRITERS[name].partition(":")
    try:
        return getattr(import_module(module), kind)(folder, objects)
    except ModuleNotFoundError as error:
        raise SetupError(f"format '{name}' needs '{error.name}'; run: pip install 'atoll[formats]'") from None


def _card(config: Config, studio: Studio, tally: Tally) -> dict[str, Any]:
    return {
        "task": config.task,
        "scene": config.task,
        "about": studio.sim.task.about,
        "pictures": config.count,
        "formats": list(config.formats),
        "seeds": {"first": config.seed, "last": config.seed + config.count - 1},
        "renderer": studio.renderer.engine,
        "parents": {},
        "config": asdict(config),
        "statistics": tally.told(),
        "licence": LICENCE,
        "versions": versions(["pillow", *(LIBRARIES[name] for name in config.formats if name in LIBRARIES)]),
    }


STAGE = Stage(
    name="pictures",
    about="Annotated pictures of a scene: colour, depth, masks, boxes, key points, poses.",
    config=Config,
    run=run,
    makes="dataset",
)

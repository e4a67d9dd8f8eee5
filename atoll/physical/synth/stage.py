"""The stage `synth`: demonstrations of a task as a data set, by a scripted expert, and many more out of those few."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from atoll.core.errors import InvalidRequest, SimulationFailed
from atoll.core.manifest import Image
from atoll.core.runs import Reporter, Stage
from atoll.physical.policy import spec, write
from atoll.physical.sim import load_task
from atoll.physical.sim.sim import Sim
from atoll.physical.sim.task import Task
from atoll.physical.synth.amplify import Player
from atoll.physical.synth.card import CARD, card, parent
from atoll.physical.synth.dataset import Dataset
from atoll.physical.synth.episode import Episode
from atoll.physical.synth.experts import Noise, expert
from atoll.physical.synth.film import Film
from atoll.physical.synth.live import View, camera_of_task, drawn_by
from atoll.physical.synth.looks import Amounts
from atoll.physical.synth.record import Take, record
from atoll.physical.synth.writers.lerobot import Format, Writer

BLOCK = 64
"""Episodes tried at once; those that succeed are a part of the data set."""
APART = 10_000_000
"""Between the seeds of demonstrations and those of what is made out of them."""
ROOM = 256 * 2**20
"""Bytes of pictures that a part may have."""
ROBOT = "panda"
PATIENCE = 10
"""So many times what is wanted is tried at most."""
TELL_EVERY_S = 0.5


@dataclass(frozen=True, slots=True)
class Config:
    """`demonstrations` by the task's expert (or, where a data set of demonstrations is given, the first of those; 0:
    all) are made into `amplify_to` episodes; with 0 of these they are themselves the data set.

    `images`: pictures of `cameras` (empty: the task's) of `height` x `width` are kept, in `looks` that differ from
    episode to episode. `waypoint_noise` (m) and `action_noise` (rad) are those of `experts.Noise`."""

    task: str = "pick-place"
    demonstrations: int = 10
    amplify_to: int = 1000
    seed: int = 0
    images: bool = False
    cameras: tuple[str, ...] = ()
    height: int = 96
    width: int = 96
    looks: Amounts = field(default_factory=lambda: Amounts(0, 0, 0, 0, 0))
    waypoint_noise: float = 0.003
    action_noise: float = 0.005

    def __post_init__(self) -> None:
        counts = {"demonstrations": (0, 100_000), "amplify_to": (0, 1_000_000), "seed": (0, 2**40)}
        rest = {"height": (16, 1080), "width": (16, 1920), "waypoint_noise": (0, 0.05), "action_noise": (0, 0.1)}
        for name, (low, high) in (counts | rest).items():
            if not low <= getattr(self, name) <= high:
                raise InvalidRequest(f"'{name}' must be between {low} and {high}", param=name)
        for name in ("height", "width"):
            if getattr(self, name) % 2:
                raise InvalidRequest(f"'{name}' must be even, as videos have it", param=name)


def run(config: Config, inputs: Mapping[str, Path], out: Path, report: Reporter) -> None:
    """Killed at any moment and called again, it goes on with the part that was not finished. Raises AtollError."""
    work, given = out / ".work", inputs.get("demonstrations")
    if not (out / CARD).exists():
        with View(work) as view:
            made = _make(config, given, out, _Teller(report, view))
        made["parents"] = {"demonstrations": parent(given)} if given else {}
        made["config"] = asdict(config)
        write(out / CARD, card(out, config.task, made))
    shutil.rmtree(work / "episodes", ignore_errors=True)


def _make(config: Config, given: Path | None, out: Path, teller: _Teller) -> dict[str, Any]:
    """Make the data set; returns what the card is to say of that."""
    task, noise = load_task(config.task), Noise(config.waypoint_noise, config.action_noise)
    wanted = config.amplify_to or config.demonstrations
    if not wanted or (given and not config.amplify_to):
        raise InvalidRequest("'amplify_to' must be at least 1 here", param="amplify_to")
    images = _images(config, Sim(task))
    frame = sum(image.height * image.width * 3 for image in images)
    sim = Sim(task, min(wanted, BLOCK, max(1, ROOM // (frame * task.horizon)) if frame else BLOCK))
    seen, done = spec(sim)
    writer = Writer(out, Format(task.about, round(1 / sim.dt), ROBOT, seen, done, images))
    if config.amplify_to:
        shown = _given(given, config, writer.form) if given else _shown(config, task, noise, teller)
        actor, first = Player(sim, shown.episodes, noise), config.seed + APART
    else:
        shown, actor, first = None, expert(sim, noise), config.seed
    with Film(sim.model, images, config.looks) as film:
        if images:
            drawn_by(out / ".work", film.engine)
        while writer.episodes < wanted:
            tried = writer.parts * sim.n
            _persevere(tried, sum(note["succeeded"] for note in writer.notes()), wanted)
            seeds = range(first + tried, first + tried + sim.n)
            takes = record(sim, actor, seeds, each=lambda: teller.tell(writer.episodes, wanted, sim))
            kept = [_filmed(take, film, teller) for take in takes[: wanted - writer.episodes]]
            writer.add(kept, {"succeeded": len(takes)})
            teller.accepted = sum(note["succeeded"] for note in writer.notes()) / (writer.parts * sim.n)
            teller.tell(writer.episodes, wanted, sim, now=True)
        writer.finish()
    tried, succeeded = writer.parts * sim.n, sum(note["succeeded"] for note in writer.notes())
    told = {"by": "amplification" if shown else "expert", "tried": tried, "succeeded": succeeded}
    return {
        "generation": told | {"rate": round(succeeded / tried, 4)},
        "demonstrations": shown.told if shown else None,
        "renderer": film.engine if images else None,
    }


@dataclass(frozen=True, slots=True)
class _Shown:
    """Demonstrations to be amplified, and what the card says of them."""

    episodes: Sequence[Episode]
    told: Mapping[str, Any]


def _shown(config: Config, task: Task, noise: Noise, teller: _Teller) -> _Shown:
    """By the expert."""
    sim = Sim(task, min(BLOCK, max(1, config.demonstrations)))
    actor, kept, tried, succeeded = expert(sim, noise), list[Episode](), 0, 0
    while len(kept) < config.demonstrations:
        _persevere(tried, succeeded, config.demonstrations)
        seeds = range(config.seed + tried, config.seed + tried + sim.n)
        takes = record(sim, actor, seeds, each=lambda: teller.tell(0, config.amplify_to, sim))
        kept += [take.episode for take in takes]
        tried, succeeded = tried + sim.n, succeeded + len(takes)
    told = {"by": "expert", "used": config.demonstrations, "tried": tried, "succeeded": succeeded}
    return _Shown(kept[: config.demonstrations], told)


def _given(folder: Path, config: Config, form: Format) -> _Shown:
    """Out of a data set. Raises InvalidRequest for one of another task."""
    with Dataset(folder) as data:
        wanted = form.features()
        for name in ("observation.state", "action"):
            theirs = data.info["features"].get(name, {})
            if theirs.get("names") != wanted[name]["names"]:
                raise InvalidRequest(f"'{name}' of the demonstrations is not that of '{config.task}'", param="task")
        if data.rate_hz != form.rate_hz:
            told = f"the demonstrations have {data.rate_hz} steps a second, '{config.task}' has {form.rate_hz}"
            raise InvalidRequest(told, param="task")
        count = min(config.demonstrations or len(data.lengths), len(data.lengths))
        return _Shown([data.episode(i, ()) for i in range(count)], {"by": "data set", "used": count})


def _images(config: Config, sim: Sim) -> tuple[Image, ...]:
    names = (config.cameras or (camera_of_task(sim),)) if config.images else ()
    return tuple(Image(name, config.height, config.width) for name in names)


def _filmed(take: Take, film: Film, teller: _Teller) -> Episode:
    if not film.images:
        return take.episode
    teller.again()
    return replace(take.episode, images=film.shoot(take.states, take.episode.facts["seed"]))


def _persevere(tried: int, succeeded: int, wanted: int) -> None:
    if tried > PATIENCE * max(wanted, BLOCK):
        raise SimulationFailed(
            f"only {succeeded} of {tried} tries succeeded; less noise or other demonstrations may help",
            param="demonstrations",
        )


class _Teller:
    """Tells the progress, and shows what is simulated, but not at every step. `accepted`: of all tries, those kept."""

    def __init__(self, report: Reporter, view: View):
        self.report, self.view = report, view
        self.done = self.total = 0
        self.accepted: float | None = None
        self.not_before = 0.0

    def tell(self, done: int, total: int, sim: Sim, *, now: bool = False) -> None:
        self.done, self.total = done, total
        self.view.show(sim)
        self.again(now=now)

    def again(self, *, now: bool = False) -> None:
        if now or time.monotonic() >= self.not_before:
            rate = {} if self.accepted is None else {"accepted": self.accepted}
            self.report.progress(self.done, self.total, **rate)
            self.not_before = time.monotonic() + TELL_EVERY_S


STAGE = Stage(
    name="synth",
    about="Demonstrations of a task: a scripted expert's, made many. A data set that LeRobot reads.",
    config=Config,
    run=run,
    makes="dataset",
    takes=("demonstrations?",),
)

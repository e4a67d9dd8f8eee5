"""The stage `sim`: episodes of a task by a policy, or by random actions, as tables and a video.

`episodes.parquet` has a row for each episode, `steps.parquet` one for each of its steps: the observation that the
action was taken for, the action, and the reward for it. `rollout.json` sums up, `video.mp4` is the first episode.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pyarrow
import pyarrow.parquet

from atoll.core.errors import InvalidRequest
from atoll.core.runs import Reporter, Stage
from atoll.physical.policy import Policy, check_fit, check_rate, load_policy, write
from atoll.physical.sim import load_task
from atoll.physical.sim.rollout import Act, Episodes, acting, at_random, rollout
from atoll.physical.sim.sim import Sim, Step
from atoll.physical.sim.task import Array, Task
from atoll.physical.synth.cameras import Cameras
from atoll.physical.synth.live import View, drawn_by
from atoll.physical.synth.render import camera_id, open_renderer
from atoll.physical.synth.video import write_video

LONGEST_S = 30.0
Beat = Callable[[int, Sim], None]


@dataclass(frozen=True, slots=True)
class SimConfig:
    """`task` may be left out where a policy tells it. Episode i has the seed `seed` + i. `sims` episodes run at once,
    which changes no result. `execute` actions of each of the policy's chunks are carried out (0: all). `steps` says
    whether the steps are written too. A video has `height` x `width` pixels (0: no video)."""

    task: str = ""
    episodes: int = 16
    seed: int = 0
    sims: int = 64
    execute: int = 0
    steps: bool = True
    height: int = 240
    width: int = 320

    def __post_init__(self) -> None:
        ranges = {"episodes": (1, 100_000), "seed": (0, 2**40), "sims": (1, 4096), "execute": (0, 1000)}
        for name, (low, high) in (ranges | {"height": (0, 2160), "width": (0, 3840)}).items():
            if not low <= getattr(self, name) <= high:
                raise InvalidRequest(f"'{name}' must be between {low} and {high}", param=name)
        if self.height % 2 or self.width % 2:
            raise InvalidRequest("a video has an even number of rows and columns of pixels", param="height")


def run(config: SimConfig, inputs: Mapping[str, Path], out: Path, report: Reporter) -> None:
    """Killed at any moment and called again, it goes on with the episodes that are not on disk yet."""
    policy = load_policy(inputs["policy"]) if "policy" in inputs else None
    task = load_task(config.task or (policy.manifest.task if policy else "half-cheetah"))
    if policy:
        check_fit(policy.manifest, Sim(task))
        check_rate(policy.manifest, Sim(task))
    work = out / ".work"
    work.mkdir(parents=True, exist_ok=True)
    parts = {first: work / f"part-{first:06d}.npz" for first in range(0, config.episodes, config.sims)}
    if not (out / "rollout.json").exists():
        for first, part in parts.items():
            if not part.exists():
                which = range(first, min(first + config.sims, config.episodes))
                with View(work) as view:
                    beat = _Beat(report, config.episodes, view)
                    write(part, _packed(play(task, policy, config, which, beat)))
        told = {"task": task.name, "policy": bool(policy), "config": asdict(config), "mujoco": mujoco.__version__}
        told["config"].pop("sims")
        if config.height and config.width:
            with View(work) as view:
                beat = _Beat(report, config.episodes, view)
                told["renderer"] = film(task, policy, config, out / "video.mp4", beat)
            drawn_by(work, told["renderer"])
        told |= tables(list(parts.values()), config, out)
        write(out / "rollout.json", json.dumps(told, indent=1).encode() + b"\n")
    for part in parts.values():
        part.unlink(missing_ok=True)


def play(task: Task, policy: Policy | None, config: SimConfig, which: range, beat: Beat) -> dict[str, Array]:
    """The episodes `which`, one by each simulation: what came of them, and their steps one after the other."""
    sim = Sim(task, len(which))
    seen, done, earned, over = [], [], [], np.zeros(len(which), bool)

    def each(step: Step) -> None:
        earned.append(step.reward)
        over[step.terminated | step.truncated] = True
        beat(which.start + int(over.sum()), sim)

    with Cameras(sim, policy.manifest.images if policy else ()) as look:
        act = _act(sim, policy, config, which.start, look)

        def recorded(observation: Array, begun: Array) -> Array:
            action = act(observation, begun)
            if config.steps:
                seen.append(observation.astype(np.float32))
                done.append(np.array(action, np.float32))
            return action

        told = rollout(sim, recorded, len(which), seed=config.seed + which.start, each=each)
    result = {field.name: getattr(told, field.name) for field in fields(Episodes)}
    if config.steps:
        lengths = told.lengths.tolist()
        for name, values in (("observation", seen), ("action", done), ("reward", earned)):
            result[name] = np.concatenate([np.stack([row[i] for row in values[:n]]) for i, n in enumerate(lengths)])
    return result


def film(task: Task, policy: Policy | None, config: SimConfig, path: Path, beat: Beat) -> str:
    """The first episode once more, with a camera; returns what drew it."""
    sim, frames = Sim(task), list[Array]()
    data = mujoco.MjData(sim.model)
    with (
        open_renderer(sim.model, config.height, config.width) as eye,
        Cameras(sim, policy.manifest.images if policy else ()) as look,
    ):
        camera = camera_id(sim.model, task.camera)

        def shot(step: Step) -> None:
            beat(config.episodes, sim)
            if len(frames) * sim.dt < LONGEST_S and not (step.terminated | step.truncated)[0]:
                sim.physics.batch.get_data(0, data)
                mujoco.mj_forward(sim.model, data)
                frames.append(eye.picture(data, camera, geoms=False).rgb)

        rollout(sim, _act(sim, policy, config, 0, look), 1, seed=config.seed, each=shot)
        write_video(path, frames, 1 / sim.dt)
        return eye.engine


def tables(parts: list[Path], config: SimConfig, out: Path) -> dict[str, Any]:
    """Write the tables; returns the sums."""
    loaded = [dict(np.load(part)) for part in parts]
    all_ = {name: np.concatenate([part[name] for part in loaded]) for name in loaded[0]}
    count = np.arange(config.episodes)
    told = {name: all_[name] for name in ("returns", "lengths", "successes", "held", "broken")}
    _table(out / "episodes.parquet", {"episode": count, "seed": config.seed + count} | told)
    if config.steps:
        lengths = all_["lengths"]
        episode, frame = np.repeat(count, lengths), np.concatenate([np.arange(n) for n in lengths])
        steps = {name: all_[name] for name in ("observation", "action", "reward")}
        _table(out / "steps.parquet", {"episode": episode, "frame": frame} | steps)
    means = {name: float(values.mean()) for name, values in told.items()}
    return {"episodes": config.episodes, "means": means, "return_deviation": float(told["returns"].std())}


def _act(sim: Sim, policy: Policy | None, config: SimConfig, first: int, look: Cameras) -> Act:
    if policy is None:
        return at_random(sim, config.seed + first)
    return acting(policy, sim, config.execute or None, look if policy.manifest.images else None)


def _table(path: Path, columns: Mapping[str, Array]) -> None:
    def column(values: Array) -> pyarrow.Array:
        flat = pyarrow.array(values.ravel())
        return flat if values.ndim == 1 else pyarrow.FixedSizeListArray.from_arrays(flat, values.shape[1])

    part = path.with_name(path.name + ".part")
    pyarrow.parquet.write_table(pyarrow.table({name: column(values) for name, values in columns.items()}), part)
    part.replace(path)


def _packed(values: Mapping[str, Array]) -> bytes:
    sink = io.BytesIO()
    np.savez(sink, **values)
    return sink.getvalue()


class _Beat:
    """Tells the reporter now and then how many episodes are done, and shows what is simulated."""

    def __init__(self, report: Reporter, total: int, view: View):
        self.report, self.total, self.told, self.view = report, total, 0.0, view

    def __call__(self, done: int, sim: Sim) -> None:
        self.view.show(sim)
        if time.monotonic() - self.told > 0.5:
            self.told = time.monotonic()
            self.report.progress(done, self.total)


STAGE = Stage(
    name="sim",
    about="simulate: episodes of a task by a policy, or by random actions, and a video",
    config=SimConfig,
    run=run,
    makes="rollout",
    takes=("policy?",),
)

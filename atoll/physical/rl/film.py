"""Short videos of a policy while it learns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from atoll.core.manifest import Image
from atoll.physical.policy import Policy
from atoll.physical.sim.rollout import acting
from atoll.physical.sim.sim import Sim
from atoll.physical.sim.task import Array, Task
from atoll.physical.synth.cameras import Cameras
from atoll.physical.synth.live import camera_of_task, drawn_by
from atoll.physical.synth.video import write_video

SECONDS = 3.0
MOST_HZ = 20.0
SIZE = (120, 160)
SEED = 400_000_000
"""Apart from the seeds that are learned from and those of the gate."""


def film(task: Task, policy: Policy, path: Path, work: Path, beat: Callable[[], None]) -> None:
    """Episodes one after the other, for SECONDS of simulated time. The same policy gives the same file."""
    sim, frames = Sim(task, 1, threads=1), list[Array]()
    act, seen, begun = acting(policy, sim, 1), sim.reset([SEED]), sim.all == 0
    apart = max(1, round(1 / (MOST_HZ * sim.dt)))
    with Cameras(sim, [Image(camera_of_task(sim), *SIZE)]) as eye:
        for k in range(round(SECONDS / sim.dt)):
            if k % apart == 0:
                frames += [pictures[0] for pictures in eye(sim.all).values()]
                beat()
            step = sim.step(act(seen, begun))
            seen, begun = step.observation, step.terminated | step.truncated
        drawn_by(work, eye.engine)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, frames, 1 / (sim.dt * apart))

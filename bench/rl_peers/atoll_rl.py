"""Atoll's own learner, as `atoll rl` runs it: the stage, its checkpoints and snapshots included, but no videos, which
no peer makes."""

import contextlib
import tempfile
import time
from pathlib import Path

from snapshots import Snapshots, spec

from atoll.core.runs import Cancelled
from atoll.physical.policy import load_policy
from atoll.physical.rl import stage

TASKS = {
    "HalfCheetah-v5": "half-cheetah",
    "Hopper-v5": "hopper",
    "Walker2d-v5": "walker2d",
    "Ant-v5": "ant",
    "Humanoid-v5": "humanoid",
    "go1-velocity": "go1-velocity",
    "humanoid-walk": "humanoid-walk",
}


class Watch:
    """Notes when each number of steps was reached; ends the run when the budget is used up."""

    def __init__(self, asked: dict, snapshots: Snapshots):
        self.asked, self.snapshots, self.times = asked, snapshots, {}

    def progress(self, done: float, total: float, **figures: float) -> None:
        wall, cpu = self.snapshots.now()
        if "kl" in figures or "loss" in figures:
            self.times[int(done)] = (wall, cpu)
        if cpu >= self.asked["cpu_s"] or wall >= self.asked["wall_s"]:
            raise Cancelled


def main() -> None:
    asked = spec()
    algorithm = asked.get("algorithm", "ppo")
    preset = stage.PRESETS[algorithm].get(TASKS[asked["env"]], {})
    steps = asked["steps"] or preset.get("steps", stage.STEPS)
    config = stage.RlConfig(
        task=TASKS[asked["env"]], algorithm=algorithm, steps=steps, seed=asked["seed"],
        snapshots=asked["every"], videos=0, threads=asked["threads"], overrides=asked.get("overrides", {}),
    )  # fmt: skip
    snapshots = Snapshots(asked)
    watch = Watch(asked, snapshots)
    with tempfile.TemporaryDirectory(prefix="atoll-bench-") as name:
        with contextlib.suppress(Cancelled):
            stage.run(config, {}, Path(name), watch)
        wall, cpu = snapshots.now()
        times = watch.times
        for folder in sorted(Path(name).glob(".work/policies/*")):
            policy, at = load_policy(folder), min(int(folder.name), steps)
            if at in times:
                snapshots.save(int(folder.name), *times[at], matrices(policy))
    done = max(times, default=0)
    snapshots.close(steps=done, wall_s=wall, cpu_s=cpu, at=time.strftime("%Y-%m-%d", time.gmtime()))


def matrices(policy) -> dict:
    weights, network = policy.weights(), policy.manifest.network
    count = sum(name.endswith(".weight") for name in weights)
    return {
        "layers": [(weights[f"{i}.weight"], weights[f"{i}.bias"]) for i in range(count)],
        "activation": network["activation"], "squash": network["squash"],
        "mean": weights["observation.mean"], "scale": weights["observation.scale"],
        "shift": weights["action.shift"], "gain": weights["action.scale"],
    }  # fmt: skip


if __name__ == "__main__":
    main()

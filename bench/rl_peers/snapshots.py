"""What every learner of bench/rl.py shares: its budget, and its policies so far, kept as plain matrices.

A policy is a perceptron on a normalised observation; `bench/rl.py` plays all of them in the same way. Needs numpy only.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np


def spec() -> dict:
    """What bench/rl.py asks for: env, seed, folder, cpu_s, wall_s, every (how many snapshots), threads."""
    return json.loads(sys.argv[1])


class Snapshots:
    """Call it with the steps so far, and a function that gives the policy's matrices. False: the budget is used up."""

    def __init__(self, asked: dict):
        self.asked, self.folder = asked, Path(asked["folder"])
        self.folder.mkdir(parents=True, exist_ok=True)
        self.next = self.paused = self.paused_cpu = 0.0
        self.rows: list[dict] = []
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def now(self) -> tuple[float, float]:
        """Wall and CPU seconds of learning so far, without what snapshots took."""
        return time.perf_counter() - self.wall - self.paused, time.process_time() - self.cpu - self.paused_cpu

    def __call__(self, steps: int, policy) -> bool:
        wall, cpu = self.now()
        over = cpu >= self.asked["cpu_s"] or wall >= self.asked["wall_s"]
        if over or max(cpu / self.asked["cpu_s"], wall / self.asked["wall_s"]) >= self.next:
            self.next = max(cpu / self.asked["cpu_s"], wall / self.asked["wall_s"]) + 1 / self.asked["every"]
            began, began_cpu = time.perf_counter(), time.process_time()
            self.save(steps, wall, cpu, policy())
            self.paused += time.perf_counter() - began
            self.paused_cpu += time.process_time() - began_cpu
        return not over

    def save(self, steps: int, wall: float, cpu: float, policy: dict) -> None:
        """`policy`: layers [(W (in, out), b)], activation, mean, scale, squash and what that needs."""
        name = f"{steps:010d}.npz"
        layers = {
            f"{part}{i}": v for i, pair in enumerate(policy["layers"]) for part, v in zip("wb", pair, strict=True)
        }
        plain = {name: value for name, value in policy.items() if name != "layers"}
        np.savez(self.folder / name, **layers, **plain)
        self.rows.append({"steps": steps, "wall_s": round(wall, 3), "cpu_s": round(cpu, 3), "file": name})

    def close(self, **told) -> None:
        text = json.dumps({"rows": self.rows, **told}, indent=1)
        (self.folder / "rows.json").write_text(text)

"""One peer of bench/steps.py in a process of its own: `steps_worker.py PEER TASK N THREADS`.

Says {"ready": versions} on a line, then answers each line "SECONDS" with what it did in that time.
"""

import json
import sys
import time
from importlib.metadata import version
from os import getpid

import numpy as np
from common import Tree

GYM = {
    "half-cheetah": "HalfCheetah-v5",
    "hopper": "Hopper-v5",
    "walker2d": "Walker2d-v5",
    "ant": "Ant-v5",
    "humanoid": "Humanoid-v5",
}


class Atoll:
    packages = ("mujoco", "numpy")

    def __init__(self, task: str, n: int, threads: int):
        from atoll.physical.sim import load_task
        from atoll.physical.sim.sim import Sim

        self.sim = Sim(load_task(task), n, threads=threads)
        self.low, self.high = self.sim.action_low, self.sim.action_high
        self.sim.reset()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        done = self.sim.step(action)
        return done.reward, done.terminated | done.truncated


class EnvPool:
    resets_are_steps = True
    packages = ("envpool", "gymnasium", "numpy")

    def __init__(self, task: str, n: int, threads: int):
        import envpool

        self.pool = envpool.make_gymnasium(GYM[task], num_envs=n, num_threads=threads, seed=0)
        self.low, self.high = self.pool.action_space.low, self.pool.action_space.high
        self.pool.reset()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        _, reward, terminated, truncated, _ = self.pool.step(action)
        return reward, terminated | truncated


class EnvPoolAsync(EnvPool):
    """Half of the simulations at a time, those that were ready first: no one waits for the slowest."""

    def __init__(self, task: str, n: int, threads: int):
        import envpool

        self.half = n // 2
        self.pool = envpool.make_gymnasium(GYM[task], num_envs=n, batch_size=self.half, num_threads=threads, seed=0)
        self.low, self.high = self.pool.action_space.low, self.pool.action_space.high
        self.pool.async_reset()
        self.ready = self.pool.recv()[-1]["env_id"]

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.pool.send(action[: self.half], self.ready)
        _, reward, terminated, truncated, info = self.pool.recv()
        self.ready = info["env_id"]
        return reward, terminated | truncated


class Vector:
    """Gymnasium's own; `threads` is without meaning: one process, or one a simulation."""

    packages = ("gymnasium", "mujoco", "numpy")

    def __init__(self, task: str, n: int, kind: str):
        import gymnasium

        self.envs = gymnasium.make_vec(
            GYM[task], n, vectorization_mode=kind, vector_kwargs={"autoreset_mode": "SameStep"}
        )
        self.low, self.high = self.envs.single_action_space.low, self.envs.single_action_space.high
        self.envs.reset(seed=0)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        _, reward, terminated, truncated, _ = self.envs.step(action)
        return reward, terminated | truncated


PEERS = {
    "atoll": Atoll,
    "envpool": EnvPool,
    "envpool-async": EnvPoolAsync,
    "gymnasium-sync": lambda task, n, threads: Vector(task, n, "sync"),
    "gymnasium-async": lambda task, n, threads: Vector(task, n, "async"),
}


def turn(peer: object, actions: np.ndarray, seconds: float) -> dict:
    """Environment steps, wall and CPU seconds, and what tells whether peers do the same: episodes and rewards."""
    tree, steps, episodes, rewards = Tree(getpid()), 0, 0, 0.0
    cpu, start = tree.cpu_s(), time.perf_counter()
    while True:
        for action in actions:
            reward, ended = peer.step(action)
            episodes += int(ended.sum())
            rewards += float(reward.sum())
            steps += len(reward)
        wall = time.perf_counter() - start
        if wall >= seconds:
            cpu = tree.cpu_s() - cpu
            steps -= episodes if getattr(peer, "resets_are_steps", False) else 0
            return {"steps": steps, "wall_s": wall, "cpu_s": cpu, "episodes": episodes, "reward": rewards / steps}


def main(name: str, task: str, n: int, threads: int) -> None:
    made = PEERS[name](task, n, threads)
    low, high = np.asarray(made.low, np.float32), np.asarray(made.high, np.float32)
    actions = np.random.default_rng(0).uniform(low, high, (10, n, len(low))).astype(np.float32)
    print(json.dumps({"ready": {package: version(package) for package in made.packages}}), flush=True)
    for line in sys.stdin:
        print(json.dumps(turn(made, actions, float(line))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))

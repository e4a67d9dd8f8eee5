"""Claim: a task runs unchanged on an NVIDIA GPU, and its physics there is that of C MuJoCo but for float32.

`python bench/warp_check.py [--tasks half-cheetah,ant] [--device cuda:0] [--sims 4096] [--limit 170] [--out FILE]`
Needs an NVIDIA GPU, mujoco, mujoco-warp, warp-lang, numpy and gymnasium (for the models), and no network. Compiling
for the GPU takes most of the time when it is new to a machine; tasks that do not begin within `--limit` seconds are
left out and named.

`one_step`: both begin each environment step in the same state, so that errors do not add up: the largest difference of
a simulation's positions (m, rad) and of its reward, at quantiles over simulations and steps; `position_free` are those
without contact at their end. `apart`: how far they are from each other when neither is set right. `episodes`: means
with standard errors.
"""

import argparse
import dataclasses
import json
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import warp
from common import BENCH, provenance

from atoll.physical.sim import TASKS, load_task, randomise
from atoll.physical.sim.sim import Sim
from atoll.physical.sim.task import Task
from atoll.physical.sim.warp import on_gpu

QUANTILES = (0.5, 0.9, 0.99, 1.0)


def actions(sim: Sim, steps: int) -> np.ndarray:
    low, high = np.maximum(sim.action_low, -10), np.minimum(sim.action_high, 10)
    return np.random.default_rng(0).uniform(low, high, (steps, sim.n, len(low)))


def one_step(there: Sim, here: Sim, steps: int) -> dict:
    """Differences after one environment step from the same state."""
    there.reset(), here.reset()
    positions, rewards, touched = [], [], []
    for action in actions(here, steps):
        for name in ("qpos", "qvel", "qacc_warmstart"):
            here.field(name)[:] = there.field(name)
        gpu, cpu = there.step(action, begin=False), here.step(action, begin=False)
        positions.append(np.abs(there.qpos - here.qpos).max(axis=1))
        rewards.append(np.abs(gpu.reward - cpu.reward))
        touched.append(here.field("ncon") > 0)
    positions, rewards, touched = np.array(positions), np.array(rewards), np.array(touched)
    told = {"position": quantiles(positions), "reward": quantiles(rewards), "in_contact": float(touched.mean())}
    return told | {"position_free": quantiles(positions[~touched])} if (~touched).any() else told


def apart(there: Sim, here: Sim, steps: int) -> dict:
    """Median difference of positions after 1, 2, 4, ... steps of the same actions."""
    there.reset(list(range(there.n))), here.reset(list(range(there.n)))
    told, marks = {}, {2**k for k in range(12)}
    for k, action in enumerate(actions(here, steps), 1):
        there.step(action, begin=False), here.step(action, begin=False)
        if k in marks:
            told[str(k)] = float(np.median(np.abs(there.qpos - here.qpos).max(axis=1)))
    return told


def episodes(sim: Sim, steps: int) -> dict:
    """Mean return and length of the episodes of random actions that ended, and of reward by step."""
    sim.reset(list(range(sim.n)))
    score, ended, lengths, rewards = np.zeros(sim.n), [], [], []
    for action in actions(sim, steps):
        before, step = sim.elapsed + 1, sim.step(action)
        rewards.append(step.reward)
        score += step.reward
        over = step.terminated | step.truncated
        ended += score[over].tolist()
        lengths += before[over].tolist()
        score[over] = 0
    return {"reward": mean(np.ravel(rewards)), "return": mean(ended), "length": mean(lengths), "broken": sim.broken}


def speed(sim: Sim, seconds: float) -> float:
    """Environment steps per second with observations, rewards and resets."""
    sim.reset()
    ready = actions(sim, 4)
    for action in ready[:2]:
        sim.step(action)
    start, steps = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        sim.step(ready[steps % 4])
        steps += 1
    return steps * sim.n / (time.perf_counter() - start)


def randomised(task: Task, gpu: partial) -> dict:
    """With mass, friction and gravity by simulation: do both have the same, and move alike without contact?"""
    vary = (randomise.mass(0.5, 2.0), randomise.friction(0.5, 1.0), randomise.gravity(0.9, 1.1))
    task = dataclasses.replace(task, randomise=(*task.randomise, *vary))
    there, here = Sim(task, 32, physics=gpu), Sim(task, 32)
    difference = one_step(there, here, 5)
    difference["mass"] = float(np.abs(there.field("body_mass") - here.field("body_mass")).max())
    return difference


def restored(there: Sim) -> float:
    """Largest difference of observations between a run and the same run restored; zero where the GPU repeats itself."""
    there.reset()
    ready, state = actions(there, 6), there.state()
    first = [there.step(action).observation for action in ready]
    there.restore(state)
    return float(max(np.abs(a - there.step(b).observation).max() for a, b in zip(first, ready, strict=True)))


def quantiles(values: np.ndarray) -> dict:
    return {str(q): float(np.quantile(values, q)) for q in QUANTILES}


def mean(values: list | np.ndarray) -> list[float] | None:
    return [float(np.mean(values)), float(np.std(values) / np.sqrt(len(values)))] if len(values) else None


def check(name: str, options: argparse.Namespace) -> dict:
    task, gpu = load_task(name), partial(on_gpu, device=options.device)
    few, steps = options.few, options.steps
    start = time.perf_counter()
    there, here = Sim(task, few, physics=gpu), Sim(task, few)
    told = {"one_step": one_step(there, here, steps), "compiled_s": round(time.perf_counter() - start, 1)}
    told |= {"apart": apart(there, here, steps), "restored": restored(there), "randomised": randomised(task, gpu)}
    told["episodes"] = {"gpu": episodes(there, 2 * steps), "cores": episodes(here, 2 * steps)}
    sims = [n for n in (options.sims // 4, options.sims) if n > 0]
    told["steps_per_s"] = {f"gpu, {n}": round(speed(Sim(task, n, physics=gpu), 3)) for n in sims}
    told["steps_per_s"]["cores, 256"] = round(speed(Sim(task, 256), 2))
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="half-cheetah,ant,go1-velocity")
    parser.add_argument("--device", default="cuda:0", help="cpu tries the script out, slowly")
    parser.add_argument("--sims", type=int, default=4096, help="simulations where speed is measured")
    parser.add_argument("--few", type=int, default=64, help="simulations where differences are measured")
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--limit", type=float, default=170.0)
    parser.add_argument("--out", type=Path, default=BENCH / "results" / "warp.json")
    options = parser.parse_args()
    began, warp.config.log_level = time.perf_counter(), warp.LOG_WARNING
    told = provenance() | {"device": str(warp.get_device(options.device).name), "tasks": {}, "left_out": []}
    told["versions"] = {name: version(name) for name in ("mujoco", "mujoco-warp", "warp-lang", "numpy")}
    for name in options.tasks.split(","):
        if name not in TASKS or time.perf_counter() - began > options.limit:
            told["left_out"].append(name)
            continue
        told["tasks"][name] = check(name, options)
        print(name, json.dumps(told["tasks"][name]), flush=True)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(told, indent=1) + "\n")
    print("left out:", told["left_out"])


if __name__ == "__main__":
    main()

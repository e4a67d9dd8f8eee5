"""What the gate decides on, measured: success over many seeds, under stress, simulated otherwise, against others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import mujoco
import numpy as np

from atoll.core.errors import NotInstalled, SetupError
from atoll.core.gate import Trials
from atoll.core.manifest import Manifest
from atoll.core.safety import Motion, begin, bounds_of, limit
from atoll.physical.policy import Policy
from atoll.physical.serve.served import measured_in
from atoll.physical.sim import load_task, randomise
from atoll.physical.sim.physics import Physics
from atoll.physical.sim.rollout import Act, Episodes, acting, rollout
from atoll.physical.sim.sim import Sim
from atoll.physical.sim.task import Task
from atoll.physical.synth.cameras import Cameras

SIMS = 64
Change = Callable[[mujoco.MjSpec], None]
Beat = Callable[[Sim], None]
Engine = Callable[[Task, int], Physics]
WARP = "MuJoCo-Warp"


@dataclass(frozen=True, slots=True)
class Trial:
    """How episodes are run. `mark`: where the task does not say what success is, a return of that much is. `execute` of
    a chunk's actions are done before the policy is asked anew (0: half of them, rounded up)."""

    episodes: int
    seed: int
    mark: float | None
    execute: int = 0


def run_trial(
    task: Task, policy: Policy, trial: Trial, beat: Beat, noise: float = 0.0, engine: Engine | None = None
) -> Episodes:
    """Episodes of `policy`. `noise`: Gaussian, of the action range, on each action: a worse policy of the same kind.
    `engine`: what steps the simulations (None: the cores)."""
    sim = Sim(task, min(SIMS, trial.episodes), physics=engine, tolerant=True)
    with Cameras(sim, policy.manifest.images) as look:
        act = driven(policy, sim, look, trial.execute, noise, trial.seed)
        return rollout(sim, act, trial.episodes, seed=trial.seed, each=lambda _: beat(sim))


def driven(policy: Policy, sim: Sim, look: Cameras, execute: int, noise: float = 0.0, seed: int = 0) -> Act:
    """`policy` as it will be served, within its limits. `execute` is that of `Trial`, `noise` that of `run_trial`."""
    manifest = policy.manifest
    act = acting(policy, sim, execute or (manifest.chunk + 1) // 2, look if manifest.images else None)
    return limited(_noisy(act, sim, noise, seed) if noise else act, sim, manifest)


def limited(act: Act, sim: Sim, manifest: Manifest) -> Act:
    """What the server lets through of `act`: on from where the robot is measured, within the manifest's limits."""
    bounds, where = bounds_of(manifest), measured_in(manifest)
    motions: list[Motion | None] = [None] * sim.n

    def within(observation: np.ndarray, begun: np.ndarray) -> np.ndarray:
        actions = act(observation, begun)
        for i in np.flatnonzero(begun).tolist():
            motions[i] = None if where is None else begin(bounds, observation[i, where].tolist())
        told = [limit(*one, bounds, sim.dt).motion for one in zip(actions.tolist(), motions, strict=True)]
        motions[:] = told
        return np.array([motion.value for motion in told])

    return within


def run_random(task: Task, trial: Trial, beat: Beat) -> Episodes:
    """Episodes of actions drawn evenly from their range."""
    sim, chance = Sim(task, min(SIMS, trial.episodes), tolerant=True), np.random.default_rng(trial.seed)
    shape = sim.n, len(sim.action_low)
    act = lambda *_: chance.uniform(sim.action_low, sim.action_high, shape).astype(np.float32)  # noqa: E731
    return rollout(sim, act, trial.episodes, seed=trial.seed, each=lambda _: beat(sim))


def _noisy(act: Act, sim: Sim, noise: float, seed: int) -> Act:
    chance, spread = np.random.default_rng(seed), noise * (sim.action_high - sim.action_low)

    def worse(observation: np.ndarray, begun: np.ndarray) -> np.ndarray:
        action = act(observation, begun)
        return np.clip(action + spread * chance.standard_normal(action.shape), sim.action_low, sim.action_high)

    return worse


def trials(episodes: Episodes, task: Task, mark: float | None) -> Trials:
    """An episode counts where the task's success lasted as long as the task asks, or the return reached the mark."""
    done = episodes.lasted if task.success and mark is None else episodes.returns >= (mark or 0.0)
    return Trials(int((done & ~episodes.broken).sum()), len(done))


def stressed(task: Task, level: float) -> Task:
    """The task with dynamics randomised on top of what it randomises itself: at level 1 masses, friction and damping by
    a quarter and actuator gains by a tenth either way, at other levels in proportion."""
    if not level:
        return task

    def around(share: float) -> tuple[float, float]:
        return max(1 - share * level, 0.05), 1 + share * level

    more = (
        randomise.mass(*around(0.25)),
        randomise.friction(*around(0.25)),
        randomise.damping(*around(0.25)),
        randomise.actuator_gain(*around(0.1)),
    )
    return replace(task, randomise=(*task.randomise, *more))


def variants(task: Task) -> dict[str, Task]:
    """The same task, simulated otherwise. A policy that holds only for one solver's habits falls here."""
    return {
        "half the time step": replace(_changed(task, _halve), frame_skip=2 * task.frame_skip),
        "conjugate gradient solver": _changed(task, _solver),
        "pyramidal friction": _changed(task, _pyramids),
    }


def warp(wanted: bool | None) -> Engine | None:
    """MuJoCo-Warp on an NVIDIA GPU: where there is one (None), always, or never. Raises NotInstalled or SetupError."""
    if wanted is False:
        return None
    try:
        from atoll.physical.sim.warp import on_gpu, usable
    except ImportError:
        if wanted:
            raise NotInstalled("'warp' needs the package mujoco-warp; run: pip install 'atoll[gpu]'") from None
        return None
    if usable():
        return on_gpu
    if wanted:
        raise SetupError("'warp' needs an NVIDIA GPU, and there is none here that CUDA can use", param="warp")
    return None


def _changed(task: Task, change: Change) -> Task:
    def model() -> mujoco.MjSpec:
        spec = task.model()
        change(spec)
        return spec

    return replace(task, model=model)


def _halve(spec: mujoco.MjSpec) -> None:
    spec.option.timestep /= 2


def _solver(spec: mujoco.MjSpec) -> None:
    spec.option.solver = mujoco.mjtSolver.mjSOL_CG
    spec.option.iterations = max(spec.option.iterations, 200)


def _pyramids(spec: mujoco.MjSpec) -> None:
    spec.option.cone = mujoco.mjtCone.mjCONE_PYRAMIDAL


def ranked(
    task: Task, policy: Policy, trial: Trial, cheap: int, noises: Sequence[float], beat: Beat
) -> list[tuple[float, float]]:
    """Cheap and full success rates of the policy made worse by each of `noises`, on seeds apart from each other."""
    pairs = []
    for noise in noises:
        full = run_trial(task, policy, trial, beat, noise)
        few = replace(trial, episodes=cheap, seed=trial.seed + 1_000_000)
        part = run_trial(task, policy, few, beat, noise)
        pairs.append((trials(part, task, trial.mark).rate, trials(full, task, trial.mark).rate))
    return pairs


def task_of(policy: Policy) -> Task:
    return load_task(policy.manifest.task)

"""The tabletop arm: its tasks, what actions may do to it, and the experts that solve them."""

from __future__ import annotations

from pathlib import Path

import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from atoll.core.errors import NotFound
from atoll.physical.sim import load_task, robots
from atoll.physical.sim.envs import tabletop
from atoll.physical.sim.sim import Sim
from atoll.physical.sim.vector import Env
from atoll.physical.synth.experts import Noise, expert
from atoll.physical.synth.ik import Solver, downward
from atoll.physical.synth.record import record

TASKS = ["reach", "push", "pick-place"]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:gymnasium")


@pytest.mark.parametrize("name", TASKS)
def test_gymnasium_accepts_the_environment(name: str) -> None:
    check_env(Env(load_task(name)), skip_render_check=True)


@pytest.mark.parametrize("name", TASKS)
def test_channels_name_every_number_and_bound_it(name: str) -> None:
    sim = Sim(load_task(name), 16)
    seen = sim.reset()
    channels = sim.task.channels
    assert sum(channel.size for channel in channels) == seen.shape[1]
    assert [channel.name for channel in channels] == list(sim.task.observations)
    low = np.concatenate([[channel.low] * channel.size for channel in channels])
    high = np.concatenate([[channel.high] * channel.size for channel in channels])
    assert (seen >= low).all() and (seen <= high).all()
    assert sum(channel.size for channel in sim.task.actions) == len(sim.action_low)
    assert sim.dt == pytest.approx(0.05)


@pytest.mark.parametrize("name", TASKS)
def test_an_episode_depends_on_its_seed_alone(name: str) -> None:
    few, many = Sim(load_task(name), 2, seed=7), Sim(load_task(name), 5, seed=4)
    assert np.array_equal(few.reset()[0], many.reset()[3])
    actions = np.random.default_rng(0).uniform(few.action_low, few.action_high, (20, 8))
    for action in actions:
        one, other = few.step(np.tile(action, (2, 1))), many.step(np.tile(action, (5, 1)))
        assert np.array_equal(one.observation[0], other.observation[3])
        assert one.reward[0] == other.reward[3]
    assert not np.array_equal(few.reset([1, 2])[0], few.reset([2, 1])[0])


def test_no_action_moves_a_target_faster_or_further_than_the_joints_may() -> None:
    sim = Sim(load_task("pick-place"), 8)
    sim.reset()
    chance = np.random.default_rng(0)
    for _ in range(30):
        before = sim.ctrl.copy()
        sim.step(chance.normal(0, 10, (8, 8)), begin=False)
        assert (np.abs(sim.ctrl - before) <= tabletop.SPEED * sim.dt + 1e-9).all()
        assert (sim.ctrl >= tabletop.LOW - 1e-6).all() and (sim.ctrl <= tabletop.HIGH + 1e-6).all()
    assert sim.broken == 0


def test_what_is_not_a_number_holds_the_arm() -> None:
    sim = Sim(load_task("push"), 2)
    sim.reset()
    before = sim.ctrl.copy()
    step = sim.step(np.full((2, 8), np.nan))
    assert np.array_equal(sim.ctrl, before) and np.isfinite(step.observation).all() and np.isfinite(step.reward).all()


def test_blocks_differ_in_mass_and_friction() -> None:
    sim = Sim(load_task("push"), 3)
    masses = sim.field("body_mass")[:, sim.model.body("block").id]
    slip = sim.field("geom_friction")[:, sim.model.geom("block").id, 0]
    assert len(set(masses)) == len(set(slip)) == 3
    assert ((masses >= 0.05) & (masses <= 0.2)).all() and ((slip >= 0.6) & (slip <= 1.2)).all()


def test_a_dropped_block_ends_the_episode() -> None:
    sim = Sim(load_task("pick-place"), 2)
    sim.reset()
    sim.qpos[1, 9:12] = [0.5, 2.0, 0.0]
    for _ in range(10):
        step = sim.step(sim.ctrl.astype(np.float32), begin=False)
    assert step.terminated.tolist() == [False, True]
    assert not step.success.any()


@pytest.mark.parametrize(("name", "seeds", "mark"), [("reach", 50, 1.0), ("push", 50, 0.95), ("pick-place", 200, 0.95)])
def test_the_expert_solves_it_and_earns_more_than_chance(name: str, seeds: int, mark: float) -> None:
    sim = Sim(load_task(name), seeds)
    takes = record(sim, expert(sim), range(seeds))
    assert len(takes) >= mark * seeds
    earned = np.mean([take.episode.reward.mean() for take in takes])
    sim, chance, lucky = Sim(load_task(name), 10), np.random.default_rng(0), []
    sim.reset(range(10))
    for _ in range(sim.task.horizon - 1):
        lucky.append(sim.step(chance.uniform(sim.action_low, sim.action_high, (10, 8))).reward.mean())
    assert earned > 2 * max(np.mean(lucky), 0.01)


def test_a_noisy_expert_means_something_else_than_it_does_and_repeats_by_seed() -> None:
    def play(seeds: range) -> list[np.ndarray]:
        sim = Sim(load_task("reach"), len(seeds))
        seen = sim.reset(seeds)
        master = expert(sim, Noise(waypoint=0.01, action=0.01))
        master.begin(seeds)
        told = []
        for _ in range(20):
            done, meant = master.act(seen)
            assert 0 < np.abs(done - meant)[:, :7].max() < 0.06
            seen = sim.step(done).observation
            told.append(done)
        return told

    few, many = play(range(3, 5)), play(range(2, 6))
    assert all(np.array_equal(one[0], other[1]) for one, other in zip(few, many, strict=True))


def test_there_is_no_expert_for_a_cheetah() -> None:
    with pytest.raises(NotFound, match="no expert for 'half-cheetah'"):
        expert(Sim(load_task("half-cheetah")))


def test_inverse_kinematics_find_poses_over_the_whole_table() -> None:
    chance = np.random.default_rng(1)
    solver = Solver(robots.panda(), "gripper", 7, 300)
    position = chance.uniform([0.33, -0.25, 0.01], [0.6, 0.25, 0.4], (300, 3))
    rotation = downward(chance.uniform(-1.5, 1.5, 300))
    q, left = solver.solve(np.tile(robots.PANDA_HOME, (300, 1)), position, rotation, iterations=30)
    assert left.max() < 1e-6
    there, turned = solver.pose(q)
    assert np.allclose(there, position, atol=1e-6) and np.allclose(turned, rotation, atol=1e-6)
    assert (q >= solver.low).all() and (q <= solver.high).all()


def test_the_jacobian_is_mujocos() -> None:
    solver = Solver(robots.panda(), "gripper", 7, 2)
    q = np.array([robots.PANDA_HOME, [0.3, 0.2, -0.4, -1.9, 0.5, 2.0, 0.1]])
    solver.pose(q)
    jacobian = solver.jacobian()
    model = solver.model
    for i in range(2):
        data, position, rotation = mujoco.MjData(model), np.zeros((3, model.nv)), np.zeros((3, model.nv))
        data.qpos[:7] = q[i]
        mujoco.mj_forward(model, data)
        mujoco.mj_jacSite(model, data, position, rotation, model.site("gripper").id)
        assert np.allclose(jacobian[i], np.concatenate([position, rotation])[:, :7], atol=1e-9)


def test_the_robot_ships_small_and_with_its_licence() -> None:
    folder = Path(robots.__file__).parent / "panda"
    assert "Apache License" in (folder / "LICENSE").read_text()
    assert sum(path.stat().st_size for path in folder.iterdir()) < 1_000_000
    model = robots.panda().compile()
    visual = model.geom_dataid[(model.geom_group == 2) & (model.geom_dataid >= 0)]
    assert model.mesh_facenum[visual].sum() < 10_000
    assert model.body_mass.sum() == pytest.approx(17.4519, abs=1e-4)

"""Tasks of our own that move: a quadruped, a drone, a car. Their terms, and that learning them begins to work."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from atoll.physical.policy import spec
from atoll.physical.rl.ppo import Rollout
from atoll.physical.rl.stage import RlConfig, begin
from atoll.physical.sim import load_task
from atoll.physical.sim.envs import humanoid_walk, lane_driving, legged
from atoll.physical.sim.rollout import at_random, rollout
from atoll.physical.sim.sim import Sim
from atoll.physical.sim.vector import Env

TASKS = ["go1-velocity", "drone-hover", "humanoid-walk", "lane-driving"]


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.filterwarnings("ignore::UserWarning:gymnasium")
def test_gymnasium_accepts_the_environment(name: str) -> None:
    check_env(Env(load_task(name)), skip_render_check=True)


@pytest.mark.parametrize("name", TASKS)
def test_rewards_are_finite_for_any_action_and_nothing_breaks(name: str) -> None:
    sim = Sim(load_task(name), 16)
    act, seen = at_random(sim), sim.reset()
    for k in range(150):
        step = sim.step(act(seen, np.zeros(16, bool)) * (1 if k % 3 else 5))
        assert np.isfinite(step.reward).all() and np.isfinite(step.observation).all()
    assert sim.broken == 0
    step = sim.step(np.full_like(sim.action, np.nan))
    assert np.isfinite(step.observation).all() and not step.broken.any()


@pytest.mark.parametrize("name", TASKS)
def test_channels_tell_what_an_observation_holds(name: str) -> None:
    sim = Sim(load_task(name), 2)
    seen, given = spec(sim)
    sizes = {key: part.stop - part.start for key, part in sim.observed.items()}
    assert [channel.size for channel in seen] == list(sizes.values())
    assert sum(channel.size for channel in given) == len(sim.action_low)
    assert np.allclose([channel.low for channel in given], sim.action_low)


@pytest.mark.parametrize(
    ("name", "steps", "more"),
    [("go1-velocity", 36_000, 0.05), ("drone-hover", 60_000, 0.15), ("lane-driving", 24_000, 0.1)],
)
def test_a_short_training_improves_the_mean_reward_of_a_step(
    name: str, steps: int, more: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, _ = begin(RlConfig(task=name), tmp_path)
    means, collect = [], learner.collect

    def counted(beat: Callable[[int], None]) -> tuple[Rollout, dict[str, float]]:
        rollout, figures = collect(beat)
        means.append(rollout.reward.mean())
        return rollout, figures

    monkeypatch.setattr(learner, "collect", counted)
    with ThreadPoolExecutor(1) as pool:
        while learner.steps < steps:
            learner.iterate(pool, lambda steps: None)
    assert np.mean(means[-2:]) > np.mean(means[1:4]) + more  # the first have just been reset


def test_velocities_and_gravity_are_as_the_body_sees_them() -> None:
    sim = Sim(load_task("go1-velocity"), 1)
    sim.reset()
    sim.qpos[0, 3:7] = [np.cos(np.pi / 4), 0, 0, np.sin(np.pi / 4)]  # looks along y
    sim.qvel[0, :3] = [0, 1, 0]
    assert np.allclose(legged.velocity(sim), [[1, 0, 0]]) and np.allclose(legged.gravity(sim), [[0, 0, -1]])
    sim.qpos[0, 3:7] = [np.cos(np.pi / 4), 0, np.sin(np.pi / 4), 0]  # nose down
    assert np.allclose(legged.gravity(sim), [[1, 0, 0]])


def test_a_gait_is_whole_where_each_foot_does_what_the_clock_and_the_command_say() -> None:
    sim, first = Sim(load_task("go1-velocity"), 3), np.array([True, False, False, True])
    sim.command[:] = [[0.5, 0, 0], [0.5, 0, 0], [0, 0, 0]]
    sim.elapsed[:] = [5, 20, 5]  # a stride of half a second is 25 steps: the first half, the second, and told to stand
    down, up = np.where(first, 0.0, 0.05), np.where(first, 0.05, 0.0)
    assert np.allclose(legged.gait(sim, np.stack((down, up, np.zeros(4))), first, 2.0, 0.05), 1)
    assert np.allclose(legged.gait(sim, np.stack((up, down, down)), first, 2.0, 0.05), [0, 0, 0.5])
    assert np.allclose(legged.gait(sim, np.zeros((3, 4)), first, 2.0, 0.05), [0.5, 0.5, 1])


def test_a_humanoid_told_to_keep_its_pose_stands() -> None:
    sim = Sim(load_task("humanoid-walk"), 4)
    sim.reset()
    sim.command[:] = 0
    for _ in range(100):
        assert not sim.step(np.tile(humanoid_walk.HOME, (4, 1))).terminated.any()


def test_a_humanoid_told_to_go_bends_the_leg_whose_turn_it_is() -> None:
    sim = Sim(load_task("humanoid-walk"), 3)
    sim.reset()
    sim.command[:] = [[0.5, 0, 0], [0.5, 0, 0], [0, 0, 0]]
    sim.elapsed[:] = [10, 30, 10]  # a stride of 0.8 s is 40 steps: the middle of the left leg's swing, of the right's
    humanoid_walk.act(sim, np.full((3, 19), np.nan))
    bent = sim.ctrl - humanoid_walk.HOME
    right, left = (humanoid_walk.JOINTS.index(f"{side}_knee") for side in ("right", "left"))
    assert np.allclose(bent[:, [right, left]], [[0, -0.7], [-0.7, 0], [0, 0]])
    sim.qpos[:, legged.ROOT :] = humanoid_walk.HOME + bent
    assert np.allclose(humanoid_walk.marching(sim), 1)


def test_a_car_left_alone_keeps_straight_on_and_leaves_a_bend() -> None:
    sim = Sim(load_task("lane-driving"), 8)
    told = rollout(sim, lambda seen, begun: np.zeros((8, 2)), 8)
    assert not told.successes.any() and (told.lengths < 400).all()


def test_steering_turns_the_way_that_it_says_and_braking_stops() -> None:
    sim = Sim(load_task("lane-driving"), 2)
    sim.reset()
    for _ in range(10):
        sim.step(np.array([[0.05, 0.0], [-0.05, 0.0]]), begin=False)
    turn = lane_driving.body_velocity(sim)[2]
    assert turn[0] > 0.1 and turn[1] < -0.1
    for _ in range(150):
        sim.step(np.tile([0.0, -1.0], (2, 1)), begin=False)
    assert (np.abs(lane_driving.body_velocity(sim)[0]) < 0.5).all()

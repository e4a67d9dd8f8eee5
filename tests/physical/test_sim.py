"""Environments against Gymnasium's own, to the last bit; and what a simulation promises to learners."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from atoll.core.errors import InvalidRequest, NotFound
from atoll.physical.sim import load_task
from atoll.physical.sim.sim import Sim
from atoll.physical.sim.vector import Env

pytestmark = [
    pytest.mark.filterwarnings("ignore:compiler attribute 'settotalmass'"),
    pytest.mark.filterwarnings("ignore::UserWarning:gymnasium"),
]

PEERS = {"half-cheetah": "HalfCheetah-v5"}


@pytest.mark.parametrize(("name", "peer"), PEERS.items())
def test_trajectories_equal_gymnasiums_to_the_last_bit(name: str, peer: str) -> None:
    sim, env = Sim(load_task(name), 3, seed=5), gymnasium.make(peer)
    chance = np.random.default_rng(0)
    expected, _ = env.reset(seed=5)
    seen = sim.reset()[0]
    for _ in range(1100):
        assert np.array_equal(seen, expected)
        action = chance.uniform(sim.action_low, sim.action_high, (3, len(sim.action_low))).astype(np.float32)
        expected, reward, terminated, truncated, _ = env.step(action[0])
        step = sim.step(action)
        assert (step.reward[0], step.terminated[0], step.truncated[0]) == (reward, terminated, truncated)
        seen = step.final.get(0, step.observation[0])
        if terminated or truncated:
            assert np.array_equal(seen, expected)
            expected, seen = env.reset()[0], step.observation[0]


@pytest.mark.parametrize("name", PEERS)
def test_gymnasium_accepts_the_environment(name: str) -> None:
    check_env(Env(load_task(name)), skip_render_check=True)


def test_a_restored_simulation_goes_on_to_the_last_bit() -> None:
    first, second = Sim(load_task("half-cheetah"), 4), Sim(load_task("half-cheetah"), 4, seed=99)
    actions = np.random.default_rng(0).uniform(-1, 1, (40, 4, 6)).astype(np.float32)
    first.reset()
    for action in actions[:20]:
        first.step(action)
    second.reset()
    second.restore(first.state())
    for action in actions[20:]:
        assert np.array_equal(first.step(action).observation, second.step(action).observation)


def test_a_simulation_does_not_depend_on_how_many_others_there_are() -> None:
    alone, together = Sim(load_task("half-cheetah"), 1, seed=3), Sim(load_task("half-cheetah"), 8, seed=0)
    assert np.array_equal(alone.reset()[0], together.reset()[3])


def test_a_wrong_action_is_refused_by_name() -> None:
    sim = Sim(load_task("half-cheetah"), 2)
    sim.reset()
    with pytest.raises(InvalidRequest, match="'action' must be \\(2, 6\\)"):
        sim.step(np.zeros((2, 5)))


def test_an_unknown_task_is_named() -> None:
    with pytest.raises(NotFound, match="no task 'half-zebra'"):
        load_task("half-zebra")

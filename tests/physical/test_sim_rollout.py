"""Episodes: the same however many simulations run them, short ones counted no more than long ones."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from carts import cart

from atoll.core.errors import InvalidRequest
from atoll.core.manifest import Channel, Manifest
from atoll.physical.sim.rollout import acting, at_random, rollout
from atoll.physical.sim.sim import Sim
from atoll.physical.sim.task import Reward
from atoll.physical.validate.measure import trials


def luck(sim: Sim, i: int, rng: np.random.Generator) -> None:
    """Half of the episodes last 1 step, half of them 19; the seed decides."""
    sim.qpos[i] = 0.0
    sim.qvel[i] = rng.choice([0.01, 10.0])


LUCKY = cart(
    reset=luck,
    terminations={"far": lambda sim: sim.qpos[:, 0] > 0.1},
    rewards={"alive": Reward(lambda sim: np.ones(sim.n))},
    success=lambda sim: (sim.elapsed == 1) | (sim.elapsed == 20),
)


def still(observation: np.ndarray, begun: np.ndarray) -> np.ndarray:
    return np.zeros((len(observation), 1))


@pytest.mark.parametrize(("n", "threads"), [(1, 1), (3, 2), (7, 1), (40, 2)])
def test_episodes_are_those_of_their_seeds_however_many_simulations_run_them(n: int, threads: int) -> None:
    truth = [rollout(Sim(LUCKY), still, 1, seed=seed).lengths[0] for seed in range(100, 130)]
    told = rollout(Sim(LUCKY, n, seed=n, threads=threads), still, 30, seed=100)
    assert told.lengths.tolist() == truth and set(truth) == {1, 20}
    assert told.returns.tolist() == truth
    assert told.successes.all() and told.held.all() and not told.broken.any()


def test_what_was_done_once_and_what_was_kept_are_told_apart() -> None:
    told = rollout(Sim(cart(success=lambda sim: sim.elapsed == 5), 2), still, 4)
    assert told.successes.all() and not told.held.any()


@pytest.mark.parametrize(("hold", "lasts"), [(1, True), (3, True), (4, False)])
def test_the_gate_counts_what_lasts_and_not_what_is_passed_through(hold: int, lasts: bool) -> None:
    task = cart(success=lambda sim: (sim.elapsed == 2) | ((sim.elapsed > 4) & (sim.elapsed < 8)), hold=hold)
    told = rollout(Sim(task, 2), still, 4)
    assert told.lasted.tolist() == [lasts] * 4
    assert trials(told, task, None).successes == 4 * lasts


def test_an_episode_that_breaks_is_told() -> None:
    sim = Sim(cart(), 40)

    def act(observation: np.ndarray, begun: np.ndarray) -> np.ndarray:
        action = np.zeros((40, 1))
        if sim.elapsed[0] == 6:
            action[11] = np.nan
        return action

    told = rollout(sim, act, 40)
    assert told.broken.nonzero()[0].tolist() == [11] and told.lengths[11] == 7
    assert (np.delete(told.lengths, 11) == 20).all()


def test_random_actions_of_a_simulation_do_not_depend_on_the_others() -> None:
    one, many = at_random(Sim(cart(), 1)), at_random(Sim(cart(), 5))
    for _ in range(3):
        drawn = many(np.zeros((5, 2)), np.zeros(5, bool))
        assert np.array_equal(one(np.zeros((1, 2)), np.zeros(1, bool))[0], drawn[0])
        assert drawn.min() >= -1 and drawn.max() <= 1 and np.ptp(drawn) > 0.1


class Counting:
    """A policy whose actions tell how often it was asked, and the place in the chunk."""

    manifest = Manifest("cart", "mlp", 50.0, (Channel("x", 1), Channel("v", 1)), (Channel("push", 1),), chunk=3)

    def __init__(self) -> None:
        self.asked: list[int] = []

    def act(self, observation: np.ndarray, images=None) -> np.ndarray:
        self.asked.append(len(observation))
        return np.tile(0.1 * len(self.asked) + 0.01 * np.arange(3)[None, :, None], (len(observation), 1, 1))


def test_a_chunk_is_executed_and_asked_anew_when_it_is_done_or_an_episode_begins() -> None:
    policy = Counting()
    act = acting(policy, Sim(cart(), 2), execute=2)
    begun = np.array([[True, True], [False, False], [False, False], [False, True], [False, False], [False, False]])
    done = [act(np.zeros((2, 2)), row)[:, 0].astype(float).round(2).tolist() for row in begun]
    assert done == [[0.1, 0.1], [0.11, 0.11], [0.2, 0.2], [0.21, 0.3], [0.4, 0.31], [0.41, 0.5]]
    assert policy.asked == [2, 2, 1, 1, 1]
    with pytest.raises(InvalidRequest, match="chunk of 3"):
        acting(policy, Sim(cart(), 2), execute=4)


def test_the_seeds_of_coming_episodes_survive_a_restore() -> None:
    first, second = Sim(LUCKY, 3), Sim(LUCKY, 3)
    first.reset([range(i, 60, 3) for i in range(3)])
    for _ in range(7):
        first.step(np.zeros((3, 1)))
    second.restore(first.state())
    for _ in range(60):
        one, two = first.step(np.zeros((3, 1))), second.step(np.zeros((3, 1)))
        assert all(np.array_equal(one[k], two[k]) for k in (0, 1, 2, 3))


def test_as_many_seeds_as_simulations_and_at_least_one_episode() -> None:
    with pytest.raises(InvalidRequest, match="2 seeds for 3 simulations"):
        Sim(cart(), 3).reset([1, 2])
    with pytest.raises(InvalidRequest, match="at least one episode"):
        rollout(Sim(cart()), still, 0)


def test_each_step_is_seen() -> None:
    steps: list[int] = []
    told = rollout(Sim(cart(), 3), still, 3, each=lambda step: steps.append(len(step.reward)))
    assert steps == [3] * 20
    assert all(len(getattr(told, field.name)) == 3 for field in fields(told))

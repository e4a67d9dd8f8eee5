"""What is wrong with a task, its physics or its actions is said, by name, and harms no other simulation."""

from __future__ import annotations

import numpy as np
import pytest
from carts import cart

from atoll.core.errors import InvalidRequest, NotFound, SimulationFailed
from atoll.physical.sim.sim import Sim
from atoll.physical.sim.task import Reward, Task

STILL = np.zeros((30, 1))


def test_a_simulation_that_breaks_ends_with_zero_reward_and_the_others_go_on() -> None:
    sim, whole = Sim(cart(), 30), Sim(cart(), 30)
    sim.reset()
    whole.reset()
    sim.qvel[7] = np.nan
    step, other = sim.step(STILL), whole.step(STILL)
    assert step.terminated.nonzero()[0].tolist() == [7] and not step.truncated.any()
    assert step.reward[7] == 0 and not any(term[7] for term in step.terms.values())
    assert list(step.final) == [7] and np.isfinite(step.observation).all()
    rest = np.arange(30) != 7
    assert np.array_equal(step.observation[rest], other.observation[rest])
    assert np.array_equal(step.reward[rest], other.reward[rest])
    assert sim.broken == 1


@pytest.mark.parametrize("begin", [True, False])
def test_a_simulation_that_breaks_again_at_once_is_noticed_again(begin: bool) -> None:
    sim = Sim(cart(), 30)
    sim.reset()
    for _ in range(3):
        sim.qvel[7] = np.inf
        assert sim.step(STILL, begin=begin).broken[7]
    assert sim.broken == 3


def test_an_action_that_is_not_a_number_breaks_its_simulation() -> None:
    sim = Sim(cart(), 30)
    sim.reset()
    action = STILL.copy()
    action[4] = np.nan
    assert sim.step(action).terminated.nonzero()[0].tolist() == [4]


def test_more_than_a_tenth_broken_within_the_window_is_an_error_that_names_task_and_simulation() -> None:
    sim = Sim(cart(horizon=1000), 30)
    sim.reset()
    for i in (5, 6, 7):
        sim.qvel[i] = np.nan
        sim.step(STILL)
    for _ in range(98):
        sim.step(STILL)
    sim.qvel[8] = np.nan
    sim.step(STILL)  # the first is out of the window by now
    sim.qvel[9] = np.nan
    sim.step(STILL)
    sim.qvel[10:13] = np.nan
    with pytest.raises(SimulationFailed, match=r"'cart' broke 5 times .* 30 .*; simulation 10: .* in QVEL at DOF 0"):
        sim.step(STILL)


def test_an_error_that_mujoco_raises_counts_as_broken() -> None:
    sim = Sim(cart(model=lambda: welded()), 30)
    sim.reset()
    sim.field("eq_type")[3] = 99
    step = sim.step(STILL, begin=False)
    assert step.terminated.nonzero()[0].tolist() == [3] and sim.broken == 1
    with pytest.raises(SimulationFailed, match="simulation 3"):
        sim.reset()


def welded():
    spec = cart().model()
    spec.worldbody.add_body(name="mocap", mocap=True)
    weld = spec.add_equality(type=1, objtype=1)
    weld.name1, weld.name2 = "mocap", "cart"
    return spec


def raising(sim: Sim) -> np.ndarray:
    raise KeyError("tip")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rewards": {"near": Reward(raising)}}, "reward 'near' of task 'cart' raised KeyError: 'tip'"),
        ({"observations": {"x": raising}}, "observation 'x' of task 'cart' raised KeyError: 'tip'"),
        ({"terminations": {"out": raising}}, "termination 'out' of task 'cart' raised KeyError: 'tip'"),
        ({"success": raising}, "success 'cart' of task 'cart' raised KeyError: 'tip'"),
        ({"reset": lambda sim, i, rng: 1 / 0}, "reset 'cart' of task 'cart' raised ZeroDivisionError"),
        ({"rewards": {"near": Reward(lambda sim: sim.qpos)}}, r"'near' .* gave an array \(4, 1\) of float64"),
        ({"rewards": {"near": Reward(lambda sim: 1.0)}}, r"'near' .* gave float where an array \(4,\) is asked"),
        ({"observations": {"x": lambda sim: sim.qpos[:2]}}, r"'x' .* gave an array \(2, 1\)"),
        ({"observations": {"x": lambda sim: np.array(["a"] * sim.n)}}, "'x' .* gave an array .* of <U1"),
        ({"terminations": {"out": lambda sim: sim.qpos[:, 0]}}, "'out' .* gave float64 where bool is asked"),
    ],
)
def test_a_term_that_fails_is_named_before_the_first_step(change: dict, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        Sim(cart(**change), 4)


def test_a_reward_that_is_not_finite_is_named_with_its_simulation() -> None:
    sim = Sim(cart(rewards={"one": Reward(lambda sim: np.ones(sim.n)), "log": Reward(log)}), 4)
    sim.reset()
    with pytest.raises(InvalidRequest, match="reward 'log' of task 'cart' is inf in simulation 2"):
        for _ in range(5):
            sim.step(np.zeros((4, 1)))


def log(sim: Sim) -> np.ndarray:
    return np.where((sim.elapsed == 3) & (np.arange(sim.n) == 2), np.inf, 0.0)


def test_a_term_that_fails_later_is_named() -> None:
    def late(sim: Sim) -> np.ndarray:
        return sim.qpos if sim.elapsed[0] == 3 else sim.qpos[:, 0]

    sim = Sim(cart(rewards={"late": Reward(late)}), 4)
    sim.reset()
    sim.step(np.zeros((4, 1)))
    sim.step(np.zeros((4, 1)))
    with pytest.raises(InvalidRequest, match="reward 'late'") as caught:
        sim.step(np.zeros((4, 1)))
    assert caught.value.param == "reward.late"


def test_errors_of_ours_pass_through_a_term() -> None:
    def missing(sim: Sim) -> np.ndarray:
        raise NotFound("no such command")

    with pytest.raises(NotFound, match="no such command"):
        Sim(cart(rewards={"near": Reward(missing)}), 4)


def test_a_task_without_rewards_or_terminations_runs_to_its_horizon() -> None:
    task: Task = cart(rewards={}, horizon=3)
    sim = Sim(task, 2)
    sim.reset()
    ends = [sim.step(np.zeros((2, 1))).truncated.all() for _ in range(3)]
    assert ends == [False, False, True]

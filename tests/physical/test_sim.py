"""Environments against Gymnasium's own, to the last bit; and what a simulation promises to learners."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import gymnasium
import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

from atoll.core.errors import InvalidRequest, NotFound
from atoll.physical.sim import TASKS, load_task
from atoll.physical.sim.model import compile_model, read_model
from atoll.physical.sim.sim import Sim
from atoll.physical.sim.vector import Env, register

pytestmark = [
    pytest.mark.filterwarnings("ignore:compiler attribute 'settotalmass'"),  # Gymnasium's own loading
    pytest.mark.filterwarnings("ignore::UserWarning:gymnasium"),
]

PEERS = {
    "half-cheetah": "HalfCheetah-v5",
    "hopper": "Hopper-v5",
    "walker2d": "Walker2d-v5",
    "ant": "Ant-v5",
    "humanoid": "Humanoid-v5",
    "humanoid-standup": "HumanoidStandup-v5",
    "swimmer": "Swimmer-v5",
    "reacher": "Reacher-v5",
    "pusher": "Pusher-v5",
    "inverted-pendulum": "InvertedPendulum-v5",
    "inverted-double-pendulum": "InvertedDoublePendulum-v5",
}


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


@pytest.fixture
def registered() -> Iterator[None]:
    register()
    yield
    for name in TASKS:
        del gymnasium.registry[f"atoll/{name}-v0"]


def test_gymnasium_makes_environments_and_vectors_of_every_task(registered: None) -> None:
    for name in TASKS:
        assert gymnasium.spec(f"atoll/{name}-v0").id == f"atoll/{name}-v0"
    one = gymnasium.make("atoll/hopper-v0", render_mode="rgb_array", height=32, width=48)
    one.reset(seed=0)
    picture = one.render()
    assert picture.shape == (32, 48, 3) and picture.dtype == np.uint8 and np.ptp(picture) > 20
    one.close()
    many, peers = (
        gymnasium.make_vec("atoll/hopper-v0", 3),
        gymnasium.make_vec(
            "Hopper-v5", 3, vectorization_mode="sync", vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP}
        ),
    )
    assert np.array_equal(many.reset(seed=7)[0], peers.reset(seed=7)[0])
    many.action_space.seed(0)
    ended = 0
    for _ in range(120):
        action = many.action_space.sample()
        (*ours, info), (*theirs, told) = many.step(action), peers.step(action)
        assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
        if (mask := info.get("_final_obs")) is not None:
            assert np.array_equal(mask, told["_final_obs"])
            assert np.array_equal(np.stack(told["final_obs"][mask]), info["final_obs"][mask])
            ended += int(mask.sum())
    assert ended > 5


def test_one_environment_goes_through_the_episodes_that_gymnasiums_does() -> None:
    ours, peer = Env(load_task("hopper")), gymnasium.make("Hopper-v5")
    chance = np.random.default_rng(0)
    assert np.array_equal(ours.reset(seed=1)[0], peer.reset(seed=1)[0])
    for _ in range(200):
        action = chance.uniform(-1, 1, 3).astype(np.float32)
        (seen, *told, _), (expected, *is_so, _) = ours.step(action), peer.step(action)
        assert np.array_equal(seen, expected) and told == is_so
        if told[1]:
            assert np.array_equal(ours.reset()[0], peer.reset()[0])


def test_models_load_without_warnings_and_nothing_is_logged_to_a_file(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sim = Sim(load_task("half-cheetah"), 2)
    sim.reset()
    sim.qvel[1] = np.nan
    sim.step(np.zeros((2, 6)))
    assert sim.broken == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("mjcf", "said"),
    [("<mujoco><bodi/></mujoco>", "unrecognized element Element 'bodi', line 1"), ("<mujoco>", "Line number=1")],
)
def test_a_broken_model_is_refused_with_its_line(tmp_path: Path, mjcf: str, said: str) -> None:
    (tmp_path / "robot.xml").write_text(mjcf)
    with pytest.raises(InvalidRequest, match=f"'robot.xml' is not a model: .*{said}"):
        read_model(tmp_path / "robot.xml")


def test_a_model_that_does_not_compile_is_refused_by_name() -> None:
    spec = mujoco.MjSpec.from_string("<mujoco><worldbody><body><joint/></body></worldbody></mujoco>")
    with pytest.raises(InvalidRequest, match=r"model of 'rover' does not compile: .*mass and inertia"):
        compile_model(spec, "rover")


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


def test_steps_do_not_read_the_clock() -> None:
    Sim(load_task("hopper"))
    model = mujoco.MjModel.from_xml_string(
        "<mujoco><worldbody><body><freejoint/><geom size='1'/></body></worldbody></mujoco>"
    )
    data = mujoco.MjData(model)
    mujoco.mj_step(model, data, 5)
    timer = data.timer[mujoco.mjtTimer.mjTIMER_STEP]
    assert (timer.number, timer.duration) == (5, 0)

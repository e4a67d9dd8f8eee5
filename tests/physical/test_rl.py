"""Reinforcement learning: gradients against differences, the algorithm by hand, and runs that survive a kill."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pytest

from atoll.core.errors import Conflict, InvalidRequest
from atoll.core.runs import Cancelled
from atoll.physical.policy import load_policy
from atoll.physical.rl import checkpoint, stage
from atoll.physical.rl.networks import Adam, Mlp
from atoll.physical.rl.normalise import Moments, Returns
from atoll.physical.rl.offpolicy import Offpolicy, OffpolicyConfig
from atoll.physical.rl.ppo import Ppo, PpoConfig, Rollout
from atoll.physical.rl.replay import Replay
from atoll.physical.sim import load_task
from atoll.physical.sim.sim import Sim
from atoll.physical.sim.task import Reward

pytestmark = pytest.mark.filterwarnings("ignore:compiler attribute 'settotalmass'")
SMALL = {"sims": 8, "rollout": 16, "minibatch": 64, "epochs": 2, "hidden": [16, 16], "critic_hidden": [16]}
REPLAYED = {"sims": 8, "rollout": 8, "updates": 4, "batch": 64, "warm": 200, "replay": 1024, "hidden": [16, 16]}


class Told:
    """Keeps what a run reports; raises Cancelled after `limit` reports."""

    def __init__(self, limit: float = float("inf")):
        self.limit, self.figures, self.done = limit, [], []

    def progress(self, done: float, total: float, **figures: float) -> None:
        self.done.append(done / total)
        self.figures.append(figures)
        if len(self.done) >= self.limit:
            raise Cancelled


def small(algorithm: str = "ppo", **changes: object) -> stage.RlConfig:
    overrides = SMALL if algorithm == "ppo" else REPLAYED
    told = {"steps": 1024, "seed": 3, "overrides": overrides, "snapshots": 2, "videos": 0, "algorithm": algorithm}
    return stage.RlConfig(**told | changes)


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_gradients_by_hand_are_the_differences_of_the_loss(activation: str) -> None:
    chance = np.random.default_rng(0)
    net = Mlp((3, 5, 4, 2), chance, activation=activation, extra=2)
    x, pull = chance.normal(size=(7, 3)).astype(np.float32), chance.normal(size=(7, 2)).astype(np.float32)
    net.backward(net.forward(x), pull)
    for i in chance.permutation(net.theta.size - 2)[:40]:
        kept, losses = net.theta[i], []
        for change in (1e-2, -1e-2):
            net.theta[i] = kept + change
            losses.append(float((net(x) * pull).sum(dtype=np.float64)))
        net.theta[i] = kept
        assert net.grad[i] == pytest.approx((losses[0] - losses[1]) / 2e-2, rel=2e-2, abs=2e-2)


def test_the_slope_by_the_input_is_the_difference_of_the_output() -> None:
    chance = np.random.default_rng(0)
    net, x = Mlp((3, 8, 1), chance), chance.normal(size=(5, 3)).astype(np.float32)
    slope = net.pull(net.forward(x), np.ones((5, 1), np.float32))
    for i in range(3):
        change = np.float32([1e-2 * (k == i) for k in range(3)])
        np.testing.assert_allclose(slope[:, i], ((net(x + change) - net(x - change)) / 2e-2)[:, 0], atol=2e-3)


def test_the_actors_gradient_is_that_of_the_clipped_surrogate() -> None:
    ppo = Ppo(Sim(load_task("half-cheetah"), 8), PpoConfig(sims=8, rollout=16, minibatch=128, entropy=0.01), 0)
    chance = np.random.default_rng(0)
    seen, action = (chance.normal(size=(128, size)).astype(np.float32) for size in (17, 6))
    gain, likely = chance.normal(size=128), chance.normal(-9, 1, 128)
    asked: list[np.ndarray] = []
    ppo.actor_adam.step = lambda theta, grad, rate: asked.append(grad.copy())
    ppo._improve(seen, action, likely, gain)

    def loss() -> float:
        deviation = np.exp(ppo.actor.tail.astype(float))
        z = (action - ppo.actor(seen).astype(float)) / deviation
        ratio = np.exp(-0.5 * (z**2).sum(axis=1) - ppo.actor.tail.sum() - likely)
        surrogate = np.minimum(ratio * gain, np.clip(ratio, 0.8, 1.2) * gain).mean()
        return float(-surrogate - 0.01 * ppo.actor.tail.sum())

    size = ppo.actor.theta.size
    for i in [*range(size - 12, size), *chance.permutation(size)[:30]]:
        kept, losses = ppo.actor.theta[i], []
        for change in (2e-3, -2e-3):
            ppo.actor.theta[i] = kept + change
            losses.append(loss())
        ppo.actor.theta[i] = kept
        assert asked[0][i] == pytest.approx((losses[0] - losses[1]) / 4e-3, rel=0.05, abs=2e-3)


def test_adam_walks_down_a_bowl() -> None:
    theta, adam = np.float32([3, -2]), Adam(2)
    for _ in range(400):
        adam.step(theta, 2 * theta, 0.05)
    assert np.abs(theta).max() < 1e-2


def test_moments_are_those_of_all_rows_seen() -> None:
    rows = np.random.default_rng(0).normal(5, 3, (100, 4))
    moments = Moments(4)
    for part in (rows[:7], rows[7:60], rows[60:]):
        moments.update(part)
    np.testing.assert_allclose(moments.mean, rows.mean(axis=0))
    np.testing.assert_allclose(moments.square / moments.count, rows.var(axis=0))
    np.testing.assert_allclose(moments(rows), (rows - rows.mean(axis=0)) / rows.std(axis=0), atol=1e-5)


def test_rewards_are_divided_by_the_deviation_of_the_discounted_return() -> None:
    returns = Returns(1, 0.5)
    returns.update(np.array([[1.0], [1.0], [4.0]]), np.array([[False], [True], [False]]))
    assert returns(np.ones(1))[0] == pytest.approx(1 / np.std([1, 1.5, 4]), rel=1e-6)


def test_advantages_bootstrap_where_an_episode_was_cut_and_not_where_it_ended() -> None:
    ppo = Ppo(Sim(load_task("half-cheetah"), 2), PpoConfig(sims=2, rollout=3, minibatch=6, discount=0.9, trace=0.8), 0)
    rollout, _ = ppo.collect(lambda steps: None)
    rollout.reward[:] = [[1, 2], [3, 4], [5, 6]]
    rollout.ended[:] = [[False, False], [True, True], [False, False]]
    last = np.full(17, 0.1)
    rollout.cut = [(1, 0, last)]
    advantage, target = ppo.judge(rollout, ppo.normal(rollout.seen.reshape(6, 17)))
    value = lambda seen: float(ppo.critic(ppo.normal(np.atleast_2d(seen)))[0, 0])  # noqa: E731
    expected = np.zeros((3, 2))
    for i in (0, 1):
        v = [value(rollout.seen[t, i]) for t in range(3)]
        expected[2, i] = rollout.reward[2, i] + 0.9 * value(rollout.last[i]) - v[2]
        expected[1, i] = rollout.reward[1, i] + (0.9 * value(last) if i == 0 else 0) - v[1]
        expected[0, i] = rollout.reward[0, i] + 0.9 * v[1] - v[0] + 0.9 * 0.8 * expected[1, i]
    values = ppo.critic(ppo.normal(rollout.seen.reshape(6, 17)))[:, 0]
    np.testing.assert_allclose(target, expected.reshape(-1) + values, rtol=1e-4)
    np.testing.assert_allclose(
        advantage, (expected.reshape(-1) - expected.mean()) / expected.std(), rtol=1e-3, atol=1e-4
    )


def test_targets_of_values_are_the_lesser_critic_and_stop_where_an_episode_ended(tmp_path: Path) -> None:
    config = OffpolicyConfig(sims=2, smooth=0.0, replay=256, discount=0.99)
    learner = Offpolicy(Sim(load_task("half-cheetah"), 2), config, 0, tmp_path)
    seen = np.random.default_rng(0).normal(size=(6, 17)).astype(np.float32)
    reward, alive = np.arange(6, dtype=np.float32)[:, None], np.float32([[1], [1], [0], [1], [0], [1]])
    pairs = np.hstack([seen, np.tanh(learner.slow[0](seen))])
    lesser = np.minimum(learner.slow[1](pairs), learner.slow[2](pairs))
    np.testing.assert_allclose(learner.judge(reward, alive, seen), reward + 0.99 * alive * lesser, rtol=1e-5)


def test_the_actor_climbs_the_first_critic(tmp_path: Path) -> None:
    learner = Offpolicy(Sim(load_task("half-cheetah"), 2), OffpolicyConfig(sims=2, replay=256), 0, tmp_path)
    seen = np.random.default_rng(0).normal(size=(64, 17)).astype(np.float32)
    judged = lambda: learner.critics[0](np.hstack([seen, np.tanh(learner.actor(seen))])).mean()  # noqa: E731
    before = judged()
    for _ in range(20):
        learner.learn_actions(seen)
    assert judged() > before + 0.1


def test_a_replay_taken_back_finds_every_row_that_it_may_draw(tmp_path: Path) -> None:
    replay = Replay(tmp_path / "replay.f32", 80, 1)
    numbers = np.arange(200, dtype=np.float32)[:, None]
    for at in range(0, 120, 5):
        replay.add(numbers[at : at + 5])
    count = replay.keep()
    assert not replay.overdue(10)
    assert replay.overdue(11)
    replay.add(-numbers[:10])
    again = Replay(tmp_path / "replay.f32", 80, 1)
    again.restore(count)
    drawn = again.sample(5000, np.random.default_rng(0))
    assert set(drawn[:, 0].tolist()) == set(range(40, 120))


def test_half_cheetah_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    ppo = Ppo(Sim(load_task("half-cheetah"), 64), PpoConfig(sims=64, minibatch=1024, log_std=-1.0), 0)
    collect, rewards = ppo.collect, []

    def watched(beat: Callable[[int], None]) -> tuple[Rollout, dict[str, float]]:
        rollout, figures = collect(beat)
        rewards.append(rollout.reward.mean())
        return rollout, figures

    monkeypatch.setattr(ppo, "collect", watched)
    with ThreadPoolExecutor(1) as pool:
        for _ in range(20):
            ppo.iterate(pool, lambda steps: None)
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.3


def test_a_run_leaves_a_policy_that_fits_its_task_and_a_curve(tmp_path: Path) -> None:
    told = Told()
    stage.run(small(videos=2), {}, tmp_path, told)
    policy = load_policy(tmp_path, Sim(load_task("half-cheetah")))
    assert policy.act(np.zeros((4, 17))).shape == (4, 1, 6)
    curve = json.loads((tmp_path / "curve.json").read_text())
    assert curve["steps"] == list(range(128, 1025, 128))
    assert len(curve["kl"]) == len(curve["entropy"]) == len(curve["value_loss"]) == 8
    assert told.done[-1] == 1
    assert {"steps_per_second", "kl", "entropy", "value_loss"} <= told.figures[-1].keys()
    assert sorted(p.name for p in (tmp_path / ".work/policies").iterdir()) == ["0000000512", "0000001024"]
    made = [".work", "curve.json", "policy.json", "videos", "weights.safetensors"]
    assert sorted(p.name for p in tmp_path.iterdir()) == made
    videos = sorted((tmp_path / "videos").iterdir())
    assert [video.name for video in videos] == ["0000000512-steps.mp4", "0000001024-steps.mp4"]
    for video in videos:
        with av.open(video) as file:
            assert sum(1 for _ in file.decode(video=0)) == 60
    assert videos[0].read_bytes() != videos[1].read_bytes()
    assert (tmp_path / ".work" / "renderer").read_text()


def test_the_result_depends_on_the_seed_and_not_on_the_threads(tmp_path: Path) -> None:
    runs = {"one": small(threads=1), "two": small(threads=2), "other": small(seed=4)}
    for name, config in runs.items():
        stage.run(config, {}, tmp_path / name, Told())
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert digests(tmp_path / "one") != digests(tmp_path / "other")


CHILD = """
import sys, warnings
warnings.filterwarnings("ignore")
from pathlib import Path
from atoll.physical.rl import stage
sys.path.insert(0, str(Path(sys.argv[1])))
from test_rl import Told, small
stage.CHECKPOINT_EVERY_S = 0.0
print("ready", flush=True)
stage.run(small(algorithm=sys.argv[3], steps=4096, videos=2), {}, Path(sys.argv[2]), Told())
"""


@pytest.mark.parametrize("algorithm", ["ppo", "offpolicy"])
def test_killed_at_any_moment_a_run_ends_with_the_same_files(algorithm: str, tmp_path: Path) -> None:
    stage.run(small(algorithm=algorithm, steps=4096, videos=2), {}, tmp_path / "whole", Told())
    chance, kills = random.Random(0), 0
    for _ in range(40):
        argv = [sys.executable, "-c", CHILD, str(Path(__file__).parent), str(tmp_path / "cut"), algorithm]
        with subprocess.Popen(argv, stdout=subprocess.PIPE) as child:
            assert child.stdout
            assert child.stdout.readline() == b"ready\n"
            patience = time.monotonic() + (chance.uniform(0.05, 0.3) if kills < 4 else 60)
            while child.poll() is None and time.monotonic() < patience:
                time.sleep(0.005)
            ended = child.poll() is not None
            child.kill()
        if ended:
            break
        kills += 1
    assert kills
    assert digests(tmp_path / "cut") == digests(tmp_path / "whole")


def test_a_cancelled_run_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "CHECKPOINT_EVERY_S", 0.0)
    with pytest.raises(Cancelled):
        stage.run(small(), {}, tmp_path / "cut", Told(limit=5))
    told = Told()
    stage.run(small(), {}, tmp_path / "cut", told)
    assert told.done[0] > 0.4
    stage.run(small(), {}, tmp_path / "whole", Told())
    assert digests(tmp_path / "cut") == digests(tmp_path / "whole")


def test_a_folder_of_another_configuration_and_a_damaged_checkpoint_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "CHECKPOINT_EVERY_S", 0.0)
    with pytest.raises(Cancelled):
        stage.run(small(), {}, tmp_path, Told(limit=3))
    with pytest.raises(Conflict, match="another configuration"):
        stage.run(small(seed=4), {}, tmp_path, Told())
    path = tmp_path / ".work/checkpoint.npz"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InvalidRequest, match=r"checkpoint\.npz' is damaged"):
        stage.run(small(), {}, tmp_path, Told())


def test_a_checkpoint_of_which_a_bit_has_turned_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "saved.npz"
    checkpoint.save(path, {"weights": np.zeros(1000)})
    data = bytearray(path.read_bytes())
    for at in (len(data) // 2, len(data) - 1):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(InvalidRequest, match=r"'saved\.npz' is damaged: its SHA-256 .* remove it to begin anew"):
            checkpoint.load(path)


def test_a_checkpoint_gives_back_what_was_saved(tmp_path: Path) -> None:
    state = {"a": {"b/c": np.arange(3)}, "list": [{"x": np.eye(2)}, 5, [np.zeros(1)]], "big": 2**100, "none": None}
    checkpoint.save(tmp_path / "saved.npz", state)
    again = checkpoint.load(tmp_path / "saved.npz")
    assert again is not None
    assert (again["big"], again["none"], again["list"][1]) == (2**100, None, 5)
    for one, other in (
        (again["a"]["b/c"], np.arange(3)),
        (again["list"][0]["x"], np.eye(2)),
        (again["list"][2][0], np.zeros(1)),
    ):
        assert np.array_equal(one, other)


def test_a_checkpoint_never_unpickles(tmp_path: Path) -> None:
    path = tmp_path / "evil.npz"
    np.savez(path, plain=np.array([{"a": 1}], dtype=object))
    path.write_bytes(checkpoint.sealed(path.read_bytes()))
    with pytest.raises(InvalidRequest, match="damaged: Object arrays"):
        checkpoint.load(tmp_path / "evil.npz")


def test_a_reward_that_is_not_a_number_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    task = load_task("half-cheetah")
    sim = Sim(task, 8)
    monkeypatch.setitem(task.rewards, "bonus", Reward(lambda sim: np.full(sim.n, np.nan)))
    ppo = Ppo(sim, PpoConfig(sims=8, rollout=16, minibatch=64), 0)
    with pytest.raises(InvalidRequest, match="'bonus' of task 'half-cheetah' is nan"):
        ppo.collect(lambda steps: None)


def test_training_that_diverges_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ppo, "learn_values", lambda self, *rest: float("nan"))
    with pytest.raises(Exception, match="diverged after 128 steps: 'value_loss' is nan"):
        stage.run(small(), {}, tmp_path, Told())
    assert not (tmp_path / "policy.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"overrides": {"epoch": 3}}, "no setting 'epoch'"),
        ({"overrides": {"epochs": "many"}}, "'epochs'"),
        ({"overrides": {"minibatch": 500}}, "'minibatch' 500 must divide"),
        ({"overrides": {"discount": 1.5}}, "'discount' must be within 0..1"),
    ],
)
def test_settings_that_break_a_rule_are_refused_by_name(changes: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=message):
        stage.run(small(**changes), {}, tmp_path, Told())


def test_an_unknown_algorithm_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="'algorithm' must be one of"):
        stage.RlConfig(algorithm="sarsa")

"""The gate on real policies: one that balances passes, one that does not is stopped; both reports tell why."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from atoll.core.errors import InvalidRequest, NotInstalled, Unsupported
from atoll.core.gate import Rule
from atoll.core.manifest import Manifest
from atoll.core.session import Agreed, Inferred, Observed, Session, rules_of, step
from atoll.physical.policy import MlpPolicy, limits, load_policy, manifest_of, save_policy, spec
from atoll.physical.serve.passed import check_floor, check_gate
from atoll.physical.serve.record import fingerprint
from atoll.physical.sim import load_task
from atoll.physical.sim.physics import Physics
from atoll.physical.sim.sim import Sim, on_cores
from atoll.physical.sim.task import Task
from atoll.physical.validate import stage
from atoll.physical.validate.measure import limited, warp
from atoll.physical.validate.stage import Config, run

SMALL = Config(episodes=20, part=5, stress=(0.5,), cheap=5, noises=(), mark=200.0, videos=1)


class Quiet:
    def progress(self, done: float, total: float, **figures: float) -> None:
        assert 0 < done <= total


def balancer(folder: Path, gains: tuple[float, ...]) -> Path:
    """A linear policy for the inverted pendulum, whose observation is position, angle and their speeds."""
    sim = Sim(load_task("inverted-pendulum"), 1)
    seen, given = spec(sim)
    manifest = Manifest(sim.task.name, "mlp", 1 / sim.dt, seen, given, limits=limits(sim), network={"squash": "clip"})
    bound = sim.action_high
    weights = {
        "observation.mean": np.zeros(4, np.float32), "observation.scale": np.ones(4, np.float32),
        "0.weight": np.array(gains, np.float32)[:, None] / bound, "0.bias": np.zeros(1, np.float32),
        "action.shift": np.zeros(1, np.float32), "action.scale": bound,
    }  # fmt: skip
    save_policy(MlpPolicy(manifest, weights), folder)
    return folder


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return balancer(tmp_path / "good", (0.4, 9.0, 0.6, 1.6))


@pytest.fixture
def idle(tmp_path: Path) -> Path:
    return balancer(tmp_path / "idle", (0.0, 0.0, 0.0, 0.0))


def judge(policy: Path, out: Path, config: Config = SMALL, **more: Path) -> dict:
    out.mkdir()
    run(config, {"policy": policy, **more}, out, Quiet())
    return json.loads((out / "report.json").read_text())


def test_a_policy_that_balances_passes_and_may_be_served(good: Path, tmp_path: Path) -> None:
    told = judge(good, tmp_path / "report")
    assert told["decision"] == "pass", told["checks"]
    check_floor(check_gate(tmp_path / "report", fingerprint(good)))
    assert told["evidence"]["nominal"]["successes"] == 20
    assert set(told["evidence"]["variants"]) == {
        "half the time step", "conjugate gradient solver", "pyramidal friction",
    }  # fmt: skip
    page = (tmp_path / "report" / "index.html").read_text()
    assert "20 of 20 (100.0%)" in page and "<svg" in page and "http" not in page
    [video] = (tmp_path / "report").glob("*.mp4")
    assert video.name == "episode-0-success.mp4"
    with av.open(str(video)) as file:
        assert sum(1 for _ in file.decode(video=0)) > 100


def test_a_policy_that_does_nothing_is_stopped(idle: Path, good: Path, tmp_path: Path) -> None:
    told = judge(idle, tmp_path / "report", incumbent=good)
    failed = {check["name"] for check in told["checks"] if not check["passed"]}
    assert told["decision"] == "fail" and {"success", "stress 0.5", "regression"} <= failed
    with pytest.raises(InvalidRequest, match="no policy is served that has not passed"):
        check_gate(tmp_path / "report", fingerprint(idle))


def test_a_mark_that_random_actions_reach_does_not_pass(idle: Path, tmp_path: Path) -> None:
    told = judge(idle, tmp_path / "report", replace(SMALL, mark=-1e9, videos=0))
    assert [check["name"] for check in told["checks"] if not check["passed"]] == ["random actions"]


def test_a_lenient_gate_does_not_bring_a_policy_into_service(idle: Path, tmp_path: Path) -> None:
    told = judge(idle, tmp_path / "report", replace(SMALL, videos=0, rule=Rule(0, 0, 1, 1, -1, 1)))
    assert told["decision"] == "pass"
    with pytest.raises(InvalidRequest, match="less than every policy must show: success: 0 of 20"):
        check_floor(check_gate(tmp_path / "report", fingerprint(idle)))


def test_the_same_policy_gets_the_same_report(good: Path, tmp_path: Path) -> None:
    def digests(out: Path) -> dict[str, str]:
        judge(good, out)
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in out.iterdir() if path.is_file()}

    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def test_a_task_without_success_needs_a_mark(good: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="set 'mark'"):
        judge(good, tmp_path / "report", Config())


def test_a_policy_of_another_rate_is_not_judged(good: Path, tmp_path: Path) -> None:
    slow = tmp_path / "slow"
    policy = load_policy(good)
    save_policy(MlpPolicy(replace(policy.manifest, rate_hz=10.0), policy.weights()), slow)
    with pytest.raises(InvalidRequest, match="acts at 10 Hz"):
        judge(slow, tmp_path / "report")
    with pytest.raises(InvalidRequest, match="acts at 10 Hz"):
        judge(good, tmp_path / "again", incumbent=slow)


def test_physics_that_breaks_under_stress_is_told_and_decided_on(good: Path, tmp_path: Path, monkeypatch) -> None:
    """Every simulation begins faster than numbers can tell."""

    def wild(task: Task, level: float) -> Task:
        def fling(sim: Sim, i: int, rng: np.random.Generator) -> None:
            task.reset(sim, i, rng)
            sim.qvel[i] = 1e12

        return replace(task, reset=fling)

    monkeypatch.setattr(stage, "stressed", wild)
    told = judge(good, tmp_path / "report")
    assert told["decision"] == "fail"
    assert told["broken"] == {**dict.fromkeys(told["broken"], 0), "stress 0.5": 5}
    assert told["evidence"]["stress"]["0.5"]["successes"] == 0
    assert "5 (stress 0.5)" in (tmp_path / "report" / "index.html").read_text()


def test_the_gate_moves_a_robot_as_the_server_does() -> None:
    """The same wild actions, limited here and in a session."""
    sim = Sim(load_task("reach"), 2)
    manifest = manifest_of(sim, "mlp")
    wild = np.random.default_rng(0).uniform(sim.action_low, sim.action_high, (30, 2, 8))
    session = Session(rules_of(manifest))
    step(session, Agreed(simulated=True))
    act = limited(lambda seen, begun: wild[sim.elapsed[0]], sim, manifest)
    seen, begun = sim.reset([1, 2]), np.ones(2, bool)
    for k in range(30):
        at = 1 + k * sim.dt
        step(session, Observed(k, at, at, measured=seen[0, manifest.measured].tolist()))
        [told] = step(session, Inferred(k, wild[k, :1].tolist(), at))
        moved = act(seen, begun)
        np.testing.assert_allclose(moved[0], told.actions[0], atol=1e-9)
        assert np.abs(moved - wild[k]).max() > 0.05
        seen, begun = sim.step(moved).observation, np.zeros(2, bool)


def test_another_engine_is_tried_where_there_is_one(good: Path, tmp_path: Path, monkeypatch) -> None:
    """C MuJoCo in its place, then one that cannot step the model."""

    def unable(task: Task, n: int) -> Physics:
        raise Unsupported("it has a flex", param="physics")

    config = replace(SMALL, videos=0)
    monkeypatch.setattr(stage, "warp", lambda wanted: on_cores)
    told = judge(good, tmp_path / "a", config)
    assert told["evidence"]["variants"]["MuJoCo-Warp"]["successes"] == 5
    assert "simulated otherwise: MuJoCo-Warp" in [check["name"] for check in told["checks"]]
    monkeypatch.setattr(stage, "warp", lambda wanted: unable)
    assert "MuJoCo-Warp" not in judge(good, tmp_path / "b", config)["evidence"]["variants"]
    with pytest.raises(Unsupported, match="it has a flex"):
        judge(good, tmp_path / "c", replace(config, warp=True))


def test_an_engine_that_is_not_here_is_named(good: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "mujoco_warp", None)
    assert warp(None) is None and warp(False) is None
    with pytest.raises(NotInstalled, match=r"pip install 'atoll\[gpu\]'"):
        judge(good, tmp_path / "report", replace(SMALL, warp=True))


def test_filming_can_be_cancelled(good: Path, tmp_path: Path, monkeypatch) -> None:
    class Cancelled(Exception):
        pass

    def cancel(sim: Sim) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        stage.film(SMALL, load_task("inverted-pendulum"), load_policy(good), tmp_path, cancel)


@pytest.mark.parametrize(
    "change",
    [{"episodes": 1}, {"stress": (99.0,)}, {"noises": (-1.0,)}, {"videos": 21}, {"mark": float("nan")}],
)
def test_bad_settings_are_refused_by_name(change: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Config(**change)
    assert caught.value.param in change

"""The gate on real policies: one that balances passes, one that does not is stopped; both reports tell why."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from atoll.core.errors import InvalidRequest
from atoll.core.gate import Rule
from atoll.core.manifest import Manifest
from atoll.physical.policy import MlpPolicy, limits, save_policy, spec
from atoll.physical.serve.passed import check_floor, check_gate
from atoll.physical.serve.record import fingerprint
from atoll.physical.sim import load_task
from atoll.physical.sim.sim import Sim
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
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in out.iterdir()}

    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def test_a_task_without_success_needs_a_mark(good: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="set 'mark'"):
        judge(good, tmp_path / "report", Config())


@pytest.mark.parametrize(
    "change",
    [{"episodes": 1}, {"stress": (99.0,)}, {"noises": (-1.0,)}, {"videos": 21}, {"mark": float("nan")}],
)
def test_bad_settings_are_refused_by_name(change: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Config(**change)
    assert caught.value.param in change

"""Policies as folders: what is written is read back; what was tampered with or does not fit is refused by name."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest

from atoll.core.errors import InvalidRequest, NotFound, SetupError
from atoll.core.manifest import Channel, Manifest
from atoll.core.session import rules_of
from atoll.physical.policy import MlpPolicy, check_rate, load_policy, manifest_of, save_policy, spec
from atoll.physical.sim import load_task
from atoll.physical.sim.sim import Sim

pytestmark = pytest.mark.filterwarnings("ignore:compiler attribute 'settotalmass'")

MANIFEST = Manifest(
    task="half-cheetah", kind="mlp", rate_hz=20, observation=(Channel("qpos", 2), Channel("qvel", 1)),
    action=(Channel("hip", 2, "Nm", -1, 1),), chunk=3, network={"activation": "tanh", "squash": "clip"},
)  # fmt: skip


def weights(seen: int = 3, given: int = 2, chunk: int = 3) -> dict[str, np.ndarray]:
    chance = np.random.default_rng(0)
    sizes = [(seen, 8), (8, given * chunk)]
    layers = {f"{i}.weight": chance.normal(size=size) for i, size in enumerate(sizes)}
    layers |= {f"{i}.bias": chance.normal(size=size[1]) for i, size in enumerate(sizes)}
    around = {"observation.mean": chance.normal(size=seen), "observation.scale": chance.uniform(0.5, 2, seen)}
    around |= {"action.shift": chance.normal(size=given), "action.scale": chance.uniform(0.5, 2, given)}
    return {name: value.astype(np.float32) for name, value in (layers | around).items()}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_policy(MlpPolicy(MANIFEST, weights()), tmp_path)
    return tmp_path


def change(folder: Path, **fields: object) -> None:
    path = folder / "policy.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_policy_read_back_acts_the_same_to_the_last_bit(saved: Path) -> None:
    seen = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
    first, again = MlpPolicy(MANIFEST, weights()), load_policy(saved)
    assert first.act(seen).shape == (5, 3, 2)
    assert np.array_equal(first.act(seen), again.act(seen))
    assert dataclasses.replace(again.manifest, files={}) == MANIFEST


def test_equal_policies_are_equal_files(saved: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    save_policy(load_policy(saved), again)
    for name in ("policy.json", "weights.safetensors"):
        assert (saved / name).read_bytes() == (again / name).read_bytes()


def test_actions_are_the_formula_of_the_docstring(saved: Path) -> None:
    w, seen = weights(), np.float32([[0.3, -50, 2]])
    x = np.clip((seen - w["observation.mean"]) * w["observation.scale"], -10, 10)
    x = np.tanh(x @ w["0.weight"] + w["0.bias"]) @ w["1.weight"] + w["1.bias"]
    expected = w["action.shift"] + w["action.scale"] * np.clip(x.reshape(1, 3, 2), -1, 1)
    np.testing.assert_allclose(load_policy(saved).act(seen), expected, rtol=1e-5)


def test_a_changed_file_is_refused(saved: Path) -> None:
    data = bytearray((saved / "weights.safetensors").read_bytes())
    data[-1] ^= 1
    (saved / "weights.safetensors").write_bytes(data)
    with pytest.raises(InvalidRequest, match=r"weights\.safetensors.*SHA-256"):
        load_policy(saved)


def test_a_manifest_that_breaks_a_rule_is_refused_by_its_field(saved: Path) -> None:
    change(saved, chunk="many")
    with pytest.raises(InvalidRequest, match=r"'chunk' in policy\.json"):
        load_policy(saved)


def test_files_outside_of_the_folder_are_never_read(saved: Path) -> None:
    files = json.loads((saved / "policy.json").read_text())["files"]
    change(saved, files=files | {"../secret": "0" * 64})
    with pytest.raises(NotFound, match=r"'../secret' is missing"):
        load_policy(saved)


def test_weights_that_do_not_fit_the_spec_are_refused_by_name(saved: Path) -> None:
    change(saved, action=[{"name": "hip", "size": 1}])
    with pytest.raises(InvalidRequest, match=r"'action.shift' is \(2,\), but the spec asks for \(1,\)"):
        load_policy(saved)


def test_a_policy_of_another_environment_is_refused_by_channel(saved: Path) -> None:
    with pytest.raises(InvalidRequest, match="'qpos' of 2 where 'half-cheetah' has 'qpos' of 8"):
        load_policy(saved, Sim(load_task("half-cheetah")))


def test_a_policy_of_another_rate_is_refused() -> None:
    sim = Sim(load_task("half-cheetah"))
    check_rate(MANIFEST, sim)
    with pytest.raises(InvalidRequest, match="acts at 10 Hz, but 'half-cheetah' steps at 20 Hz") as caught:
        check_rate(dataclasses.replace(MANIFEST, rate_hz=10), sim)
    assert caught.value.param == "rate_hz"


def test_a_task_tells_its_spec() -> None:
    seen, given = spec(Sim(load_task("half-cheetah")))
    assert [(c.name, c.size) for c in seen] == [("qpos", 8), ("qvel", 9)]
    assert [(c.name, c.low, c.high) for c in given][:2] == [("bthigh", -1.0, 1.0), ("bshin", -1.0, 1.0)]


@pytest.mark.parametrize("name", ["reach", "push", "pick-place", "go1-velocity", "drone-hover", "lane-driving"])
def test_a_robot_moves_no_faster_than_its_task_says(name: str) -> None:
    manifest = manifest_of(Sim(load_task(name)), "mlp")
    bounds = rules_of(manifest).bounds
    assert all(bound.velocity < 1000 for bound in bounds)
    assert all(bound.velocity > 0.02 * (bound.high - bound.low) for bound in bounds)


@pytest.mark.parametrize(("name", "safe"), [("drone-hover", 0.5 * 9.81 / 4), ("lane-driving", 0.0)])
def test_what_may_not_hold_its_last_action_has_a_safe_one(name: str, safe: float) -> None:
    assert manifest_of(Sim(load_task(name)), "mlp").safe[0] == safe


def test_a_policy_of_the_arm_tells_where_the_arm_is_measured() -> None:
    sim = Sim(load_task("pick-place"), 2)
    manifest = manifest_of(sim, "mlp")
    np.testing.assert_allclose(sim.reset()[:, manifest.measured], sim.ctrl, atol=1e-6)
    assert manifest.limits.acceleration[:2] == (15.0, 7.5)


def test_no_policy_is_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"policy\.json.*missing"):
        load_policy(tmp_path)


def test_a_full_disk_leaves_the_old_policy_whole(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = sorted(path.name for path in saved.iterdir())
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SetupError, match=r"'weights\.safetensors' cannot be written: No space left on device"):
        save_policy(MlpPolicy(MANIFEST, weights()), saved)
    assert sorted(path.name for path in saved.iterdir()) == before
    load_policy(saved)

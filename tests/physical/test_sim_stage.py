"""The stage `sim`: the same files however often it is killed, and however many simulations run at once."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet
import pytest

from atoll.core.errors import InvalidRequest
from atoll.core.manifest import Channel, Manifest
from atoll.core.runs import Cancelled
from atoll.physical.policy import MlpPolicy, save_policy, spec
from atoll.physical.sim import load_task
from atoll.physical.sim.sim import Sim
from atoll.physical.sim.stage import STAGE, SimConfig
from atoll.physical.stages import load_stage

SMALL = {"task": "reacher", "episodes": 5, "height": 48, "width": 64}


class Told:
    """A reporter that cancels when it has been told `limit` times."""

    def __init__(self, limit: int = 10**9):
        self.times, self.limit, self.last = 0, limit, (0.0, 0.0)

    def progress(self, done: float, total: float, **figures: float) -> None:
        self.times, self.last = self.times + 1, (done, total)
        if self.times > self.limit:
            raise Cancelled


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.iterdir() if path.is_file())
    return {path.name: sha256(path.read_bytes()).hexdigest() for path in files}


def run(out: Path, report: Told | None = None, inputs: dict | None = None, **changes: object) -> Path:
    out.mkdir(exist_ok=True)
    STAGE.run(SimConfig(**(SMALL | changes)), inputs or {}, out, report or Told())
    return out


def test_episodes_steps_and_a_video(tmp_path: Path) -> None:
    out = run(tmp_path / "a")
    assert load_stage("sim") is STAGE
    assert sorted(digests(out)) == ["episodes.parquet", "rollout.json", "steps.parquet", "video.mp4"]
    assert [path.name for path in (out / ".work").iterdir()] == ["renderer"]
    episodes = pyarrow.parquet.read_table(out / "episodes.parquet").to_pydict()
    steps = pyarrow.parquet.read_table(out / "steps.parquet")
    assert episodes["seed"] == [0, 1, 2, 3, 4] and episodes["lengths"] == [50] * 5
    assert steps.num_rows == 250 and len(steps["observation"][0]) == 10 and len(steps["action"][0]) == 2
    rewards = np.reshape(steps["reward"].to_numpy(), (5, 50))
    assert np.allclose(rewards.sum(axis=1), episodes["returns"], rtol=1e-12)
    told = json.loads((out / "rollout.json").read_text())
    assert told["task"] == "reacher" and told["means"]["returns"] == pytest.approx(np.mean(episodes["returns"]))
    with av.open(str(out / "video.mp4")) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(frames) == 49 and frames[0].shape == (48, 64, 3)
    assert np.ptp(frames[0].astype(int)) > 50 and not np.array_equal(frames[0], frames[40])


def test_the_recorded_actions_lead_to_the_recorded_observations(tmp_path: Path) -> None:
    steps = pyarrow.parquet.read_table(run(tmp_path / "a", height=0) / "steps.parquet")
    seen, done = (np.array(steps[name].to_pylist(), np.float32) for name in ("observation", "action"))
    sim = Sim(load_task("reacher"))
    assert np.array_equal(sim.reset([2])[0].astype(np.float32), seen[100])
    for k in range(100, 149):
        assert np.array_equal(sim.step(done[k : k + 1]).observation[0].astype(np.float32), seen[k + 1])


def test_files_are_the_same_after_kills_and_however_many_run_at_once(tmp_path: Path) -> None:
    whole = digests(run(tmp_path / "whole"))
    for left in (3, 2, 1):  # parts of two episodes that are still to be done; then comes the video
        with pytest.raises(Cancelled):
            run(tmp_path / "cut", Told(1), sims=2)
        assert len(list((tmp_path / "cut" / ".work").iterdir())) == 4 - left
    assert digests(run(tmp_path / "cut", sims=2)) == whole
    assert digests(run(tmp_path / "cut", sims=2)) == whole


def test_a_policy_is_played_and_must_fit(tmp_path: Path) -> None:
    sim = Sim(load_task("reacher"))
    save_policy(policy(sim), tmp_path / "policy")
    report = Told()
    out = run(tmp_path / "a", report, {"policy": tmp_path / "policy"}, task="", height=0)
    actions = pyarrow.parquet.read_table(out / "steps.parquet")["action"].to_pylist()
    assert np.allclose(actions, [0.25, -0.25])
    assert report.times and report.last[1] == 5
    assert json.loads((out / "rollout.json").read_text())["policy"] is True
    with pytest.raises(InvalidRequest, match="'reacher'"):
        run(tmp_path / "b", None, {"policy": tmp_path / "policy"}, task="hopper")


def policy(sim: Sim) -> MlpPolicy:
    seen, given = spec(sim)
    size = sum(channel.size for channel in seen)
    weights = {
        "observation.mean": np.zeros(size, np.float32),
        "observation.scale": np.ones(size, np.float32),
        "0.weight": np.zeros((size, 2), np.float32),
        "0.bias": np.array([0.25, -0.25], np.float32),
        "action.shift": np.zeros(2, np.float32),
        "action.scale": np.ones(2, np.float32),
    }
    assert all(isinstance(channel, Channel) for channel in given)
    return MlpPolicy(Manifest("reacher", "mlp", 1 / sim.dt, seen, given), weights)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"episodes": 0}, "'episodes'"), ({"sims": 0}, "'sims'"), ({"height": 47}, "even"), ({"seed": -1}, "'seed'")],
)
def test_a_setting_out_of_range_is_named(change: dict, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        SimConfig(**change)

"""The stage `synth`: the same files however often it is killed, what the card says, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import synth_child as child
from pydantic import TypeAdapter

from atoll.core.errors import InvalidRequest, NotFound, SimulationFailed
from atoll.core.manifest import Image
from atoll.core.runs import Cancelled
from atoll.physical.imitation.data import read_demonstrations
from atoll.physical.sim import load_task
from atoll.physical.sim.sim import Sim
from atoll.physical.stages import load_stage
from atoll.physical.synth.cameras import Cameras
from atoll.physical.synth.dataset import Dataset
from atoll.physical.synth.film import Film
from atoll.physical.synth.looks import Amounts
from atoll.physical.synth.stage import APART, Config, run

STILL = Amounts(0, 0, 0, 0, 0)


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("atoll.physical.synth.stage.BLOCK", 5)
        run(child.CONFIG, {}, folder, child.Quiet())
    return folder


def test_the_data_set_and_its_card(made: Path) -> None:
    assert not (made / ".work" / "episodes").exists()
    card = json.loads((made / "card.json").read_text())
    with Dataset(made) as data:
        assert (card["task"], card["episodes"], card["frames"]) == ("reach", 21, len(data))
        assert data.cameras == ["wrist"] and data.rate_hz == 20
        assert data.columns["next.success"][np.cumsum(data.lengths) - 1].all()
        assert np.array_equal(np.flatnonzero(data.columns["next.done"]) + 1, np.cumsum(data.lengths))
        seeds = data.episodes["atoll/seed"]
        assert (np.diff(seeds) > 0).all() and seeds[0] >= APART
        assert set(data.episodes["atoll/source"].tolist()) <= set(range(4))
        begin = Sim(load_task("reach"), 1).reset([int(seeds[7])])[0]
        assert np.allclose(data.episode(7, ()).observation[0], begin, atol=1e-6)
    assert card["generation"]["rate"] == round(card["generation"]["succeeded"] / card["generation"]["tried"], 4)
    assert card["generation"]["rate"] >= 0.7 and card["demonstrations"]["by"] == "expert"
    assert card["renderer"] and card["licence"] and card["versions"]["mujoco"]
    assert card["config"]["amplify_to"] == 21 and card["parents"] == {}
    shown = read_demonstrations(made, ("wrist",))
    assert shown.task == "reach" and shown.images["wrist"].shape == (card["frames"], 32, 48, 3)


def test_killed_at_any_moment_it_ends_with_the_same_files(made: Path, tmp_path: Path) -> None:
    chance, folder = np.random.default_rng(3), tmp_path / "out"
    folder.mkdir()
    for _ in range(3):
        process = subprocess.Popen([sys.executable, child.__file__, str(folder)])
        started, wait = time.monotonic(), chance.uniform(0, 1.5)
        while process.poll() is None and not (folder / ".work").exists() and time.monotonic() - started < 60:
            time.sleep(0.02)
        time.sleep(wait)
        process.kill()
        process.wait(timeout=20)
    subprocess.run([sys.executable, child.__file__, str(folder)], check=True, timeout=120)
    assert digests(folder) == digests(made)


def test_cancelled_it_keeps_its_parts_and_goes_on(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Cut(child.Quiet):
        def progress(self, done: float, total: float, **figures: float) -> None:
            if done >= 5:
                raise Cancelled

    monkeypatch.setattr("atoll.physical.synth.stage.BLOCK", 5)
    with pytest.raises(Cancelled):
        run(child.CONFIG, {}, tmp_path, Cut())
    assert not (tmp_path / "card.json").exists()
    with pytest.raises(NotFound, match="it is not finished"):
        Dataset(tmp_path)
    run(child.CONFIG, {}, tmp_path, child.Quiet())
    assert digests(tmp_path) == digests(made)


def test_demonstrations_of_a_data_set_are_made_many(made: Path, tmp_path: Path) -> None:
    (made / "artifact.json").write_text(json.dumps({"digest": "d" * 64}))
    run(Config("reach", demonstrations=3, amplify_to=6), {"demonstrations": made}, tmp_path, child.Quiet())
    (made / "artifact.json").unlink()
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["demonstrations"] == {"by": "data set", "used": 3}
    assert card["parents"] == {"demonstrations": "d" * 64} and card["episodes"] == 6
    for other in ("push", "half-cheetah"):
        with pytest.raises((InvalidRequest, NotFound)):
            run(Config(task=other, amplify_to=6), {"demonstrations": made}, tmp_path / other, child.Quiet())
    with pytest.raises(InvalidRequest, match="'amplify_to' must be at least 1"):
        run(Config("reach", amplify_to=0), {"demonstrations": made}, tmp_path / "none", child.Quiet())


def test_an_experts_demonstrations_alone(tmp_path: Path) -> None:
    run(Config(task="push", demonstrations=5, amplify_to=0), {}, tmp_path, child.Quiet())
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["generation"]["by"] == "expert" and card["demonstrations"] is None and card["episodes"] == 5
    with Dataset(tmp_path) as data:
        assert data.episodes["atoll/seed"].min() < APART


def test_noise_that_makes_everything_fail_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atoll.physical.synth.stage.PATIENCE", 0)
    with pytest.raises(SimulationFailed, match="only 0 of 2 tries succeeded"):
        run(Config(demonstrations=2, amplify_to=4, action_noise=0.1), {}, tmp_path, child.Quiet())


def test_film_shows_what_a_policy_will_see() -> None:
    images = (Image("front", 48, 64), Image("wrist", 48, 48))
    sim = Sim(load_task("pick-place"), 2, seed=4)
    sim.reset()
    for _ in range(5):
        sim.step(sim.ctrl + 0.1)
    with Cameras(sim, images) as cameras, Film(sim.model, images, STILL) as film:
        seen, shot = cameras(np.array([1])), film.shoot(sim.physics.batch.state[1:], seed=0)
        for image in images:
            assert np.array_equal(seen[image.name], shot[image.name]) and seen[image.name].std() > 10
    with Film(sim.model, images, Amounts()) as film:
        first, again, other = (film.shoot(sim.physics.batch.state[1:], seed)["front"] for seed in (1, 1, 2))
        assert np.array_equal(first, again) and not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("field", "value"),
    [("amplify_to", -1), ("height", 33), ("width", 8), ("action_noise", 1.0), ("waypoint_noise", -0.1), ("seed", -1)],
)
def test_a_config_out_of_range_is_named(field: str, value: float) -> None:
    with pytest.raises(InvalidRequest, match=f"'{field}' must be"):
        TypeAdapter(load_stage("synth").config).validate_python({field: value})

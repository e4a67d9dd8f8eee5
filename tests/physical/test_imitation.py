"""Policies learned from demonstrations of a pole that is balanced: they balance it too, and a kill changes nothing."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch

from atoll.core.errors import Conflict, InvalidRequest, NotFound
from atoll.core.runs import Cancelled
from atoll.physical.imitation import clone
from atoll.physical.imitation.data import read_demonstrations
from atoll.physical.imitation.networks import NETWORKS, Sizes
from atoll.physical.imitation.stage import Config, run
from atoll.physical.policy import load_manifest, load_policy
from atoll.physical.sim import load_task
from atoll.physical.sim.rollout import acting, rollout
from atoll.physical.sim.sim import Sim
from atoll.physical.synth.card import lineage
from atoll.physical.synth.video import write_video

GAINS = np.array([0.4, 9.0, 0.6, 1.6], np.float32)
KINDS = {"mlp": 1200, "act": 250, "diffusion": 1500}


class Quiet:
    def progress(self, done: float, total: float, **figures: float) -> None:
        assert done <= total and figures["loss"] >= 0


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 episodes of 100 steps by a linear controller that is pushed about, so that it shows how to recover."""
    folder, chance = tmp_path_factory.mktemp("shown"), np.random.default_rng(0)
    sim = Sim(load_task("inverted-pendulum"), 16, seed=0)
    seen, states, actions = sim.reset(), [], []
    for _ in range(100):
        action = np.clip(seen @ GAINS, -3, 3)[:, None].astype(np.float32)
        states.append(seen.astype(np.float32))
        actions.append(action)
        seen = sim.step(np.clip(action + chance.normal(0, 0.4, action.shape), -3, 3)).observation
    (folder / "meta").mkdir()
    (folder / "meta" / "info.json").write_text(json.dumps({"fps": 25, "features": {}}))
    (folder / "card.json").write_text(json.dumps({"task": "inverted-pendulum"}))
    save_rows(folder, np.stack(states, 1), np.stack(actions, 1))
    return folder


def save_rows(folder: Path, states: np.ndarray, actions: np.ndarray) -> None:
    """(episodes, steps, size)"""
    (folder / "data" / "chunk-000").mkdir(parents=True, exist_ok=True)
    columns = {
        "observation.state": list(states.reshape(-1, states.shape[-1])),
        "action": list(actions.reshape(-1, actions.shape[-1])),
        "episode_index": np.repeat(np.arange(len(states)), states.shape[1]),
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "data" / "chunk-000" / "file-000.parquet")


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.mark.parametrize("kind", KINDS)
def test_it_does_what_it_was_shown(kind: str, shown: Path, tmp_path: Path) -> None:
    run(Config(kind=kind, chunk=4, steps=KINDS[kind], batch=64, width=64), {"dataset": shown}, tmp_path, Quiet())
    sim = Sim(load_task("inverted-pendulum"), 8)
    policy = load_policy(tmp_path, sim)
    assert policy.manifest.kind == kind and policy.manifest.rate_hz == pytest.approx(25)
    assert policy.act(np.zeros((3, 4), np.float32)).shape == (3, 4, 1)
    assert np.array_equal(policy.act(np.ones((1, 4), np.float32)), policy.act(np.ones((1, 4), np.float32)))
    done = rollout(sim, acting(policy, sim, 1), 8, seed=1000)
    assert np.median(done.lengths) > 300, "without a policy the pole falls within 40 steps"


def test_the_manifest_tells_what_it_was_learned_from(shown: Path, tmp_path: Path) -> None:
    assert lineage(shown) == {}
    data = shutil.copytree(shown, tmp_path / "data")
    card = {"task": "inverted-pendulum", "parents": {"demonstrations": "b" * 64}}
    (data / "card.json").write_text(json.dumps(card))
    (data / "artifact.json").write_text(json.dumps({"digest": "a" * 64}))
    run(Config(chunk=4, steps=2, batch=8, width=8), {"dataset": data}, tmp_path / "out", Quiet())
    assert load_manifest(tmp_path / "out").lineage == {"dataset": "a" * 64, "demonstrations": "b" * 64}
    for card in ({"parents": {"demonstrations": None}}, []):
        (data / "card.json").write_text(json.dumps(card))
        assert lineage(data) == {"dataset": "a" * 64}


def test_killed_and_called_again_it_ends_with_the_same_files(
    shown: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Cut(Quiet):
        def progress(self, done: float, total: float, **figures: float) -> None:
            if done > 30:
                raise Cancelled

    config = Config(kind="act", chunk=4, steps=60, batch=16, width=16)
    monkeypatch.setattr(clone, "CHECKPOINT_EVERY_S", 0)
    monkeypatch.setattr(clone, "TELL_EVERY_S", 0)
    (tmp_path / "cut").mkdir()
    (tmp_path / "whole").mkdir()
    run(config, {"dataset": shown}, tmp_path / "whole", Quiet())
    with pytest.raises(Cancelled):
        run(config, {"dataset": shown}, tmp_path / "cut", Cut())
    assert (tmp_path / "cut" / ".work").exists() and not (tmp_path / "cut" / "policy.json").exists()
    with pytest.raises(Conflict, match="another configuration"):
        run(Config(kind="act", seed=9), {"dataset": shown}, tmp_path / "cut", Quiet())
    run(config, {"dataset": shown}, tmp_path / "cut", Quiet())
    assert digests(tmp_path / "cut") == digests(tmp_path / "whole")


@pytest.mark.parametrize("kind", ["cnn", "act", "diffusion"])
def test_it_learns_from_pictures(kind: str) -> None:
    """What is to be done is told by the picture alone: bright or dark."""
    torch.manual_seed(0)
    network = NETWORKS[kind](Sizes(state=2, action=1, chunk=2, width=32, cameras=("front",)))
    noise, optimiser = torch.Generator().manual_seed(0), torch.optim.Adam(network.parameters(), 2e-3)
    wanted = (torch.arange(32) % 2).float() * 2 - 1
    images = {"front": (127 + 90 * wanted[:, None, None, None] + torch.zeros(32, 64, 64, 3)).to(torch.uint8)}
    state, chunk = torch.zeros(32, 2), wanted[:, None, None].expand(32, 2, 1)
    for _ in range(60 if kind != "diffusion" else 150):
        optimiser.zero_grad()
        network.loss(state, images, chunk, noise).backward()
        optimiser.step()
    network.eval()
    with torch.inference_mode():
        assert (network(state, images).sign() == chunk).all()


def test_chunks_stop_at_the_end_of_an_episode(shown: Path) -> None:
    data = read_demonstrations(shown)
    assert (data.episodes, len(data.states), data.rate_hz) == (16, 1600, 25)
    chunk = data.chunks(np.array([0, 98, 99, 100]), 3)
    assert np.array_equal(chunk[1], data.actions[[98, 99, 99]]) and np.array_equal(chunk[2], data.actions[[99] * 3])
    assert np.array_equal(chunk[3], data.actions[100:103])


def test_damaged_data_is_named(shown: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"meta/info\.json is missing"):
        read_demonstrations(tmp_path)
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "info.json").write_text((shown / "meta" / "info.json").read_text())
    (tmp_path / "card.json").write_text('{"task": "inverted-pendulum"}')
    states = np.zeros((3, 5, 4), np.float32)
    states[1, 2, 0] = np.nan
    save_rows(tmp_path, states, np.zeros((3, 5, 1), np.float32))
    with pytest.raises(InvalidRequest, match="episode 1 of"):
        read_demonstrations(tmp_path)
    with pytest.raises(InvalidRequest, match="no camera 'front'; it has: none"):
        read_demonstrations(shown, ("front",))
    [file] = (tmp_path / "data").rglob("*.parquet")
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(InvalidRequest, match="is damaged"):
        read_demonstrations(tmp_path)


def test_pictures_are_read_in_the_order_of_the_rows(shown: Path, tmp_path: Path) -> None:
    (tmp_path / "meta").mkdir()
    features = {"observation.images.front": {"shape": [32, 32, 3]}}
    (tmp_path / "meta" / "info.json").write_text(json.dumps({"fps": 25, "features": features}))
    (tmp_path / "card.json").write_text('{"task": "inverted-pendulum"}')
    save_rows(tmp_path, np.zeros((2, 5, 4), np.float32), np.zeros((2, 5, 1), np.float32))
    folder = tmp_path / "videos" / "observation.images.front" / "chunk-000"
    folder.mkdir(parents=True)
    shades = np.arange(10, dtype=np.uint8) * 20 + 20
    write_video(folder / "file-000.mp4", (np.full((32, 32, 3), shade) for shade in shades), 25)
    seen = read_demonstrations(tmp_path, ("front",)).images["front"]
    assert seen.shape == (10, 32, 32, 3)
    assert np.abs(seen.mean(axis=(1, 2, 3)) - shades).max() < 6


@pytest.mark.parametrize("change", [{"chunk": 0}, {"batch": 0}, {"learning_rate": 2.0}, {"average": 1.0}])
def test_bad_settings_are_refused_by_name(change: dict[str, float]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Config(**change)
    assert caught.value.param in change

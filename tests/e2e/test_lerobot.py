"""LeRobot's own reader, in an environment of its own, reads what we write."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from clients.environments import HERE, python_environment

from atoll.core.manifest import Channel, Image
from atoll.physical.synth.dataset import Dataset
from atoll.physical.synth.episode import Episode
from atoll.physical.synth.writers.lerobot import Format, Writer

CAMERA = "observation.images.front"


def episode(seed: int, steps: int) -> Episode:
    chance = np.random.default_rng(seed)
    pictures = np.zeros((steps, 48, 64, 3), np.uint8)
    pictures[..., 0] = np.arange(steps)[:, None, None] * 4
    pictures[..., 1] = seed * 30
    return Episode(
        chance.normal(size=(steps, 5)).astype(np.float32),
        chance.normal(size=(steps, 2)).astype(np.float32),
        chance.normal(size=steps).astype(np.float32),
        np.arange(steps) >= steps - 3,
        {"front": pictures},
        {"seed": seed},
    )


@pytest.mark.timeout(600)
def test_lerobot_reads_what_we_write(tmp_path: Path) -> None:
    state, action = (Channel("q", 4, "rad"), Channel("width", 1, "m")), (Channel("q", 2, "rad"),)
    writer = Writer(tmp_path / "data", Format("Stack it.", 20, "panda", state, action, (Image("front", 48, 64),)))
    episodes = [episode(seed, 20 + 7 * seed) for seed in range(6)]
    writer.add(episodes[:4])
    writer.add(episodes[4:])
    writer.finish()
    ids = [0, 1, 19, 20, 60, 130, writer.frames - 1]
    told = read_with_lerobot(tmp_path, ids)
    assert (told["frames"], told["episodes"], told["fps"]) == (writer.frames, 6, 20)
    with Dataset(tmp_path / "data") as ours:
        mine = ours.rows(ids)
        for k, row in enumerate(told["rows"]):
            for name in ("observation.state", "action", "next.reward", "next.success", "next.done", "timestamp"):
                assert np.array_equal(np.asarray(row[name], mine[name].dtype), mine[name][k]), name
            for name in ("episode_index", "frame_index", "index", "task_index"):
                assert row[name] == mine[name][k]
            assert row["task"] == "Stack it."
            seen = np.rint(np.array(row[CAMERA]).transpose(1, 2, 0) * 255)
            assert np.array_equal(seen, mine[CAMERA][k])
            assert abs(seen[..., 0].mean() - 4 * row["frame_index"]) < 3
            assert abs(seen[..., 1].mean() - 30 * row["episode_index"]) < 3
        assert np.allclose(told["ahead"], ours.columns["action"][ids[0] : ids[0] + 3])
        everything = ours.columns["action"].astype(np.float64)
        stats = told["stats"]["action"]
        assert np.allclose(stats["mean"], everything.mean(axis=0)) and np.allclose(stats["std"], everything.std(axis=0))
        assert np.allclose(stats["min"], everything.min(axis=0)) and stats["count"] == [writer.frames]
        assert np.shape(told["stats"][CAMERA]["mean"]) == (3, 1, 1)


def read_with_lerobot(folder: Path, ids: list[int]) -> dict:
    python = python_environment("lerobot", beside=True) / "python"
    argv = [str(python), str(HERE / "lerobot_read.py"), str(folder / "data"), *map(str, ids)]
    scratch = {"HF_HOME": str(folder / "hf"), "HF_DATASETS_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(argv, env=os.environ | scratch, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)

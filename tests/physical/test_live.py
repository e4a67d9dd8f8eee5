"""What a stage shows of itself while it works."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atoll.physical.sim import load_task
from atoll.physical.sim.sim import Sim
from atoll.physical.synth import live
from atoll.physical.synth.live import View

pytestmark = pytest.mark.filterwarnings("ignore:compiler attribute 'settotalmass'")


def test_the_picture_is_whole_moves_and_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "EVERY_S", 0.0)
    monkeypatch.setattr(live, "SHARE", 1e9)
    sim, same = (Sim(load_task("inverted-pendulum"), 2, seed=1) for _ in range(2))
    pictures = []
    with View(tmp_path) as view:
        for each in (sim, same):
            each.reset()
        for _ in range(30):
            action = np.full((2, 1), 1.0, np.float32)
            assert np.array_equal(sim.step(action).observation, same.step(action).observation), "watched or not"
            view.show(sim)
            pictures.append(np.asarray(Image.open(view.path)).astype(int))
        assert [p.name for p in tmp_path.iterdir()] == ["view.jpg"]
    assert pictures[0].shape == (360, 480, 3) and pictures[0].std() > 3
    assert np.abs(pictures[0] - pictures[-1]).max() > 50
    assert list(tmp_path.iterdir()) == []


def test_it_takes_little_time_of_those_that_are_watched(tmp_path: Path) -> None:
    sim = Sim(load_task("inverted-pendulum"), 1)
    sim.reset()
    with View(tmp_path) as view:
        view.show(sim)
        first = view.path.stat().st_mtime_ns
        for _ in range(50):
            view.show(sim)
        assert view.path.stat().st_mtime_ns == first


def test_pictures_take_a_share_of_the_time_but_for_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, written = Clock(), []
    monkeypatch.setattr(live, "time", clock)
    with View(tmp_path) as view:
        monkeypatch.setattr(view, "_write", lambda picture: written.append(clock.pass_by(3.0)))
        sim = Sim(load_task("inverted-pendulum"))
        sim.reset([0])
        view.show(sim)
        clock.pass_by(live.EVERY_S)
        view.show(sim)
        assert len(written) == 2, "the second had to wait for what the first took"
        clock.pass_by(3.0 / live.SHARE - 1)
        view.show(sim)
        assert len(written) == 2, "pictures take more than their share"
        clock.pass_by(2.0)
        view.show(sim)
        assert len(written) == 3


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += seconds

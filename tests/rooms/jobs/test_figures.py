"""The figures of a step: bounded, and whole lines only."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from atoll.core.runs import Cancelled
from atoll.jobs.figures import Figures, figures, latest, read


def never() -> bool:
    return False


def test_calls_that_come_fast_are_told_together(tmp_path: Path) -> None:
    with figures(tmp_path / "f", never) as report:
        report.progress(1, 10, loss=3.0)
        report.progress(2, 10, reward=1.0)
        report.progress(3, 10, loss=2.0, bad=float("nan"))
        report.flush()
        report.progress(4, 10, reward=5.0)
    assert latest(tmp_path / "f")["figures"] == {"loss": 2, "reward": 5}
    lines, _ = read(tmp_path / "f")
    told = [(line["done"], line["figures"]) for line in lines]
    assert told == [(1, {"loss": 3}), (3, {"loss": 2, "reward": 1}), (4, {"reward": 5})]


def test_a_long_step_writes_ever_more_slowly(tmp_path: Path) -> None:
    now = [0.0]
    file = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    report = Figures(file, never, lambda: now[0])
    for i in range(50_000):
        now[0] += 0.2
        report.progress(i, 50_000)
    os.close(file)
    assert 4000 < len(read(tmp_path / "f")[0]) < 6000


def test_a_cancelled_step_hears_of_it(tmp_path: Path) -> None:
    with pytest.raises(Cancelled), figures(tmp_path / "f", lambda: True) as report:
        report.progress(1, 10)


def test_a_line_that_was_cut_off_is_left_out_and_the_next_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "f"
    with figures(path, never) as report:
        report.progress(1, 2)
    with path.open("a") as file:
        file.write('{"at":1,"done":')
    assert latest(path)["done"] == 1
    first, after = read(path)
    with figures(path, never) as report:
        report.progress(2, 2)
    assert len(first) == 1 and latest(path)["done"] == 2
    assert [line["done"] for line in read(path, after)[0]] == [2]
    assert read(tmp_path / "none") == ([], 0) and latest(tmp_path / "none") is None

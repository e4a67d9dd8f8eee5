"""Data sets keep what is finished whatever happens, take nothing half-written for whole, and name what is damaged."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import writing_child as child

from atoll.core.errors import Conflict, InvalidRequest, NotFound
from atoll.core.manifest import Channel
from atoll.physical.imitation.data import read_demonstrations
from atoll.physical.synth.dataset import Dataset
from atoll.physical.synth.episode import Episode
from atoll.physical.synth.writers.lerobot import Format, Writer

PARTS = 8
PLAIN = Format("Do it.", 10, "panda", (Channel("q", 3, "rad"),), (Channel("q", 2, "rad"),))


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    writer = child.write(folder, PARTS)
    writer.finish()
    writer.discard()
    return folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    subprocess.run(["cp", "-r", str(whole), str(tmp_path / "copy")], check=True, timeout=20)
    return tmp_path / "copy"


def test_episodes_come_back_as_they_were_written(whole: Path) -> None:
    wanted = [episode for number in range(PARTS) for episode in child.part(number)]
    with Dataset(whole) as data:
        assert data.lengths.tolist() == [len(episode) for episode in wanted] and data.cameras == ["front"]
        for i, episode in enumerate(wanted):
            seen = data.episode(i)
            for name in ("observation", "action", "reward", "success"):
                assert np.array_equal(getattr(seen, name), getattr(episode, name)), name
            assert seen.facts == episode.facts
            assert np.abs(seen.images["front"].mean(axis=(1, 2)) - episode.images["front"].mean(axis=(1, 2))).max() < 12
        ids = np.random.default_rng(0).permutation(len(data))
        mixed, ordered = data.rows(ids), data.rows(np.sort(ids))
        for name, column in ordered.items():
            assert np.array_equal(mixed[name], column[ids]), name


def test_imitation_reads_it_too(copy: Path) -> None:
    (copy / "card.json").write_text('{"task": "stack"}')
    shown = read_demonstrations(copy, ("front",))
    with Dataset(copy) as data:
        assert np.array_equal(shown.states, data.columns["observation.state"])
        assert np.array_equal(shown.images["front"], data.pictures("front", np.arange(len(data))))


def test_statistics_are_those_of_all_rows(whole: Path) -> None:
    told = json.loads((whole / "meta/stats.json").read_text())
    with Dataset(whole) as data:
        for name, column in data.columns.items():
            rows = column.reshape(len(column), -1).astype(np.float64)
            assert told[name]["count"] == [len(rows)]
            for kind in ("mean", "std", "min", "max"):
                assert np.allclose(told[name][kind], getattr(rows, kind)(axis=0)), (name, kind)


def test_killed_again_and_again_it_ends_with_the_same_files(tmp_path: Path) -> None:
    folder, finished = tmp_path / "data", 0
    chance = np.random.default_rng(int.from_bytes(hashlib.sha256(b"kill").digest()[:4], "little"))
    for _ in range(4):
        argv = [sys.executable, child.__file__, str(folder)]
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        told = process.stdout.readline()
        time.sleep(chance.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        told += process.communicate(timeout=20)[0]
        finished = max(finished, *[int(line) for line in told.splitlines()])
        with pytest.raises(NotFound, match="it is not finished"):
            Dataset(folder)
        kept = Writer(folder, child.FORM)
        assert finished <= kept.parts <= finished + 1
        assert kept.notes() == [{"tried": 5}] * kept.parts
    parts = Writer(folder, child.FORM).parts + 1
    child.write(folder, parts).finish()
    writer = Writer(folder, child.FORM)
    writer.finish()
    writer.discard()
    unbroken = child.write(tmp_path / "unbroken", parts)
    unbroken.finish()
    unbroken.discard()
    assert digests(folder) == digests(tmp_path / "unbroken")


def test_a_full_disk_is_told_and_keeps_what_is_finished(tmp_path: Path) -> None:
    argv = [sys.executable, child.__file__, str(tmp_path), "80000"]
    told = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()
    assert "cannot be written" in told[-1] and "episodes finished before are kept" in told[-1]
    writer = Writer(tmp_path, child.FORM)
    assert writer.parts == int(told[-2]) == 6 and f"the {writer.episodes} episodes" in told[-1]
    assert not list(tmp_path.rglob("*.part"))
    writer.finish()
    with Dataset(tmp_path) as data:
        assert len(data.lengths) == writer.episodes > 0
        assert np.array_equal(data.episode(0).action, child.part(1)[0].action)


def test_a_flipped_bit_names_the_episode(copy: Path) -> None:
    path = copy / "data/chunk-000/file-004.parquet"
    metadata = pq.ParquetFile(path).metadata
    column = metadata.row_group(1).column(0)
    raw = bytearray(path.read_bytes())
    raw[column.data_page_offset + column.total_compressed_size // 2] ^= 1
    path.write_bytes(raw)
    before = sum(len(child.part(number)) for number in range(4))
    with pytest.raises(InvalidRequest, match=f"episode {before + 1} of 'copy' is damaged"):
        Dataset(copy)


def test_files_that_are_cut_or_gone_name_an_episode(copy: Path) -> None:
    path = copy / "data/chunk-000/file-002.parquet"
    raw = path.read_bytes()
    first = sum(len(child.part(number)) for number in range(2))
    path.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(InvalidRequest, match=f"episode {first} of 'copy' is damaged: file-002.parquet cannot be read"):
        Dataset(copy)
    path.unlink()
    with pytest.raises(InvalidRequest, match=f"episode {first} of 'copy' is damaged"):
        Dataset(copy)


def test_a_damaged_video_names_the_episode(copy: Path) -> None:
    path = copy / "videos/observation.images.front/chunk-000/file-003.mp4"
    path.write_bytes(path.read_bytes()[:100])
    first = sum(len(child.part(number)) for number in range(3))
    with Dataset(copy) as data:
        data.episode(first - 1)
        with pytest.raises(InvalidRequest, match=f"episode {first} of 'copy' is damaged: 'front' cannot be decoded"):
            data.episode(first)


def test_numbers_that_are_not_are_refused_both_ways(tmp_path: Path) -> None:
    good, zeros = np.zeros((4, 3), np.float32), np.zeros(4, np.float32)
    bad = good.copy()
    bad[2, 1] = np.nan
    writer = Writer(tmp_path, PLAIN)
    with pytest.raises(InvalidRequest, match="'observation' of episode 0 has values that are not numbers"):
        writer.add([Episode(bad, good[:, :2], zeros, zeros > 0)])
    with pytest.raises(InvalidRequest, match="'action' of episode 0 must be \\(4, 2\\), not \\(4, 3\\)"):
        writer.add([Episode(good, good, zeros, zeros > 0)])
    with pytest.raises(InvalidRequest, match="at least one episode"):
        writer.finish()
    writer.add([Episode(good, good[:, :2], zeros, zeros > 0), Episode(good, good[:, :2], zeros, zeros > 0)])
    writer.finish()
    path = tmp_path / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    rewards = table["next.reward"].to_numpy().copy()
    rewards[6] = np.inf
    names = table.column_names
    pq.write_table(table.set_column(names.index("next.reward"), "next.reward", [rewards]), path)
    with pytest.raises(InvalidRequest, match=r"episode 1 of .* 'next.reward' has values that are not numbers"):
        Dataset(tmp_path)


def test_another_format_is_not_mixed_in(tmp_path: Path) -> None:
    child.write(tmp_path, 2)
    with pytest.raises(Conflict, match="another format"):
        Writer(tmp_path, PLAIN)


def test_what_is_no_data_set_is_named(tmp_path: Path, copy: Path) -> None:
    with pytest.raises(NotFound, match=r"meta/info\.json is missing"):
        Dataset(tmp_path)
    info = (copy / "meta/info.json").read_text()
    (copy / "meta/info.json").write_text(info.replace("v3.0", "v2.1"))
    with pytest.raises(InvalidRequest, match=r"a LeRobotDataset v2\.1, not v3\.x"):
        Dataset(copy)
    (copy / "meta/info.json").write_text(info[:50])
    with pytest.raises(InvalidRequest, match=r"meta/info\.json of 'copy' is not JSON"):
        Dataset(copy)
    (copy / "meta/info.json").write_text(info)
    with Dataset(copy) as data, pytest.raises(NotFound, match="has no camera 'back'; it has: front"):
        data.pictures("back", np.arange(2))
    os.truncate(copy / "meta/episodes/chunk-000/file-000.parquet", 100)
    with pytest.raises(InvalidRequest, match="the table of episodes of 'copy' is damaged"):
        Dataset(copy)

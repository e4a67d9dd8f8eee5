"""Episodes as a LeRobotDataset v3 folder, which keeps what is finished whatever happens.

Episodes are added in parts. A part is a file of rows and a video for each camera; it counts once its page of the
journal lies in `.work`, which appears last and at once. `finish` makes the tables of the whole out of the journal,
`meta/info.json` last of all: a folder that has it is whole. Equal episodes give equal files.

Source: huggingface/lerobot 0.4.4, datasets/{lerobot_dataset, utils}.py (codebase version v3.0).
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from atoll.core.errors import Conflict, InvalidRequest, SetupError
from atoll.core.manifest import Channel, Image
from atoll.physical.policy import write
from atoll.physical.synth.episode import Episode
from atoll.physical.synth.statistics import of_all, of_episode
from atoll.physical.synth.video import encode_video

INFO, STATS, TASKS = "meta/info.json", "meta/stats.json", "meta/tasks.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
IMAGES = "observation.images."
CHUNK = 1000


@dataclass(frozen=True, slots=True)
class Format:
    """What the episodes of a data set have in common. `about` says in words what is done."""

    about: str
    rate_hz: int
    robot: str
    observation: tuple[Channel, ...]
    action: tuple[Channel, ...]
    images: tuple[Image, ...] = ()

    def features(self) -> dict[str, dict[str, Any]]:
        """As info.json lists them."""
        single = {"shape": [1], "names": None}
        told: dict[str, dict[str, Any]] = {
            "observation.state": _vector(self.observation),
            "action": _vector(self.action),
            "next.reward": {"dtype": "float32", **single},
            "next.success": {"dtype": "bool", **single},
            "next.done": {"dtype": "bool", **single},
        }
        for image in self.images:
            shape = [image.height, image.width, 3]
            video = {"video.height": image.height, "video.width": image.width, "video.codec": "h264"}
            video |= {"video.pix_fmt": "yuv420p", "video.is_depth_map": False, "video.fps": self.rate_hz}
            video |= {"video.channels": 3, "has_audio": False}
            names = ["height", "width", "channels"]
            told[IMAGES + image.name] = {"dtype": "video", "shape": shape, "names": names, "info": video}
        told["timestamp"] = {"dtype": "float32", **single}
        for name in ("frame_index", "episode_index", "index", "task_index"):
            told[name] = {"dtype": "int64", **single}
        return told


class Writer:
    """Writes into `folder`, or goes on with what is finished in it. Raises Conflict where that is of another format."""

    def __init__(self, folder: Path, form: Format):
        self.folder, self.form, self.work = folder, form, folder / ".work" / "episodes"
        self.work.mkdir(parents=True, exist_ok=True)
        with _room("the data set"):
            self._check_format()
        self._pages = [pq.read_table(path) for path in sorted(self.work.glob("part-*.parquet"))]
        self._drop_unfinished()

    @property
    def parts(self) -> int:
        """How many parts are finished."""
        return len(self._pages)

    @property
    def episodes(self) -> int:
        return sum(page.num_rows for page in self._pages)

    @property
    def frames(self) -> int:
        return sum(int(page["length"].to_numpy().sum()) for page in self._pages)

    def notes(self) -> list[dict[str, Any]]:
        """What was noted with each finished part."""
        return [json.loads(page.schema.metadata[b"note"]) for page in self._pages]

    def add(self, episodes: Sequence[Episode], note: Mapping[str, Any] | None = None) -> None:
        """Finish a part of these episodes (there may be none). `note`: JSON to be remembered with it.

        Raises InvalidRequest for an episode that does not fit the format, SetupError where the disk is full: then the
        parts before stay, and the same part can be added again."""
        for i, episode in enumerate(episodes):
            self._check(episode, f"episode {self.episodes + i}")
        chunk, file = divmod(self.parts, CHUNK)
        with _room(f"part {self.parts}", self.episodes):
            rows = self._rows(episodes)
            if episodes:
                self._write(DATA.format(chunk_index=chunk, file_index=file), _parquet(rows))
            for image in self.form.images if episodes else ():
                pictures = chain.from_iterable(episode.images[image.name] for episode in episodes)
                key = IMAGES + image.name
                path = VIDEO.format(video_key=key, chunk_index=chunk, file_index=file)
                self._write(path, encode_video(pictures, self.form.rate_hz))
            page = self._page(episodes, rows, chunk, file)
            page = page.replace_schema_metadata({"note": json.dumps(note or {}, sort_keys=True)})
            path = self.work / f"part-{self.parts:06d}.parquet"
            write(path, _parquet([page], checksum=False))
        self._pages.append(pq.read_table(path))

    def finish(self) -> None:
        """Make the folder whole. The journal stays until `discard`, so that this can be cut and done again."""
        table = pa.concat_tables([page for page in self._pages if page.num_rows]) if self.episodes else None
        if table is None:
            raise InvalidRequest("a data set needs at least one episode", param="episodes")
        table = table.replace_schema_metadata(None).combine_chunks()
        info = {
            "codebase_version": "v3.0",
            "robot_type": self.form.robot,
            "total_episodes": table.num_rows,
            "total_frames": self.frames,
            "total_tasks": 1,
            "chunks_size": CHUNK,
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": 200,
            "fps": self.form.rate_hz,
            "splits": {"train": f"0:{table.num_rows}"},
            "data_path": DATA,
            "video_path": VIDEO if self.form.images else None,
            "features": self.form.features(),
        }
        with _room("the tables of the data set", self.episodes):
            self._write(EPISODES, _parquet([table], checksum=False))
            self._write(TASKS, _parquet([_tasks(self.form.about)], checksum=False))
            self._write(STATS, _json(of_all(table)))
            self._write(INFO, _json(info))

    def discard(self) -> None:
        """Forget the journal: the data set is whole, or not wanted."""
        shutil.rmtree(self.work, ignore_errors=True)

    def _check(self, episode: Episode, which: str) -> None:
        form, steps = self.form, len(episode)
        shapes = {
            "observation": (episode.observation, (steps, sum(c.size for c in form.observation))),
            "action": (episode.action, (steps, sum(c.size for c in form.action))),
            "reward": (episode.reward, (steps,)),
            "success": (episode.success, (steps,)),
        }
        for image in form.images:
            shape = (steps, image.height, image.width, 3)
            shapes[f"images.{image.name}"] = (episode.images.get(image.name, np.empty(0)), shape)
        for name, (value, shape) in shapes.items():
            if not steps or np.shape(value) != shape:
                raise InvalidRequest(f"'{name}' of {which} must be {shape}, not {np.shape(value)}", param=name)
            if not np.isfinite(value).all():
                raise InvalidRequest(f"'{name}' of {which} has values that are not numbers", param=name)

    def _rows(self, episodes: Sequence[Episode]) -> list[pa.Table]:
        """One table an episode."""
        tables, first = [], self.frames
        for i, episode in enumerate(episodes, start=self.episodes):
            steps = len(episode)
            frame, zero = np.arange(steps), np.zeros(steps, np.int64)
            columns = {
                "observation.state": _vectors(episode.observation),
                "action": _vectors(episode.action),
                "next.reward": episode.reward.astype(np.float32),
                "next.success": episode.success.astype(bool),
                "next.done": frame == steps - 1,
                "timestamp": (frame / self.form.rate_hz).astype(np.float32),
                "frame_index": frame,
                "episode_index": zero + i,
                "index": frame + first,
                "task_index": zero,
            }
            tables.append(pa.table(columns))
            first += steps
        return tables

    def _page(self, episodes: Sequence[Episode], rows: Sequence[pa.Table], chunk: int, file: int) -> pa.Table:
        """The part's rows of the table of episodes."""
        told, first, start = [], self.frames, 0
        for i, (episode, table) in enumerate(zip(episodes, rows, strict=True), start=self.episodes):
            steps = len(episode)
            row: dict[str, Any] = {"episode_index": i, "tasks": [self.form.about], "length": steps}
            row |= {"data/chunk_index": chunk, "data/file_index": file}
            row |= {"dataset_from_index": first, "dataset_to_index": first + steps}
            row |= {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
            for image in self.form.images:
                key = f"videos/{IMAGES}{image.name}"
                row |= {f"{key}/chunk_index": chunk, f"{key}/file_index": file}
                row[f"{key}/from_timestamp"] = start / self.form.rate_hz
                row[f"{key}/to_timestamp"] = (start + steps) / self.form.rate_hz
            pictures = {IMAGES + image.name: episode.images[image.name] for image in self.form.images}
            for name, value in of_episode(table, pictures).items():
                row |= {f"stats/{name}/{kind}": numbers for kind, numbers in value.items()}
            told.append(row | {f"atoll/{name}": value for name, value in sorted(episode.facts.items())})
            first, start = first + steps, start + steps
        return pa.Table.from_pylist(told) if told else pa.table({"length": pa.array([], pa.int64())})

    def _check_format(self) -> None:
        path, told = self.work / "format.json", _json(self.form.features() | {"about": self.form.about})
        if not path.exists():
            write(path, told)
        elif path.read_bytes() != told:
            raise Conflict(f"'{self.folder.name}' holds episodes of another format", param="folder")

    def _write(self, name: str, data: bytes) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, data)

    def _drop_unfinished(self) -> None:
        """Remove files of a part that was not finished."""
        chunk, file = divmod(self.parts, CHUNK)
        keys = [IMAGES + image.name for image in self.form.images]
        names = [DATA, *(VIDEO.replace("{video_key}", key) for key in keys)]
        for name in names:
            path = self.folder / name.format(chunk_index=chunk, file_index=file)
            for left in (path, path.with_name(path.name + ".part")):
                left.unlink(missing_ok=True)


@contextlib.contextmanager
def _room(what: str, kept: int = 0) -> Iterator[None]:
    try:
        yield
    except SetupError as error:
        stays = f"; the {kept} episodes finished before are kept" if kept else ""
        raise SetupError(f"{what} cannot be written: {error.message}{stays}") from None


def _vector(channels: Sequence[Channel]) -> dict[str, Any]:
    names = [c.name if c.size == 1 else f"{c.name}.{i}" for c in channels for i in range(c.size)]
    return {"dtype": "float32", "shape": [len(names)], "names": names}


def _vectors(rows: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.astype(np.float32).ravel()), rows.shape[1])


def _parquet(tables: Sequence[pa.Table], *, checksum: bool = True) -> bytes:
    """A row group for each table, so that damage can be told to be in one of them."""
    sink = pa.BufferOutputStream()
    options = {"compression": "zstd", "use_dictionary": False, "write_statistics": False}
    options["write_page_checksum"] = checksum
    with pq.ParquetWriter(sink, tables[0].schema, **options) as writer:
        for table in tables:
            writer.write_table(table, row_group_size=max(table.num_rows, 1))
    return sink.getvalue().to_pybytes()


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1).encode() + b"\n"


def _tasks(about: str) -> pa.Table:
    """Texts are the index of a pandas frame, as the stock reader expects it."""
    table = pa.table({"task_index": pa.array([0], pa.int64()), "task": [about]})
    kinds = {"task_index": ("int64", "int64"), "task": ("unicode", "object")}
    columns = [
        {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": held, "metadata": None}
        for name, (kind, held) in kinds.items()
    ]
    frame = {"index_columns": ["task"], "column_indexes": [], "columns": columns, "pandas_version": "2.2.0"}
    return table.replace_schema_metadata({"pandas": json.dumps(frame)})

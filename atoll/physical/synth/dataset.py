"""Reads a LeRobotDataset v3 folder, whoever wrote it: rows are held in memory, pictures decoded when asked for."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from av.video.reformatter import VideoReformatter

from atoll.core.errors import InvalidRequest, NotFound
from atoll.physical.synth.episode import Episode

IMAGES = "observation.images."
OPEN_VIDEOS = 64
UNKNOWN = -1
READ_ERRORS = (OSError, pa.ArrowException)


class Dataset:
    """`lengths` (e,) of its episodes, `starts` (e,) their first rows; `columns` (n, ...) by feature name, of all rows.

    Raises NotFound where there is no data set, InvalidRequest where it is damaged, naming the episode. A context
    manager: it holds videos open."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.info = _info(folder)
        self.rate_hz = float(self.info["fps"])
        self.cameras = [name.removeprefix(IMAGES) for name in self.info["features"] if name.startswith(IMAGES)]
        self.episodes = _episodes(folder)
        self.lengths, self.starts = self.episodes["length"], self.episodes["dataset_from_index"]
        self.columns = self._load()
        self.episode_of = np.repeat(np.arange(len(self.lengths)), self.lengths)
        self._videos: OrderedDict[Path, _Video] = OrderedDict()

    def __enter__(self) -> Dataset:
        return self

    def __exit__(self, *_: object) -> None:
        for video in self._videos.values():
            video.close()
        self._videos.clear()

    def __len__(self) -> int:
        return len(self.episode_of)

    def rows(self, ids: Sequence[int] | np.ndarray, cameras: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Rows by feature name, (len(ids), ...), with pictures of `cameras` (None: all), (len(ids), h, w, 3) uint8."""
        ids = np.asarray(ids)
        told = {name: column[ids] for name, column in self.columns.items()}
        for camera in self.cameras if cameras is None else cameras:
            told[IMAGES + camera] = self.pictures(camera, ids)
        return told

    def pictures(self, camera: str, ids: np.ndarray) -> np.ndarray:
        """(len(ids), h, w, 3) uint8. Raises NotFound for a camera that there is not."""
        key = IMAGES + camera
        if camera not in self.cameras:
            told = ", ".join(self.cameras) or "none"
            raise NotFound(f"'{self.folder.name}' has no camera '{camera}'; it has: {told}", param="cameras")
        height, width, _ = self.info["features"][key]["shape"]
        seen = np.empty((len(ids), height, width, 3), np.uint8)
        episode = self.episode_of[ids]
        begin = np.rint(self.episodes[f"videos/{key}/from_timestamp"][episode] * self.rate_hz).astype(np.int64)
        frame = begin + ids - self.starts[episode]
        files = [self.episodes[f"videos/{key}/{kind}_index"][episode] for kind in ("chunk", "file")]
        for k in np.lexsort((frame, files[1], files[0])):
            chunk, file, at = int(files[0][k]), int(files[1][k]), int(frame[k])
            path = self.folder / self.info["video_path"].format(video_key=key, chunk_index=chunk, file_index=file)
            try:
                seen[k] = self._video(path).picture(at)
            except (av.FFmpegError, EOFError, ValueError) as error:
                raise self._damaged(int(episode[k]), f"'{camera}' cannot be decoded: {error}") from None
        return seen

    def episode(self, i: int, cameras: Sequence[str] | None = None) -> Episode:
        """Episode `i`, with pictures of `cameras` (None: all)."""
        if not 0 <= i < len(self.lengths):
            raise NotFound(f"'{self.folder.name}' has no episode {i}, but {len(self.lengths)}", param="episode")
        cameras = self.cameras if cameras is None else cameras
        rows = self.rows(np.arange(self.starts[i], self.starts[i] + self.lengths[i]), cameras)
        images = {camera: rows[IMAGES + camera] for camera in cameras}
        facts = {k.removeprefix("atoll/"): int(v[i]) for k, v in self.episodes.items() if k.startswith("atoll/")}
        steps = self.lengths[i]
        reward, success = rows.get("next.reward", np.zeros(steps)), rows.get("next.success", np.zeros(steps, bool))
        return Episode(rows["observation.state"], rows["action"], reward, success, images, facts)

    def _load(self) -> dict[str, np.ndarray]:
        names = [name for name, told in self.info["features"].items() if told["dtype"] not in ("video", "image")]
        files = np.stack([self.episodes["data/chunk_index"], self.episodes["data/file_index"]], axis=1)
        parts = [self._file(tuple(place), names, files) for place in np.unique(files, axis=0).tolist()]
        columns = {name: np.concatenate([part[name] for part in parts]) for name in names}
        for name, column in columns.items():
            if column.dtype.kind == "f" and not np.isfinite(column).all():
                row = int(np.flatnonzero(~np.isfinite(column.reshape(len(column), -1)).all(axis=1))[0])
                raise self._damaged(int(columns["episode_index"][row]), f"'{name}' has values that are not numbers")
        return columns

    def _file(self, place: tuple[int, int], names: list[str], files: np.ndarray) -> dict[str, np.ndarray]:
        """The columns of one data file, of the right number of rows."""
        inside = np.flatnonzero((files == place).all(axis=1))
        path = self.folder / self.info["data_path"].format(chunk_index=place[0], file_index=place[1])
        try:
            file = pq.ParquetFile(path, page_checksum_verification=True)
            rows = file.metadata.num_rows
        except READ_ERRORS as error:
            raise self._damaged(int(inside[0]), f"{path.name} cannot be read: {error}") from None
        if rows != (want := int(self.lengths[inside].sum())):
            raise self._damaged(int(inside[0]), f"{path.name} has {rows} rows, not {want}")
        try:
            table = file.read(names)
        except READ_ERRORS:
            raise self._damaged(*self._find_damage(file, inside)) from None
        return {name: _array(table[name], self.info["features"][name]) for name in names}

    def _find_damage(self, file: pq.ParquetFile, inside: np.ndarray) -> tuple[int, str]:
        """The first episode of the file that cannot be read, and why."""
        ends, row = np.cumsum(self.lengths[inside]), 0
        for group in range(file.metadata.num_row_groups):
            try:
                file.read_row_group(group)
            except READ_ERRORS as error:
                return int(inside[np.searchsorted(ends, row, side="right")]), str(error).strip()
            row += file.metadata.row_group(group).num_rows
        return int(inside[0]), "its file cannot be read"

    def _damaged(self, episode: int, why: str) -> InvalidRequest:
        return InvalidRequest(f"episode {episode} of '{self.folder.name}' is damaged: {why}", param="dataset")

    def _video(self, path: Path) -> _Video:
        if path not in self._videos:
            self._videos[path] = _Video(path, self.rate_hz)
            if len(self._videos) > OPEN_VIDEOS:
                self._videos.popitem(last=False)[1].close()
        self._videos.move_to_end(path)
        return self._videos[path]


class _Video:
    """Single pictures of a video of constant rate, whose packets are looked up in the file and decoded on their own.
    Pictures in order go on from the last."""

    def __init__(self, path: Path, rate_hz: float):
        with av.open(str(path)) as file:
            stream = file.streams.video[0]
            ticks = 1 / (rate_hz * float(stream.time_base))
            packets = [packet for packet in file.demux(stream) if packet.size]
            self._places = [(packet.pos, packet.size, packet.pts) for packet in packets]
            self._key = np.maximum.accumulate([i if packet.is_keyframe else 0 for i, packet in enumerate(packets)])
            self._at = {round(packet.pts / ticks): i for i, packet in enumerate(packets)}
            self._codec = av.CodecContext.create(stream.codec_context.name, "r")
            self._codec.extradata, self._codec.thread_count = stream.codec_context.extradata, 1
        self._bytes = path.open("rb", buffering=0)
        self._reformat = VideoReformatter()
        self._next = UNKNOWN

    def picture(self, frame: int) -> np.ndarray:
        """(h, w, 3) uint8. Raises ValueError where there is none."""
        if frame not in self._at:
            raise ValueError(f"there is no picture {frame}")
        wanted = self._at[frame]
        begin = self._key[wanted]
        if begin <= self._next <= wanted:
            begin = self._next
        else:
            self._codec.flush_buffers()
        self._next = UNKNOWN
        pts = self._places[wanted][2]
        for i in range(begin, len(self._places)):
            for decoded in self._codec.decode(self._packet(i)):
                if decoded.pts == pts:
                    self._next = i + 1
                    return self._reformat.reformat(decoded, format="rgb24").to_ndarray()
        for decoded in self._codec.decode(None):
            if decoded.pts == pts:
                return self._reformat.reformat(decoded, format="rgb24").to_ndarray()
        raise ValueError(f"there is no picture {frame}")

    def close(self) -> None:
        self._bytes.close()

    def _packet(self, i: int) -> av.Packet:
        place, size, pts = self._places[i]
        packet = av.Packet(os.pread(self._bytes.fileno(), size, place))
        packet.pts = pts
        return packet


def _info(folder: Path) -> dict[str, Any]:
    path = folder / "meta" / "info.json"
    try:
        info = json.loads(path.read_text())
    except FileNotFoundError:
        begun = (folder / ".work" / "episodes").exists()
        why = "it is not finished: its writer has to" if begun else "meta/info.json is missing"
        raise NotFound(f"there is no whole data set in '{folder.name}': {why}", param="dataset") from None
    except ValueError as error:
        raise InvalidRequest(f"meta/info.json of '{folder.name}' is not JSON: {error}", param="dataset") from None
    if not str(info.get("codebase_version", "")).startswith("v3."):
        version = info.get("codebase_version")
        raise InvalidRequest(f"'{folder.name}' is a LeRobotDataset {version}, not v3.x", param="dataset")
    return info


def _episodes(folder: Path) -> dict[str, np.ndarray]:
    """The table of episodes but for its statistics and texts, in order."""
    files = sorted((folder / "meta" / "episodes").rglob("*.parquet"))
    try:
        tables = [pq.read_table(file) for file in files]
        names = [n for n in tables[0].column_names if pa.types.is_primitive(tables[0].schema.field(n).type)]
        table = pa.concat_tables([one.select(names) for one in tables]).sort_by("episode_index")
    except (*READ_ERRORS, IndexError) as error:
        told = str(error).strip()
        raise InvalidRequest(f"the table of episodes of '{folder.name}' is damaged: {told}", param="dataset") from None
    return {name: table[name].to_numpy() for name in names}


def _array(column: pa.ChunkedArray, feature: dict[str, Any]) -> np.ndarray:
    values, shape = column.combine_chunks(), feature["shape"]
    while pa.types.is_list(values.type) or pa.types.is_fixed_size_list(values.type):
        values = values.flatten()
    flat = values.to_numpy(zero_copy_only=False)
    return flat if list(shape) == [1] else flat.reshape(len(column), *shape)

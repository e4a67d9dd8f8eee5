"""Demonstrations out of a LeRobotDataset v3 folder, as arrays, and the windows that learners are shown."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet

from atoll.core.errors import InvalidRequest, NotFound

STATE, ACTION, PICTURES = "observation.state", "action", "observation.images."


@dataclass(frozen=True, slots=True)
class Demonstrations:
    """`states` (t, o) and `actions` (t, a) float32, one after the other; `last` (t,) is the row that ends the episode
    of each row. `images` maps camera names to (t, h, w, 3) uint8."""

    task: str
    rate_hz: float
    states: np.ndarray
    actions: np.ndarray
    last: np.ndarray
    images: Mapping[str, np.ndarray]

    @property
    def episodes(self) -> int:
        return len(np.unique(self.last))

    def chunks(self, rows: np.ndarray, chunk: int) -> np.ndarray:
        """The next `chunk` actions at each of `rows`, (n, chunk, a); an episode's last action is repeated."""
        ahead = np.minimum(rows[:, None] + np.arange(chunk), self.last[rows, None])
        return self.actions[ahead]


def read_demonstrations(folder: Path, cameras: tuple[str, ...] = ()) -> Demonstrations:
    """With pictures of `cameras`. Raises NotFound where there is no data set, InvalidRequest where it is damaged or has
    no such camera."""
    info = _info(folder)
    files = sorted((folder / "data").rglob("*.parquet"))
    if not files:
        raise NotFound(f"the data set '{folder.name}' has no data files", param="dataset")
    names = [STATE, ACTION, "episode_index"]
    try:
        table = pyarrow.concat_tables([pyarrow.parquet.read_table(file, columns=names) for file in files])
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise InvalidRequest(f"the data set '{folder.name}' is damaged: {error}", param="dataset") from None
    states, actions = (_rows(table.column(name)) for name in names[:2])
    episode = table.column("episode_index").to_numpy()
    if not (np.isfinite(states).all() and np.isfinite(actions).all()):
        bad = int(episode[~(np.isfinite(states).all(axis=1) & np.isfinite(actions).all(axis=1))][0])
        raise InvalidRequest(f"episode {bad} of '{folder.name}' has values that are not numbers", param="dataset")
    ends = np.flatnonzero(np.append(episode[1:] != episode[:-1], True))
    last = ends[np.searchsorted(ends, np.arange(len(episode)))]
    images = {camera: _pictures(folder, info, camera, len(episode)) for camera in cameras}
    return Demonstrations(_task(folder), float(info["fps"]), states, actions, last, images)


def _info(folder: Path) -> dict:
    try:
        return json.loads((folder / "meta" / "info.json").read_text())
    except FileNotFoundError:
        raise NotFound(f"there is no data set in '{folder.name}': meta/info.json is missing", param="dataset") from None
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"meta/info.json of '{folder.name}' is not JSON: {error}", param="dataset") from None


def _rows(column: pyarrow.ChunkedArray) -> np.ndarray:
    flat = column.combine_chunks()
    return flat.flatten().to_numpy(zero_copy_only=False).reshape(len(flat), -1).astype(np.float32)


def _task(folder: Path) -> str:
    """Atoll's own data sets name their task in the card."""
    try:
        return str(json.loads((folder / "card.json").read_text())["task"])
    except (FileNotFoundError, KeyError):
        raise InvalidRequest(f"'{folder.name}' has no card.json that names its task", param="dataset") from None


def _pictures(folder: Path, info: dict, camera: str, rows: int) -> np.ndarray:
    """Decodes all of a camera's video, in order."""
    import av

    if f"{PICTURES}{camera}" not in info["features"]:
        known = [name.removeprefix(PICTURES) for name in info["features"] if name.startswith(PICTURES)]
        told = ", ".join(known) or "none"
        raise InvalidRequest(f"the data set has no camera '{camera}'; it has: {told}", param="cameras")
    height, width, _ = info["features"][f"{PICTURES}{camera}"]["shape"]
    frames, count = np.empty((rows, height, width, 3), np.uint8), 0
    for file in sorted((folder / "videos" / f"{PICTURES}{camera}").rglob("*.mp4")):
        with av.open(str(file)) as video:
            for frame in video.decode(video=0):
                frames[count] = frame.to_ndarray(format="rgb24")
                count += 1
    if count != rows:
        raise InvalidRequest(f"camera '{camera}' has {count} pictures for {rows} rows", param="dataset")
    return frames

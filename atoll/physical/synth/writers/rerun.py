"""Rerun's recordings (https://rerun.io): pictures, depth, boxes and poses to look at.

The library gives rows and chunks names made of time and chance, and ends a file with an index in an order of chance. So
that the same frames make the same file, they are counted here, and the index is left out. Readers do without it,
if not in silence; `rerun rrd migrate` puts it back.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow
import rerun
from rerun.chunk import Chunk, RrdReader

from atoll.core.errors import SetupError
from atoll.physical.synth.annotate import Object
from atoll.physical.synth.writers import Frame

NAMES = {"application_id": "atoll", "recording_id": "00000000-0000-0000-0000-000000000000"}
ROW, CHUNK = "rerun.controls.RowId", b"rerun:id"
FILE_HEADER, MESSAGE_HEADER = 12, 16
END, STORE_INFO = 0, 1
"""Kinds of messages. A message is its kind and its length, 8 bytes each, little-endian, and its content."""


class Rerun:
    """`frames.rrd`, on the time line `frame`."""

    def __init__(self, folder: Path, objects: Sequence[Object]):
        folder.mkdir(parents=True, exist_ok=True)
        self._path, self._logged = folder / "frames.rrd", folder / "frames.rrd.part"
        one_row = rerun.ChunkBatcherConfig(flush_num_rows=1)
        self._log = rerun.RecordingStream(**NAMES, send_properties=False, batcher_config=one_row)
        self._log.set_log_time_enabled(False)
        self._log.save(self._logged)

    def add(self, frame: Frame) -> None:
        log, (height, width) = self._log, frame.picture.depth.shape
        log.set_time("frame", sequence=frame.number)
        camera = frame.camera
        log.log("world/camera", rerun.Transform3D(translation=camera.position, mat3x3=camera.rotation))
        lens = rerun.Pinhole(image_from_camera=camera.matrix, resolution=[width, height])
        log.log("world/camera/image", lens)
        log.log("world/camera/image/rgb", rerun.Image(np.ascontiguousarray(frame.picture.rgb)))
        depth = np.where(np.isfinite(frame.picture.depth), frame.picture.depth, 0).astype(np.float32)
        log.log("world/camera/image/depth", rerun.DepthImage(depth, meter=1.0))
        names = [a.object.name for a in frame.annotations]
        corner = [a.box[:2] for a in frame.annotations]
        size = [a.box[2:] for a in frame.annotations]
        log.log("world/camera/image/boxes", rerun.Boxes2D(mins=corner, sizes=size, labels=names))
        for a in frame.annotations:
            log.log(f"world/camera/{a.object.name}", rerun.Transform3D(translation=a.position, mat3x3=a.rotation))

    def close(self) -> None:
        self._log.disconnect()
        numbers = itertools.count(1)
        counted = RrdReader(self._logged).stream().map(lambda chunk: _named(chunk, next(numbers)))
        counted.write_rrd(self._path, **NAMES)
        with self._path.open("r+b") as file:
            _settle(file)
        self._logged.unlink()


def _named(chunk: Chunk, number: int) -> Chunk:
    """The chunk, of one row, named by its number."""
    batch = chunk.to_record_batch()
    place = batch.schema.get_field_index(ROW)
    row = pyarrow.array([number.to_bytes(16, "big")], batch.schema.field(place).type)
    named = batch.set_column(place, batch.schema.field(place), row)
    named = named.replace_schema_metadata({**batch.schema.metadata, CHUNK: b"chunk_%032X" % number})
    return Chunk.from_record_batch(named)[0]


def _settle(file: BinaryIO) -> None:
    """Set the time in the recording's first message, a protobuf that begins with a row id, to 0; cut off the index."""
    at, size = FILE_HEADER, file.seek(0, 2)
    while at < size:
        file.seek(at)
        kind, length = (int.from_bytes(file.read(8), "little") for _ in range(2))
        if kind == STORE_INFO:
            head = file.read(12)
            if (head[:3], head[11:]) != (b"\x0a\x12\x09", b"\x11"):
                raise SetupError(f"rerun-sdk {rerun.__version__} begins its files in a way that is not known here")
            file.seek(at + MESSAGE_HEADER + 3)
            file.write(bytes(8) + b"\x11" + bytes(8))
        if kind == END:
            file.seek(at)
            file.write(bytes(MESSAGE_HEADER))
            file.truncate()
            return
        at += MESSAGE_HEADER + length

"""MCAP with Foxglove's schemas as JSON (https://mcap.dev, https://docs.foxglove.dev/docs/sdk/schemas)."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mcap.writer import Writer as McapFile
from PIL import Image
from scipy.spatial.transform import Rotation

from atoll.physical.synth.annotate import Object
from atoll.physical.synth.writers import Frame

RATE = 20
"""Frames a second of the log's clock: frames are pictures, not moments, and stand one after the other."""


class Mcap:
    """`frames.mcap` with the topics /camera/image, /camera/calibration and /objects."""

    def __init__(self, folder: Path, objects: Sequence[Object]):
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / "frames.mcap").open("wb")
        self._log = McapFile(self._file)
        self._log.start(profile="", library="atoll")
        self._channels = {
            topic: self._channel(topic, schema)
            for topic, schema in (
                ("/camera/image", "foxglove.CompressedImage"),
                ("/camera/calibration", "foxglove.CameraCalibration"),
                ("/objects", "foxglove.FrameTransforms"),
            )
        }

    def add(self, frame: Frame) -> None:
        nanoseconds = frame.number * 1_000_000_000 // RATE
        stamp = {"sec": nanoseconds // 1_000_000_000, "nsec": nanoseconds % 1_000_000_000}
        height, width = frame.picture.depth.shape
        png = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(frame.picture.rgb)).save(png, "PNG", compress_level=1)
        data = base64.b64encode(png.getvalue()).decode()
        base = {"timestamp": stamp, "frame_id": "camera"}
        self._add("/camera/image", nanoseconds, {**base, "format": "png", "data": data})
        matrix = frame.camera.matrix
        projection = np.column_stack([matrix, np.zeros(3)])
        lens = {"distortion_model": "plumb_bob", "D": [0.0] * 5, "R": np.eye(3).ravel().tolist()}
        lens |= {"K": matrix.ravel().tolist(), "P": projection.ravel().tolist(), "width": width, "height": height}
        self._add("/camera/calibration", nanoseconds, {**base, **lens})
        poses = [_transform(stamp, a.object.name, a.rotation, a.position) for a in frame.annotations]
        self._add("/objects", nanoseconds, {"transforms": poses})

    def close(self) -> None:
        self._log.finish()
        self._file.close()

    def _channel(self, topic: str, schema: str) -> int:
        shape = json.dumps({"type": "object", "title": schema}).encode()
        number = self._log.register_schema(name=schema, encoding="jsonschema", data=shape)
        return self._log.register_channel(topic=topic, message_encoding="json", schema_id=number)

    def _add(self, topic: str, at: int, message: dict[str, Any]) -> None:
        data = json.dumps(message).encode()
        self._log.add_message(channel_id=self._channels[topic], log_time=at, publish_time=at, data=data)


def _transform(stamp: dict[str, int], name: str, rotation: np.ndarray, position: np.ndarray) -> dict[str, Any]:
    turn = Rotation.from_matrix(rotation).as_quat()
    return {
        "timestamp": stamp,
        "parent_frame_id": "camera",
        "child_frame_id": name,
        "translation": dict(zip("xyz", position.tolist(), strict=True)),
        "rotation": dict(zip("xyzw", turn.tolist(), strict=True)),
    }

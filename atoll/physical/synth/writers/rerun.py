"""Rerun's recordings (https://rerun.io): pictures, depth, boxes and poses to look at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import rerun

from atoll.physical.synth.annotate import Object
from atoll.physical.synth.writers import Frame


class Rerun:
    """`frames.rrd`, on the time line `frame`."""

    def __init__(self, folder: Path, objects: Sequence[Object]):
        folder.mkdir(parents=True, exist_ok=True)
        self._log = rerun.RecordingStream("atoll", recording_id="00000000-0000-0000-0000-000000000000")
        self._log.save(folder / "frames.rrd")

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

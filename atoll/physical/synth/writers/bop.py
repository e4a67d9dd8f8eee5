"""BOP: 6D poses (https://github.com/thodan/bop_toolkit/blob/master/docs/bop_datasets_format.md). Lengths are mm."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from atoll.physical.synth.annotate import Annotation, Object
from atoll.physical.synth.writers import Frame, save_png

DEPTH_SCALE = 0.1
"""A step of the 16-bit depth pictures, mm: they reach 6.5 m."""


class Bop:
    """One scene, `train/000000`. Distances beyond the reach of the depth pictures are 0, which BOP reads as unknown."""

    def __init__(self, folder: Path, objects: Sequence[Object]):
        self.folder, self.scene = folder, folder / "train" / "000000"
        self._camera: dict[str, Any] = {}
        self._truth: dict[str, Any] = {}
        self._info: dict[str, Any] = {}
        for name in ("rgb", "depth", "mask", "mask_visib"):
            (self.scene / name).mkdir(parents=True, exist_ok=True)
        models = {str(thing.id): _model(thing) for thing in objects}
        (folder / "models").mkdir(exist_ok=True)
        (folder / "models" / "models_info.json").write_text(json.dumps(models))

    def add(self, frame: Frame) -> None:
        name, key = f"{frame.number:06d}", str(frame.number)
        save_png(self.scene / "rgb" / f"{name}.png", frame.picture.rgb)
        steps = frame.picture.depth * (1000 / DEPTH_SCALE)
        save_png(self.scene / "depth" / f"{name}.png", np.where(steps < 65535, steps, 0).astype(np.uint16))
        self._camera[key] = {"cam_K": frame.camera.matrix.ravel().tolist(), "depth_scale": DEPTH_SCALE}
        self._truth[key] = [_pose(annotation) for annotation in frame.annotations]
        self._info[key] = [self._seen(frame, name, k) for k in range(len(frame.annotations))]

    def close(self) -> None:
        for name, value in (("scene_camera", self._camera), ("scene_gt", self._truth), ("scene_gt_info", self._info)):
            (self.scene / f"{name}.json").write_text(json.dumps(value))

    def _seen(self, frame: Frame, name: str, k: int) -> dict[str, Any]:
        annotation = frame.annotations[k]
        whole = frame.silhouettes[annotation.object.id] | annotation.mask
        for folder, mask in (("mask", whole), ("mask_visib", annotation.mask)):
            save_png(self.scene / folder / f"{name}_{k:06d}.png", mask.astype(np.uint8) * 255)
        return {
            "bbox_obj": [round(v) for v in annotation.full_box],
            "bbox_visib": [round(v) for v in annotation.box],
            "px_count_all": int(whole.sum()),
            "px_count_valid": int((whole & np.isfinite(frame.picture.depth)).sum()),
            "px_count_visib": annotation.area,
            "visib_fract": annotation.area / int(whole.sum()),
        }


def _pose(annotation: Annotation) -> dict[str, Any]:
    return {
        "cam_R_m2c": annotation.rotation.ravel().tolist(),
        "cam_t_m2c": (annotation.position * 1000).tolist(),
        "obj_id": annotation.object.id,
    }


def _model(thing: Object) -> dict[str, float]:
    low, high = thing.corners.min(axis=0) * 1000, thing.corners.max(axis=0) * 1000
    size = high - low
    names = ("x", "y", "z")
    table = {f"min_{n}": float(v) for n, v in zip(names, low, strict=True)}
    table |= {f"size_{n}": float(v) for n, v in zip(names, size, strict=True)}
    return {"diameter": float(np.linalg.norm(size)), **table}

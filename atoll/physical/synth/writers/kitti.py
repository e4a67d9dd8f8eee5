"""KITTI's object benchmark: one line an object, in camera coordinates (Geiger et al., CVPR 2012; devkit readme)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from atoll.physical.synth.annotate import Annotation, Object
from atoll.physical.synth.writers import Frame, save_png


class Kitti:
    """`image_2/`, `label_2/` and `calib/`. KITTI knows a turn about the camera's y axis only: what is lost of an
    object's rotation is in the BOP and COCO files. Sizes are of the box about the object that stands upright in the
    camera's frame."""

    def __init__(self, folder: Path, objects: Sequence[Object]):
        self.folder = folder
        for name in ("image_2", "label_2", "calib"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    def add(self, frame: Frame) -> None:
        name = f"{frame.number:06d}"
        save_png(self.folder / "image_2" / f"{name}.png", frame.picture.rgb)
        shape = frame.picture.depth.shape
        lines = [_line(annotation, frame.silhouettes, shape) for annotation in frame.annotations]
        (self.folder / "label_2" / f"{name}.txt").write_text("".join(line + "\n" for line in lines))
        projection = np.column_stack([frame.camera.matrix, np.zeros(3)]).ravel()
        rows = [f"P{k}: " + " ".join(f"{v:.6e}" for v in projection) for k in range(4)]
        (self.folder / "calib" / f"{name}.txt").write_text("\n".join(rows) + "\n")

    def close(self) -> None:
        pass


def _line(annotation: Annotation, silhouettes: dict[int, np.ndarray], shape: tuple[int, ...]) -> str:
    """type truncated occluded alpha left top right bottom height width length x y z rotation_y"""
    corners = annotation.object.corners @ annotation.rotation.T + annotation.position
    yaw = float(np.arctan2(-annotation.rotation[2, 0], annotation.rotation[0, 0]))
    turn = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    upright = corners @ turn
    low, high = upright.min(axis=0), upright.max(axis=0)
    length, height, width = high - low
    bottom = np.array([(low[0] + high[0]) / 2, high[1], (low[2] + high[2]) / 2]) @ turn.T
    left, top, wide, tall = annotation.box
    whole = max(int((silhouettes[annotation.object.id] | annotation.mask).sum()), 1)
    hidden = 1 - annotation.area / whole
    occluded = 0 if hidden < 0.1 else 1 if hidden < 0.5 else 2
    numbers = (left, top, left + wide, top + tall, height, width, length, *bottom, yaw)
    alpha = yaw - float(np.arctan2(bottom[0], bottom[2]))
    told = " ".join(f"{v:.4f}" for v in numbers)
    return f"{annotation.object.name} {_truncated(annotation, shape):.2f} {occluded} {alpha:.4f} {told}"


def _truncated(annotation: Annotation, shape: tuple[int, ...]) -> float:
    """The share of the box about its corners that lies outside the picture."""
    ahead = annotation.corners[np.isfinite(annotation.corners).all(axis=1)]
    if not len(ahead):
        return 1.0
    area = float(np.prod(ahead.max(axis=0) - ahead.min(axis=0)))
    inside = annotation.full_box[2] * annotation.full_box[3]
    return float(np.clip(1 - inside / area, 0, 1)) if area else 0.0

"""COCO: instances with masks and key points (https://cocodataset.org/#format-data)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from atoll.physical.synth.annotate import Annotation, Object
from atoll.physical.synth.writers import Frame, save_png


class Coco:
    """`images/` and `annotations.json`. Masks are uncompressed run lengths, which pycocotools reads."""

    def __init__(self, folder: Path, objects: Sequence[Object]):
        self.folder, self._images, self._annotations = folder, [], []
        (folder / "images").mkdir(parents=True, exist_ok=True)
        self._categories = [_category(thing) for thing in objects]

    def add(self, frame: Frame) -> None:
        name = f"{frame.number:06d}.png"
        save_png(self.folder / "images" / name, frame.picture.rgb)
        height, width = frame.picture.depth.shape
        self._images.append({"id": frame.number, "file_name": f"images/{name}", "height": height, "width": width})
        for annotation in frame.annotations:
            self._annotations.append(self._row(frame.number, annotation))

    def close(self) -> None:
        whole = {"images": self._images, "annotations": self._annotations, "categories": self._categories}
        (self.folder / "annotations.json").write_text(json.dumps(whole))

    def _row(self, image: int, annotation: Annotation) -> dict[str, Any]:
        points = annotation.keypoints
        return {
            "id": len(self._annotations) + 1,
            "image_id": image,
            "category_id": annotation.object.id,
            "iscrowd": 0,
            "area": annotation.area,
            "bbox": list(annotation.box),
            "segmentation": {"size": list(annotation.mask.shape), "counts": run_lengths(annotation.mask)},
            "keypoints": [round(float(v), 2) for v in points.ravel()],
            "num_keypoints": int((points[:, 2] > 0).sum()),
        }


def _category(thing: Object) -> dict[str, Any]:
    return {"id": thing.id, "name": thing.name, "keypoints": list(thing.keypoint_names), "skeleton": []}


def run_lengths(mask: np.ndarray) -> list[int]:
    """Lengths of runs of 0, 1, 0, ... down the columns, beginning with 0 (COCO's uncompressed RLE)."""
    flat = np.asarray(mask, bool).ravel(order="F")
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    return [0, *runs] if flat[0] else runs

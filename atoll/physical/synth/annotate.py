"""What is in a picture, told exactly: masks from what was drawn, boxes, poses and key points from the kinematics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import mujoco
import numpy as np

from atoll.core.errors import InvalidRequest
from atoll.physical.synth.render import Camera, Picture, Renderer


@dataclass(frozen=True, slots=True)
class Object:
    """Something to be found in pictures: a body and all that hangs on it.

    `geoms` are the ids of those that are drawn. In the frame of the body: `corners` (8, 3) of the box around them,
    x fastest, `keypoints` (k, 3) named `keypoint_names`: its sites, or the corners where it has none."""

    id: int
    name: str
    body: int
    geoms: tuple[int, ...]
    corners: np.ndarray
    keypoints: np.ndarray
    keypoint_names: tuple[str, ...]


class Annotation(NamedTuple):
    """One object in one picture. Boxes are (left, top, width, height) in pixels: `box` around what is seen of it,
    `full_box` around its corners, cut at the picture's edges. `rotation` (3, 3) and `position` (3,) take its frame to
    the camera's (OpenCV's, metres). `corners` (8, 2) and `keypoints` (k, 3) are pixels; a key point's third value is 2
    where it is seen, 1 where something hides it, 0 where it is outside the picture (COCO)."""

    object: Object
    mask: np.ndarray
    box: tuple[float, float, float, float]
    full_box: tuple[float, float, float, float]
    rotation: np.ndarray
    position: np.ndarray
    corners: np.ndarray
    keypoints: np.ndarray

    @property
    def area(self) -> int:
        return int(self.mask.sum())


def objects_of(model: mujoco.MjModel, names: Iterable[str] = ()) -> tuple[Object, ...]:
    """The bodies called `names`; without names all that can move freely or are placed (free joint, mocap).

    Raises InvalidRequest for a name that no body has, or a body of which nothing is drawn."""
    known = [model.body(i).name for i in range(model.nbody)]
    wanted = list(names) or [known[i] for i in range(1, model.nbody) if _movable(model, i)]
    for name in wanted:
        if name not in known:
            there = ", ".join(known)
            raise InvalidRequest(f"'objects': there is no body '{name}'; there are: {there}", param="objects")
    return tuple(_object(model, k, known.index(name)) for k, name in enumerate(wanted, start=1))


def _movable(model: mujoco.MjModel, body: int) -> bool:
    joint = model.body_jntadr[body]
    return model.body_mocapid[body] >= 0 or (joint >= 0 and model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_FREE)


def _object(model: mujoco.MjModel, id: int, body: int) -> Object:
    inside = _subtree(model, body)
    drawn = [g for g in range(model.ngeom) if model.geom_bodyid[g] in inside and model.geom_group[g] < 3]
    if not drawn:
        raise InvalidRequest(f"'objects': nothing is drawn of the body '{model.body(body).name}'", param="objects")
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    turn, origin = data.xmat[body].reshape(3, 3), data.xpos[body]
    points = np.concatenate([_box_points(model, data, g) for g in drawn])
    local = (points - origin) @ turn
    low, high = local.min(axis=0), local.max(axis=0)
    corners = np.array([[x, y, z] for z in (low[2], high[2]) for y in (low[1], high[1]) for x in (low[0], high[0])])
    sites = [s for s in range(model.nsite) if model.site_bodyid[s] in inside]
    points = (data.site_xpos[sites] - origin) @ turn if sites else corners
    names = [model.site(s).name or f"site{s}" for s in sites] or [f"corner{i}" for i in range(8)]
    return Object(id, model.body(body).name, body, tuple(drawn), corners, points, tuple(names))


def _subtree(model: mujoco.MjModel, body: int) -> set[int]:
    inside = {body}
    for child in range(body + 1, model.nbody):
        if model.body_parentid[child] in inside:
            inside.add(child)
    return inside


def _box_points(model: mujoco.MjModel, data: mujoco.MjData, geom: int) -> np.ndarray:
    """The corners of a geom's own bounding box, in the world, (8, 3)."""
    centre, half = model.geom_aabb[geom, :3], model.geom_aabb[geom, 3:]
    signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
    return data.geom_xpos[geom] + (centre + signs * half) @ data.geom_xmat[geom].reshape(3, 3).T


class Annotator:
    """Annotates pictures of one model. Objects of which no pixel is seen are left out."""

    def __init__(self, model: mujoco.MjModel, objects: Sequence[Object]):
        self.objects = tuple(objects)
        self._label = np.zeros(model.ngeom + 1, np.uint8)
        for thing in self.objects:
            self._label[[g + 1 for g in thing.geoms]] = thing.id

    def labels(self, picture: Picture) -> np.ndarray:
        """(h, w) uint8: the id of the object seen, 0 where it is none."""
        return self._label.take(picture.geoms + 1)

    def annotate(self, data: mujoco.MjData, picture: Picture, camera: Camera) -> list[Annotation]:
        labels = self.labels(picture)
        masks = [(thing, labels == thing.id) for thing in self.objects]
        return [self._one(thing, mask, data, picture, camera) for thing, mask in masks if mask.any()]

    def _one(
        self, thing: Object, mask: np.ndarray, data: mujoco.MjData, picture: Picture, camera: Camera
    ) -> Annotation:
        turn, origin = data.xmat[thing.body].reshape(3, 3), data.xpos[thing.body]
        seen = camera.see(np.concatenate([thing.corners, thing.keypoints, [[0, 0, 0]]]) @ turn.T + origin)
        pixels = camera.pixels(seen)
        corners, points = pixels[:8], pixels[8:-1]
        return Annotation(
            thing,
            mask,
            _mask_box(mask),
            _clipped_box(corners, mask.shape),
            camera.rotation.T @ turn,
            seen[-1],
            corners,
            _visible(points, seen[8:-1, 2], picture.depth),
        )


def silhouette(renderer: Renderer, data: mujoco.MjData, camera: int, thing: Object) -> np.ndarray:
    """(h, w) bool: where the object would be seen if nothing stood before it. A pass of its own."""
    model = renderer.model
    colours, materials = model.geom_rgba.copy(), model.geom_matid.copy()
    others = np.setdiff1d(np.arange(model.ngeom), thing.geoms)
    try:
        model.geom_matid[others], model.geom_rgba[others, 3] = -1, 0
        return np.isin(renderer.picture(data, camera).geoms, thing.geoms)
    finally:
        model.geom_rgba[:], model.geom_matid[:] = colours, materials


def _mask_box(mask: np.ndarray) -> tuple[float, float, float, float]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    left, top = float(columns[0]), float(rows[0])
    return left, top, float(columns[-1]) + 1 - left, float(rows[-1]) + 1 - top


def _clipped_box(corners: np.ndarray, shape: tuple[int, ...]) -> tuple[float, float, float, float]:
    """Corners behind the camera are left out: the box then reaches as far as those ahead do."""
    ahead = corners[np.isfinite(corners).all(axis=1)]
    if not len(ahead):
        return 0.0, 0.0, 0.0, 0.0
    within = np.minimum(np.maximum(ahead, 0), shape[::-1])
    (left, top), (right, bottom) = within.min(axis=0).tolist(), within.max(axis=0).tolist()
    return left, top, right - left, bottom - top


def _visible(pixels: np.ndarray, depth: np.ndarray, seen: np.ndarray, margin: float = 0.01) -> np.ndarray:
    """COCO's key points: pixels and whether they are seen; a point up to `margin` metres behind what is drawn is."""
    height, width = seen.shape
    known = np.isfinite(pixels).all(axis=1)
    column, row = np.floor(np.where(known[:, None], pixels, -1)).astype(int).T
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    at = seen[np.where(inside, row, 0), np.where(inside, column, 0)]
    flag = np.where(inside, np.where(depth <= at + margin, 2, 1), 0)
    return np.column_stack([np.where(inside[:, None], pixels, 0.0), flag])

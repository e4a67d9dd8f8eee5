"""Visual randomisation: what a camera sees changes, what happens does not. Each function changes one model, drawn from
`rng`; `Looks` puts everything back first, so that no picture depends on the one before."""

from __future__ import annotations

from dataclasses import dataclass

import mujoco
import numpy as np

from atoll.core.errors import InvalidRequest

FIELDS = (
    "geom_rgba", "mat_rgba", "light_pos", "light_dir", "light_diffuse", "cam_pos", "cam_quat", "cam_fovy",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Amounts:
    """How far looks may go from the scene's own: `colour` and `light` as shares of 0 to 1, `camera` in metres of
    position, `angle` in degrees of direction, `zoom` as a share of the field of view. All 0: nothing changes."""

    colour: float = 0.3
    light: float = 0.4
    camera: float = 0.05
    angle: float = 3.0
    zoom: float = 0.05

    def __post_init__(self) -> None:
        for name in ("colour", "light", "zoom"):
            if not 0 <= getattr(self, name) <= 1:
                raise InvalidRequest(f"'looks.{name}' must be between 0 and 1, not {getattr(self, name)}", param=name)
        for name, most in (("camera", 1.0), ("angle", 45.0)):
            if not 0 <= getattr(self, name) <= most:
                raise InvalidRequest(f"'looks.{name}' must be between 0 and {most}", param=name)


class Looks:
    """Changes the looks of `model`, which should be a copy that only pictures are taken of."""

    def __init__(self, model: mujoco.MjModel, amounts: Amounts):
        self.model, self.amounts = model, amounts
        self._own = {name: getattr(model, name).copy() for name in FIELDS}

    def vary(self, rng: np.random.Generator) -> None:
        model, amounts = self.model, self.amounts
        for name, value in self._own.items():
            getattr(model, name)[:] = value
        for name in ("geom_rgba", "mat_rgba"):
            colours = getattr(model, name)
            shift = rng.uniform(-amounts.colour, amounts.colour, (len(colours), 3))
            colours[:, :3] = np.minimum(np.maximum(colours[:, :3] + shift, 0), 1)
        model.light_diffuse[:] *= 1 + rng.uniform(-amounts.light, amounts.light, (model.nlight, 1))
        model.light_pos[:] += rng.uniform(-amounts.light, amounts.light, (model.nlight, 3))
        turned = model.light_dir + rng.uniform(-amounts.light, amounts.light, (model.nlight, 3))
        model.light_dir[:] = turned / np.maximum(np.linalg.norm(turned, axis=1, keepdims=True), 1e-9)
        model.cam_pos[:] += rng.uniform(-amounts.camera, amounts.camera, (model.ncam, 3))
        model.cam_fovy[:] *= 1 + rng.uniform(-amounts.zoom, amounts.zoom, model.ncam)
        for camera in range(model.ncam):
            self._turn(camera, rng.uniform(-1, 1, 3) * np.deg2rad(amounts.angle))

    def _turn(self, camera: int, by: np.ndarray) -> None:
        angle = float(np.linalg.norm(by))
        if angle:
            turn, before = np.empty(4), self.model.cam_quat[camera].copy()
            mujoco.mju_axisAngle2Quat(turn, by / angle, angle)
            mujoco.mju_mulQuat(self.model.cam_quat[camera], before, turn)

"""Inverse kinematics of many arms at once: damped least squares on MuJoCo's kinematics.

Nakamura and Hanafusa, "Inverse Kinematic Solutions With Singularity Robustness" (1986); Buss and Kim, "Selectively
Damped Least Squares" (2005), section 3. Rotations are matrices, (n, 3, 3); lengths in metres, angles in radians.
"""

from __future__ import annotations

import mujoco
import mujoco.batch
import numpy as np

Array = np.ndarray
DAMPING = 0.02
STRIDE = 0.3


class Solver:
    """Solves for the first `dof` joints (hinges) of a robot so that `site` has a pose.

    `bounds` are the lowest and highest joint positions allowed, (dof, 2); by default the model's. Solutions stay as
    near to where they began as the pose lets them, so that a path of poses becomes a path of joint positions.
    """

    def __init__(self, spec: mujoco.MjSpec, site: str, dof: int, n: int, threads: int = 0, bounds: Array | None = None):
        spec.option.disableflags |= mujoco.mjtDisableBit.mjDSBL_CONTACT
        self.model = spec.compile()
        self.dof, self.n = dof, n
        self.low, self.high = (self.model.jnt_range[:dof] if bounds is None else bounds).T
        self._site = self.model.site(site).id
        self._batch = mujoco.batch.Batch(self.model, n, threads)
        self._qpos = self._batch.bind("qpos")
        self._position, self._rotation = self._batch.bind("site_xpos"), self._batch.bind("site_xmat")
        self._axis, self._anchor = self._batch.bind("xaxis"), self._batch.bind("xanchor")

    def pose(self, q: Array) -> tuple[Array, Array]:
        """Where `site` is at joint positions `q`, (n, dof): positions (n, 3) and rotations (n, 3, 3)."""
        self._qpos[:, : self.dof] = q
        self._batch.forward(stage=int(mujoco.mjtStage.mjSTAGE_POS))
        return self._position[:, self._site].copy(), self._rotation[:, self._site].reshape(-1, 3, 3).copy()

    def jacobian(self) -> Array:
        """Of the last pose, (n, 6, dof): position above rotation."""
        axis, anchor = self._axis[:, : self.dof], self._anchor[:, : self.dof]
        arm = self._position[:, None, self._site] - anchor
        return np.concatenate([np.cross(axis, arm), axis], axis=2).transpose(0, 2, 1)

    def solve(self, q: Array, position: Array, rotation: Array, iterations: int = 3) -> tuple[Array, Array]:
        """Joint positions (n, dof) that bring `site` to the poses, sought from `q`; and the distances left, (n,): m of
        position plus rad of rotation."""
        q = np.array(q, np.float64)
        for _ in range(iterations):
            error = self._error(q, position, rotation)
            jacobian = self.jacobian()
            square = jacobian @ jacobian.transpose(0, 2, 1) + DAMPING**2 * np.eye(6)
            change = (jacobian.transpose(0, 2, 1) @ np.linalg.solve(square, error[..., None]))[..., 0]
            longest = np.abs(change).max(axis=1, keepdims=True)
            q = np.clip(q + change * np.minimum(1, STRIDE / np.maximum(longest, 1e-12)), self.low, self.high)
        error = self._error(q, position, rotation)
        return q, np.linalg.norm(error[:, :3], axis=1) + np.linalg.norm(error[:, 3:], axis=1)

    def _error(self, q: Array, position: Array, rotation: Array) -> Array:
        here, turned = self.pose(q)
        return np.concatenate([position - here, rotation_vector(rotation @ turned.transpose(0, 2, 1))], axis=1)


def rotation_vector(rotation: Array) -> Array:
    """Axis times angle of rotations (..., 3, 3), as (..., 3), rad. Exact below half a turn."""
    skew = rotation - np.swapaxes(rotation, -1, -2)
    axis = np.stack([skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]], axis=-1) / 2
    sine = np.linalg.norm(axis, axis=-1, keepdims=True)
    angle = np.arctan2(sine, (np.trace(rotation, axis1=-2, axis2=-1)[..., None] - 1) / 2)
    return axis * np.where(sine > 1e-9, angle / np.maximum(sine, 1e-12), 1.0)


def angle(rotation: Array) -> Array:
    """Angles of rotations (..., 3, 3), rad, 0 to half a turn."""
    return np.arccos(np.clip((np.trace(rotation, axis1=-2, axis2=-1) - 1) / 2, -1, 1))


def downward(yaw: Array) -> Array:
    """Rotations (n, 3, 3) of a gripper that points down, turned about the vertical by `yaw` (n,), rad. At 0 the
    fingers open along y."""
    c, s, o, one = np.cos(yaw), np.sin(yaw), np.zeros_like(yaw), np.ones_like(yaw)
    return np.stack([c, s, o, s, -c, o, o, o, -one], axis=1).reshape(-1, 3, 3)

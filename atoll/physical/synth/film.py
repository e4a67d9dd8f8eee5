"""Pictures of episodes that have been simulated, out of the states they went through."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import mujoco
import numpy as np

from atoll.core.manifest import Image
from atoll.physical.synth.looks import Amounts, Looks
from atoll.physical.synth.render import Renderer, camera_id, open_renderer

LOOKS = 3
"""Keeps the chance of looks apart from the simulation's, which has the same seed."""


class Film:
    """Takes pictures of `model` by the cameras of `images`, in looks that differ from episode to episode by `amounts`.
    A context manager: it holds graphics contexts. Raises NotFound for a camera that there is not."""

    def __init__(self, model: mujoco.MjModel, images: Sequence[Image], amounts: Amounts):
        self.model, self.images = copy.copy(model), images
        self.data, self.looks = mujoco.MjData(self.model), Looks(self.model, amounts)
        self._cameras = [camera_id(self.model, image.name) for image in images]
        self._renderers: dict[tuple[int, int], Renderer] = {}
        for size in {(image.height, image.width) for image in images}:
            self._renderers[size] = open_renderer(self.model, *size)

    def __enter__(self) -> Film:
        return self

    def __exit__(self, *_: object) -> None:
        for renderer in self._renderers.values():
            renderer.close()

    @property
    def engine(self) -> str:
        """What draws the pictures."""
        return ", ".join(sorted({renderer.engine for renderer in self._renderers.values()}))

    def shoot(self, states: np.ndarray, seed: int) -> dict[str, np.ndarray]:
        """Pictures by camera, (t, h, w, 3) uint8, of `states` (t, s): rows of `mujoco.batch`."""
        self.looks.vary(np.random.default_rng([LOOKS, seed]))
        shape = len(states)
        seen = {image.name: np.empty((shape, image.height, image.width, 3), np.uint8) for image in self.images}
        for k, state in enumerate(states):
            mujoco.mj_setState(self.model, self.data, state, mujoco.mjtState.mjSTATE_INTEGRATION.value)
            mujoco.mj_kinematics(self.model, self.data)
            mujoco.mj_camlight(self.model, self.data)
            for image, camera in zip(self.images, self._cameras, strict=True):
                renderer = self._renderers[image.height, image.width]
                seen[image.name][k] = renderer.picture(self.data, camera, geoms=False).rgb
        return seen

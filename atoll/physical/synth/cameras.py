"""What the cameras of running simulations see, as policies are given it."""

from __future__ import annotations

from collections.abc import Sequence

import mujoco
import numpy as np

from atoll.core.manifest import Image
from atoll.physical.sim.sim import Sim
from atoll.physical.synth.render import Renderer, camera_id, open_renderer


class Cameras:
    """Pictures of simulations of `sim`, one camera for each of `images`. A context manager. Raises NotFound for a
    camera that the scene has not."""

    def __init__(self, sim: Sim, images: Sequence[Image]):
        self.sim, self.images = sim, images
        self._cameras = {image.name: camera_id(sim.model, image.name) for image in images}
        self._renderers: dict[tuple[int, int], Renderer] = {}
        self._data = mujoco.MjData(sim.model)

    def __enter__(self) -> Cameras:
        return self

    def __exit__(self, *_: object) -> None:
        for renderer in self._renderers.values():
            renderer.close()

    @property
    def engine(self) -> str:
        """What has drawn the pictures."""
        return ", ".join(sorted({renderer.engine for renderer in self._renderers.values()}))

    def __call__(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """Pictures by camera, (len(ids), h, w, 3) uint8, of the simulations `ids`."""
        seen = {image.name: np.empty((len(ids), image.height, image.width, 3), np.uint8) for image in self.images}
        for k, i in enumerate(ids):
            self.sim.physics.batch.get_data(int(i), self._data)
            mujoco.mj_kinematics(self.sim.model, self._data)
            mujoco.mj_camlight(self.sim.model, self._data)
            for image in self.images:
                picture = self._renderer(image).picture(self._data, self._cameras[image.name], geoms=False)
                seen[image.name][k] = picture.rgb
        return seen

    def _renderer(self, image: Image) -> Renderer:
        size = image.height, image.width
        if size not in self._renderers:
            self._renderers[size] = open_renderer(self.sim.model, *size)
        return self._renderers[size]

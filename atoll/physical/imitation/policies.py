"""Policies that act with a torch network: all but the `mlp`, which numpy does faster."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from atoll.core.errors import InvalidRequest
from atoll.core.manifest import Manifest
from atoll.physical.imitation.networks import NETWORKS, Sizes


class TorchPolicy:
    """`network` of the manifest has `width`. Weights: the network's, under `net.`; `observation.mean`, `.scale` (o,),
    `action.shift`, `.scale` (a,) of the normalisation. Raises InvalidRequest where weights and sizes do not agree."""

    def __init__(self, manifest: Manifest, weights: Mapping[str, np.ndarray]):
        self.manifest, self._weights = manifest, dict(weights)
        cameras = tuple(image.name for image in manifest.images)
        width = manifest.network.get("width")
        if not isinstance(width, int) or not 4 <= width <= 4096:
            raise InvalidRequest("'network.width' must be a whole number between 4 and 4096", param="network")
        sizes = Sizes(manifest.observation_size, manifest.action_size, manifest.chunk, width, cameras)
        self.network = NETWORKS[manifest.kind](sizes).eval()
        own = {name[4:]: torch.from_numpy(np.array(v)) for name, v in weights.items() if name.startswith("net.")}
        try:
            self.network.load_state_dict(own)
            self._mean, self._gain = weights["observation.mean"], weights["observation.scale"]
            self._shift, self._scale = weights["action.shift"], weights["action.scale"]
        except (RuntimeError, KeyError) as error:
            raise InvalidRequest(f"the policy's weights do not fit its manifest: {error}", param="files") from None

    def act(self, observation: np.ndarray, images: Mapping[str, np.ndarray] | None = None) -> np.ndarray:
        """As `policy.Policy.act`. Raises InvalidRequest where a camera's pictures are missing or of another size."""
        pictures = {}
        for spec in self.manifest.images:
            given = (images or {}).get(spec.name)
            if given is None or given.shape != (len(observation), spec.height, spec.width, 3):
                rule = f"must be ({len(observation)}, {spec.height}, {spec.width}, 3) uint8"
                raise InvalidRequest(f"'images.{spec.name}' {rule}", param="images")
            pictures[spec.name] = torch.from_numpy(np.ascontiguousarray(given))
        state = np.clip((np.asarray(observation, np.float32) - self._mean) * self._gain, -10, 10)
        with torch.inference_mode():
            chunk = self.network(torch.from_numpy(state), pictures).numpy()
        return chunk * self._scale + self._shift

    def weights(self) -> Mapping[str, np.ndarray]:
        return self._weights

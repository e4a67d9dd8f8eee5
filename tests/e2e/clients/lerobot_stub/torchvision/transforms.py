import numpy as np
import torch


class ToTensor:
    """uint8 (h, w, c) to float (c, h, w) of 0 to 1."""

    def __call__(self, picture: object) -> torch.Tensor:
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255

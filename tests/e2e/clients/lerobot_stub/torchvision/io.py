"""torchvision.io.VideoReader over PyAV, as torchvision 0.20 has it."""

import av
import torch


class VideoReader:
    def __init__(self, path: str, stream: str):
        self.container = av.open(path)
        self._stream = self.container.streams.video[0]
        self._frames = self.container.decode(self._stream)

    def seek(self, time_s: float, keyframes_only: bool = False) -> "VideoReader":
        at = int(time_s / self._stream.time_base)
        self.container.seek(at, any_frame=not keyframes_only, backward=True, stream=self._stream)
        self._frames = self.container.decode(self._stream)
        return self

    def __iter__(self) -> "VideoReader":
        return self

    def __next__(self) -> dict[str, object]:
        frame = next(self._frames)
        pixels = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
        return {"data": pixels, "pts": float(frame.pts * self._stream.time_base)}

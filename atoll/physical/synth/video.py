"""Videos of simulations."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import av
import numpy as np

OPTIONS = {"preset": "veryfast", "crf": "23", "threads": "1"}
"""One thread: the same frames make the same file."""


def write_video(path: Path, frames: Iterable[np.ndarray], rate_hz: float) -> None:
    """H.264 of frames (h, w, 3) uint8 with even sides, as one file that appears when it is whole."""
    part = path.with_name(path.name + ".part")
    with av.open(str(part), "w", format="mp4") as file:
        stream = None
        for pixels in frames:
            if stream is None:
                stream = file.add_stream("libx264", rate=max(round(rate_hz), 1), options=OPTIONS)
                stream.height, stream.width, stream.pix_fmt = *pixels.shape[:2], "yuv420p"
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            file.mux(stream.encode(frame))
        if stream is not None:
            file.mux(stream.encode())
    part.replace(path)

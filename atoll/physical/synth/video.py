"""Videos of simulations."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np

OPTIONS = {"preset": "veryfast", "crf": "23", "threads": "1", "mbtree": "0"}
"""The same frames make the same file: on one thread, and without x264's macroblock tree, which reads memory that it has
not written where pictures are small."""

SEEKABLE = OPTIONS | {"g": "2", "bf": "0", "crf": "20"}
"""Every other picture stands alone, so that any of them is decoded at once."""


def write_video(path: Path, frames: Iterable[np.ndarray], rate_hz: float) -> None:
    """H.264 of frames (h, w, 3) uint8 with even sides, as one file that appears when it is whole."""
    part = path.with_name(path.name + ".part")
    with part.open("wb") as sink:
        _encode(sink, frames, rate_hz, OPTIONS)
    part.replace(path)


def encode_video(frames: Iterable[np.ndarray], rate_hz: float) -> bytes:
    """The same as the bytes of a file, to look up single pictures in. Frame k is shown at k / rate_hz."""
    sink = io.BytesIO()
    _encode(sink, frames, rate_hz, SEEKABLE)
    return sink.getvalue()


def _encode(sink: BinaryIO, frames: Iterable[np.ndarray], rate_hz: float, options: dict[str, str]) -> None:
    with av.open(sink, "w", format="mp4") as file:
        stream = None
        for pixels in frames:
            if stream is None:
                stream = file.add_stream("libx264", rate=max(round(rate_hz), 1), options=options)
                stream.height, stream.width, stream.pix_fmt = *pixels.shape[:2], "yuv420p"
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            file.mux(stream.encode(frame))
        if stream is not None:
            file.mux(stream.encode())

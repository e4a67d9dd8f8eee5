"""Text in pictures with RapidOCR (https://github.com/RapidAI/RapidOCR, Apache-2.0; PP-OCRv6 models in its wheel)."""

from __future__ import annotations

import base64
import binascii
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from atoll.core.errors import InvalidRequest, TooLarge, Unsupported

MAX_PIXELS = 40_000_000
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")


MODELS = {
    "Det": "PP-OCRv6_det_small.onnx",
    "Cls": "ch_ppocr_mobile_v2.0_cls_mobile.onnx",
    "Rec": "PP-OCRv6_rec_small.onnx",
}


@dataclass(frozen=True, slots=True)
class Line:
    """`box`: four corners (x, y) in pixels, clockwise from the top left; `score` in 0..1."""

    text: str
    score: float
    box: tuple[tuple[float, float], ...]


class Ocr:
    def __init__(self, threads: int):
        import rapidocr

        # Named by path, the models are taken as they lie in the wheel; found by name, the library may download them.
        models = Path(rapidocr.__file__).parent / "models"
        self._engine = rapidocr.RapidOCR(
            params={
                **{f"{stage}.model_path": str(models / file) for stage, file in MODELS.items()},
                "Global.log_level": "critical",
                "EngineConfig.onnxruntime.intra_op_num_threads": threads,
                "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            }
        )

    def read(self, picture: np.ndarray) -> list[Line]:
        """Lines of an RGB picture [height, width, 3] of bytes, in reading order."""
        out = self._engine(np.ascontiguousarray(picture[:, :, ::-1]))
        if out.boxes is None or out.txts is None:
            return []
        return [
            Line(text, round(float(score), 4), tuple((round(float(x), 1), round(float(y), 1)) for x, y in box))
            for text, score, box in zip(out.txts, out.scores, out.boxes, strict=True)
        ]


def decode(data: bytes, param: str = "image") -> np.ndarray:
    """Picture bytes to RGB [height, width, 3]. Raises InvalidRequest, Unsupported or TooLarge naming `param`."""
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise InvalidRequest(f"{param} is empty.", param=param)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            width, height = picture.size
            if width * height > MAX_PIXELS:
                raise TooLarge(f"{param} has {width} x {height} pixels; at most {MAX_PIXELS} are read.", param=param)
            rgba = picture.convert("RGBA")
            white = Image.new("RGBA", rgba.size, "white")
            return np.asarray(Image.alpha_composite(white, rgba).convert("RGB"))
    except UnidentifiedImageError:
        raise InvalidRequest(f"{param} is not a picture: send {', '.join(FORMATS)}.", param=param) from None
    except Image.DecompressionBombError:
        raise TooLarge(f"{param} has more than {MAX_PIXELS} pixels.", param=param) from None
    except (OSError, ValueError, SyntaxError) as error:
        raise InvalidRequest(f"{param} could not be decoded: {error}", param=param) from error


def from_url(url: object, param: str = "image") -> bytes:
    """The bytes of a data URL, or of plain base64. Addresses are not fetched."""
    if not isinstance(url, str) or not url:
        raise InvalidRequest(f"{param} must be a data URL (data:image/png;base64,...).", param=param)
    if url.startswith(("http:", "https:", "file:")):
        raise Unsupported(f"{param} must be a data URL: addresses are not fetched.", param=param)
    head, comma, body = url.partition(",")
    if comma and not (head.startswith("data:") and head.endswith(";base64")):
        raise InvalidRequest(f"{param} must be a data URL in base64 (data:image/png;base64,...).", param=param)
    try:
        return base64.b64decode(body if comma else url, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest(f"{param} is not valid base64.", param=param) from None

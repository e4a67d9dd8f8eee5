"""Speech, vision and embedding models on CPU runtimes, served by one process in the OpenAI wire format.

engine.py   the parent's side: fetch weights, start, watch, restart
server.py   the worker's HTTP side; work.py its bounded queue; one file per kind of model:
asr.py  tts.py  ocr.py  embed.py  vad.py      audio.py decodes and encodes for them
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


def _transcription(folder: Path, threads: int) -> Any:
    from atoll.engines.media.asr import Whisper

    return Whisper(folder, threads)


def _speech(folder: Path, threads: int) -> Any:
    from atoll.engines.media.tts import Hibari

    return Hibari()


def _ocr(folder: Path, threads: int) -> Any:
    from atoll.engines.media.ocr import Ocr

    return Ocr(threads)


def _embedding(folder: Path, threads: int) -> Any:
    from atoll.engines.media.embed import MiniLM

    return MiniLM(folder)


def _vad(folder: Path, threads: int) -> Any:
    from atoll.engines.media.vad import Silero

    return Silero(folder)


KINDS: dict[str, Callable[[Path, int], Any]] = {
    "transcription": _transcription,
    "speech": _speech,
    "ocr": _ocr,
    "embedding": _embedding,
    "vad": _vad,
}

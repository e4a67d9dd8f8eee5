"""How long a sound can be, told from its bytes without decoding it."""

from __future__ import annotations

import math
import struct

LEAST_BYTES_PER_SECOND = 750
PLAIN_SAMPLES = {1, 3, 0xFFFE}


def most_seconds(data: bytes) -> int:
    """An upper bound in whole seconds: exact for WAV with plain samples; else what 6 kbit/s, the least that speech
    codecs are used with, could hold."""
    rate = wav_bytes_per_second(data) or LEAST_BYTES_PER_SECOND
    return math.ceil(len(data) / rate)


def wav_bytes_per_second(data: bytes) -> int | None:
    """Sample rate times block size from the `fmt ` chunk (RIFF WAVE); None when it is something else."""
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return None
    at = 12
    while at + 24 <= len(data):
        name, size = struct.unpack_from("<4sI", data, at)
        if name == b"fmt ":
            kind, _, rate, _, block = struct.unpack_from("<HHIIH", data, at + 8)
            return rate * block if kind in PLAIN_SAMPLES and rate * block else None
        at += 8 + size + size % 2
    return None

"""Sound files to samples and back. Decoding: libsndfile (wav, flac, mp3, ogg); PyAV, if installed, adds webm, m4a, aac.

Samples are mono float32 in [-1, 1]. What a header claims is not believed: lengths are checked while decoding.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from atoll.core.errors import InvalidRequest, SetupError, TooLarge, Unsupported

RATE = 16_000
MAX_SECONDS = 3600.0
MAX_CHANNELS = 8
MIN_RATE, MAX_RATE = 4_000, 192_000
BLOCK_S = 20
FORMATS = "wav, flac, mp3, ogg (Vorbis or Opus), webm and m4a"
BY_PYAV = {"webm", "m4a", "aac"}
ENCODERS = {"mp3": ("MP3", "MPEG_LAYER_III"), "flac": ("FLAC", "PCM_16"), "opus": ("OGG", "OPUS")}
MEDIA_TYPES = {
    "mp3": "audio/mpeg",
    "flac": "audio/flac",
    "opus": "audio/ogg",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
}


@dataclass(frozen=True, slots=True)
class Sound:
    """Mono float32 samples at 16 kHz."""

    samples: np.ndarray

    @property
    def seconds(self) -> float:
        return len(self.samples) / RATE


def decode(data: bytes, *, param: str = "file", max_seconds: float = MAX_SECONDS) -> Sound:
    """Any supported file to mono 16 kHz. Raises InvalidRequest, Unsupported or TooLarge naming `param`."""
    if not data:
        raise InvalidRequest(f"{param} is empty.", param=param)
    kind = sniff(data)
    if kind is None:
        raise InvalidRequest(f"{param} is not audio in a format that can be read: {FORMATS}.", param=param)
    blocks = _pyav(data, kind, param) if kind in BY_PYAV else _sndfile(data, param)
    parts, count = [], 0
    for block in blocks:
        count += len(block)
        if count > max_seconds * RATE:
            raise TooLarge(f"{param} is longer than {max_seconds:g} seconds of audio; cut it in parts.", param=param)
        parts.append(block)
    samples = np.concatenate(parts) if parts else np.zeros(0, np.float32)
    if not len(samples):
        raise InvalidRequest(f"{param} holds no sound (0 seconds).", param=param)
    return Sound(np.nan_to_num(samples, nan=0.0, posinf=1.0, neginf=-1.0))


def sniff(data: bytes) -> str | None:
    """The container, by its first bytes."""
    if data[:4] in (b"RIFF", b"RF64") and data[8:12] == b"WAVE":
        return "wav"
    for magic, kind in ((b"fLaC", "flac"), (b"OggS", "ogg"), (b"ID3", "mp3"), (b"\x1a\x45\xdf\xa3", "webm")):
        if data.startswith(magic):
            return kind
    if data[4:8] == b"ftyp":
        return "m4a"
    if len(data) > 1 and data[0] == 0xFF and data[1] & 0xE0 == 0xE0:
        return "aac" if data[1] & 0x06 == 0 else "mp3"
    return None


def _sndfile(data: bytes, param: str) -> Iterator[np.ndarray]:
    import soundfile

    class Forward(soundfile.SoundFile):
        """Reads until the data ends, whatever length the header claims."""

        def seekable(self) -> bool:
            return False

    try:
        with Forward(io.BytesIO(data)) as file:
            if file.channels > MAX_CHANNELS or not MIN_RATE <= file.samplerate <= MAX_RATE:
                raise InvalidRequest(
                    f"{param} has {file.channels} channels at {file.samplerate} Hz; "
                    f"at most {MAX_CHANNELS} channels at {MIN_RATE} to {MAX_RATE} Hz can be read.",
                    param=param,
                )
            yield from resampled(_mono_blocks(file), file.samplerate)
    except (soundfile.LibsndfileError, ValueError, RuntimeError) as error:
        raise InvalidRequest(f"{param} could not be decoded: {error}", param=param) from error


def _mono_blocks(file) -> Iterator[np.ndarray]:
    while len(block := file.read(BLOCK_S * file.samplerate, dtype="float32", always_2d=True)):
        yield block.mean(axis=1, dtype=np.float32)


def _pyav(data: bytes, kind: str, param: str) -> Iterator[np.ndarray]:
    try:
        import av
    except ImportError:
        raise Unsupported(
            f"{param} is {kind}, which this installation cannot decode: send wav, flac, mp3 or ogg, "
            "or ask its operator to install the extra 'codecs' (pip install 'atoll[codecs]').",
            param=param,
        ) from None
    try:
        with av.open(io.BytesIO(data), mode="r", metadata_errors="ignore") as container:
            if not container.streams.audio:
                raise InvalidRequest(f"{param} has no audio track.", param=param)
            resampler = av.AudioResampler(format="flt", layout="mono", rate=RATE)
            for frame in container.decode(container.streams.audio[0]):
                for out in resampler.resample(frame):
                    yield out.to_ndarray().reshape(-1)
            for out in resampler.resample(None):
                yield out.to_ndarray().reshape(-1)
    except (av.FFmpegError, ValueError) as error:
        raise InvalidRequest(f"{param} could not be decoded: {error}", param=param) from error


def resampled(blocks: Iterator[np.ndarray], rate: int) -> Iterator[np.ndarray]:
    """Blocks at `rate` Hz to blocks at 16 kHz; each is filtered with a second of its neighbours, so no seams."""
    if rate == RATE:
        yield from blocks
        return
    from scipy.signal import resample_poly

    common = math.gcd(rate, RATE)
    up, down = RATE // common, rate // common
    held, skip = np.zeros(0, np.float32), 0
    for block in blocks:
        held = np.concatenate([held, block])
        whole = len(held) // rate
        if whole > 3:
            yield resample_poly(held, up, down)[skip * RATE : (whole - 1) * RATE].astype(np.float32)
            held, skip = held[(whole - 2) * rate :], 1
    if len(held):
        yield resample_poly(held, up, down)[skip * RATE :].astype(np.float32)


class Encoder:
    """Samples in, bytes out as they come; `finish` gives the rest. Formats: wav, pcm, mp3, flac, opus.

    The header of a stream cannot know its length: wav carries the largest one, as streaming servers do.
    """

    def __init__(self, kind: str, rate: int):
        if kind not in MEDIA_TYPES:
            raise Unsupported(
                f"response_format must be one of {', '.join(MEDIA_TYPES)}, not '{kind}'.", param="response_format"
            )
        self._kind, self._rate = kind, rate
        self._sink = _Tail()
        self._file = None
        if kind in ENCODERS:
            import soundfile

            container, codec = ENCODERS[kind]
            if codec not in soundfile.available_subtypes(container):
                raise SetupError(f"This installation's libsndfile cannot write {kind}; reinstall 'soundfile'.")
            mode = {"bitrate_mode": "CONSTANT", "compression_level": 0.5} if kind == "mp3" else {}
            self._file = soundfile.SoundFile(self._sink, "w", rate, 1, codec, format=container, **mode)

    def write(self, samples: np.ndarray) -> bytes:
        if self._file:
            self._file.write(samples)
            return self._sink.take()
        head = b"" if self._kind == "pcm" or self._sink.started else _wav_header(self._rate)
        self._sink.started = True
        return head + pcm16(samples)

    def finish(self) -> bytes:
        if not self._file:
            return b""
        self._file.close()
        return self._sink.take()


class _Tail(io.RawIOBase):
    """A file whose beginning was sent already: appended bytes are kept until taken, rewrites of sent bytes are lost."""

    def __init__(self) -> None:
        self.started = False
        self._sent, self._at, self._kept = 0, 0, bytearray()

    def take(self) -> bytes:
        data = bytes(self._kept)
        self._sent += len(data)
        self._kept.clear()
        return data

    def write(self, data) -> int:
        data = bytes(data)
        lost = max(0, self._sent - self._at)
        start = max(0, self._at - self._sent)
        self._kept[start : start + len(data[lost:])] = data[lost:]
        self._at += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._sent + len(self._kept)}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer) -> int:
        return 0

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


def pcm16(samples: np.ndarray) -> bytes:
    return (np.clip(samples, -1.0, 1.0) * 32767.0).astype("<i2").tobytes()


def _wav_header(rate: int) -> bytes:
    unknown = 0xFFFFFFFF
    fields = (1).to_bytes(2, "little") * 2 + rate.to_bytes(4, "little") + (rate * 2).to_bytes(4, "little")
    form = b"fmt " + (16).to_bytes(4, "little") + fields + (2).to_bytes(2, "little") + (16).to_bytes(2, "little")
    return b"RIFF" + unknown.to_bytes(4, "little") + b"WAVE" + form + b"data" + (unknown - 36).to_bytes(4, "little")

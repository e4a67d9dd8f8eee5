"""Log-mel spectrogram as Whisper was trained on (Radford et al. 2022, section 2.2; openai/whisper, MIT)."""

from __future__ import annotations

import functools

import numpy as np

from atoll.engines.media.audio import RATE

N_FFT, HOP, MELS = 400, 160, 80


@functools.cache
def filters(mels: int = MELS) -> np.ndarray:
    """Slaney mel filters [mels, N_FFT/2 + 1], each of constant energy."""
    points = np.linspace(0.0, 15.0 + np.log(RATE / 2 / 1000) / (np.log(6.4) / 27.0), mels + 2)
    hertz = np.where(points < 15.0, points * 200.0 / 3, 1000.0 * np.exp((np.log(6.4) / 27.0) * (points - 15.0)))
    ramps = hertz[:, None] - np.fft.rfftfreq(N_FFT, 1.0 / RATE)[None, :]
    width = np.diff(hertz)[:, None]
    weights = np.maximum(0.0, np.minimum(-ramps[:-2] / width[:-1], ramps[2:] / width[1:]))
    return (weights * (2.0 / (hertz[2:] - hertz[:-2]))[:, None]).astype(np.float32)


def log_mel(samples: np.ndarray, mels: int = MELS) -> np.ndarray:
    """[mels, len(samples) / 160] from 16 kHz samples."""
    padded = np.pad(samples, N_FFT // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[::HOP]
    window = np.hanning(N_FFT + 1)[:-1].astype(np.float32)
    power = np.abs(np.fft.rfft(frames * window)[:-1]).astype(np.float32) ** 2
    log = np.log10(np.maximum(filters(mels) @ power.T, 1e-10))
    return ((np.maximum(log, log.max() - 8.0) + 4.0) / 4.0).astype(np.float32)

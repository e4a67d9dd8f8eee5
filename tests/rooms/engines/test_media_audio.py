"""Decoding and encoding, without models."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
from scipy.signal import resample_poly

from atoll.core.errors import Unsupported
from atoll.engines.media import audio, mel


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_resampling_in_blocks_has_no_seams(rate):
    samples = np.random.default_rng(0).standard_normal(rate * 9 + 123).astype(np.float32)
    cuts = np.split(samples, [rate * 4, rate * 8])
    common = np.gcd(rate, audio.RATE)
    whole = resample_poly(samples, audio.RATE // common, rate // common)
    assert np.allclose(np.concatenate(list(audio.resampled(iter(cuts), rate))), whole, atol=1e-5)


@pytest.mark.parametrize("kind", ["wav", "mp3", "flac", "opus"])
def test_a_tone_comes_back_from_every_format_written_in_pieces(kind):
    rate, seconds = 24_000, 3
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate * seconds) / rate).astype(np.float32)
    encoder = audio.Encoder(kind, rate)
    pieces = [encoder.write(part) for part in np.array_split(tone, 7)]
    sound = audio.decode(b"".join(pieces) + encoder.finish())
    assert sound.seconds == pytest.approx(seconds, abs=0.15)
    spectrum = np.abs(np.fft.rfft(sound.samples[8000:24_000]))
    assert np.argmax(spectrum) == 440 and np.abs(sound.samples).max() == pytest.approx(0.5, abs=0.05)


def test_channels_are_mixed_and_not_a_number_is_silence():
    import soundfile

    stereo = np.stack([np.full(1600, 0.5), np.full(1600, -0.1)], axis=1).astype(np.float32)
    stereo[7, 0] = np.nan
    out = io.BytesIO()
    soundfile.write(out, stereo, 16_000, format="WAV", subtype="FLOAT")
    samples = audio.decode(out.getvalue()).samples
    assert samples[7] == 0 and samples[8] == pytest.approx(0.2)


@pytest.mark.parametrize(
    "head", [b"\x1a\x45\xdf\xa3" + bytes(40), b"\0\0\0\x20ftypM4A " + bytes(40), b"\xff\xf1\x50\x80"]
)
def test_what_needs_pyav_says_what_to_do_without_it(monkeypatch, head):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(Unsupported, match=r"wav, flac, mp3 or ogg.*atoll\[codecs\]"):
        audio.decode(head)


def test_mel_filters_cover_the_band_with_equal_energy():
    weights = mel.filters()
    assert weights.shape == (80, 201) and weights.min() >= 0
    assert np.all(np.diff(weights.argmax(axis=1)) >= 0) and np.all(weights.sum(axis=1) > 0)
    low, high = weights[:40].sum(axis=1), weights[60:].sum(axis=1)
    assert low.mean() == pytest.approx(high.mean(), rel=0.05)


def test_log_mel_of_a_tone_peaks_in_its_band():
    tone = np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000).astype(np.float32)
    features = mel.log_mel(tone)
    assert features.shape == (80, 100)
    band = np.abs(np.fft.rfftfreq(mel.N_FFT, 1 / audio.RATE)[mel.filters().argmax(axis=1)] - 1000).argmin()
    assert abs(int(features[:, 50].argmax()) - band) <= 1

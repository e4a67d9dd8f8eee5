"""Speech recognition: Whisper (Radford et al. 2022, MIT) through CTranslate2, int8.

A window of audio is decoded to segments; the next window starts where the last whole segment ended. Whisper was
trained on 30 s; a shorter window of max(10 s, what is left + 1 s) costs a third, but may loop: tokens are capped,
repeats are looked for, and such a window is decoded again at 30 s, warmer if it must be (section 4.5 of the paper).
"""

from __future__ import annotations

import itertools
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from atoll.core.errors import InvalidRequest
from atoll.engines.media.audio import RATE, Sound
from atoll.engines.media.mel import log_mel
from atoll.engines.media.words import Word, split_words

WINDOW_S, SHORT_S, TAIL_S = 30.0, 10.0, 1.0
TOKENS_PER_S, TOKENS_MIN, TOKENS_MAX = 7, 24, 224
TICK_S = 0.02
MAX_COMPRESSION, MIN_LOGPROB, NO_SPEECH = 2.4, -1.0, 0.6
SILENCE = 1e-4
WARMER = (0.0, 0.4, 0.8)
PROMPT_TOKENS = 223


@dataclass(frozen=True, slots=True)
class Ask:
    """What the client wants. `language` "" means: find out."""

    language: str = ""
    prompt: str = ""
    temperature: float = 0.0
    words: bool = False


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of recognised speech; times in seconds."""

    start: float
    end: float
    text: str
    tokens: tuple[int, ...]
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float
    words: tuple[Word, ...] = ()


@dataclass(frozen=True, slots=True)
class _Decoded:
    tokens: list[int]
    temperature: float
    logprob: float
    no_speech: float
    encoded: object
    frames: int
    cap: int

    @property
    def stuck(self) -> bool:
        return repeats(self.tokens) or len(self.tokens) >= self.cap

    def looped(self, text: str) -> bool:
        return self.stuck or compression(text) > MAX_COMPRESSION


class Whisper:
    def __init__(self, folder: Path, threads: int):
        import ctranslate2
        from tokenizers import Tokenizer

        self._ct = ctranslate2
        self._model = ctranslate2.models.Whisper(str(folder), compute_type="int8", intra_threads=threads)
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._mels = json.loads((folder / "config.json").read_text()).get("num_mel_bins", 80)
        token = self._tokenizer.token_to_id
        self._sot, self._eot = token("<|startoftranscript|>"), token("<|endoftext|>")
        self._transcribe, self._prev = token("<|transcribe|>"), token("<|startofprev|>")
        self._first_tick = token("<|notimestamps|>") + 1
        names = (re.fullmatch(r"<\|([a-z]{2,3})\|>", name) for name in self._tokenizer.get_vocab(True))
        self.languages = sorted({m[1] for m in names if m}) if self._model.is_multilingual else ["en"]

    def check_language(self, language: str) -> None:
        if language and language not in self.languages:
            raise InvalidRequest(
                f"language must be one of {', '.join(self.languages)} (ISO 639-1), not '{language}'.", param="language"
            )

    def language(self, sound: Sound) -> str:
        """The language of the first 30 s, as its ISO 639-1 code."""
        if not self._model.is_multilingual:
            return "en"
        ((best, *_),) = self._model.detect_language(self._encode(sound.samples, _short(sound.seconds)))
        return best[0].strip("<|>")

    def transcribe(self, sound: Sound, ask: Ask) -> Iterator[list[Segment]]:
        """Segments, window by window. `ask.language` must be set."""
        at, first = 0, True
        while at < len(sound.samples):
            window = sound.samples[at : at + int(WINDOW_S * RATE)]
            if float(np.abs(window).max()) < SILENCE:
                segments, used = [], len(window)
            else:
                segments, used = self._window(window, at / RATE, ask, first)
            first = False
            yield segments
            at += used

    def _window(self, samples: np.ndarray, offset: float, ask: Ask, first: bool) -> tuple[list[Segment], int]:
        """Segments of one window and how many samples they settle."""
        decoded = self._decode(samples, ask, first)
        if decoded.no_speech > NO_SPEECH and decoded.logprob < MIN_LOGPROB:
            return [], len(samples)
        seconds = len(samples) / RATE
        last = seconds < WINDOW_S - TICK_S
        segments, settled = [], seconds
        for start, end, tokens, whole in self._cut(decoded.tokens, seconds):
            if not whole and not last and segments:
                settled = start
                break
            text = self._text(tokens)
            if text.strip() and compression(text) <= 2 * MAX_COMPRESSION:
                scores = (decoded.temperature, decoded.logprob, compression(text), decoded.no_speech)
                segments.append(Segment(round(offset + start, 2), round(offset + end, 2), text, tuple(tokens), *scores))
                settled = seconds if last else end
        if ask.words and segments:
            segments = self._with_words(segments, decoded, offset, ask)
        return segments, len(samples) if last else max(int(settled * RATE), RATE)

    def _decode(self, samples: np.ndarray, ask: Ask, first: bool) -> _Decoded:
        seconds = len(samples) / RATE
        prompt = self._prompt(ask, first)
        cap = int(min(TOKENS_MAX, max(TOKENS_MIN, seconds * TOKENS_PER_S)))
        tries = [self._once(samples, _short(seconds), (prompt, cap), ask.temperature)]
        for temperature in WARMER if ask.temperature == 0.0 else (ask.temperature,):
            if not tries[-1].looped(self._text(tries[-1].tokens)):
                return tries[-1]
            tries.append(self._once(samples, WINDOW_S, (prompt, TOKENS_MAX), temperature))
        # All may look like loops because people did say it again and again: the coolest that ended by itself.
        return min(tries, key=lambda tried: (tried.looped(self._text(tried.tokens)), tried.stuck))

    def _once(self, samples: np.ndarray, window: float, asked: tuple[list[int], int], temperature: float) -> _Decoded:
        """Decode once; `asked` is the prompt and how many tokens may follow it."""
        prompt, cap = asked
        # CTranslate2 generates at most min(max_length / 2, max_length - prompt) tokens.
        longest = max(2 * cap, cap + len(prompt))
        encoded = self._encode(samples, window)
        (out,) = self._model.generate(
            encoded, [prompt], beam_size=1, max_length=longest,
            sampling_topk=1 if temperature == 0 else 0, sampling_temperature=temperature or 1.0,
            return_scores=True, return_no_speech_prob=True,
        )  # fmt: skip
        tokens = list(out.sequences_ids[0])
        return _Decoded(tokens, temperature, out.scores[0], out.no_speech_prob, encoded, len(samples) // 160, cap)

    def _encode(self, samples: np.ndarray, window: float):
        size = int(window * RATE)
        features = log_mel(np.pad(samples[:size], (0, max(0, size - len(samples)))), self._mels)
        even = features[:, : features.shape[1] // 2 * 2]
        return self._model.encode(self._ct.StorageView.from_array(np.ascontiguousarray(even[None])))

    def _start(self, language: str) -> list[int]:
        if not self._model.is_multilingual:
            return [self._sot]
        return [self._sot, self._tokenizer.token_to_id(f"<|{language}|>"), self._transcribe]

    def _prompt(self, ask: Ask, first: bool) -> list[int]:
        if not (ask.prompt.strip() and first):
            return self._start(ask.language)
        before = self._tokenizer.encode(" " + ask.prompt.strip(), add_special_tokens=False).ids
        return [self._prev, *before[-PROMPT_TOKENS:], *self._start(ask.language)]

    def _cut(self, tokens: list[int], seconds: float) -> Iterator[tuple[float, float, list[int], bool]]:
        """(start, end, text tokens, has its end mark) of each segment between timestamp tokens."""
        start, text = 0.0, []
        for token in tokens:
            if token < self._first_tick:
                if token < self._eot:
                    text.append(token)
                continue
            tick = min((token - self._first_tick) * TICK_S, seconds)
            if text:
                yield start, max(tick, start), text, True
                text = []
            start = tick
        if text:
            yield min(start, seconds), seconds, text, False

    def _text(self, tokens: list[int]) -> str:
        return self._tokenizer.decode([t for t in tokens if t < self._eot])

    def _with_words(self, segments: list[Segment], decoded: _Decoded, offset: float, ask: Ask) -> list[Segment]:
        """All segments of the window are aligned together: the path must cover the whole window."""
        tokens = [token for segment in segments for token in segment.tokens]
        (aligned,) = self._model.align(decoded.encoded, self._start(ask.language), [tokens], [decoded.frames])
        spaced = ask.language not in UNSPACED
        words = split_words(tokens, aligned.alignments, self._tokenizer.decode, offset, spaced=spaced)
        ends = list(itertools.accumulate(len(segment.tokens) for segment in segments))
        return [
            replace(segment, words=tuple(word for word in words if end - len(segment.tokens) <= word.token < end))
            for segment, end in zip(segments, ends, strict=True)
        ]


UNSPACED = frozenset({"zh", "ja", "th", "lo", "my", "yue"})


def _short(seconds: float) -> float:
    return min(WINDOW_S, max(SHORT_S, seconds + TAIL_S))


def compression(text: str) -> float:
    """How much zlib shrinks the text: over 2.4 it repeats itself (openai/whisper)."""
    data = text.encode()
    return len(data) / len(zlib.compress(data)) if data else 0.0


def repeats(tokens: list[int], times: int = 4) -> bool:
    """Does the end of `tokens` say the same 1 to 12 tokens `times` over?"""
    for size in range(1, 13):
        tail = tokens[-size:]
        if len(tokens) >= size * times and tokens[-size * times :] == tail * times:
            return True
    return False

"""Transcription requests and answers: form fields in; json, text, verbose_json, srt, vtt or events out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from atoll.core.errors import InvalidRequest, Unsupported
from atoll.engines.media.asr import Ask, Segment
from atoll.engines.media.languages import NAMES

FORMATS = ("json", "text", "verbose_json", "srt", "vtt")
KNOWN = {"file", "model", "language", "prompt", "temperature", "response_format", "stream"}
LISTS = {"timestamp_granularities[]", "timestamp_granularities"}


@dataclass(frozen=True, slots=True)
class Form:
    ask: Ask
    format: str = "json"
    stream: bool = False
    granularities: frozenset[str] = frozenset()


def parse_form(fields: Sequence[tuple[str, Any]]) -> Form:
    """The fields of a transcription request. Raises InvalidRequest or Unsupported naming the field."""
    values: dict[str, str] = {}
    wanted: set[str] = set()
    for name, value in fields:
        if name in LISTS:
            wanted.add(_choice("timestamp_granularities", value, ("segment", "word")))
        elif name not in KNOWN:
            raise Unsupported(f"{name} is not supported by this model.", param=name)
        elif name in values:
            raise InvalidRequest(f"{name} is given twice.", param=name)
        else:
            values[name] = value
    kind = _choice("response_format", values.get("response_format", "json"), FORMATS)
    stream = _choice("stream", values.get("stream", "false").lower(), ("true", "false")) == "true"
    if wanted and kind != "verbose_json":
        raise InvalidRequest("timestamp_granularities needs response_format verbose_json.", param="response_format")
    if stream and kind not in ("json", "text"):
        raise Unsupported(f"stream cannot be combined with response_format {kind}.", param="stream")
    ask = Ask(
        language=values.get("language", "").lower(),
        prompt=values.get("prompt", ""),
        temperature=_temperature(values.get("temperature", "0")),
        words="word" in wanted,
    )
    return Form(ask, kind, stream, frozenset(wanted or {"segment"}))


def with_language(form: Form, language: str) -> Form:
    return replace(form, ask=replace(form.ask, language=language))


def _temperature(given: str) -> float:
    try:
        value = float(given)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 1.0:
        raise InvalidRequest("temperature must be a number from 0 to 1.", param="temperature")
    return value


def _choice(name: str, value: Any, allowed: Iterable[str]) -> str:
    if value not in allowed:
        raise InvalidRequest(f"{name} must be one of {', '.join(allowed)}, not '{value}'.", param=name)
    return value


def usage(seconds: float) -> dict[str, Any]:
    return {"type": "duration", "seconds": round(seconds, 3)}


def joined(segments: Sequence[Segment]) -> str:
    return "".join(segment.text for segment in segments).strip()


def verbose(form: Form, segments: Sequence[Segment], seconds: float) -> dict[str, Any]:
    body: dict[str, Any] = {
        "task": "transcribe",
        "language": NAMES.get(form.ask.language, form.ask.language),
        "duration": round(seconds, 3),
        "text": joined(segments),
        "usage": usage(seconds),
    }
    if "segment" in form.granularities:
        body["segments"] = [_segment(i, segment) for i, segment in enumerate(segments)]
    if "word" in form.granularities:
        body["words"] = [
            {"word": word.word, "start": word.start, "end": word.end} for segment in segments for word in segment.words
        ]
    return body


def _segment(number: int, segment: Segment) -> Mapping[str, Any]:
    return {
        "id": number,
        "seek": 0,
        "start": segment.start,
        "end": segment.end,
        "text": segment.text,
        "tokens": list(segment.tokens),
        "temperature": segment.temperature,
        "avg_logprob": round(segment.avg_logprob, 4),
        "compression_ratio": round(segment.compression_ratio, 4),
        "no_speech_prob": round(segment.no_speech_prob, 4),
    }


def srt(segments: Sequence[Segment]) -> str:
    return "".join(
        f"{i}\n{clock(s.start, ',')} --> {clock(s.end, ',')}\n{_cue(s)}\n\n" for i, s in enumerate(segments, 1)
    )


def vtt(segments: Sequence[Segment]) -> str:
    return "WEBVTT\n\n" + "".join(f"{clock(s.start, '.')} --> {clock(s.end, '.')}\n{_cue(s)}\n\n" for s in segments)


def _cue(segment: Segment) -> str:
    return segment.text.strip().replace("-->", "->")


def clock(seconds: float, mark: str) -> str:
    milli = round(seconds * 1000)
    return f"{milli // 3_600_000:02}:{milli // 60_000 % 60:02}:{milli // 1000 % 60:02}{mark}{milli % 1000:03}"

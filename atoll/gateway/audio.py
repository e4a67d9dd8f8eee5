"""OpenAI audio: transcriptions (a form with a file) and speech (JSON in, sound out as it is made).

Transcription is charged per second of sound, speech per character spoken. The seconds reserved are derived from the
size of the file, and no more than that is ever charged.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import orjson
from pydantic import Field, StringConstraints, model_validator

from atoll.core.errors import AtollError, EngineFailed
from atoll.core.ports import Reply
from atoll.core.types import Key, Usage
from atoll.gateway.chat import drop_nulls
from atoll.gateway.checks import check_voice
from atoll.gateway.errors import error_event
from atoll.gateway.exchange import Bound, Charge, Exchange
from atoll.gateway.forward import check_fields, opened, pick, served_name
from atoll.gateway.http import Http
from atoll.gateway.multipart import Form, read_form, text_fields, write_form
from atoll.gateway.schemas import Strict
from atoll.gateway.sound import most_seconds
from atoll.gateway.stream import MAX_EVENT, json_object, whole
from atoll.gateway.translate import parse

if TYPE_CHECKING:
    from atoll.gateway.asgi import Gateway

TRANSCRIPTIONS = "/v1/audio/transcriptions"
SPEECH = "/v1/audio/speech"
SECONDS_HEADER = "x-audio-seconds"


class TranscriptionForm(Strict):
    model: str = Field(min_length=1, max_length=256)
    language: Annotated[str, StringConstraints(pattern=r"^[A-Za-z]{2,3}$")] | None = None
    prompt: str | None = None
    response_format: Literal["json", "text", "srt", "verbose_json", "vtt"] = "json"
    temperature: float | None = Field(None, ge=0, le=1)
    timestamp_granularities: list[Literal["word", "segment"]] | None = None
    stream: bool = False

    @model_validator(mode="after")
    def _together(self) -> TranscriptionForm:
        if self.stream and self.response_format not in {"json", "text"}:
            raise ValueError("stream: goes with response_format json or text only")
        if self.timestamp_granularities and self.response_format != "verbose_json":
            raise ValueError("timestamp_granularities: needs response_format verbose_json")
        return self


class Voice(Strict):
    id: str


class SpeechRequest(Strict):
    model: str = Field(min_length=1, max_length=256)
    input: str = Field(min_length=1, max_length=4096)
    voice: str | Voice
    response_format: Literal["mp3", "opus", "aac", "flac", "wav", "pcm"] | None = None
    speed: float | None = Field(None, ge=0.25, le=4)
    stream_format: Literal["audio", "sse"] | None = None
    instructions: str | None = None


async def serve_transcriptions(gateway: Gateway, http: Http, key: Key) -> None:
    """POST /v1/audio/transcriptions."""
    raw = await http.body(gateway.limits.max_body_bytes)
    form = await read_form(raw, http.header(b"content-type") or "")
    fields = text_fields(form, ("timestamp_granularities",))
    request = parse(TranscriptionForm, fields)
    exchange = gateway.exchange
    card = pick(exchange.models, request.model, "transcription")
    check_fields(card, (name for name in fields if fields[name] != "false"), {"model"})
    sent = replace(form, fields=tuple((n, served_name(card) if n == "model" else v) for n, v in form.fields))
    charge = await exchange.begin(http, key, card, Bound(most_seconds(form.data)))
    await exchange.guard(http, charge, _transcribe(exchange, http, charge, sent, request.stream))


async def _transcribe(exchange: Exchange, http: Http, charge: Charge, form: Form, streamed: bool) -> None:
    body, content_type = write_form(form)
    reply = await opened(exchange, http, charge, TRANSCRIPTIONS, body, content_type)
    most = most_seconds(form.data)
    try:
        if streamed:
            await _relay_transcript(http, reply, charge, most)
            return
        data = await whole(reply)
        kind = reply.headers.get("content-type", "application/json")
        charge.usage = Usage(_seconds(reply, data if kind.startswith("application/json") else b"", most))
        await charge.settle()
        await http.reply(200, data, [(b"content-type", kind.encode("latin-1"))])
    finally:
        reply.close()


def _seconds(reply: Reply, data: bytes, most: int) -> int:
    """Whole seconds heard, as the engine says; an engine that says nothing is taken to have heard all of it."""
    body = json_object(data) if data else {}
    usage = body.get("usage") if isinstance(body.get("usage"), dict) else {}
    said = usage.get("seconds") or body.get("duration") or reply.headers.get(SECONDS_HEADER)
    try:
        return min(most, max(1, math.ceil(float(said))))
    except (TypeError, ValueError, OverflowError):
        return most


async def _relay_transcript(http: Http, reply: Reply, charge: Charge, most: int) -> None:
    """Pass events on as they come; the last one, transcript.text.done, tells how long the sound was."""
    charge.usage = Usage(most)
    tail = b""
    try:
        await _begin(http, reply)
        while data := await reply.read():
            charge.first_token()
            tail = (tail + data)[-MAX_EVENT:]
            await http.write(data)
        last = tail.replace(b"\r\n", b"\n").strip().removesuffix(b"data: [DONE]").strip().rpartition(b"\n\n")[2]
        if b"transcript.text.done" not in last:
            raise EngineFailed("the engine's stream ended before the transcript did")
        charge.usage = Usage(_seconds(reply, last[last.find(b"{") :], most))
        await charge.settle()
        await http.end()
    except AtollError as error:
        if http.started and not http.gone:
            await http.end(error_event(error, http.path, http.id))
        raise


async def serve_speech(gateway: Gateway, http: Http, key: Key) -> None:
    """POST /v1/audio/speech."""
    body = drop_nulls(gateway.parse(http, key, await http.body(gateway.limits.max_body_bytes)))
    request = parse(SpeechRequest, body)
    exchange = gateway.exchange
    card = pick(exchange.models, request.model, "speech")
    check_fields(card, body, {"model", "input", "voice"})
    check_voice(card, request.voice.id if isinstance(request.voice, Voice) else request.voice, "voice")
    characters = len(request.input)
    charge = await exchange.begin(http, key, card, Bound(characters))
    await exchange.guard(http, charge, _speak(exchange, http, charge, body, characters))


async def _speak(exchange: Exchange, http: Http, charge: Charge, body: dict[str, Any], characters: int) -> None:
    sent = orjson.dumps({**body, "model": served_name(charge.card)})
    reply = await opened(exchange, http, charge, SPEECH, sent, "application/json")
    try:
        charge.usage = Usage(characters)
        await _begin(http, reply)
        while data := await reply.read():
            charge.first_token()
            await http.write(data)
        await charge.settle()
        await http.end()
    finally:
        reply.close()


async def _begin(http: Http, reply: Reply) -> None:
    kind = reply.headers.get("content-type", "application/octet-stream")
    await http.start(200, [(b"content-type", kind.encode("latin-1")), (b"cache-control", b"no-store")])

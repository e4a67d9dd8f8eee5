"""The composed model: a chat model that is told what the others hear and read, and whose answer another one speaks.

Pictures are read (OCR) and sounds transcribed, side by side, before the chat model is asked; what was understood
stands in their place as text. It hears words and reads text: it does not see. One charge covers all of it: the
tokens of the chat part, to which everything heard and read belongs.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

import orjson

from atoll.core.cards import Card
from atoll.core.errors import AtollError, DeadlineExceeded, EngineFailed, InvalidRequest, NotFound, SetupError
from atoll.core.route import Request
from atoll.gateway.checks import check_chat
from atoll.gateway.exchange import Charge, Exchange
from atoll.gateway.http import Http
from atoll.gateway.multipart import Form, write_form
from atoll.gateway.spoken import Sentences, pieces, wav
from atoll.gateway.stream import refusal, whole

MAX_PARTS = 16
AT_ONCE = 4
PERCEPTION_SECONDS = 120.0
SPEAKING_SECONDS = 60.0
FORMATS = {"pcm16": "pcm"}
JOINABLE = {"pcm", "mp3", "opus"}

T = TypeVar("T")
Chunk = dict[str, Any]
Ask = Callable[[Card, dict[str, Any]], AsyncIterator[Chunk]]


@dataclass(frozen=True, slots=True)
class Senses:
    """The models that a cascade is made of, and the request they serve."""

    exchange: Exchange
    http: Http
    charge: Charge

    def part(self, task: str) -> Card:
        """Raises SetupError when the cascade has no such part, or it is not installed."""
        card, models = self.charge.card, self.exchange.models
        for name in card.parts:
            try:
                found = models.resolve(name)
            except NotFound:
                continue
            if found.task == task:
                return found
        parts = ", ".join(card.parts)
        raise SetupError(f"model '{card.id}' has no part for {task} that is installed; its parts: {parts}")

    async def call(self, card: Card, path: str, body: bytes, content_type: str = "application/json") -> bytes:
        """The whole answer of one part, asked where the request may be processed. Raises what its engine refused."""
        charge = self.charge
        request = Request(charge.entry.id, card.id, charge.key.id, allowed=charge.place.allowed)
        reply = await self.exchange.models.open(card, path, body, content_type, charge.ask(request))
        try:
            if reply.status >= 400:
                raise await refusal(reply)
            return await whole(reply)
        finally:
            reply.close()


async def compose(senses: Senses, body: dict[str, Any], ask: Ask) -> AsyncIterator[Chunk]:
    """Canonical chunks of the composed answer. `ask` streams the answer of the chat part."""
    chat = senses.part("chat")
    audio = body.get("audio") if "audio" in (body.get("modalities") or ()) else None
    if audio is not None:
        _check_audio(body, audio)
    senses.http.cancel_when_gone()
    asked = {name: value for name, value in body.items() if name not in {"audio", "modalities"}}
    if "messages" in body:
        asked["messages"] = await perceive(senses, body["messages"])
        check_chat(chat, asked)
    asked |= {"model": chat.id, "stream": True}
    senses.charge.serving = chat
    senses.charge.needs = senses.charge.needs._replace(modalities=frozenset({"text"}), prompt=0)
    speaker = Speaker(senses, audio, bool(body.get("stream"))) if audio is not None else None
    async with aclosing(ask(chat, asked)) as chunks:
        async for chunk in chunks:
            named = {**chunk, "model": senses.charge.card.id}
            for told in await speaker.feed(named) if speaker else (named,):
                yield told


def _check_audio(body: dict[str, Any], audio: dict[str, Any]) -> None:
    if body.get("stream") and audio["format"] != "pcm16":
        raise InvalidRequest("audio.format must be pcm16 when stream is true", param="audio.format")
    if (body.get("n") or 1) > 1:
        raise InvalidRequest("n must be 1 for a spoken answer", param="n")


async def perceive(senses: Senses, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`messages` with text in place of pictures and sounds. Raises InvalidRequest naming the part that cannot be
    read or heard, DeadlineExceeded after 120 s."""
    found = [
        (i, j, part)
        for i, message in enumerate(messages)
        for j, part in enumerate(message["content"] if isinstance(message.get("content"), list) else ())
        if part["type"] in {"image_url", "input_audio"}
    ]
    if len(found) > MAX_PARTS:
        raise InvalidRequest(
            f"a request holds at most {MAX_PARTS} pictures and sounds, not {len(found)}", param="messages"
        )
    gate = asyncio.Semaphore(AT_ONCE)

    async def understand(i: int, j: int, part: dict[str, Any]) -> str:
        async with gate:
            sense = _read if part["type"] == "image_url" else _hear
            return await sense(senses, part, f"messages[{i}].content[{j}]")

    texts = await _together(understand(*place) for place in found)
    understood = {(i, j): {"type": "text", "text": text} for (i, j, _), text in zip(found, texts, strict=True)}
    changed = {i for i, _ in understood}
    return [
        {**m, "content": [understood.get((i, j), part) for j, part in enumerate(m["content"])]} if i in changed else m
        for i, m in enumerate(messages)
    ]


async def _together(jobs: Iterable[Awaitable[T]]) -> list[T]:
    """All results; the first failure ends the others."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        async with asyncio.timeout(PERCEPTION_SECONDS):
            return await asyncio.gather(*tasks)
    except TimeoutError:
        message = f"the pictures and sounds were not understood in {PERCEPTION_SECONDS:.0f} s"
        raise DeadlineExceeded(message, param="messages") from None
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _read(senses: Senses, part: dict[str, Any], where: str) -> str:
    card = senses.part("ocr")
    asked = {"model": card.id, "image": part["image_url"]["url"]}
    text = await _text(senses.call(card, "/v1/ocr", orjson.dumps(asked)), {"image": f"{where}.image_url.url"})
    return f"[Image: text read from it: {text}]" if text else "[Image: no text could be read in it]"


async def _hear(senses: Senses, part: dict[str, Any], where: str) -> str:
    sound, card = part["input_audio"], senses.part("transcription")
    try:
        data = base64.b64decode(sound["data"], validate=True)
    except binascii.Error:
        raise InvalidRequest("the sound is not valid base64", param=f"{where}.input_audio.data") from None
    name = card.remote.model if card.remote else card.id
    form = Form(f"sound.{sound['format']}", data, f"audio/{sound['format']}", (("model", name),))
    body, content_type = write_form(form)
    call = senses.call(card, "/v1/audio/transcriptions", body, content_type)
    text = await _text(call, {"file": f"{where}.input_audio.data"})
    return text or "[Audio: no words could be heard in it]"


async def _text(call: Awaitable[bytes], fields: dict[str, str]) -> str:
    try:
        answer = orjson.loads(await call)
        return str(answer["text"]).strip()
    except AtollError as error:
        error.param = fields.get(error.param or "")
        raise
    except (orjson.JSONDecodeError, KeyError, TypeError):
        raise EngineFailed("a part of the composed model answered without text") from None


class Speaker:
    """Turns the text of an answer into spoken chunks: sentence by sentence in a stream, else at the end in one."""

    def __init__(self, senses: Senses, audio: dict[str, Any], streamed: bool) -> None:
        self._senses = senses
        self._card = senses.part("speech")
        self._voice = audio["voice"]
        self._format = FORMATS.get(audio["format"], audio["format"])
        self._id = "audio_" + senses.http.id[4:]
        self._sentences = Sentences()
        self._streamed = streamed
        self._said = ""

    async def feed(self, chunk: Chunk) -> list[Chunk]:
        """The chunk with its text as a transcript, followed by the sound of the sentences it completes."""
        if not chunk.get("choices"):
            return [chunk]
        choice = chunk["choices"][0]
        delta = dict(choice.get("delta") or {})
        text, finish = delta.pop("content", None) or "", choice.get("finish_reason")
        self._said += text
        if text:
            delta["audio"] = {"id": self._id, "transcript": text}
        told = [_with(chunk, {**choice, "delta": delta, "finish_reason": None})] if delta else []
        sound = await self._sound(text, bool(finish))
        if sound:
            heard = {"id": self._id, "data": base64.b64encode(sound).decode()}
            told.append(_with(chunk, {"index": 0, "delta": {"audio": heard}, "finish_reason": None}))
        if finish:
            last = {"audio": {"id": self._id, "expires_at": int(time.time())}} if self._said else {}
            told.append(_with(chunk, {"index": 0, "delta": last, "finish_reason": finish}))
        return told

    async def _sound(self, text: str, ends: bool) -> bytes:
        if self._streamed:
            ready = [*self._sentences.feed(text), *(self._sentences.rest() if ends else ())]
            return b"".join([await self._speak(sentence, self._format) for sentence in ready])
        if not ends or not self._said.strip():
            return b""
        self._senses.http.cancel_when_gone()
        parts = pieces(self._said)
        if len(parts) == 1 or self._format in JOINABLE:
            return b"".join([await self._speak(p, self._format) for p in parts])
        if self._format != "wav":
            message = f"the answer is too long to be spoken as {self._format}: ask for wav, mp3, opus or pcm16"
            raise InvalidRequest(message, param="audio.format")
        return wav(b"".join([await self._speak(p, "pcm") for p in parts]))

    async def _speak(self, text: str, kind: str) -> bytes:
        """Sound of `text`; nothing for a text without anything to say."""
        name = self._card.remote.model if self._card.remote else self._card.id
        asked = {"model": name, "input": text, "voice": self._voice, "response_format": kind}
        try:
            async with asyncio.timeout(SPEAKING_SECONDS):
                return await self._senses.call(self._card, "/v1/audio/speech", orjson.dumps(asked))
        except TimeoutError:
            raise DeadlineExceeded(f"the answer was not spoken in {SPEAKING_SECONDS:.0f} s") from None
        except InvalidRequest as error:
            if error.param == "input":
                return b""
            error.param = {"voice": "audio.voice", "response_format": "audio.format"}.get(error.param or "")
            raise


def _with(chunk: Chunk, choice: dict[str, Any]) -> Chunk:
    return {**{name: value for name, value in chunk.items() if name != "usage"}, "choices": [choice]}

"""The worker's HTTP side: one route per kind of model, on top of the queue and the lazily loaded models."""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from atoll.core.errors import AtollError, InvalidRequest, NotFound, SetupError, Unsupported
from atoll.engines.media import KINDS, audio, embed, http, ocr, transcripts, tts
from atoll.engines.media.vad import Rules
from atoll.engines.media.work import Pool

log = logging.getLogger("atoll.engines.media")

LIVE, BATCH = 0, 1
END = object()
MAX_FIELDS = 20


@dataclass(frozen=True, slots=True)
class Served:
    """A model of this process: its task, the folder of its weights, and why it cannot be served, if it cannot."""

    task: str
    folder: Path
    problem: str = ""


class Media:
    """The routes. Models are loaded on first use, each once."""

    def __init__(self, models: Mapping[str, Served], pool: Pool, threads: int):
        self._models, self._pool, self._threads = models, pool, threads
        self._loaded: dict[str, Any] = {}
        self._locks = {name: asyncio.Lock() for name in models}

    async def model(self, name: object, task: str) -> Any:
        """The loaded model. Raises NotFound, Unsupported (another task), SetupError (cannot be loaded)."""
        served = self._models.get(name) if isinstance(name, str) else None
        if served is None:
            fit = ", ".join(sorted(n for n, s in self._models.items() if s.task == task))
            raise NotFound(f"There is no model '{name}' here; for this route: {fit}.", param="model")
        if served.task != task:
            raise Unsupported(f"'{name}' is a model for {served.task}, not for {task}.", param="model")
        if served.problem:
            raise SetupError(served.problem, param="model")
        async with self._locks[name]:
            if name not in self._loaded:
                self._loaded[name] = await self._pool.call(_load, name, served, self._threads)
        return self._loaded[name]

    async def preload(self, names: list[str]) -> None:
        for name in names:
            await self.model(name, self._models[name].task if name in self._models else "")

    async def health(self, request: Request) -> Response:
        models = {n: {"task": s.task, "loaded": n in self._loaded} for n, s in self._models.items()}
        return http.json({"status": "ok", "queued": self._pool.queued, "models": models})

    async def embeddings(self, request: Request) -> Response:
        body = await http.read_json(request, {"model", "input", "encoding_format", "user"})
        encoding = body.get("encoding_format", "float")
        if encoding not in ("float", "base64"):
            raise InvalidRequest("encoding_format must be float or base64.", param="encoding_format")
        texts = embed.check_input(body.get("input"))
        vectors, tokens = await http.until_gone(request, self._embed(body.get("model"), texts))
        show = (lambda v: base64.b64encode(v.tobytes()).decode()) if encoding == "base64" else (lambda v: v.tolist())
        data = [{"object": "embedding", "index": i, "embedding": show(v)} for i, v in enumerate(vectors)]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return http.json({"object": "list", "data": data, "model": body["model"], "usage": usage})

    async def _embed(self, name: object, texts: list[str]) -> tuple[list[np.ndarray], int]:
        async with self._pool.turn(BATCH):
            model = await self.model(name, "embedding")
            rows = await self._pool.call(model.tokenize, texts)
            vectors: list[np.ndarray] = [np.zeros(0)] * len(rows)
            async for numbers, batch in self._pool.steps(model.embed(rows)):
                for i, vector in zip(numbers, batch, strict=True):
                    vectors[i] = vector.astype(np.float32)
            return vectors, sum(len(row) for row in rows)

    async def transcriptions(self, request: Request) -> Response:
        data, fields = await _form(request)
        form = transcripts.parse_form(fields)
        name = dict(fields).get("model")
        if form.stream:
            parts = self._transcribe(name, data, form)
            return await _streamed(request, parts, _transcript_events, "text/event-stream")
        segments, seconds = [], 0.0
        done = await http.until_gone(request, _collect(self._transcribe(name, data, form)))
        for form, seconds, batch in done:  # noqa: B007
            segments += batch
        match form.format:
            case "text":
                return PlainTextResponse(transcripts.joined(segments) + "\n", headers=_duration(seconds))
            case "srt":
                return PlainTextResponse(transcripts.srt(segments), headers=_duration(seconds))
            case "vtt":
                return PlainTextResponse(transcripts.vtt(segments), headers=_duration(seconds), media_type="text/vtt")
            case "verbose_json":
                return http.json(transcripts.verbose(form, segments, seconds))
        return http.json({"text": transcripts.joined(segments), "usage": transcripts.usage(seconds)})

    async def _transcribe(self, name: object, data: bytes, form: transcripts.Form) -> AsyncIterator[tuple]:
        """(form with its language, seconds of sound, segments) after every window; at least once."""
        async with self._pool.turn(LIVE):
            model = await self.model(name, "transcription")
            model.check_language(form.ask.language)
            sound = await self._pool.call(audio.decode, data)
            if not form.ask.language:
                form = transcripts.with_language(form, await self._pool.call(model.language, sound))
            yield form, sound.seconds, []
            async for segments in self._pool.steps(model.transcribe(sound, form.ask)):
                yield form, sound.seconds, segments

    async def speech(self, request: Request) -> Response:
        known = {"model", "input", "voice", "response_format", "speed", "stream_format"}
        body = await http.read_json(request, known)
        text, speed = tts.check_input(body.get("input")), tts.check_speed(body.get("speed", 1.0))
        tts.check_voice(body.get("voice"))
        kind, shape = body.get("response_format", "mp3"), body.get("stream_format", "audio")
        if not isinstance(kind, str) or kind not in audio.MEDIA_TYPES:
            allowed = ", ".join(audio.MEDIA_TYPES)
            raise Unsupported(f"response_format must be one of {allowed}, not '{kind}'.", param="response_format")
        if shape not in ("audio", "sse"):
            raise InvalidRequest("stream_format must be audio or sse.", param="stream_format")
        parts = self._speak(body.get("model"), text, speed, kind)
        if shape == "sse":
            return await _streamed(request, parts, _speech_events, "text/event-stream")
        return await _streamed(request, parts, _as_is, audio.MEDIA_TYPES[kind])

    async def _speak(self, name: object, text: str, speed: float, kind: str) -> AsyncIterator[bytes]:
        async with self._pool.turn(LIVE):
            model = await self.model(name, "speech")
            sentences = await self._pool.call(model.phonemes, text)
            encoder = audio.Encoder(kind, model.rate)
            async for samples in self._pool.steps(model.speak(sentences, speed)):
                if part := await self._pool.call(encoder.write, samples):
                    yield part
            if part := await self._pool.call(encoder.finish):
                yield part

    async def ocr(self, request: Request) -> Response:
        name, data = await _picture(request)
        picture, lines = await http.until_gone(request, self._read(name, data))
        text = "\n".join(line.text for line in lines)
        return http.json(
            {
                "model": name,
                "text": text,
                "width": picture.shape[1],
                "height": picture.shape[0],
                "lines": [{"text": line.text, "score": line.score, "box": line.box} for line in lines],
                "usage": {"type": "characters", "characters": sum(len(line.text) for line in lines)},
            }
        )

    async def _read(self, name: object, data: bytes) -> tuple[np.ndarray, list[ocr.Line]]:
        async with self._pool.turn(BATCH):
            model = await self.model(name, "ocr")
            picture = await self._pool.call(ocr.decode, data)
            return picture, await self._pool.call(model.read, picture)

    async def vad(self, request: Request) -> Response:
        data, fields = await _form(request)
        given = dict(fields)
        rules = _rules({n: v for n, v in given.items() if n not in ("model", "file")})
        sound, segments = await http.until_gone(request, self._speech_in(given.get("model"), data, rules))
        found = [{"start": start, "end": end} for start, end in segments]
        usage = transcripts.usage(sound.seconds)
        return http.json(
            {"model": given["model"], "duration": round(sound.seconds, 3), "segments": found, "usage": usage}
        )

    async def _speech_in(self, name: object, data: bytes, rules: Rules) -> tuple[audio.Sound, list]:
        async with self._pool.turn(LIVE):
            model = await self.model(name, "vad")
            sound = await self._pool.call(audio.decode, data)
            return sound, await self._pool.call(model.segments, sound, rules)


def build(media: Media, token: str) -> http.Guard:
    routes = [
        Route("/health", media.health),
        Route("/v1/embeddings", media.embeddings, methods=["POST"]),
        Route("/v1/audio/transcriptions", media.transcriptions, methods=["POST"]),
        Route("/v1/audio/speech", media.speech, methods=["POST"]),
        Route("/v1/ocr", media.ocr, methods=["POST"]),
        Route("/v1/vad", media.vad, methods=["POST"]),
    ]
    handlers = {
        AtollError: http.on_atoll_error,
        HTTPException: http.on_http_error,
        http.ClientGone: http.on_gone,
        Exception: http.on_crash,
    }
    return http.Guard(Starlette(routes=routes, exception_handlers=handlers), token)


def _load(name: str, served: Served, threads: int) -> Any:
    try:
        return KINDS[served.task](served.folder, threads)
    except ImportError as error:
        raise SetupError(
            f"'{name}' needs the Python package '{error.name}', which is missing: pip install --upgrade atoll."
        ) from error
    except Exception as error:  # the native libraries below raise it bare
        log.exception("%s could not be loaded", name)
        raise SetupError(
            f"'{name}' could not be loaded: {error}. If its weights are damaged, delete the folder "
            f"{served.folder} and start again; they are then fetched anew."
        ) from error


async def _form(request: Request) -> tuple[bytes, list[tuple[str, Any]]]:
    """The bytes of the field `file`, and all other fields. Raises InvalidRequest."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise InvalidRequest("The body must be multipart/form-data with the field 'file'.", param="file")
    async with request.form(max_files=1, max_fields=MAX_FIELDS) as form:
        upload = form.get("file")
        if not isinstance(upload, UploadFile):
            raise InvalidRequest("file is required: the sound, as a file of the form.", param="file")
        fields = [(name, value) for name, value in form.multi_items() if name != "file"]
        for name, value in fields:
            if not isinstance(value, str):
                raise InvalidRequest(f"{name} must be a text field.", param=name)
        return await upload.read(), fields


async def _picture(request: Request) -> tuple[str, bytes]:
    """(model, picture bytes) from JSON, a form, or the bare picture with `?model=`."""
    kind = request.headers.get("content-type", "").split(";")[0].strip()
    if kind == "multipart/form-data":
        data, fields = await _form(request)
        for name, _ in fields:
            if name != "model":
                raise Unsupported(f"{name} is not supported by this model.", param=name)
        return dict(fields).get("model", ""), data
    if kind.startswith("image/") or kind == "application/octet-stream":
        return request.query_params.get("model", ""), await request.body()
    body = await http.read_json(request, {"model", "image"})
    return body.get("model", ""), ocr.from_url(body.get("image"))


def _rules(given: Mapping[str, str]) -> Rules:
    bounds = {
        "threshold": (0.01, 0.99),
        "min_speech_ms": (0, 10_000),
        "min_silence_ms": (0, 10_000),
        "pad_ms": (0, 2000),
    }
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in bounds:
            raise Unsupported(f"{name} is not supported by this model.", param=name)
        low, high = bounds[name]
        try:
            values[name] = float(value) if name == "threshold" else int(value)
        except ValueError:
            values[name] = float("nan")
        if not low <= values[name] <= high:
            raise InvalidRequest(f"{name} must be a number from {low} to {high}.", param=name)
    return Rules(**values)


def _duration(seconds: float) -> dict[str, str]:
    return {"x-audio-seconds": f"{seconds:.3f}"}


async def _collect(parts: AsyncIterator[Any]) -> list[Any]:
    return [part async for part in parts]


async def _streamed(request: Request, parts: AsyncIterator[Any], render, media_type: str) -> Response:
    """Begin only when the first part is there, so that what goes wrong before has its proper status."""
    ahead = _ahead(parts)
    try:
        first = await http.until_gone(request, anext(ahead))
    except StopAsyncIteration:
        raise InvalidRequest("There is nothing to send for this input.", param="input") from None
    return StreamingResponse(render(_chained(first, ahead)), media_type=media_type)


async def _ahead(parts: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """Work at full speed into a buffer, so that a client that stops reading holds no place at work.
    What is buffered is bounded by the limits on the request."""
    made: asyncio.Queue[Any] = asyncio.Queue()

    async def pump() -> None:
        try:
            async with aclosing(parts):
                async for part in parts:
                    made.put_nowait(part)
        finally:
            made.put_nowait(END)

    task = asyncio.create_task(pump())
    try:
        while (part := await made.get()) is not END:
            yield part
        await task
    finally:
        task.cancel()
        await asyncio.wait([task])


async def _chained(first: Any, rest: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async with aclosing(rest):
        yield first
        async for part in rest:
            yield part


async def _as_is(parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for part in parts:
        yield part


async def _speech_events(parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for part in parts:
        yield _event({"type": "speech.audio.delta", "audio": base64.b64encode(part).decode()})
    yield _event({"type": "speech.audio.done"})


async def _transcript_events(parts: AsyncIterator[tuple]) -> AsyncIterator[bytes]:
    text, seconds = "", 0.0
    async for _, seconds, segments in parts:  # noqa: B007
        for segment in segments:
            delta = segment.text if text else segment.text.lstrip()
            text += delta
            yield _event({"type": "transcript.text.delta", "delta": delta})
    yield _event({"type": "transcript.text.done", "text": text, "usage": transcripts.usage(seconds)})


def _event(body: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(body) + b"\n\n"

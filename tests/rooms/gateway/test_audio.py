"""Transcription, speech and OCR: what the engine is asked, what the official SDK reads back, what is charged."""

from __future__ import annotations

import io
import struct
import wave
from dataclasses import replace
from typing import Any

import httpx
import openai
import orjson
import pytest
from support import SECRET, Answer, json_answer, running

from atoll.core.cards import Card, Remote
from atoll.core.errors import InvalidRequest
from atoll.core.types import Limits, Price
from atoll.gateway.multipart import Form, read_form, write_form
from atoll.gateway.sound import most_seconds

HEAR = "/v1/audio/transcriptions"
SPEAK = "/v1/audio/speech"
HEADERS = {"authorization": f"Bearer {SECRET}"}
EARS = Card(
    id="ears",
    title="Ears",
    task="transcription",
    engine="media",
    unit="second",
    input=("audio",),
    parameters=("language", "prompt", "temperature", "response_format", "timestamp_granularities", "stream"),
    price=Price(100),
)
MOUTH = Card(
    id="mouth",
    title="Mouth",
    task="speech",
    engine="media",
    unit="character",
    output=("audio",),
    voices=("heart", "sky"),
    parameters=("response_format", "speed", "stream_format"),
    price=Price(7),
)
EYES = Card(
    id="eyes", title="Eyes", task="ocr", engine="media", unit="character", input=("image",), price=Price(output=3)
)


def sdk(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=SECRET, max_retries=0)


def silence(seconds: float, rate: int = 16_000) -> bytes:
    sink = io.BytesIO()
    with wave.open(sink, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(bytes(int(seconds * rate) * 2))
    return sink.getvalue()


def heard(text: str, seconds: float) -> Answer:
    return json_answer({"text": text, "usage": {"type": "duration", "seconds": seconds}})


def sse(*events: dict[str, Any]) -> Answer:
    pieces = [b"data: " + orjson.dumps(e) + b"\n\n" for e in events]
    return Answer(pieces, headers={"content-type": "text/event-stream; charset=utf-8"})


async def test_sdk_transcribes_and_started_seconds_are_charged() -> None:
    async with running(EARS) as house, sdk(house.url) as client:
        house.upstream.on(HEAR, heard("hello", 2.4))
        sound = silence(2.4)
        result = await client.audio.transcriptions.create(
            model="ears", file=("a.wav", sound), language="en", temperature=0.2
        )
        assert result.text == "hello"
        asked = house.upstream.asked[0]
        form = await read_form(asked.raw, asked.headers["content-type"])
        assert (form.name, form.data) == ("a.wav", sound)
        assert dict(form.fields) == {"model": "ears", "language": "en", "temperature": "0.2"}
        row = await house.settled()
        assert (row.status, row.usage.input, row.cost) == ("done", 3, 300)
        assert house.held() == (0, 0)


async def test_word_times_reach_a_remote_engine_under_its_own_model_name() -> None:
    card = replace(EARS, engine="remote", remote=Remote("http://x", "whisper-1"))
    async with running(card) as house, sdk(house.url) as client:
        words = [{"word": "hi", "start": 0.0, "end": 0.5}]
        house.upstream.on(HEAR, json_answer({"text": "hi", "duration": 1.2, "language": "english", "words": words}))
        result = await client.audio.transcriptions.create(
            model="ears", file=silence(1.2), response_format="verbose_json", timestamp_granularities=["word"]
        )
        assert result.words[0].word == "hi"
        asked = house.upstream.asked[0]
        fields = (await read_form(asked.raw, asked.headers["content-type"])).fields
        assert ("model", "whisper-1") in fields and ("timestamp_granularities[]", "word") in fields
        assert (await house.settled()).usage.input == 2


@pytest.mark.parametrize(("headers", "seconds"), [({"x-audio-seconds": "1.500"}, 2), ({}, 3)])
async def test_plain_text_is_charged_by_the_engines_header_or_else_by_the_bound(
    headers: dict[str, str], seconds: int
) -> None:
    async with running(EARS) as house, sdk(house.url) as client:
        house.upstream.on(HEAR, Answer([b"hi\n"], headers={"content-type": "text/plain; charset=utf-8", **headers}))
        text = await client.audio.transcriptions.create(model="ears", file=silence(2.9), response_format="text")
        assert (text, (await house.settled()).usage.input) == ("hi\n", seconds)


async def test_an_engine_that_claims_more_than_was_sent_is_not_believed() -> None:
    async with running(EARS) as house, sdk(house.url) as client:
        house.upstream.on(HEAR, heard("x", 1e9))
        await client.audio.transcriptions.create(model="ears", file=silence(1.0))
        assert (await house.settled()).usage.input == 2


async def test_sdk_streams_a_transcript() -> None:
    async with running(EARS) as house, sdk(house.url) as client:
        usage = {"type": "duration", "seconds": 2.0}
        house.upstream.on(
            HEAR,
            sse(
                {"type": "transcript.text.delta", "delta": "he"},
                {"type": "transcript.text.delta", "delta": "llo"},
                {"type": "transcript.text.done", "text": "hello", "usage": usage},
            ),
            sse({"type": "transcript.text.delta", "delta": "he"}),
        )
        stream = await client.audio.transcriptions.create(model="ears", file=silence(2.5), stream=True)
        assert [e.type async for e in stream] == [
            "transcript.text.delta", "transcript.text.delta", "transcript.text.done",
        ]
        row = await house.settled()
        assert (row.status, row.usage.input) == ("done", 2)
        with pytest.raises(openai.APIError, match="ended before the transcript did"):
            async for _ in await client.audio.transcriptions.create(model="ears", file=silence(2.5), stream=True):
                pass
        assert (await house.settled()).status == "failed"


async def test_bad_transcription_forms_are_refused_by_name() -> None:
    file = {"file": ("a.wav", silence(0.1))}
    table: list[tuple[dict[str, Any], dict[str, Any], int, str | None, str]] = [
        ({}, file, 400, "model", "model: Field required"),
        ({"model": "ears"}, {"other": b"x"}, 400, "file", "file: a file is required"),
        ({"model": "ears"}, {"file": ("a.wav", b"")}, 400, "file", "file: the file is empty"),
        ({"model": "ears", "language": "klingon"}, file, 400, "language", "language: "),
        ({"model": "ears", "temperature": "hot"}, file, 400, "temperature", "temperature: "),
        ({"model": "ears", "response_format": "xml"}, file, 400, "response_format", "response_format: "),
        ({"model": "ears", "chunking_strategy": "auto"}, file, 400, "chunking_strategy", "chunking_strategy: this"),
        ({"model": ["ears", "ears"]}, file, 400, "model", "model: the field is given twice"),
        ({"model": "ears", "stream": "true", "response_format": "srt"}, file, 400, None, "stream: goes with"),
        ({"model": "ears", "timestamp_granularities[]": "word"}, file, 400, None, "timestamp_granularities: needs"),
        ({"model": "mouth"}, file, 400, "model", "model 'mouth' is for speech, not for transcription"),
        ({"model": "whisper-1"}, file, 404, "model", "model 'whisper-1' does not exist here; for transcription there"),
    ]
    async with running(EARS, MOUTH) as house, httpx.AsyncClient(headers=HEADERS) as client:
        for data, files, status, param, message in table:
            reply = await client.post(house.url + HEAR, data=data, files=files)
            error = reply.json()["error"]
            assert (reply.status_code, error["param"], error["message"][: len(message)]) == (status, param, message)
        for kind in ("application/json", "multipart/form-data", "multipart/form-data; boundary=x"):
            reply = await client.post(house.url + HEAR, content=b"--y nothing", headers={"content-type": kind})
            assert (reply.status_code, "multipart" in reply.text or "file" in reply.text) == (400, True)
        many = {f"f{i}": "x" for i in range(40)}
        assert (await client.post(house.url + HEAR, data=many, files=file)).status_code == 400
        assert house.upstream.asked == []


async def test_what_a_card_cannot_do_is_refused() -> None:
    async with running(replace(EARS, parameters=())) as house, httpx.AsyncClient(headers=HEADERS) as client:
        files = {"file": ("a.wav", silence(0.1))}
        reply = await client.post(house.url + HEAR, data={"model": "ears", "prompt": "x"}, files=files)
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, "prompt")


async def test_a_sound_over_the_budget_is_refused_before_the_engine_hears_it() -> None:
    async with running(EARS) as house, sdk(house.url) as client:
        house.limit(Limits(budget_per_month=999))
        with pytest.raises(openai.RateLimitError, match="budget"):
            await client.audio.transcriptions.create(model="ears", file=silence(10.0))
        assert (house.upstream.asked, house.held()) == ([], (0, 0))


async def test_speech_is_passed_on_as_it_is_made_and_charged_by_the_character() -> None:
    async with running(MOUTH) as house, sdk(house.url) as client:
        house.upstream.on(SPEAK, Answer([b"one", b"two"], headers={"content-type": "audio/mpeg"}, wait=0.05))
        async with client.audio.speech.with_streaming_response.create(
            model="mouth", voice="heart", input="Hello.", response_format="mp3", speed=1.5
        ) as reply:
            pieces = [p async for p in reply.iter_bytes()]
            assert reply.headers["content-type"] == "audio/mpeg"
        assert pieces == [b"one", b"two"]
        assert house.upstream.asked[0].json == {
            "model": "mouth", "voice": "heart", "input": "Hello.", "response_format": "mp3", "speed": 1.5,
        }
        row = await house.settled()
        assert (row.status, row.usage.input, row.cost) == ("done", 6, 42)


async def test_speech_cut_short_by_the_engine_does_not_look_complete() -> None:
    async with running(MOUTH) as house, httpx.AsyncClient(headers=HEADERS) as client:
        house.upstream.on(SPEAK, Answer([b"one"], headers={"content-type": "audio/mpeg"}, torn=True))
        with pytest.raises(httpx.RemoteProtocolError):
            await client.post(house.url + SPEAK, json={"model": "mouth", "voice": "heart", "input": "Hello."})
        assert (await house.settled()).status == "failed"


async def test_bad_speech_requests_are_refused_by_name() -> None:
    good = {"model": "mouth", "voice": "heart", "input": "Hello."}
    table = [
        ({"input": ""}, 400, "input", "input: String should have at least 1 character"),
        ({"input": "x" * 4097}, 400, "input", "input: String should have at most 4096 characters"),
        ({"voice": None}, 400, "voice", "voice: Field required"),
        ({"voice": "alloy"}, 400, "voice", "model 'mouth' speaks with: heart, sky; not 'alloy'"),
        ({"voice": {"id": "alloy"}}, 400, "voice", "model 'mouth' speaks with: heart, sky; not 'alloy'"),
        ({"speed": 9}, 400, "speed", "speed: Input should be less than or equal to 4"),
        ({"response_format": "midi"}, 400, "response_format", "response_format: "),
        ({"instructions": "sing"}, 400, "instructions", "'instructions' is not supported by model 'mouth'"),
        ({"colour": "red"}, 400, "colour", "colour: this field is not supported"),
        ({"model": "tts-1"}, 404, "model", "model 'tts-1' does not exist here; for speech there are: mouth"),
    ]
    async with running(MOUTH) as house, httpx.AsyncClient(headers=HEADERS) as client:
        for change, status, param, message in table:
            reply = await client.post(house.url + SPEAK, json={**good, **change})
            error = reply.json()["error"]
            assert (reply.status_code, error["param"], error["message"][: len(message)]) == (status, param, message)
        refusal = {"error": {"message": "voice must be one of: heart", "param": "voice"}}
        house.upstream.on(SPEAK, json_answer(refusal, 400))
        reply = await client.post(house.url + SPEAK, json=good)
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, "voice")


async def test_ocr_reads_a_picture_and_charges_the_characters_read() -> None:
    async with running(EYES) as house, httpx.AsyncClient(headers=HEADERS) as client:
        answer = {"text": "EXIT", "lines": [{"text": "EXIT", "score": 0.9, "box": [[0, 0], [1, 0], [1, 1], [0, 1]]}]}
        house.upstream.on("/v1/ocr", json_answer(answer))
        body = {"model": "eyes", "image": "data:image/png;base64,AAAA"}
        reply = await client.post(f"{house.url}/atoll/v1/ocr", json=body)
        assert (reply.status_code, reply.json()) == (200, answer)
        row = await house.settled()
        assert (row.usage.output, row.cost) == (4, 12)
        for change, param in (({"image": "https://example.com/a.png"}, "image"), ({"language": "en"}, "language")):
            reply = await client.post(f"{house.url}/atoll/v1/ocr", json={**body, **change})
            assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)


def test_the_longest_a_sound_can_be() -> None:
    assert most_seconds(silence(10.0)) == 11
    assert most_seconds(silence(10.0, 48_000)) == 11
    assert most_seconds(b"ID3" + bytes(74_997)) == 100
    compressed = bytearray(silence(1.0))
    compressed[20:22] = struct.pack("<H", 0x11)
    assert most_seconds(bytes(compressed)) == 43
    assert most_seconds(b"RIFF") == 1


async def test_a_form_survives_being_written_and_read() -> None:
    form = Form('a "b"\r\nc.wav', b"\r\n--x\0", "audio/wav", (("model", "m"), ("prompt", "é\r\n--")))
    raw, kind = write_form(form)
    assert await read_form(raw, kind) == replace(form, name='a %22b%22c.wav')
    with pytest.raises(InvalidRequest, match="file: a file is required"):
        await read_form(raw.replace(b'name="file"', b'name="life"'), kind)

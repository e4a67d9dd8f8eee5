"""The composed model: what each part is asked, what the caller reads and hears, and who pays for what."""

from __future__ import annotations

import asyncio
import base64
import io
import wave
from dataclasses import replace
from typing import Any

import anthropic
import httpx
import openai
import pytest
from support import CHAT_CARD, SECRET, Answer, House, chunk, event_stream, json_answer, running, usage

from atoll.core.cards import Card
from atoll.core.types import Price
from atoll.gateway.multipart import read_form
from atoll.gateway.spoken import MOST_IN_A_PIECE, Sentences, pieces, wav

CHAT, HEAR, READ, SPEAK = "/v1/chat/completions", "/v1/audio/transcriptions", "/v1/ocr", "/v1/audio/speech"
HEADERS = {"authorization": f"Bearer {SECRET}"}
TALKER = replace(CHAT_CARD, input=("text",))
EARS = Card(id="ears", title="Ears", task="transcription", engine="media", unit="second", price=Price(1000))
EYES = Card(id="eyes", title="Eyes", task="ocr", engine="media", unit="character", price=Price(1000))
MOUTH = Card(id="mouth", title="Mouth", task="speech", engine="media", unit="character", price=Price(1000))
OMNI = replace(
    TALKER,
    id="omni-x",
    engine="cascade",
    input=("text", "image", "audio"),
    output=("text", "audio"),
    parts=("talker", "ears", "eyes", "mouth"),
    price=Price(10, 20, 5),
)
ALL = (OMNI, TALKER, EARS, EYES, MOUTH)
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
SOUND = {"type": "input_audio", "input_audio": {"data": base64.b64encode(b"RIFF").decode(), "format": "wav"}}
SPOKEN = {"modalities": ["text", "audio"], "audio": {"voice": "heart", "format": "pcm16"}}


def sdk(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=SECRET, max_retries=0)


def request(*parts: dict[str, Any], **more: Any) -> dict[str, Any]:
    content = [{"type": "text", "text": "What is this?"}, *parts]
    return {"model": "omni", "messages": [{"role": "user", "content": content}], **more}


def composed() -> Any:
    return running(*ALL, tiers={"omni": "omni-x"})


def perceive(house: House) -> None:
    house.upstream.on(READ, json_answer({"text": "EXIT\n"}))
    house.upstream.on(HEAR, json_answer({"text": " Where do I go?", "usage": {"type": "duration", "seconds": 2}}))
    said = event_stream(chunk({"content": "Go left. "}), chunk({"content": "Now!"}, "stop"), usage(9, 4))
    house.upstream.on(CHAT, said)
    house.upstream.on(SPEAK, Answer([b"ab", b"cd"], headers={"content-type": "audio/pcm"}))


def asked(house: House, path: str) -> list[Any]:
    return [a for a in house.upstream.asked if a.path == path]


async def test_pictures_and_sounds_are_told_to_the_chat_part_in_words() -> None:
    async with composed() as house, sdk(house.url) as client:
        perceive(house)
        result = await client.chat.completions.create(**request(PICTURE, SOUND))
        assert (result.choices[0].message.content, result.model) == ("Go left. Now!", "omni-x")
        assert asked(house, CHAT)[0].json["messages"] == [{"role": "user", "content": [
            {"type": "text", "text": "What is this?"},
            {"type": "text", "text": "[Image: text read from it: EXIT]"},
            {"type": "text", "text": "Where do I go?"},
        ]}]
        assert asked(house, CHAT)[0].json["model"] == "talker"
        assert asked(house, READ)[0].json == {"model": "eyes", "image": "data:image/png;base64,AAAA"}
        heard = asked(house, HEAR)[0]
        form = await read_form(heard.raw, heard.headers["content-type"])
        assert (form.data, form.name, form.fields) == (b"RIFF", "sound.wav", (("model", "ears"),))
        rows = await house.rows()
        assert [(r.model, r.status, r.usage.input, r.cost) for r in rows] == [("omni-x", "done", 9, 9 * 10 + 4 * 20)]
        assert (rows[0].region, house.held()) == ("here", (0, 0))


async def test_nothing_read_and_nothing_heard_is_said_so() -> None:
    async with composed() as house, sdk(house.url) as client:
        perceive(house)
        house.upstream.on(READ, json_answer({"text": ""}))
        house.upstream.on(HEAR, json_answer({"text": " "}))
        stream = await client.chat.completions.create(**request(PICTURE, SOUND, stream=True))
        assert "".join([c.choices[0].delta.content or "" async for c in stream]) == "Go left. Now!"
        told = [p["text"] for p in asked(house, CHAT)[0].json["messages"][0]["content"]]
        assert told[1:] == ["[Image: no text could be read in it]", "[Audio: no words could be heard in it]"]


async def test_a_streamed_answer_is_spoken_sentence_by_sentence() -> None:
    async with composed() as house, sdk(house.url) as client:
        perceive(house)
        stream = await client.chat.completions.create(**request(**SPOKEN, stream=True))
        told = [c.choices[0].delta.to_dict() async for c in stream]
        audio = [t["audio"] for t in told if "audio" in t]
        assert [sorted(set(a) - {"id"}) for a in audio] == [
            ["transcript"], ["data"], ["transcript"], ["data"], ["expires_at"],
        ]
        assert "".join(a.get("transcript", "") for a in audio) == "Go left. Now!"
        assert b"".join(base64.b64decode(a["data"]) for a in audio if "data" in a) == b"abcdabcd"
        assert [a.json["input"] for a in asked(house, SPEAK)] == ["Go left.", "Now!"]
        assert {a.json["response_format"] for a in asked(house, SPEAK)} == {"pcm"}


async def test_a_whole_answer_is_spoken_at_once_in_the_format_asked_for() -> None:
    async with composed() as house, sdk(house.url) as client:
        perceive(house)
        result = await client.chat.completions.create(
            **request(modalities=["text", "audio"], audio={"voice": "heart", "format": "mp3"})
        )
        message = result.choices[0].message
        assert (message.content, message.audio.transcript) == (None, "Go left. Now!")
        assert (base64.b64decode(message.audio.data), result.choices[0].finish_reason) == (b"abcd", "stop")
        assert message.audio.id.startswith("audio_") and message.audio.expires_at > 0
        assert [a.json for a in asked(house, SPEAK)] == [
            {"model": "mouth", "input": "Go left. Now!", "voice": "heart", "response_format": "mp3"},
        ]
        assert (await house.settled()).cost == 9 * 10 + 4 * 20


async def test_the_other_apis_compose_too() -> None:
    async with composed() as house, anthropic.AsyncAnthropic(base_url=house.url, api_key=SECRET) as client:
        perceive(house)
        source = {"type": "base64", "media_type": "image/png", "data": "AAAA"}
        message = await client.messages.create(
            model="omni", max_tokens=10, messages=[{"role": "user", "content": [{"type": "image", "source": source}]}]
        )
        assert message.content[0].text == "Go left. Now!"
        async with sdk(house.url) as other:
            picture = {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}
            response = await other.responses.create(model="omni", input=[{"role": "user", "content": [picture]}])
        assert response.output_text == "Go left. Now!"
        assert len(asked(house, READ)) == 2


async def test_parts_work_side_by_side() -> None:
    async with composed() as house, sdk(house.url) as client:
        perceive(house)
        house.upstream.on(READ, Answer([b'{"text":', b'"x"}'], wait=0.2))
        async with asyncio.timeout(1.2):
            await client.chat.completions.create(**request(*[PICTURE] * 4))


async def test_what_is_wrong_is_named() -> None:
    not_base64 = {"type": "input_audio", "input_audio": {"data": "*", "format": "wav"}}
    table = [
        (request(not_base64), "messages[0].content[1].input_audio.data", "the sound is not valid base64"),
        (request(*[PICTURE] * 17), "messages", "a request holds at most 16 pictures and sounds, not 17"),
        (
            request(modalities=["text", "audio"], audio={"voice": "heart", "format": "mp3"}, stream=True),
            "audio.format",
            "audio.format must be pcm16 when stream is true",
        ),
        (request(modalities=["audio"]), None, "modalities with 'audio' needs the audio field"),
        (request(top_k=3, min_p=0.1), "min_p", "'min_p' is not supported by model 'omni-x'"),
    ]
    async with composed() as house, httpx.AsyncClient(headers=HEADERS) as client:
        for body, param, message in table:
            error = (await client.post(house.url + CHAT, json=body)).json()["error"]
            assert (error["param"], error["message"][: len(message)]) == (param, message)
        assert (house.upstream.asked, house.held()) == ([], (0, 0))


@pytest.mark.parametrize("detail", ["low", "high"])
async def test_a_detail_that_the_reading_part_does_not_know_is_refused(detail: str) -> None:
    def asking(value: str) -> dict[str, Any]:
        return request(PICTURE, {**PICTURE, "image_url": {**PICTURE["image_url"], "detail": value}})

    async with composed() as house, httpx.AsyncClient(headers=HEADERS) as client:
        perceive(house)
        reply = await client.post(house.url + CHAT, json=asking(detail))
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, "messages[0].content[2].image_url.detail")
        assert (house.upstream.asked, house.held()) == ([], (0, 0))
        assert (await client.post(house.url + CHAT, json=asking("auto"))).status_code == 200


async def test_what_a_part_refuses_is_named_in_the_callers_words() -> None:
    def refusal(param: str) -> Answer:
        return json_answer({"error": {"message": "it cannot be", "param": param}}, 400)

    table = [
        (READ, "image", request(PICTURE), "messages[0].content[1].image_url.url"),
        (HEAR, "file", request(SOUND), "messages[0].content[1].input_audio.data"),
        (SPEAK, "voice", request(**SPOKEN), "audio.voice"),
    ]
    async with composed() as house, httpx.AsyncClient(headers=HEADERS) as client:
        for path, theirs, body, ours in table:
            perceive(house)
            house.upstream.on(path, refusal(theirs))
            reply = await client.post(house.url + CHAT, json=body)
            assert (reply.status_code, reply.json()["error"]["param"]) == (400, ours)
            assert (await house.settled()).status == "failed"
        assert house.held() == (0, 0)


async def test_a_missing_part_is_said_and_only_missed_when_needed() -> None:
    async with running(OMNI, TALKER) as house, httpx.AsyncClient(headers=HEADERS) as client:
        perceive(house)
        reply = await client.post(house.url + CHAT, json=request(PICTURE, model="omni-x"))
        assert (reply.status_code, "no part for ocr that is installed" in reply.text) == (500, True)
        reply = await client.post(house.url + CHAT, json=request(model="omni-x"))
        assert reply.status_code == 200


async def test_a_client_that_leaves_while_a_part_works_ends_it() -> None:
    async with composed() as house, httpx.AsyncClient(headers=HEADERS) as client:
        house.upstream.on(READ, Answer([b" "] * 100, wait=0.05))
        with pytest.raises(httpx.ReadTimeout):
            await client.post(house.url + CHAT, json=request(PICTURE), timeout=0.3)
        await asyncio.wait_for(house.upstream.cut_off.wait(), 1)
        assert ((await house.settled()).status, house.held()) == ("cancelled", (0, 0))


def test_sentences_come_whole() -> None:
    sentences = Sentences()
    fed = [sentences.feed(t) for t in ("Hello wor", "ld. How", " are you? I", "\n- one\n")]
    assert fed == [[], ["Hello world."], ["How are you?"], ["I", "- one"]]
    assert (sentences.feed("3.5 is"), sentences.rest(), sentences.rest()) == ([], ["3.5 is"], [])
    assert [len(s) <= 400 for s in sentences.feed("word " * 200)] == [True, True]


def test_long_answers_are_spoken_in_pieces() -> None:
    text = " ".join(["This is a sentence of some length."] * 300)
    parts = pieces(text)
    assert all(len(p) <= MOST_IN_A_PIECE for p in parts) and " ".join(parts) == text
    with wave.open(io.BytesIO(wav(b"\1\0" * 10))) as file:
        assert (file.getframerate(), file.getnframes(), file.getsampwidth()) == (24_000, 10, 2)

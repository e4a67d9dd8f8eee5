"""Speech in and out with the real models: say a sentence, hear it again."""

from __future__ import annotations

import base64
import io
import json
import re
import struct
import wave

import numpy as np
import pytest

TEXT = "The quick brown fox jumps over the lazy dog. Please open the window before dinner."


def words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def wav(samples: np.ndarray, rate: int = 16_000) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return out.getvalue()


async def say(media, text: str = TEXT, **changes):
    body = {"model": "hibari-heart", "input": text, "voice": "heart", "response_format": "wav", **changes}
    return await media.post("/v1/audio/speech", json=body)


async def hear(media, data: bytes, model: str = "whisper-tiny-en", **fields):
    return await media.post("/v1/audio/transcriptions", data={"model": model, **fields}, files={"file": ("a", data)})


def problem(reply) -> dict:
    return reply.json()["error"]


@pytest.mark.parametrize("kind", ["wav", "mp3", "flac", "opus"])
async def test_what_is_said_in_any_format_is_heard(media, kind):
    spoken = await say(media, response_format=kind)
    assert spoken.status_code == 200 and spoken.headers["content-type"].startswith("audio/")
    heard = await hear(media, spoken.content)
    assert words(heard.json()["text"]) == words(TEXT)
    assert heard.json()["usage"]["type"] == "duration" and 5 < heard.json()["usage"]["seconds"] < 6


async def test_the_multilingual_model_finds_the_language(media):
    spoken = await say(media)
    reply = (await hear(media, spoken.content, "whisper-base", response_format="verbose_json")).json()
    assert reply["language"] == "english" and words(reply["text"]) == words(TEXT)
    times = [(s["start"], s["end"]) for s in reply["segments"]]
    assert all(start < end <= reply["duration"] + 0.01 for start, end in times) and times == sorted(times)


async def test_word_times_rise_and_follow_the_pause(media):
    fields = {"response_format": "verbose_json", "timestamp_granularities[]": "word"}
    reply = (await hear(media, (await say(media)).content, "whisper-base", **fields)).json()
    assert [words(w["word"])[0] for w in reply["words"]] == words(TEXT)
    starts = [w["start"] for w in reply["words"]]
    assert starts == sorted(starts) and "segments" not in reply
    please = next(w for w in reply["words"] if w["word"] == "Please")
    assert 2.5 < please["start"] < 3.8


async def test_long_sound_goes_window_by_window(media):
    one = np.frombuffer((await say(media, response_format="pcm")).content, "<i2") / 32768
    long = wav(np.tile(np.concatenate([one, np.zeros(24_000)]), 7), 24_000)
    reply = (await hear(media, long, response_format="verbose_json")).json()
    assert reply["duration"] == pytest.approx(46.0, abs=1)
    heard = words(reply["text"])
    assert 0.9 * 7 * len(words(TEXT)) <= len(heard) <= 1.1 * 7 * len(words(TEXT))
    assert reply["segments"][-1]["end"] == pytest.approx(45, abs=2)
    assert {segment["temperature"] for segment in reply["segments"]} == {0}, "speech that repeats is no loop"


async def test_subtitles(media):
    data = (await say(media)).content
    srt = (await hear(media, data, response_format="srt")).text
    assert re.match(r"1\n00:00:0\d,\d{3} --> 00:00:0\d,\d{3}\nThe", srt, re.IGNORECASE)
    vtt = await hear(media, data, response_format="vtt")
    assert vtt.text.startswith("WEBVTT\n\n00:00:0") and float(vtt.headers["x-audio-seconds"]) > 5


async def test_a_streamed_transcript_adds_up(media):
    reply = await hear(media, (await say(media)).content, stream="true")
    events = [json.loads(line[6:]) for line in reply.text.split("\n\n") if line]
    assert [e["type"] for e in events][-1] == "transcript.text.done"
    assert "".join(e["delta"] for e in events[:-1]) == events[-1]["text"]
    assert words(events[-1]["text"]) == words(TEXT)


@pytest.mark.parametrize("model", ["whisper-tiny-en", "whisper-base"])
async def test_fast_dense_speech_is_heard_to_its_end(media, model):
    text = (
        "I will get up at six and go to bed at ten, and if it is hot I sit in the sun, so do not ask me why I am late."
    )
    heard = await hear(media, (await say(media, text, speed=1.5)).content, model)
    assert words(heard.json()["text"])[-1] == "late" and len(words(heard.json()["text"])) >= 26


async def test_silence_is_no_words(media):
    reply = await hear(media, wav(np.zeros(32_000)))
    assert reply.json()["text"] == "" and reply.json()["usage"]["seconds"] == 2


async def test_speech_is_the_same_every_time_and_speed_shortens_it(media):
    first, second = await say(media), await say(media)
    fast = await say(media, speed=1.5)
    assert first.content == second.content
    assert len(fast.content) < 0.8 * len(first.content)


async def test_speech_as_events_carries_the_same_bytes(media):
    plain = await say(media, response_format="pcm")
    events = await say(media, response_format="pcm", stream_format="sse")
    rows = [json.loads(line[6:]) for line in events.text.split("\n\n") if line]
    assert rows[-1] == {"type": "speech.audio.done"} and len(rows) == 3
    assert b"".join(base64.b64decode(row["audio"]) for row in rows[:-1]) == plain.content


async def test_speech_begins_before_it_is_finished(media):
    body = {"model": "hibari-heart", "input": TEXT * 20, "voice": "heart", "response_format": "pcm"}
    async with media.stream("POST", "/v1/audio/speech", json=body) as reply:
        sizes = [len(part) async for part in reply.aiter_raw()]
    assert len(sizes) > 10


async def test_vad_finds_speech_between_silences(media):
    one = np.frombuffer((await say(media, "Hello there, how are you?", response_format="pcm")).content, "<i2") / 32768
    data = wav(np.concatenate([np.zeros(48_000), one, np.zeros(48_000)]), 24_000)
    reply = (await media.post("/v1/vad", data={"model": "silero-vad"}, files={"file": ("a", data)})).json()
    first, last = reply["segments"][0]["start"], reply["segments"][-1]["end"]
    assert 1.9 < first < 2.6 and first + 0.5 < last < reply["duration"] - 1.7
    quiet = await media.post("/v1/vad", data={"model": "silero-vad"}, files={"file": ("a", wav(np.zeros(32_000)))})
    assert quiet.json()["segments"] == []


BAD_SOUND = {
    "empty": (b"", "empty"),
    "text": (b"hello, this is not audio at all", "not audio"),
    "zero seconds": (wav(np.zeros(0)), "0 seconds"),
    "only a header": (b"RIFF\x00\x00\x00\x00WAVE", "could not be decoded"),
    "broken ogg": (b"OggS" + bytes(200), "could not be decoded"),
    "40 channels": (wav(np.zeros(8000)).replace(struct.pack("<HH", 1, 1), struct.pack("<HH", 1, 40), 1), "channels"),
}


@pytest.mark.parametrize("case", BAD_SOUND)
async def test_bad_sound_is_a_400_that_says_why(media, case):
    data, why = BAD_SOUND[case]
    for reply in (
        await hear(media, data),
        await media.post("/v1/vad", data={"model": "silero-vad"}, files={"file": ("a", data)}),
    ):
        assert reply.status_code == 400 and problem(reply)["param"] == "file"
        assert why in problem(reply)["message"]


async def test_a_header_that_claims_hours_is_not_believed(media):
    data = bytearray(wav(np.zeros(16_000)))
    data[4:8] = data[40:44] = struct.pack("<I", 0xFFFFFF00)
    reply = await hear(media, bytes(data))
    assert reply.status_code == 200 and reply.json()["usage"]["seconds"] == pytest.approx(1, abs=0.01)


async def test_sound_that_is_too_long_is_a_413(media):
    import soundfile

    out = io.BytesIO()
    soundfile.write(out, np.zeros(3601 * 8000, "int16"), 8000, format="FLAC")
    reply = await hear(media, out.getvalue())
    assert reply.status_code == 413 and "3600 seconds" in problem(reply)["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": "xml"}, "response_format"),
        ({"language": "de"}, "language"),
        ({"language": "klingon"}, "language"),
        ({"temperature": "2"}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"stream": "maybe"}, "stream"),
        ({"stream": "true", "response_format": "srt"}, "stream"),
        ({"timestamp_granularities[]": "word"}, "response_format"),
        ({"timestamp_granularities[]": "phone", "response_format": "verbose_json"}, "timestamp_granularities"),
        ({"chunking_strategy": "auto"}, "chunking_strategy"),
        ({"model": "silero-vad"}, "model"),
    ],
)
async def test_transcription_fields_that_cannot_be_honoured(media, fields, param):
    reply = await hear(media, wav(np.zeros(16_000)), **fields)
    assert reply.status_code == 400 and problem(reply)["param"] == param


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"voice": "alloy"}, "voice"),
        ({"voice": None}, "voice"),
        ({"voice": 3}, "voice"),
        ({"input": ""}, "input"),
        ({"input": "x" * 4097}, "input"),
        ({"input": "!!! ???"}, "input"),
        ({"input": ["a"]}, "input"),
        ({"speed": 4}, "speed"),
        ({"speed": "fast"}, "speed"),
        ({"speed": True}, "speed"),
        ({"response_format": "aac"}, "response_format"),
        ({"response_format": {}}, "response_format"),
        ({"stream_format": "tape"}, "stream_format"),
        ({"instructions": "whisper"}, "instructions"),
        ({"model": "whisper-base"}, "model"),
    ],
)
async def test_speech_fields_that_cannot_be_honoured(media, changes, param):
    reply = await say(media, **changes)
    assert reply.status_code == 400 and problem(reply)["param"] == param, reply.text


async def test_a_form_without_a_file_and_a_model_that_is_not_there(media):
    missing = await media.post("/v1/audio/transcriptions", files={"model": (None, "whisper-base")})
    assert missing.status_code == 400 and problem(missing)["param"] == "file"
    not_a_form = await media.post("/v1/audio/transcriptions", json={"model": "whisper-base"})
    assert not_a_form.status_code == 400 and problem(not_a_form)["param"] == "file"
    unknown = await hear(media, wav(np.zeros(16_000)), "whisper-giant")
    assert unknown.status_code == 404 and "whisper-base" in problem(unknown)["message"]

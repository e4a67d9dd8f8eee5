"""The composed omni tier with its real parts: it hears words, reads text in pictures, and speaks."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from PIL import Image, ImageDraw, ImageFont

SAID = "The meeting begins at nine in the morning."


@pytest.fixture
def client(live: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key=live.key, max_retries=0, timeout=120) as sdk:
        yield sdk


def picture(text: str) -> str:
    image = Image.new("RGB", (640, 160), "white")
    ImageDraw.Draw(image).text((40, 50), text, fill="black", font=ImageFont.load_default(48))
    sink = io.BytesIO()
    image.save(sink, "PNG")
    return "data:image/png;base64," + base64.b64encode(sink.getvalue()).decode()


def prompt_tokens(client: openai.OpenAI, model: str, *parts: Any) -> int:
    result = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": list(parts)}], max_tokens=1
    )
    assert result.usage is not None
    return result.usage.prompt_tokens


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def test_text_in_a_picture_is_what_the_model_is_told(client: openai.OpenAI, live: Any) -> None:
    seen = {"type": "image_url", "image_url": {"url": picture("Platform 42")}}
    body = {"model": "rapidocr", "image": seen["image_url"]["url"]}
    read = httpx.post(
        f"{live.url}/atoll/v1/ocr", json=body, headers={"authorization": f"Bearer {live.key}"}, timeout=60
    ).json()
    assert read["text"] == "Platform 42"
    told = text("[Image: text read from it: Platform 42]")
    question = text("Where do I go?")
    assert prompt_tokens(client, "omni", question, seen) == prompt_tokens(client, "smollm2-135m", question, told)


def test_words_in_a_sound_are_what_the_model_is_told(client: openai.OpenAI) -> None:
    speech = client.audio.speech.create(model="hibari-heart", voice="heart", input=SAID, response_format="wav")
    sound = speech.read()
    heard = client.audio.transcriptions.create(model="whisper-base", file=("a.wav", sound)).text
    assert "meeting begins" in heard
    data = {"type": "input_audio", "input_audio": {"data": base64.b64encode(sound).decode(), "format": "wav"}}
    assert prompt_tokens(client, "omni", data) == prompt_tokens(client, "smollm2-135m", text(heard))


def test_the_answer_is_spoken_whole_and_in_a_stream(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "omni",
        "messages": [{"role": "user", "content": "Say hello to the audience."}],
        "max_tokens": 40,
        "temperature": 0,
        "modalities": ["text", "audio"],
    }
    whole = client.chat.completions.create(**asked, audio={"voice": "heart", "format": "wav"})
    audio = whole.choices[0].message.audio
    assert audio is not None and base64.b64decode(audio.data)[:4] == b"RIFF"
    stream = client.chat.completions.create(**asked, audio={"voice": "heart", "format": "pcm16"}, stream=True)
    pieces = [chunk.choices[0].delta.to_dict().get("audio", {}) for chunk in stream if chunk.choices]
    assert "".join(str(p.get("transcript", "")) for p in pieces) == audio.transcript
    samples = b"".join(base64.b64decode(str(p.get("data", ""))) for p in pieces)
    assert len(samples) > 24_000


def test_a_voice_that_is_not_there_is_named(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(
            model="omni",
            messages=[{"role": "user", "content": "hello"}],
            max_tokens=5,
            modalities=["text", "audio"],
            audio={"voice": "nobody", "format": "wav"},
        )
    assert refused.value.param == "audio.voice"


def test_a_picture_and_a_sound_go_along_from_the_command_line(client: openai.OpenAI, live: Any, tmp_path: Path) -> None:
    sign, voice = tmp_path / "sign.png", tmp_path / "voice.wav"
    sign.write_bytes(base64.b64decode(picture("Platform 42").partition(",")[2]))
    speech = client.audio.speech.create(model="hibari-heart", voice="heart", input=SAID, response_format="wav")
    voice.write_bytes(speech.read())
    heard = client.audio.transcriptions.create(model="whisper-base", file=("a.wav", voice.read_bytes())).text
    argv = ["chat", "Where do I go?", "-m", "omni", "--image", sign, "--audio", voice, "--max-tokens", "1", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "atoll.cli", *map(str, argv)],
        env={**os.environ, "ATOLL_DATA": str(live.data)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    told = (text("[Image: text read from it: Platform 42]"), text(heard), text("Where do I go?"))
    assert answer["usage"]["prompt_tokens"] == prompt_tokens(client, "smollm2-135m", *told)
    assert answer["content"] and "omni" in answer["model"]

"""What the console tests do more than once."""

from __future__ import annotations

import base64
import re

import httpx
from console_browser import Console


def say(api: httpx.Client, text: str = "Say hello.", tokens: int = 8) -> str:
    """One short chat through the API; its request id."""
    body = {"model": "max", "max_tokens": tokens, "messages": [{"role": "user", "content": text}]}
    reply = api.post("/v1/chat/completions", json=body)
    reply.raise_for_status()
    return reply.headers["x-request-id"]


def picture(console: Console) -> bytes:
    """A PNG with one large word, drawn by the browser."""
    data = console.page.evaluate(
        """() => { const c = document.createElement('canvas'); c.width = 420; c.height = 120;
        const x = c.getContext('2d'); x.fillStyle = 'white'; x.fillRect(0, 0, 420, 120);
        x.fillStyle = 'black'; x.font = '64px sans-serif'; x.fillText('LAGOON', 30, 84);
        return c.toDataURL('image/png').split(',')[1]; }"""
    )
    return base64.b64decode(data)


def drop_image(console: Console) -> None:
    console.page.evaluate(
        """async () => { const c = document.createElement('canvas'); c.width = c.height = 32;
        const blob = await new Promise((done) => c.toBlob(done, 'image/png'));
        const all = new DataTransfer(); all.items.add(new File([blob], 'dropped.png', {type: 'image/png'}));
        document.querySelector('.composer').dispatchEvent(
          new DragEvent('drop', {dataTransfer: all, bubbles: true, cancelable: true})); }"""
    )


def painted(console: Console) -> int:
    """How many pixels of the chart have the colour of its first series."""
    return console.page.evaluate(
        """() => { const c = document.querySelector('.plot canvas');
        const want = getComputedStyle(document.querySelector('.chart li i')).backgroundColor.match(/\\d+/g).map(Number);
        const data = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
        let n = 0;
        for (let i = 0; i < data.length; i += 4) if (want.every((x, k) => Math.abs(x - data[i + k]) < 3)) n++;
        return n; }"""
    )


def reach(console: Console, name: str) -> None:
    """Press Tab until the element with this accessible name has the focus."""
    ours = """(name) => { const e = document.activeElement;
        const names = [e.getAttribute('aria-label'), e.textContent.trim(), e.labels?.[0]?.textContent.trim()];
        return names.includes(name); }"""
    for _ in range(40):
        console.page.keyboard.press("Tab")
        if console.page.evaluate(ours, name):
            return
    raise AssertionError(f"Tab never reached '{name}'")


def brightness(console: Console) -> float:
    colour = console.page.evaluate("getComputedStyle(document.body).backgroundColor")
    return sum(map(int, re.findall(r"\d+", colour)[:3])) / 3


def furnish(api: httpx.Client) -> None:
    """Keys with limits and some traffic of several kinds, once."""
    names = {k["name"] for k in api.get("/atoll/v1/keys").json()["data"]}
    for name, limits in (
        ("website", {"requests_per_minute": 120, "budget_per_month": 25}),
        ("night batch", {"tokens_per_minute": 200_000, "budget_per_month": 0.00005}),
    ):
        if name in names:
            continue
        secret = api.post("/atoll/v1/keys", json={"name": name, "limits": limits}).json()["secret"]
        with httpx.Client(base_url=api.base_url, headers={"authorization": f"Bearer {secret}"}, timeout=60) as client:
            for text in ("Name a colour.", "Say hello to the crew."):
                say(client, text, 24)
            client.post("/v1/embeddings", json={"model": "all-minilm-l6-v2", "input": "a reef around a lagoon"})
            spoken = {"model": "hibari-heart", "input": "Land in sight.", "voice": "heart", "response_format": "wav"}
            sound = client.post("/v1/audio/speech", json=spoken).content
            client.post("/v1/audio/transcriptions", data={"model": "whisper-tiny-en"}, files={"file": ("a.wav", sound)})

"""What the console tests do more than once."""

from __future__ import annotations

import base64
import re
import threading
import time
from collections.abc import Sequence
from itertools import count

import httpx
from console_browser import Console
from playwright.sync_api import expect

FRAMES = """(ms) => new Promise((done) => {
    const deltas = []; const pen = document.querySelector('.world canvas').getContext('2d');
    const clear = pen.clearRect; const stroke = pen.stroke; let drawn = 0; let arcs = 0; let most = 0; let last = 0;
    pen.clearRect = function (...a) { drawn++; most = Math.max(most, arcs); arcs = 0; return clear.apply(this, a); };
    pen.stroke = function (...a) { arcs++; return stroke.apply(this, a); };
    const began = performance.now();
    const frame = (now) => {
        if (last) deltas.push(now - last);
        last = now;
        if (now - began < ms) return requestAnimationFrame(frame);
        delete pen.clearRect; delete pen.stroke;
        deltas.sort((a, b) => a - b);
        done({median: deltas[deltas.length >> 1], p95: deltas[Math.floor(deltas.length * 0.95)], drawn, most});
    };
    requestAnimationFrame(frame); })"""
"""Times between frames for so many ms: {median, p95}; how often the map was drawn, and the most arcs at once."""


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


class Traffic:
    """Requests through the API while the block runs, `at_once` of them, each held to one of `places` in turn; no more
    than `most`. `ids` of those that have begun. At its end those under way are waited for; a failed one raises."""

    def __init__(
        self, url: str, key: str, model: str, *, places: Sequence[str], tokens: int, at_once: int, pause: float,
        most: int = 10_000,
    ) -> None:  # fmt: skip
        self.url, self.key, self.model = url, key, model
        self.places, self.tokens, self.at_once, self.pause, self.most = places, tokens, at_once, pause, most
        self.ids: list[str] = []
        self.wrong: list[str] = []
        self._numbers = count()
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Traffic:
        self._threads = [threading.Thread(target=self._run) for _ in range(self.at_once)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(120)
        assert not self.wrong, self.wrong[0]

    def _run(self) -> None:
        headers = {"authorization": f"Bearer {self.key}"}
        with httpx.Client(base_url=self.url, headers=headers, timeout=90) as client:
            while not self._over.is_set() and (number := next(self._numbers)) < self.most:
                self._one(client, number)
                time.sleep(self.pause)

    def _one(self, client: httpx.Client, number: int) -> None:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": f"Tell story number {number}."}],
            "max_tokens": self.tokens,
            "stream": True,
            "residency": {"process_in": [self.places[number % len(self.places)]]},
        }
        with client.stream("POST", "/v1/chat/completions", json=body) as reply:
            self.ids.append(reply.headers["x-request-id"])
            said = reply.read().decode()
        if reply.status_code != 200 or "[DONE]" not in said:
            self.wrong.append(said)


def arc(console: Console, region: str, within: float = 15) -> tuple[float, float]:
    """A point of the window on the arc between the gateway's region and `region`, once one is drawn there."""
    find = """(region) => { const canvas = document.querySelector('.world canvas'); const pen = canvas.getContext('2d');
        const edge = canvas.getBoundingClientRect();
        const middle = (id) => {
            const b = document.querySelector(`.dot[data-region="${id}"] .mark`).getBoundingClientRect();
            return [b.x + b.width / 2 - edge.x, b.y + b.height / 2 - edge.y]; };
        const home = document.querySelector('.dot.home').dataset.region;
        const [a, b] = [middle(home), middle(region)];
        const x = Math.round((a[0] + b[0]) / 2); const dense = canvas.width / edge.width;
        const column = pen.getImageData(Math.round(x * dense), 0, 1, canvas.height).data;
        for (let y = 0; y < canvas.height; y++) if (column[4 * y + 3] > 120) return [edge.x + x, edge.y + y / dense];
        return null; }"""
    console.expected.append("willReadFrequently")
    deadline = time.monotonic() + within
    while (found := console.page.evaluate(find, region)) is None:
        assert time.monotonic() < deadline, f"no arc to {region} was drawn"
        console.page.wait_for_timeout(50)
    return found[0], found[1]


def press_until(console: Console, name: str) -> None:
    """Reach a button by Tab, press it, and wait until it is gone."""
    button = console.page.get_by_role("complementary").get_by_role("button", name=name, exact=True)
    expect(button).to_be_enabled()
    reach(console, name)
    console.page.keyboard.press("Enter")
    expect(button).to_have_count(0)


def shares(console: Console, region: str) -> tuple[float, float]:
    """Where a region lies on the map, as shares of its width and height."""
    find = """(region) => { const box = document.querySelector('.world svg').getBoundingClientRect();
        const dot = document.querySelector(`.dot[data-region="${region}"] .mark`).getBoundingClientRect();
        return [(dot.x + dot.width / 2 - box.x) / box.width, (dot.y + dot.height / 2 - box.y) / box.height]; }"""
    across, down = console.page.evaluate(find, region)
    return across, down


def survived(console: Console) -> str:
    """The text of the answer in the drill panel, without the mark of where the region was broken."""
    return console.page.evaluate(
        """[...document.querySelector('.survivor-text').childNodes].filter((n) => n.tagName !== 'MARK')
        .map((n) => n.textContent).join('')"""
    )

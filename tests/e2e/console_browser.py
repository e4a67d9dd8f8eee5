"""A real browser before the console: what it asked for, what it complained about, and a hand on its pages."""

from __future__ import annotations

import re
import shutil
import subprocess
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from playwright.sync_api import Browser, ConsoleMessage, Page, Playwright, Request, expect

FLAGS = [
    "--no-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]
SPOKEN = "The boat sails around the island"
RATE = 48_000
PAGES = ("chat", "usage", "requests", "keys", "models", "map", "physical", "status")


def speech(folder: Path) -> Path:
    """SPOKEN by espeak-ng as the fake microphone reads it: 48 kHz, 16 bit, with silence around."""
    said, path = folder / "said.wav", folder / "microphone.wav"
    subprocess.run(["espeak-ng", "-v", "en-us", "-s", "140", "-w", str(said), SPOKEN], check=True, timeout=30)
    with wave.open(str(said)) as file:
        rate, data = file.getframerate(), np.frombuffer(file.readframes(file.getnframes()), np.int16)
    at = np.arange(0, len(data) - 1, rate / RATE)
    loud = np.interp(at, np.arange(len(data)), data).astype(np.int16)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(np.concatenate([np.zeros(RATE // 2, np.int16), loud, np.zeros(2 * RATE, np.int16)]).tobytes())
    return path


def launch(playwright: Playwright, microphone: Path | None = None) -> Browser:
    path = shutil.which("chromium") or shutil.which("google-chrome")
    assert path, "the console tests need Chromium: run `make tools`"
    heard = [f"--use-file-for-fake-audio-capture={microphone}"] if microphone else []
    return playwright.chromium.launch(executable_path=path, args=[*FLAGS, *heard])


@dataclass
class Console:
    """One browser tab. `expected` holds patterns of complaints that a test causes on purpose."""

    page: Page
    url: str
    key: str
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)

    def watch(self) -> None:
        self.page.on("request", self._requested)
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.complaints.append(f"page error: {error}"))

    def _requested(self, request: Request) -> None:
        self.requests.append(request.url)

    def _said(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            self.complaints.append(f"{message.type}: {message.text}")

    def check(self) -> None:
        """Nothing was asked of another host, and nobody complained."""
        here = urlsplit(self.url).netloc
        parts = [urlsplit(url) for url in self.requests]
        strangers = [p.geturl() for p in parts if p.scheme not in {"data", "blob"} and p.netloc != here]
        assert not strangers
        unexpected = [c for c in self.complaints if not any(re.search(e, c) for e in self.expected)]
        assert not unexpected

    def open(self) -> None:
        self.page.goto(self.url)

    def sign_in(self) -> None:
        self.open()
        self.page.get_by_label("API key").fill(self.key)
        self.page.get_by_role("button", name="Sign in").click()
        expect(self.page.get_by_role("textbox", name="Message")).to_be_visible()

    def go(self, name: str) -> None:
        self.page.goto(f"{self.url}/#/{name}")
        title = "Chat" if name == "chat" else name.capitalize()
        expect(self.page.get_by_role("heading", name=title, level=1, exact=True)).to_be_attached()

    def ask(self, text: str) -> None:
        self.page.get_by_role("textbox", name="Message").fill(text)
        self.page.get_by_role("button", name="Send").click()

    def limit_answers(self, tokens: int) -> None:
        self.page.get_by_role("button", name="Chat settings").click()
        self.page.get_by_label("Max tokens").fill(str(tokens))
        self.page.get_by_role("button", name="Done").click()

    def too_wide(self) -> int:
        """By how many pixels the page is wider than the window."""
        return self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


@contextmanager
def tab(
    browser: Browser, url: str, key: str, *, width: int = 1440, height: int = 900, theme: str = "light"
) -> Iterator[Console]:
    """A tab of a browser that has never been here; its requests and complaints are checked at the end."""
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if theme == "dark" else "light",
        permissions=["microphone"],
        locale="en-US",
    )
    context.set_default_timeout(20_000)
    try:
        console = Console(context.new_page(), url, key)
        console.watch()
        yield console
        console.check()
    finally:
        context.close()

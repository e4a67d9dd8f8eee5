"""`atoll chat`: messages from words and files, answers as they come, and a conversation that goes on."""

from __future__ import annotations

import base64
import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import click

from atoll.core.errors import AtollError, InvalidRequest

IMAGES = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp", ".gif": "gif", ".bmp": "bmp"}
AUDIO = {".wav", ".mp3", ".flac", ".ogg", ".webm", ".m4a"}
MAX_FILE = 24 << 20
HELP = """\
  /model NAME   answer with another model    /models   list them
  /clear        forget the conversation      /help     this text
  /image FILE, /audio FILE   attach to the next message
  /exit         leave (also Ctrl-D)          Ctrl-C    stop the answer"""


class Answering(Protocol):
    """`client.Answer`."""

    content: str

    def take(self, chunk: Mapping[str, Any]) -> tuple[str, str]: ...


class Asks(Protocol):
    """`client.Cloud`."""

    def chat(self, request: Mapping[str, Any]) -> Iterator[dict[str, Any]]: ...

    def call(self, method: str, path: str, body: Any = None, **query: Any) -> Any: ...


def message(text: str, images: tuple[Path, ...] = (), sounds: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A user message; files become parts of it. Raises InvalidRequest."""
    if not images and not sounds:
        return {"role": "user", "content": text}
    parts: list[dict[str, Any]] = [_image(path) for path in images] + [_sound(path) for path in sounds]
    if text:
        parts.append({"type": "text", "text": text})
    return {"role": "user", "content": parts}


def _image(path: Path) -> dict[str, Any]:
    kind = IMAGES.get(path.suffix.lower())
    if kind is None:
        raise InvalidRequest(f"{path}: images end in {', '.join(IMAGES)}", param="image")
    return {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{_encoded(path, 'image')}"}}


def _sound(path: Path) -> dict[str, Any]:
    suffix = path.suffix.lower()
    if suffix not in AUDIO:
        raise InvalidRequest(f"{path}: sounds end in {', '.join(sorted(AUDIO))}", param="audio")
    return {"type": "input_audio", "input_audio": {"data": _encoded(path, "audio"), "format": suffix[1:]}}


def _encoded(path: Path, option: str) -> str:
    try:
        if path.stat().st_size > MAX_FILE:
            raise InvalidRequest(f"{path} is larger than {MAX_FILE >> 20} MiB", param=option)
        return base64.b64encode(path.read_bytes()).decode()
    except OSError as error:
        raise InvalidRequest(f"cannot read {path}: {error.strerror}", param=option) from None


def stream(chunks: Iterator[dict[str, Any]], answer: Answering, out: Any = None) -> None:
    """Print an answer as it comes; thinking is dim, and left out when the output is no terminal."""
    out = out or sys.stdout
    shown, thinking = out.isatty(), False
    for chunk in chunks:
        said, thought = answer.take(chunk)
        if thought and shown:
            out.write(click.style(thought, dim=True))
            thinking = True
        if said:
            out.write("\n\n" + said if thinking else said)
            thinking = False
        out.flush()
    out.write("\n")
    out.flush()


@dataclass(slots=True)
class Repl:
    """A conversation at the terminal. `base` holds model and sampling; `fresh` makes an empty answer."""

    cloud: Asks
    base: dict[str, Any]
    fresh: Callable[[], Answering]
    history: list[dict[str, Any]] = field(default_factory=list)
    _images: list[Path] = field(default_factory=list)
    _sounds: list[Path] = field(default_factory=list)

    def run(self) -> None:
        """Until /exit or end of input. Ctrl-C at the prompt only drops the line."""
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  gives input() editing and history
        print(f"Talking to {self.base['model']}. /help lists the commands, Ctrl-D leaves.")
        while True:
            try:
                line = input("\n> ").strip()
            except KeyboardInterrupt:
                print("\n(Ctrl-D or /exit leaves)")
                continue
            except EOFError:
                print()
                return
            if line == "/exit":
                return
            if line.startswith("/"):
                self._command(*line.partition(" ")[::2])
            elif line:
                self._ask(line)

    def _command(self, name: str, argument: str) -> None:
        argument = argument.strip()
        try:
            if name == "/clear":
                self.history[:] = [m for m in self.history if m["role"] == "system"]
                print("The conversation begins anew.")
            elif name == "/model" and argument:
                self.cloud.call("GET", f"/v1/models/{argument}")
                self.base["model"] = argument
                print(f"Now talking to {argument}.")
            elif name in {"/model", "/models"}:
                chat = [m["id"] for m in self.cloud.call("GET", "/v1/models")["data"] if m["task"] == "chat"]
                print(f"Talking to {self.base['model']}; there are: {', '.join(chat)}")
            elif name in {"/image", "/audio"} and argument:
                self._attach(name, Path(argument).expanduser())
            else:
                print(HELP)
        except AtollError as error:
            print(f"atoll: {error.message}", file=sys.stderr)

    def _attach(self, name: str, path: Path) -> None:
        message("", *(((path,), ()) if name == "/image" else ((), (path,))))
        (self._images if name == "/image" else self._sounds).append(path)
        print(f"{path.name} goes with your next message.")

    def _ask(self, line: str) -> None:
        """One turn. What was said before Ctrl-C or an error stays only if there was any of it."""
        answer = self.fresh()
        asked = message(line, tuple(self._images), tuple(self._sounds))
        chunks = self.cloud.chat({**self.base, "messages": [*self.history, asked]})
        try:
            stream(chunks, answer)
        except KeyboardInterrupt:
            print("\n(stopped)")
        except AtollError as error:
            print(f"\natoll: {error.message}" + (f" ({error.param})" if error.param else ""), file=sys.stderr)
        finally:
            chunks.close()  # type: ignore[attr-defined]
        if answer.content:
            self.history += [asked, {"role": "assistant", "content": answer.content}]
        self._images, self._sounds = [], []

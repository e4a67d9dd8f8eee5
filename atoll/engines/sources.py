"""What a user may add as a model, and the card that it becomes.

"qwen3-4b"                          a short name of the catalogue (cards/hub)
"hf:owner/repo[@revision][:file]"   a repository of the model hub, or its web address
"/path/to/model.gguf"               a file on this machine
"https://host/v1"                   an OpenAI-compatible server
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from atoll.core.cards import Card, Weights
from atoll.core.errors import InvalidRequest
from atoll.engines.llamacpp import gguf

ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
RESERVED = {"max", "omni"}
HUB_HOSTS = {"huggingface.co", "hf.co", "www.huggingface.co"}
DEFAULT_CONTEXT = 8192
LLAMA_PARAMETERS = (
    "temperature", "top_p", "top_k", "min_p", "repeat_penalty", "frequency_penalty", "presence_penalty",
    "seed", "n", "stop", "logit_bias", "logprobs", "top_logprobs",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Short:
    name: str


@dataclass(frozen=True, slots=True)
class File:
    path: Path


@dataclass(frozen=True, slots=True)
class InRepo:
    repo: str
    revision: str = "main"
    file: str = ""


@dataclass(frozen=True, slots=True)
class Server:
    url: str


Source = Short | File | InRepo | Server


def parse_source(text: str, hub_url: str) -> Source:
    """Raises InvalidRequest naming the rule that is broken."""
    if any(ord(c) < 32 or ord(c) == 127 for c in text) or text != text.strip() or not text:
        raise _bad("must be one line without spaces around it")
    if text.startswith("hf:"):
        return _in_repo(text.removeprefix("hf:"))
    if "://" in text:
        return _address(text, hub_url)
    if text.endswith(".gguf") or text.startswith(("/", "./", "../", "~")):
        return _file(text)
    if not ID.fullmatch(text):
        raise _bad(f"'{text}' is no short name, hf:owner/repo, path of a .gguf file or http(s) address of a server")
    return Short(text)


def _in_repo(text: str) -> InRepo:
    place, _, file = text.partition(":")
    repo, _, revision = place.partition("@")
    if not repo:
        raise _bad("a repository is named hf:owner/repo, with :file after it if there is a choice")
    return InRepo(repo, revision or "main", file)


def _file(text: str) -> File:
    path = Path(text)
    if not path.is_absolute():
        raise _bad(f"'{text}' must be an absolute path")
    if path.suffix != ".gguf":
        raise _bad(f"'{text}' must end in .gguf: llama.cpp reads no other format")
    try:
        regular = path.is_file()
    except OSError as error:
        raise _bad(f"'{text}' cannot be opened: {error.strerror}") from None
    if not regular:
        raise _bad(f"there is no file '{text}' on the machine where Atoll runs")
    return File(gguf.parts(path)[0])


def _address(text: str, hub_url: str) -> Server | InRepo:
    try:
        url = urlsplit(text)
        port, host = url.port, url.hostname
    except ValueError:
        raise _bad("the address is malformed") from None
    if url.scheme not in {"http", "https"} or not host:
        raise _bad("an address must begin with http:// or https:// and name a host")
    if url.username is not None or url.password is not None or "@" in url.netloc:
        raise _bad("an address must not carry a user name, password or key; use key_env")
    own = urlsplit(hub_url)
    if host in HUB_HOSTS or (host, port) == (own.hostname, own.port):
        return _hub_address(url.path)
    if url.query or url.fragment:
        raise _bad("an address must end with its path, such as https://host/v1")
    if url.path.endswith(".gguf"):
        raise _bad("download the file and give its path, or name it as hf:owner/repo:file")
    return Server(text.rstrip("/").removesuffix("/v1"))


def _hub_address(path: str) -> InRepo:
    """/owner/repo, or /owner/repo/(blob|resolve|tree)/revision[/file]."""
    parts = [unquote(p) for p in path.split("/") if p]
    if len(parts) < 2 or (len(parts) > 2 and (parts[2] not in {"blob", "resolve", "tree"} or len(parts) < 4)):
        raise _bad("an address of the hub must look like https://huggingface.co/owner/repo")
    revision = parts[3] if len(parts) > 3 else "main"
    return InRepo("/".join(parts[:2]), revision, "/".join(parts[4:]))


def checked_id(wanted: str | None, name: str) -> str:
    """The id asked for, or one made from `name`. Raises InvalidRequest."""
    made = wanted or re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-._")[:100]
    if not ID.fullmatch(made):
        raise InvalidRequest(
            f"'{made}' cannot be an id: use a-z, 0-9, '.', '_' and '-', a letter or digit first", param="id"
        )
    if made in RESERVED:
        raise InvalidRequest(f"'{made}' is a service tier; choose another id", param="id")
    return made


def file_card(path: Path, request: Mapping[str, Any], weights: Weights, licence: str = "") -> Card:
    """A card for a GGUF file from what its header says. Raises InvalidRequest or SetupError."""
    header = gguf.read_header(path)
    if not header.chat_template:
        raise InvalidRequest(
            f"{path.name} has no chat template: it is a base or an embedding model, which cannot answer. "
            "Take the 'instruct' version.",
            param="source",
        )
    pairs = header.pairs
    context = request.get("context") or min(header.context or DEFAULT_CONTEXT, DEFAULT_CONTEXT)
    if header.context and context > header.context:
        raise InvalidRequest(f"this model was trained for {header.context} tokens of context", param="context")
    name = str(pairs.get("general.name") or "")
    thinks = "enable_thinking" in header.chat_template
    return Card(
        id=checked_id(request.get("id"), gguf.PART.sub("", path.name).removesuffix(".gguf")),
        title=plain(name) or path.stem[:200],
        task="chat",
        engine="llamacpp",
        licence=plain(str(pairs.get("general.license") or licence)),
        jurisdiction="local",
        context=context,
        max_output=max(1, context // 2),
        tools="schema",
        thinking="switch" if thinks else "none",
        json_schema=True,
        parameters=(*LLAMA_PARAMETERS, "chat_template_kwargs") if thinks else LLAMA_PARAMETERS,
        weights=replace(weights, path=str(path), bytes=gguf.size(path)),
    )


def fitted(card: Card, path: Path, request: Mapping[str, Any]) -> Card:
    """A catalogue card for the file that was fetched for it."""
    own = file_card(path, {"context": request.get("context") or card.context}, card.weights)
    return replace(
        card,
        id=checked_id(request.get("id"), card.id),
        context=own.context,
        max_output=min(card.max_output, own.context),
        weights=own.weights,
    )


def plain(text: str) -> str:
    """One line of at most 200 printable characters."""
    return "".join(c for c in text if c.isprintable())[:200].strip()


def _bad(rule: str) -> InvalidRequest:
    return InvalidRequest(f"source: {rule}", param="source", code="bad_source")

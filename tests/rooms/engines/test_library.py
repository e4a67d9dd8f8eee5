"""Adding, removing and assigning models: sources, refusals, cards on disk, and a real engine behind them."""

from __future__ import annotations

import asyncio
import os
import struct
import tomllib
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from hub_server import HubServer
from hub_server import serving as serving_hub
from support import Upstream, json_answer, serving

from atoll.core.cards import Card, Remote, Weights, parse_card
from atoll.core.errors import AtollError, Conflict, Forbidden, InvalidRequest, NotFound, SetupError
from atoll.core.types import Price
from atoll.engines import sources
from atoll.engines.cardfiles import CATALOGUE, EMBEDDED, card_text, read_cards, write_whole
from atoll.engines.library import Library, Place
from atoll.engines.llamacpp import memory
from atoll.engines.media.tts import VOICES
from atoll.engines.weights import fetch
from atoll.regions.fleet import Fleet
from atoll.regions.home import Home
from atoll.regions.site import Site

REPO = "owner/tiny-GGUF"


def nothing(label: str, done: int, total: int) -> None:
    return


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def smollm2(weights_cache: Path) -> Path:
    card = read_cards(EMBEDDED)["smollm2-135m"]
    return next((await fetch(card, weights_cache, nothing)).glob("*.gguf"))


@pytest.fixture
def hub(smollm2: Path) -> Iterator[HubServer]:
    with serving_hub(HubServer(files={"tiny-Q4_1.gguf": smollm2.read_bytes()})) as server:
        yield server


@pytest_asyncio.fixture
async def library(tmp_path: Path, hub: HubServer) -> AsyncIterator[Library]:
    place = Place(tmp_path, tmp_path / "weights", "here", 1, 0, 2, {**os.environ, "FAR_KEY": "sk-far"}, hub.url)
    place.cards.mkdir()
    fleet = Fleet()
    home = Home(fleet, Site(), "here", 1)
    await home.open(["here"])
    library = Library(place, home)
    fleet.tiers.update({"max": "smollm2-135m", "omni": "omni-cascade"})
    yield library
    await library.stop()
    await home.close()
    await fleet.close()


def added(library: Library) -> list[str]:
    return sorted(p.name for p in library.place.cards.iterdir())


async def ask(library: Library, card: Card) -> bytes:
    body = b'{"model":"m","stream":true,"max_tokens":3,"messages":[{"role":"user","content":"hi"}]}'
    reply = await library.roster.fleet.open(card, "/v1/chat/completions", body)
    assert reply.status == 200
    text = b""
    while piece := await reply.read():
        text += piece
    reply.close()
    return text


async def test_a_file_is_added_answers_and_is_removed(library: Library, smollm2: Path) -> None:
    card = await library.add({"source": str(smollm2), "id": "mine", "context": 512}, nothing)
    assert (card.context, card.max_output, card.licence) == (512, 256, "apache-2.0")
    assert read_cards(library.place.cards) == {"mine": card}
    assert library.states()["mine"]["state"] == "ready" and library.states()["mine"]["removable"]
    assert b"data: " in await ask(library, card)
    with pytest.raises(Conflict, match="'mine' already"):
        await library.add({"source": str(smollm2), "id": "mine"}, nothing)
    await library.assign("max", "mine")
    assert tomllib.loads(library.place.tiers.read_text())["max"] == "mine"
    with pytest.raises(Conflict, match="stands behind 'max'"):
        await library.remove("mine")
    library.roster.tiers["max"] = "smollm2-135m"
    await library.remove("mine")
    assert added(library) == [] and "mine" not in library.states()
    assert smollm2.name in os.listdir(smollm2.parent)
    with pytest.raises(NotFound):
        await library.remove("mine")


async def test_removing_lets_the_request_under_way_finish(library: Library, smollm2: Path) -> None:
    card = await library.add({"source": str(smollm2), "id": "mine", "context": 512}, nothing)
    body = b'{"model":"m","stream":true,"max_tokens":100,"messages":[{"role":"user","content":"Tell a story"}]}'
    reply = await library.roster.fleet.open(card, "/v1/chat/completions", body)
    text = await reply.read()
    await library.remove("mine")
    with pytest.raises(NotFound):
        library.roster.fleet.resolve("mine")
    while piece := await reply.read():
        text += piece
    assert b"[DONE]" in text
    reply.close()
    async with asyncio.timeout(10):
        while library._leaving:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_a_repository_is_fetched_and_described(library: Library, hub: HubServer) -> None:
    seen: list[tuple[str, int, int]] = []
    card = await library.add(
        {"source": f"hf:{REPO}", "id": "tiny", "context": 256}, lambda *step: seen.append(step)
    )
    size = len(hub.files["tiny-Q4_1.gguf"])
    assert (REPO, size, size) in seen and seen[-2:] == [("Starting tiny", 0, 0), ("Starting tiny", 1, 1)]
    assert card.weights.repo == REPO and card.weights.bytes == size and len(card.weights.sha256) == 64
    assert Path(card.weights.path).is_relative_to(library.place.weights / "hub" / "owner" / "tiny-GGUF")


async def test_a_short_name_is_fetched_from_where_its_card_says(library: Library, hub: HubServer) -> None:
    listed = {row["id"]: row for row in library.catalogue()}
    assert set(listed) == set(read_cards(CATALOGUE)) and listed["qwen3-4b"]["download_bytes"] == 2497280256
    short = read_cards(CATALOGUE)["qwen3-0.6b"]
    weights = Weights(repo=REPO, file="tiny-Q4_1.gguf", bytes=len(hub.files["tiny-Q4_1.gguf"]))
    library._known_elsewhere["qwen3-0.6b"] = replace(short, weights=weights)
    card = await library.add({"source": "qwen3-0.6b", "context": 256}, nothing)
    assert (card.id, card.context, card.thinking, card.licence) == ("qwen3-0.6b", 256, "switch", "Apache-2.0")
    assert "qwen3-0.6b" not in {row["id"] for row in library.catalogue()}


async def test_a_short_name_with_another_digest_at_the_hub_is_refused(library: Library) -> None:
    short = read_cards(CATALOGUE)["qwen3-0.6b"]
    weights = Weights(repo=REPO, file="tiny-Q4_1.gguf", bytes=1000, sha256="0" * 64)
    library._known_elsewhere["qwen3-0.6b"] = replace(short, weights=weights)
    with pytest.raises(SetupError, match="was replaced there"):
        await library.add({"source": "qwen3-0.6b"}, nothing)
    assert added(library) == []


async def test_what_does_not_fit_is_refused_before_the_download(library: Library, hub: HubServer, monkeypatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: 300 << 20)
    with pytest.raises(SetupError, match=r"'qwen3-4b' does not fit.*weights \+ .* KV cache .* 300 MiB are available"):
        await library.add({"source": "qwen3-4b"}, nothing)
    with pytest.raises(SetupError, match=r"does not fit.*94 MiB weights"):
        await library.add({"source": f"hf:{REPO}"}, nothing)
    assert not hub.downloads() and added(library) == []
    assert not any(row["fits"] for row in library.catalogue())


async def test_a_gated_repository_and_a_missing_one(library: Library, hub: HubServer) -> None:
    hub.token = "hf_secret"
    with pytest.raises(Forbidden, match="HF_TOKEN"):
        await library.add({"source": f"hf:{REPO}"}, nothing)
    hub.token = ""
    with pytest.raises(InvalidRequest, match="there is no 'owner/none'"):
        await library.add({"source": "hf:owner/none"}, nothing)
    assert added(library) == []


async def test_a_cancelled_download_is_continued(library: Library, hub: HubServer) -> None:
    task = None

    def stop(label: str, done: int, total: int) -> None:
        if task is not None and done > 0:
            task.cancel()

    task = asyncio.ensure_future(library.add({"source": f"hf:{REPO}", "id": "tiny", "context": 256}, stop))
    with pytest.raises(asyncio.CancelledError):
        await task
    assert added(library) == []
    await library.add({"source": f"hf:{REPO}", "id": "tiny", "context": 256}, nothing)
    assert hub.downloads()[-1].headers["range"].startswith("bytes=")


def with_one_layer_too_many(model: Path, target: Path) -> Path:
    data = bytearray(model.read_bytes())
    at = data.index(b"llama.block_count") + len(b"llama.block_count") + 4
    data[at : at + 4] = struct.pack("<I", 31)
    target.write_bytes(data)
    return target


async def test_a_model_that_does_not_start_is_not_kept(library: Library, smollm2: Path, tmp_path: Path) -> None:
    broken = with_one_layer_too_many(smollm2, tmp_path / "broken.gguf")
    with pytest.raises(AtollError, match="'broken' was not added"):
        await library.add({"source": str(broken), "context": 256}, nothing)
    assert added(library) == [] and "broken" not in library.states()


def gguf(pairs: Sequence[tuple[str, str | int]]) -> bytes:
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    body = b"".join(
        text(key) + (struct.pack("<I", 8) + text(v) if isinstance(v, str) else struct.pack("<II", 4, v))
        for key, v in pairs
    )
    return b"GGUF" + struct.pack("<IQQ", 3, 0, len(pairs)) + body


BASE = [
    ("general.architecture", "llama"),
    ("llama.block_count", 2),
    ("llama.embedding_length", 64),
    ("llama.context_length", 4096),
    ("llama.attention.head_count", 4),
    ("llama.attention.head_count_kv", 2),
]


def test_a_file_without_chat_template_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "base.gguf"
    path.write_bytes(gguf(BASE))
    with pytest.raises(InvalidRequest, match=r"no chat template.*instruct"):
        sources.file_card(path, {}, Weights())


def test_the_card_of_a_file_says_what_its_header_says(tmp_path: Path) -> None:
    path = tmp_path / "Some Model.Q4.gguf"
    template = ("tokenizer.chat_template", "{% if enable_thinking %}")
    path.write_bytes(gguf([*BASE, template, ("general.name", "Some\nModel\x1b[31m"), ("general.license", "mit")]))
    card = sources.file_card(path, {}, Weights(), "other")
    assert (card.id, card.title, card.licence) == ("some-model.q4", "SomeModel[31m", "mit")
    assert (card.context, card.max_output, card.thinking) == (4096, 2048, "switch")
    assert "chat_template_kwargs" in card.parameters
    with pytest.raises(InvalidRequest, match="trained for 4096"):
        sources.file_card(path, {"context": 5000}, Weights())


BAD = [
    ("", "one line"),
    (" qwen3-4b", "one line"),
    ("qwen3\n4b", "one line"),
    ("UPPER", "no short name"),
    ("nothing-known", "there is no short name"),
    ("models/x", "no short name"),
    ("hf:", "hf:owner/repo"),
    ("hf:owner", "owner/name"),
    ("hf:../../etc", "owner/name"),
    ("hf:owner/../x", "owner/name"),
    ("hf:owner/repo@../x", "revision"),
    ("hf:owner/repo@main:../../passwd", "there is no 'owner/repo'"),
    ("relative.gguf", "absolute path"),
    ("../up.gguf", "absolute path"),
    ("/nowhere/model.gguf", "there is no file"),
    ("/etc/passwd", "must end in .gguf"),
    ("/dev/zero.gguf", "there is no file"),
    ("ftp://host/v1", "http"),
    ("file:///etc/x.gguf", "http"),
    ("http://", "name a host"),
    ("http://[::1", "malformed"),
    ("http://host:port/v1", "malformed"),
    ("https://user:secret@host/v1", "must not carry"),
    ("https://key@host/v1", "must not carry"),
    ("https://host/v1?key=secret", "must end with its path"),
    ("https://host/v1#x", "must end with its path"),
    ("https://host/files/model.gguf", "download the file"),
    ("https://huggingface.co/owner", "must look like"),
    ("https://huggingface.co/owner/repo/settings", "must look like"),
    ("http://127.0.0.1:9/v1", "no answer from"),
]


@pytest.mark.parametrize(("source", "said"), BAD)
async def test_bad_sources(library: Library, source: str, said: str) -> None:
    with pytest.raises(AtollError, match=said) as caught:
        await library.add({"source": source}, nothing)
    assert "secret" not in caught.value.message
    assert added(library) == []


@pytest.mark.parametrize(
    ("source", "parsed"),
    [
        ("qwen3-4b", sources.Short("qwen3-4b")),
        ("hf:o/r", sources.InRepo("o/r")),
        ("hf:o/r:Q8_0", sources.InRepo("o/r", "main", "Q8_0")),
        ("hf:o/r@v1:a/b.gguf", sources.InRepo("o/r", "v1", "a/b.gguf")),
        ("https://huggingface.co/o/r", sources.InRepo("o/r")),
        ("https://hf.co/o/r/blob/main/a/b.gguf", sources.InRepo("o/r", "main", "a/b.gguf")),
        ("https://huggingface.co/o/r/resolve/v1/a%20b.gguf?download=true", sources.InRepo("o/r", "v1", "a b.gguf")),
        ("http://mirror:81/o/r/tree/dev", sources.InRepo("o/r", "dev")),
        ("https://host/v1/", sources.Server("https://host")),
        ("http://host:8000", sources.Server("http://host:8000")),
        ("https://host/api/v1", sources.Server("https://host/api")),
    ],
)
def test_sources(source: str, parsed: sources.Source) -> None:
    assert sources.parse_source(source, "http://mirror:81") == parsed


@pytest.mark.parametrize("bad", ["../x", "a/b", "max", "omni", "UP", "-x", ".x", "x" * 101, "a b"])
async def test_ids_never_become_other_paths(library: Library, smollm2: Path, bad: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await library.add({"source": str(smollm2), "id": bad}, nothing)
    assert caught.value.param == "id"


async def test_options_of_servers_are_refused_elsewhere(library: Library, smollm2: Path) -> None:
    for name in ("model", "key_env"):
        with pytest.raises(InvalidRequest, match=f"{name} is only for") as caught:
            await library.add({"source": str(smollm2), name: "X"}, nothing)
        assert caught.value.param == name


async def server_models(library: Library, rows: Any, status: int = 200, **request: Any) -> tuple[Any, Upstream]:
    upstream = Upstream()
    upstream.on("/v1/models", json_answer(rows, status))
    async with serving(upstream) as url:
        try:
            return await library.add({"source": url + "/v1", **request}, nothing), upstream
        except AtollError as error:
            return error, upstream


async def test_a_server_is_added_with_its_key_by_reference(library: Library) -> None:
    rows = {"data": [{"id": "Org/Big Model", "max_model_len": 4096}, {"id": "other"}]}
    card, upstream = await server_models(library, rows, key_env="FAR_KEY", model="Org/Big Model")
    assert upstream.asked[0].headers["authorization"] == "Bearer sk-far"
    assert (card.id, card.context, card.tools, card.engine) == ("big-model", 4096, "native", "remote")
    assert card.remote.model == "Org/Big Model" and card.remote.key_env == "FAR_KEY"
    text = (library.place.cards / "big-model.toml").read_text()
    assert "sk-far" not in text and read_cards(library.place.cards) == {"big-model": card}


async def test_another_atoll_tells_everything(library: Library) -> None:
    row = {
        "id": "max", "task": "chat", "title": "Max\x1b", "context": 1000, "max_output": 500, "tools": "schema",
        "thinking": "switch", "json_schema": True, "input": ["text", "image"], "output": ["text"],
        "parameters": ["seed"], "unit": "token", "price": {"input": 0.1, "output": 0.2, "cached": 0.05},
        "licence": "MIT", "jurisdiction": "FR", "note": None,
    }  # fmt: skip
    card, _ = await server_models(library, {"data": [row]}, id="far")
    assert (card.title, card.input, card.price) == ("Max", ("text", "image"), Price(100, 200, 50))
    assert (card.tools, card.thinking, card.parameters, card.jurisdiction) == ("schema", "switch", ("seed",), "FR")


@pytest.mark.parametrize(
    ("rows", "status", "request_", "said", "param"),
    [
        ({"data": [{"id": "a"}]}, 401, {}, "refuses the key", "key_env"),
        ({"data": [{"id": "a"}]}, 200, {"key_env": "ABSENT_KEY"}, "ABSENT_KEY is not set", "key_env"),
        ({"data": [{"id": "a"}]}, 404, {}, "answers HTTP 404", None),
        ({"data": [{"id": "a"}, {"id": "b"}]}, 200, {}, "has 2 models; say which.*a, b", "model"),
        ({"data": [{"id": "a"}]}, 200, {"model": "c"}, "no model 'c'", "model"),
        ({"data": [{"id": "a"}]}, 200, {}, "does not say how long", "context"),
        ({"data": []}, 200, {}, "lists no model", None),
        ([1, 2], 200, {}, "lists no model", None),
        ({"data": [1, {"id": 5}]}, 200, {}, "lists no model", None),
        ({"data": [{"id": "/../..", "context": 100}]}, 200, {}, "cannot be an id", "id"),
        ({"data": [{"id": "a", "task": "dance", "context": 9}]}, 200, {}, "task must be one of", None),
        ({"data": [{"id": "a", "task": "chat", "context": -1}]}, 200, {}, "max_output must be", None),
    ],
)
async def test_servers_that_cannot_be_added(
    library: Library, rows: Any, status: int, request_: dict[str, Any], said: str, param: str | None
) -> None:
    error, _ = await server_models(library, rows, status, **request_)
    assert isinstance(error, AtollError), error
    with pytest.raises(AtollError, match=said):
        raise error
    assert error.param == param and added(library) == []


async def test_tiers_take_only_chat_models_that_run(library: Library) -> None:
    rows = {"data": [{"id": "far", "task": "embedding", "context": 100, "input": ["text"], "output": ["text"]}]}
    card, _ = await server_models(library, rows)
    for tier, model, said in (("mid", card.id, "no tier"), ("max", "none", "no model"), ("max", card.id, "needs chat")):
        with pytest.raises(AtollError, match=said):
            await library.assign(tier, model)
    assert not library.place.tiers.exists()


async def test_what_comes_with_atoll_stays(library: Library) -> None:
    library.start(("whisper-base", "omni-cascade"), nothing)
    assert not any(state["removable"] for state in library.states().values())
    with pytest.raises(Conflict, match="comes with Atoll"):
        await library.remove("whisper-base")


def test_cards_name_the_voices_that_their_engine_has() -> None:
    cards = read_cards(EMBEDDED)
    assert {name: card.voices for name, card in cards.items() if "audio" in card.output} == {
        "hibari-heart": VOICES, "omni-cascade": VOICES
    }  # fmt: skip


@pytest.mark.parametrize("folder", [EMBEDDED, CATALOGUE], ids=["embedded", "catalogue"])
def test_every_card_survives_being_written_and_read(folder: Path) -> None:
    for card in read_cards(folder).values():
        assert parse_card(tomllib.loads(card_text(card)), "again") == card


def test_a_card_with_odd_text_survives(tmp_path: Path) -> None:
    card = Card(
        "a", 'q"\\\t\n\x7fé🌊', "chat", "remote", context=10, max_output=5, price=Price(1, 2, 3),
        parameters=("temperature",), defaults={"temperature": 0.2}, remote=Remote("http://x", "m]\n[price]\ninput=9"),
    )  # fmt: skip
    write_whole(tmp_path / "a.toml", card_text(card))
    assert read_cards(tmp_path) == {"a": card} and [p.name for p in tmp_path.iterdir()] == ["a.toml"]


def test_an_unwritable_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="cannot write"):
        write_whole(tmp_path / "gone" / "a.toml", "x")

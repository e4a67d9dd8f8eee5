"""Files of model repositories, over the paths of the Hugging Face hub, into the shared weights cache.

    look (what is there, at which commit) -> choose (one quantisation) -> fetch (resumed, digest checked) -> rename

`GET /api/models/{repo}[/revision/{rev}]` tells commit, licence and gating; `GET /api/models/{repo}/tree/{commit}` the
files with size and SHA-256; `GET /{repo}/resolve/{commit}/{file}` the bytes, usually by a redirect to a store.
A file under the cache is whole and has its digest; what is under way ends in `.part` and is continued next time.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urljoin, urlsplit

import httpx
import orjson

from atoll.core.errors import Forbidden, InvalidRequest, SetupError
from atoll.engines.hubfiles import Repo, gguf_files, megabytes, member

T = TypeVar("T")

REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}")
MAX_PAGES = 50
MAX_JSON = 16 << 20


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds. A download stalls when `stall` pass without another 64 KiB; `attempts` in a row without any progress
    end it, `first_delay` doubling between them. A server's Retry-After is honoured up to `most_delay`."""

    connect: float = 10.0
    stall: float = 60.0
    attempts: int = 5
    first_delay: float = 1.0
    most_delay: float = 60.0


class Interrupted(Exception):
    """This attempt failed and another may succeed, not before `wait` seconds."""

    def __init__(self, why: str, wait: float = 0.0):
        super().__init__(why)
        self.wait = wait


@dataclass(frozen=True, slots=True)
class Hub:
    """A model hub at `url`. `token` goes to that host alone. Files land under `cache`/hub."""

    url: str
    cache: Path
    token: str = field(default="", repr=False)
    patience: Patience = Patience()

    async def look(self, name: str, revision: str = "main") -> Repo:
        """What a repository holds. Raises InvalidRequest (no such repository), Forbidden (gated), SetupError."""
        _check(REPO, name, "a repository is named owner/name")
        _check(REVISION, revision, "a revision is a branch, tag or commit")
        where = f"/api/models/{name}" + ("" if revision == "main" else f"/revision/{quote(revision, safe='')}")
        async with self.client() as client:
            about, _ = await self._retry(lambda: self._json(client, where, name))
            commit = str(member(about, "sha", str) or revision)
            _check(REVISION, commit, "the hub's commit is unusable")
            card = member(about, "cardData", dict) or {}
            licence = str(card.get("license_name") or card.get("license") or "")[:100]
            files, page = [], f"/api/models/{name}/tree/{quote(commit, safe='')}?recursive=true"
            for _ in range(MAX_PAGES):
                rows, following = await self._retry(lambda page=page: self._json(client, page, name))
                files += gguf_files(rows)
                if not following:
                    break
                page = following
        return Repo(name, commit, licence, tuple(files))

    def client(self) -> httpx.AsyncClient:
        timeout = httpx.Timeout(self.patience.stall, connect=self.patience.connect)
        own = urlsplit(self.url)

        async def keep_tls(request: httpx.Request) -> None:
            if own.scheme == "https" and request.url.scheme != "https":
                raise SetupError(f"{self.url} redirects to {request.url.host} without TLS; nothing was fetched")

        headers = {"user-agent": "atoll", "accept-encoding": "identity"}
        return httpx.AsyncClient(
            timeout=timeout,
            headers=headers,
            follow_redirects=True,
            max_redirects=5,
            trust_env=not is_loopback(own.hostname or ""),
            event_hooks={"request": [keep_tls]},
        )

    @asynccontextmanager
    async def get(
        self, client: httpx.AsyncClient, path: str, what: str, **headers: str
    ) -> AsyncIterator[httpx.Response]:
        """One GET of this hub. The token is dropped by httpx when a redirect leaves the origin."""
        if self.token:
            headers["authorization"] = f"Bearer {self.token}"
        try:
            async with client.stream("GET", urljoin(self.url + "/", path.lstrip("/")), headers=headers) as response:
                self._judge(response, what)
                yield response
        except httpx.TimeoutException as error:
            raise Interrupted(f"{self.url} does not answer ({type(error).__name__})") from None
        except httpx.TransportError as error:
            raise Interrupted(f"{self.url}: {error or type(error).__name__}") from None
        except httpx.TooManyRedirects:
            raise SetupError(f"{self.url} redirects {what} in circles") from None

    def _judge(self, response: httpx.Response, what: str) -> None:
        status = response.status_code
        if status in {200, 206, 416}:
            return
        if status in {401, 403}:
            hint = "the token in HF_TOKEN may not read it" if self.token else "set HF_TOKEN where Atoll runs"
            raise Forbidden(
                f"{self.url} does not give out '{what}' (HTTP {status}): it is private, gated or does not exist. "
                f"Accept its terms in a browser, then {hint} and start Atoll again.",
                param="source",
            )
        if status == 404:
            raise InvalidRequest(f"there is no '{what}' at {self.url}", param="source", code="source_not_found")
        if status == 429 or status >= 500:
            raise Interrupted(f"{self.url} answers HTTP {status}", _retry_after(response))
        raise SetupError(f"{self.url} answers HTTP {status} for '{what}'")

    async def _json(self, client: httpx.AsyncClient, path: str, what: str) -> tuple[Any, str]:
        """The document and the path of the next page."""
        async with self.get(client, path, what) as response:
            data = b""
            async for piece in response.aiter_raw():
                data += piece
                if len(data) > MAX_JSON:
                    raise SetupError(f"{self.url} answers more than {megabytes(MAX_JSON)} for '{what}'")
            following = response.links.get("next", {}).get("url", "")
        try:
            value = orjson.loads(data)
        except orjson.JSONDecodeError:
            raise SetupError(f"{self.url} is not a model hub: it does not answer JSON at {path}") from None
        if following and urlsplit(urljoin(self.url, following))[:2] != urlsplit(self.url)[:2]:
            raise SetupError(f"{self.url} names a next page on another host")
        parts = urlsplit(following)
        return value, f"{parts.path}?{parts.query}" if following else ""

    async def _retry(self, attempt: Callable[[], Awaitable[T]]) -> T:
        for number in range(self.patience.attempts):
            try:
                return await attempt()
            except Interrupted as failure:
                await self.pause(failure, number)
        raise AssertionError("pause raises after the last attempt")

    async def pause(self, failure: Interrupted, number: int) -> None:
        """Wait before attempt `number` + 1; after the last one raise SetupError."""
        if number + 1 >= self.patience.attempts:
            raise SetupError(
                f"the model hub cannot be used: {failure}. Without a network, give a file of yours: "
                "'atoll models add /path/to/model.gguf'; for a mirror set ATOLL_HUB_URL."
            )
        delay = max(failure.wait, self.patience.first_delay * 2**number)
        await asyncio.sleep(min(delay, self.patience.most_delay))


def _check(pattern: re.Pattern[str], text: str, rule: str) -> None:
    if not pattern.fullmatch(text) or ".." in text:
        raise InvalidRequest(f"'{text}' cannot be used: {rule}", param="source")


def _retry_after(response: httpx.Response) -> float:
    text = response.headers.get("retry-after", "")
    return float(text) if text.isdigit() else 0.0


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False

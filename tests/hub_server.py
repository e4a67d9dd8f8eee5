"""A model hub on loopback that speaks the paths of the Hugging Face hub, and misbehaves where a test says so."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Asked:
    path: str
    headers: dict[str, str]


@dataclass
class HubServer:
    """`files` maps paths to content, all in the repository `repo`.

    `refuse` lists HTTP statuses given to the next requests, first to last; `cut` bytes after which the next bodies end;
    `store` the base URL of another server to which downloads are redirected; `digests` overrides what the tree says.
    """

    repo: str = "owner/tiny-GGUF"
    files: dict[str, bytes] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    refuse: list[int] = field(default_factory=list)
    refuse_headers: dict[str, str] = field(default_factory=dict)
    refuse_body: bytes = b"{}"
    cut: list[int] = field(default_factory=list)
    stall: threading.Event | None = None
    store: str = ""
    ranges: bool = True
    token: str = ""
    page_size: int = 1000
    tag: str = ""
    asked: list[Asked] = field(default_factory=list)
    url: str = ""

    def rows(self) -> list[dict[str, Any]]:
        return [
            {
                "type": "file",
                "path": path,
                "size": len(data),
                "lfs": {"oid": self.digests.get(path) or hashlib.sha256(data).hexdigest(), "size": len(data)},
            }
            for path, data in self.files.items()
        ]

    def downloads(self) -> list[Asked]:
        return [a for a in self.asked if "/resolve/" in a.path]


class Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        return

    def do_GET(self) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        hub.asked.append(Asked(self.path, {k.lower(): v for k, v in self.headers.items()}))
        if hub.refuse:
            return self._reply(hub.refuse.pop(0), hub.refuse_body, hub.refuse_headers)
        if hub.token and self.headers.get("authorization") != f"Bearer {hub.token}":
            return self._reply(401, b'{"error":"gated"}')
        about, resolve = f"/api/models/{hub.repo}", f"/{hub.repo}/resolve/{COMMIT}/"
        if path in {about, f"{about}/revision/{COMMIT}", f"{about}/revision/v1"}:
            return self._json({"sha": COMMIT, "gated": False, "cardData": {"license": "apache-2.0"}})
        if path == f"{about}/tree/{COMMIT}":
            return self._tree()
        if path.startswith(resolve) and path.removeprefix(resolve) in hub.files:
            return self._file(path.removeprefix(resolve))
        return self._reply(404, b'{"error":"not found"}')

    def _tree(self) -> None:
        query = urlsplit(self.path).query
        start = int(query.rpartition("cursor=")[2]) if "cursor=" in query else 0
        rows = self.hub.rows()
        end = start + self.hub.page_size
        path = urlsplit(self.path).path
        link = f'<{self.hub.url}{path}?recursive=true&cursor={end}>; rel="next"'
        self._json(rows[start:end], {"Link": link} if end < len(rows) else {})

    def _file(self, name: str) -> None:
        hub, data = self.hub, self.hub.files[name]
        if hub.store:
            return self._reply(302, b"", {"Location": f"{hub.store}{self.path}", "X-Linked-Etag": f'"{hub.tag}"'})
        asked = self.headers.get("range", "")
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and hub.ranges else 0
        self.send_response(206 if asked and hub.ranges else 200)
        self.send_header("Content-Length", str(len(data) - start))
        if asked and hub.ranges:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        if hub.tag:
            self.send_header("ETag", f'"{hub.tag}"')
        self.end_headers()
        body = data[start:]
        if hub.cut:
            self.wfile.write(body[: hub.cut.pop(0)])
            self.wfile.flush()
            if hub.stall is not None:
                hub.stall.wait(20)
            self.close_connection = True
            return
        self.wfile.write(body)

    def _json(self, value: Any, headers: dict[str, str] | None = None) -> None:
        self._reply(200, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serving(hub: HubServer) -> Iterator[HubServer]:
    """`hub` on a free loopback port; `hub.url` says where."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        if hub.stall is not None:
            hub.stall.set()
        server.shutdown()
        server.server_close()
        thread.join(10)

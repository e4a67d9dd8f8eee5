"""The worker: `python -m atoll.engines.media --models JSON`. The bearer token comes in ATOLL_MEDIA_TOKEN."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
from pathlib import Path

import uvicorn

from atoll.engines.media.server import Media, Served, build
from atoll.engines.media.work import Pool
from atoll.engines.process import exit_with_parent


def listen(port: int) -> socket.socket:
    """A loopback socket at `port`, or at a free one when that is taken."""
    for candidate in dict.fromkeys((port, 0)):
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", candidate))
        except OSError:
            sock.close()
            continue
        sock.listen(128)
        sock.setblocking(False)
        return sock
    raise SystemExit("no free port on 127.0.0.1")


async def serve(args: argparse.Namespace, token: str, port: int) -> None:
    pool = Pool(args.workers, args.waiting)
    given = json.loads(args.models)
    models = {name: Served(m["task"], Path(m["folder"]), m.get("problem", "")) for name, m in given.items()}
    media = Media(models, pool, args.threads)
    config = uvicorn.Config(
        build(media, token), lifespan="off", log_level="warning", access_log=False, timeout_graceful_shutdown=5
    )
    server = uvicorn.Server(config)
    with listen(port) as sock:
        await media.preload(args.preload)
        print(json.dumps({"url": f"http://127.0.0.1:{sock.getsockname()[1]}"}), flush=True)
        await server.serve([sock])
    pool.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m atoll.engines.media")
    parser.add_argument(
        "--models", required=True, help='{"id": {"task": "ocr", "folder": "of its weights", "problem": ""}}'
    )
    parser.add_argument("--preload", action="append", default=[], metavar="ID", help="load now, not on first use")
    parser.add_argument("--threads", type=int, default=2, help="threads one model may use")
    parser.add_argument("--workers", type=int, default=2, help="requests at work at once")
    parser.add_argument("--waiting", type=int, default=32, help="requests waiting before more are refused")
    args = parser.parse_args()
    token = os.environ.pop("ATOLL_MEDIA_TOKEN", "")
    if not token:
        parser.error("ATOLL_MEDIA_TOKEN must hold the bearer token")
    exit_with_parent()
    asyncio.run(serve(args, token, int(os.environ.get("ATOLL_PORT", "0"))))


if __name__ == "__main__":
    main()

"""A region with a data folder of its own joins a running cloud over mutual TLS, serves, and dies in mid-answer."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import known_cloud as known
import pytest
from conftest import start

pytestmark = [pytest.mark.xdist_group("regions"), pytest.mark.timeout(120)]

OURS, JOINED = ("eu-central-1", "us-west-1"), "us-east-1"
RULE = {"residency": {"process_in": ["us-east-1", "us-west-1"]}}


@contextmanager
def region(data: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`atoll region ...` in the data folder of another machine; its line tells where it listens."""
    argv = [sys.executable, "-m", "atoll.cli", "region", *arguments, "--data", str(data), "--models", "known"]
    with (data / "log").open("a") as log:
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=log, text=True, env={**os.environ})
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, (data / "log").read_text()
        assert json.loads(line)["url"].startswith("https://127.0.0.1:")
        yield process
    finally:
        process.kill()
        process.wait(10)
        process.stdout.close()


async def test_a_region_joins_serves_dies_and_comes_back(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    flags, environment = known.options(OURS)
    with known.engine(here, 0.03):
        shutil.copytree(here, there)
        cloud = await asyncio.to_thread(start, here, *flags, environment=environment)
        try:
            async with known.client(cloud.url, cloud.key) as http:
                token = (await http.post(f"/atoll/v1/regions/{JOINED}/invite")).raise_for_status().json()["token"]
                joining = ("join", cloud.url, "--token", token, "--listen", "127.0.0.1:0")
                with region(there, *joining) as process:
                    await known.all_serve(http, (*OURS, JOINED))
                    await serve_and_die(http, process)
                with region(there, "serve"):
                    await known.all_serve(http, (JOINED,))
            assert cloud.stop() == 0
            with region(there, "serve"):
                cloud = await asyncio.to_thread(start, here, *flags, environment=environment)
                async with known.client(cloud.url, cloud.key) as http:
                    await known.all_serve(http, (JOINED,))
                    assert (await known.regions(http))[JOINED]["served_by"] == "joined"
        finally:
            cloud.close()


async def serve_and_die(http: httpx.AsyncClient, process: subprocess.Popen[str]) -> None:
    made = await http.post("/atoll/v1/keys", json={"name": "us", **RULE})
    american = {"authorization": f"Bearer {made.raise_for_status().json()['secret']}"}
    first = await known.stream(http, known.asked(1, 10), american)
    assert first.right and first.region == JOINED, first
    told, seen = known.Told(known.asked(2, 60)), 0
    async for _ in known.events(http, told, american):
        seen += 1
        if seen == 20:
            process.kill()
    assert told.right and told.region == JOINED, told
    row = next(row for row in await known.rows(http) if row["id"] == told.id)
    assert [where for where, _ in known.steps(row)] == [JOINED, "us-west-1"] and row["grade"], row

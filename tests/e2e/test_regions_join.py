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
from typing import Any

import httpx
import known_cloud as known
import pytest
from conftest import Live, start
from test_cli import run

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


async def test_a_region_that_joined_serves_all_gateways_also_when_that_one_dies(
    tmp_path: Path, postgres_server: Any
) -> None:
    here, other, there = (tmp_path / name for name in ("here", "other", "there"))
    here.mkdir()
    url = postgres_server.new_database()
    flags = ("--models", "known", "--regions", "eu-central-1", "--store", url)
    clouds = []
    try:
        with known.engine(here, 0.01):
            for data in (other, there):
                shutil.copytree(here, data)
            for data in (here, other):
                clouds.append(await asyncio.to_thread(start, data, *flags, environment={"ATOLL_SLOTS": "64"}))
            one, two = clouds
            async with known.client(one.url, one.key) as http, known.client(two.url, one.key) as also:
                token = (await http.post(f"/atoll/v1/regions/{JOINED}/invite")).raise_for_status().json()["token"]
                with region(there, "join", one.url, "--token", token, "--listen", "127.0.0.1:0"):
                    for gateway in (http, also):
                        await known.all_serve(gateway, (JOINED,))
                        await answered_there(gateway)
                    one.close()
                    await answered_there(also)
                with region(there, "serve"):
                    await known.all_serve(also, (JOINED,))
                    await answered_there(also)
                await removed(two, also)
    finally:
        for cloud in clouds:
            cloud.close()


async def answered_there(http: httpx.AsyncClient) -> None:
    body = known.asked(1, 10, residency={"process_in": [JOINED]})
    told = await known.stream(http, body)
    assert told.right and told.region == JOINED, told


async def removed(cloud: Live, http: httpx.AsyncClient) -> None:
    """Its machine is gone for good."""
    done = await asyncio.to_thread(run, cloud, "region", "remove", JOINED)
    assert (done.returncode, done.stdout) == (0, f"{JOINED} is retired\n"), done.stderr
    now = (await known.regions(http))[JOINED]
    assert (now["status"], now["served_by"], now["endpoints"]) == ("retired", "", 0)
    refused = await http.delete(f"/atoll/v1/regions/{JOINED}/join")
    assert refused.status_code == 409 and "no machine joined" in refused.json()["error"]["message"]

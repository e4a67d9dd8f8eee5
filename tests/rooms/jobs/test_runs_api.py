"""Runs over HTTP, from a recipe to a range of a file that it made."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from job_support import chain, open_desk
from support import SECRET, running

from atoll.core.errors import NotInstalled
from atoll.core.runs import Recipe
from atoll.core.types import Limits
from atoll.gateway.admin import Admin, new_key
from atoll.gateway.metrics import Metrics
from atoll.gateway.rest import build_rest
from atoll.gateway.runs import Work
from atoll.jobs import durable
from atoll.jobs.board import Board

RECIPES = {"chain": Recipe("chain", "numbers and their sum", chain(6).steps)}


@asynccontextmanager
async def cloud(data: Path) -> AsyncIterator[tuple[Board, httpx.AsyncClient]]:
    async with running() as house:
        key, secret = new_key("admin", "admin", Limits())
        house.gateway.exchange.accounts.put(key)
        unused: Any = None
        admin = Admin(house.gateway, house.store.keys, unused, "memory", time.time())
        board = Board(open_desk(data), RECIPES)
        board.start()
        rest = build_rest([Work(admin, board, board), admin], Metrics(house.gateway.exchange.running), data, list)
        house.gateway.rest = rest
        async with httpx.AsyncClient(
            base_url=house.url + "/atoll/v1", headers={"authorization": f"Bearer {secret}"}, timeout=60
        ) as client:
            yield board, client
        await board.close()


async def followed(client: httpx.AsyncClient, id: str) -> list[tuple[str, Any]]:
    told, name = [], ""
    async with client.stream("GET", f"/runs/{id}/events") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        async for line in response.aiter_lines():
            if line.startswith("event: "):
                name = line[7:]
            elif line.startswith("data: "):
                told.append((name, json.loads(line[6:])))
    return told


async def test_from_recipe_to_file(tmp_path: Path) -> None:
    async with cloud(tmp_path) as (_, client):
        offered = (await client.get("/stages")).json()
        assert [recipe["name"] for recipe in offered["recipes"]] == ["chain"]
        assert offered["recipes"][0]["steps"][1]["inputs"] == {"numbers": "drawn"}
        assert {stage["name"] for stage in offered["data"]} == {"draw", "add", "trip", "deaf", "rl"}
        body = {"recipe": "chain", "seed": 5, "set": {"drawn": {"count": 4}}}
        made = await client.post("/runs", json=body)
        assert made.status_code == 201
        run = made.json()
        assert (run["name"], run["seed"], run["state"]) == ("chain", 5, "queued")
        told = await followed(client, run["id"])
        assert told[-1] == ("end", {"id": run["id"]})
        row = [data for name, data in told if name == "run"][-1]
        assert row["state"] == "done" and row == (await client.get(f"/runs/{run['id']}")).json()
        lines = [line for name, data in told if name == "figures" for line in data]
        assert {line["step"] for line in lines} == {"drawn", "sum"} and lines[0]["figures"].keys() == {"mean"}
        assert [r["id"] for r in (await client.get("/runs")).json()["data"]] == [run["id"]]

        kinds = {a["kind"] for a in (await client.get("/artifacts")).json()["data"]}
        assert kinds == {"dataset", "report"}
        drawn, added = (step["digest"] for step in row["steps"])
        artifact = (await client.get(f"/artifacts/{added}")).json()
        assert list(artifact["files"]) == ["nested/sum.txt"]
        lineage = {a["digest"]: a["parents"] for a in artifact["lineage"]}
        assert lineage == {added: {"numbers": drawn}, drawn: {}}

        whole = await client.get(f"/artifacts/{drawn}/files/numbers.txt")
        part = await client.get(f"/artifacts/{drawn}/files/numbers.txt", headers={"range": "bytes=2-9"})
        assert (whole.status_code, part.status_code) == (200, 206)
        assert part.text == whole.text[2:10] and len(whole.text.split()) == 4
        assert "sandbox; default-src 'none'" in whole.headers.get_list("content-security-policy")


async def test_cancelled_and_resumed(tmp_path: Path) -> None:
    async with cloud(tmp_path) as (_, client):
        steps = [{"name": "drawn", "stage": "draw", "config": {"count": 100, "pause": 0.05}}]
        run = (await client.post("/runs", json={"steps": steps})).json()
        watching = asyncio.create_task(followed(client, run["id"]))
        while not (await client.get(f"/runs/{run['id']}")).json()["steps"][0]["done"]:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        assert (await client.post(f"/runs/{run['id']}/cancel")).json()["state"] == "cancelled"
        assert (await watching)[-1][0] == "end"
        assert (await client.post(f"/runs/{run['id']}/cancel")).status_code == 409
        assert (await client.post(f"/runs/{run['id']}/resume")).json()["state"] == "queued"
        assert [d["state"] for n, d in await followed(client, run["id"]) if n == "run"][-1] == "done"


async def test_followers_are_let_go_when_the_cloud_stops(tmp_path: Path) -> None:
    async with cloud(tmp_path) as (board, client):
        steps = [{"name": "drawn", "stage": "draw", "config": {"count": 1000, "pause": 0.05}}]
        run = (await client.post("/runs", json={"steps": steps})).json()
        watching = asyncio.create_task(followed(client, run["id"]))
        await asyncio.sleep(0.3)
        board.dismiss()
        async with asyncio.timeout(5):
            assert (await watching)[-1][0] == "end"


async def test_the_latest_picture_of_a_step_under_way(tmp_path: Path) -> None:
    async with cloud(tmp_path) as (board, client):
        steps = [{"name": "drawn", "stage": "draw"}]
        id = (await client.post("/runs", json={"steps": steps})).json()["id"]
        await followed(client, id)
        assert (await client.get(f"/runs/{id}/steps/drawn/view")).status_code == 204
        work = board.desk.home.runs / id / "drawn" / ".work"
        work.mkdir()
        (work / "view.jpg").write_bytes(b"\xff\xd8picture")
        answer = await client.get(f"/runs/{id}/steps/drawn/view")
        assert answer.content == b"\xff\xd8picture" and answer.headers["content-type"] == "image/jpeg"
        assert (await client.get(f"/runs/{id}/steps/..%2f..%2fx/view")).status_code == 404


BAD = [
    ({}, 400, "recipe"),
    ({"recipe": "chain", "steps": [{"name": "a", "stage": "draw"}]}, 400, "recipe"),
    ({"recipe": "fly"}, 404, "recipe"),
    ({"recipe": "chain", "set": {"nope": {}}}, 400, "set.nope"),
    ({"recipe": "chain", "set": {"drawn": {"count": 0}}}, 400, "steps[0].config.count"),
    ({"recipe": "chain", "seed": -1}, 400, "seed"),
    ({"recipe": "chain", "colour": 1}, 400, "colour"),
    ({"steps": [{"name": "a", "stage": "fly"}]}, 404, "steps[0].stage"),
]


async def test_bad_orders_are_refused_by_name(tmp_path: Path) -> None:
    async with cloud(tmp_path) as (_, client):
        for body, status, param in BAD:
            answer = await client.post("/runs", json=body)
            assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), body
        for path in ("/runs/run_x", "/runs/run_x/events", "/artifacts/abc", f"/artifacts/{'0' * 64}/files/a"):
            assert (await client.get(path)).status_code == 404, path
        assert (await client.get("/runs?limit=0")).status_code == 400
        assert (await client.get("/runs")).json() == {"data": []}


async def test_only_admins(tmp_path: Path) -> None:
    async with cloud(tmp_path) as (_, client):
        mine = {"authorization": f"Bearer {SECRET}"}
        paths = ("/stages", "/runs", "/runs/x", "/runs/x/events", "/runs/x/steps/y/view", "/artifacts", "/artifacts/x")
        for path in (*paths, "/artifacts/x/files/y"):
            assert (await client.get(path, headers=mine)).status_code == 403, path
        for path in ("/runs", "/runs/x/cancel", "/runs/x/resume"):
            assert (await client.post(path, headers=mine, json={"recipe": "chain"})).status_code == 403, path


async def test_without_the_extra_it_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise NotInstalled("runs need the extra 'physical'; run: make physical")

    monkeypatch.setattr(durable, "require", missing)
    async with cloud(tmp_path) as (_, client):
        for answer in (await client.get("/runs"), await client.post("/runs", json={"recipe": "chain"})):
            assert answer.status_code == 501 and "make physical" in answer.json()["error"]["message"]

"""Two gateways over one PostgreSQL: one is killed, its clients go to the other, and the budget stays exact."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from metered import Client, metered
from test_budget import check_rows, ledger, make_key, nano, read
from test_cli import refused, run

from atoll.store import open_store

pytestmark = [pytest.mark.xdist_group("quota"), pytest.mark.timeout(180)]

CLIENTS = 100
BUDGET = 250_000_000


async def test_a_gateway_dies_and_the_budget_stays_exact(
    tmp_path: Path, boot: Callable[..., Any], postgres_server: Any
) -> None:
    url = postgres_server.new_database()
    options = ("--models", "mock", "--regions", "eu-central-1", "--store", url)
    clouds = []
    many = httpx.Limits(max_connections=250)
    async with metered(tmp_path / "one"), httpx.AsyncClient(timeout=60, limits=many) as http:
        for name in ("one", "two"):
            data = tmp_path / name
            if name == "two":
                (data / "models").mkdir(parents=True)
                (data / "models/mock.toml").write_bytes((tmp_path / "one/models/mock.toml").read_bytes())
            clouds.append(await asyncio.to_thread(boot, *options, data=data))
        await use_up(http, clouds)


async def test_a_gateway_in_another_region_than_its_database_does_not_start(
    tmp_path: Path, postgres_server: Any
) -> None:
    """What a rule keeps in Virginia would be stored in Frankfurt. A region that is not known is not written down."""
    for url in (f"sqlite:///{tmp_path}/atoll.db", postgres_server.new_database()):
        cloud = SimpleNamespace(data=tmp_path)
        up = ("up", "--port", "0", "--models", "none", "--store", url)
        refused(run(cloud, *up, environment={"ATOLL_REGION": "atlantis"}), "no region 'atlantis'")
        store = await open_store(url)
        assert await store.places.stands_in("eu-central-1") == "eu-central-1"
        await store.close()
        said = "stands in eu-central-1, and this gateway's 'region' is us-east-1: set 'region' to eu-central-1, or"
        refused(run(cloud, *up, environment={"ATOLL_REGION": "us-east-1"}), said)
        store = await open_store(url)
        assert await store.keys.all() == []
        await store.close()


async def use_up(http: httpx.AsyncClient, clouds: list[Any]) -> None:
    one, two = clouds
    key_id, secret = await make_key(http, one, BUDGET)
    await known_at(http, two.url, secret)
    clients = [Client(http, clouds[n % 2].url, secret, n) for n in range(CLIENTS)]
    running = asyncio.gather(*(until_spent(client, two.url) for client in clients))
    await asyncio.sleep(4)
    one.stop(signal.SIGKILL)
    await running
    rows, books = await ledger(http, two, secret), [sent for client in clients for sent in client.books]
    answers = [sent for sent in books if sent.status == 200]
    check_rows(rows, answers)
    spent = sum(nano(row["cost"]) for row in rows.values())
    known = {sent.id for sent in answers}
    lost = [row for id, row in rows.items() if id not in known and row["cost"]]
    assert sum(sent.cost for sent in answers) + sum(nano(row["cost"]) for row in lost) == spent
    assert spent <= BUDGET
    smallest = min(sent.ask for sent in books)
    assert spent + smallest + 50_000 > BUDGET, f"{BUDGET - spent} were left unspent"
    assert len(lost) <= CLIENTS // 2
    await revoked_at_both(http, two, key_id, secret)


async def known_at(http: httpx.AsyncClient, url: str, secret: str, status: int = 200) -> None:
    """Within seconds of a change at one gateway the other follows."""
    deadline = time.monotonic() + 4
    while (await http.get(f"{url}/atoll/v1/me", headers={"authorization": f"Bearer {secret}"})).status_code != status:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)


async def until_spent(client: Client, other: str) -> None:
    """Until a refusal for want of money, with all leases of the dead given back; the other gateway is tried when one
    breaks. What lies in doubt may refuse for a while, but only as something to try again."""
    while True:
        sent = await client.ask()
        if sent is None:
            client.url = other
        elif sent.status != 200:
            assert sent.status == 429, sent
            if sent.error["code"] == "insufficient_quota":
                return
            await asyncio.sleep(1)


async def revoked_at_both(http: httpx.AsyncClient, cloud: Any, key_id: str, secret: str) -> None:
    assert (await read(http, cloud, secret, "/atoll/v1/me"))["month"]["reserved"] == 0
    mine = {"authorization": f"Bearer {cloud.key}"}
    assert (await http.delete(f"{cloud.url}/atoll/v1/keys/{key_id}", headers=mine)).status_code == 200
    await known_at(http, cloud.url, secret, 401)

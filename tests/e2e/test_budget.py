"""Budgets are exact: under 200 clients at once, and when the gateway is killed again and again."""

from __future__ import annotations

import asyncio
import random
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from metered import MAX_TOKENS, PRICE_IN, PRICE_OUT, Client, Sent, metered

pytestmark = [pytest.mark.xdist_group("quota"), pytest.mark.timeout(240)]

NANO = 1_000_000_000
CLIENTS = 200
MOST_UNDER_WAY = CLIENTS * (200 * PRICE_IN + MAX_TOKENS * PRICE_OUT)
"""What all clients' requests under way can cost (nanodollars): those were allowed before a budget was cut."""
KILLS = 4


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest) -> list[str]:
    """The options of `atoll up` for either kind of store."""
    if request.param == "sqlite":
        return []
    return ["--store", request.getfixturevalue("postgres_server").new_database()]


def connections() -> httpx.AsyncClient:
    return httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=CLIENTS))


async def make_key(http: httpx.AsyncClient, cloud: Any, budget: int) -> tuple[str, str]:
    """Id and secret of a user key with this budget (nanodollars)."""
    made = await http.post(
        f"{cloud.url}/atoll/v1/keys",
        headers={"authorization": f"Bearer {cloud.key}"},
        json={"name": "shared", "limits": {"budget_per_month": budget / NANO}},
    )
    assert made.status_code == 201, made.text
    return made.json()["id"], made.json()["secret"]


async def read(http: httpx.AsyncClient, cloud: Any, secret: str, path: str, **query: Any) -> dict[str, Any]:
    reply = await http.get(f"{cloud.url}{path}", headers={"authorization": f"Bearer {secret}"}, params=query)
    assert reply.status_code == 200, reply.text
    return reply.json()


async def ledger(http: httpx.AsyncClient, cloud: Any, secret: str) -> dict[str, dict[str, Any]]:
    """Every row of the key, by request id."""
    rows: dict[str, dict[str, Any]] = {}
    query: dict[str, Any] = {"limit": 1000}
    while True:
        page = await read(http, cloud, secret, "/atoll/v1/requests", **query)
        rows |= {row["id"]: row for row in page["data"]}
        if page["next"] is None:
            return rows
        query |= page["next"]


def nano(dollars: float) -> int:
    return round(dollars * NANO)


def check_rows(rows: dict[str, dict[str, Any]], answers: list[Sent]) -> None:
    """Every answer that a client has is a row with the same use and cost."""
    for sent in answers:
        row = rows[sent.id]
        assert (row["status"], row["input"], row["output"]) == ("done", *sent.tokens)
        assert nano(row["cost"]) == sent.cost


def check_refusals(books: list[Sent], budget: int) -> None:
    """A refused request did not fit beside money that had been spent, at a moment while it was under way."""
    answers = [s for s in books if s.status == 200]
    for refused in (s for s in books if s.status != 200):
        assert refused.status == 429 and refused.error["code"] == "insufficient_quota", refused.error
        left = nano(float(refused.error["message"].split("but $")[1].split(" ")[0]))
        surely = sum(s.cost for s in answers if s.ended <= refused.began)
        at_most = sum(s.cost for s in answers if s.began <= refused.ended)
        assert surely - 1000 <= budget - left <= at_most + 1000, "money that was not spent stood in the way"
        assert budget - at_most < refused.ask, "it would have fit"


async def test_200_clients_share_one_budget_to_the_last_request(
    store: list[str], boot: Callable[..., Any], tmp_path: Path
) -> None:
    budget = 60_000_000
    async with metered(tmp_path) as engine, connections() as http:
        cloud = await asyncio.to_thread(boot, "--models", "mock", *store)
        _, secret = await make_key(http, cloud, budget)
        clients = [Client(http, cloud.url, secret, seed) for seed in range(CLIENTS)]

        async def spend(client: Client) -> None:
            while (seen := await client.ask()) is not None and seen.status == 200:
                pass

        await asyncio.gather(*map(spend, clients))
        books = [sent for client in clients for sent in client.books]
        answers = [sent for sent in books if sent.status == 200]
        assert len(answers) == engine.served > CLIENTS and len(books) == len(answers) + CLIENTS
        total = sum(sent.cost for sent in answers)
        assert total <= budget
        assert budget - total < min(s.ask for s in books if s.status != 200), "some of the budget could not be spent"
        check_refusals(books, budget)
        month = (await read(http, cloud, secret, "/atoll/v1/me"))["month"]
        assert (nano(month["spent"]), month["reserved"]) == (total, 0)
        rows = await ledger(http, cloud, secret)
        check_rows(rows, answers)
        assert sum(nano(row["cost"]) for row in rows.values()) == total
        async with asyncio.timeout(2):
            while True:
                usage = (await read(http, cloud, secret, "/atoll/v1/usage"))["data"]
                assert sum(nano(bucket["cost"]) for bucket in usage) == total
                if sum(bucket["requests"] for bucket in usage) == len(books):
                    break
                await asyncio.sleep(0.05)


async def test_kill_minus_nine_loses_no_charge_and_passes_no_budget(
    store: list[str], boot: Callable[..., Any], tmp_path: Path
) -> None:
    """200 clients go on through all kills; then the budget is cut to what they use up soon after."""
    dice, lost, answered = random.Random(7), 0, asyncio.Event()
    options = ("--models", "mock", "--port", str(free_port()), *store)
    async with metered(tmp_path), connections() as http:
        cloud = await asyncio.to_thread(boot, *options)
        key_id, secret = await make_key(http, cloud, 10 * NANO)
        clients = [Client(http, cloud.url, secret, seed) for seed in range(CLIENTS)]

        async def spend(client: Client) -> None:
            nonlocal lost
            while (seen := await client.ask()) is None or seen.status == 200:
                if seen is not None:
                    answered.set()
                    continue
                lost += 1
                await asyncio.sleep(0.05)

        async with asyncio.TaskGroup() as spending:
            tasks = [spending.create_task(spend(client)) for client in clients]
            for _ in range(KILLS):
                answered.clear()
                await asyncio.wait_for(answered.wait(), 30)
                await asyncio.sleep(dice.uniform(0.2, 0.8))
                cloud.process.send_signal(signal.SIGKILL)
                await asyncio.to_thread(cloud.process.wait, 10)
                cloud = await asyncio.to_thread(boot, *options)
            assert not any(task.done() for task in tasks), "a request was refused though the budget was not used up"
            budget = await cut_budget(http, cloud, (key_id, secret), more=MOST_UNDER_WAY * 2)
        books = [sent for client in clients for sent in client.books]
        answers = [sent for sent in books if sent.status == 200]
        rows = await ledger(http, cloud, secret)
        check_rows(rows, answers)
        assert any(row["status"] == "interrupted" for row in rows.values()), "no kill hit a request under way"
        assert all(row["cost"] == 0 for row in rows.values() if row["status"] != "done")
        assert not any(row["status"] == "open" for row in rows.values())
        made = {id for id, row in rows.items() if row["status"] == "done"}
        assert len(made - {sent.id for sent in answers}) <= lost, "a charge without a client"
        spent = sum(nano(row["cost"]) for row in rows.values())
        month = (await read(http, cloud, secret, "/atoll/v1/me"))["month"]
        assert (nano(month["spent"]), month["reserved"]) == (spent, 0), "charged twice, or not at all"
        assert spent <= budget
        refused = [sent for sent in books if sent.status != 200]
        assert {(sent.status, sent.error["code"]) for sent in refused} == {(429, "insufficient_quota")}
        assert budget - spent < min(sent.ask for sent in refused), "some of the budget could not be spent"


async def cut_budget(http: httpx.AsyncClient, cloud: Any, key: tuple[str, str], more: int) -> int:
    """The new budget: what is spent by now and `more`."""
    month = (await read(http, cloud, key[1], "/atoll/v1/me"))["month"]
    budget = nano(month["spent"]) + more
    changed = await http.patch(
        f"{cloud.url}/atoll/v1/keys/{key[0]}",
        headers={"authorization": f"Bearer {cloud.key}"},
        json={"limits": {"budget_per_month": budget / NANO}},
    )
    assert changed.status_code == 200
    return budget


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]

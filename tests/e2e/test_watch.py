"""What can be watched: metrics that match the ledger, logs without secrets, live requests."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from metered import Client, metered
from prometheus_client.parser import text_string_to_metric_families

pytestmark = [pytest.mark.xdist_group("quota"), pytest.mark.timeout(120)]

REQUESTS = 30
SECRETS = ("PROMPT-THAT-NOBODY-MAY-LOG", "ANSWER-THAT-NOBODY-MAY-LOG")


@pytest.fixture
async def cloud(boot: Any, tmp_path: Path) -> AsyncIterator[Any]:
    """Before an engine of known use, with everything logged that can be."""
    async with metered(tmp_path):
        yield await asyncio.to_thread(boot, "--models", "mock", environment={"ATOLL_LOG_LEVEL": "debug"})


def numbers(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample of a Prometheus page by name and labels."""
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
    found = {(s.name, tuple(sorted(s.labels.items()))): s.value for s in samples}
    assert len(found) == len(samples), "a series is given twice"
    return found


def total(found: dict[Any, float], name: str, **labels: str) -> float:
    return sum(v for (n, given), v in found.items() if n == name and labels.items() <= dict(given).items())


async def test_metrics_are_what_the_clients_counted(cloud: Any) -> None:
    async with httpx.AsyncClient() as http:
        client = Client(http, cloud.url, cloud.key, seed=3)
        for _ in range(REQUESTS):
            await client.ask(0)
        refused = await http.post(
            f"{cloud.url}/v1/chat/completions",
            json={"model": "mock", "messages": [{"role": "user", "content": "not a number"}]},
            headers=client.headers,
        )
        assert refused.status_code >= 400
        page = await http.get(f"{cloud.url}/metrics")
    assert page.headers["content-type"].startswith("text/plain")
    found, books = numbers(page.text), client.books
    assert total(found, "atoll_requests_total", status="done") == REQUESTS == len(books)
    assert total(found, "atoll_requests_total", status="failed") == 1
    for kind, place in (("input", 0), ("output", 1)):
        used = total(found, "gen_ai_client_token_usage_total", gen_ai_token_type=kind)
        assert used == sum(sent.tokens[place] for sent in books)
    cost = total(found, "atoll_cost_dollars_total")
    assert abs(cost * 1e9 - sum(sent.cost for sent in books)) < 1
    assert total(found, "gen_ai_server_request_duration_seconds_count") == REQUESTS + 1
    assert total(found, "gen_ai_server_request_duration_seconds_bucket", le="+Inf") == REQUESTS + 1
    took = total(found, "gen_ai_server_request_duration_seconds_sum")
    assert 0 < took <= sum(sent.ended - sent.began for sent in books) + 5
    assert total(found, "atoll_requests_running") == 0


async def test_logs_hold_no_key_and_no_prompt(cloud: Any) -> None:
    """Over every API, with requests that work, that are refused, and whose keys are wrong."""
    prompt, answer = SECRETS
    bodies: dict[str, Any] = {
        "/v1/chat/completions": {"messages": [{"role": "user", "content": prompt}]},
        "/v1/completions": {"prompt": prompt},
        "/v1/messages": {"max_tokens": 5, "messages": [{"role": "user", "content": prompt}]},
        "/v1/responses": {"input": prompt},
        "/v1/embeddings": {"input": prompt},
    }
    keys = (cloud.key, "sk-atoll-wrong-SECRET-KEY")
    async with httpx.AsyncClient(base_url=cloud.url) as http:
        for path, body in bodies.items():
            for key in keys:
                for extra in ({"model": "mock"}, {"model": answer}, {"model": "mock", prompt: answer}):
                    await http.post(path, json=body | extra, headers={"authorization": f"Bearer {key}"})
            await http.post(path, content=prompt, headers={"authorization": f"Bearer {cloud.key}"})
        made = await http.post(
            "/atoll/v1/keys", json={"name": "logged"}, headers={"authorization": f"Bearer {cloud.key}"}
        )
    assert cloud.stop() == 0
    log = (cloud.data / "up.log").read_text()
    for secret in (*keys, made.json()["secret"], *SECRETS):
        assert secret not in log
    for line in log.splitlines():
        assert json.loads(line).keys() >= {"at", "level", "logger", "message"}
    for file in cloud.data.rglob("*"):
        if file.is_file():
            data = file.read_bytes()
            assert cloud.key.encode() not in data and made.json()["secret"].encode() not in data, file


async def test_live_requests_show_the_beginning_and_the_end(cloud: Any) -> None:
    headers = {"authorization": f"Bearer {cloud.key}"}
    async with httpx.AsyncClient(base_url=cloud.url, headers=headers, timeout=20) as http:
        async with http.stream("GET", "/atoll/v1/requests/live") as live:
            lines = live.aiter_lines()
            assert await anext(lines) == ": ready"
            client = Client(http, cloud.url, cloud.key, seed=4)
            asking = asyncio.create_task(client.ask(0.2))
            seen: list[dict[str, Any]] = []
            async for line in lines:
                seen += [json.loads(line[6:])] if line.startswith("data: ") else []
                if len(seen) == 2:
                    break
            sent = await asking
        assert sent is not None
        assert [row["status"] for row in seen] == ["open", "done"] and {row["id"] for row in seen} == {sent.id}
        assert (seen[1]["input"], seen[1]["output"]) == sent.tokens


async def test_health_and_readiness(cloud: Any) -> None:
    async with httpx.AsyncClient(base_url=cloud.url) as http:
        began = time.monotonic()
        assert (await http.get("/healthz")).json() == {"status": "ok"}
        assert (await http.get("/readyz")).json() == {"ready": True, "waiting_for": []}
        assert time.monotonic() - began < 1

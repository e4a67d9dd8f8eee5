"""Keys with a policy, receipts and the audit, over HTTP."""

from __future__ import annotations

import re
import time
from base64 import urlsafe_b64decode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from support import OTHER_SECRET, SECRET, House, running

from atoll.core.places import Region
from atoll.core.types import Entry, Key, Limits, Usage
from atoll.gateway import audit as auditing
from atoll.gateway.admin import Admin, new_key
from atoll.gateway.audit import Audit
from atoll.gateway.metrics import Metrics
from atoll.gateway.places import Places
from atoll.gateway.placing import Placing
from atoll.gateway.receipts import open_signer, verify
from atoll.gateway.rest import build_rest

WORLD = {
    "eu-west-1": Region("eu-west-1", "Dublin", "IE", 53.3, -6.3, "live", "IE", ("eu",)),
    "us-east-1": Region("us-east-1", "Ashburn", "US", 39.0, -77.5, "live", "US", ("us",)),
}
OLD = Entry("old", "key_test", "talker", "here", "/v1/chat/completions", 100.0, "done")
GOOD = Entry(
    "good", "key_test", "talker", "eu-west-1", "/v1/chat/completions", 200.0, "done", Usage(3, 5), 7, 200, 1.0, 2.0,
    path="eu-west-1:5", stored_in="eu-west-1", rule="process_in=eu store_in=eu",
)  # fmt: skip
BAD = GOOD._replace(id="bad", created_at=300.0, region="us-east-1", path="us-east-1:5")


@asynccontextmanager
async def cloud(tmp_path: Path) -> AsyncIterator[tuple[House, httpx.AsyncClient]]:
    """A gateway and a client that is its admin. The library and the fleet of regions are not asked for anything."""
    async with running() as house:
        key, secret = new_key("admin", "admin", Limits())
        house.gateway.exchange.accounts.put(key)
        house.gateway.exchange.placing = Placing(WORLD, "eu-west-1")
        unused: Any = None
        admin = Admin(house.gateway, house.store.keys, unused, "memory", time.time())
        audit = Audit(admin, open_signer(tmp_path))
        metrics = Metrics(house.gateway.exchange.running)
        house.gateway.rest = build_rest([Places(admin, unused), audit, admin], metrics, tmp_path, list)
        async with httpx.AsyncClient(base_url=house.url, headers={"authorization": f"Bearer {secret}"}) as client:
            yield house, client


def of(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


async def test_a_key_takes_and_shows_its_policy(tmp_path: Path):
    async with cloud(tmp_path) as (house, client):
        plain = (await client.post("/atoll/v1/keys", json={"name": "plain"})).json()
        anywhere = {"process_in": [], "store_in": [], "on_unavailable": "reject"}
        policy = {"residency": anywhere, "recovery": "exact", "on_mismatch": "fail", "priority": 5}
        assert {name: plain[name] for name in policy} == policy
        wanted = {"residency": {"process_in": ["EU", "us-east-1"]}, "recovery": "hot", "priority": 0}
        made = (await client.post("/atoll/v1/keys", json={"name": "strict", **wanted})).json()
        assert made["residency"] == anywhere | {"process_in": ["eu", "us-east-1"]}
        change = {"residency": {"store_in": ["ie"], "on_unavailable": "queue"}, "on_mismatch": "restart"}
        changed = (await client.patch(f"/atoll/v1/keys/{made['id']}", json=change)).json()
        residency = {"process_in": ["eu", "us-east-1"], "store_in": ["ie"], "on_unavailable": "queue"}
        expected = {"residency": residency, "recovery": "hot", "on_mismatch": "restart", "priority": 0}
        assert {name: changed[name] for name in policy} == expected
        renamed = (await client.patch(f"/atoll/v1/keys/{made['id']}", json={"name": "new"})).json()
        assert renamed == changed | {"name": "new"}
        cleared = (await client.patch(f"/atoll/v1/keys/{made['id']}", json={"residency": {"process_in": []}})).json()
        assert cleared["residency"] == residency | {"process_in": []}
        listed = {k["id"]: k for k in (await client.get("/atoll/v1/keys")).json()["data"]}
        assert listed[made["id"]]["priority"] == 0
        stored: dict[str, Key] = {k.id: k for k in await house.store.keys.all()}
        assert stored[made["id"]].policy.residency.store_in == ("ie",)


@pytest.mark.parametrize(
    ("policy", "field", "rule"),
    [
        ({"residency": {"process_in": ["mars"]}}, "residency.process_in", "'mars', which is not known here"),
        ({"residency": {"store_in": ["eu", "mars"]}}, "residency.store_in", "regions eu-west-1, us-east-1"),
        ({"residency": {"store_in": ["no such place"]}}, "residency.store_in", "pattern"),
        ({"residency": {"process_in": "eu"}}, "residency.process_in", "list"),
        ({"residency": {"on_unavailable": "wait"}}, "residency.on_unavailable", "'reject' or 'queue'"),
        ({"residency": {"where": []}}, "residency.where", "not"),
        ({"residency": None}, "residency", "dictionary|object"),
        ({"recovery": "quick"}, "recovery", "'exact', 'fast', 'hot' or 'none'"),
        ({"on_mismatch": "guess"}, "on_mismatch", "'fail', 'continue' or 'restart'"),
        ({"priority": 10}, "priority", "less than or equal to 9"),
        ({"priority": -1}, "priority", "greater than or equal to 0"),
    ],
    ids=str,
)
async def test_a_policy_that_cannot_be_is_refused_by_name(tmp_path: Path, policy: dict, field: str, rule: str):
    async with cloud(tmp_path) as (house, client):
        made = (await client.post("/atoll/v1/keys", json={"name": "k"})).json()
        for answer in (
            await client.post("/atoll/v1/keys", json={"name": "k", **policy}),
            await client.patch(f"/atoll/v1/keys/{made['id']}", json=policy),
        ):
            assert answer.status_code == 400
            assert field in answer.json()["error"]["param"]
            assert re.search(rule, answer.json()["error"]["message"])
        assert len(await house.store.keys.all()) == 1


async def test_requests_tell_where_they_went(tmp_path: Path):
    async with cloud(tmp_path) as (house, client):
        await house.store.ledger.record(GOOD)
        [row] = (await client.get("/atoll/v1/requests")).json()["data"]
        assert (row["path"], row["stored_in"], row["rule"], row["grade"]) == (GOOD.path, "eu-west-1", GOOD.rule, "")


async def test_pages_of_requests_leave_out_none_of_one_moment(tmp_path: Path):
    async with cloud(tmp_path) as (house, client):
        for id in "abcde":
            await house.store.ledger.record(GOOD._replace(id=id))
        seen, page = [], {"next": {}}
        while page["next"] is not None:
            page = (await client.get("/atoll/v1/requests", params={"limit": 2, **page["next"]})).json()
            seen += [row["id"] for row in page["data"]]
        assert seen == ["e", "d", "c", "b", "a"]
        alone = await client.get("/atoll/v1/requests", params={"before_id": "c"})
        assert (alone.status_code, alone.json()["error"]["param"]) == (400, "before_id")


async def test_a_receipt_is_its_owners_and_verifies(tmp_path: Path):
    async with cloud(tmp_path) as (house, client):
        await house.store.ledger.record(GOOD)
        await house.store.ledger.record(GOOD._replace(id="runs", status="open"))
        key = (await client.get("/atoll/v1/receipts/key", headers={"authorization": ""})).json()
        public = urlsafe_b64decode(key["public_key"] + "=")
        for headers in (of(SECRET), {}):
            answer = await client.get("/atoll/v1/requests/good/receipt", headers=headers)
            verify(answer.json(), public)
            assert answer.json()["processed"] == [{"region": "eu-west-1", "tokens": 5}]
        foreign = await client.get("/atoll/v1/requests/good/receipt", headers=of(OTHER_SECRET))
        absent = await client.get("/atoll/v1/requests/none/receipt", headers=of(SECRET))
        assert (foreign.status_code, absent.status_code) == (404, 404)
        assert (await client.get("/atoll/v1/requests/runs/receipt")).status_code == 409


async def test_the_audit_lists_what_broke_its_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    async with cloud(tmp_path) as (house, client):
        assert (await client.get("/atoll/v1/audit", headers=of(SECRET))).status_code == 403
        empty = {"rows": 0, "judged": 0, "violations": 0, "data": [], "next": None}
        assert (await client.get("/atoll/v1/audit")).json() == empty
        for entry in (OLD, GOOD, BAD):
            await house.store.ledger.record(entry)
        told = (await client.get("/atoll/v1/audit")).json()
        assert (told["rows"], told["judged"], told["violations"], told["next"]) == (3, 2, 1, None)
        [broken] = told["data"]
        assert (broken["entry_id"], broken["axis"], broken["region"]) == ("bad", "process_in", "us-east-1")
        monkeypatch.setattr(auditing, "PAGE", 1)
        monkeypatch.setattr(auditing, "ROWS", 2)
        first = (await client.get("/atoll/v1/audit")).json()
        assert (first["rows"], first["violations"]) == (2, 1)
        rest = (await client.get("/atoll/v1/audit", params=first["next"])).json()
        assert (rest["rows"], rest["judged"], rest["violations"], rest["next"]) == (1, 0, 0, None)


async def test_a_body_in_pieces_is_read_no_further_than_its_limit(tmp_path: Path):
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b" " * 65536

    async with cloud(tmp_path) as (_, client):
        told = await client.post("/atoll/v1/keys", content=pieces())
        assert told.status_code == 400
        assert "at most 1048576 bytes" in told.json()["error"]["message"]

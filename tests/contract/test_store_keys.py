"""The contracts of keys and stored responses, over memory, SQLite and PostgreSQL."""

from __future__ import annotations

from dataclasses import replace

import pytest

from atoll.core.errors import Conflict, NotFound
from atoll.core.places import Residency
from atoll.core.types import Key, Limits, Policy
from atoll.store import Store, responses

POLICY = Policy(Residency(("eu", "us-east-1"), ("eu",), "queue"), "hot", "restart", 9)
KEY = Key("k1", "laptop", "admin", "ab" * 32, "…f3a9", Limits(10, 2000, 5_000_000_000), 100.5, 200.25, None, POLICY)
PLAIN = Key("k2", "reader", "user", "cd" * 32, "…0001", created_at=50.0)


async def test_keys_come_back_oldest_first(store: Store):
    await store.keys.add(KEY)
    await store.keys.add(PLAIN)
    assert await store.keys.all() == [PLAIN, KEY]


async def test_an_id_or_a_secret_is_taken_once(store: Store):
    await store.keys.add(KEY)
    with pytest.raises(Conflict, match="k1"):
        await store.keys.add(replace(PLAIN, id="k1"))
    with pytest.raises(Conflict, match="same secret"):
        await store.keys.add(replace(PLAIN, digest=KEY.digest))
    await store.keys.add(PLAIN)
    with pytest.raises(Conflict, match="same secret"):
        await store.keys.replace(replace(PLAIN, digest=KEY.digest))
    assert await store.keys.all() == [PLAIN, KEY]


async def test_replace_changes_one_key(store: Store):
    await store.keys.add(KEY)
    await store.keys.add(PLAIN)
    revoked = replace(KEY, revoked_at=150.0, limits=Limits(), policy=Policy(priority=0))
    await store.keys.replace(revoked)
    assert await store.keys.all() == [PLAIN, revoked]
    with pytest.raises(NotFound, match="k9"):
        await store.keys.replace(replace(KEY, id="k9", digest="ef" * 32))


async def test_a_response_is_its_owners_until_it_expires(store: Store):
    body = {"id": "resp_1", "output": [{"type": "message", "text": "grüße"}], "n": 1.5}
    await store.responses.put("resp_1", "k1", body, expires_at=100.0)
    assert await store.responses.get("resp_1", "k1", now=99.9) == body
    for id, key_id, now in (("resp_1", "k2", 0.0), ("resp_1", "k1", 100.0), ("resp_2", "k1", 0.0)):
        with pytest.raises(NotFound, match=id):
            await store.responses.get(id, key_id, now)


async def test_a_response_is_replaced_by_its_owner_only(store: Store):
    await store.responses.put("resp_1", "k1", {"n": 1}, 100.0)
    await store.responses.put("resp_1", "k1", {"n": 2}, 200.0)
    assert await store.responses.get("resp_1", "k1", 150.0) == {"n": 2}
    with pytest.raises(Conflict, match="resp_1"):
        await store.responses.put("resp_1", "k2", {"n": 3}, 300.0)


@pytest.mark.parametrize(("bound", "value"), [("MOST", 3), ("MOST_BYTES", 3 * 110)])
async def test_the_oldest_responses_of_a_key_make_room(
    store: Store, monkeypatch: pytest.MonkeyPatch, bound: str, value: int
):
    monkeypatch.setattr(responses, bound, value)
    await store.responses.put("other", "k2", {"x": "y" * 100}, 1.0)
    for n in range(5):
        await store.responses.put(f"resp_{n}", "k1", {"x": "y" * 100}, 100.0 + n)
    kept = [n for n in range(5) if await stored(store, f"resp_{n}", "k1")]
    assert kept == [2, 3, 4] and await stored(store, "other", "k2")
    await store.responses.put("large", "k1", {"x": "y" * 1000}, 200.0)
    assert await stored(store, "large", "k1"), "the newest always stays"


async def stored(store: Store, id: str, key_id: str) -> bool:
    try:
        return bool(await store.responses.get(id, key_id, 0.0))
    except NotFound:
        return False


async def test_deleted_and_purged_responses_are_gone(store: Store):
    for n in range(3):
        await store.responses.put(f"resp_{n}", "k1", {"n": n}, 100.0 + n)
    with pytest.raises(NotFound):
        await store.responses.delete("resp_2", "k2")
    await store.responses.delete("resp_2", "k1")
    with pytest.raises(NotFound):
        await store.responses.delete("resp_2", "k1")
    assert await store.responses.purge(100.0) == 1
    assert await store.responses.get("resp_1", "k1", 0.0) == {"n": 1}
    with pytest.raises(NotFound):
        await store.responses.get("resp_0", "k1", 0.0)

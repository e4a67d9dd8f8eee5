"""The contract of operators' decisions about regions, over memory, SQLite and PostgreSQL."""

from __future__ import annotations

from atoll.store import Store, open_store


async def test_the_latest_decision_of_a_region_holds(store: Store):
    assert await store.places.all() == {}
    await store.places.put("us-east-1", "draining", 20.5)
    await store.places.put("eu-west-3", "live", 10.0)
    await store.places.put("us-east-1", "retired", 21.0)
    await store.places.put("us-east-1", "live", 20.75)
    assert list((await store.places.all()).items()) == [("eu-west-3", ("live", 10.0)), ("us-east-1", ("retired", 21.0))]
    await store.places.put("us-east-1", "live", 21.0)
    assert (await store.places.all())["us-east-1"] == ("live", 21.0)


async def test_decisions_outlive_a_restart(durable_url: str):
    store = await open_store(durable_url)
    await store.places.put("eu-west-3", "live", 10.0)
    await store.close()
    store = await open_store(durable_url)
    assert await store.places.all() == {"eu-west-3": ("live", 10.0)}
    await store.close()

"""The contract of operators' decisions about regions, over memory, SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from atoll.core.places import INTRODUCED_S, Machine
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


async def test_the_first_who_says_where_the_database_stands_is_right(store: Store):
    assert await store.places.stands_in("eu-west-3") == "eu-west-3"
    assert await store.places.stands_in("us-east-1") == "eu-west-3"
    assert await store.places.all() == {}


async def test_regions_that_joined_are_remembered(store: Store):
    one, other = Machine("https://10.0.0.1:7701", "ca of one"), Machine("https://10.0.0.2:7701", "ca of another")
    assert await store.places.joined() == {}
    await store.places.stands_in("eu-west-3")
    for id, machine in (("x-fr-1", one), ("joined", other), ("x-fr-1", other)):
        await store.places.join(id, machine)
    assert await store.places.joined() == {"x-fr-1": other, "joined": other}
    await store.places.part("x-fr-1")
    await store.places.part("x-fr-1")
    assert await store.places.joined() == {"joined": other}


async def test_authorities_of_gateways_are_known_for_a_month(store: Store):
    await store.places.introduce("one", 1000.0)
    await store.places.introduce("two", 2000.0)
    await store.places.introduce("one", 3000.0)
    assert await store.places.introduced() == {"one": 3000.0, "two": 2000.0}
    await store.places.introduce("three", 2000.0 + INTRODUCED_S)
    assert await store.places.introduced() == {"one": 3000.0, "three": 2000.0 + INTRODUCED_S}
    assert await store.places.joined() == {}


async def test_where_the_database_stands_outlives_a_restart(durable_url: str):
    store = await open_store(durable_url)
    await store.places.stands_in("eu-west-3")
    await store.close()
    store = await open_store(durable_url)
    assert await store.places.stands_in("us-east-1") == "eu-west-3"
    await store.close()


async def test_gateways_that_start_at_once_agree_where_it_stands(new_url: Callable[[str], str]):
    url, said = new_url("postgresql"), ("eu-west-3", "us-east-1", "x-fr-1")
    stores = await asyncio.gather(*(open_store(url) for _ in said))
    told = await asyncio.gather(*(s.places.stands_in(r) for s, r in zip(stores, said, strict=True)))
    assert len(set(told)) == 1 and told[0] in said
    for store in stores:
        await store.close()


async def test_decisions_outlive_a_restart(durable_url: str):
    store = await open_store(durable_url)
    await store.places.put("eu-west-3", "live", 10.0)
    await store.close()
    store = await open_store(durable_url)
    assert await store.places.all() == {"eu-west-3": ("live", 10.0)}
    await store.close()

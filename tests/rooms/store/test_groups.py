"""Group commit as a conversation: records in, batches out, results back."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

import pytest

from atoll.core.errors import Overloaded
from atoll.core.types import Entry
from atoll.store.groups import PATIENCE, Group, Groups

OPEN = Entry("a", "key", "max", "eu", "/v1/chat", 1.0)
DONE = OPEN._replace(status="done", cost=5)
FULL = Overloaded("disk full at /data/atoll.db")


class Disk:
    """Shows each batch as it is handed over; the test says when and how it ends."""

    def __init__(self) -> None:
        self.batches: list[dict[str, Entry]] = []
        self._done: Callable[[object, object], None] | None = None
        self._handed_over = asyncio.Event()

    def commit(self, batch: dict[str, Entry], done: Callable[[object, object], None]) -> None:
        assert self._done is None, "two batches at once"
        self.batches.append(dict(batch))
        self._done = done
        self._handed_over.set()

    async def holds(self, batches: int) -> None:
        while len(self.batches) < batches:
            self._handed_over.clear()
            await self._handed_over.wait()

    async def end(self, error: Overloaded | None = None) -> None:
        done, self._done = self._done, None
        done(None, error)
        await asyncio.sleep(0)


def named(*ids: str) -> dict[str, Entry]:
    return {id: OPEN._replace(id=id) for id in ids}


async def waited_for(group: Group) -> asyncio.Future[None]:
    """Somebody begins to wait for `group`."""
    waiter = asyncio.ensure_future(group)
    for _ in range(3):
        await asyncio.sleep(0)
    return waiter


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
async def groups(disk: Disk) -> Groups:
    return Groups(disk.commit, limit=4, linger=0.0, large=2)


async def test_a_batch_leaves_when_somebody_waits_and_the_next_waits_its_turn(groups: Groups, disk: Disk):
    first = [groups.add(e) for e in named("a", "b").values()]
    assert first[0] is first[1]
    await asyncio.sleep(0)
    assert disk.batches == []
    waiting = await waited_for(first[0])
    second = await waited_for(groups.add(OPEN._replace(id="c")))
    assert disk.batches == [named("a", "b")]
    await disk.end()
    await waiting
    assert disk.batches == [named("a", "b"), named("c")]
    await disk.end()
    await second


async def test_a_batch_that_nobody_waits_for_leaves_after_a_moment(groups: Groups, disk: Disk):
    groups.add(OPEN)
    await asyncio.sleep(PATIENCE / 2)
    assert disk.batches == []
    groups.add(OPEN._replace(id="b"))
    async with asyncio.timeout(5):
        await disk.holds(1)
    assert disk.batches == [named("a", "b")]


async def test_an_open_row_and_its_end_are_written_once(groups: Groups, disk: Disk):
    groups.add(OPEN)
    await waited_for(groups.add(DONE))
    assert disk.batches == [{"a": DONE}]


async def test_after_a_large_batch_the_next_collects_for_a_moment(disk: Disk):
    groups = Groups(disk.commit, limit=4, linger=0.02, large=2)
    groups.add(OPEN)
    await waited_for(groups.add(OPEN._replace(id="b")))
    await waited_for(groups.add(OPEN._replace(id="c")))
    await disk.end()
    await waited_for(groups.add(OPEN._replace(id="d")))
    assert len(disk.batches) == 1
    async with asyncio.timeout(5):
        await disk.holds(2)
    assert disk.batches[1] == named("c", "d")


async def test_a_failed_batch_is_written_again_with_the_newest_rows(groups: Groups, disk: Disk):
    lost = groups.add(OPEN)
    groups.add(OPEN._replace(id="b"))
    first = await waited_for(lost)
    later = await waited_for(groups.add(DONE))
    groups.add(OPEN._replace(id="c"))
    await disk.end(FULL)
    for waiter in (first, lost):
        with pytest.raises(Overloaded, match="disk full at /data") as caught:
            await waiter
        assert caught.value.retry_after
    async with asyncio.timeout(5):
        await disk.holds(2)
    assert disk.batches[1] == named("b", "c") | {"a": DONE}
    await disk.end()
    await later
    assert len(disk.batches) == 2


async def test_while_writing_fails_requests_may_end_but_not_begin(groups: Groups, disk: Disk):
    waiting = await waited_for(groups.add(OPEN))
    await disk.end(FULL)
    with pytest.raises(Overloaded, match="disk full"):
        await waiting
    with pytest.raises(Overloaded, match="disk full"):
        groups.add(OPEN._replace(id="b"))
    ended = await waited_for(groups.add(DONE))
    async with asyncio.timeout(5):
        await disk.holds(2)
    await disk.end()
    await ended
    groups.add(OPEN._replace(id="b"))


async def test_pauses_grow_while_writing_fails(groups: Groups, disk: Disk):
    groups.add(OPEN)
    loop, times = asyncio.get_running_loop(), []
    for n in range(4):
        await disk.holds(n + 1)
        times.append(loop.time())
        await disk.end(FULL)
    pauses = [b - a for a, b in itertools.pairwise(times)]
    assert pauses[0] >= 0.045
    assert pauses[1] >= 0.095
    assert pauses[2] >= 0.195
    close = asyncio.create_task(groups.close())
    await asyncio.sleep(0)
    await disk.end()
    assert await close == 0


async def test_the_backlog_is_bounded_but_takes_the_ends_of_accepted_requests(groups: Groups, disk: Disk):
    await waited_for(groups.add(OPEN._replace(id="in-flight")))
    for id in "abcd":
        groups.add(OPEN._replace(id=id))
    with pytest.raises(Overloaded, match="4 ledger rows wait"):
        groups.add(OPEN._replace(id="e"))
    groups.add(DONE)
    for id in "efgh":
        groups.add(DONE._replace(id=id))
    with pytest.raises(Overloaded, match="8 ledger rows wait"):
        groups.add(DONE._replace(id="i"))
    await disk.end()
    async with asyncio.timeout(5):
        await disk.holds(2)
    assert set(disk.batches[1]) == set("abcdefgh")
    assert disk.batches[1]["a"] == DONE


async def test_closing_writes_what_is_pending(groups: Groups, disk: Disk):
    await waited_for(groups.add(OPEN))
    groups.add(OPEN._replace(id="b"))
    closing = asyncio.create_task(groups.close())
    await asyncio.sleep(0)
    await disk.end()
    await asyncio.sleep(0)
    assert disk.batches == [named("a"), named("b")]
    await disk.end()
    assert await closing == 0


async def test_closing_tries_twice_and_counts_what_is_left(groups: Groups, disk: Disk):
    groups.add(OPEN)
    groups.add(OPEN._replace(id="b"))
    closing = asyncio.create_task(groups.close())
    for _ in range(2):
        await asyncio.sleep(0)
        await disk.end(FULL)
    assert await closing == 2
    assert disk.batches == [named("a", "b")] * 2

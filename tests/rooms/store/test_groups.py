"""Group commit as a conversation: records in, batches out, results back."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest

from atoll.core.errors import Overloaded
from atoll.core.types import Entry
from atoll.store.groups import Groups

OPEN = Entry("a", "key", "max", "eu", "/v1/chat", 1.0)
DONE = replace(OPEN, status="done", cost=5)
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
    return {id: replace(OPEN, id=id) for id in ids}


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
async def groups(disk: Disk) -> Groups:
    return Groups(disk.commit, limit=4, linger=0.0, large=2)


async def test_records_of_one_turn_share_a_batch_and_the_next_waits_its_turn(groups: Groups, disk: Disk):
    first = [groups.add(e) for e in named("a", "b").values()]
    await asyncio.sleep(0)
    second = groups.add(replace(OPEN, id="c"))
    await asyncio.sleep(0)
    assert disk.batches == [named("a", "b")]
    await disk.end()
    assert first[0] is first[1]
    await first[0]
    assert disk.batches == [named("a", "b"), named("c")]
    await disk.end()
    await second


async def test_an_open_row_and_its_end_are_written_once(groups: Groups, disk: Disk):
    groups.add(OPEN)
    groups.add(DONE)
    await asyncio.sleep(0)
    assert disk.batches == [{"a": DONE}]


async def test_a_failed_batch_is_written_again_with_the_newest_rows(groups: Groups, disk: Disk):
    lost = groups.add(OPEN)
    groups.add(replace(OPEN, id="b"))
    await asyncio.sleep(0)
    groups.add(DONE)
    later = groups.add(replace(OPEN, id="c"))
    await disk.end(FULL)
    for _ in range(2):
        with pytest.raises(Overloaded, match="disk full at /data") as caught:
            await lost
        assert caught.value.retry_after
    await asyncio.sleep(0.1)
    assert disk.batches[1] == named("b", "c") | {"a": DONE}
    await disk.end()
    await later
    assert len(disk.batches) == 2


async def test_pauses_grow_while_writing_fails(groups: Groups, disk: Disk):
    groups.add(OPEN)
    loop, times = asyncio.get_running_loop(), []
    for n in range(4):
        await disk.holds(n + 1)
        times.append(loop.time())
        await disk.end(FULL)
    pauses = [b - a for a, b in itertools.pairwise(times)]
    assert pauses[0] >= 0.045
    assert pauses[1] > 1.5 * pauses[0]
    assert pauses[2] > 1.5 * pauses[1]
    close = asyncio.create_task(groups.close())
    await asyncio.sleep(0)
    await disk.end()
    assert await close == 0


async def test_the_backlog_is_bounded_but_takes_the_ends_of_accepted_requests(groups: Groups, disk: Disk):
    groups.add(replace(OPEN, id="in-flight"))
    await asyncio.sleep(0)
    for id in "abcd":
        groups.add(replace(OPEN, id=id))
    with pytest.raises(Overloaded, match="4 ledger rows wait"):
        groups.add(replace(OPEN, id="e"))
    groups.add(DONE)
    for id in "efgh":
        groups.add(replace(DONE, id=id))
    with pytest.raises(Overloaded, match="8 ledger rows wait"):
        groups.add(replace(DONE, id="i"))
    await disk.end()
    assert set(disk.batches[1]) == set("abcdefgh")
    assert disk.batches[1]["a"] == DONE


async def test_closing_writes_what_is_pending(groups: Groups, disk: Disk):
    groups.add(OPEN)
    await asyncio.sleep(0)
    groups.add(replace(OPEN, id="b"))
    closing = asyncio.create_task(groups.close())
    await asyncio.sleep(0)
    await disk.end()
    await asyncio.sleep(0)
    assert disk.batches == [named("a"), named("b")]
    await disk.end()
    assert await closing == 0


async def test_closing_tries_twice_more_and_counts_what_is_left(groups: Groups, disk: Disk):
    groups.add(OPEN)
    groups.add(replace(OPEN, id="b"))
    closing = asyncio.create_task(groups.close())
    for _ in range(3):
        await asyncio.sleep(0)
        await disk.end(FULL)
    assert await closing == 2
    assert disk.batches == [named("a", "b")] * 3

"""Blocks that are kept, and fetched before they are wanted."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from orbital_relay.media.base import StoreError
from orbital_relay.media.read_ahead import BLOCK_BYTES, ReadAhead

LIMIT_S = 10


class Blob:
    """A blob far away: counts what is fetched of it; `open` lets fetches end, `error` is what they end with."""

    def __init__(self, blocks: float = 4) -> None:
        self.data = bytes(number % 251 for number in range(1_000)) * (int(blocks * BLOCK_BYTES) // 1_000 + 1)
        self.data = self.data[: int(blocks * BLOCK_BYTES)]
        self.fetched: list[tuple[str, int]] = []
        self.under_way = 0
        self.most_under_way = 0
        self.open = asyncio.Event()
        self.open.set()
        self.error: Exception | None = None

    async def fetch(self, key: str, offset: int, length: int) -> bytes:
        self.fetched.append((key, offset // BLOCK_BYTES))
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await self.open.wait()
            if self.error:
                raise self.error
            return self.data[offset : offset + length]
        finally:
            self.under_way -= 1

    async def waited_for(self) -> None:
        """Return once something is under way."""
        async with asyncio.timeout(LIMIT_S):
            while not self.under_way:
                await asyncio.sleep(0)


@asynccontextmanager
async def reading(blob: Blob, blocks: int) -> AsyncIterator[ReadAhead]:
    ahead = ReadAhead(blocks * BLOCK_BYTES, blob.fetch)
    try:
        async with asyncio.timeout(LIMIT_S):
            yield ahead
    finally:
        await ahead.close()
    assert not blob.under_way


@pytest.mark.parametrize("size", [0, 0.25, 1, 1.5, 2, 3])
@pytest.mark.parametrize("blocks", [0, 1, 2, 9])
async def test_what_is_read_is_what_is_there(size: float, blocks: int) -> None:
    blob = Blob(size)
    end = len(blob.data)
    places = [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, end - 1, end, end + 1, end + 5 * BLOCK_BYTES]
    async with reading(blob, blocks) as ahead:
        for offset in (place for place in places if place >= 0):
            for length in (0, 1, 65_536, BLOCK_BYTES, BLOCK_BYTES + 1):
                assert await ahead.read("key", offset, length) == blob.data[offset : offset + length]


async def test_a_block_is_fetched_once_whoever_reads_it() -> None:
    blob = Blob()
    async with reading(blob, 8) as ahead:
        await asyncio.gather(*(ahead.read("key", number * 65_536, 65_536) for number in range(16)))
        await ahead.read("key", 0, 65_536)
        assert blob.fetched == [("key", 0)]


async def test_whoever_reads_on_finds_the_next_block() -> None:
    blob = Blob()
    async with reading(blob, 8) as ahead:
        for offset in range(0, len(blob.data), 524_288):
            assert await ahead.read("key", offset, 524_288) == blob.data[offset : offset + 524_288]
            await asyncio.sleep(0)
            expected = offset // BLOCK_BYTES + 1 + (offset % BLOCK_BYTES >= BLOCK_BYTES // 2)
            assert blob.fetched == [("key", index) for index in range(expected)]


async def test_a_failure_is_not_kept_and_told_to_all_who_waited() -> None:
    blob = Blob()
    blob.error = StoreError("away")
    async with reading(blob, 8) as ahead:
        outcomes = await asyncio.gather(*(ahead.read("key", 0, 10) for _ in range(3)), return_exceptions=True)
        assert [str(outcome) for outcome in outcomes] == ["away"] * 3
        assert len(blob.fetched) == 1
        blob.error = None
        assert await ahead.read("key", 0, 10) == blob.data[:10]


async def test_a_failure_that_nobody_waited_for_is_nobodys() -> None:
    blob = Blob()
    async with reading(blob, 8) as ahead:
        await ahead.read("key", BLOCK_BYTES - 10, 10)
        blob.error = StoreError("away")
        await asyncio.sleep(0.01)
        blob.error = None
        assert await ahead.read("key", BLOCK_BYTES, 10) == blob.data[BLOCK_BYTES : BLOCK_BYTES + 10]


async def test_who_gives_up_takes_nothing_from_others() -> None:
    blob = Blob()
    blob.open.clear()
    async with reading(blob, 8) as ahead:
        first, second = (asyncio.create_task(ahead.read("key", 0, 10)) for _ in range(2))
        await blob.waited_for()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        blob.open.set()
        assert await second == blob.data[:10]
        assert len(blob.fetched) == 1


async def test_a_block_that_is_forgotten_is_fetched_anew_and_still_given_to_who_waits() -> None:
    blob = Blob()
    blob.open.clear()
    async with reading(blob, 8) as ahead:
        waiting = asyncio.create_task(ahead.read("key", 0, 10))
        other = asyncio.create_task(ahead.read("other", 0, 10))
        await blob.waited_for()
        await asyncio.sleep(0)
        ahead.forget("key")
        blob.open.set()
        assert await waiting == await other == blob.data[:10]
        await ahead.read("key", 0, 10)
        await ahead.read("other", 0, 10)
        assert blob.fetched == [("key", 0), ("other", 0), ("key", 0)]


async def test_the_blocks_used_longest_ago_give_way() -> None:
    blob = Blob()
    async with reading(blob, 3) as ahead:
        for key in ("a", "b", "c", "a", "d"):
            await ahead.read(key, 0, 10)
        blob.fetched.clear()
        for key in ("a", "c", "d"):
            await ahead.read(key, 0, 10)
        assert not blob.fetched
        await ahead.read("b", 0, 10)
        assert blob.fetched == [("b", 0)]


async def test_no_more_is_fetched_ahead_than_there_is_room_for() -> None:
    blob = Blob()
    async with reading(blob, 3) as ahead:
        for key in ("a", "b", "c"):
            await ahead.read(key, 0, 10)
        blob.open.clear()
        readers = [asyncio.create_task(ahead.read(key, BLOCK_BYTES - 10, 10)) for key in ("c", "b", "a")]
        await blob.waited_for()
        await asyncio.sleep(0.01)
        waiting = sum(not reader.done() for reader in readers)
        assert blob.most_under_way - waiting <= 3
        blob.open.set()
        await asyncio.gather(*readers)


async def test_who_waits_when_it_is_closed_is_told_so() -> None:
    blob = Blob()
    blob.open.clear()
    ahead = ReadAhead(8 * BLOCK_BYTES, blob.fetch)
    waiting = asyncio.create_task(ahead.read("key", 0, 10))
    await blob.waited_for()
    await ahead.close()
    with pytest.raises(StoreError, match="closed"):
        await waiting
    assert not blob.under_way

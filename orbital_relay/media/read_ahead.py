"""Blocks of blobs that were read lately, for a store that takes long to answer: each is fetched once, whoever wants it.

Whoever reads a blob in order finds the next block there, or on its way: a request for each 512 KiB would spend its time
waiting.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final

from orbital_relay.media.base import StoreError

BLOCK_BYTES: Final = 3 * 1024 * 1024


class ReadAhead:
    """Reads through `fetch(key, offset, length)`, and keeps blocks within a budget of bytes; 0: none.

    What is being fetched ahead is within the budget too; what is waited for is bounded by how many read at once.
    """

    def __init__(self, limit_bytes: int, fetch: Callable[[str, int, int], Coroutine[Any, Any, bytes]]) -> None:
        self._limit = limit_bytes // BLOCK_BYTES
        self._fetch = fetch
        self._blocks: OrderedDict[tuple[str, int], asyncio.Task[bytes]] = OrderedDict()
        self._fetching: set[asyncio.Task[bytes]] = set()

    async def read(self, key: str, offset: int, length: int) -> bytes:
        """The bytes of a range, as far as the blob has them."""
        if not self._limit:
            return await self._fetch(key, offset, length) if length else b""
        found: list[bytes] = []
        while length:
            index, start = divmod(offset, BLOCK_BYTES)
            block = await _outcome(self._block(key, index))
            piece = block[start : start + length]
            found.append(piece)
            offset, length = offset + len(piece), length - len(piece)
            if len(block) < BLOCK_BYTES:
                break
            if start + len(piece) > BLOCK_BYTES // 2:
                _unawaited = self._block(key, index + 1)
        return b"".join(found)

    def forget(self, key: str) -> None:
        """Drop a blob's blocks; whoever waits for one still gets it."""
        for known in [known for known in self._blocks if known[0] == key]:
            del self._blocks[known]

    async def close(self) -> None:
        """End what is being fetched."""
        self._blocks.clear()
        for task in self._fetching:
            task.cancel()
        if self._fetching:
            await asyncio.wait(self._fetching)

    def _block(self, key: str, index: int) -> "asyncio.Task[bytes]":
        """A block, or its fetching; the blocks that were used longest ago give way."""
        block = self._blocks.get((key, index))
        if block is None:
            fetching = self._fetch(key, index * BLOCK_BYTES, BLOCK_BYTES)
            block = asyncio.create_task(fetching, name="media read-ahead")
            self._fetching.add(block)
            block.add_done_callback(partial(self._fetched, (key, index)))
            self._blocks[key, index] = block
        self._blocks.move_to_end((key, index))
        surplus = max(0, len(self._blocks) - self._limit)
        for old in [old for old, task in self._blocks.items() if task.done()][:surplus]:
            del self._blocks[old]
        return block

    def _fetched(self, known: tuple[str, int], block: "asyncio.Task[bytes]") -> None:
        """Whatever failed is fetched anew when it is asked for again."""
        self._fetching.discard(block)
        if (block.cancelled() or block.exception() is not None) and self._blocks.get(known) is block:
            del self._blocks[known]


async def _outcome(block: "asyncio.Task[bytes]") -> bytes:
    """Wait for a block; whoever gives up takes it from nobody else."""
    await asyncio.wait((block,))
    if block.cancelled():
        raise StoreError("the store is closed")
    return block.result()

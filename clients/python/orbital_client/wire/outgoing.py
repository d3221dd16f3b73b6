"""What is uploaded, as the relay is to keep it: read once, sealed, hashed, and kept until it is durable there."""

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from pathlib import Path
from typing import Final

from orbital_client.errors import BadAnswer
from orbital_client.wire.sealing import Sealing, count_segments
from orbital_protocol.media import SEGMENT_BYTES, Root

Source = str | os.PathLike[str] | bytes | AsyncIterable[bytes]
"""A file's path, its bytes, or something that brings them in pieces of any size."""

_READ_BYTES: Final = 1024 * 1024
_SKIP_BYTES: Final = 16 * SEGMENT_BYTES


async def size_of(source: Source) -> int:
    """The plaintext bytes of a source; raise TypeError for one that doesn't tell."""
    if isinstance(source, bytes):
        return len(source)
    if isinstance(source, str | os.PathLike):
        return (await asyncio.to_thread(os.stat, source)).st_size
    raise TypeError("an upload from an iterable needs size_bytes")


class Outgoing:
    """The stored bytes of one file. Raises ValueError where the source has more or fewer bytes than `plain_size`."""

    def __init__(self, source: Source, plain_size: int, sealing: Sealing) -> None:
        self.size_bytes = sealing.stored_bytes(plain_size)
        self._source = source
        self._plain_size = plain_size
        self._sealing = sealing
        self._segments = count_segments(self.size_bytes)
        self._start()

    def _start(self) -> None:
        self._pieces = _pieces_of(self._source)
        self._rest = memoryview(b"")
        self._left = self._plain_size
        self._index = 0
        self._root = Root()
        self._kept = bytearray()
        self._kept_from = 0

    async def seek(self, offset: int) -> None:
        """Go on at this offset: what comes before it is durable."""
        if offset < self._kept_from:
            if not isinstance(self._source, bytes | str | os.PathLike):
                raise BadAnswer("the relay has lost bytes that it had acknowledged, and they can't be had again")
            await self.close()
            self._start()
        while self._made < offset:
            await self._make(_SKIP_BYTES)
            self.release(min(offset, self._made))
        self.release(offset)

    async def read(self, offset: int, length: int) -> bytes:
        """So many stored bytes from this offset on, which is not before what was released; fewer at the end."""
        end = min(offset + length, self.size_bytes)
        while self._made < end:
            await self._make(end - self._made)
        return bytes(self._kept[offset - self._kept_from : end - self._kept_from])

    def release(self, offset: int) -> None:
        """What comes before this offset is durable, and is not asked for again."""
        if offset > self._kept_from:
            del self._kept[: offset - self._kept_from]
            self._kept_from = offset

    async def finish(self) -> bytes:
        """The root, once everything was read."""
        if self._left or self._rest or await self._next_piece():
            raise ValueError(f"the source has more bytes than the {self._plain_size} that it was to have")
        return self._root.digest()

    async def close(self) -> None:
        """Close what was opened here."""
        if isinstance(self._pieces, AsyncGenerator) and self._pieces is not self._source:
            await self._pieces.aclose()

    @property
    def _made(self) -> int:
        return self._kept_from + len(self._kept)

    async def _make(self, wanted: int) -> None:
        """Seal the next segments: as many as so many bytes are of."""
        count = min(count_segments(wanted), self._segments - self._index)
        plain = await self._take(min(count * self._sealing.plain_bytes, self._left))
        self._kept += await asyncio.to_thread(self._seal, plain, count)
        self._index += count

    def _seal(self, plain: bytes, count: int) -> bytearray:
        step = self._sealing.plain_bytes
        stored = bytearray()
        for number in range(count):
            index = self._index + number
            segment = plain[number * step : (number + 1) * step]
            stored += self._sealing.seal(index, index == self._segments - 1, segment)
        self._root.update(stored)
        return stored

    async def _take(self, wanted: int) -> bytes:
        """So many bytes of the source."""
        taken = bytearray()
        while len(taken) < wanted:
            if not self._rest and not await self._next_piece():
                raise ValueError(f"the source has fewer bytes than the {self._plain_size} that it was to have")
            step = wanted - len(taken)
            taken += self._rest[:step]
            self._rest = self._rest[step:]
        self._left -= wanted
        return bytes(taken)

    async def _next_piece(self) -> bool:
        """Get the next piece that is not empty; False at the end."""
        async for piece in self._pieces:
            if piece:
                self._rest = memoryview(piece)
                return True
        return False


def _pieces_of(source: Source) -> AsyncIterator[bytes]:
    if isinstance(source, bytes):
        return _whole(source)
    if isinstance(source, str | os.PathLike):
        return _read_file(Path(source))
    return aiter(source)


async def _whole(content: bytes) -> AsyncGenerator[bytes, None]:
    yield content


async def _read_file(path: Path) -> AsyncGenerator[bytes, None]:
    file = await asyncio.to_thread(path.open, "rb")
    try:
        while piece := await asyncio.to_thread(file.read, _READ_BYTES):
            yield piece
    finally:
        file.close()

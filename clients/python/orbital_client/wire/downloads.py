"""A file's way down: a few reads ahead, into a part beside the destination, which takes its place once it is right."""

import asyncio
import os
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Final

from orbital_client.errors import BadAnswer, MediaCorrupt
from orbital_client.files import replacement
from orbital_client.wire.control import Relay
from orbital_client.wire.sealing import Sealing, count_segments
from orbital_client.wire.transfers import PATIENCE_S, Pace
from orbital_client.wire.uploads import Progress
from orbital_protocol.frames import Media, MediaRead, MediaReadOk
from orbital_protocol.media import SEGMENT_BYTES, Root

_AHEAD: Final = 4
_HASH_BYTES: Final = 1024 * 1024
_NO_LINKS: Final = getattr(os, "O_NOFOLLOW", 0)


async def read_stored(relay: Relay, media: Media, offset: int) -> AsyncGenerator[bytes, None]:
    """The stored bytes of a file from this offset on, unverified, in pieces of any size."""
    pace = Pace()
    reads: deque[asyncio.Task[bytes]] = deque()
    try:
        if not media.size_bytes:
            await _read(relay, MediaRead(id=0, media_id=media.media_id, offset=0, length=0), pace)  # as for any file
        while reads or offset < media.size_bytes:
            while offset < media.size_bytes and len(reads) < _AHEAD:
                most = min(pace.piece_bytes, relay.limits.media_chunk_bytes)
                request = MediaRead(
                    id=0, media_id=media.media_id, offset=offset, length=min(most, media.size_bytes - offset)
                )
                reads.append(asyncio.create_task(_read(relay, request, pace), name="orbital-read-media"))
                offset += request.length
            data = await reads[0]
            del reads[0]
            yield data
    finally:
        for read in reads:
            read.cancel()
        await asyncio.gather(*reads, return_exceptions=True)


async def _read(relay: Relay, request: MediaRead, pace: Pace) -> bytes:
    loop = asyncio.get_running_loop()
    async with relay.places.reads:
        started = loop.time()
        data = (await relay.request(request, MediaReadOk, timeout_s=PATIENCE_S)).data
        pace.took(loop.time() - started, relay.limits.media_chunk_bytes)
    if len(data) != request.length:
        raise BadAnswer(f"the relay sent {len(data)} bytes of a file where {request.length} were asked for")
    return data


async def download(  # noqa: PLR0913  called from one place
    relay: Relay, media: Media, destination: Path, *, root: bytes, sealing: Sealing | None, on_progress: Progress | None
) -> None:
    """Bring a file to its destination; raise MediaCorrupt if its stored bytes don't have this root."""
    path = destination.with_name(f"{destination.name}.part")
    part = await asyncio.to_thread(_Part, path, media.size_bytes)
    try:
        if on_progress is not None:
            on_progress(part.size, media.size_bytes)
        async with aclosing(read_stored(relay, media, part.size)) as pieces:
            async for data in pieces:
                await asyncio.to_thread(part.append, data)
                if on_progress is not None:
                    on_progress(part.size, media.size_bytes)
        await asyncio.to_thread(part.sync)
    finally:
        part.close()
    if part.root != root:
        await asyncio.to_thread(path.unlink)
        raise MediaCorrupt(media.media_id)
    await asyncio.to_thread(_put_in_place, path, media.size_bytes, sealing, destination)


class _Part:
    """The stored bytes that have come so far; of those of an earlier try, the whole segments. Used in threads."""

    def __init__(self, path: Path, whole_size: int) -> None:
        flags = os.O_RDWR | os.O_CREAT | _NO_LINKS
        self._file = open(os.open(path, flags, 0o600), "r+b")  # noqa: SIM115  closed by `close`
        self._root = Root()
        self.size = 0
        try:
            os.chmod(self._file.fileno(), 0o600)
            # The last segment is read again in any case: so the relay knows that the file was read to its end.
            there = min(os.fstat(self._file.fileno()).st_size, max(whole_size - 1, 0))
            self._take_up(there // SEGMENT_BYTES * SEGMENT_BYTES)
        except BaseException:
            self._file.close()
            raise

    def _take_up(self, size: int) -> None:
        while self.size < size and (data := self._file.read(min(_HASH_BYTES, size - self.size))):
            self._root.update(data)
            self.size += len(data)
        self._file.truncate(self.size)

    def append(self, data: bytes) -> None:
        self._file.write(data)
        self._root.update(data)
        self.size += len(data)

    def sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    @property
    def root(self) -> bytes:
        return self._root.digest()


def _put_in_place(stored: Path, size_bytes: int, sealing: Sealing | None, destination: Path) -> None:
    """Make the destination of a file whose stored bytes are right."""
    if sealing is None:
        stored.replace(destination)
        return
    last = count_segments(size_bytes) - 1
    with stored.open("rb") as source, replacement(destination) as target:
        for index in range(last + 1):
            target.write(sealing.open(index, index == last, source.read(SEGMENT_BYTES)))
    stored.unlink()

"""A file's way up: begin, a window of chunks, commit; after whatever goes wrong it goes on where the relay stands."""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from orbital_client.errors import (
    BadAnswer,
    BadRequest,
    ConnectionLost,
    OrbitalError,
    OutOfDate,
    Refused,
    RequestTimeout,
    TryLater,
)
from orbital_client.wire.backoff import Backoff
from orbital_client.wire.control import Relay
from orbital_client.wire.outgoing import Outgoing
from orbital_client.wire.transfers import Pace
from orbital_protocol import chain
from orbital_protocol.codes import ErrorCode
from orbital_protocol.frames import (
    MediaAbort,
    MediaBegin,
    MediaBeginOk,
    MediaChunk,
    MediaChunkOk,
    MediaCommit,
    MediaGet,
    MediaGetOk,
    Ok,
    PostOk,
)
from orbital_protocol.media import SEGMENT_BYTES

_AGAIN: Final = (TryLater, ConnectionLost, RequestTimeout, OutOfDate)
_IN_VAIN: Final = (ValueError, BadRequest, Refused, BadAnswer)
_COMMITS: Final = 5
_ABORT_S: Final = 5.0

Progress = Callable[[int, int], None]
"""Called with the bytes that are done, which only become more, and those that there are; both as they are stored."""


@dataclass(frozen=True, slots=True)
class MediaFacts:
    """What is known of a file when its metadata is sealed. `size_bytes` and `root` are those of the stored bytes."""

    media_id: bytes
    size_bytes: int
    root: bytes
    key_epoch: int


Metadata = bytes | Callable[[MediaFacts], bytes]
"""The encrypted metadata, or what makes it: called for each try to commit, since the key epoch may have changed."""


@dataclass(frozen=True, slots=True)
class PostedMedia:
    """A file that is posted: it is durable, and this is its place in the log. `duplicate`: it was there already."""

    media_id: bytes
    size_bytes: int
    root: bytes
    seq: int
    hash: bytes
    created_at: int
    duplicate: bool


@dataclass(frozen=True, slots=True)
class Place:
    """Where a file belongs."""

    group_id: bytes
    thread_id: bytes
    media_id: bytes
    encryption_iv: bytes


class Epochs(Protocol):
    """Who knows the group's key epoch; `info` asks the relay anew."""

    async def key_epoch(self) -> int: ...

    async def info(self) -> object: ...


class Upload:
    """One file on its way up.

    `patience_s` is for how long nothing may become durable before it is given up; `is_resumable` whether somebody knows
    the id under which it could go on after that.
    """

    def __init__(  # noqa: PLR0913  built in one place
        self,
        relay: Relay,
        epochs: Epochs,
        place: Place,
        outgoing: Outgoing,
        metadata: Metadata,
        *,
        on_progress: Progress | None,
        patience_s: float,
        is_resumable: bool,
    ) -> None:
        self._relay = relay
        self._epochs = epochs
        self._place = place
        self._outgoing = outgoing
        self._metadata = metadata
        self._on_progress = on_progress
        self._patience_s = patience_s
        self._is_resumable = is_resumable
        self._pace = Pace()
        self._has_begun = False
        self._durable = -1
        self._stuck_since: float | None = None
        self._backoff = Backoff()

    async def run(self) -> PostedMedia:
        """Do all of it. What can come to nothing is aborted; what could go on later, with the same id, is left."""
        async with self._relay.places.uploads:
            try:
                return await self._insist()
            except Exception as error:
                if isinstance(error, _IN_VAIN) or not self._is_resumable:
                    await self._abort()
                raise
            finally:
                await self._outgoing.close()

    async def _insist(self) -> PostedMedia:
        while True:
            try:
                await self._send(await self._begin())
                return await self._commit()
            except _AGAIN as failure:
                if isinstance(failure, OutOfDate) and failure.code != ErrorCode.UPLOAD_OFFSET:
                    raise
                await self._wait_after(failure)

    async def _wait_after(self, failure: OrbitalError) -> None:
        """Wait before trying again; raise the failure if there was no progress for too long."""
        now = asyncio.get_running_loop().time()
        if self._stuck_since is None:
            self._stuck_since = now
        delay_s = self._backoff.next_s(failure.retry_after_ms if isinstance(failure, TryLater) else None)
        if now + delay_s > self._stuck_since + self._patience_s:
            raise failure
        await asyncio.sleep(delay_s)

    async def _begin(self) -> MediaBeginOk:
        place = self._place
        request = MediaBegin(
            id=0,
            group_id=place.group_id,
            thread_id=place.thread_id,
            media_id=place.media_id,
            size_bytes=self._outgoing.size_bytes,
            encryption_iv=place.encryption_iv,
        )
        begun = await self._relay.request(request, MediaBeginOk)
        self._has_begun = True
        if begun.offset > self._outgoing.size_bytes or begun.chunk_bytes < SEGMENT_BYTES or begun.window < 1:
            raise BadAnswer("the relay begins an upload where it can't go on")
        return begun

    # ── chunks ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _send(self, begun: MediaBeginOk) -> None:
        """Send what is missing, a window at a time; return when all is durable."""
        offset, size = begun.offset, self._outgoing.size_bytes
        await self._outgoing.seek(offset)
        self._note_durable(offset)
        in_flight: deque[asyncio.Task[None]] = deque()
        try:
            while in_flight or offset < size:
                if offset < size and len(in_flight) < self._room(begun):
                    data = await self._outgoing.read(offset, self._piece_bytes(begun))
                    chunk = MediaChunk(
                        id=0, media_id=self._place.media_id, generation=begun.generation, offset=offset, data=data
                    )
                    in_flight.append(asyncio.create_task(self._chunk(chunk, begun.chunk_bytes), name="orbital-chunk"))
                    offset += len(data)
                else:
                    await in_flight[0]
                    del in_flight[0]
        finally:
            for task in in_flight:
                task.cancel()
            await asyncio.gather(*in_flight, return_exceptions=True)

    def _room(self, begun: MediaBeginOk) -> int:
        """How many chunks may be without an answer now."""
        slots = self._relay.limits.max_in_flight
        return min(begun.window, slots if begun.part_bytes else max(1, slots // 2))

    def _piece_bytes(self, begun: MediaBeginOk) -> int:
        """How large the next chunk is. Where no answer comes before a part is full, a window of small ones won't do."""
        return begun.chunk_bytes if begun.part_bytes else min(self._pace.piece_bytes, begun.chunk_bytes)

    async def _chunk(self, chunk: MediaChunk, most: int) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        await self._relay.request(chunk, MediaChunkOk, timeout_s=self._patience_s)
        self._pace.took(loop.time() - started, most)
        self._note_durable(chunk.offset + len(chunk.data))

    def _note_durable(self, offset: int) -> None:
        self._outgoing.release(offset)
        if offset <= self._durable:
            return
        self._durable = offset
        self._stuck_since = None
        self._backoff.reset()
        if self._on_progress is not None:
            self._on_progress(offset, self._outgoing.size_bytes)

    # ── the end ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _commit(self) -> PostedMedia:
        """Post the file. A stale key epoch is asked anew where the metadata can be sealed anew."""
        root = await self._outgoing.finish()
        for attempt in range(1, _COMMITS + 1):
            epoch = await self._epochs.key_epoch()
            metadata = self._sealed_metadata(root, epoch)
            request = MediaCommit(
                id=0, media_id=self._place.media_id, key_epoch=epoch, encrypted_metadata=metadata, root=root
            )
            try:
                ok = await self._relay.request(request, PostOk)
                break
            except OutOfDate as failure:
                await self._epochs.info()
                is_stale = failure.code == ErrorCode.STALE_KEY_EPOCH
                if not is_stale or isinstance(self._metadata, bytes) or attempt == _COMMITS:
                    raise
        else:
            raise AssertionError("the last attempt returns or raises")
        await self._check(ok, metadata, root)
        return PostedMedia(
            media_id=self._place.media_id,
            size_bytes=self._outgoing.size_bytes,
            root=root,
            seq=ok.seq,
            hash=ok.hash,
            created_at=ok.created_at,
            duplicate=ok.duplicate,
        )

    def _sealed_metadata(self, root: bytes, epoch: int) -> bytes:
        if isinstance(self._metadata, bytes):
            return self._metadata
        return self._metadata(MediaFacts(self._place.media_id, self._outgoing.size_bytes, root, epoch))

    async def _check(self, ok: PostOk, metadata: bytes, root: bytes) -> None:
        """Raise BadAnswer if something else was acknowledged; an earlier commit may have had other metadata."""
        if ok.content_hash == self._content_hash(metadata, root):
            return
        if ok.duplicate:
            known = (await self._relay.request(MediaGet(id=0, media_id=self._place.media_id), MediaGetOk)).media
            if ok.content_hash == self._content_hash(known.encrypted_metadata, root):
                return
        raise BadAnswer("the relay acknowledged another file than was uploaded")

    def _content_hash(self, metadata: bytes, root: bytes) -> bytes:
        fields = chain.media_fields(metadata, self._place.encryption_iv, self._outgoing.size_bytes, root)
        return chain.content_hash(self._place.thread_id, [chain.field_hash(field) for field in fields])

    async def _abort(self) -> None:
        """Have the relay forget it, if it will; it does so by itself after some time."""
        if not self._has_begun:
            return
        try:
            await self._relay.request(MediaAbort(id=0, media_id=self._place.media_id), Ok, timeout_s=_ABORT_S)
        except OrbitalError:
            return

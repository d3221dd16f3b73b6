"""Files on their way: chunks → parts → store → database → acknowledgements.

Here is only what goes on at this moment; how far an upload has come is in the database. Whatever goes wrong, the
upload is forgotten here, its client begins it again, anywhere, and goes on where the database says. With each begin
the generation rises, and what an older one still writes is neither counted nor in anybody's way.
"""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Final

from orbital_protocol.frames import ErrorDetails, MediaChunk
from orbital_protocol.media import SEGMENT_BYTES, segment_digests
from orbital_relay import logs
from orbital_relay.caller import Caller
from orbital_relay.errors import (
    BadArgument,
    Internal,
    NotFound,
    Overloaded,
    RateLimited,
    RequestError,
    TooLarge,
    Unavailable,
    UploadOffset,
)
from orbital_relay.media.base import Part, Store, StoreError, unavailable
from orbital_relay.metrics import Metrics
from orbital_relay.store import media as media_store
from orbital_relay.store.media import PartRow, UploadRow
from orbital_relay.store.pool import Database
from orbital_relay.store.retries import retried

logger = logs.get()

_BATCH_BYTES: Final = 4 * 1024 * 1024
_PARTS_AT_ONCE: Final = 2  # begin_upload_v1 leaves as many numbers out
_KNOWN: Final = 4_096
_STALL_S: Final = 30.0
_PATIENCE_S: Final = 1.0  # of a part that waits for its rest, where others need its room
_DATABASE_PLACES: Final = 4
_RETRY_MS: Final = 200


@dataclass(frozen=True, slots=True)
class Flow:
    """How much of an upload may be on its way. `memory_bytes` is for all uploads of this relay."""

    chunk_bytes: int
    window: int
    memory_bytes: int


@dataclass(eq=False, slots=True)
class _Piece:
    """A chunk that waits, and the answer that its request waits for: the offset up to which all is durable."""

    data: bytes
    durable: "asyncio.Future[int]"


@dataclass(eq=False, slots=True)
class _Stored:
    """A part on its way to the store."""

    part: Part
    pieces: list[_Piece]
    task: "asyncio.Task[PartRow]"


class _Upload:
    """One upload as it goes on here: what has been received of the file, taken for a part, and become durable."""

    __slots__ = (
        "durable",
        "held",
        "is_over",
        "more",
        "next_part",
        "received",
        "row",
        "stalled_at",
        "state",
        "taken",
        "waiting",
        "worker",
    )

    def __init__(self, row: UploadRow) -> None:
        self.row = row
        self.state = row.store_state
        self.next_part = row.next_part
        self.durable = row.durable_bytes
        self.taken = row.durable_bytes
        self.received = row.durable_bytes
        self.waiting: deque[_Piece] = deque()
        self.held = 0  # chunks without an answer
        self.more = asyncio.Event()
        self.worker: asyncio.Task[None] | None = None
        self.is_over = False
        self.stalled_at: float | None = None  # since when a part waits for its rest


class _Overtaken(Exception):
    """A part was written in vain: its upload was begun again since, or is gone."""

    def __init__(self, row: UploadRow, now: UploadRow | None) -> None:
        super().__init__()
        self.is_gone = now is None or now.storage_url != row.storage_url
        self.answer: RequestError = NotFound()
        if now is not None and not self.is_gone:
            self.answer = UploadOffset(details=ErrorDetails(offset=now.durable_bytes, generation=now.generation))


class Uploads:
    """The uploads that go on at this relay."""

    def __init__(self, database: Database, store: Store, metrics: Metrics, flow: Flow) -> None:
        self.flow = flow
        self._database = database
        self._store = store
        self._metrics = metrics
        self._uploads: OrderedDict[bytes, _Upload] = OrderedDict()
        self._waiting_bytes = 0
        self._querying = asyncio.Semaphore(_DATABASE_PLACES)
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_draining = False
        metrics.media_waiting_bytes.set_function(lambda: self._waiting_bytes)

    def began(self, row: UploadRow) -> None:
        """An upload goes on here from now on, under the generation of this row."""
        self.forget(row.media_id)
        self._uploads[row.media_id] = _Upload(row)
        idle = [upload for upload in self._uploads.values() if not upload.held]
        for upload in idle[: max(0, len(self._uploads) - _KNOWN)]:
            self._end(upload, UploadOffset())

    def forget(self, media_id: bytes) -> None:
        """An upload goes on here no more: it was committed, dropped, or begun again."""
        upload = self._uploads.get(media_id)
        if upload is not None:
            self._end(upload, UploadOffset())

    async def chunk(self, caller: Caller, request: MediaChunk) -> int:
        """Take the next bytes of a file; return how many of them are durable, once these are.

        Chunks of a file are taken in the order of the calls: nothing is waited for before they are queued.
        """
        upload = self._uploads.get(request.media_id)
        if upload is None or upload.row.generation != request.generation or upload.row.user_id != caller.user_id:
            raise await self._elsewhere(caller, request.media_id)
        if not caller.may_see(upload.row.group_id):
            raise NotFound
        if request.offset != upload.received:
            raise UploadOffset(details=ErrorDetails(offset=upload.received, generation=upload.row.generation))
        if request.offset + len(request.data) > upload.row.size_bytes:
            await self.refuse(upload.row, "more bytes than announced")
            raise BadArgument("The file has more bytes than was announced.", details=ErrorDetails(field="data"))
        self._check_size(upload, request)
        try:
            self._check_room(upload, len(request.data))
        except RequestError as error:
            self._end(upload, error)  # what waits would wait for a chunk that is not coming
            raise
        return await self._queued(upload, request.data)

    async def settled(self, media_id: bytes) -> None:
        """Wait until the chunks of a file that were taken have become durable, or failed."""
        upload = self._uploads.get(media_id)
        if upload is not None and upload.worker is not None:
            await asyncio.wait((upload.worker,))

    def drain(self) -> None:
        """Wait no longer for chunks that would fill a part: the relay stops."""
        self._is_draining = True
        for upload in self._uploads.values():
            upload.more.set()

    async def close(self) -> None:
        """End whatever is being written."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def refuse(self, row: UploadRow, reason: str) -> None:
        """Drop an upload that can't come to anything: its quota returns, and nothing stays behind."""
        upload = self._uploads.get(row.media_id)
        if upload is not None and upload.row.storage_url == row.storage_url:
            self._end(upload, UploadOffset())
        if await retried(partial(self._drop, row)) is not None:
            self._metrics.media_uploads["refused"] += 1
            logger.info("media.refused", group=row.group_id, user=row.user_id, reason=reason)

    async def _drop(self, row: UploadRow) -> bytes | None:
        async with self._database.connection() as connection:
            return await media_store.drop_upload(connection, row.media_id, row.user_id, row.storage_url)

    # ── taking chunks ───────────────────────────────────────────────────────────────────────────────────────────────

    async def _elsewhere(self, caller: Caller, media_id: bytes) -> RequestError:
        """Why an upload doesn't go on here: it doesn't at all, or at another place."""
        async with self._querying, self._database.connection() as connection:
            row = await media_store.find_upload(connection, media_id, caller.user_id)
        if row is None or not caller.may_see(row.group_id):
            return NotFound()
        return UploadOffset(details=ErrorDetails(offset=row.durable_bytes, generation=row.generation))

    def _check_size(self, upload: _Upload, request: MediaChunk) -> None:
        """A chunk is of whole segments, unless it ends the file."""
        size = len(request.data)
        if size > self.flow.chunk_bytes:
            raise TooLarge(details=ErrorDetails(field="data", limit=self.flow.chunk_bytes))
        is_last = request.offset + size == upload.row.size_bytes
        if not size or (size % SEGMENT_BYTES and not is_last):
            raise BadArgument("A chunk is of whole segments of 65,536 bytes.", details=ErrorDetails(field="data"))

    def _check_room(self, upload: _Upload, size: int) -> None:
        if self._is_draining:
            raise Unavailable("The relay is about to stop.", retry_after_ms=_RETRY_MS)
        if upload.held >= self.flow.window:
            raise RateLimited("More chunks than the window has.", retry_after_ms=_RETRY_MS)
        if not self._has_room(size):
            self._make_room(size, upload)
        if not self._has_room(size):
            raise Overloaded("Too many uploads wait for the store.", retry_after_ms=_RETRY_MS)

    def _has_room(self, size: int) -> bool:
        return self._waiting_bytes + size <= self.flow.memory_bytes

    def _make_room(self, size: int, wanted_for: _Upload) -> None:
        """End other uploads of which a part has waited for its rest for a while, the longest first."""
        now = time.monotonic()
        stalled = [
            upload
            for upload in self._uploads.values()
            if upload is not wanted_for and upload.stalled_at is not None and now - upload.stalled_at > _PATIENCE_S
        ]
        for upload in sorted(stalled, key=lambda upload: upload.stalled_at or now):
            if self._has_room(size):
                return
            self._end(upload, Overloaded("Others need the room of this part.", retry_after_ms=_RETRY_MS))

    async def _queued(self, upload: _Upload, data: bytes) -> int:
        piece = _Piece(data, asyncio.get_running_loop().create_future())
        upload.waiting.append(piece)
        upload.received += len(data)
        upload.held += 1
        self._waiting_bytes += len(data)
        upload.more.set()
        if upload.worker is None:
            upload.worker = asyncio.create_task(self._work(upload), name="media upload")
            self._tasks.add(upload.worker)
            upload.worker.add_done_callback(self._tasks.discard)
        try:
            return await piece.durable
        except asyncio.CancelledError:
            self._end(upload, Unavailable())  # the connection is gone: what waits behind this would leave a hole
            raise
        finally:
            upload.held -= 1

    # ── making them durable ─────────────────────────────────────────────────────────────────────────────────────────

    async def _work(self, upload: _Upload) -> None:
        """Write as long as anything waits: some parts at once to the store, and one after the other to the database."""
        stored: deque[_Stored] = deque()
        try:
            state = await self._state_of(upload)
            while True:
                # The first one is alone: it makes what the others are written into.
                at_once = _PARTS_AT_ONCE if upload.durable > upload.row.durable_bytes else 1
                if len(stored) < at_once and (pieces := self._take(upload)):
                    stored.append(self._store_soon(upload, state, pieces))
                elif stored:
                    await self._record(upload, stored[0])
                    del stored[0]
                elif upload.waiting:
                    await self._wait_for_more(upload)
                else:
                    return
        except Exception as error:
            failure = _failure(error)
            self._end(upload, failure)
            for part in stored:
                for piece in part.pieces:
                    self._settle(piece, failure)
            if isinstance(error, _Overtaken):
                await self._discard(upload, stored, error)
        finally:
            for part in stored:
                part.task.cancel()
            await asyncio.gather(*(part.task for part in stored), return_exceptions=True)
            upload.worker = None

    def _take(self, upload: _Upload) -> list[_Piece]:
        """What waits, if it is enough for a part."""
        wanted = self._store.part_bytes
        if upload.received - upload.taken < wanted and upload.received != upload.row.size_bytes:
            return []
        pieces: list[_Piece] = []
        size = 0
        while upload.waiting and size < max(wanted, _BATCH_BYTES):
            pieces.append(upload.waiting.popleft())
            size += len(pieces[-1].data)
        return pieces

    async def _wait_for_more(self, upload: _Upload) -> None:
        if self._is_draining:
            raise Unavailable("The relay is about to stop.", retry_after_ms=_RETRY_MS)
        upload.more.clear()
        upload.stalled_at = time.monotonic()
        try:
            async with asyncio.timeout(_STALL_S):
                await upload.more.wait()
        except TimeoutError:
            raise Unavailable("The rest of a part did not come.", retry_after_ms=_RETRY_MS) from None
        finally:
            upload.stalled_at = None

    def _store_soon(self, upload: _Upload, state: str, pieces: list[_Piece]) -> _Stored:
        """Begin to write a part to the store."""
        part = Part(upload.next_part, upload.row.generation, upload.taken, sum(len(piece.data) for piece in pieces))
        upload.next_part += 1
        upload.taken += part.size_bytes
        storing = self._store_part(upload.row, state, part, [piece.data for piece in pieces])
        return _Stored(part, pieces, asyncio.create_task(storing, name="media part"))

    async def _store_part(self, row: UploadRow, state: str, part: Part, pieces: list[bytes]) -> PartRow:
        hashing = asyncio.get_running_loop().run_in_executor(None, _digests, pieces)
        try:
            tag = await self._store.append(row.storage_url, state, part, pieces)
        finally:
            digests = await hashing
        return PartRow(part.number, part.generation, part.first_byte, part.size_bytes, tag, digests)

    async def _record(self, upload: _Upload, stored: _Stored) -> None:
        """Once the store has a part, give it its place in the database; then it is durable."""
        row, recorded = upload.row, await stored.task
        async with self._querying, self._database.connection() as connection:
            if not await media_store.record_part(connection, row, recorded):
                raise _Overtaken(row, await media_store.find_upload(connection, row.media_id, row.user_id))
        upload.durable += recorded.size_bytes
        self._metrics.media_bytes["in"] += recorded.size_bytes
        for piece in stored.pieces:
            self._settle(piece, upload.durable)

    async def _state_of(self, upload: _Upload) -> str:
        """What the store calls the upload; it is told of it with the first part."""
        if upload.state is None:
            state = await self._store.begin(upload.row.storage_url)
            async with self._querying, self._database.connection() as connection:
                kept = await media_store.set_store_state(connection, upload.row, state)
            if kept is None:
                raise UploadOffset
            upload.state = kept
        return upload.state

    async def _discard(self, upload: _Upload, stored: Iterable[_Stored], overtaken: "_Overtaken") -> None:
        """Have the store forget what was written in vain; what is still being written can be forgotten only then."""
        whole = overtaken.is_gone or upload.durable == upload.row.durable_bytes
        await asyncio.wait([part.task for part in stored])
        try:
            parts = [part.part for part in stored]
            await self._store.discard(upload.row.storage_url, upload.state or "", parts, whole=whole)
        except StoreError:
            return  # it goes with the upload's end

    def _end(self, upload: _Upload, error: RequestError) -> None:
        """Forget an upload; what waits, and is not being written, is answered with this."""
        upload.is_over = True
        if self._uploads.get(upload.row.media_id) is upload:
            del self._uploads[upload.row.media_id]
        while upload.waiting:
            self._settle(upload.waiting.popleft(), error)
        upload.more.set()

    def _settle(self, piece: _Piece, outcome: int | RequestError) -> None:
        self._waiting_bytes -= len(piece.data)
        if piece.durable.done():
            return
        if isinstance(outcome, int):
            piece.durable.set_result(outcome)
        else:
            piece.durable.set_exception(outcome)


def _digests(pieces: list[bytes]) -> bytes:
    return b"".join(segment_digests(piece) for piece in pieces)


def _failure(error: Exception) -> RequestError:
    """What a client is told of whatever went wrong with its upload."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, _Overtaken):
        return error.answer
    if isinstance(error, StoreError):
        return unavailable()
    logger.error("media.failed", exc_info=error)
    return Internal()

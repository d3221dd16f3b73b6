"""Files on their way up: room is reserved, bytes become durable, the file is posted.

No request to the store of files is made within a transaction, and none holds up posts: the requests about one file are
in order among themselves, not with the rest of its group. A commit waits for the chunks before it; begin and abort do
not.
"""

from collections.abc import Callable
from functools import partial

from orbital_protocol import frames
from orbital_protocol.codes import ErrorCode
from orbital_protocol.frames import ErrorDetails, Limits, MediaBeginOk, MediaChunkOk, Ok, PostOk
from orbital_protocol.media import root_of
from orbital_relay import logs, policy
from orbital_relay.caller import Caller, Peer, require_caller
from orbital_relay.errors import (
    BY_CODE,
    BadArgument,
    IdConflict,
    NotFound,
    QuotaExceeded,
    RequestError,
    TooLarge,
    Unavailable,
)
from orbital_relay.fanout import Publisher
from orbital_relay.media.base import BlobMissing, Part, Store, StoreError, new_key, unavailable
from orbital_relay.media.uploads import Uploads
from orbital_relay.metrics import Metrics
from orbital_relay.store import media as media_store
from orbital_relay.store.media import Begun, NotBegun, PartRow, UploadRow, Wanted
from orbital_relay.store.pool import Database
from orbital_relay.store.posts import Appended
from orbital_relay.store.retries import retried

logger = logs.get()


class MediaUploads:
    """Requests about files that are not there yet. `reclaim`: there is something for the store to delete."""

    def __init__(  # noqa: PLR0913  built in one place
        self,
        *,
        database: Database,
        store: Store,
        uploads: Uploads,
        publisher: Publisher,
        metrics: Metrics,
        limits: Limits,
        relay_hex: str,
        reclaim: Callable[[], None],
    ) -> None:
        self._database = database
        self._store = store
        self._uploads = uploads
        self._publisher = publisher
        self._metrics = metrics
        self._limits = limits
        self._relay_hex = relay_hex
        self._reclaim = reclaim

    async def begin(self, peer: Peer, request: frames.MediaBegin) -> MediaBeginOk:
        """Reserve room for a file, or go on with its upload, which then goes on nowhere else."""
        caller = require_caller(peer)
        if not caller.may_see(request.group_id):
            raise NotFound
        policy.check_id("media_id", request.media_id)
        if request.size_bytes > self._limits.max_media_bytes:
            raise TooLarge(details=ErrorDetails(field="size_bytes", limit=self._limits.max_media_bytes))
        begun, row = await retried(partial(self._begin, caller, request))
        if row is not None:
            self._uploads.began(row)
            self._metrics.media_uploads["begun" if begun.generation == 1 else "resumed"] += 1
        return MediaBeginOk(
            id=request.id,
            offset=begun.durable_bytes,
            generation=begun.generation,
            chunk_bytes=self._limits.media_chunk_bytes,
            window=self._limits.media_window,
            part_bytes=self._store.part_bytes,
        )

    async def _begin(self, caller: Caller, request: frames.MediaBegin) -> tuple[Begun, UploadRow | None]:
        wanted = Wanted(
            media_id=request.media_id,
            group_id=request.group_id,
            thread_id=request.thread_id,
            user_id=caller.user_id,
            size_bytes=request.size_bytes,
            encryption_iv=request.encryption_iv,
            storage_url=new_key(),
        )
        async with self._database.transaction() as connection:
            begun = await media_store.begin(connection, wanted, self._limits.max_uploads_per_user)
            if isinstance(begun, NotBegun):
                raise self._not_begun(begun)
            return begun, await media_store.find_upload(connection, request.media_id, caller.user_id)

    def _not_begun(self, refusal: NotBegun) -> RequestError:
        if refusal.code == ErrorCode.QUOTA_EXCEEDED:
            return QuotaExceeded(
                details=ErrorDetails(free_bytes=refusal.free_bytes or 0, free_count=refusal.free_count or 0)
            )
        if refusal.code == ErrorCode.LIMIT_EXCEEDED:
            return BY_CODE[refusal.code](details=ErrorDetails(limit=self._limits.max_uploads_per_user))
        return BY_CODE[refusal.code]()

    async def chunk(self, peer: Peer, request: frames.MediaChunk) -> MediaChunkOk:
        """Take some bytes; the answer comes when they are durable."""
        return MediaChunkOk(id=request.id, offset=await self._uploads.chunk(require_caller(peer), request))

    async def commit(self, peer: Peer, request: frames.MediaCommit) -> PostOk:
        """Post the file: finish its blob, then put it into the log."""
        caller = require_caller(peer)
        policy.check_ciphertext("encrypted_metadata", request.encrypted_metadata, self._limits.max_metadata_bytes)
        await self._uploads.settled(request.media_id)
        async with self._database.snapshot() as connection:
            upload = await media_store.find_upload(connection, request.media_id, caller.user_id)
            parts = await media_store.list_parts(connection, request.media_id) if upload else []
        if upload is None:
            return await self._committed_before(caller, request)
        if not caller.may_see(upload.group_id):
            raise NotFound
        await self._check_content(upload, parts, request)
        if not await self._finish(upload, parts):
            return await self._committed_before(caller, request)
        outcome = await retried(partial(self._commit, upload, request))
        self._uploads.forget(upload.media_id)
        if not isinstance(outcome, Appended):
            self._reclaim()
            raise BY_CODE[outcome]
        if not outcome.duplicate:
            self._publisher.publish([media_store.event_of(upload, request, outcome)])
            self._metrics.media_uploads["committed"] += 1
            logger.info(
                "media.committed", group=upload.group_id, user=caller.user_id, bytes=upload.size_bytes, seq=outcome.seq
            )
        return _posted(request, outcome)

    async def _check_content(self, upload: UploadRow, parts: list[PartRow], request: frames.MediaCommit) -> None:
        """All bytes are there, and they are those that the root is of; otherwise the upload is dropped."""
        if upload.durable_bytes != upload.size_bytes:
            problem, field = "wrong size", "media_id"
        elif root_of(part.digests for part in parts) != request.root:
            problem, field = "wrong root", "root"
        else:
            return
        await self._uploads.refuse(upload, problem)
        self._reclaim()
        raise BadArgument(f"The upload has the {problem}, and was dropped.", details=ErrorDetails(field=field))

    async def _finish(self, upload: UploadRow, parts: list[PartRow]) -> bool:
        """Have the store make the blob; False where the upload is gone meanwhile, and its parts with it."""
        named = [Part(p.number, p.generation, p.first_byte, p.size_bytes, p.tag) for p in parts]
        try:
            await self._store.finish(upload.storage_url, upload.store_state or "", named)
        except BlobMissing as error:
            async with self._database.connection() as connection:
                now = await media_store.find_upload(connection, upload.media_id, upload.user_id)
            if now is None or now.storage_url != upload.storage_url:
                return False
            logger.error("media.blob.missing", group=upload.group_id, user=upload.user_id, exc_info=error)
            raise Unavailable("The store of files has lost a part.") from error
        except StoreError as error:
            raise unavailable() from error
        return True

    async def _commit(self, upload: UploadRow, request: frames.MediaCommit) -> Appended | ErrorCode:
        async with self._database.transaction() as connection:
            return await media_store.commit(connection, self._relay_hex, upload, request)

    async def _committed_before(self, caller: Caller, request: frames.MediaCommit) -> PostOk:
        async with self._database.connection() as connection:
            known = await media_store.find_committed(connection, request.media_id, caller.user_id)
        if known is None or not caller.may_see(known[0]):
            raise NotFound
        return _posted(request, known[1])

    async def abort(self, peer: Peer, request: frames.MediaAbort) -> Ok:
        """Forget an upload; nothing happens where there is none."""
        was_there = await retried(partial(self._abort, require_caller(peer), request.media_id))
        self._uploads.forget(request.media_id)
        if was_there:
            self._metrics.media_uploads["aborted"] += 1
            self._reclaim()
        return Ok(id=request.id)

    async def _abort(self, caller: Caller, media_id: bytes) -> bool:
        """Whether there was an upload. The row is looked at under its lock: a commit may be under way."""
        async with self._database.transaction() as connection:
            group_id = await media_store.drop_upload(connection, media_id, caller.user_id)
            if group_id is not None and not caller.may_see(group_id):
                raise NotFound
            if group_id is None and await media_store.find_committed(connection, media_id, caller.user_id):
                raise IdConflict("The file is committed: delete it.")
        return group_id is not None


def _posted(request: frames.MediaCommit, appended: Appended) -> PostOk:
    return PostOk(
        id=request.id,
        seq=appended.seq,
        hash=appended.hash,
        content_hash=appended.content_hash,
        created_at=appended.created_at,
        duplicate=appended.duplicate,
    )

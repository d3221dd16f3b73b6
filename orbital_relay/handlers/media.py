"""Files that are there: looked at, read, deleted; and what a group may have of them.

Membership and expiry are checked in the statement that reads. No request to the store of files is made within a
transaction.
"""

from collections.abc import Callable
from typing import Final

from orbital_protocol import frames
from orbital_protocol.frames import (
    ControlOk,
    ErrorDetails,
    Limits,
    MediaGetOk,
    MediaListOk,
    MediaReadOk,
    QuotaGetOk,
)
from orbital_protocol.statements import MediaDeleted
from orbital_relay import logs, policy
from orbital_relay.caller import Caller, Clock, Peer, require_caller
from orbital_relay.control import Control, Turn, answer, open_statement
from orbital_relay.errors import BadArgument, MediaExpired, NotFound, TooLarge, Unavailable
from orbital_relay.media.base import BlobMissing, Store, StoreError, unavailable
from orbital_relay.metrics import Metrics
from orbital_relay.store import events as event_store
from orbital_relay.store import groups
from orbital_relay.store import media as media_store
from orbital_relay.store.events import Page
from orbital_relay.store.pool import Database

logger = logs.get()

_US_A_SECOND: Final = 1_000_000


class Media:
    """Requests about files. `reclaim` is called when there is something for the store to delete."""

    def __init__(  # noqa: PLR0913  built in one place
        self,
        *,
        control: Control,
        database: Database,
        store: Store,
        metrics: Metrics,
        limits: Limits,
        now: Clock,
        url_ttl_s: int,
        reclaim: Callable[[], None],
    ) -> None:
        self._control = control
        self._database = database
        self._store = store
        self._metrics = metrics
        self._limits = limits
        self._now = now
        self._url_ttl_s = url_ttl_s
        self._reclaim = reclaim

    async def get(self, peer: Peer, request: frames.MediaGet) -> MediaGetOk:
        """A file, and where the store has addresses, one from which anybody may read it for some minutes."""
        caller = require_caller(peer)
        async with self._database.connection() as connection:
            row = await media_store.find_media(connection, request.media_id, caller.user_id)
        if row is None or not caller.may_see(row.group_id):
            raise NotFound
        if row.expired or row.media is None or row.storage_url is None:
            raise MediaExpired
        now = self._now()
        ttl_s = min(self._url_ttl_s, (row.media.expires_at - now) // _US_A_SECOND)
        if ttl_s <= 0:
            return MediaGetOk(id=request.id, media=row.media)
        try:
            url = await self._store.url(row.storage_url, ttl_s)
        except StoreError as error:
            raise unavailable() from error
        until = None if url is None else now + ttl_s * _US_A_SECOND
        return MediaGetOk(id=request.id, media=row.media, url=url, url_expires_at=until)

    async def read(self, peer: Peer, request: frames.MediaRead) -> MediaReadOk:
        """Bytes of a file, to whoever is a member at this moment."""
        caller = require_caller(peer)
        if request.length > self._limits.media_chunk_bytes:
            raise TooLarge(details=ErrorDetails(field="length", limit=self._limits.media_chunk_bytes))
        group_id, key, size = await self._blob_of(caller, request.media_id)
        if request.offset > size:
            raise BadArgument("The file ends before the offset.", details=ErrorDetails(field="offset"))
        try:
            data = await self._bytes_of(key, request.offset, min(request.length, size - request.offset))
        except BlobMissing as error:
            await self._blob_of(caller, request.media_id)  # it may have been deleted meanwhile
            logger.error("media.blob.missing", group=group_id, exc_info=error)
            raise Unavailable("The store of files has lost this file.") from error
        except StoreError as error:
            raise unavailable() from error
        if request.offset + len(data) == size:
            async with self._database.connection() as connection:
                await media_store.record_download(connection, request.media_id, caller.user_id)
        self._metrics.media_bytes["out"] += len(data)
        return MediaReadOk(id=request.id, data=data)

    async def _blob_of(self, caller: Caller, media_id: bytes) -> tuple[bytes, str, int]:
        """A file's group, the key of its blob, and its size, as of now."""
        async with self._database.connection() as connection:
            row = await media_store.find_blob(connection, media_id, caller.user_id)
        if row is None or not caller.may_see(row.group_id):
            raise NotFound
        if row.expired or row.storage_url is None or row.size_bytes is None:
            raise MediaExpired
        return row.group_id, row.storage_url, row.size_bytes

    async def _bytes_of(self, key: str, offset: int, length: int) -> bytes:
        data = await self._store.read(key, offset, length) if length else b""
        if len(data) < length:
            raise BlobMissing("the blob is too short")
        return data

    async def list(self, peer: Peer, request: frames.MediaList) -> MediaListOk:
        """A page of a group's files, or a thread's, that have not expired."""
        caller = require_caller(peer)
        if not caller.may_see(request.group_id):
            raise NotFound
        if request.after_seq is not None and request.before_seq is not None:
            raise BadArgument("Give after_seq or before_seq, not both.", details=ErrorDetails(field="before_seq"))
        limit = min(request.limit, self._limits.page_limit)
        page = Page(limit + 1, 0, request.after_seq, request.before_seq)
        async with self._database.snapshot() as connection:
            if not await event_store.read_memberships(connection, caller.user_id, [request.group_id]):
                raise NotFound
            if request.thread_id is not None and not await event_store.thread_exists(
                connection, request.group_id, request.thread_id
            ):
                raise NotFound
            found = await media_store.list_media(connection, request.group_id, caller.user_id, page, request.thread_id)
        shown = found[:limit] if not page.newest_first else found[-limit:]
        return MediaListOk(id=request.id, media=shown, more=len(found) > limit)

    async def quota(self, peer: Peer, request: frames.QuotaGet) -> QuotaGetOk:
        """What the group's files use, and what they may."""
        caller = require_caller(peer)
        if not caller.may_see(request.group_id):
            raise NotFound
        async with self._database.connection() as connection:
            quota = await media_store.read_quota(connection, request.group_id, caller.user_id)
        if quota is None:
            raise NotFound
        return QuotaGetOk(
            id=request.id,
            total_bytes=quota.total_bytes,
            media_count=quota.media_count,
            max_bytes=quota.max_bytes,
            max_media_count=quota.max_media_count,
        )

    async def delete(self, peer: Peer, request: frames.MediaDelete) -> ControlOk:
        """Delete a file (its author, or an admin)."""
        signed = open_statement(request, MediaDeleted)
        outcome = await self._control.carry_out(peer, signed, _delete)
        self._reclaim()
        return answer(request, outcome)


async def _delete(turn: Turn[MediaDeleted]) -> None:
    media_id = turn.statement.media_id
    policy.may_delete_media(turn.member, await groups.find_post(turn.connection, media_id), turn.group_id)
    blob = await media_store.find_blob(turn.connection, media_id, turn.statement.actor_id)
    if blob is None:
        raise NotFound
    if blob.expired:
        raise MediaExpired
    await turn.append()
    await media_store.delete(turn.connection, media_id)

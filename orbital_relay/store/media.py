"""Files, their uploads, and what groups may use. Every change of a quota happens where its row comes or goes."""

from binascii import a2b_base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from orbital_protocol.chain import content_hash, field_hash, media_fields
from orbital_protocol.codes import ErrorCode, Kind
from orbital_protocol.frames import Event, Media, MediaCommit
from orbital_relay.store.events import Page, relay_event
from orbital_relay.store.groups import text
from orbital_relay.store.pool import Connection
from orbital_relay.store.posts import Appended, Outcome
from orbital_relay.store.queries import query

_BEGIN: Final = query("begin_upload")
_FIND_UPLOAD: Final = query("find_upload")
_LIST_PARTS: Final = query("list_parts")
_SET_STORE_STATE: Final = query("set_store_state")
_RECORD_PART: Final = query("record_part")
_DROP: Final = query("drop_upload")
_COMMIT: Final = query("commit_upload")
_FIND_COMMITTED: Final = query("find_committed")
_FIND_BLOB: Final = query("find_blob")
_FIND_MEDIA: Final = query("find_media")
_LIST: Final = (query("list_media_up"), query("list_media_down"))
_RECORD_DOWNLOAD: Final = query("record_download")
_DELETE: Final = query("delete_media")
_QUOTA: Final = query("read_quota")
_TRY_LOCK: Final = query("try_media_lock")
_SWEEP_UPLOADS: Final = query("sweep_uploads")
_EXPIRE: Final = query("expire_media")
_LIST_DELETIONS: Final = query("list_blob_deletions")
_POSTPONE: Final = query("postpone_blob_deletion")
_SET_DELETED: Final = query("set_blob_deleted")
_FORGET: Final = query("forget_blob")
_COUNT: Final = query("count_media_rows")


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file that somebody wants to upload. `storage_url` is the name that its blob gets, if it is new."""

    media_id: bytes
    group_id: bytes
    thread_id: bytes
    user_id: bytes
    size_bytes: int
    encryption_iv: bytes
    storage_url: str


@dataclass(frozen=True, slots=True)
class Begun:
    """An upload may go on at `durable_bytes`. `generation` 0: the file is committed."""

    durable_bytes: int
    generation: int


@dataclass(frozen=True, slots=True)
class NotBegun:
    """Why an upload can't begin; of a quota that doesn't do, what is left of it."""

    code: ErrorCode
    free_bytes: int | None
    free_count: int | None


@dataclass(frozen=True, slots=True)
class UploadRow:
    """An upload as it stands. `store_state` is what the store calls it, None before the store was told of it."""

    media_id: bytes
    group_id: bytes
    thread_id: bytes
    user_id: bytes
    size_bytes: int
    encryption_iv: bytes
    storage_url: str
    store_state: str | None
    generation: int
    next_part: int
    durable_bytes: int


@dataclass(frozen=True, slots=True)
class PartRow:
    """A durable part of an upload. `tag` is what the store answered, `digests` the SHA-256 of each segment."""

    number: int
    generation: int
    first_byte: int
    size_bytes: int
    tag: str
    digests: bytes


@dataclass(frozen=True, slots=True)
class BlobRow:
    """Where a file's bytes are. `storage_url` and size are None where an expired file's row is gone."""

    group_id: bytes
    storage_url: str | None
    size_bytes: int | None
    expired: bool


@dataclass(frozen=True, slots=True)
class MediaRow:
    """A file as its members see it, or (None) what is left of an expired one."""

    group_id: bytes
    media: Media | None
    storage_url: str | None
    expired: bool


@dataclass(frozen=True, slots=True)
class Quota:
    """What a group's files use, and what they may."""

    total_bytes: int
    media_count: int
    max_bytes: int
    max_media_count: int


# ── uploads ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def begin(connection: Connection, wanted: Wanted, max_uploads: int) -> Begun | NotBegun:
    """Reserve room for a file, or go on with its upload under the next generation."""
    row = await connection.fetchrow(
        _BEGIN,
        wanted.media_id,
        wanted.group_id,
        wanted.thread_id,
        wanted.user_id,
        wanted.size_bytes,
        text(wanted.encryption_iv),
        wanted.storage_url,
        max_uploads,
    )
    if row is None:
        raise AssertionError("begin_upload returns a row")
    error, durable_bytes, generation, free_bytes, free_count = row
    if error is not None:
        return NotBegun(ErrorCode(error), free_bytes, free_count)
    return Begun(durable_bytes, generation)


async def find_upload(connection: Connection, media_id: bytes, user_id: bytes) -> UploadRow | None:
    """An upload of this user's that is under way."""
    row = await connection.fetchrow(_FIND_UPLOAD, media_id, user_id)
    if row is None:
        return None
    media_id, group_id, thread_id, owner_id, size_bytes, iv, *rest = row
    return UploadRow(media_id, group_id, thread_id, owner_id, size_bytes, a2b_base64(iv), *rest)


async def list_parts(connection: Connection, media_id: bytes) -> list[PartRow]:
    """What is durable of an upload, in the order of the file."""
    return [PartRow(*row) for row in await connection.fetch(_LIST_PARTS, media_id)]


async def set_store_state(connection: Connection, upload: UploadRow, state: str) -> str | None:
    """Keep what the store calls the upload; return what is kept, None where the upload went on elsewhere."""
    kept: str | None = await connection.fetchval(
        _SET_STORE_STATE, upload.media_id, upload.generation, upload.storage_url, state
    )
    return kept


async def record_part(connection: Connection, upload: UploadRow, part: PartRow) -> bool:
    """Count a part as durable; False where the upload is gone, or was begun again since."""
    recorded = await connection.fetchval(
        _RECORD_PART,
        upload.media_id,
        part.generation,
        upload.storage_url,
        part.number,
        part.first_byte,
        part.size_bytes,
        part.tag,
        part.digests,
    )
    return recorded is not None


async def drop_upload(
    connection: Connection, media_id: bytes, user_id: bytes, storage_url: str | None = None
) -> bytes | None:
    """Forget an upload, give back its quota, and have its blob deleted; its group, None where there was none.

    With `storage_url` only if it still is the one with this blob: it may have been begun anew.
    """
    group_id: bytes | None = await connection.fetchval(_DROP, media_id, user_id, storage_url)
    return group_id


async def commit(connection: Connection, relay_hex: str, upload: UploadRow, request: MediaCommit) -> Outcome:
    """Post a file whose blob is finished; where it was posted before, the first result."""
    fields = media_fields(request.encrypted_metadata, upload.encryption_iv, upload.size_bytes, request.root)
    hashes = [field_hash(field) for field in fields]
    row = await connection.fetchrow(
        _COMMIT,
        relay_hex,
        upload.media_id,
        upload.group_id,
        upload.user_id,
        upload.storage_url,
        request.key_epoch,
        text(request.encrypted_metadata),
        request.root,
        b"".join(hashes),
        content_hash(upload.thread_id, hashes),
    )
    if row is None:
        raise AssertionError("commit_upload returns a row")
    error, *appended = row
    return ErrorCode(error) if error is not None else Appended(*appended)


def event_of(upload: UploadRow, request: MediaCommit, appended: Appended) -> Event:
    """The event that subscribers get of a file that was just committed."""
    return Event(
        group_id=upload.group_id,
        seq=appended.seq,
        hash=appended.hash,
        kind=Kind.MEDIA_POSTED,
        object_id=upload.media_id,
        actor_id=upload.user_id,
        key_epoch=request.key_epoch,
        created_at=appended.created_at,
        content_hash=appended.content_hash,
        thread_id=upload.thread_id,
        encrypted_metadata=request.encrypted_metadata,
        encryption_iv=upload.encryption_iv,
        size_bytes=upload.size_bytes,
        root=request.root,
    )


async def find_committed(connection: Connection, media_id: bytes, user_id: bytes) -> tuple[bytes, Appended] | None:
    """The group, and the place in its log, of a file that this user has committed before."""
    row = await connection.fetchrow(_FIND_COMMITTED, media_id, user_id)
    if row is None:
        return None
    group_id, seq, hash_, created_at, content = row
    return group_id, Appended(seq, hash_, created_at, content, duplicate=True)


# ── files ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def find_blob(connection: Connection, media_id: bytes, user_id: bytes) -> BlobRow | None:
    """Where a file's bytes are, for a member of its group."""
    row = await connection.fetchrow(_FIND_BLOB, media_id, user_id)
    return None if row is None else BlobRow(*row)


async def find_media(connection: Connection, media_id: bytes, user_id: bytes) -> MediaRow | None:
    """A file, for a member of its group."""
    row = await connection.fetchrow(_FIND_MEDIA, media_id, user_id)
    if row is None:
        return None
    group_id, *values, storage_url, expired = row
    media = None if storage_url is None else _media([group_id, *values])
    return MediaRow(group_id, media, storage_url, expired)


async def list_media(
    connection: Connection, group_id: bytes, user_id: bytes, page: Page, thread_id: bytes | None
) -> list[Media]:
    """A page of a group's files that have not expired, ascending by seq. The caller has checked membership."""
    rows = await connection.fetch(
        _LIST[page.newest_first], group_id, user_id, thread_id, page.after, page.before, page.limit
    )
    return [_media(row) for row in (reversed(rows) if page.newest_first else rows)]


def _media(row: Iterable[Any]) -> Media:
    group_id, media_id, thread_id, seq, key_epoch, metadata, iv, size_bytes, root, uploaded_at, expires_at, *rest = row
    author_id, downloaded = rest
    return Media(
        media_id=media_id,
        group_id=group_id,
        thread_id=thread_id,
        seq=seq,
        key_epoch=key_epoch,
        encrypted_metadata=a2b_base64(metadata),
        encryption_iv=a2b_base64(iv),
        size_bytes=size_bytes,
        root=root,
        uploaded_at=uploaded_at,
        expires_at=expires_at,
        author_id=author_id,
        downloaded=downloaded,
    )


async def record_download(connection: Connection, media_id: bytes, user_id: bytes) -> None:
    """Keep that somebody has read a file to its end."""
    await connection.execute(_RECORD_DOWNLOAD, media_id, user_id)


async def delete(connection: Connection, media_id: bytes) -> None:
    """Delete a file: row, quota, and soon its blob. Its event stays."""
    await connection.execute(_DELETE, media_id)


# ── quotas ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def read_quota(connection: Connection, group_id: bytes, user_id: bytes) -> Quota | None:
    """A group's quota, for a member."""
    row = await connection.fetchrow(_QUOTA, group_id, user_id)
    return None if row is None else Quota(*row)


# ── what goes ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def try_lock(connection: Connection) -> bool:
    """Be the one relay that sweeps, until the transaction ends; False where another one is."""
    return bool(await connection.fetchval(_TRY_LOCK))


async def forget_idle_uploads(connection: Connection, limit: int, idle_s: float) -> int:
    """Drop uploads, at most so many, with which nobody has gone on for so long: how many."""
    return int((await connection.execute(_SWEEP_UPLOADS, limit, idle_s)).removeprefix("DELETE "))


async def expire(
    connection: Connection, relay_hex: str, limit: int, media_ids: Sequence[bytes] | None = None
) -> list[Event]:
    """Expire files whose time has come, at most so many, or these; the events are to be published after the commit."""
    return [relay_event(row) for row in await connection.fetch(_EXPIRE, relay_hex, media_ids, limit)]


async def list_blob_deletions(connection: Connection, limit: int) -> list[tuple[str, bool]]:
    """Some blobs that the store is to delete, and whether it has deleted them before."""
    return [(row[0], row[1]) for row in await connection.fetch(_LIST_DELETIONS, limit)]


async def postpone_blob_deletion(connection: Connection, storage_url: str, wait_s: float) -> None:
    """Try this one again later."""
    await connection.execute(_POSTPONE, storage_url, wait_s)


async def set_blob_deleted(connection: Connection, storage_url: str, wait_s: float) -> None:
    """The store has deleted this blob; it is to do so again after a while."""
    await connection.execute(_SET_DELETED, storage_url, wait_s)


async def forget_blob(connection: Connection, storage_url: str) -> None:
    """This blob has been deleted for good."""
    await connection.execute(_FORGET, storage_url)


async def depends_on_store(connection: Connection) -> bool:
    """Whether the database speaks of anything that the store holds."""
    return bool(await connection.fetchval(_COUNT))

"""What the command line asks of a database: users, groups, sessions and logs as whoever runs the relay may see them."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TypeVar

import asyncpg

from orbital_relay.store.media import Quota
from orbital_relay.store.pool import Connection
from orbital_relay.store.queries import query

T = TypeVar("T")

_SERVER: Final = query("read_server")
_PRIVILEGES: Final = query("list_missing_privileges")
_FACT: Final = query("read_fact")
_USERS: Final = query("list_users_as_operator")
_GROUPS: Final = query("list_groups_as_operator")
_GROUP: Final = query("find_group_as_operator")
_MEASURE: Final = query("measure_group_as_operator")
_MEMBERS: Final = query("list_members_as_operator")
_SESSIONS: Final = query("list_sessions_as_operator")
_SESSION_OWNER: Final = query("find_session_owner")
_NAMED: Final = query("list_named_blobs")
_FILES_AMONG: Final = query("list_files_among")
_COUNT_MEDIA: Final = query("count_media_as_operator")
_SKEWED: Final = query("list_skewed_quotas")
_LOCK_QUOTA: Final = query("lock_quota")
_MEND_QUOTA: Final = query("mend_quota")
_QUOTA: Final = query("read_quota_as_operator")
_SET_LIMITS: Final = query("set_quota_limits")
_DROP_UPLOADS: Final = query("drop_uploads")
_LOGS: Final = query("list_logs_as_operator")
_LOG: Final = query("find_log_as_operator")
_COUNT: Final = query("count_logs_as_operator")
_EVENTS: Final = query("read_log_as_operator")
_HEADLESS: Final = query("list_headless_logs")

_PAGE: Final = 500


@dataclass(frozen=True, slots=True)
class Server:
    """The server behind a connection, and its time."""

    version: str
    version_number: int
    now: datetime


@dataclass(frozen=True, slots=True)
class UserRow:
    """An account. `sessions` are the good ones, bot tokens among them."""

    user_id: bytes
    username: str
    is_bot: bool
    created_at: datetime
    disabled_at: datetime | None
    groups: int
    sessions: int
    last_used_at: datetime | None


@dataclass(frozen=True, slots=True)
class GroupRow:
    """A group in a list. Files and their bytes are those that count against its quota, uploads among them."""

    group_id: bytes
    owner: str
    members: int
    seq: int
    key_epoch: int
    rekey_required: bool
    files: int
    file_bytes: int
    created_at: datetime
    last_event_at: datetime | None


@dataclass(frozen=True, slots=True)
class GroupDetails:
    """A group, or the tombstone of one: then `deleted_at` is set, and what is None or 0 is gone."""

    group_id: bytes
    owner: str | None
    created_at: datetime | None
    deleted_at: datetime | None
    seq: int
    head_hash: bytes
    key_epoch: int
    rekey_required: bool
    history: int | None
    knocking: bool | None
    live_invites: int
    join_requests: int
    bans: int


@dataclass(frozen=True, slots=True)
class Amount:
    """How much of something a group has; `bytes` of ciphertext as stored."""

    of: str
    count: int
    bytes: int


@dataclass(frozen=True, slots=True)
class MemberRow:
    """A member of a group."""

    username: str
    user_id: bytes
    role: int
    is_bot: bool
    joined_at: datetime


@dataclass(frozen=True, slots=True)
class SessionRow:
    """A session, or a bot's token: `kind` says which."""

    kind: str
    session_id: bytes
    username: str
    name: str
    created_at: datetime
    last_used_at: datetime | None
    expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class NamedBlob:
    """A blob that the database names, by a `file`, an `upload` or a `deletion`; what that doesn't have is None."""

    key: str
    by: str
    media_id: bytes | None
    group_id: bytes | None
    size_bytes: int | None


@dataclass(frozen=True, slots=True)
class MediaCount:
    """How much the database says of media. `deletions` are blobs that the store is to delete."""

    files: int
    uploads: int
    deletions: int


@dataclass(frozen=True, slots=True)
class Skew:
    """A quota beside the sum over the group's files and uploads, which it should be."""

    group_id: bytes
    total_bytes: int
    media_count: int
    sum_bytes: int
    sum_count: int


@dataclass(frozen=True, slots=True)
class LogHead:
    """A group's head beside the seq of the last event that is there, both seen at one moment."""

    group_id: bytes
    seq: int
    hash: bytes
    deleted: bool
    last_event_seq: int


@dataclass(frozen=True, slots=True)
class LogRow:
    """An event as it is stored; ciphertexts are base64, and None where they are gone. `erased`: gone on purpose."""

    group_id: bytes
    seq: int
    hash: bytes
    kind: int
    object_id: bytes
    actor_id: bytes
    key_epoch: int
    created_at: int
    content_hash: bytes
    parent_id: bytes | None
    field_hashes: bytes
    statement: bytes | None
    signature: bytes | None
    encrypted_title: str | None
    encrypted_body: str | None
    encrypted_metadata: str | None
    encryption_iv: str | None
    size_bytes: int | None
    root: bytes | None
    erased: bool


async def read_server(connection: Connection) -> Server:
    """Which PostgreSQL this is, and what time it has."""
    return Server(*_required(await connection.fetchrow(_SERVER)))


async def missing_privileges(connection: Connection) -> list[str]:
    """What this database user may not do to the relay's tables, as "verb on table"."""
    return [row[0] for row in await connection.fetch(_PRIVILEGES)]


async def read_fact(connection: Connection, name: str) -> str | None:
    """What the relays of this database have agreed on under this name."""
    value = await connection.fetchval(_FACT, name)
    return None if value is None else str(value)


async def list_users(connection: Connection) -> list[UserRow]:
    """Every account, by name."""
    return await _all(lambda after: _rows(UserRow, connection.fetch(_USERS, after, _PAGE)), "", lambda u: u.username)


async def list_groups(connection: Connection) -> list[GroupRow]:
    """Every group that is not deleted."""
    return await _all(
        lambda after: _rows(GroupRow, connection.fetch(_GROUPS, after, _PAGE)), bytes(16), lambda g: g.group_id
    )


async def find_group(connection: Connection, group_id: bytes) -> GroupDetails | None:
    """A group, or the tombstone of one."""
    row = await connection.fetchrow(_GROUP, group_id)
    return None if row is None else GroupDetails(*row)


async def measure_group(connection: Connection, group_id: bytes) -> list[Amount]:
    """How much a group has of what."""
    return await _rows(Amount, connection.fetch(_MEASURE, group_id))


async def list_members(connection: Connection, group_id: bytes) -> list[MemberRow]:
    """The members of a group, owners and admins first."""
    return await _rows(MemberRow, connection.fetch(_MEMBERS, group_id))


async def list_sessions(connection: Connection, username: str | None) -> list[SessionRow]:
    """The good sessions and bot tokens of a user, or of all; the newest first."""
    return await _rows(SessionRow, connection.fetch(_SESSIONS, username))


async def find_session_owner(connection: Connection, session_id: bytes) -> tuple[str, bytes] | None:
    """Whether an id is that of a `session` or of a bot's `token`, and whose."""
    row = await connection.fetchrow(_SESSION_OWNER, session_id)
    return None if row is None else (row[0], row[1])


async def list_named_blobs(connection: Connection, prefix: str) -> list[NamedBlob]:
    """The blobs that the database names, of those whose names begin so; all seen at one moment."""
    return await _rows(NamedBlob, connection.fetch(_NAMED, prefix))


async def list_files_among(connection: Connection, media_ids: Sequence[bytes]) -> list[bytes]:
    """Those of these files that there still are."""
    return [row[0] for row in await connection.fetch(_FILES_AMONG, media_ids)]


async def count_media(connection: Connection) -> MediaCount:
    """How much the database says of media."""
    return MediaCount(*_required(await connection.fetchrow(_COUNT_MEDIA)))


async def list_skewed_quotas(connection: Connection, limit: int) -> list[Skew]:
    """Quotas that are not the sum of what they count, at most so many; seen at one moment."""
    return await _rows(Skew, connection.fetch(_SKEWED, limit))


async def mend_quota(connection: Connection, group_id: bytes) -> None:
    """Make a quota the sum of what it counts, within the caller's transaction."""
    await connection.execute(_LOCK_QUOTA, group_id)
    await connection.execute(_MEND_QUOTA, group_id)


async def read_quota(connection: Connection, group_id: bytes) -> Quota | None:
    """What a group's files use, and what they may; None for a group that isn't there."""
    row = await connection.fetchrow(_QUOTA, group_id)
    return None if row is None else Quota(*row)


async def set_quota_limits(
    connection: Connection, group_id: bytes, max_bytes: int | None, max_files: int | None
) -> Quota | None:
    """Set what a group's files may use (None: as it is), and return all of it; None for a group that isn't there."""
    row = await connection.fetchrow(_SET_LIMITS, group_id, max_bytes, max_files)
    return None if row is None else Quota(*row)


async def drop_uploads(connection: Connection) -> None:
    """Forget every upload; their clients begin them anew."""
    await connection.execute(_DROP_UPLOADS)


async def iterate_logs(connection: Connection) -> AsyncIterator[LogHead]:
    """Every head, deleted groups' included."""
    after = b""
    while rows := await connection.fetch(_LOGS, after or bytes(16), _PAGE):
        for row in rows:
            yield LogHead(*row)
        after = rows[-1][0]


async def find_log(connection: Connection, group_id: bytes) -> LogHead | None:
    """The head of one group."""
    row = await connection.fetchrow(_LOG, group_id)
    return None if row is None else LogHead(*row)


async def count_logs(connection: Connection) -> tuple[int, int]:
    """How many heads there are, and how many events they speak of."""
    groups, events = _required(await connection.fetchrow(_COUNT))
    return groups, events


async def iterate_log(connection: Connection, group_id: bytes, up_to_seq: int) -> AsyncIterator[LogRow]:
    """The events of a group up to a seq, page by page."""
    after = 0
    while rows := await connection.fetch(_EVENTS, group_id, after, up_to_seq, _PAGE):
        for row in rows:
            yield _log_row(row)
        after = rows[-1][1]


async def list_headless_logs(connection: Connection) -> list[bytes]:
    """Groups that have events and no head."""
    return [row[0] for row in await connection.fetch(_HEADLESS)]


def _log_row(row: asyncpg.Record) -> LogRow:
    *values, title, body, gone, metadata, iv, size_bytes, root, erased = row
    # An erased text is an empty one; of a row that was lost there is none. Neither is content.
    texts = (None, None) if gone else (title, body)
    return LogRow(*(*values, *texts, metadata, iv, size_bytes, root, gone and erased))


def _required(row: asyncpg.Record | None) -> asyncpg.Record:
    if row is None:
        raise AssertionError("the query always returns a row")
    return row


async def _rows(kind: Callable[..., T], fetching: Awaitable[Sequence[Any]]) -> list[T]:
    return [kind(*row) for row in await fetching]


async def _all(page_after: Callable[[Any], Awaitable[list[T]]], after: object, key: Callable[[T], object]) -> list[T]:
    found: list[T] = []
    while page := await page_after(after):
        found += page
        after = key(page[-1])
    return found

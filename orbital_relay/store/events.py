"""Reading the log: rows of the view `event_rows` become `frames.Event`."""

from binascii import a2b_base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import asyncpg

from orbital_protocol import ZERO_HASH, ZERO_ID
from orbital_protocol.chain import RELAY_CONTENT_HASH
from orbital_protocol.codes import Kind
from orbital_protocol.frames import Event
from orbital_relay.store.pool import Connection
from orbital_relay.store.queries import query

_READ: Final = query("read_events")
_REPLAY: Final = query("read_replay")
_CURSORS: Final = query("read_cursors")
_MEMBERSHIPS: Final = query("read_memberships")
_HEADS: Final = query("read_heads")
_HEAD_AS_MEMBER: Final = query("read_head_as_member")
_FIND_THREAD: Final = query("find_thread")
_LIST_EVENTS: Final = (query("list_events_up"), query("list_events_down"))
_LIST_THREADS: Final = (query("list_threads_up"), query("list_threads_down"))
_LIST_REPLIES: Final = (query("list_replies_up"), query("list_replies_down"))

_IN_THREADS: Final = (Kind.REPLY_POSTED, Kind.MEDIA_POSTED)
_HASH_BYTES: Final = 32
_END_OF_LOG: Final = 2**53


@dataclass(frozen=True, slots=True)
class Standing:
    """Somebody's question where groups stand, with a position in each one's log."""

    user_id: bytes
    positions: Sequence[tuple[bytes, int]]


@dataclass(frozen=True, slots=True)
class CursorRow:
    """Where a group stands for a user: `hash_at_cursor` is None where there is no such event."""

    group_id: bytes
    seq: int
    hash: bytes
    exists: bool
    deleted: bool
    is_member: bool
    hash_at_cursor: bytes | None


@dataclass(frozen=True, slots=True)
class HeadRow:
    """How far a group's log has come."""

    group_id: bytes
    seq: int
    deleted: bool


@dataclass(frozen=True, slots=True)
class Stretch:
    """The next events of a log after a position, and the seq of its head."""

    last_seq: int
    events: Sequence[Event]


@dataclass(frozen=True, slots=True)
class Page:
    """A range of a group's log, both ends exclusive. Without a bound of its own, the newest `limit` are meant.

    `limit_bytes` is of text as it is stored: where it is passed, the page ends with the event that passes it.
    """

    limit: int
    limit_bytes: int
    after_seq: int | None = None
    before_seq: int | None = None

    @property
    def newest_first(self) -> bool:
        """Whether the page is filled from its upper end."""
        return self.after_seq is None

    @property
    def after(self) -> int:
        """The lower end, or one below all."""
        return -1 if self.after_seq is None else self.after_seq

    @property
    def before(self) -> int:
        """The upper end, or one above all."""
        return _END_OF_LOG if self.before_seq is None else self.before_seq


def event_of(row: asyncpg.Record) -> Event:
    """Make an event of a row of `event_rows`."""
    (group_id, seq, hash_, kind, object_id, actor_id, key_epoch, created_at, content_hash) = row[:9]
    (parent_id, field_hashes, statement, signature, title, body, erased, metadata, iv, size_bytes, root) = row[9:20]
    return Event(
        group_id=group_id,
        seq=seq,
        hash=hash_,
        kind=kind,
        object_id=object_id,
        actor_id=actor_id,
        key_epoch=key_epoch,
        created_at=created_at,
        content_hash=content_hash,
        thread_id=parent_id if kind in _IN_THREADS else None,
        target_id=parent_id if kind == Kind.ANNOTATION_POSTED else None,
        encrypted_title=a2b_base64(title) if title is not None and not erased else None,
        encrypted_body=a2b_base64(body) if body is not None and not erased else None,
        encrypted_metadata=None if metadata is None else a2b_base64(metadata),
        encryption_iv=None if iv is None else a2b_base64(iv),
        size_bytes=size_bytes,
        root=root,
        statement=statement,
        signature=signature,
        field_hashes=_split_hashes(field_hashes) if erased else None,
        erased=erased,
    )


def relay_event(row: Iterable[Any]) -> Event:
    """Make an event of what the relay itself has appended: group, kind, object, seq, hash, time, key epoch."""
    group_id, kind, object_id, seq, hash_, created_at, key_epoch = row
    return Event(
        group_id=group_id,
        seq=seq,
        hash=hash_,
        kind=kind,
        object_id=object_id,
        actor_id=ZERO_ID,
        key_epoch=key_epoch,
        created_at=created_at,
        content_hash=RELAY_CONTENT_HASH,
    )


def _split_hashes(joined: bytes) -> list[bytes]:
    return [joined[i : i + _HASH_BYTES] for i in range(0, len(joined), _HASH_BYTES)]


async def read_events(connection: Connection, group_id: bytes, after_seq: int, limit: int) -> list[Event]:
    """Events of a group after a position, at most `limit`."""
    return [event_of(row) for row in await connection.fetch(_READ, group_id, after_seq, limit)]


async def read_replay(
    connection: Connection, wanted: Sequence[tuple[bytes, bytes, int]], *, limit: int, limit_bytes: int
) -> list[Stretch | None]:
    """For each user, group and position wanted, what comes next in the log; None for whoever is not a member.

    Of each stretch at most `limit` events, and at most `limit_bytes` (and one event) of text. Who wants the same shares
    one object.
    """
    rows = await connection.fetch(_REPLAY, *_columns(wanted), limit, limit_bytes)
    found: list[Stretch | None] = [None] * len(wanted)
    events: list[Event] = []
    for row in rows:
        if row["numbers"] is not None:  # a stretch begins
            events = []
            stretch = Stretch(row["last_seq"], events)
            for number in row["numbers"]:
                found[number - 1] = stretch
        if row["seq"] is not None:
            events.append(event_of(row))
    return found


async def read_cursors(connection: Connection, questions: Sequence[Standing]) -> list[list[CursorRow]]:
    """For each question, where its groups stand, in its order; at position 0 the hash is zeros."""
    wanted = [(question.user_id, group_id, seq) for question in questions for group_id, seq in question.positions]
    rows = iter(await connection.fetch(_CURSORS, *_columns(wanted)))
    return [
        [_cursor_row(row, seq) for (_, seq), row in zip(question.positions, rows, strict=False)]
        for question in questions
    ]


def _cursor_row(row: asyncpg.Record, at: int) -> CursorRow:
    group_id, seq, head_hash, deleted, is_member, hash_at_cursor = row
    return CursorRow(
        group_id,
        seq or 0,
        head_hash or ZERO_HASH,
        exists=seq is not None,
        deleted=bool(deleted),
        is_member=is_member,
        hash_at_cursor=ZERO_HASH if at == 0 else hash_at_cursor,
    )


def _columns(wanted: Sequence[tuple[bytes, bytes, int]]) -> tuple[list[bytes], list[bytes], list[int]]:
    return [user for user, _, _ in wanted], [group for _, group, _ in wanted], [seq for _, _, seq in wanted]


async def read_memberships(connection: Connection, user_id: bytes, group_ids: Sequence[bytes]) -> frozenset[bytes]:
    """Which of the groups the user is a member of."""
    return frozenset(row[0] for row in await connection.fetch(_MEMBERSHIPS, user_id, group_ids))


async def read_heads(connection: Connection, group_ids: Sequence[bytes]) -> list[HeadRow]:
    """How far these groups have come; unknown ones are left out."""
    return [HeadRow(*row) for row in await connection.fetch(_HEADS, group_ids)]


async def read_head_as_member(
    connection: Connection, group_id: bytes, user_id: bytes, seq: int = 0
) -> tuple[int, bytes, bytes | None] | None:
    """(seq, hash) of a group's head and the hash at `seq`, or None for whoever is not a member."""
    row = await connection.fetchrow(_HEAD_AS_MEMBER, group_id, user_id, seq)
    return None if row is None else (row[0], row[1], ZERO_HASH if seq == 0 else row[2])


async def list_events(connection: Connection, group_id: bytes, page: Page, kinds: Sequence[int] | None) -> list[Event]:
    """A page of the log, ascending. The caller has checked membership in this transaction."""
    return await _list(connection, _LIST_EVENTS, page, group_id, kinds)


async def list_threads(connection: Connection, group_id: bytes, page: Page) -> list[Event]:
    """A page of a group's threads, ascending by seq."""
    return await _list(connection, _LIST_THREADS, page, group_id)


async def list_replies(connection: Connection, group_id: bytes, page: Page, thread_id: bytes) -> list[Event]:
    """A page of a thread's replies, ascending by seq."""
    return await _list(connection, _LIST_REPLIES, page, group_id, thread_id)


async def thread_exists(connection: Connection, group_id: bytes, thread_id: bytes) -> bool:
    """Whether the thread is in this group."""
    return await connection.fetchval(_FIND_THREAD, group_id, thread_id) is not None


async def _list(
    connection: Connection, queries: tuple[str, str], page: Page, group_id: bytes, *more: object
) -> list[Event]:
    rows = await connection.fetch(
        queries[page.newest_first], group_id, page.after, page.before, page.limit, page.limit_bytes, *more
    )
    return [event_of(row) for row in (reversed(rows) if page.newest_first else rows)]

"""Threads, replies and annotations: checked here, appended by the writer; and the pages in which they are read."""

from collections.abc import Sequence
from typing import Final

from orbital_protocol import ZERO_HASH, ZERO_ID
from orbital_protocol.chain import content_hash, field_hash
from orbital_protocol.codes import Kind
from orbital_protocol.frames import (
    AnnotationPost,
    ErrorDetails,
    Event,
    EventList,
    EventListOk,
    Limits,
    ReplyList,
    ReplyPost,
    ThreadList,
    ThreadPost,
)
from orbital_relay.caller import Caller, Peer, require_caller
from orbital_relay.errors import BadArgument, NotFound, TooLarge
from orbital_relay.store import events as event_store
from orbital_relay.store.events import Page
from orbital_relay.store.pool import Connection, Database
from orbital_relay.store.posts import Post

_PAGE_BYTES: Final = 512 * 1024
_EVENT_OVERHEAD_BYTES: Final = 400
_STORED_PAGE_BYTES: Final = 2 * _PAGE_BYTES  # base64 has 4/3 of the bytes: whoever passes this has passed the other too


class Posts:
    """What is said in a group."""

    def __init__(self, database: Database, limits: Limits) -> None:
        self._database = database
        self._limits = limits

    def thread(self, caller: Caller, request: ThreadPost) -> Post:
        """Check a thread; its parent in the content hash is zeros."""
        self._check_size("encrypted_title", request.encrypted_title, self._limits.max_title_bytes)
        self._check_size("encrypted_body", request.encrypted_body, self._limits.max_body_bytes)
        hashes = (field_hash(request.encrypted_title), field_hash(request.encrypted_body))
        return Post(
            group_id=_visible(caller, request.group_id),
            kind=Kind.THREAD_POSTED,
            object_id=_own_id(request.thread_id),
            parent_id=None,
            author_id=caller.user_id,
            key_epoch=request.key_epoch,
            encrypted_title=request.encrypted_title,
            encrypted_body=request.encrypted_body,
            field_hashes=b"".join(hashes),
            content_hash=content_hash(ZERO_ID, hashes),
        )

    def reply(self, caller: Caller, request: ReplyPost) -> Post:
        """Check a reply; its parent is the thread."""
        return self._attached(
            caller, request, kind=Kind.REPLY_POSTED, parent_id=request.thread_id, object_id=request.reply_id
        )

    def annotation(self, caller: Caller, request: AnnotationPost) -> Post:
        """Check an annotation; its parent is what it is attached to."""
        return self._attached(
            caller, request, kind=Kind.ANNOTATION_POSTED, parent_id=request.target_id, object_id=request.annotation_id
        )

    def _attached(
        self, caller: Caller, request: ReplyPost | AnnotationPost, *, kind: Kind, parent_id: bytes, object_id: bytes
    ) -> Post:
        self._check_size("encrypted_body", request.encrypted_body, self._limits.max_body_bytes)
        hash_ = field_hash(request.encrypted_body)
        return Post(
            group_id=_visible(caller, request.group_id),
            kind=kind,
            object_id=_own_id(object_id),
            parent_id=parent_id,
            author_id=caller.user_id,
            key_epoch=request.key_epoch,
            encrypted_title=None,
            encrypted_body=request.encrypted_body,
            field_hashes=hash_,
            content_hash=content_hash(parent_id, (hash_,)),
        )

    async def event_list(self, peer: Peer, request: EventList) -> EventListOk:
        """A page of the log."""
        page = self._page(request)
        async with self._database.snapshot() as connection:
            head = await self._head(connection, peer, request.group_id)
            events = await event_store.list_events(connection, request.group_id, page, request.kinds)
            fitting = _fitting(events, page)
            previous = None
            if fitting and request.kinds is None:
                previous = await self._hash_before(connection, peer, request.group_id, fitting[0].seq)
        return _answer(request, page, events, fitting, head=head, previous=previous)

    async def thread_list(self, peer: Peer, request: ThreadList) -> EventListOk:
        """A page of a group's threads."""
        page = self._page(request)
        async with self._database.snapshot() as connection:
            head = await self._head(connection, peer, request.group_id)
            events = await event_store.list_threads(connection, request.group_id, page)
        return _answer(request, page, events, _fitting(events, page), head=head)

    async def reply_list(self, peer: Peer, request: ReplyList) -> EventListOk:
        """A page of a thread's replies."""
        page = self._page(request)
        async with self._database.snapshot() as connection:
            head = await self._head(connection, peer, request.group_id)
            if not await event_store.thread_exists(connection, request.group_id, request.thread_id):
                raise NotFound
            events = await event_store.list_replies(connection, request.group_id, page, request.thread_id)
        return _answer(request, page, events, _fitting(events, page), head=head)

    async def _head(self, connection: Connection, peer: Peer, group_id: bytes) -> tuple[int, bytes]:
        caller = require_caller(peer)
        head = await event_store.read_head_as_member(connection, _visible(caller, group_id), caller.user_id)
        if head is None:
            raise NotFound
        return head[0], head[1]

    async def _hash_before(self, connection: Connection, peer: Peer, group_id: bytes, seq: int) -> bytes:
        head = await event_store.read_head_as_member(connection, group_id, require_caller(peer).user_id, seq - 1)
        return ZERO_HASH if head is None or head[2] is None else head[2]

    def _page(self, request: EventList | ThreadList | ReplyList) -> Page:
        if request.after_seq is not None and request.before_seq is not None:
            raise BadArgument("Give after_seq or before_seq, not both.", details=ErrorDetails(field="before_seq"))
        return Page(
            min(request.limit, self._limits.page_limit), _STORED_PAGE_BYTES, request.after_seq, request.before_seq
        )

    @staticmethod
    def _check_size(field: str, data: bytes, limit: int) -> None:
        if len(data) > limit:
            raise TooLarge(details=ErrorDetails(field=field, limit=limit))
        if not data:
            raise BadArgument("A ciphertext is never empty.", details=ErrorDetails(field=field))


def _visible(caller: Caller, group_id: bytes) -> bytes:
    if not caller.may_see(group_id):
        raise NotFound
    return group_id


def _own_id(object_id: bytes) -> bytes:
    if object_id == ZERO_ID:
        raise BadArgument("The zero id stands for nothing.")
    return object_id


def _fitting(events: list[Event], page: Page) -> list[Event]:
    """As many events, from the end that the page is filled from, as an answer may hold; at least one."""
    ordered = list(reversed(events)) if page.newest_first else events
    kept: list[Event] = []
    size = 0
    for event in ordered:
        size += _EVENT_OVERHEAD_BYTES + sum(
            len(field or b"")
            for field in (event.encrypted_title, event.encrypted_body, event.encrypted_metadata, event.statement)
        )
        if kept and size > _PAGE_BYTES:
            break
        kept.append(event)
    return list(reversed(kept)) if page.newest_first else kept


def _answer(  # noqa: PLR0913  its parts
    request: EventList | ThreadList | ReplyList,
    page: Page,
    found: Sequence[Event],
    fitting: list[Event],
    *,
    head: tuple[int, bytes],
    previous: bytes | None = None,
) -> EventListOk:
    return EventListOk(
        id=request.id,
        events=fitting,
        seq=head[0],
        hash=head[1],
        previous_hash=previous,
        more=len(fitting) < len(found) or len(found) == page.limit,
    )

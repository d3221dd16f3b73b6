"""From the socket to `events()`: subscribes to what is followed, verifies it, and lets the reader set the pace.

A socket that isn't read brings no answers and no pings either. So when the inbox is full, reading pauses for a few
seconds and only while no answer is waited for; after that the subscriptions are ended, and taken up again behind
what has come in once there is room. Nothing is lost by it, and the connection stays alive however slow the reader.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from typing import Final

from orbital_client.errors import ChainBroken, ClientClosed, LogBroken, RequestFailed, TryLater
from orbital_client.wire.bookmarks import Bookmarks
from orbital_client.wire.connection import Closure, Connection
from orbital_client.wire.following import Following
from orbital_client.wire.inbox import Disconnected, Inbox, Item, Reconnected
from orbital_client.wire.session import Ask
from orbital_protocol.codes import Kind
from orbital_protocol.frames import (
    Cursor,
    CursorMoved,
    Event,
    GroupGone,
    GroupHead,
    JoinRequested,
    Live,
    Ok,
    Push,
    Signal,
    Subscribe,
    SubscribedGroup,
    SubscribeGroup,
    SubscribeOk,
    Unsubscribe,
    type_of,
)

log = logging.getLogger("orbital_client")

_BATCH: Final = 200  # groups of one request
_NOTICE_BYTES: Final = 64
_PAUSE_S: Final = 5.0  # well below a heartbeat
_PLACES: Final = (Event, Live)


class Feed:
    """What a session brings in, for one reader at a time. The session's owner (see `session.Owner`)."""

    def __init__(  # noqa: PLR0913  two of them are the client's ears
        self,
        bookmarks: Bookmarks,
        *,
        follow_all: bool,
        kinds: Collection[Kind] | None,
        buffer_bytes: int,
        observe: Callable[[Event], None],
        learn: Callable[[GroupHead], None],
    ) -> None:
        self.attention = asyncio.Event()
        self._bookmarks = bookmarks
        self._follow_all = follow_all
        self._kinds: list[int] | None = None if kinds is None else sorted(kinds)
        self._observe = observe
        self._learn = learn
        self._following = Following()
        self._inbox = Inbox(buffer_bytes, self._read_on)
        self._paused: Connection | None = None
        self._handed_out: Sequence[Item] = ()
        self._is_read = False
        self._connections = 0
        self._taken = self._taken_before = 0
        self._heads_before: Sequence[Cursor] = ()
        self._stopped: Exception | None = ClientClosed("nobody has signed in")

    # ── what the client does with it ────────────────────────────────────────────────────────────────────────────────

    def follow(self, position: Cursor) -> None:
        """Follow a group after this position."""
        if self._bookmarks.get(position.group_id) is None:
            self._bookmarks.put(position)
        self._following.follow(position)
        self.attention.set()

    def unfollow(self, group_id: bytes) -> None:
        """Follow a group no more, and forget how far it was read."""
        self._following.drop(group_id)
        self._bookmarks.drop(group_id)
        self.attention.set()

    def check(self, group_id: bytes) -> None:
        """Raise what broke the trust in this group's log, if anything has."""
        if finding := self._following.broken.get(group_id):
            raise finding.with_traceback(None)

    async def next(self, most: int) -> list[Item]:
        """The next items, at least one: all that are there, but at most so many. Those before count as read now.

        Raises what was found wrong with a group's log (once; the next call goes on with the other groups), why the
        session ended, and StopAsyncIteration after `close`.
        """
        if self._is_read:
            raise RuntimeError("events() is being read by somebody else")
        self._is_read = True
        try:
            while True:
                self._mark_read()
                taken = self._inbox.take(most)
                if not isinstance(taken, list):
                    raise taken
                if not taken:
                    self._raise_stopped()
                    await self._inbox.arrival()
                self._handed_out = taken
                if items := self._filtered(taken):
                    return items
        finally:
            self._is_read = False

    def _mark_read(self) -> None:
        handed_out, self._handed_out = self._handed_out, ()
        last = {item.group_id: item for item in handed_out if isinstance(item, _PLACES)}
        for item in last.values():
            self._bookmarks.move(Cursor(group_id=item.group_id, seq=item.seq, hash=item.hash))

    def _filtered(self, items: list[Item]) -> list[Item]:
        kinds = self._kinds
        return items if kinds is None else [i for i in items if not isinstance(i, Event) or i.kind in kinds]

    def _raise_stopped(self) -> None:
        if isinstance(self._stopped, ClientClosed) and self._connections:
            raise StopAsyncIteration
        if self._stopped is not None:
            raise self._stopped.with_traceback(None)

    # ── what the session tells ──────────────────────────────────────────────────────────────────────────────────────

    def connected(self, heads: list[GroupHead]) -> None:
        """Signed in: these are the user's groups."""
        self._stopped = None
        self._connections += 1
        if self._connections > 1:
            self._notice(Reconnected())
        for head in heads:
            self._learn(head)
            if self._follow_all:
                here = Cursor(group_id=head.group_id, seq=head.seq, hash=head.hash)
                self.follow(self._bookmarks.get(head.group_id) or here)
        for cursor in self._bookmarks.all():  # those that are no longer the user's end with a GroupGone
            self._following.follow(cursor)
        self._inbox.wake()

    def disconnected(self, closure: Closure) -> None:
        self._following.disconnected()
        self._heads_before = ()
        if not closure.for_good:
            self._notice(Disconnected(closure.code, closure.reason))

    def stopped(self, reason: Exception) -> None:
        self._following.disconnected()
        self._stopped = reason
        self._inbox.wake()

    def push(self, push: Push, size: int) -> None:
        """Take in what the relay pushed."""
        try:
            match push:
                case Event():
                    if self._following.take_event(push):
                        self._taken += 1
                        self._observe(push)
                        self._inbox.put(push, size)
                case Live():
                    if self._following.take_live(push):
                        self._inbox.put(push, size)
                case GroupGone():
                    self._gone(push)
                case JoinRequested() | CursorMoved() | Signal():
                    self._notice(push, size)
                case _:
                    log.debug("passed over a %s", type_of(push))
        except ChainBroken as finding:
            self._find(finding)

    def _notice(self, item: Item, size: int = _NOTICE_BYTES) -> None:
        """Hand out something that is no part of a log, and may be lost on a slow reader."""
        if not self._inbox.is_full:
            self._inbox.put(item, size)

    def _gone(self, gone: GroupGone) -> None:
        if self._following.take_gone(gone.group_id):
            self._bookmarks.drop(gone.group_id)
            self._inbox.put(gone)

    def _find(self, finding: LogBroken) -> None:
        log.error("stopped following a group: %s", finding)
        self._following.find(finding)
        self._inbox.put(finding)
        self.attention.set()

    def is_behind(self, heads: Sequence[Cursor]) -> bool:
        """Whether the relay had more than has come when it was last asked, and nothing has come since."""
        behind = self._taken == self._taken_before and any(self._following.lacks(head) for head in self._heads_before)
        self._heads_before, self._taken_before = heads, self._taken
        return behind

    # ── subscriptions ───────────────────────────────────────────────────────────────────────────────────────────────

    async def subscribe(self, ask: Ask) -> None:
        """Bring the connection's subscriptions in step with what is followed."""
        while left_over := self._following.surplus()[:_BATCH]:
            await ask(Unsubscribe(id=0, groups=left_over), Ok)
            self._following.ended(left_over)
        while groups := self._following.missing(_BATCH):
            await self._subscribe(ask, groups)

    async def _subscribe(self, ask: Ask, groups: list[SubscribeGroup]) -> None:
        self._following.subscribing(groups)
        try:
            answer = await ask(Subscribe(id=0, groups=groups, kinds=self._kinds), SubscribeOk)
        except RequestFailed as failure:
            self._following.ended([group.group_id for group in groups])
            if isinstance(failure, TryLater):
                raise
            for group in groups:
                self._following.drop(group.group_id)
            self._inbox.put(failure)
            return
        for verdict in answer.groups:
            self._judge(verdict)

    def _judge(self, group: SubscribedGroup) -> None:
        if group.status in ("denied", "gone"):
            reason = "deleted" if group.status == "gone" else group.status
            self._gone(GroupGone(group_id=group.group_id, reason=reason))
        elif finding := self._following.verdict(group):
            self._following.ended([group.group_id])
            self._find(finding)

    # ── the reader's pace ───────────────────────────────────────────────────────────────────────────────────────────

    async def pace(self, connection: Connection) -> None:
        """Wait while the inbox is full; if that takes too long, or an answer is waited for, end the subscriptions."""
        if not self._inbox.is_full or self._following.is_paused:
            return
        if not connection.has_requests:
            self._paused = connection
            connection.read_on.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(_PAUSE_S):
                    await connection.read_on.wait()
            self._paused = None
        if self._inbox.is_full:
            self._following.pause()
            self.attention.set()

    def _read_on(self) -> None:
        """There is room again."""
        self._following.unpause()
        self.attention.set()
        if self._paused is not None:
            self._paused.read_on.set()

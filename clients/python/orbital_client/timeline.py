"""Reading a group: the log's events from any place on, and what it is made of, fetched again and checked against it."""

from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Final

import msgspec

from orbital_client.errors import (
    CannotOpen,
    ChainFork,
    ClientClosed,
    LogBroken,
    MissingKey,
    NotFound,
    Rejected,
    Withheld,
)
from orbital_client.replica import Replica
from orbital_client.trust.board import Board, Post, post_of, sealed_post
from orbital_client.trust.findings import Finding, Flaw
from orbital_client.trust.index import Known
from orbital_client.trust.log import POSTS
from orbital_client.trust.opening import Opened, belongs, open_events
from orbital_client.wire import Client
from orbital_protocol.codes import Kind
from orbital_protocol.frames import Event, EventList, EventListOk

MESSAGES: Final = (Kind.THREAD_POSTED, Kind.REPLY_POSTED, Kind.MEDIA_POSTED)
"""Kinds of what people see as a message."""

_PAGE: Final = 100
_NEAR: Final = 32  # events; what lies closer together is fetched in one page
_WAITING: Final = 4_096
_AT_ONCE: Final = 16  # events that are opened together: who is slow with the first sees the last as it stood then


class Read(msgspec.Struct, frozen=True):
    """An event, and what it says if it is a post: opened, or why not."""

    event: Event
    opened: Opened | None = None
    problem: CannotOpen | None = None


class Timeline:
    """What a group's log says, to whoever reads it."""

    def __init__(self, wire: Client, replica: Replica) -> None:
        self._wire = wire
        self._replica = replica

    # ── opening ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def read(self, events: Sequence[Event]) -> list[Read]:
        """What each event says, if it is a post. What should not be is taken note of."""
        posts = [event for event in events if event.kind in POSTS]
        found = self._open(posts)
        if any(isinstance(post, Withheld) for post in found):
            await self._replica.catch_up()  # they may have been deleted a moment ago
            found = self._open(posts)
        opened = iter(found)
        return [self._read(event, next(opened)) if event.kind in POSTS else Read(event) for event in events]

    def _open(self, posts: Sequence[Event]) -> list[Opened | CannotOpen]:
        replica = self._replica
        return [
            Rejected(Finding(Flaw.KEY_CHANGED, replica.group_id, event.seq, event.actor_id))
            if event.actor_id in replica.changed_keys
            else found
            for event, found in zip(posts, open_events(replica.log, replica.keyring, posts), strict=True)
        ]

    def _read(self, event: Event, found: Opened | CannotOpen) -> Read:
        if not isinstance(found, CannotOpen):
            return Read(event, found)
        if isinstance(found, Rejected) and found.finding.flaw is Flaw.FORK:
            self._note(found.finding)
        elif isinstance(found, Withheld):
            self._note(Finding(Flaw.WITHHELD, self._replica.group_id, event.seq, event.actor_id))
        return Read(event, problem=found)

    def _note(self, finding: Finding) -> None:
        """What was found wrong with a post that is read again and again is told once."""
        if finding not in self._replica.findings:
            self._replica.find(finding)

    def post(self, read: Read) -> Post:
        """The message that a post is; what can't be opened says why."""
        if read.opened is not None:
            return post_of(read.opened)
        known = self._replica.index.by_seq(read.event.seq)
        if known is None or read.problem is None:
            raise ValueError("only a post of the log is a message")
        return sealed_post(read.event, known, read.problem)

    # ── from a place on ─────────────────────────────────────────────────────────────────────────────────────────────

    async def follow(self, after_seq: int) -> AsyncIterator[list[Read]]:
        """Every event after this seq, a few at a time, those to come included; what lacked its key comes again.

        Ends when the user sees no more of the group, or the client is closed. Raises LogBroken, and what ended the
        session.
        """
        replica = self._replica
        seq = after_seq
        waiting: OrderedDict[int, Event] = OrderedDict()
        keys = len(replica.keyring)
        try:
            while True:
                while seq < replica.log.position.seq:
                    events = replica.recent(seq + 1) or await self._page(seq + 1, replica.log.position.seq)
                    for few in _few(events):
                        reads = await self.read(few)
                        waiting |= {read.event.seq: read.event for read in reads if _lacks_key(read)}
                        while len(waiting) > _WAITING:
                            waiting.popitem(last=False)
                        seq = few[-1].seq
                        yield reads
                if keys != len(replica.keyring):
                    keys = len(replica.keyring)
                    for few in _few(list(waiting.values())):
                        reads = [read for read in await self.read(few) if not _lacks_key(read)]
                        for read in reads:
                            del waiting[read.event.seq]
                        yield reads
                    continue
                replica.check()
                if replica.gone is not None or self._is_closed():
                    return
                await replica.pulse.wait()
        except NotFound:
            if not await replica.has_gone():
                raise

    def _is_closed(self) -> bool:
        try:
            self._wire.check_running()
        except ClientClosed:
            return True
        return False

    async def _page(self, first: int, last: int) -> list[Event]:
        """The events from one seq to another, each checked against the log. Raises LogBroken."""
        request = EventList(
            id=0, group_id=self._replica.group_id, after_seq=first - 1, limit=min(last - first + 1, self._limit)
        )
        page = await self._wire.request(request, EventListOk)
        events = [event for event in page.events if event.seq <= last]
        if [event.seq for event in events] != list(range(first, first + len(events))) or not events:
            raise self._broken(first, "the relay leaves out what it had shown before")
        for event in events:
            if not belongs(self._replica.log, event):
                raise self._broken(event.seq, "the relay shows another event here than it had before")
        return events

    @property
    def _limit(self) -> int:
        return max(1, min(_PAGE, self._wire.limits.page_limit))

    def _broken(self, seq: int, problem: str) -> LogBroken:
        error = ChainFork(self._replica.group_id, seq, problem)
        self._replica.break_off(error)
        return error

    # ── messages as they stand ──────────────────────────────────────────────────────────────────────────────────────

    async def latest(self, limit: int, before_seq: int | None = None) -> list[Post]:
        """The last messages of the group, oldest first."""
        return await self._posts(self._replica.index.latest(MESSAGES, before_seq=before_seq, limit=limit))

    async def threads(self, limit: int, before_seq: int | None = None) -> list[Post]:
        """The last threads of the group, oldest first."""
        return await self._posts(self._replica.index.latest((Kind.THREAD_POSTED,), before_seq=before_seq, limit=limit))

    async def thread(self, thread_id: bytes) -> list[Post]:
        """A thread and all that was posted in it, oldest first."""
        index = self._replica.index
        start = index.by_id(thread_id)
        known = [start] if start else []
        return await self._posts([*known, *(child for child in index.children(thread_id) if child.kind in MESSAGES)])

    async def message(self, message_id: bytes) -> Post | None:
        """One message as it stands."""
        known = self._replica.index.by_id(message_id)
        posts = await self._posts([known] if known and known.kind in MESSAGES else [])
        return posts[0] if posts else None

    async def find(self, prefix: str, limit: int) -> list[Post]:
        """Messages whose id begins with these hexadecimal digits, oldest first."""
        return await self._posts(self._replica.index.starting_with(prefix, MESSAGES, limit=limit))

    async def _posts(self, wanted: list[Known]) -> list[Post]:
        index = self._replica.index
        annotations = [
            child
            for known in wanted
            if not known.erased_at
            for child in index.children(known.object_id)
            if child.kind == Kind.ANNOTATION_POSTED and child.counts and not child.erased_at
        ]
        board = Board(self._replica.log.role_at)
        for few in _few(await self._fetch(known.seq for known in (*wanted, *annotations))):
            for read in await self.read(few):
                if read.event.kind in MESSAGES:
                    board.put(self.post(read))
                elif read.opened is not None:  # an edit or reaction that can't be read leaves the message as it was
                    board.annotate(read.opened)
        return list(board)

    async def _fetch(self, seqs: Iterable[int]) -> list[Event]:
        """These events, in the order of the log; a page for those that lie close together."""
        wanted = sorted(set(seqs))
        found: dict[int, Event] = {}
        for first, last in _ranges(wanted):
            at = first
            while at <= last:
                events = self._replica.recent(at) or await self._page(at, last)
                found |= {event.seq: event for event in events}
                at = events[-1].seq + 1
        return [found[seq] for seq in wanted]


def _few(events: Sequence[Event]) -> Iterator[Sequence[Event]]:
    return (events[at : at + _AT_ONCE] for at in range(0, len(events), _AT_ONCE))


def _lacks_key(read: Read) -> bool:
    return isinstance(read.problem, MissingKey)


def _ranges(seqs: list[int]) -> list[tuple[int, int]]:
    """Ranges that have all of these, none of them with a long gap."""
    if not seqs:
        return []
    ranges = []
    first = seqs[0]
    for seq, following in pairwise(seqs):
        if following - seq > _NEAR:
            ranges.append((first, seq))
            first = following
    return [*ranges, (first, seqs[-1])]

"""Subscribe: page from the store at the reader's pace, join the live set at fan-out's position.

There is no buffer between replay and live. A page is read, handed to the outbox, and the next one waits until the
outbox is low. When a subscription has everything that fan-out has delivered, it joins in the same tick. A live
subscription whose outbox passes its bound comes back here. Membership is checked in the statement that reads.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from orbital_protocol import codec
from orbital_protocol.frames import Event, GroupGone, Live
from orbital_relay.errors import RequestError
from orbital_relay.fanout import Fanout, Subscription
from orbital_relay.metrics import Metrics
from orbital_relay.outbox import Outbox
from orbital_relay.ring import Entry
from orbital_relay.store import events as event_store
from orbital_relay.store.pool import Database

_PAGE_EVENTS: Final = 100
_PAGE_BYTES: Final = 256 * 1024
_GROUPS_A_PAGE: Final = 20
_RETRY_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Start:
    """Where a subscription starts: after this event, whose hash is known."""

    group_id: bytes
    seq: int
    hash: bytes


@dataclass(frozen=True, slots=True)
class _Page:
    """What the store had next, by group, and the last seq of those groups; the groups of which the user is no member;
    those of them that are deleted."""

    events: dict[bytes, list[Event]]
    last_seqs: dict[bytes, int]
    strange: frozenset[bytes]
    deleted: frozenset[bytes]


class Replays:
    """What all replays of a relay share: a bound on how many read from the database at once."""

    def __init__(self, database: Database, fanout: Fanout, metrics: Metrics, concurrency: int) -> None:
        self.database = database
        self.fanout = fanout
        self.metrics = metrics
        self.reading = asyncio.Semaphore(concurrency)


class Subscriptions:
    """The subscriptions of one connection."""

    def __init__(self, shared: Replays, outbox: Outbox, spawn: Callable[..., None]) -> None:
        self._shared = shared
        self._fanout = shared.fanout
        self._outbox = outbox
        self._spawn = spawn
        self._subscriptions: dict[bytes, Subscription] = {}
        self._expected: Counter[bytes] = Counter()  # groups of subscribe requests that are being answered
        self._hashes: dict[bytes, bytes] = {}  # of those that page: the hash at their position
        self._paging: set[Subscription] = set()
        self._is_paging = False

    def __len__(self) -> int:
        return len(self._subscriptions)

    def group_ids(self) -> list[bytes]:
        """The groups subscribed to."""
        return list(self._subscriptions)

    def count_with(self, group_ids: Iterable[bytes]) -> int:
        """How many subscriptions there would be with these, and with those that are about to begin."""
        return len({*group_ids, *self._subscriptions, *self._expected})

    def watch(self, group_ids: Sequence[bytes]) -> None:
        """Remember these groups' wake-ups from now on; ends in `begin` or `unwatch`."""
        for group_id in group_ids:
            self._fanout.watch(group_id)
            self._expected[group_id] += 1

    def unwatch(self, group_ids: Sequence[bytes]) -> None:
        """Take back `watch` for groups that no subscription begins for."""
        for group_id in group_ids:
            self._expect_no_more(group_id)
            self._fanout.unwatch(group_id)

    def begin(self, user_id: bytes, starts: Sequence[Start], kinds: frozenset[int] | None) -> None:
        """Begin watched subscriptions; one that is there already begins anew from its new cursor."""
        for start in starts:
            self._expect_no_more(start.group_id)
            if start.group_id in self._subscriptions:
                self.end(start.group_id)
            subscription = Subscription(
                group_id=start.group_id,
                user_id=user_id,
                outbox=self._outbox,
                position=start.seq,
                kinds=kinds,
                fall_back=self._on_fall_back,
            )
            self._subscriptions[start.group_id] = subscription
            self._page(subscription, start.hash)

    def _expect_no_more(self, group_id: bytes) -> None:
        self._expected[group_id] -= 1
        if not self._expected[group_id]:
            del self._expected[group_id]

    def end(self, group_id: bytes) -> None:
        """End a subscription, if there is one."""
        subscription = self._subscriptions.pop(group_id, None)
        if subscription is not None:
            self._fanout.leave(subscription)
            self._fanout.unwatch(group_id)
            self._paging.discard(subscription)
            self._hashes.pop(group_id, None)

    def end_all(self) -> None:
        """End every subscription."""
        for group_id in self.group_ids():
            self.end(group_id)

    def _on_fall_back(self, subscription: Subscription, gone: str | None) -> None:
        """Fan-out has let go: page again, or forget the group that is gone."""
        if self._subscriptions.get(subscription.group_id) is not subscription:
            return
        if gone is None:
            self._page(subscription, None)
        else:
            self.end(subscription.group_id)

    def _page(self, subscription: Subscription, hash_: bytes | None) -> None:
        if hash_ is not None:
            self._hashes[subscription.group_id] = hash_
        self._paging.add(subscription)
        if not self._is_paging:
            self._is_paging = True
            self._spawn(self._run(), name="replay")

    async def _run(self) -> None:
        """Page until every subscription is live or over."""
        self._shared.metrics.replays_active.inc()
        try:
            while self._paging:
                await self._outbox.wait_low()
                turn = list(self._paging)[:_GROUPS_A_PAGE]
                if not turn:
                    return  # all were ended while there was no room
                try:
                    page = await self._read(turn)
                except RequestError:  # away or busy: nothing is lost, only late
                    await asyncio.sleep(_RETRY_S)
                    continue
                for subscription in turn:
                    if subscription in self._paging:
                        self._advance(subscription, page)
        finally:
            self._is_paging = False
            self._shared.metrics.replays_active.dec()

    async def _read(self, turn: Sequence[Subscription]) -> "_Page":
        user_id = turn[0].user_id
        async with self._shared.reading, self._shared.database.connection() as connection:
            page = await event_store.read_replay(
                connection,
                user_id,
                [(s.group_id, s.position) for s in turn],
                limit=_PAGE_EVENTS,
                limit_bytes=_PAGE_BYTES // len(turn),
            )
            by_group: dict[bytes, list[Event]] = {}
            last_seqs: dict[bytes, int] = {}
            for event, last_seq in page:
                by_group.setdefault(event.group_id, []).append(event)
                last_seqs[event.group_id] = last_seq
            silent = [s.group_id for s in turn if s.group_id not in by_group]
            members = await event_store.read_memberships(connection, user_id, silent) if silent else frozenset()
            strange = [group_id for group_id in silent if group_id not in members]
            heads = await event_store.read_heads(connection, strange) if strange else []
        deleted = frozenset(head.group_id for head in heads if head.deleted)
        return _Page(by_group, last_seqs, frozenset(strange), deleted)

    def _advance(self, subscription: Subscription, page: "_Page") -> None:
        """Hand a page over; at its end join the live set, or say that the group is gone."""
        if subscription.group_id in page.strange:
            reason = "deleted" if subscription.group_id in page.deleted else "denied"
            self._outbox.put_frame(codec.encode(GroupGone(group_id=subscription.group_id, reason=reason)))
            self.end(subscription.group_id)
            return
        events = [e for e in page.events.get(subscription.group_id, ()) if e.seq > subscription.position]
        for event in events:
            self._outbox.put_frame(Entry(event).bytes_for(subscription.kinds))
        if events:
            subscription.position = events[-1].seq
            self._hashes[subscription.group_id] = events[-1].hash
        is_at_end = subscription.position >= page.last_seqs.get(subscription.group_id, 0)
        if is_at_end and self._fanout.join(subscription):
            self._paging.discard(subscription)
            hash_ = self._hashes.pop(subscription.group_id, None)
            if hash_ is not None:
                live = Live(group_id=subscription.group_id, seq=subscription.position, hash=hash_)
                self._outbox.put_frame(codec.encode(live))

"""Subscribe: page from the store at the reader's pace, join the live set at fan-out's position.

There is no buffer between replay and live. A page is read, handed to the outbox, and the next one waits until the
outbox is low. When a subscription has everything that fan-out has delivered, it joins in the same tick. A live
subscription whose outbox passes its bound comes back here. Membership is checked in the statement that reads, or was in
the one that told where the log stands: what it said until then may be taken from a page that was read for others. Many
who come back at once are read for together: those who stopped at the same place share a page.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final, NamedTuple

from orbital_protocol import codec
from orbital_protocol.frames import GroupGone, Live
from orbital_relay.batcher import Batcher
from orbital_relay.errors import RequestError
from orbital_relay.fanout import Fanout, Subscription
from orbital_relay.metrics import Metrics
from orbital_relay.outbox import Outbox
from orbital_relay.pages import Page, Pages
from orbital_relay.store import events as event_store
from orbital_relay.store.pool import Connection, Database

_PAGE_EVENTS: Final = 100
_TURN_BYTES: Final = 256 * 1024
_GROUPS_A_TURN: Final = 20
_STATEMENT_BYTES: Final = 4 * 1024 * 1024
_GROUPS_A_STATEMENT: Final = 80
_RETRY_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Start:
    """Where a subscription starts: after this event, whose hash is known.

    `last_seq` is that of the log's head when its user was known to be a member.
    """

    group_id: bytes
    seq: int
    hash: bytes
    last_seq: int


class _Gone(NamedTuple):
    """A group of which the user is no member."""

    is_deleted: bool


class _Turn(NamedTuple):
    """Groups of one user, and the positions after which to read."""

    user_id: bytes
    positions: Sequence[tuple[bytes, int]]


class Replays:
    """What all replays of a relay share: they are read together, so many statements at a time."""

    def __init__(self, database: Database, fanout: Fanout, metrics: Metrics, concurrency: int) -> None:
        self.fanout = fanout
        self.metrics = metrics
        self.pages = Pages()
        self.reads = Batcher(
            database,
            self._read,
            at_once=concurrency,
            max_size=_GROUPS_A_STATEMENT,
            size_of=lambda turn: len(turn.positions),
        )

    async def _read(self, connection: Connection, turns: Sequence[_Turn]) -> list[list[Page | _Gone]]:
        """For each group of each turn, what comes next."""
        wanted = [(turn.user_id, group_id, seq) for turn in turns for group_id, seq in turn.positions]
        limit_bytes = min(_TURN_BYTES // max(len(turn.positions) for turn in turns), _STATEMENT_BYTES // len(wanted))
        stretches = await event_store.read_replay(connection, wanted, limit=_PAGE_EVENTS, limit_bytes=limit_bytes)
        strange = [group_id for (_, group_id, _), stretch in zip(wanted, stretches, strict=True) if stretch is None]
        heads = await event_store.read_heads(connection, strange) if strange else []
        deleted = {head.group_id for head in heads if head.deleted}
        pages: dict[tuple[bytes, int], Page] = {}
        found: list[Page | _Gone] = []
        for (_, group_id, seq), stretch in zip(wanted, stretches, strict=True):
            if stretch is None:
                found.append(_Gone(group_id in deleted))
                continue
            page = pages.get((group_id, seq))
            if page is None:
                page = pages[group_id, seq] = _page_of(stretch, seq)
                self.pages.keep((group_id, seq, stretch.last_seq), page)
            found.append(page)
        of_turns = iter(found)
        return [list(islice(of_turns, len(turn.positions))) for turn in turns]


def _page_of(stretch: event_store.Stretch, after_seq: int) -> Page:
    last_seq = stretch.events[-1].seq if stretch.events else after_seq
    return Page(stretch.events, is_last=last_seq >= stretch.last_seq)


class Subscriptions:
    """The subscriptions of one connection."""

    def __init__(self, shared: Replays, outbox: Outbox, spawn: Callable[..., None]) -> None:
        self._shared = shared
        self._fanout = shared.fanout
        self._outbox = outbox
        self._spawn = spawn
        self._subscriptions: dict[bytes, Subscription] = {}
        self._expected: Counter[bytes] = Counter()  # groups of subscribe requests that are being answered
        # Of those that page: the hash at their position, and the seq of the log's head, as far as it may be read
        # without asking whether the user still is a member.
        self._hashes: dict[bytes, bytes] = {}
        self._last_seqs: dict[bytes, int] = {}
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
            self._hashes[start.group_id] = start.hash
            self._last_seqs[start.group_id] = start.last_seq
            self._page(subscription)

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
            self._settle(subscription)

    def end_all(self) -> None:
        """End every subscription."""
        for group_id in self.group_ids():
            self.end(group_id)

    def _on_fall_back(self, subscription: Subscription, gone: str | None) -> None:
        """Fan-out has let go: page again, or forget the group that is gone."""
        if self._subscriptions.get(subscription.group_id) is not subscription:
            return
        if gone is None:
            self._page(subscription)
        else:
            self.end(subscription.group_id)

    def _settle(self, subscription: Subscription) -> bytes | None:
        """It pages no more; the hash at its position, if it has paged from a start."""
        self._paging.discard(subscription)
        self._last_seqs.pop(subscription.group_id, None)
        return self._hashes.pop(subscription.group_id, None)

    def _page(self, subscription: Subscription) -> None:
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
                turn = tuple(islice(self._paging, _GROUPS_A_TURN))
                for subscription in turn:
                    self._take_known(subscription)
                wanted = [(s, s.position) for s in turn if s in self._paging]
                if not wanted or not self._outbox.is_low:
                    await asyncio.sleep(0)
                    continue
                positions = [(subscription.group_id, seq) for subscription, seq in wanted]
                try:
                    pages = await self._shared.reads.ask(_Turn(turn[0].user_id, positions))
                except RequestError:  # away or busy: nothing is lost, only late
                    await asyncio.sleep(_RETRY_S)
                    continue
                for (subscription, seq), page in zip(wanted, pages, strict=True):
                    if subscription in self._paging and subscription.position == seq:
                        self._advance(subscription, page)
        finally:
            self._is_paging = False
            self._shared.metrics.replays_active.dec()

    def _take_known(self, subscription: Subscription) -> None:
        """Advance by pages that others have just read, as far as there is room."""
        group_id = subscription.group_id
        while subscription in self._paging and self._outbox.is_low and group_id in self._last_seqs:
            page = self._shared.pages.find((group_id, subscription.position, self._last_seqs[group_id]))
            if page is None:
                return
            self._advance(subscription, page)

    def _advance(self, subscription: Subscription, page: Page | _Gone) -> None:
        """Hand a page over; at its end join the live set, or say that the group is gone."""
        if isinstance(page, _Gone):
            reason = "deleted" if page.is_deleted else "denied"
            self._outbox.put_frame(codec.encode(GroupGone(group_id=subscription.group_id, reason=reason)))
            self.end(subscription.group_id)
            return
        if page.events:
            self._outbox.put_frame(page.bytes_for(subscription.kinds))
            subscription.position = page.events[-1].seq
            self._hashes[subscription.group_id] = page.events[-1].hash
        if not page.is_last:
            return
        if self._fanout.join(subscription):
            hash_ = self._settle(subscription)
            if hash_ is not None:
                live = Live(group_id=subscription.group_id, seq=subscription.position, hash=hash_)
                self._outbox.put_frame(codec.encode(live))
        else:
            self._last_seqs.pop(subscription.group_id, None)  # the log has gone on

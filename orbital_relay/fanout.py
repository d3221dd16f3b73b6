"""One event to many outboxes: wake → contiguous events → outboxes.

Everything that a subscriber sees enters through `wake(group, up to seq)`. A wake-up is a hint: lost, doubled or
reordered ones change nothing, because a channel delivers position + 1, + 1, … from the ring, and from the store what
the ring lacks. Fan-out must not decide who may subscribe (replay does), and it never waits for a slow reader: whoever
is full goes back to replay.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Protocol

from orbital_protocol import codec, statements
from orbital_protocol.codes import Kind
from orbital_protocol.frames import Event, GroupGone, Signal
from orbital_relay import logs
from orbital_relay.errors import RequestError
from orbital_relay.metrics import Metrics, WakeSource
from orbital_relay.outbox import Outbox, message
from orbital_relay.ring import Entry, Ring
from orbital_relay.store import events as event_store
from orbital_relay.store.pool import Database

logger = logs.get()

_BATCH_EVENTS: Final = 512
_BATCH_BYTES: Final = 256 * 1024
_SOCKETS_A_TURN: Final = 256
_CHANNEL_IN_SOCKETS: Final = 8  # what a channel costs beside its sockets: its message, its next batch
_FETCH_EVENTS: Final = 256
_FETCHES_AT_ONCE: Final = 2
_RETRY_S: Final = 0.5


class Publisher(Protocol):
    """What hands over events after their commit."""

    def publish(self, events: Sequence[Event]) -> None:
        """Put events of this relay's own into the ring, and wake their groups."""


class Subscription:
    """One connection's interest in one group. `position` is the seq of the last event handed to its outbox."""

    __slots__ = ("fall_back", "group_id", "kinds", "outbox", "position", "user_id")

    def __init__(  # noqa: PLR0913  its parts
        self,
        *,
        group_id: bytes,
        user_id: bytes,
        outbox: Outbox,
        position: int,
        kinds: frozenset[int] | None,
        fall_back: "Callable[[Subscription, str | None], None]",
    ) -> None:
        self.group_id = group_id
        self.user_id = user_id
        self.outbox = outbox
        self.position = position
        self.kinds = kinds
        self.fall_back = fall_back
        """Called when fan-out lets go: with None to page from the store again, else with why the group is gone."""


class Channel:
    """One group on this relay: how far its live subscribers are, and how far its log is known to have come."""

    __slots__ = ("busy", "fetched", "fetching", "gone", "group_id", "heard", "live", "position", "target", "watchers")

    def __init__(self, group_id: bytes) -> None:
        self.group_id = group_id
        self.position = 0
        self.target = 0
        self.heard = 0  # the furthest wake-up since the store was last asked, believed or not
        self.live: set[Subscription] = set()
        self.watchers = 0  # subscriptions that are live or on their way
        self.busy = False  # queued or being delivered
        self.fetching = False
        self.fetched: dict[int, Entry] = {}  # by seq, from the store: what the ring lacked
        self.gone = False


class Fanout:
    """The live subscriptions of one relay."""

    def __init__(self, database: Database, metrics: Metrics, ring_bytes: int, admit_behind: int = 4096) -> None:
        self._database = database
        self._metrics = metrics
        self._ring = Ring(ring_bytes)
        self._admit_behind = admit_behind
        self._channels: dict[bytes, Channel] = {}
        self._ready: deque[Channel] = deque()
        self._wanted: deque[Channel] = deque()
        self._handed = 0  # in this turn of the loop, in sockets
        self._has_ready = asyncio.Event()
        self._has_wanted = asyncio.Event()
        self.on_progress: Callable[[], None] = lambda: None
        """Called after a delivery: lanes that paused for a group may look again."""

    # ── what the writer, the listener and the sweep call ────────────────────────────────────────────────────────────

    def wants(self, group_id: bytes) -> bool:
        """Whether anybody here listens to the group: only then are its events worth encoding."""
        return group_id in self._channels

    def publish(self, events: Sequence[Event]) -> None:
        """Put events that this relay has committed into the ring, and wake their groups."""
        for event in events:
            if event.group_id in self._channels:
                self._ring.put(Entry(event))
        for event in events:
            self.wake(event.group_id, event.seq, "writer")

    def wake(self, group_id: bytes, seq: int, source: WakeSource) -> None:
        """A group's log has come to `seq`, or so it is said."""
        channel = self._channels.get(group_id)
        if channel is None:
            return
        channel.heard = max(channel.heard, seq)
        if seq <= channel.target:
            return
        self._metrics.wakeups[source] += 1
        channel.target = seq
        self._make_ready(channel)

    def bury(self, group_id: bytes) -> None:
        """The group is deleted: what can still be delivered is, then its subscribers are told that it is gone."""
        channel = self._channels.get(group_id)
        if channel is not None and not channel.gone:
            channel.gone = True
            self._make_ready(channel)

    def signal(self, signal: Signal) -> None:
        """Hand a signal to whoever is live in the group, except to readers who are slow."""
        channel = self._channels.get(signal.group_id)
        if channel is None:
            return
        data = message(codec.encode(signal))
        for subscription in channel.live:
            if subscription.outbox.is_low:
                subscription.outbox.put_message(data)

    def lags(self, group_id: bytes) -> bool:
        """Whether live subscribers are so far behind that no more of this group's posts should be taken."""
        channel = self._channels.get(group_id)
        return channel is not None and bool(channel.live) and channel.target - channel.position > self._admit_behind

    def groups(self) -> list[bytes]:
        """The groups that anybody here listens to."""
        return list(self._channels)

    # ── what replay calls ───────────────────────────────────────────────────────────────────────────────────────────

    def watch(self, group_id: bytes) -> None:
        """From now on remember the group's wake-ups: somebody is about to subscribe. Undone by `unwatch`."""
        channel = self._channels.get(group_id)
        if channel is None:
            channel = self._channels[group_id] = Channel(group_id)
        channel.watchers += 1

    def unwatch(self, group_id: bytes) -> None:
        """Take back one `watch`; the last one closes the channel."""
        channel = self._channels[group_id]
        channel.watchers -= 1
        if not channel.watchers:
            del self._channels[group_id]
            known = min(channel.target, channel.position + len(self._ring))  # wake-ups may speak of any seq
            for seq in range(channel.position + 1, known + 1):
                self._ring.take(group_id, seq)

    def join(self, subscription: Subscription) -> bool:
        """Join the live set if the subscription has all that was delivered to it; False: page on."""
        channel = self._channels[subscription.group_id]
        if channel.gone:
            return False
        if not channel.live:
            channel.position = subscription.position
        elif subscription.position < channel.position:
            return False
        channel.live.add(subscription)
        if channel.target > channel.position:
            self._make_ready(channel)
        return True

    def leave(self, subscription: Subscription) -> None:
        """Take a subscription out of the live set, if it is there."""
        channel = self._channels.get(subscription.group_id)
        if channel is not None:
            channel.live.discard(subscription)
            if not channel.live:
                self.on_progress()  # nobody is behind any more

    # ── delivery ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Deliver until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._deliver_forever(), name="fanout deliver")
            for number in range(_FETCHES_AT_ONCE):
                tasks.create_task(self._fetch_forever(), name=f"fanout fetch {number}")

    def _make_ready(self, channel: Channel) -> None:
        if not channel.busy and not channel.fetching:
            channel.busy = True
            self._ready.append(channel)
            self._has_ready.set()

    async def _deliver_forever(self) -> None:
        while True:
            await self._has_ready.wait()
            while self._ready:
                channel = self._ready.popleft()
                await self._deliver(channel)
                channel.busy = False
                self._go_on(channel)
                self.on_progress()
                if self._uses_up_turn(_CHANNEL_IN_SOCKETS):
                    await asyncio.sleep(0)
            self._has_ready.clear()

    def _uses_up_turn(self, sockets: int) -> bool:
        """Count what was handed out; whether that is enough for one turn of the loop.

        Channels with few members share a turn: with one each, the last of hundreds would wait for as many turns, each
        as long as all else there is to do.
        """
        self._handed += sockets
        if self._handed < _SOCKETS_A_TURN:
            return False
        self._handed = 0
        return True

    def _go_on(self, channel: Channel) -> None:
        """Decide what the channel needs next: more delivery, the store, its end, or nothing."""
        if not channel.live:
            channel.fetched.clear()
            if not channel.gone:
                channel.position = max(channel.position, channel.target)
            return
        if channel.position < channel.target or channel.gone:
            channel.fetching = True
            self._wanted.append(channel)
            self._has_wanted.set()

    async def _deliver(self, channel: Channel) -> None:
        """Deliver what is here of the log, next to the channel's position, batch by batch."""
        while channel.live and (batch := self._next_batch(channel)):
            await self._hand_out(channel, batch)

    def _next_batch(self, channel: Channel) -> list[Entry]:
        batch: list[Entry] = []
        size = 0
        while len(batch) < _BATCH_EVENTS and size < _BATCH_BYTES:
            seq = channel.position + len(batch) + 1
            fetched = channel.fetched.pop(seq, None)
            entry = self._ring.take(channel.group_id, seq) or fetched
            if entry is None:
                break
            batch.append(entry)
            size += len(entry.frame)
            if _departed(entry.event) is not None:
                break  # whoever leaves gets this event, and nothing after it
        return batch

    async def _hand_out(self, channel: Channel, batch: list[Entry]) -> None:
        first, last = channel.position + 1, channel.position + len(batch)
        channel.position = last  # from now on whoever joins has these events from the store
        messages: dict[frozenset[int] | None, bytes] = {}
        handed = 0
        for subscription in list(channel.live):
            if subscription not in channel.live or subscription.position >= last:
                continue
            if subscription.position + 1 == first:
                data = messages.get(subscription.kinds)
                if data is None:
                    data = messages[subscription.kinds] = _message(batch, subscription.kinds)
            else:
                data = _message(batch[subscription.position + 1 - first :], subscription.kinds)
            subscription.position = last
            subscription.outbox.put_message(data)
            if subscription.outbox.is_full:
                channel.live.discard(subscription)
                subscription.fall_back(subscription, None)
            handed += 1
            if self._uses_up_turn(1):
                await asyncio.sleep(0)
        self._metrics.events_delivered.inc(handed * len(batch))
        self._metrics.delivery_seconds.observe(time.monotonic() - batch[0].made_at)
        self._let_go(channel, batch[-1].event)

    def _let_go(self, channel: Channel, event: Event) -> None:
        """Drop the subscriptions of a user who is no longer a member after this event; all, where the group is gone.

        One that is further on belongs to a user who has come back since: this departure is behind it.
        """
        if event.kind == Kind.GROUP_DELETED:
            self._finish(channel)
            return
        departed = _departed(event)
        if departed is None:
            return
        reason = "left" if event.kind == Kind.MEMBER_LEFT else "removed"
        for subscription in [s for s in channel.live if s.user_id == departed and s.position == event.seq]:
            self._end(channel, subscription, reason)

    @staticmethod
    def _end(channel: Channel, subscription: Subscription, reason: str) -> None:
        channel.live.discard(subscription)
        subscription.outbox.put_frame(codec.encode(GroupGone(group_id=subscription.group_id, reason=reason)))
        subscription.fall_back(subscription, reason)

    # ── what the ring lacks ─────────────────────────────────────────────────────────────────────────────────────────

    async def _fetch_forever(self) -> None:
        while True:
            await self._has_wanted.wait()
            if not self._wanted:
                self._has_wanted.clear()
                continue
            channel = self._wanted.popleft()
            try:
                await self._fetch(channel)
            except RequestError:  # the database is away or busy: the position stays, so nothing is lost
                await asyncio.sleep(_RETRY_S)
                self._wanted.append(channel)
                self._has_wanted.set()
                continue
            channel.fetching = False
            if channel.live and (channel.position < channel.target or channel.gone):
                self._make_ready(channel)
            self.on_progress()

    async def _fetch(self, channel: Channel) -> None:
        """Get what follows the channel's position, or end the channel where nothing can follow."""
        position, channel.heard = channel.position, 0
        async with self._database.connection() as connection:
            events = await event_store.read_events(connection, channel.group_id, position, _FETCH_EVENTS)
            heads = [] if events else await event_store.read_heads(connection, [channel.group_id])
        if channel.position != position:
            return  # everybody left meanwhile, and somebody else joined elsewhere
        if events and events[0].seq == position + 1:
            channel.fetched = {event.seq: Entry(event) for event in events}
            channel.target = max(channel.target, events[-1].seq)
        elif events or (heads and heads[0].deleted) or channel.gone:
            self._finish(channel)  # only a deleted group has a log that begins late, or none
        else:  # a wake-up spoke of more than there is; those that came since the store was asked may be right
            channel.target = max(position, channel.heard)

    def _finish(self, channel: Channel) -> None:
        for subscription in list(channel.live):
            self._end(channel, subscription, "deleted")


def _message(batch: Iterable[Entry], kinds: frozenset[int] | None) -> bytes:
    return message(b"".join([entry.bytes_for(kinds) for entry in batch]))


def _departed(event: Event) -> bytes | None:
    """Who is no longer a member after this event, if anybody."""
    if event.kind == Kind.MEMBER_LEFT:
        return event.actor_id if event.statement is not None else event.object_id
    if event.kind == Kind.MEMBER_REMOVED and event.statement is not None:
        statement = statements.decode(event.statement)
        if isinstance(statement, statements.MemberRemoved):
            return statement.user_id
    return None

"""The data path of a relay on a test database, without sockets: fan-out, replays, and readers who get what comes.

async with data_path(dsn) as path:
    reader = path.reader(alice)
    await reader.subscribe(group_id, seq, hash_)
    await reader.until(lambda: reader.is_live(group_id))
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Self

from orbital_protocol import ZERO_HASH, codec, frames
from orbital_protocol.frames import Event, Limits, Push, SubscribeGroup
from orbital_relay.caller import Caller
from orbital_relay.fanout import Fanout
from orbital_relay.handlers.subscriptions import Live, group_heads
from orbital_relay.limits import KeyedBuckets
from orbital_relay.metrics import Metrics
from orbital_relay.outbox import Flusher, Outbox
from orbital_relay.replay import Replays, Subscriptions
from orbital_relay.store import posts as post_store
from orbital_relay.store.pool import Connection, Database, PoolSettings
from orbital_relay.store.posts import Appended, Outcome, Post
from tests.people import Person
from tests.worlds import LIMITS, RELAY_HEX

LIMIT_S = 15
RING_BYTES = 1 << 20


# ── posts ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def append(connection: Connection, posts: Sequence[Post], relay_hex: str = RELAY_HEX) -> list[Event]:
    """Append posts of one group behind everybody's back; the events as the relay that wrote them would publish them."""
    async with connection.transaction():
        outcomes: list[Outcome] = []
        for post in posts:
            outcomes += await post_store.append_posts(connection, relay_hex, [post])
    events = []
    for post, outcome in zip(posts, outcomes, strict=True):
        assert isinstance(outcome, Appended), outcome
        events.append(post_store.event_of(post, outcome))
    return events


# ── readers ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Wire:
    """A transport that keeps what is written, and takes no more than the test lets it."""

    def __init__(self) -> None:
        self.pushes: list[Push] = []
        self.changed = asyncio.Event()
        self.closing = False

    def write(self, data: bytes) -> None:
        for payload in _messages(data):
            for raw in codec.split(payload):
                push = codec.decode_push(raw)
                assert push is not None
                assert isinstance(push, Push)
                self.pushes.append(push)
        self.changed.set()

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.closing


def _messages(data: bytes) -> list[bytes]:
    """The payloads of unmasked WebSocket frames that stand back to back."""
    payloads = []
    while data:
        assert data[0] == 0x82
        size, start = data[1], 2
        if size >= 126:
            start = 4 if size == 126 else 10
            size = int.from_bytes(data[2:start], "big")
        payloads.append(data[start : start + size])
        data = data[start + size :]
    return payloads


class Reader:
    """One connection's subscriptions, and what they brought. Also the peer that handlers see."""

    def __init__(self, path: "DataPath", person: Person, outbox_bytes: int) -> None:
        self.wire = Wire()
        self.caller: Caller | None = person.caller()
        self.outbox = Outbox(self.wire, path.flusher, outbox_bytes)
        self.subscriptions = Subscriptions(path.replays, self.outbox, self._spawn)
        self._live = path.live
        self._tasks: set[asyncio.Task[None]] = set()
        self._ids = itertools.count(1)
        self._after_answer: list[Callable[[], None]] = []
        self.failed: list[BaseException] = []

    # what handlers need of a peer

    def after_answer(self, callback: Callable[[], None]) -> None:
        self._after_answer.append(callback)

    def _spawn(self, work: Coroutine[Any, Any, None], *, name: str) -> None:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failed.append(error)

    # what tests do with it

    async def subscribe(
        self, group_id: bytes, seq: int | None = None, hash_: bytes | None = None, kinds: list[int] | None = None
    ) -> str:
        """Subscribe as the request does; return the status."""
        group = SubscribeGroup(group_id=group_id, after_seq=seq, after_hash=hash_)
        answer = await self.ask([group], kinds)
        return answer.groups[0].status

    async def ask(self, groups: list[SubscribeGroup], kinds: list[int] | None = None) -> frames.SubscribeOk:
        answer = await self._live.subscribe(self, frames.Subscribe(id=next(self._ids), groups=groups, kinds=kinds))  # type: ignore[arg-type]
        self.answered()
        return answer

    def answered(self) -> None:
        """The answer has been queued: what was to happen after it does."""
        callbacks, self._after_answer = self._after_answer, []
        for callback in callbacks:
            callback()

    async def from_start(self, group_id: bytes, kinds: list[int] | None = None) -> Self:
        """Subscribe from the log's beginning and wait until that is live."""
        assert await self.subscribe(group_id, 0, ZERO_HASH, kinds) == "resumed"
        return await self.live(group_id)

    async def live(self, group_id: bytes) -> Self:
        """Wait until the newest subscription of the group is live."""
        await self.until(lambda: any(isinstance(p, frames.Live) and p.group_id == group_id for p in self.wire.pushes))
        return self

    def events(self, group_id: bytes) -> list[Event]:
        return [p for p in self.wire.pushes if isinstance(p, Event) and p.group_id == group_id]

    def gone(self, group_id: bytes) -> list[str]:
        """The reasons for which the group went."""
        return [p.reason for p in self.wire.pushes if isinstance(p, frames.GroupGone) and p.group_id == group_id]

    async def has(self, group_id: bytes, seq: int) -> list[Event]:
        """Wait until an event has come; all of the group so far."""
        await self.until(lambda: any(event.seq == seq for event in reversed(self.events(group_id))))
        return self.events(group_id)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something holds that depends on what was written."""
        async with asyncio.timeout(LIMIT_S):
            while not condition():
                self.wire.changed.clear()
                await self.wire.changed.wait()

    async def waits(self) -> None:
        """Wait until more waits for a reader who stands still than a replay adds to."""
        async with asyncio.timeout(LIMIT_S):
            while self.outbox.is_low:  # nothing is written, so nothing tells of it
                await asyncio.sleep(0.01)

    def stall(self) -> None:
        """Read no more."""
        self.outbox.pause()

    def go_on(self) -> None:
        """Read again."""
        self.outbox.resume()

    async def end(self) -> None:
        self.subscriptions.end_all()
        self.wire.closing = True
        self.outbox.release()
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(tuple(self._tasks))
        assert not self.failed, self.failed


# ── the path ────────────────────────────────────────────────────────────────────────────────────────────────────────


class GatedDatabase(Database):
    """A database whose answers a test can hold back: whoever has asked waits until `gate` is set."""

    def __init__(self, settings: PoolSettings, relay_name: str) -> None:
        super().__init__(settings, relay_name)
        self.gate = asyncio.Event()
        self.gate.set()
        self.held = 0
        self.asked = asyncio.Event()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        async with super().connection() as connection:
            yield connection
            self.held += 1
            self.asked.set()
            await self.gate.wait()
            self.held -= 1


@dataclass
class DataPath:
    """Fan-out and replay. `fanout_database` is fan-out's own, and can be held back."""

    database: Database
    fanout_database: GatedDatabase
    fanout: Fanout
    replays: Replays
    live: Live
    flusher: Flusher
    metrics: Metrics
    readers: list[Reader] = field(default_factory=list)

    def reader(self, person: Person, outbox_bytes: int = 1 << 20) -> Reader:
        reader = Reader(self, person, outbox_bytes)
        self.readers.append(reader)
        return reader


@asynccontextmanager
async def data_path(
    dsn: str, *, ring_bytes: int = RING_BYTES, admit_behind: int = 4096, limits: Limits = LIMITS
) -> AsyncIterator[DataPath]:
    """A data path that runs until the end of the block."""
    settings = PoolSettings(dsn, min_size=1, max_size=4)
    database, fanout_database = Database(settings, "test"), GatedDatabase(settings, "test fanout")
    await database.open()
    await fanout_database.open()
    metrics = Metrics()
    fanout = Fanout(fanout_database, metrics, ring_bytes, admit_behind)
    heads = group_heads(database)
    live = Live(
        database=database,
        heads=heads,
        limits=limits,
        now=lambda: 0,
        relay_hex=RELAY_HEX,
        signal_rate=KeyedBuckets(1000, 1000, asyncio.get_running_loop().time),
        deliver_signal=fanout.signal,
        hint=lambda _: None,
    )
    flusher = Flusher(asyncio.get_running_loop())
    replays = Replays(database, fanout, metrics, 4)
    path = DataPath(database, fanout_database, fanout, replays, live, flusher, metrics)
    running = [asyncio.create_task(part.run(), name=type(part).__name__) for part in (fanout, heads, replays.reads)]
    try:
        yield path
        assert not any(task.done() for task in running), "a part has ended"
    finally:
        fanout_database.gate.set()
        for reader in path.readers:
            await reader.end()
        for task in running:
            task.cancel()
        await asyncio.wait(running)
        await database.close()
        await fanout_database.close()

"""Append lanes: micro-batch → one transaction → acknowledgements.

A group belongs to one lane, so its posts are written in the order in which they came. A lane takes what has queued
while it was busy: there is no timer. After its own commit it hands the events to fan-out, then acknowledges.

A batch whose fate is unknown (a time-out, a lost connection) is appended again: ids make that safe, and the second
try waits for the first one's locks, so its answer is the truth.
"""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Final

import asyncpg

from orbital_protocol.codes import ErrorCode
from orbital_protocol.frames import Event
from orbital_relay import logs
from orbital_relay.errors import Overloaded, Unavailable
from orbital_relay.fanout import Fanout
from orbital_relay.metrics import Metrics
from orbital_relay.store import posts as post_store
from orbital_relay.store.pool import DATABASE_AWAY, TRY_AGAIN, PoolSettings, connect
from orbital_relay.store.posts import Appended, Outcome, Post

logger = logs.get()

Done = Callable[[Outcome], None]

_TRIES: Final = 3
_BACKOFF_S: Final = (0.05, 0.2, 0.5, 1.0)


class Lane:
    """One connection to the database, and the posts that wait for it."""

    def __init__(  # noqa: PLR0913  built in one place
        self,
        number: int,
        settings: PoolSettings,
        *,
        fanout: Fanout,
        metrics: Metrics,
        relay_hex: str,
        max_batch: int,
        max_queue: int,
        max_queue_bytes: int,
    ) -> None:
        self._number = number
        self._settings = settings
        self._fanout = fanout
        self._metrics = metrics
        self._relay_hex = relay_hex
        self._max_batch = max_batch
        self._max_queue = max_queue
        self._max_queue_bytes = max_queue_bytes
        self._waiting: OrderedDict[bytes, deque[tuple[Post, Done]]] = OrderedDict()
        self._count = 0
        self._bytes = 0  # of the ciphertexts that wait
        self._nudged = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._connection: asyncpg.Connection[asyncpg.Record] | None = None
        self._connecting = asyncio.Lock()
        self._away = False

    def submit(self, post: Post, done: Done) -> None:
        """Queue a post; `done` gets its outcome. Raise Unavailable or Overloaded where it can't be queued."""
        if self._away:
            raise Unavailable
        if self._count >= self._max_queue or self._bytes >= self._max_queue_bytes:
            raise Overloaded
        queue = self._waiting.get(post.group_id)
        if queue is None:
            queue = self._waiting[post.group_id] = deque()
        queue.append((post, done))
        self._count += 1
        self._bytes += _bytes_of(post)
        self._idle.clear()
        self._nudged.set()

    def nudge(self) -> None:
        """Look again: a group that was behind may have caught up."""
        if self._count:
            self._nudged.set()

    async def flushed(self) -> None:
        """Wait until nothing waits or is being written."""
        await self._idle.wait()

    async def run(self) -> None:
        """Write until cancelled; the connection is closed then."""
        try:
            while True:
                await self._nudged.wait()
                self._nudged.clear()
                while batch := self._take():
                    await self._write(batch)
                if not self._count:
                    self._idle.set()
        finally:
            await self._disconnect()

    def _take(self) -> list[tuple[Post, Done]]:
        """Take a batch, group by group; groups take turns, and one whose fan-out is far behind waits."""
        batch: list[tuple[Post, Done]] = []
        ids: set[bytes] = set()
        for _ in range(len(self._waiting)):
            if len(batch) >= self._max_batch:
                break
            group_id, queue = next(iter(self._waiting.items()))
            self._waiting.move_to_end(group_id)
            if not self._fanout.lags(group_id):
                self._take_from(queue, batch, ids)
            if not queue:
                del self._waiting[group_id]
        self._count -= len(batch)
        self._bytes -= sum(_bytes_of(post) for post, _ in batch)
        return batch

    def _take_from(self, queue: deque[tuple[Post, Done]], batch: list[tuple[Post, Done]], ids: set[bytes]) -> None:
        """Move a group's posts into the batch, up to one that needs another of the batch to be written first."""
        while queue and len(batch) < self._max_batch:
            post = queue[0][0]
            if post.object_id in ids or post.parent_id in ids:
                return  # the function sees a batch as one moment: this post must be in a later one
            ids.add(post.object_id)
            batch.append(queue.popleft())

    async def _write(self, batch: list[tuple[Post, Done]]) -> None:
        posts = [post for post, _ in batch]
        self._metrics.append_batch_size.observe(len(posts))
        started = time.monotonic()
        outcomes = await self._append(posts)
        self._metrics.append_seconds.observe(time.monotonic() - started)
        self._publish(posts, outcomes)
        for (_, done), outcome in zip(batch, outcomes, strict=True):
            done(outcome)

    def _publish(self, posts: Sequence[Post], outcomes: Sequence[Outcome]) -> None:
        events: list[Event] = []
        appended = 0
        for post, outcome in zip(posts, outcomes, strict=True):
            if not isinstance(outcome, Appended):
                continue
            if outcome.duplicate:  # perhaps by a try of ours whose answer was lost: then nobody has told of it here
                self._fanout.wake(post.group_id, outcome.seq, "writer")
                continue
            appended += 1
            if self._fanout.wants(post.group_id):
                events.append(post_store.event_of(post, outcome))
        self._metrics.posts.inc(appended)
        self._fanout.publish(events)

    async def _append(self, posts: list[Post]) -> list[Outcome]:
        """Append, again where the outcome is unknown; what can't be appended gets an error, the rest goes on."""
        for attempt in range(_TRIES):
            try:
                connection = await self._connected()
                outcomes = await post_store.append_posts(connection, self._relay_hex, posts)
            except TRY_AGAIN:
                await asyncio.sleep(_BACKOFF_S[attempt])
            except (TimeoutError, *DATABASE_AWAY) as error:
                logger.warning("append.retried", lane=self._number, count=len(posts), exc_info=error)
                await self._disconnect()
                if attempt + 1 < _TRIES:
                    await asyncio.sleep(_BACKOFF_S[attempt])
            except asyncpg.PostgresError as error:
                return await self._split(posts, error)
            else:
                self._back()
                return outcomes
        self._lose(len(posts))
        return [ErrorCode.UNAVAILABLE] * len(posts)

    async def _split(self, posts: list[Post], error: Exception) -> list[Outcome]:
        """A batch that raises as a whole is tried in halves, down to the one post that is to blame."""
        if len(posts) == 1:
            if isinstance(error, asyncpg.UniqueViolationError):
                return [ErrorCode.ID_CONFLICT]
            logger.error("append.failed", lane=self._number, count=1, exc_info=error)
            return [ErrorCode.INTERNAL]
        logger.warning("append.split", lane=self._number, count=len(posts), exc_info=error)
        half = len(posts) // 2
        return [*await self._append(posts[:half]), *await self._append(posts[half:])]

    async def _connected(self) -> "asyncpg.Connection[asyncpg.Record]":
        async with self._connecting:  # `run` and `watch` may both want it
            if self._connection is None or self._connection.is_closed():
                self._connection = await connect(
                    self._settings.dsn,
                    application_name=f"orbital-relay lane {self._relay_hex}",
                    settings=self._settings,
                )
            return self._connection

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()

    def _lose(self, count: int) -> None:
        """The database is away: refuse what comes and what waits until a connection succeeds again."""
        logger.error("append.failed", lane=self._number, count=count)
        self._away = True
        waiting, self._waiting = self._waiting, OrderedDict()
        self._count = self._bytes = 0
        for queue in waiting.values():
            for _, done in queue:
                done(ErrorCode.UNAVAILABLE)

    def _back(self) -> None:
        self._away = False

    async def watch(self) -> None:
        """While the database is away, try to reach it again; run beside `run`."""
        while True:
            await asyncio.sleep(_BACKOFF_S[-1])
            if self._away and not self._count:
                try:
                    await self._connected()
                except (TimeoutError, *DATABASE_AWAY):
                    continue
                self._back()


def _bytes_of(post: Post) -> int:
    return len(post.encrypted_body) + len(post.encrypted_title or b"")


class Writer:
    """All lanes of one relay."""

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self._lanes = lanes

    def submit(self, post: Post, done: Done) -> None:
        """Queue a post in its group's lane (see Lane.submit)."""
        self._lanes[hash(post.group_id) % len(self._lanes)].submit(post, done)

    def nudge(self) -> None:
        """Let every lane look again."""
        for lane in self._lanes:
            lane.nudge()

    async def flushed(self) -> None:
        """Wait until every lane has written what waited."""
        for lane in self._lanes:
            await lane.flushed()

    async def run(self) -> None:
        """Write until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for number, lane in enumerate(self._lanes):
                tasks.create_task(lane.run(), name=f"writer lane {number}")
                tasks.create_task(lane.watch(), name=f"writer lane {number} watch")

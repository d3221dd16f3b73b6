"""Append lanes on a real database: what is acknowledged is stored once, whatever happens to the connection."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import pytest
import pytest_asyncio
from msgspec.structs import replace

from orbital_protocol.codes import ErrorCode
from orbital_relay.errors import BY_CODE, Overloaded, Unavailable
from orbital_relay.metrics import Metrics
from orbital_relay.store.pool import Connection, PoolSettings
from orbital_relay.store.posts import Appended, Outcome, Post
from orbital_relay.writer import Lane, Writer
from tests.people import Person, connected, enroll, found_group, new_id, post_of
from tests.proxy import Proxy, proxied
from tests.readers import DataPath, append, data_path

LIMIT_S = 15
LANE_HEX = "cd" * 16


@dataclass
class Scene:
    """Ann's and Bob's groups, a data path, and one lane that writes to them."""

    dsn: str
    path: DataPath
    sql: Connection
    ann: Person
    group_ids: list[bytes]
    metrics: Metrics = field(default_factory=Metrics)

    @asynccontextmanager
    async def writing(
        self, dsn: str = "", *, max_batch: int = 256, max_queue: int = 1000, max_queue_bytes: int = 1_000_000
    ) -> AsyncIterator[Writer]:
        """A running writer of one lane."""
        lane = Lane(
            0,
            PoolSettings(dsn or self.dsn, connect_timeout_s=2, statement_timeout_s=5),
            fanout=self.path.fanout,
            metrics=self.metrics,
            relay_hex=LANE_HEX,
            max_batch=max_batch,
            max_queue=max_queue,
            max_queue_bytes=max_queue_bytes,
        )
        writer = Writer([lane])
        self.path.fanout.on_progress = writer.nudge
        running = asyncio.create_task(writer.run(), name="writer")
        try:
            yield writer
            assert not running.done(), "the writer has ended"
        finally:
            running.cancel()
            await asyncio.wait([running])

    @asynccontextmanager
    async def locked(self, group: int = 0) -> AsyncIterator[None]:
        """The group's head is locked, so that a lane that appends to it is busy."""
        async with connected(self.dsn) as connection, connection.transaction():
            await connection.execute("SELECT FROM group_heads WHERE group_id = $1 FOR UPDATE", self.group_ids[group])
            yield

    async def lane_waits(self) -> int:
        """Wait until the lane waits for the lock; the process id of its backend."""
        async with asyncio.timeout(LIMIT_S):
            while True:
                pid = await self.sql.fetchval(
                    "SELECT pid FROM pg_stat_activity WHERE application_name = $1 AND wait_event_type = 'Lock'",
                    f"orbital-relay lane {LANE_HEX}",
                )
                if pid is not None:
                    return int(pid)
                await asyncio.sleep(0.01)

    def post(self, group: int = 0, *, parent_id: bytes | None = None, object_id: bytes | None = None) -> Post:
        return post_of(self.ann, self.group_ids[group], parent_id=parent_id, object_id=object_id)

    async def stored(self, group: int = 0) -> list[bytes]:
        """The object ids of the group's posts, by seq; their seqs must follow one another."""
        rows = await self.sql.fetch(
            "SELECT seq, object_id FROM events WHERE group_id = $1 ORDER BY seq", self.group_ids[group]
        )
        assert [row["seq"] for row in rows] == [*range(1, len(rows) + 1)]
        return [row["object_id"] for row in rows[1:]]

    def batches(self) -> tuple[int, int]:
        """How many batches there were, and how many posts in all of them."""
        value = self.metrics.registry.get_sample_value
        return int(value("orbital_append_batch_size_count") or 0), int(value("orbital_append_batch_size_sum") or 0)


@pytest_asyncio.fixture
async def scene(migrated_database: str) -> AsyncIterator[Scene]:
    async with connected(migrated_database) as sql, data_path(migrated_database, admit_behind=10) as path:
        ann = await enroll(sql, "ann")
        yield Scene(migrated_database, path, sql, ann, [await found_group(sql, ann) for _ in range(2)])


@pytest_asyncio.fixture
async def proxy(migrated_database: str) -> AsyncIterator[Proxy]:
    async with proxied(migrated_database) as proxy:
        yield proxy


def submit(writer: Writer, post: Post) -> asyncio.Future[Outcome]:
    future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    writer.submit(post, future.set_result)
    return future


async def until_accepted(writer: Writer, post: Post) -> Outcome:
    """Submit until it is taken."""
    async with asyncio.timeout(LIMIT_S):
        while True:
            try:
                return await submit(writer, post)
            except Unavailable:
                await asyncio.sleep(0.05)


async def outcomes(futures: Sequence[asyncio.Future[Outcome]]) -> list[Outcome]:
    async with asyncio.timeout(LIMIT_S):
        return await asyncio.gather(*futures)


def seqs(results: Sequence[Outcome]) -> list[int]:
    assert all(isinstance(result, Appended) for result in results), results
    return [result.seq for result in results if isinstance(result, Appended)]


# ── batches and order ───────────────────────────────────────────────────────────────────────────────────────────────


async def test_what_queues_while_the_lane_is_busy_is_one_batch(scene: Scene) -> None:
    posts = [scene.post() for _ in range(50)]
    async with scene.writing() as writer:
        async with scene.locked():
            futures = [submit(writer, posts[0])]
            await scene.lane_waits()
            futures += [submit(writer, post) for post in posts[1:]]
        assert seqs(await outcomes(futures)) == [*range(2, 52)]
    assert scene.batches() == (2, 50)
    assert await scene.stored() == [post.object_id for post in posts]


async def test_a_batch_has_at_most_max_batch_posts_and_groups_take_turns(scene: Scene) -> None:
    """One group with a hundred posts does not keep another's single one waiting to the end."""
    many = [scene.post(0) for _ in range(100)]
    order: list[bytes] = []
    async with scene.writing(max_batch=8) as writer:
        async with scene.locked():
            futures = [submit(writer, many[0])]
            await scene.lane_waits()
            for post in [*many[1:], one := scene.post(1)]:
                future = submit(writer, post)
                future.add_done_callback(partial(lambda object_id, _: order.append(object_id), post.object_id))
                futures.append(future)
        await outcomes(futures)
    assert await scene.stored(0) == [post.object_id for post in many]
    assert order.index(one.object_id) <= 16
    count, total = scene.batches()
    assert total == 101
    assert count >= 1 + 100 / 8


@pytest.mark.produces(ErrorCode.NOT_FOUND)
async def test_a_post_behind_its_own_thread_finds_it(scene: Scene) -> None:
    """They queue together, but a batch is one moment for the database."""
    thread = scene.post()
    reply = scene.post(parent_id=thread.object_id)
    following = scene.post(parent_id=reply.object_id)  # a reply to a reply, which there isn't
    async with scene.writing() as writer:
        async with scene.locked():
            first = submit(writer, scene.post())
            await scene.lane_waits()
            futures = [submit(writer, post) for post in (thread, reply, following)]
        result = await outcomes([first, *futures])
    assert seqs(result[:3]) == [2, 3, 4]
    assert result[3] == ErrorCode.NOT_FOUND


async def test_the_same_id_twice_is_written_once(scene: Scene) -> None:
    """In one queue, and again later: the first answer each time."""
    post = scene.post()
    async with scene.writing() as writer:
        async with scene.locked():
            futures = [submit(writer, scene.post())]
            await scene.lane_waits()
            futures += [submit(writer, post), submit(writer, post), submit(writer, scene.post())]
        _, first, second, _ = await outcomes(futures)
        [third] = await outcomes([submit(writer, post)])
    assert isinstance(first, Appended)
    assert not first.duplicate
    assert second == third == replace(first, duplicate=True)
    assert len(await scene.stored()) == 3


@pytest.mark.produces(ErrorCode.ID_CONFLICT)
async def test_an_id_of_another_group_is_a_conflict(scene: Scene) -> None:
    """Also when both are in one queue."""
    post = scene.post(0)
    other = scene.post(1, object_id=post.object_id)
    async with scene.writing() as writer:
        result = await outcomes([submit(writer, post), submit(writer, other)])
    assert isinstance(result[0], Appended)
    assert result[1] == ErrorCode.ID_CONFLICT
    assert await scene.stored(1) == []


async def test_two_relays_with_the_same_id_write_it_once(scene: Scene) -> None:
    """The other relay's transaction holds the id, uncommitted, while the batch is appended."""
    post = scene.post(0)
    async with scene.writing() as writer, connected(scene.dsn) as other:
        async with other.transaction():
            await other.execute(
                "INSERT INTO objects (object_id, group_id, seq, author_id, kind) VALUES ($1, $2, 7, $3, 14)",
                *(post.object_id, scene.group_ids[1], scene.ann.user_id),
            )
            futures = [submit(writer, scene.post(0)), submit(writer, post), submit(writer, scene.post(0))]
            await scene.lane_waits()
        first, conflict, last = await outcomes(futures)
    assert seqs([first, last]) == [2, 3]
    assert conflict == ErrorCode.ID_CONFLICT


# ── too much, and wrong ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.produces(ErrorCode.OVERLOADED)
async def test_a_full_lane_is_overloaded_and_what_it_took_is_written(scene: Scene) -> None:
    posts = [scene.post() for _ in range(11)]
    async with scene.writing(max_queue=10) as writer:
        async with scene.locked():
            futures = [submit(writer, posts[0])]
            await scene.lane_waits()
            futures += [submit(writer, post) for post in posts[1:]]
            with pytest.raises(Overloaded) as refused:
                await submit(writer, scene.post())
            assert refused.value.frame(1).retry_after_ms
        assert seqs(await outcomes(futures)) == [*range(2, 13)]
        await outcomes([submit(writer, scene.post())])


async def test_a_lane_is_full_of_bytes_too(scene: Scene) -> None:
    """Thousands of large posts are more than thousands of small ones."""
    large = [post_of(scene.ann, scene.group_ids[0], body=bytes(1_000)) for _ in range(3)]
    async with scene.writing(max_queue_bytes=2_100) as writer:  # beside each body there is a title
        for _ in range(2):  # what was written makes room again
            async with scene.locked():
                futures = [submit(writer, scene.post())]
                await scene.lane_waits()
                futures += [submit(writer, replace(post, object_id=new_id())) for post in large]
                with pytest.raises(Overloaded):
                    await submit(writer, scene.post())
            assert all(isinstance(outcome, Appended) for outcome in await outcomes(futures))


@pytest.mark.parametrize("place", [0, 1, 9, 24])
async def test_a_batch_that_raises_is_split_and_only_the_culprit_fails(scene: Scene, place: int) -> None:
    posts = [scene.post() for _ in range(25)]
    posts[place] = replace(posts[place], content_hash=None)  # no handler makes such a post
    async with scene.writing() as writer:
        async with scene.locked(1):
            blocked = submit(writer, scene.post(1))
            await scene.lane_waits()
            futures = [submit(writer, post) for post in posts]
        result = await outcomes([blocked, *futures])
    assert result.pop(1 + place) == ErrorCode.INTERNAL
    assert seqs(result[1:]) == [*range(2, 26)]
    assert await scene.stored() == [post.object_id for post in posts if post is not posts[place]]


# ── the connection lost ─────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_batch_whose_backend_is_terminated_is_written_once(scene: Scene) -> None:
    """While it waits for the lock, before anything is written."""
    posts = [scene.post() for _ in range(20)]
    async with scene.writing() as writer:
        async with scene.locked():
            futures = [submit(writer, post) for post in posts]
            pid = await scene.lane_waits()
            await scene.sql.execute("SELECT pg_terminate_backend($1)", pid)
            while await scene.lane_waits() == pid:
                pass
            futures.append(submit(writer, scene.post()))
        assert seqs(await outcomes(futures)) == [*range(2, 23)]
    assert (await scene.stored())[:20] == [post.object_id for post in posts]


async def test_a_batch_that_an_operator_cancels_is_written_once(scene: Scene) -> None:
    async with scene.writing() as writer:
        async with scene.locked():
            futures = [submit(writer, scene.post()) for _ in range(3)]
            await scene.sql.execute("SELECT pg_cancel_backend($1)", await scene.lane_waits())
            await scene.lane_waits()
        assert seqs(await outcomes(futures)) == [2, 3, 4]
    assert len(await scene.stored()) == 3


async def test_a_database_that_only_reads_acknowledges_nothing(scene: Scene) -> None:
    """As after a failover to a standby, or with a full disk: an error, and it goes on when that is over."""
    name = await scene.sql.fetchval("SELECT current_database()")
    async with scene.writing() as writer:
        await outcomes([submit(writer, scene.post())])
        await scene.sql.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        await scene.sql.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1",
            f"orbital-relay lane {LANE_HEX}",
        )
        assert set(await outcomes([submit(writer, scene.post()) for _ in range(3)])) == {ErrorCode.UNAVAILABLE}
        await scene.sql.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
        async with asyncio.timeout(LIMIT_S):
            while (result := await until_accepted(writer, scene.post())) == ErrorCode.UNAVAILABLE:
                pass
        assert isinstance(result, Appended)
    assert len(await scene.stored()) == 2


async def test_a_batch_whose_answer_is_lost_is_written_once_and_delivered(scene: Scene, proxy: Proxy) -> None:
    """Committed, but the connection is cut before the lane hears of it: the second try finds what the first one did."""
    reader = await scene.path.reader(scene.ann).from_start(scene.group_ids[0])
    posts = [scene.post() for _ in range(20)]
    async with scene.writing(proxy.dsn) as writer:
        await outcomes([submit(writer, scene.post()), submit(writer, scene.post())])  # the lane knows its statement
        [pipe] = proxy.pipes
        pipe.black_down = True
        futures = [submit(writer, post) for post in posts]
        async with asyncio.timeout(LIMIT_S):
            await pipe.swallowed.wait()
        pipe.cut()
        result = await outcomes(futures)
    assert seqs(result) == [*range(4, 24)]
    assert all(isinstance(one, Appended) and one.duplicate for one in result)
    assert (await scene.stored())[2:] == [post.object_id for post in posts]
    assert len(await reader.has(scene.group_ids[0], 23)) == 23


@pytest.mark.produces(ErrorCode.UNAVAILABLE)
async def test_while_the_database_is_away_posts_are_refused_at_once_and_it_recovers(scene: Scene, proxy: Proxy) -> None:
    async with scene.writing(proxy.dsn, max_batch=2) as writer:
        await outcomes([submit(writer, scene.post())])
        await proxy.stop()
        futures = [submit(writer, scene.post()) for _ in range(5)]
        assert set(await outcomes(futures)) == {ErrorCode.UNAVAILABLE}
        assert BY_CODE[ErrorCode.UNAVAILABLE]().frame(1).retry_after_ms
        with pytest.raises(Unavailable) as refused:
            await submit(writer, scene.post())
        assert refused.value.frame(1).retry_after_ms
        await asyncio.wait_for(writer.flushed(), LIMIT_S)
        await proxy.start()
        post = scene.post()
        assert isinstance(await until_accepted(writer, post), Appended)
    assert (await scene.stored())[-1] == post.object_id
    assert len(await scene.stored()) == 2


async def test_a_server_that_lets_nobody_in_is_away(scene: Scene) -> None:
    """The database has been dropped, say: no crash, and no batch tried in halves."""
    async with scene.writing(scene.dsn.replace("/test_", "/gone_")) as writer:
        assert await outcomes([submit(writer, scene.post())]) == [ErrorCode.UNAVAILABLE]
        with pytest.raises(Unavailable):
            await submit(writer, scene.post())


# ── admission follows delivery ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("how", ["fan-out catches up", "its reader leaves", "its reader leaves, then the store"])
async def test_a_group_whose_fan_out_lags_waits_and_goes_on(scene: Scene, how: str) -> None:
    reader = scene.path.reader(scene.ann)
    await reader.subscribe(scene.group_ids[0])
    await reader.live(scene.group_ids[0])
    await append(scene.sql, [scene.post() for _ in range(20)])
    scene.path.fanout_database.gate.clear()
    scene.path.fanout.wake(scene.group_ids[0], 21, "notify")
    await asyncio.wait_for(scene.path.fanout_database.asked.wait(), LIMIT_S)
    async with scene.writing() as writer:
        waiting = submit(writer, scene.post(0))
        await outcomes([submit(writer, scene.post(1)) for _ in range(3)])
        assert not waiting.done()
        if how != "fan-out catches up":
            reader.subscriptions.end_all()
        if how != "its reader leaves":
            scene.path.fanout_database.gate.set()
        [result] = await outcomes([waiting])
        assert isinstance(result, Appended)
        assert result.seq == 22

"""What fails around a relay: it is killed or frozen, its database goes and comes. Nothing acknowledged is lost."""

import asyncio
import os
import resource
import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio
from websockets.exceptions import InvalidMessage

from orbital_protocol import ZERO_HASH, frames
from orbital_protocol.codes import CloseCode, ErrorCode
from orbital_relay.embedded import EmbeddedPostgres
from orbital_relay.store import migrate
from tests.people import found_group
from tests.postgres import QUICK_SETTINGS
from tests.raw_socket import raw_socket
from tests.relays import RunningRelay, running_relay
from tests.stage import Posting, Stage, stage_on
from tests.talk import Refused, Talk, check_steps, post_thread, reply, subscribe, talking

pytestmark = [pytest.mark.timeout(120), pytest.mark.asyncio(loop_scope="module")]

LIMIT_S = 30
DRAIN_LIMIT_S = 10  # as a relay has it where nothing else is said
POSTERS = 3
REFUSED = 3_600


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def steady(stage: Stage) -> AsyncIterator[RunningRelay]:
    """A relay to which nothing happens."""
    async with running_relay(stage.dsn) as relay:
        yield relay


# ── load ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Load:
    """A reader who is subscribed to a group, and people who post there as fast as they are answered."""

    def __init__(self, group_id: bytes, tokens: Sequence[str], reader: Talk, postings: Sequence[Posting]) -> None:
        self.group_id = group_id
        self.tokens = tokens
        self.reader = reader
        self.postings = postings
        self.running = [asyncio.create_task(posting.run(), name="posting") for posting in postings]

    @property
    def talks(self) -> list[Talk]:
        return [self.reader, *(posting.talk for posting in self.postings)]

    def answered(self) -> dict[bytes, frames.PostOk]:
        return {object_id: answer for posting in self.postings for object_id, answer in posting.answered.items()}

    def unanswered(self) -> list[frames.ReplyPost]:
        return [request for posting in self.postings for request in posting.unanswered]

    def refused(self) -> set[str]:
        return {refused.code for posting in self.postings for refused in posting.refused}

    async def acknowledges(self, count: int) -> None:
        """Wait until so many more posts have been acknowledged."""
        wanted = len(self.answered()) + count
        async with asyncio.timeout(LIMIT_S):
            while len(self.answered()) < wanted:
                await asyncio.sleep(0.01)

    async def ends(self) -> None:
        """Wait until every connection has ended."""
        async with asyncio.timeout(LIMIT_S):
            await asyncio.gather(*self.running)
            await asyncio.gather(*(talk.is_closed.wait() for talk in self.talks))

    async def stop(self) -> None:
        """Post no more."""
        for posting in self.postings:
            posting.stop = True
        async with asyncio.timeout(LIMIT_S):
            await asyncio.gather(*self.running)


@asynccontextmanager
async def load_on(relay: RunningRelay, stage: Stage) -> AsyncIterator[Load]:
    people = await stage.people(2)
    group_id = await found_group(stage.sql, *people)
    tokens = [await stage.token(people[number % 2]) for number in range(POSTERS + 1)]
    async with AsyncExitStack() as stack:
        talks = [await stack.enter_async_context(talking(relay.url, token)) for token in tokens]
        assert await subscribe(talks[0], group_id, 0, ZERO_HASH) == "resumed"
        thread_id, _ = await post_thread(talks[1], group_id)
        load = Load(group_id, tokens, talks[0], [Posting(talk, group_id, thread_id) for talk in talks[1:]])
        try:
            yield load
        finally:
            for task in load.running:
                task.cancel()
            await asyncio.wait(load.running)


async def check_nothing_lost(stage: Stage, load: Load) -> dict[bytes, int]:
    """What was acknowledged is in the log where that said, and nothing is there twice; the log, by object."""
    log = await stage.log(load.group_id)
    stored = {object_id: (seq, hash_) for seq, object_id, hash_ in log}
    assert len(stored) == len(log)
    for object_id, answer in load.answered().items():
        assert stored.get(object_id) == (answer.seq, answer.hash)
    return {object_id: seq for object_id, (seq, _) in stored.items()}


async def check_resume_on(relay: RunningRelay, stage: Stage, load: Load) -> None:
    """Everybody goes on on this relay: what had no answer is sent again, and the reader ends with the whole log."""
    stored = await check_nothing_lost(stage, load)
    async with talking(relay.url, load.tokens[1]) as talk:
        for request in load.unanswered():
            mine = request.reply_id in stored
            again = frames.ReplyPost(**{name: getattr(request, name) for name in request.__struct_fields__})
            async with asyncio.timeout(LIMIT_S):
                try:
                    answer = await talk.send(again)
                except Refused as refused:  # another poster's id, whose author is not this one
                    assert refused.code == ErrorCode.ID_CONFLICT
                    assert mine
                    continue
            assert isinstance(answer, frames.PostOk)
            assert answer.duplicate == mine
            if mine:
                assert answer.seq == stored[request.reply_id]
    log = await stage.log(load.group_id)
    events = load.reader.events
    seq, hash_ = (events[-1].seq, events[-1].hash) if events else (0, ZERO_HASH)
    async with talking(relay.url, load.tokens[0]) as reader:
        assert await subscribe(reader, load.group_id, seq, hash_) == "resumed"
        await reader.hear(frames.Live)
        events = [*events, *reader.events]
    check_steps(events)
    assert [(event.seq, event.object_id, event.hash) for event in events] == log


# ── the relay killed, stopped, frozen ───────────────────────────────────────────────────────────────────────────────


async def test_a_killed_relay_loses_nothing_that_it_acknowledged(stage: Stage, steady: RunningRelay) -> None:
    async with running_relay(stage.dsn) as relay, load_on(relay, stage) as load:
        await load.acknowledges(300)
        relay.signal(signal.SIGKILL)
        await load.ends()
        assert load.unanswered(), "it was killed while nothing was under way"
        await check_resume_on(steady, stage, load)


@pytest.mark.produces(CloseCode.DRAINING)
async def test_sigterm_drains(stage: Stage, steady: RunningRelay) -> None:
    """Everything is acknowledged or unanswered, everybody is told; a stranger who says nothing holds up nothing."""
    async with running_relay(stage.dsn) as relay, load_on(relay, stage) as load:
        _, stranger = await asyncio.open_connection("127.0.0.1", relay.port)
        await load.acknowledges(300)
        began = time.monotonic()
        relay.signal(signal.SIGTERM)
        await load.ends()
        async with asyncio.timeout(LIMIT_S):
            assert await relay.process.wait() == 0
        assert time.monotonic() - began < DRAIN_LIMIT_S - 3
        stranger.transport.abort()
        for talk in load.talks:
            assert talk.close_code == CloseCode.DRAINING
            assert [push for push in talk.pushes if isinstance(push, frames.GoAway)]
        assert load.refused() == set()
        await relay.logged("relay.stopped")
        assert not [line for line in relay.log if line.get("level") == "error"]
        await check_resume_on(steady, stage, load)


async def test_a_drain_ends_within_its_limit_whoever_answers_no_close(stage: Stage) -> None:
    [ann] = await stage.people(1)
    async with (
        running_relay(stage.dsn, drain_timeout_ms=1000) as relay,
        raw_socket(relay.port, await stage.token(ann)) as raw,
    ):
        began = time.monotonic()
        relay.signal(signal.SIGTERM)
        async with asyncio.timeout(LIMIT_S):
            assert await relay.process.wait() == 0
        assert time.monotonic() - began < 4
        assert await raw.close_code() == CloseCode.DRAINING


async def test_what_is_under_way_when_a_drain_begins_is_answered(stage: Stage) -> None:
    """A request of which the database is slow, and one that comes after the farewell."""
    ann, bob = await stage.people(2)
    group_id = await found_group(stage.sql, ann, bob)
    async with running_relay(stage.dsn) as relay, talking(relay.url, await stage.token(ann)) as talk:
        async with stage.sql.transaction():
            await stage.sql.execute("LOCK TABLE threads IN ACCESS EXCLUSIVE MODE")
            listed = talk.send(frames.EventList(id=talk.next_id(), group_id=group_id))
            async with asyncio.timeout(LIMIT_S):
                while not await stage.sql.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                    await asyncio.sleep(0.01)
            relay.signal(signal.SIGTERM)
            await talk.hear(frames.GoAway)
            late = talk.send(frames.Ping(id=talk.next_id()))
            late.add_done_callback(lambda future: future.exception())
        answer = await listed
        assert isinstance(answer, frames.EventListOk)
        assert answer.seq == 2
        assert await talk.closed() == CloseCode.DRAINING
        assert late.exception() is not None


async def test_a_frozen_relay_catches_up(stage: Stage, steady: RunningRelay) -> None:
    """It was away for longer than it bears silence itself, and blames nobody else for it."""
    ann, bob = await stage.people(2)
    group_id = await found_group(stage.sql, ann, bob)
    async with (
        running_relay(stage.dsn, heartbeat_ms=300, no_pong_ms=300, slow_consumer_ms=1000) as frozen,
        talking(frozen.url, await stage.token(bob)) as bob_talks,
        talking(steady.url, await stage.token(ann)) as ann_talks,
    ):
        assert await subscribe(bob_talks, group_id, 0, ZERO_HASH) == "resumed"
        await bob_talks.hear(frames.Live)
        frozen.signal(signal.SIGSTOP)
        try:
            thread_id, _ = await post_thread(ann_talks, group_id)
            began = time.monotonic()
            while time.monotonic() - began < 1.5:  # the time in which it is away is the point
                await ann_talks.send(reply(ann_talks, group_id, thread_id))
        finally:
            frozen.signal(signal.SIGCONT)
        _, last = await post_thread(ann_talks, group_id)
        check_steps(await bob_talks.has(last.seq, group_id))
        await bob_talks.ask(frames.Ping)
        assert not bob_talks.is_closed.is_set()


async def test_without_file_descriptors_it_refuses_and_recovers(stage: Stage) -> None:
    """Newcomers are cut off or wait; who is connected goes on; when there is room again, all is well."""
    [ann] = await stage.people(1)
    group_id = await found_group(stage.sql, ann)
    token = await stage.token(ann)
    async with running_relay(stage.dsn) as relay, talking(relay.url, token) as talk:
        await subscribe(talk, group_id, 0, ZERO_HASH)
        thread_id, _ = await post_thread(talk, group_id)
        pid = relay.process.pid
        in_use = len(os.listdir(f"/proc/{pid}/fd"))
        _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (in_use + 5, hard))
        writers = [(await asyncio.open_connection("127.0.0.1", relay.port))[1] for _ in range(30)]
        for _ in range(20):
            await talk.send(reply(talk, group_id, thread_id))
        _, last = await post_thread(talk, group_id)
        check_steps(await talk.has(last.seq, group_id))
        for writer in writers:
            writer.transport.abort()
        async with asyncio.timeout(LIMIT_S):
            while await served(relay, token) is None:
                await asyncio.sleep(0.05)
        assert relay.process.returncode is None


async def served(relay: RunningRelay, token: str) -> frames.GroupListOk | None:
    """A newcomer's groups, None for one who isn't let in."""
    try:
        async with talking(relay.url, token, open_timeout=2) as newcomer:
            answer = await newcomer.ask(frames.GroupList)
    except (OSError, TimeoutError, InvalidMessage):
        return None
    assert isinstance(answer, frames.GroupListOk)
    return answer


async def test_a_log_that_nobody_reads_holds_up_nothing(stage: Stage) -> None:
    """A pager that was left open, a terminal after Ctrl-S, a collector that hangs: lines wait, the relay doesn't."""
    [ann] = await stage.people(1)
    async with running_relay(stage.dsn, connections_max=1) as relay, talking(relay.url, await stage.token(ann)) as talk:
        relay.log_is_read.clear()
        async with asyncio.timeout(LIMIT_S):
            for _ in range(REFUSED):  # a line each, three times what the pipe and this process's own buffer take
                _, writer = await asyncio.open_connection("127.0.0.1", relay.port)
                writer.transport.abort()
        await talk.ask(frames.Ping)
        assert sum(line["event"] == "connection.rejected" for line in relay.log) < REFUSED // 2
        relay.log_is_read.set()
        async with asyncio.timeout(LIMIT_S), relay.changed:
            await relay.changed.wait_for(
                lambda: sum(line["event"] == "connection.rejected" for line in relay.log) == REFUSED
            )


# ── the database stopped, frozen ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.produces(ErrorCode.UNAVAILABLE)
async def test_postgres_stopped_at_once_and_started_again(stage: Stage, data_dir: Path) -> None:
    """As in a crash: the relay stays up, says when to come back, and recovers by itself; its clients stay connected."""
    server = EmbeddedPostgres(data_dir, extra_settings=QUICK_SETTINGS)
    try:
        dsn = await server.start()
        await migrate.upgrade(dsn)
        async with running_relay(dsn) as relay:
            async with stage_on(dsn) as crashing:
                stack = AsyncExitStack()
                load = await stack.enter_async_context(load_on(relay, crashing))
                await load.acknowledges(200)
            async with stack:
                assert server._process is not None
                os.kill(server._process.pid, signal.SIGQUIT)
                await server.wait()
                await server.stop()
                await until_refused(load, ErrorCode.UNAVAILABLE)
                await load.stop()
                for request in (frames.EventList, frames.GroupGet):
                    with pytest.raises(Refused) as refused:
                        await load.reader.ask(request, group_id=load.group_id)
                    assert refused.value.code == ErrorCode.UNAVAILABLE
                    assert refused.value.error.retry_after_ms
                for posting in load.postings:
                    assert all(refused.error.retry_after_ms for refused in posting.refused)
                assert await readiness(relay) == 503

                server = EmbeddedPostgres(data_dir, extra_settings=QUICK_SETTINGS)
                await server.start()
                async with stage_on(dsn) as recovered:
                    _, last = await until_served(load.postings[0].talk, load.group_id)
                    await check_nothing_lost(recovered, load)
                    events = await load.reader.has(last.seq, load.group_id)
                    check_steps(events)
                    log = await recovered.log(load.group_id)
                    assert [(event.seq, event.object_id, event.hash) for event in events] == log
                    await check_resume_on(relay, recovered, load)
                async with asyncio.timeout(LIMIT_S):
                    while await readiness(relay) != 200:
                        await asyncio.sleep(0.05)
                assert not any(talk.is_closed.is_set() for talk in load.talks)
                await server.stop()
                relay.signal(signal.SIGTERM)
                async with asyncio.timeout(DRAIN_LIMIT_S):
                    assert await relay.process.wait() == 0
    finally:
        await server.stop()


def relay_hex(talk: Talk) -> str:
    """The id of the relay at the other end."""
    [hello] = [push for push in talk.pushes if isinstance(push, frames.Hello)]
    return hello.relay_id.hex()


async def until_refused(load: Load, code: ErrorCode) -> None:
    async with asyncio.timeout(LIMIT_S):
        while code not in load.refused():
            await asyncio.sleep(0.01)


async def until_served(talk: Talk, group_id: bytes) -> tuple[bytes, frames.PostOk]:
    """Post until it is taken."""
    async with asyncio.timeout(LIMIT_S):
        while True:
            try:
                return await post_thread(talk, group_id)
            except Refused as refused:
                assert refused.error.retry_after_ms
                await asyncio.sleep(0.05)


async def readiness(relay: RunningRelay) -> int:
    """The status of /readyz."""
    reader, writer = await asyncio.open_connection("127.0.0.1", relay.operators_port)
    writer.write(b"GET /readyz HTTP/1.1\r\nHost: relay\r\n\r\n")
    async with asyncio.timeout(LIMIT_S):
        head = await reader.readline()
    writer.close()
    return int(head.split()[1])


async def test_a_frozen_backend_is_left_and_what_it_does_later_changes_nothing(stage: Stage) -> None:
    """The lanes' backends stand still in the middle of a batch; the batch is written by others, once."""
    async with (
        running_relay(stage.dsn, statement_timeout_s=1, lanes=1) as relay,
        load_on(relay, stage) as load,
    ):
        await load.acknowledges(50)
        pid = await stage.sql.fetchval(
            "SELECT pid FROM pg_stat_activity WHERE application_name = $1",
            f"orbital-relay lane {relay_hex(load.reader)}",
        )
        os.kill(pid, signal.SIGSTOP)
        try:
            await relay.logged("append.retried")
        finally:
            os.kill(pid, signal.SIGCONT)
        await load.acknowledges(50)
        await load.stop()
        assert load.refused() <= {ErrorCode.UNAVAILABLE}
        await check_nothing_lost(stage, load)
        last = max(answer.seq for answer in load.answered().values())
        check_steps(await load.reader.has(last, load.group_id))

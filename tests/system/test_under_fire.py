"""What fails around relays while people post, and what each of them saw, judged by `history`.

Faults have the numbers of docs/faults.md, which says what must happen, and which tests show more of it.
"""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack

import bcrypt
import pytest
import pytest_asyncio

from orbital_protocol import frames
from orbital_protocol.chain import field_hash
from orbital_protocol.codes import CloseCode, Kind
from orbital_protocol.frames import WrappedKey
from orbital_protocol.statements import GroupRekeyed, MemberRemoved
from orbital_relay.store import migrate
from tests import rigged
from tests.people import Person, enroll, says
from tests.postgres import TestPostgres
from tests.relays import RunningRelay, running_relay
from tests.stage import Stage, stage_on
from tests.system.crowd import A_WHILE, Crowd, crowd_on, good
from tests.system.history_facts import Acked
from tests.talk import Talk, talking

pytestmark = [pytest.mark.timeout(120), pytest.mark.asyncio(loop_scope="module")]

LIMIT_S = 30
PASSWORD = "correct horse"
DEADLOCKS = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def steady(stage: Stage) -> AsyncIterator[RunningRelay]:
    """A relay to which nothing happens."""
    async with running_relay(stage.dsn) as relay:
        yield relay


async def until_gone(relay: RunningRelay) -> None:
    async with asyncio.timeout(LIMIT_S):
        await relay.process.wait()


# ── relays ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_1_killed_under_load(stage: Stage, steady: RunningRelay) -> None:
    async with running_relay(stage.dsn) as relay, crowd_on(stage, lambda: [relay.url]) as crowd:
        await crowd.acknowledged(A_WHILE)
        relay.signal(signal.SIGKILL)
        await until_gone(relay)
        go_on_at(crowd, steady)
        await crowd.progress()
        good(await crowd.rest())


def go_on_at(crowd: Crowd, relay: RunningRelay) -> None:
    """From now on everybody connects there."""
    for client in crowd.clients:
        client.urls = lambda: [relay.url]


async def test_2_killed_between_commit_and_acknowledgement(stage: Stage, steady: RunningRelay) -> None:
    """Who tries again is told the place that the post has had since."""
    program = rigged.program(rigged.killed_after_commit, 40)
    async with running_relay(stage.dsn, program=program) as relay, crowd_on(stage, lambda: [relay.url]) as crowd:
        await until_gone(relay)
        assert relay.process.returncode == -signal.SIGKILL
        unanswered = {post_id for client in crowd.clients for post_id in client.unanswered}
        stored = {object_id: seq for seq, object_id, _ in await stage.log(crowd.groups[0])}
        committed = {post_id: stored[post_id] for post_id in unanswered if post_id in stored}
        assert committed, "nothing was committed and not acknowledged"
        go_on_at(crowd, steady)
        await crowd.progress()
        good(await crowd.rest())
        answers = {fact.id: fact.seq for fact in crowd.recorder.facts if isinstance(fact, Acked)}
        assert {post_id: answers[post_id.hex()] for post_id in committed} == committed


async def test_3_killed_between_commit_and_wake_up(stage: Stage) -> None:
    """Those who listen elsewhere get what was committed, even where no wake-up is heard: within a sweep."""
    program = rigged.program(rigged.killed_after_commit, 40)
    deaf = rigged.program(rigged.deaf)
    async with (
        running_relay(stage.dsn, program=deaf, sweep_ms=500) as other,
        running_relay(stage.dsn, program=program) as relay,
        crowd_on(stage, lambda: [relay.url]) as crowd,
    ):
        listener = crowd.clients[-1]
        listener.urls, listener.is_posting = lambda: [other.url], False
        for client in crowd.clients[:-1]:
            client.urls = lambda: [relay.url]
        await until_gone(relay)
        head = (await stage.log(crowd.groups[0]))[-1][0]
        began = time.monotonic()
        await crowd.until(lambda: listener.seq >= head)
        assert time.monotonic() - began < 5
        go_on_at(crowd, other)
        good(await crowd.rest())


async def test_4_sigterm_under_load(stage: Stage, steady: RunningRelay) -> None:
    async with running_relay(stage.dsn) as relay, crowd_on(stage, lambda: [relay.url]) as crowd:
        await crowd.acknowledged(A_WHILE)
        relay.signal(signal.SIGTERM)
        go_on_at(crowd, steady)
        await until_gone(relay)
        assert relay.process.returncode == 0
        await crowd.progress()
        good(await crowd.rest())


async def test_5_frozen(stage: Stage, steady: RunningRelay) -> None:
    async with (
        running_relay(stage.dsn, heartbeat_ms=300, no_pong_ms=300) as relay,
        crowd_on(stage, lambda: [relay.url, steady.url]) as crowd,
    ):
        await crowd.acknowledged(A_WHILE)
        relay.signal(signal.SIGSTOP)
        try:
            async with asyncio.timeout(LIMIT_S):
                await asyncio.sleep(2)  # the time in which it is away is the point
        finally:
            relay.signal(signal.SIGCONT)
        await crowd.progress()
        good(await crowd.rest())


async def test_17_everybody_comes_back_at_once(stage: Stage, steady: RunningRelay) -> None:
    """A hundred clients lose their relay in the same moment; memory stays in bounds, and a bystander is answered."""
    async with running_relay(stage.dsn) as relay, crowd_on(stage, lambda: [relay.url], members=100) as crowd:
        for client in crowd.clients[3:]:
            client.is_posting = False
        await crowd.progress()
        before_kib = steady.resident_kib()
        relay.signal(signal.SIGKILL)
        go_on_at(crowd, steady)
        await until_gone(relay)
        await crowd.progress()
        assert steady.resident_kib() - before_kib < 64 * 1024
        await crowd.acknowledged(A_WHILE)
        good(await crowd.rest())


async def test_20_the_clock_jumps(stage: Stage, steady: RunningRelay) -> None:
    """A relay's by an hour, ahead and back: order and hashes are the database's."""
    program = rigged.program(rigged.jumping_clock)
    async with (
        running_relay(stage.dsn, program=program) as relay,
        crowd_on(stage, lambda: [relay.url, steady.url]) as crowd,
    ):
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGUSR2):
            await crowd.acknowledged(A_WHILE)
            relay.signal(number)
        await crowd.progress()
        good(await crowd.rest())


async def test_20_the_databases_clock_jumps(embedded_postgres: TestPostgres) -> None:
    """Another clock stands before PostgreSQL's own in the path: it jumps back, and the log's order doesn't."""
    async with embedded_postgres.migrated_database() as dsn, stage_on(dsn) as stage:
        await stage.sql.execute(
            """
            CREATE SCHEMA wrong;
            CREATE TABLE wrong.clock AS SELECT INTERVAL '0' AS ahead;
            CREATE FUNCTION wrong.clock_timestamp() RETURNS TIMESTAMPTZ VOLATILE LANGUAGE sql
                AS 'SELECT pg_catalog.clock_timestamp() + ahead FROM wrong.clock';
            """
        )
        name = await stage.sql.fetchval("SELECT current_database()")
        await stage.sql.execute(f"ALTER DATABASE {name} SET search_path = wrong, pg_catalog, public")
        async with running_relay(dsn) as relay, crowd_on(stage, lambda: [relay.url]) as crowd:
            for ahead in ("1 hour", "-1 hour", "0"):
                await crowd.acknowledged(A_WHILE)
                await stage.sql.execute("UPDATE wrong.clock SET ahead = $1::TEXT::INTERVAL", ahead)
            await crowd.progress()
            good(await crowd.rest())
            times = await stage.sql.fetch(
                "SELECT created_at FROM events WHERE group_id = $1 ORDER BY seq", crowd.groups[0]
            )
            assert max(row[0] for row in times) > times[-1][0], "the clock did not jump"


async def test_25_a_rolling_restart_with_two_versions(embedded_postgres: TestPostgres) -> None:
    """The version before migration 0007 runs; the database is migrated, the next version comes, the first one goes."""
    program = rigged.program(rigged.previous, "0006")
    async with embedded_postgres.database() as dsn, AsyncExitStack() as stack:
        await migrate.upgrade(dsn)
        await migrate.downgrade(dsn, 1)
        stage = await stack.enter_async_context(stage_on(dsn))
        old = await stack.enter_async_context(running_relay(dsn, program=program))
        crowd = await stack.enter_async_context(crowd_on(stage, lambda: [old.url]))
        await crowd.acknowledged(A_WHILE)
        await migrate.upgrade(dsn)
        await crowd.acknowledged(A_WHILE)
        new = await stack.enter_async_context(running_relay(dsn))
        for client in crowd.clients[1:]:
            client.urls = lambda: [old.url, new.url]
        await crowd.acknowledged(A_WHILE)
        go_on_at(crowd, new)
        old.signal(signal.SIGTERM)
        await until_gone(old)
        await crowd.progress()
        good(await crowd.rest())


async def test_26_a_while_under_load_leaves_nothing_behind(stage: Stage) -> None:
    """Memory, file descriptors, tasks and the notification queue are after many rounds what they were after a few."""
    async with running_relay(stage.dsn) as relay, crowd_on(stage, lambda: [relay.url], groups=2) as crowd:
        await crowd.acknowledged(300)
        before_kib, before_files = relay.resident_kib(), files_of(relay)
        for _ in range(4):
            await crowd.acknowledged(300)
        assert relay.resident_kib() - before_kib < 8 * 1024
        assert files_of(relay) <= before_files + 2
        assert await stage.sql.fetchval("SELECT pg_notification_queue_usage()") < 0.01
        good(await crowd.rest())


def files_of(relay: RunningRelay) -> int:
    return len(os.listdir(f"/proc/{relay.process.pid}/fd"))


# ── members ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_24_removed_in_the_middle_on_another_relay(stage: Stage, steady: RunningRelay) -> None:
    """Posts stream before and, under a new key, after; nothing of what comes after reaches whoever was removed."""
    async with running_relay(stage.dsn) as relay, crowd_on(stage, lambda: [relay.url], members=4) as crowd:
        [group_id] = crowd.groups
        owner, removed, *others = crowd.clients
        await crowd.acknowledged(A_WHILE)
        signed = await says(stage.sql, owner.person, group_id, MemberRemoved, user_id=removed.person.user_id, ban=False)
        async with talking(steady.url, owner.token) as talk:
            answer = await talk.ask(frames.MemberRemove, statement=signed.statement, signature=signed.signature)
            crowd.removed(removed, answer.seq)
            await rekey(stage, talk, group_id, [owner.person, *(client.person for client in others)])
        await crowd.acknowledged(A_WHILE)
        good(await crowd.rest())
        assert removed.seq == answer.seq
        assert removed.is_over


async def rekey(stage: Stage, talk: Talk, group_id: bytes, members: Sequence[Person]) -> None:
    """The first of the members gives all of them the second key."""
    name = os.urandom(64)
    signed = await says(
        stage.sql,
        members[0],
        group_id,
        GroupRekeyed,
        new_key_epoch=2,
        key_commitment=os.urandom(32),
        name_hash=field_hash(name),
        previous_key=os.urandom(60),
    )
    wraps = [
        WrappedKey(user_id=member.user_id, rsa_thumbprint=member.rsa_thumbprint, encrypted_group_key=os.urandom(256))
        for member in members
    ]
    await talk.ask(
        frames.GroupRekey,
        statement=signed.statement,
        signature=signed.signature,
        encrypted_name=name,
        encrypted_group_keys=wraps,
    )


async def test_27_the_owners_account_is_deleted(stage: Stage, steady: RunningRelay) -> None:
    """While posts stream into a group of theirs, which ends, and into one where they are a member, which goes on.

    Whoever stays goes on under a new key.
    """
    password_hash = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
    doomed = await enroll(stage.sql, "doomed", password_hash=password_hash)
    deadlocks = await stage.sql.fetchval(DEADLOCKS)
    async with running_relay(stage.dsn) as relay, crowd_on(stage, lambda: [relay.url, steady.url], groups=0) as crowd:
        own = await crowd.settle(stage, lambda: [relay.url], [doomed, *await stage.people(2)])
        shared = await crowd.settle(stage, lambda: [steady.url], [*await stage.people(2), doomed])
        await crowd.acknowledged(3 * A_WHILE)
        theirs = [client for client in crowd.clients if client.person is doomed]
        async with talking(steady.url, theirs[0].token) as talk:
            for client in theirs:
                crowd.stopped(client)
            await talk.ask(frames.AccountDelete, password=PASSWORD, delete_groups=True)
            assert await talk.closed() == CloseCode.ACCOUNT_DELETED
        await crowd.until(lambda: all(client.is_over for client in crowd.of(own)))
        staying = crowd.of(shared)[:2]
        async with talking(steady.url, staying[0].token) as talk:
            await rekey(stage, talk, shared, [client.person for client in staying])
        await crowd.acknowledged(A_WHILE)
        good(await crowd.rest(groups=[shared]))
        left = await stage.sql.fetchval(
            "SELECT kind FROM events WHERE group_id = $1 AND object_id = $2", shared, doomed.user_id
        )
        assert left == Kind.MEMBER_LEFT
        assert await stage.sql.fetchval(DEADLOCKS) == deadlocks

"""What fails between relays and their database while people post, judged by `history`.

Faults have the numbers of docs/faults.md, which says what must happen, and which tests show more of it.
"""

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from orbital_protocol import frames
from orbital_protocol.codes import ErrorCode
from orbital_relay.embedded import EmbeddedPostgres
from orbital_relay.store import migrate
from tests import rigged
from tests.postgres import QUICK_SETTINGS, TestPostgres, open_directory
from tests.proxy import proxied
from tests.relays import RunningRelay, media_dir_of, running_relay
from tests.stage import Stage, stage_on
from tests.system.chaos_house import house
from tests.system.crowd import A_WHILE, Crowd, crowd_on, good, unharmed
from tests.talk import Refused, talking

pytestmark = [pytest.mark.timeout(120), pytest.mark.asyncio(loop_scope="module")]

LIMIT_S = 30


async def refused(crowd: Crowd, *codes: ErrorCode) -> None:
    """Wait until somebody was told one of these."""
    await crowd.until(lambda: bool(crowd.refused & {*codes}))


async def ready(relay: RunningRelay, status: int) -> None:
    """Wait until /readyz answers so."""
    async with asyncio.timeout(LIMIT_S):
        while await _readiness(relay) != status:
            await asyncio.sleep(0.05)


async def shows(relay: RunningRelay, name: str, value: float) -> None:
    """Wait until a metric has this value."""
    async with asyncio.timeout(LIMIT_S):
        while await relay.metric(name) != value:
            await asyncio.sleep(0.05)


async def _readiness(relay: RunningRelay) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", relay.operators_port)
    writer.write(b"GET /readyz HTTP/1.1\r\nHost: relay\r\n\r\n")
    head = await reader.readline()
    writer.close()
    return int(head.split()[1])


# ── the server ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_6_stopped_at_once_and_started_again() -> None:
    async with (
        house(random.Random(6)) as at,
        stage_on(at.dsn) as stage,
        crowd_on(stage, at.urls, groups=2) as crowd,
    ):
        await crowd.acknowledged(A_WHILE)
        await at.stop_database()
        await refused(crowd, ErrorCode.UNAVAILABLE)
        for relay in at.relays:
            await ready(relay, 503)
            await shows(relay, "orbital_database_up", 0)
        await at.start_database()
        await crowd.progress()
        good(await crowd.rest())
        for relay in at.relays:
            await ready(relay, 200)
            await shows(relay, "orbital_database_up", 1)
            unharmed(relay)


async def test_7_frozen() -> None:
    """Every process of the server stands still for longer than a statement may take."""
    async with (
        house(random.Random(7), relays=1, statement_timeout_s=1) as at,
        stage_on(at.dsn) as stage,
        crowd_on(stage, at.urls) as crowd,
    ):
        [relay] = at.relays
        await crowd.acknowledged(A_WHILE)
        before_kib = relay.resident_kib()
        with frozen(at.server):
            await refused(crowd, ErrorCode.UNAVAILABLE, ErrorCode.OVERLOADED)
            await ready(relay, 503)
            assert relay.resident_kib() - before_kib < 16 * 1024
        await crowd.progress()
        good(await crowd.rest())
        unharmed(relay)


@contextmanager
def frozen(server: EmbeddedPostgres) -> Iterator[None]:
    """Stop the server and all of its backends in their tracks."""
    assert server._process is not None
    leader = server._process.pid
    children = [int(pid) for pid in Path(f"/proc/{leader}/task/{leader}/children").read_text().split()]
    for pid in (leader, *children):
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in (*children, leader):
            os.kill(pid, signal.SIGCONT)


async def test_11_the_pool_is_exhausted(stage: Stage) -> None:
    """Every connection of the pool waits for a lock: requests are told so in bounded time, and posts go on."""
    async with (
        running_relay(
            stage.dsn, pool_max=2, pool_min=1, lanes=1, acquire_timeout_s=0.3, statement_timeout_s=1
        ) as relay,
        crowd_on(stage, lambda: [relay.url]) as crowd,
        talking(relay.url, crowd.clients[0].token) as talk,
    ):
        await crowd.acknowledged(A_WHILE)
        async with stage.sql.transaction():
            await stage.sql.execute("LOCK TABLE sessions IN ACCESS EXCLUSIVE MODE")
            while True:
                try:
                    await talk.ask(frames.GroupList)
                except Refused as refused:
                    assert refused.code == ErrorCode.OVERLOADED
                    assert refused.error.retry_after_ms
                    break
            await ready(relay, 503)
            await crowd.acknowledged(A_WHILE)
        await ready(relay, 200)
        await talk.ask(frames.GroupList)
        good(await crowd.rest())
        unharmed(relay)


FAILING = """
CREATE SEQUENCE attempts;
CREATE FUNCTION fail_sometimes() RETURNS TRIGGER LANGUAGE plpgsql AS $$
BEGIN
    IF nextval('attempts') % 20 = 0 THEN
        RAISE EXCEPTION 'not this time' USING ERRCODE = '{}';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER fail_sometimes AFTER INSERT ON events FOR EACH ROW EXECUTE FUNCTION fail_sometimes();
"""


@pytest.mark.parametrize(
    "code", ["40001", "40P01", "55P03", "57014"], ids=["serialization", "deadlock", "lock_timeout", "canceled"]
)
async def test_12_a_transaction_loses(embedded_postgres: TestPostgres, code: str) -> None:
    """One insert of twenty fails as if another transaction had won: the batch is written whole, or not at all."""
    async with (
        embedded_postgres.migrated_database() as dsn,
        stage_on(dsn) as stage,
        running_relay(dsn) as relay,
        crowd_on(stage, lambda: [relay.url]) as crowd,
    ):
        await crowd.acknowledged(A_WHILE)
        await stage.sql.execute(FAILING.format(code))
        await crowd.acknowledged(A_WHILE)
        await stage.sql.execute("DROP TRIGGER fail_sometimes ON events")
        good(await crowd.rest())


async def test_12_a_head_is_locked_for_long(stage: Stage) -> None:
    async with (
        running_relay(stage.dsn, statement_timeout_s=0.5) as relay,
        crowd_on(stage, lambda: [relay.url], groups=2) as crowd,
    ):
        await crowd.acknowledged(A_WHILE)
        async with stage.sql.transaction():
            await stage.sql.execute("SELECT * FROM group_heads WHERE group_id = $1 FOR UPDATE", crowd.groups[0])
            await relay.logged("append.retried")
        await crowd.progress()
        good(await crowd.rest())


async def test_13_read_only(embedded_postgres: TestPostgres) -> None:
    """As a standby that was not promoted, or a server whose disk an administrator protects."""
    async with (
        embedded_postgres.migrated_database() as dsn,
        stage_on(dsn) as stage,
        running_relay(dsn) as relay,
        crowd_on(stage, lambda: [relay.url]) as crowd,
    ):
        await crowd.acknowledged(A_WHILE)
        name = await stage.sql.fetchval("SELECT current_database()")
        await stage.sql.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        await cut_lanes(stage)
        await refused(crowd, ErrorCode.UNAVAILABLE)
        await stage.sql.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
        await cut_lanes(stage)
        await crowd.progress()
        good(await crowd.rest())
        unharmed(relay)


async def cut_lanes(stage: Stage) -> None:
    await stage.sql.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name LIKE 'orbital-relay%' AND datname = current_database()"
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small file system")
async def test_13_the_disk_is_full() -> None:
    """The server's files lie on a small file system that fills up while people post, and is given room again."""
    async with (
        small_disk() as (dsn, ballast),
        stage_on(dsn) as stage,
        running_relay(dsn) as relay,
        crowd_on(stage, lambda: [relay.url]) as crowd,
    ):
        await crowd.acknowledged(A_WHILE)
        for client in crowd.clients:
            client.body_bytes = 30_000
        fill(ballast)
        await refused(crowd, ErrorCode.UNAVAILABLE)
        ballast.unlink()
        await crowd.progress()
        good(await crowd.rest())
        unharmed(relay)


@asynccontextmanager
async def small_disk() -> AsyncIterator[tuple[str, Path]]:
    """A migrated database on a file system of its own, and the path of a file there that doesn't exist yet."""
    with open_directory() as directory:
        await run("mount", "-t", "tmpfs", "-o", "size=192m,mode=711", "tmpfs", str(directory))
        server = EmbeddedPostgres(directory, extra_settings={**QUICK_SETTINGS, "max_wal_size": "64MB"})
        try:
            dsn = await server.start()
            await migrate.upgrade(dsn)
            yield dsn, directory / "ballast"
        finally:
            await server.stop()
            await run("umount", "--lazy", str(directory))


async def run(*command: str) -> None:
    process = await asyncio.create_subprocess_exec(*command)
    assert await process.wait() == 0


def fill(ballast: Path) -> None:
    """Write zeros until nothing more goes in."""
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue


# ── the listener ────────────────────────────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def two_relays(stage: Stage, dsn: str) -> AsyncIterator[tuple[RunningRelay, Crowd]]:
    """A relay that reaches its database by this DSN, and people there and on another one."""
    async with (
        running_relay(stage.dsn) as steady,
        running_relay(dsn, sweep_ms=600_000, echo_ms=300, media_dir=media_dir_of(stage.dsn)) as relay,
        crowd_on(stage, lambda: [relay.url]) as crowd,
    ):
        crowd.clients[0].urls = lambda: [steady.url]
        await relay.logged("listener.connected")
        yield relay, crowd


async def test_8_the_listeners_backend_is_terminated(stage: Stage) -> None:
    """Without a sweep that would help."""
    async with two_relays(stage, stage.dsn) as (relay, crowd):
        for _ in range(3):
            await crowd.progress()
            assert await stage.sql.fetchval(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                " WHERE application_name LIKE 'orbital-relay listener%' AND datname = current_database()"
            )
        await crowd.acknowledged(A_WHILE)
        good(await crowd.rest())
        unharmed(relay)


async def test_9_the_listener_is_in_a_black_hole(stage: Stage) -> None:
    """Its packets go nowhere, both ends stay open: the echo is missed, and a new connection catches up."""
    async with proxied(stage.dsn) as proxy, two_relays(stage, proxy.dsn) as (relay, crowd):
        await crowd.acknowledged(A_WHILE)
        [pipe] = [pipe for pipe in proxy.pipes if pipe.application.startswith("orbital-relay listener")]
        pipe.black_up = pipe.black_down = True
        await relay.logged("listener.lost", limit_s=5)
        await crowd.progress()
        good(await crowd.rest())


@pytest.mark.parametrize("seed", [1, 2])
async def test_10_wake_ups_are_lost_doubled_and_out_of_order(stage: Stage, seed: int) -> None:
    async with (
        running_relay(stage.dsn, program=rigged.program(rigged.wild, seed)) as one,
        running_relay(stage.dsn, program=rigged.program(rigged.wild, -seed)) as other,
        crowd_on(stage, lambda: [one.url, other.url], groups=2) as crowd,
    ):
        await crowd.acknowledged(4 * A_WHILE)
        good(await crowd.rest())

"""What goes when its time has come, and what stays."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from orbital_relay.errors import Unavailable
from orbital_relay.janitor import Janitor, Swept
from orbital_relay.store.pool import Connection, Database, PoolSettings, connect
from tests.people import Person, connected, enroll, found_group, new_id

LIMIT_S = 10


@pytest_asyncio.fixture
async def sql(migrated_database: str) -> AsyncIterator[Connection]:
    async with connected(migrated_database) as connection:
        yield connection


@pytest_asyncio.fixture
async def database(migrated_database: str) -> AsyncIterator[Database]:
    made = Database(PoolSettings(migrated_database), "ab" * 16)
    await made.open()
    yield made
    await made.close()


async def put_session(sql: Connection, person: Person, expires: str, revoked: str | None = None) -> bytes:
    """A session whose times are that far from now, such as '-1 day'."""
    session_id = new_id()
    await sql.execute(
        "INSERT INTO sessions (session_id, user_id, device_name, token_epoch, family_hash, refresh_hash, expires_at,"
        " revoked_at) VALUES ($1, $2, '', 0, '', '', clock_timestamp() + $3::TEXT::INTERVAL,"
        " clock_timestamp() + $4::TEXT::INTERVAL)",
        *(session_id, person.user_id, expires, revoked),
    )
    return session_id


async def put_attempts(sql: Connection, subject: str, updated: str, blocked: str) -> None:
    await sql.execute(
        "INSERT INTO login_attempts (subject, failures, updated_at, blocked_until)"
        " VALUES ($1, 9, clock_timestamp() + $2::TEXT::INTERVAL, clock_timestamp() + $3::TEXT::INTERVAL)",
        *(subject, updated, blocked),
    )


async def put_token(sql: Connection, person: Person, expires: str | None) -> bytes:
    token_id = new_id()
    await sql.execute(
        "INSERT INTO bot_tokens (token_id, user_id, name, secret_hash, scopes, group_ids, expires_at)"
        " VALUES ($1, $2, '', '', '{}', '{}', clock_timestamp() + $3::TEXT::INTERVAL)",
        *(token_id, person.user_id, expires),
    )
    return token_id


async def put_request(sql: Connection, group_id: bytes, person: Person, made: str) -> bytes:
    request_id = new_id()
    await sql.execute(
        "INSERT INTO join_requests (request_id, group_id, user_id, created_at)"
        " VALUES ($1, $2, $3, clock_timestamp() + $4::TEXT::INTERVAL)",
        *(request_id, group_id, person.user_id, made),
    )
    return request_id


async def left(sql: Connection, table: str, key: str) -> set[object]:
    return {row[0] for row in await sql.fetch(f"SELECT {key} FROM {table}")}  # noqa: S608  the test's own words


@pytest.mark.each_postgres
async def test_what_has_expired_goes_and_the_rest_stays(sql: Connection, database: Database) -> None:
    alice, bob = await enroll(sql, "alice"), await enroll(sql, "bob")
    group_id = await found_group(sql, alice)
    for expires, revoked in (("-169 hours", None), ("1 day", "-169 hours"), ("-169 hours", "-169 hours")):
        await put_session(sql, alice, expires, revoked)
    sessions = {
        await put_session(sql, alice, expires, revoked)
        for expires, revoked in (("1 day", None), ("-167 hours", None), ("1 day", "-167 hours"))
    }
    await put_attempts(sql, "old", "-25 hours", "-1 hour")
    await put_attempts(sql, "recent", "-23 hours", "-23 hours")
    await put_attempts(sql, "blocked", "-25 hours", "1 hour")
    await put_token(sql, alice, "-31 days")
    tokens = {await put_token(sql, alice, expires) for expires in ("-29 days", "1 day", None)}
    await put_request(sql, group_id, alice, "-31 days")
    requests = {await put_request(sql, group_id, bob, "-29 days")}
    assert await Janitor(database).sweep() == Swept(sessions=3, login_attempts=1, join_requests=1, bot_tokens=1)
    assert await left(sql, "sessions", "session_id") == sessions
    assert await left(sql, "login_attempts", "subject") == {"recent", "blocked"}
    assert await left(sql, "bot_tokens", "token_id") == tokens
    assert await left(sql, "join_requests", "request_id") == requests
    assert await Janitor(database).sweep() == Swept()


@pytest.mark.parametrize("count", [4, 5, 6])
async def test_batches_go_on_until_nothing_is_left(sql: Connection, database: Database, count: int) -> None:
    for number in range(count):
        await put_attempts(sql, f"old {number}", "-2 days", "-2 days")
    assert await Janitor(database, batch=2).sweep() == Swept(login_attempts=count)


async def test_one_relay_at_a_time(sql: Connection, database: Database) -> None:
    await put_attempts(sql, "old", "-2 days", "-2 days")
    async with sql.transaction():
        assert await sql.fetchval("SELECT pg_try_advisory_xact_lock(hashtext('orbital janitor'))")
        assert await Janitor(database).sweep() == Swept()
    assert await Janitor(database).sweep() == Swept(login_attempts=1)


async def test_the_loop_outlives_a_database_that_is_away(
    sql: Connection, migrated_database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    await put_attempts(sql, "old", "-2 days", "-2 days")
    database = Database(PoolSettings(migrated_database), "ab" * 16)
    running = asyncio.create_task(Janitor(database).run(interval_s=0.01))
    try:
        async with asyncio.timeout(LIMIT_S):
            while "janitor.failed" not in capsys.readouterr().err:
                await asyncio.sleep(0.01)
            with pytest.raises(Unavailable):
                async with database.connection():
                    pass
            await database.open()
            while await left(sql, "login_attempts", "subject"):
                await asyncio.sleep(0.01)
        assert not running.done()
    finally:
        running.cancel()
        await asyncio.wait({running})
        await database.close()


async def test_a_listener_that_sleeps_is_cut_off_when_the_notification_queue_fills(
    database: Database, migrated_database: str
) -> None:
    """The queue holds gigabytes, so the test moves the mark instead: with any usage above -1, every sleeper goes."""
    settings = PoolSettings(migrated_database)
    listener = await connect(migrated_database, application_name="orbital-relay listener ab", settings=settings)
    other = await connect(migrated_database, application_name="orbital-relay lane ab", settings=settings)
    janitor = Janitor(database)
    try:
        assert await janitor.free_queue() == 0
        assert await janitor.free_queue(usage=-1) == 0, "it has only just spoken"
        assert await janitor.free_queue(usage=-1, silent_s=0) == 1
        async with asyncio.timeout(LIMIT_S):
            while await other.fetchval(  # the other one is well, and sees the first one go
                "SELECT count(*) FROM pg_stat_activity WHERE pid = $1", listener.get_server_pid()
            ):
                await asyncio.sleep(0.01)
    finally:
        listener.terminate()
        other.terminate()

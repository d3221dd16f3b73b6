"""The pool of database connections: what becomes of errors that are nobody's fault, and of those that are ours."""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest
import pytest_asyncio

from orbital_protocol.codes import ErrorCode
from orbital_relay.store.pool import Database, PoolSettings
from tests.worlds import refused


@pytest_asyncio.fixture
async def pool(database: str) -> AsyncIterator[Database]:
    made = Database(PoolSettings(database, min_size=1, max_size=1), "test")
    await made.open()
    try:
        yield made
    finally:
        await made.close()


# Whatever is not an error to try again after ends the task that meets it: some of these are the relay's own.
@pytest.mark.parametrize(
    "trouble",
    ["disk_full", "out_of_memory", "too_many_connections", "io_error", "program_limit_exceeded", "database_dropped"],
)
async def test_a_database_in_trouble_is_unavailable(pool: Database, trouble: str) -> None:
    with refused(ErrorCode.UNAVAILABLE):
        async with pool.connection() as connection:
            await connection.execute(f"DO $$ BEGIN RAISE {trouble}; END $$")
    assert not pool.is_up
    async with pool.connection() as connection:
        assert await connection.fetchval("SELECT 1") == 1
    assert pool.is_up


async def test_a_statement_that_was_canceled_says_that_the_database_is_busy(pool: Database) -> None:
    with refused(ErrorCode.OVERLOADED):
        async with pool.connection() as connection:
            await connection.execute("DO $$ BEGIN RAISE query_canceled; END $$")


async def test_a_defect_of_ours_is_none_of_the_databases(pool: Database) -> None:
    with pytest.raises(asyncpg.DataError):
        async with pool.connection() as connection:
            await connection.execute("SELECT pg_notify('orbital', repeat('x', 8000))")
    assert pool.is_up


async def test_whoever_is_cancelled_between_two_steps_of_a_statement_does_the_next_no_harm(pool: Database) -> None:
    """The server waits for the step that never comes, in a transaction that nobody began."""

    async def prepare_and_give_up() -> None:
        async with pool.connection() as connection:
            await connection.prepare("SELECT count(*) FROM pg_class")
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await prepare_and_give_up()
    async with pool.snapshot() as connection:
        assert await connection.fetchval("SELECT 1") == 1


async def test_a_pool_that_is_exhausted_is_not_up(database: str) -> None:
    pool = Database(PoolSettings(database, min_size=1, max_size=1, acquire_timeout_s=0.1), "test")
    await pool.open()
    try:
        async with pool.connection():
            with refused(ErrorCode.OVERLOADED):
                async with pool.connection():
                    pass
            assert not pool.is_up
        async with pool.connection():
            pass
        assert pool.is_up
    finally:
        await pool.close()

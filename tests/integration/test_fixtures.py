"""The databases that tests are given: fresh, apart, on the server that was asked for."""

import asyncpg
import pytest

from orbital_relay.store import migrate


@pytest.mark.each_postgres
async def test_each_postgres_is_given(database: str, request: pytest.FixtureRequest) -> None:
    connection = await asyncpg.connect(database)
    try:
        version = connection.get_server_version().major
        assert await connection.fetchval("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == 0
    finally:
        await connection.close()
    assert version == {"embedded_postgres": 18, "debian_postgres": 15}[request.node.callspec.params["postgres"]]


@pytest.mark.parametrize("turn", ["first", "second"])
async def test_a_database_holds_nothing_of_another_test(database: str, turn: str) -> None:
    connection = await asyncpg.connect(database)
    try:
        await connection.execute("CREATE TABLE left_behind (turn text)")  # fails where the other turn's is still there
    finally:
        await connection.close()


@pytest.mark.each_postgres
async def test_a_migrated_database_has_every_migration(migrated_database: str) -> None:
    assert await migrate.upgrade(migrated_database) == []  # nothing is left to apply


async def test_tests_keep_what_kill_9_must_not_lose(database: str) -> None:
    connection = await asyncpg.connect(database)
    try:
        assert await connection.fetchval("SHOW synchronous_commit") == "on"
    finally:
        await connection.close()

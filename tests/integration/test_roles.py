"""sql/roles.sql: the owner migrates, relays read and write rows as orbital_user, and change nothing of the schema."""

import base64
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
import pytest_asyncio

from orbital_relay import admin
from orbital_relay.embedded import wheel_binaries
from orbital_relay.store import migrate, operators, posts
from orbital_relay.store.posts import Appended
from orbital_relay.store.queries import sql_dir
from tests.commands import orbital
from tests.people import connected, enroll, found_group, post_of
from tests.postgres import TestPostgres
from tests.relays import running_relay

LIMIT_S = 10
FORBIDDEN = [
    "CREATE TABLE mine (a int)",
    "CREATE TEMPORARY TABLE mine (a int)",
    "CREATE FUNCTION mine() RETURNS int LANGUAGE sql RETURN 1",
    "ALTER TABLE users ADD COLUMN mine int",
    "DROP TABLE events",
    "TRUNCATE events",
    "DROP FUNCTION bury_group_v1",
    "CREATE INDEX mine ON users (created_at)",
    "ALTER TABLE events DISABLE TRIGGER ALL",
    "CREATE ROLE mine",
    "CREATE SCHEMA mine",
]


def as_role(dsn: str, role: str) -> str:
    parts = urlsplit(dsn)
    return urlunsplit(parts._replace(netloc=f"{role}@{parts.netloc.rpartition('@')[2]}"))


async def execute(dsn: str, statement: str) -> None:
    connection = await asyncpg.connect(dsn, timeout=LIMIT_S, command_timeout=LIMIT_S)
    try:
        await connection.execute(statement)
    finally:
        await connection.close(timeout=LIMIT_S)


@pytest_asyncio.fixture
async def owned(database: str) -> AsyncIterator[str]:
    """A database as docs/operations.md makes one: roles.sql as superuser, migrated by the owner."""
    roles = (sql_dir() / "roles.sql").read_text()
    await execute(database, roles)
    await migrate.upgrade(as_role(database, "orbital_owner"))
    await execute(database, roles)  # again is no harm
    yield database


async def test_the_user_makes_a_backup_and_the_owner_brings_it_back(
    owned: str, postgres: TestPostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{wheel_binaries()}:{os.environ['PATH']}")
    async with connected(owned) as connection:
        await enroll(connection, "alice")
    made = await orbital("backup", str(tmp_path), dsn=as_role(owned, "orbital_user"))
    assert made.status == 0, made.err
    [backup] = tmp_path.iterdir()
    async with postgres.database() as other:
        await execute(other, (sql_dir() / "roles.sql").read_text())
        refused = await orbital("restore", str(backup), dsn=as_role(other, "orbital_user"))
        assert (refused.status, "permission denied for schema public" in refused.err) == (1, True)
        restored = await orbital("restore", str(backup), dsn=as_role(other, "orbital_owner"))
        assert restored.status == 0, restored.err
        async with connected(as_role(other, "orbital_user")) as connection:
            assert await connection.fetchval("SELECT username FROM users") == "alice"
            assert await operators.missing_privileges(connection) == []


@pytest.mark.each_postgres
async def test_a_relays_work_is_done_as_orbital_user(owned: str) -> None:
    async with connected(as_role(owned, "orbital_user")) as connection:
        alice, bob = await enroll(connection, "alice"), await enroll(connection, "bob")
        group = await found_group(connection, alice, bob)
        body = b"ciphertext"
        one, *batch = [post_of(bob, group, body=body) for _ in range(3)]
        for appended in ([one], batch):
            outcomes = await posts.append_posts(connection, "ab" * 16, appended)
            assert [type(outcome) for outcome in outcomes] == [Appended] * len(appended)
        assert len(await admin.delete(connection, bob.user_id, with_groups=False)) == 1
        assert await connection.fetchval("SELECT encrypted_body FROM threads") == base64.b64encode(body).decode()
        assert await operators.missing_privileges(connection) == []


@pytest.mark.each_postgres
async def test_a_relay_starts_as_orbital_user(owned: str) -> None:
    async with running_relay(as_role(owned, "orbital_user")) as relay:
        await relay.logged("listener.connected")


@pytest.mark.each_postgres
async def test_orbital_user_changes_nothing_of_the_schema(owned: str) -> None:
    carried_out = []
    for statement in FORBIDDEN:
        with contextlib.suppress(asyncpg.InsufficientPrivilegeError):
            await execute(as_role(owned, "orbital_user"), statement)
            carried_out.append(statement)
    assert carried_out == []


@pytest.mark.each_postgres
async def test_what_a_later_migration_makes_is_open_to_relays_too(owned: str) -> None:
    await execute(
        as_role(owned, "orbital_owner"),
        "CREATE TABLE later (id BIGINT GENERATED ALWAYS AS IDENTITY, word TEXT, n SERIAL);"
        "CREATE FUNCTION later_v1() RETURNS BIGINT LANGUAGE sql BEGIN ATOMIC SELECT count(*) FROM later; END",
    )
    await execute(
        as_role(owned, "orbital_user"), "INSERT INTO later (word) VALUES ('a'); SELECT later_v1(); DELETE FROM later"
    )


@pytest.mark.each_postgres
async def test_nobody_else_gets_in(owned: str) -> None:
    await execute(owned, "DROP ROLE IF EXISTS stranger; CREATE ROLE stranger LOGIN")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await execute(as_role(owned, "stranger"), "SELECT 1")

"""The monitoring queries: each runs on a real server, and shows what it is there for."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import asyncpg
import pytest

from orbital_relay.store.queries import sql_dir
from tests.files import File, begin, upload
from tests.people import connected, enroll, found_group, new_id
from tests.relays import relay_here
from tests.talk import post_thread, talking, token_of

MONITORING = sorted((sql_dir() / "monitoring").glob("*.sql"))
LIMIT_S = 10


async def rows(dsn: str, name: str) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(dsn, timeout=LIMIT_S, command_timeout=LIMIT_S)
    try:
        return await connection.fetch((sql_dir() / "monitoring" / f"{name}.sql").read_text())
    finally:
        await connection.close(timeout=LIMIT_S)


@pytest.mark.each_postgres
@pytest.mark.parametrize("path", MONITORING, ids=lambda path: path.stem)
async def test_each_runs_and_says_what_it_is_for(migrated_database: str, path: Path) -> None:
    assert path.read_text().startswith("-- ")
    await rows(migrated_database, path.stem)


async def test_activity_and_transactions_name_the_relays_connections(migrated_database: str) -> None:
    async with AsyncExitStack() as stack:
        connection = await asyncpg.connect(
            migrated_database, server_settings={"application_name": "orbital-relay listener ab"}
        )
        stack.push_async_callback(connection.close)
        await stack.enter_async_context(connection.transaction())
        await connection.execute("SELECT 1")
        assert "orbital-relay listener ab" in {
            row["application_name"] for row in await rows(migrated_database, "activity")
        }
        [oldest] = await rows(migrated_database, "oldest_transaction")
        assert (oldest["application_name"], oldest["state"]) == ("orbital-relay listener ab", "idle in transaction")
        [queue] = await rows(migrated_database, "notification_queue")
        assert (queue["used"], queue["listeners"]) == (0, 1)


async def test_heads_posts_and_cursors_of_a_busy_group(migrated_database: str) -> None:
    async with connected(migrated_database) as connection:
        alice = await enroll(connection, "alice")
        quiet, busy = await found_group(connection, alice), await found_group(connection, alice)
        thread = new_id()
        await connection.execute(
            "INSERT INTO threads (id, group_id, author_id, encrypted_title, encrypted_body, seq, key_epoch)"
            " VALUES ($1, $2, $3, '', '', 2, 1)",
            *(thread, busy, alice.user_id),
        )
        await connection.execute(
            "INSERT INTO cursors (user_id, group_id, name, seq, hash) VALUES ($1, $2, 'bot', 0, $3)",
            *(alice.user_id, busy, bytes(32)),
        )
    heads = await rows(migrated_database, "heads")
    assert [(row["group_id"].bytes, row["members"], row["posts_last_hour"]) for row in heads] == [
        (busy, 1, 1),
        (quiet, 1, 0),
    ]
    assert [row["posts"] for row in await rows(migrated_database, "posts_per_minute")] == [1]
    assert [(row["username"], row["behind"]) for row in await rows(migrated_database, "cursor_lag")] == [("alice", 1)]


async def test_tables_and_indexes_of_the_schema_are_there(migrated_database: str) -> None:
    assert {"users", "events", "group_heads"} <= {
        row["table_name"] for row in await rows(migrated_database, "table_sizes")
    }
    assert "idx_users_username" in {row["index_name"] for row in await rows(migrated_database, "index_usage")}


async def test_media_shows_what_groups_use_and_what_waits(migrated_database: str) -> None:
    async with connected(migrated_database) as connection:
        alice = await enroll(connection, "alice")
        empty, used = await found_group(connection, alice), await found_group(connection, alice)
        async with relay_here(migrated_database) as url, talking(url, await token_of(connection, alice)) as talk:
            thread_id, _ = await post_thread(talk, used)
            await upload(talk, File(used, thread_id, bytes(1_000)))
            await begin(talk, File(used, thread_id, bytes(3_000)))
        await connection.execute("INSERT INTO blob_deletions (storage_url) VALUES ('a'), ('b')")
        await connection.execute("UPDATE uploads SET updated_at = now() - interval '2 hours'")
    [full, vacant] = await rows(migrated_database, "media")
    assert (full["group_id"].bytes, full["files"], full["uploads"], full["max_files"]) == (used, 1, 1, 100)
    assert (full["used"], full["may_use"], full["percent"]) == ("4000 bytes", "10 GB", 2)
    assert (vacant["group_id"].bytes, vacant["files"], vacant["uploads"], vacant["percent"]) == (empty, 0, 0, 0)
    [backlog] = await rows(migrated_database, "media_backlog")
    assert (backlog["overdue_files"], backlog["uploads"], backlog["blobs_to_delete"]) == (0, 1, 2)
    assert backlog["longest_idle_upload"].total_seconds() > 7_000
    assert backlog["oldest_deletion"] is not None


async def test_waiting_names_who_holds_the_lock(migrated_database: str) -> None:
    lock = "SELECT 1 FROM group_heads WHERE group_id = $1 FOR UPDATE"
    async with connected(migrated_database) as holder, connected(migrated_database) as other:
        group = await found_group(holder, await enroll(holder, "alice"))
        async with holder.transaction():
            await holder.execute(lock, group)
            waiting = asyncio.create_task(other.execute(lock, group), name="waits for the lock")
            async with asyncio.timeout(LIMIT_S):
                while not (found := await rows(migrated_database, "waiting")):
                    await asyncio.sleep(0.02)
            assert [row["held_by_pid"] for row in found] == [holder.get_server_pid()]
        await waiting
    assert await rows(migrated_database, "waiting") == []

"""Deleting a user (`delete_user_v1`): what they wrote stays, what they own goes, every log goes on or ends in order."""

import asyncio

import asyncpg
import pytest

from orbital_protocol import ZERO_ID, frames
from orbital_protocol.codes import ErrorCode, Kind
from orbital_protocol.statements import MemberLeft
from orbital_relay import hints
from orbital_relay.store.events import read_events
from orbital_relay.store.pool import Connection
from tests.people import Person, admit, connected, found_group, says, view
from tests.worlds import RELAY_HEX, World, hash_of, verified_log


async def delete_user(connection: Connection, person: Person, *, with_groups: bool = False) -> list[asyncpg.Record]:
    """Delete somebody: a row for each event that it made."""
    rows: list[asyncpg.Record] = await connection.fetch(
        "SELECT group_id, kind, object_id, seq, hash, created_us, key_epoch FROM delete_user_v1($1, $2, $3)",
        *(RELAY_HEX, person.user_id, with_groups),
    )
    return rows


async def count(connection: Connection, table: str) -> int:
    """How many rows a table has."""
    return int(await connection.fetchval(f"SELECT count(*) FROM {table}"))  # noqa: S608  a table of ours


@pytest.mark.each_postgres
async def test_what_a_deleted_user_wrote_stays_without_its_author(world: World) -> None:
    alice, bob = await world.people("alice", "bob")
    group_id = await world.group(alice, bob)
    thread_id = await world.post(bob, group_id)
    await world.post(alice, group_id, thread_id)
    await world.post(bob, group_id, thread_id)
    await world.post(bob, group_id, thread_id, Kind.ANNOTATION_POSTED)
    before = await read_events(world.sql, group_id, 0, 100)

    (row,) = await delete_user(world.sql, bob)

    for table, authors in (("threads", [None]), ("replies", [alice.user_id, None]), ("annotations", [None])):
        rows = await world.sql.fetch(f"SELECT author_id FROM {table} ORDER BY seq")  # noqa: S608  one of the above
        assert [row["author_id"] for row in rows] == authors, table
    *history, left = await verified_log(world.sql, group_id)
    assert history == before  # the log names the author still, and keeps every word
    assert (left.kind, left.actor_id, left.object_id) == (Kind.MEMBER_LEFT, ZERO_ID, bob.user_id)
    assert (left.statement, left.signature) == (None, None)
    assert (row["group_id"], row["kind"], row["object_id"]) == (group_id, Kind.MEMBER_LEFT, bob.user_id)
    assert (row["seq"], row["hash"], row["created_us"]) == (left.seq, left.hash, left.created_at)
    assert row["key_epoch"] == left.key_epoch == 1
    group = await world.ask(alice, frames.GroupGet, group_id=group_id)
    assert (group.member_count, group.rekey_required) == (1, True)
    assert (await world.try_post(alice, group_id))[0] == ErrorCode.REKEY_REQUIRED
    assert await world.sql.fetchval("SELECT count(*) FROM user_keys WHERE user_id = $1", bob.user_id) == 1


@pytest.mark.each_postgres
async def test_groups_that_a_deleted_user_created_are_gone(world: World) -> None:
    alice, bob = await world.people("alice", "bob")
    owned, joined = await world.group(bob, alice), await world.group(alice, bob)
    thread_id = await world.post(alice, owned)
    await world.post(bob, owned, thread_id)
    stood_at = (await view(world.sql, owned)).seq

    rows = await delete_user(world.sql, bob, with_groups=True)

    assert {row["group_id"]: row["kind"] for row in rows} == {owned: Kind.GROUP_DELETED, joined: Kind.MEMBER_LEFT}
    assert await world.sql.fetchval("SELECT array_agg(id) FROM groups") == [joined]
    for table in ("threads", "replies"):
        assert await count(world.sql, table) == 0
    head = await world.sql.fetchrow("SELECT * FROM group_heads WHERE group_id = $1", owned)
    assert head is not None
    assert head["deleted_at"] is not None
    (end,) = await read_events(world.sql, owned, 0, 10)
    assert (end.kind, end.seq, end.actor_id, end.object_id) == (Kind.GROUP_DELETED, stood_at + 1, ZERO_ID, bob.user_id)
    assert (end.seq, end.hash) == (head["last_seq"], head["head_hash"])
    await verified_log(world.sql, joined)


async def test_the_last_event_of_a_deleted_group_is_chained_to_the_one_before(world: World) -> None:
    bob = await world.person("bob")
    owned = await world.group(bob)
    previous = (await view(world.sql, owned)).hash

    await delete_user(world.sql, bob, with_groups=True)

    (end,) = await read_events(world.sql, owned, 0, 10)
    assert end.hash == hash_of(end, previous)


async def test_a_user_who_owns_groups_is_left_alone_unless_they_go_too(world: World) -> None:
    alice, bob = await world.people("alice", "bob")
    owned, joined = await world.group(bob), await world.group(alice, bob)
    before = [await view(world.sql, group_id) for group_id in (owned, joined)]

    (row,) = await delete_user(world.sql, bob)

    assert (row["group_id"], row["kind"]) == (owned, 0)
    assert [await view(world.sql, group_id) for group_id in (owned, joined)] == before
    assert await world.sql.fetchval("SELECT count(*) FROM users WHERE id = $1", bob.user_id) == 1


async def test_deleting_nobody_does_nothing(world: World) -> None:
    bob = await world.person("bob")
    assert await delete_user(world.sql, bob) == []
    assert await delete_user(world.sql, bob) == []


async def test_every_relay_is_told(world: World, migrated_database: str) -> None:
    alice, bob = await world.people("alice", "bob")
    groups = [await world.group(alice, bob) for _ in range(3)]
    heard: list[hints.Hint | None] = []
    async with connected(migrated_database) as listening:
        await listening.add_listener(hints.CHANNEL, lambda *notified: heard.append(hints.parse(str(notified[3]))))
        await delete_user(world.sql, bob)
        await listening.execute("SELECT 1")

    woken = [hint for hint in heard if isinstance(hint, hints.Wake)]
    assert sorted(head for wake in woken for head in wake.heads) == sorted((group_id, 3) for group_id in groups)


async def test_a_bare_delete_does_as_the_founding_document_says(world: World) -> None:
    """An operator who deletes the row itself: cascades and SET NULL, though no log tells of it."""
    alice, bob = await world.people("alice", "bob")
    owned, joined = await world.group(bob, alice), await world.group(alice, bob)
    thread_id = await world.post(bob, joined)
    await world.post(bob, joined, thread_id)
    await world.post(bob, owned)

    await world.sql.execute("DELETE FROM users WHERE id = $1", bob.user_id)

    assert await world.sql.fetchval("SELECT array_agg(id) FROM groups") == [joined]
    assert await world.sql.fetchval("SELECT array_agg(author_id) FROM threads") == [None]
    assert await world.sql.fetchval("SELECT array_agg(author_id) FROM replies") == [None]
    assert await world.sql.fetchval("SELECT array_agg(user_id) FROM members") == [alice.user_id]
    await world.sql.execute("DELETE FROM group_heads")  # or the world would miss the member.left that belongs there


async def test_a_group_joined_at_the_last_moment_is_not_overlooked(world: World, migrated_database: str) -> None:
    alice, bob = await world.people("alice", "bob")
    here, there = await world.group(alice, bob), await world.group(alice)
    async with connected(migrated_database) as deleting, connected(migrated_database) as holding:
        async with holding.transaction():
            await holding.execute("SELECT FROM group_heads WHERE group_id = $1 FOR UPDATE", here)
            deletion = asyncio.create_task(delete_user(deleting, bob), name="deletion")
            await world.waiting_for_locks(1)
            await admit(world.sql, there, alice, bob)
        with pytest.raises(asyncpg.SerializationError):
            await deletion

        rows = await delete_user(deleting, bob)

    assert {row["group_id"] for row in rows} == {here, there}


async def test_a_deletion_that_meets_a_leave_leaves_once(world: World, migrated_database: str) -> None:
    alice, bob = await world.people("alice", "bob")
    group_id = await world.group(alice, bob)
    leaving = world.carrying(frames.GroupLeave, await says(world.sql, bob, group_id, MemberLeft))
    async with connected(migrated_database) as deleting:
        _, deleted = await world.race(group_id, world.send(bob, leaving), delete_user(deleting, bob))

    assert deleted == []
    assert await world.sql.fetchval("SELECT count(*) FROM users WHERE id = $1", bob.user_id) == 0


async def test_the_groups_of_a_deleted_user_go_on(world: World) -> None:
    alice, bob, carol = await world.people("alice", "bob", "carol")
    group_id = await found_group(world.sql, alice, bob, carol)
    await delete_user(world.sql, bob)

    await world.tell(carol, group_id, frames.GroupLeave, MemberLeft)

    assert [event.kind for event in await verified_log(world.sql, group_id)][-2:] == [Kind.MEMBER_LEFT] * 2

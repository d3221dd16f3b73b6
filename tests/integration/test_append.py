"""The two functions that append posts do the same: the one for batches, and the one for a post alone."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import asyncpg
import pytest
from msgspec.structs import replace

from orbital_protocol import frames
from orbital_protocol.codes import Kind
from orbital_protocol.statements import GroupDeleted, MemberRemoved, PostDeleted
from orbital_relay.store.posts import Appended, Post, append_batch, append_one, append_posts
from tests.people import Person, connected, new_id, post_of
from tests.worlds import RELAY_HEX, World

pytestmark = pytest.mark.timeout(120)

TABLES = ("objects", "threads", "replies", "annotations", "events", "group_heads")
TIMES = {"created_at", "created_us", "hash", "head_hash"}

Append = Callable[[Any, str, Sequence[Post]], Awaitable[list[asyncpg.Record]]]


async def everything(world: World) -> dict[str, list[dict[str, Any]]]:
    """All rows that posts may change, but for what depends on the moment."""
    return {
        table: [
            {name: value for name, value in row.items() if name not in TIMES}
            for row in await world.sql.fetch(f"SELECT * FROM {table} ORDER BY 1, 2")  # noqa: S608
        ]
        for table in TABLES
    }


async def by(append: Append, world: World, post: Post) -> tuple[Any, dict[str, list[dict[str, Any]]]]:
    """What a function answers, and what the tables have then; none of it stays."""
    transaction = world.sql.transaction()
    await transaction.start()
    try:
        [row] = await append(world.sql, RELAY_HEX, [post])
        answer = {name: value for name, value in row.items() if name not in TIMES}
        if answer["duplicate"]:
            answer |= {"hash": row["hash"], "created_us": row["created_us"]}
        return answer, await everything(world)
    finally:
        await transaction.rollback()


async def agreed(world: World, post: Post) -> str | None:
    """Append by both functions, on the same state; the error that both answer with."""
    one, batch = await by(append_one, world, post), await by(append_batch, world, post)
    assert one == batch
    error: str | None = one[0]["error"]
    assert (one[1] == await everything(world)) == (error is not None or one[0]["duplicate"])
    return error


async def test_they_do_the_same(world: World) -> None:
    ann, bob, eve = await world.people("ann", "bob", "eve")
    group_id = await world.group(ann, bob)
    other_id, buried_id = await world.group(ann), await world.group(ann)
    thread = await world.post(ann, group_id)
    reply = await world.post(bob, group_id, thread)
    erased = await world.post(ann, group_id)
    elsewhere = await world.post(ann, other_id)
    await world.tell(ann, group_id, frames.PostDelete, PostDeleted, target_id=erased)
    await world.tell(ann, buried_id, frames.GroupDelete, GroupDeleted)

    def a(kind: Kind, parent_id: bytes | None = None, author: Person = ann, **changes: Any) -> Post:
        post = post_of(author, group_id, kind=kind, parent_id=parent_id, body=os.urandom(100))
        return replace(post, **changes)

    for expected, post in (
        (None, a(Kind.THREAD_POSTED)),
        (None, a(Kind.REPLY_POSTED, thread, bob)),
        (None, a(Kind.ANNOTATION_POSTED, thread)),
        (None, a(Kind.ANNOTATION_POSTED, reply, bob)),
        ("not_found", a(Kind.THREAD_POSTED, author=eve)),
        ("not_found", a(Kind.THREAD_POSTED, group_id=new_id())),
        ("not_found", a(Kind.THREAD_POSTED, group_id=buried_id)),
        ("not_found", a(Kind.REPLY_POSTED, reply)),
        ("not_found", a(Kind.REPLY_POSTED, new_id())),
        ("not_found", a(Kind.REPLY_POSTED, erased)),
        ("not_found", a(Kind.REPLY_POSTED, elsewhere)),
        ("not_found", a(Kind.ANNOTATION_POSTED, elsewhere)),
        ("stale_key_epoch", a(Kind.THREAD_POSTED, key_epoch=2)),
        (None, a(Kind.REPLY_POSTED, thread, bob, object_id=reply)),  # a duplicate
        ("id_conflict", a(Kind.REPLY_POSTED, thread, ann, object_id=reply)),
        ("id_conflict", a(Kind.THREAD_POSTED, object_id=elsewhere)),
    ):
        assert await agreed(world, post) == expected, post
    await world.tell(ann, group_id, frames.MemberRemove, MemberRemoved, user_id=bob.user_id, ban=False)
    assert await agreed(world, a(Kind.THREAD_POSTED)) == "rekey_required"
    assert await agreed(world, a(Kind.THREAD_POSTED, author=bob)) == "not_found"
    assert await agreed(world, a(Kind.THREAD_POSTED, object_id=thread)) is None, "a duplicate all the same"


async def test_both_wake_and_chain(world: World, migrated_database: str) -> None:
    """What was appended by turns is one verified log (the world verifies it), and every relay is told."""
    ann = await world.person("ann")
    group_id = await world.group(ann)
    told: asyncio.Queue[str] = asyncio.Queue()
    async with connected(migrated_database) as listener:
        await listener.add_listener("orbital", lambda *notification: told.put_nowait(str(notification[-1])))
        for number in range(6):
            append = (append_one, append_batch)[number % 2]
            [row] = await append(world.sql, RELAY_HEX, [post_of(ann, group_id)])
            async with asyncio.timeout(10):
                assert await told.get() == f"w1 {RELAY_HEX} {group_id.hex()}:{row['seq']}"


async def test_an_id_that_is_being_used_is_told(world: World, migrated_database: str) -> None:
    """Two groups, one id: whoever comes second waits for the first one's end, and is refused by the index."""
    ann = await world.person("ann")
    post = post_of(ann, await world.group(ann))
    twin = replace(post_of(ann, await world.group(ann)), object_id=post.object_id)
    async with connected(migrated_database) as other:
        async with world.sql.transaction():
            assert isinstance((await append_posts(world.sql, RELAY_HEX, [post]))[0], Appended)
            second = asyncio.create_task(append_posts(other, RELAY_HEX, [twin]))
            await world.waiting_for_locks(1)
        with pytest.raises(asyncpg.UniqueViolationError):
            await second

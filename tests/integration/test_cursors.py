"""Named cursors on a real database: what holds when several are put at once, or their group goes meanwhile."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import pytest_asyncio

from orbital_protocol import ZERO_HASH
from orbital_protocol.codes import ErrorCode
from orbital_protocol.frames import CursorGet, CursorOk, CursorPut
from orbital_relay.errors import RequestError
from orbital_relay.handlers.subscriptions import Live, group_heads
from orbital_relay.limits import KeyedBuckets
from orbital_relay.store.pool import Connection, Database, PoolSettings
from tests.people import Person, connected, enroll, found_group, view
from tests.worlds import LIMITS, NOW, RELAY_HEX, FakePeer, refused

LIMIT_S = 10


@dataclass
class Scene:
    """A group of Ann's, and what answers her."""

    sql: Connection
    live: Live
    ann: Person
    group_id: bytes
    told: list[str] = field(default_factory=list)

    async def put(self, name: str, seq: int = 0, hash_: bytes = ZERO_HASH) -> CursorOk:
        request = CursorPut(id=1, group_id=self.group_id, name=name, seq=seq, hash=hash_)
        return await self.live.cursor_put(FakePeer(self.ann.caller()), request)

    async def blocked(self, count: int) -> None:
        """Return once so many wait for a lock."""
        async with asyncio.timeout(LIMIT_S):
            while await self.sql.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted") < count:
                await asyncio.sleep(0.01)


@pytest_asyncio.fixture
async def scene(migrated_database: str) -> AsyncIterator[Scene]:
    nothing: Callable[[object], None] = lambda _: None  # noqa: E731
    database = Database(PoolSettings(migrated_database), "test")
    live = Live(
        database=database,
        heads=group_heads(database),
        limits=LIMITS,
        now=lambda: NOW,
        relay_hex=RELAY_HEX,
        signal_rate=KeyedBuckets(1, 1, lambda: 0),
        deliver_signal=nothing,
        hint=nothing,
    )
    await database.open()
    try:
        async with connected(migrated_database) as sql:
            ann = await enroll(sql, "ann")
            yield Scene(sql, live, ann, await found_group(sql, ann))
    finally:
        await database.close()


async def test_of_several_new_cursors_at_once_none_is_one_too_many(scene: Scene) -> None:
    for number in range(LIMITS.max_cursors_per_user - 1):
        await scene.put(f"cursor.{number}")
    async with scene.sql.transaction():
        await scene.sql.execute("SELECT FROM users FOR UPDATE")
        putting = [asyncio.create_task(scene.put(name)) for name in ("one", "two", "three")]
        await scene.blocked(len(putting))
    outcomes = await asyncio.gather(*putting, return_exceptions=True)
    codes = [outcome.code for outcome in outcomes if isinstance(outcome, RequestError)]
    assert codes == [ErrorCode.LIMIT_EXCEEDED] * 2
    assert await scene.sql.fetchval("SELECT count(*) FROM cursors") == LIMITS.max_cursors_per_user


async def test_a_cursor_that_is_there_needs_no_room(scene: Scene) -> None:
    """Nor does one that stands at the beginning, and is put there again."""
    for number in range(LIMITS.max_cursors_per_user):
        await scene.put(f"cursor.{number}")
    head = await view(scene.sql, scene.group_id)
    for seq, hash_ in ((0, ZERO_HASH), (head.seq, head.hash)):
        moved = await scene.put("cursor.0", seq, hash_)
        assert (moved.seq, moved.hash) == (seq, hash_)
    with refused(ErrorCode.LIMIT_EXCEEDED):
        await scene.put("another")


async def test_a_group_that_goes_meanwhile_is_not_there(scene: Scene) -> None:
    async with scene.sql.transaction():
        await scene.sql.execute("DELETE FROM groups")
        putting = asyncio.create_task(scene.put("place"))
        await scene.blocked(1)
    with refused(ErrorCode.NOT_FOUND):
        await putting
    with refused(ErrorCode.NOT_FOUND):
        await scene.live.cursor_get(
            FakePeer(scene.ann.caller()), CursorGet(id=1, group_id=scene.group_id, name="place")
        )

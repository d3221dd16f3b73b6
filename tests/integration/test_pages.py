"""Pages of a log: as many events as were asked for, as far as they fit, and no more of them out of the database."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from orbital_protocol import frames
from orbital_protocol.frames import Event, EventListOk
from orbital_relay.handlers.posts import Posts
from orbital_relay.store import events as event_store
from orbital_relay.store.events import Page
from orbital_relay.store.pool import Connection, Database, PoolSettings
from tests.people import Person, connected, enroll, found_group, post_of
from tests.readers import append
from tests.worlds import LIMITS, FakePeer

REPLIES = 30
BODY = bytes(60_000)  # 30 of them are two megabytes, four pages' worth
STORED_BYTES = 80_000


@dataclass
class Scene:
    """A thread with replies that don't fit into one page."""

    sql: Connection
    posts: Posts
    ann: Person
    group_id: bytes
    thread_id: bytes
    replies: list[Event]

    async def ask(self, kind: type[frames.EventList | frames.ReplyList], **fields: Any) -> EventListOk:
        thread: dict[str, Any] = {"thread_id": self.thread_id} if kind is frames.ReplyList else {}
        handler: Any = self.posts.reply_list if kind is frames.ReplyList else self.posts.event_list
        request = kind(id=1, group_id=self.group_id, limit=LIMITS.page_limit, **thread, **fields)
        answer: EventListOk = await handler(FakePeer(self.ann.caller()), request)
        return answer


@pytest_asyncio.fixture
async def scene(migrated_database: str) -> AsyncIterator[Scene]:
    database = Database(PoolSettings(migrated_database), "test")
    await database.open()
    try:
        async with connected(migrated_database) as sql:
            ann = await enroll(sql, "ann")
            group_id = await found_group(sql, ann)
            [thread] = await append(sql, [post_of(ann, group_id)])
            replies = await append(
                sql, [post_of(ann, group_id, parent_id=thread.object_id, body=BODY) for _ in range(REPLIES)]
            )
            yield Scene(sql, Posts(database, LIMITS), ann, group_id, thread.object_id, replies)
    finally:
        await database.close()


def seqs(events: list[Event]) -> list[int]:
    return [event.seq for event in events]


@pytest.mark.each_postgres
async def test_what_does_not_fit_stays_in_the_database(scene: Scene) -> None:
    """An answer of half a megabyte must not cost a relay as many events as could be asked for."""
    first, last = scene.replies[0].seq, scene.replies[-1].seq
    for limit_bytes in (1, STORED_BYTES, STORED_BYTES + 1, 5 * STORED_BYTES):
        count = -(-limit_bytes // STORED_BYTES)
        up = Page(100, limit_bytes, after_seq=first - 1)
        down = Page(100, limit_bytes, before_seq=last + 1)
        for found in (
            await event_store.list_events(scene.sql, scene.group_id, up, None),
            await event_store.list_replies(scene.sql, scene.group_id, up, scene.thread_id),
        ):
            assert seqs(found) == [*range(first, first + count)]
        for found in (
            await event_store.list_events(scene.sql, scene.group_id, down, None),
            await event_store.list_replies(scene.sql, scene.group_id, down, scene.thread_id),
        ):
            assert seqs(found) == [*range(last - count + 1, last + 1)]
    threads = await append(scene.sql, [post_of(scene.ann, scene.group_id, body=BODY) for _ in range(3)])
    for page, expected in (
        (Page(100, STORED_BYTES, after_seq=last), seqs(threads)[:1]),
        (Page(100, STORED_BYTES + 100), seqs(threads)[1:]),
    ):
        assert seqs(await event_store.list_threads(scene.sql, scene.group_id, page)) == expected


@pytest.mark.parametrize("kind", [frames.EventList, frames.ReplyList])
async def test_pages_upwards_and_downwards_leave_nothing_out(
    scene: Scene, kind: type[frames.EventList | frames.ReplyList]
) -> None:
    up: list[Event] = []
    position = scene.replies[0].seq - 1
    while (answer := await scene.ask(kind, after_seq=position)).more:
        up += answer.events
        position = up[-1].seq
    assert up + answer.events == scene.replies
    down: list[Event] = []
    position = scene.replies[-1].seq + 1
    while (answer := await scene.ask(kind, before_seq=position)).more:
        down = answer.events + down
        position = down[0].seq
    found = answer.events + down
    assert found[-REPLIES:] == scene.replies
    assert seqs(found) == [*range(found[0].seq, scene.replies[-1].seq + 1)]

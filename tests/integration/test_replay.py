"""Replay on a real database: from any cursor, at the reader's pace, into the live set without a hole or a repeat."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import pytest
import pytest_asyncio
from msgspec.structs import replace

from orbital_protocol import ZERO_HASH, frames
from orbital_protocol.codes import ErrorCode
from orbital_protocol.frames import Event, SubscribeGroup
from orbital_relay.errors import LimitExceeded
from orbital_relay.ring import header_of
from orbital_relay.store import events as event_store
from orbital_relay.store.pool import Connection
from orbital_relay.store.queries import query
from tests.people import Person, connected, enroll, found_group, post_of
from tests.readers import LIMIT_S, DataPath, append, data_path
from tests.talk import check_steps
from tests.worlds import LIMITS

OUTBOX_BYTES = 64 * 1024
PAGE_BYTES = 256 * 1024


@dataclass
class Scene:
    """Two people, three groups of theirs, and a data path on which a session may have two subscriptions."""

    path: DataPath
    sql: Connection
    ann: Person
    bob: Person
    group_ids: list[bytes]

    async def post(self, count: int, *, group: int = 0, body: bytes = b"a body", announce: bool = False) -> list[Event]:
        events = await append(self.sql, [post_of(self.ann, self.group_ids[group], body=body) for _ in range(count)])
        if announce:
            self.path.fanout.publish(events)
        return events


@pytest_asyncio.fixture
async def scene(migrated_database: str) -> AsyncIterator[Scene]:
    limits = replace(LIMITS, max_subscriptions=2)
    async with connected(migrated_database) as sql, data_path(migrated_database, limits=limits) as path:
        ann, bob = await enroll(sql, "ann"), await enroll(sql, "bob")
        yield Scene(path, sql, ann, bob, [await found_group(sql, ann, bob) for _ in range(3)])


def start_of(group_id: bytes) -> SubscribeGroup:
    return SubscribeGroup(group_id=group_id, after_seq=0, after_hash=ZERO_HASH)


# ── from any position to the live set ───────────────────────────────────────────────────────────────────────────────


async def test_every_cursor_gives_the_rest_and_then_live(scene: Scene) -> None:
    """Also a cursor a page and more behind, and the head itself."""
    group_id = scene.group_ids[0]
    log = (await scene.path.reader(scene.ann).from_start(group_id)).events(group_id)
    log = [*log, *await scene.post(250)]
    for position in (0, 1, 2, 99, 100, 101, 152, len(log) - 1, len(log)):
        reader = scene.path.reader(scene.bob)
        hash_ = log[position - 1].hash if position else ZERO_HASH
        assert await reader.subscribe(group_id, position, hash_) == "resumed"
        await reader.live(group_id)
        assert reader.events(group_id) == log[position:]
        live = reader.wire.pushes[-1]
        assert live == frames.Live(group_id=group_id, seq=log[-1].seq, hash=log[-1].hash)


async def test_without_a_cursor_it_begins_at_the_head(scene: Scene) -> None:
    group_id = scene.group_ids[0]
    await scene.post(5)
    reader = scene.path.reader(scene.bob)
    assert await reader.subscribe(group_id) == "resumed"
    await reader.live(group_id)
    assert reader.events(group_id) == []
    [event] = await scene.post(1, announce=True)
    assert await reader.has(group_id, event.seq) == [event]


async def test_what_is_posted_while_paging_comes_once(scene: Scene) -> None:
    """Events are posted between the pages, announced and not: they come from the store or live, never both."""
    group_id = scene.group_ids[0]
    await scene.post(150)
    reader = scene.path.reader(scene.bob)
    subscribing = asyncio.create_task(reader.subscribe(group_id, 0, ZERO_HASH))
    for number in range(30):
        await scene.post(2, announce=bool(number % 2))
    assert await subscribing == "resumed"
    [last] = await scene.post(1, announce=True)
    got = await reader.has(group_id, last.seq)
    check_steps(got)
    assert [event.seq for event in got] == [*range(1, last.seq + 1)]


async def test_groups_of_one_subscription_all_arrive(scene: Scene) -> None:
    first, second, _ = scene.group_ids
    logs = [await scene.post(130, group=0), await scene.post(7, group=1)]
    reader = scene.path.reader(scene.bob)
    answer = await reader.ask([start_of(first), start_of(second)])
    assert [group.status for group in answer.groups] == ["resumed", "resumed"]
    await reader.live(first)
    await reader.live(second)
    assert reader.events(first)[2:] == logs[0]
    assert reader.events(second)[2:] == logs[1]


# ── at the reader's pace ────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_reader_who_stands_still_is_owed_no_more_than_its_outbox_and_a_page(scene: Scene) -> None:
    """Six megabytes wait in the store, not in memory; then they come, all of them."""
    group_id = scene.group_ids[0]
    body = bytes(60 * 1024)
    log = await scene.post(100, body=body)
    reader = scene.path.reader(scene.bob, OUTBOX_BYTES)
    reader.stall()
    assert await reader.subscribe(group_id, 0, ZERO_HASH) == "resumed"
    await reader.waits()
    most = OUTBOX_BYTES // 4 + PAGE_BYTES + len(body) * 2
    assert reader.outbox.waiting_bytes < most
    reader.go_on()
    await reader.live(group_id)
    assert reader.events(group_id)[2:] == log
    check_steps(reader.events(group_id))


async def test_a_page_of_several_large_groups_is_no_larger(scene: Scene) -> None:
    group_ids = scene.group_ids[:2]
    body = bytes(60 * 1024)
    for group in (0, 1):
        await scene.post(20, group=group, body=body)
    reader = scene.path.reader(scene.bob, OUTBOX_BYTES)
    reader.stall()
    await reader.ask([start_of(group_id) for group_id in group_ids])
    await reader.waits()
    assert reader.outbox.waiting_bytes < OUTBOX_BYTES // 4 + PAGE_BYTES + len(body) * 2
    reader.go_on()
    for group_id in group_ids:
        await reader.live(group_id)
        check_steps(reader.events(group_id))
        assert len(reader.events(group_id)) == 22


# ── who may ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_member_removed_before_the_next_page_gets_no_further_page(scene: Scene) -> None:
    group_id = scene.group_ids[0]
    await scene.post(100, body=bytes(8 * 1024))
    reader = scene.path.reader(scene.bob, OUTBOX_BYTES)
    reader.stall()
    await reader.subscribe(group_id, 0, ZERO_HASH)
    await reader.waits()
    await scene.sql.execute("DELETE FROM members WHERE group_id = $1 AND user_id = $2", group_id, scene.bob.user_id)
    reader.go_on()
    await reader.until(lambda: bool(reader.gone(group_id)))
    assert reader.gone(group_id) == ["denied"]
    assert len(reader.events(group_id)) < 102
    check_steps(reader.events(group_id))
    assert reader.subscriptions.group_ids() == []


async def test_a_group_deleted_while_paging_is_gone(scene: Scene) -> None:
    group_id = scene.group_ids[0]
    await scene.post(100, body=bytes(8 * 1024))
    reader = scene.path.reader(scene.bob, OUTBOX_BYTES)
    reader.stall()
    await reader.subscribe(group_id, 0, ZERO_HASH)
    await reader.waits()
    async with scene.sql.transaction():
        await scene.sql.execute(
            "SELECT append_relay_event_v1($1, $2, 5::SMALLINT, $3, FALSE)", "00" * 16, group_id, scene.ann.user_id
        )
        await scene.sql.execute("SELECT bury_group_v1($1)", group_id)
    reader.go_on()
    await reader.until(lambda: bool(reader.gone(group_id)))
    assert reader.gone(group_id) == ["deleted"]
    check_steps(reader.events(group_id))


async def test_a_subscription_ended_while_its_reader_stands_still_is_over(scene: Scene) -> None:
    """And the next one of the same reader is as good as the first."""
    group_id = scene.group_ids[0]
    log = await scene.post(100, body=bytes(8 * 1024))
    reader = scene.path.reader(scene.bob, OUTBOX_BYTES)
    reader.stall()
    await reader.subscribe(group_id, 0, ZERO_HASH)
    await reader.waits()
    reader.subscriptions.end_all()
    reader.go_on()
    await reader.until(lambda: reader.outbox.is_low)
    before = len(reader.events(group_id))
    assert before < 102
    await reader.subscribe(group_id, 0, ZERO_HASH)
    await reader.live(group_id)
    assert reader.events(group_id)[before + 2 :] == log


# ── again, and too many ─────────────────────────────────────────────────────────────────────────────────────────────


async def test_subscribing_again_begins_anew_from_the_new_cursor(scene: Scene) -> None:
    """Also while the first replay is under way, and with another filter; the old one brings nothing any more."""
    group_id = scene.group_ids[0]
    log = (await scene.path.reader(scene.ann).from_start(group_id)).events(group_id)
    log = [*log, *await scene.post(30)]
    reader = scene.path.reader(scene.bob)
    for position in (0, 20, 5):
        before = len(reader.wire.pushes)
        hash_ = log[position - 1].hash if position else ZERO_HASH
        assert await reader.subscribe(group_id, position, hash_) == "resumed"
        await reader.until(lambda before=before: any(isinstance(p, frames.Live) for p in reader.wire.pushes[before:]))  # type: ignore[misc]
        got = [push for push in reader.wire.pushes[before:] if isinstance(push, Event)]
        assert got == log[position:]
    await reader.subscribe(group_id, 0, ZERO_HASH)
    assert await reader.subscribe(group_id, 0, ZERO_HASH, kinds=[1]) == "resumed"
    [event] = await scene.post(1, announce=True)
    got = (await reader.has(group_id, event.seq))[-1:]
    assert [e.encrypted_body for e in got] == [None]
    assert [e.seq for e in reader.events(group_id)].count(event.seq) == 1
    starts = [number for number, e in enumerate(reader.events(group_id)) if e.seq == 1]
    for start, end in pairwise([*starts, len(reader.events(group_id))]):
        piece = [e.seq for e in reader.events(group_id)[start:end]]
        assert piece[0] == 1


@pytest.mark.produces(ErrorCode.LIMIT_EXCEEDED)
async def test_a_session_has_at_most_max_subscriptions(scene: Scene) -> None:
    first, second, third = scene.group_ids
    reader = scene.path.reader(scene.bob)
    await reader.ask([start_of(first), start_of(second)])
    await reader.ask([start_of(first)])  # one that is there doesn't count twice
    with pytest.raises(LimitExceeded) as refused:
        await reader.ask([start_of(third)])
    assert refused.value.details is not None
    assert refused.value.details.limit == 2
    reader.subscriptions.end(first)
    await reader.ask([start_of(third)])
    assert set(reader.subscriptions.group_ids()) == {second, third}


async def test_requests_at_once_cannot_pass_the_limit_together(scene: Scene) -> None:
    reader = scene.path.reader(scene.bob)
    answers = await asyncio.gather(
        *(reader.ask([start_of(group_id)]) for group_id in scene.group_ids), return_exceptions=True
    )
    assert sorted(type(answer).__name__ for answer in answers) == ["LimitExceeded", "SubscribeOk", "SubscribeOk"]
    assert len(reader.subscriptions) == 2


async def test_what_is_refused_leaves_nothing_behind(scene: Scene) -> None:
    stranger = scene.path.reader(await enroll(scene.sql, "zoe"))
    group_id = scene.group_ids[0]
    assert await stranger.subscribe(group_id) == "denied"
    reader = scene.path.reader(scene.bob)
    assert await reader.subscribe(group_id, 99, bytes(32)) == "future_cursor"
    assert await reader.subscribe(group_id, 1, bytes(32)) == "chain_fork"
    assert scene.path.fanout.groups() == []
    assert reader.subscriptions.count_with([]) == 0


# ── many at once ────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_who_is_read_for_together_gets_their_own(scene: Scene) -> None:
    """From different places, one of them filtered, and a stranger among them."""
    first, second, _ = scene.group_ids
    await scene.post(30)
    await scene.post(20, group=1)
    logs = {group_id: await event_store.read_events(scene.sql, group_id, 0, 100) for group_id in (first, second)}
    places = [(first, 0), (first, 7), (second, 0), (first, 7), (second, 20), (first, len(logs[first]))]
    readers = [scene.path.reader(person) for person in (scene.ann, scene.bob) * 3]
    filtering = scene.path.reader(scene.ann)
    stranger = scene.path.reader(await enroll(scene.sql, "zoe"))
    outcomes = await asyncio.gather(
        *(
            reader.subscribe(group_id, seq, logs[group_id][seq - 1].hash if seq else ZERO_HASH)
            for reader, (group_id, seq) in zip(readers, places, strict=True)
        ),
        filtering.ask([SubscribeGroup(group_id=first, after_seq=7, after_hash=logs[first][6].hash)], kinds=[]),
        stranger.subscribe(first, 7, logs[first][6].hash),
    )
    assert outcomes[-1] == "denied"
    for reader, (group_id, seq) in zip(readers, places, strict=True):
        await reader.live(group_id)
        assert reader.events(group_id) == logs[group_id][seq:]
    await filtering.live(first)
    assert filtering.events(first) == [header_of(event) for event in logs[first][7:]]
    assert stranger.wire.pushes == []


async def test_a_read_for_many_gives_nothing_of_a_group_to_who_is_no_member(scene: Scene) -> None:
    first, second, _ = scene.group_ids
    log = await scene.post(3)
    zoe = await enroll(scene.sql, "zoe")
    wanted = [
        (scene.ann.user_id, first, log[0].seq),
        (zoe.user_id, first, log[0].seq),
        (scene.bob.user_id, second, 99),
        (scene.bob.user_id, first, log[0].seq),
    ]
    anns, zoes, nothing, bobs = await event_store.read_replay(scene.sql, wanted, limit=10, limit_bytes=1 << 20)
    assert anns is bobs
    assert anns is not None
    assert (anns.events, anns.last_seq) == (log[1:], log[-1].seq)
    assert zoes is None
    assert nothing is not None
    assert (nothing.events, nothing.last_seq) == ([], 2)


# ── what was read for others ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many stretches each statement that read for replays asked for."""
    asked: list[int] = []
    read = event_store.read_replay

    async def counting(
        connection: Connection, wanted: Sequence[tuple[bytes, bytes, int]], *, limit: int, limit_bytes: int
    ) -> list[event_store.Stretch | None]:
        asked.append(len(wanted))
        return await read(connection, wanted, limit=limit, limit_bytes=limit_bytes)

    monkeypatch.setattr(event_store, "read_replay", counting)
    return asked


async def test_who_comes_soon_after_others_gets_what_was_read_for_them(scene: Scene, reads: list[int]) -> None:
    """Also page by page, and filtered; whoever has missed nothing makes nobody read."""
    group_id = scene.group_ids[0]
    await scene.post(250)
    first = await scene.path.reader(scene.ann).from_start(group_id)
    log = first.events(group_id)
    assert reads == [1, 1, 1]
    second = await scene.path.reader(scene.bob).from_start(group_id)
    assert second.wire.pushes == first.wire.pushes
    filtering = await scene.path.reader(scene.bob).from_start(group_id, kinds=[])
    assert filtering.events(group_id) == [*log[:2], *(header_of(event) for event in log[2:])]
    at_head = scene.path.reader(scene.bob)
    await at_head.subscribe(group_id, log[-1].seq, log[-1].hash)
    await at_head.live(group_id)
    assert at_head.events(group_id) == []
    assert reads == [1, 1, 1]
    [event] = await scene.post(1, announce=True)
    for reader in (second, at_head):
        assert (await reader.has(group_id, event.seq))[-1] == event


async def test_what_has_been_erased_since_is_given_to_nobody(scene: Scene, reads: list[int]) -> None:
    """An erasure is an event: the log is another one then."""
    group_id = scene.group_ids[0]
    _, post, _ = await scene.post(3)
    await scene.path.reader(scene.ann).from_start(group_id)
    async with scene.sql.transaction():
        await scene.sql.execute(query("erase_post"), post.object_id)
        await scene.sql.execute(
            "SELECT append_relay_event_v1($1, $2, 5::SMALLINT, $3, FALSE)", "00" * 16, group_id, scene.ann.user_id
        )
    reader = await scene.path.reader(scene.bob).from_start(group_id)
    assert reader.events(group_id) == await event_store.read_events(scene.sql, group_id, 0, 100)
    assert [event.encrypted_body for event in reader.events(group_id) if event.seq == post.seq] == [None]
    assert reads == [1, 1]


async def test_a_log_that_has_gone_on_meanwhile_is_read_on(scene: Scene, reads: list[int]) -> None:
    """Others are further than the page that was kept: what is between comes from the store."""
    group_id = scene.group_ids[0]
    await scene.post(3)
    first = await scene.path.reader(scene.ann).from_start(group_id)
    reader = scene.path.reader(scene.bob)
    request = frames.Subscribe(id=1, groups=[start_of(group_id)])
    await scene.path.live.subscribe(reader, request)  # type: ignore[arg-type]
    posted = await scene.post(2, announce=True)
    await first.has(group_id, posted[-1].seq)
    reader.answered()
    await reader.live(group_id)
    assert reader.events(group_id) == first.events(group_id)
    assert reads == [1, 1]
    [event] = await scene.post(1, announce=True)
    assert (await reader.has(group_id, event.seq))[-1] == event
    check_steps(reader.events(group_id))


async def test_a_connection_that_is_closing_stops_nobody(scene: Scene) -> None:
    """Its reader takes nothing any more, and the end has not come yet."""
    group_id = scene.group_ids[0]
    await scene.post(100, body=bytes(8 * 1024))
    reader = scene.path.reader(scene.bob, OUTBOX_BYTES)
    reader.stall()
    reader.wire.closing = True
    await reader.subscribe(group_id, 0, ZERO_HASH)
    async with asyncio.timeout(LIMIT_S):
        while reader.outbox.is_low:
            await asyncio.sleep(0.01)
        await scene.path.reader(scene.ann).from_start(group_id)


# ── the database away ───────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_replay_goes_on_after_its_connections_were_cut(scene: Scene) -> None:
    group_id = scene.group_ids[0]
    log = await scene.post(400, body=bytes(4 * 1024))
    reader = scene.path.reader(scene.bob, OUTBOX_BYTES)
    reader.stall()
    await reader.subscribe(group_id, 0, ZERO_HASH)
    await scene.sql.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    reader.go_on()
    await reader.live(group_id)
    assert reader.events(group_id)[2:] == log
    check_steps(reader.events(group_id))

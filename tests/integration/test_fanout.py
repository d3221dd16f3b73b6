"""Fan-out on a real database: whatever becomes of wake-ups, a subscriber sees seq, seq + 1, seq + 2, …"""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import pytest
import pytest_asyncio

from orbital_protocol import ZERO_HASH, chain, frames
from orbital_protocol.codes import Kind
from orbital_protocol.frames import Event
from orbital_protocol.statements import MemberRemoved
from orbital_relay.store.pool import Connection
from tests import people
from tests.people import Person, admit, connected, enroll, found_group, post_of, says
from tests.readers import DataPath, Reader, append, data_path
from tests.talk import check_steps


@dataclass
class Scene:
    """Two people in a group of which the log begins with two events, and a data path."""

    path: DataPath
    sql: Connection
    ann: Person
    bob: Person
    group_id: bytes

    async def post(self, count: int, *, body: bytes = b"a body", announce: bool = True) -> list[Event]:
        """Post threads; hand them to fan-out as the writer does, if it is to know."""
        events = await append(self.sql, [post_of(self.ann, self.group_id, body=body) for _ in range(count)])
        if announce:
            self.path.fanout.publish(events)
        return events


@pytest_asyncio.fixture
async def scene(migrated_database: str, request: pytest.FixtureRequest) -> AsyncIterator[Scene]:
    async with connected(migrated_database) as sql, data_path(migrated_database, **getattr(request, "param", {})) as p:
        ann, bob = await enroll(sql, "ann"), await enroll(sql, "bob")
        yield Scene(p, sql, ann, bob, await found_group(sql, ann, bob))


def seqs(events: Sequence[Event]) -> list[int]:
    return [event.seq for event in events]


# ── wake-ups ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", range(4))
async def test_lost_doubled_reordered_and_lying_wake_ups_change_nothing(scene: Scene, seed: int) -> None:
    rng = random.Random(seed)
    reader = await scene.path.reader(scene.bob).from_start(scene.group_id)
    events: list[Event] = []
    for _ in range(10):
        batch = await scene.post(rng.randrange(1, 5), announce=False)
        events += batch
        hints = [event.seq for event in batch] * 2 + [0, 1, batch[0].seq + rng.randrange(100)]
        for seq in rng.sample(hints, k=rng.randrange(len(hints))):
            scene.path.fanout.wake(scene.group_id, seq, "notify")
    scene.path.fanout.wake(scene.group_id, events[-1].seq, "sweep")
    got = await reader.has(scene.group_id, events[-1].seq)
    assert got[-len(events) :] == events
    check_steps(got)


async def test_a_wake_up_of_the_future_does_not_hide_what_comes_after_it(scene: Scene) -> None:
    reader = await scene.path.reader(scene.bob).from_start(scene.group_id)
    scene.path.fanout.wake(scene.group_id, 2**53 - 1, "notify")
    [first] = await scene.post(1)
    [second] = await scene.post(1)
    assert seqs(await reader.has(scene.group_id, second.seq)) == [1, 2, first.seq, second.seq]


async def test_a_wake_up_of_the_future_does_not_hold_up_who_leaves(scene: Scene) -> None:
    reader = await scene.path.reader(scene.bob).from_start(scene.group_id)
    scene.path.fanout.wake(scene.group_id, 2**53 - 1, "notify")
    reader.subscriptions.end_all()
    assert scene.path.fanout.groups() == []


async def test_a_wake_up_that_comes_while_the_store_is_read_is_not_lost(scene: Scene) -> None:
    """The store says that there is nothing yet; before it is heard, there is."""
    reader = await scene.path.reader(scene.bob).from_start(scene.group_id)
    database = scene.path.fanout_database
    database.gate.clear()
    scene.path.fanout.wake(scene.group_id, 3, "notify")
    await database.asked.wait()
    [event] = await scene.post(1)
    assert event.seq == 3
    [event] = await scene.post(1)
    database.gate.set()
    assert seqs(await reader.has(scene.group_id, 4)) == [1, 2, 3, 4]


async def test_a_true_wake_up_is_not_lost_behind_a_lie_while_the_store_is_read(scene: Scene) -> None:
    reader = await scene.path.reader(scene.bob).from_start(scene.group_id)
    database = scene.path.fanout_database
    database.gate.clear()
    scene.path.fanout.wake(scene.group_id, 100, "notify")
    await database.asked.wait()
    [event] = await scene.post(1, announce=False)
    scene.path.fanout.wake(scene.group_id, event.seq, "notify")
    database.gate.set()
    assert seqs(await reader.has(scene.group_id, event.seq)) == [1, 2, 3]


async def test_what_another_relay_posted_between_comes_from_the_store(scene: Scene) -> None:
    """One event is ours and in the ring, the one before it is not."""
    reader = await scene.path.reader(scene.bob).from_start(scene.group_id)
    theirs = await scene.post(1, announce=False)
    ours = await scene.post(1)
    got = await reader.has(scene.group_id, ours[0].seq)
    assert got[-2:] == theirs + ours


# ── turns ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_small_groups_share_a_turn_of_the_loop_and_leave_turns_to_others(scene: Scene) -> None:
    readers: list[Reader] = []
    events: list[Event] = []
    for _ in range(60):
        group_id = await found_group(scene.sql, scene.ann, scene.bob)
        readers.append(await scene.path.reader(scene.bob).from_start(group_id))
        events += await append(scene.sql, [post_of(scene.ann, group_id)])
    scene.path.fanout.publish(events)
    turns = 0
    while readers[-1].wire.pushes[-1] != events[-1] and turns < 1_000:
        turns += 1
        await asyncio.sleep(0)
    assert [reader.wire.pushes[-1] for reader in readers] == events
    assert 3 <= turns < 10, "some 28 groups of one listener a turn"


# ── the ring ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("scene", [{"ring_bytes": 0}, {"ring_bytes": 3000}, {}], indirect=True)
@pytest.mark.parametrize("announce", [True, False])
async def test_the_result_is_the_same_whatever_the_ring_holds(scene: Scene, announce: bool) -> None:
    reader = await scene.path.reader(scene.bob).from_start(scene.group_id)
    events = await scene.post(600, announce=announce)
    scene.path.fanout.wake(scene.group_id, events[-1].seq, "sweep")
    got = await reader.has(scene.group_id, events[-1].seq)
    assert got[2:] == events
    check_steps(got)


async def test_an_event_is_the_same_from_the_ring_and_from_the_store(scene: Scene) -> None:
    """All kinds of posts, read back field by field."""
    reader = await scene.path.reader(scene.bob).from_start(scene.group_id)
    [thread] = await scene.post(1)
    posts = [
        post_of(scene.bob, scene.group_id, parent_id=thread.object_id),
        post_of(scene.bob, scene.group_id, parent_id=thread.object_id, kind=Kind.ANNOTATION_POSTED),
    ]
    events = await append(scene.sql, posts)
    scene.path.fanout.publish(events)
    from_ring = await reader.has(scene.group_id, events[-1].seq)
    other = await scene.path.reader(scene.ann).from_start(scene.group_id)
    assert other.events(scene.group_id) == from_ring
    assert from_ring[-3:] == [thread, *events]


# ── filters ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_who_filters_gets_headers_that_verify(scene: Scene) -> None:
    """Live and from the store: no ciphertext, every step, and hashes from which content hash and chain follow."""
    live = await scene.path.reader(scene.bob).from_start(scene.group_id, kinds=[Kind.REPLY_POSTED])
    whole = await scene.path.reader(scene.ann).from_start(scene.group_id)
    [thread] = await scene.post(1)
    [reply] = await append(scene.sql, [post_of(scene.bob, scene.group_id, parent_id=thread.object_id)])
    scene.path.fanout.publish([reply])
    stored = await scene.path.reader(scene.bob).from_start(scene.group_id, kinds=[Kind.REPLY_POSTED])
    everything = await whole.has(scene.group_id, reply.seq)
    assert everything[-2:] == [thread, reply]
    for reader in (live, stored):
        got = await reader.has(scene.group_id, reply.seq)
        check_steps(got)
        assert got[:2] == everything[:2], "what changes the group comes whole"
        assert got[-1] == reply
        header = got[-2]
        assert header.seq == thread.seq
        assert header.encrypted_title is None
        assert header.encrypted_body is None
        assert header.field_hashes == [chain.field_hash(b"a title"), chain.field_hash(b"a body")]
        assert chain.content_hash(bytes(16), header.field_hashes) == header.content_hash


# ── slow readers ────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_slow_reader_goes_back_to_paging_and_catches_up_without_a_hole(scene: Scene) -> None:
    """While one reader stands still, the other sees everything at once, and what waits for the first stays bounded."""
    slow = await scene.path.reader(scene.bob, outbox_bytes=64 * 1024).from_start(scene.group_id)
    quick = await scene.path.reader(scene.ann).from_start(scene.group_id)
    slow.stall()
    body = bytes(8 * 1024)
    last = 0
    for _ in range(20):
        last = (await scene.post(20, body=body))[-1].seq
        await quick.has(scene.group_id, last)
        assert slow.outbox.waiting_bytes < 64 * 1024 + 20 * 9 * 1024
    assert len(slow.events(scene.group_id)) == 2
    slow.go_on()
    got = await slow.has(scene.group_id, last)
    assert got == quick.events(scene.group_id)
    lives = [push for push in slow.wire.pushes if isinstance(push, frames.Live)]
    assert len(lives) == 2, "it says that it is live again"
    [event] = await scene.post(1)
    assert (await slow.has(scene.group_id, event.seq))[-1] == event
    check_steps(slow.events(scene.group_id))


# ── coming and going ────────────────────────────────────────────────────────────────────────────────────────────────


async def test_nothing_comes_after_unsubscribing(scene: Scene) -> None:
    reader = await scene.path.reader(scene.bob).from_start(scene.group_id)
    other = await scene.path.reader(scene.ann).from_start(scene.group_id)
    await scene.post(3)
    await scene.path.live.unsubscribe(reader, frames.Unsubscribe(id=1, groups=[scene.group_id]))  # type: ignore[arg-type]
    reader.outbox.flush()
    before = len(reader.wire.pushes)
    [event] = await scene.post(1)
    scene.path.fanout.signal(frames.Signal(group_id=scene.group_id, user_id=scene.ann.user_id, payload=b"typing"))
    await other.has(scene.group_id, event.seq)
    await other.until(lambda: any(isinstance(push, frames.Signal) for push in other.wire.pushes))
    assert len(reader.wire.pushes) == before


async def test_subscribing_again_while_the_store_is_read_does_not_end_the_group(scene: Scene) -> None:
    """The only reader joins anew, further on, while fan-out asks the store what follows their old position."""
    reader = await scene.path.reader(scene.bob).from_start(scene.group_id)
    database = scene.path.fanout_database
    [event] = await scene.post(1, announce=False)
    database.gate.clear()
    scene.path.fanout.wake(scene.group_id, event.seq, "notify")
    await database.asked.wait()
    assert await reader.subscribe(scene.group_id, 2, reader.events(scene.group_id)[1].hash) == "resumed"
    await reader.has(scene.group_id, event.seq)
    await reader.until(lambda: sum(isinstance(push, frames.Live) for push in reader.wire.pushes) == 2)
    database.gate.set()
    [following] = await scene.post(1, announce=False)
    scene.path.fanout.wake(scene.group_id, following.seq, "notify")
    assert seqs(await reader.has(scene.group_id, following.seq)) == [1, 2, 3, 4]
    assert reader.gone(scene.group_id) == []


async def test_a_removed_member_sees_the_removal_and_nothing_after_it(scene: Scene) -> None:
    """The removal and what follows it are in one batch; the one who stays sees it all."""
    cleo = await enroll(scene.sql, "cleo")
    await admit(scene.sql, scene.group_id, scene.ann, cleo)
    bob = await scene.path.reader(scene.bob).from_start(scene.group_id)
    ann = await scene.path.reader(scene.ann).from_start(scene.group_id)
    signed = await says(scene.sql, scene.ann, scene.group_id, MemberRemoved, user_id=scene.bob.user_id, ban=False)
    removed_seq = await people.append(scene.sql, signed)
    await scene.sql.execute("DELETE FROM members WHERE user_id = $1", scene.bob.user_id)
    events = await scene.post(5, announce=False)
    scene.path.fanout.wake(scene.group_id, events[-1].seq, "notify")
    assert (await ann.has(scene.group_id, events[-1].seq))[-5:] == events
    await bob.until(lambda: bool(bob.gone(scene.group_id)))
    assert bob.gone(scene.group_id) == ["removed"]
    assert bob.events(scene.group_id)[-1].seq == removed_seq
    assert bob.subscriptions.group_ids() == []


async def test_an_old_departure_does_not_end_the_subscription_of_who_came_back(scene: Scene) -> None:
    """Fan-out is behind, and passes the member's departure when they have already joined anew, further on."""
    ann = await scene.path.reader(scene.ann).from_start(scene.group_id)
    signed = await says(scene.sql, scene.ann, scene.group_id, MemberRemoved, user_id=scene.bob.user_id, ban=False)
    removed_seq = await people.append(scene.sql, signed)
    await scene.sql.execute("DELETE FROM members WHERE user_id = $1", scene.bob.user_id)
    await admit(scene.sql, scene.group_id, scene.ann, scene.bob)
    database = scene.path.fanout_database
    database.gate.clear()
    scene.path.fanout.wake(scene.group_id, removed_seq + 1, "notify")
    await database.asked.wait()
    bob = await scene.path.reader(scene.bob).from_start(scene.group_id)
    assert seqs(bob.events(scene.group_id)) == [1, 2, removed_seq, removed_seq + 1]
    database.gate.set()
    assert (await ann.has(scene.group_id, removed_seq + 1))[-2].seq == removed_seq
    await scene.sql.execute("UPDATE group_heads SET rekey_required = FALSE WHERE group_id = $1", scene.group_id)
    [event] = await scene.post(1)
    await ann.has(scene.group_id, event.seq)
    assert bob.gone(scene.group_id) == []
    assert (await bob.has(scene.group_id, event.seq))[-1] == event
    check_steps(bob.events(scene.group_id))


@pytest.mark.parametrize("order", ["event first", "sweep first"])
async def test_a_deleted_group_ends_with_its_last_event(scene: Scene, order: str) -> None:
    reader = await scene.path.reader(scene.bob).from_start(scene.group_id)
    seq = await delete_group(scene)
    if order == "event first":
        scene.path.fanout.wake(scene.group_id, seq, "notify")
        assert (await reader.has(scene.group_id, seq))[-1].kind == Kind.GROUP_DELETED
    scene.path.fanout.bury(scene.group_id)
    await reader.until(lambda: bool(reader.gone(scene.group_id)))
    assert seqs(reader.events(scene.group_id)) == [1, 2, 3]
    assert reader.gone(scene.group_id) == ["deleted"]
    assert isinstance(reader.wire.pushes[-1], frames.GroupGone)
    assert scene.path.fanout.groups() == []
    assert await reader.subscribe(scene.group_id, 0, ZERO_HASH) == "gone"


async def test_a_deleted_group_ends_for_who_missed_events_before_the_last(scene: Scene) -> None:
    """What came before is no more, so that there is a gap: better to be told that than to get the last event alone."""
    reader = await scene.path.reader(scene.bob).from_start(scene.group_id)
    await scene.post(2, announce=False)
    seq = await delete_group(scene)
    scene.path.fanout.wake(scene.group_id, seq, "notify")
    await reader.until(lambda: bool(reader.gone(scene.group_id)))
    assert seqs(reader.events(scene.group_id)) == [1, 2]
    assert reader.gone(scene.group_id) == ["deleted"]


async def delete_group(scene: Scene) -> int:
    async with scene.sql.transaction():
        seq = await scene.sql.fetchval(
            "SELECT seq FROM append_relay_event_v1($1, $2, 5::SMALLINT, $3, FALSE)",
            *("00" * 16, scene.group_id, scene.ann.user_id),
        )
        await scene.sql.execute("SELECT bury_group_v1($1)", scene.group_id)
    assert isinstance(seq, int)
    return seq


# ── what is left behind ─────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_ring_keeps_nothing_for_a_group_that_nobody_listens_to(scene: Scene) -> None:
    fanout = scene.path.fanout
    reader = await scene.path.reader(scene.bob).from_start(scene.group_id)
    assert fanout.wants(scene.group_id)
    events = await scene.post(5)
    await reader.has(scene.group_id, events[-1].seq)
    assert len(fanout._ring) == 0
    reader.subscriptions.end_all()
    assert not fanout.wants(scene.group_id)
    await scene.post(5)
    assert len(fanout._ring) == 0


async def test_readers_of_one_group_may_come_at_any_moment(scene: Scene) -> None:
    """Thirty readers subscribe from everywhere while events stream in; each sees the rest, and only once."""
    rng = random.Random(3)
    log: list[Event] = (await scene.path.reader(scene.ann).from_start(scene.group_id)).events(scene.group_id)
    log = list(log)
    started: list[tuple[Reader, int]] = []
    for _ in range(30):
        log += await scene.post(rng.randrange(4), announce=rng.random() < 0.7)
        reader = scene.path.reader(rng.choice([scene.ann, scene.bob]))
        event = rng.choice(log)
        assert await reader.subscribe(scene.group_id, event.seq, event.hash) == "resumed"
        started.append((reader, event.seq))
    log += await scene.post(1, announce=False)
    scene.path.fanout.wake(scene.group_id, log[-1].seq, "sweep")
    for reader, after in started:
        assert await reader.has(scene.group_id, log[-1].seq) == log[after:]

"""The six invariants at the end of the protocol's design, held against whole relays on a real database."""

import asyncio
import os
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import pytest
import pytest_asyncio

from orbital_protocol import ZERO_HASH, codec, frames
from orbital_protocol.codes import CloseCode, ErrorCode, Kind
from orbital_protocol.frames import Event, SubscribeGroup
from orbital_protocol.statements import MemberRemoved, MemberRole
from orbital_relay.store.pool import Connection
from tests.people import Person, found_group, new_id, says
from tests.postgres import TestPostgres
from tests.relays import RunningRelay, running_relay
from tests.stage import Stage, stage_on
from tests.talk import Refused, Talk, check_steps, post_thread, reply, subscribe, talking, token_of

pytestmark = [pytest.mark.timeout(120), pytest.mark.asyncio(loop_scope="module")]


@dataclass
class Scene:
    """Two relays on one database, and people in a group."""

    first: RunningRelay
    second: RunningRelay
    connection: Connection
    ann: Person
    bob: Person
    cleo: Person
    group_id: bytes

    async def token(self, person: Person) -> str:
        return await token_of(self.connection, person)


@pytest.fixture(scope="module", params=["embedded_postgres", "debian_postgres"])
def server(request: pytest.FixtureRequest) -> TestPostgres:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, TestPostgres)
    return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(server: TestPostgres) -> AsyncIterator[tuple[Stage, RunningRelay, RunningRelay]]:
    async with (
        server.migrated_database() as dsn,
        stage_on(dsn) as stage,
        running_relay(dsn) as first,
        running_relay(dsn) as second,
    ):
        yield stage, first, second


@pytest_asyncio.fixture(loop_scope="module")
async def scene(pair: tuple[Stage, RunningRelay, RunningRelay]) -> Scene:
    stage, first, second = pair
    ann, bob, cleo = await stage.people(3)
    return Scene(first, second, stage.sql, ann, bob, cleo, await found_group(stage.sql, ann, bob, cleo))


# ── 1. one answer per request id; pushes of one group never overtake one another ────────────────────────────────────


async def test_every_request_gets_one_answer_and_those_of_a_group_come_in_order(scene: Scene) -> None:
    async with talking(scene.first.url, await scene.token(scene.ann)) as ann:
        thread_id, _ = await post_thread(ann, scene.group_id)
        sent = [reply(ann, scene.group_id, thread_id) for _ in range(500)]
        async with asyncio.timeout(30):
            answers = await asyncio.gather(*(ann.send(request) for request in sent))
        assert [answer.id for answer in answers] == [request.id for request in sent]
        assert [id_ for id_ in ann.answer_order if id_ >= sent[0].id] == [request.id for request in sent]
        seqs = [answer.seq for answer in answers if isinstance(answer, frames.PostOk)]
        assert seqs == list(range(seqs[0], seqs[0] + len(sent)))
        assert not ann.strays


async def test_requests_of_one_group_in_one_message_are_carried_out_in_order(scene: Scene) -> None:
    """A removal, and behind it a post: the post must find its author removed."""
    async with talking(scene.first.url, await scene.token(scene.bob)) as bob:
        thread_id, _ = await post_thread(bob, scene.group_id)
        answers = [
            bob.send(request)
            for request in (
                reply(bob, scene.group_id, thread_id),
                frames.EventList(id=bob.next_id(), group_id=scene.group_id, limit=1),
                reply(bob, scene.group_id, thread_id),
            )
        ]
        first, listed, second = await asyncio.gather(*answers)
        assert isinstance(first, frames.PostOk)
        assert isinstance(listed, frames.EventListOk)
        assert isinstance(second, frames.PostOk)
        assert first.seq == listed.seq == second.seq - 1


async def test_an_id_in_flight_is_refused_and_the_first_request_is_answered_all_the_same(scene: Scene) -> None:
    async with talking(scene.first.url, await scene.token(scene.ann)) as ann:
        thread_id, opened = await post_thread(ann, scene.group_id)
        request = reply(ann, scene.group_id, thread_id)
        async with scene.connection.transaction():
            lock = "SELECT FROM group_heads WHERE group_id = $1 FOR UPDATE"
            await scene.connection.execute(lock, scene.group_id)  # so the first request stays in flight
            await ann.socket.send(codec.encode(request) * 3)
            await ann.has_strays(2)
            answer = ann.expect(request)
        async with asyncio.timeout(30):
            posted = await answer
        assert isinstance(posted, frames.PostOk)
        assert (posted.seq, posted.duplicate) == (opened.seq + 1, False)
        for refused in ann.strays:
            assert (refused.code, refused.id) == (ErrorCode.BAD_FRAME, request.id)
            assert refused.details is not None
            assert refused.details.field == "id"


# ── 2. seq, seq + 1, seq + 2: no hole, no repeat, no reordering ─────────────────────────────────────────────────────


async def test_subscribers_on_two_relays_see_every_step_while_posts_come_from_both(scene: Scene) -> None:
    async with AsyncExitStack() as stack:
        talks = [
            await stack.enter_async_context(talking(relay.url, await scene.token(person)))
            for relay in (scene.first, scene.second)
            for person in (scene.ann, scene.bob)
        ]
        for talk in talks:
            assert await subscribe(talk, scene.group_id) == "resumed"
        thread_id, first = await post_thread(talks[0], scene.group_id)
        async with asyncio.timeout(60):
            answers = await asyncio.gather(
                *(
                    talk.send(reply(talk, scene.group_id, thread_id, os.urandom(50)))
                    for _ in range(200)
                    for talk in talks
                )
            )
        last = max(answer.seq for answer in answers if isinstance(answer, frames.PostOk))
        assert last == first.seq + 800
        for talk in talks:
            events = await talk.has(last, scene.group_id)
            check_steps(events)
            assert events[0].seq == first.seq
            assert events[-1].seq == last
        assert [e.hash for e in talks[0].events] == [e.hash for e in talks[-1].events]


async def test_lost_doubled_and_reordered_wake_ups_change_nothing(scene: Scene) -> None:
    """Hints that lie: of the future, of the past, of groups that don't exist; and one that never came."""
    async with talking(scene.first.url, await scene.token(scene.ann)) as ann:
        await subscribe(ann, scene.group_id)
        thread_id, first = await post_thread(ann, scene.group_id)
        group_hex, liar = scene.group_id.hex(), os.urandom(16).hex()
        for seq in (first.seq + 50, 1, first.seq + 10, first.seq, 0):
            await scene.connection.execute("SELECT pg_notify('orbital', $1)", f"w1 {liar} {group_hex}:{seq}")
        await scene.connection.execute("SELECT pg_notify('orbital', $1)", f"w1 {liar} {os.urandom(16).hex()}:5")
        await scene.connection.execute("SELECT pg_notify('orbital', $1)", "nonsense")
        # appended behind the relays' backs, without a wake-up that they would act on: the sweep must find it
        await scene.connection.fetch(
            "SELECT * FROM append_posts_v1($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
            relay_hex_of(ann),
            *([scene.group_id], [15], [new_id()], [thread_id], [scene.bob.user_id], [1], [None], ["aGk="]),
            *([bytes(32)], [bytes(32)]),
        )
        answer = await ann.send(reply(ann, scene.group_id, thread_id))
        assert isinstance(answer, frames.PostOk)
        assert answer.seq == first.seq + 2
        check_steps(await ann.has(answer.seq, scene.group_id))


def relay_hex_of(talk: Talk) -> str:
    """The relay's own id, which it ignores in notifications."""
    [hello] = [push for push in talk.pushes if isinstance(push, frames.Hello)]
    return hello.relay_id.hex()


# ── 3. an event never precedes its commit; the author gets it too ───────────────────────────────────────────────────


async def test_an_event_is_in_the_store_when_it_arrives_and_its_author_gets_it_too(scene: Scene) -> None:
    async with (
        talking(scene.first.url, await scene.token(scene.ann)) as ann,
        talking(scene.second.url, await scene.token(scene.bob)) as bob,
    ):
        await subscribe(ann, scene.group_id)
        await subscribe(bob, scene.group_id)
        thread_id, _ = await post_thread(ann, scene.group_id)
        for _ in range(20):
            posted = ann.send(reply(ann, scene.group_id, thread_id))
            for talk in (ann, bob):
                event = await talk.hear(Event)
                while event.kind != Kind.REPLY_POSTED:
                    event = await talk.hear(Event)
                stored = await scene.connection.fetchval(
                    "SELECT hash FROM events WHERE group_id = $1 AND seq = $2", scene.group_id, event.seq
                )
                assert stored == event.hash
            await posted


# ── 4. a resume from any position works, any number of times ────────────────────────────────────────────────────────


async def test_a_resume_from_every_position_gives_exactly_the_rest(scene: Scene) -> None:
    async with talking(scene.first.url, await scene.token(scene.ann)) as ann:
        thread_id, _ = await post_thread(ann, scene.group_id)
        for _ in range(40):
            await ann.send(reply(ann, scene.group_id, thread_id))
        listed = await ann.ask(frames.EventList, group_id=scene.group_id, after_seq=0, limit=200)
        log = listed.events
        check_steps(log)
        positions = [(0, ZERO_HASH), *((event.seq, event.hash) for event in log)]
        for relay in (scene.first, scene.second):
            async with talking(relay.url, await scene.token(scene.bob)) as bob:
                for seq, hash_ in [*positions, positions[-1], positions[-1], positions[3]]:
                    heard_before = len(bob.events)
                    assert await subscribe(bob, scene.group_id, seq, hash_) == "resumed"
                    live = await bob.hear(frames.Live)
                    assert (live.seq, live.hash) == (log[-1].seq, log[-1].hash)
                    assert bob.events[heard_before:] == log[seq:]


async def test_a_resume_while_posts_stream_in_has_no_hole_and_no_repeat(scene: Scene) -> None:
    """Cut again and again at moments nobody chose, while others post: the pieces fit together."""
    stop = asyncio.Event()
    sent = 0
    anns_token = await scene.token(scene.ann)

    async def post_on() -> int:
        nonlocal sent
        async with talking(scene.first.url, anns_token) as ann:
            thread_id, answer = await post_thread(ann, scene.group_id)
            while not stop.is_set():
                posted = await asyncio.gather(*(ann.send(reply(ann, scene.group_id, thread_id)) for _ in range(20)))
                answer = posted[-1]  # type: ignore[assignment]
                sent += 20
            return answer.seq

    poster = asyncio.create_task(post_on())
    rng = random.Random(7)
    token = await scene.token(scene.bob)
    seq, hash_ = 0, ZERO_HASH
    pieces: list[Event] = []
    for round_ in range(25):
        relay = (scene.first, scene.second)[round_ % 2]
        async with talking(relay.url, token) as bob:
            assert await subscribe(bob, scene.group_id, seq, hash_) == "resumed"
            wanted = rng.randrange(60)
            await bob.heard_events(wanted)
            bob.cut()
            await bob.closed()
            pieces += bob.events
        if pieces:
            seq, hash_ = pieces[-1].seq, pieces[-1].hash
    stop.set()
    last = await poster
    async with talking(scene.second.url, token) as bob:
        await subscribe(bob, scene.group_id, seq, hash_)
        pieces += await bob.has(last, scene.group_id) if last > seq else []
    check_steps(pieces)
    assert [event.seq for event in pieces] == list(range(1, last + 1))
    assert sent


async def test_cursors_that_cannot_be_are_told_so(scene: Scene) -> None:
    async with talking(scene.first.url, await scene.token(scene.bob)) as bob:
        head = await bob.ask(frames.EventList, group_id=scene.group_id, limit=1)
        assert await subscribe(bob, scene.group_id, head.seq + 1, os.urandom(32)) == "future_cursor"
        assert await subscribe(bob, scene.group_id, head.seq, os.urandom(32)) == "chain_fork"
        assert await subscribe(bob, scene.group_id, 0, os.urandom(32)) == "chain_fork"
        assert await subscribe(bob, new_id()) == "denied"
        with pytest.raises(Refused, match="bad_argument"):
            await subscribe(bob, scene.group_id, 1, None)


# ── 5. the removal is the last event that the removed member receives, on any relay ─────────────────────────────────


@pytest.mark.parametrize("relay_name", ["first", "second"])
async def test_a_removal_is_the_last_event_of_the_removed(scene: Scene, relay_name: str) -> None:
    relay: RunningRelay = getattr(scene, relay_name)
    async with (
        talking(scene.first.url, await scene.token(scene.ann)) as ann,
        talking(relay.url, await scene.token(scene.bob)) as bob,
        talking(relay.url, await scene.token(scene.cleo)) as cleo,
    ):
        for talk in (ann, bob, cleo):
            await subscribe(talk, scene.group_id)
            await talk.hear(frames.Live)  # whoever still catches up is told no more than that they are no member
        thread_id, _ = await post_thread(ann, scene.group_id)
        before = [ann.send(reply(ann, scene.group_id, thread_id)) for _ in range(50)]
        await asyncio.gather(*before)
        signed = await says(
            scene.connection, scene.ann, scene.group_id, MemberRemoved, user_id=scene.bob.user_id, ban=False
        )
        removed = await ann.ask(frames.MemberRemove, statement=signed.statement, signature=signed.signature)
        gone = await bob.hear(frames.GroupGone)
        assert gone == frames.GroupGone(group_id=scene.group_id, reason="removed")
        deleted = await ann.ask(frames.EventList, group_id=scene.group_id, limit=1)
        assert deleted.seq == removed.seq
        # something after it, which may pass while a rekey is due: the owner raises cleo
        signed = await says(scene.connection, scene.ann, scene.group_id, MemberRole, user_id=scene.cleo.user_id, role=2)
        raised = await ann.ask(frames.MemberSetRole, statement=signed.statement, signature=signed.signature)
        check_steps(await cleo.has(raised.seq, scene.group_id))
        assert bob.events[-1].seq == removed.seq
        assert bob.events[-1].kind == Kind.MEMBER_REMOVED
        check_steps(bob.events)
        assert await subscribe(bob, scene.group_id) == "denied"
        assert await subscribe(bob, scene.group_id, removed.seq, removed.hash) == "denied"
        with pytest.raises(Refused, match="not_found"):
            await bob.ask(frames.EventList, group_id=scene.group_id, limit=10)
        assert not [event for event in bob.events if event.seq > removed.seq]


# ── 6. before authentication ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.produces(ErrorCode.UNAUTHENTICATED)
async def test_before_authentication_only_a_few_requests_are_answered(scene: Scene) -> None:
    async with talking(scene.first.url) as stranger:
        await stranger.ask(frames.Ping)
        for request, fields in (
            (frames.GroupList, {}),
            (frames.Subscribe, {"groups": [SubscribeGroup(group_id=scene.group_id)]}),
            (frames.EventList, {"group_id": scene.group_id}),
            (frames.Logout, {}),
            (
                frames.ReplyPost,
                {
                    "group_id": scene.group_id,
                    "key_epoch": 1,
                    "thread_id": new_id(),
                    "reply_id": new_id(),
                    "encrypted_body": b"x",
                },
            ),
        ):
            with pytest.raises(Refused, match="unauthenticated"):
                await stranger.ask(request, **fields)


async def test_a_large_frame_before_authentication_closes(scene: Scene) -> None:
    async with talking(scene.first.url) as stranger:
        await stranger.socket.send(bytes(16 * 1024 + 1))
        assert await stranger.closed() == 1009


@pytest.mark.produces(CloseCode.AUTH_TIMEOUT)
@pytest.mark.each_postgres
async def test_who_does_not_authenticate_in_time_is_closed(migrated_database: str) -> None:
    async with running_relay(migrated_database, auth_timeout_ms=200) as relay, talking(relay.url) as stranger:
        assert await stranger.closed() == CloseCode.AUTH_TIMEOUT

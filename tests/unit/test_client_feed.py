"""What is followed, verified and handed out: no hole, no repeat, no altered event, at the reader's pace."""

import asyncio
import json
from collections.abc import Iterable
from pathlib import Path

import pytest
from msgspec.structs import replace

from orbital_client.wire import (
    ChainBroken,
    ChainFork,
    Client,
    Cursor,
    CursorMoved,
    Event,
    FileCursors,
    FutureCursor,
    GroupGone,
    Kind,
    Live,
    LogBroken,
    MemoryCursors,
    Reconnected,
    Refused,
    Signal,
    uuid7,
)
from orbital_client.wire.feed import Feed
from orbital_client.wire.following import Following
from orbital_protocol import chain
from orbital_protocol.frames import (
    Error,
    Frame,
    Ping,
    PingOk,
    Request,
    Subscribe,
    SubscribedGroup,
    SubscribeOk,
    ThreadPost,
    Unsubscribe,
)
from tests.unit.client_relay import (
    NOW,
    FakeConnection,
    FakeLog,
    FakeRelay,
    at_once,
    fake_relay,
    identity,
    our_tasks,
    registered,
    rehashed,
    soon,
    take,
    take_until,
    until,
)


async def live(relay: FakeRelay, client: Client, log: FakeLog) -> FakeConnection:
    """The relay's side of the connection, once the client has everything of the log."""
    while (await take_until(client, Live)).seq < len(log.events):
        pass
    return relay.connections[-1]


def seqs(items: Iterable[object]) -> list[int]:
    return [item.seq for item in items if isinstance(item, Event)]


# ── following ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_every_group_is_followed_from_now_on() -> None:
    async with fake_relay() as relay:
        one, other = relay.add_log(), relay.add_log()
        one.reply()
        relay.add_head(one)
        async with registered(relay) as client:
            reached = {item.group_id: item.seq for item in await take(client, 2) if isinstance(item, Live)}
            assert reached == {one.group_id: 1, other.group_id: 0}
            event = one.reply(b"hello")
            await relay.connections[0].push(event)
            assert await take(client, 1) == [event]


async def test_nothing_is_followed_unasked_if_so_wished() -> None:
    async with fake_relay() as relay:
        log = relay.add_log()
        async with registered(relay, follow=False) as client:
            await until(lambda: relay.of(Ping))
            assert relay.of(Subscribe) == []
            await client.follow(log.group_id, after=log.cursor(0))
            await take_until(client, Live)
            event = log.reply()
            await (await relay.connection()).push(event)
            assert await take(client, 1) == [event]


async def test_it_resumes_without_a_hole_however_often_it_is_cut() -> None:
    async with fake_relay() as relay:
        log = relay.add_log()
        async with registered(relay) as client:
            seen: list[int] = []
            for number in range(1, 8):
                await live(relay, client, log)
                for _ in range(number % 3):
                    log.reply()
                (await relay.connection(number)).cut()
                await take_until(client, Reconnected)
                while len(seen) < len(log.events):
                    seen += seqs(await take(client, 1))
            assert seen == list(range(1, len(log.events) + 1))
            assert [group.after_seq for request in relay.of(Subscribe) for group in request.groups][:4] == [0, 0, 1, 3]


async def test_many_groups_are_subscribed_to_in_several_requests() -> None:
    async with fake_relay() as relay:
        for _ in range(450):
            relay.add_log()
        async with registered(relay) as client:
            await take(client, 450)
            assert [len(request.groups) for request in relay.of(Subscribe)] == [200, 200, 50]


async def test_a_subscription_that_the_relay_puts_off_is_made_later() -> None:
    async with fake_relay() as relay:
        log = relay.add_log()
        answer = relay.answers[Subscribe]
        tries: list[Request] = []

        def busy_once(connection: FakeConnection, request: Request) -> Iterable[Frame | bytes]:
            tries.append(request)
            if len(tries) == 1:
                return [Error(id=request.id, code="overloaded", message="", retry_after_ms=1)]
            return answer(connection, request)

        relay.answers[Subscribe] = busy_once
        async with registered(relay) as client:
            await live(relay, client, log)
            assert len(tries) == 2


async def test_a_subscription_that_the_relay_refuses_is_raised() -> None:
    async with fake_relay() as relay:
        relay.add_log()
        relay.answers[Subscribe] = lambda _, request: [Error(id=request.id, code="limit_exceeded", message="")]
        async with registered(relay) as client:
            with pytest.raises(Refused, match="limit_exceeded"):
                await take(client, 1)
            assert len(relay.of(Subscribe)) == 1


@pytest.mark.parametrize(("status", "reason"), [("denied", "denied"), ("gone", "deleted")])
async def test_a_group_that_ended_meanwhile_is_told_and_forgotten(status: str, reason: str) -> None:
    async with fake_relay() as relay:
        log = FakeLog()
        cursors = MemoryCursors([log.cursor(0)])
        relay.answers[Subscribe] = lambda _, request: [
            SubscribeOk(id=request.id, groups=[SubscribedGroup(group_id=log.group_id, status=status)])
        ]
        async with registered(relay, cursors=cursors) as client:
            assert await take(client, 1) == [GroupGone(group_id=log.group_id, reason=reason)]
        assert cursors.cursors == []


async def test_after_group_gone_nothing_of_the_group_is_taken_or_wanted() -> None:
    async with fake_relay() as relay:
        log, other = relay.add_log(), relay.add_log()
        async with registered(relay) as client:
            await take(client, 2)
            gone = GroupGone(group_id=log.group_id, reason="removed")
            theirs = await relay.connection()
            await theirs.push(log.reply(), gone, log.reply(), other.reply())
            items = await take(client, 3)
            assert items == [log.events[0], gone, other.events[0]]
            relay.heads = [head for head in relay.heads if head.group_id != log.group_id]
            theirs.cut()
            await take_until(client, Live)
            assert [group.group_id for group in relay.of(Subscribe)[-1].groups] == [other.group_id]


async def test_what_is_no_longer_followed_is_passed_over() -> None:
    async with fake_relay() as relay:
        log, other = relay.add_log(), relay.add_log()
        async with registered(relay) as client:
            await take(client, 2)
            client.unfollow(log.group_id)
            await (await relay.connection()).push(log.reply(), other.reply())
            assert await take(client, 1) == [other.events[0]]
            await until(lambda: relay.of(Unsubscribe))
            assert relay.of(Unsubscribe)[0].groups == [log.group_id]


# ── what a relay must not get away with ─────────────────────────────────────────────────────────────────────────────


def dropped(log: FakeLog) -> list[Event]:
    return [log.events[0], log.events[2]]


def dropped_and_chained_anew(log: FakeLog) -> list[Event]:
    return [log.events[0], rehashed(log.events[2], log.events[0].hash)]


def repeated(log: FakeLog) -> list[Event]:
    return [log.events[0], log.events[0]]


def swapped(log: FakeLog) -> list[Event]:
    first, second, _ = log.events
    other = rehashed(replace(second, seq=1), bytes(32))
    return [other, rehashed(replace(first, seq=2), other.hash), log.events[2]]


def altered(log: FakeLog) -> list[Event]:
    return [log.events[0], replace(log.events[1], encrypted_body=b"something else")]


def altered_and_hashed_anew(log: FakeLog) -> list[Event]:
    content = chain.content_hash(log.events[1].thread_id or b"", [chain.field_hash(b"something else")])
    event = replace(log.events[1], encrypted_body=b"something else", content_hash=content)
    return [log.events[0], rehashed(event, log.events[0].hash), log.events[2]]


def moved_to_another_thread(log: FakeLog) -> list[Event]:
    return [log.events[0], replace(log.events[1], thread_id=uuid7())]


def another_author(log: FakeLog) -> list[Event]:
    return [log.events[0], replace(log.events[1], actor_id=uuid7())]


def withheld(log: FakeLog) -> list[Event]:
    return [log.events[0], replace(log.events[1], encrypted_body=None)]


def another_epoch(log: FakeLog) -> list[Event]:
    return [log.events[0], rehashed(replace(log.events[1], key_epoch=2), log.events[0].hash)]


def a_kind_beyond_a_byte(log: FakeLog) -> list[Event]:
    return [log.events[0], replace(log.events[1], kind=300)]


@pytest.mark.parametrize(
    "lie",
    [
        dropped,
        dropped_and_chained_anew,
        repeated,
        altered,
        altered_and_hashed_anew,
        moved_to_another_thread,
        another_author,
        withheld,
        another_epoch,
        a_kind_beyond_a_byte,
    ],
)
async def test_a_log_that_is_not_as_it_was_is_found_out(lie: "type[object]") -> None:
    async with fake_relay() as relay:
        log, other = relay.add_log(), relay.add_log()
        async with registered(relay) as client:
            await take(client, 2)
            for _ in range(3):
                log.reply()
            await (await relay.connection()).push(*lie(log), other.reply())  # type: ignore[call-arg, misc]
            with pytest.raises(ChainBroken) as raised:
                await take_until(client, Signal)
            assert raised.value.group_id == log.group_id
            assert await take(client, 1) == [other.events[0]], "the other groups go on"
            with pytest.raises(ChainBroken):
                await client.group(log.group_id).post(title=b"t", body=b"b")
            assert relay.of(ThreadPost) == []
            await until(lambda: relay.of(Unsubscribe))
            (await relay.connection()).cut()
            await take_until(client, Live)
            assert [group.group_id for group in relay.of(Subscribe)[-1].groups] == [other.group_id], "and no resync"


async def test_reordering_before_the_hashes_were_made_is_not_found_out_but_seqs_are_honoured() -> None:
    async with fake_relay() as relay:
        log = relay.add_log()
        async with registered(relay) as client:
            await take(client, 1)
            for _ in range(3):
                log.reply()
            first, second, _ = swapped(log)
            await (await relay.connection()).push(first, second)
            assert await take(client, 2) == [first, second]


async def test_live_must_be_where_this_client_is() -> None:
    async with fake_relay() as relay:
        log = relay.add_log()
        async with registered(relay) as client:
            await take(client, 1)
            log.reply()
            await (await relay.connection()).push(Live(group_id=log.group_id, seq=1, hash=log.head.hash))
            with pytest.raises(ChainBroken, match="the relay is at 1, this client at 0"):
                await take(client, 1)


@pytest.mark.parametrize(("status", "finding"), [("future_cursor", FutureCursor), ("chain_fork", ChainFork)])
async def test_a_relay_with_another_history_is_stopped_at(status: str, finding: type[LogBroken]) -> None:
    async with fake_relay() as relay:
        log = relay.add_log()
        log.reply()
        start = log.cursor(1)
        relay.answers[Subscribe] = lambda _, request: [
            SubscribeOk(
                id=request.id, groups=[SubscribedGroup(group_id=log.group_id, status=status, seq=0, hash=bytes(32))]
            )
        ]
        cursors = MemoryCursors([start])
        async with registered(relay, cursors=cursors) as client:
            with pytest.raises(finding) as raised:
                await take(client, 1)
            assert (raised.value.group_id, raised.value.seq) == (log.group_id, 1)
            with pytest.raises(finding):
                client.check(log.group_id)
            with pytest.raises(finding):
                await client.follow(log.group_id, after=start)
            (await relay.connection()).cut()
            await take_until(client, Reconnected)
            await until(lambda: [type(request).__name__ for request in relay.requests][-2:] == ["Authenticate", "Ping"])
            assert len(relay.of(Subscribe)) == 1
        assert cursors.cursors == [start]


async def test_a_subscription_that_starts_too_late_is_found_out() -> None:
    async with fake_relay() as relay:
        log = relay.add_log()
        relay.answers[Subscribe] = lambda _, request: [
            SubscribeOk(
                id=request.id,
                groups=[SubscribedGroup(group_id=log.group_id, status="resumed", seq=5, hash=bytes(32))],
            )
        ]
        async with registered(relay) as client:
            with pytest.raises(ChainBroken, match="goes on from 5"):
                await take(client, 1)


async def test_a_relay_that_has_events_and_sends_none_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orbital_client.wire.session._LOOK_S", 0.05)
    async with fake_relay() as relay:
        log = relay.add_log()
        async with registered(relay) as client:
            await take(client, 1)
            log.reply()  # and nobody is told
            relay.answers[Ping] = lambda _, request: [PingOk(id=request.id, server_time=NOW, heads=[log.head])]
            await take_until(client, Reconnected)
            assert await take(client, 1) == log.events


async def test_a_relay_that_sends_events_slowly_is_not_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orbital_client.wire.session._LOOK_S", 0.02)
    async with fake_relay() as relay:
        log = relay.add_log()
        async with registered(relay) as client:
            await take(client, 1)
            ahead = replace(log.head, seq=1000)

            def one_more(_: FakeConnection, request: Request) -> Iterable[Frame]:
                return [log.reply(), PingOk(id=request.id, server_time=NOW, heads=[ahead])]

            relay.answers[Ping] = one_more
            await take(client, 10)
            assert len(relay.connections) == 1


# ── the reader's pace ───────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_full_inbox_ends_the_subscriptions_and_they_go_on_without_a_hole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("orbital_client.wire.feed._PAUSE_S", 0.02)
    async with fake_relay() as relay:
        log = relay.add_log()
        async with registered(relay, buffer_bytes=3000) as client:
            await take(client, 1)
            for _ in range(100):
                log.reply(b"x" * 100)
            theirs = await relay.connection()
            for event in log.events:
                await theirs.push(event)
            await until(lambda: relay.of(Unsubscribe))
            late = [log.reply(b"late") for _ in range(2)]
            await theirs.push(*late)
            await soon(client.request(Ping(id=0), PingOk))  # answered, though nobody reads events
            events: list[object] = []
            while len(events) < 102:
                events += [item for item in await take(client, 1) if isinstance(item, Event)]
            assert events == log.events
            assert len(relay.connections) == 1


async def test_an_answer_is_read_however_full_the_inbox_is() -> None:
    async with fake_relay() as relay:
        log = relay.add_log()
        async with registered(relay, buffer_bytes=500) as client:
            await take(client, 1)
            for _ in range(20):
                log.reply()
            theirs = await relay.connection()
            for event in log.events:
                await theirs.push(event)
            assert await take(client, 1) == [log.events[0]]  # reading, but not as fast as it comes
            async with asyncio.timeout(2):  # less than a pause
                await client.request(Ping(id=0), PingOk)
            events: list[object] = [log.events[0]]
            while len(events) < 20:
                events += [item for item in await take(client, 1) if isinstance(item, Event)]
            assert events == log.events


async def test_an_answer_that_is_waited_for_already_is_read_too() -> None:
    async with fake_relay() as relay:
        log = relay.add_log()
        async with registered(relay, buffer_bytes=500) as client:
            await take(client, 1)
            relay.answers[ThreadPost] = lambda _, request: []
            posting = asyncio.create_task(client.group(log.group_id).post(title=b"t", body=b"b"))
            await until(lambda: relay.of(ThreadPost))
            theirs = await relay.connection()
            for _ in range(20):
                await theirs.push(log.reply())
            await until(lambda: client._feed._inbox.is_full)
            async with asyncio.timeout(2):  # less than a pause
                await theirs.push(Error(id=relay.of(ThreadPost)[0].id, code="forbidden", message=""))
                with pytest.raises(Refused):
                    await posting


def test_a_subscription_is_not_made_again_before_it_has_ended() -> None:
    """What is on its way of the old one would be taken for the new one's."""
    log = FakeLog()
    following = Following()
    following.follow(log.cursor(0))
    following.subscribing(following.missing(1))
    assert following.take_event(log.reply())
    following.pause()
    following.unpause()
    assert not following.take_event(log.reply()), "passed over while the relay still sends"
    assert following.missing(1) == []
    assert following.surplus() == [log.group_id]
    following.ended(following.surplus())
    assert [group.after_seq for group in following.missing(1)] == [1]


async def test_the_inbox_holds_no_more_than_its_bound_and_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orbital_client.wire.feed._PAUSE_S", 0.01)
    async with fake_relay() as relay:
        log = relay.add_log()
        async with registered(relay, buffer_bytes=5000) as client:
            await take(client, 1)
            theirs = await relay.connection()
            for _ in range(300):
                await theirs.push(log.reply(b"x" * 500))
            await until(lambda: relay.of(Unsubscribe))
            signal = Signal(group_id=log.group_id, user_id=uuid7(), payload=b"lost")
            await theirs.push(signal)
            await soon(client.request(Ping(id=0), PingOk))
            feed = client._feed
            assert isinstance(feed, Feed)
            assert 5000 <= feed._inbox._bytes < 6000
            assert await take(client, 1) == [log.events[0]]


async def test_a_reader_that_pauses_shortly_costs_no_subscription() -> None:
    async with fake_relay() as relay:
        log = relay.add_log()
        async with registered(relay, buffer_bytes=500) as client:
            await take(client, 1)
            theirs = await relay.connection()
            connection = client._session._connection
            assert connection is not None
            await until(lambda: relay.of(Ping) and not connection.has_requests)
            for _ in range(20):
                await theirs.push(log.reply())
            await until(lambda: client._feed._inbox.is_full)
            assert seqs(await take(client, 20)) == list(range(1, 21))
            assert relay.of(Unsubscribe) == []


# ── what is handed out ──────────────────────────────────────────────────────────────────────────────────────────────


async def test_signals_and_cursors_are_handed_out_too() -> None:
    async with fake_relay() as relay:
        log = relay.add_log()
        async with registered(relay) as client:
            await take(client, 1)
            signal = Signal(group_id=log.group_id, user_id=uuid7(), payload=b"typing")
            moved = CursorMoved(group_id=log.group_id, name="read", seq=0, hash=bytes(32))
            await (await relay.connection()).push(signal, moved)
            assert await take(client, 2) == [signal, moved]


async def test_filtered_kinds_are_verified_and_kept_from_the_application() -> None:
    async with fake_relay() as relay:
        log = relay.add_log()
        cursors = MemoryCursors()
        async with registered(relay, kinds=[Kind.THREAD_POSTED], cursors=cursors) as client:
            await take(client, 1)
            assert relay.of(Subscribe)[0].kinds == [Kind.THREAD_POSTED]
            reply = log.reply()
            header = replace(reply, encrypted_body=None, field_hashes=[chain.field_hash(b"body")])
            thread = log.thread()
            await (await relay.connection()).push(header, thread)
            assert await take(client, 1) == [thread]
            broken = replace(log.reply(), encrypted_body=None, field_hashes=[bytes(32)])
            await (await relay.connection()).push(broken)
            with pytest.raises(ChainBroken):
                await take(client, 1)


async def test_what_is_there_is_handed_out_at_once_but_no_more_than_is_asked_for() -> None:
    cursors = MemoryCursors()
    async with fake_relay() as relay:
        log = relay.add_log()
        async with registered(relay, cursors=cursors) as client:
            await take(client, 1)
            await (await relay.connection()).push(*(log.reply() for _ in range(5)))
            await until(lambda: len(client._feed._inbox._items) == 5)
            batches = client.batches(3)
            assert seqs(await soon(anext(batches))) == [1, 2, 3]
            assert client._feed._bookmarks.get(log.group_id) == log.cursor(0)
            assert seqs(await soon(anext(batches))) == [4, 5]
            assert client._feed._bookmarks.get(log.group_id) == log.cursor(3)
            reading = asyncio.ensure_future(anext(batches))
            await (await relay.connection()).push(log.reply())
            assert seqs(await soon(reading)) == [6]
        assert cursors.cursors == [log.cursor(5)]


async def test_a_finding_comes_after_what_came_before_it_and_before_what_came_later() -> None:
    async with fake_relay() as relay:
        broken, whole = relay.add_log(), relay.add_log()
        async with registered(relay) as client:
            await take(client, 2)
            theirs = await relay.connection()
            good, bad, later = broken.reply(), replace(broken.reply(), hash=bytes(32)), whole.reply()
            await theirs.push(good, bad, later)
            await until(lambda: len(client._feed._inbox._items) == 3)
            batches = client.batches(10)
            assert await soon(anext(batches)) == [good]
            with pytest.raises(ChainBroken):
                await soon(anext(batches))
            assert await soon(anext(batches)) == [later]


async def test_there_is_one_reader_at_a_time() -> None:
    async with fake_relay() as relay, registered(relay) as client:
        reading = asyncio.create_task(take(client, 1))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="somebody else"):
            await take(client, 1)
        reading.cancel()
        await asyncio.wait({reading})


async def test_a_reader_that_is_cancelled_loses_nothing() -> None:
    async with fake_relay() as relay:
        log = relay.add_log()
        async with registered(relay) as client:
            await take(client, 1)
            reading = asyncio.create_task(take(client, 1))
            await asyncio.sleep(0)
            reading.cancel()
            await asyncio.wait({reading})
            await (await relay.connection()).push(log.reply())
            assert await take(client, 1) == log.events


async def test_events_end_when_the_client_is_closed() -> None:
    async with fake_relay() as relay:
        async with registered(relay) as client:
            reading = asyncio.create_task(take_until(client, Reconnected))
            await asyncio.sleep(0)
        with pytest.raises(AssertionError, match="the events ended"):
            await soon(reading)
        assert our_tasks() == set()


async def test_connections_that_come_and_go_unread_fill_no_memory() -> None:
    async with fake_relay() as relay, registered(relay, buffer_bytes=640) as client:
        for number in range(1, 30):
            (await relay.connection(number)).cut()
            await until(lambda number=number: len(relay.connections) > number)  # type: ignore[misc]
        assert len(client._feed._inbox._items) <= 10


# ── cursors ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_an_event_counts_as_read_once_the_next_is_asked_for() -> None:
    cursors = MemoryCursors()
    async with fake_relay() as relay:
        log = relay.add_log()
        async with registered(relay, cursors=cursors) as client:
            await take(client, 1)
            await (await relay.connection()).push(*(log.reply() for _ in range(3)))
            await take(client, 2)
        assert cursors.cursors == [log.cursor(1)]


async def test_the_next_process_goes_on_where_this_one_stopped_reading(tmp_path: Path) -> None:
    path = tmp_path / "cursors.json"
    who = identity()
    async with fake_relay() as relay:
        log = relay.add_log()
        async with registered(relay, who, cursors=FileCursors(path)) as client:
            await take(client, 1)
            await (await relay.connection()).push(*(log.reply() for _ in range(3)))
            assert seqs(await take(client, 3)) == [1, 2, 3]
        assert json.loads(path.read_text()) == {log.group_id.hex(): {"seq": 2, "hash": log.cursor(2).hash.hex()}}
        log.reply()
        relay.add_head(log)
        async with Client(relay.url, cursors=FileCursors(path), backoff=at_once()) as client:
            await soon(client.login("ann", "a password", who))
            assert seqs(await take(client, 3)) == [3, 4]
        assert json.loads(path.read_text())[log.group_id.hex()]["seq"] == 4
        assert [entry.name for entry in tmp_path.iterdir()] == ["cursors.json"]


async def test_cursors_that_cannot_be_saved_stop_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Full(MemoryCursors):
        full = True

        async def save(self, cursors: "list[Cursor]") -> None:  # type: ignore[override]
            if self.full:
                raise OSError("no space left")
            await super().save(cursors)

    cursors = Full()
    async with fake_relay() as relay:
        log = relay.add_log()
        async with registered(relay, cursors=cursors) as client:
            await take(client, 1)
            await until(lambda: "could not be saved" in caplog.text)
            cursors.full = False
            await (await relay.connection()).push(log.reply(), log.reply())
            await take(client, 2)
        assert cursors.cursors == [log.cursor(1)]

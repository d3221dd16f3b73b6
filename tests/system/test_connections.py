"""Connections that go wrong, on purpose or not: each gets the close code or error it is due, and costs little memory.

One relay serves all of these tests, with limits so short that they are reached within the time of a test.
"""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from orbital_protocol import ZERO_HASH, codec, frames
from orbital_protocol.codes import CloseCode, ErrorCode
from orbital_protocol.frames import SubscribeGroup
from orbital_relay import hints
from tests.people import Person, connected, found_group, new_id
from tests.raw_socket import BINARY, CLOSE, CONTINUATION, PING, PONG, RawSocket, frame, raw_socket
from tests.relays import RunningRelay, running_relay
from tests.stage import Stage
from tests.talk import Refused, Talk, check_steps, post_thread, reply, subscribe, talking

pytestmark = [pytest.mark.timeout(120), pytest.mark.asyncio(loop_scope="module")]

LIMIT_S = 20
IN_TIME_MS = 500
MAX_IN_FLIGHT = 8
FLAT_KIB = 24 * 1024  # what an allocator may keep; what is sent is many times that
DEFECTS = ("request.failed", "session.failed", "library.message", "not json")
SETTINGS: dict[str, Any] = {
    "heartbeat_ms": 300,
    "no_pong_ms": 500,
    "slow_consumer_ms": 1500,
    "auth_timeout_ms": 3000,
    "sweep_ms": 200,
    "outbox_bytes": 64 * 1024,
    "ring_bytes": 1 << 20,
    "max_in_flight": MAX_IN_FLIGHT,
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def relay(stage: Stage) -> AsyncIterator[RunningRelay]:
    async with running_relay(stage.dsn, **SETTINGS) as relay:
        yield relay
        defects = [line for line in relay.log if line["event"] in DEFECTS]
        assert not defects, "\n".join(map(str, defects))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def impatient(stage: Stage) -> AsyncIterator[RunningRelay]:
    """One that gives little time to authenticate."""
    async with running_relay(stage.dsn, auth_timeout_ms=IN_TIME_MS) as relay:
        yield relay


@pytest_asyncio.fixture(loop_scope="module")
async def ann(stage: Stage) -> Person:
    [ann] = await stage.people(1)
    return ann


@pytest_asyncio.fixture(loop_scope="module")
async def group_id(stage: Stage, ann: Person) -> bytes:
    """A group of Ann's own."""
    return await found_group(stage.sql, ann)


# ── what is no frame ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.produces(CloseCode.PROTOCOL_ERROR)
@pytest.mark.parametrize(
    "data",
    [
        b"\xc1",
        codec.encode(frames.Ping(id=1))[:-1],
        b"\x91" * 9 + b"\xc0",
        b"\xdd\xff\xff\xff\xff",
        b"\xc6\x7f\xff\xff\xff",
    ],
    ids=["not MessagePack", "cut short", "too deep", "a huge array", "a huge bin"],
)
async def test_undecodable_bytes_close(relay: RunningRelay, data: bytes) -> None:
    async with talking(relay.url) as talk:
        await talk.socket.send(data)
        assert await talk.closed() == CloseCode.PROTOCOL_ERROR


async def test_a_frame_in_front_of_undecodable_bytes_costs_nothing(
    relay: RunningRelay, stage: Stage, ann: Person
) -> None:
    """The stream is lost, the relay is not: somebody else goes on."""
    async with talking(relay.url, await stage.token(ann)) as other, talking(relay.url) as talk:
        await talk.socket.send(codec.encode(frames.Ping(id=1)) + b"\xc1")
        assert await talk.closed() == CloseCode.PROTOCOL_ERROR
        await other.ask(frames.Ping)


@pytest.mark.produces(CloseCode.PROTOCOL_ERROR)
async def test_a_text_message_closes(relay: RunningRelay) -> None:
    async with talking(relay.url) as talk:
        await talk.socket.send("hello")
        assert await talk.closed() == CloseCode.PROTOCOL_ERROR


@pytest.mark.produces(ErrorCode.UNSUPPORTED_PROTOCOL, CloseCode.UNSUPPORTED_PROTOCOL)
@pytest.mark.parametrize("subprotocols", [None, "orbital.v2", "ORBITAL.V1"])
async def test_another_subprotocol_is_told_so_and_closed(relay: RunningRelay, subprotocols: str | None) -> None:
    async with raw_socket(relay.port, subprotocols=subprotocols) as raw:
        assert await raw.close_code() == CloseCode.UNSUPPORTED_PROTOCOL
        assert [error.code for error in raw.errors] == [ErrorCode.UNSUPPORTED_PROTOCOL]
        assert not raw.pushes


async def test_among_several_subprotocols_ours_is_taken(relay: RunningRelay) -> None:
    async with talking(relay.url, subprotocols=["orbital.v9", "orbital.v1"]) as talk:
        assert talk.socket.subprotocol == "orbital.v1"
        await talk.ask(frames.Ping)


@pytest.mark.produces(ErrorCode.BAD_FRAME, ErrorCode.UNKNOWN_TYPE)
async def test_a_wrong_frame_gets_an_error_that_names_the_field(relay: RunningRelay, stage: Stage, ann: Person) -> None:
    """And nothing else: the connection goes on, and so do the frames of the same message."""
    wrong = [
        ({"type": "event.list", "id": 1001, "group_id": b"short"}, ErrorCode.BAD_FRAME, "group_id", 1001),
        ({"type": "event.list", "id": 1002}, ErrorCode.BAD_FRAME, "group_id", 1002),
        ({"type": "event.list", "id": -1, "group_id": bytes(16)}, ErrorCode.BAD_FRAME, "id", None),
        ({"type": "ping"}, ErrorCode.BAD_FRAME, "id", None),
        ({"id": 1003}, ErrorCode.BAD_FRAME, "type", 1003),
        ({"type": "fly", "id": 1004}, ErrorCode.UNKNOWN_TYPE, "type", 1004),
        ([1, 2], ErrorCode.BAD_FRAME, None, None),
        (7, ErrorCode.BAD_FRAME, None, None),
        (
            {"type": "event.list", "id": 1005, "group_id": bytes(16), "kinds": [256]},
            ErrorCode.BAD_FRAME,
            "kinds[0]",
            1005,
        ),
    ]
    async with talking(relay.url, await stage.token(ann)) as talk:
        await talk.socket.send(b"".join(msgspec.msgpack.encode(frame) for frame, *_ in wrong))
        await talk.ask(frames.Ping)
        got = [(e.code, None if e.details is None else e.details.field, e.id) for e in talk.strays]
        assert got == [(code, field, request_id) for _, code, field, request_id in wrong]


async def test_an_empty_message_is_ignored(relay: RunningRelay) -> None:
    async with talking(relay.url) as talk:
        await talk.socket.send(b"")
        await talk.ask(frames.Ping)
        assert not talk.strays


# ── messages, frames and segments ───────────────────────────────────────────────────────────────────────────────────


async def test_frames_come_in_any_packing(relay: RunningRelay, stage: Stage, ann: Person, group_id: bytes) -> None:
    """Many in one message, one message in many WebSocket frames, and all of that in segments of one byte."""
    thread = frames.ThreadPost(
        id=1, group_id=group_id, key_epoch=1, thread_id=new_id(), encrypted_title=b"t", encrypted_body=b"b"
    )
    replies = [
        frames.ReplyPost(
            id=number,
            group_id=group_id,
            key_epoch=1,
            thread_id=thread.thread_id,
            reply_id=new_id(),
            encrypted_body=bytes(number),
        )
        for number in range(2, 30)
    ]
    payload = b"".join(codec.encode(request) for request in (thread, *replies))
    third = len(payload) // 3
    data = (
        frame(payload[:third], BINARY, final=False)
        + frame(b"", CONTINUATION, final=False)
        + frame(b"anything", PING)
        + frame(payload[third:], CONTINUATION)
    )
    async with raw_socket(relay.port, await stage.token(ann)) as raw:
        for start in range(0, len(data), 97):
            raw.writer.write(data[start : start + 97])
            await raw.writer.drain()
        answer = await raw.ask(frames.EventList(id=100, group_id=group_id, limit=100))
        assert isinstance(answer, frames.EventListOk)
        assert [event.object_id for event in answer.events[1:]] == [
            thread.thread_id,
            *(request.reply_id for request in replies),
        ]
    async with raw_socket(relay.port) as raw:
        for byte in frame(codec.encode(frames.Ping(id=7))):
            raw.writer.write(bytes((byte,)))
            await raw.writer.drain()
        await raw.answer(frames.Ping(id=7))


async def test_authenticate_and_what_follows_may_be_one_message(
    relay: RunningRelay, stage: Stage, ann: Person, group_id: bytes
) -> None:
    """Whatever is under way beside it: only the answer to the authentication itself lifts the barrier."""
    token = await stage.token(ann)
    async with talking(relay.url) as talk:
        requests: list[frames.Request] = [
            *(frames.Ping(id=talk.next_id()) for _ in range(3)),
            frames.Authenticate(id=talk.next_id(), access_token=token),
            frames.EventList(id=talk.next_id(), group_id=group_id),
            frames.Subscribe(id=talk.next_id(), groups=[SubscribeGroup(group_id=group_id)]),
        ]
        futures = [talk.expect(request) for request in requests]
        await talk.socket.send(b"".join(codec.encode(request) for request in requests))
        async with asyncio.timeout(LIMIT_S):
            await asyncio.gather(*futures)


# ── who reads, who answers, who asks too much ───────────────────────────────────────────────────────────────────────


@pytest.mark.produces(CloseCode.NO_PONG)
async def test_who_answers_no_ping_is_closed(relay: RunningRelay, stage: Stage, ann: Person) -> None:
    """Silence is borne for heartbeat_ms and no_pong_ms; any byte is a sign of life."""
    token = await stage.token(ann)
    async with raw_socket(relay.port, token) as silent, raw_socket(relay.port, token) as lively:
        began = time.monotonic()
        closing = asyncio.create_task(silent.close_code())
        async with asyncio.timeout(LIMIT_S):
            while not closing.done():
                opcode, _ = await lively.receive()
                assert opcode == PING
                lively.send(b"", PONG)
        assert closing.result() == CloseCode.NO_PONG
        assert time.monotonic() - began >= 0.8
        assert silent.pings == 1
        await lively.ask(frames.Ping(id=1))


@pytest.mark.produces(CloseCode.SLOW_CONSUMER)
@pytest.mark.parametrize("reads_again", [True, False])
async def test_who_stops_reading_is_cut_and_others_notice_nothing(
    relay: RunningRelay, stage: Stage, ann: Person, group_id: bytes, reads_again: bool
) -> None:
    token = await stage.token(ann)
    cut_before = await relay.metric("orbital_slow_consumers_total")
    async with talking(relay.url, token) as talk:
        await subscribe(talk, group_id, 0, ZERO_HASH)
        thread_id, _ = await post_thread(talk, group_id)
        await post_40_mb(talk, group_id, thread_id)  # the ring is full now, and the allocator has what it keeps
        async with raw_socket(relay.port, token) as slow:
            await slow.ask(frames.Subscribe(id=1, groups=[SubscribeGroup(group_id=group_id)]))
            await slow.hear(frames.Live)
            before_kib = relay.resident_kib()
            slowest_s = await post_40_mb(talk, group_id, thread_id)
            assert slowest_s < 1.5
            assert relay.resident_kib() - before_kib < FLAT_KIB
            async with asyncio.timeout(LIMIT_S):
                while await relay.metric("orbital_slow_consumers_total") == cut_before:
                    await asyncio.sleep(0.05)
            if reads_again:
                assert await slow.close_code() == CloseCode.SLOW_CONSUMER
            else:
                async with asyncio.timeout(LIMIT_S):
                    while await relay.metric("orbital_connections") > 1:
                        await asyncio.sleep(0.05)
            assert await relay.metric("orbital_slow_consumers_total") == cut_before + 1, "it is counted once"
            await talk.ask(frames.Ping)


async def post_40_mb(talk: Talk, group_id: bytes, thread_id: bytes) -> float:
    """Post as much at once as may be in flight, again and again; return how long the slowest took to come to all."""
    slowest_s = 0.0
    for _ in range(0, 40_000_000, 60_000 * MAX_IN_FLIGHT):
        futures = [talk.send(reply(talk, group_id, thread_id, bytes(60_000))) for _ in range(MAX_IN_FLIGHT)]
        began = time.monotonic()
        async with asyncio.timeout(LIMIT_S):
            answers = await asyncio.gather(*futures)
        last = answers[-1]
        assert isinstance(last, frames.PostOk)
        await talk.has(last.seq, group_id)
        slowest_s = max(slowest_s, time.monotonic() - began)
        talk.forget()
    return slowest_s


async def test_answers_to_who_reads_none_are_bounded(
    relay: RunningRelay, stage: Stage, ann: Person, group_id: bytes
) -> None:
    """A message of requests for half a megabyte each: 300 MB of answers, if they were all made."""
    token = await stage.token(ann)
    async with talking(relay.url, token) as talk:
        thread_id, _ = await post_thread(talk, group_id)
        for _ in range(8):
            await talk.send(reply(talk, group_id, thread_id, bytes(60_000)))
    before_kib = relay.resident_kib()
    cut_before = await relay.metric("orbital_slow_consumers_total")
    async with raw_socket(relay.port, token) as raw:
        requests = [frames.EventList(id=number, group_id=group_id, limit=20) for number in range(600)]
        await raw.flood(frame(b"".join(codec.encode(request) for request in requests)))
        most_kib = 0
        async with asyncio.timeout(LIMIT_S):
            while await relay.metric("orbital_slow_consumers_total") == cut_before:
                most_kib = max(most_kib, relay.resident_kib())
                await asyncio.sleep(0.02)
        assert most_kib - before_kib < MAX_IN_FLIGHT * 2 * 1024 + FLAT_KIB


async def test_large_answers_to_who_reads_none_are_made_one_by_one(
    relay: RunningRelay, stage: Stage, ann: Person
) -> None:
    """Requests that are open at once: their answers must not wait in memory at once."""
    token = await stage.token(ann)
    groups = [await found_group(stage.sql, ann) for _ in range(MAX_IN_FLIGHT // 2)]
    async with talking(relay.url, token) as talk:
        for group_id in groups:
            thread_id, _ = await post_thread(talk, group_id)
            for _ in range(8):
                await talk.send(reply(talk, group_id, thread_id, bytes(60_000)))
    cut_before = await relay.metric("orbital_slow_consumers_total")
    async with raw_socket(relay.port, token) as raw:
        requests = [frames.EventList(id=number, group_id=group_id) for number, group_id in enumerate(groups * 20)]
        raw.send(b"".join(codec.encode(request) for request in requests))
        most_bytes = 0.0
        async with asyncio.timeout(LIMIT_S):
            while await relay.metric("orbital_slow_consumers_total") == cut_before:
                most_bytes = max(most_bytes, await relay.metric("orbital_outbox_bytes"))
                await asyncio.sleep(0.02)
        assert most_bytes < 1_100_000, "two answers: one in the transport, one behind it, half a megabyte each"


async def test_large_answers_all_come_to_who_reads_again(relay: RunningRelay, stage: Stage, ann: Person) -> None:
    group_id = await found_group(stage.sql, ann)
    async with talking(relay.url, await stage.token(ann)) as talk:
        thread_id, _ = await post_thread(talk, group_id)
        for _ in range(8):
            await talk.send(reply(talk, group_id, thread_id, bytes(60_000)))
        requests = [frames.EventList(id=talk.next_id(), group_id=group_id) for _ in range(3 * MAX_IN_FLIGHT)]
        futures = [talk.send(request) for request in requests]
        async with asyncio.timeout(LIMIT_S):
            await asyncio.gather(*futures)
        assert talk.answer_order[-len(requests) :] == [request.id for request in requests]


async def test_hints_to_who_is_behind_are_dropped(
    relay: RunningRelay, stage: Stage, ann: Person, group_id: bytes
) -> None:
    """A cursor that moves is told to the user's other connections, except to one that has enough to take as it is."""
    token = await stage.token(ann)
    async with talking(relay.url, token) as talk, raw_socket(relay.port, token) as behind:
        await behind.ask(frames.Subscribe(id=1, groups=[SubscribeGroup(group_id=group_id)]))
        thread_id, thread = await post_thread(talk, group_id)
        where = {"group_id": group_id, "seq": thread.seq, "hash": thread.hash}
        await talk.ask(frames.CursorPut, name="read", **where)
        moved = await behind.hear(frames.CursorMoved)
        assert moved.seq == thread.seq
        waiting_bytes, before = 0.0, -1.0
        async with asyncio.timeout(LIMIT_S):
            while waiting_bytes < SETTINGS["outbox_bytes"] or waiting_bytes != before:  # until events wait in the store
                for _ in range(3):
                    await talk.send(reply(talk, group_id, thread_id, bytes(60_000)))
                before, waiting_bytes = waiting_bytes, await relay.metric("orbital_outbox_bytes")
        for _ in range(100):
            await talk.ask(frames.CursorPut, name="read", rewind=True, **where)
            await talk.hear(frames.CursorMoved)
        assert await relay.metric("orbital_outbox_bytes") <= waiting_bytes + 1_000


async def test_pongs_to_who_reads_none_are_bounded(relay: RunningRelay) -> None:
    """Pings call for pongs, past the outbox: a relay that goes on reading pings keeps all that nobody takes."""
    before_kib = relay.resident_kib()
    async with raw_socket(relay.port) as raw:
        raw.writer.write(frame(bytes(125), PING) * 500_000)
        assert await untaken(raw) > 1_000_000, "the relay took it all"
        assert relay.resident_kib() - before_kib < FLAT_KIB


async def test_what_waits_behind_open_requests_is_not_read(
    relay: RunningRelay, stage: Stage, ann: Person, group_id: bytes
) -> None:
    """24 MB of posts to a group that somebody has locked: few are open, and the rest is the client's to keep."""
    token = await stage.token(ann)
    async with talking(relay.url, token) as talk:
        thread_id, _ = await post_thread(talk, group_id)
        posts = [frame(codec.encode(reply(talk, group_id, thread_id, bytes(60_000)))) for _ in range(400)]
    before_kib = relay.resident_kib()
    async with raw_socket(relay.port, token) as raw, connected(stage.dsn) as other, other.transaction():
        await other.execute("SELECT FROM group_heads WHERE group_id = $1 FOR UPDATE", group_id)
        raw.writer.write(b"".join(posts))
        assert await untaken(raw) > 10_000_000, "the relay took it all"
        assert relay.resident_kib() - before_kib < FLAT_KIB


async def untaken(raw: RawSocket) -> int:
    """How many bytes are still here once the relay takes no more."""
    left = [0]
    async with asyncio.timeout(SETTINGS["slow_consumer_ms"] / 1000):  # after that it is cut in any case
        while len(left) < 10 or len(set(left[-10:])) > 1:
            left.append(raw.writer.transport.get_write_buffer_size())
            await asyncio.sleep(0.02)
    return left[-1]


async def test_beyond_max_in_flight_the_relay_stops_reading_and_all_are_answered(
    relay: RunningRelay, stage: Stage, ann: Person, group_id: bytes
) -> None:
    counter = 'orbital_requests_total{type="reply.post"}'
    async with talking(relay.url, await stage.token(ann)) as talk:
        thread_id, _ = await post_thread(talk, group_id)
        before = await relay.metric(counter)
        async with connected(stage.dsn) as other, other.transaction():
            await other.execute("SELECT FROM group_heads WHERE group_id = $1 FOR UPDATE", group_id)
            futures = [talk.send(reply(talk, group_id, thread_id, bytes(60_000))) for _ in range(400)]
            async with asyncio.timeout(LIMIT_S):
                while await relay.metric(counter) < before + MAX_IN_FLIGHT:
                    await asyncio.sleep(0.02)
            await asyncio.wait(futures, timeout=0.3)  # as long as it would take to read more, if it did
            assert await relay.metric(counter) == before + MAX_IN_FLIGHT
        async with asyncio.timeout(LIMIT_S):
            answers = await asyncio.gather(*futures)
        seqs = [answer.seq for answer in answers if isinstance(answer, frames.PostOk)]
        assert seqs == [*range(seqs[0], seqs[0] + 400)]


@pytest.mark.parametrize("goodbye", ["close frame", "end of stream"])
async def test_who_says_goodbye_and_stays_on_the_line_disturbs_nobody(
    relay: RunningRelay, stage: Stage, ann: Person, group_id: bytes, goodbye: str
) -> None:
    """The relay can write nothing more to them; whoever else is in the group gets every event, and at once."""
    token = await stage.token(ann)
    async with talking(relay.url, token) as talk, raw_socket(relay.port, token) as leaving:
        await leaving.ask(frames.Subscribe(id=1, groups=[SubscribeGroup(group_id=group_id)]))
        await leaving.hear(frames.Live)
        async with talking(relay.url, token) as staying:
            await subscribe(talk, group_id, 0, ZERO_HASH)
            await subscribe(staying, group_id, 0, ZERO_HASH)
            if goodbye == "close frame":
                leaving.send((1000).to_bytes(2, "big"), CLOSE)
                assert await close_of(leaving) == 1000
            else:
                leaving.writer.write_eof()
            thread_id, _ = await post_thread(talk, group_id)
            for _ in range(5):
                answer = await talk.send(reply(talk, group_id, thread_id))
                assert isinstance(answer, frames.PostOk)
                for other in (talk, staying):
                    check_steps(await other.has(answer.seq, group_id, limit_s=2))
        if goodbye == "close frame":
            assert await leaving.rest() == b""
        async with asyncio.timeout(4):
            while await relay.metric("orbital_connections") > 1:
                await asyncio.sleep(0.05)


# ── bombs ───────────────────────────────────────────────────────────────────────────────────────────────────────────

_SIZE = 1_000_000
BOMBS: dict[str, Callable[[], bytes]] = {
    "nested arrays": lambda: b"\x91" * _SIZE,
    "nested maps": lambda: b"\x81\xa1a" * (_SIZE // 3),
    "an array of 4 billion": lambda: b"\xdd\xff\xff\xff\xff" + b"\xc0" * _SIZE,
    "a map of 4 billion": lambda: b"\xdf\xff\xff\xff\xff" + b"\xc0" * _SIZE,
    "a string of 4 GB": lambda: b"\xdb\xff\xff\xff\xff" + bytes(_SIZE),
    "an extension of 4 GB": lambda: b"\xc9\xff\xff\xff\xff\x01" + bytes(_SIZE),
    "arrays of arrays of arrays": lambda: (b"\xdd\x00\x0e\x00\x00" + b"\xdd\x00\x0e\x00\x00") * 8 + b"\x90" * 950_000,
}


@pytest.mark.parametrize("bomb", BOMBS)
async def test_bombs_are_refused_with_flat_memory(relay: RunningRelay, stage: Stage, ann: Person, bomb: str) -> None:
    token = await stage.token(ann)
    before_kib = relay.resident_kib()
    for _ in range(3):
        async with raw_socket(relay.port, token) as raw:
            raw.send(BOMBS[bomb]())
            assert await raw.close_code() == CloseCode.PROTOCOL_ERROR
    assert relay.resident_kib() - before_kib < FLAT_KIB


async def test_a_million_frames_in_one_message_leave_others_their_turn(
    relay: RunningRelay, stage: Stage, ann: Person
) -> None:
    """Each is wrong and gets an error, which nobody reads, so that little of the message is looked at.

    Its sender goes on to show that it lives, so that it is cut for nothing but what it doesn't read.
    """
    bad_frames = f'orbital_errors_total{{code="{ErrorCode.BAD_FRAME}"}}'
    token = await stage.token(ann)
    cut_before = await relay.metric("orbital_slow_consumers_total")
    looked_at_before = await relay.metric(bad_frames)
    async with talking(relay.url, token) as talk, raw_socket(relay.port, token) as raw:
        raw.send(b"\x80" * _SIZE)
        async with asyncio.timeout(LIMIT_S):
            while await relay.metric("orbital_slow_consumers_total") == cut_before:
                raw.send(b"", PONG)
                assert await relay.metric("orbital_outbox_bytes") < SETTINGS["outbox_bytes"] * 4
                began = time.monotonic()
                await talk.ask(frames.Ping)
                assert time.monotonic() - began < 1
                await asyncio.sleep(0.02)
    assert 0 < await relay.metric(bad_frames) - looked_at_before < _SIZE / 4


@pytest.mark.parametrize("authenticated", [True, False])
async def test_a_message_that_is_too_large_closes(
    relay: RunningRelay, stage: Stage, ann: Person, authenticated: bool
) -> None:
    """16 KiB before authentication, 1 MiB after it; a frame that fills it is taken."""
    size = 1_048_576 if authenticated else 16_384
    token = await stage.token(ann) if authenticated else None
    async with raw_socket(relay.port, token) as raw:
        ping = frames.Ping(id=9)
        filler = msgspec.msgpack.encode({"type": "x", "pad": bytes(size - 60)})
        data = filler + codec.encode(ping)
        raw.send(data + b"\xc0" * (size - len(data)))
        await raw.answer(ping)
    async with raw_socket(relay.port, token) as raw:
        raw.send(bytes(size + 1))
        assert await raw.close_code() == 1009
    async with raw_socket(relay.port, token) as raw:  # and in pieces, none of which is too large
        raw.send(bytes(size - 1), final=False)
        raw.send(bytes(size - 1), CONTINUATION)
        assert await raw.close_code() == 1009


# ── tokens and sessions that end ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.produces(CloseCode.AUTH_TIMEOUT)
async def test_who_does_not_authenticate_is_closed(relay: RunningRelay) -> None:
    """Pings and wrong frames buy no time."""
    async with talking(relay.url) as talk:
        began = time.monotonic()
        async with asyncio.timeout(LIMIT_S):
            while not talk.is_closed.is_set():
                await asyncio.wait([talk.send(frames.Ping(id=talk.next_id()))])
                await asyncio.sleep(0.05)
        assert talk.close_code == CloseCode.AUTH_TIMEOUT
        assert time.monotonic() - began >= 2.9


@asynccontextmanager
async def sessions_locked(stage: Stage) -> AsyncIterator[None]:
    """No session can be looked up, and no user."""
    async with connected(stage.dsn) as other, other.transaction():
        await other.execute("LOCK TABLE sessions, users")
        yield


async def waiting_for_sessions(stage: Stage, began: float) -> None:
    """Wait until somebody waits for one of those locks, and the time to authenticate is long over."""
    async with asyncio.timeout(LIMIT_S):
        while time.monotonic() - began < 3 * IN_TIME_MS / 1000 or not await stage.sql.fetchval(
            "SELECT count(*) FROM pg_locks WHERE relation IN ('sessions'::REGCLASS, 'users'::REGCLASS) AND NOT granted"
        ):
            await asyncio.sleep(0.02)


async def test_who_authenticated_in_time_is_served_however_late_the_relay_is(
    impatient: RunningRelay, stage: Stage, ann: Person
) -> None:
    token = await stage.token(ann)
    async with talking(impatient.url) as talk:
        async with sessions_locked(stage):
            began = time.monotonic()
            authenticated = talk.send(frames.Authenticate(id=talk.next_id(), access_token=token))
            await waiting_for_sessions(stage, began)
            assert not authenticated.done()
        async with asyncio.timeout(LIMIT_S):
            await authenticated
        await talk.ask(frames.GroupList)


async def test_who_was_in_time_with_what_is_no_good_gets_an_answer_and_is_closed(
    impatient: RunningRelay, stage: Stage, ann: Person
) -> None:
    token = await stage.token(ann)
    await stage.sql.execute("UPDATE sessions SET revoked_at = now() WHERE user_id = $1", ann.user_id)
    async with talking(impatient.url) as talk:
        async with sessions_locked(stage):
            began = time.monotonic()
            authenticated = talk.send(frames.Authenticate(id=talk.next_id(), access_token=token))
            await waiting_for_sessions(stage, began)
        async with asyncio.timeout(LIMIT_S):
            with pytest.raises(Refused, match="credentials_invalid"):
                await authenticated
        assert await talk.closed() == CloseCode.AUTH_FAILED


async def test_an_answer_that_says_no_ends_who_is_late(impatient: RunningRelay, stage: Stage) -> None:
    """A wrong password may be followed by the right one, but not after the time to authenticate."""
    async with talking(impatient.url) as talk:
        async with sessions_locked(stage):
            began = time.monotonic()
            login = talk.send(
                frames.Login(id=talk.next_id(), username="nobody_at_all", password="wrong", device_name="a test")
            )
            await waiting_for_sessions(stage, began)
        async with asyncio.timeout(LIMIT_S):
            with pytest.raises(Refused, match="credentials_invalid"):
                await login
        assert await talk.closed() == CloseCode.AUTH_TIMEOUT


async def test_what_came_in_time_while_the_relay_stood_still_is_read(
    impatient: RunningRelay, stage: Stage, ann: Person
) -> None:
    token = await stage.token(ann)
    async with talking(impatient.url) as talk:
        impatient.signal(signal.SIGSTOP)
        try:
            authenticated = talk.send(frames.Authenticate(id=talk.next_id(), access_token=token))
            await asyncio.sleep(2 * IN_TIME_MS / 1000)  # no condition to wait for: the relay stands still
        finally:
            impatient.signal(signal.SIGCONT)
        async with asyncio.timeout(LIMIT_S):
            await authenticated


@pytest.mark.produces(CloseCode.TOKEN_EXPIRED)
async def test_a_token_that_runs_out_closes(relay: RunningRelay, stage: Stage, ann: Person) -> None:
    async with talking(relay.url, await stage.token(ann, life_s=2)) as talk:
        assert await talk.closed() == CloseCode.TOKEN_EXPIRED


async def revoke(stage: Stage, session_id: bytes, *, notify: bool) -> None:
    """End a session as another relay does; the notification may be lost."""
    async with connected(stage.dsn) as other, other.transaction():
        await other.execute("UPDATE sessions SET revoked_at = now() WHERE session_id = $1", session_id)
        if notify:
            revoked = hints.Revoke("session", session_id, CloseCode.REVOKED)
            await other.execute("SELECT pg_notify('orbital', $1)", hints.revoke("00" * 16, revoked))


@pytest.mark.produces(CloseCode.REVOKED)
@pytest.mark.parametrize("notify", [True, False])
async def test_a_session_revoked_elsewhere_closes_within_two_seconds(
    relay: RunningRelay, stage: Stage, ann: Person, notify: bool
) -> None:
    async with talking(relay.url) as talk, talking(relay.url, await stage.token(ann)) as other:
        session = await talk.ask(frames.Authenticate, access_token=await stage.token(ann))
        began = time.monotonic()
        await revoke(stage, session.session_id, notify=notify)
        assert await talk.closed() == CloseCode.REVOKED
        assert time.monotonic() - began < 2
        await other.ask(frames.Ping)


async def test_a_close_code_of_a_later_relay_revokes(relay: RunningRelay, stage: Stage, ann: Person) -> None:
    async with talking(relay.url) as talk:
        session = await talk.ask(frames.Authenticate, access_token=await stage.token(ann))
        payload = f"r1 {'00' * 16} session {session.session_id.hex()} 4999"
        await stage.sql.execute("SELECT pg_notify('orbital', $1)", payload)
        assert await talk.closed() == CloseCode.REVOKED


async def test_nothing_is_sent_or_taken_after_the_close(
    relay: RunningRelay, stage: Stage, ann: Person, group_id: bytes
) -> None:
    """A client that ignores its close: no event reaches it any more, no post of it is taken, and it is cut."""
    async with talking(relay.url, await stage.token(ann)) as talk, raw_socket(relay.port) as raw:
        session = await raw.ask(frames.Authenticate(id=0, access_token=await stage.token(ann)))
        assert isinstance(session, frames.AuthenticateOk)
        await raw.ask(frames.Subscribe(id=1, groups=[SubscribeGroup(group_id=group_id)]))
        thread_id, _ = await post_thread(talk, group_id)
        await raw.hear(frames.Event)
        await revoke(stage, session.session_id, notify=True)
        assert await close_of(raw) == CloseCode.REVOKED
        mine = reply(talk, group_id, thread_id)
        raw.send(codec.encode(mine))
        for _ in range(5):
            await talk.send(reply(talk, group_id, thread_id))
        assert await raw.rest() == b""
        log = await stage.log(group_id)
        assert mine.reply_id not in [object_id for _, object_id, _ in log]
        assert len(log) == 7


async def close_of(raw: RawSocket) -> int:
    """Read up to the close frame, and no further: its code."""
    while True:
        opcode, payload = await raw.receive()
        if opcode == CLOSE:
            return int.from_bytes(payload[:2], "big")


async def test_a_request_behind_another_does_not_outlive_its_connection(
    relay: RunningRelay, stage: Stage, ann: Person, group_id: bytes
) -> None:
    """A subscription that waits behind a post whose answer comes when its client is gone begins no more."""
    async with talking(relay.url, await stage.token(ann)) as talk:
        thread_id, _ = await post_thread(talk, group_id)
        async with connected(stage.dsn) as other, other.transaction():
            await other.execute("SELECT FROM group_heads WHERE group_id = $1 FOR UPDATE", group_id)
            async with raw_socket(relay.port, await stage.token(ann)) as raw:
                groups = [SubscribeGroup(group_id=group_id)]
                post = reply(talk, group_id, thread_id)
                raw.send(codec.encode(post) + codec.encode(frames.Subscribe(id=post.id + 1, groups=groups)))
                async with asyncio.timeout(LIMIT_S):
                    while not await stage.sql.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                        await asyncio.sleep(0.01)
            async with asyncio.timeout(LIMIT_S):
                while await relay.metric("orbital_connections") > 1:
                    await asyncio.sleep(0.02)
        _, last = await post_thread(talk, group_id)
        assert last.seq == 4, "the post itself had been taken"
        woken = await relay.metric('orbital_wakeups_total{source="writer"}')
        await post_thread(talk, group_id)
        assert await relay.metric('orbital_wakeups_total{source="writer"}') == woken, "somebody still listens"


# ── whom a relay believes ───────────────────────────────────────────────────────────────────────────────────────────


async def test_x_forwarded_for_is_not_believed_of_everybody(relay: RunningRelay) -> None:
    relay.log.clear()
    async with raw_socket(relay.port, headers=["X-Forwarded-For: 203.0.113.9"]):
        assert (await relay.logged("connection.opened"))["address"] == "127.0.0.1"


async def test_browsers_are_refused_where_no_origin_is_listed(relay: RunningRelay) -> None:
    with pytest.raises(AssertionError, match="403"):
        async with raw_socket(relay.port, headers=["Origin: https://chat.example.org"]):
            pass

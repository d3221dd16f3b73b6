"""One WebSocket: requests and their answers, pushes, frames in messages, and how it ends."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import pytest
from msgspec.structs import replace

from orbital_client.errors import failure
from orbital_client.wire import BadAnswer, BadRequest, Closed, ConnectionLost, ErrorCode, NotFound, RequestFailed
from orbital_client.wire.connection import Connection, NotSent
from orbital_protocol.codec import encode, split
from orbital_protocol.codes import CloseCode
from orbital_protocol.frames import (
    Error,
    ErrorDetails,
    Frame,
    GoAway,
    GroupGet,
    GroupGetOk,
    GroupList,
    GroupListOk,
    Login,
    MediaChunk,
    MediaChunkOk,
    Ping,
    PingOk,
    Push,
    Refresh,
    Request,
    SessionOk,
    Signal,
    UserGet,
    UserGetOk,
    type_of,
)
from tests.unit.client_relay import HELLO, LIMITS, FakeConnection, FakeRelay, fake_relay, our_tasks, soon, until

SIGNAL = Signal(group_id=bytes(16), user_id=bytes(16), payload=b"here")


class Ears:
    """Where a connection's pushes go."""

    def __init__(self) -> None:
        self.pushes: list[Push] = []
        self.sizes: list[int] = []
        self.paused = asyncio.Event()
        self.paused.set()

    def push(self, push: Push, size: int) -> None:
        self.pushes.append(push)
        self.sizes.append(size)

    async def pace(self, connection: Connection) -> None:
        await self.paused.wait()


@asynccontextmanager
async def connected(relay: FakeRelay, ears: Ears | None = None) -> AsyncIterator[Connection]:
    ears = ears or Ears()
    connection = await soon(Connection.open(relay.url, on_push=ears.push, pace=ears.pace))
    try:
        yield connection
    finally:
        await soon(connection.close())
        assert our_tasks() == set()


def silent(_: FakeConnection, __: Request) -> list[Frame]:
    return []


async def test_answers_are_matched_by_id_in_whatever_order_they_come() -> None:
    held: list[Request] = []

    def later(_: FakeConnection, request: Request) -> Iterable[Frame]:
        held.append(request)
        if len(held) < 3:
            return []
        return [PingOk(id=ping.id, server_time=ping.id * 10, heads=[]) for ping in reversed(held)]

    async with fake_relay() as relay, connected(relay) as connection:
        relay.answers[Ping] = later
        answers = await soon(asyncio.gather(*(connection.request(Ping(id=0), PingOk) for _ in range(3))))
        assert [answer.server_time for answer in answers] == [request.id * 10 for request in held]
        assert len({request.id for request in held}) == 3


async def test_requests_that_queue_at_once_leave_in_one_message() -> None:
    async with fake_relay() as relay, connected(relay) as connection:
        await soon(asyncio.gather(*(connection.request(Ping(id=0), PingOk) for _ in range(5))))
        assert [len(list(split(message))) for message in relay.messages] == [5]


async def test_a_message_never_outgrows_the_relays_limit() -> None:
    async with fake_relay() as relay:
        login = Login(id=0, username="ann", password="x" * 60)
        size = len(encode(login))
        relay.hello = replace(HELLO, limits=replace(LIMITS, max_unauthenticated_frame_bytes=2 * size + 5))
        async with connected(relay) as connection:
            await soon(
                asyncio.gather(
                    *(connection.request(Refresh(id=0, refresh_token="y" * 60), SessionOk) for _ in range(6))
                )
            )
            assert all(len(message) <= 2 * size + 5 for message in relay.messages)
            assert len(relay.messages) >= 2


async def test_several_frames_of_one_message_are_taken_apart() -> None:
    async with fake_relay() as relay:
        ears = Ears()
        async with connected(relay, ears) as connection:
            relay.answers[Ping] = lambda _, request: [
                SIGNAL,
                PingOk(id=request.id, server_time=1, heads=[]),
                SIGNAL,
                SIGNAL,
            ]
            await soon(connection.request(Ping(id=0), PingOk))
            await until(lambda: len(ears.pushes) == 3)
            assert ears.pushes == [SIGNAL] * 3
            assert ears.sizes == [len(encode(SIGNAL))] * 3


async def test_pushes_of_unknown_types_and_answers_nobody_waits_for_are_passed_over() -> None:
    async with fake_relay() as relay:
        ears = Ears()
        async with connected(relay, ears) as connection:
            unknown = b"\x82\xa4type\xaf" + b"weather.changed" + b"\xa4rain\xc3"
            stray = encode(PingOk(id=4000, server_time=1, heads=[]))
            refusal = encode(Error(code="internal", message="", id=4001))
            await (await relay.connection()).push(unknown, stray, refusal, SIGNAL)
            await until(lambda: ears.pushes)
            assert ears.pushes == [SIGNAL]
            assert connection.is_open


async def test_an_error_becomes_the_exception_of_its_code() -> None:
    async with fake_relay() as relay, connected(relay) as connection:
        relay.answers[GroupGet] = lambda _, request: [
            Error(id=request.id, code="not_found", message="no", retry_after_ms=7, details=ErrorDetails(seq=3))
        ]
        with pytest.raises(NotFound, match="not_found: no") as raised:
            await soon(connection.request(GroupGet(id=0, group_id=bytes(16)), GroupGetOk))
        assert (raised.value.code, raised.value.retry_after_ms) == (ErrorCode.NOT_FOUND, 7)
        assert raised.value.details.seq == 3


def test_every_error_code_has_a_class_of_its_own_and_others_are_kept() -> None:
    for code in ErrorCode:
        raised = failure(Error(code=code, message=""))
        assert type(raised) is not RequestFailed, code
        assert raised.code == code
    unknown = failure(Error(code="too_tired", message=""))
    assert type(unknown) is RequestFailed
    assert unknown.code == "too_tired"


async def test_a_wrong_answer_fails_its_request_and_no_other() -> None:
    async with fake_relay() as relay, connected(relay) as connection:
        relay.answers[Ping] = lambda _, request: [b"\x82\xa4type\xa2ok\xa2id" + bytes([request.id])]
        with pytest.raises(BadAnswer):
            await soon(connection.request(Ping(id=0), PingOk))
        assert await soon(connection.request(GroupList(id=0), GroupListOk)) == GroupListOk(id=2, groups=[])


@pytest.mark.parametrize(
    "message",
    [b"\xc1", b"\x82\xa4type\xa6signal", b"\x92\x01\x02", encode(SIGNAL)[:-1], b"\x81\xa4type\xa6signal", "text"],
    ids=["no MessagePack", "cut short", "no map", "cut in its bytes", "fields missing", "text"],
)
async def test_what_cannot_be_read_ends_the_connection(message: bytes | str) -> None:
    async with fake_relay() as relay, connected(relay) as connection:
        relay.answers[Ping] = silent
        waiting = asyncio.create_task(connection.request(Ping(id=0), PingOk))
        await until(lambda: relay.of(Ping))
        theirs = await relay.connection()
        await theirs.socket.send(message)
        with pytest.raises(ConnectionLost):
            await soon(waiting)
        assert not (await soon(connection.closed())).for_good
        await soon(theirs.socket.wait_closed())
        assert theirs.socket.close_code == CloseCode.PROTOCOL_ERROR


@pytest.mark.parametrize("code", [1000, 1011, 4000, 4002, 4499])
async def test_codes_below_4500_may_be_followed_by_a_reconnect(code: int) -> None:
    async with fake_relay() as relay, connected(relay) as connection:
        relay.answers[Ping] = silent
        waiting = asyncio.create_task(connection.request(Ping(id=0), PingOk))
        await until(lambda: relay.of(Ping))
        theirs = await relay.connection()
        await theirs.push(GoAway(retry_after_ms=250))
        await theirs.close(code, "so it is")
        closure = await soon(connection.closed())
        assert (closure.code, closure.reason, closure.retry_after_ms) == (code, "so it is", 250)
        assert not closure.for_good
        with pytest.raises(ConnectionLost):
            await soon(waiting)
        with pytest.raises(NotSent):
            await soon(connection.request(Ping(id=0), PingOk))


@pytest.mark.parametrize("code", [4500, 4501, 4777])
async def test_codes_from_4500_end_it_for_good(code: int) -> None:
    async with fake_relay() as relay, connected(relay) as connection:
        relay.answers[Ping] = silent
        waiting = asyncio.create_task(connection.request(Ping(id=0), PingOk))
        await until(lambda: relay.of(Ping))
        await (await relay.connection()).close(code)
        with pytest.raises(Closed) as raised:
            await soon(waiting)
        assert raised.value.code == code


async def test_a_cut_connection_is_told_from_a_closed_one() -> None:
    async with fake_relay() as relay, connected(relay) as connection:
        (await relay.connection()).cut()
        assert (await soon(connection.closed())).code == 1006


async def test_no_more_requests_are_open_than_the_relay_allows() -> None:
    async with fake_relay() as relay:
        relay.hello = replace(HELLO, limits=replace(LIMITS, max_in_flight=2))
        relay.answers[Ping] = silent
        async with connected(relay) as connection:
            waiting = [asyncio.create_task(connection.request(Ping(id=0), PingOk)) for _ in range(3)]
            await until(lambda: len(relay.of(Ping)) == 2)
            theirs = await relay.connection()
            assert len(relay.of(Ping)) == 2
            await theirs.push(PingOk(id=relay.of(Ping)[0].id, server_time=1, heads=[]))
            await until(lambda: len(relay.of(Ping)) == 3)
            for ping in relay.of(Ping)[1:]:
                await theirs.push(PingOk(id=ping.id, server_time=1, heads=[]))
            await soon(asyncio.gather(*waiting))


async def test_a_request_given_up_leaves_its_slot_and_its_late_answer_is_passed_over() -> None:
    async with fake_relay() as relay:
        relay.hello = replace(HELLO, limits=replace(LIMITS, max_in_flight=1))
        relay.answers[Ping] = silent
        async with connected(relay) as connection:
            given_up = asyncio.create_task(connection.request(Ping(id=0), PingOk))
            await until(lambda: relay.of(Ping))
            given_up.cancel()
            await asyncio.wait({given_up})
            assert not connection.has_requests
            await (await relay.connection()).push(PingOk(id=relay.of(Ping)[0].id, server_time=1, heads=[]))
            assert (await soon(connection.request(GroupList(id=0), GroupListOk))).groups == []


def a_chunk() -> MediaChunk:
    return MediaChunk(id=0, media_id=bytes(16), generation=1, offset=0, data=bytes(500_000))


async def test_other_requests_wait_for_no_more_than_one_piece_of_a_file() -> None:
    async with fake_relay() as relay:
        relay.hello = replace(HELLO, limits=replace(LIMITS, max_unauthenticated_frame_bytes=1_048_576))
        relay.answers[MediaChunk] = lambda _, request: [MediaChunkOk(id=request.id, offset=0)]
        async with connected(relay) as connection:
            chunks = [connection.request(a_chunk(), MediaChunkOk) for _ in range(10)]
            pings = [connection.request(Ping(id=0), PingOk) for _ in range(5)]
            await soon(asyncio.gather(*chunks, *pings))
            kinds = [type_of(request) for request in relay.requests]
            assert kinds[:5] == ["ping"] * 5
            assert [len(list(split(message))) for message in relay.messages] == [5, *[1] * 10]


async def test_a_line_that_is_full_of_a_file_lets_others_through_soon() -> None:
    async with fake_relay() as relay:
        relay.hello = replace(HELLO, limits=replace(LIMITS, max_unauthenticated_frame_bytes=1_048_576))
        relay.answers[MediaChunk] = lambda _, request: [MediaChunkOk(id=request.id, offset=0)]

        async def with_a_short_breath(connection: FakeConnection) -> None:
            raw = connection.socket.transport.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
            connection.socket.transport.pause_reading()

        relay.on_connect = with_a_short_breath
        async with connected(relay) as connection:
            chunks = [asyncio.create_task(connection.request(a_chunk(), MediaChunkOk)) for _ in range(20)]
            await until(connection._socket.transport.get_write_buffer_size)
            ping = asyncio.create_task(connection.request(Ping(id=0), PingOk))
            await until(lambda: len(connection._outgoing) == 1)
            (await relay.connection()).socket.transport.resume_reading()
            await soon(asyncio.gather(ping, *chunks))
            assert [type_of(request) for request in relay.requests].index("ping") <= 3


async def test_a_frame_that_the_relay_would_not_take_is_not_sent() -> None:
    async with fake_relay() as relay, connected(relay) as connection:
        with pytest.raises(BadRequest, match="too_large"):
            await soon(connection.request(Login(id=0, username="ann", password="x" * 20_000), SessionOk))
        assert relay.requests == []


async def test_a_request_is_asked_for_the_answer_that_it_gets() -> None:
    async with fake_relay() as relay, connected(relay) as connection:
        with pytest.raises(TypeError, match=type_of(UserGet)):
            await connection.request(UserGet(id=0, user_id=bytes(16)), PingOk)
        with pytest.raises(NotFound):
            relay.answers[UserGet] = lambda _, request: [Error(id=request.id, code="not_found", message="")]
            await soon(connection.request(UserGet(id=0, user_id=bytes(16)), UserGetOk))


async def test_reading_waits_for_the_pace() -> None:
    async with fake_relay() as relay:
        ears = Ears()
        async with connected(relay, ears) as connection:
            ears.paused.clear()
            theirs = await relay.connection()
            await theirs.push(SIGNAL)
            await until(lambda: ears.pushes)
            for _ in range(3):
                await theirs.push(SIGNAL)
            pong = await theirs.socket.ping()  # answered by the socket, so what was sent before it has arrived
            await soon(pong)
            assert len(ears.pushes) == 1
            ears.paused.set()
            await until(lambda: len(ears.pushes) == 4)
            assert connection.is_open


async def test_a_relay_without_a_word_is_given_up() -> None:
    async with fake_relay() as relay:
        relay.hello = None
        with pytest.raises(ConnectionLost, match="hello"):
            await soon(Connection.open(relay.url, on_push=Ears().push, pace=Ears().pace, timeout_s=0.05))
        assert our_tasks() == set()


async def test_a_relay_that_closes_before_its_hello_is_lost_or_closed() -> None:
    async with fake_relay() as relay:
        relay.hello = None
        relay.on_connect = lambda connection: connection.close(4503)
        with pytest.raises(Closed):
            await soon(Connection.open(relay.url, on_push=Ears().push, pace=Ears().pace))
        assert our_tasks() == set()


async def test_a_relay_of_another_protocol_is_left_for_good() -> None:
    async with fake_relay() as relay:
        relay.hello = replace(HELLO, protocol=2)
        with pytest.raises(Closed) as raised:
            await soon(Connection.open(relay.url, on_push=Ears().push, pace=Ears().pace))
        assert raised.value.code == CloseCode.UNSUPPORTED_PROTOCOL
        assert our_tasks() == set()


async def test_nobody_there_is_a_lost_connection() -> None:
    async with fake_relay() as relay:
        url = relay.url
    with pytest.raises(ConnectionLost, match="can't connect"):
        await soon(Connection.open(url, on_push=Ears().push, pace=Ears().pace))


async def test_tls_where_there_is_none_says_something() -> None:
    async with fake_relay() as relay:
        with pytest.raises(ConnectionLost, match=r"can't connect to wss://\S+: \w+"):
            await soon(Connection.open(relay.url.replace("ws:", "wss:"), on_push=Ears().push, pace=Ears().pace))


async def test_an_address_that_is_none_is_said_so() -> None:
    with pytest.raises(ValueError, match="example"):
        await soon(Connection.open("https://relay.example", on_push=Ears().push, pace=Ears().pace))

"""Who is let in, and how often they may speak: origins, addresses behind proxies, caps on connections, frame rates."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from typing import Any

import pytest
import pytest_asyncio

from orbital_protocol import codec, frames
from orbital_protocol.codes import CloseCode, ErrorCode
from tests.people import Person
from tests.raw_socket import RawSocket, frame, handshake, raw_socket
from tests.relays import RunningRelay, running_relay
from tests.stage import Stage

pytestmark = [pytest.mark.timeout(60), pytest.mark.asyncio(loop_scope="module")]

LIMIT_S = 15
HERE = "https://chat.example.org"
PER_ADDRESS, UNAUTHENTICATED, CONNECTIONS = 3, 6, 8
FRAMES_PER_SECOND = 20
SETTINGS: dict[str, Any] = {
    "origins": f"{HERE},http://localhost:3000",
    "allow_no_origin": "false",
    "trusted_proxies": "127.0.0.0/8,10.0.0.0/8",
    "connections_per_address": PER_ADDRESS,
    "unauthenticated_max": UNAUTHENTICATED,
    "connections_max": CONNECTIONS,
    "max_frames_per_second": FRAMES_PER_SECOND,
    "auth_timeout_ms": 60_000,
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def started(stage: Stage) -> AsyncIterator[RunningRelay]:
    async with running_relay(stage.dsn, data_dir=None, **SETTINGS) as relay:
        yield relay


@pytest_asyncio.fixture(loop_scope="module")
async def relay(started: RunningRelay) -> RunningRelay:
    """The relay, once it has no connection."""
    await has_connections(started, 0)
    return started


@pytest_asyncio.fixture(loop_scope="module")
async def ann(stage: Stage) -> Person:
    [ann] = await stage.people(1)
    return ann


async def has_connections(relay: RunningRelay, count: int) -> None:
    async with asyncio.timeout(LIMIT_S):
        while await relay.metric("orbital_connections") != count:
            await asyncio.sleep(0.02)


def from_address(address: str, origin: str = HERE) -> list[str]:
    """Headers as a proxy sends them for a browser at this address."""
    return [f"Origin: {origin}", f"X-Forwarded-For: {address}"]


async def status_for(relay: RunningRelay, headers: Sequence[str]) -> int:
    """The HTTP status of a handshake; the connection ends with it."""
    status, _, writer = await handshake(relay.port, headers=headers)
    writer.transport.abort()
    return status


# ── origins ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("origin", [HERE, "http://localhost:3000"])
async def test_a_listed_origin_may_connect(relay: RunningRelay, origin: str) -> None:
    assert await status_for(relay, [f"Origin: {origin}"]) == 101


@pytest.mark.parametrize(
    "headers",
    [
        [],
        ["Origin: null"],
        ["Origin: "],
        ["Origin: https://evil.example"],
        ["Origin: http://chat.example.org"],
        ["Origin: https://chat.example.org:444"],
        ["Origin: https://chat.example.org.evil.example"],
        ["Origin: https://evil.example/https://chat.example.org"],
        ["Origin: https://CHAT.example.org"],
        ["Origin: https://chat.example.org/"],
        [f"Origin: {HERE}", "Origin: https://evil.example"],
        [f"Origin: {HERE}, https://evil.example"],
    ],
    ids=str,
)
async def test_any_other_origin_and_none_may_not(relay: RunningRelay, headers: list[str]) -> None:
    assert await status_for(relay, headers) in (400, 403)
    assert await relay.metric("orbital_connections") <= 1


# ── addresses ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("forwarded", "address"),
    [
        (["203.0.113.9"], "203.0.113.9"),
        (["203.0.113.9, 10.1.2.3"], "203.0.113.9"),
        (["198.51.100.1, 203.0.113.9, 10.1.2.3"], "203.0.113.9"),
        (["198.51.100.1", "203.0.113.9"], "203.0.113.9"),
        (["2001:db8::7"], "2001:db8::7"),
        (["203.0.113.9, unknown"], "127.0.0.1"),
        (["203.0.113.9:1234"], "127.0.0.1"),
        (["10.9.9.9, 10.1.2.3"], "10.9.9.9"),
        (["203.0.113.9 "], "203.0.113.9"),
        ([""], "127.0.0.1"),
        ([], "127.0.0.1"),
    ],
    ids=str,
)
async def test_the_address_is_the_last_one_that_no_trusted_proxy_added(
    relay: RunningRelay, forwarded: list[str], address: str
) -> None:
    """Whatever stands before it may have been made up by the client. The second time it is a handshake like another."""
    headers = [f"Origin: {HERE}", *(f"X-Forwarded-For: {value}" for value in forwarded)]
    for _ in range(2):
        relay.log.clear()
        async with raw_socket(relay.port, headers=headers):
            assert (await relay.logged("connection.opened"))["address"] == address


async def test_the_address_is_read_from_headers_however_they_are_written(relay: RunningRelay) -> None:
    """The first handshake of each two is parsed, the second is like it."""
    for name in ("X-Forwarded-For", "x-forwarded-for", "X-FORWARDED-FOR"):
        for address in ("203.0.113.1", "203.0.113.1", "198.51.100.3", "198.51.100.3"):
            relay.log.clear()
            headers = [f"Origin: {HERE}", "X-Forwarded-For: 192.0.2.77", f"{name}: {address}"]
            async with raw_socket(relay.port, headers=headers):
                assert (await relay.logged("connection.opened"))["address"] == address


# ── caps ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_one_address_has_so_many_connections(relay: RunningRelay, stage: Stage, ann: Person) -> None:
    """More are told 429; another address is none the worse, and when one leaves there is room again."""
    token = await stage.token(ann)
    async with AsyncExitStack() as stack:
        sockets = [
            await stack.enter_async_context(raw_socket(relay.port, token, headers=from_address("203.0.113.1")))
            for _ in range(PER_ADDRESS)
        ]
        assert await status_for(relay, from_address("203.0.113.1")) == 429
        assert await status_for(relay, from_address("198.51.100.7, 203.0.113.1")) == 429
        assert await status_for(relay, from_address("203.0.113.2")) == 101
        sockets[0].writer.transport.abort()
        await has_connections(relay, PER_ADDRESS - 1)
        assert await status_for(relay, from_address("203.0.113.1")) == 101


async def test_addresses_of_one_ipv6_network_count_as_one(relay: RunningRelay, stage: Stage, ann: Person) -> None:
    """One customer has 2^64 of them."""
    token = await stage.token(ann)
    async with AsyncExitStack() as stack:
        for number in range(PER_ADDRESS):
            headers = from_address(f"2001:db8::{number}")
            await stack.enter_async_context(raw_socket(relay.port, token, headers=headers))
        assert await status_for(relay, from_address("2001:db8::99")) == 429
        assert await status_for(relay, from_address("2001:db8:0:1::1")) == 101


async def test_strangers_are_capped_and_users_go_on(relay: RunningRelay, stage: Stage, ann: Person) -> None:
    """Strangers who got as far as `hello`, and such as never said what they want. Whoever authenticates makes room."""
    token = await stage.token(ann)
    async with AsyncExitStack() as stack:
        user = await stack.enter_async_context(raw_socket(relay.port, token, headers=from_address("203.0.113.1")))
        strangers = [
            await stack.enter_async_context(raw_socket(relay.port, headers=from_address(f"203.0.113.{number}")))
            for number in range(2, 2 + UNAUTHENTICATED // 2)
        ]
        silent = [
            await asyncio.open_connection("127.0.0.1", relay.port) for _ in range(UNAUTHENTICATED - len(strangers))
        ]
        await has_connections(relay, 1 + UNAUTHENTICATED)
        with pytest.raises(OSError, match="hung up"):
            await handshake(relay.port, headers=from_address("203.0.113.99"))
        await user.ask(frames.Ping(id=1))
        await strangers[0].ask(frames.Authenticate(id=1, access_token=token))
        async with raw_socket(relay.port, token, headers=from_address("203.0.113.99")) as newcomer:
            await newcomer.ask(frames.Ping(id=1))
        for _, writer in silent:
            writer.transport.abort()


async def test_a_crowd_of_strangers_gives_way_to_a_newcomer_from_elsewhere(
    relay: RunningRelay, stage: Stage, ann: Person
) -> None:
    token = await stage.token(ann)
    async with AsyncExitStack() as stack:
        crowd = [
            await stack.enter_async_context(raw_socket(relay.port, headers=from_address("203.0.113.7")))
            for _ in range(PER_ADDRESS)
        ]
        silent = [
            await asyncio.open_connection("127.0.0.1", relay.port, local_addr=("127.0.0.2", 0))
            for _ in range(UNAUTHENTICATED - PER_ADDRESS)
        ]
        await has_connections(relay, UNAUTHENTICATED)
        # Two addresses have three each: for each newcomer the newest of the larger one goes.
        user = crowd[0]
        for address in ("203.0.113.8", "203.0.113.9"):
            user = await stack.enter_async_context(raw_socket(relay.port, headers=from_address(address)))
            await user.ask(frames.Ping(id=1))
            await has_connections(relay, UNAUTHENTICATED)
        assert await crowd[-1].close_code() is None
        assert await silent[-1][0].read() == b""
        await user.ask(frames.Authenticate(id=2, access_token=token))
        for one in crowd[:-1]:
            await one.ask(frames.Ping(id=1))
        for _, writer in silent:
            writer.transport.abort()
    assert len([line for line in relay.log if line.get("reason") == "crowd"]) == 2


async def test_a_relay_has_so_many_connections(relay: RunningRelay, stage: Stage, ann: Person) -> None:
    token = await stage.token(ann)
    async with AsyncExitStack() as stack:
        users: list[RawSocket] = [
            await stack.enter_async_context(
                raw_socket(relay.port, token, headers=from_address(f"203.0.113.{number // PER_ADDRESS}"))
            )
            for number in range(CONNECTIONS)
        ]
        for _ in range(5):
            with pytest.raises(OSError, match="hung up"):
                await handshake(relay.port, headers=from_address("203.0.113.99"))
        for user in users:
            await user.ask(frames.Ping(id=1))
        users[0].writer.transport.abort()
        await has_connections(relay, CONNECTIONS - 1)
        assert await status_for(relay, from_address("203.0.113.99")) == 101
    assert not [line for line in relay.log if line.get("level") == "error"]


# ── frame rates ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.produces(ErrorCode.RATE_LIMITED)
async def test_who_speaks_too_often_is_told_when_to_go_on(relay: RunningRelay) -> None:
    """A burst of twice the rate passes. Each frame beyond is answered with the time to wait; after it, all is well."""
    count = 3 * FRAMES_PER_SECOND
    async with raw_socket(relay.port, headers=from_address("203.0.113.1")) as raw:
        raw.send(b"".join(codec.encode(frames.Ping(id=number)) for number in range(1, count + 1)))
        while len(raw.errors) < count - 2 * FRAMES_PER_SECOND - 2:
            await raw.take()
        for error in raw.errors:
            assert error.code == ErrorCode.RATE_LIMITED
            assert error.id is not None
            assert error.id > 2 * FRAMES_PER_SECOND
            assert error.retry_after_ms
        await asyncio.sleep(max(error.retry_after_ms or 0 for error in raw.errors) / 1000)  # as it was told
        await raw.ask(frames.Ping(id=1000))


@pytest.mark.produces(CloseCode.RATE_LIMITED)
@pytest.mark.parametrize("what", ["pings", "rubbish", "empty messages"])
async def test_who_goes_on_regardless_is_closed(relay: RunningRelay, what: str) -> None:
    """Also one who keeps just above the rate, so that every other frame passes."""
    data = {"pings": codec.encode(frames.Ping(id=1)), "rubbish": b"\x80", "empty messages": b""}[what]
    async with raw_socket(relay.port, headers=from_address("203.0.113.1")) as raw:
        sending = asyncio.create_task(speak(raw, frame(data)))
        assert await raw.close_code() == CloseCode.RATE_LIMITED
        sending.cancel()
        await asyncio.wait([sending])
        assert {error.code for error in raw.errors} <= {ErrorCode.RATE_LIMITED, ErrorCode.BAD_FRAME}
        assert 200 <= sum(error.code == ErrorCode.RATE_LIMITED for error in raw.errors) <= 210


async def speak(raw: RawSocket, data: bytes) -> None:
    """Ten times as often as is allowed, and evenly."""
    while True:
        raw.writer.write(data)
        await raw.writer.drain()
        await asyncio.sleep(1 / FRAMES_PER_SECOND / 10)

"""The opening handshake of RFC 6455 (section 4.2) byte by byte: who is told what, and how long it may take.

One relay serves all of these tests; after each, a bystander's post is answered and the log knows of no defect.
"""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager

import pytest
import pytest_asyncio

from orbital_protocol import SUBPROTOCOL, codec, frames
from tests.bystander import Bystander, bystander_on
from tests.raw_socket import BINARY, CLOSE, PING, PONG, RawSocket, frame, handshake, raw_socket
from tests.relays import RunningRelay, running_relay
from tests.stage import Stage

pytestmark = [pytest.mark.timeout(60), pytest.mark.asyncio(loop_scope="module")]

LIMIT_S = 20
OPEN_S = 10  # how long a handshake may take
STRANGERS = 2_000
FLAT_KIB = 64 * 1024  # what so many sockets may cost
KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # the example of the RFC
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
USUAL = {
    "Host": "relay.example",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": KEY,
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Protocol": SUBPROTOCOL,
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def relay(stage: Stage) -> AsyncIterator[RunningRelay]:
    async with running_relay(stage.dsn, unauthenticated_max=STRANGERS, connections_per_address=10 * STRANGERS) as relay:
        yield relay


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def somebody(relay: RunningRelay, stage: Stage) -> AsyncIterator[Bystander]:
    async with bystander_on(relay, stage) as bystander:
        yield bystander


@pytest_asyncio.fixture(loop_scope="module", autouse=True)
async def _unharmed(somebody: Bystander) -> AsyncIterator[None]:
    yield
    await somebody.goes_on()


def request(headers: Mapping[str, str | None] = USUAL, *, line: str = "GET / HTTP/1.1", more: str = "") -> bytes:
    """A handshake as usual, with some headers changed or (None) left out."""
    lines = [f"{name}: {value}\r\n" for name, value in {**USUAL, **headers}.items() if value is not None]
    return f"{line}\r\n{''.join(lines)}{more}\r\n".encode("latin-1")


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def connected(relay: RunningRelay, data: bytes) -> AsyncIterator[Streams]:
    """A connection on which this has been said, for a limited time; it is cut at the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
    try:
        async with asyncio.timeout(LIMIT_S):
            writer.write(data)
            yield reader, writer
    finally:
        writer.transport.abort()


async def answer_to(relay: RunningRelay, data: bytes) -> tuple[int | None, dict[str, str]]:
    """Status and headers (their names in lower case) of what the relay says to this; (None, {}) where it hangs up."""
    async with connected(relay, data) as (reader, _):
        try:
            status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return None, {}
        pairs = (line.partition(":") for line in lines if line)
        return int(status.split(" ")[1]), {name.lower(): value.strip() for name, _, value in pairs}


# ── what comes with it ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("pieces", [1, 2], ids=["in one piece", "right after it"])
async def test_what_comes_with_the_handshake_is_answered_after_it(relay: RunningRelay, pieces: int) -> None:
    """Clients need not wait for the answer before they ask for more; even of a ping the pong comes later."""
    more = frame(b"early", PING) + frame(codec.encode(frames.Ping(id=1)))
    async with connected(relay, request() + more if pieces == 1 else request()) as (reader, writer):
        if pieces == 2:
            await writer.drain()
            writer.write(more)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        raw = RawSocket(reader, writer)
        messages = [await raw.receive() for _ in range(3)]
    assert messages.count((PONG, b"early")) == 1
    hello, answer = (payload for opcode, payload in messages if opcode == BINARY)
    assert isinstance(codec.decode_push(hello), frames.Hello)
    assert codec.decode_answer(answer, frames.PingOk).id == 1


@pytest.mark.parametrize(
    ("data", "code"),
    [(frame(b"\x03\xe8", CLOSE), 1000), (b"\xf2\x80" + bytes(4), 1002)],
    ids=["a close", "reserved bits"],
)
async def test_who_ends_it_with_the_handshake_is_let_in_and_go(relay: RunningRelay, data: bytes, code: int) -> None:
    async with connected(relay, request() + data) as (reader, writer):
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        assert await RawSocket(reader, writer).close_code() == code


# ── whom it lets in ─────────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_answer_proves_that_the_key_was_read(relay: RunningRelay) -> None:
    """And agrees to our subprotocol, once, and to no extension."""
    offered = {
        "Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits, x-other",
        "Sec-WebSocket-Protocol": f"other, {SUBPROTOCOL}",
    }
    status, headers = await answer_to(relay, request(offered))
    assert status == 101
    assert headers["sec-websocket-accept"] == ACCEPT
    assert (headers["upgrade"].lower(), headers["connection"].lower()) == ("websocket", "upgrade")
    assert headers["sec-websocket-protocol"] == SUBPROTOCOL
    assert "sec-websocket-extensions" not in headers
    assert "server" not in headers, "nobody needs to know the library and its version"


@pytest.mark.parametrize(
    "headers",
    [
        {"Upgrade": "WebSocket"},
        {"Connection": "keep-alive, upgrade"},
        {"Cookie": "session=" + "a" * 4_000},
        {f"X-Header-{number}": "value" for number in range(100)},
        {"Sec-WebSocket-Extensions": ";"},
    ],
    ids=["another case", "among other options", "a long cookie", "a hundred headers", "extensions, not looked at"],
)
async def test_what_is_unusual_and_right_is_let_in(relay: RunningRelay, headers: dict[str, str]) -> None:
    status, _ = await answer_to(relay, request(headers))
    assert status == 101


# ── whom it doesn't ─────────────────────────────────────────────────────────────────────────────────────────────────


REFUSED: dict[str, tuple[bytes, int | None]] = {
    "no key": (request({"Sec-WebSocket-Key": None}), 400),
    "a key that is no base64": (request({"Sec-WebSocket-Key": "(not base64)"}), 400),
    "a key of 15 bytes": (request({"Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAA"}), 400),
    "two keys": (request(more=f"Sec-WebSocket-Key: {KEY}\r\n"), 400),
    "no host": (request({"Host": None}), 400),
    "two hosts": (request(more="Host: other.example\r\n"), 400),
    "no upgrade": (request({"Upgrade": None}), 426),
    "another upgrade": (request({"Upgrade": "h2c"}), 426),
    "no connection": (request({"Connection": None}), 426),
    "another connection": (request({"Connection": "close"}), 426),
    "POST": (request(line="POST / HTTP/1.1"), 405),
    "HEAD": (request(line="HEAD / HTTP/1.1"), 405),
    "HTTP/1.0": (request(line="GET / HTTP/1.0"), 505),
    "HTTP/2.0": (request(line="GET / HTTP/2.0"), None),
    "a line too long": (request(line=f"GET /{'a' * 9_000} HTTP/1.1"), 414),
    "a header too long": (request({"Cookie": "a" * 9_000}), 431),
    "a header without end": (b"GET / HTTP/1.1\r\nCookie: " + b"a" * 100_000, 431),
    "too many headers": (request({f"X-Header-{number}": "value" for number in range(200)}), 431),
    "a bad subprotocol": (request({"Sec-WebSocket-Protocol": "a b"}), 400),
    "a body": (request({"Content-Length": "5"}) + b"hello", None),
    "a body in chunks": (request({"Transfer-Encoding": "chunked"}), None),
    "a header on two lines": (request(more="X-Header: one\r\n two\r\n"), None),
    "a header without a colon": (request(more="X-Header\r\n"), None),
    "a zero byte in a header": (request({"X-Header": "a\0b"}), None),
    "lines that end in LF": (request().replace(b"\r\n", b"\n"), None),
    "a path that is not ASCII": (request(line="GET /\xff HTTP/1.1"), None),
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", None),
    "the preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", None),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
async def test_what_is_no_handshake_is_told_so_or_cut(relay: RunningRelay, case: tuple[bytes, int | None]) -> None:
    data, status = case
    said, headers = await answer_to(relay, data)
    assert said == status
    if status == 426:
        assert headers["upgrade"] == "websocket"
    if status == 405:
        assert headers["allow"] == "GET"


@pytest.mark.parametrize("version", [None, "8", "12", "14", "0xD", "13, 13"])
async def test_another_version_is_told_ours(relay: RunningRelay, version: str | None) -> None:
    status, headers = await answer_to(relay, request({"Sec-WebSocket-Version": version}))
    assert status in (400, 426)
    assert headers["sec-websocket-version"] == "13"


# ── how long it may take ────────────────────────────────────────────────────────────────────────────────────────────


async def test_thousands_of_half_handshakes_keep_no_user_out_for_long(
    relay: RunningRelay, somebody: Bystander, stage: Stage
) -> None:
    """Up to the cap they wait, and beyond it are dropped; users go on, and when their time is over there is room again.

    Memory stays flat. Who sends a byte now and then has no more time than others.
    """
    [person] = await stage.people(1)
    token = await stage.token(person)
    before_kib = relay.resident_kib()
    began = time.monotonic()
    with ExitStack() as stack:
        strangers = [stack.enter_context(socket.create_connection(("127.0.0.1", relay.port))) for _ in range(STRANGERS)]
        dripping = asyncio.create_task(drip(strangers[-1]))
        for stranger in strangers:
            stranger.sendall(request()[:-2])
        await has_connections(relay, STRANGERS + 1)
        with pytest.raises(OSError, match="hung up"):
            await handshake(relay.port)
        while not dripping.done():
            await somebody.goes_on()
            assert time.monotonic() - began < 2 * OPEN_S
        await has_connections(relay, 1)
        async with raw_socket(relay.port, token) as newcomer:
            await newcomer.ask(frames.Ping(id=1))
    assert OPEN_S - 1 < await dripping < OPEN_S + 5
    assert relay.resident_kib() - before_kib < FLAT_KIB


async def has_connections(relay: RunningRelay, count: int) -> None:
    async with asyncio.timeout(LIMIT_S):
        while await relay.metric("orbital_connections") != count:
            await asyncio.sleep(0.02)


async def drip(stranger: socket.socket) -> float:
    """Send a byte of a header now and then, until the relay ends the connection: for how many seconds."""
    began = time.monotonic()
    with contextlib.suppress(OSError):
        while True:
            stranger.send(b"X")
            await asyncio.sleep(0.1)
    return time.monotonic() - began

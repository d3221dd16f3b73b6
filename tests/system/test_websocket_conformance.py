"""RFC 6455 as the relay keeps it, byte by byte: what breaks the rules is closed with the code for it, what keeps them
is taken in any form, and nobody else notices. Much of it is decided by a library; here it is tested as it is shipped.

One relay serves all of these tests; after each, a bystander's post is answered and the log knows of no defect.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from orbital_protocol import codec, frames
from orbital_protocol.codes import CloseCode
from tests.bystander import Bystander, bystander_on
from tests.raw_socket import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, RawSocket, frame, raw_socket
from tests.relays import RunningRelay, running_relay
from tests.stage import Stage

pytestmark = [pytest.mark.timeout(60), pytest.mark.asyncio(loop_scope="module")]

PROTOCOL_ERROR, INVALID_DATA, TOO_BIG = 1002, 1007, 1009
STRANGERS_BYTES, MEMBERS_BYTES = 4_096, 1_048_576
FRAGMENTS = 4_096  # of one message
FLAT_KIB = 16 * 1024
RESERVED = [*range(3, 8), *range(11, 16)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def relay(stage: Stage) -> AsyncIterator[RunningRelay]:
    limits: dict[str, Any] = {"max_unauthenticated_frame_bytes": STRANGERS_BYTES, "max_frame_bytes": MEMBERS_BYTES}
    async with running_relay(stage.dsn, **limits) as relay:
        yield relay


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def somebody(relay: RunningRelay, stage: Stage) -> AsyncIterator[Bystander]:
    async with bystander_on(relay, stage) as bystander:
        yield bystander


@pytest_asyncio.fixture(loop_scope="module", autouse=True)
async def _unharmed(somebody: Bystander) -> AsyncIterator[None]:
    yield
    await somebody.goes_on()


@pytest_asyncio.fixture(loop_scope="module", params=["a stranger", "a member"])
async def raw(request: pytest.FixtureRequest, relay: RunningRelay, stage: Stage) -> AsyncIterator[RawSocket]:
    """A connection, before authentication and after it."""
    token = None
    if request.param == "a member":
        [person] = await stage.people(1)
        token = await stage.token(person)
    async with raw_socket(relay.port, token) as raw:
        yield raw


@pytest.fixture
def most_bytes(request: pytest.FixtureRequest) -> int:
    """How long a message of this connection may be."""
    return MEMBERS_BYTES if request.node.callspec.params["raw"] == "a member" else STRANGERS_BYTES


def head(first: int, length: int, width: int, *, masked: bool = True) -> bytes:
    """The head of a frame whose length is written in so many bytes; the mask is zeros."""
    mask_bit, mask = (0x80, bytes(4)) if masked else (0, b"")
    if width == 1:
        return bytes((first, mask_bit | length)) + mask
    return bytes((first, mask_bit | (126 if width == 2 else 127))) + length.to_bytes(width, "big") + mask


def ping_of(size: int) -> bytes:
    """A request of exactly so many bytes: what it has beyond the protocol is ignored."""
    about = msgspec.msgpack.encode({"type": "ping", "id": 1, "pad": bytes(size - 100)})
    return msgspec.msgpack.encode({"type": "ping", "id": 1, "pad": bytes(size - 100 + size - len(about))})


async def ends(raw: RawSocket, code: int) -> None:
    """The relay closes with this code, and ends the connection without waiting for an answer."""
    assert await raw.close_code() == code
    assert await raw.rest() == b""


# ── what breaks the rules ───────────────────────────────────────────────────────────────────────────────────────────

PING_REQUEST = codec.encode(frames.Ping(id=1))
BROKEN = {
    "an unmasked message": head(0x82, len(PING_REQUEST), 1, masked=False) + PING_REQUEST,
    "an unmasked ping": head(0x89, 0, 1, masked=False),
    "an unmasked close": head(0x88, 2, 1, masked=False) + b"\x03\xe8",
    "the first reserved bit": head(0xC2, len(PING_REQUEST), 1) + PING_REQUEST,
    "the second reserved bit": head(0xA2, len(PING_REQUEST), 1) + PING_REQUEST,
    "the third reserved bit": head(0x92, len(PING_REQUEST), 1) + PING_REQUEST,
    "a reserved bit of a ping": head(0xC9, 0, 1),
    **{f"the reserved opcode {opcode}": frame(b"", opcode) for opcode in RESERVED},
    "a fragment of a ping": frame(b"", PING, final=False),
    "a fragment of a pong": frame(b"", PONG, final=False),
    "a fragment of a close": frame(b"", CLOSE, final=False),
    "a ping of 126 bytes": frame(bytes(126), PING),
    "a pong of 126 bytes": frame(bytes(126), PONG),
    "a close of 126 bytes": frame(b"\x03\xe8" + bytes(124), CLOSE),
    "a continuation of nothing": frame(PING_REQUEST, CONTINUATION),
    "a continuation after the end": frame(b"", BINARY, final=False) + frame(b"", CONTINUATION) * 2,
    "a message within a message": frame(b"", BINARY, final=False) + frame(PING_REQUEST),
    "a text within a message": frame(b"", BINARY, final=False) + frame(b"text", TEXT),
    "a close within a message": frame(b"", BINARY, final=False) + frame(b"\x03\xe8", CLOSE),
    "a close of one byte": frame(b"\x03", CLOSE),
}
NO_CODES = [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535]


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
async def test_what_breaks_the_rules_is_a_protocol_error(raw: RawSocket, data: bytes) -> None:
    raw.writer.write(data)
    await ends(raw, PROTOCOL_ERROR)


@pytest.mark.parametrize("code", NO_CODES)
async def test_a_close_code_that_may_not_be_sent_is_a_protocol_error(raw: RawSocket, code: int) -> None:
    raw.send(code.to_bytes(2, "big") + b"reason", CLOSE)
    await ends(raw, PROTOCOL_ERROR)


@pytest.mark.parametrize("reason", [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\xaf"], ids=bytes.hex)
async def test_what_is_no_utf_8_is_invalid(raw: RawSocket, reason: bytes) -> None:
    """Cut short, a surrogate, beyond Unicode, not the shortest form."""
    raw.send(b"\x03\xe8" + reason, CLOSE)
    await ends(raw, INVALID_DATA)


async def test_a_text_that_is_no_utf_8_is_invalid(raw: RawSocket) -> None:
    raw.send(b"caf\xc3", TEXT, final=False)
    raw.send(b"", CONTINUATION)
    await ends(raw, INVALID_DATA)


async def test_a_text_is_no_message_of_ours(raw: RawSocket) -> None:
    raw.send(b"caf\xc3", TEXT, final=False)
    raw.send(b"\xa9", CONTINUATION)
    assert await raw.close_code() == CloseCode.PROTOCOL_ERROR
    raw.send(b"", CLOSE)
    assert await raw.rest() == b""


# ── how long a message may be ───────────────────────────────────────────────────────────────────────────────────────


async def test_a_message_of_the_limit_is_taken(raw: RawSocket, most_bytes: int) -> None:
    raw.send(ping_of(most_bytes))
    await raw.answer(frames.Ping(id=1))


@pytest.mark.parametrize("beyond", [1, 2**31, 2**62, 2**63 - 1, 2**64 - 1])
async def test_a_length_beyond_the_limit_is_refused_before_the_bytes_come(
    raw: RawSocket, relay: RunningRelay, most_bytes: int, beyond: int
) -> None:
    before_kib = relay.resident_kib()
    raw.writer.write(head(0x82, min(most_bytes + beyond, 2**64 - 1), 8))
    await ends(raw, TOO_BIG)
    assert relay.resident_kib() - before_kib < FLAT_KIB


async def test_fragments_beyond_the_limit_are_refused_when_they_pass_it(raw: RawSocket, most_bytes: int) -> None:
    piece = bytes(most_bytes // 8)
    raw.send(piece, BINARY, final=False)
    for _ in range(7):
        raw.send(piece, CONTINUATION, final=False)
    raw.send(b"", PING)
    assert await raw.receive() == (PONG, b"")
    raw.writer.write(head(0x80, 1, 1))  # the byte itself never comes
    await ends(raw, TOO_BIG)


async def test_fragments_without_end_are_refused(raw: RawSocket, relay: RunningRelay) -> None:
    """Empty ones count towards no limit of bytes, and cost memory all the same."""
    before_kib = relay.resident_kib()
    raw.send(b"", BINARY, final=False)
    flooding = asyncio.create_task(raw.flood(frame(b"", CONTINUATION, final=False) * 1_000_000))
    assert await raw.close_code() == TOO_BIG
    raw.writer.transport.abort()
    await flooding
    assert relay.resident_kib() - before_kib < FLAT_KIB


# ── what keeps them ─────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_message_may_come_byte_by_byte(raw: RawSocket) -> None:
    """Each byte a fragment, each with a ping behind it, and each byte of all that in a segment of its own."""
    data = b"".join(
        frame(bytes((byte,)), BINARY if number == 0 else CONTINUATION, final=number == len(PING_REQUEST) - 1)
        + frame(bytes((number,)), PING)
        for number, byte in enumerate(PING_REQUEST)
    )
    for byte in data:
        raw.writer.write(bytes((byte,)))
        await raw.writer.drain()
        await asyncio.sleep(0)
    pongs: list[bytes] = []
    while len(pongs) < len(PING_REQUEST):
        opcode, payload = await raw.receive()
        if opcode == PONG:
            pongs.append(payload)
        else:
            assert codec.decode_answer(payload, frames.PingOk).id == 1
    assert pongs == [bytes((number,)) for number in range(len(PING_REQUEST))]


@pytest.mark.parametrize("width", [2, 8])
async def test_a_length_that_could_be_shorter_is_taken(raw: RawSocket, width: int) -> None:
    """The rule is the sender's; what is meant is clear."""
    raw.writer.write(head(0x82, len(PING_REQUEST), width) + PING_REQUEST)
    await raw.answer(frames.Ping(id=1))


async def test_a_mask_is_taken_off(raw: RawSocket) -> None:
    mask = b"\x37\xfa\x21\x3d"
    masked = bytes(byte ^ mask[number % 4] for number, byte in enumerate(PING_REQUEST))
    raw.writer.write(bytes((0x82, 0x80 | len(masked))) + mask + masked)
    await raw.answer(frames.Ping(id=1))


async def test_a_ping_is_answered_with_its_bytes_and_a_pong_with_nothing(raw: RawSocket) -> None:
    raw.send(b"unasked", PONG)
    for payload in (b"", bytes(range(125))):
        raw.send(payload, PING)
        assert await raw.receive() == (PONG, payload)


@pytest.mark.parametrize(
    "payload",
    [b"", b"\x03\xe8", b"\x03\xe9going", b"\x0b\xb8", b"\x13\x87" + "é".encode() * 61],
    ids=["none", "1000", "1001", "3000", "4999"],
)
async def test_a_close_is_answered_with_its_own_and_nothing_after_it_counts(raw: RawSocket, payload: bytes) -> None:
    raw.send(payload, CLOSE)
    raw.send(PING_REQUEST)
    raw.writer.write(BROKEN["an unmasked message"])
    assert await raw.receive() == (CLOSE, payload)
    assert await raw.rest() == b""


async def test_an_end_without_a_close_is_an_end(raw: RawSocket, relay: RunningRelay) -> None:
    """In the middle of a message and of a frame's head."""
    raw.send(PING_REQUEST[:3], BINARY, final=False)
    raw.writer.write(b"\x80")
    raw.writer.write_eof()
    assert await raw.close_code() is None

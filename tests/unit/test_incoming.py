"""What a client sends, held against what the library alone makes of it."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import example, given, reject
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import State
from websockets.server import ServerProtocol

from orbital_relay.incoming import Incoming, Message
from tests.raw_socket import BINARY, CLOSE, CONTINUATION, PING, TEXT, frame

MOST_BYTES = 300
REQUEST = (
    b"GET / HTTP/1.1\r\nHost: relay.example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def masked(payload: bytes, opcode: int = BINARY, *, final: bool = True, mask: bytes) -> bytes:
    """A frame with a mask of its own."""
    plain = frame(payload, opcode, final=final)
    head = plain[: len(plain) - len(payload) - 4]
    return head + mask + bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))


def relay_side(state: State = State.OPEN) -> ServerProtocol:
    return ServerProtocol(max_size=MOST_BYTES, state=state)


def taken(protocol: ServerProtocol, pieces: Sequence[bytes]) -> tuple[list[Message], bytes]:
    """The messages that came, and all that the protocol had to say."""
    incoming = Incoming(protocol)
    messages: list[Message] = []
    for piece in pieces:
        for come in incoming.feed(piece):
            assert not isinstance(come, Request)
            messages.append(come)
    return messages, b"".join(protocol.data_to_send())


def by_the_library(data: bytes) -> tuple[list[Message], bytes]:
    """The same by the library alone."""
    protocol = relay_side()
    protocol.receive_data(data)
    messages: list[Message] = []
    begun: list[Frame] = []
    for event in protocol.events_received():
        assert isinstance(event, Frame)
        if event.opcode in (Opcode.BINARY, Opcode.TEXT, Opcode.CONT):
            begun.append(event)
            if event.fin:
                whole = b"".join(bytes(each.data) for each in begun)
                messages.append(whole.decode() if begun[0].opcode is Opcode.TEXT else whole)
                begun = []
    return messages, b"".join(protocol.data_to_send())


masks = st.binary(min_size=4, max_size=4)
payloads = st.binary(max_size=MOST_BYTES + 5) | st.binary(max_size=8)
whole_frames = st.builds(masked, payloads, st.just(BINARY), mask=masks)
any_frames = st.builds(
    masked,
    st.binary(max_size=20),
    st.sampled_from([BINARY, BINARY, CONTINUATION, PING, CLOSE, 3]),
    final=st.booleans(),
    mask=masks,
) | st.builds(masked, st.text(max_size=9).map(str.encode), st.just(TEXT), mask=masks)
noise = st.binary(min_size=1, max_size=12)
streams = st.lists(whole_frames | whole_frames | any_frames | noise, max_size=8).map(b"".join)


@example(frame(bytes(MOST_BYTES + 1)), [])
@example(frame(b"begun", final=False) + frame(b"another"), [])
@example(b"\x82\x05plain" + frame(b"later"), [])
@example(frame(b"", CLOSE) + frame(b"later"), [])
@example(b"\x00~", [])  # a head that is refused before it is there as a whole
@given(streams, st.lists(st.integers(0, 2_000), max_size=6))
def test_however_it_is_cut_it_is_what_the_library_makes_of_it(data: bytes, cuts: list[int]) -> None:
    try:
        expected = by_the_library(data)
    except UnicodeDecodeError:
        reject()  # the library leaves that to others
    at = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    assert taken(relay_side(), [data[start:end] for start, end in pairwise(at)]) == expected
    assert taken(relay_side(), [bytes((byte,)) for byte in data]) == expected


@pytest.mark.parametrize("step", [1, 2, 3, 5, 1_000])
def test_what_comes_with_the_request_comes_after_it(step: int) -> None:
    protocol = relay_side(State.CONNECTING)
    incoming = Incoming(protocol)
    data = REQUEST + frame(b"one") + frame(b"", PING) + frame(b"two")
    come: list[Request | Message] = []
    for start in range(0, len(data), step):
        for each in incoming.feed(data[start : start + step]):
            come.append(each)
            if isinstance(each, Request):
                assert protocol.data_to_send() == []
                protocol.send_response(protocol.accept(each))
    assert isinstance(come[0], Request)
    assert come[1:] == [b"one", b"two"]
    assert b"".join(protocol.data_to_send()).endswith(b"\r\n\r\n\x8a\x00")


def test_plain_frames_do_not_reach_the_librarys_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor do they wait for anything: it is what they are read for."""
    protocol = relay_side()
    monkeypatch.setattr(protocol, "receive_data", lambda data: pytest.fail(f"{data!r} was handed over"))
    data = frame(b"one") + frame(b"", BINARY) + frame(bytes(200))
    assert taken(protocol, [data]) == ([b"one", b"", bytes(200)], b"")
    assert taken(protocol, [data[:100], data[100:150], data[150:]]) == ([b"one", b"", bytes(200)], b"")


def test_a_frame_that_is_half_there_when_the_relay_closes_is_read_to_its_end() -> None:
    """As by the library: what follows it is the other side's close, and must be found."""
    protocol = relay_side()
    incoming = Incoming(protocol)
    data = frame(bytes(200)) + frame((1000).to_bytes(2, "big"), CLOSE)
    assert list(incoming.feed(data[:100])) == []
    protocol.send_close(1000)
    assert list(incoming.feed(data[100:])) == [bytes(200)]
    assert protocol.close_rcvd is not None


def test_text_that_is_none_ends_the_connection() -> None:
    protocol = relay_side()
    messages, said = taken(protocol, [frame(b"\xff", TEXT) + frame(b"later")])
    assert messages == []
    assert said[2:4] == (1007).to_bytes(2, "big")

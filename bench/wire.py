"""A WebSocket client with nothing to spare: frames built beforehand and masked with zeros, over plain sockets.

A mask of zeros is a mask (RFC 6455, 5.3): the relay unmasks as it always does.
"""

import json
import os
import socket
import sys
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from bench.people import Place, new_id
from orbital_protocol import SUBPROTOCOL, ZERO_HASH, ZERO_ID, codec
from orbital_protocol.codes import Kind
from orbital_protocol.frames import (
    Authenticate,
    Error,
    Event,
    Frame,
    Hello,
    Live,
    PostOk,
    ReplyPost,
    Subscribe,
    SubscribeGroup,
    type_of,
)

ADDRESS: Final = "127.0.0.1"

HANDSHAKE: Final = (
    f"GET / HTTP/1.1\r\nHost: {ADDRESS}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    f"Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\n\r\n"
).encode()
_END_OF_HEADERS: Final = b"\r\n\r\n"
_LIMIT_S: Final = 20
_RECV_BYTES: Final = 65_536

_ZERO_MASK: Final = bytes(4)
_SHORT: Final = 126
_MEDIUM: Final = 1 << 16
PING: Final = 0x89
PONG_FRAME: Final = b"\x8a\x80" + _ZERO_MASK

# MessagePack writes an integer below 2^7 in 1 byte, below 2^8 in 2, below 2^16 in 3, below 2^32 in 5. Request ids
# beyond 2^16 have one width, so that everything but `seq` stands at a fixed place.
FIRST_REQUEST_ID: Final = 1 << 20
_WIDTHS: Final = ((1 << 7, 1), (1 << 8, 2), (1 << 16, 3), (1 << 32, 5))


def masked_head(size: int) -> bytes:
    """What a client's whole binary message of so many bytes begins with: header and mask."""
    if size < _SHORT:
        header = bytes((0x82, 0x80 | size))
    elif size < _MEDIUM:
        header = b"\x82\xfe" + size.to_bytes(2, "big")
    else:
        header = b"\x82\xff" + size.to_bytes(8, "big")
    return header + _ZERO_MASK


def masked(payload: bytes) -> bytes:
    """The WebSocket frame of a client's whole binary message."""
    return masked_head(len(payload)) + payload


def reply(request_id: int, place: Place, body_bytes: int) -> bytes:
    """A post on the wire, with a body of random bytes, as ciphertexts are."""
    return masked(
        codec.encode(
            ReplyPost(
                id=request_id,
                group_id=place.group_id,
                key_epoch=1,
                thread_id=place.thread_id,
                reply_id=new_id(),
                encrypted_body=os.urandom(body_bytes),
            )
        )
    )


def body_for(wire_bytes: int) -> int:
    """How long a reply's body is if the whole WebSocket frame has this many bytes."""
    overhead = len(reply(FIRST_REQUEST_ID, Place(ZERO_ID, ZERO_ID), 100)) - 100
    return wire_bytes - overhead


# ── reading with next to no parsing ─────────────────────────────────────────────────────────────────────────────────


def width(number: int) -> int:
    """Bytes that MessagePack writes this number in."""
    return next(width for limit, width in _WIDTHS if number < limit)


def read_integer(data: bytes | bytearray | memoryview, at: int) -> int:
    """The MessagePack integer at a place."""
    first = data[at]
    if first < 0x80:  # noqa: PLR2004  a positive fixint
        return first
    return int.from_bytes(data[at + 1 : at + 1 + (1 << (first - 0xCC))], "big")


_SAMPLE_OK: Final = codec.encode(
    PostOk(id=FIRST_REQUEST_ID, seq=1, hash=ZERO_HASH, content_hash=ZERO_HASH, created_at=1 << 40)
)
_ID_AT: Final = _SAMPLE_OK.index(FIRST_REQUEST_ID.to_bytes(4, "big"))
_SEQ_AFTER_ID: Final = _SAMPLE_OK.index(b"\xa3seq") + 4 - _ID_AT

ACK: Final = _SAMPLE_OK[:_ID_AT]
"""What every acknowledgement of a new post begins with, and nothing else; its id follows."""
READABLE_BYTES: Final = _ID_AT + _SEQ_AFTER_ID + 5
"""An acknowledgement's beginning up to its seq; each has more than that."""
ERROR: Final = b"\xa4type\xa5error"
"""What only an `error` frame contains."""


def read_ack(data: bytes, at: int) -> tuple[int, int]:
    """The request id and the seq of the acknowledgement that begins at a place."""
    at += len(ACK)
    return int.from_bytes(data[at : at + 4], "big"), read_integer(data, at + _SEQ_AFTER_ID)


class EventShape:
    """The sizes and places within a reply's event, for bodies of one length."""

    def __init__(self, body_bytes: int) -> None:
        frame = codec.encode(
            Event(
                group_id=ZERO_ID,
                seq=1,
                hash=ZERO_HASH,
                kind=Kind.REPLY_POSTED,
                object_id=ZERO_ID,
                actor_id=ZERO_ID,
                key_epoch=1,
                created_at=1 << 40,
                content_hash=ZERO_HASH,
                thread_id=ZERO_ID,
                encrypted_body=bytes(body_bytes),
            )
        )
        self.seq_at = frame.index(b"\xa3seq") + 4
        self._size = len(frame) - width(1)

    def size(self, seq: int) -> int:
        """Bytes of the event with this number."""
        return self._size + width(seq)

    def message_of(self, seq: int) -> tuple[int, int, bytes]:
        """How long a WebSocket message with this event alone is, and which bytes stand where in it for its number."""
        header = len(masked(bytes(self.size(seq)))) - len(_ZERO_MASK) - self.size(seq)
        return header + self.size(seq), header + self.seq_at, msgspec.msgpack.encode(seq)

    def last_of(self, first: int, payload: int) -> int:
        """The number of the last event in a message of so many bytes; raise ValueError if they don't come out even."""
        each = self.size(first)
        count, rest = divmod(payload, each)
        last = first + count - 1
        if not rest and self.size(last) == each:
            return last
        last = first - 1
        while payload > 0:
            last += 1
            payload -= self.size(last)
        if payload:
            raise ValueError("a message holds something else than whole events")
        return last


class Gap(Exception):
    """A member got another event than the next one."""


class Follower:
    """One member's view of a group's log: how far it has come whole, checked event by event."""

    __slots__ = ("_cut", "_left", "_next", "_shape", "seq", "socket")

    def __init__(self, connection: socket.socket, seq: int, shape: EventShape) -> None:
        self.socket = connection
        self.seq = seq
        self._shape = shape
        self._next = seq  # what seq becomes once the message under way has come to its end
        self._left = 0  # bytes of the message under way that are still to come
        self._cut = b""  # the beginning of a message that was cut within its head

    def take(self, data: bytes | bytearray, size: int) -> None:
        """Take the first `size` bytes of `data`; raise Gap for anything but the next events (pings are answered)."""
        if self._cut:
            data = self._cut + data[:size]
            size = len(data)
            self._cut = b""
        at = 0
        while at < size:
            if self._left:
                step = min(self._left, size - at)
                self._left -= step
                at += step
                if not self._left:
                    self.seq = self._next
            elif data[at] == PING:
                if size - at == 1:
                    self._cut = bytes(data[at:size])
                    return
                self.socket.sendall(PONG_FRAME)
                at += 2
            else:
                payload_at, payload = _payload(data, at, size)
                if not payload or size < payload_at + self._shape.seq_at + 5:
                    self._cut = bytes(data[at:size])
                    return
                self._begin(read_integer(data, payload_at + self._shape.seq_at), payload)
                at = payload_at

    @property
    def is_between_messages(self) -> bool:
        """Whether what comes next is a message's first byte."""
        return not self._left and not self._cut

    def _begin(self, first: int, payload: int) -> None:
        if first != self.seq + 1:
            raise Gap(f"event {first} came after {self.seq}")
        try:
            self._next = self._shape.last_of(first, payload)
        except ValueError as error:
            raise Gap(str(error)) from None
        self._left = payload


def _payload(data: bytes | bytearray, at: int, size: int) -> tuple[int, int]:
    """Where a message's payload begins, and how long it is: 0 if the header is not there as a whole."""
    if size - at < 2:  # noqa: PLR2004  the shortest header
        return at, 0
    length = data[at + 1]
    if length < _SHORT:
        return at + 2, length
    bytes_of_length = 2 if length == _SHORT else 8
    begin = at + 2 + bytes_of_length
    if size < begin:
        return at, 0
    return begin, int.from_bytes(data[at + 2 : begin], "big")


# ── coming in ───────────────────────────────────────────────────────────────────────────────────────────────────────


class Newcomer:
    """A connection on its way to being authenticated and, where a group is named, subscribed to it."""

    def __init__(self, port: int, token: str, group_id: bytes | None = None) -> None:
        self.socket = socket.create_connection((ADDRESS, port), timeout=_LIMIT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        frames: list[Frame] = [Authenticate(id=1, access_token=token)]
        if group_id is not None:
            frames.append(Subscribe(id=2, groups=[SubscribeGroup(group_id=group_id)]))
        self._until = type_of(Live) if group_id is not None else "ok"
        self.socket.sendall(HANDSHAKE + b"".join([masked(codec.encode(frame)) for frame in frames]))
        self.seq = 0
        """Where the subscription begins, once it is live."""

    def come_in(self) -> socket.socket:
        """Wait until that is done; return the socket, no longer blocking. Nothing of what was sent is left in it."""
        data = self._read_until_headers_end()
        while True:
            payload_at, payload = _payload(data, 0, len(data))
            if not payload or len(data) < payload_at + payload:
                data += self._recv()
                continue
            message, data = data[payload_at : payload_at + payload], data[payload_at + payload :]
            if self._is_in(message):
                break
        if data:
            raise RuntimeError("the relay sent more than was asked for")
        self.socket.setblocking(False)
        return self.socket

    def _read_until_headers_end(self) -> bytes:
        data = b""
        while _END_OF_HEADERS not in data:
            data += self._recv()
        headers, _, rest = data.partition(_END_OF_HEADERS)
        if not headers.startswith(b"HTTP/1.1 101 "):
            raise RuntimeError(f"the relay refused the connection: {headers[:200]!r}")
        return rest

    def _recv(self) -> bytes:
        data = self.socket.recv(_RECV_BYTES)
        if not data:
            raise RuntimeError("the relay closed the connection")
        return data

    def _is_in(self, message: bytes) -> bool:
        done = False
        for raw in codec.split(message):
            kind, _ = codec.frame_head(raw)
            if kind == type_of(Error):
                raise RuntimeError(f"the relay refused: {codec.decode_push(raw)}")
            if kind == type_of(Live) and isinstance(live := codec.decode_push(raw), Live):
                self.seq = live.seq
            done = done or (kind == self._until and kind != type_of(Hello))
        return done


_AT_ONCE: Final = 50


def come_in(port: int, tokens: Sequence[str], group_id: bytes | None = None) -> list[tuple[socket.socket, int]]:
    """Connect with each of the tokens, some at a time; the sockets, and where each one's subscription begins."""
    arrived: list[tuple[socket.socket, int]] = []
    for start in range(0, len(tokens), _AT_ONCE):
        newcomers = [Newcomer(port, token, group_id) for token in tokens[start : start + _AT_ONCE]]
        arrived += [(newcomer.come_in(), newcomer.seq) for newcomer in newcomers]
    return arrived


# ── talking to the benchmark ────────────────────────────────────────────────────────────────────────────────────────


def next_task() -> dict[str, Any]:
    """The next line that the benchmark hands to this generator; nothing, once there are no more."""
    task: dict[str, Any] = json.loads(sys.stdin.readline() or "{}")
    return task


def answer(**what: object) -> None:
    """A line for the benchmark."""
    print(json.dumps(what), flush=True)

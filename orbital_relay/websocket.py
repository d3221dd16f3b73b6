"""The WebSocket of one connection: the `websockets` library keeps the protocol, a transport of the loop does the I/O.

The library's own connection makes tasks, futures and queues for what a server of many never asks of it; here are its
protocol without I/O (handshake, frames, closing), and what the relay needs around that: whole messages for whoever
takes them, when the other side was last heard from, an outbox that learns of back-pressure, no reading from whoever
doesn't read, and a close that does not wait for a reader who isn't there (docs/adr/0023-a-connection-of-our-own.md).
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol, cast

from websockets.http11 import Request, Response
from websockets.protocol import State
from websockets.server import ServerProtocol

from orbital_protocol.codes import CloseCode
from orbital_relay.handshakes import Handshake
from orbital_relay.incoming import Incoming, Message
from orbital_relay.outbox import Outbox

_PING: Final = b"\x89\x00"
_OPEN_TIMEOUT_S: Final = 10
_LINGER_S: Final = 2
_WRITE_HIGH_BYTES: Final = 64 * 1024
_AHEAD_BYTES: Final = 64 * 1024  # of messages that nobody has taken yet


class Beginning(NamedTuple):
    """A connection's protocol. Where its handshake needs no parsing: the answer to it, and how many bytes it has."""

    protocol: ServerProtocol
    greeting: bytes = b""
    size: int = 0


class Host(Protocol):
    """Who lets sockets in, and serves them."""

    def admit(self, socket: "Socket") -> bool:
        """Whether there is room for a TCP connection."""

    def arrived(self, socket: "Socket") -> None:
        """The first bytes have come: have it `start` soon."""

    def begin(self, socket: "Socket", data: bytes) -> "Beginning":
        """What becomes of the first bytes."""

    def answer(self, socket: "Socket", request: Request) -> Response:
        """What a handshake is answered with."""

    def let_in(self, socket: "Socket", greeting: bytes) -> None:
        """A handshake that had to be parsed was answered so."""

    def opened(self, socket: "Socket") -> None:
        """The handshake is done: `attach` whoever takes the messages."""

    def authenticated(self, socket: "Socket") -> None:
        """It is known whose the connection is."""

    def forget(self, socket: "Socket") -> None:
        """The TCP connection is gone."""


class Socket(asyncio.Protocol):
    """A server's connection, which is written to through an outbox."""

    transport: asyncio.Transport
    protocol: ServerProtocol  # once it has started

    def __init__(self, host: Host, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.address = ""  # the client's, once its request has been read
        self.handshake: Handshake | None = None  # while it is being answered
        self.heard_at = self.opened_at = loop.time()
        self._host = host
        self._incoming: Incoming
        self._has_started = False
        self._first = b""  # what came before it has
        self._has_paused = False  # reading of that
        self._outbox: Outbox | None = None
        self._received: Callable[[], None] | None = None
        self._greeting = b""  # the answer to the handshake, which leaves with what is said first
        self._ready: list[Message] = []  # the next one last
        self._messages: list[Message] = []  # what came after those
        self._ahead_bytes = 0  # of those
        self._is_ahead = False
        self._is_full = False  # the transport's buffer
        self._is_lost = False
        self._closed: asyncio.Future[None] | None = None  # made when somebody waits
        self._deadline: asyncio.TimerHandle | None = None  # of the handshake, and later of the other side's end

    # ── what a session sees ─────────────────────────────────────────────────────────────────────────────────────────

    def attach(self, outbox: Outbox, received: Callable[[], None]) -> None:
        """Write through this outbox from now on, and call `received` when messages have come."""
        self._outbox = outbox
        self._received = received
        outbox.put_message(self._greeting)
        self._greeting = b""

    def next_message(self) -> Message | None:
        """The next message, if one has come. While nobody takes what came, no more than some 64 KiB are read ahead."""
        if not self._ready:
            if not self._messages:
                return None
            self._ready, self._messages = self._messages, []
            self._ready.reverse()
            self._ahead_bytes = 0
            if self._is_ahead:
                self._is_ahead = False
                self._resume_reading()
        return self._ready.pop()

    @property
    def is_connecting(self) -> bool:
        """Whether the handshake is still to come, or to be finished."""
        return not self._has_started or self.protocol.state is State.CONNECTING

    @property
    def is_reading(self) -> bool:
        """Whether a sign of life could be noticed: not while the relay itself has paused reading."""
        return not self._is_ahead and not self._is_full

    def authenticated(self) -> None:
        """It is known whose the connection is."""
        self._host.authenticated(self)

    def send_ping(self) -> None:
        """Send an empty ping; its pong counts like any other byte."""
        if self.protocol.state is State.OPEN:
            self.transport.write(_PING)

    @property
    def close_code(self) -> int | None:
        """What the connection was closed with, once it is (RFC 6455, 7.1.5)."""
        return self.protocol.close_code

    def turn_away(self, payload: bytes, code: CloseCode) -> None:
        """Send one message, close, and wait for nobody."""
        self.protocol.send_binary(payload)
        self.protocol.send_close(code, code.name.lower())
        self._send([self._greeting, *self.protocol.data_to_send()])

    async def finish(self, timeout_s: float, code: CloseCode) -> None:
        """Close with this code if nobody has yet, wait for the other side, at most so long, then cut the connection.

        The time also covers a reader who leaves no room for the close frame.
        """
        if self.protocol.state is State.OPEN:
            self.protocol.send_close(code, code.name.lower())
            self._send(self.protocol.data_to_send())
        try:
            async with asyncio.timeout(timeout_s):
                await self.wait_closed()
        except TimeoutError:
            self.transport.abort()
            await self.wait_closed()

    async def wait_closed(self) -> None:
        """Wait until the TCP connection is gone."""
        if self._is_lost:
            return
        if self._closed is None:
            self._closed = self.loop.create_future()
        await asyncio.shield(self._closed)

    # ── what the transport says ─────────────────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The TCP connection is there."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's has its methods, but is none of its subclasses
        if not self._host.admit(self):
            self.transport.abort()
            return
        self.transport.set_write_buffer_limits(_WRITE_HIGH_BYTES)
        self._deadline = self.loop.call_later(_OPEN_TIMEOUT_S, self.transport.abort)

    def data_received(self, data: bytes) -> None:
        """Any received byte is a sign of life."""
        self.heard_at = self.loop.time()
        if self._has_started:
            self._take_in(data)
            return
        if not self._first:
            self._host.arrived(self)
        self._first += data
        if len(self._first) > _AHEAD_BYTES and not self._has_paused:
            self._has_paused = True
            self._pause_reading()

    def _take_in(self, data: bytes) -> None:
        for come in self._incoming.feed(data):
            if isinstance(come, Request):
                self._shake_hands(come)
            else:
                self._messages.append(come)
        if pieces := self.protocol.data_to_send():
            if self._outbox is not None:
                self._outbox.flush()  # so that the answer to the handshake comes first
            self._send(pieces)
        if self._messages:
            self._ahead_bytes += len(data)
            if self._ahead_bytes > _AHEAD_BYTES and not self._is_ahead:
                self._is_ahead = True
                self._pause_reading()
            if self._received is not None:
                self._received()
        self._look_at_state()

    def eof_received(self) -> None:
        """The other side says no more; the transport closes."""
        self.start()
        if not self._has_started:
            return
        self.protocol.receive_eof()
        self._send(self.protocol.data_to_send())
        self._look_at_state()

    def pause_writing(self) -> None:
        """The transport's buffer is full. Pongs go past the outbox: take in nothing that would call for more."""
        self._is_full = True
        self._pause_reading()
        if self._outbox is not None:
            self._outbox.pause()

    def resume_writing(self) -> None:
        """The transport's buffer has room again."""
        self._is_full = False
        self._resume_reading()
        if self._outbox is not None:
            self._outbox.resume()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody must wait any more: for room, for the end."""
        del exc
        if self._has_started:
            self.protocol.receive_eof()
        self._is_lost = True
        if self._deadline is not None:
            self._deadline.cancel()
        if self._closed is not None:
            self._closed.set_result(None)
        if self._outbox is not None:
            self._outbox.shut()
        self._received = None
        self._host.forget(self)

    # ── the handshake ───────────────────────────────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        """Take the first bytes, unless they have been taken, or the connection is being cut."""
        if self._has_started or self._is_lost or self.transport.is_closing():
            return
        self._has_started = True
        first, self._first = self._first, b""
        self.protocol, greeting, size = self._host.begin(self, first)
        self._incoming = Incoming(self.protocol)
        if greeting:
            self._open(greeting)
        if self._has_paused:
            self._resume_reading()
        self._take_in(first[size:])

    def _shake_hands(self, request: Request) -> None:
        self.protocol.send_response(self._host.answer(self, request))
        request.headers.clear()  # the parser keeps the request for as long as the connection lives
        pieces = self.protocol.data_to_send()
        if self.protocol.state is not State.OPEN:
            self._send(pieces)
            return
        greeting = b"".join(pieces)
        self._host.let_in(self, greeting)
        self._open(greeting)

    def _open(self, greeting: bytes) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self.handshake = None
        self.opened_at = self.heard_at
        self._greeting = greeting
        self._host.opened(self)

    # ── the rest ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _send(self, pieces: list[bytes]) -> None:
        """Write what the protocol has to say; an empty piece means that it says no more."""
        for data in pieces:
            if data:
                self.transport.write(data)
            elif self.transport.can_write_eof():
                with contextlib.suppress(OSError, RuntimeError):  # the other side may have cut the connection already
                    self.transport.write_eof()
            else:
                self.transport.close()

    def _look_at_state(self) -> None:
        """Once the other side has closed, nothing can be written; one who stays on the line is cut after a while."""
        if self._deadline is None and not self._is_lost and self.protocol.state not in (State.CONNECTING, State.OPEN):
            self._deadline = self.loop.call_later(_LINGER_S, self.transport.abort)
            if self._outbox is not None:
                self._outbox.shut()

    def _pause_reading(self) -> None:
        if not self.transport.is_closing():
            self.transport.pause_reading()

    def _resume_reading(self) -> None:
        if self.is_reading and not self.transport.is_closing():
            self.transport.resume_reading()

"""The WebSocket of one connection, as the `websockets` library keeps it, with four things added: when it was last
heard from, an outbox that learns of back-pressure, no reading from whoever doesn't read, and a close that does not wait
for a reader who isn't there."""

import asyncio
from typing import Any, Final

from websockets.asyncio.server import ServerConnection
from websockets.protocol import State

from orbital_protocol.codes import CloseCode
from orbital_relay.outbox import Outbox

_PING: Final = b"\x89\x00"
_LINGER_S: Final = 2


class Socket(ServerConnection):
    """A server connection that the relay writes to through an outbox."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.outbox: Outbox | None = None
        self.address = ""  # the client's, once its request has been read
        self.heard_at = self.loop.time()
        self._cutting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The TCP connection is there."""
        super().connection_made(transport)
        self.recv_messages.resume = self._resume_reading

    def attach(self, outbox: Outbox) -> None:
        """Write through this outbox from now on."""
        self.outbox = outbox
        self._look_at_state()

    def data_received(self, data: bytes) -> None:
        """Any received byte is a sign of life."""
        self.heard_at = self.loop.time()
        super().data_received(data)
        self._look_at_state()

    def eof_received(self) -> None:
        """The other side says no more."""
        super().eof_received()
        self._look_at_state()

    def _look_at_state(self) -> None:
        """Once the other side has closed, nothing can be written; one who stays on the line is cut after a while."""
        if self.outbox is not None and self._cutting is None and self.protocol.state is not State.OPEN:
            self.outbox.shut()
            self._cutting = self.loop.call_later(_LINGER_S, self.transport.abort)

    def pause_writing(self) -> None:
        """The transport's buffer is full. Pongs go past the outbox: take in nothing that would call for more."""
        super().pause_writing()
        if not self.transport.is_closing():
            self.transport.pause_reading()
        if self.outbox is not None:
            self.outbox.pause()

    def resume_writing(self) -> None:
        """The transport's buffer has room again."""
        super().resume_writing()
        self._resume_reading()
        if self.outbox is not None:
            self.outbox.resume()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody must wait for room any more."""
        super().connection_lost(exc)
        if self._cutting is not None:
            self._cutting.cancel()
        if self.outbox is not None:
            self.outbox.shut()

    @property
    def is_reading(self) -> bool:
        """Whether a sign of life could be noticed: not while the relay itself has paused reading."""
        return not self.recv_messages.paused and not self.paused

    def _resume_reading(self) -> None:
        if self.is_reading and not self.transport.is_closing():
            self.transport.resume_reading()

    def send_ping(self) -> None:
        """Send an empty ping; its pong counts like any other byte."""
        if self.protocol.state is State.OPEN:
            self.transport.write(_PING)

    async def finish(self, timeout_s: float, code: CloseCode) -> None:
        """Close with this code if nobody has yet, wait for the other side, at most so long, then cut the connection.

        The time also covers a reader who leaves no room for the close frame.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self.close(code, code.name.lower())
        except TimeoutError:
            self.transport.abort()
            await self.wait_closed()

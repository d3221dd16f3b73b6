"""The bounded outgoing queue of one connection: one write a tick, and a verdict on slow readers.

Frames that leave in the same tick share a WebSocket message; a message that was built for many subscribers is queued
as it is. Nothing is written while the transport's own buffer is full: what waits is counted here, against the bound.
"""

import asyncio
from typing import Final, Protocol

_BINARY_FINAL: Final = 0x82
_SHORT: Final = 126
_MEDIUM: Final = 1 << 16
_MESSAGE_BYTES: Final = 256 * 1024
_WRITE_BYTES: Final = 256 * 1024


def message(payload: bytes) -> bytes:
    """The WebSocket frame of a whole, unmasked binary message (RFC 6455, 5.2)."""
    size = len(payload)
    if size < _SHORT:
        return bytes((_BINARY_FINAL, size)) + payload
    if size < _MEDIUM:
        return bytes((_BINARY_FINAL, 126)) + size.to_bytes(2, "big") + payload
    return bytes((_BINARY_FINAL, 127)) + size.to_bytes(8, "big") + payload


class Transport(Protocol):
    """What an outbox writes to."""

    def write(self, data: bytes) -> None: ...
    def get_write_buffer_size(self) -> int: ...
    def is_closing(self) -> bool: ...


class Flusher:
    """Flushes every outbox that got something in this tick, in one callback of the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._dirty: list[Outbox] = []

    def schedule(self, outbox: "Outbox") -> None:
        """Flush this outbox at the end of the tick."""
        if not self._dirty:
            self._loop.call_soon(self._flush)
        self._dirty.append(outbox)

    def _flush(self) -> None:
        dirty, self._dirty = self._dirty, []
        dirty.reverse()
        try:
            while dirty:
                dirty.pop().flush()
        finally:
            for outbox in dirty:  # only after an exception, which is one connection's and must not hold up others
                self.schedule(outbox)


class Outbox:
    """The queue of one connection. `limit_bytes` bounds what may wait; the low mark is a quarter of it."""

    __slots__ = (
        "_drained",
        "_flusher",
        "_frames",
        "_frames_bytes",
        "_limit_bytes",
        "_messages",
        "_paused",
        "_queued_bytes",
        "_scheduled",
        "_sealed",
        "_transport",
        "_written_bytes",
    )

    def __init__(self, transport: Transport, flusher: Flusher, limit_bytes: int) -> None:
        self._transport = transport
        self._flusher = flusher
        self._limit_bytes = limit_bytes
        self._messages: list[bytes] = []  # an empty deque has half a kilobyte, and most are empty
        self._frames: list[bytes] = []  # frames that will share the next message
        self._frames_bytes = 0
        self._queued_bytes = 0
        self._written_bytes = 0
        self._paused = False
        self._scheduled = False
        self._sealed = False
        self._drained: asyncio.Event | None = None  # made when somebody waits: most connections never need it

    @property
    def waiting_bytes(self) -> int:
        """Bytes that the reader has not taken yet: here, and in the transport's buffer."""
        return self._queued_bytes + self._transport.get_write_buffer_size()

    @property
    def drained_bytes(self) -> int:
        """Bytes that have left for the kernel since the beginning; it stands still while the reader does."""
        return self._written_bytes - self._transport.get_write_buffer_size()

    @property
    def is_full(self) -> bool:
        """Whether the bound is passed: events for this reader stay in the store until it has caught up."""
        return self._queued_bytes > self._limit_bytes

    @property
    def is_low(self) -> bool:
        """Whether there is room for more that can wait: pages of a replay, signals, further requests."""
        return self._queued_bytes <= self._limit_bytes // 4

    def put_frame(self, frame: bytes) -> None:
        """Queue one encoded frame."""
        if self._sealed:
            return
        self._frames.append(frame)
        self._frames_bytes += len(frame)
        self._queued_bytes += len(frame)
        if self._frames_bytes > _MESSAGE_BYTES:
            self._close_message()
        if not self._scheduled:
            self._scheduled = True
            self._flusher.schedule(self)

    def put_message(self, data: bytes) -> None:
        """Queue a whole WebSocket message (see `message`) that others may be sent as well."""
        if self._sealed:
            return
        if self._frames:
            self._close_message()
        self._messages.append(data)
        self._queued_bytes += len(data)
        if not self._scheduled:
            self._scheduled = True
            self._flusher.schedule(self)

    async def wait_low(self) -> None:
        """Wait until there is room for more, or the connection is gone."""
        while not self.is_low and not self._transport.is_closing():
            if self._drained is None:
                self._drained = asyncio.Event()
            await self._drained.wait()

    def flush(self) -> None:
        """Write what waits, unless the transport's buffer is full."""
        self._scheduled = False
        if self._paused or self._transport.is_closing():
            return
        if self._frames:
            self._close_message()
        while self._messages and not self._paused:
            self._write_some()
        if self._drained is not None and self.is_low:
            self.release()

    def pause(self) -> None:
        """The transport's buffer is full."""
        self._paused = True

    def resume(self) -> None:
        """The transport's buffer has room again."""
        self._paused = False
        self.flush()

    def discard(self) -> None:
        """Drop what waits here: the connection is being cut."""
        self._messages.clear()
        self._frames.clear()
        self._frames_bytes = self._queued_bytes = 0

    def seal(self) -> None:
        """Hand over what waits, also to a transport that is full, and take nothing more: a close frame comes next."""
        if self._frames:
            self._close_message()
        while self._messages and not self._transport.is_closing():
            self._write_some()
        self.shut()

    def shut(self) -> None:
        """Drop what waits and take nothing more: nothing can be written any more."""
        self.discard()
        self._sealed = True
        self.release()

    def release(self) -> None:
        """Wake everybody who waits for room."""
        drained, self._drained = self._drained, None
        if drained is not None:
            drained.set()

    def _close_message(self) -> None:
        data = message(self._frames[0] if len(self._frames) == 1 else b"".join(self._frames))
        self._queued_bytes += len(data) - self._frames_bytes
        self._messages.append(data)
        self._frames.clear()
        self._frames_bytes = 0

    def _write_some(self) -> None:
        """One write of at most _WRITE_BYTES (or one message, if that is larger)."""
        messages = self._messages
        count, size = 1, len(messages[0])
        while count < len(messages) and size + len(messages[count]) <= _WRITE_BYTES:
            size += len(messages[count])
            count += 1
        data = messages[0] if count == 1 else b"".join(messages[:count])
        del messages[:count]
        self._queued_bytes -= len(data)
        self._written_bytes += len(data)
        self._transport.write(data)

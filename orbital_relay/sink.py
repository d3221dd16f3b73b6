"""Lines for standard error, written by a thread, so that whoever reads them slowly, or not at all, holds up nothing.

A pipe takes 64 KiB, and a terminal that was stopped with Ctrl-S takes nothing: the next write then waits until somebody
reads. What waits here is bounded; lines beyond that are dropped, counted, and spoken of once there is room again.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from typing import Final, Protocol

WAITING_BYTES_MAX: Final = 4 * 1024 * 1024
_CLOSE_TIMEOUT_S: Final = 1


class Sink(Protocol):
    """Where lines go."""

    def put(self, line: str) -> None: ...


class Behind:
    """A sink that never waits: a thread writes to a file descriptor what was put here.

    `on_dropped` is called by that thread, after lines have been written, with the number of those that found no room.
    """

    def __init__(self, descriptor: int, on_dropped: Callable[[int], None], max_bytes: int = WAITING_BYTES_MAX) -> None:
        self._descriptor = descriptor
        self._on_dropped = on_dropped
        self._max_bytes = max_bytes
        self._lines: list[bytes] = []
        self._bytes = 0  # of those lines, and of those that are being written
        self._dropped = 0
        self._is_closing = False
        self._changed = threading.Condition()
        # A daemon: with a reader who never reads, the process must end all the same.
        self._thread = threading.Thread(target=self._run, name="orbital-log", daemon=True)
        self._thread.start()

    def put(self, line: str) -> None:
        """Queue a line without its end; from any thread."""
        data = line.encode(errors="backslashreplace") + b"\n"
        with self._changed:
            if self._bytes + len(data) > self._max_bytes:
                self._dropped += 1
                return
            self._bytes += len(data)
            self._lines.append(data)
            if len(self._lines) == 1:
                self._changed.notify()

    def close(self) -> None:
        """Write what waits, if somebody takes it within a moment, and end the thread."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join(_CLOSE_TIMEOUT_S)

    def _run(self) -> None:
        while lines := self._next():
            data = b"".join(lines)
            self._write(data)
            with self._changed:
                self._bytes -= len(data)
                dropped, self._dropped = self._dropped, 0
            if dropped:
                self._on_dropped(dropped)

    def _next(self) -> list[bytes]:
        """What waits, once something does; nothing at the end."""
        with self._changed:
            while not self._lines and not self._is_closing:
                self._changed.wait()
            lines, self._lines = self._lines, []
            return lines

    def _write(self, data: bytes) -> None:
        """Write all of it; a full disk or a closed pipe must not stop the relay."""
        rest = memoryview(data)
        with contextlib.suppress(OSError):
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]


@contextlib.contextmanager
def behind(descriptor: int, on_dropped: Callable[[int], None]) -> Iterator[Behind]:
    """A sink for as long as the block lasts."""
    sink = Behind(descriptor, on_dropped)
    try:
        yield sink
    finally:
        sink.close()

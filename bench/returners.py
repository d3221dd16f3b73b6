"""Load generator: clients that all come back at once, authenticate, and resume their groups, over epoll.

Task: {port, requests, events, lives, at_once}: each client's `authenticate` and `subscribe` on the wire, hexadecimal,
how many events and `live` frames it must get, and how many clients may be on their way at once (0: all of them). Both
requests leave in one piece, once the handshake is answered (RFC 6455, 4.1).
Whoever is told that the relay is overloaded comes back after a second, as it was told.
Answers {"ready": true}, waits for a line, and then {seconds, latencies_us, told_to_wait}: until the last one had
everything, how long each one took, and how many had to come twice.
"""

import errno
import select
import socket
import time
from collections import deque
from typing import Final

from bench import wire
from orbital_protocol.frames import Error, Event, Live, type_of

_RECV_BYTES: Final = 1 << 16
_SILENCE_LIMIT_S: Final = 30
_WAIT_S: Final = 1


def _mark(kind: type) -> bytes:
    """What every frame of a kind contains, and no frame of another kind."""
    name = type_of(kind).encode()
    return b"\xa4type" + bytes((0xA0 | len(name),)) + name


_EVENT: Final = _mark(Event)
_LIVE: Final = _mark(Live)
_ERROR: Final = _mark(Error)
_SWITCHING: Final = b"HTTP/1.1 101 "
_OVERLAP: Final = max(len(_EVENT), len(_LIVE), len(_ERROR)) - 1


class ToldToWait(Exception):
    """The relay has too much to do."""


class Returner:
    """A client on its way back."""

    __slots__ = ("began_ns", "events", "is_in", "lives", "requests", "rest", "socket")

    def __init__(self, port: int, requests: bytes, events: int, lives: int) -> None:
        self.began_ns = time.monotonic_ns()
        self.requests = requests
        self.is_in = False
        self.events = events
        self.lives = lives
        self.rest = b""
        self.socket = socket.socket()
        self.socket.setblocking(False)
        code = self.socket.connect_ex((wire.ADDRESS, port))
        if code not in (0, errno.EINPROGRESS):
            raise OSError(code, "the relay can't be reached")

    def take(self, data: bytes) -> bool:
        """Count what came; whether that was all."""
        if not data:
            raise RuntimeError("the relay closed a connection")
        if not self.is_in:
            if not data.startswith(_SWITCHING):
                raise RuntimeError(f"the relay answered a handshake with {data[:400]!r}")
            self.is_in = True
            self.socket.sendall(self.requests)
        data = self.rest + data
        if _ERROR in data and b"overloaded" in data:
            raise ToldToWait
        if _ERROR in data:
            raise RuntimeError(f"the relay refused: {data[-400:]!r}")
        # What lies wholly within the part that is looked at twice was counted the first time.
        self.events -= data.count(_EVENT) - self.rest.count(_EVENT)
        self.lives -= data.count(_LIVE) - self.rest.count(_LIVE)
        self.rest = data[-_OVERLAP:]
        return self.events <= 0 and self.lives <= 0


class Storm:
    """All of them."""

    def __init__(self, port: int, requests: list[bytes], events: int, lives: int) -> None:
        self._port = port
        self._requests = deque(requests)
        self._events = events
        self._lives = lives
        self._returners: dict[int, Returner] = {}
        self._poll = select.epoll()
        self._buffer = bytearray(_RECV_BYTES)
        self._waiting: deque[tuple[float, bytes]] = deque()  # until when, and with what they come back
        self.latencies_us: list[float] = []
        self.told_to_wait = 0

    def run(self, at_once: int) -> float:
        """Let them come; seconds until the last one has everything."""
        count = len(self._requests)
        began = time.monotonic()
        for _ in range(at_once or count):
            self._begin()
        while len(self.latencies_us) < count:
            while self._waiting and self._waiting[0][0] <= time.monotonic():
                self._requests.append(self._waiting.popleft()[1])
                self._begin()
            ready = self._poll.poll(_WAIT_S if self._waiting else _SILENCE_LIMIT_S, 1_000)
            if not ready and not self._waiting:
                raise RuntimeError(f"{count - len(self.latencies_us)} clients never got everything")
            for number, what in ready:
                self._step(number, what)
        return time.monotonic() - began

    def _begin(self) -> None:
        if self._requests:
            returner = Returner(self._port, self._requests.popleft(), self._events, self._lives)
            number = returner.socket.fileno()
            self._returners[number] = returner
            self._poll.register(number, select.EPOLLOUT)

    def _step(self, number: int, what: int) -> None:
        returner = self._returners[number]
        if what & select.EPOLLOUT:
            returner.socket.sendall(wire.HANDSHAKE)
            self._poll.modify(number, select.EPOLLIN)
            return
        size = returner.socket.recv_into(self._buffer)
        if returner.events <= 0 and returner.lives <= 0:
            return  # has everything already: a ping, or what others post
        try:
            is_done = returner.take(bytes(self._buffer[:size]))
        except ToldToWait:
            self.told_to_wait += 1
            self._waiting.append((time.monotonic() + _WAIT_S, returner.requests))
            del self._returners[number]
            returner.socket.close()
            return
        if is_done:
            self.latencies_us.append((time.monotonic_ns() - returner.began_ns) / 1000)
            self._begin()


def main() -> None:
    """Carry out one task."""
    task = wire.next_task()
    requests = [bytes.fromhex(request) for request in task["requests"]]
    storm = Storm(task["port"], requests, task["events"], task["lives"])
    wire.answer(ready=True)
    wire.next_task()
    seconds = storm.run(task["at_once"])
    wire.answer(seconds=seconds, latencies_us=storm.latencies_us, told_to_wait=storm.told_to_wait)
    wire.next_task()


if __name__ == "__main__":
    main()

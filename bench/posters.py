"""Load generator: connections that each keep a number of posts in flight, as prebuilt frames over epoll.

Task: {port, tokens, places, body_bytes, in_flight, seconds, frames_max, with_times}. Answers: {"ready": true}, waits
for a line, and then {acked, seconds, first_sent_ns, sent_ns: {seq: time}}; the times only if asked for.
"""

import select
import socket
import time
from itertools import cycle, islice

from bench import wire
from bench.people import Place

_RECV_BYTES = 1 << 18
_SILENCE_LIMIT_S = 15


class Poster:
    """One connection."""

    __slots__ = ("acked", "cut", "socket")

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.cut = b""
        self.acked = 0


class Load:
    """All connections, and the frames that are still to be posted."""

    def __init__(self, sockets: list[socket.socket], frames: list[bytes], *, with_times: bool) -> None:
        self._frames = frames
        self._next = 0
        self._with_times = with_times
        self._sent_ns = [0] * len(frames) if with_times else []
        self._posters = {connection.fileno(): Poster(connection) for connection in sockets}
        self._poll = select.epoll()
        for number in self._posters:
            self._poll.register(number, select.EPOLLIN)
        self.acked = 0
        self.sent_by_seq: dict[int, int] = {}

    @property
    def posted(self) -> int:
        """How many posts have been sent."""
        return self._next

    def run(self, in_flight: int, seconds: float) -> tuple[int, float, int]:
        """Post for so long: the acknowledgements in that time, the time, and when it began. Then wait for the rest."""
        for poster in self._posters.values():
            poster.socket.setblocking(True)  # sends are small, and the relay reads: they never wait for long
        began_ns = time.monotonic_ns()
        deadline = began_ns + int(seconds * 1e9)
        for poster in self._posters.values():
            self._post(poster, in_flight)
        while time.monotonic_ns() < deadline and self._next < len(self._frames):
            self._step(posting=True)
        acked, took = self.acked, (time.monotonic_ns() - began_ns) / 1e9
        while self.acked < self._next:
            self._step(posting=False)
        return acked, took, began_ns

    def _step(self, *, posting: bool) -> None:
        ready = self._poll.poll(_SILENCE_LIMIT_S)
        if not ready:
            raise RuntimeError(f"{self._next - self.acked} posts were never acknowledged")
        for number, _ in ready:
            poster = self._posters[number]
            count = self._take(poster, poster.socket.recv(_RECV_BYTES))
            self.acked += count
            if posting and count:
                self._post(poster, count)

    def _post(self, poster: Poster, count: int) -> None:
        first, self._next = self._next, min(self._next + count, len(self._frames))
        if self._with_times:
            now = time.monotonic_ns()
            for number in range(first, self._next):
                self._sent_ns[number] = now
        poster.socket.sendall(b"".join(self._frames[first : self._next]))

    def _take(self, poster: Poster, data: bytes) -> int:
        """Count acknowledgements; one that is cut is counted with its rest."""
        if not data:
            raise RuntimeError("the relay closed a connection")
        if wire.ERROR in data:
            raise RuntimeError(f"the relay refused a post: {data[:400]!r}")
        data = poster.cut + data
        if self._with_times:
            return self._read(poster, data)
        poster.cut = data[-(len(wire.ACK) - 1) :]
        return data.count(wire.ACK)

    def _read(self, poster: Poster, data: bytes) -> int:
        """The same, noting which seq each post got."""
        count = position = 0
        while (at := data.find(wire.ACK, position)) >= 0 and at + wire.READABLE_BYTES <= len(data):
            request_id, seq = wire.read_ack(data, at)
            self.sent_by_seq[seq] = self._sent_ns[request_id - wire.FIRST_REQUEST_ID]
            count += 1
            position = at + wire.READABLE_BYTES
        poster.cut = data[at:] if at >= 0 else data[max(position, len(data) - len(wire.ACK) + 1) :]
        return count


def main() -> None:
    """Carry out one task."""
    task = wire.next_task()
    sockets = [connection for connection, _ in wire.come_in(task["port"], task["tokens"])]
    places = cycle(Place.from_json(place) for place in task["places"])
    frames = [
        wire.reply(wire.FIRST_REQUEST_ID + number, place, task["body_bytes"])
        for number, place in enumerate(islice(places, task["frames_max"]))
    ]
    load = Load(sockets, frames, with_times=task["with_times"])
    wire.answer(ready=True)
    wire.next_task()
    acked, seconds, began_ns = load.run(task["in_flight"], task["seconds"])
    wire.answer(
        acked=acked, posted=load.posted, seconds=seconds, first_sent_ns=began_ns, sent_ns=list(load.sent_by_seq.items())
    )


if __name__ == "__main__":
    main()

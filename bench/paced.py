"""Load generator: posts at a steady rate over some connections, with a listener in each group, over epoll.

Task: {port, tokens, places, body_bytes, rate, seconds, warm_up_s}. The first token listens, once in each group, the
others post. A post is due at its time whether those before are answered or not, and its latency counts from then.
Answers {"ready": true}, waits for a line, and then {acked_us, delivered_us, posted}, without those of the warm-up.
"""

import select
import socket
import time
from itertools import cycle
from typing import Final

from bench import wire
from bench.people import Place

_RECV_BYTES: Final = 1 << 18
_SILENCE_LIMIT_S: Final = 15
_TICK_S: Final = 0.001
_IN_FLIGHT_MAX: Final = 40_000


class Pace:
    """The posts, when they were due, and when their answers and events came."""

    def __init__(self, posters: list[socket.socket], frames: list[tuple[bytes, int]]) -> None:
        self._frames = frames
        self._posters = cycle(posters)
        self._cuts = {poster.fileno(): b"" for poster in posters}
        self._sockets = {poster.fileno(): poster for poster in posters}
        self._followers: dict[int, tuple[wire.Follower, int]] = {}
        self._poll = select.epoll()
        for number in self._sockets:
            self._poll.register(number, select.EPOLLIN)
        self._due_ns: list[int] = []
        self._by_place: dict[tuple[int, int], int] = {}  # place and seq: which post
        self._came_ns: dict[tuple[int, int], int] = {}  # place and seq: when the listener had it
        self._acked_ns: dict[int, int] = {}

    def listen(self, place: int, follower: wire.Follower) -> None:
        """Follow a place's events."""
        number = follower.socket.fileno()
        self._followers[number] = follower, place
        self._poll.register(number, select.EPOLLIN)

    def run(self, rate: float) -> None:
        """Post everything at this rate, and wait until all of it is acknowledged and delivered."""
        began_ns = time.monotonic_ns()
        self._due_ns = [began_ns + int(number * 1e9 / rate) for number in range(len(self._frames))]
        sent = 0
        heard_ns = began_ns
        while len(self._acked_ns) < len(self._frames) or len(self._came_ns) < len(self._frames):
            now_ns = time.monotonic_ns()
            while sent < len(self._frames) and self._due_ns[sent] <= now_ns:
                next(self._posters).sendall(self._frames[sent][0])
                sent += 1
            if sent - len(self._acked_ns) > _IN_FLIGHT_MAX:
                raise RuntimeError("the relay can't keep up with half of what it took at its fastest")
            ready = self._poll.poll(_TICK_S, 1_000)
            heard_ns = now_ns if ready else heard_ns
            if now_ns - heard_ns > _SILENCE_LIMIT_S * 1e9:
                raise RuntimeError(f"{sent - len(self._acked_ns)} posts were never acknowledged")
            for number, _ in ready:
                self._take(number)

    def latencies_us(self, first: int) -> tuple[list[float], list[float]]:
        """How long acknowledgements and deliveries took, from this post on."""
        acked = [(self._acked_ns[n] - self._due_ns[n]) / 1000 for n in range(first, len(self._frames))]
        delivered = [
            (came_ns - self._due_ns[post]) / 1000
            for key, came_ns in self._came_ns.items()
            if (post := self._by_place[key]) >= first
        ]
        return acked, delivered

    def _take(self, number: int) -> None:
        poster = self._sockets.get(number)
        if poster is None:
            self._follow(*self._followers[number])
            return
        data = poster.recv(_RECV_BYTES)
        if not data or wire.ERROR in data:
            raise RuntimeError(f"a post was refused: {data[:400]!r}")
        now_ns = time.monotonic_ns()
        data = self._cuts[number] + data
        position = 0
        while (at := data.find(wire.ACK, position)) >= 0 and at + wire.READABLE_BYTES <= len(data):
            request_id, seq = wire.read_ack(data, at)
            post = request_id - wire.FIRST_REQUEST_ID
            self._acked_ns[post] = now_ns
            self._by_place[self._frames[post][1], seq] = post
            position = at + wire.READABLE_BYTES
        self._cuts[number] = data[at:] if at >= 0 else data[max(position, len(data) - len(wire.ACK) + 1) :]

    def _follow(self, follower: wire.Follower, place: int) -> None:
        data = follower.socket.recv(_RECV_BYTES)
        if not data:
            raise RuntimeError("the relay closed a listener's connection")
        before = follower.seq
        follower.take(data, len(data))
        now_ns = time.monotonic_ns()
        for seq in range(before + 1, follower.seq + 1):
            self._came_ns[place, seq] = now_ns


def main() -> None:
    """Carry out one task."""
    task = wire.next_task()
    places = [Place.from_json(place) for place in task["places"]]
    posters = [connection for connection, _ in wire.come_in(task["port"], task["tokens"][1:])]
    count = int(task["rate"] * (task["seconds"] + task["warm_up_s"]))
    frames = [
        (wire.reply(wire.FIRST_REQUEST_ID + number, place, task["body_bytes"]), at)
        for number, (at, place) in zip(range(count), cycle(enumerate(places)), strict=False)
    ]
    pace = Pace(posters, frames)
    shape = wire.EventShape(task["body_bytes"])
    for number, place in enumerate(places):
        [(connection, seq)] = wire.come_in(task["port"], task["tokens"][:1], place.group_id)
        pace.listen(number, wire.Follower(connection, seq, shape))
    wire.answer(ready=True)
    wire.next_task()
    pace.run(task["rate"])
    acked_us, delivered_us = pace.latencies_us(int(task["rate"] * task["warm_up_s"]))
    wire.answer(acked_us=acked_us, delivered_us=delivered_us, posted=count)


if __name__ == "__main__":
    main()

"""Load generator: one post at a time, each timed until the last member of the group has its event.

Task: {port, tokens, place, body_bytes, seconds, warm_up}. The first token posts, all of them listen. Answers
{"delivered_us": […], "acked_us": […]}.
"""

import select
import socket
import time
from typing import Final

from bench import wire
from bench.people import Place

_RECV_BYTES: Final = 1 << 16
_SILENCE_LIMIT_S: Final = 15


class Room:
    """A poster, and the members who listen."""

    def __init__(self, poster: socket.socket, followers: list[wire.Follower], shape: wire.EventShape) -> None:
        self._poster = poster
        self._followers = {follower.socket.fileno(): follower for follower in followers}
        self._seq = followers[0].seq
        self._poll = select.epoll()
        self._poll.register(poster.fileno(), select.EPOLLIN)
        for number in self._followers:
            self._poll.register(number, select.EPOLLIN)
        self._buffer = bytearray(_RECV_BYTES)
        self._shape = shape

    def post(self, frame: bytes) -> tuple[int, int]:
        """Send a post; nanoseconds until it is acknowledged, and until the last member has it."""
        self._seq += 1
        event_bytes, seq_at, seq_bytes = self._shape.message_of(self._seq)
        seq_end = seq_at + len(seq_bytes)
        buffer = self._buffer
        behind = len(self._followers)
        acked_ns = delivered_ns = 0
        began_ns = time.monotonic_ns()
        self._poster.sendall(frame)
        while behind or not acked_ns:
            ready = self._poll.poll(_SILENCE_LIMIT_S, len(self._followers) + 1)
            if not ready:
                raise RuntimeError(f"{behind} members never got event {self._seq}")
            for number, _ in ready:
                follower = self._followers.get(number)
                if follower is None:
                    acked_ns = acked_ns or self._take_ack()
                    continue
                size = follower.socket.recv_into(buffer)
                if size == event_bytes and buffer[seq_at:seq_end] == seq_bytes and follower.is_between_messages:
                    follower.seq = self._seq  # the event alone and whole, as nearly always
                else:
                    follower.take(buffer, size)
                behind -= follower.seq == self._seq
            if not behind and not delivered_ns:
                delivered_ns = time.monotonic_ns()
        return acked_ns - began_ns, delivered_ns - began_ns

    def _take_ack(self) -> int:
        """When the acknowledgement came; 0 if it was something else (a ping)."""
        data = self._poster.recv(_RECV_BYTES)
        if wire.ACK in data:
            return time.monotonic_ns()
        if not data or wire.ERROR in data:
            raise RuntimeError(f"the post was refused: {data[:400]!r}")
        return 0


def main() -> None:
    """Carry out one task."""
    task = wire.next_task()
    place = Place.from_json(task["place"])
    shape = wire.EventShape(task["body_bytes"])
    [(poster, _)] = wire.come_in(task["port"], task["tokens"][:1])
    members = wire.come_in(task["port"], task["tokens"], place.group_id)
    room = Room(poster, [wire.Follower(connection, seq, shape) for connection, seq in members], shape)
    delivered_us: list[float] = []
    acked_us: list[float] = []
    request_id = wire.FIRST_REQUEST_ID
    for _ in range(task["warm_up"]):
        request_id += 1
        room.post(wire.reply(request_id, place, task["body_bytes"]))
    deadline = time.monotonic() + task["seconds"]
    while time.monotonic() < deadline:
        request_id += 1
        acked_ns, delivered_ns = room.post(wire.reply(request_id, place, task["body_bytes"]))
        acked_us.append(acked_ns / 1000)
        delivered_us.append(delivered_ns / 1000)
    wire.answer(delivered_us=delivered_us, acked_us=acked_us)


if __name__ == "__main__":
    main()

"""Load generator: members of one group who read what comes, over epoll.

Task: {port, tokens, group_id, body_bytes, sampled}. Answers {"ready": true} once every member is live. After the line
{"until": seq} it waits until every member has come to that seq without a gap, and answers {last_ns, received_bytes,
arrivals}: for every `sampled`-th member, when it had come how far.

Task: {port, members} instead: connect to the yardstick, read until it ends, answer {received_bytes}.
"""

import select
import socket
import sys
import time
from typing import Any, Final

from bench import wire

_RECV_BYTES: Final = 1 << 18
_SILENCE_LIMIT_S: Final = 30


def follow(task: dict[str, Any]) -> None:
    """Read a group's events."""
    shape = wire.EventShape(task["body_bytes"])
    arrived = wire.come_in(task["port"], task["tokens"], bytes.fromhex(task["group_id"]))
    followers = {connection.fileno(): wire.Follower(connection, seq, shape) for connection, seq in arrived}
    arrivals: dict[int, list[tuple[int, int]]] = {number: [] for number in list(followers)[:: task["sampled"]]}
    poll = select.epoll()
    for number in followers:
        poll.register(number, select.EPOLLIN)
    poll.register(sys.stdin.fileno(), select.EPOLLIN)
    wire.answer(ready=True)
    buffer = bytearray(_RECV_BYTES)
    received = last_ns = 0
    until: int | None = None
    behind = len(followers)
    while behind:
        ready = poll.poll(_SILENCE_LIMIT_S, len(followers))
        if not ready and until is not None:
            raise RuntimeError(f"{behind} members never got to {until}")
        for number, _ in ready:
            if number == sys.stdin.fileno():
                until = wire.next_task()["until"]
                poll.unregister(number)
                behind = sum(follower.seq < until for follower in followers.values())
                continue
            follower = followers[number]
            size = follower.socket.recv_into(buffer)
            if not size:
                raise RuntimeError(f"the relay closed a member's connection at {follower.seq}")
            before = follower.seq
            follower.take(buffer, size)
            received += size
            if follower.seq == before:
                continue
            if number in arrivals:
                arrivals[number].append((time.monotonic_ns(), follower.seq))
            if until is not None and follower.seq >= until > before:
                behind -= 1
        last_ns = time.monotonic_ns()
    wire.answer(last_ns=last_ns, received_bytes=received, arrivals=list(arrivals.values()))


def drain(task: dict[str, Any]) -> None:
    """Read the yardstick's bytes, looking at none of them."""
    sockets = {}
    poll = select.epoll()
    for _ in range(task["members"]):
        connection = socket.create_connection((wire.ADDRESS, task["port"]))
        connection.setblocking(False)
        sockets[connection.fileno()] = connection
        poll.register(connection.fileno(), select.EPOLLIN)
    buffer = bytearray(_RECV_BYTES)
    received = 0
    while sockets:
        for number, _ in poll.poll(_SILENCE_LIMIT_S, task["members"]):
            size = sockets[number].recv_into(buffer)
            received += size
            if not size:
                poll.unregister(number)
                sockets.pop(number).close()
    wire.answer(received_bytes=received)


def main() -> None:
    """Carry out one task."""
    task = wire.next_task()
    if "tokens" in task:
        follow(task)
    else:
        drain(task)


if __name__ == "__main__":
    main()

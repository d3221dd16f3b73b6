"""Load generator: somebody who posts one reply after the other, each when the one before is acknowledged.

Task: {port, token, place, body_bytes, pause_s}. Answers {"ready": true} after the first few, goes on until it gets a
line, and answers {acked_us}: how long each one took.
"""

import select
import sys
import time
from typing import Final

from bench import wire
from bench.people import Place

_RECV_BYTES: Final = 1 << 16
_WARM_UP: Final = 20
_SILENCE_LIMIT_S: Final = 15


def main() -> None:
    """Carry out one task."""
    task = wire.next_task()
    place = Place.from_json(task["place"])
    [(connection, _)] = wire.come_in(task["port"], [task["token"]])
    connection.settimeout(_SILENCE_LIMIT_S)
    acked_us: list[float] = []
    number = wire.FIRST_REQUEST_ID
    while not select.select([sys.stdin], [], [], task["pause_s"])[0]:
        number += 1
        frame = wire.reply(number, place, task["body_bytes"])
        began_ns = time.monotonic_ns()
        connection.sendall(frame)
        data = b""
        while wire.ACK not in data:
            data += connection.recv(_RECV_BYTES)
            if wire.ERROR in data:
                raise RuntimeError(f"the relay refused a post: {data[:400]!r}")
        acked_us.append((time.monotonic_ns() - began_ns) / 1000)
        if number == wire.FIRST_REQUEST_ID + _WARM_UP:
            acked_us.clear()
            wire.answer(ready=True)
    wire.next_task()
    wire.answer(acked_us=acked_us)


if __name__ == "__main__":
    main()

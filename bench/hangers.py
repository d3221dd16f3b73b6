"""Load generator: uploads to a store that doesn't answer. Each sends a part, waits to be refused, and begins again when
the relay says so.

Task: {port, tokens, group_id, thread_id}. Answers {"ready": true} when each has sent its first part, and goes on until
it is ended.
"""

import threading
import time

from bench import wire
from bench.mover import Connection
from bench.people import Place, new_id
from orbital_protocol import codec, frames
from orbital_protocol.frames import Error, MediaBeginOk

_PART_BYTES = 5 * 1024 * 1024


def upload_forever(connection: Connection, place: Place, started: threading.Barrier) -> None:
    """Send the same part again and again."""
    media_id, zeros = new_id(), memoryview(bytes(_PART_BYTES))
    is_first = True
    while True:
        begun = connection.ask(
            frames.MediaBegin(
                id=1,
                group_id=place.group_id,
                thread_id=place.thread_id,
                media_id=media_id,
                size_bytes=2 * _PART_BYTES,
                encryption_iv=bytes(12),
            ),
            MediaBeginOk,
        )
        starts = range(0, _PART_BYTES, begun.chunk_bytes)
        for number, start in enumerate(starts, start=2):
            connection.send_chunk(number, media_id, begun.generation, start, zeros[: begun.chunk_bytes])
        if is_first:
            started.wait()
            is_first = False
        heard, wait_ms = 0, 0
        while heard < len(starts):
            for raw in codec.split(connection.message()):
                heard += 1
                if isinstance(error := codec.decode_push(raw), Error):
                    wait_ms = max(wait_ms, error.retry_after_ms or 0)
        time.sleep(wait_ms / 1000)


def main() -> None:
    """Keep at it."""
    task = wire.next_task()
    place = Place.from_json(task)
    started = threading.Barrier(len(task["tokens"]) + 1)
    for token in task["tokens"]:
        connection = Connection(task["port"], token)
        threading.Thread(target=upload_forever, args=(connection, place, started), daemon=True).start()
    started.wait()
    wire.answer(ready=True)
    wire.next_task()


if __name__ == "__main__":
    main()

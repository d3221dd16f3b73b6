"""Load generator: one file up to a relay or down from it, over one connection, as frames built around the file's bytes.

Task: {port, token, group_id, thread_id, path, chunk_bytes}, then a line for each transfer: {"up": media id} sends the
file at `path`, {"down": media id, "size": bytes, "into": path} writes one. Answers: {"ready": true}, then
{"seconds": …} for each, from the first request to the commit's answer, or until the disk has the file.
"""

import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench import wire
from bench.people import Place
from orbital_protocol import codec, frames
from orbital_protocol.frames import Error, MediaBeginOk, MediaChunkOk, MediaReadOk, Ok, PostOk, Request
from orbital_protocol.media import root_of, segment_digests

_READS_AT_ONCE = 4
_SYNCED_BYTES = 16 << 20
_RECV_BYTES = 1 << 20
_BUFFER_BYTES = 4 << 20
_MEDIUM = 126  # RFC 6455, 5.2
_EMPTY = b"\xc4\x00"
_BIN_32 = b"\xc6"


class Connection:
    """Requests out, answers in, over a blocking socket."""

    def __init__(self, port: int, token: str) -> None:
        self._socket = wire.Newcomer(port, token).come_in()
        self._socket.setblocking(True)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            self._socket.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)
        self._reader = self._socket.makefile("rb", buffering=_RECV_BYTES)

    def send(self, request: Request) -> None:
        """Send a small request."""
        self._socket.sendall(wire.masked(codec.encode(request)))

    def send_chunk(self, request_id: int, media_id: bytes, generation: int, offset: int, data: memoryview) -> None:
        """Send a chunk, without copying its bytes: they are the last field of the frame."""
        frame = codec.encode(
            frames.MediaChunk(id=request_id, media_id=media_id, generation=generation, offset=offset, data=b"")
        )
        head = frame.removesuffix(_EMPTY) + _BIN_32 + len(data).to_bytes(4, "big")
        parts = [memoryview(wire.masked_head(len(head) + len(data)) + head), data]
        while parts:
            sent = self._socket.sendmsg(parts)
            while parts and sent >= len(parts[0]):
                sent -= len(parts.pop(0))
            if parts and sent:
                parts[0] = parts[0][sent:]

    def message(self) -> bytes:
        """The next message, whole; pings are answered."""
        while True:
            first, length = self._reader.read(2)
            if length >= _MEDIUM:
                length = int.from_bytes(self._reader.read(2 if length == _MEDIUM else 8), "big")
            payload: bytes = self._reader.read(length)
            if first != wire.PING:
                return payload
            self._socket.sendall(wire.PONG_FRAME)

    def answer(self, kind: type[Ok]) -> Any:
        """The next answer, which must be the only frame of its message."""
        raw = self.message()
        name, _ = codec.frame_head(raw)
        if name == frames.type_of(Error):
            raise RuntimeError(f"the relay refused: {codec.decode_push(raw)}")
        return codec.decode_answer(raw, kind)

    def ask(self, request: Request, kind: type[Ok]) -> Any:
        """Send a request and wait for its answer."""
        self.send(request)
        return self.answer(kind)


def send_file(connection: Connection, place: Place, media_id: bytes, data: memoryview, digests: list[bytes]) -> None:
    """Upload a file and commit it. A thread hears the acknowledgements."""
    begun: MediaBeginOk = connection.ask(
        frames.MediaBegin(
            id=wire.FIRST_REQUEST_ID,
            group_id=place.group_id,
            thread_id=place.thread_id,
            media_id=media_id,
            size_bytes=len(data),
            encryption_iv=bytes(12),
        ),
        MediaBeginOk,
    )
    starts = range(0, len(data), begun.chunk_bytes)
    window = threading.Semaphore(begun.window)
    failures: list[Exception] = []

    def hear() -> None:
        try:
            heard = 0
            while heard < len(starts):
                for raw in codec.split(connection.message()):
                    codec.decode_answer(raw, MediaChunkOk)
                    heard += 1
                    window.release()
        except Exception as error:
            failures.append(error)
            window.release(len(starts))

    hearing = threading.Thread(target=hear)
    hearing.start()
    for number, start in enumerate(starts):
        window.acquire()
        if failures:
            break
        piece = data[start : start + begun.chunk_bytes]
        connection.send_chunk(wire.FIRST_REQUEST_ID + 1 + number, media_id, begun.generation, start, piece)
    hearing.join()
    if failures:
        raise failures[0]
    commit = frames.MediaCommit(
        id=1, media_id=media_id, key_epoch=1, encrypted_metadata=b"metadata", root=root_of(digests)
    )
    connection.ask(commit, PostOk)


def fetch_file(connection: Connection, media_id: bytes, size: int, chunk_bytes: int, path: Path) -> None:
    """Download a file; it is durable when this returns."""
    starts = list(range(0, size, chunk_bytes))

    def read(start: int) -> None:
        connection.send(
            frames.MediaRead(
                id=wire.FIRST_REQUEST_ID + start // chunk_bytes, media_id=media_id, offset=start, length=chunk_bytes
            )
        )

    for start in starts[:_READS_AT_ONCE]:
        read(start)
    asked = _READS_AT_ONCE
    got = 0
    with path.open("wb", buffering=0) as file, ThreadPoolExecutor(1) as syncing:
        while got < size:
            for raw in codec.split(connection.message()):
                if asked < len(starts):
                    read(starts[asked])
                    asked += 1
                answer = codec.decode_answer(raw, MediaReadOk)
                if not isinstance(answer, MediaReadOk):
                    raise TypeError("the relay answered something else")
                file.write(answer.data)
                got += len(answer.data)
                if not got % _SYNCED_BYTES:
                    syncing.submit(os.fdatasync, file.fileno())  # the disk needn't wait for the last byte
        syncing.submit(os.fsync, file.fileno()).result()


def main() -> None:
    """Move files as told, until there is nothing more to do."""
    task = wire.next_task()
    path, chunk_bytes = Path(task["path"]), task["chunk_bytes"]
    place = Place.from_json(task)
    connection = Connection(task["port"], task["token"])
    data = memoryview(path.read_bytes())
    digests = [segment_digests(data)]  # a client makes them while it encrypts, which isn't measured
    wire.answer(ready=True)
    while order := wire.next_task():
        started = time.perf_counter()
        if "up" in order:
            send_file(connection, place, bytes.fromhex(order["up"]), data, digests)
        else:
            fetch_file(connection, bytes.fromhex(order["down"]), order["size"], chunk_bytes, Path(order["into"]))
        wire.answer(seconds=time.perf_counter() - started)


if __name__ == "__main__":
    main()

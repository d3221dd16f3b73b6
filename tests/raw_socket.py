"""A WebSocket client that does only what a test tells it: it answers no ping and no close, and reads when asked to.

async with raw_socket(relay.port) as raw:
    raw.send(codec.encode(request))
    opcode, payload = await raw.receive()
"""

import asyncio
import base64
import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

from orbital_protocol import SUBPROTOCOL, codec, frames
from orbital_protocol.frames import REQUESTS, Authenticate, Error, Ok, Push, Request

LIMIT_S = 15
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
_RECEIVE_BUFFER_BYTES = 16 * 1024
P = TypeVar("P", bound=Push)


def frame(payload: bytes, opcode: int = BINARY, *, final: bool = True) -> bytes:
    """A masked WebSocket frame; the mask is zeros, so the payload is seen as it is."""
    head = bytes((opcode | (0x80 if final else 0),))
    size = len(payload)
    if size < 126:
        head += bytes((0x80 | size,))
    elif size < 65536:
        head += bytes((0x80 | 126,)) + size.to_bytes(2, "big")
    else:
        head += bytes((0x80 | 127,)) + size.to_bytes(8, "big")
    return head + bytes(4) + payload


class RawSocket:
    """One connection. Nothing is read unless `receive` (or what calls it) is awaited; little waits on this side."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer
        self.pushes: list[Push] = []
        self.errors: list[Error] = []
        self.pings = 0

    def send(self, payload: bytes, opcode: int = BINARY, *, final: bool = True) -> None:
        """Send one WebSocket frame."""
        self.writer.write(frame(payload, opcode, final=final))

    async def flood(self, data: bytes, *, limit_s: float = LIMIT_S) -> int:
        """Send raw bytes as far as the other side takes them; how many were left when it took no more for a while."""
        try:
            async with asyncio.timeout(limit_s):
                self.writer.write(data)
                await self.writer.drain()
        except (TimeoutError, OSError):
            pass
        return self.writer.transport.get_write_buffer_size()

    async def receive(self) -> tuple[int, bytes]:
        """The next WebSocket frame: opcode and payload. Raise asyncio.IncompleteReadError or OSError at the end."""
        async with asyncio.timeout(LIMIT_S):
            head = await self._reader.readexactly(2)
            size = head[1]
            if size >= 126:
                size = int.from_bytes(await self._reader.readexactly(2 if size == 126 else 8), "big")
            return head[0] & 0x0F, await self._reader.readexactly(size)

    async def take(self) -> None:
        """Take in one WebSocket frame of whatever comes."""
        self._take(*await self.receive())

    async def close_code(self) -> int | None:
        """Read until the end: the code of the close frame, None where the connection is cut without one."""
        try:
            while True:
                opcode, payload = await self.receive()
                if opcode == CLOSE:
                    return int.from_bytes(payload[:2], "big")
                self._take(opcode, payload)
        except (asyncio.IncompleteReadError, OSError):
            return None

    async def rest(self) -> bytes:
        """Everything that still comes, until the connection ends."""
        async with asyncio.timeout(LIMIT_S):
            try:
                return await self._reader.read()
            except OSError:
                return b""

    async def hear(self, kind: type[P]) -> P:
        """Read until a push of this kind comes."""
        while True:
            for number, push in enumerate(self.pushes):
                if isinstance(push, kind):
                    del self.pushes[number]
                    return push
            await self.take()

    async def ask(self, request: Request) -> Ok:
        """Send a request and read until its answer comes; raise AssertionError for an error."""
        self.send(codec.encode(request))
        return await self.answer(request)

    async def answer(self, request: Request) -> Ok:
        """Read until the answer to a request comes that the test has sent itself."""
        answers: list[Ok] = []
        while not answers:
            opcode, payload = await self.receive()
            answers = self._take(opcode, payload, request)
        return answers[0]

    def _take(self, opcode: int, payload: bytes, request: Request | None = None) -> list[Ok]:
        """Sort what a message holds into pushes and errors; return the answers to the request."""
        answers: list[Ok] = []
        if opcode == PING:
            self.pings += 1
            return answers
        if opcode == PONG:
            return answers
        assert opcode == BINARY, opcode
        for raw in codec.split(payload):
            kind, request_id = codec.frame_head(raw)
            if kind == "ok":
                if request is not None and request_id == request.id:
                    answers.append(codec.decode_answer(raw, REQUESTS[type(request)]))
                continue
            push = codec.decode_push(raw)
            if isinstance(push, Error):
                assert request is None or push.id != request.id, push
                self.errors.append(push)
            elif push is not None:
                self.pushes.append(push)
        return answers


async def handshake(
    port: int, *, headers: Sequence[str] = (), subprotocols: str | None = SUBPROTOCOL
) -> tuple[int, asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect and ask for a WebSocket: the HTTP status, and the streams. Raise OSError where the relay hangs up."""
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
    raw.setblocking(False)
    await asyncio.get_running_loop().sock_connect(raw, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=raw, limit=_RECEIVE_BUFFER_BYTES)
    lines = [
        "GET / HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
        "Sec-WebSocket-Version: 13",
        *([] if subprotocols is None else [f"Sec-WebSocket-Protocol: {subprotocols}"]),
        *headers,
    ]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    try:
        async with asyncio.timeout(LIMIT_S):
            head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, OSError) as error:
        writer.transport.abort()
        raise ConnectionError("the relay hung up") from error
    return int(head.split(b" ", 2)[1]), reader, writer


@asynccontextmanager
async def raw_socket(
    port: int,
    token: str | None = None,
    *,
    headers: Sequence[str] = (),
    subprotocols: str | None = SUBPROTOCOL,
) -> AsyncIterator[RawSocket]:
    """Connect, and authenticate where a token is given."""
    status, reader, writer = await handshake(port, headers=headers, subprotocols=subprotocols)
    raw = RawSocket(reader, writer)
    try:
        assert status == 101, status
        if subprotocols == SUBPROTOCOL:
            await raw.hear(frames.Hello)
        if token is not None:
            await raw.ask(Authenticate(id=0, access_token=token))
        yield raw
    finally:
        writer.transport.abort()

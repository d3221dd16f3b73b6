"""A network between a relay and its PostgreSQL that tests can break.

async with proxied(dsn) as proxy:
    await connect(proxy.dsn, …)
    proxy.blacken()
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, urlsplit, urlunsplit

NOTIFICATION = b"A"


@dataclass
class Pipe:
    """One connection. What comes while its way is black is swallowed; both ends stay open."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    black_up: bool = False
    black_down: bool = False
    application: str = ""  # the name that the client gave itself
    dropped: frozenset[bytes] = frozenset()  # types of messages of the server that are swallowed
    swallowed: asyncio.Event = field(default_factory=asyncio.Event)

    def cut(self) -> None:
        """Reset both ends."""
        self.client.transport.abort()
        self.server.transport.abort()


class Proxy:
    """Accepts PostgreSQL connections on loopback and passes them on to a server's Unix socket."""

    def __init__(self, dsn: str) -> None:
        parts = urlsplit(dsn)
        query = parse_qs(parts.query)
        self._socket = Path(query["host"][0]) / f".s.PGSQL.{query['port'][0]}"
        self._user, self._path = parts.username, parts.path
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0
        self.pipes: list[Pipe] = []
        self.accepted = 0
        self.changed = asyncio.Condition()

    @property
    def dsn(self) -> str:
        """The server's database, through here."""
        return urlunsplit(("postgresql", f"{self._user}@127.0.0.1:{self.port}", self._path, "sslmode=disable", ""))

    async def start(self) -> None:
        """Accept connections (again, on the same port)."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Refuse connections and reset those there are."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for pipe in tuple(self.pipes):
            pipe.cut()
        while self._tasks:
            await asyncio.wait(tuple(self._tasks))

    def blacken(self) -> None:
        """Swallow everything of the connections there are now; new ones are let through."""
        for pipe in self.pipes:
            pipe.black_up = pipe.black_down = True

    async def accepts(self, count: int, *, limit_s: float = 15) -> None:
        """Wait until so many connections have been accepted since the beginning."""
        async with asyncio.timeout(limit_s), self.changed:
            await self.changed.wait_for(lambda: self.accepted >= count)

    async def _accept(self, client_reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        server_reader, server = await asyncio.open_unix_connection(str(self._socket))
        pipe = Pipe(client, server)
        self.pipes.append(pipe)
        self.accepted += 1
        async with self.changed:
            self.changed.notify_all()
        for work in (self._upstream(pipe, client_reader), self._downstream(pipe, server_reader)):
            task = asyncio.create_task(work, name="proxy")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _upstream(self, pipe: Pipe, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if not pipe.application:
                    pipe.application = _application_in(data)
                if not pipe.black_up:
                    pipe.server.write(data)
                    await pipe.server.drain()
        self._close(pipe)

    async def _downstream(self, pipe: Pipe, reader: asyncio.StreamReader) -> None:
        """Message by message: a byte that says what it is, and the length of the rest."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readexactly(5)
                body = await reader.readexactly(int.from_bytes(head[1:], "big") - 4)
                if pipe.black_down or head[:1] in pipe.dropped:
                    pipe.swallowed.set()
                    continue
                pipe.client.write(head + body)
                await pipe.client.drain()
        self._close(pipe)

    def _close(self, pipe: Pipe) -> None:
        pipe.cut()
        if pipe in self.pipes:
            self.pipes.remove(pipe)


def _application_in(startup: bytes) -> str:
    """A startup message is a head of eight bytes, then names and values that end in zeros."""
    parts = startup[8:].split(b"\0")
    return dict(zip(parts[::2], parts[1::2], strict=False)).get(b"application_name", b"").decode()


@asynccontextmanager
async def proxied(dsn: str) -> AsyncIterator[Proxy]:
    """A proxy in front of the server that this DSN names."""
    proxy = Proxy(dsn)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()

"""What the demo stands on: a relay with a PostgreSQL of its own, a cable that can be cut, and a bot."""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

LIMIT_S = 60


class RelayFailed(Exception):
    """The demo's relay did not start; the message is what it printed."""


@asynccontextmanager
async def own_relay(directory: Path) -> AsyncIterator[int]:
    """A relay of the demo's own; yields its port."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ORBITAL_")}
    environment.pop("DATABASE_URL", None)
    environment |= {
        "ORBITAL_LISTEN_PORT": "0",
        "ORBITAL_OPERATORS_PORT": "0",
        "ORBITAL_DATA_DIR": str(directory),
        "ORBITAL_LOG_FORMAT": "json",
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "orbital_relay", "serve"),
        cwd=directory,
        env=environment,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    listening: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    log = asyncio.create_task(read_log(process.stderr, listening), name="demo-relay-log")
    try:
        async with asyncio.timeout(LIMIT_S):
            port = await listening
        yield port
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await log
        await process.wait()


async def read_log(log: asyncio.StreamReader | None, listening: asyncio.Future[int]) -> None:
    """Read what the relay logs to its end, and tell where it listens."""
    said: list[str] = []
    while log is not None and (raw := await log.readline()):
        if listening.done():
            continue
        said.append(raw.decode(errors="replace"))
        with contextlib.suppress(ValueError):
            line = json.loads(raw)
            if line.get("event") == "relay.listening":
                listening.set_result(int(line["port"]))
    if not listening.done():
        listening.set_exception(RelayFailed("".join(said)))


class Cable:
    """The wire between one client and the relay. It can be cut, and mended."""

    def __init__(self, relay_port: int) -> None:
        self._relay_port = relay_port
        self._ends: set[asyncio.StreamWriter] = set()
        self._is_cut = False

    @asynccontextmanager
    async def laid(self) -> AsyncIterator[str]:
        """Yields the address to connect to."""
        server = await asyncio.start_server(self._join, "127.0.0.1", 0)
        try:
            yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            self.cut()

    def cut(self) -> None:
        """Kill the connections without a word, and let no new ones through."""
        self._is_cut = True
        for end in self._ends:
            end.transport.abort()

    def mend(self) -> None:
        self._is_cut = False

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_cut:
            writer.transport.abort()
            return
        there, back = await asyncio.open_connection("127.0.0.1", self._relay_port)
        self._ends |= {writer, back}
        try:
            await asyncio.gather(self._carry(reader, back), self._carry(there, writer))
        finally:
            self._ends -= {writer, back}

    async def _carry(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(65_536):
                target.write(data)
                await target.drain()
        target.transport.abort()


@asynccontextmanager
async def running_bot(program: Path, url: str, secret: str) -> AsyncIterator[None]:
    """A bot as a process of its own, as it would run anywhere; once it is ready."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, program),
        env={**os.environ, "ORBITAL_URL": url, "ORBITAL_BOT_SECRET": secret},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    ready = asyncio.Event()
    log = asyncio.create_task(watch(process.stderr, ready), name="demo-bot-log")
    try:
        async with asyncio.timeout(LIMIT_S):
            await ready.wait()
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await log
        await process.wait()


async def watch(log: asyncio.StreamReader | None, ready: asyncio.Event) -> None:
    """Read what the bot logs to its end, and tell when it is ready."""
    while log is not None and (line := await log.readline()):
        if b"is ready" in line:
            ready.set()


def find_in(directory: Path, texts: list[str]) -> list[str]:
    """Which of the texts stand in any file below a directory."""
    sought = {text: text.encode() for text in texts}
    found: set[str] = set()
    for path in directory.rglob("*"):
        if path.is_file() and not path.is_symlink():
            content = path.read_bytes()
            found |= {text for text, raw in sought.items() if raw in content}
    return sorted(found)

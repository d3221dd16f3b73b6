"""Whole relays for tests: `orbital-relay serve` as a process of its own, on free loopback ports.

async with running_relay(dsn) as relay:
    await websockets.connect(relay.url, subprotocols=["orbital.v1"])
"""

import asyncio
import base64
import functools
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from orbital_relay.config import Settings, TokenKey
from orbital_relay.relay import Listening, Relay
from tests import forks

START_LIMIT_S = 20
STOP_LIMIT_S = 20
RELAY = (sys.executable, "-m", "orbital_relay")
TOKEN_KEY = "test:" + base64.urlsafe_b64encode(bytes(range(32))).decode().rstrip("=")


@functools.cache
def _media() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="orbital-test-media-")


def media_dir_of(dsn: str) -> Path:
    """Where relays on this database keep their files: they share one folder, as they must; gone with this process."""
    return Path(_media().name) / sha256(dsn.encode()).hexdigest()[:16]


@dataclass
class RunningRelay:
    """A relay process. `log` has what it logged so far, as one mapping a line."""

    process: asyncio.subprocess.Process | forks.Forked
    port: int = 0
    operators_port: int = 0
    log: list[dict[str, Any]] = field(default_factory=list)
    raw_log: list[str] = field(default_factory=list)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    log_is_read: asyncio.Event = field(default_factory=asyncio.Event)  # cleared: nobody takes what it logs

    def __post_init__(self) -> None:
        self.log_is_read.set()

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"ws://127.0.0.1:{self.port}"

    def signal(self, number: signal.Signals) -> None:
        """Send the process a signal."""
        self.process.send_signal(number)

    async def logged(self, event: str, *, limit_s: float = 10, **fields: Any) -> dict[str, Any]:
        """Wait until an event of this name, with these fields, is in the log, and return it."""
        wanted = {"event": event, **fields}

        def found() -> dict[str, Any] | None:
            return next((line for line in self.log if wanted.items() <= line.items()), None)

        async with asyncio.timeout(limit_s), self.changed:
            await self.changed.wait_for(lambda: found() is not None)
        line = found()
        assert line is not None
        return line

    def resident_kib(self) -> int:
        """How much memory the process has."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:")))

    async def metric(self, name: str) -> float:
        """A sample of the process's metrics, by its name with labels; 0 where there is none yet."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.operators_port)
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: relay\r\n\r\n")
        async with asyncio.timeout(START_LIMIT_S):
            text = (await reader.read()).decode()
        writer.close()
        return next((float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name + " ")), 0)

    async def _read_log(self, stream: asyncio.StreamReader) -> None:
        while raw := await stream.readline():
            self.raw_log.append(raw.decode(errors="replace"))
            try:
                line = json.loads(raw)
            except ValueError:
                line = {"event": "not json", "text": raw.decode(errors="replace")}
            async with self.changed:
                self.log.append(line)
                self.changed.notify_all()
            await self.log_is_read.wait()


@asynccontextmanager
async def running_relay(
    dsn: str | None,
    *,
    data_dir: Path | None = None,
    program: Sequence[str] = RELAY,
    stdin: int = asyncio.subprocess.DEVNULL,
    **settings: Any,
) -> AsyncIterator[RunningRelay]:
    """A relay on this (migrated) database, or on an embedded one of its own; `settings` as in the configuration.

    It is terminated at the end, and killed if it doesn't stop in time. What it printed is shown if it can't start.
    """
    with tempfile.TemporaryDirectory(prefix="orbital-relay-") as temporary:
        directory = data_dir or Path(temporary)
        relay = await start_relay(dsn, directory, program=program, stdin=stdin, **settings)
        reader = asyncio.create_task(_drain(relay), name="relay log")
        try:
            listening = await _started(relay)
            relay.port, relay.operators_port = listening["port"], listening["operators_port"]
            yield relay
        finally:
            await _end(relay, reader)


@asynccontextmanager
async def relay_here(dsn: str, **settings: Any) -> AsyncIterator[str]:
    """A relay in this process, where a test can reach into it, and which is there at once; its address."""
    given = {
        "listen_port": 0,
        "operators_port": 0,
        "drain_timeout_ms": 2000,
        "max_frames_per_second": 0,
        "media_dir": media_dir_of(dsn),
        **settings,
    }
    chosen = Settings(database_url=dsn, token_keys=(TokenKey.parse(TOKEN_KEY),), **given)
    relay = Relay(chosen, os.urandom(16), lambda: chosen)
    listening: asyncio.Future[Listening] = asyncio.get_running_loop().create_future()
    running = asyncio.create_task(relay.run(listening.set_result), name="relay")
    try:
        async with asyncio.timeout(START_LIMIT_S):
            port = (await listening).port
        yield f"ws://127.0.0.1:{port}"
        assert not running.done(), "the relay has ended"
    finally:
        relay.stop()
        async with asyncio.timeout(STOP_LIMIT_S):
            await running


async def start_relay(
    dsn: str | None,
    data_dir: Path,
    *,
    program: Sequence[str] = RELAY,
    stdin: int = asyncio.subprocess.DEVNULL,
    **settings: Any,
) -> RunningRelay:
    """Start the process; the caller waits for `relay.listening`, and ends it. `stdin` is for programs but Python."""
    given = {
        "listen_port": 0,
        "operators_port": 0,
        "log_format": "json",
        "data_dir": data_dir,
        "max_frames_per_second": 0,
        "registrations_per_hour_per_address": 0,
        **({} if dsn is None else {"database_url": dsn, "token_keys": TOKEN_KEY, "media_dir": media_dir_of(dsn)}),
        **settings,
    }
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ORBITAL_")}
    environment.pop("DATABASE_URL", None)
    environment |= {f"ORBITAL_{key.upper()}": str(value) for key, value in given.items()}
    if program[0] == sys.executable:
        return RunningRelay(await forks.python([*program[1:], "serve"], environment))
    process = await asyncio.create_subprocess_exec(
        *program,
        "serve",
        env=environment,
        stdin=stdin,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    return RunningRelay(process)


async def _drain(relay: RunningRelay) -> None:
    assert relay.process.stderr is not None
    await relay._read_log(relay.process.stderr)


async def _started(relay: RunningRelay) -> dict[str, Any]:
    listening = asyncio.create_task(relay.logged("relay.listening", limit_s=START_LIMIT_S))
    gone = asyncio.create_task(relay.process.wait())
    await asyncio.wait({listening, gone}, return_when=asyncio.FIRST_COMPLETED)
    gone.cancel()
    if not listening.done():
        listening.cancel()
        raise AssertionError(f"the relay did not start:\n{''.join(relay.raw_log)}")
    return await listening


async def _end(relay: RunningRelay, reader: asyncio.Task[None]) -> None:
    relay.log_is_read.set()
    if relay.process.returncode is None:
        relay.process.terminate()
        try:
            async with asyncio.timeout(STOP_LIMIT_S):
                await relay.process.wait()
        except TimeoutError:
            relay.process.kill()
            await relay.process.wait()
    await reader

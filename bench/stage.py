"""What is measured, in processes of its own: a PostgreSQL that keeps its promises, the relay on it, load generators."""

import asyncio
import base64
import contextlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import asyncpg

from bench.figures import say
from bench.wire import ADDRESS
from orbital_relay.config import TokenKey
from orbital_relay.embedded import DATABASE, PORT, USER, EmbeddedPostgres, Layout, wheel_binaries
from orbital_relay.store import migrate

_START_LIMIT_S: Final = 30
_STOP_LIMIT_S: Final = 30
_COMPILE_LIMIT_S: Final = 90
_LINE_LIMIT_BYTES: Final = 1 << 28
_LAST_WORDS: Final = 20
_LOOK_EVERY_S: Final = 0.02
_UNREMARKABLE: Final = ("debug", "info")

# Of the relay's settings only rate limits are raised: every client comes from one address, as fast as it can.
_RAISED_LIMITS: Final = {"max_frames_per_second": 0, "connections_per_address": 100_000}


class BenchError(Exception):
    """A benchmark that can't be carried out; the message says why."""


# ── PostgreSQL ──────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Postgres:
    """The server that relay and pgbench share."""

    dsn: str
    socket_dir: Path
    binaries: Path
    directory: Path

    @property
    def media_dir(self) -> Path:
        """Where relays on this server keep files: on the same disk."""
        return self.directory / "media"

    def pgbench(self, *arguments: str) -> Sequence[str]:
        """The command that runs pgbench on this server."""
        place = ("--host", str(self.socket_dir), "--port", str(PORT), "--username", USER)
        return (str(self.binaries / "pgbench"), *place, *arguments, DATABASE)

    async def execute(self, *statements: str) -> None:
        """Run statements one after the other."""
        connection = await asyncpg.connect(self.dsn)
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    async def fetchval(self, statement: str) -> Any:
        """Ask for one value."""
        connection = await asyncpg.connect(self.dsn)
        try:
            return await connection.fetchval(statement)
        finally:
            await connection.close()


@asynccontextmanager
async def running_postgres(name: str) -> AsyncIterator[Postgres]:
    """The embedded PostgreSQL as the relay would start it, migrated, on an empty directory that is removed afterwards.

    Under .data and not among temporary files, which often live in memory: there fsync would cost nothing.
    """
    directory = _make_directory(f"bench-{name}-{os.getpid()}")
    server = EmbeddedPostgres(directory)
    try:
        dsn = await server.start()
        await migrate.upgrade(dsn)
        await _require_durable(dsn)
        yield Postgres(dsn, Layout.of(directory).socket_dir, wheel_binaries(), directory)
    finally:
        await server.stop()
        shutil.rmtree(directory)


def _make_directory(name: str) -> Path:
    """A directory that, for root's sake, the server's ordinary user may pass through."""
    directory = Path(".data", name).absolute()
    directory.mkdir(parents=True)
    directory.chmod(0o711)
    return directory


async def _require_durable(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        for name in ("fsync", "synchronous_commit", "full_page_writes"):
            value = await connection.fetchval("SELECT current_setting($1)", name)
            if value != "on":
                raise BenchError(f"{name} is {value}: what is acknowledged would not be durable")
    finally:
        await connection.close()


# ── the relay ───────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class RelayProcess:
    """The relay that is measured."""

    port: int
    pid: int

    def resident_kib(self) -> int:
        """How much memory it has."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:")))


@asynccontextmanager
async def running_relay(postgres: Postgres, token_key: TokenKey, **settings: object) -> AsyncIterator[RelayProcess]:
    """`orbital-relay serve` on this database, as a process of its own."""
    given = {
        "database_url": postgres.dsn,
        "token_keys": f"{token_key.kid}:{base64.urlsafe_b64encode(token_key.secret).decode()}",
        "listen_host": ADDRESS,
        "listen_port": 0,
        "operators_port": 0,
        "log_format": "json",
        "media_dir": postgres.media_dir,
        **_RAISED_LIMITS,
        **settings,
    }
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ORBITAL_")}
    environment |= {f"ORBITAL_{key.upper()}": str(value) for key, value in given.items()}
    with _Log.kept() as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "orbital_relay", "serve"),
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=log.descriptor,
        )
        try:
            yield RelayProcess(await log.port(process), process.pid)
            if process.returncode is not None:
                raise BenchError("the relay ended by itself")
        except BenchError as error:
            raise BenchError(f"{error}; the relay's last words:\n{log.last_words()}") from error
        finally:
            await _end(process)


@dataclass(frozen=True, slots=True)
class _Log:
    """What a relay logs, in memory: whoever reads a pipe is one more who needs the processor meanwhile."""

    descriptor: int

    @classmethod
    @contextlib.contextmanager
    def kept(cls) -> Iterator["_Log"]:
        """One for as long as the block lasts."""
        descriptor = os.memfd_create("relay log")
        try:
            yield cls(descriptor)
        finally:
            os.close(descriptor)

    def _lines(self) -> list[str]:
        size = os.fstat(self.descriptor).st_size
        return os.pread(self.descriptor, size, 0).decode(errors="replace").splitlines()

    def last_words(self) -> str:
        """The last of what is worse than information."""
        bad = [line for line in self._lines() if not any(f'"level":"{level}"' in line for level in _UNREMARKABLE)]
        return "\n".join(bad[-_LAST_WORDS:])

    async def port(self, process: asyncio.subprocess.Process) -> int:
        """Wait until the relay listens."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_START_LIMIT_S):
                while process.returncode is None:
                    for line in self._lines():
                        if '"relay.listening"' in line:
                            return int(json.loads(line)["port"])
                    await asyncio.sleep(_LOOK_EVERY_S)
        raise BenchError("the relay did not start")


# ── load generators and yardsticks ──────────────────────────────────────────────────────────────────────────────────


class Generator:
    """A module of ours as a process of its own. It gets its task as a line of JSON and answers in lines of JSON."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    @asynccontextmanager
    async def running(cls, module: str, task: Mapping[str, object]) -> AsyncIterator["Generator"]:
        """Start `module` and give it its task; it is ended with the block."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", module),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=_LINE_LIMIT_BYTES,
        )
        try:
            generator = cls(process)
            await generator.tell(task)
            yield generator
        finally:
            await _end(process)

    async def tell(self, what: Mapping[str, object]) -> None:
        """Hand it a line."""
        if self._process.stdin is None:
            raise BenchError("the generator was started without a pipe")
        self._process.stdin.write(json.dumps(what).encode() + b"\n")
        await self._process.stdin.drain()

    async def answer(self, limit_s: float) -> dict[str, Any]:
        """Its next line. Raise BenchError if it ends or takes too long; it has said why on stderr."""
        if self._process.stdout is None:
            raise BenchError("the generator was started without a pipe")
        try:
            async with asyncio.timeout(limit_s):
                line = await self._process.stdout.readline()
        except TimeoutError:
            raise BenchError(f"the load generator took longer than {limit_s:.0f} s") from None
        if not line:
            raise BenchError("the load generator gave up")
        answer: dict[str, Any] = json.loads(line)
        return answer


@asynccontextmanager
async def compiled(source: Path) -> AsyncIterator[Path | None]:
    """A program in C, compiled; None where there is no C compiler."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        say("  no C compiler (cc): no yardstick in C")
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="orbital-bench-") as directory:
        program = Path(directory, source.stem)
        await run([compiler, "-O2", "-o", str(program), str(source)], _COMPILE_LIMIT_S)
        yield program


async def run(command: Sequence[str], limit_s: float, cwd: Path | None = None) -> str:
    """Run a command to its end and return what it printed; raise BenchError if it fails."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=cwd,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(limit_s):
            out, err = await process.communicate()
    except TimeoutError:
        raise BenchError(f"{command[0]} took longer than {limit_s:.0f} s") from None
    finally:
        await _end(process)
    if process.returncode != 0:
        raise BenchError(f"{command[0]} failed: {err.decode(errors='replace').strip()}")
    return out.decode()


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(_STOP_LIMIT_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()

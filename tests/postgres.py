"""PostgreSQL servers for tests: the relay's embedded one, and Debian's 15 where it is installed."""

import os
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from orbital_relay.embedded import EmbeddedPostgres
from orbital_relay.store import migrate

DEBIAN_BINARIES = Path("/usr/lib/postgresql/15/bin")

# Quicker, and the promises that tests speak of hold all the same: without fsync, what was committed outlives kill -9 of
# any process, because the kernel has it. Only a power cut would lose it. tests/integration/test_embedded.py, which
# speaks of the settings themselves, starts servers of its own.
QUICK_SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "100",
    "shared_buffers": "64MB",
    "max_wal_size": "256MB",
}

_MEMORY = Path("/dev/shm")  # noqa: S108  mkdtemp makes the names below it
_ROOM_BYTES = 8 << 30

_TEMPLATE = "migrated"
_COMMAND_LIMIT_S = 30


class TestPostgres:
    """A running server that hands out databases."""

    __test__ = False

    def __init__(self, dsn: str):
        self._dsn = dsn
        self._has_template = False

    @asynccontextmanager
    async def database(self) -> AsyncIterator[str]:
        """A new, empty database: its DSN; dropped afterwards, whoever is still connected."""
        async with self._database(template="template1") as dsn:
            yield dsn

    @asynccontextmanager
    async def migrated_database(self) -> AsyncIterator[str]:
        """The same with all migrations applied, copied from a template that was migrated once."""
        if not self._has_template:
            await self._make_template()
        async with self._database(template=_TEMPLATE) as dsn:
            yield dsn

    @asynccontextmanager
    async def _database(self, *, template: str) -> AsyncIterator[str]:
        name = f"test_{uuid.uuid4().hex}"
        await self._execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
        try:
            yield self._dsn_of(name)
        finally:
            await self._execute(f"DROP DATABASE {name} WITH (FORCE)")

    async def _make_template(self) -> None:
        await self._execute(f"DROP DATABASE IF EXISTS {_TEMPLATE} WITH (FORCE)")
        await self._execute(f"CREATE DATABASE {_TEMPLATE}")
        await migrate.upgrade(self._dsn_of(_TEMPLATE))
        self._has_template = True

    def _dsn_of(self, name: str) -> str:
        return urlunsplit(urlsplit(self._dsn)._replace(path=f"/{name}"))

    async def _execute(self, statement: str) -> None:
        connection = await asyncpg.connect(self._dsn, timeout=_COMMAND_LIMIT_S, command_timeout=_COMMAND_LIMIT_S)
        try:
            await connection.execute(statement)
        finally:
            await connection.close(timeout=_COMMAND_LIMIT_S)


def quick_place() -> Path | None:
    """Where a server makes a database in a tenth of the time: a file system in memory, if one has room; else None."""
    has_room = os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free >= _ROOM_BYTES
    return _MEMORY if has_room else None


@contextmanager
def open_directory(place: Path | None = None) -> Iterator[Path]:
    """A directory that, for root's sake, the server's ordinary user may pass through; pytest's own are closed.

    It is on the disk, unless `place` names another folder for it, and removed afterwards.
    """
    directory = Path(tempfile.mkdtemp(prefix="orbital-test-", dir=place))
    try:
        directory.chmod(0o711)
        yield directory
    finally:
        shutil.rmtree(directory)


@asynccontextmanager
async def running_postgres(binaries: Path | None = None, place: Path | None = None) -> AsyncIterator[TestPostgres]:
    """A server on a temporary directory (in `place`); of the embedded PostgreSQL unless `binaries` names another."""
    with open_directory(place) as directory:
        server = EmbeddedPostgres(directory, extra_settings=QUICK_SETTINGS, binaries=binaries)
        try:
            yield TestPostgres(await server.start())
        finally:
            await server.stop()

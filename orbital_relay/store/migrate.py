"""Migrations: plain SQL files with up and down in `sql/migrations/`, applied by pogo-core under one lock.

Beside pogo's own table, `schema_versions` keeps each file's checksum and the oldest relay that may run on the result.
"""

import hashlib
import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import asyncpg
from pogo_core.error import BadMigrationError
from pogo_core.util import migrate as pogo

from orbital_relay import __version__
from orbital_relay.errors import StartupError
from orbital_relay.store.queries import query, sql_dir

_LOCK: Final = query("lock_migrations")
_CREATE: Final = query("create_schema_versions")
_EXIST: Final = query("schema_versions_exist")
_READ: Final = query("read_schema_versions")
_INSERT: Final = query("insert_schema_version")
_DELETE: Final = query("delete_schema_version")
_COUNT_TABLES: Final = query("count_tables")
_COUNT_RELAYS: Final = query("count_relay_connections")

_CONNECT_TIMEOUT_S: Final = 10
_STATEMENT_TIMEOUT_S: Final = 600
_quiet = logging.getLogger("orbital.migrate")
_quiet.addHandler(logging.NullHandler())
_quiet.propagate = False


@dataclass(frozen=True, slots=True)
class Migration:
    """A file of `sql/migrations/`."""

    migration_id: str
    checksum: str
    oldest_relay: str


@dataclass(frozen=True, slots=True)
class Status:
    """Where the schema stands: `applied` and `pending` ids, and a sentence for each thing that is wrong."""

    applied: tuple[str, ...]
    pending: tuple[str, ...]
    problems: tuple[str, ...]


def migrations_dir() -> Path:
    """The folder of the migrations."""
    return sql_dir() / "migrations"


def read_files() -> list[Migration]:
    """Read the migrations that this relay brings, in their order."""
    migrations = []
    for path in sorted(migrations_dir().glob("*.sql")):
        text = path.read_text(encoding="utf-8")
        oldest = re.search(r"^-- oldest relay: (\S+)$", text, re.MULTILINE)
        if oldest is None:
            raise StartupError(f"{path.name} does not say `-- oldest relay: …`")
        migrations.append(Migration(path.stem, hashlib.sha256(text.encode()).hexdigest(), oldest[1]))
    return migrations


def compare(files: list[Migration], recorded: list[Migration], relay_version: str) -> Status:
    """Hold what the database records against what this relay brings."""
    by_id = {migration.migration_id: migration for migration in files}
    applied = tuple(migration.migration_id for migration in recorded)
    problems = []
    for migration in recorded:
        mine = by_id.get(migration.migration_id)
        if mine is None and _version(migration.oldest_relay) > _version(relay_version):
            problems.append(
                f"the schema has {migration.migration_id}, which needs a relay of at least {migration.oldest_relay}; "
                f"this one is {relay_version}: upgrade the relay"
            )
        elif mine is not None and mine.checksum != migration.checksum:
            problems.append(
                f"{migration.migration_id} was applied with other content than this relay brings: "
                "restore the file, or use another database (data_dir, where it is the embedded one)"
            )
    pending = tuple(migration_id for migration_id in by_id if migration_id not in applied)
    return Status(applied, pending, tuple(problems))


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


async def status(dsn: str) -> Status:
    """Where the schema of this database stands."""
    async with _connection(dsn) as connection:
        return await _status(connection)


async def is_empty(dsn: str) -> bool:
    """Whether the database has no table of anybody's; raise StartupError where it does not answer."""
    async with _connection(dsn) as connection:
        return not await connection.fetchval(_COUNT_TABLES)


async def upgrade(dsn: str) -> list[str]:
    """Apply what is pending; return the ids. Raise StartupError, with nothing half done, where that can't be."""
    async with _connection(dsn) as connection, connection.transaction():
        await connection.execute(_LOCK)
        await connection.execute(_CREATE)
        before = await _status(connection)
        if before.problems:
            raise StartupError("; ".join(before.problems))
        try:
            await pogo.apply(connection, migrations_dir(), schema_name="public", logger=_quiet)
        except BadMigrationError as error:
            raise StartupError(f"migration failed, nothing was changed: {error} ({error.__cause__})") from error
        for migration in read_files():
            if migration.migration_id in before.pending:
                await connection.execute(_INSERT, migration.migration_id, migration.checksum, migration.oldest_relay)
        return list(before.pending)


async def downgrade(dsn: str, count: int = 1) -> list[str]:
    """Take back the newest migrations, `count` of them; return the ids. Raise StartupError while relays are there."""
    async with _connection(dsn) as connection, connection.transaction():
        await connection.execute(_LOCK)
        if relays := await connection.fetchval(_COUNT_RELAYS):
            raise StartupError(f"nothing was taken back: relays have {relays} connections to this database; stop them")
        undone = list(reversed((await _status(connection)).applied))[:count]
        try:
            await pogo.rollback(connection, migrations_dir(), schema_name="public", count=count, logger=_quiet)
        except BadMigrationError as error:
            raise StartupError(f"taking back failed, nothing was changed: {error} ({error.__cause__})") from error
        for migration_id in undone:
            await connection.execute(_DELETE, migration_id)
        return undone


async def require_current(dsn: str) -> None:
    """Raise StartupError unless this relay may run on this schema."""
    found = await status(dsn)
    if found.problems:
        raise StartupError("; ".join(found.problems))
    if found.pending:
        raise StartupError(f"the schema lacks {', '.join(found.pending)}: run `orbital-relay migrate up`")


async def _status(connection: "asyncpg.Connection[asyncpg.Record]") -> Status:
    recorded: list[Migration] = []
    if await connection.fetchval(_EXIST):
        recorded = [Migration(*row) for row in await connection.fetch(_READ)]
    return compare(read_files(), recorded, __version__)


@asynccontextmanager
async def _connection(dsn: str) -> "AsyncIterator[asyncpg.Connection[asyncpg.Record]]":
    try:
        connection = await asyncpg.connect(dsn, timeout=_CONNECT_TIMEOUT_S, command_timeout=_STATEMENT_TIMEOUT_S)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise StartupError(f"the database does not answer: {str(error) or 'no answer in time'}") from error
    try:
        yield connection
    except asyncpg.PostgresError as error:  # such as a role that may not read
        raise StartupError(f"the database refused: {error}") from error
    finally:
        await connection.close(timeout=_CONNECT_TIMEOUT_S)

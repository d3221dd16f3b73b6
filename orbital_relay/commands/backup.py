"""`orbital-relay backup` and `restore`: the database as one compressed SQL file, by PostgreSQL's own tools.

Of the embedded database they are those that come with it; of the operator's, those on the PATH, which must be of its
version or newer. Files and token keys are not in a backup (docs/operations.md).
"""

import asyncio
import gzip
import os
import shutil
import subprocess
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Annotated, Final
from urllib.parse import unquote, urlsplit, urlunsplit

import typer
from rich.console import Console

from orbital_relay.commands.database import APPLICATION_NAME, CommandError, located
from orbital_relay.commands.options import ConfigOption, JsonOption, SetOption, settings_from
from orbital_relay.commands.output import in_bytes, print_json
from orbital_relay.config import Settings
from orbital_relay.embedded import last_words, wheel_binaries
from orbital_relay.store import facts, migrate
from orbital_relay.store.pool import PoolSettings, connect
from orbital_relay.token_keys import FACT

_NAME: Final = "orbital_{:%Y%m%d_%H%M%S}.sql.gz"
_PATTERNS: Final = ("orbital_*.sql.gz", "orbital_*.sql.partial")  # those that were cut off, too
_CHUNK_BYTES: Final = 1 << 20
_KEPT_DAYS: Final = 7

KeepOption = Annotated[int, typer.Option(metavar="DAYS", min=1, help="Delete backups in there that are older.")]


@dataclass(frozen=True, slots=True)
class Made:
    """A backup that was made, and the older ones that went for it."""

    file: str
    bytes: int
    deleted: list[str]


def backup(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where backups are kept; it is made if need be.")],
    *,
    keep: KeepOption = _KEPT_DAYS,
    file: ConfigOption = None,
    sets: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the database into a file of that folder, beside a running relay or without one."""
    settings = settings_from(file, sets)
    try:
        with Console(stderr=True).status("backing up"):
            made = asyncio.run(_backup(settings, folder, keep))
    except OSError as error:
        raise CommandError(f"{folder}: {error.strerror or error}") from error
    if as_json:
        print_json(made)
        return
    typer.echo(f"backup completed: {made.file} ({in_bytes(made.bytes)})")
    for name in made.deleted:
        typer.echo(f"deleted {name}, older than {keep} days")


def restore(
    source: Annotated[Path, typer.Argument(metavar="BACKUP", help="A file that `backup` has made.")],
    *,
    file: ConfigOption = None,
    sets: SetOption = None,
) -> None:
    """Bring a backup into an EMPTY database: all of it, or nothing. Stop every relay first."""
    settings = settings_from(file, sets)
    with Console(stderr=True).status("restoring"):
        pending = asyncio.run(_restore(settings, source))
    typer.echo(f"restored {source}")
    upgrade = "orbital-relay migrate up, " if pending and settings.database_url else ""
    typer.echo(f"next: {upgrade}orbital-relay log verify, orbital-relay media audit")


# ── backup ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _backup(settings: Settings, folder: Path, keep: int) -> Made:
    async with located(settings) as dsn:
        if await migrate.is_empty(dsn):
            raise CommandError("the database is empty: there is nothing to back up")
        return await asyncio.to_thread(_dump, _tool("pg_dump", settings), dsn, folder, keep)


def _dump(tool: str, dsn: str, folder: Path, keep: int) -> Made:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    target = folder / _NAME.format(datetime.now(UTC))
    partial = target.with_suffix(".partial")  # what fails leaves nothing that looks like a backup
    partial.touch(mode=0o600, exist_ok=False)
    try:
        with _running([tool, "--no-owner", "--no-privileges", "--compress=6", f"--file={partial}"], dsn):
            pass
        _read_through(partial)
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.rename(target)
        _sync(folder)
    finally:
        partial.unlink(missing_ok=True)
    return Made(str(target), target.stat().st_size, _delete_old(folder, keep))


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _delete_old(folder: Path, keep: int) -> list[str]:
    oldest = (datetime.now(UTC) - timedelta(days=keep)).timestamp()
    found = (path for pattern in _PATTERNS for path in folder.glob(pattern))
    old = sorted(path for path in found if path.stat().st_mtime < oldest)
    for path in old:
        path.unlink()
    return [path.name for path in old]


# ── restore ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _restore(settings: Settings, source: Path) -> Sequence[str]:
    """Return the migrations that the restored schema lacks."""
    await asyncio.to_thread(_read_through, source)
    async with located(settings, make=True) as dsn:
        if not await migrate.is_empty(dsn):
            other = "database" if settings.database_url else "data_dir"
            raise CommandError(f"the database is not empty, nothing was changed: restore into another {other}")
        await asyncio.to_thread(_load, _tool("psql", settings), dsn, source)
        connection = await connect(dsn, application_name=APPLICATION_NAME, settings=PoolSettings(dsn=dsn))
        try:
            # Whichever relay starts first says which key signs: those that did may be lost with the machine.
            await facts.forget(connection, FACT)
        finally:
            await connection.close()
        return (await migrate.status(dsn)).pending


def _load(tool: str, dsn: str, source: Path) -> None:
    arguments = [tool, "--no-psqlrc", "--quiet", "--single-transaction", "--set=ON_ERROR_STOP=1"]
    with _running(arguments, dsn) as stdin, gzip.open(source) as packed:
        shutil.copyfileobj(packed, stdin, _CHUNK_BYTES)


def _read_through(path: Path) -> None:
    """Raise CommandError where a file is no whole backup. psql would commit what it got of one that breaks off."""
    try:
        with gzip.open(path) as packed:
            if not packed.read(1):
                raise EOFError("there is nothing in it")
            while packed.read(_CHUNK_BYTES):
                pass
    except (OSError, EOFError, zlib.error) as error:
        raise CommandError(f"{path} is not a whole backup: {getattr(error, 'strerror', None) or error}") from error


# ── PostgreSQL's tools ──────────────────────────────────────────────────────────────────────────────────────────────


def _tool(name: str, settings: Settings) -> str:
    if settings.database_url is None:
        return str(wheel_binaries() / name)
    if (found := shutil.which(name)) is None:
        raise CommandError(f"{name} is not installed: it comes with PostgreSQL's client (Debian: postgresql-client)")
    return found


@contextmanager
def _running(arguments: Sequence[str], dsn: str) -> Iterator[IO[bytes]]:
    """A tool at work on this database: its standard input. Raise CommandError where it fails."""
    address, password = _split_password(dsn)
    environment = os.environ | ({"PGPASSWORD": password} if password else {})
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(  # noqa: S603  a tool of PostgreSQL's, and the operator's own address
            [*arguments, f"--dbname={address}"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=said,
        )
        assert process.stdin is not None  # noqa: S101  it was asked for
        with suppress(BrokenPipeError), process:  # it gave up, and has said why
            try:
                yield process.stdin
                process.stdin.close()
            except BaseException:
                process.kill()
                raise
        if process.returncode != 0:
            said.seek(0)
            raise CommandError(last_words(said.read().decode(errors="replace")))


def _split_password(dsn: str) -> tuple[str, str | None]:
    """The address without its password, and that: whoever is on the machine may read the arguments of a process."""
    parts = urlsplit(dsn)
    user, at, host = parts.netloc.rpartition("@")
    name, _, password = user.partition(":")
    given = [parameter.partition("=") for parameter in parts.query.split("&")]
    password = next((value for key, _, value in given if key == "password"), password)
    query = "&".join("".join(parameter) for parameter in given if parameter[0] != "password")
    return urlunsplit(parts._replace(netloc=f"{name}{at}{host}", query=query)), unquote(password) or None

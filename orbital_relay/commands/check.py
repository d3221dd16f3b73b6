"""`orbital-relay check`: would a relay with this configuration run? A line for each thing that it needs."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Literal

import asyncpg
import typer

from orbital_relay import config, hints, token_keys
from orbital_relay.commands.database import APPLICATION_NAME, CommandError, located
from orbital_relay.commands.options import ConfigOption, JsonOption, SetOption, settings_from
from orbital_relay.commands.output import print_json
from orbital_relay.commands.probe import prove
from orbital_relay.config import ConfigError, Settings
from orbital_relay.embedded import EmbeddedError, Layout
from orbital_relay.errors import StartupError
from orbital_relay.media import choose
from orbital_relay.store import facts, migrate
from orbital_relay.store import live as live_store
from orbital_relay.store import media as media_store
from orbital_relay.store import operators as store
from orbital_relay.store.pool import Connection, PoolSettings, connect
from orbital_relay.tls import Chain

Status = Literal["ok", "warning", "problem"]

_COLORS: Final = {"ok": "green", "warning": "yellow", "problem": "red"}
_OLDEST_SERVER: Final = 150_000
_SKEW_MAX_S: Final = 5.0
_NOTIFICATION_LIMIT_S: Final = 5.0
_FREE_BYTES_MIN: Final = 1024**3
_CERTIFICATE_DAYS_MIN: Final = 14
_GIB: Final = 1024**3


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that a relay needs, and how it stands."""

    name: str
    status: Status
    message: str


@dataclass(frozen=True, slots=True)
class Report:
    """All of them; `ok` where none is a problem."""

    ok: bool
    checks: list[Check]


def check(*, file: ConfigOption = None, sets: SetOption = None, as_json: JsonOption = False) -> None:
    """Look at all that a relay needs: configuration, database, schema, clock, keys, media. Exit 1 on a problem."""
    try:
        settings = settings_from(file, sets)
    except ConfigError as error:
        checks = [Check("configuration", "problem", line) for line in error.problems]
    else:
        checks = asyncio.run(_all(settings))
    report = Report(all(c.status != "problem" for c in checks), checks)
    if as_json:
        print_json(report)
    else:
        for c in checks:
            typer.echo(f"{typer.style(f'{c.status:<8}', fg=_COLORS[c.status])} {c.name:<14} {c.message}")
    if not report.ok:
        raise typer.Exit(1)


async def _all(settings: Settings) -> list[Check]:
    checks = [*_configuration(settings), *_tls(settings)]
    if settings.database_url is None:
        checks.append(_disk(settings.data_dir))
        if not Layout.of(settings.postgres_dir).cluster.exists():
            made = Check("database", "ok", f"the first start makes one in {settings.data_dir}")
            return [*checks, made, await _media(settings, None)]
    try:
        async with located(settings) as dsn:
            checks += [found async for found in _database(settings, dsn)]
    except (EmbeddedError, StartupError) as error:
        checks.append(Check("database", "problem", str(error)))
    return checks


# ── without the database ────────────────────────────────────────────────────────────────────────────────────────────


def _configuration(settings: Settings) -> list[Check]:
    given = [row for row in config.describe(settings) if row.source != "default"]
    stands = Check("configuration", "ok", f"{len(given)} settings given, the others as by default")
    return [stands, *(Check("configuration", "warning", sentence) for sentence in config.warnings(settings))]


def _tls(settings: Settings) -> list[Check]:
    if settings.tls_cert is None or settings.tls_key is None:
        return []
    try:
        ends_at = Chain.read(settings.tls_cert, settings.tls_key).expires_at
    except StartupError as error:
        return [Check("tls", "problem", str(error))]
    left = ends_at - datetime.now(UTC)
    status: Status = "ok" if left > timedelta(days=_CERTIFICATE_DAYS_MIN) else "warning"
    return [
        Check("tls", "problem" if left < timedelta() else status, f"the certificate is good until {ends_at:%F %R} UTC")
    ]


def _disk(data_dir: Path) -> Check:
    place = data_dir.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    status: Status = "ok" if free >= _FREE_BYTES_MIN else "problem"
    if not os.access(place, os.W_OK):
        return Check("disk", "problem", f"{place} can't be written to")
    return Check("disk", status, f"{free / _GIB:.1f} GiB free for {data_dir}")


# ── with it ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _database(settings: Settings, dsn: str) -> AsyncIterator[Check]:
    limits = PoolSettings(dsn=dsn, connect_timeout_s=settings.pool_connect_timeout_s)
    try:
        connection = await connect(dsn, application_name=APPLICATION_NAME, settings=limits)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        yield Check("database", "problem", f"does not answer: {str(error) or 'no answer in time'}")
        return
    try:
        yield await _guarded("database", lambda: _server(connection))
        yield await _guarded("clock", lambda: _clock(connection))
        yield await _guarded("notifications", lambda: _notifications(connection, settings, limits))
        schema = await _guarded("schema", lambda: _schema(settings, dsn))
        yield schema
        if schema.status == "ok":
            yield await _guarded("permissions", lambda: _permissions(connection))
            yield await _guarded("token keys", lambda: _token_keys(connection, settings))
            yield await _guarded("media", lambda: _agreed_media(connection, settings))
    finally:
        await connection.close(timeout=_NOTIFICATION_LIMIT_S)


async def _guarded(name: str, look: Callable[[], Awaitable[Check]]) -> Check:
    """A look that fails is a problem with a name."""
    try:
        return await look()
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, StartupError) as error:
        return Check(name, "problem", str(error) or type(error).__name__)


async def _server(connection: Connection) -> Check:
    server = await store.read_server(connection)
    status: Status = "ok" if server.version_number >= _OLDEST_SERVER else "problem"
    return Check(
        "database", status, f"PostgreSQL {server.version} answers" + ("" if status == "ok" else "; 15 is needed")
    )


async def _clock(connection: Connection) -> Check:
    before = datetime.now(UTC)
    server = await store.read_server(connection)
    after = datetime.now(UTC)
    skew_s = (server.now - (before + (after - before) / 2)).total_seconds()
    return _judge_skew(skew_s)


def _judge_skew(skew_s: float) -> Check:
    status: Status = "ok" if abs(skew_s) < _SKEW_MAX_S else "problem"
    return Check(
        "clock", status, f"the database's is {skew_s:+.3f} s off ours; tokens and expiries bear {_SKEW_MAX_S:g} s"
    )


async def _notifications(connection: Connection, settings: Settings, limits: PoolSettings) -> Check:
    """Hear on one connection, as the listener does, what another one says."""
    dsn = settings.listener_database_url or limits.dsn
    payload = hints.echo(os.urandom(16).hex(), os.urandom(8).hex())
    heard: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def hear(*notification: object) -> None:
        if notification[-1] == payload and not heard.done():
            heard.set_result(None)

    listener = await connect(dsn, application_name=APPLICATION_NAME, settings=limits)
    try:
        await listener.add_listener(hints.CHANNEL, hear)
        await live_store.notify(connection, payload)
        async with asyncio.timeout(_NOTIFICATION_LIMIT_S):
            await heard
    except TimeoutError:
        return Check(
            "notifications",
            "problem",
            "not heard: listener_database_url must lead to the same database, around any pooler",
        )
    finally:
        listener.terminate()
    return Check("notifications", "ok", "heard")


async def _schema(settings: Settings, dsn: str) -> Check:
    found = await migrate.status(dsn)
    if found.problems:
        return Check("schema", "problem", "; ".join(found.problems))
    if found.pending and settings.database_url is not None:
        return Check("schema", "problem", f"lacks {', '.join(found.pending)}: run `orbital-relay migrate up`")
    if found.pending:
        return Check("schema", "warning", f"lacks {', '.join(found.pending)}, which the next start applies")
    return Check("schema", "ok", f"{found.applied[-1]} and all before it are applied")


async def _permissions(connection: Connection) -> Check:
    if missing := await store.missing_privileges(connection):
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""  # noqa: PLR2004  as many as are named
        return Check("permissions", "problem", f"lacks {', '.join(missing[:3])}{more}: see sql/roles.sql")
    return Check("permissions", "ok", "may read and write every table")


async def _token_keys(connection: Connection, settings: Settings) -> Check:
    agreed = await store.read_fact(connection, token_keys.FACT)
    path = settings.data_dir / token_keys.FILE
    if settings.token_keys is None and not path.exists():
        if agreed is None:
            return Check("token keys", "ok", "the first start makes one")
        return Check(
            "token keys", "problem", f"{path} is missing, and the relays of this database have signed with a key"
        )
    if settings.token_keys is None and path.stat().st_mode & 0o077:
        return Check("token keys", "problem", f"{path} is readable by others: chmod 600, and rotate the key")
    return _judge_keys(agreed, {token_keys.fingerprint(key) for key in token_keys.load(settings)})


def _judge_keys(agreed: str | None, mine: set[str]) -> Check:
    if agreed is None or agreed in mine:
        return Check("token keys", "ok", "those of this database's relays" if agreed else "new to this database")
    return Check(
        "token keys", "problem", "the relays of this database sign with another key; give every relay the same"
    )


async def _agreed_media(connection: Connection, settings: Settings) -> Check:
    """Hold the store against the one that the relays of this database have agreed on."""
    agreed = await store.read_fact(connection, choose.FACT)
    if not await media_store.depends_on_store(connection) and not await facts.count_relays(connection):
        agreed = None  # nobody misses the old one: the next start agrees on another
    return await _media(settings, agreed)


async def _media(settings: Settings, agreed: str | None) -> Check:
    """`agreed` is the store that it must be; None where it may be any."""
    try:
        return Check("media", "ok", await prove(settings, agreed))
    except CommandError as error:
        return Check("media", "problem", str(error))

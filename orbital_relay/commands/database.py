"""Where a command finds its database: the operator's, or the embedded one, whether a relay runs on it or not."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import asyncpg

from orbital_relay.config import Settings
from orbital_relay.embedded import EmbeddedError, EmbeddedPostgres, Layout
from orbital_relay.errors import OrbitalError, StartupError
from orbital_relay.store import migrate
from orbital_relay.store.pool import Connection, PoolSettings, connect

APPLICATION_NAME: Final = "orbital-relay command"

_CONNECT_LIMIT_S: Final = 5.0
_STARTING_LIMIT_S: Final = 15.0
_POLL_S: Final = 0.1


class CommandError(OrbitalError):
    """The command can't be carried out; the message says why."""


@asynccontextmanager
async def located(settings: Settings, *, make: bool = False) -> AsyncIterator[str]:
    """The DSN of the database. An embedded one that no relay holds is started, for as long as the block takes.

    Raise StartupError where there is no embedded database yet, unless it is to be made; EmbeddedError where it can't
    be started.
    """
    if settings.database_url is not None:
        yield settings.database_url
        return
    layout = Layout.of(settings.postgres_dir)
    if not layout.cluster.exists() and not make:
        raise StartupError(
            f"there is no database in {settings.data_dir} yet: `orbital-relay serve` makes it; "
            "for another one set data_dir or database_url"
        )
    if await _answers(layout.dsn()):
        yield layout.dsn()
        return
    server = EmbeddedPostgres(settings.postgres_dir)
    try:
        yield await _start(server, layout.dsn())
    finally:
        await server.stop()


async def _start(server: EmbeddedPostgres, dsn: str) -> str:
    """Start the server, or wait for the one of a relay that is just starting too."""
    try:
        return await server.start()
    except EmbeddedError:
        try:
            async with asyncio.timeout(_STARTING_LIMIT_S):
                # Another process's server has no event to wait for.
                while not await _answers(dsn):  # noqa: ASYNC110
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            pass
        else:
            return dsn
        raise


async def _answers(dsn: str) -> bool:
    try:
        connection = await asyncpg.connect(dsn, timeout=_CONNECT_LIMIT_S)
    except (OSError, TimeoutError, asyncpg.PostgresError):
        return False
    await connection.close(timeout=_CONNECT_LIMIT_S)
    return True


@asynccontextmanager
async def opened(settings: Settings, *, statement_timeout_s: float | None = None) -> AsyncIterator[Connection]:
    """A connection to the database, whose schema is this relay's; raise StartupError or CommandError without one."""
    async with located(settings) as dsn:
        await migrate.require_current(dsn)
        limits = PoolSettings(
            dsn=dsn,
            connect_timeout_s=settings.pool_connect_timeout_s,
            statement_timeout_s=statement_timeout_s or settings.statement_timeout_s,
        )
        try:
            connection = await connect(dsn, application_name=APPLICATION_NAME, settings=limits)
            try:
                yield connection
            finally:
                await connection.close(timeout=_CONNECT_LIMIT_S)
        except TimeoutError as error:
            raise CommandError("the database took too long") from error
        except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise CommandError(f"the database refused: {error}") from error

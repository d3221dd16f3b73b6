"""The pool of database connections: time limits on every acquire and statement, and errors that clients understand."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeAlias

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from orbital_relay import logs
from orbital_relay.errors import Overloaded, Unavailable

logger = logs.get()

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]"

DATABASE_AWAY = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # what asyncpg raises for a connection that goes away between two of its own steps
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.TooManyConnectionsError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.DiskFullError,
)
"""What a database that is away, going, coming or full raises: the client may try again."""

IN_TROUBLE = (
    asyncpg.InsufficientResourcesError,
    asyncpg.OperatorInterventionError,
    asyncpg.PostgresSystemError,
    asyncpg.ProgramLimitExceededError,  # such as a notification queue that is full
)
"""What a database raises whose trouble has nothing to do with the statement: another time it may succeed."""

TRY_AGAIN = (asyncpg.SerializationError, asyncpg.DeadlockDetectedError)
"""A transaction that lost to another one: nothing was written, the same again may succeed."""


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """How many connections, and how long to wait for what (seconds)."""

    dsn: str
    min_size: int = 2
    max_size: int = 10
    idle_s: float = 30
    connect_timeout_s: float = 2
    acquire_timeout_s: float = 5
    statement_timeout_s: float = 5


async def prepare_connection(connection: Connection) -> None:
    """Make ids 16-byte `bytes` in both directions."""
    await connection.set_type_codec("uuid", schema="pg_catalog", encoder=bytes, decoder=bytes, format="binary")


async def connect(dsn: str, *, application_name: str, settings: PoolSettings) -> "asyncpg.Connection[asyncpg.Record]":
    """A connection outside of the pool, for the listener and the writer's lanes; the caller closes it.

    Raise TimeoutError or one of DATABASE_AWAY: a server that lets nobody in is as good as away.
    """
    try:
        connection = await asyncpg.connect(
            dsn,
            timeout=settings.connect_timeout_s,
            command_timeout=settings.statement_timeout_s,
            server_settings=_server_settings(application_name),
        )
    except asyncpg.PostgresError as error:
        raise ConnectionError(f"the database refused a connection: {error}") from error
    try:
        await prepare_connection(connection)
    except BaseException:
        connection.terminate()
        raise
    return connection


def _server_settings(application_name: str) -> dict[str, str]:
    return {
        "application_name": application_name,
        "idle_in_transaction_session_timeout": "5s",
        "timezone": "UTC",
        "jit": "off",
    }


class Database:
    """The relay's pool. Every method raises Unavailable or Overloaded where the database is away or busy."""

    def __init__(self, settings: PoolSettings, relay_name: str) -> None:
        self.settings = settings
        self._relay_name = relay_name
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None
        self._interrupted: set[int] = set()  # backends whose last user was cancelled
        self.is_up = False
        """Whether the database answered when it was last asked; the sweep asks every second or two."""

    async def open(self) -> None:
        """Connect; raise OSError or asyncpg's errors where that fails."""
        settings = self.settings
        self._pool = await asyncpg.create_pool(
            settings.dsn,
            min_size=settings.min_size,
            max_size=settings.max_size,
            max_inactive_connection_lifetime=settings.idle_s,
            timeout=settings.connect_timeout_s,
            command_timeout=settings.statement_timeout_s,
            init=self._welcome,
            reset=self._tidy,
            server_settings=_server_settings(f"orbital-relay pool {self._relay_name}"),
        )
        self.is_up = True

    async def close(self) -> None:
        """Give running statements a moment, then close every connection."""
        if self._pool is None:
            return
        try:
            async with asyncio.timeout(self.settings.statement_timeout_s):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()

    async def _welcome(self, connection: Connection) -> None:
        self._interrupted.discard(connection.get_server_pid())
        await prepare_connection(connection)

    async def _tidy(self, connection: Connection) -> None:
        """Leave a connection that comes back as it is: nobody changes a session's state, and asking costs a round trip.

        But whoever was cancelled between two steps of a statement has left the server within it: it waits for the next
        step, in a transaction that nobody began, and would refuse a `BEGIN` that asks for a snapshot. Any simple
        statement ends that.
        """
        pid = connection.get_server_pid()
        if pid in self._interrupted:
            self._interrupted.discard(pid)
            await connection.execute("SELECT")

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection for a few statements, each a transaction of its own.

        Raise Unavailable or Overloaded where the database is away or busy; what else it says of a statement, it says.
        """
        if self._pool is None:
            raise Unavailable
        is_connected = False
        try:
            async with self._pool.acquire(timeout=self.settings.acquire_timeout_s) as connection:
                is_connected = True
                try:
                    yield connection
                except asyncio.CancelledError:
                    self._interrupted.add(connection.get_server_pid())
                    raise
        except (TimeoutError, asyncpg.QueryCanceledError) as error:
            if not is_connected:
                self._note(up=False)  # every connection of the pool is in use for longer than anybody waits
            raise Overloaded("The database is busy.") from error
        except (*DATABASE_AWAY, *IN_TROUBLE) as error:
            self._note(up=False)
            raise Unavailable from error
        except asyncpg.PostgresError as error:
            if is_connected:
                raise
            self._note(up=False)
            raise Unavailable from error
        self._note(up=True)

    def _note(self, *, up: bool) -> None:
        if up == self.is_up:
            return
        self.is_up = up
        if up:
            logger.info("database.recovered")
        else:
            logger.warning("database.unavailable")

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """A connection within one transaction: committed at the end of the block, rolled back if it raises."""
        async with self.connection() as connection, connection.transaction():
            yield connection

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Connection]:
        """A connection that reads one moment: membership and what it allows to see can't drift apart."""
        async with self.connection() as connection, connection.transaction(isolation="repeatable_read", readonly=True):
            yield connection

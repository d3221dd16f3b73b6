"""Retention: what nobody needs any more goes, in small batches, by whichever relay gets the lock."""

import asyncio
import time
from dataclasses import dataclass
from typing import Final

import asyncpg

from orbital_relay import logs
from orbital_relay.errors import RequestError
from orbital_relay.store.pool import Database
from orbital_relay.store.queries import query

_LOCK: Final = query("try_janitor_lock")
_SWEEPS: Final = {
    "sessions": query("sweep_sessions"),
    "login_attempts": query("sweep_login_attempts"),
    "join_requests": query("sweep_join_requests"),
    "bot_tokens": query("sweep_bot_tokens"),
}
_FREE_QUEUE: Final = query("free_notification_queue")
_BATCH: Final = 1_000
_QUEUE_USAGE: Final = 0.25
_SILENT_S: Final = 60.0

logger = logs.get()


@dataclass(frozen=True, slots=True)
class Swept:
    """How many rows went."""

    sessions: int = 0
    login_attempts: int = 0
    join_requests: int = 0
    bot_tokens: int = 0


class Janitor:
    """Sweeps one database, for one relay of those that share it."""

    def __init__(self, database: Database, batch: int = _BATCH) -> None:
        self._database = database
        self._batch = batch

    async def run(self, interval_s: float) -> None:
        """Sweep now and then until cancelled."""
        while True:
            try:
                await self.sweep()
                await self.free_queue()
            except (RequestError, asyncpg.PostgresError) as error:
                # The database is away or busy, and what is left to do waits; a defect in a query is there to be read.
                logger.warning("janitor.failed", exc_info=error)
            await asyncio.sleep(interval_s)

    async def sweep(self) -> Swept:
        """Delete what is out of date; nothing where another relay is at it."""
        return Swept(**{kind: await self._sweep(kind, statement) for kind, statement in _SWEEPS.items()})

    async def free_queue(self, usage: float = _QUEUE_USAGE, silent_s: float = _SILENT_S) -> int:
        """Cut off listeners that sleep while more than this share of the notification queue is used: how many."""
        async with self._database.connection() as connection:
            laggards = len(await connection.fetch(_FREE_QUEUE, usage, silent_s))
        if laggards:
            logger.warning("janitor.laggard", count=laggards)
        return laggards

    async def _sweep(self, kind: str, statement: str) -> int:
        started, total = time.monotonic(), 0
        while True:
            count = await self._delete(statement)
            total += count
            if count < self._batch:
                break
        if total:
            logger.info("janitor.swept", kind=kind, count=total, duration_ms=round((time.monotonic() - started) * 1000))
        return total

    async def _delete(self, statement: str) -> int:
        """One batch in a transaction of its own, under the lock; 0 where another relay has it."""
        async with self._database.transaction() as connection:
            if not await connection.fetchval(_LOCK):
                return 0
            return int((await connection.execute(statement, self._batch)).removeprefix("DELETE "))

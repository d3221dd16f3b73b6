"""What of files goes: those whose time has come, uploads that nobody goes on with, and then their blobs.

Rows go under a lock that one relay has at a time; triggers return the quota with them, and put their blobs into
`blob_deletions`, whatever deleted the rows. Blobs are deleted outside of any transaction: twice does no harm, and a
store that is away keeps nothing waiting but these.
"""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import asyncpg

from orbital_relay import logs
from orbital_relay.errors import RequestError
from orbital_relay.fanout import Publisher
from orbital_relay.media.base import Store, StoreError
from orbital_relay.metrics import Metrics
from orbital_relay.store import media as media_store
from orbital_relay.store.pool import Database

_BATCH: Final = 50
_POSTPONED_S: Final = 60.0
_SECOND_LOOK_S: Final = 120.0  # longer than any request to the store lives on that was given up

logger = logs.get()


@dataclass(frozen=True, slots=True)
class Reclaimed:
    """How much went."""

    files: int = 0
    uploads: int = 0
    blobs: int = 0


class Reclaimer:
    """Sweeps the files of one database and one store, beside the other relays' reclaimers."""

    def __init__(  # noqa: PLR0913  built in one place
        self,
        database: Database,
        store: Store,
        publisher: Publisher,
        metrics: Metrics,
        *,
        relay_hex: str,
        upload_ttl_s: float,
    ) -> None:
        self._database = database
        self._store = store
        self._publisher = publisher
        self._metrics = metrics
        self._relay_hex = relay_hex
        self._upload_ttl_s = upload_ttl_s
        self._nudged = asyncio.Event()

    def nudge(self) -> None:
        """Look now: something was deleted."""
        self._nudged.set()

    async def run(self, interval_s: float) -> None:
        """Sweep now and then, and when nudged, until cancelled."""
        while True:
            self._nudged.clear()
            try:
                await self.sweep()
            except (RequestError, StoreError, asyncpg.PostgresError) as error:
                logger.warning("janitor.failed", exc_info=error)
            try:
                async with asyncio.timeout(interval_s):
                    await self._nudged.wait()
            except TimeoutError:
                continue

    async def sweep(self) -> Reclaimed:
        """Remove what is due, of blobs a batch. Raise StoreError where the store would not."""
        files = await self._in_batches("media", self._expire)
        uploads = await self._in_batches("uploads", self._forget_uploads)
        blobs = await self._in_batches("blobs", self._delete_blobs, at_most=1)
        if blobs == _BATCH:
            self.nudge()  # the rest after what has expired meanwhile: a store is slower than the database
        return Reclaimed(files, uploads, blobs)

    async def _in_batches(self, kind: str, remove: Callable[[], Awaitable[int]], at_most: int = sys.maxsize) -> int:
        started, total, batches = time.monotonic(), 0, 0
        try:
            while batches < at_most and (count := await remove()):
                total += count
                batches += 1
        finally:
            if total:
                duration_ms = round((time.monotonic() - started) * 1000)
                logger.info("janitor.swept", kind=kind, count=total, duration_ms=duration_ms)
        return total

    async def _expire(self) -> int:
        async with self._database.transaction() as connection:
            if not await media_store.try_lock(connection):
                return 0
            events = await media_store.expire(connection, self._relay_hex, _BATCH)
        self._publisher.publish(events)
        self._metrics.media_expired.inc(len(events))
        return len(events)

    async def _forget_uploads(self) -> int:
        async with self._database.transaction() as connection:
            if not await media_store.try_lock(connection):
                return 0
            count = await media_store.forget_idle_uploads(connection, _BATCH, self._upload_ttl_s)
        self._metrics.media_uploads["abandoned"] += count
        return count

    async def _delete_blobs(self) -> int:
        async with self._database.connection() as connection:
            due = await media_store.list_blob_deletions(connection, _BATCH)
        for key, was_deleted in due:
            await self._delete_blob(key, is_last_time=was_deleted)
        return len(due)

    async def _delete_blob(self, key: str, *, is_last_time: bool) -> None:
        try:
            await self._store.delete(key)
        except StoreError:
            async with self._database.connection() as connection:
                await media_store.postpone_blob_deletion(connection, key, _POSTPONED_S)
            raise
        async with self._database.connection() as connection:
            if is_last_time:
                await media_store.forget_blob(connection, key)
            else:  # another relay may be just as far: that counts as one time
                await media_store.set_blob_deleted(connection, key, _SECOND_LOOK_S)

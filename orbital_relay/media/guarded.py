"""A store with limits of time and number: whatever becomes of it, its trouble stays its own.

A call that takes too long is given up by its caller, and keeps its place until it has really ended: a store that hangs
holds as many calls as there are places, and everybody else is told at once, or soon, that it is away.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from orbital_relay import logs
from orbital_relay.media.base import BlobMissing, Part, Store, Stored, StoreError
from orbital_relay.metrics import Metrics

T = TypeVar("T")

logger = logs.get()


class GuardedStore(Store):
    """Another store, of which no call lasts longer than `timeout_s`, and at most `concurrency` run at once."""

    def __init__(self, store: Store, metrics: Metrics, *, timeout_s: float, concurrency: int) -> None:
        self.is_up = True
        """Whether the store answered when it was last asked."""
        self.part_bytes = store.part_bytes
        self._store = store
        self._metrics = metrics
        self._timeout_s = timeout_s
        self._places = asyncio.Semaphore(concurrency)
        self._calls: set[asyncio.Task[Any]] = set()
        self._is_closed = False

    @property
    def identity(self) -> str:
        """The store's."""
        return self._store.identity

    async def open(self) -> None:
        """Open it within the limit."""
        async with self._in_time():
            await self._store.open()

    async def close(self) -> None:
        """Close it, and end the calls that still wait for it."""
        self._is_closed = True
        for call in self._calls:
            call.cancel()
        if self._calls:
            await asyncio.wait(self._calls)
        await self._store.close()

    async def begin(self, key: str) -> str:
        return await self._limited("begin", self._store.begin(key))

    async def append(self, key: str, state: str, part: Part, pieces: Sequence[bytes | memoryview]) -> str:
        return await self._limited("append", self._store.append(key, state, part, pieces))

    async def discard(self, key: str, part: Part) -> None:
        await self._limited("discard", self._store.discard(key, part))

    async def finish(self, key: str, state: str, parts: Sequence[Part]) -> None:
        await self._limited("finish", self._store.finish(key, state, parts))

    async def read(self, key: str, offset: int, length: int) -> bytes:
        return await self._limited("read", self._store.read(key, offset, length))

    async def size(self, key: str) -> int | None:
        return await self._limited("size", self._store.size(key))

    async def delete(self, key: str) -> None:
        await self._limited("delete", self._store.delete(key))

    async def delete_parts(self, key: str) -> None:
        await self._limited("delete_parts", self._store.delete_parts(key))

    def walk(self) -> AsyncIterator[Stored]:
        """As the store has it: whoever lists everything has time."""
        return self._store.walk()

    async def url(self, key: str, ttl_s: int) -> str | None:
        """Nothing is asked of the store for it, but the credentials to sign it with may have to be."""
        async with self._in_time():
            return await self._store.url(key, ttl_s)

    @asynccontextmanager
    async def _in_time(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._timeout_s):
                yield
        except TimeoutError:
            raise StoreError("the store does not answer in time") from None

    async def _limited(self, operation: str, call: Coroutine[Any, Any, T]) -> T:
        started = time.monotonic()
        try:
            async with self._in_time():
                answer = await self._placed(operation, call)
        except BlobMissing:
            self._note(operation, None)
            raise
        except StoreError as error:
            self._metrics.media_store_errors[operation].inc()
            self._note(operation, error)
            raise
        self._metrics.media_store_seconds.labels(operation).observe(time.monotonic() - started)
        self._note(operation, None)
        return answer

    async def _placed(self, operation: str, call: Coroutine[Any, Any, T]) -> T:
        """Begin a call once there is a place for it, and wait; to give up waiting does not end the call."""
        try:
            await self._places.acquire()
        except asyncio.CancelledError:
            call.close()
            raise
        if self._is_closed:
            self._places.release()
            call.close()
            raise StoreError("the store is closed")
        task = asyncio.create_task(call, name=f"media {operation}")
        self._calls.add(task)
        task.add_done_callback(self._ended)
        await asyncio.wait((task,))
        if task.cancelled():
            raise StoreError("the store is closed")
        return task.result()

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        self._calls.discard(task)
        self._places.release()
        if not task.cancelled():
            task.exception()  # whoever has given it up has been told already

    def _note(self, operation: str, error: Exception | None) -> None:
        if self.is_up == (error is None):
            return
        self.is_up = error is None
        if error is None:
            logger.info("media.store.recovered")
        else:
            logger.warning("media.store.unavailable", operation=operation, exc_info=error)

"""A store with limits of time and number: whatever becomes of it, its trouble stays its own.

A call that takes too long is given up by its caller, and keeps its place until it has really ended: a store that hangs
holds as many calls as there are places, and everybody else is told at once, or soon, that it is away.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from functools import partial
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
        self._finishing: dict[str, asyncio.Task[None]] = {}
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
        ending = {*self._calls, *self._finishing.values()}
        for task in ending:
            task.cancel()
        if ending:
            await asyncio.wait(ending)
        await self._store.close()

    async def begin(self, key: str) -> str:
        return await self._limited("begin", partial(self._store.begin, key))

    async def append(self, key: str, state: str, part: Part, pieces: Sequence[bytes | memoryview]) -> str:
        return await self._limited("append", partial(self._store.append, key, state, part, pieces))

    async def discard(self, key: str, state: str, parts: Sequence[Part], *, whole: bool) -> None:
        await self._limited("discard", partial(self._store.discard, key, state, parts, whole=whole))

    async def finish(self, key: str, state: str, parts: Sequence[Part]) -> None:
        """To put a large blob together takes long: whoever asks for it again waits for the same call."""
        task = self._finishing.get(key)
        if task is None:
            finishing = self._placed("finish", partial(self._store.finish, key, state, parts))
            task = self._finishing[key] = asyncio.create_task(finishing, name="media finish")
            task.add_done_callback(partial(self._finished, key))
        await self._watched("finish", _outcome(task))

    async def read(self, key: str, offset: int, length: int) -> bytes:
        return await self._limited("read", partial(self._store.read, key, offset, length))

    async def size(self, key: str) -> int | None:
        return await self._limited("size", partial(self._store.size, key))

    async def delete(self, key: str) -> None:
        await self._limited("delete", partial(self._store.delete, key))

    async def delete_parts(self, key: str) -> None:
        await self._limited("delete_parts", partial(self._store.delete_parts, key))

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

    async def _limited(self, operation: str, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        return await self._watched(operation, self._placed(operation, call))

    async def _watched(self, operation: str, answering: Coroutine[Any, Any, T]) -> T:
        started = time.monotonic()
        try:
            async with self._in_time():
                answer = await answering
        except BlobMissing:
            self._note(operation, None)
            raise
        except StoreError as error:
            self._metrics.media_store_errors[operation] += 1
            self._note(operation, error)
            raise
        self._metrics.media_store_seconds.labels(operation).observe(time.monotonic() - started)
        self._note(operation, None)
        return answer

    async def _placed(self, operation: str, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Begin a call once there is a place for it, and wait; to give up waiting does not end the call."""
        await self._places.acquire()
        if self._is_closed:
            self._places.release()
            raise StoreError("the store is closed")
        task = asyncio.create_task(call(), name=f"media {operation}")
        self._calls.add(task)
        task.add_done_callback(self._ended)
        return await _outcome(task)

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        self._calls.discard(task)
        self._places.release()
        if not task.cancelled():
            task.exception()  # whoever has given it up has been told already

    def _finished(self, key: str, task: "asyncio.Task[None]") -> None:
        del self._finishing[key]
        if not task.cancelled():
            task.exception()

    def _note(self, operation: str, error: Exception | None) -> None:
        if self.is_up == (error is None):
            return
        self.is_up = error is None
        if error is None:
            logger.info("media.store.recovered")
        else:
            logger.warning("media.store.unavailable", operation=operation, exc_info=error)


async def _outcome(task: "asyncio.Task[T]") -> T:
    """Wait for a task, which goes on for others where this is cancelled."""
    await asyncio.wait((task,))
    if task.cancelled():
        raise StoreError("the store is closed")
    return task.result()

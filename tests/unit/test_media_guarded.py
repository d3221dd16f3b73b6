"""A store whose trouble stays its own."""

import asyncio
import gc
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from orbital_relay.media.base import BlobMissing, Part, Store, Stored, StoreError
from orbital_relay.media.guarded import GuardedStore
from orbital_relay.metrics import Metrics

LIMIT_S = 10
TIMEOUT_S = 0.05


class Moody:
    """A store that answers when `awake` is set, with `error` where that is set; `calls` are those under way."""

    part_bytes = 7
    identity = "moody"

    def __init__(self) -> None:
        self.awake = asyncio.Event()
        self.awake.set()
        self.error: BaseException | None = None
        self.calls = 0
        self.began = 0
        self.is_closed = False

    async def open(self) -> None:
        await self._answer(None)

    async def close(self) -> None:
        self.is_closed = True

    async def read(self, key: str, offset: int, length: int) -> bytes:
        return await self._answer(b"bytes")

    async def finish(self, key: str, state: str, parts: Sequence[Part]) -> None:
        await self._answer(None)

    async def url(self, key: str, ttl_s: int) -> str | None:
        return await self._answer("url")

    async def walk(self) -> AsyncIterator[Stored]:
        yield Stored("key", 1)

    async def _answer(self, answer: Any) -> Any:
        self.began += 1
        self.calls += 1
        try:
            await self.awake.wait()
            if self.error:
                raise self.error
            return answer
        finally:
            self.calls -= 1


class Scene:
    def __init__(self, *, timeout_s: float = TIMEOUT_S, concurrency: int = 2) -> None:
        self.inner = Moody()
        self.metrics = Metrics()
        self.store = GuardedStore(cast(Store, self.inner), self.metrics, timeout_s=timeout_s, concurrency=concurrency)

    def sample(self, name: str) -> float:
        return self.metrics.registry.get_sample_value(name, {"operation": "read"}) or 0

    async def until(self, calls: int) -> None:
        async with asyncio.timeout(LIMIT_S):
            while self.inner.calls != calls:
                await asyncio.sleep(0.001)


@pytest_asyncio.fixture
async def scene() -> AsyncIterator[Scene]:
    async with staged() as scene:
        yield scene


@asynccontextmanager
async def staged(**limits: Any) -> AsyncIterator[Scene]:
    """What is left behind, and never looked at, is told to the loop, which makes it a failure."""
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    scene = Scene(**limits)
    try:
        async with asyncio.timeout(LIMIT_S):
            yield scene
    finally:
        await scene.store.close()
    assert scene.inner.is_closed
    assert not scene.inner.calls
    await asyncio.sleep(0)
    gc.collect()
    assert not complaints
    assert {task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("media")} == set()


async def test_what_the_store_answers(scene: Scene) -> None:
    await scene.store.open()
    assert (scene.store.part_bytes, scene.store.identity) == (7, "moody")
    assert await scene.store.read("key", 0, 1) == b"bytes"
    assert await scene.store.url("key", 1) == "url"
    assert [stored async for stored in scene.store.walk()] == [Stored("key", 1)]
    assert scene.sample("orbital_media_store_seconds_count") == 1
    assert scene.sample("orbital_media_store_errors_total") == 0


async def test_a_store_that_hangs_holds_as_many_calls_as_there_are_places(scene: Scene) -> None:
    scene.inner.awake.clear()
    started = asyncio.get_running_loop().time()
    outcomes = await asyncio.gather(*(scene.store.read("key", 0, 1) for _ in range(20)), return_exceptions=True)
    assert all(isinstance(outcome, StoreError) for outcome in outcomes)
    assert asyncio.get_running_loop().time() - started < TIMEOUT_S * 10
    assert (scene.inner.calls, scene.inner.began) == (2, 2)
    with pytest.raises(StoreError, match="in time"):
        await scene.store.read("key", 0, 1)
    assert scene.inner.began == 2
    assert scene.sample("orbital_media_store_errors_total") == 21
    scene.inner.awake.set()
    assert await scene.store.read("key", 0, 1) == b"bytes"


async def test_a_call_that_was_given_up_may_fail_unheard(scene: Scene) -> None:
    scene.inner.awake.clear()
    with pytest.raises(StoreError):
        await scene.store.read("key", 0, 1)
    scene.inner.error = StoreError("too late")
    scene.inner.awake.set()
    await scene.until(calls=0)


async def test_opening_and_addresses_take_no_longer_either(scene: Scene) -> None:
    scene.inner.awake.clear()
    for call in (scene.store.open(), scene.store.url("key", 1)):
        with pytest.raises(StoreError, match="in time"):
            await call


async def test_a_caller_who_is_cancelled_leaves_his_call_in_its_place() -> None:
    async with staged(timeout_s=LIMIT_S) as scene:
        scene.inner.awake.clear()
        callers = [asyncio.create_task(scene.store.read("key", 0, 1)) for _ in range(4)]
        await scene.until(calls=2)
        for caller in callers:
            caller.cancel()
        outcomes = await asyncio.gather(*callers, return_exceptions=True)
        assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
        assert scene.inner.calls == 2
        scene.inner.awake.set()
        await scene.until(calls=0)
        assert await asyncio.gather(*(scene.store.read("key", 0, 1) for _ in range(4))) == [b"bytes"] * 4


async def test_a_blob_that_takes_long_is_put_together_once(scene: Scene) -> None:
    scene.inner.awake.clear()
    for _ in range(2):  # each of them gives up, and comes again
        asking = [scene.store.finish("key", "", []) for _ in range(5)]
        outcomes = await asyncio.gather(*asking, return_exceptions=True)
        assert all(isinstance(outcome, StoreError) for outcome in outcomes)
    assert (scene.inner.calls, scene.inner.began) == (1, 1)
    other = asyncio.create_task(scene.store.finish("other", "", []))
    await scene.until(calls=2)
    waiting = asyncio.create_task(scene.store.finish("key", "", []))
    scene.inner.awake.set()
    await asyncio.gather(waiting, other)
    assert scene.inner.began == 2
    await scene.store.finish("key", "", [])
    assert scene.inner.began == 3


async def test_whoever_waits_for_the_same_blob_hears_the_same(scene: Scene) -> None:
    scene.inner.error = BlobMissing("not there")
    outcomes = await asyncio.gather(*(scene.store.finish("key", "", []) for _ in range(2)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [BlobMissing] * 2
    assert scene.inner.began == 1
    scene.inner.awake.clear()
    with pytest.raises(StoreError, match="in time"):
        await scene.store.finish("key", "", [])
    scene.inner.error = StoreError("too late, and nobody hears it")
    scene.inner.awake.set()
    await scene.until(calls=0)


async def test_blobs_that_wait_for_a_place_end_with_the_store(scene: Scene) -> None:
    scene.inner.awake.clear()
    finishing = [asyncio.create_task(scene.store.finish(str(number), "", [])) for number in range(5)]
    await scene.until(calls=2)
    await scene.store.close()
    for outcome in await asyncio.gather(*finishing, return_exceptions=True):
        assert isinstance(outcome, StoreError)
    assert scene.inner.began == 2


async def test_coming_and_going_are_logged_once(scene: Scene) -> None:
    ups = [scene.store.is_up]
    with capture_logs() as lines:
        scene.inner.error = StoreError("refused")
        for _ in range(3):
            with pytest.raises(StoreError, match="refused"):
                await scene.store.read("key", 0, 1)
        ups.append(scene.store.is_up)
        scene.inner.error = BlobMissing("not there")
        for _ in range(2):
            with pytest.raises(BlobMissing):
                await scene.store.read("key", 0, 1)
            ups.append(scene.store.is_up)
        scene.inner.error = None
        await scene.store.read("key", 0, 1)
    assert [*ups, scene.store.is_up] == [True, False, True, True, True]
    assert [line["event"] for line in lines] == ["media.store.unavailable", "media.store.recovered"]
    assert lines[0]["operation"] == "read"
    assert scene.sample("orbital_media_store_errors_total") == 3


async def test_an_error_is_not_its_own_cause(scene: Scene) -> None:
    """Whoever prints it with its causes would never come to an end."""
    scene.inner.error = StoreError("refused")
    with pytest.raises(StoreError) as raised:
        await scene.store.read("key", 0, 1)
    assert raised.value.__cause__ is None


async def test_a_defect_is_no_trouble_of_the_store(scene: Scene) -> None:
    scene.inner.error = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        await scene.store.read("key", 0, 1)
    assert scene.store.is_up


async def test_whoever_waits_when_it_is_closed_is_told_so() -> None:
    async with staged(timeout_s=LIMIT_S) as scene:
        scene.inner.awake.clear()
        callers = [asyncio.create_task(scene.store.read("key", 0, 1)) for _ in range(5)]
        await scene.until(calls=2)
        await scene.store.close()
        outcomes = await asyncio.gather(*callers, return_exceptions=True)
        assert all(isinstance(outcome, StoreError) for outcome in outcomes)
        with pytest.raises(StoreError, match="closed"):
            await scene.store.read("key", 0, 1)
        assert scene.inner.began == 2

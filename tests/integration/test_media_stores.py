"""The stores of files: what both promise, on a real folder and a real S3 service, and what each has of its own."""

import asyncio
import contextlib
import errno
import os
import random
import resource
import subprocess
import sys
import textwrap
import threading
import traceback
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from botocore.exceptions import ClientError

from orbital_relay.media import files, local
from orbital_relay.media.base import BlobMissing, Part, Store, Stored, StoreError, new_key
from orbital_relay.media.guarded import GuardedStore
from orbital_relay.media.local import LocalStore
from orbital_relay.media.s3 import S3Settings, S3Store
from orbital_relay.metrics import Metrics
from tests.swift import ACCESS_KEY, LISTING, REGION, Swift

LIMIT_S = 20
PART = 5 * 1024 * 1024
"""Bytes of a part that S3 takes, if it is not the last."""
NOT_OURS = ["", "..", "../../../etc/passwd", "a" * 31, "A" * 32, "a" * 32 + "\n", "a" * 32 + ".1.part", "/" + "a" * 31]


class Place:
    """Where stores keep their files: one folder, or one bucket."""

    def __init__(self, make: Callable[[], Store], stack: AsyncExitStack) -> None:
        self._make = make
        self._stack = stack

    async def store(self) -> Store:
        """Another relay's store in the same place; closed when the test ends."""
        store = self._make()
        self._stack.push_async_callback(store.close)
        await store.open()
        return store

    async def check_room(self, file: "File", sizes: dict[int, int]) -> None:
        """What these parts take, by their numbers; of S3 a byte is as good as none."""
        store = await self.store()
        if isinstance(store, LocalStore):
            found = sum(path.stat().st_size for path in store._folder.glob(f"??/{file.key}*"))
            assert found == sum(sizes.values())
            return
        assert isinstance(store, S3Store)
        try:
            answer = await store._s3.list_parts(Bucket=store._bucket, Key=store._name(file.key), UploadId=file.state)
        except ClientError as error:
            assert error.response["Error"]["Code"] == "NoSuchUpload"
            answer = {"Parts": []}  # type: ignore[typeddict-item]
        there = {part["PartNumber"]: part["Size"] for part in answer.get("Parts", [])}
        assert {number: there.get(number, 0) & ~1 for number in sizes} == sizes


def s3_settings(swift: Swift, bucket: str, **changes: Any) -> S3Settings:
    settings = S3Settings(
        bucket=bucket,
        prefix="orbital/media/",
        region=REGION,
        part_bytes=PART,
        cache_bytes=16 * 1024 * 1024,
        timeout_s=LIMIT_S,
        endpoint=swift.endpoint,
        access_key=ACCESS_KEY,
        secret_key=swift.secret,
    )
    return replace(settings, **changes)


@pytest.fixture(params=["local", "s3"])
def service(request: pytest.FixtureRequest) -> Swift | None:
    """The S3 service, which is not started for a folder's sake."""
    return request.getfixturevalue("swift") if request.param == "s3" else None


@pytest_asyncio.fixture
async def place(service: Swift | None, tmp_path: Path) -> AsyncIterator[Place]:
    async with AsyncExitStack() as stack:
        if service is None:
            yield Place(lambda: LocalStore(tmp_path / "media"), stack)
        else:
            settings = s3_settings(service, await service.make_bucket())
            yield Place(lambda: S3Store(settings), stack)


@pytest_asyncio.fixture
async def store(place: Place) -> Store:
    return await place.store()


@asynccontextmanager
async def folder_store(folder: Path) -> AsyncIterator[LocalStore]:
    store = LocalStore(folder)
    try:
        await store.open()
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def bucket_store(settings: S3Settings) -> AsyncIterator[S3Store]:
    store = S3Store(settings)
    try:
        await store.open()
        yield store
    finally:
        await store.close()


class File:
    """A file on its way: remembers what was recorded of it, as the database would."""

    def __init__(self, store: Store, seed: int = 1) -> None:
        self.key = new_key()
        self.state = ""
        self.parts: list[Part] = []
        self.data = b""
        self.generation = 1
        self._next = 1
        self._store = store
        self._random = random.Random(seed)

    async def begin(self) -> "File":
        self.state = await self._store.begin(self.key)
        return self

    def begin_again(self) -> None:
        """Whatever was not recorded is to be sent anew."""
        self.generation += 1
        self._next += 1

    async def send(self, size: int, *, recorded: bool = True) -> Part:
        """Append so many bytes; where they are not recorded, they were sent in vain."""
        data = self._random.randbytes(size)
        part = Part(self._next, self.generation, len(self.data), size)
        cut = size // 3
        tag = await self._store.append(self.key, self.state, part, [memoryview(data)[:cut], b"", data[cut:]])
        part = replace(part, tag=tag)
        if recorded:
            self.parts.append(part)
            self.data += data
            self._next += 1
        return part

    async def finish(self, store: Store | None = None) -> None:
        await (store or self._store).finish(self.key, self.state, self.parts)

    async def check(self, store: Store | None = None) -> None:
        """The blob is there, with every byte."""
        store = store or self._store
        assert await store.size(self.key) == len(self.data)
        assert await store.read(self.key, 0, len(self.data) + 1) == self.data


async def in_two_generations(store: Store) -> File:
    """A file that was begun again after a part that nobody recorded."""
    file = await File(store).begin()
    await file.send(store.part_bytes or 100_000)
    await file.send(100_007, recorded=False)
    file.begin_again()
    await file.send(1_000)
    return file


async def whole(store: Store, size: int = 1_000) -> File:
    """A file whose blob is there."""
    file = await File(store, seed=size).begin()
    await file.send(size)
    await file.finish()
    return file


async def everything(store: Store) -> list[Stored]:
    return sorted([stored async for stored in store.walk()], key=lambda stored: (stored.key, stored.size_bytes or -1))


# ── what both promise ───────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_file_of_many_parts_is_read_at_any_place(store: Store) -> None:
    file = await File(store).begin()
    for size in (PART, PART, 123_457):
        await file.send(size)
    await file.finish()
    await file.check()
    end = len(file.data)
    for offset, length in [(0, 1), (PART - 1, 2), (PART - 5, PART + 10), (end - 3, 3), (end - 3, 99), (77, 0)]:
        assert await store.read(file.key, offset, length) == file.data[offset : offset + length]
    assert await store.read(file.key, end, 10) == b""
    assert await store.read(file.key, end + 50_000_000, 10) == b""


async def test_a_file_that_was_begun_again_has_what_was_recorded(store: Store) -> None:
    file = await in_two_generations(store)
    await file.finish()
    await file.check()


async def test_bytes_that_were_written_and_not_recorded_are_not_in_the_file(store: Store) -> None:
    file = await File(store).begin()
    await file.send(1_000)
    await file.send(5_000, recorded=False)
    file.begin_again()
    await file.finish()
    await file.check()


async def test_an_empty_file(store: Store) -> None:
    key = new_key()
    await store.finish(key, "", [])
    await store.finish(key, "", [])
    assert await store.size(key) == 0
    assert await store.read(key, 0, 10) == b""
    assert await everything(store) == [Stored(key, 0)]


@pytest.mark.parametrize("make", [whole, in_two_generations])
async def test_to_finish_again_does_no_harm(place: Place, store: Store, make: Callable[[Store], Any]) -> None:
    file: File = await make(store)
    for finisher in (store, store, await place.store()):
        await file.finish(finisher)
        await file.check(finisher)
    assert await everything(store) == [Stored(file.key, len(file.data))]


async def test_many_finish_one_file_at_once(place: Place, store: Store) -> None:
    stores = [store, await place.store(), await place.store()]
    for _ in range(3):
        file = await in_two_generations(store)
        await asyncio.gather(*(file.finish(each) for each in stores))
        await file.check()


async def test_what_is_not_there(store: Store) -> None:
    key = new_key()
    state = await store.begin(key)
    for missing in (store.read(key, 0, 10), store.finish(key, state, [Part(1, 1, 0, 10, '"' + "0" * 32 + '"')])):
        with pytest.raises(BlobMissing):
            await missing
    assert await store.size(key) is None
    await store.delete_parts(key)
    await store.delete(key)
    await store.delete(key)


async def test_a_file_that_lost_a_part_is_not_finished(store: Store) -> None:
    file = await File(store).begin()
    await file.send(PART)
    file.parts.append(Part(2, 1, PART, 1_000, '"' + "0" * 32 + '"'))
    with pytest.raises(BlobMissing):
        await file.finish()
    assert await store.size(file.key) is None


async def test_a_deleted_file_is_gone_and_not_finished_again(store: Store) -> None:
    file = await whole(store)
    other = await in_two_generations(store)
    assert await store.read(file.key, 0, 10) == file.data[:10]
    for deleted in (file, other, file):
        await store.delete(deleted.key)
        assert await store.size(deleted.key) is None
        with pytest.raises(BlobMissing):
            await store.read(deleted.key, 0, 10)
        with pytest.raises(BlobMissing):
            await deleted.finish()
    assert await everything(store) == []


async def test_parts_are_deleted_without_the_blob(store: Store) -> None:
    file = await whole(store)
    other = await in_two_generations(store)
    for deleted in (file, other):
        await store.delete_parts(deleted.key)
    await file.check()
    assert await everything(store) == [Stored(file.key, len(file.data))]


@pytest.mark.parametrize("is_gone", [False, True], ids=["whole", "gone"])
async def test_a_generation_that_was_in_vain_is_discarded(place: Place, store: Store, *, is_gone: bool) -> None:
    file = await File(store).begin()
    late = [await file.send(5_000, recorded=False)]
    if is_gone:
        await store.delete(file.key)
    for _ in range(2):
        await store.discard(file.key, file.state, late, whole=True)
    await place.check_room(file, {late[0].number: 0})
    if not is_gone:
        file.begin_again()
        await file.send(1_000)
        await file.finish()
        await file.check()


async def test_the_last_parts_of_a_generation_are_discarded(place: Place, store: Store) -> None:
    file = await File(store).begin()
    kept = await file.send(store.part_bytes or 100_000)
    late = [await file.send(200_000, recorded=False)]
    file.begin_again()
    for _ in range(2):
        await store.discard(file.key, file.state, late, whole=False)
    await place.check_room(file, {kept.number: kept.size_bytes, late[0].number: 0})
    await file.send(1_000)
    await file.finish()
    await file.check()
    await store.discard(file.key, file.state, late, whole=False)
    await file.check()
    assert await everything(store) == [Stored(file.key, len(file.data))]


async def test_deleting_and_finishing_at_once_ends_in_one_of_both(place: Place, store: Store) -> None:
    deleter = await place.store()
    for number in range(6):
        file = await whole(store) if number % 2 else await in_two_generations(store)
        outcomes = await asyncio.gather(file.finish(), deleter.delete(file.key), return_exceptions=True)
        assert not [error for error in outcomes if error is not None and not isinstance(error, StoreError)]
        if await store.size(file.key) is not None:
            await file.check(deleter)
        await deleter.delete(file.key)
    assert await everything(store) == []


async def test_a_walk_finds_blobs_and_parts_in_the_order_of_their_keys(store: Store) -> None:
    count = LISTING * 2 + 3
    files = await asyncio.gather(*(whole(store, size) for size in range(1, count + 1)))
    unfinished = await in_two_generations(store)
    found = [stored async for stored in store.walk()]
    blobs = [stored for stored in found if stored.size_bytes is not None]
    assert {(stored.key, stored.size_bytes) for stored in blobs} == {(file.key, len(file.data)) for file in files}
    assert len(blobs) == count
    assert [stored.key[:2] for stored in blobs] == sorted(stored.key[:2] for stored in blobs)
    assert [stored for stored in found if stored.size_bytes is None] == [Stored(unfinished.key, None)]


async def test_what_is_no_key_is_never_looked_for(store: Store) -> None:
    part = Part(1, 1, 0, 1)
    for key in NOT_OURS:
        for call in (
            store.begin(key),
            store.append(key, "", part, [b"x"]),
            store.finish(key, "", [part]),
            store.read(key, 0, 1),
            store.size(key),
            store.delete(key),
            store.delete_parts(key),
        ):
            with pytest.raises(ValueError, match="not a blob's key"):
                await call


async def test_a_part_of_more_pieces_than_the_kernel_takes_at_once(store: Store) -> None:
    key = new_key()
    pieces: list[bytes | memoryview] = [bytes([number % 251]) * (number % 5) for number in range(3_000)]
    data = b"".join(pieces)
    state = await store.begin(key)
    part = Part(1, 1, 0, len(data))
    part = replace(part, tag=await store.append(key, state, part, pieces))
    await store.finish(key, state, [part])
    assert await store.read(key, 0, len(data)) == data


async def test_a_store_that_is_closed_says_so(place: Place) -> None:
    store = await place.store()
    file = await whole(store)
    await store.close()
    for call in (store.read(file.key, 0, 1), store.size(file.key), file.finish(), store.delete(file.key)):
        with pytest.raises(StoreError, match="closed"):
            await call
    await store.close()


async def test_one_place_has_one_identity(place: Place) -> None:
    assert len({(await place.store()).identity for _ in range(3)}) == 1


async def test_reading_on_while_others_give_up(store: Store) -> None:
    file = await whole(store, PART)
    readers = [asyncio.create_task(store.read(file.key, 0, PART)) for _ in range(6)]
    await asyncio.sleep(0)
    for reader in readers[::2]:
        reader.cancel()
    outcomes = await asyncio.gather(*readers, return_exceptions=True)
    assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes[::2])
    assert all(outcome == file.data for outcome in outcomes[1::2])


# ── a folder ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Killed(BaseException):
    """The process has ended."""


class System:
    """The system's calls, of which the `limit`th and all after it are not made any more; `calls` are their names."""

    KEPT = ("close", "strerror", "fstat", "stat", "listdir")

    def __init__(self, limit: int | None = None) -> None:
        self.calls: list[str] = []
        self._limit = limit

    def __getattr__(self, name: str) -> Any:
        value = getattr(os, name)
        if not callable(value) or name in self.KEPT:
            return value

        def call(*arguments: Any, **named: Any) -> Any:
            if self._limit is not None and len(self.calls) >= self._limit:
                raise Killed
            result = value(*arguments, **named)
            path = arguments[0]
            kind = "dir" if name == "fsync" and Path(f"/proc/self/fd/{path}").is_dir() else ""
            self.calls.append(f"{name} {kind}".strip())
            return result

        return call


@contextmanager
def system(limit: int | None = None) -> Iterator[System]:
    replaced = System(limit)
    with pytest.MonkeyPatch.context() as patch:
        for module in (local, files):
            patch.setattr(module, "os", replaced)
        yield replaced


async def killed_everywhere(prepare: Callable[[], Any], act: Callable[[Any], Any], check: Callable[[Any], Any]) -> int:
    """Do something in every way in which it can be cut short, and check what is left; return in how many."""
    for limit in range(100):
        subject = await prepare()
        with system(limit):
            try:
                await act(subject)
            except Killed:
                pass
            else:
                return limit
        await check(subject)
    raise AssertionError("it does not end")


@pytest.mark.parametrize("generations", [0, 1, 2])
async def test_finishing_is_cut_short_anywhere_and_done_again(tmp_path: Path, generations: int) -> None:
    async with folder_store(tmp_path) as store:

        async def prepare() -> File:
            if generations == 2:
                return await in_two_generations(store)
            file = File(store)
            if generations:
                await file.send(1_000)
                await file.send(50, recorded=False)
            return file

        async def check(file: File) -> None:
            size = await store.size(file.key)
            assert size in (None, len(file.data))
            if size is not None:
                await file.check()
            await file.finish()
            await file.check()
            assert await everything(store) == [Stored(file.key, len(file.data))]
            await store.delete(file.key)

        assert await killed_everywhere(prepare, lambda file: file.finish(), check) > 5


async def test_deleting_is_cut_short_anywhere_and_done_again(tmp_path: Path) -> None:
    async with folder_store(tmp_path) as store:

        async def prepare() -> File:
            file = await in_two_generations(store)
            await file.finish()
            file.begin_again()
            await file.send(10)
            return file

        async def check(file: File) -> None:
            await store.delete(file.key)
            assert await everything(store) == []

        assert await killed_everywhere(prepare, lambda file: store.delete(file.key), check) > 2


async def test_a_part_is_cut_short_anywhere_and_sent_again(tmp_path: Path) -> None:
    async with folder_store(tmp_path) as store:

        async def prepare() -> File:
            file = File(store)
            await file.send(1_000)
            file.begin_again()
            return file

        async def check(file: File) -> None:
            file.begin_again()
            await file.send(2_000)
            await file.finish()
            await file.check()

        assert await killed_everywhere(prepare, lambda file: file.send(5_000, recorded=False), check) > 2


async def test_opening_is_cut_short_anywhere_and_done_again(tmp_path: Path) -> None:
    folders = iter(range(1_000))

    async def prepare() -> LocalStore:
        return LocalStore(tmp_path / str(next(folders)))

    async def check(store: LocalStore) -> None:
        await store.open()
        identity = store.identity
        await store.close()
        await store.open()
        assert store.identity == identity
        await store.close()

    assert await killed_everywhere(prepare, lambda store: store.open(), check) > 5


async def test_what_is_acknowledged_would_outlive_a_power_cut(tmp_path: Path) -> None:
    """Bytes are synced before the name that promises them, and the name before the answer."""
    async with folder_store(tmp_path) as store:
        file = File(store)
        with system() as appended:
            await file.send(1_000)
        assert appended.calls[-3:] == ["fdatasync", "fsync dir", "fsync dir"]
        with system() as appended_more:
            await file.send(1_000)
        assert appended_more.calls[-1] == "fdatasync"
        file.begin_again()
        await file.send(1_000)
        with system() as finished:
            await file.finish()
        renamed = finished.calls.index("rename")
        assert finished.calls[renamed - 1] == "fsync"
        assert finished.calls[renamed + 1 : renamed + 3] == ["fsync dir", "fsync dir"]
        assert "unlink" not in finished.calls[:renamed]
        with system() as finished_again:
            await file.finish()
        assert "fsync dir" in finished_again.calls  # the first may have ended before it
        with system() as deleted:
            await store.delete(file.key)
        assert deleted.calls[-1] == "fsync dir"


async def test_who_breaks_off_takes_nothing_from_who_finishes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One has put the file together, and not named it yet, when another begins to, and fails."""
    put_together, go_on = threading.Event(), threading.Event()
    real = local._put_together

    def first(*arguments: Any) -> None:
        real(*arguments)
        put_together.set()
        assert go_on.wait(LIMIT_S)

    def second(*_: Any) -> None:
        raise OSError(errno.EIO, "")

    async with folder_store(tmp_path) as store:
        file = await in_two_generations(store)
        monkeypatch.setattr(local, "_put_together", first)
        finishing = asyncio.create_task(file.finish())
        assert await asyncio.to_thread(put_together.wait, LIMIT_S)
        monkeypatch.setattr(local, "_put_together", real)
        monkeypatch.setattr(local, "copy_range", second)
        try:
            with pytest.raises(StoreError, match="Input/output error"):
                await file.finish()
        finally:
            go_on.set()
        await finishing
        await file.check()


async def test_a_blob_that_gets_its_name_meanwhile_is_deleted_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = local._names_of

    def listed(key: str, directory: int) -> list[str]:
        names = real(key, directory)
        with suppress(FileNotFoundError):
            os.rename(f"{key}.1.part", key, src_dir_fd=directory, dst_dir_fd=directory)
        return names

    async with folder_store(tmp_path) as store:
        file = File(store)
        await file.send(10)
        monkeypatch.setattr(local, "_names_of", listed)
        await store.delete(file.key)
        assert await everything(store) == []


@pytest.mark.parametrize("generations", [1, 2])
async def test_bytes_that_a_folder_has_lost(tmp_path: Path, generations: int) -> None:
    async with folder_store(tmp_path) as store:
        file = File(store)
        for _ in range(generations):
            await file.send(1_000)
            file.begin_again()
        os.truncate(tmp_path / file.key[:2] / f"{file.key}.1.part", 999)
        with pytest.raises(BlobMissing):
            await file.finish()
        assert await store.size(file.key) is None
        assert not list(tmp_path.rglob("*.whole"))


async def test_a_full_disk(tmp_path: Path) -> None:
    """The limit of a file's size stands for it: the kernel takes some bytes, and then says no."""
    async with folder_store(tmp_path) as store:
        file = File(store)
        await file.send(1_000_000)
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, hard))
        try:
            with pytest.raises(StoreError, match="File too large"):
                await file.send(4_000_000, recorded=False)
            file.begin_again()
            await file.send(1_500_000)
            file.begin_again()
            await file.send(300_000)
            resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, hard))
            for _ in range(3):
                with pytest.raises(StoreError, match="File too large"):
                    await file.finish()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        assert not list(tmp_path.rglob("*.whole"))
        await file.finish()
        await file.check()


async def test_a_kernel_that_takes_little_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sparing(file: int, pieces: Sequence[memoryview], offset: int) -> int:
        return os.pwrite(file, b"".join(pieces)[:37], offset)

    with system() as replaced:
        monkeypatch.setattr(replaced, "pwritev", sparing, raising=False)
        async with folder_store(tmp_path) as store:
            await (await whole(store)).check()


async def test_links_and_other_things_are_never_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    secret = outside / "secret"
    secret.write_bytes(b"secret")
    folder = tmp_path / "media"
    async with folder_store(folder) as store:
        file = await whole(store)
        blob = folder / file.key[:2] / file.key
        blob.unlink()
        for plant in (partial(blob.symlink_to, secret), partial(os.mkfifo, blob)):
            plant()
            async with asyncio.timeout(LIMIT_S):
                with pytest.raises(StoreError):
                    await store.read(file.key, 0, 6)
                assert await store.size(file.key) is None
                assert await everything(store) == []
            again = File(store)
            again.key = file.key
            await again.send(6)
            await again.finish()
            await again.check()
            await store.delete(file.key)

        other = File(store)
        part = folder / other.key[:2] / f"{other.key}.1.part"
        part.parent.mkdir(exist_ok=True)
        for plant in (partial(part.symlink_to, secret), partial(os.mkfifo, part)):
            plant()
            async with asyncio.timeout(LIMIT_S):
                with pytest.raises(StoreError):
                    await other.send(6, recorded=False)
                with pytest.raises(StoreError):
                    await store.finish(other.key, "", [Part(1, 1, 0, 6)])
            await store.delete(other.key)
            assert not part.exists()

        elsewhere = File(store)
        while (folder / elsewhere.key[:2]).exists():
            elsewhere.key = new_key()
        (outside / elsewhere.key).write_bytes(b"secret")
        (folder / elsewhere.key[:2]).symlink_to(outside)
        for call in (
            store.read(elsewhere.key, 0, 6),
            elsewhere.send(6),
            store.finish(elsewhere.key, "", []),
            store.delete(elsewhere.key),
            everything(store),
        ):
            with pytest.raises(StoreError):
                await call
    assert secret.read_bytes() == b"secret"
    assert (outside / elsewhere.key).read_bytes() == b"secret"


async def test_foreign_files_are_left_alone(tmp_path: Path) -> None:
    async with folder_store(tmp_path) as store:
        file = await whole(store)
        home = tmp_path / file.key[:2]
        names = ["lost+found", "README", f"{file.key}.bak", f"{file.key}.1.part~", f"{'0' * 31}z", "f" * 32]
        for name in names:
            (home / name).write_bytes(b"foreign")
        (home / f"{file.key[:2]}{'a' * 30}").mkdir()
        (tmp_path / "lost+found").mkdir()
        (tmp_path / "zz").write_bytes(b"foreign")
        assert await everything(store) == [Stored(file.key, 1_000)]
        await store.delete(file.key)
        assert all((home / name).exists() for name in names if name != file.key)


async def test_a_folder_has_an_identity_of_its_own(tmp_path: Path) -> None:
    stores = [LocalStore(tmp_path / "one") for _ in range(8)]
    await asyncio.gather(*(store.open() for store in stores))
    assert len({store.identity for store in stores}) == 1
    assert [path.name for path in (tmp_path / "one").iterdir()] == [".orbital-media"]
    async with folder_store(tmp_path / "two") as other:
        assert other.identity != stores[0].identity
    for store in stores:
        await store.close()


async def test_folders_that_can_not_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    marker = tmp_path / "marked" / ".orbital-media"
    marker.parent.mkdir()
    folders = [tmp_path / "file", tmp_path / "file" / "media"]
    for text in (b"", b"x" * 32, b"0" * 31, b"0" * 33):
        marker.write_bytes(text)
        with pytest.raises(StoreError, match="not what the relay has written"):
            await LocalStore(marker.parent).open()
    marker.unlink()
    marker.symlink_to(tmp_path / "file")
    for folder in [*folders, marker.parent]:
        with pytest.raises(StoreError):
            await LocalStore(folder).open()


async def test_a_folder_that_is_a_link_is_where_the_operator_wants_it(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "media").symlink_to(tmp_path / "disk")
    async with folder_store(tmp_path / "media") as linked, folder_store(tmp_path / "disk") as direct:
        assert linked.identity == direct.identity
        await (await whole(linked)).check(direct)


async def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    def descriptors() -> list[str]:
        """What this process has open in the folder."""
        found = []
        for number in os.listdir("/proc/self/fd"):
            with contextlib.suppress(FileNotFoundError):
                found.append(os.readlink(f"/proc/self/fd/{number}"))
        return [path for path in found if path.startswith(str(tmp_path))]

    async with folder_store(tmp_path) as store:
        file = await in_two_generations(store)
        await file.finish()
        await file.check()
        with pytest.raises(BlobMissing):
            await store.read(new_key(), 0, 1)
        await everything(store)
        await store.delete(file.key)
        assert descriptors()
    async with asyncio.timeout(LIMIT_S):
        while descriptors():  # a thread may have given its answer, and not ended yet
            await asyncio.sleep(0.01)


def test_a_file_system_that_hangs_does_not_keep_the_process(tmp_path: Path) -> None:
    script = """
        import asyncio, os, sys, threading
        from pathlib import Path
        from orbital_relay.media.base import Part, StoreError, new_key
        from orbital_relay.media.guarded import GuardedStore
        from orbital_relay.media.local import LocalStore
        from orbital_relay.metrics import Metrics

        async def main():
            store = GuardedStore(LocalStore(Path(sys.argv[1])), Metrics(), timeout_s=0.1, concurrency=2)
            await store.open()
            os.pwritev = lambda *_: threading.Event().wait()
            try:
                await store.append(new_key(), "", Part(1, 1, 0, 1), [b"x"])
            except StoreError:
                print("gave up")
            await store.close()

        asyncio.run(main())
    """
    ran = python(script, str(tmp_path))
    assert ran.stdout == "gave up\n"


# ── S3 ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_part_that_somebody_else_wrote_over_is_missing(swift: Swift) -> None:
    bucket = await swift.make_bucket()
    async with bucket_store(s3_settings(swift, bucket)) as store:
        file = await File(store).begin()
        part = await file.send(1_000)
        await store.append(file.key, file.state, part, [b"other bytes"])
        with pytest.raises(BlobMissing, match="InvalidPart"):
            await file.finish()


async def test_an_upload_that_was_aborted_is_missing(swift: Swift) -> None:
    bucket = await swift.make_bucket()
    async with bucket_store(s3_settings(swift, bucket)) as store, swift.client() as client:
        file = await File(store).begin()
        await file.send(1_000)
        name = f"orbital/media/{file.key}"
        assert await swift.uploads(bucket) == [name]
        await client.abort_multipart_upload(Bucket=bucket, Key=name, UploadId=file.state)
        with pytest.raises(BlobMissing):
            await file.finish()
        with pytest.raises(BlobMissing):
            await file.send(10)


async def test_a_service_that_has_forgotten_what_it_finished(swift: Swift) -> None:
    async with bucket_store(s3_settings(swift, await swift.make_bucket())) as store:
        file = await whole(store)
        forgotten = await store.begin(file.key)
        await store.delete_parts(file.key)
        await store.finish(file.key, forgotten, file.parts)
        with pytest.raises(BlobMissing):
            await store.finish(file.key, forgotten, [replace(file.parts[0], size_bytes=999)])
        await file.check()


async def test_a_part_that_is_not_what_was_sent_is_refused(swift: Swift, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its MD5 goes along, signed: what the way changes, the service notices."""
    async with bucket_store(s3_settings(swift, await swift.make_bucket())) as store:
        file = await File(store).begin()
        monkeypatch.setattr("orbital_relay.media.s3.b64encode", lambda digest: b"AAAAAAAAAAAAAAAAAAAAAA==")
        with pytest.raises(StoreError, match="BadDigest"):
            await file.send(1_000)


async def test_foreign_objects_are_left_alone(swift: Swift) -> None:
    bucket = await swift.make_bucket()
    settings = s3_settings(swift, bucket)
    async with (
        bucket_store(settings) as store,
        bucket_store(replace(settings, prefix="")) as other,
        swift.client() as client,
    ):
        assert store.identity != other.identity
        file, elsewhere = await whole(store), await whole(other)
        for name in ("orbital/media/readme", f"orbital/media/{file.key}.bak", f"orbital/media/sub/{file.key}"):
            await client.put_object(Bucket=bucket, Key=name, Body=b"foreign")
        await client.create_multipart_upload(Bucket=bucket, Key=f"orbital/media/{file.key}.bak")
        assert await everything(store) == [Stored(file.key, 1_000)]
        assert await everything(other) == [Stored(elsewhere.key, 1_000)]
        await store.delete(file.key)
        assert len(await swift.objects(bucket)) == 4
        assert await swift.uploads(bucket) == [f"orbital/media/{file.key}.bak"]


async def fetched(url: str, method: str = "GET", data: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    """Status and body, as somebody without credentials gets them."""

    def fetch() -> tuple[int, bytes]:
        request = urllib.request.Request(url, data, headers, method=method)  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=LIMIT_S) as answer:  # noqa: S310
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, b""

    return await asyncio.to_thread(fetch)


async def test_an_address_opens_one_file_for_reading(swift: Swift) -> None:
    async with bucket_store(s3_settings(swift, await swift.make_bucket())) as store:
        file, other = await whole(store, 1_000), await whole(store, 2_000)
        url = await store.url(file.key, 60)
        assert url is not None
        assert swift.secret not in url
        assert await fetched(url) == (200, file.data)
        assert await fetched(url, Range="bytes=10-19") == (206, file.data[10:20])
        assert (await fetched(url.replace(file.key, other.key)))[0] == 403
        assert (await fetched(url.replace(f"/orbital/media/{file.key}", "/")))[0] == 403
        assert (await fetched(url.replace("X-Amz-Expires=60", "X-Amz-Expires=6000")))[0] == 403
        assert (await fetched(url, "PUT", b"changed"))[0] == 403
        assert (await fetched(url, "DELETE"))[0] == 403
        assert (await fetched(url.partition("?")[0]))[0] in (400, 403)
        await file.check()


async def test_an_address_expires(swift: Swift) -> None:
    async with bucket_store(s3_settings(swift, await swift.make_bucket())) as store:
        url = await store.url((await whole(store)).key, 1)
        assert url is not None
        async with asyncio.timeout(LIMIT_S):
            while (await fetched(url))[0] != 403:
                await asyncio.sleep(0.1)


async def test_addresses_are_those_of_the_public_endpoint(swift: Swift) -> None:
    public = swift.endpoint.replace("127.0.0.1", "localhost")
    async with bucket_store(s3_settings(swift, await swift.make_bucket(), public_endpoint=public)) as store:
        file = await whole(store)
        url = await store.url(file.key, 60)
        assert url is not None
        assert url.startswith(public)
        assert await fetched(url) == (200, file.data)


async def test_a_bucket_that_is_missing_is_no_missing_file(swift: Swift) -> None:
    async with bucket_store(s3_settings(swift, "nowhere-at-all")) as store:
        for call in (store.size(new_key()), store.read(new_key(), 0, 1), everything(store), store.delete(new_key())):
            with pytest.raises(StoreError) as raised:
                await call
            assert not isinstance(raised.value, BlobMissing)


async def test_credentials_are_not_shown(swift: Swift) -> None:
    wrong = "a-secret-that-is-wrong"
    settings = s3_settings(swift, await swift.make_bucket(), secret_key=wrong)
    async with bucket_store(settings) as store:
        with pytest.raises(StoreError) as raised:
            await store.begin(new_key())
        shown = "".join(traceback.format_exception(raised.value)) + repr(store) + repr(settings) + store.identity
    assert "SignatureDoesNotMatch" in str(raised.value)
    assert wrong not in shown


async def test_what_is_there_instead_of_the_service(swift: Swift) -> None:
    """All at once: the SDK tries again and again before it gives up."""

    @asynccontextmanager
    async def answering(answer: bytes) -> AsyncIterator[S3Store]:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                await reader.readuntil(b"\r\n\r\n")
                writer.write(answer)
                await writer.drain()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server, bucket_store(s3_settings(swift, "any", endpoint=endpoint)) as store:
            yield store

    async with (
        answering(b"") as nothing,
        answering(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 12\r\n\r\n<html><body>") as page,
        answering(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nonly this") as half,
        answering(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n<html/>") as whole_page,
        answering(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 4\r\n\r\nNo!\n") as no,
        answering(b"220 mail.example.org ESMTP\r\n") as mail,
        bucket_store(s3_settings(swift, "any", endpoint="http://127.0.0.1:1")) as nobody,
    ):
        outcomes = await asyncio.gather(
            half.read(new_key(), 0, 1_000),
            whole_page.begin(new_key()),
            whole_page.append(new_key(), "", Part(1, 1, 0, 1), [b"x"]),
            *(store.begin(new_key()) for store in (nothing, page, no, mail, nobody)),
            *(everything(store) for store in (nothing, page, no, mail, nobody)),
            return_exceptions=True,
        )
    assert all(isinstance(outcome, StoreError) for outcome in outcomes), outcomes


async def test_a_service_that_stands_still_is_given_up_and_taken_up_again(swift: Swift) -> None:
    inner = S3Store(s3_settings(swift, await swift.make_bucket(), cache_bytes=0))
    store = GuardedStore(inner, Metrics(), timeout_s=0.5, concurrency=2)
    await store.open()
    try:
        file = await whole(inner)
        swift.freeze()
        try:
            async with asyncio.timeout(LIMIT_S):
                outcomes = await asyncio.gather(
                    *(store.read(file.key, 0, 10) for _ in range(10)), return_exceptions=True
                )
            assert all(isinstance(outcome, StoreError) for outcome in outcomes)
            was_up = store.is_up
        finally:
            swift.thaw()
        async with asyncio.timeout(LIMIT_S):
            is_whole = False
            while not is_whole:  # who was frozen is slow at first
                with suppress(StoreError):
                    await file.check(store)
                    is_whole = True
        assert (was_up, store.is_up) == (False, True)
    finally:
        await store.close()


async def test_a_store_is_closed_while_the_service_stands_still(swift: Swift) -> None:
    inner = S3Store(s3_settings(swift, await swift.make_bucket()))
    store = GuardedStore(inner, Metrics(), timeout_s=LIMIT_S, concurrency=2)
    await store.open()
    file = await whole(store)
    swift.freeze()
    try:
        readers = [asyncio.create_task(store.read(file.key, 0, 10)) for _ in range(4)]
        await asyncio.sleep(0)
        async with asyncio.timeout(3):
            await store.close()
            outcomes = await asyncio.gather(*readers, return_exceptions=True)
    finally:
        swift.thaw()
    assert all(isinstance(outcome, StoreError) for outcome in outcomes)


# ── which one ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_relay_with_a_folder_does_not_load_the_sdk(tmp_path: Path) -> None:
    script = """
        import asyncio, sys
        from pathlib import Path
        import orbital_relay.cli, orbital_relay.relay
        from orbital_relay.config import Settings
        from orbital_relay.media import choose

        async def main():
            store = choose.make_store(Settings(media_dir=Path(sys.argv[1])))
            await store.open()
            await store.close()

        asyncio.run(main())
        print(*{"aioboto3", "aiobotocore", "boto3", "botocore", "aiohttp"} & sys.modules.keys())
    """
    ran = python(script, str(tmp_path / "media"))
    assert ran.stdout.split() == []
    assert not ran.stderr


def python(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script to its end."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script), *arguments],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=True,
    )

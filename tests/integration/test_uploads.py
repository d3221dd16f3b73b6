"""How chunks become durable, step by step: on a folder that writes a part only when it is let, and a real database."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from orbital_protocol.codes import ErrorCode
from orbital_protocol.frames import MediaChunk
from orbital_protocol.media import SEGMENT_BYTES, root_of
from orbital_relay.errors import Overloaded, RequestError, UploadOffset
from orbital_relay.media import uploads as product
from orbital_relay.media.base import Part, new_key
from orbital_relay.media.local import LocalStore
from orbital_relay.media.uploads import Flow, Uploads
from orbital_relay.metrics import Metrics
from orbital_relay.store import media as media_store
from orbital_relay.store.media import Begun, UploadRow, Wanted
from tests.people import Person, new_id
from tests.worlds import World, world_on

LIMIT_S = 20
CHUNK = 8 * SEGMENT_BYTES
BATCH = 8
"""Chunks of which the relay makes one part, where so many wait."""


class Gate(LocalStore):
    """A folder that begins to write a part only when that is let in, and says which ones wait."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.at_the_gate: dict[int, asyncio.Event] = {}
        self.is_open = False

    async def append(self, key: str, state: str, part: Part, pieces: Sequence[bytes | memoryview]) -> str:
        if not self.is_open:
            assert part.number not in self.at_the_gate, "a number is given once"
            self.at_the_gate[part.number] = asyncio.Event()
            await self.at_the_gate[part.number].wait()
        return await super().append(key, state, part, pieces)

    def let(self, number: int) -> None:
        """Let a part be written."""
        self.at_the_gate[number].set()


class Scene:
    """A group with a thread, and what a relay does for its uploads."""

    def __init__(self, world: World, uploads: Uploads, store: Gate, folder: Path, ann: Person) -> None:
        self.world = world
        self.uploads = uploads
        self.store = store
        self.folder = folder
        self.ann = ann
        self.group_id = b""
        self.thread_id = b""
        self._iv = os.urandom(12)

    async def begin(self, size: int, media_id: bytes | None = None) -> UploadRow:
        """Begin an upload, or begin it again."""
        wanted = Wanted(
            media_id=media_id or new_id(),
            group_id=self.group_id,
            thread_id=self.thread_id,
            user_id=self.ann.user_id,
            size_bytes=size,
            encryption_iv=self._iv,
            storage_url=new_key(),
        )
        async with self.world.database.transaction() as connection:
            assert isinstance(await media_store.begin(connection, wanted, 100), Begun)
            row = await media_store.find_upload(connection, wanted.media_id, self.ann.user_id)
        assert row is not None
        self.uploads.began(row)
        return row

    def send(self, row: UploadRow, data: bytes, first: int, count: int = 1) -> list[asyncio.Task[int]]:
        """So many chunks of a file, beginning with this one, at once."""
        sending = []
        for offset in range(first * CHUNK, (first + count) * CHUNK, CHUNK):
            request = MediaChunk(
                id=1, media_id=row.media_id, generation=row.generation, offset=offset, data=data[offset:][:CHUNK]
            )
            sending.append(asyncio.create_task(self.uploads.chunk(self.ann.caller(), request)))
        return sending

    async def until_at_the_gate(self, *numbers: int) -> None:
        """Wait until these parts have come to the store; no others have."""
        async with asyncio.timeout(LIMIT_S):
            while len(self.store.at_the_gate) < len(numbers):
                await asyncio.sleep(0.005)
        await asyncio.sleep(0.02)  # for one too many
        assert sorted(self.store.at_the_gate) == sorted(numbers)

    def on_disk(self) -> dict[str, int]:
        """What is in the folder: what follows the key, and how many bytes."""
        found = {}
        for path in self.folder.glob("??/*"):
            with contextlib.suppress(FileNotFoundError):  # it went meanwhile
                found[path.name[32:]] = path.stat().st_size
        return found


@asynccontextmanager
async def staged(
    dsn: str, folder: Path, *, memory_bytes: int = 64 * CHUNK, part_bytes: int = 0
) -> AsyncIterator[Scene]:
    async with world_on(dsn) as world:
        ann = await world.person("ann")
        store = Gate(folder)
        store.part_bytes = part_bytes
        await store.open()
        uploads = Uploads(world.database, store, Metrics(), Flow(CHUNK, 32, memory_bytes))
        scene = Scene(world, uploads, store, folder, ann)
        scene.group_id = await world.group(ann)
        scene.thread_id = await world.post(ann, scene.group_id)
        try:
            yield scene
        finally:
            for gate in store.at_the_gate.values():
                gate.set()
            await uploads.close()
            await store.close()


@pytest_asyncio.fixture
async def scene(migrated_database: str, tmp_path: Path) -> AsyncIterator[Scene]:
    async with staged(migrated_database, tmp_path / "media") as scene:
        yield scene


async def answers(sending: Sequence["asyncio.Task[int]"]) -> list[int | ErrorCode]:
    """What becomes of chunks."""
    async with asyncio.timeout(LIMIT_S):
        outcomes = await asyncio.gather(*sending, return_exceptions=True)
    return [outcome.code if isinstance(outcome, RequestError) else outcome for outcome in outcomes]  # type: ignore[misc]


async def test_the_first_part_is_alone_and_then_two_are_written_at_once(scene: Scene) -> None:
    data = os.urandom(40 * CHUNK)
    row = await scene.begin(len(data))
    sending = scene.send(row, data, 0, 32)
    await scene.until_at_the_gate(1)
    scene.store.let(1)
    await scene.until_at_the_gate(1, 2, 3)
    scene.store.let(3)  # the later one is written first, and counts only when the other one does
    await asyncio.sleep(0.05)
    assert [task.done() for task in sending] == [True] * BATCH + [False] * 3 * BATCH
    scene.store.is_open = True
    scene.store.let(2)
    assert await answers(sending) == [CHUNK * BATCH * part for part in (1, 2, 3, 4) for _ in range(BATCH)]
    await answers(scene.send(row, data, 32, 8))
    parts = await media_store.list_parts(scene.world.sql, row.media_id)
    assert root_of(part.digests for part in parts) == root_of([product._digests([data])])
    assert scene.on_disk() == {".1.part": len(data)}


async def test_what_was_overtaken_takes_no_number_and_no_room(scene: Scene) -> None:
    data = os.urandom(40 * CHUNK)
    row = await scene.begin(len(data))
    sending = scene.send(row, data, 0, 3 * BATCH)
    await scene.until_at_the_gate(1)
    scene.store.let(1)
    await scene.until_at_the_gate(1, 2, 3)
    again = await scene.begin(len(data), row.media_id)
    assert (again.generation, again.durable_bytes) == (2, BATCH * CHUNK)
    anew = scene.send(again, data, BATCH)
    await scene.until_at_the_gate(1, 2, 3, 4)  # a number that no straggler has
    scene.store.let(4)
    assert await answers(anew) == [(BATCH + 1) * CHUNK]

    scene.store.let(2)
    assert await answers(sending) == [BATCH * CHUNK] * BATCH + [ErrorCode.UPLOAD_OFFSET] * 2 * BATCH
    scene.store.let(3)  # it is still written to the file's end
    await until_on_disk(scene, {".1.part": BATCH * CHUNK, ".2.part": (BATCH + 1) * CHUNK})
    scene.store.is_open = True
    await answers(scene.send(again, data, BATCH + 1, 31))
    parts = await media_store.list_parts(scene.world.sql, row.media_id)
    assert root_of(part.digests for part in parts) == root_of([product._digests([data])])
    named = [Part(part.number, part.generation, part.first_byte, part.size_bytes) for part in parts]
    await scene.store.finish(row.storage_url, "", named)
    assert await scene.store.read(row.storage_url, 0, len(data)) == data


async def test_of_a_generation_without_a_part_nothing_stays(scene: Scene) -> None:
    data = os.urandom(2 * CHUNK)
    row = await scene.begin(len(data))
    sending = scene.send(row, data, 0, 2)
    await scene.until_at_the_gate(1)
    await scene.begin(len(data), row.media_id)
    scene.store.let(1)
    assert await answers(sending) == [ErrorCode.UPLOAD_OFFSET] * 2
    await until_on_disk(scene, {})


async def test_of_an_upload_that_is_gone_nothing_stays(scene: Scene) -> None:
    data = os.urandom(40 * CHUNK)
    row = await scene.begin(len(data))
    sending = scene.send(row, data, 0, BATCH + 1)
    await scene.until_at_the_gate(1)
    scene.store.let(1)
    await scene.until_at_the_gate(1, 2)
    async with scene.world.database.transaction() as connection:
        await media_store.drop_upload(connection, row.media_id, row.user_id)
    await scene.store.delete(row.storage_url)
    scene.store.let(2)
    assert await answers(sending) == [BATCH * CHUNK] * BATCH + [ErrorCode.NOT_FOUND]
    await until_on_disk(scene, {})


async def until_on_disk(scene: Scene, expected: dict[str, int]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while scene.on_disk() != expected:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.02)
    assert scene.on_disk() == expected


async def test_whose_part_is_not_filled_makes_room_for_others(
    migrated_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(product, "_PATIENCE_S", 0.0)
    async with staged(migrated_database, tmp_path / "m", memory_bytes=2 * CHUNK, part_bytes=2 * CHUNK) as scene:
        scene.store.is_open = True
        data = os.urandom(4 * CHUNK)
        rows = [await scene.begin(len(data)) for _ in range(3)]
        waiting = []
        for row in rows[:2]:
            waiting += scene.send(row, data, 0)
            await until_stalled(scene, row)
        assert await answers(scene.send(rows[2], data, 0, 2)) == [2 * CHUNK] * 2
        assert await answers(waiting) == [ErrorCode.OVERLOADED] * 2


async def test_an_upload_makes_no_room_at_its_own_cost(
    migrated_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(product, "_PATIENCE_S", 0.0)
    async with staged(migrated_database, tmp_path / "m", memory_bytes=2 * CHUNK, part_bytes=2 * CHUNK) as scene:
        scene.store.is_open = True
        data = os.urandom(4 * CHUNK)
        older, newer = [await scene.begin(len(data)) for _ in range(2)]
        waiting = []
        for row in (older, newer):
            waiting += scene.send(row, data, 0)
            await until_stalled(scene, row)
        assert await answers([*waiting, *scene.send(older, data, 1)]) == [2 * CHUNK, ErrorCode.OVERLOADED, 2 * CHUNK]


async def test_a_part_that_may_yet_be_filled_keeps_its_room(migrated_database: str, tmp_path: Path) -> None:
    async with staged(migrated_database, tmp_path / "m", memory_bytes=2 * CHUNK, part_bytes=2 * CHUNK) as scene:
        scene.store.is_open = True
        data = os.urandom(4 * CHUNK)
        one, other = [await scene.begin(len(data)) for _ in range(2)]
        waiting = scene.send(one, data, 0)
        await until_stalled(scene, one)
        with pytest.raises(Overloaded):
            for task in scene.send(other, data, 0, 2):
                await task
        assert await answers([*waiting, *scene.send(one, data, 1)]) == [2 * CHUNK] * 2
        with pytest.raises(UploadOffset):  # whoever was refused begins again
            await scene.send(other, data, 0)[0]


async def until_stalled(scene: Scene, row: UploadRow) -> None:
    async with asyncio.timeout(LIMIT_S):
        while scene.uploads._uploads[row.media_id].stalled_at is None:
            await asyncio.sleep(0.005)

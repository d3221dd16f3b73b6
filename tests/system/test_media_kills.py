"""kill -9 of the relay at each step of an upload, a commit, a deletion and a sweep.

After a restart and one sweep nothing is left over, nothing is lost, and every committed file is whole.

A run takes some of the steps, spread over all; with KILL_STEPS=all in the environment it takes every one.
"""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from websockets.exceptions import ConnectionClosed

from orbital_protocol import frames
from orbital_protocol.statements import MediaDeleted
from tests import doomed
from tests.commands import orbital
from tests.files import File, begin, commit, download, send, stored, usage
from tests.people import Person, found_group, says
from tests.postgres import TestPostgres
from tests.relays import media_dir_of, relay_here, running_relay
from tests.stage import Stage, stage_on
from tests.swift import Swift
from tests.talk import Talk, post_thread, talking

pytestmark = [pytest.mark.timeout(1800), pytest.mark.asyncio(loop_scope="module")]

LIMIT_S = 60
KILLS = {"local": 9, "s3": 4}
SEGMENT = 65_536
PART = 5 * 1024 * 1024
DOOMED = Path(doomed.__file__)


@dataclass
class Course:
    """A database and a store. `large` and `small`: bytes of the files; the large one has two parts, and some more."""

    stage: Stage
    store: str
    settings: dict[str, Any]
    large: int
    small: int = 5

    async def is_empty(self) -> bool:
        """Whether the store has nothing at all."""
        return not stored(media_dir_of(self.stage.dsn))


@dataclass
class S3Course(Course):
    """The same, with a bucket."""

    swift: Swift | None = None

    async def is_empty(self) -> bool:
        assert self.swift is not None
        bucket = self.settings["s3_bucket"]
        return not await self.swift.objects(bucket) and not await self.swift.uploads(bucket)


@pytest_asyncio.fixture(loop_scope="module")
async def stage(embedded_postgres: TestPostgres) -> AsyncIterator[Stage]:
    async with embedded_postgres.migrated_database() as dsn, stage_on(dsn) as stage:
        yield stage


@dataclass
class Life:
    """Two files in a group: what was done to them, as far as it was acknowledged."""

    course: Course
    ann: Person
    group_id: bytes
    large: File
    small: File
    durable: int = 0
    committed: set[bytes] = field(default_factory=set)
    deleted: set[bytes] = field(default_factory=set)
    asked_to_delete: set[bytes] = field(default_factory=set)

    @property
    def stage(self) -> Stage:
        return self.course.stage

    async def run(self, talk: Talk) -> None:
        """Upload one in two goes and delete it; upload the other and let it expire."""
        begun = await begin(talk, self.large)
        self.durable = await send(talk, self.large, begun, up_to=begun.part_bytes or begun.chunk_bytes)
        self.durable = await send(talk, self.large, await begin(talk, self.large))
        await self._commit(talk, self.large)
        await self._commit_small(talk)
        await self._delete(talk, self.large)
        sql = self.stage.sql
        await sql.execute("UPDATE media SET expires_at = clock_timestamp() WHERE id = $1", self.small.media_id)
        async with asyncio.timeout(LIMIT_S):
            while await self.due():
                await talk.ask(frames.Ping)
        self.deleted.add(self.small.media_id)

    async def _commit_small(self, talk: Talk) -> None:
        await send(talk, self.small, await begin(talk, self.small))
        await self._commit(talk, self.small)

    async def _commit(self, talk: Talk, file: File) -> None:
        await commit(talk, file)
        self.committed.add(file.media_id)

    async def _delete(self, talk: Talk, file: File) -> None:
        signed = await says(self.stage.sql, self.ann, self.group_id, MediaDeleted, media_id=file.media_id)
        self.asked_to_delete.add(file.media_id)
        await talk.ask(frames.MediaDelete, statement=signed.statement, signature=signed.signature)
        self.deleted.add(file.media_id)

    async def there(self) -> list[File]:
        """The files that the database has committed and not let go of."""
        rows = await self.stage.sql.fetch("SELECT id FROM media WHERE expires_at > clock_timestamp()")
        return [file for file in (self.large, self.small) if file.media_id in {row[0] for row in rows}]

    async def swept(self) -> None:
        """Wait until a relay has swept: nothing is due."""
        async with asyncio.timeout(LIMIT_S):
            while await self.due():
                await asyncio.sleep(0.01)

    async def due(self) -> int:
        """How much a sweep would remove."""
        count = await self.stage.sql.fetchval(
            "SELECT (SELECT count(*) FROM blob_deletions WHERE due_at <= clock_timestamp())"
            " + (SELECT count(*) FROM media WHERE expires_at <= clock_timestamp())"
        )
        assert isinstance(count, int)
        return count

    async def check(self) -> None:
        """On a new relay: nothing acknowledged is lost; what was under way goes on; then everything goes."""
        async with relay_here(self.stage.dsn, media_sweep_ms=20, **self.course.settings) as url:
            await self.swept()
            await self._check_audit()
            there = await self.there()
            ids = {file.media_id for file in there}
            assert not ids & self.deleted
            assert self.committed - self.asked_to_delete - await self._expiring() <= ids
            async with talking(url, await self.stage.token(self.ann)) as talk:
                for file in there:
                    assert await download(talk, file.media_id) == file.data
                await self._finish(talk)
            await self.swept()
            assert await usage(self.stage.sql, self.group_id) == (0, 0)
            await self._check_audit()
        assert await self.course.is_empty()

    async def _expiring(self) -> set[bytes]:
        """What the test itself has let expire."""
        gone = await self.stage.sql.fetch("SELECT object_id FROM objects WHERE expired")
        return {row[0] for row in gone}

    async def _check_audit(self) -> None:
        audit = await orbital("media", "audit", dsn=self.stage.dsn, **self.course.settings)
        assert audit.status == 0, audit.out + audit.err

    async def _finish(self, talk: Talk) -> None:
        """Go on with what was under way, from what was acknowledged at least; read it; delete all."""
        for file in (self.large, self.small):
            known = await self.stage.sql.fetchval("SELECT count(*) FROM objects WHERE object_id = $1", file.media_id)
            if not known:
                begun = await begin(talk, file)
                assert file is self.small or begun.offset >= self.durable
                await send(talk, file, begun)
                await commit(talk, file)
                assert await download(talk, file.media_id) == file.data
        for file in await self.there():
            await self._delete(talk, file)


async def live(course: Course, step: int, trace: Path) -> Life:
    """A life on a relay that dies at this step."""
    stage = course.stage
    [ann] = await stage.people(1)
    group_id = await found_group(stage.sql, ann)
    program = (sys.executable, str(DOOMED), str(step), str(trace))
    async with running_relay(stage.dsn, program=program, media_sweep_ms=300, **course.settings) as relay:
        async with talking(relay.url, await stage.token(ann)) as talk:
            thread_id, _ = await post_thread(talk, group_id)
            large, small = (File(group_id, thread_id, os.urandom(size)) for size in (course.large, course.small))
            life = Life(course, ann, group_id, large, small)
            with contextlib.suppress(ConnectionError, ConnectionClosed):
                await life.run(talk)
        if step:
            async with asyncio.timeout(LIMIT_S):
                assert await relay.process.wait() == -9  # where the files are gone already: at one of the next sweeps
    return life


def chosen(count: int, store: str) -> Sequence[int]:
    """The steps of this run."""
    if os.environ.get("KILL_STEPS") == "all":
        return range(1, count + 1)
    kills = KILLS[store]
    return sorted({1 + number * (count - 1) // (kills - 1) for number in range(kills)})


async def test_nothing_is_lost_or_left_wherever_the_relay_dies(stage: Stage, tmp_path: Path) -> None:
    await survive(Course(stage, "local", {}, 10 * SEGMENT + 5), tmp_path)


async def test_nor_where_files_are_in_a_bucket(stage: Stage, swift: Swift, tmp_path: Path) -> None:
    settings = {**swift.settings, "s3_bucket": await swift.make_bucket()}
    await survive(S3Course(stage, "s3", settings, 2 * PART + 5, swift=swift), tmp_path)


async def survive(course: Course, tmp_path: Path) -> None:
    """Live once unharmed, and then once for each chosen step."""
    trace = tmp_path / "trace"
    await (await live(course, 0, trace)).check()
    steps = trace.read_text().splitlines()
    kinds = {line.split(maxsplit=1)[1] for line in steps}
    assert {"before record_part", "after commit_upload", "after delete_media", "after expire_media"} <= kinds
    of_store = {
        "local": {"after rename", "before unlink"},
        "s3": {"after UploadPart", "before CompleteMultipartUpload"},
    }
    assert of_store[course.store] <= kinds
    for step in chosen(len(steps), course.store):
        reached = tmp_path / f"trace {step}"
        life = await live(course, step, reached)
        try:
            await life.check()
        except (AssertionError, TimeoutError) as error:
            last = reached.read_text().splitlines()[-3:]
            raise AssertionError(f"killed at step {step} of {len(steps)}, {last}") from error

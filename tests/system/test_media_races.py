"""Requests about one file that meet in the database: each is made to wait at the place where it used to go wrong."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from orbital_protocol import frames
from orbital_protocol.codes import ErrorCode
from orbital_protocol.statements import MediaDeleted
from orbital_relay.media.local import LocalStore
from orbital_relay.store.queries import query
from tests.files import File, begin, commit, download, send, upload, usage
from tests.people import connected, found_group, says
from tests.relays import relay_here
from tests.stage import Stage
from tests.talk import Refused, Talk, post_thread, talking

pytestmark = [pytest.mark.timeout(120), pytest.mark.asyncio(loop_scope="module")]

LIMIT_S = 30
SEGMENT = 65_536


class Scene:
    """A group of ann's with a thread, and two connections of hers to one relay."""

    def __init__(self, stage: Stage, ann: Any, group_id: bytes, one: Talk, other: Talk) -> None:
        self.stage = stage
        self.ann = ann
        self.group_id = group_id
        self.thread_id = b""
        self.one = one
        self.other = other

    def file(self, size: int) -> File:
        return File(self.group_id, self.thread_id, os.urandom(size))

    async def until_locked_out(self, text: str, count: int = 1) -> None:
        """Wait until so many statements with this text wait for a lock."""
        async with asyncio.timeout(LIMIT_S):
            while (
                await self.stage.sql.fetchval(
                    "SELECT count(*) FROM pg_stat_activity"
                    " WHERE wait_event_type = 'Lock' AND datname = current_database() AND strpos(query, $1) > 0",
                    text,
                )
                < count
            ):
                await asyncio.sleep(0.01)

    @asynccontextmanager
    async def holding(self, statement: str, *arguments: Any) -> AsyncIterator[Any]:
        """A transaction that has done this, and is committed at the end."""
        async with connected(self.stage.dsn) as sql, sql.transaction():
            await sql.execute(statement, *arguments)
            yield sql


@pytest_asyncio.fixture(loop_scope="module")
async def scene(stage: Stage) -> AsyncIterator[Scene]:
    [ann] = await stage.people(1)
    group_id = await found_group(stage.sql, ann)
    token = await stage.token(ann)
    async with (
        relay_here(stage.dsn, media_sweep_ms=50) as url,
        talking(url, token) as one,
        talking(url, token) as other,
    ):
        scene = Scene(stage, ann, group_id, one, other)
        scene.thread_id, _ = await post_thread(one, group_id)
        yield scene


HEAD = "SELECT FROM group_heads WHERE group_id = $1 FOR UPDATE"


async def test_a_commit_does_not_take_an_upload_that_was_begun_anew(scene: Scene) -> None:
    """While the commit waits for the group, its upload is dropped, and another one has its id."""
    file = scene.file(3 * SEGMENT)
    await send(scene.one, file, await begin(scene.one, file))
    async with scene.holding(HEAD, scene.group_id):
        committing = asyncio.create_task(commit(scene.one, file))
        await scene.until_locked_out("commit_upload")
        await scene.other.ask(frames.MediaAbort, media_id=file.media_id)
        anew = replace(file, data=os.urandom(len(file.data)))
        await send(scene.other, anew, await begin(scene.other, anew))
    with pytest.raises(Refused, match=f"^{ErrorCode.NOT_FOUND}"):
        await committing
    await commit(scene.other, anew)
    assert await download(scene.one, file.media_id) == anew.data


async def test_a_commit_does_not_take_an_upload_to_another_group(scene: Scene) -> None:
    elsewhere = await found_group(scene.stage.sql, scene.ann)
    thread_id, _ = await post_thread(scene.one, elsewhere)
    file = scene.file(3 * SEGMENT)
    await send(scene.one, file, await begin(scene.one, file))
    async with scene.holding(HEAD, scene.group_id):
        committing = asyncio.create_task(commit(scene.one, file))
        await scene.until_locked_out("commit_upload")
        await scene.other.ask(frames.MediaAbort, media_id=file.media_id)
        anew = replace(file, group_id=elsewhere, thread_id=thread_id)
        await send(scene.other, anew, await begin(scene.other, anew))
    with pytest.raises(Refused, match=f"^{ErrorCode.NOT_FOUND}"):
        await committing
    assert (await usage(scene.stage.sql, scene.group_id))[1] == 0
    await commit(scene.other, anew)
    assert await usage(scene.stage.sql, elsewhere) == (len(file.data), 1)


async def test_the_end_of_a_file_is_read_while_it_is_deleted(scene: Scene) -> None:
    """The reader has the bytes already, and only notes that they are read."""
    file = scene.file(100)
    await upload(scene.one, file)
    async with scene.holding("DELETE FROM media WHERE id = $1", file.media_id):
        reading = asyncio.create_task(download(scene.other, file.media_id))
        await scene.until_locked_out("media_downloads")
    assert await reading == file.data


async def test_an_abort_that_meets_a_deletion_of_the_group_is_tried_again(scene: Scene) -> None:
    """A cascade has the quota and wants the second upload; the abort has that and wants the quota."""
    one, other = scene.file(1), scene.file(1)
    await begin(scene.one, one)
    await begin(scene.one, other)
    async with scene.holding("DELETE FROM uploads WHERE media_id = $1", one.media_id) as sql:
        await sql.execute("SET LOCAL deadlock_timeout = '60s'")  # so that it is the abort which is given up
        aborting = asyncio.create_task(scene.other.ask(frames.MediaAbort, media_id=other.media_id))
        await scene.until_locked_out("DELETE FROM uploads")
        await sql.execute("DELETE FROM uploads WHERE media_id = $1", other.media_id)
    assert isinstance(await aborting, frames.Ok)
    assert await usage(scene.stage.sql, scene.group_id) == (0, 0)


async def test_an_abort_of_what_is_being_committed_says_so(scene: Scene) -> None:
    file = scene.file(100)
    await send(scene.one, file, await begin(scene.one, file))
    # The commit stops where it has the upload already: at the author's row, which the file names.
    async with scene.holding("SELECT FROM users WHERE id = $1 FOR UPDATE", scene.ann.user_id):
        committing = asyncio.create_task(commit(scene.one, file))
        await scene.until_locked_out("commit_upload")
        aborting = asyncio.create_task(scene.other.ask(frames.MediaAbort, media_id=file.media_id))
        await scene.until_locked_out("DELETE FROM uploads")
    await committing
    with pytest.raises(Refused, match=f"^{ErrorCode.ID_CONFLICT}"):
        await aborting
    assert await download(scene.one, file.media_id) == file.data


async def test_the_sweep_leaves_an_upload_that_was_just_gone_on_with(scene: Scene) -> None:
    file = scene.file(3 * SEGMENT)
    await begin(scene.one, file)
    old = "UPDATE uploads SET updated_at = clock_timestamp() - INTERVAL '2 hours' WHERE media_id = $1"
    new = "UPDATE uploads SET updated_at = clock_timestamp() WHERE media_id = $1"
    await scene.stage.sql.execute(old, file.media_id)
    async with connected(scene.stage.dsn) as sweeper:
        async with scene.holding(new, file.media_id):
            sweeping = asyncio.create_task(sweeper.execute(query("sweep_uploads"), 50, 3_600.0))
            await scene.until_locked_out("DELETE FROM uploads")
        assert await sweeping == "DELETE 0"
    await send(scene.one, file, await begin(scene.one, file))
    await commit(scene.one, file)


async def test_files_expire_while_there_is_more_to_delete_than_the_store_deletes(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = scene.file(10)
    await upload(scene.one, file)
    let = asyncio.Event()
    delete = LocalStore.delete

    async def endless(self: LocalStore, key: str) -> None:
        """As soon as a blob is deleted, another one is to be."""
        await delete(self, key)
        if not let.is_set():
            async with connected(scene.stage.dsn) as sql:
                await sql.execute("INSERT INTO blob_deletions (storage_url) VALUES ($1)", os.urandom(16).hex())

    monkeypatch.setattr(LocalStore, "delete", endless)
    await scene.stage.sql.executemany(
        "INSERT INTO blob_deletions (storage_url) VALUES ($1)", [(os.urandom(16).hex(),) for _ in range(60)]
    )
    try:
        async with asyncio.timeout(LIMIT_S):
            while not await scene.stage.sql.fetchval("SELECT EXISTS (SELECT FROM blob_deletions WHERE is_deleted)"):
                await asyncio.sleep(0.01)
            await scene.stage.sql.execute("UPDATE media SET expires_at = clock_timestamp()")
            while await scene.stage.sql.fetchval("SELECT EXISTS (SELECT FROM media)"):
                await asyncio.sleep(0.01)
    finally:
        let.set()


async def gone(scene: Scene) -> None:
    """Wait until the store has deleted whatever there was to delete."""
    async with asyncio.timeout(LIMIT_S):
        while await scene.stage.sql.fetchval("SELECT EXISTS (SELECT FROM blob_deletions WHERE NOT is_deleted)"):
            await asyncio.sleep(0.01)


async def test_a_file_that_is_deleted_while_it_is_read_is_not_a_lost_one(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = scene.file(10)
    await upload(scene.one, file)
    read = LocalStore.read

    async def late(self: LocalStore, key: str, offset: int, length: int) -> bytes:
        statement = await says(scene.stage.sql, scene.ann, scene.group_id, MediaDeleted, media_id=file.media_id)
        await scene.other.ask(frames.MediaDelete, statement=statement.statement, signature=statement.signature)
        await gone(scene)
        return await read(self, key, offset, length)

    monkeypatch.setattr(LocalStore, "read", late)
    with capture_logs() as logged, pytest.raises(Refused, match=f"^{ErrorCode.NOT_FOUND}"):
        await download(scene.one, file.media_id)
    assert "media.blob.missing" not in [line["event"] for line in logged]


async def test_an_upload_that_is_aborted_while_it_is_finished_is_not_a_lost_one(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = scene.file(10)
    await send(scene.one, file, await begin(scene.one, file))
    finish = LocalStore.finish

    async def late(self: LocalStore, key: str, state: str, parts: Any) -> None:
        await scene.other.ask(frames.MediaAbort, media_id=file.media_id)
        await gone(scene)
        await finish(self, key, state, parts)

    monkeypatch.setattr(LocalStore, "finish", late)
    with capture_logs() as logged, pytest.raises(Refused, match=f"^{ErrorCode.NOT_FOUND}"):
        await commit(scene.one, file)
    assert "media.blob.missing" not in [line["event"] for line in logged]


async def test_two_relays_that_delete_a_blob_at_once_have_looked_once(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a request that was given up leaves behind is found by the second look, after a while."""
    key, next_one = "a" * 32, "b" * 32
    meeting, met = asyncio.Barrier(2), asyncio.Event()
    delete = LocalStore.delete
    noted = "SELECT is_deleted FROM blob_deletions WHERE storage_url = $1"

    async def together(self: LocalStore, deleted: str) -> None:
        place = await meeting.wait() if deleted in (key, next_one) else None
        if deleted == next_one:
            met.set()  # both have done with the first one
        await delete(self, deleted)
        while deleted == key and place == 0 and not await scene.stage.sql.fetchval(noted, key):
            await asyncio.sleep(0.01)

    monkeypatch.setattr(LocalStore, "delete", together)
    async with relay_here(scene.stage.dsn, media_sweep_ms=50), asyncio.timeout(LIMIT_S):
        for blob in (key, next_one):
            await scene.stage.sql.execute("INSERT INTO blob_deletions (storage_url) VALUES ($1)", blob)
        await met.wait()
        due = await scene.stage.sql.fetchrow(
            "SELECT is_deleted, due_at > now() + INTERVAL '1 minute' FROM blob_deletions WHERE storage_url = $1", key
        )
        assert due is not None and tuple(due) == (True, True)

"""Files, from their first byte to their last day, on whole relays: what is promised, and what bad input gets."""

import asyncio
import itertools
import os
import random
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from orbital_protocol import chain, frames
from orbital_protocol.codes import ErrorCode, Kind, Scope
from orbital_protocol.statements import GroupDeleted, MediaDeleted, MemberRemoved, PostDeleted
from tests.commands import orbital_process
from tests.files import CHUNK, File, begin, chunk, commit, download, send, stored, upload, usage
from tests.people import Person, admit, found_group, new_id, says
from tests.relays import RunningRelay, media_dir_of, running_relay
from tests.stage import Stage, stage_on
from tests.talk import Refused, Talk, check_steps, post_thread, subscribe, talking

pytestmark = [pytest.mark.timeout(120), pytest.mark.asyncio(loop_scope="module")]

LIMIT_S = 30
MIB = 1024 * 1024
SEGMENT = 65_536


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def relays(stage: Stage) -> AsyncIterator[tuple[RunningRelay, RunningRelay]]:
    """Two relays on one database and one folder, which look for what has to go twenty times a second."""
    async with (
        running_relay(stage.dsn, media_sweep_ms=50) as one,
        running_relay(stage.dsn, media_sweep_ms=50) as other,
    ):
        yield one, other


@pytest.fixture
def folder(stage: Stage) -> Path:
    return media_dir_of(stage.dsn)


@dataclass
class Scene:
    """A group of two, and a thread in it. `talk` is ann's connection."""

    stage: Stage
    ann: Person
    bob: Person
    group_id: bytes
    thread_id: bytes
    talk: Talk

    def file(self, size: int, **fields: Any) -> File:
        """A file for the thread, of random bytes."""
        return File(self.group_id, self.thread_id, os.urandom(size), **fields)

    async def usage(self) -> tuple[int, int]:
        return await usage(self.stage.sql, self.group_id)

    async def ask_signed(self, talk: Talk, person: Person, request: Any, kind: Any, **own: Any) -> Any:
        """Make a control request, whose statement the person signs."""
        signed = await says(self.stage.sql, person, self.group_id, kind, **own)
        return await talk.ask(request, statement=signed.statement, signature=signed.signature)

    async def key_of(self, media_id: bytes) -> str:
        """The name of a file's blob."""
        key = await self.stage.sql.fetchval(
            "SELECT storage_url FROM media WHERE id = $1 UNION ALL SELECT storage_url FROM uploads WHERE media_id = $1",
            media_id,
        )
        assert isinstance(key, str)
        return key

    async def swept(self) -> None:
        """Wait until no blob is due to be deleted."""
        async with asyncio.timeout(LIMIT_S):
            while await self.stage.sql.fetchval("SELECT count(*) FROM blob_deletions WHERE due_at <= now()"):
                await asyncio.sleep(0.01)


@asynccontextmanager
async def scene_on(stage: Stage, relay: RunningRelay) -> AsyncIterator[Scene]:
    ann, bob = await stage.people(2)
    group_id = await found_group(stage.sql, ann, bob)
    async with talking(relay.url, await stage.token(ann)) as talk:
        thread_id, _ = await post_thread(talk, group_id)
        yield Scene(stage, ann, bob, group_id, thread_id, talk)


@pytest_asyncio.fixture(loop_scope="module")
async def scene(stage: Stage, relays: tuple[RunningRelay, RunningRelay]) -> AsyncIterator[Scene]:
    async with scene_on(stage, relays[0]) as scene:
        yield scene


def refused(code: ErrorCode) -> Any:
    return pytest.raises(Refused, match=f"^{code}:")


# ── up and down ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("size", [0, 1, SEGMENT, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 7])
async def test_a_file_comes_back_as_it_was(scene: Scene, relays: Any, size: int) -> None:
    """Uploaded on one relay, heard of and read on the other; the event is verified by what it brings."""
    async with talking(relays[1].url, await scene.stage.token(scene.bob)) as bob:
        await subscribe(bob, scene.group_id, 0, bytes(32))
        file = scene.file(size)
        posted = await upload(scene.talk, file)
        events = await bob.has(posted.seq, scene.group_id)
        check_steps(events)
        event = events[-1]
        assert (event.kind, event.object_id, event.actor_id) == (Kind.MEDIA_POSTED, file.media_id, scene.ann.user_id)
        assert (event.thread_id, event.encrypted_metadata, event.size_bytes) == (scene.thread_id, file.metadata, size)
        assert (event.encryption_iv, event.root) == (file.encryption_iv, file.root)
        fields = chain.media_fields(file.metadata, file.encryption_iv, size, file.root)
        expected = chain.content_hash(scene.thread_id, [chain.field_hash(field) for field in fields])
        assert event.content_hash == posted.content_hash == expected

        info = (await bob.ask(frames.MediaGet, media_id=file.media_id)).media
        assert (info.downloaded, info.root, info.seq) == (False, file.root, posted.seq)
        assert info.expires_at - info.uploaded_at == 7 * 86_400_000_000
        assert info.uploaded_at == event.created_at
        assert await download(bob, file.media_id) == file.data
        assert (await bob.ask(frames.MediaGet, media_id=file.media_id)).media.downloaded
        assert not (await scene.talk.ask(frames.MediaGet, media_id=file.media_id)).media.downloaded
    quota = await scene.talk.ask(frames.QuotaGet, group_id=scene.group_id)
    assert (quota.total_bytes, quota.media_count) == (size, 1) == await scene.usage()
    assert (quota.max_bytes, quota.max_media_count) == (10 * 1024**3, 100)


async def test_an_event_of_a_file_is_replayed_as_it_was_pushed(scene: Scene) -> None:
    await subscribe(scene.talk, scene.group_id)
    posted = await upload(scene.talk, scene.file(10))
    live = (await scene.talk.has(posted.seq, scene.group_id))[-1]
    page = await scene.talk.ask(frames.EventList, group_id=scene.group_id, after_seq=posted.seq - 1)
    assert page.events == [live]
    [kept] = (await scene.talk.ask(frames.EventList, group_id=scene.group_id, kinds=[Kind.MEDIA_POSTED])).events
    assert kept == live


async def test_ranges_are_read_as_asked(scene: Scene) -> None:
    file = scene.file(2 * CHUNK + 100)
    await upload(scene.talk, file)
    for offset, length in (
        (0, 1),
        (CHUNK - 1, 2),
        (2 * CHUNK, 100),
        (2 * CHUNK + 50, CHUNK),
        (2 * CHUNK + 100, 5),
        (7, 0),
    ):
        answer = await scene.talk.ask(frames.MediaRead, media_id=file.media_id, offset=offset, length=length)
        assert answer.data == file.data[offset : offset + length]


async def test_reads_that_were_sent_together_are_answered_in_order(scene: Scene) -> None:
    file = scene.file(4 * CHUNK)
    await upload(scene.talk, file)
    reads = [
        frames.MediaRead(id=scene.talk.next_id(), media_id=file.media_id, offset=at, length=CHUNK)
        for at in range(0, 4 * CHUNK, CHUNK)
    ]
    async with asyncio.timeout(LIMIT_S):
        answers = await asyncio.gather(*[scene.talk.send(read) for read in reads])
    assert b"".join(answer.data for answer in answers if isinstance(answer, frames.MediaReadOk)) == file.data
    ours = [request_id for request_id in scene.talk.answer_order if request_id in {read.id for read in reads}]
    assert ours == [read.id for read in reads]


async def test_everybody_hears_at_once_what_this_relay_has_done(stage: Stage) -> None:
    """Of a file that came, was deleted, or expired: not only when somebody looks at the heads."""
    async with running_relay(stage.dsn, sweep_ms=600_000, media_sweep_ms=50) as relay, scene_on(stage, relay) as scene:
        await subscribe(scene.talk, scene.group_id)
        deleted, expired = scene.file(10), scene.file(10)
        for file in (deleted, expired):
            await upload(scene.talk, file)
            assert (await scene.talk.hear(frames.Event)).kind == Kind.MEDIA_POSTED
        await scene.ask_signed(scene.talk, scene.ann, frames.MediaDelete, MediaDeleted, media_id=deleted.media_id)
        assert (await scene.talk.hear(frames.Event)).kind == Kind.MEDIA_DELETED
        await stage.sql.execute("UPDATE media SET expires_at = clock_timestamp() WHERE id = $1", expired.media_id)
        assert (await scene.talk.hear(frames.Event)).kind == Kind.MEDIA_EXPIRED


async def test_files_are_listed_in_pages(scene: Scene) -> None:
    other, _ = await post_thread(scene.talk, scene.group_id)
    files = [scene.file(10 + number) for number in range(5)]
    files[2] = replace(files[2], thread_id=other)
    for file in files:
        await upload(scene.talk, file)
    ids = [file.media_id for file in files]

    async def listed(**fields: Any) -> tuple[list[bytes], bool]:
        page = await scene.talk.ask(frames.MediaList, group_id=scene.group_id, **fields)
        assert all(media.group_id == scene.group_id for media in page.media)
        return [media.media_id for media in page.media], page.more

    assert await listed() == (ids, False)
    assert await listed(limit=2) == (ids[3:], True)
    assert await listed(limit=2, after_seq=0) == (ids[:2], True)
    assert await listed(limit=5, after_seq=0) == (ids, False)
    assert await listed(thread_id=other) == ([ids[2]], False)
    seq = (await scene.talk.ask(frames.MediaGet, media_id=ids[2])).media.seq
    assert await listed(before_seq=seq, limit=1) == ([ids[1]], True)
    assert await listed(after_seq=seq) == (ids[3:], False)
    with refused(ErrorCode.BAD_ARGUMENT):
        await listed(after_seq=1, before_seq=2)
    with refused(ErrorCode.NOT_FOUND):
        await listed(thread_id=new_id())


async def test_a_file_can_be_annotated_until_it_is_gone(scene: Scene) -> None:
    file = scene.file(10)
    await upload(scene.talk, file)

    async def annotate() -> Any:
        return await scene.talk.ask(
            frames.AnnotationPost,
            group_id=scene.group_id,
            key_epoch=1,
            target_id=file.media_id,
            annotation_id=new_id(),
            encrypted_body=b"a reaction",
        )

    await annotate()
    await scene.ask_signed(scene.talk, scene.ann, frames.MediaDelete, MediaDeleted, media_id=file.media_id)
    with refused(ErrorCode.NOT_FOUND):
        await annotate()


# ── interruptions ───────────────────────────────────────────────────────────────────────────────────────────────────


async def test_an_upload_cut_ten_times_goes_on_at_the_other_relay(scene: Scene, relays: Any) -> None:
    chance = random.Random(20261125)
    file = scene.file(15 * MIB + 12_345)
    token = await scene.stage.token(scene.ann)
    durable = 0
    for turn in range(10):
        async with talking(relays[turn % 2].url, token) as talk:
            begun = await begin(talk, file)
            assert begun.offset >= durable, "what was acknowledged is durable"
            assert begun.offset % SEGMENT == 0
            assert begun.generation == turn + 1
            size = SEGMENT * chance.randrange(1, 9)
            starts = [begun.offset, begun.offset + size, begun.offset + 2 * size]
            sending = [talk.send(chunk(talk, file, begun, at, size)) for at in starts]
            for answer in sending[: chance.randrange(4)]:
                ok = await answer
                assert isinstance(ok, frames.MediaChunkOk)
                durable = ok.offset
            talk.cut()
    async with talking(relays[0].url, token) as talk:
        begun = await begin(talk, file)
        assert len(file.data) > begun.offset >= durable
        await send(talk, file, begun)
        await commit(talk, file)
        assert await download(talk, file.media_id) == file.data
    assert await scene.usage() == (len(file.data), 1)


async def test_of_two_who_upload_the_same_file_the_later_one_goes_on(scene: Scene, relays: Any) -> None:
    """Chunks of the older generation are refused with where the upload stands, whichever relay they come to."""
    file = scene.file(4 * CHUNK)
    first = await begin(scene.talk, file)
    await send(scene.talk, file, first, up_to=CHUNK)
    async with talking(relays[1].url, await scene.stage.token(scene.ann)) as other:
        second = await begin(other, file)
        assert (second.offset, second.generation) == (CHUNK, first.generation + 1)
        with pytest.raises(Refused) as late:
            await scene.talk.send(chunk(scene.talk, file, first, CHUNK))
        assert late.value.code == ErrorCode.UPLOAD_OFFSET
        assert late.value.error.details is not None
        assert (late.value.error.details.offset, late.value.error.details.generation) == (CHUNK, second.generation)
        await send(other, file, second)
        await commit(other, file)
        assert await download(other, file.media_id) == file.data


async def test_what_a_frozen_relay_still_writes_changes_nothing(scene: Scene, stage: Stage) -> None:
    """It thaws when the file has been finished elsewhere, with other bytes than those it holds."""
    file = scene.file(6 * CHUNK)
    other = replace(file, data=os.urandom(len(file.data)))
    token = await stage.token(scene.ann)
    async with running_relay(stage.dsn) as frozen, talking(frozen.url, token) as talk:
        begun = await begin(talk, other)
        await send(talk, other, begun, up_to=0)
        frozen.signal(signal.SIGSTOP)
        late = [talk.send(chunk(talk, other, begun, at)) for at in range(0, len(other.data), CHUNK)]
        now = await begin(scene.talk, file)
        await send(scene.talk, file, now)
        await commit(scene.talk, file)
        frozen.signal(signal.SIGCONT)
        async with asyncio.timeout(LIMIT_S):
            outcomes = await asyncio.gather(*late, return_exceptions=True)
        codes = {outcome.code for outcome in outcomes if isinstance(outcome, Refused)}
        assert codes <= {ErrorCode.NOT_FOUND, ErrorCode.UPLOAD_OFFSET} and len(outcomes) == len(late)
        assert not [outcome for outcome in outcomes if isinstance(outcome, frames.Ok)]
    assert await download(scene.talk, file.media_id) == file.data
    assert stored(media_dir_of(stage.dsn)) & {f"{await scene.key_of(file.media_id)}.1.part"} == set()


async def test_what_a_frozen_relay_still_writes_is_not_taken_for_the_next_upload(scene: Scene, stage: Stage) -> None:
    """Dropped, and begun anew under the same id: generation and part have the same numbers, the blob another name."""
    file = scene.file(3 * CHUNK)
    other = replace(file, data=os.urandom(len(file.data)))
    async with running_relay(stage.dsn) as frozen, talking(frozen.url, await stage.token(scene.ann)) as late:
        first = await begin(late, other)
        frozen.signal(signal.SIGSTOP)
        sent = [late.send(chunk(late, other, first, at)) for at in range(0, len(other.data), CHUNK)]
        await scene.talk.ask(frames.MediaAbort, media_id=file.media_id)
        begun = await begin(scene.talk, file)
        assert begun.generation == first.generation
        frozen.signal(signal.SIGCONT)
        async with asyncio.timeout(LIMIT_S):
            outcomes = await asyncio.gather(*sent, return_exceptions=True)
        assert not [outcome for outcome in outcomes if isinstance(outcome, frames.Ok)]
    await send(scene.talk, file, begun)
    await commit(scene.talk, file)
    assert await download(scene.talk, file.media_id) == file.data


async def test_a_chunk_that_comes_again_is_told_where_the_upload_stands(scene: Scene) -> None:
    file = scene.file(2 * CHUNK)
    begun = await begin(scene.talk, file)
    await send(scene.talk, file, begun, up_to=CHUNK)
    with pytest.raises(Refused) as again:
        await scene.talk.send(chunk(scene.talk, file, begun, 0))
    assert again.value.code == ErrorCode.UPLOAD_OFFSET
    assert again.value.error.details is not None and again.value.error.details.offset == CHUNK
    await scene.talk.send(chunk(scene.talk, file, begun, CHUNK))
    await commit(scene.talk, file)


async def test_a_commit_waits_for_the_chunks_before_it(scene: Scene) -> None:
    file = scene.file(5 * CHUNK + 1)
    begun = await begin(scene.talk, file)
    sent = [scene.talk.send(chunk(scene.talk, file, begun, at)) for at in range(0, len(file.data), CHUNK)]
    await commit(scene.talk, file)
    assert all(future.done() and not future.exception() for future in sent)
    assert await download(scene.talk, file.media_id) == file.data


async def test_repeating_is_safe(scene: Scene, relays: Any) -> None:
    """Commit again, begin again after it, abort twice; and what is not there can't be committed."""
    file = scene.file(10)
    first = await upload(scene.talk, file)
    async with talking(relays[1].url, await scene.stage.token(scene.ann)) as other:
        again = await commit(other, file)
        assert (again.seq, again.hash, again.created_at, again.duplicate) == (
            first.seq,
            first.hash,
            first.created_at,
            True,
        )
        begun = await begin(other, file)
        assert (begun.offset, begun.generation) == (10, 0)
        assert (await commit(other, file)).duplicate
    with refused(ErrorCode.ID_CONFLICT):
        await scene.talk.ask(frames.MediaAbort, media_id=file.media_id)
    dropped = scene.file(10)
    await begin(scene.talk, dropped)
    for _ in range(2):
        await scene.talk.ask(frames.MediaAbort, media_id=dropped.media_id)
    with refused(ErrorCode.NOT_FOUND):
        await commit(scene.talk, dropped)
    assert await scene.usage() == (10, 1)


# ── bad input ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def nothing_is_left(scene: Scene, folder: Path, key: str) -> None:
    """Neither row, nor quota, nor any byte."""
    assert await scene.usage() == (0, 0)
    await scene.swept()
    assert not [name for name in stored(folder) if name.startswith(key)]


@pytest.mark.produces(ErrorCode.UPLOAD_OFFSET)
async def test_a_wrong_offset_is_told_the_right_one(scene: Scene) -> None:
    file = scene.file(3 * CHUNK)
    begun = await begin(scene.talk, file)
    for offset in (CHUNK, SEGMENT, 2 * CHUNK):
        with pytest.raises(Refused) as wrong:
            await scene.talk.send(chunk(scene.talk, file, begun, offset))
        assert wrong.value.code == ErrorCode.UPLOAD_OFFSET
        assert wrong.value.error.details is not None and wrong.value.error.details.offset == 0
    await send(scene.talk, file, begun)  # nothing was lost by it
    await commit(scene.talk, file)


async def test_more_bytes_than_announced_end_the_upload(scene: Scene, folder: Path) -> None:
    file = scene.file(CHUNK + 10)
    begun = await begin(scene.talk, file)
    await send(scene.talk, file, begun, up_to=CHUNK)
    key = await scene.key_of(file.media_id)
    longer = replace(file, data=file.data + b"x")
    with refused(ErrorCode.BAD_ARGUMENT):
        await scene.talk.send(chunk(scene.talk, longer, begun, CHUNK))
    await nothing_is_left(scene, folder, key)
    with refused(ErrorCode.NOT_FOUND):
        await scene.talk.send(chunk(scene.talk, file, begun, CHUNK))


async def test_a_wrong_root_ends_the_upload(scene: Scene, folder: Path) -> None:
    file = scene.file(CHUNK + 10)
    await send(scene.talk, file, await begin(scene.talk, file))
    key = await scene.key_of(file.media_id)
    with refused(ErrorCode.BAD_ARGUMENT):
        await commit(scene.talk, file, root=os.urandom(32))
    await nothing_is_left(scene, folder, key)


async def test_a_wrong_size_ends_the_upload(scene: Scene, folder: Path) -> None:
    """A commit before all bytes are there."""
    file = scene.file(2 * CHUNK)
    await send(scene.talk, file, await begin(scene.talk, file), up_to=CHUNK)
    key = await scene.key_of(file.media_id)
    with refused(ErrorCode.BAD_ARGUMENT):
        await commit(scene.talk, file)
    await nothing_is_left(scene, folder, key)


async def test_chunks_are_of_whole_segments_and_not_too_large(scene: Scene) -> None:
    file = scene.file(3 * CHUNK)
    begun = await begin(scene.talk, file)
    for size in (0, 1, SEGMENT - 1, SEGMENT + 1):
        with refused(ErrorCode.BAD_ARGUMENT):
            await scene.talk.send(chunk(scene.talk, file, begun, 0, size))
    with pytest.raises(Refused) as large:
        await scene.talk.send(chunk(scene.talk, file, begun, 0, CHUNK + SEGMENT))
    assert large.value.code == ErrorCode.TOO_LARGE
    assert large.value.error.details is not None and large.value.error.details.limit == CHUNK
    with refused(ErrorCode.TOO_LARGE):
        await scene.talk.ask(frames.MediaRead, media_id=file.media_id, offset=0, length=CHUNK + 1)
    await scene.talk.send(chunk(scene.talk, file, begun, 0, SEGMENT))
    await scene.talk.ask(frames.MediaAbort, media_id=file.media_id)


@pytest.mark.produces(ErrorCode.QUOTA_EXCEEDED)
async def test_over_quota_is_told_what_is_free(scene: Scene) -> None:
    sql = scene.stage.sql
    await sql.execute("UPDATE group_quotas SET max_bytes = 1000 WHERE group_id = $1", scene.group_id)
    await begin(scene.talk, scene.file(600))
    with pytest.raises(Refused) as over:
        await begin(scene.talk, scene.file(401))
    assert over.value.code == ErrorCode.QUOTA_EXCEEDED
    assert over.value.error.details is not None
    assert (over.value.error.details.free_bytes, over.value.error.details.free_count) == (400, 99)
    await begin(scene.talk, scene.file(400))
    await sql.execute(
        "UPDATE group_quotas SET max_media_count = 2, max_bytes = 9999 WHERE group_id = $1", scene.group_id
    )
    with pytest.raises(Refused) as many:
        await begin(scene.talk, scene.file(1))
    assert many.value.error.details is not None
    assert (many.value.error.details.free_bytes, many.value.error.details.free_count) == (8999, 0)
    assert await scene.usage() == (1000, 2)


async def test_what_begins_must_fit(scene: Scene) -> None:
    file = scene.file(100)
    with refused(ErrorCode.TOO_LARGE):
        await begin(scene.talk, file, size_bytes=2**30 + 1)
    with refused(ErrorCode.NOT_FOUND):
        await begin(scene.talk, file, thread_id=new_id())
    with refused(ErrorCode.NOT_FOUND):
        await begin(scene.talk, file, group_id=new_id())
    with refused(ErrorCode.BAD_ARGUMENT):
        await begin(scene.talk, file, media_id=bytes(16))
    with refused(ErrorCode.ID_CONFLICT):
        await begin(scene.talk, file, media_id=scene.thread_id)
    await begin(scene.talk, file)
    for changes in ({"size_bytes": 99}, {"encryption_iv": bytes(12)}):
        with refused(ErrorCode.ID_CONFLICT):
            await begin(scene.talk, file, **changes)
    with refused(ErrorCode.TOO_LARGE):
        await scene.talk.ask(
            frames.MediaCommit,
            media_id=file.media_id,
            key_epoch=1,
            encrypted_metadata=bytes(5000),
            root=file.root,
        )
    with refused(ErrorCode.BAD_ARGUMENT):
        await commit(scene.talk, replace(file, metadata=b""))
    assert await scene.usage() == (100, 1), "none of this has ended the upload"
    thread_id, _ = await post_thread(scene.talk, scene.group_id)
    await scene.ask_signed(scene.talk, scene.ann, frames.PostDelete, PostDeleted, target_id=thread_id)
    with refused(ErrorCode.NOT_FOUND):
        await begin(scene.talk, scene.file(1), thread_id=thread_id)


async def test_a_user_has_so_many_uploads_and_no_more(stage: Stage) -> None:
    async with running_relay(stage.dsn, max_uploads_per_user=3) as relay, scene_on(stage, relay) as scene:
        files = [scene.file(1) for _ in range(10)]
        async with asyncio.timeout(LIMIT_S):
            outcomes = await asyncio.gather(*[begin(scene.talk, file) for file in files], return_exceptions=True)
        codes = [outcome.code for outcome in outcomes if isinstance(outcome, Refused)]
        assert codes == [ErrorCode.LIMIT_EXCEEDED] * 7
        assert await scene.usage() == (3, 3)


async def test_strangers_learn_nothing(scene: Scene, relays: Any) -> None:
    """Not a member, or a token for other groups, or without the scope: as if there were no such file."""
    [eve] = await scene.stage.people(1)
    file, unfinished = scene.file(10), scene.file(10)
    await upload(scene.talk, file)
    begun = await begin(scene.talk, unfinished)
    async with talking(relays[1].url, await scene.stage.token(eve)) as talk:
        for media_id in (file.media_id, unfinished.media_id, new_id()):
            with refused(ErrorCode.NOT_FOUND):
                await talk.ask(frames.MediaGet, media_id=media_id)
            with refused(ErrorCode.NOT_FOUND):
                await talk.ask(frames.MediaRead, media_id=media_id, offset=0, length=10)
            with refused(ErrorCode.NOT_FOUND):
                await commit(talk, replace(file, media_id=media_id))
            with refused(ErrorCode.NOT_FOUND):
                await talk.send(chunk(talk, replace(unfinished, media_id=media_id), begun, 0))
            await talk.ask(frames.MediaAbort, media_id=media_id)
        with refused(ErrorCode.NOT_FOUND):
            await talk.ask(frames.MediaList, group_id=scene.group_id)
        with refused(ErrorCode.NOT_FOUND):
            await talk.ask(frames.QuotaGet, group_id=scene.group_id)
        with refused(ErrorCode.NOT_FOUND):
            await begin(talk, scene.file(1))
        with refused(ErrorCode.NOT_FOUND):
            await begin(talk, unfinished)
    async with talking(relays[1].url, await scene.stage.token(scene.bob)) as bob:
        with refused(ErrorCode.ID_CONFLICT):
            await begin(bob, unfinished)
        with refused(ErrorCode.FORBIDDEN):
            await scene.ask_signed(bob, scene.bob, frames.MediaDelete, MediaDeleted, media_id=file.media_id)
    assert await scene.usage() == (20, 2)


async def test_a_token_reaches_no_further_than_it_was_made_for(scene: Scene, relays: Any) -> None:
    other_group = await found_group(scene.stage.sql, scene.ann)
    file, unfinished = scene.file(10), scene.file(10)
    await upload(scene.talk, file)
    begun = await begin(scene.talk, unfinished)

    async def bot(*scopes: Scope, groups: list[bytes]) -> str:
        answer = await scene.talk.ask(
            frames.TokenCreate, token_id=new_id(), name="bot", scopes=list(scopes), groups=groups
        )
        return str(answer.token)

    async with talking(relays[0].url, await bot(Scope.READ, Scope.POST, groups=[other_group])) as talk:
        for request in (
            talk.ask(frames.MediaGet, media_id=file.media_id),
            talk.ask(frames.MediaRead, media_id=file.media_id, offset=0, length=1),
            talk.ask(frames.MediaList, group_id=scene.group_id),
            talk.ask(frames.QuotaGet, group_id=scene.group_id),
            talk.ask(frames.MediaAbort, media_id=unfinished.media_id),
            begin(talk, unfinished),
            commit(talk, file),
            commit(talk, unfinished),
        ):
            with refused(ErrorCode.NOT_FOUND):
                await request
        with refused(ErrorCode.NOT_FOUND):
            await talk.send(chunk(talk, unfinished, begun, 0))
    async with talking(relays[0].url, await bot(Scope.READ, groups=[])) as talk:
        assert await download(talk, file.media_id) == file.data
        for request in (begin(talk, scene.file(1)), commit(talk, unfinished)):
            with refused(ErrorCode.FORBIDDEN):
                await request
    async with talking(relays[0].url, await bot(Scope.POST, groups=[])) as talk:
        await upload(talk, scene.file(3))
        with refused(ErrorCode.FORBIDDEN):
            await talk.ask(frames.MediaRead, media_id=file.media_id, offset=0, length=1)


# ── keys and members ────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_rekey_during_an_upload_wastes_nothing(scene: Scene) -> None:
    file = scene.file(CHUNK)
    await send(scene.talk, file, await begin(scene.talk, file))
    sql = scene.stage.sql
    await sql.execute("UPDATE group_heads SET rekey_required = TRUE WHERE group_id = $1", scene.group_id)
    with refused(ErrorCode.REKEY_REQUIRED):
        await commit(scene.talk, file)
    await sql.execute(
        "UPDATE group_heads SET rekey_required = FALSE, key_epoch = 2 WHERE group_id = $1", scene.group_id
    )
    with refused(ErrorCode.STALE_KEY_EPOCH):
        await commit(scene.talk, file)
    await commit(scene.talk, file, key_epoch=2)
    assert await download(scene.talk, file.media_id) == file.data


async def test_who_is_removed_uploads_and_reads_no_more(scene: Scene, relays: Any, folder: Path) -> None:
    file = scene.file(10)
    await upload(scene.talk, file)
    async with talking(relays[1].url, await scene.stage.token(scene.bob)) as bob:
        unfinished = scene.file(4 * CHUNK)
        begun = await begin(bob, unfinished)
        await send(bob, unfinished, begun, up_to=CHUNK)
        key = await scene.key_of(unfinished.media_id)
        assert await download(bob, file.media_id) == file.data
        await scene.ask_signed(
            scene.talk, scene.ann, frames.MemberRemove, MemberRemoved, user_id=scene.bob.user_id, ban=False
        )
        with refused(ErrorCode.NOT_FOUND):
            await bob.send(chunk(bob, unfinished, begun, CHUNK))
        with refused(ErrorCode.NOT_FOUND):
            await bob.ask(frames.MediaRead, media_id=file.media_id, offset=0, length=10)
        with refused(ErrorCode.NOT_FOUND):
            await commit(bob, unfinished)
    assert await scene.usage() == (10, 1)
    await scene.swept()
    assert not [name for name in stored(folder) if name.startswith(key)]


async def test_a_deleted_group_leaves_no_byte(scene: Scene, folder: Path) -> None:
    file, unfinished = scene.file(10), scene.file(2 * CHUNK)
    await upload(scene.talk, file)
    await send(scene.talk, unfinished, await begin(scene.talk, unfinished), up_to=CHUNK)
    keys = [await scene.key_of(file.media_id), await scene.key_of(unfinished.media_id)]
    await scene.ask_signed(scene.talk, scene.ann, frames.GroupDelete, GroupDeleted)
    with refused(ErrorCode.NOT_FOUND):
        await scene.talk.ask(frames.MediaRead, media_id=file.media_id, offset=0, length=10)
    await scene.swept()
    assert not [name for name in stored(folder) if name.startswith(tuple(keys))]


async def test_a_deleted_user_leaves_files_and_takes_uploads_along(scene: Scene, relays: Any, folder: Path) -> None:
    async with talking(relays[1].url, await scene.stage.token(scene.bob)) as bob:
        file, unfinished = scene.file(10), scene.file(2 * CHUNK)
        await upload(bob, file)
        await send(bob, unfinished, await begin(bob, unfinished), up_to=CHUNK)
        key = await scene.key_of(unfinished.media_id)
    await scene.stage.sql.fetch("SELECT * FROM delete_user_v1($1, $2, FALSE)", "0" * 32, scene.bob.user_id)
    assert await download(scene.talk, file.media_id) == file.data
    assert (await scene.talk.ask(frames.MediaGet, media_id=file.media_id)).media.author_id is None
    assert await scene.usage() == (10, 1)
    await scene.swept()
    assert not [name for name in stored(folder) if name.startswith(key)]


# ── the end of files ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.produces(ErrorCode.MEDIA_EXPIRED)
async def test_an_expired_file_is_expired_at_once_and_for_ever(stage: Stage, folder: Path) -> None:
    """Exact at read time, by a relay that doesn't sweep; then another one does, and everybody hears of it."""
    async with running_relay(stage.dsn, media_sweep_ms=3_600_000) as lazy, scene_on(stage, lazy) as scene:
        file = scene.file(10)
        await subscribe(scene.talk, scene.group_id)
        posted = await upload(scene.talk, file)
        key = await scene.key_of(file.media_id)
        async with stage.sql.transaction():
            await stage.sql.execute("SELECT pg_advisory_xact_lock(hashtext('orbital media'))")  # nobody sweeps now
            await stage.sql.execute("UPDATE media SET expires_at = clock_timestamp() WHERE id = $1", file.media_id)
        events: list[frames.Event] = []
        for _ in range(2):
            for request in (
                scene.talk.ask(frames.MediaGet, media_id=file.media_id),
                scene.talk.ask(frames.MediaRead, media_id=file.media_id, offset=0, length=10),
                scene.ask_signed(scene.talk, scene.ann, frames.MediaDelete, MediaDeleted, media_id=file.media_id),
            ):
                with refused(ErrorCode.MEDIA_EXPIRED):
                    await request
            assert (await scene.talk.ask(frames.MediaList, group_id=scene.group_id)).media == []
            async with running_relay(stage.dsn, media_sweep_ms=50):
                events = await scene.talk.has(posted.seq + 1, scene.group_id)
                await scene.swept()
        expired = events[-1]
        assert (expired.kind, expired.object_id, expired.actor_id) == (Kind.MEDIA_EXPIRED, file.media_id, bytes(16))
        assert (expired.statement, expired.content_hash) == (None, chain.RELAY_CONTENT_HASH)
        check_steps(events)
        assert await scene.usage() == (0, 0)
        assert not [name for name in stored(folder) if name.startswith(key)]
        [erased] = (await scene.talk.ask(frames.EventList, group_id=scene.group_id, kinds=[Kind.MEDIA_POSTED])).events
        assert erased.erased and erased.field_hashes is not None
        assert (erased.encrypted_metadata, erased.root, erased.size_bytes) == (None, None, None)
        assert chain.content_hash(scene.thread_id, erased.field_hashes) == posted.content_hash


async def test_a_deleted_file_is_gone(scene: Scene, relays: Any, folder: Path) -> None:
    """By its author, and by an admin; twice is not_found."""
    await subscribe(scene.talk, scene.group_id)
    async with talking(relays[1].url, await scene.stage.token(scene.bob)) as bob:
        mine, admins = scene.file(10), scene.file(20)
        for file in (mine, admins):
            await upload(bob, file)
        keys = [await scene.key_of(file.media_id) for file in (mine, admins)]
        await scene.ask_signed(bob, scene.bob, frames.MediaDelete, MediaDeleted, media_id=mine.media_id)
        deleted = await scene.ask_signed(
            scene.talk, scene.ann, frames.MediaDelete, MediaDeleted, media_id=admins.media_id
        )
        for file in (mine, admins):
            with refused(ErrorCode.NOT_FOUND):
                await bob.ask(frames.MediaRead, media_id=file.media_id, offset=0, length=1)
            with refused(ErrorCode.NOT_FOUND):
                await scene.ask_signed(bob, scene.bob, frames.MediaDelete, MediaDeleted, media_id=file.media_id)
    event = (await scene.talk.has(deleted.seq, scene.group_id))[-1]
    assert (event.kind, event.actor_id) == (Kind.MEDIA_DELETED, scene.ann.user_id)
    assert await scene.usage() == (0, 0)
    await scene.swept()
    assert not [name for name in stored(folder) if name.startswith(tuple(keys))]


async def test_an_upload_that_nobody_goes_on_with_is_forgotten(stage: Stage, relays: Any, folder: Path) -> None:
    async with running_relay(stage.dsn, media_sweep_ms=50, upload_ttl_s=1) as relay, scene_on(stage, relay) as scene:
        file = scene.file(2 * CHUNK)
        begun = await begin(scene.talk, file)
        await send(scene.talk, file, begun, up_to=CHUNK)
        key = await scene.key_of(file.media_id)
        async with asyncio.timeout(LIMIT_S):
            while await scene.usage() != (0, 0):
                await asyncio.sleep(0.02)
        await scene.swept()
        assert not [name for name in stored(folder) if name.startswith(key)]
        with refused(ErrorCode.NOT_FOUND):
            await scene.talk.send(chunk(scene.talk, file, begun, CHUNK))
        assert await relay.metric('orbital_media_uploads_total{outcome="abandoned"}') >= 1


# ── quota and flow ──────────────────────────────────────────────────────────────────────────────────────────────────


async def test_of_fifty_uploads_at_once_twenty_fit(scene: Scene, relays: Any) -> None:
    """Ten people on two relays; the sum is exact at every moment. Then all goes, and nothing counts any more."""
    sql, size = scene.stage.sql, 50_000
    people = [scene.ann, scene.bob, *await scene.stage.people(8)]
    for person in people[2:]:
        await admit(sql, scene.group_id, scene.ann, person)
    await sql.execute(
        "UPDATE group_quotas SET max_bytes = $2 WHERE group_id = $1", scene.group_id, 20 * size + size - 1
    )

    async def watch() -> None:
        while True:
            over = await probe.fetchval(
                "SELECT total_bytes > max_bytes FROM group_quotas WHERE group_id = $1", scene.group_id
            )
            assert over is False
            await asyncio.sleep(0)

    async def five(person: Person, relay: RunningRelay) -> list[Any]:
        async with talking(relay.url, tokens[person.user_id]) as talk:
            files = [scene.file(size) for _ in range(5)]
            return await asyncio.gather(*[upload(talk, file) for file in files], return_exceptions=True)

    async with stage_on(scene.stage.dsn) as second:
        probe = second.sql
        tokens = {person.user_id: await scene.stage.token(person) for person in people}
        watching = asyncio.create_task(watch(), name="watch")
        try:
            async with asyncio.timeout(LIMIT_S):
                nested = await asyncio.gather(*[five(p, relays[number % 2]) for number, p in enumerate(people)])
            assert not watching.done()
        finally:
            watching.cancel()
            await asyncio.wait({watching})
    outcomes = list(itertools.chain.from_iterable(nested))
    assert sum(isinstance(outcome, frames.PostOk) for outcome in outcomes) == 20
    assert [o.code for o in outcomes if isinstance(o, Refused)] == [ErrorCode.QUOTA_EXCEEDED] * 30
    assert await scene.usage() == (20 * size, 20)

    found = (await scene.talk.ask(frames.MediaList, group_id=scene.group_id)).media
    for media in found[:10]:
        await scene.ask_signed(scene.talk, scene.ann, frames.MediaDelete, MediaDeleted, media_id=media.media_id)
    aborted = scene.file(size)
    await begin(scene.talk, aborted)
    await scene.talk.ask(frames.MediaAbort, media_id=aborted.media_id)
    await sql.execute("UPDATE media SET expires_at = clock_timestamp() WHERE group_id = $1", scene.group_id)
    async with asyncio.timeout(LIMIT_S):
        while await scene.usage() != (0, 0):
            await asyncio.sleep(0.02)


async def test_more_chunks_than_the_window_are_refused_and_cost_only_time(stage: Stage) -> None:
    """Nothing can be acknowledged as long as the upload's row is locked."""
    async with running_relay(stage.dsn, media_window=3) as relay, scene_on(stage, relay) as scene:
        file = scene.file(8 * SEGMENT)
        begun = await begin(scene.talk, file)
        assert begun.window == 3
        async with stage_on(stage.dsn) as other, other.sql.transaction():
            await other.sql.execute("SELECT FROM uploads WHERE media_id = $1 FOR UPDATE", file.media_id)
            sent = [scene.talk.send(chunk(scene.talk, file, begun, at * SEGMENT, SEGMENT)) for at in range(4)]
            with refused(ErrorCode.RATE_LIMITED):
                await sent[3]
        await asyncio.wait(sent)
        begun = await begin(scene.talk, file)
        await send(scene.talk, file, begun)
        await commit(scene.talk, file)


async def test_uploads_that_wait_have_so_much_memory_and_no_more(stage: Stage) -> None:
    async with (
        running_relay(stage.dsn, media_window=2, media_memory_bytes=MIB) as relay,
        scene_on(stage, relay) as scene,
    ):
        files = [scene.file(2 * CHUNK) for _ in range(3)]
        begun = [await begin(scene.talk, file) for file in files]
        async with stage_on(stage.dsn) as other, other.sql.transaction():
            await other.sql.execute("SELECT FROM uploads WHERE group_id = $1 FOR UPDATE", scene.group_id)
            sent = [scene.talk.send(chunk(scene.talk, f, b, 0)) for f, b in zip(files, begun, strict=True)]
            with pytest.raises(Refused) as refusal:
                await sent[2]
            assert (refusal.value.code, bool(refusal.value.error.retry_after_ms)) == (ErrorCode.OVERLOADED, True)
            assert await relay.metric("orbital_media_waiting_bytes") == 2 * CHUNK
        await asyncio.gather(*sent[:2])
        assert await relay.metric("orbital_media_waiting_bytes") == 0
        for file in files:
            await send(scene.talk, file, await begin(scene.talk, file))
            await commit(scene.talk, file)


async def test_two_hundred_mebibytes_cost_little_memory(stage: Stage) -> None:
    async with running_relay(stage.dsn) as relay, scene_on(stage, relay) as scene:
        await upload(scene.talk, scene.file(2 * MIB))  # whatever is made once is made
        file = scene.file(200 * MIB)
        before, peak = relay.resident_kib(), 0
        token = await stage.token(scene.ann)

        async def watch() -> None:
            nonlocal peak
            while True:
                peak = max(peak, relay.resident_kib())
                await asyncio.sleep(0.02)

        watching = asyncio.create_task(watch(), name="watch")
        try:
            begun = await begin(scene.talk, file)
            await send(scene.talk, file, begun)
            await commit(scene.talk, file)
            async with talking(relay.url, token) as talk:
                assert await download(talk, file.media_id) == file.data
        finally:
            watching.cancel()
        assert (peak - before) / 1024 < 32, f"{(peak - before) / 1024:.1f} MiB more"


async def test_a_relay_that_stops_acknowledges_what_it_has_and_leaves_no_hole(stage: Stage) -> None:
    async with running_relay(stage.dsn) as relay, scene_on(stage, relay) as scene:
        file = scene.file(20 * CHUNK)
        begun = await begin(scene.talk, file)
        sent = [scene.talk.send(chunk(scene.talk, file, begun, at)) for at in range(0, len(file.data), CHUNK)]
        await sent[0]
        relay.signal(signal.SIGTERM)
        async with asyncio.timeout(LIMIT_S):
            await scene.talk.closed()
            await relay.process.wait()
        durable = max(_durable(future) for future in sent)
    async with running_relay(stage.dsn) as relay, talking(relay.url, await stage.token(scene.ann)) as talk:
        begun = await begin(talk, file)
        assert begun.offset >= durable
        await send(talk, file, begun)
        await commit(talk, file)
        assert await download(talk, file.media_id) == file.data


def _durable(future: "asyncio.Future[frames.Ok]") -> int:
    if future.exception() is not None:
        return 0
    answer = future.result()
    assert isinstance(answer, frames.MediaChunkOk)
    return answer.offset


@asynccontextmanager
async def scene_maker(stage: Stage) -> AsyncIterator[tuple[RunningRelay, Scene]]:
    async with running_relay(stage.dsn) as relay, scene_on(stage, relay) as scene:
        yield relay, scene


# ── which store ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_relay_with_another_folder_does_not_start(migrated_database: str, tmp_path: Path) -> None:
    """Not beside one that runs; nor where files are at stake; otherwise it may."""
    async with stage_on(migrated_database) as stage:
        async with running_relay(migrated_database) as relay, scene_on(stage, relay) as scene:
            await refuses_to_start(migrated_database, tmp_path, "running relays")
            file = scene.file(10)
            await upload(scene.talk, file)
        await refuses_to_start(migrated_database, tmp_path, "media audit --repair --adopt")
        async with running_relay(migrated_database, media_sweep_ms=50) as relay:
            await stage.sql.execute("UPDATE media SET expires_at = clock_timestamp()")
            await stage.sql.execute("UPDATE blob_deletions SET due_at = clock_timestamp()")
            async with asyncio.timeout(LIMIT_S):
                while await stage.sql.fetchval("SELECT count(*) FROM media") or await stage.sql.fetchval(
                    "SELECT count(*) FROM blob_deletions WHERE NOT is_deleted"
                ):
                    await asyncio.sleep(0.02)
        async with running_relay(migrated_database, media_dir=tmp_path / "another"):
            pass


async def refuses_to_start(dsn: str, tmp_path: Path, why: str) -> None:
    ran = await orbital_process("serve", dsn=dsn, media_dir=tmp_path / "another", listen_port=0, operators_port=0)
    assert ran.status == 1
    assert "media_store: " in ran.err and why in ran.err

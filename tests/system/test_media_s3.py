"""Files in a bucket of a real S3 service: the same promises, and what becomes of them when the service stands still."""

import asyncio
import os
import random
import signal
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import pytest_asyncio

from orbital_protocol import frames
from orbital_protocol.codes import ErrorCode
from orbital_protocol.statements import MediaDeleted
from tests.files import CHUNK, File, begin, chunk, commit, download, send, upload, usage
from tests.people import Person, found_group, says
from tests.postgres import TestPostgres
from tests.relays import RunningRelay, running_relay
from tests.stage import Stage, stage_on
from tests.swift import Swift
from tests.talk import Refused, Talk, post_thread, reply, talking

pytestmark = [pytest.mark.timeout(180), pytest.mark.asyncio(loop_scope="module")]

LIMIT_S = 60
MIB = 1024 * 1024
PART = 5 * MIB
STORE_TIMEOUT_S = 2
# Names that are due already keep their turn.
LOOK_AGAIN = """
UPDATE blob_deletions SET due_at = clock_timestamp(), is_deleted = FALSE
WHERE storage_url = ANY($1) AND due_at > clock_timestamp()
"""
PROMPTLY_S = 10  # far less than a relay waits for the rest of a part


@dataclass
class Scene:
    """A database and a bucket that nobody else uses; relays on both; a thread of ann's."""

    stage: Stage
    swift: Swift
    bucket: str
    ann: Person
    group_id: bytes
    thread_id: bytes

    def relay(self, **settings: Any) -> Any:
        """A relay on this database and bucket."""
        given = {"media_sweep_ms": 50, **self.swift.settings, "s3_bucket": self.bucket, **settings}
        return running_relay(self.stage.dsn, **given)

    async def talking(self, relay: RunningRelay) -> Any:
        return talking(relay.url, await self.stage.token(self.ann))

    def file(self, size: int) -> File:
        return File(self.group_id, self.thread_id, os.urandom(size))

    async def swept(self) -> None:
        """Wait until no blob is due to be deleted."""
        async with asyncio.timeout(LIMIT_S):
            while await self.stage.sql.fetchval("SELECT count(*) FROM blob_deletions WHERE due_at <= now()"):
                await asyncio.sleep(0.02)

    async def keys(self) -> set[str]:
        """The names of all blobs that files and uploads have now."""
        rows = await self.stage.sql.fetch("SELECT storage_url FROM media UNION SELECT storage_url FROM uploads")
        return {row[0] for row in rows}

    async def gone(self, keys: set[str]) -> None:
        """Wait until the bucket has neither objects nor parts of these names.

        A relay looks a second time after two minutes, for what a request that was given up has left behind. Here the
        time between the looks is cut short, and a name is looked for as long as such a request may still come in.
        """
        assert keys
        async with asyncio.timeout(LIMIT_S):
            while left := keys & {*await self.swift.objects(self.bucket), *await self.swift.uploads(self.bucket)}:
                await self.stage.sql.execute(LOOK_AGAIN, list(left))
                await asyncio.sleep(0.1)

    async def delete(self, talk: Talk, media_id: bytes) -> None:
        signed = await says(self.stage.sql, self.ann, self.group_id, MediaDeleted, media_id=media_id)
        await talk.ask(frames.MediaDelete, statement=signed.statement, signature=signed.signature)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(embedded_postgres: TestPostgres, swift: Swift) -> AsyncIterator[Scene]:
    async with embedded_postgres.migrated_database() as dsn, stage_on(dsn) as stage:
        [ann] = await stage.people(1)
        group_id = await found_group(stage.sql, ann)
        bucket = await swift.make_bucket()
        scene = Scene(stage, swift, bucket, ann, group_id, b"")
        async with scene.relay() as relay, await scene.talking(relay) as talk:
            scene.thread_id, _ = await post_thread(talk, group_id)
        yield scene


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def relays(scene: Scene) -> AsyncIterator[tuple[RunningRelay, RunningRelay]]:
    async with scene.relay() as one, scene.relay() as other:
        yield one, other


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, PART - 1, PART, PART + 1, 3 * PART + 77])
async def test_a_file_comes_back_as_it_was(scene: Scene, relays: Any, size: int) -> None:
    file = scene.file(size)
    async with await scene.talking(relays[0]) as talk, await scene.talking(relays[1]) as other:
        await upload(talk, file)
        assert await download(other, file.media_id) == file.data
        for offset in sorted({0, size // 2, max(0, size - 1), size}):
            answer = await other.ask(frames.MediaRead, media_id=file.media_id, offset=offset, length=1000)
            assert answer.data == file.data[offset : offset + 1000]
        keys = await scene.keys()
        await scene.delete(talk, file.media_id)
    await scene.gone(keys)
    assert await usage(scene.stage.sql, scene.group_id) == (0, 0)


async def test_an_upload_cut_ten_times_goes_on_at_the_other_relay(scene: Scene, relays: Any) -> None:
    """Parts are acknowledged when the service has them: between them a cut loses what was gathered, and no more."""
    chance = random.Random(20261125)
    file = scene.file(12 * PART + 12_345)
    durable = 0
    for turn in range(10):
        async with await scene.talking(relays[turn % 2]) as talk:
            begun = await begin(talk, file)
            assert len(file.data) > begun.offset >= durable
            assert (begun.offset % PART, begun.generation) == (0, turn + 1)
            starts = range(begun.offset, len(file.data), CHUNK)[: chance.randrange(5, 20)]
            sent = [talk.send(chunk(talk, file, begun, at)) for at in starts]
            if len(starts) >= PART // CHUNK and chance.random() < 0.5:
                ok = await sent[0]
                assert isinstance(ok, frames.MediaChunkOk) and ok.offset == begun.offset + PART
                durable = ok.offset
            talk.cut()
    async with await scene.talking(relays[0]) as talk:
        begun = await begin(talk, file)
        assert begun.offset >= durable
        await send(talk, file, begun)
        await commit(talk, file)
        assert await download(talk, file.media_id) == file.data
        await scene.delete(talk, file.media_id)


async def test_what_is_aborted_or_wrong_leaves_nothing(scene: Scene, relays: Any) -> None:
    async with await scene.talking(relays[0]) as talk:
        aborted, wrong = scene.file(2 * PART), scene.file(2 * PART)
        for file in (aborted, wrong):
            await send(talk, file, await begin(talk, file))
        keys = await scene.keys()
        assert keys == set(await scene.swift.uploads(scene.bucket)) & keys
        await talk.ask(frames.MediaAbort, media_id=aborted.media_id)
        with pytest.raises(Refused, match=r"^bad_argument"):
            await commit(talk, wrong, root=os.urandom(32))
    await scene.gone(keys)
    assert await usage(scene.stage.sql, scene.group_id) == (0, 0)


async def test_neither_an_abort_nor_a_new_begin_waits_for_the_rest_of_a_part(scene: Scene, relays: Any) -> None:
    """Chunks that wait for their part get errors at once; on the connection that sent them."""
    async with await scene.talking(relays[0]) as talk:
        file = scene.file(2 * PART)

        async def send_some() -> list[Any]:
            begun = await begin(talk, file)
            return [talk.send(chunk(talk, file, begun, at)) for at in range(0, 3 * CHUNK, CHUNK)]

        async with asyncio.timeout(PROMPTLY_S):
            first = await send_some()
            second = await send_some()
            assert [future.exception().code for future in first] == [ErrorCode.UPLOAD_OFFSET] * 3
            await talk.ask(frames.MediaAbort, media_id=file.media_id)
            await asyncio.wait(second)
            assert [future.exception().code for future in second] == [ErrorCode.UPLOAD_OFFSET] * 3
    assert await usage(scene.stage.sql, scene.group_id) == (0, 0)


async def test_two_hundred_mebibytes_cost_little_memory(scene: Scene) -> None:
    async with scene.relay() as relay, await scene.talking(relay) as talk:
        small = scene.file(2 * PART)
        await upload(talk, small)  # whatever is made once is made
        assert await download(talk, small.media_id) == small.data
        file = scene.file(200 * MIB)
        before, peak = relay.resident_kib(), 0

        async def watch() -> None:
            nonlocal peak
            while True:
                peak = max(peak, relay.resident_kib())
                await asyncio.sleep(0.02)

        watching = asyncio.create_task(watch(), name="watch")
        try:
            await upload(talk, file)
            assert await download(talk, file.media_id) == file.data
        finally:
            watching.cancel()
        assert (peak - before) / 1024 < 32, f"{(peak - before) / 1024:.1f} MiB more"
        for each in (small, file):
            await scene.delete(talk, each.media_id)
    # The deleted blobs are another relay's to remove, or the next test's.


async def test_what_a_frozen_relay_still_writes_changes_nothing(scene: Scene, relays: Any) -> None:
    """It thaws when the upload has gone on elsewhere, and its parts come to numbers that nobody else has used.

    Two of them: as many as a relay writes at once.
    """
    file = scene.file(4 * PART)
    other = replace(file, data=file.data[:PART] + os.urandom(len(file.data) - PART))
    async with scene.relay(media_sweep_ms=3_600_000) as frozen, await scene.talking(frozen) as late:
        begun = await begin(late, other)
        assert await send(late, other, begun, up_to=PART) == PART
        frozen.signal(signal.SIGSTOP)
        sent = [late.send(chunk(late, other, begun, at)) for at in range(PART, 3 * PART, CHUNK)]
        async with await scene.talking(relays[0]) as talk:
            now = await begin(talk, file)
            assert now.offset == PART
            await send(talk, file, now, up_to=3 * PART)
            frozen.signal(signal.SIGCONT)
            async with asyncio.timeout(LIMIT_S):
                outcomes = await asyncio.gather(*sent, return_exceptions=True)
            assert not [outcome for outcome in outcomes if isinstance(outcome, frames.Ok)]
            await send(talk, file, replace_offset(now, 3 * PART))
            await commit(talk, file)
            assert await download(talk, file.media_id) == file.data
            keys = await scene.keys()
            await scene.delete(talk, file.media_id)
    await scene.gone(keys)


def replace_offset(begun: frames.MediaBeginOk, offset: int) -> frames.MediaBeginOk:
    return frames.MediaBeginOk(
        id=begun.id, offset=offset, generation=begun.generation, chunk_bytes=begun.chunk_bytes, window=begun.window
    )


async def test_a_presigned_url_opens_one_file_for_a_while(scene: Scene, relays: Any) -> None:
    file = scene.file(1000)
    async with scene.relay(s3_url_ttl_s=2) as brief, await scene.talking(brief) as talk:
        await upload(talk, file)
        other = scene.file(1000)
        await upload(talk, other)
        async with await scene.talking(relays[0]) as usual:
            answer = await usual.ask(frames.MediaGet, media_id=file.media_id)
            told = await usual.ask(frames.Ping)
        assert answer.url is not None and answer.url_expires_at is not None
        assert 0 < answer.url_expires_at - told.server_time <= 300 * 1_000_000
        assert await fetch(answer.url) == (200, file.data)
        assert await fetch(answer.url, Range="bytes=10-19") == (206, file.data[10:20])
        keys = {
            row["id"]: row["storage_url"] for row in await scene.stage.sql.fetch("SELECT id, storage_url FROM media")
        }
        elsewhere = answer.url.replace(keys[file.media_id], keys[other.media_id])
        assert elsewhere != answer.url
        assert (await fetch(elsewhere))[0] == 403
        assert (await fetch(answer.url.partition("?")[0]))[0] // 100 == 4  # AccessDenied at Amazon's
        assert (await fetch(answer.url, "DELETE"))[0] == 403

        soon = await talk.ask(frames.MediaGet, media_id=file.media_id)
        async with asyncio.timeout(LIMIT_S):
            while (await fetch(soon.url))[0] != 403:
                await asyncio.sleep(0.2)
        assert (await fetch(answer.url))[0] == 200, "the one that lives longer still opens it"

        await scene.stage.sql.execute(
            "UPDATE media SET expires_at = clock_timestamp() + INTERVAL '100 s' WHERE id = $1", file.media_id
        )
        async with await scene.talking(relays[0]) as usual:
            last = await usual.ask(frames.MediaGet, media_id=file.media_id)
        assert last.url_expires_at <= last.media.expires_at, "a URL doesn't outlive its file"
        for each in (file, other):
            await scene.delete(talk, each.media_id)
    async with scene.relay(s3_url_ttl_s=0) as quiet, await scene.talking(quiet) as talk:
        await upload(talk, file := scene.file(10))
        assert (await talk.ask(frames.MediaGet, media_id=file.media_id)).url is None
        await scene.delete(talk, file.media_id)
    await scene.swept()


async def fetch(url: str, method: str = "GET", **headers: str) -> tuple[int, bytes]:
    """What HTTP answers, as anybody gets it who has only the URL."""

    def ask() -> tuple[int, bytes]:
        request = urllib.request.Request(url, method=method, headers=headers)  # noqa: S310  the test's own service
        try:
            with urllib.request.urlopen(request, timeout=LIMIT_S) as answer:  # noqa: S310
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, b""

    return await asyncio.to_thread(ask)


# ── the service stands still ────────────────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def frozen(swift: Swift) -> AsyncIterator[None]:
    swift.freeze()
    try:
        yield
    finally:
        swift.thaw()


@pytest.mark.produces(ErrorCode.UNAVAILABLE)
async def test_while_the_store_is_frozen_posts_go_on_and_files_are_told_so(scene: Scene) -> None:
    """On one connection: chunks, commits and reads hang and are told `unavailable`; posts and lists are answered.

    Then the service goes on, and so do the uploads, from what was durable.
    """
    async with (
        scene.relay(media_timeout_s=STORE_TIMEOUT_S) as relay,
        await scene.talking(relay) as talk,
        await scene.talking(relay) as other,
    ):
        there, unread = scene.file(1000), scene.file(PART + 1)
        await upload(talk, there)
        files = [scene.file(PART + 1) for _ in range(3)]
        begun = [await begin(talk, file) for file in files]
        async with frozen(scene.swift):
            hanging = [
                talk.send(chunk(talk, file, b, at))
                for file, b in zip(files, begun, strict=True)
                for at in range(0, PART + 1, CHUNK)
            ]
            reading = talk.send(frames.MediaRead(id=talk.next_id(), media_id=there.media_id, offset=0, length=1000))
            for number in range(50):
                posting = talk if number % 2 else other
                async with asyncio.timeout(LIMIT_S):
                    await posting.send(reply(posting, scene.group_id, scene.thread_id))
            await talk.ask(frames.EventList, group_id=scene.group_id)
            await talk.ask(frames.QuotaGet, group_id=scene.group_id)
            await begin(talk, unread)  # asks nothing of the store
            async with asyncio.timeout(LIMIT_S):
                outcomes = await asyncio.gather(*hanging, reading, return_exceptions=True)
            assert {o.code for o in outcomes if isinstance(o, Refused)} <= {
                ErrorCode.UNAVAILABLE,
                ErrorCode.UPLOAD_OFFSET,
            }
            assert not [outcome for outcome in outcomes if not isinstance(outcome, Refused)]
            assert [o.code for o in outcomes[-1:] if isinstance(o, Refused)] == [ErrorCode.UNAVAILABLE]
            assert not await ready(relay, "store")
            assert await relay.metric("orbital_media_store_up") == 0
            assert await ready(relay, "ready"), "a relay without its store serves posts"
        await relay.logged("media.store.unavailable")
        keys = await scene.keys()
        for file in files:
            await until(partial(go_on, talk, file))
            assert await download(talk, file.media_id) == file.data
            await scene.delete(talk, file.media_id)
        await relay.logged("media.store.recovered")
        assert await ready(relay, "store")
        assert await relay.metric("orbital_media_store_up") == 1
        await talk.ask(frames.MediaAbort, media_id=unread.media_id)
        await scene.delete(talk, there.media_id)
    async with scene.relay():
        await scene.gone(keys)


async def go_on(talk: Talk, file: File) -> bool:
    """Try to upload the rest, and commit; whether it worked."""
    try:
        await send(talk, file, await begin(talk, file))
        await commit(talk, file)
    except Refused as refused:
        assert refused.code in (ErrorCode.UNAVAILABLE, ErrorCode.UPLOAD_OFFSET)
        return False
    return True


async def until(attempt: Callable[[], Any]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not await attempt():
            await asyncio.sleep(0.1)


async def ready(relay: RunningRelay, what: str) -> bool:
    """One of the things that /readyz tells."""
    _, body = await fetch(f"http://127.0.0.1:{relay.operators_port}/readyz")
    return f'"{what}": true'.encode() in body


async def test_a_relay_that_stops_does_not_wait_for_the_rest_of_a_part(scene: Scene) -> None:
    async with scene.relay(drain_timeout_ms=60_000) as relay, await scene.talking(relay) as talk:
        file = scene.file(PART)
        begun = await begin(talk, file)
        sent = [talk.send(chunk(talk, file, begun, at)) for at in range(0, 3 * CHUNK, CHUNK)]
        await talk.ask(frames.Ping)
        relay.signal(signal.SIGTERM)
        async with asyncio.timeout(LIMIT_S):
            outcomes = await asyncio.gather(*sent, return_exceptions=True)
            await relay.process.wait()
        assert {o.code for o in outcomes if isinstance(o, Refused)} <= {ErrorCode.UNAVAILABLE, ErrorCode.UPLOAD_OFFSET}
    async with scene.relay() as relay, await scene.talking(relay) as talk:
        await send(talk, file, await begin(talk, file))
        await commit(talk, file)
        await scene.delete(talk, file.media_id)


async def test_a_relay_starts_although_its_store_is_away(scene: Scene) -> None:
    """Posts don't need it. The bucket is asked for when it is needed."""
    async with (
        frozen(scene.swift),
        scene.relay(media_timeout_s=STORE_TIMEOUT_S) as relay,
        await scene.talking(relay) as talk,
    ):
        await talk.send(reply(talk, scene.group_id, scene.thread_id))
        file = scene.file(10)
        begun = await begin(talk, file)
        with pytest.raises(Refused, match=r"^unavailable"):
            await talk.send(chunk(talk, file, begun, 0))
        await talk.ask(frames.MediaAbort, media_id=file.media_id)

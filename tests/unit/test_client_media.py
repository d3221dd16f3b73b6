"""Files up and down: windows, what goes on after which failure, what is given up, and the seam for encryption."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from orbital_client.wire import (
    BadAnswer,
    BadRequest,
    ErrorCode,
    Group,
    MediaCorrupt,
    MediaFacts,
    OutOfDate,
    PostedMedia,
    Refused,
    TryLater,
    uuid7,
)
from orbital_client.wire.outgoing import Outgoing
from orbital_client.wire.sealing import Plain
from orbital_protocol import chain
from orbital_protocol.frames import (
    Error,
    Frame,
    GroupGet,
    GroupGetOk,
    Media,
    MediaAbort,
    MediaBegin,
    MediaBeginOk,
    MediaChunk,
    MediaChunkOk,
    MediaCommit,
    MediaGet,
    MediaGetOk,
    MediaRead,
    MediaReadOk,
    Ok,
    PostOk,
    Request,
)
from orbital_protocol.media import SEGMENT_BYTES, Root
from tests.unit.client_relay import (
    HELLO,
    LIMIT_S,
    LIMITS,
    NOW,
    Answer,
    FakeConnection,
    FakeRelay,
    at_once,
    fake_relay,
    our_tasks,
    registered,
    soon,
    until,
)

THREAD = uuid7()
KIB = 1_024


def content(size: int) -> bytes:
    """Bytes of which no two segments are the same."""
    return b"".join(number.to_bytes(8, "big") for number in range(-(-size // 8)))[:size]


def root_of(data: bytes | bytearray) -> bytes:
    root = Root()
    root.update(data)
    return root.digest()


@dataclass
class FakeMedia:
    """A file at the fake relay. `part_bytes`: how much it gathers before it answers, as a store of objects does."""

    relay: FakeRelay
    group_id: bytes
    part_bytes: int = 0
    data: bytearray = field(default_factory=bytearray)
    begun: MediaBegin | None = None
    committed: MediaCommit | None = None
    generation: int = 0
    window: int = 20
    unanswered: list[MediaChunk] = field(default_factory=list)
    most_unanswered: int = 0
    key_epoch: int = 1

    def __post_init__(self) -> None:
        self.relay.answers |= {
            MediaBegin: self.begin,
            MediaChunk: self.chunk,
            MediaCommit: self.commit,
            MediaAbort: lambda _, request: [Ok(id=request.id)],
            MediaGet: self.get,
            MediaRead: self.read,
            GroupGet: self.group,
        }

    def begin(self, _: FakeConnection, request: Request) -> Iterable[Frame]:
        assert isinstance(request, MediaBegin)
        self.begun = request
        self.generation += 1
        self.unanswered.clear()
        return [
            MediaBeginOk(
                id=request.id,
                offset=len(self.data),
                generation=0 if self.committed else self.generation,
                chunk_bytes=LIMITS.media_chunk_bytes,
                window=self.window,
                part_bytes=self.part_bytes,
            )
        ]

    def chunk(self, _: FakeConnection, request: Request) -> Iterable[Frame]:
        assert isinstance(request, MediaChunk)
        assert self.begun is not None
        received = len(self.data) + sum(len(chunk.data) for chunk in self.unanswered)
        if request.generation != self.generation or request.offset != received:
            return [Error(id=request.id, code="upload_offset", message="")]
        received += len(request.data)
        assert len(request.data) % SEGMENT_BYTES == 0 or received == self.begun.size_bytes
        self.unanswered.append(request)
        self.most_unanswered = max(self.most_unanswered, len(self.unanswered))
        if received - len(self.data) < self.part_bytes and received < self.begun.size_bytes:
            return []
        answers = []
        for chunk in self.unanswered:
            self.data += chunk.data
            answers.append(MediaChunkOk(id=chunk.id, offset=len(self.data)))
        self.unanswered.clear()
        return answers

    def commit(self, _: FakeConnection, request: Request) -> Iterable[Frame]:
        assert isinstance(request, MediaCommit)
        assert self.begun is not None
        if request.key_epoch != self.key_epoch:
            return [Error(id=request.id, code="stale_key_epoch", message="")]
        first = self.committed is None
        self.committed = self.committed or request
        fields = chain.media_fields(
            self.committed.encrypted_metadata,
            self.begun.encryption_iv,
            self.begun.size_bytes,
            self.committed.root,
        )
        hash_ = chain.content_hash(self.begun.thread_id, [chain.field_hash(each) for each in fields])
        return [
            PostOk(id=request.id, seq=4, hash=bytes(32), content_hash=hash_, created_at=NOW, duplicate=not first),
        ]

    def get(self, _: FakeConnection, request: Request) -> Iterable[Frame]:
        assert isinstance(request, MediaGet)
        return [MediaGetOk(id=request.id, media=self.media(request.media_id))]

    def media(self, media_id: bytes) -> Media:
        return Media(
            media_id=media_id,
            group_id=self.group_id,
            thread_id=THREAD,
            seq=4,
            key_epoch=1,
            encrypted_metadata=self.committed.encrypted_metadata if self.committed else b"",
            encryption_iv=bytes(12),
            size_bytes=len(self.data),
            root=root_of(self.data),
            uploaded_at=NOW,
            expires_at=NOW + 1,
        )

    def read(self, _: FakeConnection, request: Request) -> Iterable[Frame]:
        assert isinstance(request, MediaRead)
        return [MediaReadOk(id=request.id, data=bytes(self.data[request.offset :][: request.length]))]

    def group(self, _: FakeConnection, request: Request) -> Iterable[Frame]:
        return [
            GroupGetOk(
                id=request.id,
                group_id=self.group_id,
                encrypted_name=b"name",
                name_key_epoch=1,
                history=1,
                knocking=True,
                created_by=bytes(16),
                created_at=NOW,
                role=1,
                key_epoch=self.key_epoch,
                rekey_required=False,
                seq=0,
                hash=bytes(32),
                member_count=1,
            )
        ]

    @property
    def chunk_sizes(self) -> list[int]:
        return [len(chunk.data) for chunk in self.relay.of(MediaChunk)]


@asynccontextmanager
async def with_media(limits: Any = LIMITS, **options: Any) -> AsyncIterator[tuple[FakeMedia, Group]]:
    async with fake_relay() as relay:
        relay.hello = replace(HELLO, limits=limits)
        log = relay.add_log()
        async with registered(relay) as client:
            yield FakeMedia(relay, log.group_id, **options), client.group(log.group_id)


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orbital_client.wire.uploads.Backoff", at_once)


async def pieces(data: bytes, size: int) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


def refused(code: str, times: int, then: Answer) -> Answer:
    """Refuse so often, then do it."""
    left = [None] * times

    def answer(connection: FakeConnection, request: Request) -> Iterable[Frame | bytes]:
        if left:
            left.pop()
            return [Error(id=request.id, code=code, message="", retry_after_ms=1)]
        return then(connection, request)

    return answer


def up(group: Group, source: Any, **options: Any) -> "asyncio.Task[PostedMedia]":
    given = {"thread_id": THREAD, "metadata": b"sealed", **options}
    return asyncio.create_task(soon(group.upload(source, **given)))


# ── up ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("size", [0, 1, SEGMENT_BYTES - 1, SEGMENT_BYTES, SEGMENT_BYTES + 1, 3_000_000])
async def test_paths_bytes_and_iterables_arrive_as_they_are(size: int, tmp_path: Path) -> None:
    data = content(size)
    path = tmp_path / "file"
    path.write_bytes(data)
    for source in (path, str(path), data, pieces(data, 1000), pieces(data, 700_000)):
        async with with_media() as (theirs, group):
            progress: list[tuple[int, int]] = []
            posted = await up(group, source, size_bytes=size, on_progress=lambda *step, to=progress: to.append(step))
            assert theirs.data == data
            assert (posted.size_bytes, posted.root, posted.seq) == (size, root_of(data), 4)
            assert theirs.committed is not None
            assert theirs.committed.root == root_of(data)
            assert theirs.committed.encrypted_metadata == b"sealed"
            assert progress == sorted(set(progress))
            assert progress[0] == (0, size)
            assert progress[-1] == (size, size)


async def test_chunks_begin_small_and_grow_while_answers_come_quickly() -> None:
    async with with_media() as (theirs, group):
        await up(group, content(8_000_000))
        sizes = theirs.chunk_sizes[:-1]
        assert sizes[0] == SEGMENT_BYTES
        assert sizes == sorted(sizes)
        assert sizes[-1] == LIMITS.media_chunk_bytes


async def test_chunks_stay_small_on_a_slow_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orbital_client.wire.transfers._QUICK_S", -1)
    async with with_media() as (theirs, group):
        await up(group, content(3_000_000))
        assert set(theirs.chunk_sizes[:-1]) == {SEGMENT_BYTES}


@pytest.mark.parametrize(("window", "in_flight", "most"), [(3, 64, 3), (20, 4, 2), (20, 64, 20), (1, 1, 1)])
async def test_the_window_is_what_begin_says_and_leaves_slots_for_others(
    window: int, in_flight: int, most: int
) -> None:
    async with with_media(replace(LIMITS, max_in_flight=in_flight), window=window) as (theirs, group):
        theirs.relay.answers[MediaChunk] = lambda _, __: []
        upload = up(group, content(2_000_000))
        await until(lambda: len(theirs.relay.of(MediaChunk)) >= most)
        assert [task.get_name() for task in asyncio.all_tasks()].count("orbital-chunk") == most
        upload.cancel()
        await asyncio.wait({upload})


async def test_a_store_that_gathers_large_parts_is_fed_until_it_has_one() -> None:
    data = content(17_000_000)
    async with with_media(part_bytes=5_242_880) as (theirs, group):
        await up(group, data)
        assert theirs.data == data
        assert theirs.most_unanswered <= theirs.window
        assert set(theirs.chunk_sizes[:-1]) == {LIMITS.media_chunk_bytes}


@pytest.mark.parametrize("code", ["unavailable", "overloaded", "internal", "rate_limited", "upload_offset"])
async def test_an_upload_begins_again_after_a_failed_chunk(code: str) -> None:
    data = content(2_000_000)
    async with with_media() as (theirs, group):
        take = theirs.relay.answers[MediaChunk]
        of_generation = {1: 3, 2: 1, 3: 4}

        def now_and_then(connection: FakeConnection, request: Request) -> Iterable[Frame | bytes]:
            left = of_generation.get(theirs.generation, -1)
            of_generation[theirs.generation] = left - 1
            if left == 1:
                return [Error(id=request.id, code=code, message="", retry_after_ms=1)]
            return take(connection, request)

        theirs.relay.answers[MediaChunk] = now_and_then
        posted = await up(group, pieces(data, 10_000), size_bytes=len(data))
        assert theirs.data == data
        assert posted.root == root_of(data)
        assert len(theirs.relay.of(MediaBegin)) == 4


async def test_an_upload_goes_on_over_a_new_connection() -> None:
    data = content(2_000_000)
    async with with_media() as (theirs, group):
        take = theirs.relay.answers[MediaChunk]

        def cut_off(connection: FakeConnection, request: Request) -> Iterable[Frame | bytes]:
            answers = list(take(connection, request))
            if len(theirs.relay.of(MediaChunk)) in (3, 12):
                connection.cut()
            return answers

        theirs.relay.answers[MediaChunk] = cut_off
        progress: list[int] = []
        await up(group, pieces(data, 10_000), size_bytes=len(data), on_progress=lambda done, _: progress.append(done))
        assert theirs.data == data
        assert progress == sorted(set(progress))


async def test_what_was_sent_by_another_process_is_not_sent_again(tmp_path: Path) -> None:
    data = content(1_000_000)
    path = tmp_path / "file"
    path.write_bytes(data)
    for source in (path, pieces(data, 10_000)):
        async with with_media() as (theirs, group):
            theirs.data += data[: 9 * SEGMENT_BYTES]
            posted = await up(group, source, media_id=uuid7(), size_bytes=len(data))
            assert theirs.data == data
            assert posted.root == root_of(data)
            assert sum(theirs.chunk_sizes) == len(data) - 9 * SEGMENT_BYTES


async def test_what_the_relay_lost_is_read_again_where_it_can_be(tmp_path: Path) -> None:
    data = content(1_000_000)
    path = tmp_path / "file"
    path.write_bytes(data)

    def losing(theirs: FakeMedia) -> Answer:
        take = theirs.relay.answers[MediaChunk]

        def chunk(connection: FakeConnection, request: Request) -> Iterable[Frame | bytes]:
            if len(theirs.relay.of(MediaChunk)) == 3:
                theirs.data.clear()
                return [Error(id=request.id, code="unavailable", message="")]
            return take(connection, request)

        return chunk

    for source in (path, data):
        async with with_media() as (theirs, group):
            theirs.relay.answers[MediaChunk] = losing(theirs)
            await up(group, source)
            assert theirs.data == data
    async with with_media() as (theirs, group):
        theirs.relay.answers[MediaChunk] = losing(theirs)
        with pytest.raises(BadAnswer, match="lost bytes"):
            await up(group, pieces(data, 10_000), size_bytes=len(data), media_id=uuid7())
        assert len(theirs.relay.of(MediaAbort)) == 1


async def test_it_gives_up_after_so_long_without_progress_and_leaves_the_upload() -> None:
    async with with_media() as (theirs, group):
        theirs.relay.answers[MediaChunk] = lambda _, request: [Error(id=request.id, code="unavailable", message="")]
        with pytest.raises(TryLater):
            await up(group, content(10), media_id=uuid7(), patience_s=0.2)
        assert len(theirs.relay.of(MediaBegin)) > 1
        assert theirs.relay.of(MediaAbort) == []


@pytest.mark.parametrize("told", [90_000, 110_000], ids=["too many", "too few"])
async def test_a_source_of_another_size_is_an_error_and_no_upload_is_left(told: int, tmp_path: Path) -> None:
    data = content(100_000)
    path = tmp_path / "file"
    path.write_bytes(data)
    for source in (pieces(data, 7_000), path, data):
        async with with_media() as (theirs, group):
            with pytest.raises(ValueError, match="bytes than the"):
                await up(group, source, size_bytes=told, media_id=uuid7())
            assert theirs.committed is None
            assert len(theirs.relay.of(MediaAbort)) == 1


async def test_an_iterable_must_come_with_its_size() -> None:
    async with with_media() as (theirs, group):
        with pytest.raises(TypeError, match="size_bytes"):
            await up(group, pieces(b"data", 1))
        assert theirs.relay.of(MediaBegin) == []


async def test_a_refusal_to_begin_is_raised_and_nothing_is_aborted() -> None:
    for code, kind in (("quota_exceeded", Refused), ("id_conflict", Refused), ("too_large", BadRequest)):
        async with with_media() as (theirs, group):
            theirs.relay.answers[MediaBegin] = refused(code, 1, theirs.begin)
            with pytest.raises(kind) as raised:
                await up(group, b"data")
            assert isinstance(raised.value, Refused | BadRequest)
            assert raised.value.code == code
            assert theirs.relay.of(MediaAbort) == []


@pytest.mark.parametrize("is_named", [True, False])
async def test_a_source_that_fails_leaves_only_what_can_go_on(is_named: bool) -> None:
    async def failing() -> AsyncIterator[bytes]:
        yield content(100_000)
        raise OSError("the disk is gone")

    async with with_media() as (theirs, group):
        with pytest.raises(OSError, match="the disk is gone"):
            await up(group, failing(), size_bytes=200_000, media_id=uuid7() if is_named else None)
        assert len(theirs.relay.of(MediaAbort)) == (0 if is_named else 1)


async def test_a_cancelled_upload_can_go_on_and_leaves_no_task(tmp_path: Path) -> None:
    data = content(1_000_000)
    (tmp_path / "file").write_bytes(data)
    async with with_media() as (theirs, group):
        take = theirs.relay.answers[MediaChunk]
        theirs.relay.answers[MediaChunk] = lambda connection, request: (
            take(connection, request) if len(theirs.relay.of(MediaChunk)) < 5 else []
        )
        media_id = uuid7()
        upload = up(group, tmp_path / "file", media_id=media_id)
        await until(lambda: len(theirs.relay.of(MediaChunk)) >= 5)
        upload.cancel()
        await asyncio.wait({upload}, timeout=LIMIT_S / 2)
        assert upload.cancelled()
        assert not any("chunk" in name for name in our_tasks())
        assert theirs.relay.of(MediaAbort) == []
        before = len(theirs.data)
        assert before
        theirs.relay.answers[MediaChunk] = take
        progress: list[int] = []
        await up(group, tmp_path / "file", media_id=media_id, on_progress=lambda done, _: progress.append(done))
        assert progress[0] == before
        assert theirs.data == data


# ── committing ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_metadata_is_sealed_at_commit_with_the_root_and_the_epoch_of_that_moment() -> None:
    seen: list[MediaFacts] = []

    def seal(facts: MediaFacts) -> bytes:
        seen.append(facts)
        return b"sealed under %d" % facts.key_epoch

    async with with_media() as (theirs, group):
        theirs.key_epoch = 2
        media_id = uuid7()
        await up(group, b"data", metadata=seal, media_id=media_id)
        assert seen == [MediaFacts(media_id, 4, root_of(b"data"), epoch) for epoch in (1, 2)]
        assert theirs.committed is not None
        assert theirs.committed.encrypted_metadata == b"sealed under 2"
        assert await group.key_epoch() == 2


async def test_metadata_that_was_sealed_before_is_not_committed_under_another_epoch() -> None:
    async with with_media() as (theirs, group):
        theirs.key_epoch = 2
        media_id = uuid7()
        with pytest.raises(OutOfDate):
            await up(group, b"data", media_id=media_id)
        assert theirs.relay.of(MediaAbort) == []
        posted = await up(group, b"data", media_id=media_id, metadata=b"sealed anew")
        assert posted.media_id == media_id
        assert len(theirs.chunk_sizes) == 1, "what was durable is not sent again"


async def test_a_group_that_must_be_rekeyed_says_so() -> None:
    async with with_media() as (theirs, group):
        theirs.relay.answers[MediaCommit] = refused("rekey_required", 9, theirs.commit)
        with pytest.raises(OutOfDate) as raised:
            await up(group, b"data", metadata=lambda _: b"sealed", media_id=uuid7())
        assert raised.value.code == ErrorCode.REKEY_REQUIRED
        assert len(theirs.relay.of(MediaCommit)) == 1
        assert theirs.relay.of(MediaAbort) == []


async def test_a_commit_that_was_carried_out_before_is_found_with_its_first_metadata() -> None:
    async with with_media() as (_, group):
        media_id = uuid7()
        first = await up(group, b"data", media_id=media_id)
        again = await up(group, b"data", media_id=media_id, metadata=b"sealed otherwise")
        assert (first.duplicate, again.duplicate) == (False, True)
        assert again.root == first.root
        with pytest.raises(BadAnswer):
            await up(group, b"DATA", media_id=media_id)


async def test_an_acknowledgement_of_another_file_is_refused() -> None:
    async with with_media() as (theirs, group):
        theirs.relay.answers[MediaCommit] = lambda _, request: [
            PostOk(id=request.id, seq=4, hash=bytes(32), content_hash=bytes(32), created_at=NOW)
        ]
        with pytest.raises(BadAnswer, match="another file"):
            await up(group, b"data")


# ── how much goes on at once ────────────────────────────────────────────────────────────────────────────────────────


async def test_two_uploads_go_on_at_once_and_the_others_wait() -> None:
    async with with_media() as (theirs, group):
        theirs.relay.answers[MediaBegin] = lambda _, __: []
        uploads = [up(group, b"data") for _ in range(5)]
        await until(lambda: len(theirs.relay.of(MediaBegin)) == 2)
        uploads[0].cancel()
        await until(lambda: len(theirs.relay.of(MediaBegin)) == 3)
        for upload in uploads:
            upload.cancel()
        await asyncio.wait(uploads)


# ── down ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("size", [0, 1, SEGMENT_BYTES, SEGMENT_BYTES + 1, 3_000_000])
async def test_a_download_is_private_and_whole(size: int, tmp_path: Path) -> None:
    async with with_media() as (theirs, group):
        theirs.data += content(size)
        progress: list[tuple[int, int]] = []
        where = await soon(group.download(uuid7(), tmp_path / "file", on_progress=lambda *step: progress.append(step)))
        assert where.read_bytes() == theirs.data
        assert where.stat().st_mode & 0o777 == 0o600
        assert [path.name for path in tmp_path.iterdir()] == ["file"]
        assert progress[0] == (0, size)
        assert progress[-1] == (size, size)
        read = [piece async for piece in group.read_media(uuid7(), offset=size // 3)]
        assert b"".join(read) == theirs.data[size // 3 :]


async def test_reads_begin_small_grow_and_run_ahead() -> None:
    async with with_media() as (theirs, group):
        theirs.data += content(5_000_000)
        reading = group.read_media(uuid7())
        await anext(reading)
        assert [request.length for request in theirs.relay.of(MediaRead)[:4]] == [SEGMENT_BYTES] * 4
        async for _ in reading:
            pass
        lengths = [request.length for request in theirs.relay.of(MediaRead)[:-1]]
        assert lengths == sorted(lengths)
        assert lengths[-1] == LIMITS.media_chunk_bytes


async def test_whoever_stops_reading_leaves_nothing_behind() -> None:
    async with with_media() as (theirs, group):
        theirs.data += content(5_000_000)
        theirs.relay.answers[MediaRead] = lambda connection, request: (
            theirs.read(connection, request) if len(theirs.relay.of(MediaRead)) == 1 else []
        )
        reading = group.read_media(uuid7())
        await anext(reading)
        await soon(reading.aclose())
        assert not any("read-media" in name for name in our_tasks())


@pytest.mark.parametrize(
    ("there", "kept"),
    [(3 * SEGMENT_BYTES + 100, 3), (SEGMENT_BYTES - 1, 0), (4 * SEGMENT_BYTES, 3), (9 * SEGMENT_BYTES, 3)],
    ids=["whole segments", "less than one", "all but the last", "never more than the file"],
)
async def test_a_download_goes_on_with_the_whole_segments_of_its_part(there: int, kept: int, tmp_path: Path) -> None:
    async with with_media() as (theirs, group):
        theirs.data += content(4 * SEGMENT_BYTES)
        part = tmp_path / "file.part"
        part.write_bytes((bytes(theirs.data[: there // SEGMENT_BYTES * SEGMENT_BYTES]) + b"x" * 9_999_999)[:there])
        part.chmod(0o644)
        where = await soon(group.download(uuid7(), tmp_path / "file"))
        assert where.read_bytes() == theirs.data
        assert where.stat().st_mode & 0o777 == 0o600
        assert min(request.offset for request in theirs.relay.of(MediaRead)) == kept * SEGMENT_BYTES


@pytest.mark.parametrize("told", [False, True], ids=["by the relay", "by the event"])
async def test_other_bytes_than_were_posted_are_not_kept(told: bool, tmp_path: Path) -> None:
    data = content(100_000)
    async with with_media() as (theirs, group):
        theirs.data += data
        theirs.data[70_000] ^= 1
        if not told:
            theirs.relay.answers[MediaGet] = lambda _, request: [
                MediaGetOk(id=request.id, media=replace(theirs.media(uuid7()), root=root_of(data)))
            ]
        with pytest.raises(MediaCorrupt):
            await soon(group.download(uuid7(), tmp_path / "file", root=root_of(data) if told else None))
        assert list(tmp_path.iterdir()) == []


async def test_a_foreign_part_is_removed_and_the_next_try_begins_anew(tmp_path: Path) -> None:
    async with with_media() as (theirs, group):
        theirs.data += content(200_000)
        (tmp_path / "file.part").write_bytes(bytes(150_000))
        with pytest.raises(MediaCorrupt):
            await soon(group.download(uuid7(), tmp_path / "file"))
        assert (await soon(group.download(uuid7(), tmp_path / "file"))).read_bytes() == theirs.data


async def test_a_download_that_is_cut_short_keeps_its_part(tmp_path: Path) -> None:
    async with with_media() as (theirs, group):
        theirs.data += content(400_000)
        read = theirs.read
        theirs.relay.answers[MediaRead] = lambda connection, request: (
            read(connection, request)
            if len(theirs.relay.of(MediaRead)) < 3
            else [Error(id=request.id, code="media_expired", message="")]
        )
        with pytest.raises(Refused) as raised:
            await soon(group.download(uuid7(), tmp_path / "file"))
        assert raised.value.code == ErrorCode.MEDIA_EXPIRED
        assert (tmp_path / "file.part").stat().st_size == 2 * SEGMENT_BYTES
        assert not (tmp_path / "file").exists()


async def test_fewer_bytes_than_the_file_has_are_a_wrong_answer(tmp_path: Path) -> None:
    async with with_media() as (theirs, group):
        theirs.data += content(100_000)
        theirs.relay.answers[MediaRead] = lambda _, request: [MediaReadOk(id=request.id, data=b"short")]
        with pytest.raises(BadAnswer):
            await soon(group.download(uuid7(), tmp_path / "file"))


# ── the seam for encryption ─────────────────────────────────────────────────────────────────────────────────────────


class Toy:
    """Something like a cipher: an XOR, and a tag of 16 bytes that binds a segment to its place."""

    encryption_iv = bytes(range(7)) + bytes(5)
    plain_bytes = SEGMENT_BYTES - 16

    def __init__(self) -> None:
        self.opened: list[tuple[int, bool]] = []

    def stored_bytes(self, size_bytes: int) -> int:
        return size_bytes + 16 * max(1, -(-size_bytes // self.plain_bytes))

    def seal(self, index: int, is_last: bool, segment: bytes) -> bytes:
        return segment.translate(_FLIPPED) + self._tag(index, is_last)

    def open(self, index: int, is_last: bool, segment: bytes) -> bytes:
        self.opened.append((index, is_last))
        if segment[-16:] != self._tag(index, is_last):
            raise ValueError("forged")
        return segment[:-16].translate(_FLIPPED)

    def _tag(self, index: int, is_last: bool) -> bytes:
        return self.encryption_iv[:7] + index.to_bytes(4, "big") + bytes([is_last]) + b"tags"


_FLIPPED = bytes(byte ^ 0x55 for byte in range(256))


@pytest.mark.parametrize("size", [0, 1, 65_519, 65_520, 65_521, 131_040, 1_000_000])
async def test_segments_are_sealed_on_their_way_up_and_opened_on_their_way_down(size: int, tmp_path: Path) -> None:
    data, toy = content(size), Toy()
    async with with_media() as (theirs, group):
        posted = await up(group, pieces(data, 9_999), size_bytes=size, seal=toy)
        assert theirs.begun is not None
        assert theirs.begun.encryption_iv == toy.encryption_iv
        assert theirs.begun.size_bytes == posted.size_bytes == len(theirs.data) == toy.stored_bytes(size)
        assert posted.root == root_of(theirs.data)
        assert size < KIB or data not in theirs.data
        where = await soon(group.download(uuid7(), tmp_path / "file", open=toy))
        assert where.read_bytes() == data
        assert where.stat().st_mode & 0o777 == 0o600
        assert [path.name for path in tmp_path.iterdir()] == ["file"]
        last = len(toy.opened) - 1
        assert toy.opened == [(index, index == last) for index in range(last + 1)]
        assert last == max(1, -(-size // 65_520)) - 1


async def test_a_sealed_upload_goes_on_with_the_same_bytes() -> None:
    data, toy = content(500_000), Toy()
    async with with_media() as (theirs, group):
        await up(group, data, seal=toy)
        whole = bytes(theirs.data)
    async with with_media() as (theirs, group):
        theirs.data += whole[: 3 * SEGMENT_BYTES]
        await up(group, data, seal=toy, media_id=uuid7())
        assert theirs.data == whole


async def test_segments_that_can_t_be_opened_leave_the_part_for_the_right_key(tmp_path: Path) -> None:
    class Wrong(Toy):
        encryption_iv = bytes(12)

    data = content(500_000)
    async with with_media() as (_, group):
        await up(group, data, seal=Toy())
        with pytest.raises(ValueError, match="forged"):
            await soon(group.download(uuid7(), tmp_path / "file", open=Wrong()))
        assert [path.name for path in tmp_path.iterdir()] == ["file.part"]
        assert (await soon(group.download(uuid7(), tmp_path / "file", open=Toy()))).read_bytes() == data


class Padded(Plain):
    """Pads to a whole number of four segments; what is padding only is asked for with no plaintext."""

    def stored_bytes(self, size_bytes: int) -> int:
        return -(-size_bytes // (4 * SEGMENT_BYTES)) * 4 * SEGMENT_BYTES

    def seal(self, index: int, is_last: bool, segment: bytes) -> bytes:
        return segment.ljust(SEGMENT_BYTES, b"\0")


async def test_padding_may_fill_segments_of_its_own() -> None:
    outgoing = Outgoing(pieces(b"x" * 70_000, 100), 70_000, Padded())
    stored = b"".join([await outgoing.read(at, 100_000) for at in range(0, 300_000, 100_000)])
    assert stored == b"x" * 70_000 + bytes(4 * SEGMENT_BYTES - 70_000)
    assert await outgoing.finish() == root_of(stored)


async def test_no_more_is_kept_than_what_is_not_durable() -> None:
    outgoing = Outgoing(pieces(content(1_000_000), 10_000), 1_000_000, Plain())
    read = partial(outgoing.read, length=2 * SEGMENT_BYTES)
    first, second = await read(0), await read(2 * SEGMENT_BYTES)
    outgoing.release(2 * SEGMENT_BYTES)
    assert len(outgoing._kept) == 2 * SEGMENT_BYTES
    assert await read(2 * SEGMENT_BYTES) == second
    assert first + second == content(4 * SEGMENT_BYTES)
    await outgoing.seek(8 * SEGMENT_BYTES)
    assert len(outgoing._kept) <= 16 * SEGMENT_BYTES

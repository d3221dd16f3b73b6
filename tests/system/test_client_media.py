"""The Python client's files against whole relays: over wires that are cut, on two relays, in both kinds of store."""

import asyncio
import itertools
import os
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from textwrap import indent
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from orbital_client.wire import (
    BadRequest,
    Client,
    ErrorCode,
    Event,
    Group,
    Kind,
    MediaCorrupt,
    MediaFacts,
    OutOfDate,
    Refused,
    statement_of,
    uuid7,
)
from orbital_protocol.media import Root
from orbital_protocol.statements import MediaDeleted
from tests.relays import RunningRelay, media_dir_of, relay_here, running_relay
from tests.swift import Swift
from tests.system.test_client import read, signed_up, take_in
from tests.unit.client_relay import our_tasks, until

pytestmark = pytest.mark.timeout(180)

LIMIT_S = 60
MIB = 1024 * 1024
SEGMENT = 65_536
SIZES = (0, 1, SEGMENT - 1, SEGMENT, SEGMENT + 1, 524_287, 524_288, 524_289, 5 * MIB + 12_345)


@pytest_asyncio.fixture(autouse=True)
async def nothing_is_left_running() -> AsyncIterator[None]:
    yield
    assert our_tasks() == set()


@dataclass
class Scissors:
    """A wire to several relays in turn: it is cut after so many bytes went up, and leads to the next relay then."""

    ports: Iterator[int]
    lengths: list[int] = field(default_factory=list)
    cuts: int = 0
    _port: int = 0
    _ends: set[asyncio.StreamWriter] = field(default_factory=set)

    async def join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        there, back = await asyncio.open_connection("127.0.0.1", self._port)
        self._ends |= {writer, back}
        try:
            await asyncio.gather(self._carry(reader, back, goes_up=True), self._carry(there, writer, goes_up=False))
        finally:
            self._ends -= {writer, back}

    async def _carry(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, goes_up: bool) -> None:
        with suppress(ConnectionError):
            while data := await source.read(SEGMENT):
                if goes_up and self.lengths:
                    self.lengths[0] -= len(data)
                    if self.lengths[0] < 0:
                        target.write(data[: self.lengths.pop(0)])
                        self.cut()
                        break
                target.write(data)
                await target.drain()
        target.transport.abort()

    def cut(self) -> None:
        """Kill all connections; the next one is to the next relay."""
        self.cuts += 1
        self.turn()
        for end in self._ends:
            end.transport.abort()

    def turn(self) -> None:
        """Lead to the next relay from the next connection on."""
        self._port = next(self.ports)


@asynccontextmanager
async def wire_to(*relays: RunningRelay) -> AsyncIterator[tuple[str, Scissors]]:
    """A wire to these relays, which is cut once it is told after how many bytes; and its address."""
    scissors = Scissors(itertools.cycle([relay.port for relay in relays]))
    scissors.turn()
    server = await asyncio.start_server(scissors.join, "127.0.0.1", 0)
    try:
        yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}", scissors
    finally:
        server.close()
        for end in scissors._ends:
            end.transport.abort()
        await server.wait_closed()


def root_of(data: bytes) -> bytes:
    root = Root()
    root.update(data)
    return root.digest()


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    """The data in pieces of all sorts of sizes."""
    sizes = itertools.cycle([1, 100, 4_096, 65_536, 300_000, 2_000_000])
    at = 0
    while at < len(data):
        size = next(sizes)
        yield data[at : at + size]
        at += size


async def started(client: Client) -> tuple[Group, bytes]:
    """A group, and a thread in it."""
    group = await client.create_group(b"name")
    return group, (await group.post(title=b"t", body=b"b")).id


def blob_of(dsn: str) -> Path:
    """The one blob that the store has."""
    (blob,) = [path for path in media_dir_of(dsn).glob("??/*") if not path.name.endswith(".part")]
    return blob


# ── there and back ──────────────────────────────────────────────────────────────────────────────────────────────────


async def test_files_of_all_sizes_come_back_as_they_were(migrated_database: str, tmp_path: Path) -> None:
    async with running_relay(migrated_database) as relay, signed_up(relay.url, "ann", "bob") as (ann, bob):
        group, thread = await started(ann)
        (bobs,) = await take_in(ann, group, bob)
        path = tmp_path / "source"
        last = 0
        for number, size in enumerate(SIZES):
            data = os.urandom(size)
            path.write_bytes(data)
            source = (path, data, pieces(data))[number % 3]
            steps: list[tuple[int, int]] = []
            posted = await group.upload(
                source,
                thread_id=thread,
                metadata=b"name and key, sealed",
                size_bytes=size,
                on_progress=lambda *step, to=steps: to.append(step),
            )
            assert (posted.size_bytes, posted.root, posted.duplicate) == (size, root_of(data), False)
            assert steps == sorted(set(steps))
            assert (steps[0], steps[-1]) == ((0, size), (size, size))
            where = await bobs.download(posted.media_id, tmp_path / "copy", root=posted.root)
            assert where.read_bytes() == data
            assert where.stat().st_mode & 0o777 == 0o600
            read_on = [piece async for piece in bobs.read_media(posted.media_id, offset=size // 2)]
            assert b"".join(read_on) == data[size // 2 :]
            last = posted.seq
        events = [event for event in await read(bob, bobs, last) if event.kind == Kind.MEDIA_POSTED]
        assert [event.size_bytes for event in events] == list(SIZES)
        assert {event.encrypted_metadata for event in events} == {b"name and key, sealed"}
        listed = (await bobs.media(thread_id=thread)).media
        assert [(media.media_id, media.root) for media in listed] == [(each.object_id, each.root) for each in events]
        assert all(media.downloaded for media in listed)
        page = await group.media(limit=2)
        assert ([media.size_bytes for media in page.media], page.more) == (list(SIZES[-2:]), True)
        quota = await group.quota()
        assert (quota.total_bytes, quota.media_count) == (sum(SIZES), len(SIZES))
        info = await group.media_info(events[-1].object_id)
        assert info.media.author_id == ann.identity.user_id


async def test_a_store_of_objects_gets_its_parts(migrated_database: str, swift: Swift, tmp_path: Path) -> None:
    data = os.urandom(13 * MIB + 7)
    bucket = await swift.make_bucket()
    async with (
        relay_here(migrated_database, **swift.settings, s3_bucket=bucket) as url,
        signed_up(url, "ann") as (ann,),
    ):
        group, thread = await started(ann)
        async with asyncio.timeout(LIMIT_S):
            posts = asyncio.create_task(
                post_until(
                    group, thread, upload := asyncio.create_task(group.upload(data, thread_id=thread, metadata=b"m"))
                )
            )
            posted = await upload
            assert await posts
        where = await group.download(posted.media_id, tmp_path / "copy")
        assert where.read_bytes() == data


async def post_until(group: Group, thread: bytes, upload: "asyncio.Task[object]") -> int:
    """Post, one after the other, as long as the upload goes on: how often."""
    count = 0
    while not upload.done():
        await group.reply(thread, b"in between")
        count += 1
    return count


async def test_the_pages_example_works_as_it_stands(
    migrated_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = Path(__file__).parents[2] / "clients" / "python" / "WIRE.md"
    example = page.read_text().split("## Files")[1].split("```python\n")[1].split("```")[0]
    program: dict[str, Any] = {"Event": Event, "Kind": Kind}
    exec("async def run(client, group, thread):\n" + indent(example, "    "), program)  # noqa: S102  our own text
    monkeypatch.chdir(tmp_path)
    Path("map.pdf").write_bytes(os.urandom(100_000))
    async with running_relay(migrated_database) as relay, signed_up(relay.url, "ann") as (ann,):
        group = await ann.create_group(b"name")
        async with asyncio.timeout(LIMIT_S):
            await program["run"](ann, group, await group.post(title=b"t", body=b"b"))
    assert Path("copy.pdf").read_bytes() == Path("map.pdf").read_bytes()


# ── over wires that are cut ─────────────────────────────────────────────────────────────────────────────────────────


async def test_an_upload_that_is_cut_ten_times_goes_on_at_the_other_relay(
    migrated_database: str, tmp_path: Path
) -> None:
    data = os.urandom(9 * MIB + 1)
    path = tmp_path / "source"
    path.write_bytes(data)
    for source in (path, pieces(data)):
        cuts = [random.SystemRandom().randrange(1, 1_500_000) for _ in range(10)]
        async with (
            running_relay(migrated_database) as one,
            running_relay(migrated_database) as other,
            wire_to(one, other) as (url, scissors),
            signed_up(url, "ann" if source is path else "bob") as (ann,),
        ):
            group, thread = await started(ann)
            scissors.lengths = list(cuts)
            done: list[int] = []
            async with asyncio.timeout(LIMIT_S):
                posted = await group.upload(
                    source,
                    thread_id=thread,
                    metadata=b"m",
                    size_bytes=len(data),
                    on_progress=partial(note, done),
                )
            assert scissors.cuts == 10, cuts
            assert done == sorted(set(done))
            assert done[-1] == len(data)
            assert posted.root == root_of(data)
            where = await group.download(posted.media_id, tmp_path / "copy")
            assert where.read_bytes() == data, cuts


def note(steps: list[int], done: int, _: int) -> None:
    steps.append(done)


async def test_a_download_goes_on_over_a_cut_wire(migrated_database: str, tmp_path: Path) -> None:
    data = os.urandom(6 * MIB)
    async with (
        running_relay(migrated_database) as relay,
        wire_to(relay) as (url, scissors),
        signed_up(url, "ann") as (ann,),
    ):
        group, thread = await started(ann)
        posted = await group.upload(data, thread_id=thread, metadata=b"m")

        def cut_at_each_mib(done: int, _: int) -> None:
            if done > (scissors.cuts + 1) * MIB:
                scissors.cut()

        where = await group.download(posted.media_id, tmp_path / "copy", on_progress=cut_at_each_mib)
        assert where.read_bytes() == data
        assert scissors.cuts == 5


async def test_an_upload_goes_on_in_another_process(migrated_database: str, tmp_path: Path) -> None:
    data = os.urandom(8 * MIB)
    path, media_id = tmp_path / "source", uuid7()
    path.write_bytes(data)
    async with running_relay(migrated_database) as relay, signed_up(relay.url, "ann") as (ann,):
        group, thread = await started(ann)
        far = asyncio.Event()
        first = asyncio.create_task(
            group.upload(
                pieces_until(data, 3 * MIB),
                thread_id=thread,
                metadata=b"m",
                size_bytes=len(data),
                media_id=media_id,
                on_progress=lambda done, _: far.set() if done >= 2 * MIB else None,
            )
        )
        async with asyncio.timeout(LIMIT_S):
            await far.wait()
        first.cancel()
        await asyncio.wait({first})
        assert first.cancelled()
        who = ann.identity
        async with Client(relay.url) as again:
            await again.login("ann", "correct horse", who)
            group, done = again.group(group.group_id), list[int]()
            posted = await group.upload(
                path, thread_id=thread, metadata=b"m", media_id=media_id, on_progress=lambda step, _: done.append(step)
            )
            assert done[0] >= 2 * MIB
            assert (posted.media_id, posted.duplicate) == (media_id, False)
            assert (await group.download(media_id, tmp_path / "copy")).read_bytes() == data
            once_more = await group.upload(path, thread_id=thread, metadata=b"sealed anew", media_id=media_id)
            assert (once_more.seq, once_more.hash, once_more.duplicate) == (posted.seq, posted.hash, True)


async def pieces_until(data: bytes, end: int) -> AsyncIterator[bytes]:
    """The data up to there, and then nothing more for ever."""
    yield data[:end]
    await asyncio.Event().wait()


async def test_a_file_that_changed_meanwhile_is_not_posted(migrated_database: str, tmp_path: Path) -> None:
    data = os.urandom(2 * MIB)
    path, media_id = tmp_path / "source", uuid7()
    async with running_relay(migrated_database) as relay, signed_up(relay.url, "ann") as (ann,):
        group, thread = await started(ann)
        far = asyncio.Event()
        first = asyncio.create_task(
            group.upload(
                pieces_until(data, MIB),
                thread_id=thread,
                metadata=b"m",
                size_bytes=len(data),
                media_id=media_id,
                on_progress=lambda done, _: far.set() if done else None,
            )
        )
        async with asyncio.timeout(LIMIT_S):
            await far.wait()
        first.cancel()
        await asyncio.wait({first})
        path.write_bytes(b"x" + data[1:])
        with pytest.raises(BadRequest) as raised:
            await group.upload(path, thread_id=thread, metadata=b"m", media_id=media_id)
        assert raised.value.code == ErrorCode.BAD_ARGUMENT
        assert (await group.quota()).media_count == 0


# ── what is refused ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("told", [999_999, 1_000_001])
async def test_a_source_of_another_size_leaves_no_quota_used(migrated_database: str, told: int) -> None:
    data = os.urandom(1_000_000)
    async with running_relay(migrated_database) as relay, signed_up(relay.url, "ann") as (ann,):
        group, thread = await started(ann)
        with pytest.raises(ValueError, match="bytes than"):
            await group.upload(pieces(data), thread_id=thread, metadata=b"m", size_bytes=told)
        quota = await group.quota()
        assert (quota.total_bytes, quota.media_count) == (0, 0)


async def test_a_full_group_says_how_much_is_left(migrated_database: str) -> None:
    async with running_relay(migrated_database) as relay, signed_up(relay.url, "ann") as (ann,):
        group, thread = await started(ann)
        await group.upload(bytes(600), thread_id=thread, metadata=b"m")
        await execute(migrated_database, "UPDATE group_quotas SET max_bytes = 1000")
        with pytest.raises(Refused) as raised:
            await group.upload(bytes(401), thread_id=thread, metadata=b"m")
        assert raised.value.code == ErrorCode.QUOTA_EXCEEDED
        assert (raised.value.details.free_bytes, raised.value.details.free_count) == (400, 99)
        await group.upload(bytes(400), thread_id=thread, metadata=b"m")


async def execute(dsn: str, statement: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def test_metadata_is_sealed_under_the_epoch_of_the_commit(migrated_database: str) -> None:
    async with running_relay(migrated_database) as relay, signed_up(relay.url, "ann", "bob") as (ann, bob):
        group, thread = await started(ann)
        (bobs,) = await take_in(ann, group, bob)
        await bobs.leave()
        media_id = uuid7()
        with pytest.raises(OutOfDate) as raised:
            await group.upload(b"data", thread_id=thread, metadata=b"m", media_id=media_id)
        assert raised.value.code == ErrorCode.REKEY_REQUIRED
        await group.rekey(encrypted_name=b"n", wrap=lambda _: b"w", key_commitment=bytes(32), previous_key=b"p")
        group.learn_epoch(1)
        seen: list[MediaFacts] = []

        def seal(facts: MediaFacts) -> bytes:
            seen.append(facts)
            return b"under %d" % facts.key_epoch

        posted = await group.upload(b"data", thread_id=thread, metadata=seal, media_id=media_id)
        assert [facts.key_epoch for facts in seen] == [1, 2]
        (event,) = (await group.history(after_seq=posted.seq - 1)).events
        assert (event.encrypted_metadata, event.key_epoch) == (b"under 2", 2)


# ── the store and the end of files ──────────────────────────────────────────────────────────────────────────────────


async def test_a_download_resumes_from_its_part(migrated_database: str, tmp_path: Path) -> None:
    data = os.urandom(MIB)
    async with running_relay(migrated_database) as relay, signed_up(relay.url, "ann") as (ann,):
        group, thread = await started(ann)
        posted = await group.upload(data, thread_id=thread, metadata=b"m")
        (tmp_path / "copy.part").write_bytes(data[: 5 * SEGMENT] + b"half a segment")
        done: list[int] = []
        where = await group.download(posted.media_id, tmp_path / "copy", on_progress=lambda step, _: done.append(step))
        assert done[0] == 5 * SEGMENT
        assert where.read_bytes() == data


async def test_bytes_that_the_store_has_altered_are_noticed(migrated_database: str, tmp_path: Path) -> None:
    async with running_relay(migrated_database) as relay, signed_up(relay.url, "ann") as (ann,):
        group, thread = await started(ann)
        posted = await group.upload(os.urandom(300_000), thread_id=thread, metadata=b"m")
        blob = blob_of(migrated_database)
        stored = bytearray(blob.read_bytes())
        stored[123_456] ^= 1
        blob.write_bytes(stored)
        with pytest.raises(MediaCorrupt) as raised:
            await group.download(posted.media_id, tmp_path / "copy")
        assert raised.value.media_id == posted.media_id
        assert list(tmp_path.iterdir()) == []


async def test_deleted_and_expired_files_are_gone_and_their_events_verify(
    migrated_database: str, tmp_path: Path
) -> None:
    async with (
        running_relay(migrated_database, media_sweep_ms=50) as relay,
        signed_up(relay.url, "ann", "bob") as (ann, bob),
        signed_up(relay.url, "cleo", kinds=[Kind.MEDIA_EXPIRED]) as (cleo,),
    ):
        group, thread = await started(ann)
        bobs, cleos = await take_in(ann, group, bob, cleo)
        deleted = await bobs.upload(b"deleted", thread_id=thread, metadata=b"m")
        expired = await group.upload(b"expired", thread_id=thread, metadata=b"m")
        with pytest.raises(Refused):
            await cleos.delete_media(deleted.media_id)
        statement = await group.delete_media(deleted.media_id)
        await execute(migrated_database, "UPDATE media SET expires_at = clock_timestamp()")
        with pytest.raises(Refused) as raised:
            await bobs.download(expired.media_id, tmp_path / "copy")
        assert raised.value.code == ErrorCode.MEDIA_EXPIRED
        with pytest.raises(Refused) as raised:
            await bobs.download(deleted.media_id, tmp_path / "copy")
        assert raised.value.code == ErrorCode.NOT_FOUND
        assert list(tmp_path.iterdir()) == []

        events = await read(bob, bobs, statement.seq + 1)
        said = statement_of(events[-2])
        assert isinstance(said, MediaDeleted)
        assert (events[-2].kind, said.media_id) == (Kind.MEDIA_DELETED, deleted.media_id)
        assert (events[-1].kind, events[-1].object_id) == (Kind.MEDIA_EXPIRED, expired.media_id)
        assert events[-1].actor_id == bytes(16)
        async with asyncio.timeout(LIMIT_S):
            only = [item async for item in until_event(cleo)]
        assert only == [events[-1]]
        page = await group.history(after_seq=deleted.seq - 1)
        erased = [event for event in page.events if event.kind == Kind.MEDIA_POSTED]
        assert [event.erased for event in erased] == [True, True]
        assert [event.encrypted_metadata for event in erased] == [None, None]
        await until(lambda: not list(media_dir_of(migrated_database).glob("??/*")))
        assert (await group.quota()).media_count == 0


async def until_event(client: Client) -> AsyncIterator[Event]:
    async for item in client.events():
        if isinstance(item, Event):
            yield item
            return

"""`media audit`: what a store has and what the database says of it, planted wrong, found, mended; beside relays."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio

from orbital_protocol import frames
from orbital_protocol.codes import ErrorCode, Kind
from orbital_protocol.statements import MediaDeleted
from orbital_relay.commands import audit
from orbital_relay.config import Settings
from orbital_relay.media import choose
from orbital_relay.media.base import Part, Store, Stored, new_key
from orbital_relay.media.local import LocalStore
from orbital_relay.store.pool import Connection
from tests.commands import orbital, orbital_process
from tests.files import File, begin, commit, download, send, upload, usage
from tests.forks import Ran
from tests.people import Person, connected, found_group, says
from tests.relays import relay_here, running_relay
from tests.stage import Stage, stage_on
from tests.swift import Swift
from tests.talk import Refused, Talk, post_thread, talking

pytestmark = pytest.mark.timeout(120)

LIMIT_S = 60
SWEEP_NEVER_MS = 3_600_000
PART = 5_242_880
"""What S3 wants of a part that isn't the last."""


@pytest.fixture(params=["local", "s3"])
def service(request: pytest.FixtureRequest) -> Swift | None:
    """An S3 service, or None for a folder."""
    if request.param == "local":
        return None
    found = request.getfixturevalue("swift")
    assert isinstance(found, Swift)
    return found


@pytest_asyncio.fixture
async def place(service: Swift | None, tmp_path: Path) -> dict[str, Any]:
    """The settings of a store of this test's own."""
    return await new_place(service, tmp_path / "media")


async def new_place(service: Swift | None, folder: Path) -> dict[str, Any]:
    if service is None:
        return {"media_dir": folder}
    return {**service.settings, "s3_bucket": await service.make_bucket()}


@pytest_asyncio.fixture
async def stage(migrated_database: str) -> AsyncIterator[Stage]:
    async with stage_on(migrated_database) as stage:
        yield stage


@asynccontextmanager
async def store_of(place: dict[str, Any]) -> AsyncIterator[Store]:
    """The store itself, for planting what is wrong in it."""
    media = choose.make_store(Settings(**place))
    await media.open()
    try:
        yield media
    finally:
        await media.close()


async def plant(media: Store, key: str, size: int | None) -> None:
    """Put a blob of that size under a key, or (None) a part."""
    part = Part(1, 1, 0, 10 if size is None else size)
    state = await media.begin(key)
    tag = await media.append(key, state, part, [os.urandom(part.size_bytes)])
    if size is not None:
        await media.finish(key, state, [Part(1, 1, 0, size, tag)])


@dataclass
class Scene:
    """A group of ann's with a thread in it; `talk` is her connection."""

    stage: Stage
    ann: Person
    group_id: bytes
    thread_id: bytes
    talk: Talk

    def file(self, size: int) -> File:
        return File(self.group_id, self.thread_id, os.urandom(size))

    async def uploaded(self, size: int) -> File:
        file = self.file(size)
        await upload(self.talk, file)
        return file

    async def key_of(self, file: File) -> str:
        key = await self.stage.sql.fetchval("SELECT storage_url FROM media WHERE id = $1", file.media_id)
        assert isinstance(key, str)
        return key

    async def delete(self, file: File) -> None:
        signed = await says(self.stage.sql, self.ann, self.group_id, MediaDeleted, media_id=file.media_id)
        await self.talk.ask(frames.MediaDelete, statement=signed.statement, signature=signed.signature)


@asynccontextmanager
async def scene_on(stage: Stage, url: str) -> AsyncIterator[Scene]:
    [ann] = await stage.people(1)
    group_id = await found_group(stage.sql, ann)
    async with talking(url, await stage.token(ann)) as talk:
        thread_id, _ = await post_thread(talk, group_id)
        yield Scene(stage, ann, group_id, thread_id, talk)


async def audited(stage: Stage, place: dict[str, Any], *arguments: str) -> tuple[int, dict[str, Any]]:
    """Audit: exit status and report."""
    ran = await orbital("media", "audit", "--json", *arguments, dsn=stage.dsn, **place)
    assert ran.err == ""
    return ran.status, ran.json()


async def waiting(stage: Stage) -> int:
    count = await stage.sql.fetchval("SELECT count(*) FROM blob_deletions WHERE NOT is_deleted")
    assert isinstance(count, int)
    return count


# ── what is found, and mended ───────────────────────────────────────────────────────────────────────────────────────


async def test_each_thing_that_is_wrong_is_named_mended_and_gone(stage: Stage, place: dict[str, Any]) -> None:
    async with relay_here(stage.dsn, media_sweep_ms=SWEEP_NEVER_MS, **place) as url, scene_on(stage, url) as scene:
        good, empty, missing, short, littered = [await scene.uploaded(size) for size in (100_000, 0, 200, 300, 400)]
        underway = scene.file(PART + 1_000_000)
        await send(scene.talk, underway, await begin(scene.talk, underway), up_to=PART)
        keys = {file.media_id: await scene.key_of(file) for file in (missing, short, littered)}
        assert await audited(stage, place) == (0, clean_report(await store_name(place), files=5, blobs=5))
    blob, parts = new_key(), new_key()
    async with store_of(place) as media:
        await media.delete(keys[missing.media_id])
        await media.delete(keys[short.media_id])
        await plant(media, keys[short.media_id], 299)
        await plant(media, keys[littered.media_id], None)
        await plant(media, blob, 77)
        await plant(media, parts, None)
    right = await usage(stage.sql, scene.group_id)
    await stage.sql.execute("UPDATE group_quotas SET total_bytes = 5, media_count = 1")

    status, report = await audited(stage, place)
    assert status == 1
    assert {lost["key"]: (lost["size_bytes"], lost["stored_bytes"]) for lost in report["lost"]} == {
        keys[missing.media_id]: (200, None),
        keys[short.media_id]: (300, 299),
    }
    assert {(stray["what"], stray["key"], stray["size_bytes"]) for stray in report["strays"]} == {
        ("blob", blob, 77),
        ("parts", parts, None),
        ("leftovers", keys[littered.media_id], None),
    }
    [skew] = report["quotas"]
    assert (skew["total_bytes"], skew["media_count"], skew["sum_bytes"], skew["sum_count"]) == (5, 1, *right)
    assert (report["ok"], report["repaired"], report["found"], report["more"]) == (False, False, 6, False)

    plain = await orbital("media", "audit", dsn=stage.dsn, **place)
    assert (plain.status, plain.err) == (1, "")
    *lines, last = plain.out.splitlines()
    assert len(lines) == 6
    assert last == "audited 5 files and 5 blobs, 6 findings"
    for said in (f"its blob {keys[missing.media_id]} is not there", f"{keys[short.media_id]} has 299 bytes, not 300"):
        assert [line for line in lines if line.endswith(said)], lines

    status, mended = await audited(stage, place, "--repair")
    assert (status, mended["ok"], mended["repaired"], mended["found"]) == (0, True, True, 6)
    status, report = await audited(stage, place)
    assert (status, report) == (0, clean_report(report["store"], files=3, blobs=4, waiting=2))
    assert (await usage(stage.sql, scene.group_id))[1] == 4
    expired = await stage.sql.fetch("SELECT object_id FROM events WHERE kind = $1", Kind.MEDIA_EXPIRED)
    assert {row["object_id"] for row in expired} == {missing.media_id, short.media_id}
    assert (await orbital("log", "verify", dsn=stage.dsn)).status == 0

    async with (
        relay_here(stage.dsn, media_sweep_ms=20, **place) as url,
        talking(url, await stage.token(scene.ann)) as talk,
    ):
        for lost in (missing, short):
            with pytest.raises(Refused, match=f"^{ErrorCode.MEDIA_EXPIRED}"):
                await download(talk, lost.media_id)
        for kept in (good, empty, littered):
            assert await download(talk, kept.media_id) == kept.data
        begun = await begin(talk, underway)  # what was under way is not touched
        assert begun.offset == PART
        await send(talk, underway, begun)
        await commit(talk, underway)
        async with asyncio.timeout(LIMIT_S):
            while await waiting(stage):
                await asyncio.sleep(0.02)
    status, report = await audited(stage, place)
    assert (status, report) == (0, clean_report(report["store"], files=4, blobs=4))


def clean_report(name: str, *, files: int, blobs: int, waiting: int = 0) -> dict[str, Any]:
    """The report of an audit that found nothing."""
    return {
        "ok": True,
        "store": name,
        "recorded": name,
        "files": files,
        "blobs": blobs,
        "waiting": waiting,
        "found": 0,
        "more": False,
        "repaired": False,
        "lost": [],
        "strays": [],
        "quotas": [],
    }


async def store_name(place: dict[str, Any]) -> str:
    async with store_of(place) as media:
        return media.identity


@pytest.mark.each_postgres
async def test_more_findings_than_a_look_takes_are_mended_in_several(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place: dict[str, Any] = {"media_dir": tmp_path}
    async with relay_here(stage.dsn, **place) as url, scene_on(stage, url) as scene:
        files = [await scene.uploaded(size) for size in range(100, 107)]
        keys = [await scene.key_of(file) for file in files]
    async with store_of(place) as media:
        for key in keys:
            await media.delete(key)
        for _ in range(7):
            await plant(media, new_key(), 10)
    monkeypatch.setattr(audit, "_FINDINGS_MAX", 3)
    monkeypatch.setattr(audit, "_SETTLE_S", 0)
    status, report = await audited(stage, place)
    assert (status, report["more"]) == (1, True)
    assert 3 <= report["found"] < 14
    assert "… and more" in (await orbital("media", "audit", dsn=stage.dsn, **place)).out
    status, report = await audited(stage, place, "--repair")
    assert (status, report["found"]) == (0, 14)
    assert (await audited(stage, place))[0] == 0
    assert await usage(stage.sql, scene.group_id) == (0, 0)


# ── beside relays ───────────────────────────────────────────────────────────────────────────────────────────────────


async def churn(scene: Scene, stop: asyncio.Event, done: list[str]) -> None:
    """Upload, and then keep, delete, abort or leave unfinished, until told to stop."""
    while not stop.is_set():
        what = ("keep", "delete", "abort", "again")[len(done) % 4]
        file = scene.file(150_000)
        begun = await begin(scene.talk, file)
        await send(scene.talk, file, begun)
        if what == "abort":
            await scene.talk.ask(frames.MediaAbort, media_id=file.media_id)
        elif what == "again":
            again = await begin(scene.talk, file)
            await send(scene.talk, file, again)
            await commit(scene.talk, file)
            await scene.delete(file)
        else:
            await commit(scene.talk, file)
            if what == "delete" or len(done) > 200:
                await scene.delete(file)
        done.append(what)


async def test_beside_a_busy_relay_nothing_is_found_that_is_not_there(stage: Stage, place: dict[str, Any]) -> None:
    await stage.sql.execute("ALTER TABLE group_quotas ALTER COLUMN max_media_count SET DEFAULT 100000")
    async with (
        running_relay(stage.dsn, media_sweep_ms=10, **place) as relay,
        stage_on(stage.dsn) as second,
        scene_on(stage, relay.url) as one,
        scene_on(second, relay.url) as other,
    ):
        stop, done = asyncio.Event(), list[str]()
        churning = [asyncio.create_task(churn(scene, stop, done), name="churn") for scene in (one, other)]
        try:
            audits = 0
            while audits < 4 or len(done) < 40:
                status, report = await audited(stage, place, *(("--repair",) if audits % 2 else ()))
                assert (status, report["found"]) == (0, 0), report
                audits += 1
        finally:
            stop.set()
            await asyncio.gather(*churning)
        assert set(done) >= {"keep", "delete", "abort", "again"}
        for scene in (one, other):
            await usage(stage.sql, scene.group_id)
            kept = await scene.talk.ask(frames.MediaList, group_id=scene.group_id)
            for media in kept.media[:3]:
                assert len(await download(scene.talk, media.media_id)) == 150_000
    assert (await audited(stage, place))[0] == 0


class Fickle(LocalStore):
    """A folder whose files relays delete, row and blob, at the worst moment: when the audit has just read of them."""

    def __init__(self, folder: Path, sql: Connection) -> None:
        super().__init__(folder)
        self.sql = sql
        self.is_fickle = True

    async def vanish(self, key: str) -> None:
        await self.sql.execute("DELETE FROM media WHERE storage_url = $1", key)
        await self.delete(key)
        await self.sql.execute("DELETE FROM blob_deletions")

    async def walk(self) -> AsyncIterator[Stored]:
        listed = [stored async for stored in super().walk()]
        for stored in listed:
            if self.is_fickle and stored.size_bytes == 100:
                await self.vanish(stored.key)
            elif self.is_fickle and stored.size_bytes == 200:
                continue  # renamed while the directory was read: not listed, and asked for
            yield stored
        if self.is_fickle:
            self.is_fickle = False

    async def size(self, key: str) -> int | None:
        if await super().size(key) == 200:
            await self.vanish(key)
        return await super().size(key)


async def test_what_goes_while_one_looks_is_no_finding(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "_SETTLE_S", 0)
    async with relay_here(stage.dsn, media_dir=tmp_path) as url, scene_on(stage, url) as scene:
        for size in (100, 200, 300):
            await scene.uploaded(size)
    media = Fickle(tmp_path, stage.sql)
    await media.open()
    async with connected(stage.dsn) as connection:
        found = await audit.Audit(connection, media, 4, lambda count: None).look()
    assert (len(found), found.blobs) == (0, 2)
    assert await stage.sql.fetchval("SELECT count(*) FROM media") == 1  # the others have gone meanwhile


async def test_a_quota_is_mended_under_its_lock(stage: Stage, tmp_path: Path) -> None:
    """A begin that has the quota's lock and hasn't committed is in the sum once it has."""
    place = {"media_dir": tmp_path}
    async with relay_here(stage.dsn, **place) as url, scene_on(stage, url) as scene:
        await scene.uploaded(1_000)
        await stage.sql.execute("UPDATE group_quotas SET total_bytes = 0")
        async with connected(stage.dsn) as beginner:
            transaction = beginner.transaction()
            await transaction.start()
            outcome = await beginner.fetchrow(
                "SELECT * FROM begin_upload_v1(gen_random_uuid(), $1, $2, $3, 500, 'aaaaaaaaaaaaaaaa', $4, 100)",
                *(scene.group_id, scene.thread_id, scene.ann.user_id, new_key()),
            )
            assert outcome is not None
            assert outcome["error"] is None
            repairing = asyncio.create_task(audited(stage, place, "--repair"), name="repair")
            async with asyncio.timeout(LIMIT_S):
                while not await stage.sql.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                    await asyncio.sleep(0.02)
            await transaction.commit()
        assert (await repairing)[0] == 0
        assert await usage(stage.sql, scene.group_id) == (1_500, 2)


# ── another store ───────────────────────────────────────────────────────────────────────────────────────────────────


async def test_another_store_is_named_and_becomes_the_store_only_if_asked_for(
    stage: Stage, service: Swift | None, tmp_path: Path
) -> None:
    here, there = [await new_place(service, tmp_path / name) for name in ("here", "there")]
    async with relay_here(stage.dsn, media_sweep_ms=SWEEP_NEVER_MS, **here) as url, scene_on(stage, url) as scene:
        moved, lost = await scene.uploaded(300), await scene.uploaded(400)
        underway = scene.file(PART + 1_000_000)
        await send(scene.talk, underway, await begin(scene.talk, underway), up_to=PART)
        async with store_of(there) as media:
            await plant(media, await scene.key_of(moved), 300)
        status, report = await audited(stage, there)
        assert (status, report["ok"], report["found"]) == (1, False, 1)
        assert (report["recorded"], report["store"]) == (await store_name(here), await store_name(there))
        plain = await orbital("media", "audit", dsn=stage.dsn, **there)
        assert plain.out.startswith(
            f"store: these settings name {report['store']}, the database speaks of {report['recorded']}\n"
        )

        refused(await orbital("media", "audit", "--repair", dsn=stage.dsn, **there), "nothing was repaired: the data")
        arguments = ("media", "audit", "--repair", "--adopt")
        refused(await orbital(*arguments, dsn=stage.dsn, **there), "nothing was repaired: 1 relays run on this")
    assert (await audited(stage, here))[0] == 0  # none of this has changed anything

    status, report = await audited(stage, there, "--repair", "--adopt")
    assert (status, report["found"], report["recorded"]) == (0, 1, report["store"])
    assert (await audited(stage, there))[0] == 0
    assert (await audited(stage, here))[0] == 1
    async with relay_here(stage.dsn, **there) as url, talking(url, await stage.token(scene.ann)) as talk:
        assert len(await download(talk, moved.media_id)) == 300
        with pytest.raises(Refused, match=f"^{ErrorCode.MEDIA_EXPIRED}"):
            await download(talk, lost.media_id)
        begun = await begin(talk, underway)
        assert begun.offset == 0  # its first half is in the other store
        await send(talk, underway, begun)
        await commit(talk, underway)
        assert await download(talk, underway.media_id) == underway.data


def refused(ran: Ran, said: str) -> None:
    """One line on standard error, and exit 1."""
    assert (ran.status, ran.out) == (1, "")
    assert ran.err.count("\n") == 1
    assert ran.err.startswith(f"orbital-relay: {said}"), ran.err


# ── what it can't do ────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_store_that_is_away_is_one_line(stage: Stage, swift: Swift, tmp_path: Path) -> None:
    folder, file = tmp_path / "absent", tmp_path / "file"
    file.touch()
    refused(await orbital("media", "audit", dsn=stage.dsn, media_dir=folder), f"media_dir: {folder} is not there")
    assert not folder.exists()
    refused(await orbital("media", "audit", dsn=stage.dsn, media_dir=file), f"media_store: {file}: ")
    place = {**swift.settings, "s3_bucket": "no-such-bucket"}
    refused(await orbital("media", "audit", dsn=stage.dsn, **place), "S3 refuses: NoSuchBucket")
    place = {**swift.settings, "s3_bucket": await swift.make_bucket(), "s3_secret_key": "wrong"}
    ran = await orbital("media", "audit", "--repair", dsn=stage.dsn, **place)
    refused(ran, "S3 refuses: SignatureDoesNotMatch")
    assert "wrong" not in ran.err


async def test_adopt_alone_is_wrong_usage(stage: Stage, tmp_path: Path) -> None:
    ran = await orbital("media", "audit", "--adopt", dsn=stage.dsn, media_dir=tmp_path)
    assert (ran.status, ran.out) == (2, "")
    assert "--repair" in ran.err


# ── the embedded database ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.timeout(180)
async def test_it_works_on_the_embedded_database_whether_a_relay_runs_or_not(data_dir: Path) -> None:
    async with running_relay(None, data_dir=data_dir) as relay:
        async with talking(relay.url) as talk:
            await talk.ask(frames.Ping)
        ran = await orbital_process("media", "audit", data_dir=data_dir)
        assert (ran.status, ran.err) == (0, "")
        assert ran.out == "audited 0 files and 0 blobs, nothing wrong with them\n"
    place = {"media_dir": data_dir / "media"}
    stray = new_key()
    async with store_of(place) as media:
        await plant(media, stray, 5)
    ran = await orbital_process("media", "audit", data_dir=data_dir)
    assert (ran.status, ran.err) == (1, "")
    assert ran.out.splitlines() == [
        f"blob {stray} (5 bytes): is in the store, and nothing names it",
        "audited 0 files and 1 blobs, 1 findings",
    ]
    ran = await orbital_process("media", "audit", "--repair", "--json", data_dir=data_dir)
    assert (ran.status, ran.err, ran.json()["found"]) == (0, "", 1)
    assert not (data_dir / "postgres" / "cluster" / "postmaster.pid").exists()
    assert (await orbital_process("media", "audit", data_dir=data_dir)).status == 0


# ── quotas ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.each_postgres
async def test_a_quota_is_shown_and_set_and_holds_from_then_on(stage: Stage, tmp_path: Path) -> None:
    place = {"media_dir": tmp_path}
    async with relay_here(stage.dsn, **place) as url, scene_on(stage, url) as scene:
        await scene.uploaded(1_536)
        group = str(UUID(bytes=scene.group_id))

        async def quota(*arguments: str) -> Ran:
            return await orbital("group", "quota", group, *arguments, dsn=stage.dsn)

        ran = await quota()
        assert (ran.status, ran.out, ran.err) == (0, "1 of 100 files, 1.5 KiB of 10 GiB\n", "")
        for given, limit in (("2KiB", 2_048), ("5000", 5_000), ("3 MiB", 3 << 20), ("1PiB", 1 << 50), ("0", 0)):
            ran = await quota("--max-bytes", given, "--json")
            assert ran.json() == {
                "total_bytes": 1_536,
                "media_count": 1,
                "max_bytes": limit,
                "max_media_count": 100,
            }
        ran = await quota("--max-bytes", "1KiB", "--max-files", "7")
        assert ran.out.splitlines() == [
            "1 of 7 files, 1.5 KiB of 1 KiB",
            "That is over the limit: nothing is deleted, but new uploads are refused until there is room.",
        ]
        with pytest.raises(Refused, match=f"^{ErrorCode.QUOTA_EXCEEDED}") as over:
            await scene.uploaded(1)
        assert over.value.error.details is not None
        assert (over.value.error.details.free_bytes, over.value.error.details.free_count) == (0, 6)
        listed = await scene.talk.ask(frames.MediaList, group_id=scene.group_id)
        assert len(listed.media) == 1
        await quota("--max-bytes", "1537")
        await scene.uploaded(1)

        for wrong in ("1.5GiB", "10GB", "-1", "many", "", "9223372036854775808"):
            ran = await quota(f"--max-bytes={wrong}")
            assert (ran.status, ran.out) == (2, ""), wrong
        assert (await quota("--max-files", "-1")).status == 2
        assert (await quota()).out == "2 of 7 files, 1.5 KiB of 1.5 KiB\n"

        [row] = (await orbital("group", "list", "--json", dsn=stage.dsn)).json()
        assert (row["files"], row["file_bytes"]) == (2, 1_537)
        shown = await orbital("group", "show", group, dsn=stage.dsn)
        assert "quota          2 of 7 files, 1.5 KiB of 1.5 KiB" in shown.out.splitlines()
    absent = str(UUID(bytes=os.urandom(16)))
    refused(await orbital("group", "quota", absent, dsn=stage.dsn), f"there is no group {absent}")
    refused(await orbital("group", "quota", absent, "--max-files", "1", dsn=stage.dsn), f"there is no group {absent}")

"""Backups: of the embedded database and of an operator's, whole or not at all, and back again."""

import gzip
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from orbital_protocol import frames
from orbital_relay.embedded import wheel_binaries
from orbital_relay.store import migrate
from tests.commands import orbital, orbital_process
from tests.people import connected, enroll, found_group
from tests.postgres import DEBIAN_BINARIES, TestPostgres, open_directory
from tests.relays import running_relay
from tests.talk import post_thread, subscribe, talking, token_of

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def tools(request: pytest.FixtureRequest, postgres: TestPostgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tools of the server under test are those on the PATH."""
    binaries = DEBIAN_BINARIES if "debian_postgres" in request.node.name else wheel_binaries()
    monkeypatch.setenv("PATH", f"{binaries}:{os.environ['PATH']}")


@pytest.fixture
def other_data_dir() -> Iterator[Path]:
    with open_directory() as directory:
        yield directory


# ── the operator's database ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.each_postgres
async def test_a_backup_is_restored_with_its_log_whole(
    migrated_database: str, database: str, tmp_path: Path, tools: None
) -> None:
    async with connected(migrated_database) as connection:
        ann, bob = await enroll(connection, "ann"), await enroll(connection, "bob")
        group_id = await found_group(connection, ann, bob)
        await connection.execute("INSERT INTO relay_facts VALUES ('token_key', 'lost'), ('other', 'kept')")
        before = await connection.fetch("SELECT * FROM events ORDER BY group_id, seq")
    made = await orbital("backup", str(tmp_path / "new" / "folder"), dsn=migrated_database)
    assert made.status == 0, made.err
    [backup] = (tmp_path / "new" / "folder").iterdir()
    assert made.out.startswith(f"backup completed: {backup} (")
    assert backup.name.startswith("orbital_")
    assert stat.S_IMODE(backup.stat().st_mode) == 0o600
    assert stat.S_IMODE(backup.parent.stat().st_mode) == 0o700
    restored = await orbital("restore", str(backup), dsn=database)
    assert restored.status == 0, restored.err
    assert restored.out == f"restored {backup}\nnext: orbital-relay log verify, orbital-relay media audit\n"
    await migrate.require_current(database)
    async with connected(database) as connection:
        assert await connection.fetch("SELECT * FROM events ORDER BY group_id, seq") == before
        assert await connection.fetchval("SELECT count(*) FROM members WHERE group_id = $1", group_id) == 2
        assert await connection.fetchval("SELECT array_agg(name::TEXT) FROM relay_facts") == ["other"]
    assert (await orbital("log", "verify", dsn=database)).status == 0


async def test_a_database_that_is_not_empty_is_left_alone(migrated_database: str, tmp_path: Path, tools: None) -> None:
    async with connected(migrated_database) as connection:
        await enroll(connection, "ann")
        assert (await orbital("backup", str(tmp_path), dsn=migrated_database)).status == 0
        [backup] = tmp_path.iterdir()
        await enroll(connection, "bob")
        ran = await orbital("restore", str(backup), dsn=migrated_database)
        assert (ran.status, ran.out) == (1, "")
        assert "the database is not empty, nothing was changed: restore into another database" in ran.err
        assert await connection.fetchval("SELECT count(*) FROM users") == 2


@pytest.mark.parametrize("damage", ["cut off", "altered", "empty", "no backup", "absent", "of something else"])
async def test_what_is_no_whole_backup_changes_nothing(
    migrated_database: str, database: str, tmp_path: Path, tools: None, damage: str
) -> None:
    async with connected(migrated_database) as connection:
        for number in range(50):
            await enroll(connection, f"person_{number}")
    assert (await orbital("backup", str(tmp_path), dsn=migrated_database)).status == 0
    [backup] = tmp_path.iterdir()
    whole = backup.read_bytes()
    middle = len(whole) // 2
    match damage:
        case "cut off":
            backup.write_bytes(whole[:middle])
        case "altered":
            backup.write_bytes(whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :])
        case "empty":
            backup.write_bytes(b"")
        case "no backup":
            backup.write_bytes(b"SELECT 1;")
        case "absent":
            backup.unlink()
        case _:
            text = gzip.decompress(whole)
            cut = text.index(b"\nALTER TABLE ONLY public.")  # after the tables and their rows
            backup.write_bytes(gzip.compress(text[:cut] + b"\nSELECT 1 / 0;\n" + text[cut:]))
    ran = await orbital("restore", str(backup), dsn=database)
    assert (ran.status, ran.out) == (1, "")
    assert ran.err.count("\n") == 1
    assert ("division by zero" if damage == "of something else" else "is not a whole backup") in ran.err
    assert await migrate.is_empty(database)


async def test_a_backup_that_fails_leaves_nothing_that_looks_like_one(
    migrated_database: str, tmp_path: Path, tools: None
) -> None:
    async with connected(migrated_database) as connection:
        await connection.execute("DROP ROLE IF EXISTS powerless")
        await connection.execute("CREATE ROLE powerless LOGIN")
        await connection.execute("GRANT SELECT ON schema_versions TO powerless")
    powerless = migrated_database.replace("//orbital@", "//powerless@")
    ran = await orbital("backup", str(tmp_path), dsn=powerless)
    assert (ran.status, ran.out) == (1, "")
    assert ran.err.count("\n") == 1
    assert "permission denied" in ran.err
    assert not list(tmp_path.iterdir())
    async with connected(migrated_database) as connection:
        await connection.execute("DROP OWNED BY powerless")
        await connection.execute("DROP ROLE powerless")


async def test_an_empty_database_is_no_backup(database: str, tmp_path: Path, tools: None) -> None:
    ran = await orbital("backup", str(tmp_path), dsn=database)
    assert (ran.status, ran.err) == (1, "orbital-relay: the database is empty: there is nothing to back up\n")
    assert not list(tmp_path.iterdir())


async def test_a_schema_of_an_earlier_version_is_backed_up_and_the_restored_one_brought_up(
    migrated_database: str, database: str, tmp_path: Path, tools: None
) -> None:
    """Who has installed the new version first can back up all the same."""
    await migrate.downgrade(migrated_database)
    assert (await orbital("backup", str(tmp_path), dsn=migrated_database)).status == 0
    [backup] = tmp_path.iterdir()
    ran = await orbital("restore", str(backup), dsn=database)
    assert ran.status == 0, ran.err
    assert "next: orbital-relay migrate up, orbital-relay log verify" in ran.out
    assert (await orbital("migrate", "up", dsn=database)).status == 0
    await migrate.require_current(database)


async def test_old_backups_go_and_the_last_days_stay(migrated_database: str, tmp_path: Path, tools: None) -> None:
    ages = {
        "orbital_a.sql.gz": 8,
        "orbital_a.sql.partial": 9,
        "orbital_b.sql.gz": 6,
        "orbital_c.sql.gz": 2,
        "somebodys.sql.gz": 99,
    }
    for name, days in ages.items():
        file = tmp_path / name
        file.touch()
        os.utime(file, (file.stat().st_mtime - days * 86_400,) * 2)
    ran = await orbital("backup", str(tmp_path), "--json", dsn=migrated_database)
    assert ran.status == 0, ran.err
    made = ran.json()
    assert made["deleted"] == ["orbital_a.sql.gz", "orbital_a.sql.partial"]
    assert made["bytes"] == Path(made["file"]).stat().st_size > 1000
    ran = await orbital("backup", str(tmp_path), "--keep", "3", "--json", dsn=migrated_database)
    assert ran.json()["deleted"] == ["orbital_b.sql.gz"]
    left = {path.name for path in tmp_path.iterdir()}
    assert {"orbital_c.sql.gz", "somebodys.sql.gz"} < left
    assert len(left) in (3, 4)  # two that were made in the same second have the same name


async def test_the_password_is_not_among_the_arguments(
    migrated_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the place of the tool stands one that writes down how it was called; then it fails."""
    spy = tmp_path / "bin" / "pg_dump"
    spy.parent.mkdir()
    spy.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/arguments\necho "$PGPASSWORD" > {tmp_path}/password\nexit 7\n')
    spy.chmod(0o755)
    monkeypatch.setenv("PATH", f"{spy.parent}:{os.environ['PATH']}")
    for address in (
        migrated_database.replace("//orbital@", "//orbital:p%40ss%2Fword@") + "&options=-c%20jit%3Doff",
        migrated_database + "&password=p%40ss%2Fword&options=-c%20jit%3Doff",
    ):
        ran = await orbital("backup", str(tmp_path / "backups"), dsn=address)
        assert (ran.status, ran.err) == (1, "orbital-relay: it said nothing\n")
        assert (tmp_path / "password").read_text() == "p@ss/word\n"
        arguments = (tmp_path / "arguments").read_text()
        assert "ss" not in arguments.partition("--dbname=")[2]
        assert "//orbital@/test_" in arguments
        assert "host=" in arguments
        assert "&options=-c%20jit%3Doff" in arguments  # as PostgreSQL's own library reads it, where + is no space


async def test_a_host_without_the_tools_is_told_which(
    migrated_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    ran = await orbital("backup", str(tmp_path), dsn=migrated_database)
    assert ran.status == 1
    assert "pg_dump is not installed" in ran.err


# ── the embedded database ───────────────────────────────────────────────────────────────────────────────────────────


async def test_the_embedded_database_is_backed_up_beside_its_relay_and_moves_to_another_machine(
    data_dir: Path, other_data_dir: Path, tmp_path: Path
) -> None:
    """Where there is nothing of the old one but the backup: no token keys, no files."""
    async with running_relay(None, data_dir=data_dir) as relay:
        dsn = f"postgresql://orbital@/orbital?host={data_dir / 'postgres' / 'socket'}"
        async with connected(dsn) as connection:
            ann = await enroll(connection, "ann")
            group_id = await found_group(connection, ann)
            token = await token_of(connection, ann, key=(data_dir / "token_keys").read_text().strip())
            async with talking(relay.url, token) as talk:
                _, posted = await post_thread(talk, group_id)
                ran = await orbital_process("backup", str(tmp_path), data_dir=data_dir)
                assert ran.status == 0, ran.err
                _, later = await post_thread(talk, group_id)
    [backup] = tmp_path.iterdir()
    ran = await orbital_process("restore", str(backup), data_dir=other_data_dir)
    assert ran.status == 0, ran.err
    ran = await orbital_process("restore", str(backup), data_dir=other_data_dir)
    assert (ran.status, "restore into another data_dir" in ran.err) == (1, True)
    async with running_relay(None, data_dir=other_data_dir) as relay:
        dsn = f"postgresql://orbital@/orbital?host={other_data_dir / 'postgres' / 'socket'}"
        async with connected(dsn) as connection:
            token = await token_of(connection, ann, key=(other_data_dir / "token_keys").read_text().strip())
        async with talking(relay.url, token) as talk:
            # Who has seen what the backup holds goes on, who has seen more is told so.
            assert await subscribe(talk, group_id, posted.seq, posted.hash) == "resumed"
            await talk.ask(frames.Unsubscribe, groups=[group_id])
            assert await subscribe(talk, group_id, later.seq, later.hash) == "future_cursor"

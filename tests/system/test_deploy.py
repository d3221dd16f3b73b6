"""What deploy/ promises: a backup that can be restored, and units that systemd accepts."""

import asyncio
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from orbital_relay.embedded import wheel_binaries
from orbital_relay.store import migrate
from tests.people import connected, enroll, found_group

DEPLOY = Path(__file__).parents[2] / "deploy"
LIMIT_S = 60


async def run(script: str, dsn: str, *arguments: str, path: str) -> tuple[int, str]:
    """Run a script of deploy/backup against a database: its exit status and all that it printed."""
    process = await asyncio.create_subprocess_exec(
        DEPLOY / "backup" / script,
        *arguments,
        env={"DATABASE_URL": dsn, "PATH": path},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(LIMIT_S):
        output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


@pytest.fixture
def tools() -> str:
    """A PATH on which pg_dump and psql are those of the server under test."""
    return f"{wheel_binaries()}:{os.environ['PATH']}"


async def test_a_backup_is_restored_with_its_log_whole(
    migrated_database: str, database: str, tmp_path: Path, tools: str
) -> None:
    async with connected(migrated_database) as connection:
        ann, bob = await enroll(connection, "ann"), await enroll(connection, "bob")
        group_id = await found_group(connection, ann, bob)
        before = await connection.fetch("SELECT * FROM events ORDER BY group_id, seq")
    status, output = await run("backup.sh", migrated_database, str(tmp_path), path=tools)
    assert status == 0, output
    [backup] = tmp_path.iterdir()
    assert backup.name.startswith("orbital_")
    assert backup.stat().st_mode & 0o077 == 0
    status, output = await run("restore.sh", database, str(backup), path=tools)
    assert status == 0, output
    await migrate.require_current(database)
    async with connected(database) as connection:
        assert await connection.fetch("SELECT * FROM events ORDER BY group_id, seq") == before
        assert await connection.fetchval("SELECT count(*) FROM members WHERE group_id = $1", group_id) == 2


async def test_a_restore_leaves_a_database_alone_that_is_not_empty(
    migrated_database: str, tmp_path: Path, tools: str
) -> None:
    status, output = await run("backup.sh", migrated_database, str(tmp_path), path=tools)
    assert status == 0, output
    [backup] = tmp_path.iterdir()
    status, output = await run("restore.sh", migrated_database, str(backup), path=tools)
    assert status == 1
    assert "not empty" in output


async def test_a_backup_that_fails_leaves_nothing_that_looks_like_one(
    database: str, tmp_path: Path, tools: str
) -> None:
    status, _ = await run("backup.sh", database.replace("/test_", "/absent_"), str(tmp_path), path=tools)
    assert status != 0
    assert not list(tmp_path.iterdir())


async def test_old_backups_go_and_the_last_days_stay(migrated_database: str, tmp_path: Path, tools: str) -> None:
    old, recent = tmp_path / "orbital_old.sql.gz", tmp_path / "orbital_recent.sql.gz"
    for file, days in ((old, 9), (recent, 6)):
        file.touch()
        os.utime(file, (file.stat().st_mtime - days * 86_400,) * 2)
    status, output = await run("backup.sh", migrated_database, str(tmp_path), path=tools)
    assert status == 0, output
    assert not old.exists()
    assert recent.exists()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed here")
@pytest.mark.parametrize("unit", ["orbital-relay.service", "orbital-backup.service", "orbital-backup.timer"])
def test_systemd_accepts_the_units(unit: str, tmp_path: Path) -> None:
    """With programs that exist in the place of those in /opt, which is all that differs."""
    for source in (DEPLOY / "systemd").iterdir():
        text = source.read_text()
        for program in ("/opt/orbital/.venv/bin/orbital-relay", "/opt/orbital/deploy/backup/backup.sh"):
            text = text.replace(program, "/bin/true")
        (tmp_path / source.name).write_text(text)
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", tmp_path / unit],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    complaints = [line for line in checked.stderr.splitlines() if "orbital" in line]
    assert not complaints

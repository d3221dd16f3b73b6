"""The embedded PostgreSQL: a child of the relay that keeps its data and never outlives it."""

import asyncio
import os
import signal
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

from orbital_relay.embedded import EmbeddedError, EmbeddedPostgres

LIMIT_S = 30.0
REPOSITORY = Path(__file__).parents[2]


@asynccontextmanager
async def running(server: EmbeddedPostgres) -> AsyncIterator[asyncpg.Connection]:
    """A connection to the server, which is stopped afterwards."""
    try:
        connection = await asyncpg.connect(await server.start(), timeout=LIMIT_S, command_timeout=LIMIT_S)
        yield connection
        await connection.close()
    finally:
        await server.stop()


def server_pid(data_dir: Path) -> int:
    return int((data_dir / "cluster" / "postmaster.pid").read_text().splitlines()[0])


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not yet waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def descendants(pid: int) -> list[int]:
    children = [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in _children_of(task)]
    return [*children, *(below for child in children for below in descendants(child))]


def _children_of(task: Path) -> list[str]:
    return (task / "children").read_text().split()


async def test_data_is_kept_over_a_restart(data_dir: Path) -> None:
    server = EmbeddedPostgres(data_dir)
    async with running(server) as connection:
        await connection.execute("CREATE TABLE kept (word text)")
        await connection.execute("INSERT INTO kept VALUES ('acknowledged')")
    async with running(server) as connection:
        assert await connection.fetchval("SELECT word FROM kept") == "acknowledged"


async def test_only_the_socket_is_open_and_commits_are_durable(data_dir: Path) -> None:
    async with running(EmbeddedPostgres(data_dir)) as connection:
        wanted = {"listen_addresses": "", "fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}
        assert {name: await connection.fetchval(f"SHOW {name}") for name in wanted} == wanted
        assert stat.S_IMODE((data_dir / "socket").stat().st_mode) == 0o700
        assert await connection.fetchval("SELECT current_database()") == "orbital"


async def test_the_environment_changes_nothing(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "PGPORT": "1",
        "PGDATABASE": "other",
        "PGUSER": "other",
        "PGDATA": "/nowhere",
        "PGOPTIONS": "-c nonsense=1",
    }.items():
        monkeypatch.setenv(name, value)
    async with running(EmbeddedPostgres(data_dir)) as connection:
        assert await connection.fetchval("SELECT current_database() || ' ' || current_user") == "orbital orbital"


async def test_extra_settings_stand_above_the_defaults(data_dir: Path) -> None:
    async with running(EmbeddedPostgres(data_dir, extra_settings={"max_connections": "7"})) as connection:
        assert await connection.fetchval("SHOW max_connections") == "7"


async def test_notify_is_heard(data_dir: Path) -> None:
    async with running(EmbeddedPostgres(data_dir)) as connection:
        heard: asyncio.Queue[object] = asyncio.Queue(maxsize=1)
        await connection.add_listener("channel", lambda *call: heard.put_nowait(call[3]))
        await connection.execute("SELECT pg_notify('channel', 'payload')")
        assert await asyncio.wait_for(heard.get(), LIMIT_S) == "payload"


async def test_a_killed_relay_leaves_no_orphan_and_loses_nothing(data_dir: Path) -> None:
    relay = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.integration.embedded_supervisor", str(data_dir)),
        stdout=asyncio.subprocess.PIPE,
        cwd=REPOSITORY,
    )
    assert relay.stdout is not None
    assert await asyncio.wait_for(relay.stdout.readline(), LIMIT_S) == b"committed\n"
    processes = [server_pid(data_dir), *descendants(server_pid(data_dir))]
    assert all(alive(pid) for pid in processes)

    relay.kill()
    await relay.wait()
    # At once, while the old server may still be shutting down: the new one waits for it.
    async with running(EmbeddedPostgres(data_dir)) as connection:
        assert await connection.fetchval("SELECT word FROM kept") == "acknowledged"
        assert not [pid for pid in processes if alive(pid)]


async def test_a_second_relay_on_the_same_directory_is_refused(data_dir: Path) -> None:
    async with running(EmbeddedPostgres(data_dir)) as connection:
        with pytest.raises(EmbeddedError, match=rf"another relay \(process {os.getpid()}\) already uses"):
            await EmbeddedPostgres(data_dir).start()
        assert await connection.fetchval("SELECT 1") == 1  # the first goes on undisturbed
    async with running(EmbeddedPostgres(data_dir)):
        pass  # free again


async def test_starting_twice_is_a_mistake_that_hurts_nobody(data_dir: Path) -> None:
    server = EmbeddedPostgres(data_dir)
    async with running(server) as connection:
        with pytest.raises(RuntimeError, match="started already"):
            await server.start()
        assert await connection.fetchval("SELECT 1") == 1


async def test_the_servers_end_is_noticed_and_recovered_from(data_dir: Path) -> None:
    server = EmbeddedPostgres(data_dir)
    try:
        connection = await asyncpg.connect(await server.start())
        await connection.execute("CREATE TABLE kept AS SELECT 'acknowledged' AS word")
        os.kill(server_pid(data_dir), signal.SIGKILL)
        assert await asyncio.wait_for(server.wait(), LIMIT_S) == -signal.SIGKILL
        connection.terminate()
    finally:
        await server.stop()
    assert (data_dir / "cluster" / "postmaster.pid").exists()  # left behind, as by a power cut
    async with running(EmbeddedPostgres(data_dir)) as connection:
        assert await connection.fetchval("SELECT word FROM kept") == "acknowledged"


async def test_a_pid_file_that_names_another_program_is_stale(data_dir: Path) -> None:
    async with running(EmbeddedPostgres(data_dir)):
        pid_file = data_dir / "cluster" / "postmaster.pid"
        left_behind = pid_file.read_text()
    # A program of the server's user, as in a container where numbers are given out again.
    prefix = ["setpriv", "--reuid=nobody"] if os.geteuid() == 0 else []
    stranger = await asyncio.create_subprocess_exec(*prefix, "sleep", "60")
    try:
        pid_file.write_text(f"{stranger.pid}\n" + left_behind.partition("\n")[2])
        async with running(EmbeddedPostgres(data_dir)) as connection:
            assert await connection.fetchval("SELECT 1") == 1
    finally:
        stranger.kill()
        await stranger.wait()


async def test_a_first_start_that_was_cut_is_begun_anew(data_dir: Path) -> None:
    (data_dir / "cluster.unfinished").mkdir()
    (data_dir / "cluster.unfinished" / "PG_VERSION").write_text("18")
    async with running(EmbeddedPostgres(data_dir)) as connection:
        assert await connection.fetchval("SELECT 1") == 1
    assert not (data_dir / "cluster.unfinished").exists()


async def test_a_path_too_long_for_a_socket_gets_a_short_one(data_dir: Path) -> None:
    deep = data_dir / ("d" * 60) / ("e" * 60)
    server = EmbeddedPostgres(deep)
    async with running(server) as connection:
        assert await connection.fetchval("SELECT 1") == 1
        socket_dir = Path(await connection.fetchval("SHOW unix_socket_directories"))
        assert stat.S_IMODE(socket_dir.stat().st_mode) == 0o700
    assert not (deep / "socket").exists()
    assert not socket_dir.exists()


async def test_a_directory_closed_to_other_users_serves_too(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    async with running(EmbeddedPostgres(closed / "data")) as connection:
        assert await connection.fetchval("SELECT 1") == 1


async def test_a_server_that_gives_up_says_why_and_holds_nothing(data_dir: Path) -> None:
    with pytest.raises(EmbeddedError, match=r'gave up: .*invalid value for parameter "shared_buffers": "nonsense"'):
        await EmbeddedPostgres(data_dir, extra_settings={"shared_buffers": "nonsense"}).start()
    async with running(EmbeddedPostgres(data_dir)) as connection:
        assert await connection.fetchval("SELECT 1") == 1


async def test_a_start_that_is_cancelled_leaves_nothing_running(data_dir: Path) -> None:
    start = asyncio.create_task(EmbeddedPostgres(data_dir).start())
    async with asyncio.timeout(LIMIT_S):
        while not (data_dir / "cluster.unfinished" / "PG_VERSION").exists():
            await asyncio.sleep(0.001)
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    async with running(EmbeddedPostgres(data_dir)) as connection:  # no process holds the lock any more
        assert await connection.fetchval("SELECT 1") == 1


async def test_a_data_directory_that_cannot_be_made_is_named(data_dir: Path) -> None:
    (data_dir / "file").write_text("not a directory")
    with pytest.raises(EmbeddedError, match=r"can't use .*/file/data"):
        await EmbeddedPostgres(data_dir / "file" / "data").start()


async def test_keys_typed_in_a_terminal_do_not_reach_the_server(data_dir: Path) -> None:
    async with running(EmbeddedPostgres(data_dir)):
        assert os.getsid(server_pid(data_dir)) != os.getsid(0)

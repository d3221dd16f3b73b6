"""The commands `orbital` and `orbital-relay` as processes that are forked from one which has imported them.

An import takes up to a second, and tests run commands by the hundred. What is forked is a process all the same: it has
an environment, a folder, standard streams and an exit code of its own, and dies of signals. Terminals, and whatever
runs under limits of its own, want one that was executed.
"""

import asyncio
import importlib
import json
import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final, Literal

_STREAMS: Final = (("in", os.O_RDONLY), ("out", os.O_WRONLY | os.O_CREAT), ("err", os.O_WRONLY | os.O_CREAT))

Command = Literal["orbital", "orbital-relay"]
_MODULES: Final[Mapping[Command, str]] = {"orbital": "orbital_client.cli", "orbital-relay": "orbital_relay.cli"}

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(
    ["orbital_client.cli.app", "orbital_relay.cli", "typer._adapters", "aioboto3"]  # the last two by some commands
)


@dataclass(frozen=True)
class Ran:
    """A command that has ended."""

    status: int
    out: str
    err: str

    def json(self) -> Any:
        """What it printed, as JSON."""
        return json.loads(self.out)


async def ran(
    command: Command,
    arguments: Sequence[str],
    *,
    environment: Mapping[str, str],
    folder: Path,
    stdin: str,
    limit_s: float,
) -> Ran:
    """Run a command to its end in this folder. Raise AssertionError, the process killed, where that takes too long."""
    with tempfile.TemporaryDirectory() as name:
        streams = Path(name)
        (streams / "in").write_text(stdin)
        process = _forks.Process(target=_run, args=(command, arguments, dict(environment), folder, streams))
        process.start()
        try:
            await asyncio.to_thread(process.join, limit_s)
            assert process.exitcode is not None, f"{arguments} has not ended"
        finally:
            process.kill()
            process.join()
        status = process.exitcode
        process.close()
        return Ran(status, (streams / "out").read_text(), (streams / "err").read_text())


class Forked:
    """A process that runs, as `asyncio.subprocess.Process` would show it."""

    def __init__(self, process: BaseProcess, stderr: asyncio.StreamReader) -> None:
        assert process.pid is not None
        self.pid = process.pid
        self.stderr = stderr
        self.returncode: int | None = None  # after a signal that killed it, its number below zero
        self._process = process
        self._ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(process.sentinel, self._end)

    def _end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._process.sentinel)
        self._process.join()
        self.returncode = self._process.exitcode
        self._process.close()
        self._ended.set()

    async def wait(self) -> int:
        """Wait for its end; its exit code, as in `returncode`."""
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        """Raise ProcessLookupError where it has ended."""
        if self._ended.is_set():
            raise ProcessLookupError
        os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)


async def python(arguments: Sequence[str], environment: Mapping[str, str]) -> Forked:
    """`python ARGUMENTS`, of which the first is a program's path, or -m and a module.

    It has nothing on standard input, what it prints is lost, and `stderr` is what it logs.
    """
    read, write = os.pipe()
    stderr = asyncio.StreamReader()
    pipe = os.fdopen(read, "rb", buffering=0)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stderr), pipe)
    with Connection(write, readable=False) as other_end:
        process = _forks.Process(target=_python, args=(arguments, dict(environment), other_end), daemon=True)
        process.start()
    return Forked(process, stderr)


def _python(arguments: Sequence[str], environment: Mapping[str, str], stderr: Connection) -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    _become(environment, (nothing, os.dup(nothing), os.dup(stderr.fileno())))
    stderr.close()
    program, *rest = arguments
    if program == "-m":
        module, *rest = rest
        sys.argv = [module, *rest]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        sys.argv = [program, *rest]
        runpy.run_path(program, run_name="__main__")


def _run(
    command: Command, arguments: Sequence[str], environment: Mapping[str, str], folder: Path, streams: Path
) -> None:
    _become(environment, [os.open(streams / name, flags) for name, flags in _STREAMS])
    os.chdir(folder)
    sys.argv = [command, *arguments]
    importlib.import_module(_MODULES[command]).main()


def _become(environment: Mapping[str, str], streams: Sequence[int]) -> None:
    """Take over an environment, and descriptors as the standard streams."""
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115  as long as the process
    os.environ.clear()
    os.environ.update(environment)

"""The command `orbital` as a process that is forked from one which has imported it.

An import takes half a second, and tests run commands by the hundred. What is forked is a process all the same: it has
an environment, a folder, standard streams and an exit code of its own. Signals and terminals want one that was
executed.
"""

import asyncio
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_STREAMS: Final = (("in", os.O_RDONLY), ("out", os.O_WRONLY | os.O_CREAT), ("err", os.O_WRONLY | os.O_CREAT))

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["orbital_client.cli.app", "typer._adapters"])  # the second is imported by each command


@dataclass(frozen=True)
class Ran:
    """A command that has ended."""

    status: int
    out: str
    err: str

    def json(self) -> Any:
        """What it printed, as JSON."""
        return json.loads(self.out)


async def orbital(
    arguments: Sequence[str], *, environment: Mapping[str, str], folder: Path, stdin: str, limit_s: float
) -> Ran:
    """Run `orbital` to its end in this folder. Raise AssertionError, the process killed, where that takes too long."""
    with tempfile.TemporaryDirectory() as name:
        streams = Path(name)
        (streams / "in").write_text(stdin)
        process = _forks.Process(target=_run, args=(arguments, dict(environment), folder, streams))
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


def _run(arguments: Sequence[str], environment: Mapping[str, str], folder: Path, streams: Path) -> None:
    for number, (name, flags) in enumerate(_STREAMS):
        descriptor = os.open(streams / name, flags)
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115  as long as the process
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = ["orbital", *arguments]
    from orbital_client.cli import main  # noqa: PLC0415  in the process that was forked, where it has been imported

    main()

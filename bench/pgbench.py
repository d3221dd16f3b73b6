"""The yardstick for writing: pgbench's prepared single-row inserts into a table like `replies`, on the same server."""

import base64
import os
import re
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from bench.stage import BenchError, Postgres, run

_SCRIPT: Final = Path(__file__).with_name("pgbench.sql")
_TABLE: Final = "CREATE TABLE yardstick (LIKE replies INCLUDING ALL)"
_BODY_BYTES: Final = 400
_GRACE_S: Final = 30
_TIME_COLUMN: Final = 2
_CLIENTS_AT_A_RATE: Final = 32


class Yardstick:
    """pgbench, ready to run."""

    def __init__(self, postgres: Postgres, directory: Path) -> None:
        self._postgres = postgres
        self._directory = directory

    @classmethod
    @asynccontextmanager
    async def ready(cls, postgres: Postgres) -> AsyncIterator["Yardstick"]:
        """Make the table and the script."""
        with tempfile.TemporaryDirectory(prefix="orbital-bench-") as directory:
            _write_script(Path(directory, "insert.sql"))
            await postgres.execute(_TABLE)
            yield cls(postgres, Path(directory))

    async def rate(self, clients: int, seconds: float) -> float:
        """Rows a second."""
        said = await self._run(clients, seconds)
        match = re.search(r"^tps = ([\d.]+)", said, re.MULTILINE)
        if match is None or not re.search(r"failed transactions: 0 ", said):
            raise BenchError(f"pgbench said:\n{said}")
        return float(match[1])

    async def latencies_us(self, seconds: float) -> Sequence[float]:
        """How long each insert of one client took."""
        return await self._logged(1, seconds)

    async def latencies_at_us(self, rate: float, seconds: float) -> Sequence[float]:
        """How long each insert took, from when it was due, at so many a second by enough clients."""
        return await self._logged(_CLIENTS_AT_A_RATE, seconds, f"--rate={rate}")

    async def _logged(self, clients: int, seconds: float, *more: str) -> Sequence[float]:
        await self._run(clients, seconds, "--log", f"--log-prefix={self._directory / 'log'}", *more)
        found: list[float] = []
        for log in self._directory.glob("log.*"):
            found += [float(line.split()[_TIME_COLUMN]) for line in log.read_text().splitlines()]
            log.unlink()
        return found

    async def _run(self, clients: int, seconds: float, *more: str) -> str:
        threads = min(clients, os.cpu_count() or 1)
        command = self._postgres.pgbench(
            *("--no-vacuum", "--protocol=prepared", "--define=seq=0", f"--file={self._directory / 'insert.sql'}"),
            *(f"--client={clients}", f"--jobs={threads}", f"--time={max(1, round(seconds))}"),
            *more,
        )
        return await run(command, seconds + _GRACE_S)


def _write_script(path: Path) -> None:
    body = base64.b64encode(os.urandom(_BODY_BYTES)).decode()
    path.write_text(_SCRIPT.read_text().replace("{body}", body))

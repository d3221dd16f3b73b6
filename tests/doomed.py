"""A relay that kills itself at a step of its work with files: `python tests/doomed.py STEP TRACE serve`.

A step lies before and after each call by which a store or the database changes, from the first upload on: what the
local store asks of the file system, or the other one of S3; the statements of `sql/queries/media.sql`, and the commits
of their transactions. Each is written to the file TRACE as it is reached; at number STEP (from 1; 0: never) the process
ends as by `kill -9`.
"""

import functools
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiobotocore.client import AioBaseClient
from asyncpg.connection import Connection

from orbital_relay.cli import app
from orbital_relay.store import queries

FILE_CALLS = ("mkdir", "pwritev", "fdatasync", "fsync", "ftruncate", "rename", "unlink", "copy_file_range")
DATABASE_CALLS = ("fetch", "fetchrow", "fetchval", "execute")


class Doom:
    """Counts steps, and ends the process at one of them."""

    def __init__(self, step: int, trace: Path) -> None:
        self._step = step
        self._count = 0
        self._is_counting = False
        self._lock = threading.Lock()
        self._trace = trace.open("a", buffering=1)

    def reach(self, name: str) -> None:
        with self._lock:
            self._is_counting = self._is_counting or name == "before begin_upload"
            if not self._is_counting:
                return  # the relay is starting
            self._count += 1
            self._trace.write(f"{self._count} {name}\n")
            if self._count == self._step:
                os.kill(os.getpid(), signal.SIGKILL)


def doom_files(doom: Doom) -> None:
    """Steps around what the store asks of the file system, which it does in threads."""

    def wrapped(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def stepping(*arguments: Any, **named: Any) -> Any:
            if threading.current_thread() is threading.main_thread():
                return call(*arguments, **named)
            doom.reach(f"before {name}")
            answer = call(*arguments, **named)
            doom.reach(f"after {name}")
            return answer

        return stepping

    for name in FILE_CALLS:
        setattr(os, name, wrapped(name, getattr(os, name)))


def doom_database(doom: Doom) -> None:
    """Steps around statements about media, and around the ends of transactions in which there was one."""
    text = (queries.sql_dir() / "queries" / "media.sql").read_text()
    names = {sql: name for name, sql in queries.load().items() if f"-- name: {name}(" in text}
    reading = {name for name in names.values() if name.startswith(("find", "list", "read", "try", "count"))}
    touched: set[int] = set()

    def wrapped(call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        async def stepping(self: Any, query: str, *arguments: Any, **named: Any) -> Any:
            name = names.get(query) or ("commit" if query.startswith("COMMIT") and id(self) in touched else None)
            if name is None or name in reading:
                return await call(self, query, *arguments, **named)
            touched.add(id(self)) if name != "commit" else touched.discard(id(self))
            doom.reach(f"before {name}")
            answer = await call(self, query, *arguments, **named)
            doom.reach(f"after {name}")
            return answer

        return stepping

    for name in DATABASE_CALLS:
        setattr(Connection, name, wrapped(getattr(Connection, name)))


def doom_s3(doom: Doom) -> None:
    """Steps around what the AWS SDK asks of the service."""
    client: Any = AioBaseClient
    call = client._make_api_call

    @functools.wraps(call)
    async def stepping(self: Any, operation: str, *arguments: Any) -> Any:
        if operation.startswith(("Get", "Head", "List")):
            return await call(self, operation, *arguments)
        doom.reach(f"before {operation}")
        answer = await call(self, operation, *arguments)
        doom.reach(f"after {operation}")
        return answer

    client._make_api_call = stepping


if __name__ == "__main__":
    fate = Doom(int(sys.argv[1]), Path(sys.argv[2]))
    doom_files(fate)
    doom_database(fate)
    doom_s3(fate)
    app(args=sys.argv[3:])

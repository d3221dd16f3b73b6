"""A relay that is rigged to fail, or to be wrong: `python tests/rigged.py HOW ARGUMENT serve`.

The relay itself has no switch for any of this, so nobody can turn it on in production. HOW is one of RIGS. The first
ones are faults, which a relay must bear; the others are bugs, which tests must find.
"""

import asyncio
import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import asyncpg

from orbital_protocol.codes import ErrorCode
from orbital_relay import fanout, hints, listener, ring, writer
from orbital_relay.cli import app
from orbital_relay.store import migrate
from orbital_relay.store import posts as post_store
from orbital_relay.store.pool import Connection

_HOUR_NS: Final = 3_600_000_000_000
_HANDLED: Final = 60


# ── faults ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def killed_after_commit(count: str) -> None:
    """The process ends as by `kill -9` when so many batches are committed, before anybody is told of the last."""
    append = post_store.append_posts
    left = int(count)

    async def appending(
        connection: Connection, relay_hex: str, posts: Sequence[post_store.Post]
    ) -> list[post_store.Outcome]:
        nonlocal left
        outcomes = await append(connection, relay_hex, posts)
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return outcomes

    post_store.append_posts = appending


def deaf(_: str) -> None:
    """No notification of a head is heard: what others commit is only found by looking."""
    parse = hints.parse

    def parsing(payload: str) -> hints.Hint | None:
        hint = parse(payload)
        return None if isinstance(hint, hints.Wake) else hint

    hints.parse = parsing


def wild(seed: str) -> None:
    """Wake-ups, the relay's own as well, are lost, doubled, late and out of order."""
    chance = random.Random(int(seed))
    wake = fanout.Fanout.wake

    def waking(self: fanout.Fanout, group_id: bytes, seq: int, source: Any) -> None:
        if source in ("sweep", "reconnect"):
            wake(self, group_id, seq, source)
            return
        for _ in range(chance.choice((0, 0, 1, 1, 2))):
            delay_s = chance.choice((0, 0, 0.01, 0.2))
            asyncio.get_running_loop().call_later(delay_s, wake, self, group_id, seq, source)

    fanout.Fanout.wake = waking  # type: ignore[method-assign]


def jumping_clock(_: str) -> None:
    """At SIGUSR1 the clock jumps an hour ahead, at SIGUSR2 an hour back."""
    offset_ns = 0
    time_ns = time.time_ns

    def jump(number: int, _frame: Any) -> None:
        nonlocal offset_ns
        offset_ns += _HOUR_NS if number == signal.SIGUSR1 else -_HOUR_NS

    signal.signal(signal.SIGUSR1, jump)
    signal.signal(signal.SIGUSR2, jump)
    time.time_ns = lambda: time_ns() + offset_ns
    time.time = lambda: time.time_ns() / 1e9


def previous(version: str) -> None:
    """The relay before migration 0007, which handed over a batch as an array of each column."""

    async def append_columns(
        connection: Connection, relay_hex: str, posts: Sequence[post_store.Post]
    ) -> list[asyncpg.Record]:
        columns = zip(*map(post_store.parameters, posts), strict=True)
        return await connection.fetch(
            "SELECT * FROM append_posts_v1($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)", relay_hex, *columns
        )

    known = Path(tempfile.mkdtemp(prefix="sql-", dir=os.environ["ORBITAL_DATA_DIR"]))  # which goes with the test
    for migration in migrate.migrations_dir().glob("*.sql"):
        if migration.name <= f"{version}~":
            shutil.copy(migration, known)
    migrate.migrations_dir = lambda: known
    post_store.append_batch = append_columns


# ── bugs ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def acknowledges_early(_: str) -> None:
    """Posts are acknowledged when they are written, a moment before they are committed."""

    async def writing(self: writer.Lane, batch: list[tuple[post_store.Post, writer.Done]]) -> None:
        wanted = [post for post, _ in batch]
        outcomes: list[post_store.Outcome] = [ErrorCode.UNAVAILABLE] * len(batch)
        with contextlib.suppress(Exception):
            connection = await self._connected()
            transaction = connection.transaction()
            await transaction.start()
            outcomes = await post_store.append_posts(connection, self._relay_hex, wanted)
        for (_, done), outcome in zip(batch, outcomes, strict=True):
            done(outcome)
        try:
            await asyncio.sleep(0.02)
            await transaction.commit()
        except Exception:
            await self._disconnect()
        else:
            self._publish(wanted, outcomes)

    writer.Lane._write = writing  # type: ignore[method-assign]


def forgets_wake_ups(_: str) -> None:
    """The first wake-ups are handled, and then none; nobody looks whether something was missed."""
    wake, left = fanout.Fanout.wake, _HANDLED

    def waking(self: fanout.Fanout, group_id: bytes, seq: int, source: Any) -> None:
        nonlocal left
        left -= 1
        if left > 0:
            wake(self, group_id, seq, source)

    async def looking(self: listener.Listener, source: Any) -> None:
        return

    fanout.Fanout.wake = waking  # type: ignore[method-assign]
    listener.Listener._sweep = looking  # type: ignore[method-assign]


def hands_out_of_order(_: str) -> None:
    """Of the events that are handed out together, the last one goes first."""
    next_batch = fanout.Fanout._next_batch

    def taking(self: fanout.Fanout, channel: fanout.Channel) -> list[ring.Entry]:
        batch = next_batch(self, channel)
        return [*batch[-1:], *batch[:-1]]

    fanout.Fanout._next_batch = taking  # type: ignore[method-assign]


RIGS: Final[dict[str, Callable[[str], None]]] = {
    rig.__name__: rig
    for rig in (
        killed_after_commit,
        deaf,
        wild,
        jumping_clock,
        previous,
        acknowledges_early,
        forgets_wake_ups,
        hands_out_of_order,
    )
}


def program(rig: Callable[[str], None], argument: object = "") -> Sequence[str]:
    """What `running_relay` runs for such a relay."""
    return (sys.executable, str(Path(__file__)), rig.__name__, str(argument))


if __name__ == "__main__":
    RIGS[sys.argv[1]](sys.argv[2])
    app(args=sys.argv[3:])

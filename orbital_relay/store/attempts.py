"""Wrong passwords, counted by account and by address."""

from dataclasses import dataclass
from typing import Final

from orbital_relay.store.pool import Connection
from orbital_relay.store.queries import query

_BEGIN: Final = query("begin_login_attempt")
_COUNT: Final = query("count_login_failure")
_FORGET: Final = query("forget_login_failures")
_TAKE_BACK: Final = query("take_back_login_attempt")


@dataclass(frozen=True, slots=True)
class Waits:
    """How long to wait after which failure: not at all below `free`, then these microseconds, the last for good."""

    free: int
    steps_us: tuple[int, ...]


async def begin(connection: Connection, account: str, address: str, now: int, by_account: Waits) -> int | None:
    """Count an attempt on the account, or return until when it or the address is blocked (and count nothing)."""
    row = await connection.fetchrow(_BEGIN, account, address, now, by_account.free, by_account.steps_us)
    if row is None:
        raise AssertionError("begin_login_attempt returns a row")
    counted, blocked_until = row
    # A block that began while we looked is not in what we saw: it ends no sooner than this very moment.
    return None if counted else max(now, blocked_until or 0)


async def count_failure(connection: Connection, subject: str, now: int, waits: Waits) -> None:
    """Count a failure that was not counted by `begin`."""
    await connection.execute(_COUNT, subject, now, waits.free, waits.steps_us)


async def forget(connection: Connection, subject: str) -> None:
    """Begin anew."""
    await connection.execute(_FORGET, subject)


async def take_back(connection: Connection, subject: str, now: int) -> None:
    """Uncount one attempt."""
    await connection.execute(_TAKE_BACK, subject, now)

"""What relays tell one another, what the sweep asks, and cursors."""

from collections.abc import Sequence
from typing import Final

from orbital_protocol import ZERO_HASH
from orbital_relay.caller import LiveSession
from orbital_relay.store.pool import Connection
from orbital_relay.store.queries import query

_NOTIFY: Final = query("notify")
_NOTIFY_MANY: Final = query("notify_many")
_ENDED: Final = query("find_ended_sessions")
_PUT_CURSOR: Final = query("put_cursor")
_GET_CURSOR: Final = query("get_cursor")
_COUNT_CURSORS: Final = query("count_other_cursors")


async def notify(connection: Connection, payload: str) -> None:
    """Tell every relay (see `hints`), once this transaction commits."""
    await connection.execute(_NOTIFY, payload)


async def notify_many(connection: Connection, payloads: Sequence[str]) -> None:
    """Tell every relay several things."""
    await connection.execute(_NOTIFY_MANY, payloads)


async def find_ended_sessions(connection: Connection, sessions: Sequence[LiveSession]) -> list[bytes]:
    """Which of these sessions and bot tokens are revoked, expired, or of a user who is disabled or gone."""
    rows = await connection.fetch(
        _ENDED,
        [session.session_id for session in sessions],
        [session.token_epoch for session in sessions],
        [session.user_id for session in sessions],
    )
    return [row[0] for row in rows]


async def put_cursor(  # noqa: PLR0913  a row's columns
    connection: Connection, *, user_id: bytes, group_id: bytes, name: str, seq: int, hash_: bytes, rewind: bool
) -> tuple[int, bytes]:
    """Move a cursor, forward only unless `rewind`; return where it stands now."""
    row = await connection.fetchrow(_PUT_CURSOR, user_id, group_id, name, seq, hash_, rewind)
    if row is None:
        raise AssertionError("put_cursor returns a row")
    return row[0], row[1]


async def get_cursor(connection: Connection, user_id: bytes, group_id: bytes, name: str) -> tuple[int, bytes] | None:
    """Where a cursor stands, (0, zeros) where it was never put; None for whoever is not a member."""
    row = await connection.fetchrow(_GET_CURSOR, user_id, group_id, name)
    if row is None:
        return None
    return (row[0], row[1]) if row[0] is not None else (0, ZERO_HASH)


async def count_other_cursors(connection: Connection, user_id: bytes, group_id: bytes, name: str) -> int:
    """How many cursors a user keeps beside this one."""
    return int(await connection.fetchval(_COUNT_CURSORS, user_id, group_id, name))

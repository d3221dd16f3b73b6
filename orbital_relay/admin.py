"""What operators do to accounts, on a connection of their own, beside relays that may be running.

Every change takes effect on live connections of all relays when the caller's transaction commits.
"""

from typing import Final

from orbital_protocol.codes import CloseCode
from orbital_protocol.frames import Event
from orbital_relay import hints
from orbital_relay.caller import Clock
from orbital_relay.store import accounts, live, sessions
from orbital_relay.store.pool import Connection

COMMAND_LINE: Final = "0" * 32
"""Stands where a relay's id would: every relay hears what the command line says."""


async def _end_connections(connection: Connection, subject: str, subject_id: bytes, code: CloseCode) -> None:
    await live.notify(connection, hints.revoke(COMMAND_LINE, hints.Revoke(subject, subject_id, code)))


async def disable(connection: Connection, user_id: bytes) -> bool:
    """Keep a user out, with all their sessions and bots; False where there is no such user."""
    if not await accounts.set_disabled(connection, user_id, disabled=True):
        return False
    await _end_connections(connection, "user", user_id, CloseCode.REVOKED)
    return True


async def enable(connection: Connection, user_id: bytes) -> bool:
    """Let a user log in again; False where there is no such user."""
    return await accounts.set_disabled(connection, user_id, disabled=False)


async def set_password(connection: Connection, user_id: bytes, password_hash: str, now: Clock) -> bool:
    """Give a user another password and end all their sessions; bot tokens stay. False where there is no such user."""
    if await accounts.lock(connection, user_id) is None:
        return False
    await accounts.set_password(connection, user_id, password_hash)
    for session_id in await sessions.end_surplus(connection, user_id, 0, now()):
        await _end_connections(connection, "session", session_id, CloseCode.REVOKED)
    return True


async def delete(connection: Connection, user_id: bytes, *, with_groups: bool) -> list[Event]:
    """Delete a user, as `account.delete` does; what it raises, and what comes first, is `store.accounts.delete`'s."""
    events = await accounts.delete(connection, COMMAND_LINE, user_id, with_groups=with_groups)
    await _end_connections(connection, "user", user_id, CloseCode.ACCOUNT_DELETED)
    return events


async def end_session(connection: Connection, session_id: bytes, user_id: bytes, now: Clock) -> bool:
    """End a user's session; False where they have no such session."""
    if not await sessions.end(connection, session_id, user_id, now()):
        return False
    await _end_connections(connection, "session", session_id, CloseCode.REVOKED)
    return True


async def delete_token(connection: Connection, token_id: bytes, user_id: bytes) -> bool:
    """Delete a user's bot token; False where they have no such token."""
    if not await sessions.delete_token(connection, token_id, user_id):
        return False
    await _end_connections(connection, "token", token_id, CloseCode.REVOKED)
    return True

"""Invite links, the standing code, and those who knock."""

import secrets
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from orbital_protocol import frames
from orbital_protocol.statements import InviteCreated
from orbital_relay.errors import Overloaded
from orbital_relay.store.pool import Connection
from orbital_relay.store.queries import query

_INSERT: Final = query("insert_invite")
_FIND: Final = query("find_invite")
_EXISTS: Final = query("invite_exists")
_LIST: Final = query("list_invites")
_COUNT_LIVE: Final = query("count_live_invites")
_USE: Final = query("use_invite")
_REVOKE: Final = query("revoke_invite")
_REVOKE_ALL: Final = query("revoke_invites")
_OPEN: Final = query("open_invite")
_FIND_DOOR: Final = query("find_door")
_CODE_EXISTS: Final = query("code_exists")
_COUNT_REQUESTS: Final = query("count_join_requests")
_FIND_OWNER: Final = query("find_request_owner")
_PUT_REQUEST: Final = query("put_join_request")
_DELETE_REQUEST: Final = query("delete_join_request")
_LIST_REQUESTS: Final = query("list_join_requests")
_FIND_REQUEST: Final = query("find_join_request")

_ALPHABET: Final = string.ascii_letters + string.digits
_CODE_LENGTH: Final = 8
_DRAWS: Final = 5


@dataclass(frozen=True, slots=True)
class InviteRow:
    """An invite link. `is_live`: neither revoked nor expired nor used up. `has_sealed_key`: no rekey came after it.

    `expires_at` 0: never.
    """

    invite_code: str
    invite_key: bytes
    has_sealed_key: bool
    expires_at: int
    is_live: bool
    is_revoked: bool


@dataclass(frozen=True, slots=True)
class Opened:
    """A live link as it shows itself to whoever has its code."""

    group_id: bytes
    invite_id: bytes
    sealed_group_key: bytes | None
    key_epoch: int
    seq: int
    hash: bytes


@dataclass(frozen=True, slots=True)
class Door:
    """The group behind a code that one may knock with; `invite_id` and `invite_key` are there where it is a link's."""

    group_id: bytes
    invite_id: bytes | None
    invite_key: bytes | None


@dataclass(frozen=True, slots=True)
class Knocking:
    """Somebody who knocks, and the admins to show it to."""

    group_id: bytes
    request: frames.JoinRequest
    admin_ids: Sequence[bytes]


# ── links ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def insert(connection: Connection, statement: InviteCreated, invite_code: str, sealed_group_key: bytes) -> None:
    """Make a link that holds the key of the statement's epoch."""
    await connection.execute(
        _INSERT,
        statement.invite_id,
        statement.group_id,
        invite_code,
        statement.invite_key,
        sealed_group_key,
        statement.key_epoch,
        statement.actor_id,
        statement.expires_at,
        statement.max_uses,
    )


async def find(connection: Connection, group_id: bytes, invite_id: bytes) -> InviteRow | None:
    """A link of this group."""
    row = await connection.fetchrow(_FIND, group_id, invite_id)
    return None if row is None else InviteRow(*row)


async def exists(connection: Connection, invite_id: bytes) -> bool:
    """Whether some group has a link of this id."""
    return bool(await connection.fetchval(_EXISTS, invite_id))


async def list_live(connection: Connection, group_id: bytes) -> list[frames.Invite]:
    """The group's live links, oldest first."""
    return [
        frames.Invite(
            invite_id=invite_id,
            invite_code=invite_code,
            created_by=created_by,
            created_at=created_at,
            expires_at=expires_at,
            max_uses=max_uses,
            uses=uses,
        )
        for invite_id, invite_code, created_by, created_at, expires_at, max_uses, uses in await connection.fetch(
            _LIST, group_id
        )
    ]


async def count_live(connection: Connection, group_id: bytes) -> int:
    """How many links of the group can still be used."""
    return int(await connection.fetchval(_COUNT_LIVE, group_id))


async def use(connection: Connection, invite_id: bytes) -> None:
    """Count a use."""
    await connection.execute(_USE, invite_id)


async def revoke(connection: Connection, invite_id: bytes) -> None:
    """End a link."""
    await connection.execute(_REVOKE, invite_id)


async def revoke_all(connection: Connection, group_id: bytes) -> None:
    """End every link of the group."""
    await connection.execute(_REVOKE_ALL, group_id)


async def open_link(connection: Connection, invite_code: str) -> Opened | None:
    """The live link with this code."""
    row = await connection.fetchrow(_OPEN, invite_code)
    return None if row is None else Opened(*row)


async def unused_code(connection: Connection) -> str:
    """A random code that no group and no link has, live or not."""
    for _ in range(_DRAWS):
        code = _draw_code()
        if not await connection.fetchval(_CODE_EXISTS, code):
            return code
    raise Overloaded("No invite code was found that is not in use.")


def _draw_code() -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(_CODE_LENGTH))


# ── those who knock ─────────────────────────────────────────────────────────────────────────────────────────────────


async def find_door(connection: Connection, invite_code: str) -> Door | None:
    """The group that one may knock at with this code: a standing one that is switched on, or a live link's."""
    row = await connection.fetchrow(_FIND_DOOR, invite_code)
    return None if row is None else Door(*row)


async def count_requests(connection: Connection, group_id: bytes) -> int:
    """How many wait to be let in."""
    return int(await connection.fetchval(_COUNT_REQUESTS, group_id))


async def request_is_anothers(connection: Connection, request_id: bytes, group_id: bytes, user_id: bytes) -> bool:
    """Whether the id is in use for a request of somebody else's, or at another group."""
    row = await connection.fetchrow(_FIND_OWNER, request_id)
    return row is not None and tuple(row) != (group_id, user_id)


async def put_request(
    connection: Connection, request_id: bytes, door: Door, user_id: bytes, invite_signature: bytes | None
) -> bytes:
    """Knock; return the id of the user's one request at this group, which is that of their first knock."""
    kept: bytes = await connection.fetchval(
        _PUT_REQUEST, request_id, door.group_id, user_id, door.invite_id, invite_signature
    )
    return kept


async def delete_request(connection: Connection, group_id: bytes, user_id: bytes) -> None:
    """Forget that somebody knocked."""
    await connection.execute(_DELETE_REQUEST, group_id, user_id)


async def list_requests(connection: Connection, group_id: bytes) -> list[frames.JoinRequest]:
    """Those who wait to be let in, longest first."""
    return [_request_of(tuple(row)) for row in await connection.fetch(_LIST_REQUESTS, group_id)]


async def find_request(connection: Connection, request_id: bytes) -> Knocking | None:
    """Somebody who knocks, as long as they do."""
    row = await connection.fetchrow(_FIND_REQUEST, request_id)
    if row is None:
        return None
    *request, group_id, admin_ids = row
    return Knocking(group_id, _request_of(request), admin_ids)


def _request_of(row: Sequence[Any]) -> frames.JoinRequest:
    request_id, user_id, username, public_key, signing_key, is_bot, requested_at, invite_id, invite_signature = row
    return frames.JoinRequest(
        request_id=request_id,
        user_id=user_id,
        username=username,
        public_key=msgspec.json.decode(public_key, type=frames.PublicKey),
        signing_key=signing_key,
        is_bot=is_bot,
        requested_at=requested_at,
        invite_id=invite_id,
        invite_signature=invite_signature,
    )

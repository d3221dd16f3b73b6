"""Members of groups, and their keys. What changes them runs under the lock of the group's head (`store.control`)."""

from binascii import a2b_base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from orbital_protocol import ZERO_ID, frames
from orbital_protocol.codes import Role
from orbital_relay.store.control import Keys, Member
from orbital_relay.store.groups import text
from orbital_relay.store.pool import Connection
from orbital_relay.store.queries import query

_FIND_MEMBER: Final = query("find_member")
_LIST_MEMBERS: Final = query("list_members")
_LIST_RECIPIENTS: Final = query("list_recipients")
_LOCK_USER: Final = query("lock_user")
_FIND_NEWCOMER: Final = query("find_newcomer")
_INSERT_MEMBER: Final = query("insert_member")
_DELETE_MEMBER: Final = query("delete_member")
_SET_ROLE: Final = query("set_role")
_INSERT_BAN: Final = query("insert_ban")
_DELETE_BAN: Final = query("delete_ban")
_BAN_EXISTS: Final = query("ban_exists")
_REQUIRE_REKEY: Final = query("require_rekey")
_REKEY: Final = query("rekey_group")
_LIST_KEYS: Final = query("list_group_keys")
_COUNT_WRAPS: Final = query("count_wraps")
_INSERT_WRAP: Final = query("insert_wrap")


@dataclass(frozen=True, slots=True)
class Roll:
    """A page of a group's members, and the head that it belongs to."""

    members: list[frames.Member]
    seq: int
    hash: bytes


@dataclass(frozen=True, slots=True)
class Newcomer:
    """Somebody who wants to be a member, and what the group is to them so far."""

    keys: Keys
    is_member: bool
    is_banned: bool
    has_knocked: bool
    groups: int
    """How many groups the user is in."""
    members: int
    """How many members the group has."""


@dataclass(frozen=True, slots=True)
class Wraps:
    """How many wraps of one epoch there are for somebody, and whether the one at hand is among them."""

    count: int
    has_this: bool


async def find(connection: Connection, group_id: bytes, user_id: bytes) -> Member | None:
    """A member of the group, or None."""
    row = await connection.fetchrow(_FIND_MEMBER, group_id, user_id)
    return None if row is None else Member(user_id, Role(row[0]), Keys(*row[1:]))


async def page(
    connection: Connection, group_id: bytes, caller_id: bytes, after_user_id: bytes | None, limit: int
) -> Roll | None:
    """Members in the order of their ids; None for a caller who is none."""
    rows = await connection.fetch(_LIST_MEMBERS, group_id, caller_id, after_user_id or ZERO_ID, limit)
    if not rows:
        return None
    members = [
        frames.Member(
            user_id=user_id,
            username=username,
            role=role,
            public_key=msgspec.json.decode(public_key, type=frames.PublicKey),
            signing_key=signing_key,
            is_bot=is_bot,
            joined_at=joined_at,
        )
        for _, _, user_id, username, role, public_key, signing_key, is_bot, joined_at in rows
        if user_id is not None
    ]
    return Roll(members, seq=rows[0][0], hash=rows[0][1])


async def list_recipients(connection: Connection, group_id: bytes) -> dict[bytes, bytes]:
    """The RSA thumbprint of every member, by user id."""
    return {user_id: thumbprint for user_id, thumbprint in await connection.fetch(_LIST_RECIPIENTS, group_id)}


async def lock_newcomer(connection: Connection, group_id: bytes, user_id: bytes) -> Newcomer | None:
    """Somebody who wants to be a member; their keys and groups stay as they are until the transaction ends.

    Comes after the lock of the group's head, like everything else.
    """
    await connection.execute(_LOCK_USER, user_id)
    row = await connection.fetchrow(_FIND_NEWCOMER, group_id, user_id)
    return None if row is None else Newcomer(Keys(*row[:3]), *row[3:])


async def insert(  # noqa: PLR0913  a row's columns
    connection: Connection, group_id: bytes, user_id: bytes, *, role: Role, encrypted_group_key: bytes, key_epoch: int
) -> None:
    """Make a member, with their wrap; whatever request they had made is answered by it."""
    await connection.execute(_INSERT_MEMBER, group_id, user_id, text(encrypted_group_key), role, key_epoch)


async def delete(connection: Connection, group_id: bytes, user_id: bytes) -> None:
    """End a membership; a rekey is due."""
    await connection.execute(_DELETE_MEMBER, group_id, user_id)


async def set_role(connection: Connection, group_id: bytes, user_id: bytes, role: int) -> None:
    """Set a member's role."""
    await connection.execute(_SET_ROLE, group_id, user_id, role)


async def ban(connection: Connection, group_id: bytes, user_id: bytes) -> None:
    """Keep a user out."""
    await connection.execute(_INSERT_BAN, group_id, user_id)


async def unban(connection: Connection, group_id: bytes, user_id: bytes) -> None:
    """Let a user in again."""
    await connection.execute(_DELETE_BAN, group_id, user_id)


async def is_banned(connection: Connection, group_id: bytes, user_id: bytes) -> bool:
    """Whether the user is kept out."""
    return bool(await connection.fetchval(_BAN_EXISTS, group_id, user_id))


# ── keys ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def require_rekey(connection: Connection, group_id: bytes) -> None:
    """Nobody posts until the group has a new key."""
    await connection.execute(_REQUIRE_REKEY, group_id)


async def rekey(
    connection: Connection, group_id: bytes, key_epoch: int, encrypted_name: bytes, wraps: Sequence[frames.WrappedKey]
) -> None:
    """Put a new key in force: its wraps, the name sealed anew, and no link that could still open the old key."""
    await connection.execute(
        _REKEY,
        group_id,
        key_epoch,
        text(encrypted_name),
        [wrap.user_id for wrap in wraps],
        [text(wrap.encrypted_group_key) for wrap in wraps],
    )


async def list_group_keys(
    connection: Connection, group_id: bytes, user_id: bytes, after_key_epoch: int, epochs: int
) -> list[frames.GroupKey] | None:
    """The wraps ever made for a member, of so many epochs after one, oldest first; None for whoever is no member."""
    rows = await connection.fetch(_LIST_KEYS, group_id, user_id, after_key_epoch, epochs)
    if not rows:
        return None
    return [
        frames.GroupKey(key_epoch=key_epoch, encrypted_group_key=a2b_base64(wrap), created_at=created_at)
        for key_epoch, wrap, created_at in rows
        if key_epoch is not None
    ]


async def count_wraps(
    connection: Connection, group_id: bytes, user_id: bytes, key_epoch: int, encrypted_group_key: bytes
) -> Wraps:
    """What wraps of an epoch there are for somebody."""
    row = await connection.fetchrow(_COUNT_WRAPS, group_id, user_id, key_epoch, text(encrypted_group_key))
    if row is None:
        raise AssertionError("count_wraps returns a row")
    return Wraps(*row)


async def insert_wrap(
    connection: Connection, group_id: bytes, user_id: bytes, key_epoch: int, encrypted_group_key: bytes
) -> None:
    """Add a wrap; one of the current epoch becomes the member's newest."""
    await connection.execute(_INSERT_WRAP, group_id, user_id, key_epoch, text(encrypted_group_key))

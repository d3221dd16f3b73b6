"""Users, their keys and backups."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import asyncpg

from orbital_protocol.frames import Event, PublicKey, UserKey
from orbital_relay.store.events import relay_event
from orbital_relay.store.pool import Connection
from orbital_relay.store.queries import query

_FIND_BY_NAME: Final = query("find_account_by_name")
_FIND: Final = query("find_account")
_LOCK: Final = query("lock_account")
_CLAIMS: Final = query("find_claims")
_INSERT: Final = query("insert_account")
_SET_PASSWORD: Final = query("set_password")
_SET_DISABLED: Final = query("set_disabled")
_OWNS_GROUPS: Final = query("owns_groups")
_FORGET_AUTHOR: Final = query("forget_author")
_DELETE: Final = query("delete_account")
_MAY_SEE: Final = query("may_see_user")
_LIST_KEYS: Final = query("list_user_keys")
_GET_BACKUP: Final = query("get_backup")
_PUT_BACKUP: Final = query("put_backup")

_POSTS_AT_ONCE: Final = 2_000


@dataclass(frozen=True, slots=True)
class Account:
    """A user, as far as credentials are concerned."""

    user_id: bytes
    username: str
    password_hash: str = field(repr=False)
    token_epoch: int
    disabled: bool
    is_bot: bool
    signing_key: bytes
    rsa_thumbprint: bytes


@dataclass(frozen=True, slots=True)
class NewAccount:
    """A user to be, whose keys `keys` has checked."""

    user_id: bytes
    username: str
    password_hash: str = field(repr=False)
    public_key: PublicKey
    rsa_thumbprint: bytes
    signing_key: bytes
    is_bot: bool


@dataclass(frozen=True, slots=True)
class Claims:
    """Who has an id, or had it, and who has a name."""

    by_id: Account | None
    id_known: bool
    by_name: Account | None


@dataclass(frozen=True, slots=True)
class Profile:
    """A user as others see them: every key they ever had, the newest last. No name where the account is gone."""

    username: str | None
    is_bot: bool
    keys: list[UserKey]


@dataclass(frozen=True, slots=True)
class Backup:
    """A user's key backup, sealed by their client."""

    generation: int
    backup: bytes


class OwnsGroupsError(Exception):
    """The user owns groups, and nobody said that they shall go too."""


def jwk_text(key: PublicKey) -> str:
    """What is kept of a JWK: its required members."""
    return json.dumps({"kty": key.kty, "n": key.n, "e": key.e})


def _jwk(text: str) -> PublicKey:
    members = json.loads(text)
    return PublicKey(kty=members["kty"], n=members["n"], e=members["e"])


def _account(row: asyncpg.Record | None) -> Account | None:
    return None if row is None else Account(*row)


async def find_by_name(connection: Connection, username: str) -> Account | None:
    """The user of this name."""
    return _account(await connection.fetchrow(_FIND_BY_NAME, username))


async def find(connection: Connection, user_id: bytes) -> Account | None:
    """The user with this id."""
    return _account(await connection.fetchrow(_FIND, user_id))


async def lock(connection: Connection, user_id: bytes) -> Account | None:
    """The same; until the transaction ends nobody else changes the account, or makes the user a member of anything.

    Whoever locks groups' heads too does that first.
    """
    return _account(await connection.fetchrow(_LOCK, user_id))


async def find_claims(connection: Connection, user_id: bytes, username: str) -> Claims:
    """Who has this id and who has this name, as of one moment."""
    rows = await connection.fetch(_CLAIMS, user_id, username)
    found = [Account(*columns) for *columns, _ in rows if columns[0] is not None]
    return Claims(
        by_id=next((account for account in found if account.user_id == user_id), None),
        id_known=rows[0][-1],
        by_name=next((account for account in found if account.username == username), None),
    )


async def insert(connection: Connection, new: NewAccount) -> bool:
    """Make a user; False where the id or the name is in use."""
    made = await connection.fetchval(
        _INSERT,
        new.user_id,
        new.username,
        new.password_hash,
        jwk_text(new.public_key),
        new.signing_key,
        new.rsa_thumbprint,
        new.is_bot,
    )
    return made is not None


async def set_password(connection: Connection, user_id: bytes, password_hash: str) -> int:
    """Give the user another password and token epoch, which is returned; ending their sessions is up to the caller."""
    return int(await connection.fetchval(_SET_PASSWORD, user_id, password_hash))


async def set_disabled(connection: Connection, user_id: bytes, *, disabled: bool) -> bool:
    """Keep a user out, or let them in again; False where there is none."""
    return await connection.fetchval(_SET_DISABLED, user_id, disabled) is not None


async def prepare_delete(connection: Connection, user_id: bytes, *, with_groups: bool) -> None:
    """Do what of a deletion needs no lock and may take long; in no transaction. Raise OwnsGroupsError as `delete` does.

    The user's name comes off their posts, some at a time. The log, which names them still, is what clients see.
    """
    if not with_groups and await connection.fetchval(_OWNS_GROUPS, user_id):
        raise OwnsGroupsError
    while await connection.fetchval(_FORGET_AUTHOR, user_id, _POSTS_AT_ONCE):
        pass


async def delete(connection: Connection, relay_hex: str, user_id: bytes, *, with_groups: bool) -> list[Event]:
    """Delete a user and return the events that this left in logs, to be published after the commit.

    Until then the logs of the user's groups are locked: call `prepare_delete` first, so that it doesn't take long.
    Raise OwnsGroupsError where the user owns groups, unless these are to be deleted too, and `pool.TRY_AGAIN`'s where a
    group took the user in meanwhile.
    """
    rows = await connection.fetch(_DELETE, relay_hex, user_id, with_groups)
    if any(kind == 0 for _, kind, *_ in rows):
        raise OwnsGroupsError
    return [relay_event(row) for row in rows]


async def may_see(connection: Connection, caller_id: bytes, user_id: bytes, group_ids: Sequence[bytes] | None) -> bool:
    """Whether the caller may know of this user; through these groups only, if given."""
    return bool(await connection.fetchval(_MAY_SEE, caller_id, user_id, group_ids))


async def find_profile(connection: Connection, user_id: bytes) -> Profile | None:
    """Somebody who is or was a user."""
    rows = await connection.fetch(_LIST_KEYS, user_id)
    if not rows:
        return None
    return Profile(
        username=rows[0]["username"],
        is_bot=bool(rows[0]["is_bot"]),
        keys=[
            UserKey(public_key=_jwk(public_key), signing_key=signing_key, created_at=created_at)
            for public_key, signing_key, created_at, *_ in rows
        ],
    )


async def get_backup(connection: Connection, user_id: bytes) -> Backup | None:
    """The user's backup."""
    row = await connection.fetchrow(_GET_BACKUP, user_id)
    return None if row is None else Backup(*row)


async def put_backup(connection: Connection, user_id: bytes, backup: Backup) -> bool:
    """Replace the backup by the next generation, or by itself; False for any other generation or content."""
    return await connection.fetchval(_PUT_BACKUP, user_id, backup.generation, backup.backup) is not None

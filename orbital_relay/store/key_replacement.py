"""A user's new keys, and the statements that say so. All of it runs under the locks of the groups' heads."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from orbital_protocol.chain import control_content_hash, field_hash
from orbital_protocol.frames import PublicKey
from orbital_protocol.statements import KeyReplaced
from orbital_relay.store.accounts import jwk_text
from orbital_relay.store.control import Head
from orbital_relay.store.pool import Connection
from orbital_relay.store.queries import query

_MEMBERSHIPS: Final = query("list_memberships")
_LOCK: Final = query("lock_heads")
_BASES: Final = query("read_bases")
_STATEMENTS: Final = query("find_statements")
_HAD_KEYS: Final = query("user_had_keys")
_COUNT_KEYS: Final = query("count_user_keys")
_APPEND: Final = query("append_key_replacements")
_REPLACE: Final = query("replace_keys")


@dataclass(frozen=True, slots=True)
class Written:
    """A statement, and the bytes that were signed."""

    statement: KeyReplaced
    raw: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class Base:
    """A group's head, and the hash of the event at a statement's `base_seq`; None where there is none."""

    head: Head
    hash: bytes | None


@dataclass(frozen=True, slots=True)
class Logged:
    """A statement in a log."""

    group_id: bytes
    raw: bytes
    seq: int
    hash: bytes


@dataclass(frozen=True, slots=True)
class Appended:
    """Where a statement has come to stand. `key_epoch` is the one in force."""

    group_id: bytes
    seq: int
    hash: bytes
    created_at: int
    key_epoch: int


async def list_memberships(connection: Connection, user_id: bytes) -> frozenset[bytes]:
    """The groups that the user is in."""
    return frozenset(row[0] for row in await connection.fetch(_MEMBERSHIPS, user_id))


async def lock_heads(connection: Connection, group_ids: Sequence[bytes]) -> None:
    """Be alone with these groups until the transaction ends."""
    await connection.execute(_LOCK, group_ids)


async def read_bases(connection: Connection, written: Sequence[KeyReplaced]) -> dict[bytes, Base]:
    """Where the groups of these statements stand."""
    rows = await connection.fetch(_BASES, [one.group_id for one in written], [one.base_seq for one in written])
    return {group_id: Base(Head(*head), hash_) for group_id, *head, hash_ in rows}


async def find_statements(connection: Connection, statement_ids: Sequence[bytes]) -> dict[bytes, Logged]:
    """What is in any log under these ids; of posts, `raw` is empty."""
    rows = await connection.fetch(_STATEMENTS, statement_ids)
    return {object_id: Logged(group_id, raw or b"", seq, hash_) for object_id, group_id, raw, seq, hash_ in rows}


async def user_had_keys(connection: Connection, user_id: bytes, signing_key: bytes, rsa_thumbprint: bytes) -> bool:
    """Whether the user ever had this pair of keys."""
    return bool(await connection.fetchval(_HAD_KEYS, user_id, signing_key, rsa_thumbprint))


async def count_keys(connection: Connection, user_id: bytes) -> int:
    """How many pairs of keys the user has had, the one in force included."""
    return int(await connection.fetchval(_COUNT_KEYS, user_id))


async def append(connection: Connection, relay_hex: str, user_id: bytes, written: Sequence[Written]) -> list[Appended]:
    """Append the statements, each to its group's log, and wake every relay.

    Raise asyncpg.UniqueViolationError where an id came into use at this moment: nothing was appended.
    """
    rows = await connection.fetch(
        _APPEND,
        relay_hex,
        user_id,
        [one.statement.group_id for one in written],
        [one.statement.statement_id for one in written],
        [one.raw for one in written],
        [one.signature for one in written],
        [field_hash(one.raw) + field_hash(one.signature) for one in written],
        [control_content_hash(one.raw, one.signature) for one in written],
    )
    return [Appended(*row) for row in rows]


async def replace(  # noqa: PLR0913  a row's columns
    connection: Connection,
    user_id: bytes,
    *,
    public_key: PublicKey,
    signing_key: bytes,
    rsa_thumbprint: bytes,
    group_ids: Sequence[bytes],
) -> None:
    """Put the keys in force; these groups need new ones too."""
    await connection.execute(_REPLACE, user_id, jwk_text(public_key), signing_key, rsa_thumbprint, group_ids)

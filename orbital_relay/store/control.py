"""What every request that changes a group begins and ends with: the lock, the reads under it, the append."""

from dataclasses import dataclass
from typing import Final

from orbital_protocol import ZERO_HASH
from orbital_protocol.chain import control_content_hash, field_hash
from orbital_protocol.codes import CHANGES_ROSTER, History, Kind, Role
from orbital_protocol.statements import GroupCreated, Statement, kind_of
from orbital_relay.store.pool import Connection
from orbital_relay.store.queries import query

_MAKE_HEAD: Final = query("make_head")
_LOCK_HEAD: Final = query("lock_head")
_READ_STANDING: Final = query("read_standing")
_READ_EPOCH: Final = query("read_epoch")
_APPEND: Final = query("append_control")


@dataclass(frozen=True, slots=True)
class Keys:
    """What a statement says of a user whom it introduces, and the relay knows of them."""

    signing_key: bytes
    rsa_thumbprint: bytes
    is_bot: bool


@dataclass(frozen=True, slots=True)
class Member:
    """A member of the group at hand, with the keys now in force."""

    user_id: bytes
    role: Role
    keys: Keys


@dataclass(frozen=True, slots=True)
class Head:
    """Where a group's log stands. `roster_seq` is the last event that changed the roster."""

    seq: int
    key_epoch: int
    rekey_required: bool
    roster_seq: int


@dataclass(frozen=True, slots=True)
class Logged:
    """Where a statement stands in its group's log. `key_epoch` is the one in force before it."""

    seq: int
    hash: bytes
    created_at: int
    key_epoch: int


@dataclass(frozen=True, slots=True)
class Standing:
    """A group and an actor under the lock.

    `head` is None where there never was such a group, `member` where the actor is none (also in a deleted group).
    `base_hash` is the hash of the event at the statement's `base_seq`, None where there is none. `earlier` is this very
    statement in the log, from an earlier try; `id_in_use` says that its id means something already.
    """

    actor_id: bytes
    actor_keys: Keys
    head: Head | None
    history: History | None
    member: Member | None
    base_hash: bytes | None
    id_in_use: bool
    earlier: Logged | None


async def lock(connection: Connection, group_id: bytes) -> None:
    """Be alone with a group until the transaction ends. Whoever locks several takes them in the order of their ids."""
    await connection.execute(_LOCK_HEAD, group_id)


async def read_epoch(connection: Connection, group_id: bytes) -> int:
    """The key epoch of a group that there is."""
    return int(await connection.fetchval(_READ_EPOCH, group_id))


async def lock_and_read(connection: Connection, statement: Statement, raw: bytes) -> Standing | None:
    """Lock the statement's group and read what its fate depends on; None where the actor has no account any more."""
    if isinstance(statement, GroupCreated):
        await connection.execute(_MAKE_HEAD, statement.group_id)
    await lock(connection, statement.group_id)
    row = await connection.fetchrow(
        _READ_STANDING, statement.group_id, statement.actor_id, statement.base_seq, statement.statement_id
    )
    if row is None:
        return None
    (seq, epoch, rekey_required, roster_seq, history, signing_key, rsa_thumbprint, is_bot, role, base_hash) = row[:10]
    id_in_use, known, *logged = row[10:]
    keys = Keys(signing_key, rsa_thumbprint, is_bot)
    return Standing(
        actor_id=statement.actor_id,
        actor_keys=keys,
        head=None if seq is None else Head(seq, epoch, rekey_required, roster_seq),
        history=None if history is None else History(history),
        member=None if role is None else Member(statement.actor_id, Role(role), keys),
        base_hash=ZERO_HASH if statement.base_seq == 0 else base_hash,
        id_in_use=id_in_use,
        earlier=Logged(*logged) if known == raw else None,
    )


async def append(connection: Connection, relay_hex: str, statement: Statement, raw: bytes, signature: bytes) -> Logged:
    """Append a statement to its group's log, the head of which this transaction has locked, and wake every relay.

    Raise asyncpg.UniqueViolationError where its id came into use at this moment: nothing was appended.
    """
    kind = Kind(kind_of(statement))
    row = await connection.fetchrow(
        _APPEND,
        relay_hex,
        statement.group_id,
        kind,
        statement.statement_id,
        statement.actor_id,
        raw,
        signature,
        field_hash(raw) + field_hash(signature),
        control_content_hash(raw, signature),
        kind in CHANGES_ROSTER,
    )
    if row is None:
        raise AssertionError("append_control returns a row")
    return Logged(*row)

"""Groups and what is posted in them. What changes them runs under the lock of the group's head (`store.control`)."""

from binascii import a2b_base64, b2a_base64
from dataclasses import dataclass
from typing import Final

from orbital_protocol import frames
from orbital_protocol.codes import Kind, Role
from orbital_protocol.statements import GroupCreated
from orbital_relay.store.pool import Connection
from orbital_relay.store.queries import query

_INSERT_GROUP: Final = query("insert_group")
_LIST_GROUPS: Final = query("list_groups")
_FIND_GROUP: Final = query("find_group")
_FIND_CODE: Final = query("find_standing_code")
_RENAME: Final = query("rename_group")
_ROTATE: Final = query("rotate_code")
_TRANSFER: Final = query("transfer_group")
_BURY: Final = query("bury_group")
_FIND_POST: Final = query("find_post")
_ERASE: Final = query("erase_post")


@dataclass(frozen=True, slots=True)
class Group:
    """A group as one of its members sees it."""

    encrypted_name: bytes
    name_key_epoch: int
    history: int
    knocking: bool
    created_by: bytes
    created_at: int
    role: Role
    key_epoch: int
    rekey_required: bool
    seq: int
    hash: bytes
    member_count: int
    invite_code: str


@dataclass(frozen=True, slots=True)
class PostRow:
    """What an object id stands for."""

    group_id: bytes
    author_id: bytes
    kind: Kind
    erased: bool


def text(ciphertext: bytes) -> str:
    """Ciphertexts are base64 in the founding schema's TEXT columns."""
    return b2a_base64(ciphertext, newline=False).decode("ascii")


async def insert_group(
    connection: Connection, statement: GroupCreated, encrypted_name: bytes, invite_code: str
) -> None:
    """Make a group with its quota; its head is there already."""
    await connection.execute(
        _INSERT_GROUP, statement.group_id, text(encrypted_name), statement.actor_id, invite_code, statement.history
    )


async def list_groups(connection: Connection, user_id: bytes) -> list[frames.GroupHead]:
    """The groups that the user is in, in the order of their ids."""
    return [
        frames.GroupHead(
            group_id=group_id,
            encrypted_name=a2b_base64(encrypted_name),
            role=role,
            key_epoch=key_epoch,
            rekey_required=rekey_required,
            seq=seq,
            hash=hash_,
        )
        for group_id, encrypted_name, role, key_epoch, rekey_required, seq, hash_ in await connection.fetch(
            _LIST_GROUPS, user_id
        )
    ]


async def find_group(connection: Connection, group_id: bytes, user_id: bytes) -> Group | None:
    """The group, for a member of it."""
    row = await connection.fetchrow(_FIND_GROUP, group_id, user_id)
    if row is None:
        return None
    encrypted_name, name_key_epoch, history, knocking, created_by, created_at, role, *rest = row
    return Group(
        a2b_base64(encrypted_name), name_key_epoch, history, knocking, created_by, created_at, Role(role), *rest
    )


async def find_standing_code(connection: Connection, group_id: bytes, user_id: bytes) -> str | None:
    """The group's standing code, for an admin of it."""
    code: str | None = await connection.fetchval(_FIND_CODE, group_id, user_id)
    return code


async def rename(connection: Connection, group_id: bytes, encrypted_name: bytes, key_epoch: int) -> None:
    """Set the name, sealed under this epoch's key."""
    await connection.execute(_RENAME, group_id, text(encrypted_name), key_epoch)


async def rotate_code(connection: Connection, group_id: bytes, invite_code: str, *, knocking: bool) -> None:
    """Replace the standing code, and say whether one may knock with it."""
    await connection.execute(_ROTATE, group_id, invite_code, knocking)


async def transfer(connection: Connection, group_id: bytes, old_owner: bytes, new_owner: bytes) -> None:
    """Make a member the owner; who was it becomes an admin."""
    await connection.execute(_TRANSFER, group_id, old_owner, new_owner)


async def bury(connection: Connection, group_id: bytes) -> None:
    """Delete a group whose log has just ended; its head and last event stay."""
    await connection.execute(_BURY, group_id)


async def find_post(connection: Connection, object_id: bytes) -> PostRow | None:
    """What an id stands for, statements included."""
    row = await connection.fetchrow(_FIND_POST, object_id)
    if row is None:
        return None
    group_id, author_id, kind, erased = row
    return PostRow(group_id, author_id, Kind(kind), erased)


async def erase_post(connection: Connection, object_id: bytes) -> None:
    """Blank a post's ciphertext; its event, hashes and replies stay."""
    await connection.execute(_ERASE, object_id)

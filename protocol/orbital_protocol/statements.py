"""Statements: the signed MessagePack arrays that change a group.

`[kind, group_id, actor_id, statement_id, base_seq, base_hash, key_epoch, roster_hash, …the kind's own]`, in its
smallest encoding. The signature is Ed25519 over `"orbital.v1.statement\\0" ‖ statement`. The bytes are kept, hashed
and forwarded as they came; whoever decodes a statement refuses one that it would not encode to the same bytes.
"""

from collections.abc import Iterable
from functools import lru_cache
from hashlib import sha256
from typing import Annotated, Final, dataclass_transform

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from msgspec import Meta

from orbital_protocol.fields import Hash, Id, KeyEpoch, Microseconds, SequenceNumber, Signature, SigningKey

STATEMENT_PREFIX: Final = b"orbital.v1.statement\0"
JOIN_PREFIX: Final = b"orbital.v1.join\0"
KEY_PREFIX: Final = b"orbital.v1.key\0"
MAX_STATEMENT_BYTES: Final = 2048

_KNOWN_KEYS: Final = 1024


class StatementError(ValueError):
    """The bytes are not a statement in its one valid encoding; the message names the element."""


# Structs below inherit frozen; without this type checkers would not know. Keywords are asked for by them alone: fields
# that msgspec knew as kw_only would come behind the kind's own, and so the array would begin with those.
@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(msgspec.field,))
class Statement(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """The elements that every statement begins with (after its kind)."""

    group_id: Id
    actor_id: Id
    statement_id: Id
    base_seq: SequenceNumber
    base_hash: Hash
    key_epoch: KeyEpoch
    roster_hash: Hash


class GroupCreated(Statement, tag=1):
    """The actor made the group and owns it. `base_seq` is 0, `base_hash` zeros, `key_epoch` 1."""

    history: Annotated[int, Meta(ge=0, le=1)]
    key_commitment: Hash
    name_hash: Hash
    signing_key: SigningKey
    rsa_thumbprint: Hash
    is_bot: bool


class GroupUpdated(Statement, tag=2):
    """The group's name changed to the ciphertext with this SHA-256."""

    name_hash: Hash


class GroupTransferred(Statement, tag=3):
    """The owner made another member the owner, and is an admin from now on."""

    user_id: Id


class GroupRekeyed(Statement, tag=4):
    """A new key is in force: epoch `new_key_epoch` = `key_epoch` + 1.

    `previous_key` is the old key sealed under the new one where the group shares its history, otherwise empty.
    """

    new_key_epoch: KeyEpoch
    key_commitment: Hash
    name_hash: Hash
    previous_key: Annotated[bytes, Meta(max_length=256)]


class GroupDeleted(Statement, tag=5):
    """The owner deleted the group."""


class MemberJoined(Statement, tag=6):
    """`user_id` is a member. The actor is the newcomer with an invite's signature, or an admin who admits."""

    user_id: Id
    signing_key: SigningKey
    rsa_thumbprint: Hash
    is_bot: bool
    invite_id: Id
    invite_signature: Annotated[bytes, Meta(max_length=64)]


class MemberLeft(Statement, tag=7):
    """The actor left."""


class MemberRemoved(Statement, tag=8):
    """An admin removed a member of a lower role; `ban` keeps the user out until unbanned."""

    user_id: Id
    ban: bool


class MemberRole(Statement, tag=9):
    """A member's role was set to member (1) or admin (2)."""

    user_id: Id
    role: Annotated[int, Meta(ge=1, le=2)]


class MemberUnbanned(Statement, tag=10):
    """A ban was lifted."""

    user_id: Id


class InviteCreated(Statement, tag=11):
    """An invite link exists. `expires_at` 0: never; `max_uses` 0: unlimited."""

    invite_id: Id
    invite_key: SigningKey
    expires_at: Microseconds
    max_uses: Annotated[int, Meta(ge=0, le=2**32 - 1)]


class InviteRevoked(Statement, tag=12):
    """An invite link no longer works."""

    invite_id: Id


class KeyReplaced(Statement, tag=13):
    """The actor's keys changed. Signed by the old signing key; `key_signature` is by the new one (`key_preimage`)."""

    signing_key: SigningKey
    rsa_thumbprint: Hash
    key_signature: Signature


class PostDeleted(Statement, tag=17):
    """A thread, reply or annotation was deleted by its author or an admin."""

    target_id: Id


class MediaDeleted(Statement, tag=19):
    """A file was deleted by its author or an admin."""

    media_id: Id


AnyStatement = (
    GroupCreated
    | GroupUpdated
    | GroupTransferred
    | GroupRekeyed
    | GroupDeleted
    | MemberJoined
    | MemberLeft
    | MemberRemoved
    | MemberRole
    | MemberUnbanned
    | InviteCreated
    | InviteRevoked
    | KeyReplaced
    | PostDeleted
    | MediaDeleted
)

_decoder = msgspec.msgpack.Decoder(AnyStatement)
_encoder = msgspec.msgpack.Encoder()


def kind_of(statement: Statement) -> int:
    """The kind (`codes.Kind`) of a statement, its first element."""
    tag = statement.__struct_config__.tag
    if not isinstance(tag, int):
        raise TypeError(f"{type(statement).__name__} has no kind")
    return tag


def encode(statement: Statement) -> bytes:
    """The statement's one valid encoding."""
    return _encoder.encode(statement)


def decode(raw: bytes) -> AnyStatement:
    """Decode a statement; raise StatementError for anything but its smallest encoding, or over MAX_STATEMENT_BYTES."""
    if len(raw) > MAX_STATEMENT_BYTES:
        raise StatementError(f"a statement has at most {MAX_STATEMENT_BYTES} bytes, not {len(raw)}")
    try:
        statement: AnyStatement = _decoder.decode(raw)
    except (msgspec.DecodeError, RecursionError) as error:
        raise StatementError(str(error)) from error
    if _encoder.encode(statement) != raw:
        raise StatementError("the statement is not in its smallest encoding")
    return statement


def sign(statement: bytes, key: Ed25519PrivateKey) -> bytes:
    """Sign an encoded statement: 64 bytes."""
    return key.sign(STATEMENT_PREFIX + statement)


def verify(statement: bytes, signature: bytes, signing_key: bytes) -> bool:
    """Whether the signature of an encoded statement is by this key (32 raw bytes, checked by `keys` at intake)."""
    return verify_raw(STATEMENT_PREFIX + statement, signature, signing_key)


def verify_raw(message: bytes, signature: bytes, signing_key: bytes) -> bool:
    """Whether an Ed25519 signature over `message` is by this key."""
    try:
        _public_key(signing_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


@lru_cache(_KNOWN_KEYS)
def _public_key(signing_key: bytes) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(signing_key)


def join_preimage(
    *, group_id: bytes, invite_id: bytes, user_id: bytes, signing_key: bytes, rsa_thumbprint: bytes
) -> bytes:
    """What a joiner signs with an invite's key."""
    return JOIN_PREFIX + group_id + invite_id + user_id + signing_key + rsa_thumbprint


def key_preimage(*, user_id: bytes, signing_key: bytes, rsa_thumbprint: bytes) -> bytes:
    """What a new signing key signs to show that its holder replaces the old one with it."""
    return KEY_PREFIX + user_id + signing_key + rsa_thumbprint


class RosterEntry(msgspec.Struct, array_like=True, frozen=True, order=True):
    """One member as `roster_hash` sees them."""

    user_id: Id
    role: int
    signing_key: SigningKey
    rsa_thumbprint: Hash
    is_bot: bool


def roster_hash(roster: Iterable[RosterEntry]) -> bytes:
    """SHA-256 over the entries in the order of their user ids.

    Each entry is `user_id 16 ‖ role u8 ‖ signing_key 32 ‖ rsa_thumbprint 32 ‖ is_bot u8`.
    """
    digest = sha256()
    for member in sorted(roster, key=lambda entry: entry.user_id):
        digest.update(
            member.user_id
            + bytes((member.role,))
            + member.signing_key
            + member.rsa_thumbprint
            + bytes((member.is_bot,))
        )
    return digest.digest()

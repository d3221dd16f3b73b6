"""Content hashes and the hash chain of a group's log. Integers are big-endian; absent ids are zeros."""

from collections.abc import Sequence
from hashlib import sha256

from orbital_protocol import ZERO_ID

EVENT_PREFIX = b"orbital.v1.event\0"


def field_hash(field: bytes) -> bytes:
    """SHA-256 of one field of an event; it survives the field's erasure."""
    return sha256(field).digest()


def content_hash(parent_id: bytes, field_hashes: Sequence[bytes]) -> bytes:
    """Hash of an event's content: `SHA-256(parent_id ‖ n u8 ‖ field_hash_1 ‖ … ‖ field_hash_n)`."""
    return sha256(parent_id + bytes((len(field_hashes),)) + b"".join(field_hashes)).digest()


def control_content_hash(statement: bytes, signature: bytes) -> bytes:
    """Content hash of a control event: no parent, the fields are the statement and its signature."""
    return content_hash(ZERO_ID, (field_hash(statement), field_hash(signature)))


def media_fields(
    encrypted_metadata: bytes, encryption_iv: bytes, size_bytes: int, root: bytes
) -> tuple[bytes, bytes, bytes, bytes]:
    """The fields of a `media.posted`, in their order; the size is a u64. The parent is the thread."""
    return encrypted_metadata, encryption_iv, size_bytes.to_bytes(8, "big"), root


RELAY_CONTENT_HASH = content_hash(ZERO_ID, ())
"""Content hash of an event that the relay itself appended: no statement, no fields."""


def event_hash(  # noqa: PLR0913  the preimage has nine parts
    *,
    previous_hash: bytes,
    group_id: bytes,
    seq: int,
    kind: int,
    object_id: bytes,
    actor_id: bytes,
    key_epoch: int,
    created_at: int,
    content_hash: bytes,
) -> bytes:
    """Hash of an event, which chains it to the one before (zeros before the first).

    `seq` and `created_at` (microseconds since 1970 UTC) are u64, `key_epoch` is u32, `kind` u8.
    """
    return sha256(
        b"".join(
            (
                EVENT_PREFIX,
                previous_hash,
                group_id,
                seq.to_bytes(8, "big"),
                kind.to_bytes(1, "big"),
                object_id,
                actor_id,
                key_epoch.to_bytes(4, "big"),
                created_at.to_bytes(8, "big"),
                content_hash,
            )
        )
    ).digest()

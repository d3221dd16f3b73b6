"""Envelopes: what a member writes, signed, padded to a bucket, and sealed for one place in one group.

`0x01 ‖ nonce 12 ‖ AES-256-GCM(signature 64 ‖ length u32 ‖ content ‖ zeros) ‖ tag 16`. Moved elsewhere it does not open;
sealed by another member, its signature shows.
"""

from bisect import bisect_left
from enum import IntEnum
from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from orbital_client.crypto import primitives
from orbital_client.crypto.groupkeys import GroupKey
from orbital_client.errors import ForgedAuthor, Malformed
from orbital_protocol import ZERO_ID
from orbital_protocol.statements import verify_raw

BUCKETS: Final = (256, 1_024, 4_096, 16_384, 65_536)
"""Bytes of a plaintext: an envelope says no more of its content's length than which of these it needs."""

HEAD_BYTES: Final = 64 + 4
MAX_CONTENT_BYTES: Final = BUCKETS[-1] - HEAD_BYTES
PLACE_PREFIX: Final = b"orbital.v1"
CONTENT_PREFIX: Final = b"orbital.v1.content\0"

_SMALLER: Final = dict(zip(BUCKETS, (0, *BUCKETS), strict=False))  # the next smaller bucket
_ZEROS: Final = bytes(BUCKETS[-1])


class Field(IntEnum):
    """Which field of an event, or of a frame, an envelope is."""

    TITLE = 1
    BODY = 2
    NAME = 3
    METADATA = 4
    SIGNAL = 5


NO_KIND: Final = 0
"""The kind of what is no event: a group's name, a signal."""


class Place(msgspec.Struct, frozen=True):
    """Where an envelope belongs. Ids that a kind has not are zeros."""

    kind: int
    field: Field
    group_id: bytes
    author_id: bytes
    epoch: int
    object_id: bytes = ZERO_ID
    parent_id: bytes = ZERO_ID

    @property
    def aad(self) -> bytes:
        """`"orbital.v1" ‖ kind u8 ‖ field u8 ‖ group ‖ parent ‖ object ‖ author ‖ epoch u32`: 80 bytes."""
        return b"".join(
            (
                PLACE_PREFIX,
                bytes((self.kind, self.field)),
                self.group_id,
                self.parent_id,
                self.object_id,
                self.author_id,
                self.epoch.to_bytes(4, "big"),
            )
        )


def seal(
    key: GroupKey, place: Place, content: bytes, signing: Ed25519PrivateKey, *, nonce: bytes | None = None
) -> bytes:
    """Sign a content, pad it, and seal it. Raises ValueError for more than MAX_CONTENT_BYTES."""
    if len(content) > MAX_CONTENT_BYTES:
        raise ValueError(f"{len(content)} bytes are more than the {MAX_CONTENT_BYTES} that an envelope holds")
    aad = place.aad
    filled = HEAD_BYTES + len(content)
    bucket = BUCKETS[bisect_left(BUCKETS, filled)]
    plaintext = b"".join(
        (signing.sign(CONTENT_PREFIX + aad + content), len(content).to_bytes(4, "big"), content, bytes(bucket - filled))
    )
    return primitives.seal(key.content_key(place.kind, place.author_id), plaintext, aad, nonce=nonce)


class Unproven(msgspec.Struct, frozen=True):
    """What an opened envelope holds, as long as nobody has checked who wrote it."""

    _content: bytes
    _signed: bytes
    _signature: bytes

    def by(self, author_key: bytes) -> bytes:
        """The content, which the holder of this Ed25519 key has signed for its place. Raises ForgedAuthor."""
        if not verify_raw(self._signed, self._signature, author_key):
            raise ForgedAuthor("whoever is said to have written this has not signed it")
        return self._content


def open_sealed(key: GroupKey, place: Place, envelope: bytes) -> Unproven:
    """Open an envelope, and leave the signature for later.

    Raises UnknownVersion, BadSeal, and Malformed where it isn't padded as it must be.
    """
    aad = place.aad
    plaintext = primitives.unseal(key.content_key(place.kind, place.author_id), envelope, aad)
    content = _unpadded(plaintext)
    return Unproven(content, CONTENT_PREFIX + aad + content, plaintext[:64])


def unseal(key: GroupKey, place: Place, envelope: bytes, author_key: bytes) -> bytes:
    """The content, which the holder of this Ed25519 key has signed for this place.

    Raises what `open_sealed` and `Unproven.by` raise.
    """
    return open_sealed(key, place, envelope).by(author_key)


def _unpadded(plaintext: bytes) -> bytes:
    """The content of a bucket that is the smallest one for it, and otherwise zeros."""
    size = len(plaintext)
    smaller = _SMALLER.get(size)
    if smaller is None:
        raise Malformed("an envelope of a size that there is not")
    end = HEAD_BYTES + int.from_bytes(plaintext[64:HEAD_BYTES], "big")
    if not smaller < end <= size or not plaintext.endswith(_ZEROS[: size - end]):
        raise Malformed("an envelope that is not padded as it must be")
    return plaintext[HEAD_BYTES:end]

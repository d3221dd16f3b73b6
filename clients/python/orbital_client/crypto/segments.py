"""Files: padded so that their size says little, then sealed in segments, each bound to its place and the file's end.

Stored segment = AES-256-GCM(65,520 bytes of the padded file) ‖ tag 16, nonce = iv[0:7] ‖ index u32 ‖ last u8. A file
has a key of its own, which is in its sealed metadata.
"""

import secrets
from dataclasses import dataclass, field
from typing import Final, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from orbital_client.crypto.primitives import KEY_BYTES
from orbital_client.errors import BadSeal
from orbital_protocol.media import SEGMENT_BYTES

PREFIX: Final = b"orbital.v1.segment\0"
IV_RANDOM_BYTES: Final = 7
IV_BYTES: Final = 12
TAG_BYTES: Final = 16
PLAIN_BYTES: Final = SEGMENT_BYTES - TAG_BYTES


@dataclass(frozen=True)
class FileSealing:
    """A `Sealing` of one file. `size_bytes` is the file's true size."""

    group_id: bytes
    media_id: bytes
    size_bytes: int
    key: bytes = field(repr=False)
    encryption_iv: bytes

    plain_bytes = PLAIN_BYTES

    @classmethod
    def generate(cls, group_id: bytes, media_id: bytes, size_bytes: int) -> Self:
        """A new key for a new file; a file that is changed needs another one, and another id."""
        iv = secrets.token_bytes(IV_RANDOM_BYTES).ljust(IV_BYTES, b"\0")
        return cls(group_id, media_id, size_bytes, secrets.token_bytes(KEY_BYTES), iv)

    def stored_bytes(self, size_bytes: int) -> int:
        """How large a file of so many bytes is in the store."""
        return stored_bytes(size_bytes)

    def seal(self, index: int, is_last: bool, segment: bytes) -> bytes:
        """Pad and seal a segment's share of the file."""
        padded = segment.ljust(self._share(index), b"\0")
        return self._cipher.encrypt(self._nonce(index, is_last), padded, self._place)

    def open(self, index: int, is_last: bool, segment: bytes) -> bytes:
        """A segment's share of the file, without padding. Raises BadSeal."""
        try:
            padded = self._cipher.decrypt(self._nonce(index, is_last), segment, self._place)
        except InvalidTag:
            raise BadSeal("a piece of the file is not the one that was posted there") from None
        own = max(0, min(PLAIN_BYTES, self.size_bytes - index * PLAIN_BYTES))
        if padded[own:].strip(b"\0"):
            raise BadSeal("the file is larger than its author says")
        return padded[:own]

    def _share(self, index: int) -> int:
        return min(PLAIN_BYTES, padded_bytes(self.size_bytes) - index * PLAIN_BYTES)

    def _nonce(self, index: int, is_last: bool) -> bytes:
        return self.encryption_iv[:IV_RANDOM_BYTES] + index.to_bytes(4, "big") + bytes((is_last,))

    @property
    def _cipher(self) -> AESGCM:
        return AESGCM(self.key)

    @property
    def _place(self) -> bytes:
        return PREFIX + self.group_id + self.media_id


def stored_bytes(size_bytes: int) -> int:
    """How large a sealed file of so many bytes is: padded, and a tag for each segment, of which it has at least one."""
    padded = padded_bytes(size_bytes)
    return padded + TAG_BYTES * max(1, -(-padded // PLAIN_BYTES))


def padded_bytes(size_bytes: int) -> int:
    """Padmé (Nikitin et al., PoPETs 2019/4): of a size only its exponent and as many bits as that has are told.

    At most 12 % more than the file.
    """
    exponent = max(0, size_bytes.bit_length() - 1)
    loose = max(0, exponent - exponent.bit_length())
    mask = (1 << loose) - 1
    return (size_bytes + mask) & ~mask

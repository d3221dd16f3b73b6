"""A group's key of one epoch, and what is derived from it."""

import secrets
from dataclasses import dataclass, field
from functools import lru_cache
from hmac import compare_digest
from typing import Final, Self

from orbital_client.crypto import primitives
from orbital_client.crypto.primitives import KEY_BYTES, derive
from orbital_client.errors import Malformed, WrongKey

CONTENT_INFO: Final = b"orbital.v1.content\0"
COMMIT_INFO: Final = b"orbital.v1.commit\0"
PREVIOUS_INFO: Final = b"orbital.v1.previous\0"

_KNOWN_KEYS: Final = 4_096


@dataclass(frozen=True, slots=True)
class GroupKey:
    """K, 32 random bytes, in force from one rekey to the next."""

    group_id: bytes
    epoch: int
    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.secret) != KEY_BYTES:
            raise Malformed("a group key has 32 bytes")

    @classmethod
    def generate(cls, group_id: bytes, epoch: int) -> Self:
        """A new key."""
        return cls(group_id, epoch, secrets.token_bytes(KEY_BYTES))

    def content_key(self, kind: int, author_id: bytes) -> bytes:
        """The key that this author seals contents of this kind under."""
        return _content_key(self.secret, self.group_id, self.epoch, kind, author_id)

    @property
    def commitment(self) -> bytes:
        """What `group.created` and `group.rekeyed` say of the key: whoever got another one notices."""
        return derive(self.secret, COMMIT_INFO + self.epoch.to_bytes(4, "big"), self.group_id)

    def check(self, commitment: bytes) -> None:
        """Raise WrongKey unless this is the key that the group's log commits to."""
        if not compare_digest(self.commitment, commitment):
            raise WrongKey(f"this is not the key that the group agreed on for epoch {self.epoch}")

    def seal_previous(self, previous: Self, *, nonce: bytes | None = None) -> bytes:
        """The key of the epoch before under this one: where history is shared, the newest key opens all."""
        return primitives.seal(self._previous_key, previous.secret, self._place, nonce=nonce)

    def open_previous(self, sealed: bytes) -> Self:
        """The key of the epoch before. Raises as `unseal` does."""
        secret = primitives.unseal(self._previous_key, sealed, self._place)
        return type(self)(self.group_id, self.epoch - 1, secret)

    @property
    def _previous_key(self) -> bytes:
        return derive(self.secret, PREVIOUS_INFO)

    @property
    def _place(self) -> bytes:
        return self.group_id + self.epoch.to_bytes(4, "big")


@lru_cache(_KNOWN_KEYS)
def _content_key(secret: bytes, group_id: bytes, epoch: int, kind: int, author_id: bytes) -> bytes:
    info = CONTENT_INFO + epoch.to_bytes(4, "big") + kind.to_bytes(1, "big") + author_id
    return derive(secret, info, group_id)

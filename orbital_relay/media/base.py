"""What a store of files does. Names are the relay's own: never anything that a client sent.

A file is written in parts, each durable when `append` returns, and becomes a blob with `finish`. Whatever is asked
again must do no harm: any call may be cut short by the end of the process.
"""

import re
import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from orbital_relay.errors import OrbitalError, Unavailable

_KEY: Final = re.compile(r"[0-9a-f]{32}")


class StoreError(OrbitalError):
    """The store of files does not answer, or refuses; another time it may not."""


class BlobMissing(StoreError):
    """The store has no such blob, or not all of it."""


@dataclass(frozen=True, slots=True)
class Part:
    """Some bytes of a file on its way.

    No two parts that may be written at the same time have the same number, nor are they of the same generation: what
    a straggler writes gets in nobody's way. `tag` is what `append` returned.
    """

    number: int
    generation: int
    first_byte: int
    size_bytes: int
    tag: str = ""


@dataclass(frozen=True, slots=True)
class Stored:
    """What the store has under a key: a blob of that size, or (None) parts of one that was not finished."""

    key: str
    size_bytes: int | None


class Store(Protocol):
    """A store of files. Every method raises StoreError where the store is away."""

    part_bytes: int
    """Bytes that a part must have, unless it is the last of its file; 0: any number."""

    @property
    def identity(self) -> str:
        """Which store this is, once it is open: two relays have the same one if and only if these are the same."""

    async def open(self) -> None:
        """Get ready; raise StoreError where this store can't be used at all."""

    async def close(self) -> None:
        """Let go of everything."""

    async def begin(self, key: str) -> str:
        """Begin a file; return what the store wants to hear with every later call."""

    async def append(self, key: str, state: str, part: Part, pieces: Sequence[bytes | memoryview]) -> str:
        """Make a part durable; `first_byte` counts from the beginning of the file. Return its tag.

        Several may be written at once, after the first one of a generation.
        """

    async def discard(self, key: str, state: str, parts: Sequence[Part], *, whole: bool) -> None:
        """Take no more room for what `append` wrote in vain: the last parts of a generation, or (`whole`) all of it.

        Nothing is written under that generation any more, and no call of `finish` names these parts.
        """

    async def finish(self, key: str, state: str, parts: Sequence[Part]) -> None:
        """Make a blob of these parts, in the order of the file; raise BlobMissing where they are not there."""

    async def read(self, key: str, offset: int, length: int) -> bytes:
        """Bytes of a blob, as many as there are; raise BlobMissing where there is no such blob."""

    async def size(self, key: str) -> int | None:
        """How large a blob is; None where there is none."""

    async def delete(self, key: str) -> None:
        """Delete a blob, and all parts under its key."""

    async def delete_parts(self, key: str) -> None:
        """Delete all parts under a key, but not the blob."""

    def walk(self) -> AsyncIterator[Stored]:
        """Everything that the store has, in the order of the first two characters of the keys.

        Parts may come with the blobs, or in the same order after all of them.
        """

    async def url(self, key: str, ttl_s: int) -> str | None:
        """An address at which anybody may read this one blob for so long; None where the store has no such thing."""


def unavailable() -> Unavailable:
    """What clients are told of a StoreError."""
    return Unavailable("The store of files can't be reached.")


def new_key() -> str:
    """A name for a blob."""
    return secrets.token_hex(16)


def check_key(key: str) -> str:
    """Return the key; raise ValueError for what `new_key` can't have made, so that nothing else becomes a path."""
    if not _KEY.fullmatch(key):
        raise ValueError("not a blob's key")
    return key

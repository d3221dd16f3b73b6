"""The root of a file: one hash over all of its bytes, made of pieces of any size, checked segment by segment."""

from collections.abc import Iterable
from hashlib import sha256
from typing import Final

SEGMENT_BYTES: Final = 65_536
"""A file is a row of segments of this many bytes, as they are stored; the last one may be shorter."""


def segment_digests(data: bytes | bytearray | memoryview) -> bytes:
    """The SHA-256 of each segment of `data`, which begins with one, joined: 32 bytes each."""
    view = memoryview(data)
    return b"".join(sha256(view[at : at + SEGMENT_BYTES]).digest() for at in range(0, len(view), SEGMENT_BYTES))


def root_of(digests: Iterable[bytes]) -> bytes:
    """The root of a file: SHA-256 over the digests of its segments, in their order. An empty file has none of them."""
    root = sha256()
    for joined in digests:
        root.update(joined)
    return root.digest()


class Root:
    """Makes the root of a file whose bytes come in pieces of any size."""

    def __init__(self) -> None:
        self._root = sha256()
        self._segment = sha256()
        self._filled = 0

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Go on with these bytes."""
        view = memoryview(data)
        at = 0
        while at < len(view):
            step = min(len(view) - at, SEGMENT_BYTES - self._filled)
            self._segment.update(view[at : at + step])
            self._filled += step
            at += step
            if self._filled == SEGMENT_BYTES:
                self._end_segment()

    def digest(self) -> bytes:
        """The root, if no more comes: 32 bytes."""
        root = self._root.copy()
        if self._filled:
            root.update(self._segment.digest())
        return root.digest()

    def _end_segment(self) -> None:
        self._root.update(self._segment.digest())
        self._segment = sha256()
        self._filled = 0

"""The seam for encryption: how a file's plaintext becomes the bytes that the relay keeps, segment by segment.

A file is kept as segments of 65,536 bytes, the last of which may be shorter. `Plain`, the default, leaves them as they
are: what was not encrypted before, the relay can read.
"""

from typing import Final, Protocol

from orbital_protocol.media import SEGMENT_BYTES


class Sealing(Protocol):
    """Seals one file's segments on their way up, and opens them on their way down. Called in threads.

    Sealing the same again must give the same bytes: whoever goes on with an upload begins again at the file's start.
    """

    @property
    def encryption_iv(self) -> bytes:
        """12 bytes that are published with the file."""

    @property
    def plain_bytes(self) -> int:
        """Plaintext bytes of every segment but the last ones, which get what is left; padding may leave them none."""

    def stored_bytes(self, size_bytes: int) -> int:
        """What a file of so many plaintext bytes has when it is sealed; its segments are counted from that."""

    def seal(self, index: int, is_last: bool, segment: bytes) -> bytes:
        """Make the stored segment: 65,536 bytes, the last one whatever is missing to `stored_bytes`."""

    def open(self, index: int, is_last: bool, segment: bytes) -> bytes:
        """The plaintext of a stored segment, without what was padding. Raises what it likes for a forged one."""


class Plain:
    """Seals nothing."""

    encryption_iv: Final = bytes(12)
    plain_bytes: Final = SEGMENT_BYTES

    def stored_bytes(self, size_bytes: int) -> int:
        return size_bytes

    def seal(self, index: int, is_last: bool, segment: bytes) -> bytes:
        return segment

    def open(self, index: int, is_last: bool, segment: bytes) -> bytes:
        return segment


def count_segments(stored_bytes: int) -> int:
    """Of how many segments a stored file is."""
    return -(-stored_bytes // SEGMENT_BYTES)

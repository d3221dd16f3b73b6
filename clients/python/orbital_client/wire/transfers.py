"""What uploads and downloads have in common: how large their pieces are, and how many go on at once."""

import asyncio
from typing import Final

from orbital_protocol.media import SEGMENT_BYTES

PATIENCE_S: Final = 300.0
"""How long a transfer goes on trying without any progress."""

_QUICK_S: Final = 0.25
_UPLOADS: Final = 2
_READS: Final = 8


class Pace:
    """Pieces begin small and double as long as the answers come quickly: a slow line stays free for other requests."""

    def __init__(self) -> None:
        self.piece_bytes = SEGMENT_BYTES

    def took(self, seconds: float, most: int) -> None:
        """A piece was answered after so long; the relay takes `most` bytes."""
        if seconds <= _QUICK_S:
            self.piece_bytes = min(self.piece_bytes * 2, most)


class Places:
    """How much of a client's transfers goes on at once: the connection's slots are for other requests too."""

    def __init__(self) -> None:
        self.uploads = asyncio.Semaphore(_UPLOADS)
        self.reads = asyncio.Semaphore(_READS)

"""Pages of logs, as many who come back at once want them: read once, encoded once, kept for a few seconds.

A log that has come to a certain seq says one thing: whatever changes what its readers see, an erasure too, is an event.
So a page is known by its group, the position that it follows, and the seq that the log had when it was read. Files are
the exception: they expire by the clock, and a page with one is not kept (docs/adr/0026-pages-for-many.md).
"""

import asyncio
from collections.abc import Sequence
from typing import Final

from orbital_protocol import codec
from orbital_protocol.codes import Kind
from orbital_protocol.frames import Event
from orbital_relay.ring import Entry

_KEPT_BYTES: Final = 8 * 1024 * 1024  # of frames; the events themselves are as much again
_KEPT_S: Final = 5

Place = tuple[bytes, int, int]
"""A group's id, the position that a page follows, and the seq of the log's head."""


class Page:
    """What comes next in a log. `is_last`: it comes as far as the head."""

    __slots__ = ("events", "frames", "is_last")

    def __init__(self, events: Sequence[Event], *, is_last: bool) -> None:
        self.events = events
        self.is_last = is_last
        self.frames = b"".join([codec.encode(event) for event in events])

    def bytes_for(self, kinds: frozenset[int] | None) -> bytes:
        """All of its frames, one after the other; of kinds that are filtered out everything but the ciphertext."""
        if kinds is None:
            return self.frames
        return b"".join([Entry(event).bytes_for(kinds) for event in self.events])


NOTHING: Final = Page((), is_last=True)
"""What comes next where the log's head is."""


class Pages:
    """What was read in the last few seconds, within a bound."""

    def __init__(self, max_bytes: int = _KEPT_BYTES) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._pages: dict[Place, Page] = {}

    def find(self, place: Place) -> Page | None:
        """The page, if it was kept; where the place is the log's head, nothing comes next."""
        _, after_seq, last_seq = place
        return NOTHING if after_seq == last_seq else self._pages.get(place)

    def keep(self, place: Place, page: Page) -> None:
        """Keep a page for others, if there is room. An empty one counts towards no bound, and nobody looks for it."""
        if not page.events or place in self._pages or self._bytes + len(page.frames) > self._max_bytes:
            return
        if any(event.kind == Kind.MEDIA_POSTED for event in page.events):
            return
        if not self._pages:
            asyncio.get_running_loop().call_later(_KEPT_S, self._forget)
        self._pages[place] = page
        self._bytes += len(page.frames)

    def _forget(self) -> None:
        self._pages.clear()
        self._bytes = 0

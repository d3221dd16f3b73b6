"""Events that were committed here and wait for fan-out, encoded once. One byte budget for all groups.

What falls out of the ring, or was committed on another relay, fan-out reads from the store.
"""

import time
from collections import OrderedDict

from msgspec.structs import replace

from orbital_protocol import codec
from orbital_protocol.chain import field_hash, media_fields
from orbital_protocol.codes import Kind
from orbital_protocol.frames import Event

CONTENT_KINDS = frozenset({Kind.THREAD_POSTED, Kind.REPLY_POSTED, Kind.ANNOTATION_POSTED, Kind.MEDIA_POSTED})
"""Kinds that a filter may reduce to headers. Whatever changes the group always comes whole."""


class Entry:
    """One event, with its bytes as a frame and, made when first asked for, the bytes of its header."""

    __slots__ = ("_header", "event", "frame", "made_at")

    def __init__(self, event: Event) -> None:
        self.event = event
        self.made_at = time.monotonic()
        self.frame = codec.encode(event)
        self._header: bytes | None = None

    def bytes_for(self, kinds: frozenset[int] | None) -> bytes:
        """The frame; for a subscriber that filters this kind out, everything but its ciphertext."""
        if kinds is None or self.event.kind in kinds or self.event.kind not in CONTENT_KINDS:
            return self.frame
        if self._header is None:
            self._header = codec.encode(header_of(self.event))
        return self._header


def content_of(event: Event) -> tuple[bytes, ...]:
    """The fields of a post, in the order in which they are hashed."""
    if event.encrypted_metadata is not None and event.encryption_iv is not None and event.root is not None:
        return media_fields(event.encrypted_metadata, event.encryption_iv, event.size_bytes or 0, event.root)
    return tuple(field for field in (event.encrypted_title, event.encrypted_body) if field is not None)


def header_of(event: Event) -> Event:
    """The event without its content; the hashes of its fields stand in for it."""
    if event.field_hashes is not None:
        return event
    return replace(
        event,
        encrypted_title=None,
        encrypted_body=None,
        encrypted_metadata=None,
        encryption_iv=None,
        size_bytes=None,
        root=None,
        field_hashes=[field_hash(field) for field in content_of(event)],
    )


class Ring:
    """Entries by group and seq; the oldest are dropped where the budget ends."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._bytes = 0
        self._entries: OrderedDict[tuple[bytes, int], Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, entry: Entry) -> None:
        """Keep an entry until it is taken or squeezed out."""
        key = (entry.event.group_id, entry.event.seq)
        if key in self._entries:
            return
        self._entries[key] = entry
        self._bytes += len(entry.frame)
        while self._bytes > self._limit_bytes:
            _, oldest = self._entries.popitem(last=False)
            self._bytes -= len(oldest.frame)

    def take(self, group_id: bytes, seq: int) -> Entry | None:
        """Take an entry out, if it is here."""
        entry = self._entries.pop((group_id, seq), None)
        if entry is not None:
            self._bytes -= len(entry.frame)
        return entry

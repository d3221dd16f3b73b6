"""Every event of a group's log that this client has verified: what it was, and its hash."""

from typing import Protocol

import msgspec
from msgspec.structs import replace

from orbital_protocol import ZERO_HASH, ZERO_ID


class Known(msgspec.Struct, frozen=True):
    """An event, without what it says. `counts`: nothing was wrong with it. `erased_at`: the seq that erased it."""

    seq: int
    hash: bytes
    kind: int
    object_id: bytes
    actor_id: bytes
    parent_id: bytes = ZERO_ID
    counts: bool = True
    erased_at: int = 0


class Index(Protocol):
    """One group's events. `by_id` finds those of members, whose ids are unique, not the relay's own."""

    def add(self, known: Known) -> None: ...

    def by_id(self, object_id: bytes) -> Known | None: ...

    def by_seq(self, seq: int) -> Known | None: ...

    def hash_at(self, seq: int) -> bytes | None:
        """The hash of the event at this seq, zeros before the first; None where there is none."""

    def erase(self, object_id: bytes, seq: int) -> None:
        """What this object said was erased by the event at this seq."""


class MemoryIndex:
    """An index that ends with the process."""

    def __init__(self) -> None:
        self._events: list[Known] = []
        self._seqs: dict[bytes, int] = {}

    def add(self, known: Known) -> None:
        self._events.append(known)
        if known.actor_id != ZERO_ID:
            self._seqs.setdefault(known.object_id, known.seq)

    def by_id(self, object_id: bytes) -> Known | None:
        seq = self._seqs.get(object_id)
        return None if seq is None else self._events[seq - 1]

    def by_seq(self, seq: int) -> Known | None:
        return self._events[seq - 1] if 0 < seq <= len(self._events) else None

    def hash_at(self, seq: int) -> bytes | None:
        if seq == 0:
            return ZERO_HASH
        known = self.by_seq(seq)
        return None if known is None else known.hash

    def erase(self, object_id: bytes, seq: int) -> None:
        at = self._seqs[object_id] - 1
        self._events[at] = replace(self._events[at], erased_at=seq)

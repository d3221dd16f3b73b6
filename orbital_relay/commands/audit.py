"""Whether the store of files and the database say the same, while relays go on writing to both.

A blob has its name in the database before its first byte is stored, and keeps it, as that of an upload, a file, or what
is to be deleted, until the store has deleted it. So the store is listed first: what it has then, and the database
doesn't name afterwards, is a stray, unless it is gone when one looks again. A file's row is read before the store is
asked for its blob, and again after it: a row that is still there had no blob.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Final, TypeVar

from orbital_relay.admin import COMMAND_LINE
from orbital_relay.media.base import Store, Stored
from orbital_relay.store import media as media_store
from orbital_relay.store import operators as store
from orbital_relay.store.operators import NamedBlob, Skew
from orbital_relay.store.pool import Connection
from orbital_relay.store.retries import retried

T = TypeVar("T")

_SLICES: Final = frozenset(f"{number:02x}" for number in range(256))
_FINDINGS_MAX: Final = 10_000
_SETTLE_S: Final = 2.0
_BATCH: Final = 50

Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Lost:
    """A file whose blob is not there (`stored_bytes` is None), or has another size."""

    media_id: bytes
    group_id: bytes
    key: str
    size_bytes: int
    stored_bytes: int | None


@dataclass(frozen=True, slots=True)
class Stray:
    """What the store has for nothing: a `blob` or `parts` that nothing names, or `leftovers` of a committed file.

    `size_bytes` is a blob's.
    """

    what: str
    key: str
    size_bytes: int | None


@dataclass(slots=True)
class Findings:
    """What is wrong. `blobs` were listed; `more`: there were so many findings that the look ended before its end."""

    lost: list[Lost] = field(default_factory=list)
    strays: list[Stray] = field(default_factory=list)
    quotas: list[Skew] = field(default_factory=list)
    blobs: int = 0
    more: bool = False

    def __len__(self) -> int:
        return len(self.lost) + len(self.strays) + len(self.quotas)


class Audit:
    """Looks for what is wrong, and mends it. `places` requests to the store are made at once."""

    def __init__(self, connection: Connection, media: Store, places: int, advance: Advance) -> None:
        self._connection = connection
        self._media = media
        self._places = places
        self._advance = advance

    async def look(self) -> Findings:
        """Find what is wrong, up to some ten thousand of each kind; raise StoreError where the store is away."""
        found = Findings()
        suspects: dict[tuple[str, bool], Stray] = {}
        unseen = set(_SLICES)
        async with aclosing(self._listed()) as slices:
            async for prefix, listed in slices:
                await self._compare(prefix, listed, found, suspects, with_files=prefix in unseen)
                unseen.discard(prefix)
                if found.more:
                    break
        for prefix in sorted(unseen):
            if not found.more:
                await self._compare(prefix, [], found, suspects, with_files=True)
        if suspects:
            found.strays = await self._confirmed(suspects)
        found.quotas = await store.list_skewed_quotas(self._connection, _FINDINGS_MAX)
        found.more = found.more or len(found.quotas) == _FINDINGS_MAX
        return found

    async def mend(self, found: Findings) -> None:
        """Delete strays, expire lost files, make quotas what they should be."""
        for strays in _batches(found.strays, self._places):
            await asyncio.gather(*(self._remove(stray) for stray in strays))
        for files in _batches(found.lost, _BATCH):
            await retried(partial(self._expire, [file.media_id for file in files]))
        for skew in found.quotas:
            async with self._connection.transaction():
                await store.mend_quota(self._connection, skew.group_id)

    # ── looking ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _listed(self) -> AsyncGenerator[tuple[str, list[Stored]], None]:
        """What the store has, in slices of names that begin alike: memory for one is all it takes."""
        listed: list[Stored] = []
        async for stored in self._media.walk():
            if listed and listed[0].key[:2] != stored.key[:2]:
                yield listed[0].key[:2], listed
                listed = []
            listed.append(stored)
        if listed:
            yield listed[0].key[:2], listed

    async def _compare(
        self,
        prefix: str,
        listed: list[Stored],
        found: Findings,
        suspects: dict[tuple[str, bool], Stray],
        *,
        with_files: bool,
    ) -> None:
        """Compare a slice with what the database names of it."""
        named = await store.list_named_blobs(self._connection, prefix)
        by = {blob.key: blob.by for blob in named}
        for stored in listed:
            if what := _stray(stored, by.get(stored.key)):
                suspects[stored.key, stored.size_bytes is None] = Stray(what, stored.key, stored.size_bytes)
        if with_files:
            sizes = {stored.key: stored.size_bytes for stored in listed if stored.size_bytes is not None}
            doubtful = [blob for blob in named if blob.by == "file" and sizes.get(blob.key) != blob.size_bytes]
            for files in _batches(doubtful, self._places):
                found.lost += await self._lost(files)
        blobs = sum(stored.size_bytes is not None for stored in listed)
        found.blobs += blobs
        found.more = max(len(suspects), len(found.lost)) >= _FINDINGS_MAX
        self._advance(blobs)

    async def _lost(self, files: Sequence[NamedBlob]) -> list[Lost]:
        """Those of some files whose blobs are not what their rows say."""
        sizes = await asyncio.gather(*(self._media.size(file.key) for file in files))
        wrong: dict[bytes, Lost] = {}
        for file, stored_bytes in zip(files, sizes, strict=True):
            if file.media_id and file.group_id and file.size_bytes is not None and stored_bytes != file.size_bytes:
                wrong[file.media_id] = Lost(file.media_id, file.group_id, file.key, file.size_bytes, stored_bytes)
        if not wrong:
            return []
        return [wrong[media_id] for media_id in await store.list_files_among(self._connection, list(wrong))]

    async def _confirmed(self, suspects: dict[tuple[str, bool], Stray]) -> list[Stray]:
        """Those that are still there, and still named by nothing, when one looks again a moment later."""
        # A relay that learns that an upload is gone takes back what it has just written of it; it needs a moment.
        await asyncio.sleep(_SETTLE_S)
        again: dict[tuple[str, bool], Stored] = {}
        async for stored in self._media.walk():
            if (place := (stored.key, stored.size_bytes is None)) in suspects:
                again[place] = stored
        by: dict[str, str] = {}
        for prefix in sorted({key[:2] for key, _ in again}):
            by |= {blob.key: blob.by for blob in await store.list_named_blobs(self._connection, prefix)}
        strays = [(stored, _stray(stored, by.get(stored.key))) for stored in again.values()]
        return [Stray(what, stored.key, stored.size_bytes) for stored, what in strays if what]

    # ── mending ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _remove(self, stray: Stray) -> None:
        if stray.what == "leftovers":
            await self._media.delete_parts(stray.key)
        else:
            await self._media.delete(stray.key)

    async def _expire(self, media_ids: list[bytes]) -> None:
        async with self._connection.transaction():
            await media_store.expire(self._connection, COMMAND_LINE, len(media_ids), media_ids)


def _stray(stored: Stored, named_by: str | None) -> str | None:
    """What kind of a stray this would be, given what names it; None where it has its place."""
    if named_by is None:
        return "parts" if stored.size_bytes is None else "blob"
    return "leftovers" if named_by == "file" and stored.size_bytes is None else None


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]

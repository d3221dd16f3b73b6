"""How far the application has read in each group."""

import asyncio
import logging

from orbital_client.wire.stores import CursorStore
from orbital_protocol.frames import Cursor

log = logging.getLogger("orbital_client")


class Bookmarks:
    """The cursors of a store, saved again whenever one has changed, one save at a time."""

    def __init__(self, store: CursorStore) -> None:
        self._store = store
        self._cursors: dict[bytes, Cursor] = {}
        self._unsaved = False
        self._closing = False
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Load the cursors, and keep them saved from now on."""
        self._cursors = {cursor.group_id: cursor for cursor in await self._store.load()}
        self._task = asyncio.create_task(self._keep_saved(), name="orbital-cursors")

    async def close(self) -> None:
        """Save what isn't saved yet, and end."""
        if self._task is not None:
            self._closing = True
            self._wake.set()
            await asyncio.wait({self._task})

    def all(self) -> list[Cursor]:
        return list(self._cursors.values())

    def get(self, group_id: bytes) -> Cursor | None:
        return self._cursors.get(group_id)

    def put(self, cursor: Cursor) -> None:
        self._cursors[cursor.group_id] = cursor
        self._change()

    def move(self, cursor: Cursor) -> None:
        """The same for a group that is followed; for any other nothing is kept."""
        if cursor.group_id in self._cursors:
            self.put(cursor)

    def drop(self, group_id: bytes) -> None:
        if self._cursors.pop(group_id, None):
            self._change()

    def _change(self) -> None:
        if not self._unsaved:
            self._unsaved = True
            self._wake.set()

    async def _keep_saved(self) -> None:
        while self._unsaved or not self._closing:
            await self._wake.wait()
            self._wake.clear()
            if self._unsaved:
                self._unsaved = False
                await self._save()

    async def _save(self) -> None:
        try:
            await self._store.save(self.all())
        except OSError:
            log.exception("the cursors could not be saved; the next change tries again")

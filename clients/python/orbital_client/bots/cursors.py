"""How far a bot has got in each group: kept at the relay under a name, or in the bot's own store."""

import asyncio
import contextlib
import logging
from typing import Final

from orbital_client.client import Client
from orbital_client.errors import ClientClosed, OrbitalError
from orbital_client.group import Group
from orbital_protocol.frames import Cursor, CursorOk, CursorPut

log = logging.getLogger("orbital_client.bots")

_LATER_S: Final = 0.2
_CLOSE_S: Final = 5.0
_HELD: Final = 1_000


class Cursors:
    """Cursors only go forward, and are kept soon after. A message that can't be opened yet holds one back."""

    def __init__(self, client: Client, name: str, *, is_local: bool) -> None:
        self._client = client
        self._name = name
        self._is_local = is_local
        self._kept: dict[bytes, Cursor] = {}
        self._moved: dict[bytes, Cursor] = {}
        self._held: dict[bytes, dict[int, Cursor]] = {}
        self._keeping: asyncio.Task[None] | None = None

    async def load(self, group: Group) -> Cursor:
        """Where the bot stopped; for a group that it has not read yet, the log's head."""
        cursor = await self._read(group)
        if cursor is None or cursor.seq == 0:
            cursor = group.cursor
            self._moved[group.id] = cursor
            await self._keep()
        self._kept[group.id] = cursor
        return cursor

    async def _read(self, group: Group) -> Cursor | None:
        if self._is_local:
            return self._client.store.cursor(group.id, self._name)
        found = await group.wire.get_cursor(self._name)
        return Cursor(group_id=group.id, seq=found.seq, hash=found.hash)

    def hold(self, cursor: Cursor) -> None:
        """This message is still to be handled: the cursor stays before it."""
        held = self._held.setdefault(cursor.group_id, {})
        if len(held) < _HELD:
            held[cursor.seq] = self._moved.get(cursor.group_id) or self._kept[cursor.group_id]

    def move(self, cursor: Cursor) -> None:
        """Everything up to here was handled, but for what is held."""
        held = self._held.get(cursor.group_id, {})
        held.pop(cursor.seq, None)
        before = self._moved.get(cursor.group_id) or self._kept[cursor.group_id]
        to = held[min(held)] if held else max(cursor, before, key=lambda at: at.seq)
        if to.seq > before.seq:
            self._moved[cursor.group_id] = to
            if self._keeping is None or self._keeping.done():
                self._keeping = asyncio.create_task(self._keep_soon(), name="orbital-bot-cursors")

    async def _keep_soon(self) -> None:
        while self._moved != self._kept:
            await asyncio.sleep(_LATER_S)
            try:
                await self._keep()
            except ClientClosed:
                return
            except OrbitalError as error:
                log.warning("the cursors could not be kept yet: %s", error)

    async def _keep(self) -> None:
        for group_id, cursor in list(self._moved.items()):
            if self._kept.get(group_id) == cursor:
                continue
            if self._is_local:
                self._client.store.put_cursor(self._name, cursor)
                self._client.store.commit()
            else:
                request = CursorPut(id=0, group_id=group_id, name=self._name, seq=cursor.seq, hash=cursor.hash)
                await self._client.wire.request(request, CursorOk)
            self._kept[group_id] = cursor

    async def close(self) -> None:
        """Keep what is not kept yet."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        with contextlib.suppress(OrbitalError, TimeoutError):
            async with asyncio.timeout(_CLOSE_S):
                await self._keep()

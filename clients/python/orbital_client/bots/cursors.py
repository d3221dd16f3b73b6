"""How far a bot has got in each group: kept at the relay under a name, or in the bot's own store."""

import asyncio
import contextlib
import logging
from typing import Final

from orbital_client.client import Client
from orbital_client.errors import ClientClosed, NotFound, OrbitalError
from orbital_client.group import Group
from orbital_client.wire.backoff import Backoff
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
        self._reached: dict[bytes, Cursor] = {}
        self._held: dict[bytes, dict[int, Cursor]] = {}
        self._keeping: asyncio.Task[None] | None = None

    async def load(self, group: Group) -> Cursor:
        """Where the bot stopped; for a group that it has not read yet, the log's head."""
        if group.id not in self._kept:
            cursor = await self._read(group)
            if cursor is None or cursor.seq == 0:
                cursor = group.cursor
                await self._put(cursor)
            self._kept[group.id] = cursor
        return self.at(group.id)

    def at(self, group_id: bytes) -> Cursor:
        """Up to where everything was handled. Raises KeyError for a group of which that is not known yet."""
        return self._moved.get(group_id) or self._kept[group_id]

    def knows(self, group_id: bytes) -> bool:
        """Whether it is known up to where everything was handled."""
        return group_id in self._kept

    async def _read(self, group: Group) -> Cursor | None:
        if self._is_local:
            return self._client.store.cursor(group.id, self._name)
        found = await group.wire.get_cursor(self._name)
        return Cursor(group_id=group.id, seq=found.seq, hash=found.hash)

    def hold(self, cursor: Cursor) -> None:
        """This message is still to be handled: the cursor stays before it."""
        held = self._held.setdefault(cursor.group_id, {})
        if len(held) < _HELD:
            held[cursor.seq] = self.at(cursor.group_id)

    def move(self, cursor: Cursor) -> None:
        """Everything up to here was handled, but for what is held."""
        held = self._held.get(cursor.group_id, {})
        held.pop(cursor.seq, None)
        before = self.at(cursor.group_id)
        reached = max(cursor, self._reached.get(cursor.group_id, before), key=lambda at: at.seq)
        self._reached[cursor.group_id] = reached
        to = held[min(held)] if held else reached
        if to.seq > before.seq:
            self._moved[cursor.group_id] = to
            if self._keeping is None or self._keeping.done():
                self._keeping = asyncio.create_task(self._keep_soon(), name="orbital-bot-cursors")

    async def keep(self, cursor: Cursor) -> None:
        """Everything up to here was handled, and that is durable when this returns. Never backwards."""
        if cursor.seq > self.at(cursor.group_id).seq:
            self._moved[cursor.group_id] = cursor
        await self._keep()

    async def _keep_soon(self) -> None:
        backoff = Backoff()
        delay_s = _LATER_S
        while self._is_ahead():
            await asyncio.sleep(delay_s)
            try:
                await self._keep()
                delay_s = _LATER_S
            except ClientClosed:
                return
            except OrbitalError as error:
                delay_s = _LATER_S + backoff.next_s()
                log.warning("the cursors could not be kept yet: %s", error)

    def _is_ahead(self) -> bool:
        return any(self._kept.get(group_id) != cursor for group_id, cursor in self._moved.items())

    async def _keep(self) -> None:
        for group_id, cursor in list(self._moved.items()):
            if self._kept.get(group_id) != cursor:
                with contextlib.suppress(NotFound):  # the bot is in this group no more: nothing is left to keep
                    await self._put(cursor)
                self._kept[group_id] = cursor

    async def _put(self, cursor: Cursor) -> None:
        if self._is_local:
            self._client.store.put_cursor(self._name, cursor)
            self._client.store.commit()
        else:
            request = CursorPut(id=0, group_id=cursor.group_id, name=self._name, seq=cursor.seq, hash=cursor.hash)
            await self._client.wire.request(request, CursorOk)

    async def close(self) -> None:
        """Keep what is not kept yet."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        with contextlib.suppress(OrbitalError, TimeoutError):
            async with asyncio.timeout(_CLOSE_S):
                await self._keep()

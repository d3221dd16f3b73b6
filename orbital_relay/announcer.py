"""What this relay tells the others outside of any transaction: signals. Batched, bounded, lost rather than late."""

import asyncio
from collections import deque
from typing import Final

from orbital_relay.errors import RequestError
from orbital_relay.store import live as live_store
from orbital_relay.store.pool import Database

_WAITING: Final = 1_000
_BATCH: Final = 100


class Announcer:
    """A queue of payloads (see `hints`) and the task that sends them."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: deque[str] = deque(maxlen=_WAITING)  # the oldest are dropped: a late signal is worth nothing
        self._has_some = asyncio.Event()

    def announce(self, payload: str) -> None:
        """Tell the other relays, soon and perhaps."""
        self._waiting.append(payload)
        self._has_some.set()

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            await self._has_some.wait()
            self._has_some.clear()
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
                try:
                    async with self._database.connection() as connection:
                        await live_store.notify_many(connection, batch)
                except RequestError:
                    continue  # the database is away, and so is their moment

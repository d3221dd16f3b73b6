"""What `events()` hands out, and the bounded queue that it waits in."""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Final

from orbital_client.errors import LogBroken, RequestFailed
from orbital_protocol.frames import CursorMoved, Event, GroupGone, JoinRequested, Live, Signal


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The connection ended, with this WebSocket close code; the client will connect again."""

    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class Reconnected:
    """The client is connected again. Whatever was missed follows, in order."""


Item = Event | Live | GroupGone | JoinRequested | CursorMoved | Signal | Disconnected | Reconnected
Finding = LogBroken | RequestFailed
_FINDINGS: Final = (LogBroken, RequestFailed)


class Inbox:
    """Items between the socket and `events()`, bounded in bytes.

    Full at `max_bytes`, and no longer full at half of it: then `on_room` is called.
    """

    def __init__(self, max_bytes: int, on_room: Callable[[], None]) -> None:
        self.is_full = False
        self._max_bytes = max_bytes
        self._on_room = on_room
        self._items: deque[tuple[Item | Finding, int]] = deque()
        self._bytes = 0
        self._arrived = asyncio.Event()

    def put(self, item: Item | Finding, size: int = 0) -> None:
        """Append; who calls stops in time once it is full."""
        self._items.append((item, size))
        self._bytes += size
        self.is_full = self.is_full or self._bytes >= self._max_bytes
        self._arrived.set()

    def take(self, most: int) -> list[Item] | Finding:
        """The oldest items, all that are there but at most so many; a finding alone, when its turn has come."""
        items: list[Item] = []
        for item, size in islice(self._items, most):
            if isinstance(item, _FINDINGS):
                if not items:
                    self._items.popleft()
                    return item
                break
            items.append(item)
            self._bytes -= size
        for _ in items:
            self._items.popleft()
        if self.is_full and self._bytes <= self._max_bytes // 2:
            self.is_full = False
            self._on_room()
        return items

    async def arrival(self) -> None:
        """Wait until something may have arrived, or `wake` is called."""
        self._arrived.clear()
        await self._arrived.wait()

    def wake(self) -> None:
        """Let whoever waits in `arrival` look again."""
        self._arrived.set()

"""A bot's groups: each is read in its order by a task of its own, from where the bot stopped."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from orbital_client.bots.calling import described
from orbital_client.bots.cursors import Cursors
from orbital_client.client import Client
from orbital_client.errors import ClientClosed, Closed, LogBroken, NotAuthenticated, OrbitalError
from orbital_client.group import Group
from orbital_client.messages import Item
from orbital_client.wire.backoff import Backoff

log = logging.getLogger("orbital_client.bots")

LOOK_S: Final = 30.0
"""How often it is asked which groups there are; nothing tells that one was brought into another."""

_STABLE_S: Final = 60.0

Handle = Callable[[Group, Item], Awaitable[None]]


class Following:
    """The tasks that read."""

    def __init__(self, client: Client, cursors: Cursors, handle: Handle) -> None:
        self._client = client
        self._cursors = cursors
        self._handle = handle
        self._is_stopping = False
        self._tasks: dict[bytes, asyncio.Task[None]] = {}
        self._started: dict[bytes, asyncio.Event] = {}

    def update(self) -> None:
        """Follow every group that the client is in and that is not followed yet."""
        for group in self._client.groups:
            if group.id not in self._tasks and not self._is_stopping:
                self._started[group.id] = asyncio.Event()
                self._tasks[group.id] = asyncio.create_task(
                    self._follow(group, self._started[group.id]), name=f"orbital-bot-{group.id.hex()}"
                )

    async def started(self) -> None:
        """Wait until it is known from where on each group is read, as far as it can be."""
        await asyncio.gather(*(started.wait() for started in self._started.values()))

    async def look(self) -> None:
        """Ask now and then for groups that are new, and follow them."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self._client.refresh()
            except OrbitalError as error:
                log.info("could not ask for new groups: %s", error)
            self.update()

    def finish(self) -> None:
        """Read no further than what is being handled."""
        self._is_stopping = True

    async def stop(self) -> None:
        """End all tasks."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, group: Group, started: asyncio.Event) -> None:
        """Until the bot is in the group no more, or its log is not to be trusted."""
        loop = asyncio.get_running_loop()
        backoff, since = Backoff(), loop.time()
        try:
            while not await self._is_over(group, started):
                started.set()
                if loop.time() - since > _STABLE_S:
                    backoff.reset()
                await asyncio.sleep(backoff.next_s())
                since = loop.time()
        except LogBroken as error:
            log.error("group %s is followed no more: %s", group.id.hex(), error)
        except Exception as error:
            log.error("group %s is followed no more: %s", group.id.hex(), described(error))
        finally:
            started.set()

    async def _is_over(self, group: Group, started: asyncio.Event) -> bool:
        """Read until it ends for good; False where it may go on after what went wrong."""
        try:
            await self._read(group, started)
        except (ClientClosed, Closed, NotAuthenticated):
            return True
        except LogBroken:
            raise
        except (OrbitalError, TimeoutError) as error:
            log.warning("group %s: trying again after %s", group.id.hex(), error)
            return False
        if group.gone is not None:
            log.info("group %s is seen no more (%s)", group.id.hex(), group.gone)
            self._tasks.pop(group.id, None)  # it is followed again if the bot comes back
        return True

    async def _read(self, group: Group, started: asyncio.Event) -> None:
        await group.live()
        after = await self._cursors.load(group)
        started.set()
        async for item in group.events(after):
            if self._is_stopping:
                return
            await self._handle(group, item)

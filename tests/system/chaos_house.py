"""What `chaos` kills: a PostgreSQL and two relays on it, each of which comes back."""

import os
import random
import shutil
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from orbital_relay.embedded import EmbeddedPostgres
from orbital_relay.store import migrate
from tests.people import connected
from tests.postgres import QUICK_SETTINGS, open_directory
from tests.relays import RunningRelay, running_relay


@dataclass
class House:
    """A PostgreSQL and two relays, each of which can be killed and comes back."""

    chance: random.Random
    directory: Path
    server: EmbeddedPostgres
    dsn: str
    relays: list[RunningRelay] = field(default_factory=list)
    stacks: list[AsyncExitStack] = field(default_factory=list)
    kills: Counter[str] = field(default_factory=Counter)

    def urls(self) -> list[str]:
        return [relay.url for relay in self.relays]

    async def open(self) -> None:
        for _ in range(2):
            stack = AsyncExitStack()
            self.relays.append(await stack.enter_async_context(running_relay(self.dsn)))
            self.stacks.append(stack)

    async def close(self) -> None:
        for stack in self.stacks:
            await stack.aclose()
        await self.server.stop()

    async def strike(self) -> None:
        """Kill something, and have it back."""
        what = self.chance.choice((self._relay, self._relay, self._database, self._backend))
        await what()
        self.kills[what.__name__.lstrip("_")] += 1

    async def _relay(self) -> None:
        at = self.chance.randrange(len(self.relays))
        self.relays[at].signal(signal.SIGKILL)
        await self.relays[at].process.wait()
        await self.stacks[at].aclose()
        self.stacks[at] = AsyncExitStack()
        self.relays[at] = await self.stacks[at].enter_async_context(running_relay(self.dsn))

    async def _database(self) -> None:
        assert self.server._process is not None
        os.kill(self.server._process.pid, signal.SIGQUIT)
        await self.server.wait()
        await self.server.stop()
        self.server = EmbeddedPostgres(self.directory, extra_settings=QUICK_SETTINGS)
        await self.server.start()

    async def _backend(self) -> None:
        async with connected(self.dsn) as sql:
            pids = await sql.fetch("SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'orbital-relay lane%'")
        if pids:
            with suppress(ProcessLookupError):
                os.kill(self.chance.choice(pids)["pid"], signal.SIGKILL)


@asynccontextmanager
async def house(chance: random.Random) -> AsyncIterator[House]:
    directory = open_directory()
    server = EmbeddedPostgres(directory, extra_settings=QUICK_SETTINGS)
    dsn = await server.start()
    await migrate.upgrade(dsn)
    found = House(chance, directory, server, dsn)
    try:
        await found.open()
        yield found
    finally:
        await found.close()
        shutil.rmtree(directory)

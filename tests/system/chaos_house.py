"""What `chaos` kills: a PostgreSQL and two relays on it, each of which comes back."""

import os
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orbital_relay.embedded import EmbeddedPostgres
from orbital_relay.store import migrate
from tests.people import connected
from tests.postgres import QUICK_SETTINGS, open_directory
from tests.relays import RELAY, RunningRelay, running_relay


@dataclass
class House:
    """A PostgreSQL and two relays, each of which can be killed and comes back."""

    chance: random.Random
    directory: Path
    server: EmbeddedPostgres
    dsn: str
    program: Sequence[str]
    settings: dict[str, Any]
    relays: list[RunningRelay] = field(default_factory=list)
    stacks: list[AsyncExitStack] = field(default_factory=list)
    kills: Counter[str] = field(default_factory=Counter)

    def urls(self) -> list[str]:
        return [relay.url for relay in self.relays]

    async def open(self, relays: int) -> None:
        for _ in range(relays):
            stack = AsyncExitStack()
            self.relays.append(
                await stack.enter_async_context(running_relay(self.dsn, program=self.program, **self.settings))
            )
            self.stacks.append(stack)

    async def _new_relay(self, stack: AsyncExitStack) -> RunningRelay:
        return await stack.enter_async_context(running_relay(self.dsn, program=self.program, **self.settings))

    async def close(self) -> None:
        for stack in self.stacks:
            await stack.aclose()
        await self.server.stop()

    async def strike(self) -> None:
        """Kill something, and have it back."""
        what = self.chance.choice((self._relay, self._relay, self._database, self._backend))
        await what()
        self.kills[what.__name__.lstrip("_")] += 1

    async def kill_relay(self, at: int) -> None:
        """It does not come back."""
        self.relays[at].signal(signal.SIGKILL)
        await self.relays[at].process.wait()
        await self.stacks[at].aclose()

    async def start_relay(self, at: int) -> None:
        """One that was killed."""
        self.stacks[at] = AsyncExitStack()
        self.relays[at] = await self.stacks[at].enter_async_context(
            running_relay(self.dsn, program=self.program, **self.settings)
        )

    async def stop_database(self) -> None:
        """At once, as `pg_ctl stop -m immediate` does."""
        assert self.server._process is not None
        os.kill(self.server._process.pid, signal.SIGQUIT)
        await self.server.wait()
        await self.server.stop()

    async def start_database(self) -> None:
        """The same again; it recovers as from a crash."""
        self.server = EmbeddedPostgres(self.directory, extra_settings=QUICK_SETTINGS)
        await self.server.start()

    async def _relay(self) -> None:
        at = self.chance.randrange(len(self.relays))
        await self.kill_relay(at)
        await self.start_relay(at)

    async def _database(self) -> None:
        await self.stop_database()
        await self.start_database()

    async def _backend(self) -> None:
        async with connected(self.dsn) as sql:
            pids = await sql.fetch("SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'orbital-relay lane%'")
        if pids:
            with suppress(ProcessLookupError):
                os.kill(self.chance.choice(pids)["pid"], signal.SIGKILL)


@asynccontextmanager
async def house(
    chance: random.Random, *, relays: int = 2, program: Sequence[str] = RELAY, **settings: Any
) -> AsyncIterator[House]:
    """A house, and its relays with these settings."""
    with open_directory() as directory:
        server = EmbeddedPostgres(directory, extra_settings=QUICK_SETTINGS)
        dsn = await server.start()
        await migrate.upgrade(dsn)
        found = House(chance, directory, server, dsn, program, settings)
        try:
            await found.open(relays)
            yield found
        finally:
            await found.close()

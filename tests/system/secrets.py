"""Encrypting clients for tests: fast keys, a fast passphrase, and everything closed at the end."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from orbital_client import Client, Group, Message
from tests.unit.client_relay import at_once

PASSPHRASE = "correct horse battery staple"
LIMIT_S = 30


@asynccontextmanager
async def people(url: str, *names: str, **options: Any) -> AsyncIterator[list[Client]]:
    """A client each, registered."""
    async with AsyncExitStack() as stack:
        clients = []
        for name in names:
            client = await stack.enter_async_context(Client(url, backoff=at_once(), **options))
            await client.register(name, PASSPHRASE)
            clients.append(client)
        yield clients


async def eventually(holds: Callable[[], bool], what: str = "it holds") -> None:
    """Wait until it holds."""
    async with asyncio.timeout(LIMIT_S):
        while not holds():
            await asyncio.sleep(0.01)
    assert holds(), what


async def read_until(group: Group, seq: int) -> list[Message]:
    """All messages of a group up to this seq."""
    found = []
    async with asyncio.timeout(LIMIT_S):
        async for item in group.events(group.start):
            if isinstance(item, Message):
                found.append(item)
            if group.cursor.seq >= seq and (item.seq if isinstance(item, Message) else item.cursor.seq) >= seq:
                return found
    return found

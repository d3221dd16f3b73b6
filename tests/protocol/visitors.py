"""People at a real relay, by the client written from SPEC.md. One relay serves a module's tests."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.protocol.raw_client import User, uuid7
from tests.relays import RunningRelay

on_relay = pytest.mark.asyncio(loop_scope="module")
"""For tests with the fixture `relay`: its log is read in the loop that they run in."""


@asynccontextmanager
async def registered(relay: RunningRelay, *names: str) -> AsyncIterator[list[User]]:
    """Registered users with a connection each; others may bear the same names in other tests."""
    users = [User(f"{name}_{uuid7().hex()}") for name in names]
    try:
        for user in users:
            await user.register(relay.url)
        yield users
    finally:
        for user in users:
            await user.disconnect()

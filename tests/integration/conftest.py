"""Worlds for tests of what handlers do to a real database."""

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.worlds import World, world_on


@pytest_asyncio.fixture
async def world(migrated_database: str) -> AsyncIterator[World]:
    async with world_on(migrated_database) as world:
        yield world

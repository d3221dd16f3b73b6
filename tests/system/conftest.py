"""What tests of whole relays share: a database for each module, and a connection of the test's own to it."""

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.postgres import TestPostgres
from tests.stage import Stage, stage_on


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(embedded_postgres: TestPostgres) -> AsyncIterator[Stage]:
    async with embedded_postgres.migrated_database() as dsn, stage_on(dsn) as stage:
        yield stage

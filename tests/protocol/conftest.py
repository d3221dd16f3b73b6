"""A relay for a module's tests of the protocol (see `visitors`)."""

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.postgres import TestPostgres
from tests.relays import RunningRelay, running_relay


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def relay(embedded_postgres: TestPostgres) -> AsyncIterator[RunningRelay]:
    async with (
        embedded_postgres.migrated_database() as database,
        running_relay(
            database, login_attempts_free=100, invite_attempts_per_minute=1_000, sweep_ms=100, auth_timeout_ms=60_000
        ) as running,
    ):
        yield running

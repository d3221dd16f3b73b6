"""Databases for tests. Nothing is started before a test asks for it; each test process has servers of its own.

`database`: the DSN of a new, empty database. `migrated_database`: the same with all migrations applied.
With `@pytest.mark.each_postgres` a test that uses either runs on the embedded PostgreSQL and on Debian's 15.
"""

import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import hypothesis
import pytest
import pytest_asyncio

from orbital_relay import logs
from tests.postgres import DEBIAN_BINARIES, TestPostgres, open_directory, quick_place, running_postgres
from tests.swift import Swift, running_swift

_RANDOM_BYTES = 16

# How long an example takes says more about the machine than about the code.
hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("untimed")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.definition.get_closest_marker("each_postgres"):
        metafunc.parametrize("postgres", ["embedded_postgres", "debian_postgres"], indirect=True)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Ids and signatures are made anew in every process; the names of tests must be the same in all of them."""
    return argname if isinstance(val, bytes) and len(val) >= _RANDOM_BYTES else None


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """A command sets the logs of its process as it needs them; here the process is that of the next tests too."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logs._configure_structlog("info", "json", None)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def embedded_postgres() -> AsyncIterator[TestPostgres]:
    async with running_postgres(place=quick_place()) as server:
        yield server


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def debian_postgres() -> AsyncIterator[TestPostgres]:
    if not (DEBIAN_BINARIES / "postgres").exists():
        pytest.skip("Debian's PostgreSQL 15 is not installed (apt-get install postgresql-15)")
    async with running_postgres(DEBIAN_BINARIES, quick_place()) as server:
        yield server


@pytest.fixture
def postgres(request: pytest.FixtureRequest) -> TestPostgres:
    """The server that this test's databases are on."""
    server = request.getfixturevalue(getattr(request, "param", "embedded_postgres"))
    assert isinstance(server, TestPostgres)
    return server


@pytest_asyncio.fixture
async def database(postgres: TestPostgres) -> AsyncIterator[str]:
    async with postgres.database() as dsn:
        yield dsn


@pytest_asyncio.fixture
async def migrated_database(postgres: TestPostgres) -> AsyncIterator[str]:
    async with postgres.migrated_database() as dsn:
        yield dsn


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """An empty directory for a relay with an embedded PostgreSQL."""
    with open_directory() as directory:
        yield directory


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def swift() -> AsyncIterator[Swift]:
    """An S3 service; each test makes a bucket of its own there."""
    async with running_swift() as service:
        yield service

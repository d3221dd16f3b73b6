"""Unit tests do no I/O: asking for a database here is a mistake, and is told so."""

import pytest


@pytest.fixture
def postgres() -> None:
    pytest.fail("a unit test asks for a PostgreSQL; it belongs in tests/integration")

"""The short form of `make chaos`: a few rounds of killing, judged as the long form is."""

import pytest

from tests.system.chaos import chaos

pytestmark = pytest.mark.timeout(180)


async def test_kills_lose_nothing_double_nothing_and_leave_no_hole() -> None:
    figures = await chaos(rounds=8, seed=1)
    assert figures.verdict.violations == []
    assert sum(figures.kills.values()) == 8
    assert figures.verdict.acknowledged > 100
    assert figures.verdict.deliveries > 2 * figures.verdict.acknowledged

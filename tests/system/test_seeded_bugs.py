"""What judges must find: relays with a bug on purpose, each of which some invariant names."""

import random
from collections.abc import Callable

import pytest

from tests import rigged
from tests.postgres import TestPostgres
from tests.relays import running_relay
from tests.stage import stage_on
from tests.system.chaos_house import house
from tests.system.crowd import crowd_on

pytestmark = pytest.mark.timeout(120)

GIVEN_UP_S = 3


@pytest.mark.parametrize(
    ("bug", "invariant"),
    [(rigged.forgets_wake_ups, "I1"), (rigged.hands_out_of_order, "I3")],
    ids=["lost", "out of order"],
)
async def test_a_bug_in_delivery_is_found(
    embedded_postgres: TestPostgres, bug: Callable[[str], None], invariant: str
) -> None:
    async with (
        embedded_postgres.migrated_database() as dsn,
        stage_on(dsn) as stage,
        running_relay(dsn, program=rigged.program(bug)) as relay,
        crowd_on(stage, lambda: [relay.url], groups=3) as crowd,
    ):
        await crowd.acknowledged(100)
        verdict = await crowd.rest(limit_s=GIVEN_UP_S)
        assert invariant in {violation.invariant for violation in verdict.violations}


async def test_an_acknowledgement_before_the_commit_is_found() -> None:
    """The database stops at once while posts are told that they are durable."""
    async with (
        house(random.Random(1), program=rigged.program(rigged.acknowledges_early)) as at,
        stage_on(at.dsn) as stage,
        crowd_on(stage, at.urls, groups=3) as crowd,
    ):
        for _ in range(3):
            await crowd.progress()
            await at.stop_database()
            await at.start_database()
        verdict = await crowd.rest(limit_s=GIVEN_UP_S)
        assert "I1" in {violation.invariant for violation in verdict.violations}

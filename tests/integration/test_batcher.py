"""Questions put to the database together: what is shared is the statement, never a failure or a wait."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import asyncpg
import pytest

from orbital_relay.batcher import Batcher
from orbital_relay.errors import Overloaded, Unavailable
from orbital_relay.store.pool import Connection, Database, PoolSettings

LIMIT_S = 10
POISON = 0


@dataclass
class Divider:
    """What 12 divided by each question is; statements wait at the gate."""

    asked: list[list[int]] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    async def read(self, connection: Connection, questions: Sequence[int]) -> list[int]:
        self.asked.append(list(questions))
        await self.gate.wait()
        rows = await connection.fetch("SELECT 12 / q FROM unnest($1::INTEGER[]) q", questions)
        return [row[0] for row in rows]

    async def has_been_asked(self, count: int) -> None:
        async with asyncio.timeout(LIMIT_S):
            while len(self.asked) < count:
                await asyncio.sleep(0)


@asynccontextmanager
async def running(batcher: Batcher[int, int]) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(batcher.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


@asynccontextmanager
async def divided(
    dsn: str, *, at_once: int = 1, max_size: int = 100, acquire_timeout_s: float = 5
) -> AsyncIterator[tuple[Divider, Batcher[int, int]]]:
    database = Database(PoolSettings(dsn, min_size=1, acquire_timeout_s=acquire_timeout_s), "test")
    await database.open()
    divider = Divider()
    batcher = Batcher(database, divider.read, at_once=at_once, max_size=max_size, size_of=lambda question: question)
    try:
        async with running(batcher):
            yield divider, batcher
    finally:
        await database.close()


def asking(batcher: Batcher[int, int], *questions: int) -> list[asyncio.Task[int]]:
    return [asyncio.create_task(batcher.ask(question)) for question in questions]


async def test_alone_is_asked_alone_and_at_once(database: str) -> None:
    async with divided(database) as (divider, batcher):
        divider.gate.set()
        assert [await batcher.ask(question) for question in (1, 2, 3)] == [12, 6, 4]
        assert divider.asked == [[1], [2], [3]]


async def test_what_comes_meanwhile_is_asked_together_and_each_gets_its_own(database: str) -> None:
    async with divided(database) as (divider, batcher):
        first = asking(batcher, 1)
        await divider.has_been_asked(1)
        later = asking(batcher, 2, 3, 4, 3)
        divider.gate.set()
        assert await asyncio.gather(*first, *later) == [12, 6, 4, 3, 4]
        assert divider.asked == [[1], [2, 3, 4, 3]]


async def test_statements_are_bounded_in_size_and_number(database: str) -> None:
    """A question that is larger than a statement is asked alone."""
    async with divided(database, at_once=2, max_size=5) as (divider, batcher):
        answers = asking(batcher, 2, 3, 1, 12, 4)
        await divider.has_been_asked(2)
        assert divider.asked == [[2, 3], [1]]
        divider.gate.set()
        assert await asyncio.gather(*answers) == [6, 4, 12, 1, 3]
        assert divider.asked == [[2, 3], [1], [12], [4]]


async def test_one_that_cannot_be_answered_fails_alone(database: str) -> None:
    async with divided(database) as (divider, batcher):
        first = asking(batcher, 1)
        await divider.has_been_asked(1)
        later = asking(batcher, 2, POISON, 3)
        divider.gate.set()
        outcomes = await asyncio.gather(*first, *later, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [int, int, asyncpg.DivisionByZeroError, int]
        assert await batcher.ask(4) == 3


async def test_nothing_is_asked_for_those_who_are_gone(database: str) -> None:
    async with divided(database) as (divider, batcher):
        first = asking(batcher, 1)
        await divider.has_been_asked(1)
        gone, stays = asking(batcher, 2, 3)
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.wait([gone])
        first[0].cancel()
        divider.gate.set()
        assert await stays == 4
        assert divider.asked == [[1], [3]]


async def test_nobody_waits_for_longer_than_a_connection_is_waited_for(database: str) -> None:
    async with divided(database, acquire_timeout_s=0.05) as (divider, batcher):
        first = asking(batcher, 1)
        await divider.has_been_asked(1)
        [late] = asking(batcher, 2)
        await asyncio.sleep(0.1)  # the time is the point
        divider.gate.set()
        assert await asyncio.gather(*first) == [12]
        with pytest.raises(Overloaded):
            await late
        assert await batcher.ask(3) == 4


async def test_a_database_that_is_away_is_unavailable_to_all(database: str) -> None:
    away = Database(PoolSettings(database), "test")
    batcher = Batcher(away, Divider().read, at_once=1, max_size=100)
    async with running(batcher):
        outcomes = await asyncio.gather(*asking(batcher, 1, 2), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [Unavailable, Unavailable]


async def test_at_the_end_whoever_waits_is_told(database: str) -> None:
    async with divided(database) as (divider, batcher):
        under_way = asking(batcher, 1)
        await divider.has_been_asked(1)
        waiting = asking(batcher, 2)
        await asyncio.sleep(0)
    outcomes = await asyncio.gather(*under_way, *waiting, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Unavailable, Unavailable]
    with pytest.raises(Unavailable):
        await batcher.ask(3)

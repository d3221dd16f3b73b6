"""Growth: what a post and a resume cost with few and with many groups, and with few and with many stored replies."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from statistics import median
from typing import Final

import asyncpg

from bench import ingest, wire
from bench.figures import Plan, Result, say
from bench.people import Place, Population, add_replies, populate
from bench.stage import Generator, Postgres, running_postgres, running_relay
from orbital_protocol import codec
from orbital_protocol.frames import Authenticate, Subscribe, SubscribeGroup
from orbital_relay.store.pool import prepare_connection

BAR: Final = 1.3

_POSTERS: Final = 32  # members of every group
_RESUMES: Final = 2_000  # others, each of one group
_FEW_GROUPS: Final = 100
_MANY_GROUPS: Final = 10_000
_STORED: Final = 1_000_000
_MISSED: Final = 10
_AT_ONCE: Final = 200
_BODY_BYTES: Final = 400
_GRACE_S: Final = 120


@dataclass(frozen=True, slots=True)
class Costs:
    """Microseconds a post at the fastest ingest, and a resume of one group with ten missed events.

    A resume as one of twenty of the same group, and where few or none resume the same.
    """

    post_us: float
    resume_us: float
    apart_us: float

    def __str__(self) -> str:
        return f"{self.post_us:.1f} us a post, {self.resume_us:.0f} us a resume ({self.apart_us:.0f} apart)"


async def measure(plan: Plan) -> Result:
    """The yardstick is the relay itself where there is little; each place is the median of its runs."""
    say(f"growth: {_FEW_GROUPS} and {_MANY_GROUPS:,} groups; then {_STORED:,} stored replies more")
    few: list[Costs] = []
    many: list[Costs] = []
    full: list[Costs] = []
    async with running_postgres("few") as small, running_postgres("many") as large:
        here = await _populate(small, _FEW_GROUPS)
        there = await _populate(large, _MANY_GROUPS)
        for places, postgres in ((here.places, small), (there.places, large)):
            await add_replies(postgres.dsn, places, _MISSED, _BODY_BYTES)
            await postgres.execute("VACUUM ANALYZE")  # as autovacuum does on a server that has been up for a while
        for number in range(1, plan.runs + 1):
            few.append(await _costs(small, here, plan.seconds))
            many.append(await _costs(large, there, plan.seconds))
            say(f"  run {number}: {_FEW_GROUPS} groups {few[-1]}; {_MANY_GROUPS:,} groups {many[-1]}")
        await add_replies(large.dsn, there.places, _STORED // _MANY_GROUPS, _BODY_BYTES)
        await large.execute("VACUUM ANALYZE")
        for number in range(1, plan.runs + 1):
            full.append(await _costs(large, there, plan.seconds))
            say(f"  run {number}: {_STORED:,} replies more {full[-1]}")
    return _judge(_middle(few), _middle(many), _middle(full))


async def _populate(postgres: Postgres, groups: int) -> Population:
    users: dict[int, set[int]] = {}
    for user in range(_RESUMES):
        for group_of in (_together, _apart):
            users.setdefault(group_of(user, groups), set()).add(_POSTERS + user)

    def members(group: int) -> list[int]:
        return [*range(_POSTERS), *sorted(users.get(group, ()))]

    return await populate(postgres.dsn, users=_POSTERS + _RESUMES, groups=groups, members=members)


def _together(user: int, groups: int) -> int:
    """The group that somebody resumes, one of as many as there are few: they are read for as many, however many there
    are."""
    return user % _FEW_GROUPS * (groups // _FEW_GROUPS)


def _apart(user: int, groups: int) -> int:
    """The group that somebody resumes, spread over all there are."""
    return user * groups // _RESUMES % groups


def _middle(runs: Sequence[Costs]) -> Costs:
    return Costs(*map(median, zip(*map(astuple, runs), strict=True)))


def _judge(few: Costs, many: Costs, full: Costs) -> Result:
    ratios: Mapping[str, float] = {
        "post_by_groups": many.post_us / few.post_us,
        "resume_by_groups": many.resume_us / few.resume_us,
        "post_by_replies": full.post_us / many.post_us,
        "resume_by_replies": full.resume_us / many.resume_us,
    }
    return Result(
        "growth",
        {"post_us": full.post_us, "resume_us": full.resume_us},
        {"post_us": few.post_us, "resume_us": few.resume_us},
        ratios,
        BAR,
        all(ratio <= BAR for ratio in ratios.values()),
        {"apart_us": {"few": round(few.apart_us), "many": round(many.apart_us), "full": round(full.apart_us)}},
    )


async def _costs(postgres: Postgres, population: Population, seconds: float) -> Costs:
    await postgres.execute("CHECKPOINT")
    rate = await ingest.posts_a_second(postgres, population, seconds)
    await postgres.execute("CHECKPOINT")
    together_us = await _resume_us(postgres, population, _together)
    return Costs(1e6 / rate, together_us, await _resume_us(postgres, population, _apart))


async def _resume_us(postgres: Postgres, population: Population, group_of: Callable[[int, int], int]) -> float:
    """Clients that come one after the other, some at a time, each for one group."""
    places = [population.places[group_of(user, len(population.places))] for user in range(_RESUMES)]
    cursors = await _cursors(postgres, places)
    task = {
        "requests": [
            _hello(population.tokens[_POSTERS + user], place.group_id, *cursors[place.group_id]).hex()
            for user, place in enumerate(places)
        ],
        "events": _MISSED,
        "lives": 0,
        "at_once": _AT_ONCE,
    }
    async with (
        running_relay(postgres, population.token_key) as relay,
        Generator.running("bench.returners", {"port": relay.port, **task}) as returners,
    ):
        await returners.answer(_GRACE_S)
        await returners.tell({"go": True})
        came = await returners.answer(_GRACE_S)
    return float(came["seconds"]) / _RESUMES * 1e6


async def _cursors(postgres: Postgres, places: Sequence[Place]) -> dict[bytes, tuple[int, bytes]]:
    """Where somebody stopped who missed the last ten events of each group."""
    connection = await asyncpg.connect(postgres.dsn)
    try:
        await prepare_connection(connection)
        rows = await connection.fetch(
            "SELECT group_id, seq, hash FROM events JOIN group_heads USING (group_id)"
            " WHERE group_id = ANY($1) AND seq = last_seq - $2",
            [place.group_id for place in places],
            _MISSED,
        )
    finally:
        await connection.close()
    return {row["group_id"]: (row["seq"], row["hash"]) for row in rows}


def _hello(token: str, group_id: bytes, seq: int, hash_: bytes) -> bytes:
    subscribe = Subscribe(id=2, groups=[SubscribeGroup(group_id=group_id, after_seq=seq, after_hash=hash_)])
    return wire.masked(codec.encode(Authenticate(id=1, access_token=token))) + wire.masked(codec.encode(subscribe))

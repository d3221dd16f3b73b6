"""Latency: one post at a time, until the last of a hundred members has it, against pgbench with one client.

Beside it stands the floor: an insert, and a send() in C to each of a hundred sockets until the last has been read.
"""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Final

from bench.figures import Latency, Plan, Result, longest, say, spread
from bench.people import Population, populate
from bench.pgbench import Yardstick
from bench.stage import Generator, Postgres, compiled, run, running_postgres, running_relay
from bench.wire import EventShape

BAR_P50: Final = 4.0
BAR_P99: Final = 5.0

_MEMBERS: Final = 100
_BODY_BYTES: Final = 400
_WARM_UP: Final = 100
_GRACE_S: Final = 60
_SOURCE: Final = Path(__file__).with_name("raw_burst.c")


async def measure(plan: Plan) -> Result:
    """Alternate relay and pgbench."""
    say(
        f"latency: one post of {_BODY_BYTES} bytes at a time, {_MEMBERS} members online, sent -> the last one has it;"
        " against pgbench's single-row inserts with one client"
    )
    ours: list[Latency] = []
    acked: list[Latency] = []
    inserts: list[Latency] = []
    bursts: list[Latency] = []
    async with (
        running_postgres("latency") as postgres,
        Yardstick.ready(postgres) as yardstick,
        compiled(_SOURCE) as program,
    ):
        population = await populate(postgres.dsn, users=_MEMBERS, groups=1)
        for number in range(1, plan.runs + 1):
            await postgres.execute("CHECKPOINT")
            delivered_us, acked_us = await one_by_one(postgres, population, plan.seconds)
            ours.append(Latency.of(delivered_us))
            acked.append(Latency.of(acked_us))
            await postgres.execute("CHECKPOINT")
            inserts.append(Latency.of(await yardstick.latencies_us(plan.seconds)))
            if program is not None:
                bursts.append(Latency.of(await _bursts_us(program, plan.seconds / 2)))
            say(
                f"  run {number}: delivered {ours[-1]} (acknowledged {acked[-1]}; {len(delivered_us):,} posts),"
                f" pgbench {inserts[-1]}" + (f", C loop {bursts[-1]}" if bursts else "")
            )
    return _judge(ours, inserts, Latency.middle(acked), bursts)


def _judge(
    our_runs: Sequence[Latency], insert_runs: Sequence[Latency], acked: Latency, bursts: Sequence[Latency]
) -> Result:
    ours, inserts = Latency.middle(our_runs), Latency.middle(insert_runs)
    p50, p99 = ours.p50_ms / inserts.p50_ms, ours.p99_ms / inserts.p99_ms
    return Result(
        "latency",
        ours.as_figure(),
        inserts.as_figure(),
        {"p50": p50, "p99": p99},
        {"p50": BAR_P50, "p99": BAR_P99},
        p50 <= BAR_P50 and p99 <= BAR_P99,
        {
            "acknowledged": {name: round(value, 3) for name, value in acked.as_figure().items()},
            **longest(ours, inserts),
            **_floor(ours, inserts, bursts),
            **spread([run.p50_ms for run in insert_runs]),
        },
    )


def _floor(ours: Latency, inserts: Latency, bursts: Sequence[Latency]) -> dict[str, float]:
    """What this machine takes for an insert and a hundred send()s and nothing else, and how much we take beyond."""
    if not bursts:
        return {}
    burst_ms = median(run.p50_ms for run in bursts)
    floor_ms = inserts.p50_ms + burst_ms
    return {
        "burst_p50_ms": round(burst_ms, 3),
        "floor_to_insert": round(floor_ms / inserts.p50_ms, 2),
        "p50_to_floor": round(ours.p50_ms / floor_ms, 2),
    }


async def _bursts_us(program: Path, seconds: float) -> Sequence[float]:
    """Microseconds from before a message is sent to each of as many sockets until all have been read, in C."""
    event_bytes, *_ = EventShape(_BODY_BYTES).message_of(seq=_WARM_UP)
    printed = await run([str(program), str(_MEMBERS), str(event_bytes), str(seconds)], seconds + _GRACE_S)
    return [int(line) / 1000 for line in printed.split()]


async def one_by_one(
    postgres: Postgres, population: Population, seconds: float
) -> tuple[Sequence[float], Sequence[float]]:
    """Microseconds until each post was delivered to all, and until it was acknowledged."""
    [place] = population.places
    task = {
        "tokens": population.tokens,
        "place": place.as_json(),
        "body_bytes": _BODY_BYTES,
        "seconds": seconds,
        "warm_up": _WARM_UP,
    }
    async with (
        running_relay(postgres, population.token_key) as relay,
        Generator.running("bench.one_by_one", {"port": relay.port, **task}) as posters,
    ):
        done = await posters.answer(seconds + _GRACE_S)
    return done["delivered_us"], done["acked_us"]

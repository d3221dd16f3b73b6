"""Latency under load: at half of the fastest ingest, until a post is acknowledged, and until a listener has it."""

from collections.abc import Sequence
from typing import Final

from bench import ingest
from bench.figures import Latency, Plan, Result, say, spread
from bench.people import Population, populate
from bench.pgbench import Yardstick
from bench.stage import Generator, Postgres, running_postgres, running_relay

BAR_P99_MS: Final = 50.0
BAR_RATIO: Final = 3.0

_POSTERS: Final = 32
_GROUPS: Final = 50
_BODY_BYTES: Final = 400
_WARM_UP_S: Final = 1
_GRACE_S: Final = 60


async def measure(plan: Plan) -> Result:
    """Find the fastest rate, then alternate relay and pgbench at half of it."""
    say(
        f"latency_under_load: posts of {_BODY_BYTES} bytes by {_POSTERS} connections to {_GROUPS} groups, a listener in"
        " each, at half of the fastest rate; against pgbench at the same rate"
    )
    acked: list[Latency] = []
    delivered: list[Latency] = []
    inserts: list[Latency] = []
    async with running_postgres("load") as postgres, Yardstick.ready(postgres) as yardstick:
        population = await populate(postgres.dsn, users=_POSTERS + 1, groups=_GROUPS)
        rate = await ingest.posts_a_second(postgres, population, plan.seconds) / 2
        say(f"  half of the fastest: {rate:,.0f} posts/s")
        for number in range(1, plan.runs + 1):
            await postgres.execute("CHECKPOINT")
            acked_us, delivered_us = await paced(postgres, population, rate, plan.seconds)
            acked.append(Latency.of(acked_us))
            delivered.append(Latency.of(delivered_us))
            await postgres.execute("CHECKPOINT")
            inserts.append(Latency.of(await yardstick.latencies_at_us(rate, plan.seconds)))
            say(f"  run {number}: acknowledged {acked[-1]}; delivered {delivered[-1]}; pgbench {inserts[-1]}")
    return _judge(rate, acked, delivered, inserts)


def _judge(
    rate: float, acked_runs: Sequence[Latency], delivered_runs: Sequence[Latency], insert_runs: Sequence[Latency]
) -> Result:
    acked, delivered, inserts = map(Latency.middle, (acked_runs, delivered_runs, insert_runs))
    worst = max(acked.p99_ms, delivered.p99_ms)
    bar = max(BAR_P99_MS, BAR_RATIO * inserts.p99_ms)
    return Result(
        "latency_under_load",
        {"acknowledged_p99_ms": acked.p99_ms, "delivered_p99_ms": delivered.p99_ms},
        inserts.p99_ms,
        {"acknowledged": acked.p99_ms / inserts.p99_ms, "delivered": delivered.p99_ms / inserts.p99_ms},
        {"p99_ms": round(bar, 1)},
        worst <= bar,
        {
            "posts_a_second": round(rate),
            "acknowledged_p50_ms": round(acked.p50_ms, 2),
            "delivered_p50_ms": round(delivered.p50_ms, 2),
            "acknowledged_max_ms": round(acked.max_ms, 1),
            "delivered_max_ms": round(delivered.max_ms, 1),
            "yardstick_p50_ms": round(inserts.p50_ms, 3),
            "yardstick_max_ms": round(inserts.max_ms, 1),
            **spread([run.p99_ms for run in insert_runs]),
        },
    )


async def paced(
    postgres: Postgres, population: Population, rate: float, seconds: float
) -> tuple[Sequence[float], Sequence[float]]:
    """Microseconds until each post was acknowledged, and until its group's listener had it."""
    task = {
        "tokens": population.tokens,
        "places": [place.as_json() for place in population.places],
        "body_bytes": _BODY_BYTES,
        "rate": rate,
        "seconds": seconds,
        "warm_up_s": _WARM_UP_S,
    }
    async with (
        running_relay(postgres, population.token_key) as relay,
        Generator.running("bench.paced", {"port": relay.port, **task}) as pace,
    ):
        await pace.answer(_GRACE_S)
        await pace.tell({"go": True})
        done = await pace.answer(seconds + _GRACE_S)
    return done["acked_us"], done["delivered_us"]

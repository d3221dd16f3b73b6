"""Durable ingest: posts acknowledged after their commit, against pgbench's best rate of single-row inserts."""

from collections.abc import Sequence
from statistics import median
from typing import Final

from bench.figures import Plan, Result, say, spread
from bench.people import Population, populate
from bench.pgbench import Yardstick
from bench.stage import Generator, Postgres, running_postgres, running_relay

BAR: Final = 1.5

_CONNECTIONS: Final = 32
_IN_FLIGHT: Final = 32
_GROUPS: Final = 50
_BODY_BYTES: Final = 400
_CLIENTS: Final = (1, 2, 4, 8, 16, 32)
_POSTS_A_SECOND_MAX: Final = 60_000  # so many frames are built beforehand; a faster run ends sooner
_SWEEP_S: Final = 2
_GRACE_S: Final = 60


async def measure(plan: Plan) -> Result:
    """Alternate relay and pgbench."""
    say(
        f"ingest: {_CONNECTIONS} connections x {_IN_FLIGHT} posts in flight of {_BODY_BYTES} bytes to {_GROUPS} groups,"
        " acknowledged after commit; against pgbench's single-row inserts on the same server"
    )
    async with running_postgres("ingest") as postgres, Yardstick.ready(postgres) as yardstick:
        population = await populate(postgres.dsn, users=_CONNECTIONS, groups=_GROUPS)
        clients = await _best_clients(yardstick, _CLIENTS, _SWEEP_S)
        ours: list[float] = []
        rows: list[float] = []
        for number in range(1, plan.runs + 1):
            await postgres.execute("CHECKPOINT")
            ours.append(await posts_a_second(postgres, population, plan.seconds))
            await postgres.execute("CHECKPOINT")
            rows.append(await yardstick.rate(clients, plan.seconds))
            say(f"  run {number}: {ours[-1]:,.0f} posts/s, pgbench with {clients} clients {rows[-1]:,.0f} rows/s")
    ratio = median(ours) / median(rows)
    return Result(
        "ingest", median(ours), median(rows), ratio, BAR, ratio >= BAR, {"pgbench_clients": clients, **spread(rows)}
    )


async def _best_clients(yardstick: Yardstick, candidates: Sequence[int], seconds: float) -> int:
    """With how many clients pgbench is fastest here."""
    rates = {clients: await yardstick.rate(clients, seconds) for clients in candidates}
    say("  pgbench: " + ", ".join(f"{clients} clients {rate:,.0f}/s" for clients, rate in rates.items()))
    return max(rates, key=rates.__getitem__)


async def posts_a_second(postgres: Postgres, population: Population, seconds: float) -> float:
    """The fastest rate, of a closed loop."""
    task = {
        "tokens": population.tokens[:_CONNECTIONS],
        "places": [place.as_json() for place in population.places],
        "body_bytes": _BODY_BYTES,
        "in_flight": _IN_FLIGHT,
        "seconds": seconds,
        "frames_max": int(_POSTS_A_SECOND_MAX * seconds),
        "with_times": False,
    }
    async with (
        running_relay(postgres, population.token_key) as relay,
        Generator.running("bench.posters", {"port": relay.port, **task}) as posters,
    ):
        await posters.answer(_GRACE_S)
        await posters.tell({"go": True})
        done = await posters.answer(seconds + _GRACE_S)
    rate: float = done["acked"] / done["seconds"]
    return rate

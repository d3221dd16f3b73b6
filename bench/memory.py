"""Memory: what a connection costs that is authenticated, subscribed to one group, and idle."""

from collections.abc import Mapping
from typing import Final

from bench.figures import Plan, Result, say
from bench.people import populate
from bench.stage import Generator, Postgres, running_postgres, running_relay
from orbital_relay.config import TokenKey

BAR_KIB: Final = 16

_CONNECTIONS: Final = 5_000
_GROUPS: Final = 50
_GRACE_S: Final = 120


async def measure(plan: Plan) -> Result:
    """Resident memory before anybody comes, and when all are there; no TLS. Needs no yardstick: bytes are bytes."""
    say(f"memory: {_CONNECTIONS:,} connections, authenticated, each subscribed to one of {_GROUPS} groups, and idle")
    found: list[float] = []
    async with running_postgres("memory") as postgres:
        population = await populate(
            postgres.dsn, users=_CONNECTIONS, groups=_GROUPS, members=lambda group: range(group, _CONNECTIONS, _GROUPS)
        )
        task = {
            "tokens": population.tokens,
            "groups": [population.places[user % _GROUPS].group_id.hex() for user in range(_CONNECTIONS)],
        }
        for number in range(1, plan.runs + 1):
            found.append(await _kib_a_connection(postgres, population.token_key, task))
            say(f"  run {number}: {found[-1]:.1f} KiB a connection")
    kib = sorted(found)[len(found) // 2]
    return Result("memory", kib, None, None, BAR_KIB, kib <= BAR_KIB, {"unit": "KiB a connection"})


async def _kib_a_connection(postgres: Postgres, token_key: TokenKey, task: Mapping[str, object]) -> float:
    async with running_relay(postgres, token_key) as relay:
        before = relay.resident_kib()
        async with Generator.running("bench.idlers", {"port": relay.port, **task}) as idlers:
            ready = await idlers.answer(_GRACE_S)
            return (relay.resident_kib() - before) / float(ready["count"])

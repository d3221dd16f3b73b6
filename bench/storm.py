"""Reconnect storm: thousands of clients come back at once and resume, while a bystander posts."""

import random
from statistics import median
from typing import Final

from bench import wire
from bench.figures import Plan, Result, percentile, say
from bench.people import Population, add_replies, populate
from bench.stage import Generator, Postgres, running_postgres, running_relay
from orbital_protocol import codec
from orbital_protocol.frames import Authenticate, Subscribe, SubscribeGroup

BAR_RESUMES_A_SECOND: Final = 1_000
BAR_P99_MS: Final = 250

CLIENTS: Final = 5_000
GROUPS_EACH: Final = 5
MISSED: Final = 10
_GROUPS: Final = 1_000
_BODY_BYTES: Final = 400
_PAUSE_S: Final = 0.01
_GRACE_S: Final = 120
_ORDER: Final = 1  # of the clients: neighbours have groups in common, and must not come one after the other


async def measure(plan: Plan) -> Result:
    """No yardstick: the bars are resumes a second, and how long a bystander waits."""
    say(
        f"storm: {CLIENTS:,} clients at once, each authenticates and resumes {GROUPS_EACH} of {_GROUPS:,} groups with"
        f" {MISSED} missed events each; a bystander posts meanwhile"
    )
    rates: list[float] = []
    waits: list[float] = []
    longest: list[float] = []
    async with running_postgres("storm") as postgres:
        population = await populate(postgres.dsn, users=CLIENTS + 1, groups=_GROUPS + 1, members=_members)
        await add_replies(postgres.dsn, population.places[:_GROUPS], MISSED, _BODY_BYTES)
        for number in range(1, plan.runs + 1):
            await postgres.execute("CHECKPOINT")
            rate, waited_ms, told_to_wait = await _run(postgres, population)
            rates.append(rate)
            waits.append(percentile(waited_ms, 0.99))
            longest.append(waited_ms[-1])
            say(
                f"  run {number}: {rate:,.0f} resumes/s, p99 of the bystander {waits[-1]:.0f} ms, at most"
                f" {longest[-1]:.0f} ms; {told_to_wait:,} were told to come back later"
            )
    ours = {"resumes_a_second": median(rates), "bystander_p99_ms": median(waits)}
    met = ours["resumes_a_second"] >= BAR_RESUMES_A_SECOND and ours["bystander_p99_ms"] <= BAR_P99_MS
    bar = {"resumes_a_second": BAR_RESUMES_A_SECOND, "bystander_p99_ms": BAR_P99_MS}
    return Result("storm", ours, None, None, bar, met, {"bystander_max_ms": round(max(longest), 1)})


def _members(group: int) -> list[int]:
    """Of group 0, 1, … every client is in five; the last group is the bystander's own."""
    if group == _GROUPS:
        return [CLIENTS]
    return [user for step in range(GROUPS_EACH) for user in range((group - step) % _GROUPS, CLIENTS, _GROUPS)]


def hello(population: Population, user: int) -> bytes:
    """What a client says when it is back: who it is, and where it stopped in each of its groups, at their threads."""
    groups = [population.places[(user + step) % _GROUPS] for step in range(GROUPS_EACH)]
    subscribe = Subscribe(
        id=2,
        groups=[SubscribeGroup(group_id=place.group_id, after_seq=1, after_hash=place.hash) for place in groups],
    )
    authenticate = Authenticate(id=1, access_token=population.tokens[user])
    return wire.masked(codec.encode(authenticate)) + wire.masked(codec.encode(subscribe))


async def _run(postgres: Postgres, population: Population) -> tuple[float, list[float], int]:
    """Resumes a second, the bystander's waits in order, and how many were told to come back later."""
    users = random.Random(_ORDER).sample(range(CLIENTS), CLIENTS)
    coming = {
        "requests": [hello(population, user).hex() for user in users],
        "events": GROUPS_EACH * MISSED,
        "lives": GROUPS_EACH,
        "at_once": 0,
    }
    standing = {
        "token": population.tokens[CLIENTS],
        "place": population.places[_GROUPS].as_json(),
        "body_bytes": _BODY_BYTES,
        "pause_s": _PAUSE_S,
    }
    async with (
        running_relay(postgres, population.token_key, unauthenticated_max=2 * CLIENTS) as relay,
        Generator.running("bench.bystander", {"port": relay.port, **standing}) as bystander,
        Generator.running("bench.returners", {"port": relay.port, **coming}) as returners,
    ):
        await bystander.answer(_GRACE_S)
        await returners.answer(_GRACE_S)
        await returners.tell({"go": True})
        came = await returners.answer(_GRACE_S)
        await bystander.tell({"stop": True})
        stood = await bystander.answer(_GRACE_S)
    waited_ms = sorted(waited_us / 1000 for waited_us in stood["acked_us"])
    return CLIENTS / float(came["seconds"]), waited_ms, int(came["told_to_wait"])

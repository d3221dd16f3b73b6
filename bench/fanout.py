"""Fan-out: one group, a thousand members online, against a loop in C that send()s each message to each socket."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

from bench import wire
from bench.figures import Plan, Result, percentile, say, spread
from bench.people import Population, populate
from bench.stage import BenchError, Generator, Postgres, compiled, running_postgres, running_relay

BAR: Final = 2.0
DELIVERY_P99_MS: Final = 250.0
"""A run that delivers later than that doesn't count."""

_MEMBERS: Final = 1_000
_POSTERS: Final = 4
_IN_FLIGHT: Final = 16
_WIRE_BYTES: Final = 260
_SAMPLED: Final = 20
_POSTS_A_SECOND_MAX: Final = 20_000
_GRACE_S: Final = 90
_SOURCE: Final = Path(__file__).with_name("raw_send.c")


@dataclass(frozen=True, slots=True)
class Run:
    """What one run delivered."""

    deliveries_a_second: float
    p99_ms: float

    @property
    def counts(self) -> bool:
        """Whether it was delivered in time."""
        return self.p99_ms <= DELIVERY_P99_MS


async def measure(plan: Plan) -> Result:
    """Alternate relay and C loop."""
    say(
        f"fan-out: {_MEMBERS:,} members of one group online, posts of {_WIRE_BYTES} bytes on the wire by {_POSTERS}"
        f" connections x {_IN_FLIGHT} in flight; against one send() a message and socket in C"
    )
    runs: list[Run] = []
    sends: list[float] = []
    async with running_postgres("fanout") as postgres, compiled(_SOURCE) as program:
        population = await populate(postgres.dsn, users=_MEMBERS, groups=1)
        for number in range(1, plan.runs + 1):
            await postgres.execute("CHECKPOINT")
            runs.append(await _deliver(postgres, population, plan.seconds))
            if program is not None:
                sends.append(await _sends_a_second(program, plan.seconds / 2))
            say(
                f"  run {number}: {runs[-1].deliveries_a_second:,.0f} deliveries/s, p99 {runs[-1].p99_ms:.0f} ms"
                + ("" if runs[-1].counts else " (doesn't count)")
                + (f", C loop {sends[-1]:,.0f} send()/s" if sends else "")
            )
    return _judge(runs, sends)


def _judge(runs: Sequence[Run], sends: Sequence[float]) -> Result:
    ours = median(run.deliveries_a_second for run in runs)
    details = {"p99_ms": round(median(run.p99_ms for run in runs), 1), "runs_in_time": sum(run.counts for run in runs)}
    if not sends:
        return Result("fanout", ours, None, None, BAR, None, details)
    details |= spread(sends)
    ratio = ours / median(sends)
    return Result("fanout", ours, median(sends), ratio, BAR, ratio >= BAR and all(run.counts for run in runs), details)


# ── ours ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _deliver(postgres: Postgres, population: Population, seconds: float) -> Run:
    [place] = population.places
    body_bytes = wire.body_for(_WIRE_BYTES)
    reading = {
        "tokens": population.tokens,
        "group_id": place.group_id.hex(),
        "body_bytes": body_bytes,
        "sampled": _SAMPLED,
    }
    posting = {
        "tokens": population.tokens[:_POSTERS],
        "places": [place.as_json()],
        "body_bytes": body_bytes,
        "in_flight": _IN_FLIGHT,
        "seconds": seconds,
        "frames_max": int(_POSTS_A_SECOND_MAX * seconds),
        "with_times": True,
    }
    async with (
        running_relay(postgres, population.token_key) as relay,
        Generator.running("bench.readers", {"port": relay.port, **reading}) as readers,
        Generator.running("bench.posters", {"port": relay.port, **posting}) as posters,
    ):
        await readers.answer(_GRACE_S)
        await posters.answer(_GRACE_S)
        await posters.tell({"go": True})
        posted = await posters.answer(seconds + _GRACE_S)
        sent_ns = {seq: at for seq, at in posted["sent_ns"]}
        await readers.tell({"until": max(sent_ns)})
        read = await readers.answer(_GRACE_S)
    took_s = (read["last_ns"] - posted["first_sent_ns"]) / 1e9
    return Run(_MEMBERS * len(sent_ns) / took_s, _delivery_p99_ms(sent_ns, read))


def _delivery_p99_ms(sent_ns: Mapping[int, int], read: Mapping[str, Any]) -> float:
    """From the moment a post was sent to the moment a member had it, over every event of the sampled members."""
    late_ns: list[float] = []
    for arrivals in read["arrivals"]:
        seq = min(sent_ns) - 1
        for at, came_to in arrivals:
            late_ns += [at - sent_ns[number] for number in range(seq + 1, came_to + 1)]
            seq = came_to
    return percentile(sorted(late_ns), 0.99) / 1e6


# ── the yardstick ───────────────────────────────────────────────────────────────────────────────────────────────────


async def _sends_a_second(program: Path, seconds: float) -> float:
    process = await asyncio.create_subprocess_exec(
        *(str(program), str(_MEMBERS), str(_WIRE_BYTES), str(seconds)), stdout=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(seconds + _GRACE_S):
            port = int(await _line(process))
            async with Generator.running("bench.readers", {"port": port, "members": _MEMBERS}) as readers:
                messages, took_s, _cpu_s = (float(word) for word in (await _line(process)).split())
                drained = await readers.answer(_GRACE_S)
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
    if drained["received_bytes"] != messages * _WIRE_BYTES:
        raise BenchError("the yardstick's readers missed some of it")
    return messages / took_s


async def _line(process: asyncio.subprocess.Process) -> bytes:
    if process.stdout is None:
        raise BenchError("the yardstick was started without a pipe")
    return await process.stdout.readline()

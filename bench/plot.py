"""`python -m bench.plot [FILE.svg]`: throughput and latency against load, groups, members and stored posts, drawn.

Throughput is a share of pgbench's best rate of single-row inserts on the same server, measured in the same run. Each
latency is the median of five runs.
"""

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench import ingest, latency, latency_under_load
from bench.figures import Latency, say
from bench.people import Population, add_replies, populate
from bench.pgbench import Yardstick
from bench.stage import Postgres, running_postgres

PICTURE: Final = Path("docs/pictures/performance.svg")
SECONDS: Final = 3
RUNS: Final = 5
USERS: Final = 33
USUAL_GROUPS: Final = 50
SHARES: Final = (0.1, 0.25, 0.5, 0.7, 0.85)
GROUPS: Final = (10, 100, 1_000, 10_000)
MEMBERS: Final = (10, 100, 1_000)
STORED: Final = (0, 100_000, 1_000_000)
LOAD: Final = 0.25  # of the fastest rate, where latency is shown against something else
_BODY_BYTES: Final = 400


@dataclass
class Curve:
    """What is shown against one thing: throughput as a share of pgbench's, and milliseconds."""

    against: str
    x: list[float] = field(default_factory=list)
    throughput: list[float] = field(default_factory=list)
    acknowledged_p99_ms: list[float] = field(default_factory=list)
    delivered_p99_ms: list[float] = field(default_factory=list)

    def add(self, x: float, throughput: float | None, acked: Latency, delivered: Latency) -> None:
        self.x.append(x)
        if throughput is not None:
            self.throughput.append(throughput)
        self.acknowledged_p99_ms.append(acked.p99_ms)
        self.delivered_p99_ms.append(delivered.p99_ms)
        shown = "" if throughput is None else f"{throughput:.2f} x pgbench, "
        say(
            f"  {self.against} {x:g}: {shown}p99 acknowledged {self.acknowledged_p99_ms[-1]:.1f} ms,"
            f" delivered {self.delivered_p99_ms[-1]:.1f} ms"
        )


async def measure() -> list[Curve]:
    """All curves."""
    return [await against_load(), await against_groups(), await against_members(), await against_stored()]


async def against_load() -> Curve:
    """How long posts take at shares of the fastest rate."""
    curve = Curve("share of the fastest rate")
    async with running_postgres("load") as postgres, Yardstick.ready(postgres) as yardstick:
        rows = await yardstick.rate(32, SECONDS)
        population = await populate(postgres.dsn, users=USERS, groups=USUAL_GROUPS)
        fastest = await ingest.posts_a_second(postgres, population, SECONDS)
        for share in SHARES:
            curve.add(share, fastest * share / rows, *await _paced(postgres, population, fastest * share))
    return curve


async def against_groups() -> Curve:
    """The fastest rate, and latency at a quarter of it, spread over few and many groups."""
    curve = Curve("groups")
    for groups in GROUPS:
        async with running_postgres("groups") as postgres, Yardstick.ready(postgres) as yardstick:
            rows = await yardstick.rate(32, SECONDS)
            population = await populate(postgres.dsn, users=USERS, groups=groups)
            await _point(curve, groups, rows, postgres, population)
    return curve


async def against_members() -> Curve:
    """One post at a time to few and many members, until the last has it."""
    curve = Curve("members online")
    for members in MEMBERS:
        async with running_postgres("members") as postgres:
            population = await populate(postgres.dsn, users=members, groups=1)
            runs = [await latency.one_by_one(postgres, population, SECONDS) for _ in range(RUNS)]
            delivered, acked = _middle(runs)
            curve.add(members, None, acked, delivered)
    return curve


async def against_stored() -> Curve:
    """The same as with groups, on a database that holds more and more."""
    curve = Curve("stored posts")
    async with running_postgres("stored") as postgres, Yardstick.ready(postgres) as yardstick:
        rows = await yardstick.rate(32, SECONDS)
        population = await populate(postgres.dsn, users=USERS, groups=USUAL_GROUPS)
        there = 0
        for stored in STORED:
            if stored > there:
                await add_replies(postgres.dsn, population.places, (stored - there) // USUAL_GROUPS, _BODY_BYTES)
                await postgres.execute("VACUUM ANALYZE")
            there = stored
            await _point(curve, stored, rows, postgres, population)
    return curve


async def _point(curve: Curve, x: float, rows: float, postgres: Postgres, population: Population) -> None:
    await postgres.execute("CHECKPOINT")
    rate = await ingest.posts_a_second(postgres, population, SECONDS)
    few = population.places[:USUAL_GROUPS]  # a listener in each of these
    curve.add(x, rate / rows, *await _paced(postgres, population.at(few), rate * LOAD))


async def _paced(postgres: Postgres, population: Population, rate: float) -> tuple[Latency, Latency]:
    """Until acknowledged, and until delivered, at this rate."""
    runs = []
    for _ in range(RUNS):
        await postgres.execute("CHECKPOINT")
        runs.append(await latency_under_load.paced(postgres, population, rate, SECONDS))
    return _middle(runs)


def _middle(runs: Sequence[tuple[Sequence[float], Sequence[float]]]) -> tuple[Latency, Latency]:
    """Of runs that measured two things, each in microseconds, the middle of either."""
    first, second = zip(*runs, strict=True)
    return Latency.middle([*map(Latency.of, first)]), Latency.middle([*map(Latency.of, second)])


def draw(curves: Sequence[Curve], picture: Path) -> None:
    """Four panels: throughput on the left scale, latency on the right."""
    import matplotlib as mpl  # noqa: PLC0415  installed for this command alone

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "orbital"
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(2, 2, figsize=(11, 7.5), layout="constrained")
    for curve, axis in zip(curves, axes.flat, strict=True):
        late = axis
        if curve.throughput:
            axis.plot(curve.x, curve.throughput, "o-", color="#1b6e53", label="posts a second, pgbench's best = 1")
            axis.set_ylim(bottom=0)
            axis.set_ylabel("x pgbench")
            late = axis.twinx()
        late.plot(curve.x, curve.acknowledged_p99_ms, "s--", color="#b3541e", label="p99 until acknowledged")
        late.plot(curve.x, curve.delivered_p99_ms, "^--", color="#3b5b92", label="p99 until delivered")
        late.set_ylim(bottom=0)
        late.set_ylabel("ms")
        axis.set_xlabel(curve.against)
        if curve.against == "groups" or curve.against.startswith("members"):
            axis.set_xscale("log")
        if curve.against == "stored posts":
            axis.set_xscale("symlog", linthresh=100_000)
        axis.grid(alpha=0.25)
    handles = [handle for axis in figure.axes[:1] + figure.axes[-1:] for handle in axis.get_legend_handles_labels()[0]]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, metadata={"Date": None})


def main(picture: Path = PICTURE) -> None:
    """Measure, and draw."""
    draw(asyncio.run(measure()), picture)
    say(f"{picture} is drawn")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))

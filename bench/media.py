"""Files up and down over one connection, against `cp` on the same disk, or the AWS SDK at the same bucket; and what
becomes of posts while the store of files stands still.

What is acknowledged is durable, so `cp` is followed by a sync of its copy: neither side may leave the bytes to chance.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, Final

from bench.figures import Latency, Plan, Result, longest, say, spread
from bench.people import Population, new_id, populate
from bench.stage import Generator, Postgres, run, running_postgres, running_relay
from tests.swift import running_swift

BAR: Final = 0.5
FROZEN_BAR: Final = 2.0

_MIB: Final = 1024 * 1024
_LOCAL_MIB: Final = 256
_S3_MIB: Final = 96
_CHUNK_BYTES: Final = 524_288
_LIMIT_S: Final = 120
_MEMBERS: Final = 20
_BODY_BYTES: Final = 400
_LOOK_S: Final = 0.05
_WARM_UP: Final = 100
_HANGING_UPLOADS: Final = 16


@dataclass(frozen=True, slots=True)
class Moved:
    """MiB a second of one run."""

    up: float
    down: float
    yardstick: float


@dataclass
class Course:
    """One file to move, and what else moves it."""

    name: str
    postgres: Postgres
    mib: int
    yardstick: Callable[[], Awaitable[None]]
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def source(self) -> Path:
        """The file."""
        return source_of(self.postgres)

    async def run(self, plan: Plan) -> Result:
        """Alternate relay and yardstick."""
        await asyncio.to_thread(_touch_memory, self.source, 4 * self.mib)
        await asyncio.to_thread(_make_source, self.source, self.mib)
        population = await populate(self.postgres.dsn, users=1, groups=1)
        await self.yardstick()  # so that neither side is the first
        runs: list[Moved] = []
        async with self._mover(population) as mover:
            for number in range(1, plan.runs + 1):
                await self.postgres.execute("CHECKPOINT")
                runs.append(await self._run_once(mover))
                say(
                    f"  run {number}: up {runs[-1].up:,.0f} MiB/s, down {runs[-1].down:,.0f} MiB/s,"
                    f" yardstick {runs[-1].yardstick:,.0f} MiB/s"
                )
        ours = {"up": median(r.up for r in runs), "down": median(r.down for r in runs)}
        yardstick = median(r.yardstick for r in runs)
        ratio = {way: rate / yardstick for way, rate in ours.items()}
        met = all(value >= BAR for value in ratio.values())
        details = {"unit": "MiB/s", **spread([r.yardstick for r in runs])}
        return Result(self.name, ours, yardstick, ratio, BAR, met, details)

    @asynccontextmanager
    async def _mover(self, population: Population) -> AsyncIterator[Generator]:
        async with running_relay(self.postgres, population.token_key, media_sweep_ms=100, **self.settings) as relay:
            task = {
                "port": relay.port,
                "token": population.tokens[0],
                "path": str(self.source),
                "chunk_bytes": _CHUNK_BYTES,
                **population.places[0].as_json(),
            }
            async with Generator.running("bench.mover", task) as mover:
                await mover.answer(_LIMIT_S)
                yield mover

    async def _run_once(self, mover: Generator) -> Moved:
        media_id, into = new_id().hex(), self.source.with_name("fetched")
        await asyncio.to_thread(os.sync)
        await mover.tell({"up": media_id})
        up_s = (await mover.answer(_LIMIT_S))["seconds"]
        await asyncio.to_thread(os.sync)
        started = time.perf_counter()
        await self.yardstick()
        yardstick_s = time.perf_counter() - started
        await asyncio.to_thread(os.sync)
        await mover.tell({"down": media_id, "size": self.mib * _MIB, "into": str(into)})
        down_s = (await mover.answer(_LIMIT_S))["seconds"]
        into.unlink()
        await self._forget_files()
        return Moved(self.mib / up_s, self.mib / down_s, self.mib / yardstick_s)

    async def _forget_files(self) -> None:
        """Have the relay delete the file, so that the next one finds the disk as the yardstick does."""
        await self.postgres.execute("UPDATE media SET expires_at = clock_timestamp()")
        async with asyncio.timeout(_LIMIT_S):
            while await self.postgres.fetchval(  # noqa: ASYNC110  another process knows
                "SELECT EXISTS (SELECT 1 FROM media) OR EXISTS (SELECT 1 FROM blob_deletions WHERE due_at <= now())"
            ):
                await asyncio.sleep(_LOOK_S)


async def measure(plan: Plan) -> Result:
    """A folder, beside cp."""
    say(f"media: {_LOCAL_MIB} MiB up and down over one connection; against cp and a sync on the same disk")
    async with running_postgres("media") as postgres:
        unsynced: list[float] = []

        async def copy() -> None:
            source, target = source_of(postgres), source_of(postgres).with_name("copy")
            started = time.perf_counter()
            await run(("cp", str(source), str(target)), _LIMIT_S)
            unsynced.append(_LOCAL_MIB / (time.perf_counter() - started))
            await run(("sync", str(target)), _LIMIT_S)
            target.unlink()

        course = Course("media", postgres, _LOCAL_MIB, copy)
        result = await course.run(plan)
        return replace(result, details={**result.details, "cp_unsynced": round(median(unsynced), 1)})


async def measure_s3(plan: Plan) -> Result:
    """A bucket of a real S3 service on this machine, beside the SDK's own upload."""
    say(f"media_s3: {_S3_MIB} MiB up and down through the relay; against an upload by the AWS SDK alone")
    async with running_postgres("media-s3") as postgres, running_swift() as s3:
        bucket = await s3.make_bucket()

        async def upload() -> None:
            async with s3.client() as client:
                await client.upload_file(str(source_of(postgres)), bucket, new_id().hex())

        settings = {**s3.settings, "s3_bucket": bucket}
        return await Course("media_s3", postgres, _S3_MIB, upload, settings).run(plan)


def source_of(postgres: Postgres) -> Path:
    """Where the file to be moved is."""
    return postgres.directory / "source"


def _touch_memory(path: Path, mib: int) -> None:
    """Fill as much of the kernel's cache as the runs will, and free it.

    On a virtual machine, memory that was never used before costs several times as much.
    """
    with path.open("wb") as file:
        for _ in range(mib):
            file.write(bytes(_MIB))
    path.unlink()


def _make_source(source: Path, mib: int) -> None:
    with source.open("wb") as file:
        for _ in range(mib):
            file.write(os.urandom(_MIB))


# ── while the store stands still ────────────────────────────────────────────────────────────────────────────────────


async def measure_frozen(plan: Plan) -> Result:
    """Posts one at a time, while uploads that try again and again hang at a store that is stopped; and without that."""
    say(
        f"media_frozen: one post at a time to {_MEMBERS} members, while {_HANGING_UPLOADS} uploads hang at a frozen"
        " store; against the same without them"
    )
    async with running_postgres("media-frozen") as postgres, running_swift() as s3:
        population = await populate(postgres.dsn, users=_MEMBERS, groups=1)
        settings = {**s3.settings, "s3_bucket": await s3.make_bucket()}
        frozen: list[Latency] = []
        normal: list[Latency] = []
        for number in range(1, plan.runs + 1):
            async with running_relay(postgres, population.token_key, **settings) as relay:
                await postgres.execute("CHECKPOINT")
                normal.append(await _posts(relay.port, population, plan.seconds))
                s3.freeze()
                try:
                    async with _hanging(relay.port, population):
                        frozen.append(await _posts(relay.port, population, plan.seconds))
                finally:
                    s3.thaw()
            say(f"  run {number}: frozen {frozen[-1]}, normal {normal[-1]}")
    ours, yardstick = Latency.middle(frozen), Latency.middle(normal)
    ratio = ours.p99_ms / yardstick.p99_ms
    return Result(
        "media_frozen",
        ours.as_figure(),
        yardstick.as_figure(),
        {"p99": ratio},
        {"p99": FROZEN_BAR},
        ratio <= FROZEN_BAR,
        {**longest(ours, yardstick), **spread([run.p99_ms for run in normal])},
    )


async def _posts(port: int, population: Population, seconds: float) -> Latency:
    """Until each post was acknowledged."""
    task = {
        "port": port,
        "tokens": population.tokens,
        "place": population.places[0].as_json(),
        "body_bytes": _BODY_BYTES,
        "seconds": seconds,
        "warm_up": _WARM_UP,
    }
    async with Generator.running("bench.one_by_one", task) as posters:
        done = await posters.answer(seconds + _LIMIT_S)
    return Latency.of(done["acked_us"])


@asynccontextmanager
async def _hanging(port: int, population: Population) -> AsyncIterator[None]:
    """Uploads that get nowhere, and don't give up."""
    task = {
        "port": port,
        "tokens": population.tokens[:_HANGING_UPLOADS],
        **population.places[0].as_json(),
    }
    async with Generator.running("bench.hangers", task) as hangers:
        await hangers.answer(_LIMIT_S)
        yield

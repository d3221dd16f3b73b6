"""Post for a long time and see what a relay keeps: `python -m tests.system.soak MINUTES`.

A sample every ten seconds: memory, file descriptors, the notification queue. The first fifth of the time is for warming
up; afterwards nothing may grow. What clients saw is judged in the end.
"""

import asyncio
import os
import sys
import time
from dataclasses import dataclass
from typing import Final

from tests.postgres import running_postgres
from tests.relays import RunningRelay, running_relay
from tests.stage import Stage, stage_on
from tests.system.crowd import crowd_on

SAMPLE_S: Final = 10
GROUPS: Final = 4
KIB_MORE: Final = 16 * 1024
FILES_MORE: Final = 4
QUEUE_SHARE: Final = 0.01


@dataclass(frozen=True)
class Sample:
    """What there was at one moment."""

    resident_kib: int
    files: int
    queue_share: float
    answered: int

    def __str__(self) -> str:
        return (
            f"{self.answered:,} posts, {self.resident_kib / 1024:.1f} MiB, {self.files} files,"
            f" notification queue {self.queue_share:.1%}"
        )


async def sample(relay: RunningRelay, stage: Stage, answered: int) -> Sample:
    return Sample(
        relay.resident_kib(),
        len(os.listdir(f"/proc/{relay.process.pid}/fd")),
        await stage.sql.fetchval("SELECT pg_notification_queue_usage()"),
        answered,
    )


async def soak(minutes: float) -> list[str]:
    """What grew, or was not as it must be; nothing if all is well."""
    async with (
        running_postgres() as postgres,
        postgres.migrated_database() as dsn,
        stage_on(dsn) as stage,
        running_relay(dsn) as relay,
        crowd_on(stage, lambda: [relay.url], groups=GROUPS) as crowd,
    ):
        samples: list[Sample] = []
        end = time.monotonic() + 60 * minutes
        while time.monotonic() < end:
            await asyncio.sleep(min(SAMPLE_S, 12 * minutes))
            await crowd.progress()
            samples.append(await sample(relay, stage, crowd.answered))
            print(samples[-1], flush=True)
        verdict = await crowd.rest()
        print(verdict)
        warm, last = samples[len(samples) // 5], samples[-1]
        return [
            *(str(violation) for violation in verdict.violations),
            *(["memory grew"] if last.resident_kib - warm.resident_kib > KIB_MORE else []),
            *(["files grew"] if last.files - warm.files > FILES_MORE else []),
            *(["the notification queue grew"] if last.queue_share > QUEUE_SHARE else []),
        ]


def main(minutes: float) -> int:
    """Print what was seen; the exit status."""
    wrong = asyncio.run(soak(minutes))
    for line in wrong:
        print(line)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1])))

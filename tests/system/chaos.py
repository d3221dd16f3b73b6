"""Kill relays and the database again and again while people post: `python -m tests.system.chaos ROUNDS [SEED]`.

Two relays on one PostgreSQL; each round kills one of them by SIGKILL, stops PostgreSQL at once (as `-m immediate`), or
kills one of its backends by SIGKILL, from which it recovers as from a crash. Everything that clients sent and got is
held against the invariants of `history` in the end.
"""

import asyncio
import random
import sys
from collections import Counter
from dataclasses import dataclass
from typing import Final

from tests.stage import stage_on
from tests.system.chaos_house import house
from tests.system.crowd import Crowd
from tests.system.history import Verdict

GROUPS: Final = 3


@dataclass(frozen=True)
class Figures:
    """What was done, and what the judge says."""

    rounds: int
    kills: Counter[str]
    verdict: Verdict

    def __str__(self) -> str:
        kills = ", ".join(f"{name} {count}" for name, count in sorted(self.kills.items()))
        return f"{self.rounds} rounds (killed: {kills}); {self.verdict}"


async def chaos(rounds: int, seed: int) -> Figures:
    """So many rounds, chosen by the seed; raises TimeoutError if it doesn't recover within a minute."""
    async with house(random.Random(seed)) as at:
        crowd = Crowd(at.dsn)
        try:
            async with stage_on(at.dsn) as stage:
                for _ in range(GROUPS):
                    await crowd.settle(stage, at.urls)
            for number in range(1, rounds + 1):
                await crowd.progress()
                await at.strike()
                if number % 10 == 0:
                    events = sum(client.seq for client in crowd.clients)
                    print(f"{number} rounds, {events:,} events", flush=True)
            await crowd.progress()
            verdict = await crowd.rest()
        finally:
            await crowd.end()
        return Figures(rounds, at.kills, verdict)


def main(rounds: int, seed: int = 1) -> int:
    """Print the figures; the exit status."""
    figures = asyncio.run(chaos(rounds, seed))
    for violation in figures.verdict.violations[:50]:
        print(violation)
    print(figures)
    return bool(figures.verdict.violations)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))

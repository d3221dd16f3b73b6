"""`python -m bench [BENCH ...] [--seconds S] [--runs N]`; without a name, all of them."""

import argparse
import asyncio
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final

from bench import fanout, growth, ingest, latency, latency_under_load, media, memory, storm, trust
from bench.figures import Plan, Result
from bench.stage import BenchError

Measure = Callable[[Plan], Coroutine[Any, Any, Result | Sequence[Result]]]

BENCHES: Final[Mapping[str, Measure]] = {
    "ingest": ingest.measure,
    "fanout": fanout.measure,
    "latency": latency.measure,
    "latency_under_load": latency_under_load.measure,
    "memory": memory.measure,
    "storm": storm.measure,
    "growth": growth.measure,
    "media": media.measure,
    "media_s3": media.measure_s3,
    "media_frozen": media.measure_frozen,
    "trust": trust.measure,
}


def main() -> None:
    """Run what was asked for, and print a JSON line for each; `trust` has two."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="BENCH", help=f"any of {', '.join(BENCHES)}; default all")
    parser.add_argument("--seconds", type=float, default=4, help="how long one run measures (default 4)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each side, alternating; the median counts")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.names if name not in BENCHES]:
        parser.error(f"no such benchmark: {', '.join(unknown)}")
    if arguments.seconds <= 0 or arguments.runs < 1:
        parser.error("--seconds must be above 0, --runs at least 1")
    plan = Plan(arguments.seconds, arguments.runs)
    for name in arguments.names or BENCHES:
        try:
            found = asyncio.run(BENCHES[name](plan))
        except BenchError as error:
            sys.exit(f"bench {name}: {error}")
        for result in [found] if isinstance(found, Result) else found:
            print(result.as_json_line(), flush=True)


if __name__ == "__main__":
    main()

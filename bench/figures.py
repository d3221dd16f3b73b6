"""What is measured for how long, and what comes out of it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Final

Figure = float | Mapping[str, float] | None

_US_A_MS: Final = 1000


@dataclass(frozen=True, slots=True)
class Plan:
    """How long a run measures, and how many runs of each side there are."""

    seconds: float
    runs: int


@dataclass(frozen=True, slots=True)
class Result:
    """One benchmark's figures. `ratio` is ours to the yardstick's; None where there is no yardstick here."""

    bench: str
    ours: Figure
    yardstick: Figure
    ratio: Figure
    bar: Figure
    met: bool | None
    details: Mapping[str, object] = field(default_factory=dict)

    def as_json_line(self) -> str:
        """One line for programs."""
        named = {
            "bench": self.bench,
            "ours": _rounded(self.ours),
            "yardstick": _rounded(self.yardstick),
            "ratio": _rounded(self.ratio),
            "bar": self.bar,
            "met": self.met,
        }
        return json.dumps(named | dict(self.details))


def _rounded(figure: Figure) -> Figure:
    if isinstance(figure, Mapping):
        return {name: round(value, 3) for name, value in figure.items()}
    return None if figure is None else round(figure, 3)


@dataclass(frozen=True, slots=True)
class Latency:
    """Two percentiles and the longest, in milliseconds: no percentile of a few hundred tells of a single stall."""

    p50_ms: float
    p99_ms: float
    max_ms: float

    @classmethod
    def of(cls, microseconds: Sequence[float]) -> "Latency":
        """Of some measurements; there must be one."""
        ordered = [time_us / _US_A_MS for time_us in sorted(microseconds)]
        return cls(percentile(ordered, 0.50), percentile(ordered, 0.99), ordered[-1])

    @classmethod
    def middle(cls, runs: Sequence["Latency"]) -> "Latency":
        """The median of each percentile, and the longest of all."""
        return cls(
            median(run.p50_ms for run in runs), median(run.p99_ms for run in runs), max(run.max_ms for run in runs)
        )

    def as_figure(self) -> Mapping[str, float]:
        """The percentiles, for a result."""
        return {"p50_ms": self.p50_ms, "p99_ms": self.p99_ms}

    def __str__(self) -> str:
        return f"p50 {self.p50_ms:.2f} ms, p99 {self.p99_ms:.2f} ms, max {self.max_ms:.0f} ms"


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the ordered values doesn't exceed."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def spread(yardsticks: Sequence[float]) -> dict[str, float]:
    """How far apart the yardstick's runs were, as a share of their median: the noise of the machine meanwhile."""
    return {"yardstick_spread": round((max(yardsticks) - min(yardsticks)) / median(yardsticks), 2)}


def longest(ours: Latency, yardstick: Latency) -> dict[str, float]:
    """The longest of each side, for a result's details."""
    return {"max_ms": round(ours.max_ms, 1), "yardstick_max_ms": round(yardstick.max_ms, 1)}


def say(text: str) -> None:
    """Tell whoever watches what happens."""
    print(text, flush=True)

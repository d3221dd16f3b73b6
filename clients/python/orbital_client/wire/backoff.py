"""How long to wait before trying again."""

import random
from collections.abc import Callable
from typing import Final

Uniform = Callable[[float, float], float]
"""A random number between two bounds: `random.uniform`, or a test's."""

BASE_S: Final = 0.5
CAP_S: Final = 30.0


class Backoff:
    """Exponential backoff with full jitter: the n-th wait is anything between 0 and `base_s * 2^n`, at most `cap_s`."""

    def __init__(self, *, base_s: float = BASE_S, cap_s: float = CAP_S, uniform: Uniform = random.uniform) -> None:
        self._base_s = base_s
        self._cap_s = cap_s
        self._uniform = uniform
        self._ceiling_s = base_s

    def next_s(self, retry_after_ms: int | None = None) -> float:
        """Seconds to wait: what the relay asked for, and on top of it what spreads those who were asked the same."""
        ceiling_s, self._ceiling_s = self._ceiling_s, min(self._cap_s, self._ceiling_s * 2)
        return (retry_after_ms or 0) / 1000 + self._uniform(0, ceiling_s)

    def reset(self) -> None:
        """It worked: begin small again."""
        self._ceiling_s = self._base_s

"""What a bot does by the clock, whether or not anything was posted."""

import asyncio
import time
from dataclasses import dataclass
from typing import Final

from orbital_client.bots.routing import Handler

_LOOK_S: Final = 30.0  # the clock may be set, and stands still for a machine that sleeps


@dataclass(frozen=True, slots=True)
class Timer:
    """A handler that is called whenever the clock (UTC) passes a multiple of so many seconds, plus an offset."""

    handler: Handler
    name: str
    seconds: float
    offset_s: float

    def __post_init__(self) -> None:
        if not self.seconds > 0:
            raise ValueError("the time between two calls must be more than nothing")

    def period(self, now_s: float) -> int:
        """Which time between two calls it is."""
        return int((now_s - self.offset_s) // self.seconds)

    async def passed(self, period: int) -> int:
        """Wait until this period is over; which one it is then."""
        while (now := self.period(time.time())) <= period:
            ends_at = (period + 1) * self.seconds + self.offset_s
            await asyncio.sleep(min(max(ends_at - time.time(), 0), _LOOK_S))
        return now

"""Wake-ups: whoever waits looks again, and may find that nothing concerns them."""

import asyncio
from collections.abc import Callable
from contextlib import suppress


class Pulse:
    """Beats whenever something has changed. No beat is lost to whoever looks before they wait."""

    def __init__(self) -> None:
        self._next = asyncio.Event()

    def beat(self) -> None:
        """Wake all who wait."""
        self._next.set()
        self._next = asyncio.Event()

    def mark(self) -> asyncio.Event:
        """The next beat: to be waited for later, however much happens until then."""
        return self._next

    async def wait(self, timeout_s: float | None = None, beat: asyncio.Event | None = None) -> None:
        """Wait for the next beat, or that of a `mark`, or for so long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await (beat or self._next).wait()

    async def until(self, holds: Callable[[], bool], timeout_s: float | None = None) -> bool:
        """Wait until it holds, looking at each beat; False if it doesn't within that time."""
        if holds():  # without a timer, which every post would pay for
            return True
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not holds():
                    await self._next.wait()
        return holds()

"""Handlers at work: what they raise is logged without its words, which may be somebody's, and ends nothing."""

import asyncio
import logging
import traceback
from pathlib import Path
from typing import Any, Final

from orbital_client.bots.routing import Handler
from orbital_client.errors import RequestFailed

log = logging.getLogger("orbital_client.bots")

_STOP_S: Final = 10.0
_CANCEL_S: Final = 1.0
_PLACES: Final = 5
_CAUSES: Final = 3


class Calls:
    """Calls handlers, and knows which are at work."""

    def __init__(self) -> None:
        self._at_work: set[asyncio.Task[None]] = set()

    async def make(self, name: str, handler: Handler, *arguments: Any) -> None:
        """Call a handler, and wait for its end, however it ends."""
        task = asyncio.create_task(_call(handler, arguments), name=f"orbital-bot-{name}")
        self._at_work.add(task)
        task.add_done_callback(self._ended)
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.wait({task}, timeout=_CANCEL_S)
            raise

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._at_work.discard(task)
        name = task.get_name().removeprefix("orbital-bot-")
        if task.cancelled():
            log.warning("the handler %s was cancelled", name)
        elif (error := task.exception()) is not None:
            log.error("the handler %s failed: %s", name, described(error))

    async def finish(self) -> None:
        """Wait for those that are at work, for some time."""
        if self._at_work:
            await asyncio.wait(set(self._at_work), timeout=_STOP_S)


async def _call(handler: Handler, arguments: tuple[Any, ...]) -> None:
    await handler(*arguments)


def described(error: BaseException) -> str:
    """`ValueError (bot.py:12 in ping)`, and what it came of. No text of the error's, no values."""
    chain = [error]
    while len(chain) < _CAUSES and (cause := _cause(chain[-1])) is not None:
        chain.append(cause)
    return ", because of ".join(f"{_kind(one)}{_places(one)}" for one in chain)


def _kind(error: BaseException) -> str:
    name = type(error).__qualname__
    return f"{name} {error.code}" if isinstance(error, RequestFailed) else name


def _places(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)[-_PLACES:]
    places = ", ".join(f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}" for frame in frames)
    return f" ({places})" if places else ""


def _cause(error: BaseException) -> BaseException | None:
    return error.__cause__ or (None if error.__suppress_context__ else error.__context__)

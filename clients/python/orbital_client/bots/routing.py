"""Which handlers an item is for. No I/O."""

import inspect
import shlex
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from orbital_client.messages import Erased, GroupChange, Item, Message, Suspicious, Update

Handler = Callable[..., Awaitable[object]]

EVENTS: Final[dict[str, tuple[type, ...]]] = {
    "message": (Message,),
    "update": (Update,),
    "erased": (Erased,),
    "change": (GroupChange,),
    "suspicious": (Suspicious,),
}
"""What `Bot.on` can be asked for, beside `notice`."""

KINDS: Final = frozenset({"thread", "reply", "file"})


@dataclass(frozen=True, slots=True)
class Route:
    """A handler, and what it wants: of which event, of which kind of message, in which group and thread.

    `name` is no other route's.
    """

    handler: Handler
    event: str
    kind: str | None = None
    group: str | bytes | None = None
    thread: bytes | None = None
    command: str | None = None
    name: str = ""

    def __post_init__(self) -> None:
        require_async(self.handler)
        if self.event not in EVENTS and self.event != "notice":
            raise ValueError(f"there is no event {self.event!r}: there are {', '.join((*EVENTS, 'notice'))}")
        if self.kind is not None and self.kind not in KINDS:
            raise ValueError(f"messages are of kind {', '.join(sorted(KINDS))}, not {self.kind!r}")

    def wants(self, item: Item, group_name: str, group_id: bytes) -> bool:
        """Whether the item is for this handler."""
        if not isinstance(item, EVENTS.get(self.event, ())):
            return False
        if self.group is not None and self.group not in (group_name, group_id):
            return False
        if not isinstance(item, Message):
            return self.kind is None and self.thread is None
        return self.kind in (None, item.kind) and self.thread in (None, item.thread_id)

    def takes(self, words: tuple[str, ...]) -> bool:
        """Whether the handler has parameters for so many words behind the message."""
        try:
            inspect.signature(self.handler).bind(None, *words)
        except TypeError:
            return False
        return True


def require_async(handler: Callable[..., Any]) -> None:
    """Raise TypeError for what can't be awaited when it is called."""
    if not inspect.iscoroutinefunction(handler) and not inspect.iscoroutinefunction(type(handler).__call__):
        raise TypeError(f"{name_of(handler)} must be an async function")


def name_of(handler: Callable[..., Any]) -> str:
    """What a handler is called."""
    return getattr(handler, "__qualname__", type(handler).__qualname__)


class Routes:
    """All handlers of a bot."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._routes: list[Route] = []

    def add(self, route: Route) -> None:
        """Add a handler; it is called after those that were added before."""
        name = name_of(route.handler)
        before = sum(name_of(other.handler) == name for other in self._routes)
        self._routes.append(replace(route, name=f"{name}-{before + 1}" if before else name))

    def matches(
        self, item: Item, group_name: str, group_id: bytes, own_name: str
    ) -> Iterator[tuple[Route, tuple[str, ...]]]:
        """Whom an item is for, in the order in which handlers were added; with a command, the words behind it."""
        words = self._words(item.text, own_name) if isinstance(item, Message) else ()
        for route in self._routes:
            if route.wants(item, group_name, group_id):
                if route.command is None:
                    yield route, ()
                elif words and words[0] == route.command:
                    yield route, words[1:]

    def for_notices(self) -> Iterator[Route]:
        """Whom notices are for."""
        return (route for route in self._routes if route.event == "notice")

    def _words(self, text: str, own_name: str) -> tuple[str, ...]:
        """The command in a text and its arguments, which may be quoted; none where it has no command."""
        line = text.strip().partition("\n")[0]
        mentioned, mention, behind = line.partition(" ")
        if mentioned.rstrip(":,") == f"@{own_name}" and mention:
            line = behind
        elif line.startswith(self._prefix):
            line = line.removeprefix(self._prefix)
        else:
            return ()
        try:
            return tuple(shlex.split(line))
        except ValueError:  # a quote that doesn't end
            return tuple(line.split())

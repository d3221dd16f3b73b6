"""Which handlers an item is for. No I/O."""

import shlex
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from orbital_client.client import Notice
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
    """A handler, and what it wants: of which event, of which kind of message, in which group and thread."""

    handler: Handler
    event: str
    kind: str | None = None
    group: str | bytes | None = None
    thread: bytes | None = None
    command: str | None = None

    def __post_init__(self) -> None:
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


@dataclass(frozen=True, slots=True)
class Call:
    """A handler with its arguments."""

    handler: Handler
    arguments: tuple[Any, ...]


class Routes:
    """All handlers of a bot."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._routes: list[Route] = []

    def add(self, route: Route) -> None:
        self._routes.append(route)

    def calls(self, item: Item, group_name: str, group_id: bytes) -> Iterator[Call]:
        """What is to be called for an item, in the order in which handlers were added."""
        for route in self._routes:
            if route.wants(item, group_name, group_id):
                if route.command is None:
                    yield Call(route.handler, (item,))
                elif isinstance(item, Message) and (words := self._words(item.text)) and words[0] == route.command:
                    yield Call(route.handler, (item, *words[1:]))

    def for_notice(self, notice: Notice) -> Iterator[Call]:
        """What is to be called for a notice."""
        return (Call(route.handler, (notice,)) for route in self._routes if route.event == "notice")

    def _words(self, text: str) -> list[str]:
        """The command in a text and its arguments, which may be quoted; none where it has no command."""
        line = text.strip().partition("\n")[0]
        if not line.startswith(self._prefix):
            return []
        line = line.removeprefix(self._prefix)
        try:
            return shlex.split(line)
        except ValueError:  # a quote that doesn't end
            return line.split()

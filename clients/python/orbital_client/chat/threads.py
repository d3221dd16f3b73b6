"""The thread that is open: its messages as they stand, with what happened in the group between them."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from orbital_client.errors import LogBroken, NotFound, OrbitalError
from orbital_client.group import Group
from orbital_client.messages import Erased, Item, Message, Update
from orbital_client.pulse import Pulse

_AGAIN_S: Final = 1.0
_SHOWN: Final = 500


@dataclass(frozen=True, slots=True)
class Note:
    """Something that happened in a group beside messages. `is_wrong`: it should not have."""

    seq: int
    text: str
    is_wrong: bool = False


Entry = Message | Note


class Conversation:
    """A thread's messages, in the order of the log."""

    def __init__(self) -> None:
        self._messages: dict[bytes, Message] = {}

    def __contains__(self, message_id: object) -> bool:
        return message_id in self._messages

    def put(self, message: Message) -> None:
        """A message as it stands now."""
        self._messages[message.id] = message

    def get(self, message_id: bytes) -> Message | None:
        return self._messages.get(message_id)

    @property
    def messages(self) -> list[Message]:
        """Oldest first."""
        return sorted(self._messages.values(), key=lambda message: message.seq)

    def last(self, holds: Callable[[Message], bool]) -> Message | None:
        """The last message of which this holds."""
        return next((message for message in reversed(self.messages) if holds(message)), None)

    def entries(self, notes: Iterable[Note]) -> list[Entry]:
        """The last messages, and between them what happened from the first of these on."""
        messages = self.messages[-_SHOWN:]
        first_seq = messages[0].seq if messages else 0
        entries: list[Entry] = [*messages, *(note for note in notes if note.seq >= first_seq)]
        return sorted(entries, key=lambda entry: entry.seq)


class OpenThread:
    """A thread that is looked at. `run` loads it and keeps it up to date; `touch` tells it what happens."""

    def __init__(self, group: Group, thread_id: bytes) -> None:
        self.group = group
        self.id = thread_id
        self.conversation = Conversation()
        self.problem = ""
        """Why it can't be shown just now."""
        self._is_loaded = False
        self._stale: dict[bytes, None] = {}
        self._pulse = Pulse()

    def touch(self, item: Item) -> None:
        """Something happened in the group, which may concern this thread."""
        match item:
            case Message(id=message_id, thread_id=thread_id) if thread_id == self.id:
                self._stale[message_id] = None
            case Update(message_id=message_id) | Erased(message_id=message_id):
                if not self._is_loaded or message_id in self.conversation:
                    self._stale[message_id] = None
            case _:
                return
        self._pulse.beat()

    async def run(self, on_change: Callable[[], None]) -> None:
        """Until it is cancelled, the group's log is broken, or nothing can be seen of it any more."""
        while True:
            beat = self._pulse.mark()
            try:
                await self._read()
            except (LogBroken, NotFound):
                return
            except (OrbitalError, TimeoutError) as error:
                self.problem = str(error)
                on_change()
                await asyncio.sleep(_AGAIN_S)
                continue
            self.problem = ""
            on_change()
            await self._pulse.wait(beat=beat)

    async def _read(self) -> None:
        if not self._is_loaded:
            for message in await self.group.thread(self.id):
                self.conversation.put(message)
            self._is_loaded = True
        while self._stale:
            message_id = next(iter(self._stale))
            del self._stale[message_id]  # before it is asked for: it may change meanwhile
            try:
                message = await self.group.message(message_id)
            except OrbitalError:
                self._stale[message_id] = None
                raise
            if message.thread_id == self.id:
                self.conversation.put(message)

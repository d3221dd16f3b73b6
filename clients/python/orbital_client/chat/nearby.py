"""Who is here, and who types: what signals say, for as long as they count."""

from typing import Final

from orbital_client.crypto.contents import HERE, Presence, Typing
from orbital_client.trust.signals import Heard

HERE_FOR_S: Final = 60.0
TYPES_FOR_S: Final = 5.0
TYPING_EVERY_S: Final = 3.0


class Nearby:
    """What was heard of one group's members. Times are of a clock that only goes forward, in seconds."""

    def __init__(self) -> None:
        self._here: dict[bytes, float] = {}
        self._types: dict[bytes, tuple[bytes | None, float]] = {}

    def hear(self, heard: Heard, now_s: float) -> None:
        """Take note of a signal."""
        match heard.signal:
            case Typing(thread_id=thread_id):
                self._here[heard.user_id] = now_s
                self._types[heard.user_id] = (thread_id, now_s)
            case Presence(state=state) if state == HERE:
                self._here[heard.user_id] = now_s
            case Presence():
                self._here.pop(heard.user_id, None)
                self._types.pop(heard.user_id, None)

    def has_posted(self, user_id: bytes) -> None:
        """What somebody typed is there now."""
        self._types.pop(user_id, None)

    def here(self, now_s: float) -> frozenset[bytes]:
        """Who is here."""
        return frozenset(user_id for user_id, at_s in self._here.items() if now_s - at_s < HERE_FOR_S)

    def typing(self, thread_id: bytes | None, now_s: float) -> frozenset[bytes]:
        """Who writes in this thread; for None, a new one."""
        return frozenset(
            user_id
            for user_id, (where, at_s) in self._types.items()
            if where == thread_id and now_s - at_s < TYPES_FOR_S
        )


class Throttle:
    """Lets something happen at most once in so many seconds."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._last_s: float | None = None

    def allows(self, now_s: float) -> bool:
        """Whether it may happen now; if so, it has."""
        if self._last_s is not None and now_s - self._last_s < self._every_s:
            return False
        self._last_s = now_s
        return True

    def reset(self) -> None:
        """The next one may happen at once."""
        self._last_s = None

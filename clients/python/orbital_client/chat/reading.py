"""How far one has read: a place for each group, and for each thread that was read further. Kept in the store."""

from typing import Final

from orbital_client.chat.unread import Tally, tally
from orbital_client.store import Store
from orbital_client.timeline import MESSAGES
from orbital_protocol.frames import Cursor

_GROUP: Final = "read"
_COUNTED: Final = 1_000


class Reading:
    """One group's read places. Of what lies back more than a thousand messages, nothing counts as unread."""

    def __init__(self, store: Store, group_id: bytes, user_id: bytes) -> None:
        self._store = store
        self._group_id = group_id
        self._user_id = user_id
        self._seqs: dict[bytes, int] = {}

    @property
    def has_begun(self) -> bool:
        return self._store.cursor(self._group_id, _GROUP) is not None

    def read_all(self, cursor: Cursor) -> None:
        """Everything up to here is read."""
        self._put(_GROUP, cursor)

    def read(self, thread_id: bytes, cursor: Cursor) -> bool:
        """A thread is read up to here; whether that is news."""
        if cursor.seq <= self._seq(thread_id):
            return False
        self._seqs[thread_id] = cursor.seq
        self._put(_name(thread_id), cursor)
        return True

    def tally(self) -> Tally:
        """What has not been read."""
        group = self._store.cursor(self._group_id, _GROUP)
        group_seq = group.seq if group else 0
        messages = self._store.index(self._group_id).latest(MESSAGES, limit=_COUNTED)
        return tally(messages, lambda thread_id: max(group_seq, self._seq(thread_id)), self._user_id)

    def _seq(self, thread_id: bytes) -> int:
        if thread_id not in self._seqs:
            cursor = self._store.cursor(self._group_id, _name(thread_id))
            self._seqs[thread_id] = cursor.seq if cursor else 0
        return self._seqs[thread_id]

    def _put(self, name: str, cursor: Cursor) -> None:
        self._store.put_cursor(name, cursor)
        self._store.commit()


def _name(thread_id: bytes) -> str:
    return f"{_GROUP} {thread_id.hex()}"

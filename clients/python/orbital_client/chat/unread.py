"""What has not been read yet, counted for each thread."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from orbital_client.trust.index import Known
from orbital_protocol import ZERO_ID


@dataclass(frozen=True, slots=True)
class Tally:
    """`unread`: how many messages of others, by thread; `last_seq`: where each thread has its last message."""

    unread: Mapping[bytes, int] = field(default_factory=dict)
    last_seq: Mapping[bytes, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(self.unread.values())


def tally(messages: Iterable[Known], read_seq: Callable[[bytes], int], user_id: bytes) -> Tally:
    """Count a group's messages, which come in the order of its log, by how far this user has read each thread."""
    unread: dict[bytes, int] = {}
    last_seq: dict[bytes, int] = {}
    for known in messages:
        thread_id = known.object_id if known.parent_id == ZERO_ID else known.parent_id
        last_seq[thread_id] = known.seq
        is_news = known.actor_id != user_id and not known.erased_at and known.seq > read_seq(thread_id)
        if is_news:
            unread[thread_id] = unread.get(thread_id, 0) + 1
    return Tally(unread, last_seq)

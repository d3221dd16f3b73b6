"""What makes a log a log: each event holds what its hashes say, and continues the one before. No I/O."""

from binascii import a2b_base64
from dataclasses import dataclass
from typing import Final

from orbital_protocol import ZERO_HASH, ZERO_ID
from orbital_protocol.chain import content_hash, event_hash, field_hash, media_fields
from orbital_protocol.codes import Kind
from orbital_relay.store.operators import LogHead, LogRow

_HASH_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with an event, or with where one should be."""

    group_id: bytes
    seq: int
    problem: str


class LogCheck:
    """Takes the events of one group, from the first on, and tells what is wrong first."""

    def __init__(self, head: LogHead) -> None:
        self._head = head
        self._seq = 0
        self._hash = ZERO_HASH

    def take(self, row: LogRow) -> Finding | None:
        """Go on by one event."""
        if row.seq != self._seq + 1:
            return self._finding(self._seq + 1, "the event is missing")
        if (problem := _content_problem(row)) or (problem := _chain_problem(row, self._hash)):
            return self._finding(row.seq, problem)
        self._seq, self._hash = row.seq, row.hash
        return None

    def end(self) -> Finding | None:
        """What is wrong with the head, now that all events were taken up to it."""
        head = self._head
        if self._seq < head.seq:
            return self._finding(self._seq + 1, "the event is missing")
        if self._hash != head.hash:
            return self._finding(head.seq, "the head has another hash than its event")
        if head.last_event_seq > head.seq:
            return self._finding(head.seq + 1, "the log goes on after its head")
        return None

    def _finding(self, seq: int, problem: str) -> Finding:
        return Finding(self._head.group_id, seq, problem)


def check_tombstone(head: LogHead, rows: list[LogRow]) -> Finding | None:
    """Of a deleted group the last event is left, which the head names; what came before it is gone."""
    problem = None
    if [row.seq for row in rows] != [head.seq] or head.last_event_seq != head.seq:
        problem = "a deleted group has its last event and no other"
    elif rows[0].kind != Kind.GROUP_DELETED:
        problem = "the last event of a deleted group is its deletion"
    elif rows[0].hash != head.hash:
        problem = "the head has another hash than its event"
    else:
        problem = _content_problem(rows[0])
    return None if problem is None else Finding(head.group_id, head.seq, problem)


def _chain_problem(row: LogRow, previous_hash: bytes) -> str | None:
    try:
        hash_ = event_hash(
            previous_hash=previous_hash,
            group_id=row.group_id,
            seq=row.seq,
            kind=row.kind,
            object_id=row.object_id,
            actor_id=row.actor_id,
            key_epoch=row.key_epoch,
            created_at=row.created_at,
            content_hash=row.content_hash,
        )
    except OverflowError:
        return "a number is out of its range"
    return None if hash_ == row.hash else "the event does not continue the chain"


def _content_problem(row: LogRow) -> str | None:
    hashes = [row.field_hashes[i : i + _HASH_BYTES] for i in range(0, len(row.field_hashes), _HASH_BYTES)]
    if content_hash(row.parent_id or ZERO_ID, hashes) != row.content_hash:
        return "the content hash is not that of the field hashes"
    if row.erased:
        return None
    try:
        fields = _fields(row)
    except ValueError:
        return "the ciphertext is not base64"
    if fields is None:
        return "the content is gone, and was not erased"
    return None if [field_hash(field) for field in fields] == hashes else "the content is not what its hashes say"


def _fields(row: LogRow) -> list[bytes] | None:
    """The fields that the event's hashes are of; None where they are gone."""
    match row.kind:
        case Kind.THREAD_POSTED:
            texts = [row.encrypted_title, row.encrypted_body]
        case Kind.REPLY_POSTED | Kind.ANNOTATION_POSTED:
            texts = [row.encrypted_body]
        case Kind.MEDIA_POSTED:
            return _media_fields(row)
        case _:
            return [field for field in (row.statement, row.signature) if field is not None]
    return None if None in texts else [a2b_base64(text, strict_mode=True) for text in texts if text is not None]


def _media_fields(row: LogRow) -> list[bytes] | None:
    """The fields of a file's event, of which all are there or none."""
    if row.encrypted_metadata is None or row.encryption_iv is None or row.size_bytes is None or row.root is None:
        return None
    metadata, iv = (a2b_base64(text, strict_mode=True) for text in (row.encrypted_metadata, row.encryption_iv))
    return list(media_fields(metadata, iv, row.size_bytes, row.root))

"""What `log verify` finds, event by event: each way to tamper is found at its place."""

import base64
import dataclasses
from typing import Any

import pytest

from orbital_protocol import ZERO_HASH, ZERO_ID
from orbital_protocol.chain import RELAY_CONTENT_HASH, content_hash, control_content_hash, event_hash, field_hash
from orbital_protocol.codes import Kind
from orbital_relay.commands.verification import Finding, LogCheck, check_tombstone
from orbital_relay.store.operators import LogHead, LogRow

GROUP = b"g" * 16
THREAD, REPLY = 2, 3  # seqs of the log below


def event(seq: int, kind: Kind, previous: bytes, **content: Any) -> LogRow:
    row = LogRow(
        group_id=GROUP,
        seq=seq,
        hash=ZERO_HASH,
        kind=kind,
        object_id=bytes([seq]) * 16,
        actor_id=b"a" * 16,
        key_epoch=1,
        created_at=1_700_000_000_000_000 + seq,
        content_hash=content.pop("content_hash"),
        parent_id=content.pop("parent_id", None),
        field_hashes=content.pop("field_hashes"),
        statement=content.pop("statement", None),
        signature=content.pop("signature", None),
        encrypted_title=content.pop("encrypted_title", None),
        encrypted_body=content.pop("encrypted_body", None),
        encrypted_metadata=content.pop("encrypted_metadata", None),
        encryption_iv=content.pop("encryption_iv", None),
        size_bytes=content.pop("size_bytes", None),
        root=content.pop("root", None),
        erased=False,
    )
    return dataclasses.replace(row, hash=hash_of(row, previous))


def hash_of(row: LogRow, previous: bytes) -> bytes:
    return event_hash(
        previous_hash=previous,
        group_id=row.group_id,
        seq=row.seq,
        kind=row.kind,
        object_id=row.object_id,
        actor_id=row.actor_id,
        key_epoch=row.key_epoch,
        created_at=row.created_at,
        content_hash=row.content_hash,
    )


def control(seq: int, kind: Kind, previous: bytes) -> LogRow:
    statement, signature = b"statement %d" % seq, bytes(64)
    return event(
        seq,
        kind,
        previous,
        statement=statement,
        signature=signature,
        field_hashes=field_hash(statement) + field_hash(signature),
        content_hash=control_content_hash(statement, signature),
    )


def post(seq: int, kind: Kind, previous: bytes, parent_id: bytes | None, *fields: bytes) -> LogRow:
    hashes = [field_hash(field) for field in fields]
    *title, body = [base64.b64encode(field).decode() for field in fields]
    return event(
        seq,
        kind,
        previous,
        parent_id=parent_id,
        encrypted_title=title[0] if title else None,
        encrypted_body=body,
        field_hashes=b"".join(hashes),
        content_hash=content_hash(parent_id or ZERO_ID, hashes),
    )


def a_log() -> list[LogRow]:
    """Created; a thread; a reply; a member whose account was deleted left."""
    log = [control(1, Kind.GROUP_CREATED, ZERO_HASH)]
    log.append(post(2, Kind.THREAD_POSTED, log[-1].hash, None, b"title", b"body"))
    log.append(post(3, Kind.REPLY_POSTED, log[-1].hash, log[-1].object_id, b"reply"))
    log.append(event(4, Kind.MEMBER_LEFT, log[-1].hash, field_hashes=b"", content_hash=RELAY_CONTENT_HASH))
    return log


def head_of(log: list[LogRow], **changes: Any) -> LogHead:
    head = LogHead(GROUP, log[-1].seq, log[-1].hash, deleted=False, last_event_seq=log[-1].seq)
    return dataclasses.replace(head, **changes)


def findings(log: list[LogRow], head: LogHead) -> Finding | None:
    check = LogCheck(head)
    for row in log:
        if (finding := check.take(row)) is not None:
            return finding
    return check.end()


def tampered(seq: int, **changes: Any) -> list[LogRow]:
    return [dataclasses.replace(row, **changes) if row.seq == seq else row for row in a_log()]


def test_a_log_as_the_relay_writes_it_is_whole() -> None:
    assert findings(a_log(), head_of(a_log())) is None


def test_an_empty_log_is_whole() -> None:
    assert findings([], LogHead(GROUP, 0, ZERO_HASH, deleted=False, last_event_seq=0)) is None


def test_what_was_erased_on_purpose_is_no_finding() -> None:
    log = tampered(THREAD, encrypted_title=None, encrypted_body=None, erased=True)
    assert findings(log, head_of(a_log())) is None


@pytest.mark.parametrize(
    ("seq", "changes", "problem"),
    [
        (THREAD, {"encrypted_body": base64.b64encode(b"other").decode()}, "the content is not what its hashes say"),
        (THREAD, {"encrypted_title": base64.b64encode(b"other").decode()}, "the content is not what its hashes say"),
        (THREAD, {"encrypted_body": "no base64"}, "the ciphertext is not base64"),
        (THREAD, {"encrypted_body": "ü"}, "the ciphertext is not base64"),
        (THREAD, {"encrypted_title": None, "encrypted_body": None}, "the content is gone, and was not erased"),
        (THREAD, {"field_hashes": bytes(64)}, "the content hash is not that of the field hashes"),
        (THREAD, {"field_hashes": b""}, "the content hash is not that of the field hashes"),
        (THREAD, {"content_hash": bytes(32)}, "the content hash is not that of the field hashes"),
        (REPLY, {"parent_id": b"p" * 16}, "the content hash is not that of the field hashes"),
        (REPLY, {"kind": Kind.ANNOTATION_POSTED}, "the event does not continue the chain"),
        (REPLY, {"actor_id": b"b" * 16}, "the event does not continue the chain"),
        (REPLY, {"object_id": b"b" * 16}, "the event does not continue the chain"),
        (REPLY, {"key_epoch": 2}, "the event does not continue the chain"),
        (REPLY, {"created_at": 1}, "the event does not continue the chain"),
        (REPLY, {"hash": bytes(32)}, "the event does not continue the chain"),
        (REPLY, {"group_id": b"h" * 16}, "the event does not continue the chain"),
        (REPLY, {"key_epoch": -1}, "a number is out of its range"),
        (1, {"statement": b"another"}, "the content is not what its hashes say"),
        (1, {"signature": b"another"}, "the content is not what its hashes say"),
        (1, {"signature": None}, "the content is not what its hashes say"),
        (4, {"statement": b"put in later"}, "the content is not what its hashes say"),
    ],
)
def test_tampering_is_found_where_it_was_done(seq: int, changes: dict[str, Any], problem: str) -> None:
    assert findings(tampered(seq, **changes), head_of(a_log())) == Finding(GROUP, seq, problem)


@pytest.mark.parametrize("lost", [1, 2, 3, 4])
def test_a_lost_event_is_missed(lost: int) -> None:
    log = [row for row in a_log() if row.seq != lost]
    assert findings(log, head_of(a_log())) == Finding(GROUP, lost, "the event is missing")


def test_a_rewritten_tail_is_found_at_the_head() -> None:
    log = a_log()
    log[3] = dataclasses.replace(log[3], object_id=b"x" * 16)
    log[3] = dataclasses.replace(log[3], hash=hash_of(log[3], log[2].hash))
    assert findings(log, head_of(a_log())) == Finding(GROUP, 4, "the head has another hash than its event")


def test_events_beyond_the_head_are_found() -> None:
    assert findings(a_log(), head_of(a_log(), last_event_seq=6)) == Finding(GROUP, 5, "the log goes on after its head")


def test_of_a_deleted_group_its_deletion_is_left() -> None:
    last = control(9, Kind.GROUP_DELETED, bytes(32))
    head = LogHead(GROUP, 9, last.hash, deleted=True, last_event_seq=9)
    assert check_tombstone(head, [last]) is None
    for rows in ([], [control(8, Kind.MEMBER_LEFT, ZERO_HASH), last]):
        found = check_tombstone(head, rows)
        assert found == Finding(GROUP, 9, "a deleted group has its last event and no other")
    assert check_tombstone(dataclasses.replace(head, hash=bytes(32)), [last]) is not None
    assert check_tombstone(head, [dataclasses.replace(last, kind=Kind.MEMBER_LEFT)]) is not None
    assert check_tombstone(head, [dataclasses.replace(last, statement=b"another")]) is not None

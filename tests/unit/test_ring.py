"""The ring: events that wait for fan-out, within one byte budget."""

from orbital_protocol import codec
from orbital_protocol.chain import content_hash, field_hash, media_fields
from orbital_protocol.codes import Kind
from orbital_protocol.frames import Event
from orbital_relay.ring import Entry, Ring, header_of

GROUP, THREAD = b"g" * 16, b"t" * 16


def event(seq: int, body: bytes = b"ciphertext", kind: Kind = Kind.REPLY_POSTED) -> Event:
    return Event(
        group_id=GROUP,
        seq=seq,
        hash=bytes(32),
        kind=kind,
        object_id=seq.to_bytes(16, "big"),
        actor_id=b"u" * 16,
        key_epoch=1,
        created_at=1,
        content_hash=content_hash(THREAD, [field_hash(body)]),
        thread_id=THREAD,
        encrypted_body=body,
    )


def test_an_entry_is_taken_once() -> None:
    ring = Ring(10_000)
    entry = Entry(event(1))
    ring.put(entry)
    assert ring.take(GROUP, 1) is entry
    assert ring.take(GROUP, 1) is None


def test_the_oldest_give_way_where_the_budget_ends() -> None:
    size = len(Entry(event(1)).frame)
    ring = Ring(3 * size)
    for seq in range(1, 6):
        ring.put(Entry(event(seq)))
    assert [seq for seq in range(1, 6) if ring.take(GROUP, seq)] == [3, 4, 5]


def test_room_that_was_taken_out_is_free_again() -> None:
    size = len(Entry(event(1)).frame)
    ring = Ring(2 * size)
    for seq in range(1, 100):
        ring.put(Entry(event(seq)))
        assert ring.take(GROUP, seq) is not None


def test_a_header_has_hashes_in_place_of_ciphertext_and_verifies() -> None:
    whole = event(7, b"secret")
    header = header_of(whole)
    assert header.encrypted_body is None
    assert header.field_hashes is not None
    assert content_hash(THREAD, header.field_hashes) == whole.content_hash


def test_the_header_of_a_file_says_nothing_of_it_and_verifies() -> None:
    fields = media_fields(b"metadata", bytes(12), 70_000, bytes(32))
    whole = Event(
        group_id=GROUP,
        seq=7,
        hash=bytes(32),
        kind=Kind.MEDIA_POSTED,
        object_id=b"m" * 16,
        actor_id=b"u" * 16,
        key_epoch=1,
        created_at=1,
        content_hash=content_hash(THREAD, [field_hash(field) for field in fields]),
        thread_id=THREAD,
        encrypted_metadata=b"metadata",
        encryption_iv=bytes(12),
        size_bytes=70_000,
        root=bytes(32),
    )
    header = header_of(whole)
    assert (header.encrypted_metadata, header.encryption_iv, header.size_bytes, header.root) == (None, None, None, None)
    assert header.field_hashes is not None
    assert content_hash(THREAD, header.field_hashes) == whole.content_hash
    assert Entry(whole).bytes_for(frozenset({Kind.REPLY_POSTED})) == codec.encode(header)
    assert Entry(whole).bytes_for(frozenset({Kind.MEDIA_POSTED})) == codec.encode(whole)


def test_a_filter_reduces_other_content_and_nothing_else() -> None:
    reply, removal = Entry(event(1)), Entry(event(2, kind=Kind.MEMBER_REMOVED))
    only_threads = frozenset({int(Kind.THREAD_POSTED)})
    assert reply.bytes_for(None) == reply.bytes_for(frozenset({int(Kind.REPLY_POSTED)})) == reply.frame
    assert b"ciphertext" not in reply.bytes_for(only_threads)
    assert removal.bytes_for(only_threads) == removal.frame
    assert codec.decode_push(reply.bytes_for(only_threads)) == header_of(reply.event)

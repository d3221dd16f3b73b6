"""The chain of chain.json: recomputed with hashlib alone, by orbital_protocol, and by the database."""

from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import asyncpg
import msgpack  # type: ignore[import-untyped]
import pytest

from orbital_protocol import ZERO_HASH, ZERO_ID, chain
from tests.protocol import independent
from tests.protocol.vectors import load, named

FILE = load("chain")
GROUP = bytes.fromhex(FILE["group_id"])
EVENTS: list[dict[str, Any]] = FILE["events"]

each_event = pytest.mark.parametrize("event", **named(EVENTS, "name"))


def fields_of(event: dict[str, Any]) -> list[bytes]:
    return [bytes.fromhex(field) for field in event["fields"]]


def parts_of(event: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `chain.event_hash`."""
    return {
        "previous_hash": bytes.fromhex(event["previous_hash"]),
        "group_id": GROUP,
        "seq": event["seq"],
        "kind": event["kind"],
        "object_id": bytes.fromhex(event["object_id"]),
        "actor_id": bytes.fromhex(event["actor_id"]),
        "key_epoch": event["key_epoch"],
        "created_at": event["created_at"],
        "content_hash": bytes.fromhex(event["content_hash"]),
    }


@each_event
def test_hashes_recomputed_from_the_specification(event: dict[str, Any]) -> None:
    assert [sha256(field).hexdigest() for field in fields_of(event)] == event["field_hashes"]
    content = independent.content_hash(bytes.fromhex(event["parent_id"]), fields_of(event))
    assert content.hex() == event["content_hash"]
    assert independent.event_hash(event, GROUP).hex() == event["hash"]


@each_event
def test_hashes_of_the_package(event: dict[str, Any]) -> None:
    hashes = [chain.field_hash(field) for field in fields_of(event)]
    assert [value.hex() for value in hashes] == event["field_hashes"]
    assert chain.content_hash(bytes.fromhex(event["parent_id"]), hashes).hex() == event["content_hash"]
    assert chain.event_hash(**parts_of(event)).hex() == event["hash"]


def control_events() -> Iterator[dict[str, Any]]:
    return (event for event in EVENTS if event["kind"] not in (14, 15, 16, 18) and event["fields"])


def test_control_events_hash_their_statement_and_signature() -> None:
    for event in control_events():
        statement, signature = fields_of(event)
        assert chain.control_content_hash(statement, signature).hex() == event["content_hash"]
        assert len(signature) == 64
        kind, group_id, actor_id, statement_id, _, _, key_epoch, *_ = msgpack.unpackb(statement)
        assert (kind, group_id, actor_id.hex(), statement_id.hex(), key_epoch) == (
            event["kind"],
            GROUP,
            event["actor_id"],
            event["object_id"],
            event["key_epoch"],
        )


def test_bases_are_in_the_log() -> None:
    hashes = {0: ZERO_HASH.hex(), **{event["seq"]: event["hash"] for event in EVENTS}}
    for event in control_events():
        elements = msgpack.unpackb(fields_of(event)[0])
        assert elements[4] < event["seq"]
        assert hashes[elements[4]] == elements[5].hex()


def test_the_log_is_one_chain() -> None:
    previous = ZERO_HASH.hex()
    for seq, event in enumerate(EVENTS, 1):
        assert event["seq"] == seq
        assert event["previous_hash"] == previous
        previous = event["hash"]


def test_the_relays_own_events_have_no_content() -> None:
    own = [event for event in EVENTS if not event["fields"]]
    assert [event["name"] for event in own] == ["member_left", "media_expired"]
    for event in own:
        assert bytes.fromhex(event["actor_id"]) == ZERO_ID
        assert event["content_hash"] == FILE["relay_content_hash"] == sha256(bytes(17)).hexdigest()
    assert chain.RELAY_CONTENT_HASH.hex() == FILE["relay_content_hash"]


@pytest.mark.parametrize("part", sorted(parts_of(EVENTS[0])))
def test_every_part_counts(part: str) -> None:
    parts = parts_of(EVENTS[4])
    value = parts[part]
    parts[part] = value + 1 if isinstance(value, int) else bytes((value[0] ^ 1,)) + value[1:]
    assert chain.event_hash(**parts).hex() != EVENTS[4]["hash"]


def test_parent_and_number_of_fields_count() -> None:
    hashes = [sha256(b"a").digest(), sha256(b"b").digest()]
    variants = [
        chain.content_hash(ZERO_ID, hashes),
        chain.content_hash(b"p" * 16, hashes),
        chain.content_hash(ZERO_ID, hashes[:1]),
        chain.content_hash(ZERO_ID, hashes[::-1]),
        chain.content_hash(ZERO_ID, []),
    ]
    assert len(set(variants)) == len(variants)


async def test_the_database_computes_the_same_hashes(migrated_database: str) -> None:
    connection = await asyncpg.connect(migrated_database, timeout=10, command_timeout=10)
    try:
        for event in EVENTS:
            parts = parts_of(event)
            found = await connection.fetchval(
                "SELECT event_hash($1, $2, $3, $4, $5, $6, $7, $8, $9)",
                *(value.hex() if name.endswith("_id") else value for name, value in parts.items()),
            )
            assert found.hex() == event["hash"]
    finally:
        await connection.close(timeout=10)


async def test_the_database_chains_events_of_its_own_alike(migrated_database: str) -> None:
    connection = await asyncpg.connect(migrated_database, timeout=10, command_timeout=10)
    user_id = "0190a6c5-8b5e-7cc3-9f43-2b1d3d0b7c11"
    try:
        await connection.execute("INSERT INTO group_heads (group_id, key_epoch) VALUES ($1, 3)", GROUP.hex())
        for _ in range(2):
            await connection.execute(
                "SELECT append_relay_event_v1('test', $1, 7::smallint, $2, TRUE)", GROUP.hex(), user_id
            )
        rows = await connection.fetch("SELECT *, to_us(created_at) AS created_us FROM events ORDER BY seq")
    finally:
        await connection.close(timeout=10)
    previous = ZERO_HASH
    for seq, row in enumerate(rows, 1):
        assert row["content_hash"] == chain.RELAY_CONTENT_HASH
        previous = chain.event_hash(
            previous_hash=previous,
            group_id=GROUP,
            seq=seq,
            kind=7,
            object_id=bytes.fromhex(user_id.replace("-", "")),
            actor_id=ZERO_ID,
            key_epoch=3,
            created_at=row["created_us"],
            content_hash=row["content_hash"],
        )
        assert row["hash"] == previous
    assert len(rows) == 2

"""SPEC.md once more with msgpack and hashlib alone, to hold orbital_protocol against."""

from collections.abc import Sequence
from hashlib import sha256
from typing import Any


def content_hash(parent_id: bytes, fields: Sequence[bytes]) -> bytes:
    hashes = b"".join(sha256(field).digest() for field in fields)
    return sha256(parent_id + len(fields).to_bytes(1, "big") + hashes).digest()


def event_hash(event: dict[str, Any], group_id: bytes) -> bytes:
    """The hash of an event of chain.json."""
    return sha256(
        b"orbital.v1.event\x00"
        + bytes.fromhex(event["previous_hash"])
        + group_id
        + event["seq"].to_bytes(8, "big")
        + event["kind"].to_bytes(1, "big")
        + bytes.fromhex(event["object_id"])
        + bytes.fromhex(event["actor_id"])
        + event["key_epoch"].to_bytes(4, "big")
        + event["created_at"].to_bytes(8, "big")
        + bytes.fromhex(event["content_hash"])
    ).digest()


def root_of(data: bytes) -> bytes:
    """The root of a file, by cutting off one segment after the other."""
    digests = b""
    while data:
        segment, data = data[:65_536], data[65_536:]
        digests += sha256(segment).digest()
    return sha256(digests).digest()


def roster_hash(roster: Sequence[dict[str, Any]]) -> bytes:
    """The hash of a roster of the vectors."""
    entries = sorted(
        bytes.fromhex(member["user_id"])
        + member["role"].to_bytes(1, "big")
        + bytes.fromhex(member["signing_key"])
        + bytes.fromhex(member["rsa_thumbprint"])
        + (b"\x01" if member["is_bot"] else b"\x00")
        for member in roster
    )
    return sha256(b"".join(entries)).digest()

"""Statements against statements.json, recomputed with msgpack, hashlib and cryptography alone."""

from hashlib import sha256
from typing import Any

import msgpack  # type: ignore[import-untyped]
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from orbital_protocol import statements
from orbital_protocol.codes import Kind
from orbital_protocol.statements import RosterEntry, StatementError
from tests.protocol import independent
from tests.protocol.vectors import hexed, load, named

FILE = load("statements")
GOOD = [bytes.fromhex(vector["statement"]) for vector in FILE["statements"]]
KEYS = {person["signing_key"]: bytes.fromhex(person["seed"]) for person in FILE["people"]}

each_statement = pytest.mark.parametrize("vector", **named(FILE["statements"], "name"))


@each_statement
def test_elements_make_the_statement(vector: dict[str, Any]) -> None:
    elements = [bytes.fromhex(value) if isinstance(value, str) else value for value in vector["elements"].values()]
    assert msgpack.packb(elements).hex() == vector["statement"]


@each_statement
def test_decoding_and_encoding(vector: dict[str, Any]) -> None:
    raw = bytes.fromhex(vector["statement"])
    statement = statements.decode(raw)
    assert statements.kind_of(statement) == vector["kind"]
    elements = {name: getattr(statement, name) for name in statement.__struct_fields__}
    assert {"kind": vector["kind"], **hexed(elements)} == vector["elements"]
    assert statements.encode(statement) == raw


@each_statement
def test_signature(vector: dict[str, Any]) -> None:
    raw, signature, key = (bytes.fromhex(vector[name]) for name in ("statement", "signature", "signing_key"))
    assert bytes.fromhex(vector["preimage"]) == b"orbital.v1.statement\x00" + raw
    Ed25519PublicKey.from_public_bytes(key).verify(signature, b"orbital.v1.statement\x00" + raw)
    private = Ed25519PrivateKey.from_private_bytes(KEYS[vector["signing_key"]])
    assert statements.sign(raw, private) == signature
    assert statements.verify(raw, signature, key)


@each_statement
def test_a_signature_is_of_these_bytes_by_this_key(vector: dict[str, Any]) -> None:
    raw, signature, key = (bytes.fromhex(vector[name]) for name in ("statement", "signature", "signing_key"))
    other = next(bytes.fromhex(known) for known in KEYS if known != vector["signing_key"])
    assert not statements.verify(raw[:-1] + bytes((raw[-1] ^ 1,)), signature, key)
    assert not statements.verify(raw, signature[:-1] + bytes((signature[-1] ^ 1,)), key)
    assert not statements.verify(raw, signature, other)
    assert not statements.verify(raw, signature[:-1], key)
    assert not statements.verify(raw, signature, key[:-1])
    with pytest.raises(InvalidSignature):  # nor of the statement without its prefix
        Ed25519PublicKey.from_public_bytes(key).verify(signature, raw)


def test_every_kind_of_statement_has_a_vector() -> None:
    posts, files_posted, files_expired = {14, 15, 16}, {18}, {20}
    assert {vector["kind"] for vector in FILE["statements"]} == set(Kind) - posts - files_posted - files_expired


@pytest.mark.parametrize("vector", **named(FILE["refused"], "name"))
def test_anything_but_the_one_encoding_is_refused(vector: dict[str, Any]) -> None:
    with pytest.raises(StatementError):
        statements.decode(bytes.fromhex(vector["statement"]))


def test_a_statement_has_at_most_2048_bytes() -> None:
    with pytest.raises(StatementError, match="2048"):
        statements.decode(bytes(2049))


@given(st.data())
def test_what_decodes_encodes_to_the_same_bytes(data: st.DataObject) -> None:
    raw = bytearray(data.draw(st.sampled_from(GOOD)))
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(raw) - 1))
        spelling = data.draw(st.binary(max_size=5))
        raw[position : position + data.draw(st.integers(0, 2))] = spelling
        if not raw:
            break
    try:
        statement = statements.decode(bytes(raw))
    except StatementError:
        return
    assert statements.encode(statement) == raw
    assert msgpack.packb(msgpack.unpackb(bytes(raw))) == raw


@given(st.binary(max_size=80))
def test_any_bytes_raise_nothing_else(raw: bytes) -> None:
    with pytest.raises(StatementError):
        statements.decode(raw)


@pytest.mark.parametrize("vector", **named(FILE["joins"]))
def test_join_preimage(vector: dict[str, Any]) -> None:
    parts = {
        name: bytes.fromhex(vector[name])
        for name in ("group_id", "invite_id", "user_id", "signing_key", "rsa_thumbprint")
    }
    preimage = b"orbital.v1.join\x00" + b"".join(parts.values())
    assert preimage.hex() == vector["preimage"]
    assert statements.join_preimage(**parts) == preimage
    invite = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(FILE["invite"]["seed"]))
    assert invite.public_key().public_bytes_raw().hex() == FILE["invite"]["invite_key"]
    assert invite.sign(preimage).hex() == vector["invite_signature"]


@pytest.mark.parametrize("vector", **named(FILE["replacements"]))
def test_key_preimage(vector: dict[str, Any]) -> None:
    parts = {name: bytes.fromhex(vector[name]) for name in ("user_id", "signing_key", "rsa_thumbprint")}
    preimage = b"orbital.v1.key\x00" + b"".join(parts.values())
    assert preimage.hex() == vector["preimage"]
    assert statements.key_preimage(**parts) == preimage
    new = Ed25519PrivateKey.from_private_bytes(KEYS[vector["signing_key"]])
    assert new.sign(preimage).hex() == vector["key_signature"]


def test_thumbprints_are_of_the_required_members_alone() -> None:
    for person in FILE["people"]:
        key = person["public_key"]
        required = f'{{"e":"{key["e"]}","kty":"{key["kty"]}","n":"{key["n"]}"}}'
        assert sha256(required.encode()).hexdigest() == person["rsa_thumbprint"]


def entries(roster: list[dict[str, Any]]) -> list[RosterEntry]:
    return [
        RosterEntry(
            user_id=bytes.fromhex(member["user_id"]),
            role=member["role"],
            signing_key=bytes.fromhex(member["signing_key"]),
            rsa_thumbprint=bytes.fromhex(member["rsa_thumbprint"]),
            is_bot=member["is_bot"],
        )
        for member in roster
    ]


@pytest.mark.parametrize("vector", **named(FILE["rosters"], "seq"))
def test_roster_hash(vector: dict[str, Any]) -> None:
    expected = bytes.fromhex(vector["hash"])
    assert independent.roster_hash(vector["roster"]) == expected
    assert statements.roster_hash(entries(vector["roster"])) == expected
    assert statements.roster_hash(reversed(entries(vector["roster"]))) == expected


def test_statements_name_the_roster_that_they_leave_behind() -> None:
    rosters = {vector["seq"]: vector["hash"] for vector in FILE["rosters"]}
    events = {event["object_id"]: event["seq"] for event in load("chain")["events"]}
    named_at = {}
    for vector in FILE["statements"]:
        elements = vector["elements"]
        seq = events[elements["statement_id"]]
        if elements["roster_hash"] != bytes(32).hex():
            assert elements["roster_hash"] == rosters[max(known for known in rosters if known <= seq)]
            named_at[seq] = elements
    joins = [vector["elements"] for vector in FILE["statements"] if vector["name"] == "member_joined"]
    strangers = [events[join["statement_id"]] for join in joins if join["actor_id"] == join["user_id"]]
    assert sorted([*named_at, *strangers]) == sorted(events[v["elements"]["statement_id"]] for v in FILE["statements"])


def test_kind_of_takes_kinds_alone() -> None:
    with pytest.raises(TypeError):
        statements.kind_of(
            statements.Statement(
                group_id=bytes(16),
                actor_id=bytes(16),
                statement_id=bytes(16),
                base_seq=0,
                base_hash=bytes(32),
                key_epoch=1,
                roster_hash=bytes(32),
            )
        )

"""The vectors as JSON values. Bytes appear as lower-case hex."""

from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import Any

import msgspec

from generator import cases, crypto, examples, world
from orbital_protocol import chain, codec, statements
from orbital_protocol.codes import Kind
from orbital_protocol.frames import Frame, type_of
from orbital_protocol.media import SEGMENT_BYTES
from orbital_protocol.statements import RosterEntry

Json = dict[str, Any]


def render(value: object) -> Any:
    """The value as JSON has it: structs as objects, bytes as hex."""
    return _hex(msgspec.to_builtins(value, builtin_types=(bytes,)))


def _hex(value: Any) -> Any:
    match value:
        case bytes():
            return value.hex()
        case dict():
            return {key: _hex(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_hex(inner) for inner in value]
        case _:
            return value


def _frame(frame: Frame) -> Json:
    return {"frame": render(frame), "bytes": codec.encode(frame).hex()}


def frames() -> Json:
    """frames.json"""
    return {
        "about": "Every request with its answer, every push, every error. `bytes` is one valid encoding of `frame`: "
        "the order of keys is free, and unknown keys may be added.",
        "exchanges": [
            {"type": type_of(request), "request": _frame(request), "answer": _frame(answer)}
            for request, answer in examples.exchanges()
        ],
        "pushes": [{"type": type_of(push), **_frame(push)} for push in examples.pushes()],
        "errors": [{"code": error.code, **_frame(error)} for error in examples.errors()],
    }


def _cases(found: Sequence[cases.Case]) -> list[Json]:
    return [{"name": case.name, "message": case.message.hex(), "outcomes": case.outcomes} for case in found]


_ABOUT_CASES = (
    "`message` is a binary message from a client, `outcomes` what becomes of its frames, in order: `request` and `id` "
    "of one that can be carried out; `error`, and where they are known `id` and `field`, of one that is answered so; "
    "`undecodable` where the connection closes with 4502."
)


def codec_file() -> Json:
    """codec.json"""
    return {"about": f"Well-formed and malformed messages. {_ABOUT_CASES}", "cases": _cases(cases.codec_cases())}


def limits() -> Json:
    """limits.json"""
    about = f"Both sides of every bound that version 1 fixes. {_ABOUT_CASES}"
    return {"about": about, "cases": _cases(cases.limit_cases())}


def _roster(roster: Sequence[RosterEntry]) -> list[Json]:
    return [
        {
            "user_id": member.user_id.hex(),
            "role": member.role,
            "signing_key": member.signing_key.hex(),
            "rsa_thumbprint": member.rsa_thumbprint.hex(),
            "is_bot": member.is_bot,
        }
        for member in roster
    ]


def chain_file() -> Json:
    """chain.json"""
    return {
        "about": "A group's whole log. `fields` are what `field_hashes` are the SHA-256 of; `roster` stands after the "
        "event. The content of the annotation at seq 6 is erased at seq 11, that of the file at seq 23 at seq 25, that "
        "of the file at seq 26 expires at seq 27: their hashes remain. The files have the bytes of media.json.",
        "group_id": world.GROUP.hex(),
        "relay_content_hash": chain.RELAY_CONTENT_HASH.hex(),
        "events": [_event(entry) for entry in world.STORY.entries],
    }


def _event(entry: world.Entry) -> Json:
    event = entry.event
    return {
        "seq": event.seq,
        "kind": event.kind,
        "name": Kind(event.kind).name.lower(),
        "object_id": event.object_id.hex(),
        "actor_id": event.actor_id.hex(),
        "parent_id": entry.parent_id.hex(),
        "key_epoch": event.key_epoch,
        "created_at": event.created_at,
        "fields": [value.hex() for value in entry.fields],
        "field_hashes": [chain.field_hash(value).hex() for value in entry.fields],
        "content_hash": event.content_hash.hex(),
        "previous_hash": entry.previous_hash.hex(),
        "hash": event.hash.hex(),
        "roster": _roster(entry.roster),
    }


def statements_file() -> Json:
    """statements.json"""
    return {
        "about": "Statements of every kind, signed; bytes that are none; what joiners and new keys sign; rosters. "
        "Private keys are given so that signatures can be made again.",
        "people": [_person(person) for person in (*world.PEOPLE, world.BOB_AFTERWARDS)],
        "invite": {
            "invite_id": world.INVITE.hex(),
            "seed": world.INVITE_SEED.hex(),
            "invite_key": world.INVITE_KEY.hex(),
        },
        "statements": [_statement(entry) for entry in world.STORY.entries if entry.statement],
        "refused": [{"name": bad.name, "statement": bad.statement.hex()} for bad in _refused()],
        "joins": [_join(person) for person in (world.BOB, world.CAROL)],
        "replacements": [_replacement()],
        "rosters": [
            {"seq": entry.event.seq, "roster": _roster(entry.roster), "hash": _roster_hash(entry)}
            for entry in world.roster_changes()
        ],
    }


def _roster_hash(entry: world.Entry) -> str:
    return statements.roster_hash(entry.roster).hex()


def _person(person: world.Person) -> Json:
    return {
        "name": person.name,
        "user_id": person.user_id.hex(),
        "seed": person.seed.hex(),
        "signing_key": person.signing_key.hex(),
        "public_key": render(person.public_key),
        "rsa_thumbprint": person.rsa_thumbprint.hex(),
        "is_bot": person.is_bot,
    }


def _statement(entry: world.Entry) -> Json:
    if entry.statement is None or entry.signed_by is None:
        raise ValueError("not a control event")
    statement, signature = entry.fields
    return {
        "kind": entry.event.kind,
        "name": Kind(entry.event.kind).name.lower(),
        "elements": {"kind": int(entry.event.kind), **_named_elements(entry.statement)},
        "statement": statement.hex(),
        "preimage": (statements.STATEMENT_PREFIX + statement).hex(),
        "signing_key": entry.signed_by.signing_key.hex(),
        "signature": signature.hex(),
    }


def _named_elements(statement: statements.Statement) -> Json:
    return {name: _hex(getattr(statement, name)) for name in statement.__struct_fields__}


def _refused() -> Iterator[cases.BadStatement]:
    good = {int(e.event.kind): e.fields[0] for e in reversed(world.STORY.entries) if e.statement}
    return cases.bad_statements(good)


def _join(person: world.Person) -> Json:
    preimage = statements.join_preimage(
        group_id=world.GROUP,
        invite_id=world.INVITE,
        user_id=person.user_id,
        signing_key=person.signing_key,
        rsa_thumbprint=person.rsa_thumbprint,
    )
    return {
        "group_id": world.GROUP.hex(),
        "invite_id": world.INVITE.hex(),
        "user_id": person.user_id.hex(),
        "signing_key": person.signing_key.hex(),
        "rsa_thumbprint": person.rsa_thumbprint.hex(),
        "preimage": preimage.hex(),
        "invite_signature": world.INVITE_PRIVATE_KEY.sign(preimage).hex(),
    }


def _replacement() -> Json:
    person = world.BOB_AFTERWARDS
    preimage = world.replaced_key_preimage(person)
    return {
        "user_id": person.user_id.hex(),
        "signing_key": person.signing_key.hex(),
        "rsa_thumbprint": person.rsa_thumbprint.hex(),
        "preimage": preimage.hex(),
        "key_signature": person.private_key.sign(preimage).hex(),
    }


FILE_SIZES = (0, 1, 65_535, 65_536, 65_537, 131_071, 131_072, 131_073, 1_000_000)


def media() -> Json:
    """media.json"""
    return {
        "about": "Roots of files. A file is given by its size: its byte number i, from 0, is i mod 251. "
        "`segment_digests` are the SHA-256 of each segment, `root` is the SHA-256 of these joined.",
        "segment_bytes": SEGMENT_BYTES,
        "files": [_file(world.file_bytes(size)) for size in FILE_SIZES],
    }


def _file(data: bytes) -> Json:
    segments = [data[at : at + SEGMENT_BYTES] for at in range(0, len(data), SEGMENT_BYTES)]
    return {
        "size_bytes": len(data),
        "segment_digests": [sha256(segment).hexdigest() for segment in segments],
        "root": world.root_of(data).hex(),
    }


def crypto_file() -> Json:
    """crypto.json"""
    return {
        "about": "What clients do among themselves (section 18). Private keys, secrets and nonces are given so that "
        "all can be made again, but for what RSA-OAEP made, which can be opened only. What is `refused` must not open; "
        "`outcome` is as what it fails. Envelopes are of epoch 2; `says` is their content, with bytes in hex. Files, "
        "and the contents in `buckets`, are `byte` again and again, and what is sealed is given by its SHA-256.",
        **_hex(crypto.cases()),
    }


FILES = {
    "frames.json": frames,
    "codec.json": codec_file,
    "limits.json": limits,
    "chain.json": chain_file,
    "statements.json": statements_file,
    "media.json": media,
    "crypto.json": crypto_file,
}

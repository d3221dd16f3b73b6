"""Envelopes, and what is in them: sections 18.4 and 18.5."""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

import msgspec
from msgspec.structs import replace

from generator import world
from generator.crypto import files
from generator.crypto.secrets import HEAD, KEY, SEGMENT_KEY, Case, altered, nonce, refused, version_2
from generator.world import ALICE, BOB, CAROL, GROUP, REPLY, START_AT, THREAD, Person
from orbital_client.crypto import contents, envelopes, primitives
from orbital_client.crypto.contents import Content, Name, Signalled
from orbital_client.crypto.envelopes import (
    BUCKETS,
    CONTENT_PREFIX,
    HEAD_BYTES,
    MAX_CONTENT_BYTES,
    NO_KIND,
    Field,
    Place,
)
from orbital_protocol import ZERO_ID
from orbital_protocol.codes import Kind


@dataclass(frozen=True)
class Written:
    """A content of somebody's at a place. `what` names the decoder."""

    name: str
    what: str
    author: Person
    place: Place
    content: Content | Name | Signalled

    @property
    def raw(self) -> bytes:
        return contents.encode(self.content)

    @property
    def sealed(self) -> bytes:
        return envelopes.seal(KEY, self.place, self.raw, self.author.private_key, nonce=nonce(self.name))


def _place(author: Person, kind: int, field: Field, object_id: bytes = ZERO_ID, parent_id: bytes = ZERO_ID) -> Place:
    return Place(kind, field, GROUP, author.user_id, KEY.epoch, object_id, parent_id)


SAID: Final[Case] = {"sent_at": START_AT, "head": HEAD}
TITLE: Final = Written(
    "title",
    "title",
    ALICE,
    _place(ALICE, Kind.THREAD_POSTED, Field.TITLE, THREAD),
    contents.Title(text="Orbit", **SAID),
)
REPLY_PLACE: Final = _place(BOB, Kind.REPLY_POSTED, Field.BODY, REPLY, THREAD)
ANSWER: Final = Written("reply", "body", BOB, REPLY_PLACE, contents.Body(text="Grüße, 世界 👋", **SAID))


def _written() -> Iterator[Written]:
    yield TITLE
    title_hash = sha256(TITLE.sealed).digest()
    body = contents.Body(text="*First* of all", format=contents.MARKDOWN, title_hash=title_hash, **SAID)
    yield Written("body", "body", ALICE, _place(ALICE, Kind.THREAD_POSTED, Field.BODY, THREAD), body)
    yield ANSWER
    yield from _acts()
    file = contents.File(
        name="orbit.png",
        media_type="image/png",
        size_bytes=300,
        key=SEGMENT_KEY,
        root=files.root(300),
        caption="From above",
        **SAID,
    )
    yield Written("file", "file", BOB, _place(BOB, Kind.MEDIA_POSTED, Field.METADATA, world.MEDIA, THREAD), file)
    yield Written("name", "name", ALICE, _place(ALICE, NO_KIND, Field.NAME), Name(text="The crew"))
    yield from _signals()


def _acts() -> Iterator[Written]:
    acts: list[tuple[str, Person, bytes, Content]] = [
        ("edit of a reply", BOB, REPLY, contents.Edit(text="Hello", **SAID)),
        ("edit of a thread", ALICE, THREAD, contents.Edit(text="Second", title="Orbits", **SAID)),
        ("react", ALICE, REPLY, contents.React(emoji="👍", **SAID)),
        ("unreact", ALICE, REPLY, contents.Unreact(emoji="👍", **SAID)),
        ("pin", ALICE, THREAD, contents.Pin(**SAID)),
        ("unpin", ALICE, THREAD, contents.Unpin(**SAID)),
    ]
    for name, author, target, act in acts:
        place = _place(author, Kind.ANNOTATION_POSTED, Field.BODY, world.make_id(f"annotation {name}"), target)
        yield Written(name, "act", author, place, act)


def _signals() -> Iterator[Written]:
    place = _place(BOB, NO_KIND, Field.SIGNAL)
    signals: list[tuple[str, type[Signalled], Case]] = [
        ("typing a reply", contents.Typing, {"thread_id": THREAD}),
        ("typing a thread", contents.Typing, {}),
        ("presence", contents.Presence, {"state": contents.HERE}),
    ]
    for name, kind, more in signals:
        signal = kind(id=world.make_id(f"signal {name}"), sent_at=START_AT, **more)
        yield Written(name, "signal", BOB, place, signal)


def _where(place: Place) -> Case:
    return {
        "kind": int(place.kind),
        "field": int(place.field),
        "group_id": place.group_id,
        "parent_id": place.parent_id,
        "object_id": place.object_id,
        "author_id": place.author_id,
        "epoch": place.epoch,
    }


def sealed_envelopes() -> list[Case]:
    """All that there is to write, in epoch 2."""
    return [
        {
            "name": one.name,
            "author": one.author.name,
            "place": _where(one.place),
            "aad": one.place.aad,
            "content_key": KEY.content_key(one.place.kind, one.author.user_id),
            "what": one.what,
            "says": msgspec.to_builtins(one.content, builtin_types=(bytes,)),
            "content": one.raw,
            "signature": _sign(one.place, one.raw, one.author),
            "nonce": nonce(one.name),
            "envelope": one.sealed,
        }
        for one in _written()
    ]


def _sign(place: Place, content: bytes, author: Person) -> bytes:
    return author.private_key.sign(CONTENT_PREFIX + place.aad + content)


def buckets() -> Case:
    """Both sides of each bucket. Contents here are one byte again and again, which no reader would take."""
    sizes = [0, *(bucket - HEAD_BYTES + more for bucket in BUCKETS[:-1] for more in (0, 1)), MAX_CONTENT_BYTES]
    return {"author": "bob", "place": _where(REPLY_PLACE), "byte": ord("o"), "sizes": [_bucket(size) for size in sizes]}


def _bucket(size: int) -> Case:
    own = nonce(f"bucket {size}")
    envelope = envelopes.seal(KEY, REPLY_PLACE, b"o" * size, BOB.private_key, nonce=own)
    return {
        "content_bytes": size,
        "bucket_bytes": len(envelope) - primitives.OVERHEAD_BYTES,
        "nonce": own,
        "sha256": sha256(envelope).digest(),
    }


def _elsewhere() -> Iterator[tuple[str, Place]]:
    """Where the reply does not belong."""
    yield "moved to another thread", replace(REPLY_PLACE, parent_id=world.SECOND_THREAD)
    yield "moved to another object", replace(REPLY_PLACE, object_id=THREAD)
    yield "moved to another group", replace(REPLY_PLACE, group_id=THREAD)
    yield "moved to another kind", replace(REPLY_PLACE, kind=Kind.ANNOTATION_POSTED)
    yield "moved to another field", replace(REPLY_PLACE, field=Field.TITLE)
    yield "shown as another member's", replace(REPLY_PLACE, author_id=CAROL.user_id)
    yield "wrong epoch", replace(REPLY_PLACE, epoch=1)


def _altered() -> Iterator[tuple[str, str, bytes]]:
    good = ANSWER.sealed
    yield "unknown version", "unknown_version", version_2(good)
    yield "nothing", "malformed", b""
    yield "cut short", "bad_seal", good[:-1]
    yield "shorter than any", "malformed", good[:28]
    yield "altered", "bad_seal", altered(good)


def _sealed_as(name: str, plaintext: bytes) -> bytes:
    """A plaintext of any form, where the reply belongs."""
    key = KEY.content_key(REPLY_PLACE.kind, REPLY_PLACE.author_id)
    return primitives.seal(key, plaintext, REPLY_PLACE.aad, nonce=nonce(name))


def _padded_wrongly() -> Iterator[tuple[str, str, bytes]]:
    signature = _sign(REPLY_PLACE, b"o", BOB)
    for name, plaintext in [
        ("no bucket", (signature + b"\0\0\0\1o").ljust(255, b"\0")),
        ("wrong bucket", (signature + b"\0\0\0\1o").ljust(1_024, b"\0")),
        ("bad padding", (signature + b"\0\0\0\1o").ljust(255, b"\0") + b"\1"),
        ("length beyond the end", (signature + b"\0\0\0\xbdo").ljust(256, b"\0")),
        ("length far beyond the end", (signature + b"\xff\xff\xff\xffo").ljust(256, b"\0")),
        ("empty plaintext", b""),
    ]:
        yield name, "malformed", _sealed_as(name, plaintext)


def _forged() -> Iterator[tuple[str, str, bytes]]:
    other_place = replace(REPLY_PLACE, parent_id=world.SECOND_THREAD)
    for name, signature in [
        ("signed by another member", _sign(REPLY_PLACE, b"o", CAROL)),
        ("signed for another place", _sign(other_place, b"o", BOB)),
        ("signed for another content", _sign(REPLY_PLACE, b"p", BOB)),
        ("not signed", bytes(64)),
    ]:
        yield name, "forged_author", _sealed_as(name, (signature + b"\0\0\0\1o").ljust(256, b"\0"))


def refused_envelopes() -> list[Case]:
    """Said to be Bob's, unless the place says otherwise."""
    moved = [(name, "bad_seal", place, ANSWER.sealed) for name, place in _elsewhere()]
    there = [
        (name, outcome, REPLY_PLACE, raw)
        for cases in (_altered, _padded_wrongly, _forged)
        for name, outcome, raw in cases()
    ]
    return [
        refused(name, outcome, place=_where(place), signing_key=BOB.signing_key, envelope=envelope)
        for name, outcome, place, envelope in moved + there
    ]


def odd_contents() -> list[Case]:
    """Contents as other clients may write them, and what a reader makes of each. `read`: takes it."""
    said = {"sent_at": START_AT, "head": [HEAD.seq, HEAD.hash]}
    cases: list[tuple[str, str, object, str]] = [
        ("a key of a later client", "body", {**said, "text": "o", "mood": {"a": [1]}}, "read"),
        ("a format of a later client", "body", {**said, "text": "o", "format": "dance"}, "read"),
        ("an act of a later client", "act", {**said, "act": "dance"}, "unknown_version"),
        ("a signal of a later client", "signal", {"signal": "dance", "id": THREAD, "sent_at": 1}, "unknown_version"),
        ("no map", "body", [1, 2], "malformed"),
        ("no text", "body", said, "malformed"),
        ("no head", "body", {"sent_at": 1, "text": "o"}, "malformed"),
        ("a head that is none", "body", {"sent_at": 1, "head": [5, bytes(31)], "text": "o"}, "malformed"),
        ("an empty title", "title", {**said, "text": ""}, "malformed"),
        ("a title that is too long", "title", {**said, "text": "o" * 1_025}, "malformed"),
        ("no emoji", "act", {**said, "act": "react", "emoji": ""}, "malformed"),
        ("no act", "act", said, "malformed"),
        ("a file without key", "file", {**said, "name": "o", "media_type": "", "size_bytes": 1}, "malformed"),
    ]
    return [
        {"name": name, "what": what, "content": msgspec.msgpack.encode(value), "outcome": outcome}
        for name, what, value, outcome in cases
    ]

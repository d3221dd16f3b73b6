"""Byte strings and what a relay makes of them. The outcomes are written down here, not computed by the codec."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgpack  # type: ignore[import-untyped]

from generator.world import ALICE, GROUP, THREAD, base64url, cipher, stretch

Outcome = dict[str, Any]
"""Of one frame: `request` and `id`; or `error` with `id` and `field` where there are any; or `undecodable`."""

UNDECODABLE: Outcome = {"undecodable": True}
ID = 7


@dataclass(frozen=True)
class Case:
    """A message from a client, and the outcome of each of its frames. What follows an undecodable one is lost."""

    name: str
    message: bytes
    outcomes: list[Outcome]


def pack(value: object) -> bytes:
    packed: bytes = msgpack.packb(value)
    return packed


def taken(request: str, request_id: int = ID) -> Outcome:
    return {"request": request, "id": request_id}


def refused(code: str, *, field: str | None = None, request_id: int | None = ID) -> Outcome:
    found = {"error": code, "id": request_id, "field": field}
    return {key: value for key, value in found.items() if value is not None}


def ping(**more: object) -> bytes:
    return pack({"type": "ping", "id": ID, **more})


def raw_map(*parts: bytes) -> bytes:
    """A map of raw keys and values."""
    return bytes((0x80 | len(parts) // 2,)) + b"".join(parts)


TYPE, PING, ID_KEY, ID_VALUE, EXTRA = (pack(value) for value in ("type", "ping", "id", ID, "x"))
PING_PARTS = (TYPE, PING, ID_KEY, ID_VALUE)


def codec_cases() -> list[Case]:
    """What is a frame, and what isn't."""
    return [*_accepted(), *_several(), *_bad_heads(), *_bad_fields(), *_undecodable()]


def _accepted() -> Iterator[Case]:
    ok = [taken("ping")]
    yield Case("a ping", ping(), ok)
    yield Case("the keys in another order", raw_map(ID_KEY, ID_VALUE, TYPE, PING), ok)
    yield Case("an unknown key is ignored", ping(colour="blue", shape=[1, {"a": None}]), ok)
    yield Case("an unknown key with an extension type is ignored", raw_map(*PING_PARTS, EXTRA, b"\xd4\x05\x00"), ok)
    yield Case("an unknown key with a timestamp is ignored", raw_map(*PING_PARTS, EXTRA, b"\xd6\xff" + bytes(4)), ok)
    yield Case("an unknown key that is not UTF-8 is ignored", raw_map(*PING_PARTS, b"\xa1\xff", b"\x01"), ok)
    yield Case("an unknown key with a string that is not UTF-8", raw_map(*PING_PARTS, EXTRA, b"\xa1\xff"), ok)
    yield Case("an unknown key with a double", ping(x=0.5), ok)
    yield Case("id as uint64", raw_map(TYPE, PING, ID_KEY, b"\xcf" + ID.to_bytes(8, "big")), ok)
    yield Case("id as int64", raw_map(TYPE, PING, ID_KEY, b"\xd3" + ID.to_bytes(8, "big")), ok)
    yield Case("a key as str 8", raw_map(b"\xd9\x04type", PING, ID_KEY, ID_VALUE), ok)
    yield Case("the frame as map 16", b"\xde\x00\x02" + ping()[1:], ok)
    yield Case("the frame as map 32", b"\xdf\x00\x00\x00\x02" + ping()[1:], ok)
    long_id = raw_map(TYPE, pack("group.get"), ID_KEY, ID_VALUE, pack("group_id"), b"\xc5\x00\x10" + GROUP)
    yield Case("a UUID as bin 16", long_id, [taken("group.get")])
    listing = {"type": "event.list", "id": ID, "group_id": GROUP}
    yield Case("nil stands for an absent field", pack({**listing, "after_seq": None}), [taken("event.list")])


def _several() -> Iterator[Case]:
    yield Case("no frame at all", b"", [])
    yield Case("two frames", ping() + pack({"type": "group.list", "id": 8}), [taken("ping"), taken("group.list", 8)])
    yield Case(
        "a bad frame between two good ones",
        ping() + pack({"type": "ping"}) + pack({"type": "ping", "id": 8}),
        [taken("ping"), refused("bad_frame", field="id", request_id=None), taken("ping", 8)],
    )
    yield Case("a frame and half of one", ping() + ping()[:-1], [taken("ping"), UNDECODABLE])
    yield Case("a frame and 0xc1", ping() + b"\xc1", [taken("ping"), UNDECODABLE])


def _bad_heads() -> Iterator[Case]:
    nameless = refused("bad_frame", request_id=None)
    for name, raw in (
        ("nil", b"\xc0"),
        ("an integer", pack(1)),
        ("a string", pack("ping")),
        ("an array", pack(["ping", ID])),
        ("a map with an integer as a key", pack({"type": "ping", "id": ID, 1: 2})),
        ("a map with a bin as a key", pack({"type": "ping", "id": ID, b"x": 2})),
        ("a type that is not UTF-8", raw_map(TYPE, b"\xa4pi\xffg", ID_KEY, ID_VALUE)),
    ):
        yield Case(name, raw, [nameless])
    no_type = refused("bad_frame", field="type")
    yield Case("no type", pack({"id": ID}), [no_type])
    yield Case("a type of nil", pack({"type": None, "id": ID}), [no_type])
    yield Case("a type as bin", pack({"type": b"ping", "id": ID}), [no_type])
    yield Case("neither type nor id", b"\x80", [refused("bad_frame", field="type", request_id=None)])
    for known in ("teleport", "", "Ping", "ok", "error", "event", "hello"):
        yield Case(
            f"a type that is no request: {known!r}",
            pack({"type": known, "id": ID}),
            [refused("unknown_type", field="type")],
        )
    yield Case(
        "an unknown type without id",
        pack({"type": "teleport"}),
        [refused("unknown_type", field="type", request_id=None)],
    )
    for name, value in (
        ("nil", None),
        ("-1", -1),
        ("a double", 7.0),
        ("true", True),
        ("a string", "7"),
        ("a bin", b"\x07"),
    ):
        yield Case(
            f"an id that is {name}",
            pack({"type": "ping", "id": value}),
            [refused("bad_frame", field="id", request_id=None)],
        )
    yield Case("no id", pack({"type": "ping"}), [refused("bad_frame", field="id", request_id=None)])


def _bad_fields() -> Iterator[Case]:
    def case(name: str, field: str | None, request: str, **fields: object) -> Case:
        return Case(name, pack({"type": request, "id": ID, **fields}), [refused("bad_frame", field=field)])

    yield case("a field is missing", "group_id", "group.get")
    yield case("a UUID as a string of 16", "group_id", "group.get", group_id="a" * 16)
    yield case("a UUID in words", "group_id", "group.get", group_id="018c2f6e-0000-7000-8000-000000000000")
    yield case("a UUID of nil", "group_id", "group.get", group_id=None)
    yield case("a string as a bin", "username", "login", username=b"alice", password="x")  # noqa: S106
    yield case("true for an integer", "limit", "event.list", group_id=GROUP, limit=True)
    yield case("a double for an integer", "limit", "event.list", group_id=GROUP, limit=5.0)
    yield case("nil for a field with a default", "limit", "event.list", group_id=GROUP, limit=None)
    yield case("an integer for a boolean", "knocking", "invite.rotate", group_id=GROUP, knocking=1)
    yield case("a map for an array", "groups", "subscribe", groups={})
    yield case("a field of a map is missing", "groups[0].group_id", "subscribe", groups=[{}])
    yield case(
        "an element is wrong", "groups[1].group_id", "subscribe", groups=[{"group_id": GROUP}, {"group_id": b""}]
    )
    yield case("a key without its modulus", "public_key.n", "register", **_registration(public_key={"kty": "RSA"}))
    yield Case(
        "a string that is not UTF-8",
        raw_map(TYPE, pack("invite.open"), ID_KEY, ID_VALUE, pack("invite_code"), b"\xa1\xff"),
        [refused("bad_frame")],
    )


def _registration(**changed: object) -> dict[str, object]:
    return {
        "user_id": ALICE.user_id,
        "username": "alice",
        "password": "sixteen tons",
        "public_key": {"kty": "RSA", "n": base64url(stretch("rsa", 256)), "e": "AQAB"},
        "signing_key": ALICE.signing_key,
        **changed,
    }


def _undecodable() -> Iterator[Case]:
    for name, raw in (
        ("the byte that MessagePack never uses", b"\xc1"),
        ("a string cut short", ping()[:-5]),
        ("only the first byte of a map", b"\x82"),
        ("a bin without its length", b"\xc4"),
        ("a bin 32 that announces 4 GiB", b"\xc6\xff\xff\xff\xff"),
        ("a str 32 that announces 4 GiB", b"\xdb\xff\xff\xff\xff"),
        ("an ext 32 that announces 4 GiB", b"\xc9\xff\xff\xff\xff\x01"),
        ("an array 32 that announces 2^32-1 elements", b"\xdd\xff\xff\xff\xff"),
        ("a map 32 that announces 2^32-1 entries", b"\xdf\xff\xff\xff\xff"),
        ("a map that announces one entry more than there is", b"\x83" + ping()[1:]),
        ("an array within a frame that announces more than there is", raw_map(*PING_PARTS, EXTRA, b"\xdc\xff\xff")),
        ("0xc1 within an unknown key", raw_map(*PING_PARTS, EXTRA, b"\xc1")),
        ("a uint64 cut short", raw_map(TYPE, PING, ID_KEY, b"\xcf" + bytes(7))),
    ):
        yield Case(name, raw, [UNDECODABLE])
    # Each character of a text is a MessagePack integer, and so a frame that is no map.
    yield Case("text", b"ping", [refused("bad_frame", request_id=None)] * 4)


def limit_cases() -> list[Case]:
    """On both sides of each bound that this version fixes; those in `hello` are the relay's."""
    return [*_depth(), *_numbers(), *_sizes(), *_lists(), *_media()]


def _depth() -> Iterator[Case]:
    for depth in (8, 9):
        inside = depth - 1  # the frame's own map is the first
        outcomes = [taken("ping")] if depth == 8 else [UNDECODABLE]  # noqa: PLR2004
        yield Case(f"arrays down to depth {depth}", raw_map(*PING_PARTS, EXTRA, b"\x91" * inside + b"\x01"), outcomes)
        yield Case(
            f"maps down to depth {depth}", raw_map(*PING_PARTS, EXTRA, b"\x81\xa1x" * (inside - 1) + b"\x80"), outcomes
        )
    yield Case("a hundred arrays in one another", raw_map(*PING_PARTS, EXTRA, b"\x91" * 100), [UNDECODABLE])


def _numbers() -> Iterator[Case]:
    for request_id in (0, 2**32 - 1):
        yield Case(f"id {request_id}", pack({"type": "ping", "id": request_id}), [taken("ping", request_id)])
    yield Case("id 2^32", pack({"type": "ping", "id": 2**32}), [refused("bad_frame", field="id", request_id=None)])
    listing = {"type": "event.list", "id": ID, "group_id": GROUP}
    yield from _bounds("event.list", "after_seq", listing, good=(0, 2**53 - 1), bad=(-1, 2**53, 2**64 - 1))
    yield from _bounds("event.list", "limit", listing, good=(1, 1000), bad=(0, 1001))
    post = {
        "type": "reply.post",
        "id": ID,
        "group_id": GROUP,
        "thread_id": THREAD,
        "reply_id": THREAD,
        "encrypted_body": b"",
    }
    yield from _bounds("reply.post", "key_epoch", post, good=(1, 2**31 - 1), bad=(0, 2**31))
    kinds = {"type": "event.list", "id": ID, "group_id": GROUP}
    for value in (1, 255):
        yield Case(f"event.list with the kind {value}", pack({**kinds, "kinds": [value]}), [taken("event.list")])
    for value in (0, 256):
        bad = [refused("bad_frame", field="kinds[0]")]
        yield Case(f"event.list with the kind {value}", pack({**kinds, "kinds": [value]}), bad)


def _bounds(
    request: str, field: str, frame: dict[str, object], *, good: tuple[object, ...], bad: tuple[object, ...]
) -> Iterator[Case]:
    for value in good:
        yield Case(f"{request} with {_named(field, value)}", pack({**frame, field: value}), [taken(request)])
    for value in bad:
        outcomes = [refused("bad_frame", field=field)]
        yield Case(f"{request} with {_named(field, value)}", pack({**frame, field: value}), outcomes)


def _named(field: str, value: object) -> str:
    if isinstance(value, bytes):
        return f"{field} of {len(value)} bytes"
    if isinstance(value, list):
        return f"{field} of {len(value)} elements"
    if isinstance(value, str) and len(value) > 20:  # noqa: PLR2004
        return f"{field} of {len(value)} characters, {len(value.encode())} bytes"
    return f"{field} {value!r}" if isinstance(value, str) else f"{field} {value}"


def _sizes() -> Iterator[Case]:
    get = {"type": "group.get", "id": ID}
    yield from _bounds("group.get", "group_id", get, good=(GROUP,), bad=(GROUP[:15], GROUP + b"\0", b""))
    put = {"type": "cursor.put", "id": ID, "group_id": GROUP, "name": "read", "seq": 1, "hash": bytes(32)}
    yield from _bounds("cursor.put", "hash", put, good=(bytes(32),), bad=(bytes(31), bytes(33)))
    yield from _bounds("cursor.put", "name", put, good=("a", "a" * 64, "b.0-_"), bad=("", "a" * 65, "Read", "a b"))
    leave = {"type": "group.leave", "id": ID, "statement": b"", "signature": bytes(64)}
    yield from _bounds("group.leave", "signature", leave, good=(bytes(64),), bad=(bytes(63), bytes(65)))
    register = {"type": "register", "id": ID, **_registration()}
    yield from _bounds(
        "register",
        "username",
        register,
        good=("abc", "a" * 50, "a_9"),
        bad=("ab", "a" * 51, "Alice", "ali ce", "älice", "alice\n"),
    )
    yield from _bounds("register", "signing_key", register, good=(bytes(32),), bad=(bytes(31), bytes(33)))
    yield from _bounds("register", "device_name", register, good=("", "a" * 100, "ä" * 100), bad=("a" * 101,))
    authenticate = {"type": "authenticate", "id": ID}
    yield from _bounds("authenticate", "access_token", authenticate, good=("a" * 4096,), bad=("a" * 4097,))
    refresh = {"type": "refresh", "id": ID}
    yield from _bounds("refresh", "refresh_token", refresh, good=("a" * 256,), bad=("a" * 257,))


def _media() -> Iterator[Case]:
    begin = {
        "type": "media.begin",
        "id": ID,
        "group_id": GROUP,
        "thread_id": THREAD,
        "media_id": THREAD,
        "size_bytes": 1,
        "encryption_iv": bytes(12),
    }
    numbers: dict[str, tuple[object, ...]] = {"good": (0, 2**53 - 1), "bad": (-1, 2**53)}
    yield from _bounds("media.begin", "size_bytes", begin, **numbers)
    yield from _bounds("media.begin", "encryption_iv", begin, good=(bytes(12),), bad=(bytes(11), bytes(13), b""))
    chunk = {"type": "media.chunk", "id": ID, "media_id": THREAD, "generation": 1, "offset": 0, "data": b"x"}
    yield from _bounds("media.chunk", "generation", chunk, **numbers)
    yield from _bounds("media.chunk", "offset", chunk, **numbers)
    yield from _bounds("media.chunk", "data", chunk, good=(b"", bytes(300)), bad=())
    commit = {
        "type": "media.commit",
        "id": ID,
        "media_id": THREAD,
        "key_epoch": 1,
        "encrypted_metadata": b"x",
        "root": bytes(32),
    }
    yield from _bounds("media.commit", "root", commit, good=(bytes(32),), bad=(bytes(31), bytes(33)))
    yield from _bounds("media.commit", "key_epoch", commit, good=(1, 2**31 - 1), bad=(0, 2**31))
    read = {"type": "media.read", "id": ID, "media_id": THREAD, "offset": 0, "length": 1}
    yield from _bounds("media.read", "offset", read, **numbers)
    yield from _bounds("media.read", "length", read, **numbers)
    listing = {"type": "media.list", "id": ID, "group_id": GROUP}
    yield from _bounds("media.list", "limit", listing, good=(1, 1000), bad=(0, 1001))


def _lists() -> Iterator[Case]:
    subscribe = {"type": "subscribe", "id": ID}
    one = {"group_id": GROUP}
    yield from _bounds("subscribe", "groups", subscribe, good=([one],), bad=([],))
    token = {"type": "token.create", "id": ID, "token_id": THREAD, "name": "bot", "scopes": []}
    yield from _bounds("token.create", "scopes", token, good=(["read"] * 8,), bad=(["read"] * 9,))
    listing = {"type": "event.list", "id": ID, "group_id": GROUP}
    yield from _bounds("event.list", "kinds", listing, good=([], [1] * 64), bad=([1] * 65,))


@dataclass(frozen=True)
class BadStatement:
    """Bytes that no one may take for a statement, and why."""

    name: str
    statement: bytes


def bad_statements(good: dict[int, bytes]) -> Iterator[BadStatement]:
    """Variations on valid statements, which are given by their kinds."""
    left, role, created = good[7], good[9], good[1]
    elements: list[Any] = msgpack.unpackb(left)

    def changed(raw: bytes, position: int, value: object) -> bytes:
        copy: list[Any] = msgpack.unpackb(raw)
        copy[position] = value
        return pack(copy)

    def spelled(position: int, spelling: bytes) -> bytes:
        """`left` with one element spelled otherwise."""
        parts = [pack(element) for element in elements]
        parts[position] = spelling
        return b"\x98" + b"".join(parts)

    group_id, base_seq, epoch = elements[1], elements[4], elements[6]
    yield BadStatement("nothing", b"")
    yield BadStatement("an empty array", b"\x90")
    yield BadStatement("a map", pack({"kind": 7}))
    yield BadStatement("the array as array 16", b"\xdc\x00\x08" + left[1:])
    yield BadStatement("the array as array 32", b"\xdd\x00\x00\x00\x08" + left[1:])
    yield BadStatement("the kind as uint8", spelled(0, b"\xcc\x07"))
    yield BadStatement("the kind as int8", spelled(0, b"\xd0\x07"))
    yield BadStatement("a UUID as bin 16", spelled(1, b"\xc5\x00\x10" + group_id))
    yield BadStatement("a UUID as bin 32", spelled(1, b"\xc6\x00\x00\x00\x10" + group_id))
    yield BadStatement("a UUID as a string", spelled(1, b"\xb0" + b"a" * 16))
    yield BadStatement("base_seq as uint16", spelled(4, b"\xcd" + base_seq.to_bytes(2, "big")))
    yield BadStatement("base_seq as int64", spelled(4, b"\xd3" + base_seq.to_bytes(8, "big")))
    yield BadStatement("base_seq as a double", changed(left, 4, float(base_seq)))
    yield BadStatement("base_seq true", changed(left, 4, True))
    yield BadStatement("base_seq -1", changed(left, 4, -1))
    yield BadStatement("base_seq 2^53", changed(left, 4, 2**53))
    yield BadStatement("key_epoch as uint32", spelled(6, b"\xce" + epoch.to_bytes(4, "big")))
    yield BadStatement("key_epoch 0", changed(left, 6, 0))
    yield BadStatement("key_epoch 2^31", changed(left, 6, 2**31))
    yield BadStatement("a UUID of 15 bytes", changed(left, 2, bytes(15)))
    yield BadStatement("a hash of 33 bytes", changed(left, 7, bytes(33)))
    yield BadStatement("a hash of nil", changed(left, 7, None))
    yield BadStatement("an element too few", pack(elements[:-1]))
    yield BadStatement("an element too many", pack([*elements, 0]))
    yield BadStatement("a byte behind it", left + b"\xc0")
    yield BadStatement("a byte short", left[:-1])
    yield BadStatement("two statements", left + left)
    for name, kind in (
        ("kind 0", 0),
        ("kind 14, a post", 14),
        ("kind 18, media", 18),
        ("kind 20, the relay's own", 20),
    ):
        yield BadStatement(name, changed(left, 0, kind))
    yield BadStatement("a media_id of 15 bytes", changed(good[19], 8, bytes(15)))
    yield BadStatement("kind 255", changed(left, 0, 255))
    yield BadStatement("another kind's elements", changed(left, 0, 9))
    yield BadStatement("role 0", changed(role, 9, 0))
    yield BadStatement("role 3", changed(role, 9, 3))
    yield BadStatement("history 2", changed(created, 8, 2))
    yield BadStatement("is_bot as an integer", changed(created, 13, 0))
    yield BadStatement("previous_key of 257 bytes", changed(good[4], 11, cipher("long", 257)))
    yield BadStatement("invite_signature of 65 bytes", changed(good[6], 13, bytes(65)))
    yield BadStatement("the longest bin that fits nowhere", changed(left, 7, bytes(2049)))

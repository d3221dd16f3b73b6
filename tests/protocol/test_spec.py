"""SPEC.md against the code: every frame, statement, code, limit and number that it names, and the examples in it."""

import dataclasses
import json
import re
from collections.abc import Iterator
from hashlib import sha256
from typing import Any
from unittest.mock import MagicMock

import msgspec
import pytest
from msgspec import inspect

from orbital_client.crypto import (
    backups,
    contents,
    envelopes,
    fingerprints,
    groupkeys,
    invites,
    passphrases,
    primitives,
    segments,
    wraps,
)
from orbital_client.crypto.envelopes import BUCKETS, MAX_CONTENT_BYTES, NO_KIND, Field, Place
from orbital_client.links import SCHEME, SIGN_INFO
from orbital_client.trust.signals import GOOD_FOR_US
from orbital_protocol import codec, frames, statements
from orbital_protocol.codes import (
    AFTER_CATCHING_UP,
    AFTER_REFRESH,
    CHANGES_ROSTER,
    RETRYABLE,
    CloseCode,
    ErrorCode,
    Kind,
    Scope,
)
from orbital_protocol.frames import PUSHES, REQUESTS, Error, Frame, Limits, Ok, Value
from orbital_protocol.media import SEGMENT_BYTES
from orbital_relay.dispatch import Handlers, routes
from tests.protocol.vectors import PROTOCOL, load

SPEC = (PROTOCOL / "SPEC.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```\n(.*?)^```", SPEC, re.MULTILINE | re.DOTALL)

# ── the notation ────────────────────────────────────────────────────────────────────────────────────────────────────

LIKE = r"[a-z]+(?:\.[a-z_]+)?|[A-Z][A-Za-z]+"
SIGNATURE = re.compile(rf"^({LIKE}) \{{(.*?)\}}(?: → (\w+))?$", re.MULTILINE | re.DOTALL)
ELEMENTS = re.compile(r"^(\d+) ([a-z.]+) \[(.*)\]$", re.MULTILINE)


def signatures() -> dict[str, tuple[list[str], str | None]]:
    """By name: the fields as the specification writes them, and the answer."""
    found: dict[str, tuple[list[str], str | None]] = {}
    for block in BLOCKS:
        for name, fields, answer in SIGNATURE.findall(block):
            assert name not in found, f"{name} is there twice"
            flat = " ".join(fields.split())
            found[name] = ([field for field in flat.split(", ") if field], answer or None)
    return found


BY_DESCRIPTION = {
    "UUID, 16 bytes": "id",
    "SHA-256, 32 bytes": "hash",
    "Ed25519 public key, 32 bytes": "key",
    "Ed25519 signature, 64 bytes": "sig",
    "sequence number in a group's log": "seq",
    "generation of a group's key": "epoch",
    "microseconds since 1970 UTC": "time",
    "chosen by the client": "u32",
    "3 to 50 of a-z, 0-9 and _": "username",
    "8 letters and digits": "code",
    "1 to 64 of a-z, 0-9, _ . -": "cursor_name",
    "a name for people": "label",
    "kind of an event": "kind",
    "initialisation vector, 12 bytes": "iv",
    "number of bytes, or a position in a file": "size",
}


def written(info: inspect.Type) -> str:  # noqa: PLR0911, PLR0912  a branch and a return each type
    """A type in the specification's notation."""
    match info:
        case inspect.Metadata():
            description = (info.extra_json_schema or {}).get("description")
            return BY_DESCRIPTION[description] if description in BY_DESCRIPTION else written(info.type)
        case inspect.UnionType():
            [inner] = [member for member in info.types if not isinstance(member, inspect.NoneType)]
            return written(inner)
        case inspect.StructType():
            return "event" if info.cls is frames.Event else info.cls.__name__
        case inspect.ListType():
            least, most = info.min_length, info.max_length
            return f"[{written(info.item_type)}]" + (f"{least}..{most}" if least else f"≤{most}" if most else "")
        case inspect.BytesType(min_length=int() as size, max_length=most) if size == most:
            return f"bin {size}"
        case inspect.StrType(min_length=int() as least, max_length=int() as most):
            return f"str {least}..{most}"
        case inspect.BytesType():
            return "bin" + (f"≤{info.max_length}" if info.max_length else "")
        case inspect.StrType():
            return "str" + (f"≤{info.max_length}" if info.max_length else "")
        case inspect.BoolType():
            return "bool"
        case inspect.IntType():
            if (info.ge, info.le) == (1, 1000):
                return "page"
            if (info.ge, info.le) == (0, 2**32 - 1):
                return "u32"
            return "int" if info.ge is None else f"int {info.ge}..{info.le}"
        case _:
            raise TypeError(f"no notation for {info}")


DEFAULTS: dict[object, str] = {False: "false", True: "true", "": '""', bytes(32): "zeros"}


def written_field(field: inspect.Field) -> str:
    if field.required:
        return f"{field.name}: {written(field.type)}"
    if field.default is None:
        return f"{field.name}?: {written(field.type)}"
    default = "[]" if field.default is msgspec.NODEFAULT else DEFAULTS.get(field.default, str(field.default))
    if isinstance(field.default, int) and not isinstance(field.default, bool):
        default = str(field.default)
    return f"{field.name}: {written(field.type)} = {default}"


def fields_of(struct: type[msgspec.Struct], *, without: frozenset[str] = frozenset()) -> list[str]:
    info = inspect.type_info(struct)
    assert isinstance(info, inspect.StructType)
    return [written_field(field) for field in info.fields if field.name not in without]


SIGNATURES = signatures()
ID = frozenset({"id"})
PRIVATE = frozenset({"d", "p", "q", "dp", "dq", "qi"})
ANSWERS = list(dict.fromkeys(REQUESTS.values()))


@pytest.mark.parametrize("request_type", list(REQUESTS), ids=frames.type_of)
def test_requests(request_type: type[Frame]) -> None:
    fields, answer = SIGNATURES[frames.type_of(request_type)]
    assert sorted(fields) == sorted(fields_of(request_type, without=ID))
    assert answer == REQUESTS[request_type].__name__  # type: ignore[index]


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: answer.__name__)
def test_answers(answer: type[Ok]) -> None:
    fields, _ = SIGNATURES[answer.__name__]
    assert sorted(fields) == sorted(fields_of(answer, without=ID))


@pytest.mark.parametrize("push", [*PUSHES, Error, Ok], ids=frames.type_of)
def test_pushes_and_errors(push: type[Frame]) -> None:
    fields, answer = SIGNATURES[frames.type_of(push)]
    assert sorted(fields) == sorted(fields_of(push))
    assert answer is None


@pytest.mark.parametrize("value", Value.__subclasses__(), ids=lambda value: value.__name__)
def test_values(value: type[Value]) -> None:
    fields, _ = SIGNATURES[value.__name__]
    assert sorted(fields) == sorted(fields_of(value, without=PRIVATE if value is frames.PublicKey else frozenset()))


def test_nothing_else_is_specified() -> None:
    known = {
        *map(frames.type_of, REQUESTS),
        *map(frames.type_of, PUSHES),
        "error",
        "ok",
        *(value.__name__ for value in Value.__subclasses__()),
        *(answer.__name__ for answer in ANSWERS),
    }
    assert set(SIGNATURES) == known


# ── statements ──────────────────────────────────────────────────────────────────────────────────────────────────────

COMMON = (
    "group_id: id, actor_id: id, statement_id: id, base_seq: seq, base_hash: hash, key_epoch: epoch, roster_hash: hash"
)


def test_statements_begin_as_specified() -> None:
    assert f"[kind, {COMMON}," in " ".join(SPEC.split())
    assert fields_of(statements.Statement) == COMMON.split(", ")


def test_statements_go_on_as_specified() -> None:
    found = {int(kind): (name, own) for block in BLOCKS for kind, name, own in ELEMENTS.findall(block)}
    kinds = {statements.kind_of(kind): kind for kind in statements.Statement.__subclasses__()}  # type: ignore[arg-type]
    assert set(found) == set(kinds)
    for number, (name, own) in found.items():
        assert Kind(number).name.lower().replace("_", ".", 1) == name
        assert fields_of(kinds[number]) == [*COMMON.split(", "), *(own.split(", ") if own else [])]


# ── tables ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def rows(heading: str) -> Iterator[list[str]]:
    """The cells of the first table under a heading."""
    section = SPEC.partition(f"\n{heading}\n")[2]
    assert section, heading
    table = re.search(r"(?:^\|.*\n)+", section, re.MULTILINE)
    assert table
    for line in table[0].splitlines()[2:]:
        yield [cell.strip() for cell in line.strip("|").split(" | ")]


def quoted(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def test_error_codes() -> None:
    advice = {quoted(cells[0])[0]: cells[-1].strip("| ") for cells in rows("## 13. Errors")}
    assert set(advice) == set(ErrorCode)
    for code in ErrorCode:
        expected = (
            "after `retry_after_ms`"
            if code in RETRYABLE
            else "`refresh`"
            if code in AFTER_REFRESH
            else "after"
            if code in AFTER_CATCHING_UP
            else "no"
        )
        assert expected in advice[code], code


def test_close_codes() -> None:
    found = {int(cells[0]): quoted(cells[1])[0] for cells in rows("## 14. Close codes")}
    assert found == {code.value: code.name.lower() for code in CloseCode}


def test_kinds() -> None:
    found = {int(cells[0]): quoted(cells[1])[0] for cells in rows("### 11.1 Kinds")}
    assert found == {kind.value: kind.name.lower().replace("_", ".", 1) for kind in Kind}
    named = re.search(r"The \*\*roster-changing\*\* kinds are ([\d, and]+)\.", SPEC)
    assert named
    assert {int(number) for number in re.findall(r"\d+", named[1])} == {int(kind) for kind in CHANGES_ROSTER}


def test_every_limit_is_explained() -> None:
    found = [name for cells in rows("### 3.4 Limits") for name in quoted(cells[0])]
    assert sorted(found) == sorted(Limits.__struct_fields__)


def test_scopes() -> None:
    found = {cells[0].strip("`"): quoted(cells[1]) for cells in rows("### 5.2 Scopes")}
    assert set(found) == {"none", *Scope}
    named = [name for names in found.values() for name in names]
    assert sorted(named) == sorted(map(frames.type_of, REQUESTS))


def test_the_relay_asks_for_these_scopes() -> None:
    table = routes(Handlers(*(MagicMock() for _ in dataclasses.fields(Handlers))))
    asked = {
        frames.type_of(request): "none" if route.scope is None else route.scope for request, route in table.items()
    }
    assert asked == {name: cells[0].strip("`") for cells in rows("### 5.2 Scopes") for name in quoted(cells[1])}


def test_numbers_that_are_fixed() -> None:
    assert f"Containers nest at most {codec.MAX_DEPTH} deep" in SPEC
    assert f"It has at most {statements.MAX_STATEMENT_BYTES:,} bytes" in " ".join(SPEC.split())
    assert f"⌈`size_bytes` / {SEGMENT_BYTES:,}⌉" in SPEC
    assert f"`{sha256(b'').hexdigest()}`" in SPEC.partition("### 17.1 The root")[2].partition("### ")[0]


def test_every_mutating_request_says_what_happens_when_it_is_repeated() -> None:
    found = {name for cells in rows("### 5.4 Repeated requests") for name in quoted(cells[0])}
    reading = {"event.list", "thread.list", "reply.list", "group.list", "group.get", "group.keys", "member.list"}
    reading |= {"invite.list", "invite.open", "user.get", "backup.get", "cursor.get", "session.list", "token.list"}
    reading |= {"media.get", "media.read", "media.list", "quota.get"}
    posts = {"thread.post", "reply.post", "annotation.post"}
    control = {frames.type_of(r) for r in REQUESTS if issubclass(r, frames.ControlRequest)}
    assert found | reading | posts | control == set(map(frames.type_of, REQUESTS))


def test_links_lead_somewhere() -> None:
    anchors = {
        re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", SPEC, re.MULTILINE)
    }
    for anchor in re.findall(r"\]\(#([^)]+)\)", SPEC):
        assert anchor in anchors


# ── among clients ───────────────────────────────────────────────────────────────────────────────────────────────────

AMONG_CLIENTS = SPEC.partition("\n## 18. Among clients\n")[2].partition("\n## 19. ")[0]


def test_every_prefix_is_the_one_in_the_code() -> None:
    used = {
        groupkeys.CONTENT_INFO,
        groupkeys.COMMIT_INFO,
        groupkeys.PREVIOUS_INFO,
        wraps.LABEL_PREFIX,
        wraps.SIGNATURE_PREFIX,
        envelopes.PLACE_PREFIX,
        envelopes.CONTENT_PREFIX,
        SIGN_INFO,
        invites.SEAL_INFO,
        segments.PREFIX,
        fingerprints.PREFIX,
        passphrases.SALT_PREFIX,
        passphrases.LOGIN_INFO,
        passphrases.BACKUP_INFO,
        backups.PREFIX,
    }
    found = re.findall(r'"(orbital\.v1[a-z.]*(?:\\0)?)"', AMONG_CLIENTS)
    assert {prefix.replace("\\0", "\0").encode() for prefix in found} == used
    assert f'"{SCHEME}"' in AMONG_CLIENTS


def test_sizes_among_clients() -> None:
    *smaller, largest = (f"{bucket:,}" for bucket in BUCKETS)
    flat = " ".join(AMONG_CLIENTS.split())
    assert f"fills one of {', '.join(smaller)} or {largest} bytes" in flat
    assert f"A content has at most {MAX_CONTENT_BYTES:,} bytes" in flat
    place = Place(Kind.REPLY_POSTED, Field.BODY, bytes(16), bytes(16), 1)
    assert f"The `aad` always has {len(place.aad)} bytes" in flat
    assert f"⌈P / {segments.PLAIN_BYTES:,}⌉" in flat
    assert f"encryption_iv[0..{segments.IV_RANDOM_BYTES}]" in flat
    assert f"{passphrases.ROUNDS:,} rounds" in flat
    assert f"more than {GOOD_FOR_US // 1_000_000} s from the reader's clock" in flat
    assert f"version, `0x{primitives.VERSION.hex()}`" in flat


def test_places() -> None:
    found = {cells[0]: [cell.strip(" |") for cell in cells[1:]] for cells in rows("### 18.4 Envelopes")}
    for name, kind, field in [
        ("`encrypted_title` of a thread", Kind.THREAD_POSTED, Field.TITLE),
        ("`encrypted_body` of a thread", Kind.THREAD_POSTED, Field.BODY),
        ("`encrypted_body` of a reply", Kind.REPLY_POSTED, Field.BODY),
        ("`encrypted_body` of an annotation", Kind.ANNOTATION_POSTED, Field.BODY),
        ("`encrypted_metadata` of a file", Kind.MEDIA_POSTED, Field.METADATA),
        ("`encrypted_name`", NO_KIND, Field.NAME),
        ("`payload` of a signal", NO_KIND, Field.SIGNAL),
    ]:
        assert found.pop(name)[:2] == [str(int(kind)), str(int(field))]
    assert found == {}


def test_contents() -> None:
    found = {cells[0].strip("`"): quoted(cells[1])[0] for cells in rows("### 18.5 Contents")}
    structs: dict[str, type[msgspec.Struct]] = {
        "title": contents.Title,
        "body": contents.Body,
        "file": contents.File,
        "name": contents.Name,
    }
    tagged = [*contents.Act.__subclasses__(), *contents.Signalled.__subclasses__()]
    for struct in tagged:
        config = struct.__struct_config__
        structs[f"{config.tag_field} `{config.tag}"] = struct
    assert set(found) == set(structs)
    for name, struct in structs.items():
        tag = [f"{struct.__struct_config__.tag_field}: str"] if struct in tagged else []
        assert sorted(found[name].split(", ")) == sorted([*tag, *fields_of(struct)]), name


def test_outcomes() -> None:
    found = {quoted(cells[0])[0] for cells in rows("### 18.1 Primitives and versions")}
    assert found == set(re.findall(r'"outcome": "(\w+)"', json.dumps(load("crypto")))) - {"read"}


# ── the examples ────────────────────────────────────────────────────────────────────────────────────────────────────


def example(heading: str) -> list[str]:
    """The hex of each block under a heading, without what is written beside it."""
    section = SPEC.partition(f"\n### {heading}\n")[2].partition("\n### ")[0]
    return [
        "".join("".join(re.match(r"\s*([0-9a-f ]*?)(?:\s{2,}\S.*)?$", line)[1].split()) for line in block.splitlines())  # type: ignore[index]
        for block in re.findall(r"^```\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    ]


def test_the_ping() -> None:
    [ping] = [exchange for exchange in load("frames")["exchanges"] if exchange["type"] == "ping"]
    assert example("19.1 A ping and its answer") == [ping["request"]["bytes"], ping["answer"]["bytes"]]


def test_the_statement() -> None:
    statement, signature = example("19.2 A statement")
    [vector] = [found for found in load("statements")["statements"] if found["statement"] == statement]
    assert vector["signature"] == signature
    section = SPEC.partition("\n### 19.2")[2].partition("\n### ")[0]
    assert f"`{vector['preimage'].removesuffix(statement)}`" in section
    assert f"`{vector['signing_key']}`" in section
    assert f"these {len(statement) // 2} bytes" in " ".join(section.split())


def test_the_event() -> None:
    field, content, preimage, event_hash = example("19.3 An event")
    event: dict[str, Any] = next(found for found in load("chain")["events"] if found["hash"] == event_hash)
    assert event["fields"] == [field]
    assert sha256(bytes.fromhex(content)).hexdigest() == event["content_hash"]
    assert sha256(bytes.fromhex(preimage)).hexdigest() == event_hash

"""The frames against frames.json: decoded, they are what it says, and encoded, the same bytes."""

from collections.abc import Iterator
from typing import Any

import msgpack  # type: ignore[import-untyped]
import msgspec
import pytest

from orbital_protocol import codec, frames
from orbital_protocol.codes import (
    AFTER_CATCHING_UP,
    AFTER_REFRESH,
    RETRYABLE,
    CloseCode,
    ErrorCode,
    Kind,
)
from orbital_protocol.frames import PUSHES, REQUESTS, Error, Frame
from tests.protocol.vectors import hexed, load, named

FILE = load("frames")
BY_TYPE = {frames.type_of(request): request for request in REQUESTS}


def plain(frame: Frame) -> Any:
    """The frame as the vectors have it."""
    return hexed(msgspec.to_builtins(frame, builtin_types=(bytes,)))


@pytest.mark.parametrize("exchange", **named(FILE["exchanges"], "type"))
def test_requests_and_answers(exchange: dict[str, Any]) -> None:
    sent, received = exchange["request"], exchange["answer"]
    request = codec.decode_request(bytes.fromhex(sent["bytes"]))
    assert type(request) is BY_TYPE[exchange["type"]]
    assert plain(request) == sent["frame"]
    assert codec.encode(request).hex() == sent["bytes"]
    answer = codec.decode_answer(bytes.fromhex(received["bytes"]), REQUESTS[type(request)])
    assert answer.id == request.id
    assert plain(answer) == received["frame"]
    assert codec.encode(answer).hex() == received["bytes"]


@pytest.mark.parametrize("vector", **named([*FILE["pushes"], *FILE["errors"]]))
def test_pushes_and_errors(vector: dict[str, Any]) -> None:
    push = codec.decode_push(bytes.fromhex(vector["bytes"]))
    assert push is not None
    assert plain(push) == vector["frame"]
    assert codec.encode(push).hex() == vector["bytes"]


def all_vectors() -> Iterator[dict[str, Any]]:
    for exchange in FILE["exchanges"]:
        yield exchange["request"]
        yield exchange["answer"]
    yield from FILE["pushes"]
    yield from FILE["errors"]


def test_bytes_are_what_messagepack_makes_of_the_frames() -> None:
    for vector in all_vectors():
        assert hexed(msgpack.unpackb(bytes.fromhex(vector["bytes"]))) == vector["frame"]


def test_every_request_push_and_error_has_a_vector() -> None:
    assert {exchange["type"] for exchange in FILE["exchanges"]} == set(BY_TYPE)
    assert {push["type"] for push in FILE["pushes"]} == {frames.type_of(push) for push in PUSHES}
    assert {error["code"] for error in FILE["errors"]} == set(ErrorCode)


def test_every_kind_of_event_has_a_vector() -> None:
    kinds = {push["frame"]["kind"] for push in FILE["pushes"] if push["type"] == "event"}
    assert kinds == set(Kind)


def structs_in(frame: msgspec.Struct) -> Iterator[msgspec.Struct]:
    yield frame
    for name in frame.__struct_fields__:
        value = getattr(frame, name)
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, msgspec.Struct):
                yield from structs_in(inner)


def decoded() -> Iterator[Frame]:
    for exchange in FILE["exchanges"]:
        request = codec.decode_request(bytes.fromhex(exchange["request"]["bytes"]))
        yield request
        yield codec.decode_answer(bytes.fromhex(exchange["answer"]["bytes"]), REQUESTS[type(request)])
    for vector in [*FILE["pushes"], *FILE["errors"]]:
        push = codec.decode_push(bytes.fromhex(vector["bytes"]))
        assert push is not None
        yield push


# A client never sends the private members of a JWK; the struct has them only so that a relay can refuse them.
PRIVATE = {"d", "p", "q", "dp", "dq", "qi"}


def test_every_field_has_a_vector() -> None:
    seen: dict[type[msgspec.Struct], set[str]] = {}
    for frame in decoded():
        for struct in structs_in(frame):
            present = set(msgspec.to_builtins(struct, builtin_types=(bytes,)))
            seen.setdefault(type(struct), set()).update(present)
    missing = {
        f"{struct.__name__}.{name}"
        for struct, present in seen.items()
        for name in set(struct.__struct_fields__) - present - PRIVATE
    }
    assert not missing


def test_a_request_that_repeats_itself_has_a_vector() -> None:
    assert any(exchange["answer"]["frame"].get("duplicate") for exchange in FILE["exchanges"])


def test_type_of_takes_frames_alone() -> None:
    assert frames.type_of(frames.Ping(id=1)) == frames.type_of(frames.Ping) == "ping"
    with pytest.raises(TypeError):
        frames.type_of(frames.Value)  # type: ignore[arg-type]


def test_frames_do_not_change() -> None:
    with pytest.raises(AttributeError):
        frames.Ping(id=1).id = 2  # type: ignore[misc]


def test_an_error_without_id_answers_a_frame_without_id() -> None:
    nameless = [error for error in FILE["errors"] if "id" not in error["frame"]]
    assert [error["code"] for error in nameless] == [ErrorCode.BAD_FRAME]
    assert isinstance(codec.decode_push(bytes.fromhex(nameless[0]["bytes"])), Error)


def test_codes_say_whether_to_try_again() -> None:
    assert not RETRYABLE & AFTER_REFRESH
    assert not RETRYABLE & AFTER_CATCHING_UP
    assert {code.name: code.reconnect for code in CloseCode} == {
        **dict.fromkeys(("DRAINING", "NO_PONG", "SLOW_CONSUMER", "TOKEN_EXPIRED", "RATE_LIMITED", "INTERNAL"), True),
        **dict.fromkeys(
            ("AUTH_FAILED", "REVOKED", "PROTOCOL_ERROR", "UNSUPPORTED_PROTOCOL", "ACCOUNT_DELETED", "AUTH_TIMEOUT"),
            False,
        ),
    }

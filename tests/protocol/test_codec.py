"""The codec: what is a frame, what isn't, and that nothing but its own two errors ever comes out."""

import tracemalloc
from contextlib import suppress
from datetime import UTC
from typing import Any

import msgpack  # type: ignore[import-untyped]
import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from orbital_protocol import codec, frames
from orbital_protocol.codec import BadFrame, Undecodable
from orbital_protocol.frames import PUSHES, REQUESTS, Error, Frame, Ok
from tests.protocol.strategies import frames as any_frame
from tests.protocol.vectors import load, named

CASES = [*load("codec")["cases"], *load("limits")["cases"]]
ANSWERS = list(dict.fromkeys(REQUESTS.values()))
PUSHED: list[type[Frame]] = [*PUSHES, Error]
FRAMES: list[type[Frame]] = [*REQUESTS, *ANSWERS, *PUSHES, Error]
FAR = 100_000  # deeper than anything that these tests make


def outcomes(message: bytes) -> list[dict[str, Any]]:
    """What the codec makes of a message, as the vectors say it."""
    found: list[dict[str, Any]] = []
    try:
        for raw in codec.split(message):
            try:
                request = codec.decode_request(raw)
                found.append({"request": frames.type_of(request), "id": request.id})
            except BadFrame as error:
                said = {"error": str(error.code), "id": error.request_id, "field": error.field}
                found.append({key: value for key, value in said.items() if value is not None})
    except Undecodable:
        found.append({"undecodable": True})
    return found


@pytest.mark.parametrize("case", **named(CASES, "name"))
def test_message_has_the_outcomes_of_the_vectors(case: dict[str, Any]) -> None:
    assert outcomes(bytes.fromhex(case["message"])) == case["outcomes"]


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=40)
    | st.binary(max_size=300)
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=40))
    | st.datetimes(timezones=st.just(UTC)),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=8), inner, max_size=20),
    max_leaves=40,
)


def packed(value: object) -> bytes:
    raw: bytes = msgpack.packb(value, datetime=True)
    return raw


@given(value=values, before=st.binary(max_size=9), after=st.binary(max_size=9))
@example(value="a" * 70_000, before=b"", after=b"")
@example(value=b"a" * 70_000, before=b"", after=b"")
@example(value=[0] * 70_000, before=b"", after=b"")
@example(value={n: 0 for n in range(70_000)}, before=b"", after=b"\xc0")
@example(value=msgpack.ExtType(5, b"a" * 70_000), before=b"", after=b"")
def test_skip_ends_where_the_object_ends(value: object, before: bytes, after: bytes) -> None:
    raw = packed(value)
    assert codec.skip(before + raw + after, len(before), FAR) == len(before) + len(raw)


@given(value=values, data=st.data())
def test_skip_refuses_every_object_cut_short(value: object, data: st.DataObject) -> None:
    raw = packed(value)
    cut = data.draw(st.integers(0, len(raw) - 1))
    with pytest.raises(Undecodable):
        codec.skip(raw[:cut], 0, FAR)


@given(st.lists(values, max_size=5))
def test_split_finds_every_frame(several: list[object]) -> None:
    raw = [packed(value) for value in several]
    assert [bytes(found) for found in codec.split(b"".join(raw), FAR)] == raw


# Mostly bytes that open something: containers, strings, extensions, numbers, and 0xc1.
random_messages = st.binary(max_size=60) | st.lists(
    st.sampled_from([0x81, 0x91, 0x92, 0xA1, *range(0xC0, 0xE0), 0x00, 0x01, 0xFF]), max_size=30
).map(bytes)


@given(random_messages)
def test_skip_agrees_with_msgpack_on_any_bytes(message: bytes) -> None:
    unpacker = msgpack.Unpacker(strict_map_key=False, raw=True)
    unpacker.feed(message)
    try:
        unpacker.skip()
        expected = unpacker.tell()
    except (msgpack.UnpackException, ValueError):
        expected = None
    try:
        found = codec.skip(message, 0, FAR)
    except Undecodable:
        found = None
    assert found == expected


@given(random_messages)
def test_any_bytes_as_a_message_raise_nothing_else(message: bytes) -> None:
    outcomes(message)


@given(st.dictionaries(st.sampled_from(["type", "id", "groups", "password", "limit", "x"]), values, max_size=6))
def test_any_map_as_a_frame_raises_nothing_else(frame: dict[str, object]) -> None:
    raw = packed(frame)
    for decode in (codec.decode_request, codec.decode_push, codec.frame_head):
        with suppress(BadFrame):
            decode(raw)
    for answer in ANSWERS:
        with suppress(BadFrame):
            codec.decode_answer(raw, answer)


@given(
    request=st.sampled_from(list(REQUESTS)).map(frames.type_of),
    fields=st.dictionaries(
        st.sampled_from(sorted({name for request in REQUESTS for name in request.__struct_fields__})), values
    ),
)
def test_a_request_with_any_fields_is_taken_or_answered(request: str, fields: dict[str, object]) -> None:
    found = outcomes(packed({**fields, "type": request, "id": 5}))
    assert len(found) == 1
    assert found[0] == {"request": request, "id": 5} or (found[0]["error"], found[0]["id"]) == ("bad_frame", 5)


@given(st.sampled_from(list(REQUESTS)).flatmap(any_frame))
def test_requests_survive_the_wire(request: Frame) -> None:
    assert codec.decode_request(codec.encode(request)) == request


@given(st.sampled_from(ANSWERS).flatmap(any_frame))
def test_answers_survive_the_wire(answer: Frame) -> None:
    assert isinstance(answer, Ok)
    assert codec.decode_answer(codec.encode(answer), type(answer)) == answer


@given(st.sampled_from(PUSHED).flatmap(any_frame))
def test_pushes_survive_the_wire(push: Frame) -> None:
    assert codec.decode_push(codec.encode(push)) == push


@given(st.sampled_from(FRAMES).flatmap(any_frame))
def test_any_messagepack_library_reads_our_frames(frame: Frame) -> None:
    assert msgpack.unpackb(codec.encode(frame)) == msgspec.to_builtins(frame, builtin_types=(bytes,))


@given(st.sampled_from(FRAMES).flatmap(any_frame))
def test_frames_stay_within_the_depth(frame: Frame) -> None:
    raw = codec.encode(frame)
    assert codec.skip(raw, 0) == len(raw)


def test_a_push_of_an_unknown_type_is_none() -> None:
    assert codec.decode_push(packed({"type": "of.tomorrow", "id": 3})) is None


def test_an_answer_must_be_the_one_that_the_request_calls_for() -> None:
    with pytest.raises(BadFrame):
        codec.decode_answer(packed({"type": "ok", "id": 3}), frames.PostOk)
    with pytest.raises(BadFrame):
        codec.decode_answer(packed({"type": "error", "id": 3}), frames.Ok)


BEYOND, MORE = "ends within a frame", "announces more"


@pytest.mark.parametrize(
    ("first", "why"), [(b"\xc6", BEYOND), (b"\xc9", BEYOND), (b"\xdb", BEYOND), (b"\xdd", MORE), (b"\xdf", MORE)]
)
def test_a_huge_announcement_allocates_nothing(first: bytes, why: str) -> None:
    message = b"\x81\xa4type" + first + b"\xff\xff\xff\xff" + bytes(64)
    tracemalloc.start()
    try:
        with pytest.raises(Undecodable, match=why):
            list(codec.split(message))
        assert tracemalloc.get_traced_memory()[1] < 16_384
    finally:
        tracemalloc.stop()


def test_depth_costs_no_recursion() -> None:
    with pytest.raises(Undecodable):
        codec.skip(b"\x91" * 1_000_000, 0)
    assert codec.skip(b"\x91" * 1_000_000 + b"\xc0", 0, 1_000_001) == 1_000_001

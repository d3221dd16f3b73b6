"""Bytes to frames and back.

A message holds one or more frames back to back. `split` walks over the bytes of each frame first, without making any
object: depth, lengths and counts are checked there, so that what is decoded afterwards can't be larger than what came.
"""

import re
from collections.abc import Iterator
from typing import Any, Final, Union

import msgspec

from orbital_protocol.codes import ErrorCode
from orbital_protocol.frames import PUSHES, REQUESTS, Error, Frame, Ok, Push, Request, type_of

MAX_DEPTH: Final = 8
"""Containers within containers that a frame may have, its own map included."""


class Undecodable(ValueError):
    """The bytes are not MessagePack within the limits: the stream is lost."""


class BadFrame(ValueError):
    """A frame that decodes but is wrong: its `code`, the field concerned, and the `id` to answer, if there is one."""

    def __init__(self, code: ErrorCode, message: str, *, request_id: int | None = None, field: str | None = None):
        super().__init__(message)
        self.code = code
        self.request_id = request_id
        self.field = field


class _Head(msgspec.Struct):
    type: Any = None
    id: Any = None


# What msgspec raises for bytes that are MessagePack and yet not the frame in question; strings may not be UTF-8.
_WRONG: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

_encoder = msgspec.msgpack.Encoder()
_heads = msgspec.msgpack.Decoder(_Head)
_requests = msgspec.msgpack.Decoder(Union[tuple(REQUESTS)])  # noqa: UP007  made from the table
_pushes = msgspec.msgpack.Decoder(Union[(*PUSHES, Error)])
_answers = {answer: msgspec.msgpack.Decoder(answer) for answer in set(REQUESTS.values())}
_request_types = frozenset(type_of(request) for request in REQUESTS)
_push_types = frozenset(type_of(push) for push in PUSHES) | {type_of(Error)}


def encode(frame: Frame) -> bytes:
    """Encode one frame."""
    return _encoder.encode(frame)


def split(message: bytes, max_depth: int = MAX_DEPTH) -> Iterator[memoryview]:
    """Yield the bytes of each frame of a message; raise Undecodable where they end too soon or nest too deep."""
    view = memoryview(message)
    position = 0
    while position < len(message):
        end = skip(message, position, max_depth)
        yield view[position:end]
        position = end


_BIN8: Final = 0xC4
_MAP16: Final = 0xDE
_NAMED: Final = {  # bytes of an object, its first one included, where that says how many
    **dict.fromkeys((0xC0, 0xC2, 0xC3), 1),
    **{0xCA: 5, 0xCB: 9, 0xCC: 2, 0xCD: 3, 0xCE: 5, 0xCF: 9, 0xD0: 2, 0xD1: 3, 0xD2: 5, 0xD3: 9},
    **{0xD4: 3, 0xD5: 4, 0xD6: 6, 0xD7: 10, 0xD8: 18},
    **{first: 1 + (first & 0x1F) for first in range(0xA0, 0xC0)},  # fixstr
    **dict.fromkeys((*range(0x80), *range(0xE0, 0x100)), 1),  # fixint
}
_FIXED: Final = tuple(_NAMED.get(first, 0) for first in range(0x100))
_SIZES: Final = {  # bytes of the length that follows any other first byte, and what the length leaves out
    **{0xC5: (2, 0), 0xC6: (4, 0), 0xD9: (1, 0), 0xDA: (2, 0), 0xDB: (4, 0)},
    **{0xC7: (1, 1), 0xC8: (2, 1), 0xC9: (4, 1)},
}


def skip(data: bytes, position: int, max_depth: int = MAX_DEPTH) -> int:
    """Return where the MessagePack object at `position` ends, having made no object of it.

    Raise Undecodable if it runs past the end, nests deeper than `max_depth`, or announces more than there is.
    """
    end = len(data)
    left = 1  # objects that the innermost open container still lacks
    outer: list[int] = []
    try:
        while True:
            first = data[position]
            if size := _FIXED[first]:
                position += size
            elif first == _BIN8:  # ids, most of all
                position += 2 + data[position + 1]
            elif first in _SIZES:
                width, extra = _SIZES[first]
                position += 1
                position += width + extra + int.from_bytes(data[position : position + width], "big")
            else:
                count, position = _container(data, position)
                if count > end - position:
                    raise Undecodable("a container announces more than the message holds")
                if len(outer) >= max_depth:
                    raise Undecodable(f"nested deeper than {max_depth}")
                if count:
                    outer.append(left - 1)
                    left = count
                    continue
            left -= 1
            while not left:
                if not outer:
                    if position > end:
                        raise Undecodable("the message ends within a frame")
                    return position
                left = outer.pop()
    except IndexError:
        raise Undecodable("the message ends within a frame") from None


def _container(data: bytes, position: int) -> tuple[int, int]:
    """How many objects an array or a map holds, and where the first one is."""
    first = data[position]
    position += 1
    if first < 0x90:
        return 2 * (first & 0x0F), position
    if first < 0xA0:
        return first & 0x0F, position
    if first < 0xDC:
        raise Undecodable(f"0x{first:02x} is not MessagePack")
    width = 4 if first & 1 else 2
    count = int.from_bytes(data[position : position + width], "big")
    return 2 * count if first >= _MAP16 else count, position + width


def decode_request(raw: bytes | memoryview) -> Request:
    """Decode one frame of a client's; raise BadFrame with the `id` and the field where it is wrong."""
    try:
        request: Request = _requests.decode(raw)
    except _WRONG as error:
        raise _explain(raw, error) from None
    return request


def _explain(raw: bytes | memoryview, error: Exception) -> BadFrame:
    """Say what is wrong with a frame that could not be decoded as a request."""
    try:
        head = _heads.decode(raw)
    except _WRONG:
        return BadFrame(ErrorCode.BAD_FRAME, "a frame is a map whose keys are strings")
    is_id = type(head.id) is int and 0 <= head.id < 2**32
    request_id = head.id if is_id else None
    if not isinstance(head.type, str):
        return BadFrame(ErrorCode.BAD_FRAME, "a frame has a `type`, a string", request_id=request_id, field="type")
    if head.type not in _request_types:
        return BadFrame(ErrorCode.UNKNOWN_TYPE, "this relay knows no such request", request_id=request_id, field="type")
    if not is_id:
        return BadFrame(ErrorCode.BAD_FRAME, "a request has an `id`, 0 to 2^32-1", field="id")
    reason, _, path = str(error).partition(" - at `$.")
    if missing := re.search(r"missing required field `([^`]+)`", reason):
        path = f"{path.rstrip('`')}.{missing[1]}".lstrip(".")
    return BadFrame(ErrorCode.BAD_FRAME, reason, request_id=request_id, field=path.rstrip("`") or None)


def frame_head(raw: bytes | memoryview) -> tuple[str, int | None]:
    """Return the `type` and `id` of a frame; raise BadFrame if there is no `type`."""
    try:
        head = _heads.decode(raw)
    except _WRONG:
        raise BadFrame(ErrorCode.BAD_FRAME, "a frame is a map whose keys are strings") from None
    if not isinstance(head.type, str):
        raise BadFrame(ErrorCode.BAD_FRAME, "a frame has a `type`, a string", field="type")
    return head.type, head.id if isinstance(head.id, int) else None


def decode_answer(raw: bytes | memoryview, answer: type[Ok]) -> Ok:
    """Decode an `ok` frame as the answer that its request calls for; raise BadFrame if it isn't one."""
    try:
        frame: Ok = _answers[answer].decode(raw)
    except _WRONG as error:
        raise BadFrame(ErrorCode.BAD_FRAME, str(error)) from None
    return frame


def decode_push(raw: bytes | memoryview) -> Push | Error | None:
    """Decode a push or an `error`; None for a type that this version doesn't know, BadFrame where it is wrong."""
    kind, request_id = frame_head(raw)
    if kind not in _push_types:
        return None
    try:
        frame: Push | Error = _pushes.decode(raw)
    except _WRONG as error:
        raise BadFrame(ErrorCode.BAD_FRAME, str(error), request_id=request_id) from None
    return frame

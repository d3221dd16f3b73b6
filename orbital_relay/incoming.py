"""What a client sends, from bytes to the handshake's request and whole messages.

The `websockets` library's protocol reads all of it but the frames that nearly all are: a whole, masked, binary message.
Those are told by their first two bytes and taken out here, because the library's parser takes a quarter of the relay's
time for them (docs/adr/0023-a-connection-of-our-own.md). No I/O here.
"""

from collections.abc import Iterator
from typing import Final

from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import State
from websockets.server import ServerProtocol

try:
    from websockets.speedups import apply_mask
except ImportError:  # the library without its extension in C
    from websockets.utils import apply_mask

Message = bytes | str

_END_OF_REQUEST: Final = b"\r\n\r\n"
_FRAGMENTS: Final = 4096  # of a message: empty ones count towards no limit of bytes

# RFC 6455, 5.2.
_BINARY_FINAL: Final = 0x82
_MASKED: Final = 0x80
_MASK_BYTES: Final = 4
_WIDTHS: Final = {126: 2, 127: 8}  # bytes of the length that follow, for two values of its first seven bits


class Incoming:
    """The bytes of one connection."""

    __slots__ = ("_begun", "_handed", "_head_bytes", "_kept", "_missing", "_pieces", "_protocol", "_rest")

    def __init__(self, protocol: ServerProtocol) -> None:
        self._protocol = protocol
        self._kept = b""  # the end of a request that has not ended, or the beginning of a frame's head
        self._handed = 0  # how many bytes of that head the library has: one that it refuses is refused at once
        self._rest = 0  # bytes still to come of a frame that the library reads
        self._pieces: list[bytes] = []  # of a plain frame that came in part
        self._head_bytes = 0  # of that, its mask included
        self._missing = 0  # bytes still to come of it
        self._begun: tuple[Opcode, list[bytes]] | None = None  # a message of which more fragments must come

    def feed(self, data: bytes) -> Iterator[Request | Message]:
        """Yield what these bytes complete. A request must be answered before the next step.

        What goes against the protocol ends it: look at its state, and send what it has to say.
        """
        at = 0
        if self._protocol.state is State.CONNECTING:
            at = self._end_of_request(data)
            yield from self._hand_over(data[:at])
        elif self._kept:
            data, self._kept = self._kept + data, b""
        elif self._missing:
            at = min(self._missing, len(data))
            yield from self._gather(data[:at])
        while at < len(data):
            if not self._rest:
                head = _head(data, at)
                if head is None:
                    self._kept = data[at:]
                    if not _may_be_plain(self._kept):
                        piece, self._handed = self._kept[self._handed :], len(self._kept)
                        yield from self._hand_over(piece)
                    return
                mask_at, end = head
                payload_at = mask_at + _MASK_BYTES
                if self._is_plain(data, at, end - payload_at):
                    if end > len(data):
                        self._pieces.append(data[at:])
                        self._head_bytes, self._missing = payload_at - at, end - len(data)
                        return
                    yield apply_mask(data[payload_at:end], data[mask_at:payload_at])
                    at = end
                    continue
                at, self._handed = at + self._handed, 0
                self._rest = end - at
            piece = data[at : at + self._rest]
            self._rest -= len(piece)
            at += len(piece)
            yield from self._hand_over(piece)

    def _gather(self, piece: bytes) -> Iterator[Message]:
        """Take more of a plain frame. It is large, so it is copied no more often than it must be."""
        self._pieces.append(piece)
        self._missing -= len(piece)
        if not self._missing:
            frame, payload_at = b"".join(self._pieces), self._head_bytes
            self._pieces.clear()
            yield apply_mask(memoryview(frame)[payload_at:], frame[payload_at - _MASK_BYTES : payload_at])

    def _end_of_request(self, data: bytes) -> int:
        """Where the request ends in this data, or the data does."""
        seen = self._kept + data
        end = seen.find(_END_OF_REQUEST)
        if end < 0:
            self._kept = seen[-len(_END_OF_REQUEST) + 1 :]
            return len(data)
        self._kept, before = b"", len(self._kept)
        return end + len(_END_OF_REQUEST) - before

    def _is_plain(self, data: bytes, at: int, size: int) -> bool:
        """Whether the frame at a place is a whole binary message that the library would let pass."""
        protocol = self._protocol
        return (
            _may_be_plain(data[at : at + 2])
            and protocol.state is State.OPEN
            and self._begun is None
            and (protocol.max_message_size is None or size <= protocol.max_message_size)
        )

    # ── what the library reads ──────────────────────────────────────────────────────────────────────────────────────

    def _hand_over(self, data: bytes) -> Iterator[Request | Message]:
        self._protocol.receive_data(data)
        for event in self._protocol.events_received():
            if isinstance(event, Request):
                yield event
            elif isinstance(event, Frame) and (message := self._message_of(event)) is not None:
                yield message

    def _message_of(self, frame: Frame) -> Message | None:
        """The message that this frame completes; the protocol sees to the order of fragments, and the size of all."""
        if frame.opcode is Opcode.BINARY or frame.opcode is Opcode.TEXT:
            self._begun = (frame.opcode, [])
        elif frame.opcode is not Opcode.CONT:
            return None
        if self._begun is None:
            return None
        opcode, pieces = self._begun
        pieces.append(bytes(frame.data))
        if not frame.fin:
            if len(pieces) >= _FRAGMENTS:
                self._begun = None
                self._protocol.fail(CloseCode.MESSAGE_TOO_BIG, "too many fragments")
            return None
        self._begun = None
        return b"".join(pieces) if opcode is Opcode.BINARY else self._text_of(b"".join(pieces))

    def _text_of(self, data: bytes) -> str | None:
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            self._protocol.fail(CloseCode.INVALID_DATA, f"{error.reason} at position {error.start}")
            return None


def _may_be_plain(head: bytes) -> bool:
    """Whether a whole, masked, binary message may begin so."""
    return len(head) < 2 or (head[0] == _BINARY_FINAL and head[1] >= _MASKED)  # noqa: PLR2004  two bytes tell


def _head(data: bytes, at: int) -> tuple[int, int] | None:
    """Where a masked frame's mask stands and where it ends (of one without a mask: four bytes later than it does, which
    the library refuses before it gets there); None where its length is not there yet."""
    if len(data) < at + 2:
        return None
    length = data[at + 1] & 0x7F
    mask_at = at + 2
    width = _WIDTHS.get(length)
    if width is not None:
        mask_at += width
        if len(data) < mask_at:
            return None
        length = int.from_bytes(data[at + 2 : mask_at], "big")
    return mask_at, mask_at + _MASK_BYTES + length

"""The handshakes of this second: a request like one that was let in is answered like it, without being parsed again.

When thousands come back at once, their requests are of a few kinds, and differ in the client's key, and behind a proxy
in the client's address. The `websockets` library reads the first of each kind; what it made of that one holds for the
others, with the proof for another key in its place (docs/adr/0025-handshakes-of-a-kind.md). An answer names the second
it was given in, so it is good for that second. No I/O here.
"""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from websockets.typing import Subprotocol
from websockets.utils import accept_key

_KINDS: Final = 64  # in a second; what is of others is parsed
_REQUEST_BYTES: Final = 4096
_END: Final = b"\r\n\r\n"
# What varies within a kind: a key (16 bytes in Base64), an address.
_VARYING: Final = re.compile(
    rb"\r\n(?:Sec-WebSocket-Key: ([A-Za-z0-9+/]{22}==)|X-Forwarded-For: ([0-9A-Fa-f.:, ]+))(?=\r\n)"
)

Kind = tuple[bytes, ...]
"""What requests have in common: the text between what varies."""


@dataclass(frozen=True, slots=True)
class Handshake:
    """A request for a connection as it came: its kind, and what is its own."""

    kind: Kind
    key: bytes
    forwarded: str
    size: int  # in bytes

    @classmethod
    def of(cls, data: bytes) -> "Handshake | None":
        """Take apart what a connection begins with; None where that is no whole request, or has not one key."""
        size = data.find(_END) + len(_END)
        if not len(_END) <= size <= _REQUEST_BYTES:
            return None
        parts = _VARYING.split(data[:size])  # what is common, a key or None, an address or None, what is common, …
        keys = [key for key in parts[1::3] if key is not None]
        if len(keys) != 1:
            return None
        forwarded = b",".join([address for address in parts[2::3] if address is not None])
        return cls(tuple(parts[::3]), keys[0], forwarded.decode("ascii"), size)


@dataclass(frozen=True, slots=True)
class Answer:
    """How a kind is let in: what is said before and after the proof that the key was read."""

    before: bytes
    after: bytes
    subprotocol: Subprotocol | None

    def to(self, handshake: Handshake) -> bytes:
        """The answer to one of the kind (RFC 6455, 4.2.2)."""
        return self.before + _proof(handshake.key) + self.after


class Handshakes:
    """What was answered in this second."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._second = 0
        self._answers: dict[Kind, Answer] = {}

    def recall(self, handshake: Handshake) -> Answer | None:
        """How a request of this kind was answered, if one was, in this second."""
        return self._of_now().get(handshake.kind)

    def remember(self, handshake: Handshake, answer: bytes, subprotocol: Subprotocol | None) -> None:
        """A request was let in with this answer."""
        answers = self._of_now()
        before, proof, after = answer.partition(_proof(handshake.key))
        if proof and len(answers) < _KINDS:
            answers[handshake.kind] = Answer(before, after, subprotocol)

    def _of_now(self) -> dict[Kind, Answer]:
        second = int(self._clock())
        if second != self._second:
            self._second = second
            self._answers.clear()
        return self._answers


def _proof(key: bytes) -> bytes:
    return accept_key(key.decode("ascii")).encode("ascii")

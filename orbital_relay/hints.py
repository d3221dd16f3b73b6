"""What relays tell one another through NOTIFY: payloads on the channel `orbital`, as text, and back.

Every payload begins with its kind and version, then the relay that speaks. Ids are 32 hexadecimal digits. All of it is
a hint: whatever is lost here is found by the sweep, or was never promised.
"""

from base64 import b64decode, b64encode
from dataclasses import dataclass
from typing import Final

CHANNEL: Final = "orbital"


@dataclass(frozen=True, slots=True)
class Wake:
    """The logs of these groups have come to these seqs."""

    relay_hex: str
    heads: tuple[tuple[bytes, int], ...]


@dataclass(frozen=True, slots=True)
class Revoke:
    """Close the live connections of a `session`, `token` or `user`."""

    subject: str
    subject_id: bytes
    close_code: int


@dataclass(frozen=True, slots=True)
class Knock:
    """Somebody knocks at a group."""

    group_id: bytes
    request_id: bytes


@dataclass(frozen=True, slots=True)
class SignalHint:
    """A signal for whoever is online in a group."""

    relay_hex: str
    group_id: bytes
    user_id: bytes
    payload: bytes


@dataclass(frozen=True, slots=True)
class CursorHint:
    """A user's named cursor moved."""

    user_id: bytes
    group_id: bytes
    name: str
    seq: int
    hash: bytes


@dataclass(frozen=True, slots=True)
class Echo:
    """A listener's own token, to hear whether it still hears."""

    relay_hex: str
    token: str


Hint = Wake | Revoke | Knock | SignalHint | CursorHint | Echo


def parse(payload: str) -> Hint | None:
    """Read a payload; None for one of another version, which a relay must not stumble over."""
    try:
        kind, relay_hex, *rest = payload.split(" ")
        return _parse(kind, relay_hex, rest)
    except ValueError:
        return None


def _parse(kind: str, relay_hex: str, rest: list[str]) -> Hint | None:  # noqa: PLR0911  one a kind
    match kind, rest:
        case "w1", [heads]:
            pairs = (head.split(":") for head in heads.split(","))
            return Wake(relay_hex, tuple((bytes.fromhex(group), int(seq)) for group, seq in pairs))
        case "r1", [subject, subject_id, close_code]:
            return Revoke(subject, bytes.fromhex(subject_id), int(close_code))
        case "j1", [group_id, request_id]:
            return Knock(bytes.fromhex(group_id), bytes.fromhex(request_id))
        case "s1", [group_id, user_id, data]:
            return SignalHint(relay_hex, bytes.fromhex(group_id), bytes.fromhex(user_id), b64decode(data))
        case "c1", [user_id, group_id, name, seq, hash_]:
            return CursorHint(bytes.fromhex(user_id), bytes.fromhex(group_id), name, int(seq), bytes.fromhex(hash_))
        case "e1", [token]:
            return Echo(relay_hex, token)
        case _:
            return None


def revoke(relay_hex: str, hint: Revoke) -> str:
    """The payload of a Revoke."""
    return f"r1 {relay_hex} {hint.subject} {hint.subject_id.hex()} {hint.close_code}"


def signal(relay_hex: str, group_id: bytes, user_id: bytes, payload: bytes) -> str:
    """The payload of a SignalHint."""
    return f"s1 {relay_hex} {group_id.hex()} {user_id.hex()} {b64encode(payload).decode()}"


def knock(relay_hex: str, group_id: bytes, request_id: bytes) -> str:
    """The payload of a Knock."""
    return f"j1 {relay_hex} {group_id.hex()} {request_id.hex()}"


def cursor(relay_hex: str, hint: CursorHint) -> str:
    """The payload of a CursorHint."""
    return f"c1 {relay_hex} {hint.user_id.hex()} {hint.group_id.hex()} {hint.name} {hint.seq} {hint.hash.hex()}"


def echo(relay_hex: str, token: str) -> str:
    """The payload of an Echo."""
    return f"e1 {relay_hex} {token}"

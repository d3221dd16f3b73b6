"""Handshakes that are answered like others, held against what the library alone makes of them."""

from base64 import b64encode
from collections.abc import Sequence

from hypothesis import example, given
from hypothesis import strategies as st
from websockets.http11 import Request
from websockets.server import ServerProtocol
from websockets.typing import Origin, Subprotocol

from orbital_relay.handshakes import Handshake, Handshakes
from orbital_relay.incoming import Incoming

ORIGIN = "https://chat.example.org"
COMMON = (
    "GET / HTTP/1.1",
    "Host: relay.example",
    "Upgrade: websocket",
    "Connection: keep-alive, Upgrade",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Protocol: orbital.v1",
)
KEY = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
OTHER_KEY = "Sec-WebSocket-Key: AAECAwQFBgcICQoLDA0ODw=="
PROXIED = "X-Forwarded-For: 203.0.113.9"


class Clock:
    now = 1000.5

    def __call__(self) -> float:
        return self.now


def request(*lines: str) -> bytes:
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode()


def by_the_library(data: bytes) -> tuple[bytes, str, str | None] | None:
    """How a request is let in, less the date; the addresses that it names, and the subprotocol. None: it is not."""
    protocol = ServerProtocol(
        origins=[None, Origin(ORIGIN)],
        subprotocols=[Subprotocol("orbital.v1")],
        select_subprotocol=lambda _, offered: offered[0] if "orbital.v1" in offered else None,
    )
    for come in Incoming(protocol).feed(data):
        if not isinstance(come, Request):
            return None
        forwarded = ",".join(come.headers.get_all("X-Forwarded-For"))
        response = protocol.accept(come)
        if response.status_code != 101:
            return None
        response.headers["Date"] = ""
        return response.serialize(), forwarded, protocol.subprotocol
    return None


def recalled(handshakes: Handshakes, data: bytes) -> tuple[bytes, str, str | None] | None:
    """The same, of a request like one that was let in."""
    handshake = Handshake.of(data)
    answer = None if handshake is None else handshakes.recall(handshake)
    if handshake is None or answer is None:
        return None
    return answer.to(handshake), handshake.forwarded, answer.subprotocol


def remember(handshakes: Handshakes, data: bytes) -> bool:
    """Have a request answered by the library, and remembered if it was let in and named its addresses as is usual."""
    handshake, answered = Handshake.of(data), by_the_library(data)
    if handshake is None or answered is None or handshake.forwarded != answered[1]:
        return False
    greeting, _, subprotocol = answered
    handshakes.remember(handshake, greeting, Subprotocol(subprotocol) if subprotocol else None)
    return True


# ── what is common, and what is not ─────────────────────────────────────────────────────────────────────────────────


def test_another_key_gets_its_own_proof() -> None:
    handshakes = Handshakes(Clock())
    assert remember(handshakes, request(*COMMON, KEY))
    other = request(*COMMON, OTHER_KEY)
    assert recalled(handshakes, other) == by_the_library(other)
    assert recalled(handshakes, other) != recalled(handshakes, request(*COMMON, KEY))


def test_another_address_is_the_other_client_s() -> None:
    handshakes = Handshakes(Clock())
    assert remember(handshakes, request(*COMMON, KEY, PROXIED))
    found = recalled(handshakes, request(*COMMON, OTHER_KEY, "X-Forwarded-For: 198.51.100.7, 2001:db8::1"))
    assert found is not None
    assert found[1] == "198.51.100.7, 2001:db8::1"


def test_what_follows_the_request_is_not_of_it() -> None:
    handshakes = Handshakes(Clock())
    data = request(*COMMON, KEY)
    assert remember(handshakes, data)
    handshake = Handshake.of(data + b"\x82\x80four")
    assert handshake is not None
    assert handshake.size == len(data)
    assert handshakes.recall(handshake) is not None


def test_an_answer_is_good_for_its_second() -> None:
    clock = Clock()
    handshakes = Handshakes(clock)
    data = request(*COMMON, KEY)
    assert remember(handshakes, data)
    clock.now = 1000.99
    assert recalled(handshakes, data) is not None
    clock.now = 1001.0
    assert recalled(handshakes, data) is None


def test_no_more_kinds_are_kept_than_64() -> None:
    handshakes = Handshakes(Clock())
    kinds = [request(*COMMON, KEY, f"User-Agent: {number}") for number in range(65)]
    assert all(remember(handshakes, kind) for kind in kinds)
    assert [recalled(handshakes, kind) is not None for kind in kinds] == [True] * 64 + [False]


def test_what_is_long_is_not_kept() -> None:
    assert Handshake.of(request(*COMMON, KEY, "Cookie: " + "a" * 4096)) is None


# ── against the library ─────────────────────────────────────────────────────────────────────────────────────────────

_LINES = st.one_of(
    st.sampled_from(
        [
            *COMMON[1:],
            KEY,
            OTHER_KEY,
            KEY.lower(),
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZR==",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ",
            "Sec-WebSocket-Key:  dGhlIHNhbXBsZSBub25jZQ==",
            "Sec-WebSocket-Key: *",
            PROXIED,
            "X-Forwarded-For: 198.51.100.1,203.0.113.7",
            "X-Forwarded-For: unknown",
            "X-Forwarded-For:  198.51.100.1 ",
            "x-forwarded-for: 198.51.100.66",
            f"Origin: {ORIGIN}",
            "Origin: https://elsewhere.example",
            "Sec-WebSocket-Protocol: orbital.v9",
            "Sec-WebSocket-Version: 12",
            "Connection: close",
            "no header",
            " folded",
            "",
        ]
    ),
    st.binary(min_size=16, max_size=16).map(lambda key: f"Sec-WebSocket-Key: {b64encode(key).decode()}"),
)
_REQUESTS = st.tuples(
    st.lists(_LINES, max_size=3), st.lists(_LINES, max_size=3), st.permutations([*COMMON[1:], KEY])
).map(lambda parts: request(COMMON[0], *parts[0], *parts[2], *parts[1]))
_EDITS = st.lists(
    st.tuples(
        st.integers(0, 400), st.integers(0, 3), st.sampled_from([b"", b"\r\n", b"\n", b" ", b"=", b"A", b":", b"\0"])
    ),
    max_size=2,
)  # where, how much goes, and what comes instead


def _edited(data: bytes, edits: Sequence[tuple[int, int, bytes]]) -> bytes:
    for at, size, come in edits:
        data = data[:at] + come + data[at + size :]
    return data


@given(first=_REQUESTS, second=_REQUESTS, edits=_EDITS, keys=st.lists(st.binary(min_size=16, max_size=16), max_size=2))
@example(first=request(*COMMON, KEY), second=request(*COMMON, OTHER_KEY), edits=[], keys=[])
@example(first=request(*COMMON, KEY), second=request(*COMMON, KEY, PROXIED), edits=[], keys=[])
@example(first=request(*COMMON, KEY, PROXIED), second=request(*COMMON, KEY, OTHER_KEY), edits=[], keys=[])
@example(
    first=request(*COMMON, KEY, PROXIED, "x-forwarded-for: 198.51.100.66"),
    second=request(*COMMON, KEY, PROXIED, "x-forwarded-for: 198.51.100.66"),
    edits=[],
    keys=[],
)
def test_what_is_recalled_is_what_the_library_says(
    first: bytes, second: bytes, edits: Sequence[tuple[int, int, bytes]], keys: Sequence[bytes]
) -> None:
    """Of requests that are like one that was let in, or nearly."""
    handshakes = Handshakes(Clock())
    remember(handshakes, first)
    probes = [second, _edited(first, edits), _edited(second, edits)]
    probes += [first.replace(b"dGhlIHNhbXBsZSBub25jZQ==", b64encode(key)) for key in keys]
    for probe in (first, *probes):
        found = recalled(handshakes, probe)
        assert found is None or found == by_the_library(probe)

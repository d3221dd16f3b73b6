"""What relays tell one another: payloads and back."""

import pytest

from orbital_relay import hints
from orbital_relay.config import Limits

RELAY, GROUP, USER = "0" * 32, b"g" * 16, b"u" * 16


def test_a_wake_up_names_groups_and_how_far_they_came() -> None:
    payload = f"w1 {RELAY} {GROUP.hex()}:7,{USER.hex()}:9007199254740991"
    assert hints.parse(payload) == hints.Wake(RELAY, ((GROUP, 7), (USER, 2**53 - 1)))


def test_signals_cursors_and_echoes_come_back_as_they_were() -> None:
    assert hints.parse(hints.signal(RELAY, GROUP, USER, b"\0\xff")) == hints.SignalHint(RELAY, GROUP, USER, b"\0\xff")
    moved = hints.CursorHint(USER, GROUP, "bot.place", 12, bytes(32))
    assert hints.parse(hints.cursor(RELAY, moved)) == moved
    assert hints.parse(hints.echo(RELAY, "abc")) == hints.Echo(RELAY, "abc")


def test_the_largest_signal_fits_into_a_notification() -> None:
    """A payload of 8,000 bytes is an error, and not of the client that sent the signal."""
    largest = Limits.model_json_schema()["properties"]["max_signal_bytes"]["maximum"]
    assert len(hints.signal(RELAY, GROUP, USER, bytes(largest))) < 8_000


@pytest.mark.parametrize(
    "payload",
    ["", "w1", "w2 x y", f"w1 {RELAY} nonsense", f"w1 {RELAY} {GROUP.hex()}:x", f"r1 {RELAY} user zz 4501", "q9 a b c"],
)
def test_what_another_version_says_is_ignored(payload: str) -> None:
    assert hints.parse(payload) is None

"""`tail`: what is shown of a log line, and that lines come as soon as they are whole."""

import json
import os
import threading
from queue import Queue
from typing import Any

import pytest

from orbital_relay.commands.tail import Filter, read_lines, show

LINE = {
    "time": "2026-02-03T04:05:06.789012Z",
    "level": "info",
    "event": "connection.closed",
    "relay_id": "0190a6c5-8b5e-7cc3-9f43-2b1d3d0b7c11",
    "session": "0190a6c5-9a01-7d55-8a67-6f0e21c4f0aa",
    "close_code": 4000,
}
PLAIN_ALL = Filter()


def shown(line: dict[str, Any], wanted: Filter = PLAIN_ALL) -> str | None:
    return show(json.dumps(line).encode(), wanted, colors=False)


def test_a_line_for_people() -> None:
    assert shown(LINE) == (
        "2026-02-03 04:05:06.789 info     connection.closed"
        "  relay_id=0190a6c5-8b5e-7cc3-9f43-2b1d3d0b7c11 session=0190a6c5-9a01-7d55-8a67-6f0e21c4f0aa close_code=4000"
    )


def test_a_traceback_stands_below_its_line() -> None:
    line = {"time": "t", "level": "error", "event": "request.failed", "traceback": ["ValueError", "  a.py:1 in f"]}
    assert shown(line) == "t error    request.failed\n    ValueError\n      a.py:1 in f"


def test_colors_only_where_asked_for() -> None:
    raw = json.dumps({**LINE, "level": "error"}).encode()
    colored = show(raw, PLAIN_ALL, colors=True)
    assert colored is not None and "\x1b[" in colored
    plain = show(raw, PLAIN_ALL, colors=False)
    assert plain is not None and "\x1b[" not in plain


@pytest.mark.parametrize(
    "text", [b"Traceback (most recent call last):", b"{", b"[1]", b'{"no": "event"}', b"\xff\xfe", b"12"]
)
def test_what_is_no_log_line_passes_unless_something_is_filtered(text: bytes) -> None:
    assert show(text, PLAIN_ALL, colors=False) == text.decode(errors="replace")
    assert show(text, Filter(level="debug"), colors=False) is None


def test_nothing_in_a_line_can_steer_the_terminal() -> None:
    evil = "\x1b]0;owned\x07\n2026 error fake"
    line = {"time": evil, "level": evil, "event": evil, evil: 1, "reason": evil, "traceback": [evil]}
    for text in (shown(line), show(evil.encode(), PLAIN_ALL, colors=False)):
        assert text is not None
        assert all(part.isprintable() for part in text.split("\n"))
        assert text.count("\n") <= 1  # the traceback's own line


@pytest.mark.parametrize(
    ("wanted", "passes"),
    [
        (Filter(events=("connection.",)), True),
        (Filter(events=("listener.", "connection.closed")), True),
        (Filter(events=("listener.",)), False),
        (Filter(level="info"), True),
        (Filter(level="debug"), True),
        (Filter(level="warning"), False),
        (Filter(ids=(("session", LINE["session"]),)), True),  # type: ignore[arg-type]
        (Filter(ids=(("session", "another"),)), False),
        (Filter(ids=(("group", "another"),)), False),
    ],
)
def test_filters(wanted: Filter, passes: bool) -> None:
    assert (shown(LINE, wanted) is not None) == passes


def test_a_level_that_nobody_knows_passes_no_filter_of_levels() -> None:
    assert shown({**LINE, "level": "loud"}, Filter(level="debug")) is None


def test_whole_lines_come_while_the_next_one_is_half_written() -> None:
    reading, writing = os.pipe()
    lines: Queue[bytes | None] = Queue()

    def read() -> None:
        for line in read_lines(reading):
            lines.put(line)
        lines.put(None)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        os.write(writing, b"one\ntwo\nthr")
        assert [lines.get(timeout=5), lines.get(timeout=5)] == [b"one", b"two"]
        os.write(writing, b"ee\nfour")
        assert lines.get(timeout=5) == b"three"
    finally:
        os.close(writing)
        thread.join(5)
        os.close(reading)
    assert [lines.get(timeout=5), lines.get(timeout=5)] == [b"four", None]


def test_a_line_without_an_end_is_cut_not_kept() -> None:
    reading, writing = os.pipe()

    def write() -> None:
        with os.fdopen(writing, "wb") as stream:
            stream.write(b"x" * 3_000_000 + b"\nlast\n")

    thread = threading.Thread(target=write)
    thread.start()
    try:
        parts = list(read_lines(reading))
    finally:
        thread.join(5)
        os.close(reading)
    assert parts[-1] == b"last"
    assert b"".join(parts[:-1]) == b"x" * 3_000_000
    assert max(map(len, parts)) < 1_200_000

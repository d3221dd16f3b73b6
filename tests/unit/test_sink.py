"""Lines that a thread writes: whoever puts them never waits, whatever becomes of them."""

import os
import threading
import time
from collections.abc import Iterator
from typing import BinaryIO

import pytest

from orbital_relay import logs
from orbital_relay.sink import Behind, behind

LIMIT_S = 10
PIPE_BYTES = 1 << 20  # more than any pipe takes
LINE = "x" * 999
LAST = "there is room again"

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def pipe() -> Iterator[tuple[BinaryIO, int]]:
    """A pipe's two ends; both are closed at the end."""
    reading, writing = os.pipe()
    with open(reading, "rb") as reader:
        yield reader, writing
    for thread in threading.enumerate():  # one that still writes ends now, before its descriptor is another file's
        if thread.name == "orbital-log":
            thread.join(LIMIT_S)
    os.close(writing)


def read_lines(reader: BinaryIO, count: int) -> list[str]:
    return [reader.readline().decode().rstrip("\n") for _ in range(count)]


def test_lines_arrive_in_order(pipe: tuple[BinaryIO, int]) -> None:
    with behind(pipe[1], lambda _: None) as sink:
        for number in range(1000):
            sink.put(str(number))
        assert read_lines(pipe[0], 1000) == [str(number) for number in range(1000)]


def test_what_waits_at_the_end_is_written(pipe: tuple[BinaryIO, int]) -> None:
    with behind(pipe[1], lambda _: None) as sink:
        sink.put("last words")
    assert read_lines(pipe[0], 1) == ["last words"]


def test_nobody_waits_for_a_reader_and_what_is_lost_is_counted(pipe: tuple[BinaryIO, int]) -> None:
    kept: list[str] = []
    dropped: list[int] = []
    lines = 3 * PIPE_BYTES // len(LINE)
    sink = Behind(pipe[1], dropped.append, max_bytes=PIPE_BYTES)
    for _ in range(lines):
        sink.put(LINE)
    reader = threading.Thread(target=lambda: kept.extend(iter(lambda: read_lines(pipe[0], 1)[0], LAST)))
    reader.start()
    until = time.monotonic() + LIMIT_S
    while len(kept) + sum(dropped) < lines and time.monotonic() < until:
        time.sleep(0.001)
    sink.put(LAST)
    reader.join(LIMIT_S)
    sink.close()
    assert sum(dropped) > 0
    assert len(kept) >= PIPE_BYTES // (len(LINE) + 1)
    assert kept == [LINE] * (lines - sum(dropped))


def test_with_a_reader_who_never_reads_the_end_comes_all_the_same(pipe: tuple[BinaryIO, int]) -> None:
    began = time.monotonic()
    with behind(pipe[1], lambda _: None) as sink:
        for _ in range(2 * PIPE_BYTES // len(LINE)):
            sink.put(LINE)
    assert time.monotonic() - began < LIMIT_S


def test_a_closed_pipe_stops_nobody() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with behind(writing, lambda _: None) as sink:
        sink.put("for nobody")
        sink.put("for nobody either")
    os.close(writing)


def test_what_cannot_be_encoded_is_escaped(pipe: tuple[BinaryIO, int]) -> None:
    with behind(pipe[1], lambda _: None) as sink:
        sink.put("\udc80 é")
        assert read_lines(pipe[0], 1) == ["\\udc80 é"]


def test_logs_are_written_behind_for_a_block(capfd: pytest.CaptureFixture[str]) -> None:
    logs.configure()
    with logs.written_behind():
        logs.get().info("group.created")
    logs.get().info("group.deleted")
    assert [line.split('"event":"')[1].split('"')[0] for line in capfd.readouterr().err.splitlines()] == [
        "group.created",
        "group.deleted",
    ]

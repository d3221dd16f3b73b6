"""What may be logged, and that code, tables and document say the same."""

import ast
import asyncio
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orbital_relay import logs
from orbital_relay.logs import CONTEXT, EVENTS, FIELDS

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "orbital_relay"
CANARY = "canary-hunter2"
ID = bytes(range(16))
ID_TEXT = "00010203-0405-0607-0809-0a0b0c0d0e0f"


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    out, err = capsys.readouterr()
    assert out == ""
    return [json.loads(line) for line in err.splitlines()]


def fail(secret: str) -> None:
    raise ValueError(secret)


# What a line looks like


def test_a_line_has_time_level_event_relay_and_fields(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(relay_id=ID)
    logs.get().info("connection.closed", session=ID, address="192.0.2.7", close_code=4000, reason=None, duration_ms=1.5)
    [line] = lines(capsys)
    assert list(line)[:4] == ["time", "level", "event", "relay_id"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", line.pop("time"))
    assert line == {
        "level": "info",
        "event": "connection.closed",
        "relay_id": ID_TEXT,
        "session": ID_TEXT,
        "address": "192.0.2.7",
        "close_code": 4000,
        "reason": None,
        "duration_ms": 1.5,
    }


def test_bound_fields_are_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logs.get().bind(session=ID)
    logger.info("group.created", group=ID)
    logger.warning("token.reuse")
    assert [(line["event"], line["session"]) for line in lines(capsys)] == [
        ("group.created", ID_TEXT),
        ("token.reuse", ID_TEXT),
    ]


def test_the_level_is_respected_and_can_change(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logs.get()
    for level in ("warning", "debug"):
        logs.configure(level)
        logger.debug("operators.request", path="/metrics")
        logger.warning("listener.lost")
    assert [line["event"] for line in lines(capsys)] == ["listener.lost", "operators.request", "listener.lost"]


@pytest.mark.parametrize(
    ("form", "terminal", "console"),
    [("auto", True, True), ("auto", False, False), ("json", True, False), ("console", False, True)],
)
def test_form(
    form: logs.Format,
    terminal: bool,
    console: bool,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    logs.configure("info", form)
    logs.get().info("group.created", group=ID)
    text = capsys.readouterr().err
    assert text.startswith("{") is not console
    assert ID_TEXT in text
    assert ("\x1b[" in text) is (console and terminal)


def test_a_console_needs_neither_the_relay_nor_microseconds(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "console", relay_id=ID)
    logs.get().info("relay.starting", pid=7)
    line = capsys.readouterr().err
    assert "pid=7" in line
    assert ID_TEXT not in line
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} \[", line)


def test_a_console_shows_the_traceback_below_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "console")
    try:
        fail(CANARY)
    except ValueError as error:
        logs.get().error("request.failed", exc_info=error, request="group.create")
    first, *rest = capsys.readouterr().err.splitlines()
    assert "error=ValueError" in first
    assert rest[0] == "ValueError"
    assert rest[-1].endswith(" in fail")


def test_a_line_that_cannot_be_written_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def write(self, _text: str) -> int:
            raise OSError(28, "No space left on device")

        def isatty(self) -> bool:
            return False

    monkeypatch.setattr("sys.stderr", Full())
    logs.get().info("relay.ready", duration_ms=1)


# What must never be in it


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_secret_in_a_field_that_is_not_listed_never_shows(
    form: logs.Format, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure("debug", form)
    logs.get().info("session.authenticated", password=CANARY, session=ID, token=CANARY)
    text = capsys.readouterr().err
    assert CANARY not in text
    assert ID_TEXT in text
    assert re.search(r'dropped"?[=:]2\b', text)


@given(
    name=st.from_regex(r"[a-z_]{1,20}", fullmatch=True).filter(lambda name: name not in {*FIELDS, "exc_info", "event"}),
    value=st.sampled_from([CANARY, [CANARY], {"a": CANARY}, CANARY.encode(), ValueError(CANARY)]),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_name_but_the_listed_ones_gets_through(name: str, value: object, capsys: pytest.CaptureFixture[str]) -> None:
    logs.get().info("relay.ready", **{name: value})
    text = capsys.readouterr().err
    assert json.loads(text)["dropped"] == 1
    assert CANARY not in text


@pytest.mark.parametrize(
    "value",
    [
        CANARY.encode(),
        b"canary-hunter2-but-longer-than-an-id",
        {"key": CANARY},
        ValueError(CANARY),
        [CANARY.encode()],
        Path(CANARY),
    ],
)
def test_a_listed_field_takes_plain_values_only(value: object, capsys: pytest.CaptureFixture[str]) -> None:
    logs.get().info("relay.draining", reason=value)
    text = capsys.readouterr().err
    assert CANARY not in text
    assert json.loads(text)["dropped"] == 1


def test_an_event_that_is_not_declared_loses_its_text(capsys: pytest.CaptureFixture[str]) -> None:
    logs.get().info(f"user said {CANARY}", session=ID)
    logs.get().info("user said %s", CANARY)
    first, second = lines(capsys)
    assert (first["event"], first["session"]) == ("log.unlisted", ID_TEXT)
    assert second["event"] == "log.unlisted"
    assert CANARY not in f"{first} {second}"


def test_exceptions_show_types_and_places_only(capsys: pytest.CaptureFixture[str]) -> None:
    class DatabaseError(Exception):
        sqlstate = "23505"

    async def two_fail() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.to_thread(fail, CANARY))

    logger = logs.get()
    try:
        try:
            fail(CANARY)
        except ValueError as cause:
            raise DatabaseError(CANARY) from cause
    except DatabaseError as error:
        logger.error("append.failed", exc_info=error)
        logger.error("append.failed", exc_info=True)
    with pytest.raises(ExceptionGroup) as caught:
        asyncio.run(two_fail())
    logger.error("append.failed", exc_info=caught.value)
    text = capsys.readouterr().err
    assert CANARY not in text
    given, current, group = [json.loads(line) for line in text.splitlines()]
    assert given["error"].endswith("DatabaseError")
    assert given["sqlstate"] == "23505"
    assert given["traceback"] == current["traceback"]
    assert "ValueError" in given["traceback"]
    assert re.fullmatch(r"  unit/test_logs\.py:\d+ in fail", given["traceback"][-1])
    assert group["error"] == "ExceptionGroup"
    assert group["traceback"][-1] == given["traceback"][-1]


def test_an_exception_that_causes_itself_ends(capsys: pytest.CaptureFixture[str]) -> None:
    error, other = ValueError(), KeyError()
    error.__cause__, other.__cause__ = other, error
    logs.get().error("request.failed", exc_info=error)
    assert lines(capsys)[0]["traceback"] == ["ValueError", "KeyError"]


@pytest.mark.parametrize("origin", ["x\x1b[2J", "x\u202ey", "x\n2026 [info] forged", "x\udc80"])
def test_nothing_steers_a_terminal_or_forges_a_line(origin: str, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "console")
    logs.get().info("connection.rejected", origin=origin, reason="origin")
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert text.rstrip("\n").isprintable()


def test_text_has_an_end(capsys: pytest.CaptureFixture[str]) -> None:
    logs.get().info("connection.rejected", origin="x" * 100_000)
    assert len(capsys.readouterr().err) < 1_000


# Libraries


def test_libraries_are_heard_from_warning_up_without_their_values(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure()
    logs.configure()
    library = logging.getLogger("websockets.server")
    library.info("hidden %s", CANARY)
    library.warning("seen %s", CANARY)
    library.error(f"data_received(b'{CANARY}')")
    library.error(ValueError(CANARY))
    seen, cut, odd = lines(capsys)
    assert (seen["event"], seen["level"], seen["logger"]) == ("library.message", "warning", "websockets.server")
    assert [line["message"] for line in (seen, cut, odd)] == ["seen %s", "data_received", ""]
    assert (cut["level"], CANARY in f"{seen} {cut} {odd}") == ("error", False)


async def test_asyncio_names_a_callback_that_failed_without_its_arguments(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.configure()
    loop = asyncio.get_running_loop()
    loop.call_soon(fail, CANARY)
    await asyncio.sleep(0)  # one turn of the loop: the callback's
    [line] = lines(capsys)
    assert (line["logger"], line["message"], line["error"]) == ("asyncio", "Exception in callback fail", "ValueError")
    assert CANARY not in str(line)


# Code, tables and document


class Call(NamedTuple):
    place: str
    method: str
    event: str | None
    fields: frozenset[str]


def calls() -> Iterator[Call]:
    """Every call of a logger's method, and of its `bind`, in the relay."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            method, owner = node.func.attr, ast.unparse(node.func.value).rsplit(".", 1)[-1]
            levels = {"debug", "info", "warning", "error", "exception", "critical", "bind", "log", "msg"}
            if method not in levels or not re.search(r"(?i)log|\bget\(\)", owner):
                continue
            first = node.args[0] if node.args else None
            event = first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else None
            place = f"{path.relative_to(ROOT)}:{node.lineno}"
            assert path.name == "logs.py" or all(word.arg for word in node.keywords), f"{place}: ** hides names"
            yield Call(place, method, event, frozenset(word.arg for word in node.keywords if word.arg))


def test_every_call_is_as_declared() -> None:
    for call in calls():
        if call.method == "bind":
            assert call.fields <= set(FIELDS), call
        elif not call.place.startswith("orbital_relay/logs.py"):
            assert call.event is not None and call.event in EVENTS, f"{call.place}: not declared in logs.EVENTS"
            event = EVENTS[call.event]
            assert call.method == event.level, f"{call.place}: {call.event} is declared as {event.level}"
            extra = call.fields - set(event.fields) - set(CONTEXT) - {"exc_info"}
            assert not extra, f"{call.place}: {call.event} is declared without {sorted(extra)}"


def test_every_declared_event_is_logged() -> None:
    logged = {call.event for call in calls()} | {"library.message", "log.unlisted"}
    assert set(EVENTS) == logged - {None}


def test_nothing_logs_another_way() -> None:
    """Loggers of the standard library are only there to be handed to libraries; calls on them fail the test above."""
    for path in PACKAGE.rglob("*.py"):
        if path.name not in ("logs.py", "cli.py"):
            assert not re.search(r"^\s*(import|from) structlog\b|\bprint\(", path.read_text(), re.MULTILINE), path


def test_events_and_fields_are_declared_soundly() -> None:
    for name, event in EVENTS.items():
        assert re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", name), name
        assert set(event.fields) <= set(FIELDS) - set(CONTEXT), name
        assert len(set(event.fields)) == len(event.fields), name
        assert event.description.endswith("."), name
    assert set(FIELDS) == {*CONTEXT, *(field for event in EVENTS.values() for field in event.fields)}


def test_the_document_says_what_the_tables_say() -> None:
    document = (ROOT / "docs" / "log-events.md").read_text().splitlines()
    events = [
        f"| `{name}` | {event.level} | {event.description} | {', '.join(f'`{field}`' for field in event.fields)} |"
        for name, event in EVENTS.items()
    ]
    fields = [f"| `{name}` | {meaning} |" for name, meaning in FIELDS.items()]
    assert [line for line in document if line.startswith("| `")] == fields[: len(CONTEXT)] + events + fields[
        len(CONTEXT) :
    ]

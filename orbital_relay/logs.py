"""Logs: stable event names, an allow-list of fields, one line each.

    logger = logs.get()
    logger.info("connection.opened", session=session_id, address="192.0.2.7")

EVENTS declares every event that the relay may log, FIELDS every field. What is not declared is never printed, only
counted (`dropped`); an undeclared event is printed as `log.unlisted`, so that no text reaches a log by accident.
Ids are passed as their 16 bytes and appear as UUID text. Pass `exc_info=error` for an exception: its type and the
places of its frames are printed, never its message or its variables, which may hold what must not be logged.
"""

import contextlib
import logging
import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal, NamedTuple, cast

import msgspec
import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

from orbital_relay import sink

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["auto", "console", "json"]

_UNLISTED: Final = "log.unlisted"
_LIBRARY: Final = "library.message"
_ID_BYTES: Final = 16
_TEXT_MAX: Final = 500
_ITEMS_MAX: Final = 60
_TIME_CHARACTERS: Final = len("2026-02-03 04:05:06.789")


class Event(NamedTuple):
    """What stands behind an event's name: the level it is logged at, and its fields beside those in CONTEXT."""

    level: Level
    description: str
    fields: tuple[str, ...] = ()


EVENTS: Final[Mapping[str, Event]] = MappingProxyType(
    {
        "relay.starting": Event("info", "The relay has read its configuration and starts.", ("version", "pid")),
        "relay.listening": Event(
            "info", "The relay takes connections.", ("host", "port", "operators_host", "operators_port")
        ),
        "relay.draining": Event("info", "The relay stops in order.", ("reason", "count")),
        "relay.stopped": Event("info", "The relay has stopped; `duration_ms` of draining.", ("duration_ms",)),
        "config.reloaded": Event(
            "info", "The settings were read again; those in `pending` take a restart.", ("changed", "pending")
        ),
        "config.refused": Event(
            "error", "The settings were read again and can't be used: all stays as it was.", ("message",)
        ),
        "config.warning": Event("warning", "A setting is allowed but rarely meant.", ("message",)),
        "database.embedded.started": Event("info", "The embedded PostgreSQL runs.", ("path", "duration_ms")),
        "database.embedded.stopped": Event("info", "The embedded PostgreSQL has stopped.", ("duration_ms",)),
        "database.unavailable": Event("warning", "The database does not answer; requests get `unavailable`."),
        "database.recovered": Event("info", "The database answers again."),
        "migration.applied": Event("info", "A migration was carried out.", ("migration", "direction", "duration_ms")),
        "connection.opened": Event("info", "A WebSocket was accepted.", ("address", "origin")),
        "connection.closed": Event("info", "A WebSocket ended.", ("address", "close_code", "duration_ms")),
        "connection.rejected": Event("info", "A WebSocket was refused.", ("address", "origin", "reason")),
        "session.authenticated": Event("info", "A connection serves a session from now on.", ("address", "method")),
        "session.ended": Event("info", "A session was ended for good.", ("reason",)),
        "login.failed": Event("warning", "Credentials were refused.", ("address", "reason")),
        "account.registered": Event("info", "A user was made.", ("address",)),
        "account.deleted": Event("info", "A user was deleted; `count` groups with it.", ("count",)),
        "session.failed": Event("error", "A connection's own loop failed, a defect; it closes 4006.", ("address",)),
        "request.failed": Event("error", "A request got `internal`: a defect.", ("request", "duration_ms")),
        "frame.rejected": Event(
            "info", "A connection's first frame that was not what the protocol says.", ("request", "code", "address")
        ),
        "group.created": Event("info", "A group was made."),
        "group.deleted": Event("info", "A group was deleted.", ("seq",)),
        "member.joined": Event("info", "A user became a member.", ("member", "seq")),
        "member.removed": Event("info", "A member was removed or left.", ("member", "reason", "seq")),
        "invite.created": Event("info", "An invite was made.", ("invite", "seq")),
        "media.committed": Event("info", "A file was posted.", ("bytes", "seq")),
        "media.deleted": Event("info", "A file was deleted by its author or an admin.", ("seq",)),
        "media.refused": Event("info", "An upload was dropped; its quota came back.", ("reason",)),
        "media.store.unavailable": Event(
            "warning", "The store of files does not answer; uploads and downloads get `unavailable`.", ("operation",)
        ),
        "media.store.recovered": Event("info", "The store of files answers again."),
        "media.blob.missing": Event("error", "A file's bytes are not in the store: see `media audit`."),
        "media.failed": Event("error", "An upload failed by a defect; its client was told so."),
        "listener.connected": Event("info", "The listener hears notifications."),
        "listener.lost": Event("warning", "The listener's connection broke; it reconnects."),
        "listener.deaf": Event("warning", "The listener missed its own echo; it reconnects.", ("duration_ms",)),
        "append.failed": Event("error", "A batch was not written; its requests were told so.", ("lane", "count")),
        "append.retried": Event(
            "warning", "A batch's fate is unknown; it is appended again, which is safe.", ("lane", "count")
        ),
        "append.split": Event("warning", "A batch failed whole and is tried in halves.", ("lane", "count")),
        "slow_consumer.closed": Event("warning", "A session drained nothing and was cut.", ("bytes", "duration_ms")),
        "token.reuse": Event("warning", "A used refresh token came back; its session is revoked.", ("address",)),
        "operators.request": Event("debug", "The operators' port was asked.", ("path", "status")),
        "janitor.laggard": Event(
            "warning", "Listeners that slept while the notification queue filled were cut off.", ("count",)
        ),
        "log.dropped": Event(
            "warning", "Lines were dropped: whoever reads this log was behind by megabytes.", ("count",)
        ),
        "janitor.failed": Event("warning", "A sweep of expired rows broke off; the next one goes on."),
        "janitor.swept": Event("info", "Expired rows were removed.", ("kind", "count", "duration_ms")),
        _LIBRARY: Event("warning", "A library had something to say, at this level or above.", ("logger", "message")),
        _UNLISTED: Event("warning", "The relay logged an event that is not declared: a defect."),
    }
)

# What any line may bear: the frame around it, where it applies whom it concerns, and the exception it was given.
CONTEXT: Final[Mapping[str, str]] = MappingProxyType(
    {
        "time": "UTC, ISO 8601",
        "level": "debug, info, warning, error or critical",
        "event": "name of the event",
        "relay_id": "the relay that logged, new at each start",
        "connection": "id of the connection",
        "session": "id of the session",
        "user": "id of the user",
        "group": "id of the group",
        "request_id": "the client's id of the request",
        "error": "type of an exception",
        "sqlstate": "PostgreSQL's code of an error",
        "traceback": "types and places of an exception and its causes, without messages or variables",
        "dropped": "how many fields were withheld because they are not declared",
    }
)

FIELDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        **CONTEXT,
        "address": "network address of the client",
        "bytes": "bytes that waited, or of a file",
        "changed": "settings in force from now on",
        "close_code": "WebSocket close code",
        "code": "error code of the protocol",
        "count": "how many",
        "direction": "up or down",
        "duration_ms": "how long it took, or lasted",
        "host": "address listened on",
        "invite": "id of the invite, never its code",
        "kind": "what was removed",
        "lane": "number of the append lane",
        "logger": "name of the library's logger",
        "member": "id of the user that joined or went",
        "message": "a fixed text, without what the library filled in",
        "method": "how the session was authenticated",
        "migration": "name of the migration",
        "operation": "what was asked of the store of files",
        "operators_host": "address of metrics and health",
        "operators_port": "port of metrics and health",
        "origin": "Origin that a browser sent",
        "path": "path in a request, or of a folder",
        "pending": "settings that have changed, and take a restart",
        "pid": "process id",
        "port": "port listened on",
        "reason": "why, as one of a few words",
        "request": "type of the frame",
        "seq": "sequence in the group's log",
        "status": "HTTP status",
        "version": "version of the software",
    }
)


def get() -> FilteringBoundLogger:
    """Return the logger; `bind(session=…)` on it makes one that repeats these fields."""
    return cast(FilteringBoundLogger, structlog.get_logger())


def configure(level: Level = "info", form: Format = "auto", relay_id: bytes | None = None) -> None:
    """Log to standard error from now on, this process's libraries included. May be called again."""
    _configure_structlog(level, form, relay_id)
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _Forward)]:
        root.removeHandler(handler)
    root.addHandler(_Forward())
    root.setLevel(logging.WARNING)


def _configure_structlog(level: Level, form: Format, relay_id: bytes | None) -> None:
    terminal = sys.stderr.isatty()
    console = form == "console" or (form == "auto" and terminal)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            _render_exception,
            _AllowList(relay_id),
            *(_console(colors=terminal and "NO_COLOR" not in os.environ) if console else [_json]),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=_Line,
        cache_logger_on_first_use=False,
    )


class _Stream:
    """Writes lines to standard error at once; a full disk or a closed pipe must not stop anybody."""

    def put(self, line: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(line + "\n")
            sys.stderr.flush()


_sink: sink.Sink = _Stream()


@contextlib.contextmanager
def written_behind() -> Iterator[None]:
    """Let a thread write the lines of this block: for a process that must not wait for whoever reads them."""
    global _sink  # noqa: PLW0603  a process has one standard error
    before = _sink
    with sink.behind(sys.stderr.fileno(), lambda count: get().warning("log.dropped", count=count)) as _sink:
        try:
            yield
        finally:
            _sink = before


class _Line:
    """What structlog hands rendered lines to."""

    def __init__(self, *_: object) -> None:
        pass

    def msg(self, line: str) -> None:
        _sink.put(line)

    debug = info = warning = error = critical = msg


class _Forward(logging.Handler):
    """Passes on what libraries log through the standard library."""

    def emit(self, record: logging.LogRecord) -> None:
        # Neither arguments nor what follows the first bracket or quote: libraries put values there.
        message = re.match(r"[^\n(<\[{'\"=]*", record.msg) if isinstance(record.msg, str) else None
        get().log(
            record.levelno,
            _LIBRARY,
            logger=record.name,
            message=message.group().rstrip() if message else "",
            exc_info=record.exc_info,
        )


_ORDER: Final = {key: number for number, key in enumerate(FIELDS)}


class _AllowList:
    """Keeps declared events and fields with harmless values, in a fixed order, and counts what it withholds."""

    def __init__(self, relay_id: bytes | None) -> None:
        self._relay: Mapping[str, object] = {} if relay_id is None else {"relay_id": _harmless(relay_id)}

    def __call__(self, _logger: WrappedLogger, _method: str, given: EventDict) -> EventDict:
        given.update(self._relay)
        if given["event"] not in EVENTS:
            given["event"] = _UNLISTED
        kept = {key: value for key in _declared(tuple(given)) if (value := _harmless(given[key])) is not _WITHHELD}
        if dropped := len(given) - len(kept):
            kept["dropped"] = dropped
        return kept


@lru_cache(maxsize=256)
def _declared(keys: tuple[str, ...]) -> Sequence[str]:
    """Those keys that are declared, in the order of FIELDS. Each place that logs has the same keys every time."""
    return sorted(_ORDER.keys() & keys, key=_ORDER.__getitem__)


_WITHHELD: Final = object()


def _harmless(value: object) -> object:
    """What may be printed for a value; _WITHHELD where that is nothing."""
    match value:
        case str():
            return _printable(value)
        case bytes() if len(value) == _ID_BYTES:
            text = value.hex()
            return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
        case None | bool() | int() | float():
            return value
        case list() | tuple():
            items = [_harmless(item) for item in value[:_ITEMS_MAX]]
            return _WITHHELD if _WITHHELD in items else items
        case _:
            return _WITHHELD


def _printable(text: str) -> str:
    """Text that stays on its line, cannot steer a terminal, and is not endless."""
    if len(text) > _TEXT_MAX:
        text = text[:_TEXT_MAX] + "…"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _render_exception(_logger: WrappedLogger, _method: str, given: EventDict) -> EventDict:
    """Turn `exc_info` into `error`, `sqlstate` and `traceback`."""
    error = given.pop("exc_info", None)
    if isinstance(error, tuple):
        error = error[1]
    elif error is True:
        error = sys.exc_info()[1]
    if isinstance(error, BaseException):
        given["error"] = _type_name(error)
        given["traceback"] = list(_places(error, set()))
        if isinstance(sqlstate := getattr(error, "sqlstate", None), str):
            given["sqlstate"] = sqlstate
    return given


def _places(error: BaseException, seen: set[int]) -> Iterator[str]:
    """Name the types and frames of an exception, of the members of a group, and of the causes of each."""
    if id(error) in seen:
        return
    seen.add(id(error))
    yield _type_name(error)
    for frame, line in traceback.walk_tb(error.__traceback__):
        code = frame.f_code
        yield f"  {'/'.join(Path(code.co_filename).parts[-2:])}:{line} in {code.co_qualname}"
    if isinstance(error, BaseExceptionGroup):
        for member in error.exceptions:
            yield from _places(member, seen)
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None:
        yield from _places(cause, seen)


def _type_name(error: BaseException) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


_encode: Final = msgspec.json.Encoder().encode


def _json(_logger: WrappedLogger, _method: str, kept: EventDict) -> str:
    return _encode(kept).decode()


def _console(*, colors: bool) -> list[Processor]:
    return [_short, structlog.dev.ConsoleRenderer(timestamp_key="time", colors=colors, sort_keys=False)]


def _short(_logger: WrappedLogger, _method: str, kept: EventDict) -> EventDict:
    """Fit for a terminal: milliseconds, one relay without its id, the traceback under the key that is printed below."""
    kept.pop("relay_id", None)
    kept["time"] = str(kept["time"]).replace("T", " ")[:_TIME_CHARACTERS]
    if lines := kept.pop("traceback", None):
        kept["exception"] = "\n".join(lines)
    return kept


# Whoever imports a module of the relay logs by these rules, also before (or without) `configure`.
_configure_structlog("info", "json", None)

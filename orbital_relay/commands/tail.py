"""`orbital-relay tail`: JSON log lines for people, filtered. Lines that are no JSON pass as they are."""

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from orbital_relay.commands.output import printable

_LEVELS: Final = ("debug", "info", "warning", "error", "critical")
_COLORS: Final = {"debug": "bright_black", "warning": "yellow", "error": "red", "critical": "red"}
_FRAME: Final = frozenset({"time", "level", "event", "traceback"})
_CHUNK_BYTES: Final = 64 * 1024
_LINE_BYTES_MAX: Final = 1024 * 1024
_TIME_CHARACTERS: Final = len("2026-02-03 04:05:06.789")


@dataclass(frozen=True, slots=True)
class Filter:
    """Which lines to show; what is empty or None lets all pass. `ids` are field and value."""

    events: tuple[str, ...] = ()
    level: str | None = None
    ids: tuple[tuple[str, str], ...] = ()

    @property
    def wants_all(self) -> bool:
        """Whether nothing is filtered."""
        return self == Filter()

    def wants(self, line: dict[str, Any]) -> bool:
        """Whether a line passes."""
        event, level = str(line.get("event", "")), line.get("level")
        if self.events and not event.startswith(self.events):
            return False
        if self.level is not None and (level not in _LEVELS or _LEVELS.index(level) < _LEVELS.index(self.level)):
            return False
        return all(line.get(field) == value for field, value in self.ids)


def tail(  # noqa: PLR0913  one parameter a flag
    *,
    file: Annotated[
        Path | None, typer.Argument(help="File of JSON lines; standard input if left out.", dir_okay=False)
    ] = None,
    events: Annotated[
        list[str] | None, typer.Option("--event", help="Only events that begin so, such as `listener.`; repeatable.")
    ] = None,
    level: Annotated[str | None, typer.Option(help=f"Only this level and above: {', '.join(_LEVELS)}.")] = None,
    session: Annotated[str | None, typer.Option(help="Only lines of this session.")] = None,
    user: Annotated[str | None, typer.Option(help="Only lines of this user.")] = None,
    group: Annotated[str | None, typer.Option(help="Only lines of this group.")] = None,
) -> None:
    """Show JSON logs for people: `journalctl -fu orbital-relay -o cat | orbital-relay tail --level warning`."""
    if level is not None and level not in _LEVELS:
        raise typer.BadParameter(f"must be one of {', '.join(_LEVELS)}", param_hint="--level")
    ids = tuple((name, value) for name, value in (("session", session), ("user", user), ("group", group)) if value)
    wanted = Filter(tuple(events or ()), level, ids)
    try:
        descriptor = sys.stdin.fileno() if file is None else os.open(file, os.O_RDONLY)
    except OSError as error:
        raise typer.BadParameter(f"{file}: {error.strerror}", param_hint="FILE") from None
    colors = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    for raw in read_lines(descriptor):
        if (shown := show(raw, wanted, colors=colors)) is not None:
            sys.stdout.write(shown + "\n")
            sys.stdout.flush()


def read_lines(descriptor: int) -> Iterator[bytes]:
    """Lines as soon as they are whole, whatever has come of the next one; a last one without an end comes last.

    A line that does not end is cut into parts, so that it can't take all memory.
    """
    rest = b""
    while chunk := os.read(descriptor, _CHUNK_BYTES):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
        if len(rest) > _LINE_BYTES_MAX:
            yield rest
            rest = b""
    if rest:
        yield rest


def show(raw: bytes, wanted: Filter, *, colors: bool) -> str | None:
    """A log line for people; None where it is filtered out, as is what is no log line if anything is."""
    text = raw.decode(errors="replace").rstrip("\r")
    try:
        line = json.loads(text)
    except ValueError:
        line = None
    if not isinstance(line, dict) or "event" not in line:
        return printable(text) if wanted.wants_all else None
    return _pretty(line, colors=colors) if wanted.wants(line) else None


def _pretty(line: dict[str, Any], *, colors: bool) -> str:
    level, event = printable(str(line.get("level", ""))), printable(str(line["event"]))
    fields = " ".join(f"{printable(key)}={_value(value)}" for key, value in line.items() if key not in _FRAME)
    head = f"{_time(line)} {level:<8} {event}"
    if colors:
        head = f"{_time(line)} {typer.style(f'{level:<8} {event}', fg=_COLORS.get(level), bold=True)}"
    below = line.get("traceback")
    traceback = [f"    {printable(str(place))}" for place in below] if isinstance(below, list) else []
    return "\n".join([f"{head}  {fields}".rstrip(), *traceback])


def _time(line: dict[str, Any]) -> str:
    """The time without its microseconds."""
    return printable(str(line.get("time", ""))).replace("T", " ", 1)[:_TIME_CHARACTERS]


def _value(value: object) -> str:
    text = printable(value) if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    return f'"{text}"' if " " in text else text

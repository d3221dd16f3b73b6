"""How the command prints: lines and tables for people, JSON for scripts.

What others wrote can't steer the terminal: whatever is not printable is escaped.
"""

import json
import re
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from rich.console import Console
from rich.table import Table
from rich.text import Text

T = TypeVar("T")

_JOINERS: Final = "\u200c\u200d"  # join letters and emoji; harmless
_LINE_ENDS: Final = re.compile(r"\r\n|[\r\n\u2028\u2029]")
_TAB: Final = "    "
_WIDE: Final = 4_096  # columns, where nobody looks: nothing is wrapped
_UNITS: Final = ("bytes", "KiB", "MiB", "GiB", "TiB")
_STEP: Final = 1024
_MICROSECONDS: Final = 1_000_000
WRONG: Final = "bold red"


class Terminal:
    """Where a command prints. With `as_json` people's lines are left out, and problems go to standard error as ever."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self._out = _console(sys.stdout.isatty(), is_error=False)
        self._err = _console(sys.stderr.isatty(), is_error=True)

    @property
    def err(self) -> Console:
        """For progress."""
        return self._err

    @property
    def shows_progress(self) -> bool:
        return self._err.is_terminal and not self.as_json

    def say(self, text: str | Text = "", style: str = "") -> None:
        """A line for people. Text of others' is made `printable` before."""
        if not self.as_json:
            self._out.print(text, style=style or None, soft_wrap=True)

    def warn(self, text: str) -> None:
        """Something that people must see, on standard error."""
        self._err.print(f"orbital: {printable(text)}", style=WRONG, soft_wrap=True)

    def note(self, text: str) -> None:
        """Something by the way, on standard error."""
        self._err.print(printable(text), style="dim", soft_wrap=True)

    def document(self, value: Any) -> None:
        """A JSON document, if JSON is wanted."""
        if self.as_json:
            _write(json.dumps(plain(value), indent=2))

    def line(self, value: Any) -> None:
        """One line of JSON, if JSON is wanted, at once."""
        if self.as_json:
            _write(json.dumps(plain(value)))

    def done(self, text: str, /, **facts: Any) -> None:
        """What was done: a sentence for people, or its facts."""
        self.say(text)
        self.document(facts)

    def table(self, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Aligned columns, for people. What is absent is a dash; numbers stand on the right."""
        rows = list(rows)
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for at, name in enumerate(header):
            is_number = bool(rows) and all(isinstance(row[at], int) and not isinstance(row[at], bool) for row in rows)
            table.add_column(name, justify="right" if is_number else "left", overflow="fold")
        for row in rows:
            table.add_row(*(_cell(value) for value in row))
        if not self.as_json:
            self._out.print(table)


def _console(is_terminal: bool, *, is_error: bool) -> Console:
    width = None if is_terminal else _WIDE
    return Console(stderr=is_error, markup=False, highlight=False, emoji=False, width=width)


def _write(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _cell(value: object) -> Text:
    if isinstance(value, Text):
        return value
    if isinstance(value, bool):
        return Text("yes" if value else "no")
    return Text("-" if value is None or value == "" else printable(str(value)))


def printable(text: str) -> str:
    """Text that stays on its line and can't steer a terminal."""
    return "".join(_escaped(character) for character in text)


def paragraphs(text: str) -> list[str]:
    """The lines of a text, each of them `printable`."""
    return [printable(line.replace("\t", _TAB)) for line in _LINE_ENDS.split(text)]


def _escaped(character: str) -> str:
    if character.isprintable() or character in _JOINERS:
        return character
    return character.encode("unicode_escape").decode()


def plain(value: Any) -> Any:
    """A value as JSON has it: bytes in hexadecimal."""
    match value:
        case bytes():
            return value.hex()
        case list() | tuple() | set() | frozenset():
            return [plain(item) for item in value]
        case dict():
            return {key: plain(item) for key, item in value.items()}
        case _:
            return value


def local_time(microseconds: int) -> str:
    """A time for people, where they are; a dash for one that no calendar has."""
    moment = _moment(microseconds)
    return moment.astimezone().strftime("%Y-%m-%d %H:%M") if moment else "-"


def iso_time(microseconds: int) -> str | None:
    """A time for scripts, in UTC."""
    moment = _moment(microseconds)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z") if moment else None


def _moment(microseconds: int) -> datetime | None:
    try:
        moment = datetime.fromtimestamp(microseconds / _MICROSECONDS, UTC)
        moment.astimezone()
    except (OverflowError, ValueError, OSError):
        return None
    return moment


def in_bytes(count: int) -> str:
    """A number of bytes for people: `10 GiB`, `1.5 MiB`, `17 bytes`."""
    size, unit = float(count), 0
    while size >= _STEP and unit < len(_UNITS) - 1:
        size, unit = size / _STEP, unit + 1
    return f"{size:.1f}".removesuffix(".0") + f" {_UNITS[unit]}"

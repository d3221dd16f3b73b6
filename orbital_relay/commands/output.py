"""How commands print: lines that a person and `grep` can read, or JSON. Nothing is wrapped or cut."""

import dataclasses
import json
import uuid
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import typer

_ID_BYTES = 16
_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_STEP = 1024


def plain(value: Any) -> Any:
    """A value as JSON has it: ids as UUIDs, other bytes in hexadecimal, times as ISO 8601 in UTC."""
    match value:
        case bytes():
            return str(uuid.UUID(bytes=value)) if len(value) == _ID_BYTES else value.hex()
        case datetime():
            return value.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        case list() | tuple():
            return [plain(item) for item in value]
        case _ if dataclasses.is_dataclass(value):
            return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        case _:
            return value


def in_bytes(count: int) -> str:
    """A number of bytes for people: `10 GiB`, `1.5 MiB`, `17 bytes`."""
    size, unit = float(count), 0
    while size >= _STEP and unit < len(_UNITS) - 1:
        size, unit = size / _STEP, unit + 1
    return f"{size:.1f}".removesuffix(".0") + f" {_UNITS[unit]}"


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    typer.echo(json.dumps(plain(value), indent=2, ensure_ascii=False))


def print_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Aligned columns; the header is bold on a terminal."""
    first, *others = columns(header, rows)
    typer.secho(first, bold=True)
    for line in others:
        typer.echo(line)


def columns(header: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Lines of a table. Numbers stand on the right; what is absent is a dash."""
    rows = [list(row) for row in rows]
    texts = [[_cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *texts, strict=True)]
    right = [bool(rows) and all(_is_number(row[i]) for row in rows) for i in range(len(header))]
    return [_line(cells, widths, right) for cells in ([*header], *texts)]


def _line(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    aligned = (
        cell.rjust(width) if to_right else cell.ljust(width)
        for cell, width, to_right in zip(cells, widths, right, strict=True)
    )
    return "  ".join(aligned).rstrip()


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _cell(value: object) -> str:
    shown = plain(value)
    if isinstance(shown, bool):
        return "yes" if shown else "no"
    return "-" if shown is None else printable(str(shown))


def printable(text: str) -> str:
    """Text that stays on its line and can't steer a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)

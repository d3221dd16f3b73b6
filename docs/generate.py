"""Write the generated parts of the documents again: `python docs/generate.py`, which `make docs` does."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from orbital_relay import logs
from orbital_relay.commands.settings import markdown
from orbital_relay.metrics import Metrics

OPERATIONS: Final = Path(__file__).parent / "operations.md"
LOG_EVENTS: Final = Path(__file__).parent / "log-events.md"


def operations(text: str) -> str:
    """The operators' page with its tables as the code has them now."""
    return _with_table(_with_table(text, "settings", markdown()), "metrics", _metrics())


def log_events(text: str) -> str:
    """The page of log events with its tables as the code has them now."""
    beyond = {name: meaning for name, meaning in logs.FIELDS.items() if name not in logs.CONTEXT}
    text = _with_table(text, "context", _fields(logs.CONTEXT))
    return _with_table(_with_table(text, "events", _events()), "fields", _fields(beyond))


def _with_table(text: str, name: str, table: str) -> str:
    opening, closing = f"<!-- {name}: written by `make docs` -->\n", f"<!-- /{name} -->"
    written, count = re.subn(
        re.escape(opening) + ".*?" + re.escape(closing), lambda _: opening + table + closing, text, flags=re.DOTALL
    )
    if count != 1:
        raise SystemExit(f"there are {count} places for {name}, where there must be one")
    return written


def _metrics() -> str:
    families = [family for family in Metrics().registry.collect() if family.name.startswith("orbital_")]
    suffix = {"counter": "_total", "info": "_info"}
    return _table(
        ("metric", "kind", "what it is"),
        [(f"`{f.name}{suffix.get(f.type, '')}`", f.type, f.documentation) for f in families],
    )


def _events() -> str:
    return _table(
        ("event", "level", "when", "fields"),
        [
            (f"`{name}`", event.level, event.description, ", ".join(f"`{field}`" for field in event.fields))
            for name, event in logs.EVENTS.items()
        ],
    )


def _fields(meanings: Mapping[str, str]) -> str:
    return _table(("field", "meaning"), [(f"`{name}`", meaning) for name, meaning in meanings.items()])


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


if __name__ == "__main__":
    for page, write in ((OPERATIONS, operations), (LOG_EVENTS, log_events)):
        page.write_text(write(page.read_text(encoding="utf-8")), encoding="utf-8")

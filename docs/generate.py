"""Write the generated parts of the documents again: `python docs/generate.py`, which `make docs` does."""

import re
from pathlib import Path
from typing import Final

from orbital_relay.commands.settings import markdown
from orbital_relay.metrics import Metrics

OPERATIONS: Final = Path(__file__).parent / "operations.md"

_NOTE: Final = "written by `make docs`"


def operations(text: str) -> str:
    """The page with its generated parts as the code has them now."""
    return _replaced(_replaced(text, "settings", markdown()), "metrics", _metrics())


def _replaced(text: str, name: str, part: str) -> str:
    opening, closing = f"<!-- {name}: {_NOTE} -->\n", f"<!-- /{name} -->"
    replaced, count = re.subn(
        re.escape(opening) + ".*?" + re.escape(closing), lambda _: opening + part + closing, text, flags=re.DOTALL
    )
    if count != 1:
        raise SystemExit(f"{OPERATIONS} has {count} places for {name}, where there must be one")
    return replaced


def _metrics() -> str:
    lines = ["| metric | kind | what it is |", "| --- | --- | --- |"]
    for family in Metrics().registry.collect():
        if family.name.startswith("orbital_"):
            name = family.name + {"counter": "_total", "info": "_info"}.get(family.type, "")
            lines.append(f"| `{name}` | {family.type} | {family.documentation} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    OPERATIONS.write_text(operations(OPERATIONS.read_text(encoding="utf-8")), encoding="utf-8")

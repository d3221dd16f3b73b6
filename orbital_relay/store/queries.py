"""Named queries from `sql/queries/*.sql`. A query begins with `-- name: the_name(parameter, …)`."""

import re
from functools import cache
from pathlib import Path
from typing import Final

_HEADER: Final = re.compile(r"^-- name: (?P<name>[a-z0-9_]+)\((?P<parameters>[a-z0-9_, ]*)\)$", re.MULTILINE)


def sql_dir() -> Path:
    """The folder `sql/`: within the installed package, or at the top of the checkout."""
    package = Path(__file__).parent.parent
    installed = package / "_sql"
    return installed if installed.is_dir() else package.parent / "sql"


@cache
def load() -> dict[str, str]:
    """Read every query; raise ValueError for a doubled name, or where header and placeholders differ in number."""
    queries: dict[str, str] = {}
    for path in sorted((sql_dir() / "queries").glob("*.sql")):
        text = path.read_text(encoding="utf-8")
        headers = list(_HEADER.finditer(text))
        ends = [header.start() for header in headers[1:]] + [len(text)]
        for header, end in zip(headers, ends, strict=True):
            name, sql = header["name"], text[header.end() : end].strip().removesuffix(";")
            expected = len([p for p in header["parameters"].split(",") if p.strip()])
            used = {int(number) for number in re.findall(r"\$(\d+)", sql)}
            if used != set(range(1, expected + 1)):
                raise ValueError(f"{path.name}: {name} names {expected} parameters and uses {sorted(used)}")
            if name in queries:
                raise ValueError(f"{path.name}: {name} is there twice")
            queries[name] = sql
    return queries


def query(name: str) -> str:
    """The text of a query; raise KeyError, at import of the module that asks, where there is none."""
    return load()[name]

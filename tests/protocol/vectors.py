"""The vectors, and how their values look as JSON."""

import json
from functools import cache
from pathlib import Path
from typing import Any

PROTOCOL = Path(__file__).parents[2] / "protocol"


@cache
def load(name: str) -> dict[str, Any]:
    """The content of `protocol/vectors/<name>.json`."""
    loaded: dict[str, Any] = json.loads((PROTOCOL / "vectors" / f"{name}.json").read_text(encoding="utf-8"))
    return loaded


def hexed(value: Any) -> Any:
    """A decoded value as the vectors have it: bytes as lower-case hex."""
    match value:
        case bytes():
            return value.hex()
        case dict():
            return {key: hexed(inner) for key, inner in value.items()}
        case list() | tuple():
            return [hexed(inner) for inner in value]
        case _:
            return value


def named(cases: list[dict[str, Any]], *keys: str) -> dict[str, Any]:
    """Arguments for `pytest.mark.parametrize`: the cases, with names made of these keys and the case's number."""
    names = ["-".join((str(number), *(str(case[key]) for key in keys))) for number, case in enumerate(cases)]
    return {"argvalues": cases, "ids": names}

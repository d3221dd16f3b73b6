"""How commands print."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone

import pytest

from orbital_relay.commands.output import columns, plain, printable

ID = bytes(range(16))


def test_columns_are_as_wide_as_their_widest_cell_and_numbers_stand_on_the_right() -> None:
    lines = columns(("user", "groups", "bot"), [("alice", 7, True), ("bo", 12, False), ("carol_x", 0, None)])
    assert lines == [
        "user     groups  bot",
        "alice         7  yes",
        "bo           12  no",
        "carol_x       0  -",
    ]


def test_a_table_without_rows_is_its_header() -> None:
    assert columns(("user", "id"), []) == ["user  id"]


def test_cells_stay_on_their_line_and_steer_no_terminal() -> None:
    [_, line] = columns(("device",), [("\x1b[31mred\nand more",)])
    assert line == "\\x1b[31mred\\nand more"
    assert printable("plain ü") == "plain ü"


@dataclass(frozen=True, slots=True)
class Row:
    group_id: bytes
    hash: bytes
    at: datetime
    names: tuple[str, ...]
    nothing: None = None


def test_values_as_json_has_them() -> None:
    at = datetime(2026, 2, 3, 5, 5, 6, 700_000, tzinfo=timezone(timedelta(hours=1)))
    assert plain([Row(ID, bytes(32), at, ("a", "b"))]) == [
        {
            "group_id": "00010203-0405-0607-0809-0a0b0c0d0e0f",
            "hash": "00" * 32,
            "at": "2026-02-03T04:05:06Z",
            "names": ["a", "b"],
            "nothing": None,
        }
    ]


@pytest.mark.parametrize("value", [1, 1.5, "text", True, None, {"a": 1}])
def test_other_values_stay(value: object) -> None:
    assert plain(value) == value
    assert plain(datetime(2026, 1, 1, tzinfo=UTC)) == "2026-01-01T00:00:00Z"

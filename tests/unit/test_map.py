"""The maps in the packages' docstrings: every file that they name is there, and every file is on them."""

import re
from pathlib import Path
from types import ModuleType

import pytest

import orbital_client
import orbital_client.bots
import orbital_client.chat
import orbital_client.cli
import orbital_client.crypto
import orbital_client.trust
import orbital_client.wire
import orbital_relay

NOT_ON_THE_MAP = {"__init__", "__main__"}
CLIENT = (
    orbital_client,
    orbital_client.bots,
    orbital_client.chat,
    orbital_client.cli,
    orbital_client.crypto,
    orbital_client.trust,
    orbital_client.wire,
)


def named(text: str) -> set[str]:
    """What the relay's map names: the first word of a line of its lists, and what stands in backticks."""
    first_words = re.findall(r"^    ([a-z_]+/?)  ", text, re.MULTILINE)
    return {name.rstrip("/") for name in (*first_words, *re.findall(r"`([a-z_]+/?)`", text))}


def listed(text: str) -> set[str]:
    """What a map of two columns names: words before a gap, at the beginning of a line or behind another gap; and what
    stands before a colon, with commas between.
    """
    lines = text.splitlines()[1:]
    rows = {name for line in lines for name in re.findall(r"(?:^|\s{2,})([a-z_]+)(?=\s{2,}|\s\S)", line)}
    lists = {name for line in lines if ": " in line and "  " not in line for name in re.findall(r"[a-z_]+", line)}
    return rows | lists


def there(package: ModuleType) -> set[str]:
    assert package.__file__ is not None
    folder = Path(package.__file__).parent
    modules = {path.stem for path in folder.glob("*.py")} - NOT_ON_THE_MAP
    return modules | {path.name for path in folder.iterdir() if (path / "__init__.py").exists()}


def test_every_file_on_the_map_is_there() -> None:
    assert not named(orbital_relay.__doc__ or "") - there(orbital_relay)


def test_every_file_is_on_the_map() -> None:
    assert not there(orbital_relay) - named(orbital_relay.__doc__ or "")


@pytest.mark.parametrize("package", CLIENT, ids=lambda package: package.__name__)
def test_every_file_of_the_client_is_on_a_map(package: ModuleType) -> None:
    assert there(package) - listed(package.__doc__ or "") == set()


@pytest.mark.parametrize("package", CLIENT, ids=lambda package: package.__name__)
def test_every_file_on_a_map_of_the_client_is_there(package: ModuleType) -> None:
    begins = set(re.findall(r"^([a-z_]+)\s{2,}", package.__doc__ or "", re.MULTILINE))
    assert begins
    assert begins - there(package) == set()

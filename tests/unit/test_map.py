"""The map in the package's docstring: every file that it names is there, and every file is on it."""

import re
from pathlib import Path

import orbital_relay

PACKAGE = Path(orbital_relay.__file__).parent
NOT_ON_THE_MAP = {"__init__", "__main__"}


def named() -> set[str]:
    """What the map names: the first word of a line of its lists, and what stands in backticks."""
    text = orbital_relay.__doc__ or ""
    first_words = re.findall(r"^    ([a-z_]+/?)  ", text, re.MULTILINE)
    return {name.rstrip("/") for name in (*first_words, *re.findall(r"`([a-z_]+/?)`", text))}


def there() -> set[str]:
    modules = {path.stem for path in PACKAGE.glob("*.py")} - NOT_ON_THE_MAP
    return modules | {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}


def test_every_file_on_the_map_is_there() -> None:
    assert not named() - there()


def test_every_file_is_on_the_map() -> None:
    assert not there() - named()

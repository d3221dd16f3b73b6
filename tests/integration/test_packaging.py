"""What is shipped: wheels that hold all they need, requirements that pin all and name no host."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def dependencies(project: str) -> set[str]:
    table = tomllib.loads((REPOSITORY / project / "pyproject.toml").read_text())["project"]
    return {normal(re.split(r"[<>=!~ \[;]", line)[0]) for line in table["dependencies"]}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def lines_of(requirements: str) -> list[str]:
    return (REPOSITORY / "requirements" / requirements).read_text().splitlines()


def pinned(requirements: str) -> dict[str, str]:
    found = (re.match(r"([A-Za-z0-9._-]+)(?:\[[a-z,]+\])?==(\S+)", line) for line in lines_of(requirements))
    return {normal(match[1]): match[2] for match in found if match}


def test_a_wheel_of_the_relay_finds_its_sql_without_a_checkout(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([*build, str(REPOSITORY)], check=True, timeout=50)
    installed = tmp_path / "installed"
    zipfile.ZipFile(next(tmp_path.glob("orbital_relay-*.whl"))).extractall(installed)
    shown = subprocess.run(
        [sys.executable, "-c", "from orbital_relay.store import migrate; print(migrate.migrations_dir())"],
        env={**os.environ, "PYTHONPATH": str(installed)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=50,
    )
    migrations = Path(shown.stdout.strip())
    assert migrations.is_relative_to(installed)
    shipped = {path.name for path in migrations.glob("*.sql")}
    assert shipped == {path.name for path in (REPOSITORY / "sql" / "migrations").glob("*.sql")} != set()


def test_what_the_relay_needs_is_what_is_pinned() -> None:
    wanted = {line for line in lines_of("runtime.in") if line}
    ours = {"orbital-protocol", "orbital-client"}
    assert dependencies("") - ours == wanted
    assert dependencies("protocol") <= wanted
    assert dependencies("clients/python") - ours <= wanted


def test_development_runs_on_the_versions_that_are_deployed() -> None:
    development = pinned("dev.txt")
    assert {name: development[name] for name in pinned("runtime.txt")} == pinned("runtime.txt")


@pytest.mark.parametrize("requirements", ["runtime.txt", "dev.txt", "plot.txt"])
def test_every_pin_has_hashes_and_no_line_names_a_host(requirements: str) -> None:
    assert not [line for line in lines_of(requirements) if "://" in line or line.startswith("--")]
    blocks = re.split(r"^(?=[A-Za-z0-9])", (REPOSITORY / "requirements" / requirements).read_text(), flags=re.M)[1:]
    assert blocks
    assert not [block.splitlines()[0] for block in blocks if "--hash=sha256:" not in block]

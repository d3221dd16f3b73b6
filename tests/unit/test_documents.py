"""The documents say what the code says, and their links lead somewhere."""

import re
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup

from docs.generate import LOG_EVENTS, OPERATIONS, log_events, operations
from orbital_client.chat.acts import ACTS
from orbital_relay import cli
from orbital_relay.store.queries import sql_dir

ROOT = Path(__file__).parents[2]
ARCHITECTURE = ROOT / "docs" / "architecture.md"
DOCUMENTS = sorted(
    path
    for folder in (
        ROOT,
        ROOT / "docs",
        ROOT / "protocol",
        ROOT / "clients",
        ROOT / "deploy",
        ROOT / "bench",
        ROOT / "examples",
    )
    for path in (folder.glob("*.md") if folder == ROOT else folder.rglob("*.md"))
    if "seed" not in path.parts
)


def test_the_generated_tables_are_up_to_date() -> None:
    for page, write in ((OPERATIONS, operations), (LOG_EVENTS, log_events)):
        text = page.read_text(encoding="utf-8")
        assert write(text) == text, "run `make docs`"


def commands() -> set[str]:
    """Every command there is, as it is typed."""
    group = typer.main.get_command(cli.app)
    assert isinstance(group, TyperGroup)
    found = set()
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            found |= {f"orbital-relay {name} {inner}" for inner in command.commands}
        else:
            found.add(f"orbital-relay {name}")
    return found


def test_the_table_of_commands_has_each_of_them() -> None:
    table = OPERATIONS.read_text(encoding="utf-8").partition("## Command line")[2]
    listed = set()
    for cell in re.findall(r"^\| (`orbital-relay.*?) \|", table, re.MULTILINE):
        first, *others = re.findall(r"`([^`]+)`", cell)
        listed |= {first, *(f"{first.rpartition(' ')[0]} {other}" for other in others)}
    assert listed == commands()


def test_the_page_of_the_window_has_each_key() -> None:
    rows = re.findall(r"^\| (\S+) \| (.*?)(?:;.*)? \|$", (ROOT / "docs" / "chat.md").read_text(), re.MULTILINE)
    keys = {(_pressed(act.key), act.help) for act in ACTS.values()}
    assert keys <= set(rows)


def _pressed(key: str) -> str:
    return "+".join(part.capitalize() for part in key.split("+"))


def test_every_monitoring_query_is_on_the_operators_page() -> None:
    section = OPERATIONS.read_text(encoding="utf-8").partition("## What the database tells")[2].partition("\n## ")[0]
    assert set(re.findall(r"`(\w+\.sql)`", section)) == {path.name for path in (sql_dir() / "monitoring").glob("*.sql")}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = {target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target}
    assert [target for target in targets if target and not (path.parent / target).exists()] == []


def test_every_test_that_the_architecture_names_is_there() -> None:
    """Backticked paths, and names of tests in the file that was named last."""
    file, missing = ROOT, []
    for path, name in re.findall(
        r"`(tests/[\w/]+(?:\.py|/))?(?:::)?(test_\w+)?`", ARCHITECTURE.read_text(encoding="utf-8")
    ):
        file = ROOT / path if path else file
        if not file.exists() or (name and f"def {name}(" not in file.read_text(encoding="utf-8")):
            missing.append(f"{path}::{name}")
    assert missing == []


NAMED = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


@pytest.mark.parametrize(("page", "at_least"), [("security-requirements.md", 150), ("faults.md", 40)])
def test_the_tests_that_a_page_names_are_there(page: str, at_least: int) -> None:
    named = set(NAMED.findall((ROOT / "docs" / page).read_text(encoding="utf-8")))
    assert len(named) >= at_least
    texts = {file: (ROOT / file).read_text(encoding="utf-8") for file, _ in named if (ROOT / file).exists()}
    assert [f"{file}::{test}" for file, test in sorted(named) if f"def {test}(" not in texts.get(file, "")] == []

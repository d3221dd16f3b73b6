"""`orbital-relay migrate`: the schema, forward and back."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar

import typer

from orbital_relay.commands.database import located
from orbital_relay.commands.options import ConfigOption, JsonOption, SetOption, settings_from
from orbital_relay.commands.output import print_json
from orbital_relay.config import Settings
from orbital_relay.store import migrate

app = typer.Typer(
    no_args_is_help=True, help="Bring the database to this relay's schema. The embedded one does it by itself."
)

T = TypeVar("T")


@app.command()
def up(*, file: ConfigOption = None, sets: SetOption = None) -> None:
    """Apply what is pending."""
    applied = _run(settings_from(file, sets), migrate.upgrade)
    typer.echo("\n".join(f"applied {name}" for name in applied) or "nothing to do")


@app.command()
def down(
    *,
    count: Annotated[int, typer.Argument(min=1, help="How many to take back.")] = 1,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
    file: ConfigOption = None,
    sets: SetOption = None,
) -> None:
    """Take the newest migrations back, while no relay runs; their tables' rows are lost."""
    settings = settings_from(file, sets)
    if not yes:
        typer.confirm(f"Take {count} back, and lose the rows of the tables that they made?", abort=True)
    undone = _run(settings, lambda dsn: migrate.downgrade(dsn, count))
    typer.echo("\n".join(f"took back {name}" for name in undone) or "nothing to do")


@app.command()
def status(*, file: ConfigOption = None, sets: SetOption = None, as_json: JsonOption = False) -> None:
    """Show what is applied, pending and wrong; exit 1 unless the relay could run."""
    found = _run(settings_from(file, sets), migrate.status)
    if as_json:
        print_json(found)
    else:
        for label, names in (("applied", found.applied), ("pending", found.pending), ("problem", found.problems)):
            for name in names:
                typer.echo(f"{label}  {name}")
    if found.pending or found.problems:
        raise typer.Exit(1)


def _run(settings: Settings, work: Callable[[str], Awaitable[T]]) -> T:
    async def run() -> T:
        async with located(settings) as dsn:
            return await work(dsn)

    return asyncio.run(run())

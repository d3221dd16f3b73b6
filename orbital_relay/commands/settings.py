"""`orbital-relay config`: what is in force, and what could be."""

from typing import Annotated

import typer

from orbital_relay import config
from orbital_relay.commands.options import ConfigOption, JsonOption, SetOption, settings_from
from orbital_relay.commands.output import print_json, print_table
from orbital_relay.reloading import LIVE


def show_config(
    *,
    file: ConfigOption = None,
    sets: SetOption = None,
    reference: Annotated[
        bool, typer.Option("--reference", help="Print every setting with its default and meaning, as Markdown.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what is in force, and where each value came from; secrets are masked."""
    if reference:
        typer.echo(markdown(), nl=False)
        return
    rows = config.describe(settings_from(file, sets))
    if as_json:
        print_json({row.key: {"value": row.shown, "from": row.source} for row in rows})
    else:
        print_table(("setting", "value", "from"), rows)


def markdown() -> str:
    """The reference of all settings, as docs/operations.md has it."""
    lines = ["| setting | default | what it is | allowed | a change takes |", "| --- | --- | --- | --- | --- |"]
    for row in config.reference():
        takes = "a reload" if row.key in LIVE else "a restart"
        lines.append(f"| `{row.key}` | {row.default} | {row.description} | {row.allowed} | {takes} |")
    return "\n".join(lines) + "\n"

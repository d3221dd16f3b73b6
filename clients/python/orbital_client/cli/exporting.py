"""A group's history as a file, and the check of such a file."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from orbital_client.cli.lookup import the_group
from orbital_client.cli.options import CommandError, Options, command, given
from orbital_client.cli.terminal import WRONG, local_time, printable
from orbital_client.export import Export
from orbital_client.export import check as check_file
from orbital_client.export import export as export_group


@command
async def export(
    ctx: typer.Context,
    group: Annotated[
        str | None, typer.Argument(metavar="GROUP", help="A group's name, or the beginning of its id.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE", dir_okay=False, help="Where to; otherwise orbital-ID.jsonl.", show_default=False
        ),
    ] = None,
    *,
    check: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Check a file that was exported; asks no relay.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write a group's verified history to a file: a line of JSON for each event, and a summary."""
    options = given(ctx)
    if (check is None) == (group is None):
        raise typer.BadParameter("name a group to export, or a file to --check", param_hint="GROUP")
    if check is not None:
        _show(options, "is whole", await asyncio.to_thread(check_file, check))
    elif group is not None:
        _show(options, "is written and checked", await _export(options, group, file, force=force))


async def _export(options: Options, group: str, file: Path | None, *, force: bool) -> Export:
    async with options.connected() as client:
        found = await the_group(client, group)
        path = file or Path(f"orbital-{found.id.hex()}.jsonl")
        if not force and await asyncio.to_thread(path.exists):
            raise CommandError(f"{path} is there already: name another file, or --force")
        return await export_group(found, path)


def _show(options: Options, what: str, export: Export) -> None:
    summary, terminal = export.summary, options.terminal
    facts: dict[str, Any] = {name: getattr(summary, name) for name in summary.__struct_fields__}
    findings = [{"seq": one.seq, "flaw": one.flaw, "text": one.text} for one in export.findings]
    terminal.document({"path": str(export.path), **facts, "findings": findings})
    terminal.say(f"{printable(str(export.path))} {what}")
    terminal.say(f"{printable(summary.name)}, as of {local_time(summary.exported_at)}")
    terminal.say(
        f"{summary.events} events, {summary.messages} messages, {summary.problems} that can't be shown or count"
    )
    terminal.say(f"head: {summary.seq}, {summary.hash}")
    for finding in export.findings:
        terminal.say(finding.text, WRONG)


COMMANDS: Final[dict[str, Callable[..., None]]] = {"export": export}

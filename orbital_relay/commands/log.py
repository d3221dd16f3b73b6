"""`orbital-relay log verify`: recompute every hash chain in the database."""

import asyncio
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Final
from uuid import UUID

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from orbital_relay.commands.database import CommandError, opened
from orbital_relay.commands.options import ConfigOption, JsonOption, SetOption, settings_from
from orbital_relay.commands.output import print_json
from orbital_relay.commands.verification import Finding, LogCheck, check_tombstone
from orbital_relay.config import Settings
from orbital_relay.store import operators as store
from orbital_relay.store.operators import LogHead
from orbital_relay.store.pool import Connection

app = typer.Typer(no_args_is_help=True, help="Examine the groups' logs.")

_PAGE_LIMIT_S: Final = 60.0
_EVENTS_A_STEP: Final = 500

Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Report:
    """What was verified, and the first thing wrong with each log that isn't whole."""

    ok: bool
    groups: int
    events: int
    findings: list[Finding]


@app.command()
def verify(
    *,
    file: ConfigOption = None,
    sets: SetOption = None,
    group: Annotated[UUID | None, typer.Option(help="Only this group; otherwise all.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Recompute every hash chain: contents, hashes, numbers without a gap, heads. Exit 1 if a log isn't whole."""
    settings = settings_from(file, sets)
    with Progress(
        TextColumn("verifying"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    ) as progress:
        report = asyncio.run(_verify(settings, None if group is None else group.bytes, progress))
    if as_json:
        print_json(report)
    else:
        for finding in report.findings:
            typer.echo(f"group {UUID(bytes=finding.group_id)} seq {finding.seq}: {finding.problem}")
        wrong = f", {len(report.findings)} not whole" if report.findings else ", all whole"
        typer.echo(f"verified {report.events} events of {report.groups} groups{wrong}")
    if not report.ok:
        raise typer.Exit(1)


async def _verify(settings: Settings, group_id: bytes | None, progress: Progress) -> Report:
    async with opened(settings, statement_timeout_s=_PAGE_LIMIT_S) as connection:
        if group_id is not None:
            head = await store.find_log(connection, group_id)
            if head is None:
                raise CommandError("there is no such group, and never was")
            task = progress.add_task("", total=head.seq)
            events, finding = await _verify_log(connection, head, lambda n: progress.advance(task, n))
            return _report(1, events, [] if finding is None else [finding])
        return await _verify_all(connection, progress)


async def _verify_all(connection: Connection, progress: Progress) -> Report:
    groups = events = 0
    findings = []
    task = progress.add_task("", total=(await store.count_logs(connection))[1])
    async for head in store.iterate_logs(connection):
        read, finding = await _verify_log(connection, head, lambda n: progress.advance(task, n))
        groups += 1
        events += read
        if finding is not None:
            findings.append(finding)
    findings += [Finding(group_id, 1, "the log has no head") for group_id in await store.list_headless_logs(connection)]
    return _report(groups, events, findings)


def _report(groups: int, events: int, findings: list[Finding]) -> Report:
    return Report(not findings, groups, events, findings)


async def _verify_log(connection: Connection, head: LogHead, advance: Advance) -> tuple[int, Finding | None]:
    """Verify a log up to a head; return how many events were read, and what is wrong first."""
    read, finding = await (_verify_tombstone if head.deleted else _verify_chain)(connection, head, advance)
    if finding is not None and not head.deleted:
        now = await store.find_log(connection, head.group_id)
        if now is not None and now.deleted:  # meanwhile
            return await _verify_tombstone(connection, now, advance)
    return read, finding


async def _verify_chain(connection: Connection, head: LogHead, advance: Advance) -> tuple[int, Finding | None]:
    check = LogCheck(head)
    read = 0
    async for row in store.iterate_log(connection, head.group_id, head.seq):
        if (finding := check.take(row)) is not None:
            return read, finding
        read += 1
        if not read % _EVENTS_A_STEP:
            advance(_EVENTS_A_STEP)
    advance(read % _EVENTS_A_STEP)
    return read, check.end()


async def _verify_tombstone(connection: Connection, head: LogHead, advance: Advance) -> tuple[int, Finding | None]:
    rows = [row async for row in store.iterate_log(connection, head.group_id, head.seq)]
    advance(1)
    return len(rows), check_tombstone(head, rows)

"""`orbital-relay media audit`: do the store of files and the database say the same?"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Final
from uuid import UUID

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from orbital_relay import logs
from orbital_relay.commands.audit import Audit, Findings, Lost, Stray
from orbital_relay.commands.database import CommandError, opened
from orbital_relay.commands.options import ConfigOption, JsonOption, SetOption, settings_from
from orbital_relay.commands.output import print_json
from orbital_relay.config import Settings
from orbital_relay.media import choose
from orbital_relay.media.base import Store, StoreError
from orbital_relay.media.guarded import GuardedStore
from orbital_relay.metrics import Metrics
from orbital_relay.store import facts
from orbital_relay.store import operators as store
from orbital_relay.store.operators import Skew
from orbital_relay.store.pool import Connection

app = typer.Typer(no_args_is_help=True, help="Examine the files that relays keep.")

_STATEMENT_LIMIT_S: Final = 60.0
_STRAYS: Final = {
    "blob": "is in the store, and nothing names it",
    "parts": "has parts in the store, and nothing names it",
    "leftovers": "is committed, and still has parts in the store",
}


@dataclass(frozen=True, slots=True)
class Report:
    """What was found, and whether it was mended (`repaired`).

    `store` is the one that was looked at, `recorded` the one that the database speaks of (None: of none yet).
    `found` counts the findings; where there are more than the lists hold, these have the first. `waiting` blobs are
    due to be deleted by the relays, which is as it should be.
    """

    ok: bool
    store: str
    recorded: str | None
    files: int
    blobs: int
    waiting: int
    found: int
    more: bool
    repaired: bool
    lost: list[Lost]
    strays: list[Stray]
    quotas: list[Skew]


@app.command()
def audit(
    *,
    file: ConfigOption = None,
    sets: SetOption = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Delete strays, expire files whose bytes are lost, set quotas right.")
    ] = False,
    adopt: Annotated[
        bool, typer.Option("--adopt", help="With --repair: make this store the one that the database speaks of.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare the store of files with the database: lost blobs, stray ones, wrong quotas. Exit 1 if any is left."""
    if adopt and not repair:
        raise typer.BadParameter("goes with --repair", param_hint="--adopt")
    settings = settings_from(file, sets)
    logs.configure("error")  # a store that is away is told in one line, by the command
    with Progress(
        TextColumn("auditing"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    ) as progress:
        report = asyncio.run(_audit(settings, progress, repair=repair, adopt=adopt))
    if as_json:
        print_json(report)
    else:
        _print(report)
    if not report.ok:
        raise typer.Exit(1)


async def _audit(settings: Settings, progress: Progress, *, repair: bool, adopt: bool) -> Report:
    async with (
        opened(settings, statement_timeout_s=_STATEMENT_LIMIT_S) as connection,
        _store(settings, make=adopt) as media,
    ):
        recorded = await store.read_fact(connection, choose.FACT)
        is_another = recorded not in (None, media.identity)
        if is_another and repair:
            await _check_adoption(connection, media, recorded, adopt=adopt)
        task = progress.add_task("", total=(await store.count_media(connection)).files)
        audit = Audit(connection, media, settings.media_concurrency, lambda n: progress.advance(task, n))
        first = findings = await audit.look()
        found = len(findings)
        if repair:
            await audit.mend(findings)
            while findings.more:
                findings = await audit.look()
                found += len(findings)
                await audit.mend(findings)
        if adopt:
            await _adopt(connection, media, is_another=is_another)
            recorded, is_another = media.identity, False
        return await _report(connection, media, recorded, first, found, repaired=repair, ok=not is_another)


async def _report(  # noqa: PLR0913  what a report is made of
    connection: Connection, media: Store, recorded: str | None, first: Findings, found: int, *, repaired: bool, ok: bool
) -> Report:
    counted = await store.count_media(connection)
    return Report(
        ok=ok and (repaired or not found),
        store=media.identity,
        recorded=recorded,
        files=counted.files,
        blobs=first.blobs,
        waiting=counted.deletions,
        found=found,
        more=first.more,
        repaired=repaired,
        lost=first.lost,
        strays=first.strays,
        quotas=first.quotas,
    )


@asynccontextmanager
async def _store(settings: Settings, *, make: bool) -> AsyncIterator[Store]:
    """The store of these settings, open; raise CommandError where it can't be. A folder is made only if asked for."""
    folder = settings.local_media_dir
    if settings.media_store == "local" and not make and not folder.exists():
        raise CommandError(f"media_dir: {folder} is not there")
    media = GuardedStore(
        choose.make_store(settings),
        Metrics(),
        timeout_s=settings.media_timeout_s,
        concurrency=settings.media_concurrency,
    )
    try:
        try:
            await media.open()
        except (StoreError, TimeoutError) as error:
            raise CommandError(f"media_store: {str(error) or 'no answer in time'}") from None
        yield media
    finally:
        await media.close()


async def _check_adoption(connection: Connection, media: Store, recorded: str | None, *, adopt: bool) -> None:
    """Raise CommandError where another store must not be repaired by what this database says."""
    if not adopt:
        raise CommandError(
            f"nothing was repaired: the database speaks of files in {recorded}, and these settings name "
            f"{media.identity}; name the other one, or give up with --adopt what is only there"
        )
    if relays := await facts.count_relays(connection):
        raise CommandError(f"nothing was repaired: {relays} relays run on this database, with {recorded}; stop them")


async def _adopt(connection: Connection, media: Store, *, is_another: bool) -> None:
    """Make this the store that the database speaks of."""
    async with connection.transaction():
        if is_another:
            # What they have written so far is in the other store. Their clients begin them anew.
            await store.drop_uploads(connection)
        await facts.replace(connection, choose.FACT, media.identity)


# ── printing ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _print(report: Report) -> None:
    if report.recorded not in (None, report.store):
        typer.echo(f"store: these settings name {report.store}, the database speaks of {report.recorded}")
    for lost in report.lost:
        there = "is not there" if lost.stored_bytes is None else f"has {lost.stored_bytes} bytes, not {lost.size_bytes}"
        typer.echo(f"file {_id(lost.media_id)} of group {_id(lost.group_id)}: its blob {lost.key} {there}")
    for stray in report.strays:
        size = "" if stray.size_bytes is None else f" ({stray.size_bytes} bytes)"
        typer.echo(f"blob {stray.key}{size}: {_STRAYS[stray.what]}")
    for skew in report.quotas:
        typer.echo(
            f"quota of group {_id(skew.group_id)}: counts {skew.media_count} files of {skew.total_bytes} bytes, "
            f"there are {skew.sum_count} of {skew.sum_bytes}"
        )
    if report.more:
        typer.echo("… and more")
    if report.waiting:
        typer.echo(f"{report.waiting} blobs wait to be deleted")
    typer.echo(f"audited {report.files} files and {report.blobs} blobs{_outcome(report)}")


def _outcome(report: Report) -> str:
    if not report.found:
        return ", nothing wrong with them" if report.ok else ", in another store"
    counted = f"{report.found} or more" if report.more and not report.repaired else str(report.found)
    return f", {counted} findings{', all repaired' if report.repaired else ''}"


def _id(raw: bytes) -> UUID:
    return UUID(bytes=raw)

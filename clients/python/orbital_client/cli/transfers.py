"""Files: into a thread, and out of it."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from orbital_client.cli.lookup import the_group, the_message, the_thread
from orbital_client.cli.options import CommandError, GroupArgument, MessageArgument, ThreadArgument, command, given
from orbital_client.cli.showing import message_facts
from orbital_client.cli.terminal import Terminal, in_bytes, printable

Advance = Callable[[int, int], None]


@command
async def send(
    ctx: typer.Context,
    group: GroupArgument,
    thread: ThreadArgument,
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE", exists=True, dir_okay=False, readable=True, help="Files.")
    ],
    *,
    caption: Annotated[str, typer.Option(help="What stands beside each of them.")] = "",
) -> None:
    """Post files in a thread. They are there for seven days."""
    options = given(ctx)
    sent: list[dict[str, Any]] = []
    async with options.connected() as client:
        found = await the_thread(await the_group(client, group), thread)
        for file in files:
            with _progress(options.terminal, file.name) as advance:
                message = await found.share(file, caption=caption, on_progress=advance)
            sent.append(message_facts(message))
            size = in_bytes(message.size_bytes)
            options.terminal.say(f"sent {printable(file.name)}, {size}: {message.id.hex()}")
        options.terminal.document(sent)


@command
async def fetch(
    ctx: typer.Context,
    group: GroupArgument,
    message: MessageArgument,
    dest: Annotated[Path, typer.Argument(metavar="DEST", help="A folder, or where the file is to be.")] = Path(),
    *,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
) -> None:
    """Bring a file here, opened and verified, or not at all."""
    options = given(ctx)
    async with options.connected() as client:
        found = await the_message(await the_group(client, group), message)
        if found.problem is not None:
            raise found.problem
        if found.post.file is None:
            raise CommandError("this file is no longer there" if found.kind == "file" else "this message is no file")
        path = await asyncio.to_thread(_free, dest, found.safe_file_name, force)
        with _progress(options.terminal, path.name) as advance:
            await found.download(path, on_progress=advance)
        options.terminal.done(
            f"fetched {printable(str(path))}, {in_bytes(found.size_bytes)}", path=str(path), id=found.id
        )


def _free(dest: Path, name: str, force: bool) -> Path:
    """Where the file goes; nothing that is there is replaced by something of others' unless that is wanted."""
    path = dest / name if dest.is_dir() else dest
    if path.exists() and not force:
        raise CommandError(f"{path} is there already: name another place, or --force")
    return path


@contextmanager
def _progress(terminal: Terminal, name: str) -> Iterator[Advance]:
    """A bar on a terminal, otherwise nothing."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(
        *columns, TimeRemainingColumn(), console=terminal.err, transient=True, disable=not terminal.shows_progress
    ) as progress:
        task = progress.add_task(printable(name), total=None)

        def advance(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        yield advance


COMMANDS: Final[dict[str, Callable[..., None]]] = {"send": send, "fetch": fetch}

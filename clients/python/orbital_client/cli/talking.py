"""Talking: threads, replies, what was said, what happens, and what is done with messages."""

import asyncio
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, Final

import typer

from orbital_client import Client, Disconnected, Group, Message, Reconnected
from orbital_client.cli.groups import parse_name
from orbital_client.cli.lookup import the_group, the_message, the_thread
from orbital_client.cli.options import (
    CommandError,
    GroupArgument,
    MessageArgument,
    Options,
    ThreadArgument,
    command,
    given,
    short,
)
from orbital_client.cli.showing import message_facts, show_item, show_message
from orbital_client.cli.terminal import local_time

_TEXT_BYTES: Final = 65_000  # what an envelope holds, less what stands beside the text
_EMOJI_LENGTH: Final = 64
_SHOWN: Final = 50

TextArgument = Annotated[str, typer.Argument(metavar="TEXT", help="The text, - for standard input.")]
LimitOption = Annotated[int, typer.Option(min=1, help="Not more than the last so many.")]


def _parse_emoji(text: str) -> str:
    if not 0 < len(text) <= _EMOJI_LENGTH:
        raise typer.BadParameter(f"must have 1 to {_EMOJI_LENGTH} characters")
    return text


def _text(text: str) -> str:
    """What is to be posted: given, or from standard input."""
    if text == "-":
        try:
            text = sys.stdin.read().rstrip("\n")
        except UnicodeDecodeError:
            raise CommandError("what came on standard input is no text") from None
    if len(text.encode()) > _TEXT_BYTES:
        raise CommandError(f"the text has more than {_TEXT_BYTES:,} bytes: post it as a file (orbital send)")
    return text


def _posted(options: Options, message: Message) -> None:
    options.terminal.done(f"posted {message.id.hex()}, event {message.seq}", **message_facts(message))


@command
async def post(
    ctx: typer.Context,
    group: GroupArgument,
    title: Annotated[str, typer.Argument(parser=parse_name, metavar="TITLE", help="What it is about.")],
    text: TextArgument = "",
) -> None:
    """Open a thread."""
    options = given(ctx)
    said = await asyncio.to_thread(_text, text)
    async with options.connected() as client:
        _posted(options, await (await the_group(client, group)).post(title, said))


@command
async def reply(ctx: typer.Context, group: GroupArgument, thread: ThreadArgument, text: TextArgument) -> None:
    """Reply in a thread."""
    options = given(ctx)
    said = await asyncio.to_thread(_text, text)
    async with options.connected() as client:
        found = await the_group(client, group)
        _posted(options, await (await the_thread(found, thread)).reply(said))


# ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@command
async def threads(ctx: typer.Context, group: GroupArgument, *, limit: LimitOption = _SHOWN) -> None:
    """List a group's threads, oldest first."""
    options = given(ctx)
    async with options.connected() as client:
        found = await (await the_group(client, group)).threads(limit=limit)
        options.terminal.document([message_facts(thread) for thread in found])
        options.terminal.table(
            ("thread", "title", "by", "at"),
            [(short(thread.id), _title(thread), thread.author, local_time(thread.created_at)) for thread in found],
        )


def _title(thread: Message) -> str:
    if thread.problem is not None:
        return f"(can't be shown: {thread.problem})"
    return "(deleted)" if thread.is_deleted else thread.title


@command
async def history(
    ctx: typer.Context,
    group: GroupArgument,
    *,
    limit: LimitOption = _SHOWN,
    thread: Annotated[
        str | None, typer.Option(help="Only this thread: the beginning of its id, or its exact title.")
    ] = None,
) -> None:
    """Show a group's last messages as they stand, oldest first."""
    options = given(ctx)
    async with options.connected() as client:
        found = await the_group(client, group)
        if thread is None:
            messages = await found.history(limit=limit)
        else:
            messages = (await found.thread((await the_thread(found, thread)).id))[-limit:]
        options.terminal.document([message_facts(message) for message in messages])
        for message in messages:
            show_message(options.terminal, message)


@command
async def follow(
    ctx: typer.Context,
    group: GroupArgument,
    *,
    from_start: Annotated[bool, typer.Option("--from-start", help="All that was before, first.")] = False,
    count: Annotated[int | None, typer.Option("--count", min=1, help="End after so many things.")] = None,
) -> None:
    """Show what happens in a group as it happens, until Ctrl-C."""
    options = given(ctx)
    with suppress(asyncio.CancelledError):  # Ctrl-C: this is how it ends
        async with options.connected() as client:
            found = await the_group(client, group)
            telling = asyncio.create_task(_tell(options, client), name="orbital-notices")
            try:
                await _follow(options, found, from_start=from_start, count=count)
            finally:
                telling.cancel()


async def _follow(options: Options, group: Group, *, from_start: bool, count: int | None) -> None:
    after = group.start if from_start else group.cursor
    options.terminal.note(f"following {group.name}; Ctrl-C ends it")
    shown = 0
    async for item in group.events(after):
        show_item(options.terminal, group, item)
        shown += 1
        if shown == count:
            return
    raise CommandError(f"you see no more of this group ({group.gone or 'the client was closed'})")


async def _tell(options: Options, client: Client) -> None:
    """How the connection is."""
    was_lost = False
    async for notice in client.notices():
        match notice:
            case Disconnected():
                options.terminal.note("the connection is lost; trying again")
                was_lost = True
            case Reconnected() if was_lost:
                options.terminal.note("connected again")
            case _:
                pass


# ── what is done with messages ──────────────────────────────────────────────────────────────────────────────────────


@command
async def react(
    ctx: typer.Context,
    group: GroupArgument,
    message: MessageArgument,
    emoji: Annotated[str, typer.Argument(parser=_parse_emoji, metavar="EMOJI", help="An emoji, or a word.")],
    *,
    take_back: Annotated[bool, typer.Option("--take-back", help="Take the reaction back.")] = False,
) -> None:
    """React to a message."""
    options = given(ctx)
    async with options.connected() as client:
        found = await the_message(await the_group(client, group), message)
        await (found.unreact(emoji) if take_back else found.react(emoji))
        await _show_again(options, found)


@command
async def edit(
    ctx: typer.Context,
    group: GroupArgument,
    message: MessageArgument,
    text: TextArgument,
    *,
    title: Annotated[
        str | None, typer.Option(parser=parse_name, metavar="TITLE", help="Another title too, for a thread.")
    ] = None,
) -> None:
    """Put other words in the place of a message of one's own."""
    options = given(ctx)
    said = await asyncio.to_thread(_text, text)
    async with options.connected() as client:
        found = await the_message(await the_group(client, group), message)
        if not found.is_mine:
            raise CommandError("only its author edits a message")
        await found.edit(said, title=title)
        await _show_again(options, found)


@command
async def delete(ctx: typer.Context, group: GroupArgument, message: MessageArgument) -> None:
    """Delete a message for everyone: one's own, or as an admin."""
    options = given(ctx)
    async with options.connected() as client:
        found = await the_message(await the_group(client, group), message)
        await found.delete()
        options.terminal.done(f"deleted {found.id.hex()}", id=found.id)


@command
async def pin(
    ctx: typer.Context,
    group: GroupArgument,
    message: MessageArgument,
    *,
    unpin: Annotated[bool, typer.Option("--unpin", help="Pin it no more.")] = False,
) -> None:
    """Pin a message, as an admin."""
    options = given(ctx)
    async with options.connected() as client:
        found = await the_message(await the_group(client, group), message)
        await (found.unpin() if unpin else found.pin())
        await _show_again(options, found)


async def _show_again(options: Options, message: Message) -> None:
    now = await message.refresh()
    options.terminal.document(message_facts(now))
    show_message(options.terminal, now)


COMMANDS: Final[dict[str, Callable[..., None]]] = {
    "post": post,
    "reply": reply,
    "threads": threads,
    "history": history,
    "follow": follow,
    "react": react,
    "edit": edit,
    "delete": delete,
    "pin": pin,
}

"""Groups: which there are, making one, coming in, leaving, another name."""

import asyncio
from collections.abc import Callable
from typing import Annotated, Any, Final

import typer

from orbital_client import AdmissionNeeded, Group, InviteLink, LogBroken, Role
from orbital_client.cli.lookup import the_group
from orbital_client.cli.options import CommandError, GroupArgument, Options, command, given, short
from orbital_client.cli.terminal import WRONG, printable

_NAME_LENGTH: Final = 1_024
_KEY_WITHIN_S: Final = 15.0
_DAY_S: Final = 86_400.0


def parse_name(text: str) -> str:
    """A name or title, as others can read it."""
    if not 0 < len(text) <= _NAME_LENGTH:
        raise typer.BadParameter(f"must have 1 to {_NAME_LENGTH:,} characters")
    return text


def _parse_link(text: str) -> InviteLink:
    try:
        return InviteLink.parse(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


@command
async def groups(ctx: typer.Context) -> None:
    """List the groups that one is in."""
    options = given(ctx)
    async with options.connected() as client:
        found = sorted(client.groups, key=lambda group: group.id)
        problems = await asyncio.gather(*(_problem(group) for group in found))
        options.terminal.document([_facts(group, why) for group, why in zip(found, problems, strict=True)])
        header = ("group", "id", "your role", "events")
        options.terminal.table(header, [(*_row(group), group.cursor.seq) for group in found])
        for group, why in zip(found, problems, strict=True):
            if why is not None:
                options.terminal.say(f"{printable(group.name) or short(group.id)}: {printable(why)}", WRONG)


async def _problem(group: Group) -> str | None:
    """Why a group can't be trusted any more; None once it is verified up to the relay's head."""
    try:
        await group.live()
    except LogBroken as error:
        return str(error)
    await group.named()
    return None


def _row(group: Group) -> tuple[object, ...]:
    role = group.role
    return group.name or None, short(group.id), role.name.lower() if role else None


def _facts(group: Group, problem: str | None = None) -> dict[str, Any]:
    role = group.role
    return {
        "id": group.id,
        "name": group.name,
        "role": role.name.lower() if role else None,
        "seq": group.cursor.seq,
        "problem": problem,
    }


@command
async def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(parser=parse_name, metavar="NAME", help="What the group is called.")],
    *,
    no_history: Annotated[
        bool, typer.Option("--no-history", help="Newcomers can't read what was posted before. For ever.")
    ] = False,
) -> None:
    """Make a group that one owns."""
    options = given(ctx)
    async with options.connected() as client:
        group = await client.create_group(name, shared_history=not no_history)
        _entered(options, "created", group)


@command
async def join(
    ctx: typer.Context,
    link: Annotated[InviteLink, typer.Argument(parser=_parse_link, metavar="LINK", help="An invite link: orbital:…")],
) -> None:
    """Join a group by an invite link."""
    options = given(ctx)
    async with options.connected() as client:
        group = await client.join(link)
        await group.ready(_KEY_WITHIN_S)
        _entered(options, "joined", group)


@command
async def knock(
    ctx: typer.Context,
    code: Annotated[str, typer.Argument(metavar="CODE", help="A group's standing code.")],
    *,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until an admin lets you in.")] = False,
) -> None:
    """Ask a group's admins to let one in, by the group's standing code."""
    options = given(ctx)
    async with options.connected() as client:
        group_id = await client.knock(code)
        if not wait:
            options.terminal.say("You have knocked. Tell an admin your fingerprint, outside of this relay:")
            options.terminal.say(f"\n    {client.fingerprint}\n", "bold")
            options.terminal.document({"group_id": group_id, "fingerprint": client.fingerprint})
            return
        options.terminal.note(f"waiting for an admin; your fingerprint: {client.fingerprint}")
        try:
            group = await client.admitted(group_id, _DAY_S)
        except AdmissionNeeded:
            raise CommandError("no admin has let you in for a day") from None
        await group.ready(_KEY_WITHIN_S)
        await group.named()
        _entered(options, "admitted to", group)


def _entered(options: Options, what: str, group: Group) -> None:
    options.terminal.done(f"{what} {printable(group.name)}, id {group.id.hex()}", **_facts(group))


@command
async def leave(ctx: typer.Context, group: GroupArgument) -> None:
    """Leave a group. Its owner can't: `orbital role GROUP USER owner` makes somebody else the owner."""
    options = given(ctx)
    async with options.connected() as client:
        found = await the_group(client, group)
        if found.role == Role.OWNER:
            raise CommandError("the owner can't leave: make somebody else the owner first (orbital role)")
        await found.leave()
        options.terminal.done(f"left {printable(found.name)}", group_id=found.id)


@command
async def rename(
    ctx: typer.Context,
    group: GroupArgument,
    name: Annotated[str, typer.Argument(parser=parse_name, metavar="NAME", help="What it is called from now on.")],
) -> None:
    """Call a group something else, as an admin."""
    options = given(ctx)
    async with options.connected() as client:
        found = await the_group(client, group)
        await found.rename(name)
        options.terminal.done(f"it is called {printable(found.name)} now", **_facts(found))


COMMANDS: Final[dict[str, Callable[..., None]]] = {
    "groups": groups,
    "create": create,
    "join": join,
    "knock": knock,
    "leave": leave,
    "rename": rename,
}

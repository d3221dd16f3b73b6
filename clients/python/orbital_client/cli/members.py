"""Who is in a group: invites, knocks, roles, removals."""

import re
from collections.abc import Callable
from typing import Annotated, Final

import typer

from orbital_client import Role
from orbital_client.cli.lookup import the_group, the_knock, the_member
from orbital_client.cli.options import GroupArgument, UserArgument, command, given, short
from orbital_client.cli.terminal import iso_time, local_time, printable

_DURATION: Final = re.compile(r"(\d{1,6})([smhdw])")
_UNITS_S: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
NEVER: Final = "never"
_WEEK: Final = "7d"


def parse_duration(text: str) -> int:
    """Seconds; 0 for never."""
    match = _DURATION.fullmatch(text)
    if match is None and text != NEVER:
        raise typer.BadParameter(f"{text} is no time such as 30m, 12h, 7d or {NEVER}")
    return int(match[1]) * _UNITS_S[match[2]] if match else 0


def _parse_role(text: str) -> Role:
    try:
        return Role[text.upper()]
    except KeyError:
        raise typer.BadParameter("must be member, admin or owner") from None


@command
async def invite(
    ctx: typer.Context,
    group: GroupArgument,
    *,
    expires_in_s: Annotated[
        int,
        typer.Option("--expires", parser=parse_duration, metavar="TIME", help=f"30m, 12h, 7d, or {NEVER}."),
    ] = _WEEK,  # type: ignore[assignment]  # what a user would type
    uses: Annotated[int, typer.Option(min=0, help="How many may come by it; 0: any number.")] = 0,
) -> None:
    """Make an invite link, as an admin. Whoever has it can join and read: hand it over where nobody else reads."""
    options = given(ctx)
    async with options.connected() as client:
        link = await (await the_group(client, group)).invite(expires_in_s=expires_in_s, max_uses=uses)
        options.terminal.done(link.text, link=link.text, invite_id=link.invite_id)


@command
async def members(ctx: typer.Context, group: GroupArgument) -> None:
    """List a group's members, as its verified log has them. Names are the relay's word."""
    options = given(ctx)
    async with options.connected() as client:
        found = sorted(await (await the_group(client, group)).members(), key=lambda member: (-member.role, member.name))
        options.terminal.document(
            [
                {
                    "user_id": member.user_id,
                    "username": member.name,
                    "role": member.role.name.lower(),
                    "is_bot": member.is_bot,
                    "is_verified": member.is_verified,
                }
                for member in found
            ]
        )
        options.terminal.table(
            ("member", "id", "role", "bot", "verified"),
            [(m.name, m.user_id.hex(), m.role.name.lower(), m.is_bot, m.is_verified) for m in found],
        )


@command
async def knocks(
    ctx: typer.Context,
    group: GroupArgument,
    *,
    new_code: Annotated[bool, typer.Option("--new-code", help="Give the group another standing code.")] = False,
) -> None:
    """Show a group's standing code, and who asks to be admitted, as an admin."""
    options = given(ctx)
    async with options.connected() as client:
        found = await the_group(client, group)
        code = await found.knock_code(renew=True) if new_code else (await found.wire.info()).invite_code
        waiting = await found.knocks()
        options.terminal.document(
            {
                "code": code,
                "knocks": [
                    {
                        "user_id": knock.user_id,
                        "username": knock.name,
                        "is_bot": knock.is_bot,
                        "requested_at": iso_time(knock.request.requested_at),
                        "fingerprint": knock.fingerprint,
                    }
                    for knock in waiting
                ],
            }
        )
        options.terminal.say(f"standing code: {printable(code or 'none, or you are no admin')}")
        for knock in waiting:
            when = local_time(knock.request.requested_at)
            options.terminal.say(f"{printable(knock.name)}  {short(knock.user_id)}  {when}\n    {knock.fingerprint}")


@command
async def admit(
    ctx: typer.Context,
    group: GroupArgument,
    user: UserArgument,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask: the fingerprint was compared.")] = False,
) -> None:
    """Let in somebody who knocks, as an admin. Compare their fingerprint with them first."""
    options = given(ctx)
    async with options.connected() as client:
        knock = await the_knock(await the_group(client, group), user)
        options.terminal.say(f"The fingerprint of {printable(knock.name)}:\n\n    {knock.fingerprint}\n")
        if not yes:
            typer.confirm("Do they read the same?", abort=True, err=True)
        await knock.admit()
        options.terminal.done(f"admitted {printable(knock.name)}", user_id=knock.user_id, fingerprint=knock.fingerprint)


@command
async def deny(ctx: typer.Context, group: GroupArgument, user: UserArgument) -> None:
    """Send away somebody who knocks, as an admin."""
    options = given(ctx)
    async with options.connected() as client:
        knock = await the_knock(await the_group(client, group), user)
        await knock.deny()
        options.terminal.done(f"denied {printable(knock.name)}", user_id=knock.user_id)


@command
async def remove(
    ctx: typer.Context,
    group: GroupArgument,
    user: UserArgument,
    *,
    ban: Annotated[bool, typer.Option("--ban", help="They can't come back.")] = False,
) -> None:
    """Remove a member of a lower role. The group gets a key that they don't know."""
    options = given(ctx)
    async with options.connected() as client:
        found = await the_group(client, group)
        member = await the_member(found, user)
        await found.remove(member.user_id, ban=ban)
        await found.ready()  # this client may be the one that makes the new key
        options.terminal.done(f"removed {printable(member.name)}", user_id=member.user_id, is_banned=ban)


@command
async def role(
    ctx: typer.Context,
    group: GroupArgument,
    user: UserArgument,
    to: Annotated[
        Role, typer.Argument(parser=_parse_role, metavar="ROLE", help="admin or member; owner: in your place.")
    ],
) -> None:
    """Make somebody an admin or a member, or the owner, as the owner."""
    options = given(ctx)
    async with options.connected() as client:
        found = await the_group(client, group)
        member = await the_member(found, user)
        await (found.transfer(member.user_id) if to == Role.OWNER else found.set_role(member.user_id, to))
        name = to.name.lower()
        options.terminal.done(f"{printable(member.name)} is {name} now", user_id=member.user_id, role=name)


COMMANDS: Final[dict[str, Callable[..., None]]] = {
    "invite": invite,
    "knocks": knocks,
    "admit": admit,
    "deny": deny,
    "members": members,
    "remove": remove,
    "role": role,
}

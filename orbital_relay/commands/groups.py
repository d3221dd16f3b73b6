"""`orbital-relay group`: what the operator can see of groups, which is no name and no content."""

import asyncio
from dataclasses import dataclass
from typing import Annotated
from uuid import UUID

import typer

from orbital_protocol.codes import History, Role
from orbital_relay.commands.database import CommandError, opened
from orbital_relay.commands.options import ConfigOption, JsonOption, SetOption, settings_from
from orbital_relay.commands.output import plain, print_json, print_table
from orbital_relay.config import Settings
from orbital_relay.store import operators as store
from orbital_relay.store.operators import Amount, GroupDetails, GroupRow, MemberRow

app = typer.Typer(no_args_is_help=True, help="Look at groups. Names and contents are encrypted, and shown nowhere.")


@dataclass(frozen=True, slots=True)
class Shown:
    """All that is known of a group."""

    group: GroupDetails
    holds: list[Amount]
    members: list[MemberRow]


@app.command("list")
def list_groups(*, file: ConfigOption = None, sets: SetOption = None, as_json: JsonOption = False) -> None:
    """List the groups: owner, members, events, key epoch."""
    groups = asyncio.run(_list(settings_from(file, sets)))
    if as_json:
        print_json(groups)
        return
    header = ("group", "owner", "members", "seq", "key epoch", "rekey due", "created", "last event")
    print_table(
        header,
        (
            (g.group_id, g.owner, g.members, g.seq, g.key_epoch, g.rekey_required, g.created_at, g.last_event_at)
            for g in groups
        ),
    )


async def _list(settings: Settings) -> list[GroupRow]:
    async with opened(settings) as connection:
        return await store.list_groups(connection)


@app.command()
def show(
    group: Annotated[UUID, typer.Argument(help="Id of the group.")],
    *,
    file: ConfigOption = None,
    sets: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a group: head, sizes, members; of a deleted one, what is left of it."""
    shown = asyncio.run(_show(settings_from(file, sets), group))
    if as_json:
        print_json(shown)
        return
    for label, value in _lines(shown):
        typer.echo(f"{label:<14} {value}")
    typer.echo()
    if shown.group.deleted_at is None:
        print_table(
            ("member", "user", "role", "bot", "joined"),
            ((m.username, m.user_id, Role(m.role).name.lower(), m.is_bot, m.joined_at) for m in shown.members),
        )


async def _show(settings: Settings, group: UUID) -> Shown:
    async with opened(settings) as connection:
        details = await store.find_group(connection, group.bytes)
        if details is None:
            raise CommandError(f"there is no group {group}, and never was")
        holds = await store.measure_group(connection, group.bytes)
        return Shown(details, holds, await store.list_members(connection, group.bytes))


def _lines(shown: Shown) -> list[tuple[str, object]]:
    group = shown.group
    lines: list[tuple[str, object]] = [("group", plain(group.group_id))]
    if group.deleted_at is not None:
        lines.append(("deleted", plain(group.deleted_at)))
    else:
        lines += [
            ("owner", group.owner),
            ("created", plain(group.created_at)),
            ("key epoch", f"{group.key_epoch}{', a rekey is due' if group.rekey_required else ''}"),
            ("history", "" if group.history is None else History(group.history).name.lower()),
            ("knocking", "on" if group.knocking else "off"),
            ("invite links", group.live_invites),
            ("knocks", group.join_requests),
            ("bans", group.bans),
            *((amount.of, f"{amount.count} ({amount.bytes} bytes)") for amount in shown.holds),
        ]
    return [*lines, ("head", f"seq {group.seq}, {group.head_hash.hex()}")]

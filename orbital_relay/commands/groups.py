"""`orbital-relay group`: what the operator can see of groups, which is no name and no content."""

import asyncio
import re
from dataclasses import dataclass
from typing import Annotated, Final
from uuid import UUID

import typer

from orbital_protocol.codes import History, Role
from orbital_relay.commands.database import CommandError, opened
from orbital_relay.commands.options import ConfigOption, JsonOption, SetOption, settings_from
from orbital_relay.commands.output import in_bytes, plain, print_json, print_table
from orbital_relay.config import Settings
from orbital_relay.store import operators as store
from orbital_relay.store.media import Quota
from orbital_relay.store.operators import Amount, GroupDetails, GroupRow, MemberRow

_SIZE: Final = re.compile(r"(\d+)\s*(?:([KMGTP])iB)?")
_UNITS: Final = {None: 0, "K": 10, "M": 20, "G": 30, "T": 40, "P": 50}
_BYTES_MAX: Final = 2**63 - 1
_FILES_MAX: Final = 2**31 - 1

GroupArgument = Annotated[UUID, typer.Argument(help="Id of the group.")]

app = typer.Typer(no_args_is_help=True, help="Look at groups. Names and contents are encrypted, and shown nowhere.")


@dataclass(frozen=True, slots=True)
class Shown:
    """All that is known of a group; of a deleted one there is no quota."""

    group: GroupDetails
    holds: list[Amount]
    quota: Quota | None
    members: list[MemberRow]


@app.command("list")
def list_groups(*, file: ConfigOption = None, sets: SetOption = None, as_json: JsonOption = False) -> None:
    """List the groups: owner, members, events, key epoch, files."""
    groups = asyncio.run(_list(settings_from(file, sets)))
    if as_json:
        print_json(groups)
        return
    header = ("group", "owner", "members", "seq", "key epoch", "rekey due", "files", "their bytes", "created")
    print_table(
        (*header, "last event"),
        (
            (
                *(g.group_id, g.owner, g.members, g.seq, g.key_epoch, g.rekey_required, g.files, g.file_bytes),
                *(g.created_at, g.last_event_at),
            )
            for g in groups
        ),
    )


async def _list(settings: Settings) -> list[GroupRow]:
    async with opened(settings) as connection:
        return await store.list_groups(connection)


@app.command()
def show(
    group: GroupArgument,
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
        return Shown(
            details,
            await store.measure_group(connection, group.bytes),
            await store.read_quota(connection, group.bytes),
            await store.list_members(connection, group.bytes),
        )


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
    if shown.quota is not None:
        lines.append(("quota", _used(shown.quota)))
    return [*lines, ("head", f"seq {group.seq}, {group.head_hash.hex()}")]


# ── quotas ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _parse_bytes(text: str) -> int:
    """A number of bytes, as `10737418240` or `10GiB`."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise typer.BadParameter(f"{text} is not a number of bytes, such as 10737418240, 500MiB or 10GiB")
    count = int(match[1]) << _UNITS[match[2]]
    if count > _BYTES_MAX:
        raise typer.BadParameter(f"{text} is more than {_BYTES_MAX} bytes")
    return count


@app.command()
def quota(  # noqa: PLR0913  one parameter a flag
    group: GroupArgument,
    *,
    max_bytes: Annotated[
        int | None, typer.Option(parser=_parse_bytes, metavar="BYTES", help="Set the limit: bytes, or 500MiB, 10GiB.")
    ] = None,
    max_files: Annotated[int | None, typer.Option(min=0, max=_FILES_MAX, help="Set the limit of files.")] = None,
    file: ConfigOption = None,
    sets: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a group's files use and may use, uploads under way included; or set what they may use."""
    found = asyncio.run(_quota(settings_from(file, sets), group, max_bytes, max_files))
    if as_json:
        print_json(found)
        return
    typer.echo(_used(found))
    if found.total_bytes > found.max_bytes or found.media_count > found.max_media_count:
        typer.echo("That is over the limit: nothing is deleted, but new uploads are refused until there is room.")


async def _quota(settings: Settings, group: UUID, max_bytes: int | None, max_files: int | None) -> Quota:
    async with opened(settings) as connection:
        if max_bytes is None and max_files is None:
            found = await store.read_quota(connection, group.bytes)
        else:
            found = await store.set_quota_limits(connection, group.bytes, max_bytes, max_files)
        if found is None:
            raise CommandError(f"there is no group {group}, or it was deleted")
        return found


def _used(quota: Quota) -> str:
    return (
        f"{quota.media_count} of {quota.max_media_count} files, "
        f"{in_bytes(quota.total_bytes)} of {in_bytes(quota.max_bytes)}"
    )

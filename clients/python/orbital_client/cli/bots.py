"""Bots: making one, which there are, bringing one into a group, another secret, and the end of one."""

import time
from collections.abc import Callable
from typing import Annotated, Any, Final

import typer

from orbital_client import AccountRefused, Client, Group, OrbitalError, Role
from orbital_client.bots import BotMade, add_bot, create_bot, renew_bot, revoke_bot, withdraw_bot
from orbital_client.bots.making import SCOPES
from orbital_client.cli.lookup import the_group
from orbital_client.cli.members import NEVER, parse_duration
from orbital_client.cli.options import CommandError, GroupArgument, Options, command, given, short
from orbital_client.cli.terminal import iso_time, local_time, printable
from orbital_client.store import StoredBot
from orbital_protocol.codes import Scope

_LINK_S: Final = 600

BotArgument = Annotated[str, typer.Argument(metavar="NAME", help="The bot's username.")]
ExpiresOption = Annotated[
    int,
    typer.Option("--expires", parser=parse_duration, metavar="TIME", help=f"When its secret ends: 90d, or {NEVER}."),
]


@command
async def create(  # noqa: PLR0913  options, each with a default that suits most
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its username: 3 to 50 of a-z, 0-9 and _.")],
    *,
    group: Annotated[
        list[str] | None, typer.Option(metavar="GROUP", help="Make it a member there, as an admin. Any number.")
    ] = None,
    scope: Annotated[
        list[Scope] | None, typer.Option(help="What it may do. Any number; otherwise read, post and signal.")
    ] = None,
    expires_in_s: ExpiresOption = NEVER,  # type: ignore[assignment]  # what a user would type
    registration_code: Annotated[str | None, typer.Option(help="From the relay's operator, where it asks for one.")] = (
        None
    ),
) -> None:
    """Make a bot, and print the one secret that it runs with. It is shown this once."""
    options = given(ctx)
    if scope and Scope.READ not in scope:
        raise typer.BadParameter("without read a bot can't even fetch its keys", param_hint="--scope")
    async with options.connected() as client:
        if client.store.bot(name) is not None:
            raise CommandError(f"there is a bot {name} already: orbital bot list")
        groups = {found.id: found for found in [await _group_of_admin(client, text) for text in group or ()]}
        try:
            made = await create_bot(
                _url(client),
                name,
                links=[await found.invite(expires_in_s=_LINK_S, max_uses=1) for found in groups.values()],
                scopes=scope or SCOPES,
                expires_in_s=expires_in_s,
                registration_code=registration_code,
                keep=lambda bot: _keep(client, bot),
            )
        except OrbitalError as error:
            if client.store.bot(name) is None:
                raise
            what = f"{name} has an account but no secret: orbital bot renew {name}, or revoke"
            raise CommandError(f"{error}; {what}") from None
        _show_secret(options, made, list(groups.values()))
        for found in groups.values():
            await _welcome(client, found, made.stored)


@command
async def list_bots(ctx: typer.Context) -> None:
    """List the bots that were made here: the groups of one's own that they are in, and when their secrets end."""
    options = given(ctx)
    async with options.connected() as client:
        for group in client.groups:
            await group.live()
            await group.named()
        found = [(bot, _groups_with(client, bot)) for bot in client.store.bots()]
        options.terminal.document([_facts(bot, groups) for bot, groups in found])
        options.terminal.table(
            ("bot", "id", "may", "groups", "expires"),
            [
                (
                    bot.username,
                    short(bot.user_id),
                    " ".join(bot.scopes),
                    ", ".join(group.name or short(group.id) for group in groups),
                    _expires(bot),
                )
                for bot, groups in found
            ],
        )


@command
async def add(ctx: typer.Context, name: BotArgument, group: GroupArgument) -> None:
    """Make a bot a member of another group, as an admin. If it is running, it notices by itself."""
    options = given(ctx)
    async with options.connected() as client:
        bot = _the_bot(client, name)
        found = await _group_of_admin(client, group)
        if found.has_member(bot.user_id):
            raise CommandError(f"{name} is in this group already")
        await add_bot(_url(client), bot, await found.invite(expires_in_s=_LINK_S, max_uses=1))
        await _welcome(client, found, bot)
        options.terminal.done(
            f"{printable(name)} is in {printable(found.name)} now",
            username=name,
            user_id=bot.user_id,
            group_id=found.id,
        )


@command
async def renew(ctx: typer.Context, name: BotArgument, *, expires_in_s: ExpiresOption = NEVER) -> None:  # type: ignore[assignment]
    """Give a bot another secret, shown this once. The one before it is dead at once."""
    options = given(ctx)
    async with options.connected() as client:
        bot = _the_bot(client, name)
        made = await renew_bot(_url(client), bot, expires_in_s=expires_in_s, keep=lambda new: _keep(client, new))
        _show_secret(options, made, _groups_with(client, bot))


@command
async def revoke(ctx: typer.Context, name: BotArgument) -> None:
    """End a bot: its secret is dead at once, and it is out of its groups, which get new keys. What it wrote stays."""
    options = given(ctx)
    async with options.connected() as client:
        bot = _the_bot(client, name)
        try:
            groups = set(await revoke_bot(_url(client), bot))
        except AccountRefused:
            raise CommandError(f"the relay doesn't let {name} in any more: remove it from its groups") from None
        removed = [group for group in client.groups if group.id in groups and await _removed(group, bot)]
        stuck = await withdraw_bot(_url(client), bot) if groups - {group.id for group in removed} else []
        if stuck:
            where = ", ".join(short(group_id) for group_id in stuck)
            raise CommandError(
                f"the secret of {name} is dead, but it can't leave {where}: delete or transfer that first"
            )
        for group in client.groups:
            if group.id in groups:
                await _rekeyed(group, bot)
        client.store.forget_bot(name)
        client.store.commit(durable=True)
        options.terminal.done(
            f"revoked {printable(name)}: its secret is dead, and it is in no group any more",
            username=name,
            user_id=bot.user_id,
            groups=sorted(groups),
        )


async def _removed(group: Group, bot: StoredBot) -> bool:
    """Remove a bot from a group, if that can be; otherwise it is to leave by itself."""
    try:
        await group.live()
        role = next((member.role for member in await group.members() if member.user_id == bot.user_id), None)
        if role is None or group.role is None or group.role < Role.ADMIN or group.role <= role:
            return False
        await group.remove(bot.user_id)
    except OrbitalError:
        return False
    return True


async def _rekeyed(group: Group, bot: StoredBot) -> None:
    """Wait until a group has a key that the bot doesn't know: this client may be the one that makes it."""
    await _until(group, lambda: not group.has_member(bot.user_id))
    await group.ready()


# ── what they have in common ────────────────────────────────────────────────────────────────────────────────────────


def _url(client: Client) -> str:
    account = client.store.account()
    return account.url if account else ""


def _keep(client: Client, bot: StoredBot) -> None:
    client.store.put_bot(bot)
    client.store.commit(durable=True)


def _the_bot(client: Client, name: str) -> StoredBot:
    bot = client.store.bot(name)
    if bot is None:
        raise CommandError(f"no bot {name!r} was made here: orbital bot list")
    return bot


async def _group_of_admin(client: Client, text: str) -> Group:
    group = await the_group(client, text)
    if group.role is None or group.role < Role.ADMIN:
        raise CommandError(f"only an admin brings a bot into {printable(group.name)}")
    return group


async def _until(group: Group, holds: Callable[[], bool]) -> None:
    """Wait until something holds that an event of the group brings."""
    before = group.cursor
    if not holds():
        async for _ in group.events(before):
            if holds():
                return


async def _welcome(client: Client, group: Group, bot: StoredBot) -> None:
    """Wait until the bot is in the group, know its keys from then on, and leave the group with a key in force."""
    await _until(group, lambda: group.has_member(bot.user_id))
    if client.verify(bot.user_id).fingerprint != bot.fingerprint:
        raise CommandError(f"the relay has let somebody else into {printable(group.name)} as {bot.username}")
    client.mark_verified(bot.user_id)
    await group.ready()


def _show_secret(options: Options, made: BotMade, groups: list[Group]) -> None:
    if not options.terminal.as_json:
        options.terminal.note(f"The secret of {made.stored.username}, shown this once: whoever has it is the bot.")
    options.terminal.say(made.secret.text)
    options.terminal.document(_facts(made.stored, groups) | {"secret": made.secret.text})


def _groups_with(client: Client, bot: StoredBot) -> list[Group]:
    return [group for group in client.groups if group.has_member(bot.user_id)]


def _facts(bot: StoredBot, groups: list[Group]) -> dict[str, Any]:
    return {
        "username": bot.username,
        "user_id": bot.user_id,
        "fingerprint": bot.fingerprint,
        "scopes": bot.scopes,
        "expires_at": iso_time(bot.expires_at) if bot.expires_at else None,
        "is_expired": _is_expired(bot),
        "groups": [{"id": group.id, "name": group.name} for group in groups],
    }


def _is_expired(bot: StoredBot) -> bool:
    return 0 < bot.expires_at <= time.time_ns() // 1000


def _expires(bot: StoredBot) -> str:
    when = local_time(bot.expires_at) if bot.expires_at else NEVER
    return f"{when} (over)" if _is_expired(bot) else when


COMMANDS: Final[dict[str, Callable[..., None]]] = {
    "create": create,
    "list": list_bots,
    "add": add,
    "renew": renew,
    "revoke": revoke,
}

"""A bot's account, its token, and their end."""

import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

from msgspec.structs import replace

from orbital_client.bots.secret import BotSecret
from orbital_client.client import Client
from orbital_client.errors import NotFound, OrbitalError
from orbital_client.identity import uuid7
from orbital_client.links import InviteLink
from orbital_client.store import StoredBot
from orbital_protocol.codes import Scope
from orbital_protocol.frames import GroupList, GroupListOk, Ok, TokenCreate, TokenCreateOk, TokenRevoke

SCOPES: Final = (Scope.READ, Scope.POST, Scope.SIGNAL)
"""What a bot may do unless something else is asked for: neither change groups nor its account."""

Keep = Callable[[StoredBot], None]
"""Keeps what a bot can be ended with, before it is used."""

_MICROSECONDS: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class BotMade:
    """A bot with a new token. `secret` is shown once, and is all that it needs to run; `stored` is what ends it."""

    stored: StoredBot
    secret: BotSecret = field(repr=False)

    @property
    def user_id(self) -> bytes:
        return self.stored.user_id


def _forget(_bot: StoredBot) -> None:
    pass


async def create_bot(  # noqa: PLR0913  options, each with a default that suits most
    url: str,
    username: str,
    *,
    links: Iterable[InviteLink | str] = (),
    scopes: Iterable[Scope] = SCOPES,
    expires_in_s: int = 0,
    registration_code: str | None = None,
    keep: Keep = _forget,
) -> BotMade:
    """Make a bot: an account with keys of its own, a member of the groups behind the links, and a token for it.

    The token may do what `scopes` say, in every group that the bot is in, for so long (0: until it is revoked). `keep`
    is called as soon as there is an account, so that it can be ended, whatever fails after that.
    """
    async with Client(url) as client:
        password, backup_key = await client.register_bot(username, registration_code=registration_code)
        bot = StoredBot(
            username=username,
            user_id=client.user_id,
            fingerprint=client.fingerprint,
            password=password,
            backup_key=backup_key,
            token_id=uuid7(),
            scopes=tuple(str(scope) for scope in scopes),
            expires_at=_expiry(expires_in_s),
        )
        keep(bot)
        for link in links:
            await client.join(link)
        made = await _with_token(client, bot)
        await client.logout()
        return made


async def renew_bot(url: str, bot: StoredBot, *, expires_in_s: int = 0, keep: Keep = _forget) -> BotMade:
    """Give a bot another token; the one before it is dead at once, and whoever uses it is cut off."""
    new = replace(bot, token_id=uuid7(), expires_at=_expiry(expires_in_s))
    async with _as_bot(url, bot) as client:
        await _revoke(client, bot)
        keep(new)
        return await _with_token(client, new)


async def add_bot(url: str, bot: StoredBot, link: InviteLink | str) -> bytes:
    """Make a bot a member of the group behind a link; return the group's id. Its token is good there too."""
    async with _as_bot(url, bot) as client:
        return (await client.join(link)).id


async def revoke_bot(url: str, bot: StoredBot) -> list[bytes]:
    """Make a bot's token worthless: it is cut off at once. Its account and what it wrote stay.

    Returns the groups that the bot is still in: remove it from them, or have it leave (`withdraw_bot`).
    """
    async with Client(url) as client:
        await client.wire.login(bot.username, bot.password)
        await _revoke(client, bot)
        groups = (await client.wire.request(GroupList(id=0), GroupListOk)).groups
        await client.wire.logout()
        return [head.group_id for head in groups]


async def withdraw_bot(url: str, bot: StoredBot) -> list[bytes]:
    """Have a bot leave all groups; return those that it can't leave, such as one that it owns.

    A group that was left gets a new key from the first member's client that is online.
    """
    async with _as_bot(url, bot) as client:
        left = []
        for group in client.groups:
            with suppress(OrbitalError):
                await group.leave()
                left.append(group.id)
        return [group.id for group in client.groups if group.id not in left]


@asynccontextmanager
async def _as_bot(url: str, bot: StoredBot) -> AsyncIterator[Client]:
    """A client that acts as the bot, with all rights of its account."""
    async with Client(url) as client:
        await client.login_bot(bot.username, bot.password, bot.backup_key)
        yield client
        await client.logout()


async def _with_token(client: Client, bot: StoredBot) -> BotMade:
    request = TokenCreate(
        id=0,
        token_id=bot.token_id,
        name=bot.username,
        scopes=list(bot.scopes),
        expires_at=bot.expires_at or None,
    )
    answer = await client.wire.request(request, TokenCreateOk)
    return BotMade(bot, BotSecret(answer.token, bot.backup_key))


async def _revoke(client: Client, bot: StoredBot) -> None:
    with suppress(NotFound):  # it never came to be, has expired, or was revoked before
        await client.wire.request(TokenRevoke(id=0, token_id=bot.token_id), Ok)


def _expiry(expires_in_s: int) -> int:
    return time.time_ns() // 1000 + expires_in_s * _MICROSECONDS if expires_in_s else 0

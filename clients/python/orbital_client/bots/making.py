"""A bot's account, its token, and their end."""

from dataclasses import dataclass, field

from orbital_client.bots.secret import BotSecret
from orbital_client.client import Client
from orbital_client.identity import uuid7
from orbital_client.links import InviteLink
from orbital_client.store import StoredBot
from orbital_protocol.codes import Scope
from orbital_protocol.frames import Ok, TokenCreate, TokenCreateOk, TokenRevoke

SCOPES = (Scope.READ, Scope.POST, Scope.SIGNAL)
"""What a bot may do unless more is asked for: neither change groups nor its account."""


@dataclass(frozen=True, slots=True)
class BotMade:
    """A new bot. `secret` is shown once, and is all that it needs to run; `stored` is what ends it."""

    username: str
    user_id: bytes
    fingerprint: str
    secret: BotSecret = field(repr=False)
    stored: StoredBot = field(repr=False)


async def create_bot(  # noqa: PLR0913  options, each with a default that suits most
    url: str,
    username: str,
    *,
    links: tuple[InviteLink | str, ...] = (),
    scopes: tuple[Scope, ...] = SCOPES,
    only_these_groups: bool = True,
    registration_code: str | None = None,
) -> BotMade:
    """Make a bot: an account with keys of its own, a member of the groups behind the links.

    Its token may do what `scopes` say, in the groups of the links alone unless `only_these_groups` is False.
    """
    async with Client(url) as client:
        password, backup_key = await client.register_bot(username, registration_code=registration_code)
        groups = [await client.join(link) for link in links]
        request = TokenCreate(
            id=0,
            token_id=uuid7(),
            name=username,
            scopes=[str(scope) for scope in scopes],
            groups=[group.id for group in groups] if only_these_groups else [],
        )
        answer = await client.wire.request(request, TokenCreateOk)
        return BotMade(
            username=username,
            user_id=client.user_id,
            fingerprint=client.fingerprint,
            secret=BotSecret(answer.token, backup_key),
            stored=StoredBot(username=username, password=password, token_id=answer.token_id, backup_key=backup_key),
        )


async def revoke_bot(url: str, bot: StoredBot) -> None:
    """Make a bot's token worthless: it is cut off at once. Its account and what it wrote stay."""
    async with Client(url) as client:
        await client.wire.login(bot.username, bot.password)
        await client.wire.request(TokenRevoke(id=0, token_id=bot.token_id), Ok)
        await client.wire.logout()

"""Tokens for bots: long-lived, limited to scopes and groups, revocable. They authenticate; they decrypt nothing."""

from functools import partial

from orbital_protocol import ZERO_ID, frames
from orbital_protocol.codes import CloseCode, Scope
from orbital_protocol.frames import ErrorDetails, Limits, Ok, TokenCreateOk, TokenListOk
from orbital_relay import hints
from orbital_relay.caller import Caller, Clock, Peer, require_caller
from orbital_relay.credentials import BotToken, secret_hash
from orbital_relay.errors import BadArgument, Forbidden, IdConflict, LimitExceeded, NotFound, Unauthenticated
from orbital_relay.handlers.sign_in import check_text
from orbital_relay.store import accounts, live, sessions
from orbital_relay.store.pool import Connection, Database
from orbital_relay.store.retries import retried
from orbital_relay.store.sessions import TokenRow


class Tokens:
    """Requests about the caller's bot tokens."""

    def __init__(self, database: Database, limits: Limits, now: Clock, relay_hex: str) -> None:
        self._database = database
        self._limits = limits
        self._now = now
        self._relay_hex = relay_hex

    async def token_create(self, peer: Peer, request: frames.TokenCreate) -> TokenCreateOk:
        """Make a token; its secret is in the answer and nowhere else.

        The same again makes another secret, as long as nobody has used the token: the first answer may be lost.
        """
        caller = require_caller(peer)
        wanted = self._wanted(caller, request)
        token = BotToken.new(request.token_id)
        await retried(partial(self._create, caller, token, wanted))
        return TokenCreateOk(id=request.id, token_id=request.token_id, token=str(token))

    def _wanted(self, caller: Caller, request: frames.TokenCreate) -> TokenRow:
        """The token as it is asked for, or BadArgument."""
        if request.token_id == ZERO_ID:
            raise _bad("token_id", "must not be the zero id")
        scopes = sorted(set(request.scopes))
        if not scopes or not set(Scope).issuperset(scopes):
            raise _bad("scopes", f"must be some of {', '.join(Scope)}")
        if request.expires_at is not None and request.expires_at <= self._now():
            raise _bad("expires_at", "must not be past")
        return TokenRow(
            user_id=caller.user_id,
            name=check_text("name", request.name),
            scopes=tuple(scopes),
            groups=tuple(sorted(set(request.groups))),
            expires_at=request.expires_at,
            used=False,
        )

    async def _create(self, caller: Caller, token: BotToken, wanted: TokenRow) -> None:
        async with self._database.transaction() as connection:
            if await accounts.lock(connection, caller.user_id) is None:
                raise Unauthenticated("The account is gone.")
            # Under its lock: a session that is being ended must not leave anything behind that opens the account.
            session = await sessions.lock(connection, caller.session_id)
            if session is None:
                raise Forbidden("A token can't make tokens: it could give away more than it may do.")
            if not session.is_live(self._now()):
                raise Unauthenticated("The session has ended.")
            if await sessions.exists(connection, token.token_id):
                raise IdConflict  # it would pass for that session
            earlier = await sessions.find_token(connection, token.token_id)
            if earlier is None:
                await self._insert(connection, token, wanted)
            elif earlier != wanted or not await sessions.replace_secret(
                connection, token.token_id, secret_hash(token.secret)
            ):
                raise IdConflict

    async def _insert(self, connection: Connection, token: BotToken, wanted: TokenRow) -> None:
        now, limit = self._now(), self._limits.max_tokens_per_user
        await sessions.delete_expired_tokens(connection, wanted.user_id, now)
        if await sessions.count_tokens(connection, wanted.user_id) >= limit:
            raise LimitExceeded("The user has as many tokens as may be.", details=ErrorDetails(limit=limit))
        await sessions.insert_token(connection, token.token_id, wanted, secret_hash(token.secret), now)

    async def token_list(self, peer: Peer, request: frames.TokenList) -> TokenListOk:
        """The caller's tokens, without their secrets."""
        caller = require_caller(peer)
        async with self._database.connection() as connection:
            return TokenListOk(id=request.id, tokens=await sessions.list_tokens(connection, caller.user_id))

    async def token_revoke(self, peer: Peer, request: frames.TokenRevoke) -> Ok:
        """Delete one of the caller's tokens, and close its connections; this one, if it is its own, last."""
        caller = require_caller(peer)
        own = request.token_id == caller.session_id
        async with self._database.transaction() as connection:
            if not await sessions.delete_token(connection, request.token_id, caller.user_id):
                raise NotFound
            if not own:
                revoked = hints.Revoke("token", request.token_id, CloseCode.REVOKED)
                await live.notify(connection, hints.revoke(self._relay_hex, revoked))
        if own:
            peer.close_soon(CloseCode.REVOKED)
        return Ok(id=request.id)


def _bad(field: str, what: str) -> BadArgument:
    return BadArgument(f"{field} {what}.", details=ErrorDetails(field=field))

"""Sessions: what becomes of a login. A connection serves one; a session may have several connections."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final, TypeAlias

from orbital_protocol import frames
from orbital_protocol.codes import CloseCode
from orbital_protocol.frames import AuthenticateOk, Ok, SessionListOk, SessionOk
from orbital_relay import logs
from orbital_relay.batcher import Batcher
from orbital_relay.caller import Caller, Clock, Peer, require_caller
from orbital_relay.credentials import (
    Access,
    BotToken,
    Family,
    Grant,
    Refreshing,
    RefreshToken,
    judge,
    secret_hash,
)
from orbital_relay.errors import BadArgument, CredentialsInvalid, NotFound
from orbital_relay.handlers.sign_in import SignIn, admit, check_same_user, session_ok
from orbital_relay.store import sessions
from orbital_relay.store.pool import Connection, Database
from orbital_relay.store.sessions import ClaimedSession, SessionRow

_NEVER: Final = 2**53 - 1
_STATEMENTS_AT_ONCE: Final = 2
_CLAIMS_A_STATEMENT: Final = 16

logger = logs.get()

LiveSessions: TypeAlias = Batcher[ClaimedSession, list[frames.GroupHead] | None]
"""Who comes back with an access token, looked up together: the groups of a live session's user."""


def live_sessions(database: Database, now: Clock) -> LiveSessions:
    """Look up sessions, once it runs."""
    return Batcher(
        database,
        partial(sessions.authenticate, now=now),
        at_once=_STATEMENTS_AT_ONCE,
        max_size=_CLAIMS_A_STATEMENT,
    )


class Sessions:
    """Requests about sessions. `hint` tells every relay something, soon and perhaps."""

    def __init__(self, sign_in: SignIn, *, live: LiveSessions, hint: Callable[[str], None]) -> None:
        self._sign_in = sign_in
        self._database = sign_in.database
        self._hint = hint
        self._live = live

    async def authenticate(self, peer: Peer, request: frames.Authenticate) -> AuthenticateOk:
        """Make the connection a session's, or a bot token's, and say where the caller's groups stand.

        Raise Unauthenticated or TokenExpired where a refresh may help, CredentialsInvalid where it can't.
        """
        with _hopeless(peer):
            if request.access_token.startswith(BotToken.PREFIX):
                return await self._authenticate_bot(peer, request, BotToken.parse(request.access_token))
            return await self._authenticate(peer, request)

    async def _authenticate(self, peer: Peer, request: frames.Authenticate) -> AuthenticateOk:
        access = self._sign_in.mint.access.verify(request.access_token, self._sign_in.now())
        check_same_user(peer, access.user_id)
        heads = await self._live.ask(ClaimedSession(access.session_id, access.user_id, access.token_epoch))
        if heads is None:
            self._refused(peer, access.user_id, "session_ended")
            raise CredentialsInvalid("The session has ended.")
        admit(peer, _caller_of(access), "access_token")
        return _authenticate_ok(request, access.user_id, access.session_id, access.expires_at, heads)

    async def _authenticate_bot(self, peer: Peer, request: frames.Authenticate, token: BotToken) -> AuthenticateOk:
        async with self._database.connection() as connection:
            found = await sessions.authenticate_bot(
                connection, token.token_id, secret_hash(token.secret), self._sign_in.now()
            )
        if found is None:
            self._refused(peer, None, "bot_token")
            raise CredentialsInvalid
        bot, heads = found
        check_same_user(peer, bot.user_id)
        if peer.caller is not None and peer.caller.session_id != token.token_id:
            # What the connection has subscribed to may be more than the token reaches, and outlive what reached it.
            raise BadArgument("This connection serves a session: open one of its own for a token.")
        caller = Caller(
            user_id=bot.user_id,
            session_id=token.token_id,
            token_epoch=bot.token_epoch,
            expires_at=_NEVER if bot.expires_at is None else bot.expires_at,
            scopes=bot.scopes,
            groups=bot.groups or None,
        )
        admit(peer, caller, "bot_token")
        return _authenticate_ok(request, caller.user_id, caller.session_id, caller.expires_at, heads)

    async def refresh(self, peer: Peer, request: frames.Refresh) -> SessionOk:
        """Exchange a refresh token for a new pair, and make the connection that session's."""
        with _hopeless(peer):
            token = RefreshToken.parse(request.refresh_token)
            async with self._database.transaction() as connection:
                grant = await self._exchange(connection, peer, token)
            if grant is None:
                raise CredentialsInvalid
        self._sign_in.serve(peer, grant, "refresh_token")
        return session_ok(request.id, grant)

    async def _exchange(self, connection: Connection, peer: Peer, token: RefreshToken) -> Grant | None:
        """Decide under the session's lock. None, and not an error, where what was decided has to be committed."""
        row = await sessions.lock(connection, token.session_id)
        now = self._sign_in.now()
        if row is None or not row.is_live(now):
            self._refused(peer, None if row is None else row.user_id, "session_ended")
            return None
        match judge(token, Family(row.family_hash, row.refresh_hash, row.previous_refresh_hash)):
            case Refreshing.ROTATE:
                return await self._rotate(connection, peer, row, token, previous=row.refresh_hash)
            case Refreshing.REPLACE:
                return await self._rotate(connection, peer, row, token, previous=secret_hash(token.secret))
            case Refreshing.REUSE:
                await self._end(connection, token.session_id, row.user_id)
                logger.warning("token.reuse", session=token.session_id, user=row.user_id, address=peer.address)
            case Refreshing.REFUSE:
                self._refused(peer, row.user_id, "refresh_token")
        return None

    async def _rotate(
        self, connection: Connection, peer: Peer, row: SessionRow, token: RefreshToken, *, previous: bytes
    ) -> Grant:
        check_same_user(peer, row.user_id)
        now = self._sign_in.now()
        grant = self._sign_in.mint.grant(row.user_id, row.token_epoch, token.successor(), now)
        await sessions.set_refresh_hashes(
            connection,
            token.session_id,
            newest=secret_hash(grant.refresh_token.secret),
            previous=previous,
            now=now,
            expires_at=grant.refresh_expires_at,
        )
        return grant

    def _refused(self, peer: Peer, user_id: bytes | None, reason: str) -> None:
        logger.warning("login.failed", connection=peer.connection_id, address=peer.address, reason=reason, user=user_id)

    # ── the ways out ────────────────────────────────────────────────────────────────────────────────────────────────

    async def logout(self, peer: Peer, request: frames.Logout) -> Ok:
        """End the caller's session, this connection last. Of a bot token only this connection ends."""
        caller = require_caller(peer)
        async with self._database.connection() as connection:
            ended = await sessions.end(connection, caller.session_id, caller.user_id, self._sign_in.now())
        self._leave(peer, caller, announce=ended)
        return Ok(id=request.id)

    async def session_list(self, peer: Peer, request: frames.SessionList) -> SessionListOk:
        """The caller's live sessions."""
        caller = require_caller(peer)
        async with self._database.connection() as connection:
            found = await sessions.list_live(connection, caller.user_id, caller.session_id, self._sign_in.now())
        return SessionListOk(id=request.id, sessions=found)

    async def session_revoke(self, peer: Peer, request: frames.SessionRevoke) -> Ok:
        """End one of the caller's sessions, which may be this one."""
        caller = require_caller(peer)
        own = request.session_id == caller.session_id
        async with self._database.transaction() as connection:
            if not await sessions.end(connection, request.session_id, caller.user_id, self._sign_in.now()):
                raise NotFound
            if not own:
                await self._sign_in.announce_ended(connection, [request.session_id])
        if own:
            self._leave(peer, caller, announce=True)
        return Ok(id=request.id)

    async def _end(self, connection: Connection, session_id: bytes, user_id: bytes) -> None:
        """End a session and close its connections."""
        await sessions.end(connection, session_id, user_id, self._sign_in.now())
        await self._sign_in.announce_ended(connection, [session_id])
        logger.info("session.ended", session=session_id, user=user_id, reason="token_reuse")

    def _leave(self, peer: Peer, caller: Caller, *, announce: bool) -> None:
        """Close this connection once it has its answer; only then tell the relays of the session's other ones."""
        if announce:
            peer.after_answer(lambda: self._hint(self._sign_in.ended(caller.session_id)))
        peer.close_soon(CloseCode.REVOKED)
        logger.info("session.ended", session=caller.session_id, user=caller.user_id, reason="logout")


@contextmanager
def _hopeless(peer: Peer) -> Iterator[None]:
    """A stranger whose credentials are no good has nothing left to send but a password: answer, then close."""
    try:
        yield
    except CredentialsInvalid:
        if peer.caller is None:
            peer.close_soon(CloseCode.AUTH_FAILED)
        raise


def _caller_of(access: Access) -> Caller:
    return Caller(access.user_id, access.session_id, access.token_epoch, access.expires_at)


def _authenticate_ok(
    request: frames.Authenticate, user_id: bytes, session_id: bytes, expires_at: int, groups: list[frames.GroupHead]
) -> AuthenticateOk:
    return AuthenticateOk(
        id=request.id, user_id=user_id, session_id=session_id, access_expires_at=expires_at, groups=groups
    )

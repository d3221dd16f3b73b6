"""What every way into an account shares: passwords are checked, sessions begun and ended, connections told whose."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from os import urandom
from typing import Final

from orbital_protocol.codes import CloseCode
from orbital_protocol.frames import ErrorDetails, Limits, SessionOk
from orbital_relay import hints, logs
from orbital_relay.caller import Caller, Clock, Peer
from orbital_relay.credentials import Grant, Mint, Passwords, RefreshToken, check_password, secret_hash
from orbital_relay.errors import BadArgument, CredentialsInvalid, Overloaded
from orbital_relay.limits import Attempt, LoginBackoff
from orbital_relay.store import accounts, live, sessions
from orbital_relay.store.accounts import Account
from orbital_relay.store.pool import Connection, Database
from orbital_relay.store.retries import retried

_NAME_MAX: Final = 50

logger = logs.get()


def check_text(field: str, text: str) -> str:
    """Return a text for people; raise BadArgument for what the database can't keep."""
    if "\0" in text:
        raise BadArgument(f"{field} has a NUL.", details=ErrorDetails(field=field))
    return text


def check_same_user(peer: Peer, user_id: bytes) -> None:
    """A connection serves one user as long as it lives."""
    if peer.caller is not None and peer.caller.user_id != user_id:
        raise BadArgument("This connection is another user's: open one of your own.")


def session_ok(request_id: int, grant: Grant) -> SessionOk:
    """The answer that hands over a session's tokens."""
    return SessionOk(
        id=request_id,
        user_id=grant.user_id,
        session_id=grant.session_id,
        access_token=grant.access_token,
        access_expires_at=grant.access_expires_at,
        refresh_token=str(grant.refresh_token),
        refresh_expires_at=grant.refresh_expires_at,
    )


@dataclass(frozen=True, slots=True)
class SignIn:
    """The parts that this takes, and what is done with them."""

    database: Database
    passwords: Passwords
    mint: Mint
    backoff: LoginBackoff
    limits: Limits
    now: Clock
    relay_hex: str

    # ── passwords ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def check(self, peer: Peer, username: str, password: str) -> Account:
        """Return the account that name and password open.

        Raise CredentialsInvalid for an unknown name, a wrong password and a disabled account, which all take the same
        work, and RateLimited after too many of them.
        """
        raw = check_password(password)
        async with self.database.connection() as connection:
            attempt = await self.backoff.begin(connection, username, peer.address)
            known = len(username) <= _NAME_MAX and "\0" not in username
            account = await accounts.find_by_name(connection, username if known else "")
        try:
            matches = await self.passwords.verify(raw, None if account is None else account.password_hash)
        except Overloaded:
            async with self.database.connection() as connection:
                await self.backoff.withdrawn(connection, attempt)
            raise
        if account is None or not matches or account.disabled:
            await self._failed(peer, attempt, account)
            raise CredentialsInvalid
        async with self.database.connection() as connection:
            await self.backoff.succeeded(connection, attempt)
        return account

    async def _failed(self, peer: Peer, attempt: Attempt, account: Account | None) -> None:
        async with self.database.connection() as connection:
            await self.backoff.failed(connection, attempt)
        reason = "unknown_user" if account is None else "disabled" if account.disabled else "wrong_password"
        user = None if account is None else account.user_id
        logger.warning("login.failed", connection=peer.connection_id, address=peer.address, reason=reason, user=user)

    # ── sessions ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def lock_checked(self, connection: Connection, account: Account) -> None:
        """Lock an account whose password was just checked; raise CredentialsInvalid if it isn't the same any more."""
        locked = await accounts.lock(connection, account.user_id)
        if locked is None or locked.disabled or locked.token_epoch != account.token_epoch:
            raise CredentialsInvalid

    async def open(self, peer: Peer, account: Account, device_name: str, method: str) -> Grant:
        """Begin a session of an account that was just checked or made, and make the connection that session's."""
        grant = await retried(partial(self._open, account, device_name))
        self.serve(peer, grant, method)
        return grant

    async def _open(self, account: Account, device_name: str) -> Grant:
        async with self.database.transaction() as connection:
            await self.lock_checked(connection, account)
            keep = self.limits.max_sessions_per_user - 1
            grant, ended = await self.begin(connection, account.user_id, account.token_epoch, device_name, keep=keep)
            await self.announce_ended(connection, ended)
        return grant

    async def begin(
        self, connection: Connection, user_id: bytes, token_epoch: int, device_name: str, *, keep: int
    ) -> tuple[Grant, list[bytes]]:
        """Begin a session of a user whose account this transaction has locked.

        Return its tokens and the sessions that ended for it: all but the `keep` that were used last.
        """
        now = self.now()
        token = RefreshToken.first(urandom(16))
        grant = self.mint.grant(user_id, token_epoch, token, now)
        ended = await sessions.end_surplus(connection, user_id, keep, now)
        new = sessions.NewSession(
            session_id=grant.session_id,
            user_id=user_id,
            device_name=device_name,
            token_epoch=token_epoch,
            family_hash=secret_hash(token.family),
            refresh_hash=secret_hash(token.secret),
            expires_at=grant.refresh_expires_at,
        )
        await sessions.insert(connection, new, now)
        return grant, ended

    async def announce_ended(self, connection: Connection, session_ids: Sequence[bytes]) -> None:
        """Close the connections of ended sessions on every relay, once this transaction commits."""
        if session_ids:
            await live.notify_many(connection, [self.ended(session_id) for session_id in session_ids])

    def ended(self, session_id: bytes) -> str:
        """The hint that a session has ended."""
        return hints.revoke(self.relay_hex, hints.Revoke("session", session_id, CloseCode.REVOKED))

    def serve(self, peer: Peer, grant: Grant, method: str) -> None:
        """From now on the connection is this session's."""
        caller = Caller(
            user_id=grant.user_id,
            session_id=grant.session_id,
            token_epoch=grant.token_epoch,
            expires_at=grant.access_expires_at,
        )
        admit(peer, caller, method)


def admit(peer: Peer, caller: Caller, method: str) -> None:
    """From now on the connection is this caller's; `method` says by what they showed it."""
    peer.authenticate(caller)
    logger.info(
        "session.authenticated",
        connection=peer.connection_id,
        session=caller.session_id,
        user=caller.user_id,
        address=peer.address,
        method=method,
    )

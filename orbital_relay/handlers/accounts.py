"""Accounts: registration, login, passwords, keys, backups, deletion. `sessions` has what becomes of a login."""

import hmac
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from orbital_protocol import ZERO_ID, frames
from orbital_protocol.codes import CloseCode, Kind
from orbital_protocol.frames import BackupGetOk, ErrorDetails, KeyReplaceOk, Ok, SessionOk, UserGetOk
from orbital_relay import hints, keys, logs
from orbital_relay.caller import Caller, Peer, require_caller
from orbital_relay.credentials import Grant, check_new_password
from orbital_relay.errors import (
    BadArgument,
    CredentialsInvalid,
    IdConflict,
    NotFound,
    Overloaded,
    OwnsGroups,
    RateLimited,
    RegistrationClosed,
    StaleBase,
    TooLarge,
    Unauthenticated,
    UsernameTaken,
)
from orbital_relay.fanout import Publisher
from orbital_relay.handlers.key_replacement import KeyReplacement
from orbital_relay.handlers.sign_in import SignIn, check_same_user, check_text, session_ok
from orbital_relay.limits import KeyedBuckets, network_of
from orbital_relay.store import accounts, sessions
from orbital_relay.store.accounts import Account, Backup, NewAccount, OwnsGroupsError
from orbital_relay.store.pool import Connection
from orbital_relay.store.retries import retried

logger = logs.get()


@dataclass(frozen=True, slots=True)
class Registration:
    """Who may register, and how many from one address (None: any number)."""

    mode: Literal["open", "code", "closed"]
    code: str | None = field(default=None, repr=False)
    by_address: KeyedBuckets | None = None

    def check(self, address: str, code: str | None) -> None:
        """Count a try; raise RateLimited or RegistrationClosed where it is one too many, or lacks the right code."""
        if self.mode == "closed":
            raise RegistrationClosed
        if self.by_address is not None and (wait_ms := self.by_address.take(network_of(address))):
            raise RateLimited("Too many registrations from this address.", retry_after_ms=wait_ms)
        if self.mode == "code" and not hmac.compare_digest((code or "").encode(), (self.code or "").encode()):
            raise RegistrationClosed


class Accounts:
    """Requests about an account. `hint` tells every relay something, soon and perhaps."""

    def __init__(
        self,
        sign_in: SignIn,
        registration: Registration,
        key_replacement: KeyReplacement,
        *,
        publisher: Publisher,
        hint: Callable[[str], None],
    ) -> None:
        self._sign_in = sign_in
        self._database = sign_in.database
        self._registration = registration
        self._key_replacement = key_replacement
        self._publisher = publisher
        self._hint = hint

    # ── ways in ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def register(self, peer: Peer, request: frames.Register) -> SessionOk:
        """Make an account and log in to it; the same again just logs in."""
        check_same_user(peer, request.user_id)
        self._registration.check(peer.address, request.registration_code)
        if request.user_id == ZERO_ID:
            raise BadArgument("The zero id stands for nobody.", details=ErrorDetails(field="user_id"))
        check_text("device_name", request.device_name)
        password = check_new_password(request.password)
        thumbprint = keys.check_public_key(request.public_key)
        keys.check_signing_key(request.signing_key)
        account = await self._registered(peer, request, thumbprint)
        if account is None:
            new = NewAccount(
                user_id=request.user_id,
                username=request.username,
                password_hash=await self._sign_in.passwords.hash(password),
                public_key=request.public_key,
                rsa_thumbprint=thumbprint,
                signing_key=request.signing_key,
                is_bot=request.is_bot,
            )
            # While the hash was made, an earlier try of the same request may have come through.
            account = await self._make(peer, new) or await self._registered(peer, request, thumbprint)
        if account is None:
            raise Overloaded  # id or name were in use, and are free again
        return session_ok(request.id, await self._sign_in.open(peer, account, request.device_name, "registration"))

    async def _registered(self, peer: Peer, request: frames.Register, thumbprint: bytes) -> Account | None:
        """The account that this very request made before; None where id and name are free."""
        async with self._database.connection() as connection:
            claims = await accounts.find_claims(connection, request.user_id, request.username)
        if not claims.id_known:
            if claims.by_name is not None:
                raise UsernameTaken
            return None
        account = claims.by_id
        asked = (request.username, request.is_bot, request.signing_key, thumbprint)
        if account is None or asked != (account.username, account.is_bot, account.signing_key, account.rsa_thumbprint):
            raise IdConflict
        try:
            return await self._sign_in.check(peer, request.username, request.password)
        except CredentialsInvalid as error:
            raise IdConflict from error

    async def _make(self, peer: Peer, new: NewAccount) -> Account | None:
        """The new account; None where its id or name has come into use."""
        async with self._database.transaction() as connection:
            if not await accounts.insert(connection, new):
                return None
            account = await accounts.find(connection, new.user_id)
        logger.info("account.registered", user=new.user_id, connection=peer.connection_id, address=peer.address)
        return account

    async def login(self, peer: Peer, request: frames.Login) -> SessionOk:
        """Begin a session by name and password."""
        check_text("device_name", request.device_name)
        account = await self._sign_in.check(peer, request.username, request.password)
        check_same_user(peer, account.user_id)
        return session_ok(request.id, await self._sign_in.open(peer, account, request.device_name, "password"))

    # ── passwords and deletion ──────────────────────────────────────────────────────────────────────────────────────

    async def password_change(self, peer: Peer, request: frames.PasswordChange) -> SessionOk:
        """Change password (and backup), end every session, and go on here with a new one."""
        caller = require_caller(peer)
        new_password = check_new_password(request.new_password, "new_password")
        backup = self._backup_of(request)
        account = await self._recheck(peer, caller, request.password)
        new_hash = await self._sign_in.passwords.hash(new_password)
        async with self._database.connection() as connection:
            change = partial(self._change_password, connection, caller, account, new_hash, backup)
            grant = await retried(change)
            # The old session's end is told once this connection has left it, and has said so.
            self._sign_in.serve(peer, grant, "password")
        peer.after_answer(lambda: self._hint(self._sign_in.ended(caller.session_id)))
        return session_ok(request.id, grant)

    async def _change_password(
        self, connection: Connection, caller: Caller, account: Account, new_hash: str, backup: Backup | None
    ) -> Grant:
        async with connection.transaction():
            await self._sign_in.lock_checked(connection, account)
            if backup is not None:
                await _put_backup(connection, caller.user_id, backup)
            device_name = await sessions.device_name(connection, caller.session_id)
            epoch = await accounts.set_password(connection, caller.user_id, new_hash)
            grant, ended = await self._sign_in.begin(connection, caller.user_id, epoch, device_name, keep=0)
            await self._sign_in.announce_ended(connection, [one for one in ended if one != caller.session_id])
        return grant

    def _backup_of(self, request: frames.PasswordChange) -> Backup | None:
        if request.backup is None and request.backup_generation is None:
            return None
        if request.backup is None or request.backup_generation is None:
            raise BadArgument("A backup goes with its generation.", details=ErrorDetails(field="backup_generation"))
        self._check_backup(request.backup)
        return Backup(request.backup_generation, request.backup)

    async def _recheck(self, peer: Peer, caller: Caller, password: str) -> Account:
        """Let the caller show once more that they know the password."""
        async with self._database.connection() as connection:
            account = await accounts.find(connection, caller.user_id)
        if account is None:
            raise Unauthenticated("The account is gone.")
        return await self._sign_in.check(peer, account.username, password)

    async def account_delete(self, peer: Peer, request: frames.AccountDelete) -> Ok:
        """Delete the caller's account, and the groups that they own if they say so."""
        caller = require_caller(peer)
        account = await self._recheck(peer, caller, request.password)
        try:
            await retried(partial(self._prepare_delete, account, with_groups=request.delete_groups))
            events = await retried(partial(self._delete, account, with_groups=request.delete_groups))
        except OwnsGroupsError as error:
            raise OwnsGroups from error
        self._publisher.publish(events)
        count = sum(event.kind == Kind.GROUP_DELETED for event in events)
        logger.info("account.deleted", user=caller.user_id, count=count)
        revoked = hints.Revoke("user", caller.user_id, CloseCode.ACCOUNT_DELETED)
        peer.after_answer(lambda: self._hint(hints.revoke(self._sign_in.relay_hex, revoked)))
        peer.close_soon(CloseCode.ACCOUNT_DELETED)
        return Ok(id=request.id)

    async def _prepare_delete(self, account: Account, *, with_groups: bool) -> None:
        async with self._database.connection() as connection:
            await accounts.prepare_delete(connection, account.user_id, with_groups=with_groups)

    async def _delete(self, account: Account, *, with_groups: bool) -> list[frames.Event]:
        async with self._database.transaction() as connection:
            relay_hex = self._sign_in.relay_hex
            return await accounts.delete(connection, relay_hex, account.user_id, with_groups=with_groups)

    # ── people and keys ─────────────────────────────────────────────────────────────────────────────────────────────

    async def user_get(self, peer: Peer, request: frames.UserGet) -> UserGetOk:
        """Somebody whom the caller may know of, with every key that they ever had."""
        caller = require_caller(peer)
        groups = None if caller.groups is None else list(caller.groups)
        async with self._database.connection() as connection:
            if not await accounts.may_see(connection, caller.user_id, request.user_id, groups):
                raise NotFound
            profile = await accounts.find_profile(connection, request.user_id)
        if profile is None:
            raise NotFound
        return UserGetOk(
            id=request.id,
            user_id=request.user_id,
            keys=profile.keys,
            username=profile.username,
            is_bot=profile.is_bot,
        )

    async def key_replace(self, peer: Peer, request: frames.KeyReplace) -> KeyReplaceOk:
        """Put new keys of the caller's in force, in all of their groups at once."""
        return KeyReplaceOk(id=request.id, heads=await self._key_replacement.carry_out(require_caller(peer), request))

    async def backup_put(self, peer: Peer, request: frames.BackupPut) -> Ok:
        """Keep the next generation of the caller's key backup."""
        caller = require_caller(peer)
        self._check_backup(request.backup)
        async with self._database.transaction() as connection:
            await _put_backup(connection, caller.user_id, Backup(request.generation, request.backup))
        return Ok(id=request.id)

    async def backup_get(self, peer: Peer, request: frames.BackupGet) -> BackupGetOk:
        """The caller's key backup."""
        caller = require_caller(peer)
        async with self._database.connection() as connection:
            backup = await accounts.get_backup(connection, caller.user_id)
        if backup is None:
            raise NotFound
        return BackupGetOk(id=request.id, generation=backup.generation, backup=backup.backup)

    def _check_backup(self, backup: bytes) -> None:
        limit = self._sign_in.limits.max_backup_bytes
        if len(backup) > limit:
            raise TooLarge(details=ErrorDetails(field="backup", limit=limit))


async def _put_backup(connection: Connection, user_id: bytes, backup: Backup) -> None:
    """Raise StaleBase, with the generation that is there (0: none), unless this one follows it or is it."""
    if not await accounts.put_backup(connection, user_id, backup):
        stored = await accounts.get_backup(connection, user_id)
        generation = 0 if stored is None else stored.generation
        raise StaleBase("The backup doesn't follow the one that is kept.", details=ErrorDetails(generation=generation))

"""Who one is: keys that are made here, go into a backup that only the passphrase opens, and come back from it."""

import asyncio
import secrets
from collections.abc import Iterable
from typing import Final

from msgspec.structs import replace

from orbital_client.crypto import backups
from orbital_client.crypto.backups import Backup, Known, Pin
from orbital_client.crypto.passphrases import Secrets
from orbital_client.crypto.primitives import KEY_BYTES
from orbital_client.errors import BackupRolledBack, ClientClosed, NotFound, OutOfDate, StoreInUse, WrongPassphrase
from orbital_client.identity import Identity
from orbital_client.store import Account, Expected, Pinned, Source, Store
from orbital_client.wire import Client, Tokens
from orbital_protocol.frames import BackupGet, BackupGetOk, BackupPut, Ok, PasswordChange

_ATTEMPTS: Final = 5


class StoredTokens:
    """The login's tokens, in the client's store (`wire.TokenStore`)."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def load(self) -> Tokens | None:
        return self._store.tokens()

    async def save(self, tokens: Tokens | None) -> None:
        self._store.put_tokens(tokens)
        self._store.commit()


class Accounts:
    """The account of one store, at one relay."""

    def __init__(self, wire: Client, store: Store, url: str) -> None:
        self._wire = wire
        self._store = store
        self._url = url

    async def register(
        self, username: str, passphrase: str, *, registration_code: str | None = None, device: str = ""
    ) -> Identity:
        """Make keys and an account for them, and keep a backup of them at the relay."""
        self._require_room(username)
        known = await asyncio.to_thread(Secrets.of, username, passphrase)
        identity = await asyncio.to_thread(Identity.generate)
        await self._wire.register(
            username, known.password, identity, registration_code=registration_code, device_name=device
        )
        self.remember(username, identity, known.backup_key)
        await self.back_up(identity, [])
        return identity

    async def register_bot(self, username: str, *, registration_code: str | None = None) -> tuple[Identity, str, bytes]:
        """Make a bot's account; return its keys, its password, and what opens the backup of its keys."""
        password, backup_key = secrets.token_urlsafe(32), secrets.token_bytes(KEY_BYTES)
        identity = await asyncio.to_thread(Identity.generate, is_bot=True)
        await self._wire.register(username, password, identity, registration_code=registration_code, device_name="bot")
        self.remember(username, identity, backup_key)
        await self.back_up(identity, [])
        return identity, password, backup_key

    async def login(self, username: str, passphrase: str, *, device: str = "") -> Identity:
        """Log in on a machine that may be empty: the keys come from the backup. Raises WrongPassphrase, Malformed."""
        self._require_room(username)
        known = await asyncio.to_thread(Secrets.of, username, passphrase)
        user_id = await self._wire.login(username, known.password, device_name=device)
        return await self.restore(username, user_id, known.backup_key)

    async def restore(self, username: str, user_id: bytes, backup_key: bytes) -> Identity:
        """Open the backup of whoever is signed in, and keep what is in it.

        Raises WrongPassphrase, Malformed, BackupRolledBack.
        """
        try:
            answer = await self._wire.request(BackupGet(id=0), BackupGetOk)
        except NotFound:
            raise WrongPassphrase("this account has no backup of its keys: log in where it was made") from None
        backup = backups.unseal(answer.backup, user_id, answer.generation, backup_key)
        identity = backup.identity()
        known = self._store.account()
        if known is not None and known.user_id == user_id and known.generation > answer.generation:
            raise BackupRolledBack("the relay hands out an older backup of your keys than it has had")
        self._wire.take_identity(identity)
        for pin in backup.pins:
            if self._store.pin(pin.user_id) is None:
                self._store.put_pin(_as_pinned(pin))
        for group in backup.groups:
            self._store.expect(group.group_id, Expected(group.seq, group.hash, Source.BACKUP))
        self.remember(username, identity, backup_key, generation=answer.generation)
        return identity

    def _require_room(self, username: str) -> None:
        account = self._store.account()
        if account is not None and (account.username, account.url) != (username, self._url):
            raise StoreInUse(f"this store is {account.username}'s at {account.url}: use another one")

    def remember(self, username: str, identity: Identity, backup_key: bytes, *, generation: int = 0) -> None:
        """Keep the account in the store."""
        keys = Backup.of(identity, [], [])
        account = Account(
            url=self._url,
            username=username,
            user_id=identity.user_id,
            is_bot=identity.is_bot,
            signing_key=keys.signing_key,
            rsa_key=keys.rsa_key,
            backup_key=backup_key,
            generation=generation,
        )
        self._store.put_account(account)
        self._store.commit(durable=True)

    async def back_up(self, identity: Identity, groups: Iterable[Known]) -> None:
        """Back up keys, pins and how far groups were verified, merged with what another device has backed up since.

        Raises BackupRolledBack where the relay has an older backup than it had confirmed.
        """
        known = {group.group_id: group for group in groups}
        for _ in range(_ATTEMPTS):
            account = self._account()
            generation = account.generation + 1
            backup = self._backup(identity, known.values())
            sealed = backups.seal(backup, generation, account.backup_key)
            try:
                await self._wire.request(BackupPut(id=0, generation=generation, backup=sealed), Ok)
            except OutOfDate as failure:
                if (failure.details.generation or 0) < account.generation:
                    raise BackupRolledBack("the relay has an older backup of your keys than it confirmed") from None
                known |= await self._merge(account, known)
                continue
            self._store.put_account(replace(account, generation=generation))
            self._store.commit()
            return

    async def _merge(self, account: Account, known: dict[bytes, Known]) -> dict[bytes, Known]:
        """Take over what another device has backed up; return its groups that it knows better."""
        answer = await self._wire.request(BackupGet(id=0), BackupGetOk)
        theirs = backups.unseal(answer.backup, account.user_id, answer.generation, account.backup_key)
        for pin in theirs.pins:
            mine = self._store.pin(pin.user_id)
            if mine is None or (pin.verified and not mine.is_verified):
                self._store.put_pin(_as_pinned(pin))
        self._store.put_account(replace(account, generation=answer.generation))
        return {
            group.group_id: group
            for group in theirs.groups
            if group.group_id not in known or known[group.group_id].seq < group.seq
        }

    async def change_passphrase(self, identity: Identity, groups: Iterable[Known], old: str, new: str) -> None:
        """Change it and seal the backup anew, both or neither. Every other login of the account ends."""
        account = self._account()
        before = await asyncio.to_thread(Secrets.of, account.username, old)
        after = await asyncio.to_thread(Secrets.of, account.username, new)
        generation = account.generation + 1
        request = PasswordChange(
            id=0,
            password=before.password,
            new_password=after.password,
            backup=backups.seal(self._backup(identity, groups), generation, after.backup_key),
            backup_generation=generation,
        )
        await self._wire.change_password_with(request)
        self._store.put_account(replace(account, backup_key=after.backup_key, generation=generation))
        self._store.commit(durable=True)

    def _backup(self, identity: Identity, groups: Iterable[Known]) -> Backup:
        return Backup.of(identity, [_as_pin(pin) for pin in self._store.pins()], list(groups))

    def _account(self) -> Account:
        account = self._store.account()
        if account is None:
            raise ClientClosed("nobody has logged in")
        return account


def identity_of(account: Account) -> Identity:
    """The keys of a stored account. Raises Malformed."""
    return Backup(
        user_id=account.user_id, is_bot=account.is_bot, signing_key=account.signing_key, rsa_key=account.rsa_key
    ).identity()


def _as_pin(pin: Pinned) -> Pin:
    return Pin(pin.user_id, pin.signing_key, pin.rsa_thumbprint, pin.is_verified)


def _as_pinned(pin: Pin) -> Pinned:
    return Pinned(
        user_id=pin.user_id, signing_key=pin.signing_key, rsa_thumbprint=pin.rsa_thumbprint, is_verified=pin.verified
    )

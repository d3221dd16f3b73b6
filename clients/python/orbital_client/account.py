"""Who one is: keys that are made here, go into a backup that only the passphrase opens, and come back from it."""

import asyncio
from collections.abc import Iterable
from typing import Final

from msgspec.structs import replace

from orbital_client.crypto import backups
from orbital_client.crypto.backups import Backup, Known, Pin
from orbital_client.crypto.passphrases import Secrets
from orbital_client.errors import BackupRolledBack, NotFound, OutOfDate, WrongPassphrase
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


async def register(
    wire: Client, store: Store, url: str, username: str, passphrase: str, *, registration_code: str | None, device: str
) -> Identity:
    """Make keys and an account for them, and keep a backup of them at the relay."""
    secrets = await asyncio.to_thread(Secrets.of, username, passphrase)
    identity = await asyncio.to_thread(Identity.generate)
    await wire.register(username, secrets.password, identity, registration_code=registration_code, device_name=device)
    remember(store, url, username, identity, secrets.backup_key)
    await put_backup(wire, store, identity, [])
    return identity


async def login(wire: Client, store: Store, url: str, username: str, passphrase: str, *, device: str) -> Identity:
    """Log in on a machine that may be empty: the keys come from the backup. Raises WrongPassphrase, Malformed."""
    secrets = await asyncio.to_thread(Secrets.of, username, passphrase)
    user_id = await wire.login(username, secrets.password, device_name=device)
    return await restore(wire, store, url, username, user_id, secrets.backup_key)


async def restore(wire: Client, store: Store, url: str, username: str, user_id: bytes, backup_key: bytes) -> Identity:
    """Open the backup of whoever is signed in, and keep what is in it."""
    try:
        answer = await wire.request(BackupGet(id=0), BackupGetOk)
    except NotFound:
        raise WrongPassphrase("this account has no backup of its keys: log in where it was made") from None
    backup = backups.unseal(answer.backup, user_id, answer.generation, backup_key)
    identity = backup.identity()
    wire.take_identity(identity)
    known = store.account()
    if known is not None and known.user_id == user_id and known.generation > answer.generation:
        raise BackupRolledBack("the relay hands out an older backup of your keys than it has had")
    for pin in backup.pins:
        if store.pin(pin.user_id) is None:
            store.put_pin(_as_pinned(pin))
    for group in backup.groups:
        store.expect(group.group_id, Expected(group.seq, group.hash, Source.BACKUP))
    remember(store, url, username, identity, backup_key, generation=answer.generation)
    return identity


def remember(
    store: Store, url: str, username: str, identity: Identity, backup_key: bytes, *, generation: int = 0
) -> None:
    """Keep the account in the store."""
    sealed = Backup.of(identity, [], [])
    store.put_account(
        Account(
            url=url,
            username=username,
            user_id=identity.user_id,
            is_bot=identity.is_bot,
            signing_key=sealed.signing_key,
            rsa_key=sealed.rsa_key,
            backup_key=backup_key,
            generation=generation,
        )
    )
    store.commit()


def identity_of(account: Account) -> Identity:
    """The keys of a stored account. Raises Malformed."""
    return Backup(
        user_id=account.user_id, is_bot=account.is_bot, signing_key=account.signing_key, rsa_key=account.rsa_key
    ).identity()


async def put_backup(wire: Client, store: Store, identity: Identity, groups: Iterable[Known]) -> None:
    """Back up keys, pins and how far groups were verified, merged with what another device has backed up since.

    Raises BackupRolledBack where the relay has an older backup than it had confirmed.
    """
    known = {group.group_id: group for group in groups}
    for _ in range(_ATTEMPTS):
        account = store.account()
        if account is None:
            return
        backup = Backup.of(identity, [_as_pin(pin) for pin in store.pins()], list(known.values()))
        generation = account.generation + 1
        sealed = backups.seal(backup, generation, account.backup_key)
        try:
            await wire.request(BackupPut(id=0, generation=generation, backup=sealed), Ok)
        except OutOfDate as failure:
            if (failure.details.generation or 0) < account.generation:
                raise BackupRolledBack("the relay has an older backup of your keys than it had confirmed") from None
            known |= await _merge(wire, store, account, known)
            continue
        store.put_account(replace(account, generation=generation))
        store.commit()
        return


async def _merge(wire: Client, store: Store, account: Account, known: dict[bytes, Known]) -> dict[bytes, Known]:
    """Take over what another device has backed up; return its groups that it knows better."""
    answer = await wire.request(BackupGet(id=0), BackupGetOk)
    theirs = backups.unseal(answer.backup, account.user_id, answer.generation, account.backup_key)
    for pin in theirs.pins:
        mine = store.pin(pin.user_id)
        if mine is None or (pin.verified and not mine.is_verified):
            store.put_pin(_as_pinned(pin))
    store.put_account(replace(account, generation=answer.generation))
    return {
        group.group_id: group
        for group in theirs.groups
        if group.group_id not in known or known[group.group_id].seq < group.seq
    }


async def change_passphrase(wire: Client, store: Store, identity: Identity, old: str, new: str) -> None:
    """Change the passphrase and seal the backup anew, both or neither. Every other login of the account ends."""
    account = store.account()
    if account is None:
        return
    before = await asyncio.to_thread(Secrets.of, account.username, old)
    after = await asyncio.to_thread(Secrets.of, account.username, new)
    generation = account.generation + 1
    backup = Backup.of(identity, [_as_pin(pin) for pin in store.pins()], [])
    request = PasswordChange(
        id=0,
        password=before.password,
        new_password=after.password,
        backup=backups.seal(backup, generation, after.backup_key),
        backup_generation=generation,
    )
    await wire.change_password_with(request)
    store.put_account(replace(account, backup_key=after.backup_key, generation=generation))
    store.commit()


def _as_pin(pin: Pinned) -> Pin:
    return Pin(pin.user_id, pin.signing_key, pin.rsa_thumbprint, pin.is_verified)


def _as_pinned(pin: Pin) -> Pinned:
    return Pinned(
        user_id=pin.user_id, signing_key=pin.signing_key, rsa_thumbprint=pin.rsa_thumbprint, is_verified=pin.verified
    )

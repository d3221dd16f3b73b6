"""A new key for a group: made, wrapped for whoever the verified log has as members, and put in force, or dropped."""

import asyncio
from collections.abc import Mapping

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from orbital_client.crypto import contents, envelopes, wraps
from orbital_client.crypto.contents import Name
from orbital_client.crypto.envelopes import NO_KIND, Field, Place
from orbital_client.crypto.groupkeys import GroupKey
from orbital_client.crypto.jwk import rsa_key
from orbital_client.crypto.wraps import Recipient
from orbital_client.errors import CannotPost, KeyChanged, MissingKey, OutOfDate
from orbital_client.identity import Identity
from orbital_client.people import People
from orbital_client.replica import Replica
from orbital_protocol.statements import RosterEntry


class Overtaken(Exception):
    """Somebody else's key has come in force, or the members have changed: this key is dropped."""


def seal_name(key: GroupKey, name: str, identity: Identity) -> bytes:
    """`encrypted_name` of a group."""
    place = Place(NO_KIND, Field.NAME, key.group_id, identity.user_id, key.epoch)
    return envelopes.seal(key, place, contents.encode(Name(text=name)), identity.signing)


def wrap_for(key: GroupKey, entry: RosterEntry, rsa: RSAPublicKey, identity: Identity) -> bytes:
    """A group key for one member."""
    recipient = Recipient(entry.user_id, entry.rsa_thumbprint)
    return wraps.wrap(key, recipient, rsa, identity.user_id, identity.signing)


async def rekey(replica: Replica, people: People, identity: Identity, name: str) -> bool:
    """Put a new key in force; False if another member's came first.

    Raises CannotPost and KeyChanged before anything is wrapped where members or their keys are in doubt, WrongKey where
    the relay has not the keys that the log names, MissingKey where the history is shared and this member can't open it.
    """
    log = await replica.loaded()
    if log.state.tainted_at:
        raise CannotPost("the relay has logged a forged change of this group: no key is made for it")
    for user_id in replica.changed_keys:
        raise KeyChanged(user_id, people.name(user_id))
    current = replica.keyring.current
    if log.state.shared_history and current is None:
        raise MissingKey(log.key_epoch)
    roster = dict(log.roster)
    jwks = await people.encryption_keys(roster.values())
    rsa_keys = {user_id: rsa_key(jwk, roster[user_id].rsa_thumbprint) for user_id, jwk in jwks.items()}
    key = GroupKey.generate(log.group_id, log.key_epoch + 1)
    made = await asyncio.to_thread(_wrap_all, key, roster, rsa_keys, identity)

    def wrap(entry: RosterEntry) -> bytes:
        if log.key_epoch + 1 != key.epoch or log.roster != roster:
            raise Overtaken
        return made[entry.user_id]

    try:
        await replica.wire.rekey(
            encrypted_name=seal_name(key, name, identity),
            wrap=wrap,
            key_commitment=key.commitment,
            previous_key=key.seal_previous(current) if log.state.shared_history and current else b"",
        )
    except (Overtaken, OutOfDate):
        await replica.catch_up()
        return False
    await replica.catch_up()
    epoch = log.state.epoch(key.epoch)
    if epoch is None or epoch.commitment != key.commitment:
        return False
    replica.keyring.add(key)
    replica.keep_keys()
    return True


def _wrap_all(
    key: GroupKey, roster: Mapping[bytes, RosterEntry], rsa_keys: Mapping[bytes, RSAPublicKey], identity: Identity
) -> dict[bytes, bytes]:
    return {user_id: wrap_for(key, entry, rsa_keys[user_id], identity) for user_id, entry in roster.items()}

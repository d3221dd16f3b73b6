"""Whom this client knows: their keys as they were first seen or compared, and what the relay says they are called."""

from collections.abc import Iterable
from dataclasses import dataclass

from orbital_client.crypto.fingerprints import fingerprint
from orbital_client.crypto.jwk import rsa_key
from orbital_client.errors import NotFound, WrongKey
from orbital_client.identity import thumbprint
from orbital_client.store import Pinned, Store
from orbital_client.wire import Client
from orbital_protocol.frames import PublicKey
from orbital_protocol.statements import RosterEntry


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody's keys, to be compared. `fingerprint`: ten groups of five digits; both sides must read the same.

    `is_changed`: they are not those that this client knew, and the old ones have not signed for them.
    """

    user_id: bytes
    name: str
    fingerprint: str
    is_verified: bool
    is_changed: bool


class People:
    """Pins and names. A name is the relay's word; keys are the log's."""

    def __init__(self, wire: Client, store: Store) -> None:
        self._wire = wire
        self._store = store
        self._names: dict[bytes, str] = {}
        self._jwks: dict[bytes, PublicKey] = {}

    # ── names ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def name(self, user_id: bytes) -> str:
        """What somebody is called, as far as is known without asking; otherwise the end of their id."""
        return self._names.get(user_id) or user_id[-4:].hex()

    def knows(self, user_ids: Iterable[bytes]) -> bool:
        """Whether all of them have a name."""
        return all(user_id in self._names for user_id in user_ids)

    async def learn(self, user_ids: Iterable[bytes]) -> None:
        """Ask the relay for names that are not known yet."""
        for user_id in user_ids:
            if user_id not in self._names:
                try:
                    answer = await self._wire.user(user_id)
                except NotFound:
                    continue
                self._names[user_id] = answer.username or user_id[-4:].hex()
                for key in answer.keys:
                    self._jwks[thumbprint(key.public_key)] = key.public_key

    def hear(self, user_id: bytes, username: str, *keys: PublicKey) -> None:
        """Take note of what a list of the relay says."""
        self._names[user_id] = username
        for key in keys:
            self._jwks[thumbprint(key)] = key

    # ── keys ────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def encryption_keys(self, roster: Iterable[RosterEntry]) -> dict[bytes, PublicKey]:
        """The RSA keys that a roster names, by user. Raises WrongKey where the relay has others only."""
        found = {}
        for entry in roster:
            if entry.rsa_thumbprint not in self._jwks:
                for key in (await self._wire.user(entry.user_id)).keys:
                    self._jwks[thumbprint(key.public_key)] = key.public_key
            jwk = self._jwks.get(entry.rsa_thumbprint)
            if jwk is None:
                raise WrongKey(f"the relay hands out another key for {self.name(entry.user_id)} than the log names")
            rsa_key(jwk, entry.rsa_thumbprint)
            found[entry.user_id] = jwk
        return found

    def meet(self, roster: Iterable[RosterEntry]) -> set[bytes]:
        """Pin the keys of whoever is new; return those whose keys are other ones than were known."""
        changed = set()
        for entry in roster:
            pin = self._store.pin(entry.user_id)
            if pin is None:
                self._pin(entry)
            elif (pin.signing_key, pin.rsa_thumbprint) != (entry.signing_key, entry.rsa_thumbprint):
                changed.add(entry.user_id)
        return changed

    def replaced(self, before: RosterEntry, after: RosterEntry) -> None:
        """Somebody's old key has signed for a new one."""
        pin = self._store.pin(before.user_id)
        if pin is not None and (pin.signing_key, pin.rsa_thumbprint) == (before.signing_key, before.rsa_thumbprint):
            self._pin(after)  # no longer verified: nobody has compared this one

    def accept(self, entry: RosterEntry, *, is_verified: bool) -> None:
        """From now on these are somebody's keys."""
        self._pin(entry, is_verified=is_verified)

    def person(self, entry: RosterEntry) -> Person:
        """Somebody's keys, to be compared."""
        pin = self._store.pin(entry.user_id)
        is_pinned = pin is None or (pin.signing_key, pin.rsa_thumbprint) == (entry.signing_key, entry.rsa_thumbprint)
        return Person(
            user_id=entry.user_id,
            name=self.name(entry.user_id),
            fingerprint=fingerprint(entry.user_id, entry.rsa_thumbprint, entry.signing_key),
            is_verified=pin is not None and pin.is_verified and is_pinned,
            is_changed=not is_pinned,
        )

    def _pin(self, entry: RosterEntry, *, is_verified: bool = False) -> None:
        self._store.put_pin(
            Pinned(
                user_id=entry.user_id,
                signing_key=entry.signing_key,
                rsa_thumbprint=entry.rsa_thumbprint,
                is_verified=is_verified,
            )
        )

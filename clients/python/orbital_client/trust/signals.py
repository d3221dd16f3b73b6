"""Signals: told to whoever is online, sealed and signed like posts, good for a minute and once."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from orbital_client.crypto import contents, envelopes
from orbital_client.crypto.contents import AnySignal
from orbital_client.crypto.envelopes import NO_KIND, Field, Place
from orbital_client.errors import BadSeal, CannotOpen, MissingKey
from orbital_client.identity import Identity
from orbital_client.trust.keyring import Keyring
from orbital_client.trust.log import Log

GOOD_FOR_US: Final = 60_000_000

_REMEMBERED: Final = 4_096


@dataclass(frozen=True, slots=True)
class Heard:
    """A signal by a member of the group."""

    group_id: bytes
    user_id: bytes
    signal: AnySignal


def seal_signal(log: Log, keyring: Keyring, identity: Identity, signal: AnySignal) -> bytes:
    """The payload. Raises MissingKey."""
    key = keyring.current
    if key is None:
        raise MissingKey(log.key_epoch)
    place = Place(NO_KIND, Field.SIGNAL, log.group_id, identity.user_id, key.epoch)
    return envelopes.seal(key, place, contents.encode(signal), identity.signing)


class Signals:
    """What a group's signals say, and which were heard before."""

    def __init__(self, log: Log, keyring: Keyring) -> None:
        self._log = log
        self._keyring = keyring
        self._seen: OrderedDict[bytes, None] = OrderedDict()

    def open(self, user_id: bytes, payload: bytes, now_us: int) -> Heard | None:
        """A signal; None for one that is too old, was heard before, or is by nobody of the group.

        Raises CannotOpen: MissingKey and UnknownVersion where this client can't know, others for a forged one.
        """
        author = self._log.roster.get(user_id)
        if author is None:
            return None
        signal = contents.signal(self._unseal(user_id, payload, author.signing_key))
        if abs(now_us - signal.sent_at) > GOOD_FOR_US or signal.id in self._seen:
            return None
        self._seen[signal.id] = None
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        return Heard(self._log.group_id, user_id, signal)

    def _unseal(self, user_id: bytes, payload: bytes, signing_key: bytes) -> bytes:
        """Open it under the key in force, or the one before: a rekey may have overtaken it."""
        failure: CannotOpen = MissingKey(self._log.key_epoch)
        for epoch in (self._log.key_epoch, self._log.key_epoch - 1):
            if key := self._keyring.get(epoch):
                place = Place(NO_KIND, Field.SIGNAL, self._log.group_id, user_id, epoch)
                try:
                    return envelopes.unseal(key, place, payload, signing_key)
                except BadSeal as error:
                    if self._keyring.current is not None:
                        failure = error
        raise failure

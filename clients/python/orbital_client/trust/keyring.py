"""A group's keys, by epoch: each is taken only if it is the one that the group's log commits to."""

from collections.abc import Mapping

from orbital_client.crypto import wraps
from orbital_client.crypto.groupkeys import GroupKey
from orbital_client.crypto.wraps import Recipient
from orbital_client.errors import CannotOpen, ForgedAuthor, WrongKey
from orbital_client.identity import Identity
from orbital_client.trust.log import Log


class Keyring:
    """What of a group's keys this member has. Where history is shared, the newest key opens all before it."""

    def __init__(self, log: Log, secrets: Mapping[int, bytes] | None = None) -> None:
        self._log = log
        self._keys = {epoch: GroupKey(log.group_id, epoch, secret) for epoch, secret in (secrets or {}).items()}

    def __len__(self) -> int:
        return len(self._keys)

    def get(self, epoch: int) -> GroupKey | None:
        return self._keys.get(epoch)

    @property
    def current(self) -> GroupKey | None:
        """The key in force."""
        return self._keys.get(self._log.key_epoch)

    def secrets(self) -> dict[int, bytes]:
        """All keys, to be stored where nobody else reads."""
        return {epoch: key.secret for epoch, key in self._keys.items()}

    def add(self, key: GroupKey) -> list[int]:
        """Take in a key, and what it opens; return the epochs that it brought. Raises CannotOpen, and takes nothing."""
        epoch = self._log.state.epoch(key.epoch)
        if epoch is None:
            raise WrongKey(f"the group has not had a key of epoch {key.epoch} yet")
        key.check(epoch.commitment)
        brought = {}
        while key.epoch not in self._keys:
            brought[key.epoch] = key
            epoch = self._log.state.epoch(key.epoch)
            if epoch is None or not epoch.previous_key:
                break
            key = key.open_previous(epoch.previous_key)
            key.check(self._commitment(key.epoch))
        self._keys |= brought
        return list(brought)

    def unwrap(self, identity: Identity, epoch: int, wrapped: bytes) -> GroupKey:
        """The key in a wrap for this member, by a member of the group. Raises CannotOpen."""
        failure: CannotOpen = WrongKey("a key that somebody wrapped who has not been in the group")
        for wrapper_key in self._log.state.signing_keys(wraps.wrapper_of(wrapped)):
            try:
                return wraps.unwrap(
                    wrapped,
                    group_id=self._log.group_id,
                    epoch=epoch,
                    recipient=Recipient(identity.user_id, identity.rsa_thumbprint),
                    rsa_key=identity.rsa,
                    wrapper_key=wrapper_key,
                )
            except ForgedAuthor as problem:
                failure = problem
        raise failure

    def _commitment(self, epoch: int) -> bytes:
        found = self._log.state.epoch(epoch)
        if found is None:
            raise WrongKey(f"the group's log says nothing of a key of epoch {epoch}")
        return found.commitment

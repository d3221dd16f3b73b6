"""The group's key behind an invite link: whoever has the link's secret S opens it, until the next rekey."""

from typing import Final

from orbital_client.crypto import primitives
from orbital_client.crypto.groupkeys import GroupKey

SEAL_INFO: Final = b"orbital.v1.invite.seal\0"


def seal_key(key: GroupKey, invite_id: bytes, secret: bytes, *, nonce: bytes | None = None) -> bytes:
    """`sealed_group_key` of an invite."""
    return primitives.seal(
        primitives.derive(secret, SEAL_INFO), key.secret, _place(key.group_id, invite_id, key.epoch), nonce=nonce
    )


def open_key(sealed: bytes, group_id: bytes, epoch: int, invite_id: bytes, secret: bytes) -> GroupKey:
    """The key that an invite was made with. Raises as `primitives.unseal` does."""
    opened = primitives.unseal(primitives.derive(secret, SEAL_INFO), sealed, _place(group_id, invite_id, epoch))
    return GroupKey(group_id, epoch, opened)


def _place(group_id: bytes, invite_id: bytes, epoch: int) -> bytes:
    return SEAL_INFO + group_id + invite_id + epoch.to_bytes(4, "big")

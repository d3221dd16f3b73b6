"""A group key wrapped for one member's RSA key, and signed by whoever wrapped it.

`0x01 ‖ wrapper_id 16 ‖ signature 64 ‖ RSA-OAEP-SHA-256(K)`, the OAEP label naming group, epoch, recipient and wrapper.
"""

from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256

from orbital_client.crypto.groupkeys import GroupKey
from orbital_client.crypto.primitives import VERSION, check_version
from orbital_client.errors import BadSeal, ForgedAuthor, Malformed
from orbital_protocol.statements import verify_raw

LABEL_PREFIX: Final = b"orbital.v1.wrap\0"
SIGNATURE_PREFIX: Final = b"orbital.v1.wrapped\0"

_ID_END: Final = 1 + 16
_SIGNATURE_END: Final = _ID_END + 64


@dataclass(frozen=True, slots=True)
class Recipient:
    """For whom a key is wrapped: as the roster names them."""

    user_id: bytes
    rsa_thumbprint: bytes


def wrap(
    key: GroupKey, recipient: Recipient, rsa_key: rsa.RSAPublicKey, wrapper_id: bytes, signing: Ed25519PrivateKey
) -> bytes:
    """Wrap a key for a member. The caller has checked that the RSA key has the recipient's thumbprint."""
    label = _label(key.group_id, key.epoch, recipient, wrapper_id)
    wrapped = rsa_key.encrypt(key.secret, _oaep(label))
    return VERSION + wrapper_id + signing.sign(SIGNATURE_PREFIX + label + wrapped) + wrapped


def wrapper_of(wrapped: bytes) -> bytes:
    """Who says to have wrapped it."""
    check_version(wrapped)
    if len(wrapped) <= _SIGNATURE_END:
        raise Malformed("a wrapped key is cut short")
    return wrapped[1:_ID_END]


def unwrap(  # noqa: PLR0913  what the label names
    wrapped: bytes,
    *,
    group_id: bytes,
    epoch: int,
    recipient: Recipient,
    rsa_key: rsa.RSAPrivateKey,
    wrapper_key: bytes,
) -> GroupKey:
    """The key. `wrapper_key` is the Ed25519 key of `wrapper_of` in the roster.

    Raises ForgedAuthor, BadSeal for another recipient, group or epoch, UnknownVersion and Malformed. Whether it is the
    group's key, its commitment shows: `GroupKey.check`.
    """
    label = _label(group_id, epoch, recipient, wrapper_of(wrapped))
    sealed = wrapped[_SIGNATURE_END:]
    if not verify_raw(SIGNATURE_PREFIX + label + sealed, wrapped[_ID_END:_SIGNATURE_END], wrapper_key):
        raise ForgedAuthor("whoever is said to have wrapped this key has not signed it")
    try:
        secret = rsa_key.decrypt(sealed, _oaep(label))
    except ValueError:
        raise BadSeal("a key that was wrapped for somebody else, or for another group or epoch") from None
    return GroupKey(group_id, epoch, secret)


def _label(group_id: bytes, epoch: int, recipient: Recipient, wrapper_id: bytes) -> bytes:
    return b"".join(
        (
            LABEL_PREFIX,
            group_id,
            epoch.to_bytes(4, "big"),
            recipient.user_id,
            recipient.rsa_thumbprint,
            wrapper_id,
        )
    )


def _oaep(label: bytes) -> padding.OAEP:
    return padding.OAEP(mgf=padding.MGF1(SHA256()), algorithm=SHA256(), label=label)

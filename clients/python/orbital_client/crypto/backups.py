"""A user's keys, and what they know of their groups, sealed for their next device.

`0x01 ‖ generation u64 ‖ nonce 12 ‖ AES-256-GCM(content) ‖ tag 16`. A fresh device can't notice that the relay hands out
an older backup with all that went with it.
"""

from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_der_private_key

from orbital_client.crypto import primitives
from orbital_client.crypto.primitives import VERSION, check_version
from orbital_client.errors import BadSeal, Malformed, WrongPassphrase
from orbital_client.identity import Identity
from orbital_protocol.fields import Hash, Id, KeyEpoch, SequenceNumber, SigningKey

PREFIX: Final = b"orbital.v1.backup\0"

_GENERATION_END: Final = 1 + 8


class Pin(msgspec.Struct, frozen=True, array_like=True):
    """The keys of somebody else, as they were last known here. `verified`: compared by people."""

    user_id: Id
    signing_key: SigningKey
    rsa_thumbprint: Hash
    verified: bool


class Known(msgspec.Struct, frozen=True, array_like=True):
    """How far a group's log was verified."""

    group_id: Id
    seq: SequenceNumber
    hash: Hash
    epoch: KeyEpoch


class Backup(msgspec.Struct, frozen=True, kw_only=True):
    """What is in a backup: a MessagePack map. Private keys are PKCS#8, in DER."""

    user_id: Id
    is_bot: bool
    signing_key: bytes
    rsa_key: bytes
    pins: list[Pin] = []
    groups: list[Known] = []

    @classmethod
    def of(cls, identity: Identity, pins: list[Pin], groups: list[Known]) -> "Backup":
        """A backup of these keys."""
        return cls(
            user_id=identity.user_id,
            is_bot=identity.is_bot,
            signing_key=identity.signing.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()),
            rsa_key=identity.rsa.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()),
            pins=pins,
            groups=groups,
        )

    def __repr__(self) -> str:
        return f"Backup({self.user_id.hex()})"

    def identity(self) -> Identity:
        """The user's keys. Raises Malformed if they are none."""
        try:
            signing = load_der_private_key(self.signing_key, None)
            rsa_key = load_der_private_key(self.rsa_key, None)
        except ValueError:
            raise Malformed("the backup's keys can't be read") from None
        if not isinstance(signing, Ed25519PrivateKey) or not isinstance(rsa_key, rsa.RSAPrivateKey):
            raise Malformed("the backup's keys are of another kind")
        return Identity(self.user_id, signing, rsa_key, is_bot=self.is_bot)


_decoder: Final = msgspec.msgpack.Decoder(Backup)


def seal(backup: Backup, generation: int, key: bytes, *, nonce: bytes | None = None) -> bytes:
    """Seal a backup as this generation of it."""
    place = _place(backup.user_id, generation)
    sealed = primitives.seal(key, msgspec.msgpack.encode(backup), place, nonce=nonce)
    return VERSION + generation.to_bytes(8, "big") + sealed[1:]


def unseal(sealed: bytes, user_id: bytes, generation: int, key: bytes) -> Backup:
    """Open a backup. `generation` is what the relay says it is.

    Raises WrongPassphrase where the key doesn't open it (or the relay hands out something else), UnknownVersion, and
    Malformed.
    """
    check_version(sealed)
    if len(sealed) < _GENERATION_END:
        raise Malformed("the backup is cut short")
    if int.from_bytes(sealed[1:_GENERATION_END], "big") != generation:
        raise Malformed("the relay says another generation than the backup does")
    try:
        plaintext = primitives.unseal(key, VERSION + sealed[_GENERATION_END:], _place(user_id, generation))
    except BadSeal:
        raise WrongPassphrase("this passphrase does not open the backup of your keys") from None
    try:
        backup = _decoder.decode(plaintext)
    except msgspec.DecodeError:
        raise Malformed("the backup has not what a backup has") from None
    if backup.user_id != user_id:
        raise Malformed("the backup is another user's")
    return backup


def _place(user_id: bytes, generation: int) -> bytes:
    return PREFIX + user_id + generation.to_bytes(8, "big")

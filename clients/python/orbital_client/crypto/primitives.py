"""The two primitives that everything sealed is made of: HKDF-SHA-256, and AES-256-GCM under a version byte."""

import os
from functools import lru_cache
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from orbital_client.errors import BadSeal, Malformed, UnknownVersion

VERSION: Final = b"\x01"
KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12
OVERHEAD_BYTES: Final = 1 + NONCE_BYTES + 16
"""What `seal` adds: version, nonce, tag."""

_KNOWN_KEYS: Final = 256


def derive(secret: bytes, info: bytes, salt: bytes | None = None) -> bytes:
    """HKDF-SHA-256 (RFC 5869): 32 bytes for one use, which `info` names."""
    return HKDF(SHA256(), length=KEY_BYTES, salt=salt, info=info).derive(secret)


def seal(key: bytes, plaintext: bytes, aad: bytes, *, nonce: bytes | None = None) -> bytes:
    """`0x01 ‖ nonce 12 ‖ AES-256-GCM(plaintext) ‖ tag 16`. A nonce is random, and given only for vectors."""
    nonce = os.urandom(NONCE_BYTES) if nonce is None else nonce
    return VERSION + nonce + _cipher(key).encrypt(nonce, plaintext, aad)


def unseal(key: bytes, sealed: bytes, aad: bytes) -> bytes:
    """What `seal` sealed. Raises UnknownVersion, Malformed, and BadSeal for another key, place or other bytes."""
    check_version(sealed)
    if len(sealed) < OVERHEAD_BYTES:
        raise Malformed("sealed bytes are cut short")
    try:
        return _cipher(key).decrypt(sealed[1 : 1 + NONCE_BYTES], sealed[1 + NONCE_BYTES :], aad)
    except InvalidTag:
        raise BadSeal("sealed under another key or for another place, or altered since") from None


def check_version(raw: bytes) -> None:
    """Raise unless the first byte is the version that this client knows."""
    if not raw:
        raise Malformed("nothing where sealed bytes should be")
    if raw[:1] != VERSION:
        raise UnknownVersion(f"sealed in version {raw[0]}, which this client does not know")


@lru_cache(_KNOWN_KEYS)
def _cipher(key: bytes) -> AESGCM:
    return AESGCM(key)

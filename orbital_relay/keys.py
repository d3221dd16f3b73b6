"""What public keys the relay takes in. Nobody is served by a key that is malformed, weak, or anybody's."""

import binascii
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Final

from joserfc.errors import JoseError
from joserfc.jwk import RSAKey

from orbital_protocol import points
from orbital_protocol.frames import ErrorDetails, PublicKey
from orbital_relay.errors import BadArgument

RSA_BITS_MIN: Final = 2048
RSA_BITS_MAX: Final = 4096

_F4: Final = "AQAB"  # 65537
_ALGORITHM: Final = "RSA-OAEP-256"
_OPERATIONS: Final = frozenset({"encrypt", "wrapKey"})
_PRIVATE: Final = ("d", "p", "q", "dp", "dq", "qi")


def check_public_key(jwk: PublicKey) -> bytes:
    """Return the SHA-256 thumbprint (RFC 7638) of an RSA key for RSA-OAEP-256; raise BadArgument for anything else."""
    _require(jwk.kty == "RSA", "kty", "must be RSA")
    for member in _PRIVATE:
        _require(getattr(jwk, member) is None, member, "is private and must not leave the client")
    _require(jwk.e == _F4, "e", f"must be {_F4} (65537)")
    _require(jwk.alg in (None, _ALGORITHM), "alg", f"must be {_ALGORITHM} or absent")
    _require(jwk.use in (None, "enc"), "use", "must be enc or absent")
    _require(_OPERATIONS.issuperset(jwk.key_ops or ()), "key_ops", "must be of encrypt and wrapKey, or absent")
    modulus = _modulus(jwk.n)
    bits = modulus.bit_length()
    _require(RSA_BITS_MIN <= bits <= RSA_BITS_MAX, "n", f"must have {RSA_BITS_MIN} to {RSA_BITS_MAX} bits, not {bits}")
    _require(modulus % 2 == 1, "n", "is even, and no product of two primes")
    try:
        key = RSAKey.import_key({"kty": jwk.kty, "n": jwk.n, "e": jwk.e})
        thumbprint = key.thumbprint()
    except (JoseError, ValueError) as error:
        raise _refused("public_key.n", "is no RSA modulus") from error
    return urlsafe_b64decode(thumbprint + "=")


def _modulus(text: str) -> int:
    """Decode a Base64urlUInt (RFC 7518): no padding, no leading zero octet, no stray bits at the end."""
    try:
        raw = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError):  # the latter for what is not ASCII
        raw = b""
    canonical = urlsafe_b64encode(raw).rstrip(b"=").decode() == text and raw[:1] != b"\0"
    _require(bool(raw) and canonical, "n", "must be base64url in its one form: no padding, no leading zeros")
    return int.from_bytes(raw, "big")


def _require(holds: bool, member: str, what: str) -> None:
    if not holds:
        raise _refused(f"public_key.{member}", what)


def _refused(field: str, what: str) -> BadArgument:
    return BadArgument(f"{field} {what}.", details=ErrorDetails(field=field))


def check_signing_key(key: bytes, field: str = "signing_key") -> None:
    """Raise BadArgument unless these are the 32 bytes of an Ed25519 key in its one encoding, and not of small order."""
    if what := points.flaw(key):
        raise _refused(field, what)

"""RSA keys of others: taken from a JWK only if they have the thumbprint that the log names."""

from hmac import compare_digest
from typing import Final

from cryptography.hazmat.primitives.asymmetric import rsa
from joserfc.errors import JoseError
from joserfc.jwk import RSAKey

from orbital_client.errors import Malformed, WrongKey
from orbital_client.identity import thumbprint
from orbital_protocol.frames import PublicKey

BITS: Final = range(2048, 4096 + 1)
F4: Final = 65_537

_CHARACTERS: Final = range(342, 683 + 1)  # of base64url, for so many bits


def rsa_key(jwk: PublicKey, expected_thumbprint: bytes) -> rsa.RSAPublicKey:
    """The key. Raises WrongKey where it isn't the one of this thumbprint, Malformed where it is none to be used."""
    if not compare_digest(thumbprint(jwk), expected_thumbprint):
        raise WrongKey("the relay hands out another key than the group's log names")
    if len(jwk.n) not in _CHARACTERS:  # the library would only warn
        raise Malformed("an RSA key that must not be used")
    try:
        key = RSAKey.import_key({"kty": jwk.kty, "n": jwk.n, "e": jwk.e}).public_key
    except (JoseError, ValueError):
        raise Malformed("no RSA key") from None
    numbers = key.public_numbers()
    if key.key_size not in BITS or numbers.e != F4 or not numbers.n & 1:
        raise Malformed("an RSA key that must not be used")
    return key

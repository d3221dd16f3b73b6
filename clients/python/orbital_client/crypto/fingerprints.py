"""What two people compare to know that the relay has not put itself between them."""

from hashlib import sha256
from typing import Final

PREFIX: Final = b"orbital.v1.fingerprint\0"

_BYTES: Final = 25
_DIGITS: Final = 50
_GROUP: Final = 5


def fingerprint(user_id: bytes, rsa_thumbprint: bytes, signing_key: bytes) -> str:
    """Ten groups of five digits, for a user and both of their keys."""
    digest = sha256(PREFIX + user_id + rsa_thumbprint + signing_key).digest()
    digits = f"{int.from_bytes(digest[:_BYTES], 'big') % 10**_DIGITS:0{_DIGITS}}"
    return " ".join(digits[at : at + _GROUP] for at in range(0, _DIGITS, _GROUP))

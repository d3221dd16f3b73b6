"""What a passphrase gives: the password that the relay is told, and the key of the backup, which it is not."""

import base64
import unicodedata
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final, Self

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC

from orbital_client.crypto.primitives import KEY_BYTES, derive

ROUNDS: Final = 600_000
SALT_PREFIX: Final = b"orbital.v1.kdf\0"
LOGIN_INFO: Final = b"orbital.v1.login\0"
BACKUP_INFO: Final = b"orbital.v1.backup\0"


@dataclass(frozen=True, slots=True)
class Secrets:
    """`password` is what the relay gets at login, `backup_key` what the user's keys are sealed under."""

    password: str = field(repr=False)
    backup_key: bytes = field(repr=False)

    @classmethod
    def of(cls, username: str, passphrase: str) -> Self:
        """Derive both. Takes a quarter of a second of CPU: in a busy loop, `await asyncio.to_thread(…)`.

        Salt and rounds are fixed: what the relay could name, it could name badly.
        """
        salt = sha256(SALT_PREFIX + username.encode()).digest()
        kdf = PBKDF2HMAC(SHA256(), KEY_BYTES, salt, ROUNDS)
        root = kdf.derive(unicodedata.normalize("NFKC", passphrase).encode())
        login = base64.urlsafe_b64encode(derive(root, LOGIN_INFO)).rstrip(b"=").decode()
        return cls(login, derive(root, BACKUP_INFO))

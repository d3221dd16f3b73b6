"""The keys that sign access tokens: given by the operator, or made once and kept beside the embedded database."""

import base64
import hashlib
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from orbital_relay.config import Settings, TokenKey
from orbital_relay.errors import StartupError
from orbital_relay.store import facts
from orbital_relay.store.pool import Connection

FILE: Final = "token_keys"
_SECRET_BYTES: Final = 32
FACT: Final = "token_key"


def load(settings: Settings) -> Sequence[TokenKey]:
    """The keys, the signing one first; made (0600) on the first start with the embedded database."""
    if settings.token_keys:
        return settings.token_keys
    path = settings.data_dir / FILE
    if not path.exists():
        _make(path)
    try:
        return [TokenKey.parse(line) for line in path.read_text(encoding="utf-8").split()]
    except (OSError, ValueError) as error:
        raise StartupError(f"{path} can't be read as token keys: {error}") from error


def _make(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    secret = base64.urlsafe_b64encode(secrets.token_bytes(_SECRET_BYTES)).rstrip(b"=").decode()
    line = f"{secrets.token_hex(4)}:{secret}\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def fingerprint(key: TokenKey) -> str:
    """What the database keeps of a key, so that relays can tell whether they have the same."""
    return hashlib.sha256(b"orbital.token-key\0" + key.kid.encode() + b"\0" + key.secret).hexdigest()


async def register(connection: Connection, keys: Sequence[TokenKey]) -> None:
    """Agree with the other relays on this database: raise StartupError where they sign with a key that isn't here."""
    mine = fingerprint(keys[0])
    agreed = await facts.agree_on(connection, FACT, mine)
    if agreed == mine:
        return
    if agreed not in {fingerprint(key) for key in keys}:
        raise StartupError(
            "token_keys: the relays of this database sign with another key; give every relay the same keys "
            "(to rotate, put the new one first and keep the old one behind it)"
        )
    await facts.replace(connection, FACT, mine)

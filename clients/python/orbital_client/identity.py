"""A user's own keys, and the ids that clients make."""

import base64
import json
import os
import time
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Final, Self

import msgspec
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
)

from orbital_client.files import replace_file
from orbital_protocol import statements
from orbital_protocol.frames import PublicKey, SignedStatement
from orbital_protocol.statements import RosterEntry, Statement

RSA_BITS: Final = 3072


def uuid7() -> bytes:
    """A UUIDv7 (RFC 9562): 48 bits of milliseconds, then random bits. New ids sort after older ones."""
    raw = bytearray((time.time_ns() // 1_000_000).to_bytes(6, "big") + os.urandom(10))
    raw[6] = 0x70 | raw[6] & 0x0F
    raw[8] = 0x80 | raw[8] & 0x3F
    return bytes(raw)


def thumbprint(key: PublicKey) -> bytes:
    """SHA-256 of the key's required members (RFC 7638)."""
    required = {"e": key.e, "kty": key.kty, "n": key.n}
    return sha256(json.dumps(required, separators=(",", ":"), sort_keys=True).encode()).digest()


class _Stored(msgspec.Struct, frozen=True, kw_only=True):
    """An identity in a file; keys are PKCS#8, base64."""

    user_id: bytes
    signing_key: bytes
    rsa_key: bytes
    is_bot: bool


class Identity:
    """Who one is in every group: an id, an Ed25519 key that signs, an RSA key that group keys are wrapped for.

    The private keys never leave the client; whoever loses them loses the account's place in its groups.
    """

    def __init__(
        self, user_id: bytes, signing_key: Ed25519PrivateKey, rsa_key: rsa.RSAPrivateKey, *, is_bot: bool = False
    ) -> None:
        self.user_id = user_id
        self.signing = signing_key
        self.rsa = rsa_key
        self.is_bot = is_bot

    def __repr__(self) -> str:
        return f"Identity({self.user_id.hex()})"

    @classmethod
    def generate(cls, *, is_bot: bool = False) -> Self:
        """Make new keys. Takes up to a second of CPU: in a busy loop, `await asyncio.to_thread(Identity.generate)`."""
        rsa_key = rsa.generate_private_key(public_exponent=65537, key_size=RSA_BITS)
        return cls(uuid7(), Ed25519PrivateKey.generate(), rsa_key, is_bot=is_bot)

    @cached_property
    def signing_key(self) -> bytes:
        """The public signing key: 32 bytes."""
        return self.signing.public_key().public_bytes_raw()

    @cached_property
    def public_key(self) -> PublicKey:
        """The public RSA key as a JWK."""
        numbers = self.rsa.public_key().public_numbers()
        return PublicKey(kty="RSA", n=_base64url(numbers.n), e=_base64url(numbers.e), alg="RSA-OAEP-256")

    @cached_property
    def rsa_thumbprint(self) -> bytes:
        return thumbprint(self.public_key)

    def as_member(self, role: int) -> RosterEntry:
        """This identity's entry in a group's roster."""
        return RosterEntry(self.user_id, role, self.signing_key, self.rsa_thumbprint, self.is_bot)

    def sign(self, statement: Statement) -> SignedStatement:
        """Encode a statement and sign it."""
        raw = statements.encode(statement)
        return SignedStatement(statement=raw, signature=statements.sign(raw, self.signing))

    def save(self, path: Path) -> None:
        """Write the identity, private keys included and unencrypted, to a file that only its owner can read."""
        stored = _Stored(
            user_id=self.user_id,
            signing_key=self.signing.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()),
            rsa_key=self.rsa.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()),
            is_bot=self.is_bot,
        )
        replace_file(path, msgspec.json.encode(stored))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote; raises ValueError if it is something else."""
        stored = msgspec.json.decode(path.read_bytes(), type=_Stored)
        signing = load_der_private_key(stored.signing_key, None)
        rsa_key = load_der_private_key(stored.rsa_key, None)
        if not isinstance(signing, Ed25519PrivateKey) or not isinstance(rsa_key, rsa.RSAPrivateKey):
            raise ValueError(f"{path} holds keys of another kind")
        return cls(stored.user_id, signing, rsa_key, is_bot=stored.is_bot)


def _base64url(number: int) -> str:
    raw = number.to_bytes((number.bit_length() + 7) // 8, "big")
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()

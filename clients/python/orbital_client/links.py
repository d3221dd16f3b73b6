"""Invite links: what one member hands to a newcomer outside of the relay."""

import base64
import binascii
import struct
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Final, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from orbital_protocol.frames import Cursor

SCHEME: Final = "orbital:"
SIGN_INFO: Final = b"orbital.v1.invite.sign\0"

_FORMAT: Final = struct.Struct(">B16s16s32s16s32sQ32s")
_VERSION: Final = 1


@dataclass(frozen=True)
class InviteLink:
    """A code, and a secret that the relay never sees: the fragment behind the `#` of `text`.

    `seq` and `hash` are the head that the inviter had verified: the newcomer's chain starts there.
    """

    invite_code: str
    group_id: bytes
    invite_id: bytes
    secret: bytes = field(repr=False)
    inviter_id: bytes
    inviter_signing_key: bytes
    seq: int
    hash: bytes

    def at(self, invite_code: str, head: Cursor) -> Self:
        """The same invite, once the relay has given it a code and the inviter has verified a head."""
        return replace(self, invite_code=invite_code, seq=head.seq, hash=head.hash)

    @cached_property
    def key(self) -> Ed25519PrivateKey:
        """The invite's key: its public half is in the log, and whoever holds it may join."""
        seed = HKDF(SHA256(), length=32, salt=None, info=SIGN_INFO).derive(self.secret)
        return Ed25519PrivateKey.from_private_bytes(seed)

    @property
    def public_key(self) -> bytes:
        return self.key.public_key().public_bytes_raw()

    @property
    def text(self) -> str:
        """The link as text. It is a secret: hand it over where only the newcomer reads."""
        fragment = _FORMAT.pack(
            _VERSION,
            self.group_id,
            self.invite_id,
            self.secret,
            self.inviter_id,
            self.inviter_signing_key,
            self.seq,
            self.hash,
        )
        return f"{SCHEME}{self.invite_code}#{base64.urlsafe_b64encode(fragment).rstrip(b'=').decode()}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a link; raises ValueError, which never shows the text, if it isn't one."""
        code, mark, fragment = text.strip().removeprefix(SCHEME).partition("#")
        try:
            raw = base64.b64decode(fragment + "=" * (-len(fragment) % 4), altchars=b"-_", validate=True)
            version, *parts = _FORMAT.unpack(raw)
        except (binascii.Error, ValueError, struct.error):
            version, parts = 0, []
        if not mark or version != _VERSION:
            raise ValueError("this is no Orbital invite link, or one of a newer version")
        return cls(code, *parts)

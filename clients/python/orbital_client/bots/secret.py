"""The one secret that a bot is started with: its token for the relay, and a key that the relay never sees."""

import base64
import binascii
from dataclasses import dataclass, field
from typing import Final, Self

from orbital_client.crypto.primitives import KEY_BYTES

SCHEME: Final = "orbital-bot:"


@dataclass(frozen=True, slots=True)
class BotSecret:
    """`token` is shown to the relay; `backup_key`, behind the `#`, opens the backup of the bot's keys."""

    token: str = field(repr=False)
    backup_key: bytes = field(repr=False)

    @property
    def text(self) -> str:
        """The secret as text."""
        key = base64.urlsafe_b64encode(self.backup_key).rstrip(b"=").decode()
        return f"{SCHEME}{self.token}#{key}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a secret; raises ValueError, which never shows the text, if it isn't one."""
        token, _, key = text.strip().removeprefix(SCHEME).partition("#")
        try:
            raw = base64.b64decode(key + "=" * (-len(key) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            raw = b""
        if not text.strip().startswith(SCHEME) or not token or len(raw) != KEY_BYTES:
            raise ValueError(f"this is no bot's secret: those begin with {SCHEME}")
        return cls(token, raw)

"""Ids that are made again instead of kept: what is posted under one stands once, even if a bot is killed on the way."""

import hmac
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import count
from typing import Final

from orbital_client.crypto.contents import PLAIN
from orbital_client.crypto.primitives import derive
from orbital_client.messages import Message

_INFO: Final = b"orbital.bot.id\0"
_ID_BYTES: Final = 16

MakeId = Callable[[int], bytes]
"""Makes the id of the n-th answer."""


class Ids:
    """Ids that only whoever has the bot's secret can make: nobody takes one before it does."""

    def __init__(self, backup_key: bytes) -> None:
        self._key = derive(backup_key, _INFO)

    def make(self, *parts: str | bytes) -> bytes:
        """The id that belongs to these parts: a UUID of version 8 (RFC 9562)."""
        mac = hmac.new(self._key, digestmod=sha256)
        for part in parts:
            raw = part.encode() if isinstance(part, str) else part
            mac.update(len(raw).to_bytes(8, "big") + raw)
        made = bytearray(mac.digest()[:_ID_BYTES])
        made[6] = 0x80 | made[6] & 0x0F
        made[8] = 0x80 | made[8] & 0x3F
        return bytes(made)


@dataclass(frozen=True, slots=True)
class Heard(Message):
    """A message as a handler gets it: its n-th `reply` by that handler stands once, however often it is handled."""

    make_id: MakeId = field(repr=False, compare=False)
    _replies: Iterator[int] = field(default_factory=count, init=False, repr=False, compare=False)

    async def reply(self, text: str, *, format: str = PLAIN) -> Message:
        """Reply in its thread."""
        return await self.group.reply(self.thread_id, text, format=format, id=self.make_id(next(self._replies)))

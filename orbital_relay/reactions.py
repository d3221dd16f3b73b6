"""What a relay does with the hints it hears: close sockets, pass signals and cursors on, show knocks to admins."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from orbital_protocol.codes import CloseCode
from orbital_protocol.frames import CursorMoved, JoinRequested, Signal
from orbital_relay import hints
from orbital_relay.errors import RequestError
from orbital_relay.fanout import Fanout
from orbital_relay.registry import Registry

_KNOCKS_WAITING: Final = 1_000

Announcement = tuple[Sequence[bytes], JoinRequested]
"""The admins who should see a knock, and what they get to see."""


class Reactions:
    """Carries out hints on one relay. A knock is looked up first, by a task of its own."""

    def __init__(
        self,
        relay_hex: str,
        registry: Registry,
        fanout: Fanout,
        look_up: Callable[[bytes, bytes], Awaitable[Announcement | None]],
    ) -> None:
        self._relay_hex = relay_hex
        self._registry = registry
        self._fanout = fanout
        self._look_up = look_up
        self._knocks: asyncio.Queue[hints.Knock] = asyncio.Queue(_KNOCKS_WAITING)

    def react(self, hint: hints.Hint) -> None:
        """Do what a hint calls for. Wake-ups and echoes are not for here."""
        match hint:
            case hints.Revoke():
                self._revoke(hint)
            case hints.Knock():
                if not self._knocks.full():  # an admin who misses the push finds the knock in group.get
                    self._knocks.put_nowait(hint)
            case hints.SignalHint() if hint.relay_hex != self._relay_hex:
                self._fanout.signal(Signal(group_id=hint.group_id, user_id=hint.user_id, payload=hint.payload))
            case hints.CursorHint():
                self._move_cursor(hint)
            case _:
                pass

    async def run(self) -> None:
        """Show knocks until cancelled."""
        while True:
            knock = await self._knocks.get()
            try:
                found = await self._look_up(knock.group_id, knock.request_id)
            except RequestError:
                continue  # the database is away; group.get shows the knock later
            if found is not None:
                user_ids, push = found
                self._registry.push_about(knock.group_id, user_ids, push)

    def _revoke(self, hint: hints.Revoke) -> None:
        try:
            code = CloseCode(hint.close_code)
        except ValueError:  # a later relay's
            code = CloseCode.REVOKED
        if hint.subject == "user":
            self._registry.end_user(hint.subject_id, code)
        else:
            self._registry.end_sessions([hint.subject_id], code)

    def _move_cursor(self, hint: hints.CursorHint) -> None:
        push = CursorMoved(group_id=hint.group_id, name=hint.name, seq=hint.seq, hash=hint.hash)
        self._registry.push_about(hint.group_id, [hint.user_id], push)

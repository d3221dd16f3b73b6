"""A member's client as it is shipped, but for the socket: what a connection would bring is handed in."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Self, TypeVar, cast

from bench.stage import BenchError
from bench.talk import Talk
from orbital_client.errors import OrbitalError
from orbital_client.group import Group
from orbital_client.identity import Identity
from orbital_client.intake import Ears, Intake
from orbital_client.keeper import Keeper
from orbital_client.messages import Message
from orbital_client.people import People
from orbital_client.replica import Replica
from orbital_client.sending import Sender
from orbital_client.store import Store
from orbital_client.trust.log import Log
from orbital_client.wire import Client as WireClient
from orbital_protocol import ZERO_HASH
from orbital_protocol.codec import decode_push, encode, frame_head, split
from orbital_protocol.frames import Cursor, Event, Live, Ok, Push, Request, SubscribedGroup, SubscribeOk

A = TypeVar("A", bound=Ok)

_LIMIT_S: Final = 60


class Wire(WireClient):
    """The client of opaque bytes, subscribed to one group without a relay."""

    @classmethod
    async def subscribed(cls, group_id: bytes) -> Self:
        """Ready for the group's first event."""
        wire = cls("ws://unplugged.invalid", follow=False)
        wire._feed.connected([])
        wire.follow_from(Cursor(group_id=group_id, seq=0, hash=ZERO_HASH))

        async def ask(request: Request, answer: type[A]) -> A:
            return cast(A, SubscribeOk(id=0, groups=[SubscribedGroup(group_id=group_id, status="resumed")]))

        await wire._feed.subscribe(ask)
        return wire

    def bring(self, message: bytes) -> None:
        """What a connection does with a message of its socket."""
        for raw in split(message):
            frame_head(raw)
            push = decode_push(raw)
            if not isinstance(push, Push):
                raise BenchError("the log has something else than events")
            self._feed.push(push, len(raw))

    def check_running(self) -> None:
        """Nothing has ended: more will come."""


class Member:
    """Somebody who has come as far as the group's opening, and reads on."""

    def __init__(self, wire: Wire, store: Store, said: Talk) -> None:
        self._wire = wire
        self._people = People(wire, store)
        for user_id, name in said.names.items():
            self._people.hear(user_id, name)
        log = Log(said.group_id, store.index(said.group_id))
        self.replica = Replica(wire, store, self._people, log, dict(said.keys))
        self.intake = Intake(wire, store, {said.group_id: self.replica}, _deaf())
        identity = said.authors[0]
        self._group = Group(
            client=wire,
            replica=self.replica,
            keeper=Keeper(self.replica, self._people, identity),
            people=self._people,
            identity=identity,
            after_change=lambda: None,
        )
        self._messages: AsyncIterator[Message] | None = None

    @classmethod
    @asynccontextmanager
    async def of(cls, said: Talk, path: Path) -> AsyncIterator["Member"]:
        """With a new store in a file."""
        with Store(path) as store:
            member = cls(await Wire.subscribed(said.group_id), store, said)
            intake = asyncio.create_task(member.intake.run())
            try:
                await member._come_in(said)
                yield member
            finally:
                intake.cancel()
                await asyncio.wait({intake})

    async def _come_in(self, said: Talk) -> None:
        last = said.opening[-1]
        self.bring(as_message([*said.opening, Live(group_id=said.group_id, seq=last.seq, hash=last.hash)]))
        if not await self.replica.pulse.until(lambda: self.replica.is_live, _LIMIT_S):
            raise BenchError("the group's opening was not taken in")
        self._messages = self._group.follow(self._group.cursor)

    def bring(self, message: bytes) -> None:
        """These bytes come in: taken apart, decoded, and kept for the client's task until somebody waits."""
        self._wire.bring(message)

    async def read(self, count: int) -> list[Message]:
        """So many messages of what has come in, once the client has verified, stored and opened them."""
        if self._messages is None:
            raise BenchError("the member has not come in")
        try:
            async with asyncio.timeout(_LIMIT_S):
                return [await anext(self._messages) for _ in range(count)]
        except (OrbitalError, TimeoutError) as error:
            raise BenchError(f"messages were not opened: {error!r}") from error

    def sender(self, identity: Identity) -> Sender:
        """What posts for one of the group's members."""
        return Sender(self.replica, self._people, identity)


def as_message(pushes: Sequence[Event | Live]) -> bytes:
    """A message of the relay's with these in it."""
    return b"".join(encode(push) for push in pushes)


def _deaf() -> Ears:
    return Ears(*(lambda _: None,) * 2, lambda: None, *(lambda _: None,) * 2)

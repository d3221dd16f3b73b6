"""Somebody who loses connections and comes back, with everything that they ever received of one group."""

import asyncio
from collections.abc import Iterable
from contextlib import AsyncExitStack

from msgspec.structs import replace

from orbital_protocol import ZERO_HASH, ZERO_ID, frames, statements
from orbital_protocol.chain import content_hash, control_content_hash, field_hash
from orbital_protocol.codes import Kind
from orbital_protocol.frames import Event, Ok, Request, SubscribeGroup
from orbital_protocol.statements import RosterEntry
from tests.people import roster_after
from tests.talk import LIMIT_S, Refused, Talk, check_steps, talking


class Client:
    """Somebody with one connection at a time, and every event of the group that they ever received."""

    def __init__(self, name: str, token: str, group_id: bytes, *, urls: tuple[str, str], relay: int) -> None:
        self.name = name
        self.relay = relay
        """Which of the two relays the next connection is to."""
        self.is_subscribed = False
        self.checked: list[Event] = []
        """The events that `check` found to be right."""
        self._token = token
        self._group_id = group_id
        self._urls = urls
        self._earlier: list[Event] = []
        self._talk: Talk | None = None
        self._stack = AsyncExitStack()

    @property
    def events(self) -> list[Event]:
        """What came, in order."""
        return [*self._earlier, *(self._talk.events if self._talk else ())]

    @property
    def last_seq(self) -> int:
        """The last event that came; 0 before the first."""
        events = self.events
        return events[-1].seq if events else 0

    @property
    def is_connected(self) -> bool:
        return self._talk is not None

    async def talk(self) -> Talk:
        """The connection; a new one, where there is none."""
        if self._talk is None:
            self._talk = await self._stack.enter_async_context(talking(self._urls[self.relay], self._token))
        return self._talk

    async def cut(self) -> None:
        """Lose the connection, if there is one."""
        if self._talk is not None:
            self._talk.cut()
            await self._talk.closed()
            self._earlier += self._talk.events
            assert not self._talk.strays
            self._talk = None
            self.is_subscribed = False
            await self._stack.aclose()

    async def ask(self, request: Request, *, lost: bool) -> Ok | Refused:
        """Make a request. `lost`: the connection is cut before the answer, and the same is asked of the other relay."""
        talk = await self.talk()
        if lost:
            _unheard = talk.send(replace(request, id=talk.next_id()))
            await asyncio.wait(talk._sending)
            await self.cut()
            self.relay = 1 - self.relay
            talk = await self.talk()
        try:
            async with asyncio.timeout(LIMIT_S):
                return await talk.send(replace(request, id=talk.next_id()))
        except Refused as refused:
            return refused

    async def subscribe(self) -> frames.SubscribedGroup:
        """Ask for everything after the last event that came; wait until that has come too."""
        talk, events = await self.talk(), self.events
        seq, hash_ = (events[-1].seq, events[-1].hash) if events else (0, ZERO_HASH)
        wanted = SubscribeGroup(group_id=self._group_id, after_seq=seq, after_hash=hash_)
        [group] = (await talk.ask(frames.Subscribe, groups=[wanted])).groups
        assert isinstance(group, frames.SubscribedGroup)
        self.is_subscribed = group.status == "resumed"
        if self.is_subscribed:
            live = await talk.hear(frames.Live)
            assert live.seq == self.last_seq
        return group

    async def gone(self) -> str:
        """Wait for the end of the subscription; say why it ended."""
        gone = await (await self.talk()).hear(frames.GroupGone)
        self.is_subscribed = False
        return gone.reason

    async def has(self, seq: int) -> None:
        """Wait until this event has come."""
        if self.last_seq < seq:
            await (await self.talk()).has(seq, self._group_id)

    async def flush(self) -> None:
        """Whatever the relay had queued for this connection has come when this returns."""
        if self.is_connected:
            await (await self.talk()).ask(frames.Ping)

    def check(self, hashes: list[bytes]) -> None:
        """Hold what came since the last time against the hashes that were acknowledged, by seq."""
        for event in self.events[len(self.checked) :]:
            assert event.seq < len(hashes), f"{self.name} received {event.seq}, which nobody was told of"
            assert event.hash == hashes[event.seq], f"{self.name} received another {event.seq} than was acknowledged"
            assert event.content_hash == _content_hash(event), f"{self.name} received {event.seq} with other content"
            self.checked.append(event)
            check_steps(self.checked[-2:])


def _content_hash(event: Event) -> bytes:
    """Recomputed from what the event brings, or where that was erased from the hashes that stand in for it."""
    if event.statement is not None and event.signature is not None:
        return control_content_hash(event.statement, event.signature)
    fields = [each for each in (event.encrypted_title, event.encrypted_body) if each is not None]
    hashes = event.field_hashes or [field_hash(each) for each in fields]
    return content_hash(event.thread_id or event.target_id or ZERO_ID, hashes)


def roster_of(log: Iterable[Event]) -> dict[bytes, RosterEntry]:
    """The members, as the statements of a whole log tell (and the relay, of accounts that were deleted)."""
    roster: dict[bytes, RosterEntry] = {}
    for event in log:
        if event.statement is not None:
            roster = roster_after(roster, statements.decode(event.statement))
        elif event.kind == Kind.MEMBER_LEFT:
            del roster[event.object_id]
    return roster

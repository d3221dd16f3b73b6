"""Hints that become pushes: they come to those whom they are for, and to none of their tokens that see less."""

import asyncio
from dataclasses import dataclass, field
from typing import cast

import pytest

from orbital_protocol import ZERO_HASH
from orbital_protocol.codes import CloseCode, Scope
from orbital_protocol.frames import CursorMoved, Frame, JoinRequest, JoinRequested
from orbital_relay import hints
from orbital_relay.caller import ALL_SCOPES, Caller
from orbital_relay.fanout import Fanout
from orbital_relay.reactions import Announcement, Reactions
from orbital_relay.registry import Registry
from tests.people import Person, new_id
from tests.worlds import RELAY_HEX, FakePeer

LIMIT_S = 5
GROUP = b"g" * 16


@dataclass
class Connection(FakePeer):
    """A live connection that keeps what is offered to it."""

    offered: list[Frame] = field(default_factory=list)

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other

    def offer(self, frame: Frame) -> None:
        self.offered.append(frame)

    def quiesce(self) -> None: ...

    def waiting_bytes(self) -> int:
        return 0

    async def answered(self) -> None: ...

    def close_now(self, code: CloseCode) -> None:
        self.closed.append(code)


def connect(registry: Registry, caller: Caller) -> Connection:
    connection = Connection(caller)
    registry.add(connection)
    registry.authenticated(connection, caller)
    return connection


@pytest.fixture
def ann() -> Person:
    return Person("ann")


@pytest.fixture
def registry() -> Registry:
    return Registry()


@pytest.fixture
def listening(registry: Registry, ann: Person) -> list[Connection]:
    """Ann's session, and a token of hers that reads this group."""
    callers = ann.caller(), ann.caller(scopes=frozenset({Scope.READ}), groups=frozenset({GROUP}))
    return [connect(registry, caller) for caller in callers]


@pytest.fixture
def deaf(registry: Registry, ann: Person) -> list[Connection]:
    """A token of hers for another group, one that doesn't read, and somebody else."""
    callers = (
        ann.caller(groups=frozenset({new_id()})),
        ann.caller(scopes=ALL_SCOPES - {Scope.READ}),
        Person("bob").caller(),
    )
    return [connect(registry, caller) for caller in callers]


async def test_a_knock_is_shown_to_whoever_may_see_the_group(
    registry: Registry, ann: Person, listening: list[Connection], deaf: list[Connection]
) -> None:
    carol = Person("carol")
    shown = JoinRequested(
        group_id=GROUP,
        request=JoinRequest(
            request_id=new_id(),
            user_id=carol.user_id,
            username=carol.username,
            public_key=carol.public_key,
            signing_key=carol.signing_key,
            is_bot=False,
            requested_at=0,
        ),
    )

    async def look_up(_group_id: bytes, _request_id: bytes) -> Announcement:
        return [ann.user_id], shown

    reactions = Reactions(RELAY_HEX, registry, cast(Fanout, None), look_up)
    running = asyncio.create_task(reactions.run())
    try:
        reactions.react(hints.Knock(GROUP, shown.request.request_id))
        async with asyncio.timeout(LIMIT_S):
            while not all(connection.offered for connection in listening):
                await asyncio.sleep(0)
    finally:
        running.cancel()
        await asyncio.wait({running})
    assert [connection.offered for connection in listening] == [[shown], [shown]]
    assert [connection.offered for connection in deaf] == [[], [], []]


async def test_a_cursor_is_told_to_whoever_may_see_the_group(
    registry: Registry, ann: Person, listening: list[Connection], deaf: list[Connection]
) -> None:
    async def look_up(_group_id: bytes, _request_id: bytes) -> None:
        return None

    reactions = Reactions(RELAY_HEX, registry, cast(Fanout, None), look_up)
    reactions.react(hints.CursorHint(ann.user_id, GROUP, "place", 0, ZERO_HASH))
    moved = CursorMoved(group_id=GROUP, name="place", seq=0, hash=ZERO_HASH)
    assert [connection.offered for connection in listening] == [[moved], [moved]]
    assert [connection.offered for connection in deaf] == [[], [], []]

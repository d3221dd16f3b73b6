"""How a group is changed: statements built on what was verified of its log, signed, and built anew if it moved on."""

import asyncio
from collections.abc import Callable
from typing import Final, Protocol, TypedDict, TypeVar

from msgspec.structs import replace

from orbital_client.errors import OutOfDate
from orbital_client.identity import Identity, thumbprint, uuid7
from orbital_client.wire.ledger import Ledger, Roster, roster_after
from orbital_client.wire.transfers import Places
from orbital_protocol import ZERO_HASH
from orbital_protocol.codes import ErrorCode
from orbital_protocol.frames import (
    ControlOk,
    ControlRequest,
    Cursor,
    Event,
    EventList,
    EventListOk,
    GroupGet,
    GroupGetOk,
    Limits,
    Member,
    MemberList,
    MemberListOk,
    Ok,
    Request,
)
from orbital_protocol.statements import RosterEntry, Statement, roster_hash

A = TypeVar("A", bound=Ok)
C = TypeVar("C", bound=ControlOk)
S = TypeVar("S", bound=Statement)

_ATTEMPTS: Final = 5
_FAR_BEHIND: Final = 1000  # events; from there on the roster is loaded anew


class Relay(Protocol):
    """What a group needs of its client."""

    @property
    def identity(self) -> Identity: ...

    @property
    def limits(self) -> Limits: ...

    @property
    def places(self) -> Places: ...

    async def request(self, request: Request, answer: type[A], *, timeout_s: float | None = None) -> A: ...

    def check(self, group_id: bytes) -> None:
        """Raise LogBroken if the group's log has shown itself broken."""


class Signed(Protocol):
    """Makes the request that carries a signed statement."""

    def __call__(self, *, id: int, statement: bytes, signature: bytes) -> ControlRequest: ...


class Header(TypedDict):
    """The elements that every statement begins with."""

    group_id: bytes
    actor_id: bytes
    statement_id: bytes
    base_seq: int
    base_hash: bytes
    key_epoch: int
    roster_hash: bytes


def with_roster(statement: S, roster: Roster) -> S:
    """The statement with the hash of the roster as it will be after it."""
    return replace(statement, roster_hash=roster_hash(roster_after(roster, statement).values()))


class Basis(Protocol):
    """What is known of a group's log: the place in it, the members and the key epoch that statements are built on."""

    @property
    def position(self) -> Cursor: ...

    @property
    def key_epoch(self) -> int: ...

    @property
    def roster(self) -> Roster: ...


class Knowledge(Protocol):
    """Who knows a group's log."""

    async def loaded(self) -> Basis:
        """What is known, or was just learned."""

    async def catch_up(self) -> None:
        """Learn what the log has by now."""

    def observe(self, event: Event) -> None:
        """Take note of an event that the subscription verified. Raises ChainBroken if it isn't what a page had."""


class Control:
    """The way from a draft on what is known of a group to the relay's answer."""

    def __init__(self, relay: Relay, group_id: bytes, knowledge: Knowledge | None = None) -> None:
        self._relay = relay
        self._group_id = group_id
        self._knowledge = knowledge or Listed(relay, group_id)
        self._one_at_a_time = asyncio.Lock()

    def observe(self, event: Event) -> None:
        """Take note of an event that the subscription verified. Raises ChainBroken if it isn't what a page had."""
        self._knowledge.observe(event)

    async def change(self, draft: Callable[[Basis], Statement], request: Signed, answer: type[C]) -> C:
        """Build a statement, sign and send it; if the group has changed since what it was built on, build it anew."""
        async with self._one_at_a_time:
            for _ in range(_ATTEMPTS - 1):
                try:
                    return await self._try(draft, request, answer)
                except OutOfDate as failure:
                    if failure.code == ErrorCode.REKEY_REQUIRED:
                        raise
                    await self._knowledge.catch_up()
            return await self._try(draft, request, answer)

    async def _try(self, draft: Callable[[Basis], Statement], request: Signed, answer: type[C]) -> C:
        self._relay.check(self._group_id)
        basis = await self._knowledge.loaded()
        signed = self._relay.identity.sign(with_roster(draft(basis), basis.roster))
        return await self._relay.request(request(id=0, statement=signed.statement, signature=signed.signature), answer)

    def header(self, basis: Basis) -> Header:
        """The first elements of a statement on what is known."""
        return Header(
            group_id=self._group_id,
            actor_id=self._relay.identity.user_id,
            statement_id=uuid7(),
            base_seq=basis.position.seq,
            base_hash=basis.position.hash,
            key_epoch=basis.key_epoch,
            roster_hash=ZERO_HASH,
        )

    async def position(self) -> Cursor:
        """The place in the log that was verified."""
        return (await self._knowledge.loaded()).position


class Lists:
    """What the relay lists of a group, page by page."""

    def __init__(self, relay: Relay, group_id: bytes) -> None:
        self._relay = relay
        self._group_id = group_id

    async def page(
        self, *, after_seq: int | None = None, before_seq: int | None = None, limit: int = 100
    ) -> EventListOk:
        request = EventList(
            id=0, group_id=self._group_id, after_seq=after_seq, before_seq=before_seq, limit=self.limit(limit)
        )
        return await self._relay.request(request, EventListOk)

    async def members(self) -> list[Member]:
        """All members as the relay lists them, page by page."""
        members: list[Member] = []
        while True:
            request = MemberList(
                id=0,
                group_id=self._group_id,
                after_user_id=members[-1].user_id if members else None,
                limit=self.limit(1000),
            )
            page = await self._relay.request(request, MemberListOk)
            members += page.members
            if not page.more or not page.members:
                return members

    def limit(self, wanted: int) -> int:
        return max(1, min(wanted, self._relay.limits.page_limit))


class Listed:
    """Knows a group as the relay lists it, and from then on by the chain."""

    def __init__(self, relay: Relay, group_id: bytes) -> None:
        self._relay = relay
        self._group_id = group_id
        self._lists = Lists(relay, group_id)
        self._ledger: Ledger | None = None

    def observe(self, event: Event) -> None:
        if self._ledger is not None and event.seq == self._ledger.position.seq + 1:
            self._ledger.advance(event)

    async def loaded(self) -> Ledger:
        if self._ledger is None:
            self._ledger = await self._load()
        return self._ledger

    async def _load(self) -> Ledger:
        """The ledger from the relay's lists.

        The lists are read after the position, so what happened meanwhile may be in them already. A statement on
        that position is then refused, and applying those events once more changes nothing.
        """
        info = await self._relay.request(GroupGet(id=0, group_id=self._group_id), GroupGetOk)
        roster = {member.user_id: _entry(member) for member in await self._lists.members()}
        position = Cursor(group_id=self._group_id, seq=info.seq, hash=info.hash)
        return Ledger(position, key_epoch=info.key_epoch, roster=roster)

    async def catch_up(self) -> None:
        """Bring the ledger to the log's head."""
        ledger = await self.loaded()
        while True:
            page = await self._lists.page(after_seq=ledger.position.seq)
            if page.seq - ledger.position.seq > _FAR_BEHIND:
                self._ledger = await self._load()
                return
            _walk_on(ledger, page)
            if not page.more:
                return


def _entry(member: Member) -> RosterEntry:
    return RosterEntry(member.user_id, member.role, member.signing_key, thumbprint(member.public_key), member.is_bot)


def _walk_on(ledger: Ledger, page: EventListOk) -> None:
    """Go on by what a page has beyond the ledger, which events of the subscription may have advanced meanwhile."""
    for event in page.events:
        if event.seq > ledger.position.seq:
            ledger.advance(event)
    if not page.events and page.seq > ledger.position.seq:
        raise ledger.broken("the relay leaves out what comes next")

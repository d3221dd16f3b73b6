"""A group's life in any order that hypothesis can think of, on two relays, against a model of what must be answered.

Requests go one at a time, so that the model can foretell each answer; what they cause is delivered meanwhile. (What
happens when requests meet is test_races.py's.) Every event that anybody receives is held against the answers: it was
acknowledged, it is the same for all, each follows upon the last, and nothing follows one's own removal.
"""

import asyncio
import os
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from msgspec.structs import replace

from orbital_protocol import ZERO_HASH, ZERO_ID, frames
from orbital_protocol.chain import field_hash
from orbital_protocol.codes import ErrorCode, History, Kind, Role
from orbital_protocol.frames import ControlOk, ControlRequest, Event, Ok, Request, WrappedKey
from orbital_protocol.statements import (
    GroupDeleted,
    GroupRekeyed,
    GroupTransferred,
    InviteCreated,
    InviteRevoked,
    MemberJoined,
    MemberLeft,
    MemberRemoved,
    MemberRole,
    MemberUnbanned,
    PostDeleted,
    RosterEntry,
    Statement,
    join_preimage,
    kind_of,
)
from orbital_relay.store.pool import Connection
from tests.clients import Client, roster_of
from tests.model import HIDDEN, SHUT, Flaw, Group, Invite, Post, Recipients, Verdict
from tests.people import Person, View, connected, enroll, found_group, new_id, sign, view, write
from tests.people import admit as put_in
from tests.postgres import TestPostgres
from tests.relays import RunningRelay, running_relay
from tests.talk import Refused, Talk, token_of
from tests.worlds import verified_log

pytestmark = pytest.mark.timeout(600)

T = TypeVar("T")

NAMES = ("ann", "bob", "cleo", "dan")
WITNESS = "wes"
"""A member from first to last, who does nothing but listen, on each relay."""

UNLIMITED: dict[str, Any] = dict.fromkeys(
    ("rekeys_per_hour", "knocks_per_hour", "invite_attempts_per_minute"), 1_000_000
)


# ── the scene ───────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Scene:
    """Two relays on one database, and people with accounts; all of it lives in the loop of `runner`."""

    runner: asyncio.Runner
    relays: tuple[RunningRelay, RunningRelay]
    connection: Connection
    people: dict[str, Person]
    tokens: dict[str, str]


@pytest.fixture(scope="module")
def scene(embedded_postgres: TestPostgres) -> Iterator[Scene]:
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        try:
            yield runner.run(_set(runner, stack, embedded_postgres))
        finally:
            runner.run(stack.aclose())


async def _set(runner: asyncio.Runner, stack: AsyncExitStack, postgres: TestPostgres) -> Scene:
    dsn = await stack.enter_async_context(postgres.migrated_database())
    connection = await stack.enter_async_context(connected(dsn))
    first = await stack.enter_async_context(running_relay(dsn, **UNLIMITED))
    second = await stack.enter_async_context(running_relay(dsn, **UNLIMITED))
    for relay in (first, second):
        await relay.logged("listener.connected")
    people = {name: await enroll(connection, name) for name in (*NAMES, WITNESS)}
    tokens = {name: await token_of(connection, person) for name, person in people.items()}
    return Scene(runner, (first, second), connection, people, tokens)


# ── what a step draws ───────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Link:
    """An invite link as whoever holds it knows it."""

    number: int
    invite_id: bytes = field(repr=False)
    code: str = field(repr=False)
    key: Ed25519PrivateKey = field(repr=False)
    model: Invite = field(repr=False)

    def signature_for(self, group_id: bytes, newcomer: Person, *, signed: bool = True) -> bytes:
        """The link's signature for a newcomer; with a key of one's own making if not `signed`."""
        preimage = join_preimage(
            group_id=group_id,
            invite_id=self.invite_id,
            user_id=newcomer.user_id,
            signing_key=newcomer.signing_key,
            rsa_thumbprint=newcomer.rsa_thumbprint,
        )
        return (self.key if signed else Ed25519PrivateKey.generate()).sign(preimage)


@dataclass(frozen=True)
class Posted:
    """A post in the log, with the request that put it there and what it was answered."""

    object_id: bytes = field(repr=False)
    request: frames.Post = field(repr=False)
    answer: frames.PostOk = field(repr=False)
    model: Post


@dataclass(frozen=True)
class Said:
    """A statement in the log, with the request that put it there and what it was answered."""

    actor: str
    kind: Kind
    request: ControlRequest = field(repr=False)
    answer: ControlOk = field(repr=False)


@dataclass(frozen=True)
class Manner:
    """How a statement is made: with what flaw, and whether the connection is lost before the answer."""

    flaw: Flaw = Flaw.NONE
    lost: bool = False


def _one_of(choose: Callable[["GroupMachine"], Sequence[T]]) -> st.SearchStrategy[T]:
    """One of those that the machine has; the rule's precondition sees to it that there is one."""
    return st.runner().flatmap(lambda machine: st.sampled_from(choose(machine)))


def _likely(matters: Callable[[Group, str], bool]) -> st.SearchStrategy[str]:
    """Mostly one of those whom the rule is about, sometimes anybody."""
    return _one_of(lambda machine: [*(n for n in NAMES * 8 if matters(machine.group, n)), *NAMES])


anybody = st.sampled_from(NAMES)
a_member = _likely(lambda group, name: name in group.roles)
an_admin = _likely(lambda group, name: group.role(name) >= Role.ADMIN)
the_owner = _likely(lambda group, name: group.role(name) == Role.OWNER)
a_subject = _likely(lambda group, name: name in group.roles and group.role(name) < Role.OWNER)
a_rekeyer = _likely(lambda group, name: group.role(name) >= (Role.MEMBER if group.rekey_required else Role.ADMIN))
a_stranger = _likely(lambda group, name: name not in group.roles)
a_knocker = _likely(lambda group, name: name in group.knocks)
a_banned = _likely(lambda group, name: name in group.banned)
a_link = _one_of(lambda machine: machine.links)
any_post = _one_of(lambda machine: machine.posts)
a_post = _one_of(lambda machine: [*(post for post in machine.posts if not post.model.erased), *machine.posts])

seldom = st.sampled_from([False] * 7 + [True])
mostly = seldom.map(lambda drawn: not drawn)
manners = st.builds(Manner, flaw=st.sampled_from([Flaw.NONE] * 20 + [*Flaw]), lost=seldom)


def _has_subjects(machine: "GroupMachine") -> bool:
    """Whether somebody is below the owner (or everybody, because the group is gone)."""
    return machine.group.deleted or any(machine.group.role(name) in (Role.MEMBER, Role.ADMIN) for name in NAMES)


class GroupMachine(RuleBasedStateMachine):
    """One group, founded anew for each example."""

    def __init__(self, scene: Scene) -> None:
        super().__init__()
        self.scene = scene
        self.is_sound = True
        self.links: list[Link] = []
        self.posts: list[Posted] = []
        self.sayings: list[Said] = []
        self.knocked: dict[str, tuple[bytes, Link | None]] = {}
        self.ended_at: dict[str, int] = {}  # the last end of somebody's membership
        self.everyone: list[Client] = []

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something in the loop of the scene."""
        self.is_sound = False
        result = self.scene.runner.run(work)
        self.is_sound = True
        return result

    # ── beginning and end ───────────────────────────────────────────────────────────────────────────────────────────

    @initialize(
        history=st.sampled_from([History.SHARED, History.SHARED, History.NONE]),
        relays=st.tuples(*[st.integers(0, 1)] * len(NAMES)),
    )
    def found(self, history: History, relays: tuple[int, ...]) -> None:
        self.run(self._found(history, relays))

    async def _found(self, history: History, relays: tuple[int, ...]) -> None:
        """Ann owns the group, Bob is an admin, Cleo and the witness are members, Dan is a stranger; all listen."""
        people, connection = self.scene.people, self.scene.connection
        ann = people["ann"]
        self.group_id = await found_group(connection, ann, people[WITNESS], people["cleo"], history=history)
        await put_in(connection, self.group_id, ann, people["bob"], Role.ADMIN)
        log = await verified_log(connection, self.group_id)
        self.hashes = [ZERO_HASH, *(event.hash for event in log)]
        self.taken_id = log[0].object_id
        self.code = await connection.fetchval("SELECT invite_code FROM groups WHERE id = $1", self.group_id)
        roles = {"ann": Role.OWNER, "bob": Role.ADMIN, "cleo": Role.MEMBER, WITNESS: Role.MEMBER}
        self.group = Group(history, roles, seq=len(log), roster_seq=len(log))
        self.clients = {name: self._client(name, relay) for name, relay in zip(NAMES, relays, strict=True)}
        witnesses = [self._client(WITNESS, relay) for relay in (0, 1)]
        self.everyone = [*self.clients.values(), *witnesses]
        for client in self.everyone:
            await self._subscribe(client)

    def _client(self, name: str, relay: int) -> Client:
        first, second = self.scene.relays
        token = self.scene.tokens[name]
        return Client(name, token, self.group_id, urls=(first.url, second.url), relay=relay)

    def teardown(self) -> None:
        try:
            if self.is_sound and self.everyone:
                self.run(self._catch_up())
                self.run(self._check_database())
        finally:
            for client in self.everyone:
                self.scene.runner.run(client.cut())

    @invariant()
    def events_are_those_that_were_acknowledged(self) -> None:
        for client in self.everyone:
            client.check(self.hashes)
            if client.name not in self.group.roles and not self.group.deleted:
                assert client.last_seq <= self.ended_at.get(client.name, 0), f"{client.name} was told too much"

    # ── connections ─────────────────────────────────────────────────────────────────────────────────────────────────

    @rule(name=anybody, relay=st.sampled_from([None, 0, 1]))
    def cut(self, name: str, relay: int | None) -> None:
        """Cut a connection; where a relay is given, resume there."""
        self.run(self._cut(self.clients[name], relay))

    async def _cut(self, client: Client, relay: int | None) -> None:
        await client.cut()
        if relay is not None:
            client.relay = relay
            await self._subscribe(client)

    async def _subscribe(self, client: Client) -> None:
        group = await client.subscribe()
        assert group.status == self.group.may_subscribe(client.name)
        if client.is_subscribed:
            assert client.last_seq == self.group.seq

    async def _catch_up(self) -> None:
        """Wait until everyone has what they must get, and see that nobody gets more."""
        for client in self.everyone:
            if client.is_subscribed and client.name in self.group.roles:
                await client.has(self.group.seq)
            elif client.is_subscribed:
                await self._await_end(client)
        for client in self.everyone:
            await client.flush()
        self.events_are_those_that_were_acknowledged()

    async def _await_end(self, client: Client) -> None:
        """A membership ended: so does the subscription, and its last event is what ended it.

        Where the group was deleted meanwhile, the log may be gone before its last events reach the other relay.
        """
        reason = await client.gone()
        if not self.group.deleted:
            assert reason in ("left", "removed")
            assert client.last_seq == self.ended_at[client.name]

    async def _welcome(self, name: str) -> None:
        """Somebody has just become a member: an old subscription doesn't come to life again, a new one begins."""
        client = self.clients[name]
        if client.is_subscribed:
            await self._await_end(client)
        if client.is_connected:
            await self._subscribe(client)

    # ── statements ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def _say(
        self,
        actor: str,
        request: type[ControlRequest],
        kind: type[Statement],
        verdict: Verdict,
        manner: Manner,
        *,
        beside: dict[str, Any] | None = None,
        **elements: Any,
    ) -> ControlOk | None:
        """Make a statement, and hold what becomes of it against the verdict; return the answer, None for a refusal.

        `beside` is what the statement travels with.
        """
        statement = self._write(actor, kind, manner.flaw, elements)
        signed = sign(self.scene.people[WITNESS if manner.flaw == Flaw.UNSIGNED else actor], statement)
        asked = request(id=0, statement=signed.statement, signature=signed.signature, **(beside or {}))
        verdict = self.group.flawed(actor, verdict, manner.flaw)
        answer = await self._ask(actor, asked, verdict, lost=manner.lost)
        if self._is_refused(answer, verdict):
            return None
        assert isinstance(answer, ControlOk)
        assert answer.group_id == self.group_id
        assert answer.seq == self.group.seq + 1
        assert answer.key_epoch == self.group.key_epoch + isinstance(statement, GroupRekeyed)
        assert manner.lost or not answer.duplicate
        said = Said(actor, Kind(kind_of(statement)), asked, answer)
        self.group.log(said.kind)
        self.hashes.append(answer.hash)
        self.sayings.append(said)
        return answer

    async def _ask(self, name: str, request: Request, verdict: Verdict, *, lost: bool) -> Ok | Refused:
        """Make a request; where its answer is to be lost, only one that succeeds: so it can't take effect later."""
        return await self.clients[name].ask(request, lost=lost and not verdict)

    def _write(self, actor: str, kind: type[Statement], flaw: Flaw, elements: dict[str, Any]) -> Statement:
        group = self.group
        base = {Flaw.LAGGING: group.roster_seq, Flaw.BEHIND: group.roster_seq - 1}.get(flaw, group.seq)
        seen = View(
            self.group_id,
            seq=base,
            hash=os.urandom(32) if flaw == Flaw.FORKED else self.hashes[base],
            key_epoch=group.key_epoch + (flaw == Flaw.OTHER_KEY),
            roster=self._roster(),
        )
        if flaw == Flaw.TAKEN_ID:
            elements = {**elements, "statement_id": self.taken_id}
        return write(self.scene.people[actor], kind, seen, **elements)

    def _roster(self) -> dict[bytes, RosterEntry]:
        entries = [self.scene.people[name].as_member(role) for name, role in self.group.roles.items()]
        return {entry.user_id: entry for entry in entries}

    def _is_refused(self, answer: Ok | Refused, verdict: Verdict) -> bool:
        """Whether the answer is an error; either way it must be what the verdict says."""
        if not isinstance(answer, Refused):
            assert not verdict, f"was carried out, should be refused: {[*verdict]}"
            return False
        assert answer.code in verdict, f"refused with {answer}, should be {[*verdict] or 'carried out'}"
        details = answer.error.details
        if details is not None and details.key_epoch is not None:
            assert details.key_epoch == self.group.key_epoch
        if details is not None and details.seq is not None:
            assert details.seq == self.group.seq
        return True

    def _user_id(self, name: str) -> bytes:
        return self.scene.people[name].user_id

    @precondition(lambda self: self.sayings)
    @rule(said=_one_of(lambda machine: machine.sayings), by=anybody, by_another=seldom, lost=seldom)
    def repeat_statement(self, said: Said, by: str, by_another: bool, lost: bool) -> None:
        """Whoever made it gets the first answer again, a member or not, as long as there is a log."""
        sender = by if by_another else said.actor
        verdict: Verdict = frozenset()
        if sender != said.actor:
            verdict = frozenset({ErrorCode.FORBIDDEN})
        elif self.group.deleted and said.kind != Kind.GROUP_DELETED:
            verdict = SHUT if isinstance(said.request, frames.GroupJoin) else HIDDEN
        answer = self.run(self._ask(sender, said.request, verdict, lost=lost))
        if not self._is_refused(answer, verdict):
            assert answer == replace(said.answer, id=_id_of(answer), duplicate=True)

    # ── joining ─────────────────────────────────────────────────────────────────────────────────────────────────────

    @rule(actor=an_admin, max_uses=st.integers(0, 2), manner=manners)
    def invite(self, actor: str, max_uses: int, manner: Manner) -> None:
        self._invite(actor, max_uses, manner)

    def _invite(self, actor: str, max_uses: int, manner: Manner) -> None:
        invite_id, key, verdict = new_id(), Ed25519PrivateKey.generate(), self.group.may_invite(actor)
        says = self._say(
            actor,
            frames.InviteCreate,
            InviteCreated,
            verdict,
            manner,
            beside={"sealed_group_key": b"sealed"},
            invite_id=invite_id,
            invite_key=key.public_key().public_bytes_raw(),
            expires_at=0,
            max_uses=max_uses,
        )
        if answer := self.run(says):
            assert isinstance(answer, frames.InviteCreateOk)
            invite = Invite(max_uses)
            self.group.invites.append(invite)
            self.links.append(Link(len(self.links), invite_id, answer.invite_code, key, invite))

    @precondition(lambda self: self.links)
    @rule(actor=an_admin, link=a_link, manner=manners)
    def revoke(self, actor: str, link: Link, manner: Manner) -> None:
        verdict = self.group.may_revoke(actor, link.model)
        if self.run(self._say(actor, frames.InviteRevoke, InviteRevoked, verdict, manner, invite_id=link.invite_id)):
            link.model.revoked = True

    @precondition(lambda self: self.links)
    @rule(name=a_stranger, link=a_link, signed=mostly, manner=manners)
    def join(self, name: str, link: Link, signed: bool, manner: Manner) -> None:
        self.run(self._join(name, link, signed, manner))

    @precondition(lambda self: not self.group.deleted)
    @rule(name=a_stranger, lost=seldom)
    def come_in(self, name: str, lost: bool) -> None:
        """By a link that the owner makes for this, after the rekey that may be due."""
        owner = next(name for name in NAMES if self.group.role(name) == Role.OWNER)
        if self.group.rekey_required:
            self._rekey(owner)
        self._invite(owner, 1, Manner())
        self.run(self._join(name, self.links[-1], True, Manner(lost=lost)))

    async def _join(self, name: str, link: Link, signed: bool, manner: Manner) -> None:
        signature = link.signature_for(self.group_id, self.scene.people[name], signed=signed)
        joined = await self._say(
            name,
            frames.GroupJoin,
            MemberJoined,
            self.group.may_join(name, link.model, signed=signed),
            manner,
            beside={"encrypted_group_key": b"wrapped"},
            **self._introduction(name, link.invite_id, signature),
        )
        if joined:
            self.group.joined(name, link.model)
            await self._welcome(name)

    def _introduction(self, name: str, invite_id: bytes, signature: bytes) -> dict[str, Any]:
        person = self.scene.people[name]
        return {"user_id": person.user_id, "invite_id": invite_id, "invite_signature": signature, **person.keys()}

    @rule(name=a_stranger, link=_one_of(lambda machine: [None, *machine.links]), signed=mostly)
    def knock(self, name: str, link: Link | None, signed: bool) -> None:
        """With the standing code, or with a link."""
        self.run(self._knock(name, link, signed))

    async def _knock(self, name: str, link: Link | None, signed: bool) -> None:
        request = frames.GroupKnock(
            id=0,
            request_id=new_id(),
            invite_code=link.code if link else self.code,
            invite_signature=link.signature_for(self.group_id, self.scene.people[name], signed=signed)
            if link
            else None,
        )
        answer = await self.clients[name].ask(request, lost=False)
        if self._is_refused(answer, self.group.may_knock(name, link.model if link else None, signed=signed)):
            return
        first_id, _ = self.knocked[name] if name in self.group.knocks else (request.request_id, None)
        assert answer == frames.GroupKnockOk(id=_id_of(answer), group_id=self.group_id, request_id=first_id)
        self.knocked[name] = (first_id, link)
        self.group.knocks[name] = link.model if link else None
        for client in self.clients.values():
            if client.is_connected and self.group.role(client.name) >= Role.ADMIN:
                await self._await_knock(await client.talk(), name)

    async def _await_knock(self, talk: Talk, name: str) -> None:
        """An admin is shown the knock; before it perhaps an earlier one, from when they were no admin yet."""
        request_id, link = self.knocked[name]
        shown = None
        while shown is None or (shown.request_id, shown.invite_id) != (request_id, link.invite_id if link else None):
            shown = (await talk.hear(frames.JoinRequested)).request
        assert shown.user_id == self._user_id(name)

    @precondition(lambda self: self.group.knocks)
    @rule(actor=an_admin, name=a_knocker, manner=manners)
    def admit(self, actor: str, name: str, manner: Manner) -> None:
        self.run(self._admit(actor, name, manner))

    async def _admit(self, actor: str, name: str, manner: Manner) -> None:
        """As an admin's client would: the statement shows the link that the newcomer knocked with."""
        _, link = self.knocked[name] if name in self.group.knocks else (None, None)
        shown = (link.invite_id, link.signature_for(self.group_id, self.scene.people[name])) if link else (ZERO_ID, b"")
        admitted = await self._say(
            actor,
            frames.GroupAdmit,
            MemberJoined,
            self.group.may_admit(actor, name),
            manner,
            beside={"encrypted_group_key": b"wrapped"},
            **self._introduction(name, *shown),
        )
        if admitted:
            self.group.joined(name, link.model if link else None)
            await self._welcome(name)

    @precondition(lambda self: self.group.knocks)
    @rule(actor=an_admin, name=a_knocker)
    def deny(self, actor: str, name: str) -> None:
        request = frames.GroupDeny(id=0, group_id=self.group_id, user_id=self._user_id(name))
        answer = self.run(self.clients[actor].ask(request, lost=False))
        if not self._is_refused(answer, self.group.may_deny(actor)):
            self.group.knocks.pop(name, None)

    # ── members ─────────────────────────────────────────────────────────────────────────────────────────────────────

    @precondition(_has_subjects)
    @rule(name=st.one_of(a_subject, a_member), manner=manners)
    def leave(self, name: str, manner: Manner) -> None:
        if self.run(self._say(name, frames.GroupLeave, MemberLeft, self.group.may_leave(name), manner)):
            self.group.left(name)
            self.ended_at[name] = self.group.seq

    @precondition(_has_subjects)
    @rule(actor=an_admin, name=a_subject, ban=st.booleans(), manner=manners)
    def remove(self, actor: str, name: str, ban: bool, manner: Manner) -> None:
        verdict, whom = self.group.may_remove(actor, name), self._user_id(name)
        if self.run(self._say(actor, frames.MemberRemove, MemberRemoved, verdict, manner, user_id=whom, ban=ban)):
            self.group.removed(name, ban=ban)
            self.ended_at[name] = self.group.seq

    @precondition(lambda self: self.group.banned)
    @rule(actor=an_admin, name=a_banned, manner=manners)
    def unban(self, actor: str, name: str, manner: Manner) -> None:
        verdict, whom = self.group.may_unban(actor, name), self._user_id(name)
        if self.run(self._say(actor, frames.MemberUnban, MemberUnbanned, verdict, manner, user_id=whom)):
            self.group.banned.remove(name)

    @precondition(_has_subjects)
    @rule(actor=an_admin, name=a_subject, role=st.sampled_from([Role.ADMIN, Role.MEMBER]), manner=manners)
    def set_role(self, actor: str, name: str, role: Role, manner: Manner) -> None:
        verdict, whom = self.group.may_set_role(actor, name, role), self._user_id(name)
        if self.run(self._say(actor, frames.MemberSetRole, MemberRole, verdict, manner, user_id=whom, role=role)):
            self.group.roles[name] = role

    @precondition(_has_subjects)
    @rule(actor=the_owner, name=a_subject, manner=manners)
    def transfer(self, actor: str, name: str, manner: Manner) -> None:
        verdict, whom = self.group.may_transfer(actor, name), self._user_id(name)
        if self.run(self._say(actor, frames.GroupTransfer, GroupTransferred, verdict, manner, user_id=whom)):
            self.group.transferred(actor, name)

    @rule(actor=a_rekeyer, recipients=st.sampled_from([Recipients.RIGHT] * 6 + [*Recipients]), manner=manners)
    def rekey(self, actor: str, recipients: Recipients, manner: Manner) -> None:
        self._rekey(actor, recipients, manner)

    def _rekey(self, actor: str, recipients: Recipients = Recipients.RIGHT, manner: Manner | None = None) -> None:
        encrypted_name, verdict = os.urandom(64), self.group.may_rekey(actor, recipients)
        says = self._say(
            actor,
            frames.GroupRekey,
            GroupRekeyed,
            verdict,
            manner or Manner(),
            beside={"encrypted_name": encrypted_name, "encrypted_group_keys": self._wraps(recipients)},
            new_key_epoch=self.group.key_epoch + 1,
            key_commitment=ZERO_HASH,
            name_hash=field_hash(encrypted_name),
            previous_key=b"sealed" if self.group.history == History.SHARED else b"",
        )
        if self.run(says):
            self.group.rekeyed()

    def _wraps(self, recipients: Recipients) -> list[WrappedKey]:
        thumbprints = {entry.user_id: entry.rsa_thumbprint for entry in self._roster().values()}
        match recipients:
            case Recipients.ONE_MISSING:
                thumbprints.pop(self._user_id(WITNESS), None)
            case Recipients.ONE_TOO_MANY:
                thumbprints[new_id()] = ZERO_HASH
            case Recipients.ANOTHER_KEY:
                thumbprints[self._user_id(WITNESS)] = ZERO_HASH
            case Recipients.RIGHT:
                pass
        return [WrappedKey(user_id=i, rsa_thumbprint=t, encrypted_group_key=b"wrap") for i, t in thumbprints.items()]

    @precondition(lambda self: self.group.seq > 20)
    @rule(actor=the_owner, manner=manners)
    def delete_group(self, actor: str, manner: Manner) -> None:
        if self.run(self._say(actor, frames.GroupDelete, GroupDeleted, self.group.may_delete(actor), manner)):
            self.group.buried()

    # ── posts ───────────────────────────────────────────────────────────────────────────────────────────────────────

    @rule(author=a_member, other_key=seldom, lost=seldom)
    def post_thread(self, author: str, other_key: bool, lost: bool) -> None:
        self._post(author, Kind.THREAD_POSTED, None, self._thread(self._epoch(other_key)), lost=lost)

    @precondition(lambda self: self.posts)
    @rule(author=a_member, parent=any_post, annotates=st.booleans(), other_key=seldom, lost=seldom)
    def attach(self, author: str, parent: Posted, annotates: bool, other_key: bool, lost: bool) -> None:
        """A reply or an annotation."""
        frame: dict[str, Any] = {"id": 0, "group_id": self.group_id, "encrypted_body": b"body"}
        frame["key_epoch"] = self._epoch(other_key)
        if annotates:
            annotation = frames.AnnotationPost(target_id=parent.object_id, annotation_id=new_id(), **frame)
            self._post(author, Kind.ANNOTATION_POSTED, parent, annotation, lost=lost)
        else:
            reply = frames.ReplyPost(thread_id=parent.object_id, reply_id=new_id(), **frame)
            self._post(author, Kind.REPLY_POSTED, parent, reply, lost=lost)

    def _thread(self, key_epoch: int) -> frames.ThreadPost:
        return frames.ThreadPost(
            id=0,
            group_id=self.group_id,
            key_epoch=key_epoch,
            thread_id=new_id(),
            encrypted_title=b"title",
            encrypted_body=b"body",
        )

    def _epoch(self, other_key: bool) -> int:
        """The key epoch in force, or another: the one before, where there is one."""
        epoch = self.group.key_epoch
        return epoch if not other_key else epoch - 1 or epoch + 1

    def _post(self, author: str, kind: Kind, parent: Posted | None, request: frames.Post, *, lost: bool) -> None:
        """Post. Where a rekey is due, make it and post again, as a member's client does."""
        target = None if parent is None else parent.model
        verdict = self.group.may_post(author, kind, target, key_epoch=request.key_epoch)
        answer = self.run(self._ask(author, request, verdict, lost=lost))
        if not self._is_refused(answer, verdict):
            assert isinstance(answer, frames.PostOk)
            assert lost or not answer.duplicate
            self._note_post(author, kind, request, answer)
        elif ErrorCode.REKEY_REQUIRED in verdict:
            self._rekey(author)
            self._post(author, kind, parent, replace(request, key_epoch=self.group.key_epoch), lost=lost)

    def _note_post(self, author: str, kind: Kind, request: frames.Post, answer: frames.PostOk) -> None:
        assert answer.seq == self.group.seq + 1
        self.group.log(kind)
        self.hashes.append(answer.hash)
        self.posts.append(Posted(_object_id(request), request, answer, Post(author, kind)))

    @precondition(lambda self: not self.group.rekey_required and not self.group.deleted)
    @rule(count=st.integers(2, 8))
    def all_post_at_once(self, count: int) -> None:
        """The order is the relays' to choose; the numbers are consecutive."""
        authors = [name for name in NAMES if name in self.group.roles]
        posts = [(authors[number % len(authors)], self._thread(self.group.key_epoch)) for number in range(count)]
        answers = self.run(self._ask_at_once(posts))
        seqs, count_before = {answer.seq for answer in answers}, len(self.hashes)
        assert seqs == {*range(count_before, count_before + count)}
        self.hashes += [answer.hash for answer in sorted(answers, key=lambda answer: answer.seq)]
        for (author, request), answer in zip(posts, answers, strict=True):
            assert not answer.duplicate
            self.group.log(Kind.THREAD_POSTED)
            self.posts.append(Posted(request.thread_id, request, answer, Post(author, Kind.THREAD_POSTED)))

    async def _ask_at_once(self, posts: Sequence[tuple[str, frames.ThreadPost]]) -> list[frames.PostOk]:
        for author in {author for author, _ in posts}:
            await self.clients[author].talk()
        answers = await asyncio.gather(*(self.clients[author].ask(request, lost=False) for author, request in posts))
        assert all(isinstance(answer, frames.PostOk) for answer in answers), answers
        return [answer for answer in answers if isinstance(answer, frames.PostOk)]

    @precondition(lambda self: self.posts)
    @rule(posted=any_post, by=anybody, by_another=seldom, altered=st.booleans(), lost=seldom)
    def repeat_post(self, posted: Posted, by: str, by_another: bool, altered: bool, lost: bool) -> None:
        """The first answer again, even where the ciphertext is another now."""
        sender = by if by_another else posted.model.author
        request = replace(posted.request, encrypted_body=b"altered") if altered else posted.request
        verdict = self.group.may_repeat_post(sender, posted.model)
        answer = self.run(self._ask(sender, request, verdict, lost=lost))
        if not self._is_refused(answer, verdict):
            assert answer == replace(posted.answer, id=_id_of(answer), duplicate=True)

    @precondition(lambda self: self.posts)
    @rule(actor=a_member, posted=a_post, manner=manners)
    def delete_post(self, actor: str, posted: Posted, manner: Manner) -> None:
        verdict = self.group.may_erase(actor, posted.model)
        if self.run(self._say(actor, frames.PostDelete, PostDeleted, verdict, manner, target_id=posted.object_id)):
            posted.model.erased = True

    # ── the database at the end ─────────────────────────────────────────────────────────────────────────────────────

    async def _check_database(self) -> None:
        if self.group.deleted:
            await self._check_nothing_is_left()
            return
        log = await verified_log(self.scene.connection, self.group_id)
        assert [event.hash for event in log] == self.hashes[1:]
        await self._check_head()
        await self._check_roster(log)
        await self._check_doors()

    async def _rows(self, sql: str) -> list[tuple[Any, ...]]:
        """The rows of a query, of which $1 is the group."""
        return [tuple(row) for row in await self.scene.connection.fetch(sql, self.group_id)]

    async def _check_nothing_is_left(self) -> None:
        heads = await self._rows("SELECT last_seq, head_hash, deleted_at IS NULL FROM group_heads WHERE group_id = $1")
        assert heads == [(self.group.seq, self.hashes[-1], False)]
        for table in ("events", "objects"):
            assert await self._rows(f"SELECT seq FROM {table} WHERE group_id = $1") == [(self.group.seq,)]  # noqa: S608
        for table in ("members", "threads", "replies", "annotations", "group_keys", "invites", "join_requests", "bans"):
            assert not await self._rows(f"SELECT 1 FROM {table} WHERE group_id = $1")  # noqa: S608

    async def _check_head(self) -> None:
        heads = await self._rows(
            "SELECT last_seq, roster_seq, key_epoch, rekey_required FROM group_heads WHERE group_id = $1"
        )
        group = self.group
        assert heads == [(group.seq, group.roster_seq, group.key_epoch, group.rekey_required)]

    async def _check_roster(self, log: Sequence[Event]) -> None:
        """What statements say of the members is what the tables say and what the model says."""
        derived = roster_of(log)
        assert derived == self._roster()
        assert derived == (await view(self.scene.connection, self.group_id)).roster
        owners = [(entry.user_id,) for entry in derived.values() if entry.role == Role.OWNER]
        assert owners == await self._rows("SELECT created_by FROM groups WHERE id = $1")
        holders = await self._rows(
            "SELECT DISTINCT k.user_id FROM group_keys k JOIN group_heads h USING (group_id, key_epoch)"
            " WHERE group_id = $1"
        )
        assert derived.keys() <= {user_id for (user_id,) in holders}, "a member has no wrap of the key in force"

    async def _check_doors(self) -> None:
        banned = await self._rows("SELECT user_id FROM bans WHERE group_id = $1")
        assert {user_id for (user_id,) in banned} == {self._user_id(name) for name in self.group.banned}
        knocking = await self._rows("SELECT user_id, request_id FROM join_requests WHERE group_id = $1")
        assert dict(knocking) == {self._user_id(name): self.knocked[name][0] for name in self.group.knocks}
        invites = await self._rows(
            "SELECT invite_id, uses, revoked_at IS NOT NULL, sealed_group_key IS NOT NULL FROM invites"
            " WHERE group_id = $1 ORDER BY invite_id"
        )
        expected = [(link.invite_id, link.model.uses, link.model.revoked, link.model.sealed) for link in self.links]
        assert invites == sorted(expected)


def _id_of(answer: Ok | Refused) -> int:
    """The id of an answer that must be no error."""
    assert isinstance(answer, Ok), answer
    return answer.id


def _object_id(request: frames.Post) -> bytes:
    match request:
        case frames.ThreadPost():
            return request.thread_id
        case frames.ReplyPost():
            return request.reply_id
        case frames.AnnotationPost():
            return request.annotation_id
        case _:
            raise AssertionError(request)


def test_whatever_happens_to_a_group_is_as_the_model_says(scene: Scene) -> None:
    class OnTheScene(GroupMachine):
        def __init__(self) -> None:
            super().__init__(scene)

    run_state_machine_as_test(
        OnTheScene,
        settings=settings(
            max_examples=80,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )

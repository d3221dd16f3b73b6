"""Statements built on what was verified, signed, and built anew when the group has moved on."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Any

import pytest
from msgspec.structs import replace

from orbital_client.wire import (
    NO_KEY,
    AdmissionNeeded,
    BadAnswer,
    ChainBroken,
    Client,
    Event,
    Group,
    Identity,
    InviteLink,
    Live,
    NotFound,
    OutOfDate,
    Role,
    thumbprint,
    uuid7,
)
from orbital_protocol import ZERO_HASH, ZERO_ID, chain, statements
from orbital_protocol.codes import CHANGES_ROSTER
from orbital_protocol.frames import (
    REQUESTS,
    AnnotationPost,
    ControlOk,
    ControlRequest,
    Error,
    ErrorDetails,
    EventList,
    EventListOk,
    Frame,
    GroupAdmit,
    GroupCreate,
    GroupCreateOk,
    GroupGet,
    GroupGetOk,
    GroupJoin,
    GroupKnock,
    GroupKnockOk,
    GroupRekey,
    InviteCreateOk,
    InviteOpen,
    InviteOpenOk,
    JoinRequest,
    Member,
    MemberList,
    MemberListOk,
    MemberRemove,
    PostOk,
    ReplyPost,
    Request,
    SignedStatement,
    ThreadPost,
)
from orbital_protocol.statements import (
    GroupCreated,
    GroupDeleted,
    GroupRekeyed,
    GroupTransferred,
    GroupUpdated,
    InviteCreated,
    InviteRevoked,
    MediaDeleted,
    MemberJoined,
    MemberLeft,
    MemberRemoved,
    MemberRole,
    MemberUnbanned,
    PostDeleted,
    Statement,
    join_preimage,
    roster_hash,
    verify_raw,
)
from tests.unit.client_relay import (
    NOW,
    FakeConnection,
    FakeLog,
    FakeRelay,
    fake_relay,
    identity,
    registered,
    soon,
    take_until,
)

Act = Callable[[Group], Awaitable[object]]


class FakeGroup:
    """A group at the fake relay, which checks base and epoch of statements as a relay does, and appends them."""

    def __init__(self, relay: FakeRelay, owner: Identity, *others: Identity) -> None:
        self.relay = relay
        self.log = relay.add_log()
        self.people = {who.user_id: who for who in (owner, *others)}
        self.roles = {owner.user_id: Role.OWNER, **{who.user_id: Role.MEMBER for who in others}}
        self.said: list[Statement] = []
        self.rekey_required = False
        self.page = 200
        self.create(owner)
        for who in others:
            self.log.say(owner.sign(self.draft(MemberJoined, owner, **introduced(who))))
        relay.add_head(self.log)
        relay.answers |= {GroupGet: self.get, MemberList: self.list_members, EventList: self.list_events}
        for kind in REQUESTS:
            if issubclass(kind, ControlRequest):
                relay.answers[kind] = self.control

    def create(self, owner: Identity) -> None:
        keys = {"signing_key": owner.signing_key, "rsa_thumbprint": owner.rsa_thumbprint, "is_bot": False}
        created = self.draft(GroupCreated, owner, history=1, key_commitment=ZERO_HASH, name_hash=ZERO_HASH, **keys)
        self.log.say(owner.sign(created))

    def draft(self, kind: Any, actor: Identity, **parts: Any) -> Statement:
        statement: Statement = kind(
            group_id=self.log.group_id,
            actor_id=actor.user_id,
            statement_id=uuid7(),
            base_seq=self.log.head.seq,
            base_hash=self.log.head.hash,
            key_epoch=self.log.key_epoch,
            roster_hash=ZERO_HASH,
            **parts,
        )
        return statement

    def get(self, _: FakeConnection, request: Request) -> Iterable[Frame]:
        head = self.log.head
        return [
            GroupGetOk(
                id=request.id,
                group_id=self.log.group_id,
                encrypted_name=b"name",
                name_key_epoch=1,
                history=1,
                knocking=True,
                created_by=next(iter(self.roles)),
                created_at=NOW,
                role=3,
                key_epoch=self.log.key_epoch,
                rekey_required=self.rekey_required,
                seq=head.seq,
                hash=head.hash,
                member_count=len(self.roles),
            )
        ]

    def list_members(self, _: FakeConnection, request: Request) -> Iterable[Frame]:
        assert isinstance(request, MemberList)
        listed = sorted(user_id for user_id in self.roles if user_id > (request.after_user_id or b""))
        page = listed[: self.page]
        return [
            MemberListOk(
                id=request.id,
                members=[self.member(user_id) for user_id in page],
                seq=self.log.head.seq,
                hash=self.log.head.hash,
                more=len(page) < len(listed),
            )
        ]

    def member(self, user_id: bytes) -> Member:
        who = self.people[user_id]
        return Member(
            user_id=user_id,
            username="somebody",
            role=self.roles[user_id],
            public_key=who.public_key,
            signing_key=who.signing_key,
            is_bot=who.is_bot,
            joined_at=NOW,
        )

    def list_events(self, _: FakeConnection, request: Request) -> Iterable[Frame]:
        assert isinstance(request, EventList)
        after = request.after_seq or 0
        events = self.log.events[after : after + self.page]
        return [
            EventListOk(
                id=request.id,
                events=events,
                seq=self.log.head.seq,
                hash=self.log.head.hash,
                previous_hash=self.log.cursor(after).hash if events else None,
                more=after + self.page < len(self.log.events),
            )
        ]

    def control(self, _: FakeConnection, request: Request) -> Iterable[Frame]:
        assert isinstance(request, ControlRequest)
        statement = statements.decode(request.statement)
        stale = any(event.kind in CHANGES_ROSTER for event in self.log.events[statement.base_seq :])
        if stale or self.log.cursor(statement.base_seq).hash != statement.base_hash:
            details = ErrorDetails(seq=self.log.head.seq)
            return [Error(id=request.id, code="stale_base", message="", details=details)]
        if statement.key_epoch != self.log.key_epoch:
            return [Error(id=request.id, code="stale_key_epoch", message="")]
        actor = self.people[statement.actor_id]
        assert statements.verify(request.statement, request.signature, actor.signing_key)
        self.said.append(statement)
        event = self.log.say(actor_signed(request))
        parts: dict[str, Any] = {
            "id": request.id,
            "group_id": self.log.group_id,
            "seq": event.seq,
            "hash": event.hash,
            "created_at": event.created_at,
            "key_epoch": self.log.key_epoch,
        }
        answer = REQUESTS[type(request)]
        if answer is ControlOk:
            return [ControlOk(**parts)]
        return [InviteCreateOk(**parts, invite_code="aB3dE6gH")]

    def expected_roster_hash(self) -> bytes:
        return roster_hash(self.people[user_id].as_member(role) for user_id, role in self.roles.items())


def actor_signed(request: ControlRequest) -> SignedStatement:
    return SignedStatement(statement=request.statement, signature=request.signature)


def introduced(who: Identity) -> dict[str, Any]:
    return {
        "user_id": who.user_id,
        "signing_key": who.signing_key,
        "rsa_thumbprint": who.rsa_thumbprint,
        "is_bot": who.is_bot,
        "invite_id": ZERO_ID,
        "invite_signature": b"",
    }


@asynccontextmanager
async def in_group(*others: Identity, **options: Any) -> AsyncIterator[tuple[FakeGroup, Client, Group]]:
    """A client whose user owns a group with these others in it."""
    owner = identity()
    async with fake_relay() as relay:
        theirs = FakeGroup(relay, owner, *others)
        async with registered(relay, owner, **options) as client:
            yield theirs, client, client.group(theirs.log.group_id)


BOB, CLEO, DAN = identity(), identity(), identity()


@pytest.mark.parametrize(
    ("act", "kind", "expected"),
    [
        (lambda group: group.update(b"new"), GroupUpdated, {"name_hash": sha256(b"new").digest()}),
        (lambda group: group.delete(), GroupDeleted, {}),
        (lambda group: group.leave(), MemberLeft, {}),
        (lambda group: group.remove(BOB.user_id, ban=True), MemberRemoved, {"user_id": BOB.user_id, "ban": True}),
        (lambda group: group.unban(DAN.user_id), MemberUnbanned, {"user_id": DAN.user_id}),
        (lambda group: group.set_role(BOB.user_id, Role.ADMIN), MemberRole, {"user_id": BOB.user_id, "role": 2}),
        (lambda group: group.transfer(BOB.user_id), GroupTransferred, {"user_id": BOB.user_id}),
        (lambda group: group.delete_post(bytes(15) + b"1"), PostDeleted, {"target_id": bytes(15) + b"1"}),
        (lambda group: group.delete_media(bytes(15) + b"3"), MediaDeleted, {"media_id": bytes(15) + b"3"}),
        (lambda group: group.revoke_invite(bytes(15) + b"2"), InviteRevoked, {"invite_id": bytes(15) + b"2"}),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
async def test_statements_carry_base_epoch_roster_and_their_own(
    act: Act, kind: type[Statement], expected: dict[str, object]
) -> None:
    async with in_group(BOB, CLEO) as (theirs, client, group):
        base, me = theirs.log.head, client.identity.user_id
        await soon(act(group))
        (said,) = theirs.said
        assert type(said) is kind
        assert (said.group_id, said.actor_id) == (group.group_id, me)
        assert (said.base_seq, said.base_hash, said.key_epoch) == (base.seq, base.hash, 1)
        assert {name: getattr(said, name) for name in expected} == expected
        match said:
            case MemberLeft():
                del theirs.roles[me]
            case MemberRemoved():
                del theirs.roles[BOB.user_id]
            case MemberRole():
                theirs.roles[BOB.user_id] = Role.ADMIN
            case GroupTransferred():
                theirs.roles |= {me: Role.ADMIN, BOB.user_id: Role.OWNER}
            case _:
                pass
        assert said.roster_hash == theirs.expected_roster_hash()


async def test_an_admission_introduces_the_newcomer_as_they_knocked() -> None:
    async with in_group(BOB) as (theirs, _, group):
        request = JoinRequest(
            request_id=uuid7(),
            user_id=CLEO.user_id,
            username="cleo",
            public_key=CLEO.public_key,
            signing_key=CLEO.signing_key,
            is_bot=True,
            requested_at=NOW,
            invite_id=bytes(range(16)),
            invite_signature=bytes(64),
        )
        await soon(group.admit(request, encrypted_group_key=b"wrapped"))
        (said,) = theirs.said
        assert isinstance(said, MemberJoined)
        assert (said.user_id, said.signing_key, said.is_bot) == (CLEO.user_id, CLEO.signing_key, True)
        assert said.rsa_thumbprint == thumbprint(CLEO.public_key)
        assert (said.invite_id, said.invite_signature) == (bytes(range(16)), bytes(64))
        assert theirs.relay.of(GroupAdmit)[0].encrypted_group_key == b"wrapped"
        await soon(group.admit(replace(request, user_id=DAN.user_id, invite_id=None, invite_signature=None)))
        said = theirs.said[1]
        assert isinstance(said, MemberJoined)
        assert (said.invite_id, said.invite_signature) == (ZERO_ID, b"")


async def test_what_another_did_meanwhile_is_caught_up_with_and_built_upon() -> None:
    async with in_group(BOB, CLEO, follow=False) as (theirs, client, group):
        await soon(group.update(b"one"))
        owner = client.identity
        theirs.log.say(owner.sign(theirs.draft(MemberRemoved, owner, user_id=CLEO.user_id, ban=False)))
        del theirs.roles[CLEO.user_id]
        theirs.log.reply()
        base = theirs.log.head
        await soon(group.update(b"two"))
        said = theirs.said[-1]
        assert (said.base_seq, said.base_hash) == (base.seq, base.hash)
        assert said.roster_hash == theirs.expected_roster_hash()
        assert len(theirs.relay.of(MemberList)) == 1, "the roster follows from the log"


async def test_what_was_only_posted_since_needs_no_catching_up() -> None:
    async with in_group(BOB, follow=False) as (theirs, _, group):
        await soon(group.update(b"one"))
        theirs.log.reply()
        await soon(group.update(b"two"))
        assert theirs.relay.of(EventList) == []


async def test_followed_events_keep_the_ledger_up_to_date() -> None:
    async with in_group(BOB, CLEO) as (theirs, client, group):
        await take_until(client, Live)
        await soon(group.update(b"one"))
        owner = client.identity
        theirs.log.say(owner.sign(theirs.draft(MemberRemoved, owner, user_id=CLEO.user_id, ban=False)))
        await theirs.relay.connections[0].push(*theirs.log.events[-2:])
        while (await take_until(client, Event)).seq < theirs.log.head.seq:
            pass
        await soon(group.update(b"two"))
        assert theirs.relay.of(EventList) == []
        assert theirs.said[-1].base_seq == theirs.log.head.seq - 1


async def test_a_group_far_ahead_is_loaded_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orbital_client.wire.control._FAR_BEHIND", 10)
    async with in_group(BOB, CLEO, follow=False) as (theirs, client, group):
        await soon(group.update(b"one"))
        owner = client.identity
        theirs.log.say(owner.sign(theirs.draft(MemberRemoved, owner, user_id=CLEO.user_id, ban=False)))
        del theirs.roles[CLEO.user_id]
        for _ in range(20):
            theirs.log.reply()
        await soon(group.update(b"two"))
        assert theirs.said[-1].roster_hash == theirs.expected_roster_hash()
        assert len(theirs.relay.of(MemberList)) == 2


async def test_a_group_that_never_holds_still_is_given_up() -> None:
    async with in_group(BOB, follow=False) as (theirs, _, group):
        theirs.relay.answers[MemberRemove] = lambda _, request: [Error(id=request.id, code="stale_base", message="")]
        with pytest.raises(OutOfDate, match="stale_base"):
            await soon(group.remove(BOB.user_id))
        assert len(theirs.relay.of(MemberRemove)) == 5
        assert len({request.statement for request in theirs.relay.of(MemberRemove)}) == 5


async def test_a_rekey_that_is_due_is_told_at_once() -> None:
    async with in_group(BOB, follow=False) as (theirs, _, group):
        theirs.relay.answers[MemberRemove] = lambda _, request: [
            Error(id=request.id, code="rekey_required", message="")
        ]
        with pytest.raises(OutOfDate, match="rekey_required"):
            await soon(group.remove(BOB.user_id))
        assert len(theirs.relay.of(MemberRemove)) == 1


async def test_members_listed_while_the_group_changes_make_the_right_roster() -> None:
    """Somebody of the first page leaves, and somebody new is on the second: the log tells both."""
    async with in_group(BOB, CLEO, follow=False) as (theirs, client, group):
        theirs.page = 1
        owner = client.identity
        answer = theirs.list_members
        gone: list[bytes] = []

        def and_changing(connection: FakeConnection, request: Request) -> Iterable[Frame]:
            page = list(answer(connection, request))
            if not gone:
                assert isinstance(page[0], MemberListOk)
                first = page[0].members[0].user_id
                gone.append(BOB.user_id if first == owner.user_id else first)
                theirs.log.say(owner.sign(theirs.draft(MemberRemoved, owner, user_id=gone[0], ban=False)))
                theirs.log.say(owner.sign(theirs.draft(MemberJoined, owner, **introduced(DAN))))
                del theirs.roles[gone[0]]
                theirs.roles[DAN.user_id] = Role.MEMBER
                theirs.people[DAN.user_id] = DAN
            return page

        theirs.relay.answers[MemberList] = and_changing
        await soon(group.update(b"new"))
        assert theirs.said[-1].roster_hash == theirs.expected_roster_hash()


async def test_events_that_come_while_catching_up_count_once() -> None:
    async with in_group(BOB, CLEO) as (theirs, client, group):
        await take_until(client, Live)
        await soon(group.update(b"one"))
        await theirs.relay.connections[0].push(theirs.log.events[-1])
        owner = client.identity
        removal = theirs.log.say(owner.sign(theirs.draft(MemberRemoved, owner, user_id=CLEO.user_id, ban=False)))
        del theirs.roles[CLEO.user_id]

        def pushed_before(connection: FakeConnection, request: Request) -> Iterable[Frame]:
            return [removal, *theirs.list_events(connection, request)]

        theirs.relay.answers[EventList] = pushed_before
        await soon(group.update(b"two"))
        assert theirs.said[-1].roster_hash == theirs.expected_roster_hash()


async def test_a_page_that_breaks_the_chain_is_not_built_upon() -> None:
    async with in_group(BOB, CLEO, follow=False) as (theirs, client, group):
        await soon(group.update(b"one"))
        owner = client.identity
        theirs.log.say(owner.sign(theirs.draft(MemberRemoved, owner, user_id=CLEO.user_id, ban=False)))
        theirs.log.events[-1] = replace(theirs.log.events[-1], signature=bytes(64))
        with pytest.raises(ChainBroken):
            await soon(group.update(b"two"))


async def test_a_rekey_wraps_for_the_roster_and_anew_when_it_changes() -> None:
    async with in_group(BOB, CLEO, follow=False) as (theirs, client, group):
        await soon(group.update(b"one"))
        owner = client.identity
        theirs.log.say(owner.sign(theirs.draft(MemberRemoved, owner, user_id=CLEO.user_id, ban=False)))
        answer = await soon(
            group.rekey(
                encrypted_name=b"new name",
                wrap=lambda member: b"for " + member.user_id,
                key_commitment=bytes(range(32)),
                previous_key=b"old",
            )
        )
        assert answer.key_epoch == 2
        (said,) = [statement for statement in theirs.said if isinstance(statement, GroupRekeyed)]
        assert (said.key_epoch, said.new_key_epoch, said.previous_key) == (1, 2, b"old")
        assert (said.key_commitment, said.name_hash) == (bytes(range(32)), sha256(b"new name").digest())
        first, last = theirs.relay.of(GroupRekey)
        assert {wrap.user_id for wrap in first.encrypted_group_keys} == {owner.user_id, BOB.user_id, CLEO.user_id}
        assert {wrap.user_id: wrap.encrypted_group_key for wrap in last.encrypted_group_keys} == {
            who: b"for " + who for who in (owner.user_id, BOB.user_id)
        }
        assert await group.key_epoch() == 2


# ── entering ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_new_group_begins_with_its_founder() -> None:
    async with fake_relay() as relay, registered(relay) as client:
        log = FakeLog()

        def found(_: FakeConnection, request: Request) -> Iterable[Frame]:
            assert isinstance(request, GroupCreate)
            log.group_id = statements.decode(request.statement).group_id
            relay.logs[log.group_id] = log
            event = log.say(actor_signed(request))
            return [
                GroupCreateOk(
                    id=request.id,
                    group_id=log.group_id,
                    seq=1,
                    hash=event.hash,
                    created_at=NOW,
                    key_epoch=1,
                    invite_code="aB3dE6gH",
                )
            ]

        relay.answers[GroupCreate] = found
        group = await soon(client.create_group(b"sealed name"))
        assert group.group_id == log.group_id
        assert await take_until(client, Event) == log.events[0]
        said = statements.decode(relay.of(GroupCreate)[0].statement)
        assert isinstance(said, GroupCreated)
        assert (said.base_seq, said.base_hash, said.key_epoch, said.history) == (0, ZERO_HASH, 1, 1)
        assert said.name_hash == sha256(b"sealed name").digest()
        assert said.roster_hash == roster_hash([client.identity.as_member(Role.OWNER)])
        assert relay.of(GroupCreate)[0].encrypted_group_key == NO_KEY


async def test_a_link_is_made_for_the_head_that_was_verified() -> None:
    async with in_group(BOB) as (theirs, client, group):
        head = theirs.log.head
        invite = await soon(group.invite(expires_at=NOW, max_uses=3, sealed_group_key=b"sealed"))
        (said,) = theirs.said
        assert isinstance(said, InviteCreated)
        assert (said.invite_id, said.invite_key) == (invite.invite_id, invite.public_key)
        assert (said.expires_at, said.max_uses) == (NOW, 3)
        assert (invite.invite_code, invite.group_id) == ("aB3dE6gH", group.group_id)
        assert (invite.inviter_id, invite.inviter_signing_key) == (
            client.identity.user_id,
            client.identity.signing_key,
        )
        assert (invite.seq, invite.hash) == (head.seq, head.hash)
        assert (await soon(group.invite())).secret != invite.secret


def invitation(log: FakeLog, seq: int = 1) -> InviteLink:
    return InviteLink(
        invite_code="aB3dE6gH",
        group_id=log.group_id,
        invite_id=bytes(range(16)),
        secret=bytes(range(32)),
        inviter_id=uuid7(),
        inviter_signing_key=BOB.signing_key,
        seq=seq,
        hash=log.cursor(seq).hash,
    )


def opened(log: FakeLog, **changes: Any) -> Callable[[FakeConnection, Request], Iterable[Frame]]:
    def answer(_: FakeConnection, request: Request) -> Iterable[Frame]:
        parts: dict[str, Any] = {
            "id": request.id,
            "group_id": log.group_id,
            "invite_id": bytes(range(16)),
            "key_epoch": log.key_epoch,
            "seq": log.head.seq,
            "hash": log.head.hash,
            "sealed_group_key": b"sealed",
        }
        return [InviteOpenOk(**{**parts, **changes})]

    return answer


async def test_a_newcomer_joins_by_the_links_key_and_reads_from_where_the_inviter_was() -> None:
    async with fake_relay() as relay, registered(relay) as client:
        log = FakeLog()
        relay.logs[log.group_id] = log
        for _ in range(3):
            log.reply()
        tries: list[GroupJoin] = []

        def join(_: FakeConnection, request: Request) -> Iterable[Frame]:
            assert isinstance(request, GroupJoin)
            tries.append(request)
            if len(tries) == 1:
                log.reply()
                return [Error(id=request.id, code="stale_base", message="")]
            event = log.say(actor_signed(request))
            return [
                ControlOk(
                    id=request.id, group_id=log.group_id, seq=event.seq, hash=event.hash, created_at=NOW, key_epoch=1
                )
            ]

        relay.answers |= {InviteOpen: opened(log), GroupJoin: join}
        link = invitation(log)
        group = await soon(client.join(link, wrap=lambda opened: b"wrapped for myself"))
        said = statements.decode(tries[1].statement)
        assert isinstance(said, MemberJoined)
        me = client.identity
        assert (said.actor_id, said.user_id, said.signing_key) == (me.user_id, me.user_id, me.signing_key)
        assert (said.base_seq, said.roster_hash) == (4, ZERO_HASH)
        preimage = join_preimage(
            group_id=log.group_id,
            invite_id=link.invite_id,
            user_id=me.user_id,
            signing_key=me.signing_key,
            rsa_thumbprint=me.rsa_thumbprint,
        )
        assert verify_raw(preimage, said.invite_signature, link.public_key)
        assert tries[1].encrypted_group_key == b"wrapped for myself"
        assert group.group_id == log.group_id
        assert [(await take_until(client, Event)).seq for _ in range(4)] == [2, 3, 4, 5]


async def test_a_link_of_a_rekeyed_group_asks_for_a_knock() -> None:
    async with fake_relay() as relay, registered(relay) as client:
        log = FakeLog()
        log.reply()
        relay.answers[InviteOpen] = opened(log, sealed_group_key=None)
        relay.answers[GroupKnock] = lambda _, request: [
            GroupKnockOk(id=request.id, group_id=log.group_id, request_id=uuid7())
        ]
        link = invitation(log)
        with pytest.raises(AdmissionNeeded):
            await soon(client.join(link))
        assert relay.of(GroupJoin) == []
        assert await soon(client.knock(link)) == log.group_id
        assert relay.of(GroupKnock)[0].invite_signature is not None
        assert await soon(client.knock("aB3dE6gH")) == log.group_id
        assert relay.of(GroupKnock)[1].invite_signature is None


async def test_a_relay_that_answers_a_link_with_another_group_is_refused() -> None:
    async with fake_relay() as relay, registered(relay) as client:
        log = FakeLog()
        log.reply()
        relay.answers[InviteOpen] = opened(log, group_id=uuid7())
        with pytest.raises(BadAnswer, match="another invite"):
            await soon(client.join(invitation(log)))
        assert relay.of(GroupJoin) == []


async def test_who_knocked_is_in_once_the_group_shows_itself() -> None:
    async with in_group(BOB, follow=False) as (theirs, client, _):
        shown = theirs.relay.answers[GroupGet]
        theirs.relay.answers[GroupGet] = lambda _, request: [Error(id=request.id, code="not_found", message="")]
        assert await soon(client.admitted(theirs.log.group_id)) is None
        theirs.relay.answers[GroupGet] = shown
        assert await soon(client.admitted(theirs.log.group_id)) is client.group(theirs.log.group_id)
        assert (await take_until(client, Live)).seq == theirs.log.head.seq


# ── posts ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def posting(log: FakeLog, **changes: Any) -> Callable[[FakeConnection, Request], Iterable[Frame]]:
    def answer(_: FakeConnection, request: Request) -> Iterable[Frame]:
        match request:
            case ThreadPost():
                content = chain.content_hash(
                    ZERO_ID, [chain.field_hash(request.encrypted_title), chain.field_hash(request.encrypted_body)]
                )
            case ReplyPost():
                content = chain.content_hash(request.thread_id, [chain.field_hash(request.encrypted_body)])
            case AnnotationPost():
                content = chain.content_hash(request.target_id, [chain.field_hash(request.encrypted_body)])
            case _:
                raise AssertionError
        parts: dict[str, Any] = {"id": request.id, "seq": 4, "hash": bytes(32), "created_at": NOW}
        return [PostOk(**{**parts, "content_hash": content, **changes})]

    return answer


async def test_posts_carry_the_epoch_in_force_and_say_where_they_stand() -> None:
    async with in_group(BOB) as (theirs, _, group):
        post = posting(theirs.log)
        for kind in (ThreadPost, ReplyPost, AnnotationPost):
            theirs.relay.answers[kind] = post
        thread = await soon(group.post(title=b"t", body=b"b"))
        reply = await soon(group.reply(thread.id, b"r"))
        await soon(group.annotate(reply.id, b"a"))
        assert (thread.seq, thread.created_at, thread.duplicate) == (4, NOW, False)
        posted = theirs.relay.of(ReplyPost)[0]
        assert (posted.thread_id, posted.reply_id, posted.key_epoch) == (thread.id, reply.id, 1)
        assert theirs.relay.of(AnnotationPost)[0].target_id == reply.id
        mine = uuid7()
        assert (await soon(group.reply(thread.id, b"r", reply_id=mine))).id == mine
        assert theirs.relay.of(GroupGet) == [], "the epoch is known from signing in"


async def test_an_acknowledgement_of_something_else_is_refused() -> None:
    async with in_group(BOB) as (theirs, _, group):
        theirs.relay.answers[ThreadPost] = posting(theirs.log, content_hash=bytes(32), duplicate=True)
        with pytest.raises(BadAnswer, match="another content"):
            await soon(group.post(title=b"t", body=b"b"))


async def test_after_a_stale_epoch_the_new_one_is_asked_for() -> None:
    async with in_group(BOB, follow=False) as (theirs, _, group):
        theirs.log.key_epoch = 2
        theirs.relay.answers[ThreadPost] = lambda _, request: [Error(id=request.id, code="stale_key_epoch", message="")]
        with pytest.raises(OutOfDate):
            await soon(group.post(title=b"t", body=b"b"))
        assert await soon(group.key_epoch()) == 2


async def test_a_rekey_that_is_seen_changes_the_epoch_of_posts() -> None:
    async with in_group(BOB) as (theirs, client, group):
        await take_until(client, Live)
        assert await soon(group.key_epoch()) == 1
        owner = client.identity
        rekeyed = theirs.draft(
            GroupRekeyed, owner, new_key_epoch=2, key_commitment=ZERO_HASH, name_hash=ZERO_HASH, previous_key=b"x"
        )
        await theirs.relay.connections[0].push(theirs.log.say(owner.sign(rekeyed)))
        await take_until(client, Event)
        assert await soon(group.key_epoch()) == 2


# ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_pages_of_the_log_are_verified() -> None:
    async with in_group(BOB, follow=False) as (theirs, _, group):
        for _ in range(5):
            theirs.log.reply()
        page = await soon(group.history(after_seq=3))
        assert page.events == theirs.log.events[3:]
        theirs.log.events[4] = replace(theirs.log.events[4], encrypted_body=b"forged")
        with pytest.raises(ChainBroken):
            await soon(group.history(after_seq=3))


async def test_a_page_is_never_longer_than_the_relay_allows() -> None:
    async with in_group(BOB, follow=False) as (theirs, _, group):
        await soon(group.history(limit=5000))
        assert theirs.relay.of(EventList)[0].limit == 200


async def test_members_come_from_all_pages() -> None:
    async with in_group(BOB, CLEO, follow=False) as (theirs, client, group):
        theirs.page = 1
        listed = await soon(group.members())
        assert {member.user_id for member in listed} == {client.identity.user_id, BOB.user_id, CLEO.user_id}
        assert len(theirs.relay.of(MemberList)) == 3


async def test_a_group_of_others_is_not_found() -> None:
    async with fake_relay() as relay, registered(relay) as client:
        relay.answers[GroupGet] = lambda _, request: [Error(id=request.id, code="not_found", message="")]
        with pytest.raises(NotFound):
            await soon(client.follow(uuid7()))

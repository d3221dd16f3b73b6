"""Links, the standing code, joining and knocking, against a real database."""

from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from orbital_protocol import ZERO_ID, frames
from orbital_protocol.chain import field_hash
from orbital_protocol.codes import ErrorCode, History, Kind, Role
from orbital_protocol.statements import (
    GroupDeleted,
    GroupRekeyed,
    InviteCreated,
    InviteRevoked,
    MemberJoined,
    MemberLeft,
    MemberRemoved,
    MemberUnbanned,
    join_preimage,
)
from orbital_relay import hints
from orbital_relay.store import invites as invite_store
from orbital_relay.store.events import read_events
from orbital_relay.store.pool import Connection
from tests.people import Person, admit, connected, new_id, says
from tests.worlds import GUESSES_PER_HOUR, NOW, RELAY_HEX, FakePeer, World, refused, world_on

SEALED = b"\x01 the key, sealed for the link"
WRAP = b"\x01 the key, wrapped for the newcomer"
NOBODY: dict[str, Any] = {"invite_id": ZERO_ID, "invite_signature": b""}
"""What a statement says of the link where there was none."""


class Link:
    """An invite link, as the newcomer has it."""

    def __init__(self, group_id: bytes) -> None:
        self.group_id = group_id
        self.invite_id = new_id()
        self.key = Ed25519PrivateKey.generate()
        self.code = ""

    @property
    def invite_key(self) -> bytes:
        return self.key.public_key().public_bytes_raw()

    def signs_in(self, newcomer: Person) -> bytes:
        """The link's signature for a newcomer."""
        return self.key.sign(
            join_preimage(
                group_id=self.group_id,
                invite_id=self.invite_id,
                user_id=newcomer.user_id,
                signing_key=newcomer.signing_key,
                rsa_thumbprint=newcomer.rsa_thumbprint,
            )
        )

    def shown_by(self, newcomer: Person) -> dict[str, Any]:
        """What a statement says of the link."""
        return {"invite_id": self.invite_id, "invite_signature": self.signs_in(newcomer)}


async def invite(
    world: World, admin: Person, group_id: bytes, *, sealed: bytes = SEALED, link: Link | None = None, **elements: Any
) -> Link:
    """Send an `invite.create`; return the link."""
    link = link or Link(group_id)
    given = {"invite_id": link.invite_id, "invite_key": link.invite_key, "expires_at": 0, "max_uses": 0, **elements}
    beside = {"sealed_group_key": sealed}
    answer = await world.tell(admin, group_id, frames.InviteCreate, InviteCreated, beside, **given)
    link.code = answer.invite_code
    return link


async def join_request(world: World, newcomer: Person, link: Link, **elements: Any) -> frames.GroupJoin:
    """A `group.join` on the group's head."""
    given = {"user_id": newcomer.user_id, **newcomer.keys(), **link.shown_by(newcomer), **elements}
    signed = await says(world.sql, newcomer, link.group_id, MemberJoined, **given)
    request = world.carrying(frames.GroupJoin, signed, encrypted_group_key=WRAP)
    assert isinstance(request, frames.GroupJoin)
    return request


async def join(world: World, newcomer: Person, link: Link, **elements: Any) -> Any:
    """Send a `group.join`."""
    return await world.send(newcomer, await join_request(world, newcomer, link, **elements))


async def knock(world: World, newcomer: Person, code: str, **fields: Any) -> Any:
    """Send a `group.knock`."""
    return await world.ask(newcomer, frames.GroupKnock, **{"request_id": new_id(), "invite_code": code, **fields})


async def let_in(world: World, admin: Person, group_id: bytes, newcomer: Person, **elements: Any) -> Any:
    """Send a `group.admit`."""
    given = {"user_id": newcomer.user_id, **newcomer.keys(), **NOBODY, **elements}
    return await world.tell(admin, group_id, frames.GroupAdmit, MemberJoined, {"encrypted_group_key": WRAP}, **given)


async def standing_code(world: World, owner: Person, group_id: bytes) -> str:
    """The group's standing code, as its admins see it."""
    code = (await world.ask(owner, frames.GroupGet, group_id=group_id)).invite_code
    assert isinstance(code, str)
    return code


async def rekey(world: World, owner: Person, group_id: bytes, *others: Person) -> None:
    """Give the group a new key."""
    group = await world.ask(owner, frames.GroupGet, group_id=group_id)
    wraps = [
        frames.WrappedKey(user_id=person.user_id, rsa_thumbprint=person.rsa_thumbprint, encrypted_group_key=WRAP)
        for person in (owner, *others)
    ]
    await world.tell(
        owner,
        group_id,
        frames.GroupRekey,
        GroupRekeyed,
        {"encrypted_name": b"name", "encrypted_group_keys": wraps},
        new_key_epoch=group.key_epoch + 1,
        key_commitment=b"c" * 32,
        name_hash=field_hash(b"name"),
        previous_key=b"previous" if group.history == History.SHARED else b"",
    )


async def remove(world: World, admin: Person, group_id: bytes, whom: Person, *, ban: bool) -> None:
    """Send a `member.remove`."""
    await world.tell(admin, group_id, frames.MemberRemove, MemberRemoved, user_id=whom.user_id, ban=ban)


async def uses(world: World, link: Link) -> int:
    """How often the link was used."""
    return int(await world.sql.fetchval("SELECT uses FROM invites WHERE invite_id = $1", link.invite_id))


async def spoil(world: World, link: Link, how: str) -> None:
    """Make a link one that no longer works."""
    change = {
        "expired": "expires_at = now() - interval '1 second'",
        "revoked": "revoked_at = now()",
        "used up": "max_uses = 1, uses = 1",
    }[how]
    await world.sql.execute(
        f"UPDATE invites SET {change} WHERE invite_id = $1",  # noqa: S608  one of the above
        link.invite_id,
    )


SPOILED = ["expired", "revoked", "used up"]


# ── invite.create, list, revoke ─────────────────────────────────────────────────────────────────────────────────────


async def test_a_link_opens_what_was_sealed_for_it(world: World) -> None:
    alice, bob = await world.people("alice", "bob")
    group_id = await world.group(alice)

    link = await invite(world, alice, group_id)
    opened = await world.ask(bob, frames.InviteOpen, invite_code=link.code)

    group = await world.ask(alice, frames.GroupGet, group_id=group_id)
    assert (opened.group_id, opened.invite_id, opened.sealed_group_key) == (group_id, link.invite_id, SEALED)
    assert (opened.key_epoch, opened.seq, opened.hash) == (1, group.seq, group.hash)


async def test_admins_see_the_live_links(world: World) -> None:
    alice, bob = await world.people("alice", "bob")
    group_id = await world.group(alice, bob)
    expiry = NOW + 86_400_000_000
    plain = await invite(world, alice, group_id)
    bounded = await invite(world, alice, group_id, expires_at=expiry, max_uses=2**32 - 1)
    for how in SPOILED:
        await spoil(world, await invite(world, alice, group_id), how)

    listed = (await world.ask(alice, frames.InviteList, group_id=group_id)).invites

    assert [(one.invite_id, one.invite_code, one.expires_at, one.max_uses, one.uses) for one in listed] == [
        (plain.invite_id, plain.code, 0, 0, 0),
        (bounded.invite_id, bounded.code, expiry, 2**32 - 1, 0),
    ]
    assert {one.created_by for one in listed} == {alice.user_id}
    with refused(ErrorCode.FORBIDDEN):
        await world.ask(bob, frames.InviteList, group_id=group_id)


async def test_a_repeated_creation_gets_the_first_answer(world: World) -> None:
    alice = await world.person("alice")
    group_id = await world.group(alice)
    link = Link(group_id)
    given = {"invite_id": link.invite_id, "invite_key": link.invite_key, "expires_at": 0, "max_uses": 0}
    signed = await says(world.sql, alice, group_id, InviteCreated, **given)
    request = world.carrying(frames.InviteCreate, signed, sealed_group_key=SEALED)

    first, again = await world.send(alice, request), await world.send(alice, request)

    assert (again.invite_code, again.seq, again.duplicate) == (first.invite_code, first.seq, True)
    await world.tell(alice, group_id, frames.GroupDelete, GroupDeleted)
    with refused(ErrorCode.NOT_FOUND):
        await world.send(alice, request)


async def test_links_are_for_admins_to_make_and_revoke(world: World) -> None:
    alice, bob = await world.people("alice", "bob")
    group_id = await world.group(alice, bob)
    with refused(ErrorCode.FORBIDDEN):
        await invite(world, bob, group_id)
    link = await invite(world, alice, group_id)
    with refused(ErrorCode.FORBIDDEN):
        await world.tell(bob, group_id, frames.InviteRevoke, InviteRevoked, invite_id=link.invite_id)


@pytest.mark.parametrize(
    ("elements", "sealed", "code"),
    [
        ({"invite_id": ZERO_ID}, SEALED, ErrorCode.BAD_ARGUMENT),
        ({"expires_at": NOW}, SEALED, ErrorCode.BAD_ARGUMENT),
        ({"invite_key": (1).to_bytes(32, "little")}, SEALED, ErrorCode.BAD_ARGUMENT),
        ({"invite_key": b"\xff" * 32}, SEALED, ErrorCode.BAD_ARGUMENT),
        ({}, b"", ErrorCode.BAD_ARGUMENT),
        ({}, bytes(1_025), ErrorCode.TOO_LARGE),
    ],
)
async def test_a_link_must_make_sense(world: World, elements: dict[str, Any], sealed: bytes, code: ErrorCode) -> None:
    alice = await world.person("alice")
    group_id = await world.group(alice)
    with refused(code):
        await invite(world, alice, group_id, sealed=sealed, **elements)


async def test_an_invite_id_is_used_once(world: World) -> None:
    alice = await world.person("alice")
    link = await invite(world, alice, await world.group(alice))
    for group_id in (link.group_id, await world.group(alice)):
        with refused(ErrorCode.ID_CONFLICT):
            await invite(world, alice, group_id, invite_id=link.invite_id)


async def test_no_code_is_a_groups_and_a_links(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    alice = await world.person("alice")
    group_id = await world.group(alice)
    standing = await standing_code(world, alice, group_id)
    draws = iter([standing, "linklink", "linklink", "rotation"])
    monkeypatch.setattr(invite_store, "_draw_code", lambda: next(draws))

    link = await invite(world, alice, group_id)
    rotated = await world.ask(alice, frames.InviteRotate, group_id=group_id)

    assert (link.code, rotated.invite_code) == ("linklink", "rotation")


async def test_a_group_has_so_many_live_links(migrated_database: str) -> None:
    async with world_on(migrated_database, max_invites_per_group=2) as world:
        alice = await world.person("alice")
        group_id = await world.group(alice)
        links = [await invite(world, alice, group_id) for _ in range(2)]
        with refused(ErrorCode.LIMIT_EXCEEDED):
            await invite(world, alice, group_id)
        for how in SPOILED:
            await spoil(world, links.pop(), how)
            links.append(await invite(world, alice, group_id))
            with refused(ErrorCode.LIMIT_EXCEEDED):
                await invite(world, alice, group_id)


async def test_no_key_is_sealed_that_somebody_left_with(world: World) -> None:
    alice, bob = await world.people("alice", "bob")
    group_id = await world.group(alice, bob)
    await world.tell(bob, group_id, frames.GroupLeave, MemberLeft)
    with refused(ErrorCode.REKEY_REQUIRED):
        await invite(world, alice, group_id)


@pytest.mark.produces(ErrorCode.INVITE_INVALID)
async def test_a_link_is_revoked_once(world: World) -> None:
    alice, bob = await world.people("alice", "bob")
    here, there = await world.group(alice), await world.group(alice)
    link, other = await invite(world, alice, here), await invite(world, alice, there)

    await world.tell(alice, here, frames.InviteRevoke, InviteRevoked, invite_id=link.invite_id)

    with refused(ErrorCode.INVITE_INVALID):
        await join(world, bob, link)
    for invite_id in (link.invite_id, other.invite_id, new_id()):
        with refused(ErrorCode.NOT_FOUND):
            await world.tell(alice, here, frames.InviteRevoke, InviteRevoked, invite_id=invite_id)


async def test_a_removal_revokes_every_link(world: World) -> None:
    alice, bob, carol = await world.people("alice", "bob", "carol")
    group_id = await world.group(alice, bob)
    link = await invite(world, alice, group_id)
    elsewhere = await invite(world, alice, await world.group(alice))

    await remove(world, alice, group_id, bob, ban=False)

    assert (await world.ask(alice, frames.InviteList, group_id=group_id)).invites == []
    with refused(ErrorCode.INVITE_INVALID):
        await world.ask(carol, frames.InviteOpen, invite_code=link.code)
    await world.ask(carol, frames.InviteOpen, invite_code=elsewhere.code)


# ── join ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_one_joins_by_a_link(world: World) -> None:
    alice, bob = await world.people("alice", "bob")
    link = await invite(world, alice, await world.group(alice))

    answer = await join(world, bob, link)

    group = await world.ask(bob, frames.GroupGet, group_id=link.group_id)
    assert (group.role, group.member_count, group.rekey_required) == (Role.MEMBER, 2, False)
    assert (group.seq, group.hash) == (answer.seq, answer.hash)
    (key,) = (await world.ask(bob, frames.GroupKeys, group_id=link.group_id)).keys
    assert (key.key_epoch, key.encrypted_group_key) == (1, WRAP)
    assert await uses(world, link) == 1
    assert [event.kind for event in world.published.events] == [Kind.INVITE_CREATED, Kind.MEMBER_JOINED]
    await world.post(bob, link.group_id)


async def test_a_repeated_join_gets_the_first_answer(world: World) -> None:
    alice, bob = await world.people("alice", "bob")
    link = await invite(world, alice, await world.group(alice), max_uses=1)
    request = await join_request(world, bob, link)

    first, again = await world.send(bob, request), await world.send(bob, request)

    assert (again.seq, again.hash, again.duplicate) == (first.seq, first.hash, True)
    assert await uses(world, link) == 1


@pytest.mark.parametrize("how", SPOILED)
async def test_a_spoiled_link_is_like_none(world: World, how: str) -> None:
    alice, bob = await world.people("alice", "bob")
    link = await invite(world, alice, await world.group(alice))
    await spoil(world, link, how)
    nowhere = Link(new_id())

    for attempt in (join(world, bob, link), knock(world, bob, link.code, invite_signature=link.signs_in(bob))):
        with refused(ErrorCode.INVITE_INVALID) as spoiled:
            await attempt
        with refused(ErrorCode.INVITE_INVALID) as absent:
            await join(world, bob, nowhere)
        assert (str(spoiled.value), spoiled.value.details) == (str(absent.value), absent.value.details)
    with refused(ErrorCode.INVITE_INVALID):
        await world.ask(bob, frames.InviteOpen, invite_code=link.code)


async def test_a_link_signs_in_those_whom_it_names(world: World) -> None:
    alice, bob, mallory = await world.people("alice", "bob", "mallory")
    link = await invite(world, alice, await world.group(alice))
    other = await invite(world, alice, link.group_id)

    wrong: list[dict[str, Any]] = [
        {"invite_signature": link.signs_in(bob)},  # somebody else's
        {"invite_signature": other.signs_in(mallory)},  # another link's
        {"invite_signature": bytes(64)},
        {"invite_signature": b""},
        {"invite_id": other.invite_id},
        NOBODY,
        {**NOBODY, "key_epoch": 5},  # and nothing of the group shows
        {**NOBODY, "base_seq": 99},
    ]
    for elements in wrong:
        with refused(ErrorCode.INVITE_INVALID):
            await join(world, mallory, link, **elements)
    assert await uses(world, link) == 0


async def test_a_link_that_expires_at_the_last_moment_is_like_none(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, bob = await world.people("alice", "bob")
    link = await invite(world, alice, await world.group(alice))
    await spoil(world, link, "expired")
    find = invite_store.find

    async def find_a_moment_ago(connection: Connection, group_id: bytes, invite_id: bytes) -> Any:
        row = await find(connection, group_id, invite_id)
        return row and replace(row, is_live=True)

    monkeypatch.setattr(invite_store, "find", find_a_moment_ago)
    with refused(ErrorCode.INVITE_INVALID):
        await join(world, bob, link)


async def test_a_link_of_a_deleted_group_is_like_none(world: World) -> None:
    alice, bob = await world.people("alice", "bob")
    link = await invite(world, alice, await world.group(alice))
    request = await join_request(world, bob, link)
    await world.tell(alice, link.group_id, frames.GroupDelete, GroupDeleted)
    with refused(ErrorCode.INVITE_INVALID):
        await world.send(bob, request)


async def test_one_joins_for_oneself(world: World) -> None:
    alice, bob, carol = await world.people("alice", "bob", "carol")
    link = await invite(world, alice, await world.group(alice))
    with refused(ErrorCode.BAD_ARGUMENT):
        await join(world, bob, link, user_id=carol.user_id)


@pytest.mark.parametrize("changed", ["signing_key", "rsa_thumbprint", "is_bot"])
async def test_one_joins_with_the_keys_in_force(world: World, changed: str) -> None:
    alice, bob = await world.people("alice", "bob")
    link = await invite(world, alice, await world.group(alice))
    mask = replace(bob, is_bot=True) if changed == "is_bot" else replace(bob, signing=Ed25519PrivateKey.generate())
    if changed == "rsa_thumbprint":
        mask = replace(bob, wrapping=next(p.wrapping for p in (alice,)))
    with refused(ErrorCode.BAD_ARGUMENT):
        await join(world, bob, link, **mask.keys(), **link.shown_by(mask))


async def test_a_join_is_signed_by_the_newcomer_too(world: World) -> None:
    alice, bob = await world.people("alice", "bob")
    link = await invite(world, alice, await world.group(alice))
    request = await join_request(world, bob, link)
    with refused(ErrorCode.BAD_SIGNATURE):
        await world.ask(
            bob, frames.GroupJoin, statement=request.statement, signature=bytes(64), encrypted_group_key=WRAP
        )


async def test_a_join_stands_on_the_roster_and_the_key_in_force(world: World) -> None:
    alice, bob = await world.people("alice", "bob")
    link = await invite(world, alice, await world.group(alice))
    with refused(ErrorCode.STALE_BASE):
        await join(world, bob, link, base_hash=b"h" * 32)
    with refused(ErrorCode.STALE_KEY_EPOCH):
        await join(world, bob, link, key_epoch=2)


@pytest.mark.produces(ErrorCode.ALREADY_MEMBER)
async def test_a_member_does_not_join_again(world: World) -> None:
    alice, bob = await world.people("alice", "bob")
    link = await invite(world, alice, await world.group(alice, bob))
    with refused(ErrorCode.ALREADY_MEMBER):
        await join(world, bob, link)
    with refused(ErrorCode.ALREADY_MEMBER):
        await knock(world, bob, await standing_code(world, alice, link.group_id))


@pytest.mark.produces(ErrorCode.BANNED)
async def test_whoever_is_banned_stays_out_until_the_ban_is_lifted(world: World) -> None:
    alice, bob = await world.people("alice", "bob")
    group_id = await world.group(alice, bob)
    await remove(world, alice, group_id, bob, ban=True)
    await rekey(world, alice, group_id)
    link = await invite(world, alice, group_id)
    code = await standing_code(world, alice, group_id)

    with refused(ErrorCode.BANNED):
        await join(world, bob, link)
    with refused(ErrorCode.BANNED):
        await knock(world, bob, code)

    await world.tell(alice, group_id, frames.MemberUnban, MemberUnbanned, user_id=bob.user_id)
    await knock(world, bob, code)
    await join(world, bob, link)
    keys = (await world.ask(bob, frames.GroupKeys, group_id=group_id)).keys
    assert [key.key_epoch for key in keys] == [1, 2]  # of both times
    assert await world.sql.fetchval("SELECT count(*) FROM join_requests") == 0  # the knock is answered


async def test_nobody_joins_while_a_rekey_is_due(world: World) -> None:
    alice, bob, carol = await world.people("alice", "bob", "carol")
    link = await invite(world, alice, await world.group(alice, bob))
    await world.tell(bob, link.group_id, frames.GroupLeave, MemberLeft)
    with refused(ErrorCode.REKEY_REQUIRED):
        await join(world, carol, link)
    await knock(world, carol, link.code, invite_signature=link.signs_in(carol))
    with refused(ErrorCode.REKEY_REQUIRED):
        await let_in(world, alice, link.group_id, carol)


async def test_after_a_rekey_a_link_knocks(world: World) -> None:
    alice, bob = await world.people("alice", "bob")
    link = await invite(world, alice, await world.group(alice), max_uses=1)
    await rekey(world, alice, link.group_id)

    opened = await world.ask(bob, frames.InviteOpen, invite_code=link.code)
    assert (opened.sealed_group_key, opened.key_epoch) == (None, 2)
    with refused(ErrorCode.STALE_KEY_EPOCH):
        await join(world, bob, link)
    await knock(world, bob, link.code, invite_signature=link.signs_in(bob))
    (request,) = (await world.ask(alice, frames.GroupGet, group_id=link.group_id)).join_requests
    assert (request.invite_id, request.invite_signature) == (link.invite_id, link.signs_in(bob))
    await let_in(world, alice, link.group_id, bob, **link.shown_by(bob))

    assert await uses(world, link) == 1
    assert (await world.ask(bob, frames.GroupGet, group_id=link.group_id)).member_count == 2


async def test_joining_a_group_without_history_makes_a_rekey_due(world: World) -> None:
    alice, bob, carol = await world.people("alice", "bob", "carol")
    group_id = await world.group(alice, history=History.NONE)
    link = await invite(world, alice, group_id)
    await join(world, bob, link)
    assert (await world.ask(bob, frames.GroupGet, group_id=group_id)).rekey_required
    await rekey(world, alice, group_id, bob)

    await knock(world, carol, await standing_code(world, alice, group_id))
    await let_in(world, alice, group_id, carol)
    assert (await world.ask(bob, frames.GroupGet, group_id=group_id)).rekey_required


async def test_a_group_has_so_many_members(migrated_database: str) -> None:
    async with world_on(migrated_database, max_members_per_group=2) as world:
        alice, bob, carol = await world.people("alice", "bob", "carol")
        link = await invite(world, alice, await world.group(alice))
        await join(world, bob, link)
        with refused(ErrorCode.LIMIT_EXCEEDED) as error:
            await join(world, carol, link)
        assert error.value.details is not None
        assert error.value.details.limit == 2
        await knock(world, carol, link.code, invite_signature=link.signs_in(carol))
        with refused(ErrorCode.LIMIT_EXCEEDED):
            await let_in(world, alice, link.group_id, carol)


async def test_a_newcomer_is_in_so_many_groups(migrated_database: str) -> None:
    async with world_on(migrated_database, max_groups_per_user=1) as world:
        alice, bob = await world.people("alice", "bob")
        link = await invite(world, alice, await world.group(alice))
        await world.group(bob)
        with refused(ErrorCode.LIMIT_EXCEEDED):
            await join(world, bob, link)


async def test_a_join_carries_a_wrap(world: World) -> None:
    alice, bob = await world.people("alice", "bob")
    link = await invite(world, alice, await world.group(alice))
    request = await join_request(world, bob, link)
    for wrap, code in ((b"", ErrorCode.BAD_ARGUMENT), (bytes(1_025), ErrorCode.TOO_LARGE)):
        with refused(code):
            await world.ask(
                bob,
                frames.GroupJoin,
                statement=request.statement,
                signature=request.signature,
                encrypted_group_key=wrap,
            )


async def test_of_two_who_want_the_last_use_of_a_link_one_gets_it(world: World) -> None:
    alice, bob, carol = await world.people("alice", "bob", "carol")
    link = await invite(world, alice, await world.group(alice), max_uses=1)
    runners = [world.send(person, await join_request(world, person, link)) for person in (bob, carol)]

    won, lost = await world.race(link.group_id, *runners)

    assert isinstance(won, frames.ControlOk)
    assert lost == ErrorCode.INVITE_INVALID
    assert await uses(world, link) == 1
    members = (await world.ask(alice, frames.MemberList, group_id=link.group_id)).members
    assert {member.user_id for member in members} == {alice.user_id, bob.user_id}


async def test_a_join_that_meets_the_revocation_of_its_link_fails(world: World) -> None:
    alice, bob = await world.people("alice", "bob")
    link = await invite(world, alice, await world.group(alice))
    revocation = world.carrying(
        frames.InviteRevoke, await says(world.sql, alice, link.group_id, InviteRevoked, invite_id=link.invite_id)
    )
    joining = await join_request(world, bob, link)

    _, lost = await world.race(link.group_id, world.send(alice, revocation), world.send(bob, joining))

    assert lost == ErrorCode.INVITE_INVALID


async def test_joins_at_once_keep_to_the_limits(migrated_database: str) -> None:
    async with world_on(migrated_database, max_members_per_group=2) as world:
        alice, bob, carol = await world.people("alice", "bob", "carol")
        link = await invite(world, alice, await world.group(alice))
        runners = [world.send(person, await join_request(world, person, link)) for person in (bob, carol)]

        won, lost = await world.race(link.group_id, *runners)

        assert isinstance(won, frames.ControlOk)
        assert lost in (ErrorCode.STALE_BASE, ErrorCode.LIMIT_EXCEEDED)
        assert (await world.ask(alice, frames.GroupGet, group_id=link.group_id)).member_count == 2


# ── knock, admit, deny ──────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_knock_shows_the_newcomers_keys_to_the_admins(world: World, migrated_database: str) -> None:
    alice, bob, admin = await world.people("alice", "bob", "admin")
    group_id = await world.group(alice, await world.person("member"))
    await admit(world.sql, group_id, alice, admin, Role.ADMIN)
    code = await standing_code(world, alice, group_id)
    request_id = new_id()
    heard: list[str] = []
    async with connected(migrated_database) as listening:
        await listening.add_listener(hints.CHANNEL, lambda *notification: heard.append(str(notification[3])))

        answer = await knock(world, bob, code, request_id=request_id)
        await listening.execute("SELECT 1")  # with whose answer comes what was committed before

    assert (answer.group_id, answer.request_id) == (group_id, request_id)
    assert [hints.parse(payload) for payload in heard] == [hints.Knock(group_id, request_id)]
    assert heard == [hints.knock(RELAY_HEX, group_id, request_id)]
    announced = await world.invites.announcement(group_id, request_id)
    assert announced is not None
    admins, push = announced
    assert {*admins} == {alice.user_id, admin.user_id}
    assert (push.group_id, push.request.user_id, push.request.username) == (group_id, bob.user_id, "bob")
    assert (push.request.signing_key, push.request.public_key.n) == (bob.signing_key, bob.public_key.n)
    assert (push.request.invite_id, push.request.invite_signature, push.request.is_bot) == (None, None, False)
    assert await read_events(world.sql, group_id, 4, 10) == []  # knocks are not logged


async def test_a_repeated_knock_is_one_request(world: World) -> None:
    alice, bob = await world.people("alice", "bob")
    group_id = await world.group(alice)
    link = await invite(world, alice, group_id)
    first = await knock(world, bob, await standing_code(world, alice, group_id))

    again = await knock(world, bob, link.code, invite_signature=link.signs_in(bob))

    assert again.request_id == first.request_id
    (request,) = (await world.ask(alice, frames.GroupGet, group_id=group_id)).join_requests
    assert (request.request_id, request.invite_id) == (first.request_id, link.invite_id)


async def test_a_request_id_is_one_persons_at_one_group(world: World) -> None:
    alice, bob, carol = await world.people("alice", "bob", "carol")
    here = await standing_code(world, alice, await world.group(alice))
    there = await standing_code(world, alice, await world.group(alice))
    request_id = new_id()
    await knock(world, bob, here, request_id=request_id)
    await knock(world, bob, here, request_id=request_id)
    for person, code in ((carol, here), (bob, there)):
        with refused(ErrorCode.ID_CONFLICT):
            await knock(world, person, code, request_id=request_id)
    with refused(ErrorCode.BAD_ARGUMENT):
        await knock(world, carol, here, request_id=ZERO_ID)


async def test_a_knock_with_a_link_needs_its_signature(world: World) -> None:
    alice, bob, mallory = await world.people("alice", "bob", "mallory")
    link = await invite(world, alice, await world.group(alice))
    for signature in (None, bytes(64), link.signs_in(bob)):
        with refused(ErrorCode.INVITE_INVALID):
            await knock(world, mallory, link.code, invite_signature=signature)


@pytest.mark.parametrize("code", ["", "short", "aaaaaaaa", "aaaa aaa", "aaaaaaa\0", "aaaaaaaa\n", "ä" * 8, "a" * 5_000])
async def test_what_is_no_code_is_no_invite(world: World, code: str) -> None:
    bob = await world.person("bob")
    with refused(ErrorCode.INVITE_INVALID):
        await knock(world, bob, code)
    with refused(ErrorCode.INVITE_INVALID):
        await world.ask(bob, frames.InviteOpen, invite_code=code)


async def test_the_standing_code_opens_nothing(world: World) -> None:
    alice, bob = await world.people("alice", "bob")
    code = await standing_code(world, alice, await world.group(alice))
    with refused(ErrorCode.INVITE_INVALID):
        await world.ask(bob, frames.InviteOpen, invite_code=code)


async def test_the_standing_code_is_rotated_and_switched_off(world: World) -> None:
    alice, bob, carol = await world.people("alice", "bob", "carol")
    group_id = await world.group(alice, carol)
    first = await standing_code(world, alice, group_id)

    rotated = await world.ask(alice, frames.InviteRotate, group_id=group_id)

    assert (rotated.invite_code == first, rotated.knocking) == (False, True)
    with refused(ErrorCode.INVITE_INVALID):
        await knock(world, bob, first)
    await knock(world, bob, rotated.invite_code)
    off = await world.ask(alice, frames.InviteRotate, group_id=group_id, knocking=False)
    group = await world.ask(alice, frames.GroupGet, group_id=group_id)
    assert (off.knocking, group.knocking, group.invite_code) == (False, False, off.invite_code)
    with refused(ErrorCode.INVITE_INVALID):
        await knock(world, bob, off.invite_code)
    with refused(ErrorCode.FORBIDDEN):
        await world.ask(carol, frames.InviteRotate, group_id=group_id)


async def test_a_knock_that_meets_a_rotation_fails(world: World) -> None:
    alice, bob = await world.people("alice", "bob")
    group_id = await world.group(alice)
    code = await standing_code(world, alice, group_id)

    _, lost = await world.race(
        group_id,
        world.ask(alice, frames.InviteRotate, group_id=group_id),
        knock(world, bob, code),
    )

    assert lost == ErrorCode.INVITE_INVALID


async def test_so_many_wait_to_be_let_in(migrated_database: str) -> None:
    async with world_on(migrated_database, max_join_requests_per_group=2) as world:
        alice, *others = await world.people("alice", "bob", "carol", "dave")
        group_id = await world.group(alice)
        code = await standing_code(world, alice, group_id)
        for person in others[:2]:
            await knock(world, person, code)
        with refused(ErrorCode.LIMIT_EXCEEDED):
            await knock(world, others[2], code)
        await knock(world, others[0], code)
        await world.ask(alice, frames.GroupDeny, group_id=group_id, user_id=others[1].user_id)
        await knock(world, others[2], code)


async def test_one_knocks_so_often(migrated_database: str) -> None:
    async with world_on(migrated_database, knocks_per_hour=3) as world:
        alice, bob, carol = await world.people("alice", "bob", "carol")
        code = await standing_code(world, alice, await world.group(alice))
        for _ in range(3):
            await knock(world, bob, code)
        with refused(ErrorCode.RATE_LIMITED) as error:
            await knock(world, bob, code)
        assert error.value.retry_after_ms == 20 * 60 * 1000
        await knock(world, carol, code)
        world.now_s += 20 * 60
        await knock(world, bob, code)


async def test_an_admin_lets_in_whoever_knocked(world: World) -> None:
    alice, bob, carol = await world.people("alice", "bob", "carol")
    group_id = await world.group(alice, carol)
    with refused(ErrorCode.NOT_FOUND):
        await let_in(world, alice, group_id, bob)
    await knock(world, bob, await standing_code(world, alice, group_id))
    with refused(ErrorCode.FORBIDDEN):
        await let_in(world, carol, group_id, bob)

    await let_in(world, alice, group_id, bob)

    group = await world.ask(alice, frames.GroupGet, group_id=group_id)
    assert (group.join_requests, group.member_count) == ([], 3)
    assert [key.encrypted_group_key for key in (await world.ask(bob, frames.GroupKeys, group_id=group_id)).keys] == [
        WRAP
    ]
    for person in (bob, carol, alice):
        with refused(ErrorCode.ALREADY_MEMBER):
            await let_in(world, alice, group_id, person)
    with refused(ErrorCode.NOT_FOUND):
        await let_in(world, alice, group_id, bob, user_id=new_id())


async def test_an_admission_names_the_newcomer_as_they_are(world: World) -> None:
    alice, bob = await world.people("alice", "bob")
    group_id = await world.group(alice)
    await knock(world, bob, await standing_code(world, alice, group_id))
    with refused(ErrorCode.BAD_ARGUMENT):
        await let_in(world, alice, group_id, bob, signing_key=b"k" * 32)
    with refused(ErrorCode.BAD_ARGUMENT):
        await world.tell(
            alice,
            group_id,
            frames.GroupAdmit,
            MemberJoined,
            {"encrypted_group_key": b""},
            user_id=bob.user_id,
            **bob.keys(),
            **NOBODY,
        )


async def test_nobody_who_was_banned_since_they_knocked_is_let_in(world: World) -> None:
    alice, bob = await world.people("alice", "bob")
    group_id = await world.group(alice)
    await knock(world, bob, await standing_code(world, alice, group_id))
    await world.sql.execute("INSERT INTO bans (group_id, user_id) VALUES ($1, $2)", group_id, bob.user_id)
    with refused(ErrorCode.BANNED):
        await let_in(world, alice, group_id, bob)


@pytest.mark.parametrize("how", [*SPOILED, "forged", "unsigned", "unnamed"])
async def test_an_admission_by_a_link_needs_the_link(world: World, how: str) -> None:
    alice, bob = await world.people("alice", "bob")
    link = await invite(world, alice, await world.group(alice))
    await knock(world, bob, link.code, invite_signature=link.signs_in(bob))
    shown = link.shown_by(bob)
    if how in SPOILED:
        await spoil(world, link, how)
    else:
        shown |= {
            "forged": {"invite_signature": bytes(64)},
            "unsigned": {"invite_signature": b""},
            "unnamed": {"invite_id": ZERO_ID},
        }[how]

    with refused(ErrorCode.INVITE_INVALID):
        await let_in(world, alice, link.group_id, bob, **shown)
    await let_in(world, alice, link.group_id, bob)  # an admin needs no link
    assert await uses(world, link) == (1 if how == "used up" else 0)


async def test_whoever_is_denied_may_knock_again(world: World) -> None:
    alice, bob, carol = await world.people("alice", "bob", "carol")
    group_id = await world.group(alice, carol)
    code = await standing_code(world, alice, group_id)
    request_id = (await knock(world, bob, code)).request_id
    with refused(ErrorCode.FORBIDDEN):
        await world.ask(carol, frames.GroupDeny, group_id=group_id, user_id=bob.user_id)

    for _ in range(2):  # a repeated denial is one
        await world.ask(alice, frames.GroupDeny, group_id=group_id, user_id=bob.user_id)

    assert await world.invites.announcement(group_id, request_id) is None
    with refused(ErrorCode.NOT_FOUND):
        await let_in(world, alice, group_id, bob)
    await knock(world, bob, code)


# ── guessing ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("how", ["open", "knock", "join"])
async def test_guessing_is_slow(migrated_database: str, how: str) -> None:
    async with world_on(migrated_database, knocks_per_hour=1_000) as world:
        alice, bob, mallory = await world.people("alice", "bob", "mallory")
        link = await invite(world, alice, await world.group(alice))

        async def guess() -> None:
            match how:
                case "open":
                    await world.ask(mallory, frames.InviteOpen, invite_code="aaaaaaaa")
                case "knock":
                    await knock(world, mallory, "aaaaaaaa")
                case _:
                    await join(world, mallory, Link(new_id()))

        for _ in range(GUESSES_PER_HOUR):
            with refused(ErrorCode.INVITE_INVALID):
                await guess()
        with refused(ErrorCode.RATE_LIMITED) as error:
            await guess()
        assert error.value.retry_after_ms == 3600 * 1000 // GUESSES_PER_HOUR
        with refused(ErrorCode.RATE_LIMITED):  # a right guess is not answered either
            await world.ask(mallory, frames.InviteOpen, invite_code=link.code)
        await world.ask(bob, frames.InviteOpen, invite_code=link.code)
        await join(world, mallory, link)  # no guess: nobody guesses a signature


async def test_an_address_guesses_slowly_with_many_accounts(world: World) -> None:
    people = await world.people(*(f"mallory{number}" for number in range(9)))
    alice = await world.person("alice")

    async def guess(person: Person, address: str) -> None:
        peer = FakePeer(person.caller(), address=address)
        await world.send(person, world.request(frames.InviteOpen, invite_code="aaaaaaaa"), peer)

    for person in people[:8]:
        for number in range(GUESSES_PER_HOUR):
            with refused(ErrorCode.INVITE_INVALID):
                await guess(person, f"2001:db8::{number}")
    with refused(ErrorCode.RATE_LIMITED):
        await guess(people[8], "2001:db8::ffff")
    with refused(ErrorCode.INVITE_INVALID):
        await guess(alice, "2001:db8:1::1")


async def test_a_token_for_some_groups_finds_no_others_behind_codes(world: World) -> None:
    alice, bot = await world.people("alice", "bot")
    link = await invite(world, alice, await world.group(alice))
    code = await standing_code(world, alice, link.group_id)
    peer = FakePeer(bot.caller(groups=frozenset({new_id()})))
    for request in (
        world.request(frames.InviteOpen, invite_code=link.code),
        world.request(frames.GroupKnock, request_id=new_id(), invite_code=code),
    ):
        with refused(ErrorCode.INVITE_INVALID):
            await world.send(bot, request, peer)
    with refused(ErrorCode.NOT_FOUND):
        await world.send(bot, await join_request(world, bot, link), peer)


async def test_an_account_that_is_gone_does_not_knock(world: World) -> None:
    alice, bob = await world.people("alice", "bob")
    code = await standing_code(world, alice, await world.group(alice))
    await world.sql.execute("DELETE FROM users WHERE id = $1", bob.user_id)
    with refused(ErrorCode.UNAUTHENTICATED):
        await knock(world, bob, code)

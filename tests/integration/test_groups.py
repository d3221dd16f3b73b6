"""Groups as a whole, against a real database: creation to deletion, and the flow that every control request takes."""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
from msgspec.structs import replace

from orbital_protocol import ZERO_HASH, ZERO_ID, frames
from orbital_protocol.chain import field_hash
from orbital_protocol.codes import ErrorCode, History, Kind, Role
from orbital_protocol.frames import SignedStatement
from orbital_protocol.statements import (
    MAX_STATEMENT_BYTES,
    GroupCreated,
    GroupDeleted,
    GroupTransferred,
    GroupUpdated,
    MemberLeft,
    MemberRemoved,
    MemberRole,
)
from orbital_relay.control import Control
from orbital_relay.errors import RequestError, Unavailable
from orbital_relay.handlers.groups import Groups
from orbital_relay.store import control as control_store
from orbital_relay.store import invites as invite_store
from orbital_relay.store.events import read_events
from orbital_relay.store.pool import Connection, Database, PoolSettings
from tests.people import Person, View, new_id, says, sign, view, write
from tests.worlds import RELAY_HEX, FakePeer, World, refused, verified_log, world_on

NAME = b"\x01 an encrypted name"
WRAP = b"\x01 a wrapped key"


def creation(
    owner: Person, *, group_id: bytes | None = None, signer: Person | None = None, **elements: Any
) -> SignedStatement:
    """What the owner of a new group signs."""
    kind = {"history": History.SHARED, "key_commitment": b"c" * 32, "name_hash": field_hash(NAME), **owner.keys()}
    return sign(signer or owner, write(owner, GroupCreated, View(group_id or new_id()), **{**kind, **elements}))


async def create(
    world: World, owner: Person, signed: SignedStatement | None = None, peer: FakePeer | None = None, **beside: bytes
) -> Any:
    """Send a `group.create`."""
    given = {"encrypted_name": NAME, "encrypted_group_key": WRAP, **beside}
    return await world.send(owner, world.carrying(frames.GroupCreate, signed or creation(owner), **given), peer)


async def rename(world: World, actor: Person, group_id: bytes, name: bytes = NAME, **elements: Any) -> Any:
    """Send a `group.update`."""
    given = {"name_hash": field_hash(name), **elements}
    return await world.tell(actor, group_id, frames.GroupUpdate, GroupUpdated, {"encrypted_name": name}, **given)


async def length(world: World, group_id: bytes) -> int:
    """How many events a group's log has."""
    return int(await world.sql.fetchval("SELECT count(*) FROM events WHERE group_id = $1", group_id))


# ── create ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_group_is_made(world: World) -> None:
    alice = await world.person("alice")

    answer = await create(world, alice)

    assert (answer.seq, answer.key_epoch, answer.duplicate) == (1, 1, False)
    assert re.fullmatch("[A-Za-z0-9]{8}", answer.invite_code)
    group = await world.ask(alice, frames.GroupGet, group_id=answer.group_id)
    assert (group.encrypted_name, group.created_by, group.role) == (NAME, alice.user_id, Role.OWNER)
    assert (group.history, group.knocking, group.member_count) == (History.SHARED, True, 1)
    assert (group.seq, group.hash, group.key_epoch, group.name_key_epoch) == (1, answer.hash, 1, 1)
    assert group.invite_code == answer.invite_code
    (key,) = (await world.ask(alice, frames.GroupKeys, group_id=answer.group_id)).keys
    assert (key.key_epoch, key.encrypted_group_key) == (1, WRAP)
    assert await world.sql.fetchval("SELECT total_bytes FROM group_quotas WHERE group_id = $1", answer.group_id) == 0


async def test_what_is_published_is_what_the_log_says(world: World) -> None:
    alice, bob = await world.people("alice", "bob")
    group_id = await world.group(alice, bob)

    await rename(world, alice, group_id)
    await world.tell(bob, group_id, frames.GroupLeave, MemberLeft)

    assert world.published.events == await read_events(world.sql, group_id, 2, 10)


async def test_a_repeated_creation_gets_the_first_answer(world: World) -> None:
    alice = await world.person("alice")
    signed = creation(alice)

    first = await create(world, alice, signed)
    again = await create(world, alice, signed)

    assert again.duplicate
    assert (again.seq, again.hash, again.created_at, again.invite_code) == (
        *(first.seq, first.hash, first.created_at, first.invite_code),
    )
    assert await length(world, first.group_id) == 1
    assert len(world.published.events) == 1


async def test_a_group_id_is_used_once(world: World) -> None:
    alice, bob = await world.people("alice", "bob")
    group_id = (await create(world, alice)).group_id

    for somebody in (alice, bob):
        with refused(ErrorCode.ID_CONFLICT):
            await create(world, somebody, creation(somebody, group_id=group_id))

    assert await length(world, group_id) == 1


async def test_the_id_of_a_deleted_group_is_not_used_again(world: World) -> None:
    alice = await world.person("alice")
    signed = creation(alice)
    group_id = (await create(world, alice, signed)).group_id
    await world.tell(alice, group_id, frames.GroupDelete, GroupDeleted)

    for attempt in (signed, creation(alice, group_id=group_id)):
        with refused(ErrorCode.ID_CONFLICT):
            await create(world, alice, attempt)


async def test_a_creation_that_is_refused_leaves_nothing_behind(world: World) -> None:
    alice = await world.person("alice")
    group_id = new_id()

    with refused(ErrorCode.BAD_ARGUMENT):
        await create(world, alice, creation(alice, group_id=group_id, is_bot=True))

    assert await world.sql.fetchval("SELECT count(*) FROM group_heads") == 0
    assert (await create(world, alice, creation(alice, group_id=group_id))).seq == 1


@pytest.mark.parametrize(
    ("elements", "code"),
    [
        ({"signing_key": b"k" * 32}, ErrorCode.BAD_ARGUMENT),
        ({"rsa_thumbprint": b"t" * 32}, ErrorCode.BAD_ARGUMENT),
        ({"is_bot": True}, ErrorCode.BAD_ARGUMENT),
        ({"name_hash": b"n" * 32}, ErrorCode.BAD_ARGUMENT),
        ({"statement_id": ZERO_ID}, ErrorCode.BAD_ARGUMENT),
        ({"group_id": ZERO_ID}, ErrorCode.BAD_ARGUMENT),
        ({"base_seq": 1}, ErrorCode.STALE_BASE),
        ({"base_hash": b"h" * 32}, ErrorCode.STALE_BASE),
        ({"key_epoch": 2}, ErrorCode.STALE_KEY_EPOCH),
    ],
)
async def test_a_creation_must_say_what_is_so(world: World, elements: dict[str, Any], code: ErrorCode) -> None:
    alice = await world.person("alice")
    with refused(code):
        await create(world, alice, creation(alice, **elements))


@pytest.mark.parametrize(
    ("beside", "code"),
    [
        ({"encrypted_name": b"n" * 513}, ErrorCode.TOO_LARGE),
        ({"encrypted_name": b""}, ErrorCode.BAD_ARGUMENT),
        ({"encrypted_group_key": b"k" * 1_025}, ErrorCode.TOO_LARGE),
        ({"encrypted_group_key": b""}, ErrorCode.BAD_ARGUMENT),
    ],
)
async def test_what_a_creation_carries_has_bounds(world: World, beside: dict[str, Any], code: ErrorCode) -> None:
    alice = await world.person("alice")
    with refused(code) as error:
        await create(world, alice, **beside)
    assert error.value.details is not None
    assert [error.value.details.field] == [*beside]


async def test_a_user_is_in_so_many_groups_at_most(migrated_database: str) -> None:
    async with world_on(migrated_database, max_groups_per_user=2) as world:
        alice, bob = await world.people("alice", "bob")
        await world.group(bob, alice)
        await create(world, alice)
        with refused(ErrorCode.LIMIT_EXCEEDED):
            await create(world, alice)


async def test_creations_at_once_keep_to_the_limit(migrated_database: str) -> None:
    async with world_on(migrated_database, max_groups_per_user=2) as world:
        alice = await world.person("alice")

        outcomes = await asyncio.gather(*(create(world, alice) for _ in range(4)), return_exceptions=True)

        refusals = [outcome.code for outcome in outcomes if isinstance(outcome, RequestError)]
        assert refusals == [ErrorCode.LIMIT_EXCEEDED] * 2


async def test_an_invite_code_in_use_is_not_given_twice(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    alice = await world.person("alice")
    taken = (await create(world, alice)).invite_code
    draws = iter([taken, taken, "unused01"])
    monkeypatch.setattr(invite_store, "_draw_code", lambda: next(draws))

    assert (await create(world, alice)).invite_code == "unused01"


async def test_without_an_unused_code_the_relay_says_to_come_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice = await world.person("alice")
    taken = (await create(world, alice)).invite_code
    monkeypatch.setattr(invite_store, "_draw_code", lambda: taken)

    with refused(ErrorCode.OVERLOADED):
        await create(world, alice)


# ── list, get, keys ─────────────────────────────────────────────────────────────────────────────────────────────────


async def test_one_lists_the_groups_that_one_is_in(world: World) -> None:
    alice, bob = await world.people("alice", "bob")
    mine, ours = await world.group(alice), await world.group(bob, alice)
    await world.group(bob)

    listed = (await world.ask(alice, frames.GroupList)).groups

    assert {group.group_id: group.role for group in listed} == {mine: Role.OWNER, ours: Role.MEMBER}
    seen = {group.group_id: (group.seq, group.hash, group.key_epoch, group.rekey_required) for group in listed}
    there = await view(world.sql, ours)
    assert seen[ours] == (there.seq, there.hash, 1, False)


async def test_a_token_for_some_groups_reaches_only_those(world: World) -> None:
    alice = await world.person("alice")
    open_to_it, closed_to_it = await world.group(alice), await world.group(alice)
    peer = FakePeer(alice.caller(groups=frozenset({open_to_it})))

    listed = (await world.send(alice, world.request(frames.GroupList), peer)).groups
    assert [group.group_id for group in listed] == [open_to_it]
    for kind in (frames.GroupGet, frames.GroupKeys, frames.MemberList, frames.InviteList, frames.InviteRotate):
        await world.send(alice, world.request(kind, group_id=open_to_it), peer)
        with refused(ErrorCode.NOT_FOUND):
            await world.send(alice, world.request(kind, group_id=closed_to_it), peer)
    signed = await says(world.sql, alice, closed_to_it, GroupDeleted)
    with refused(ErrorCode.NOT_FOUND):
        await world.send(alice, world.carrying(frames.GroupDelete, signed), peer)


async def test_only_admins_see_the_code_and_who_knocks(world: World) -> None:
    alice, bob, carol = await world.people("alice", "bob", "carol")
    group_id = await world.group(alice, bob)
    code = (await world.ask(alice, frames.GroupGet, group_id=group_id)).invite_code
    await world.ask(carol, frames.GroupKnock, request_id=new_id(), invite_code=code)

    seen_by_owner = await world.ask(alice, frames.GroupGet, group_id=group_id)
    seen_by_member = await world.ask(bob, frames.GroupGet, group_id=group_id)

    assert [request.user_id for request in seen_by_owner.join_requests] == [carol.user_id]
    assert (seen_by_member.invite_code, seen_by_member.join_requests) == (None, None)


async def test_a_stranger_sees_nothing(world: World) -> None:
    alice, mallory = await world.people("alice", "mallory")
    group_id = await world.group(alice)

    for kind in (frames.GroupGet, frames.GroupKeys, frames.MemberList, frames.InviteList, frames.InviteRotate):
        for unknown in (group_id, new_id()):
            with refused(ErrorCode.NOT_FOUND):
                await world.ask(mallory, kind, group_id=unknown)
    with refused(ErrorCode.NOT_FOUND):
        await world.ask(mallory, frames.GroupDeny, group_id=group_id, user_id=alice.user_id)


async def test_without_a_caller_nothing_is_answered(world: World) -> None:
    alice = await world.person("alice")
    with refused(ErrorCode.UNAUTHENTICATED):
        await world.send(alice, world.request(frames.GroupList), FakePeer(None))
    with refused(ErrorCode.UNAUTHENTICATED):
        await create(world, alice, peer=FakePeer(None))


# ── update ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_an_admin_renames_the_group(world: World) -> None:
    alice, bob = await world.people("alice", "bob")
    group_id = await world.group(alice, bob)

    await rename(world, alice, group_id, b"another name")

    assert (await world.ask(bob, frames.GroupGet, group_id=group_id)).encrypted_name == b"another name"
    with refused(ErrorCode.FORBIDDEN):
        await rename(world, bob, group_id)
    with refused(ErrorCode.BAD_ARGUMENT):
        await rename(world, alice, group_id, name_hash=b"h" * 32)


@pytest.mark.produces(ErrorCode.REKEY_REQUIRED)
async def test_a_name_is_not_sealed_under_a_key_that_somebody_left_with(world: World) -> None:
    alice, bob = await world.people("alice", "bob")
    group_id = await world.group(alice, bob)
    await world.tell(bob, group_id, frames.GroupLeave, MemberLeft)

    with refused(ErrorCode.REKEY_REQUIRED):
        await rename(world, alice, group_id)


# ── transfer and leave ──────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_group_is_handed_over(world: World) -> None:
    alice, bob, carol = await world.people("alice", "bob", "carol")
    group_id = await world.group(alice, bob, carol)

    await world.tell(alice, group_id, frames.GroupTransfer, GroupTransferred, user_id=bob.user_id)

    group = await world.ask(bob, frames.GroupGet, group_id=group_id)
    assert (group.role, group.created_by) == (Role.OWNER, bob.user_id)
    assert (await world.ask(alice, frames.GroupGet, group_id=group_id)).role == Role.ADMIN
    assert (await world.ask(carol, frames.GroupGet, group_id=group_id)).role == Role.MEMBER
    await world.tell(alice, group_id, frames.GroupLeave, MemberLeft)


async def test_only_the_owner_hands_over_and_only_to_another_member(world: World) -> None:
    alice, bob, carol, mallory = await world.people("alice", "bob", "carol", "mallory")
    group_id = await world.group(alice, bob, carol)
    await world.tell(alice, group_id, frames.MemberSetRole, MemberRole, user_id=bob.user_id, role=Role.ADMIN)

    for actor, heir, code in (
        (bob, carol, ErrorCode.FORBIDDEN),
        (bob, bob, ErrorCode.FORBIDDEN),
        (alice, alice, ErrorCode.FORBIDDEN),
        (alice, mallory, ErrorCode.NOT_FOUND),
    ):
        with refused(code):
            await world.tell(actor, group_id, frames.GroupTransfer, GroupTransferred, user_id=heir.user_id)


async def test_whoever_leaves_is_out_and_a_rekey_is_due(world: World) -> None:
    alice, bob = await world.people("alice", "bob")
    group_id = await world.group(alice, bob)
    signed = await says(world.sql, bob, group_id, MemberLeft)
    request = world.carrying(frames.GroupLeave, signed)

    first = await world.send(bob, request)

    assert (await world.ask(alice, frames.GroupGet, group_id=group_id)).rekey_required
    for kind in (frames.GroupGet, frames.GroupKeys):
        with refused(ErrorCode.NOT_FOUND):
            await world.ask(bob, kind, group_id=group_id)
    kept = await world.sql.fetchval("SELECT count(*) FROM group_keys WHERE user_id = $1", bob.user_id)
    assert kept == 1  # for the day that they are let in again
    assert (await world.try_post(alice, group_id))[0] == ErrorCode.REKEY_REQUIRED
    again = await world.send(bob, request)
    assert (again.seq, again.hash, again.duplicate) == (first.seq, first.hash, True)
    with refused(ErrorCode.NOT_FOUND):
        await world.tell(bob, group_id, frames.GroupLeave, MemberLeft)


async def test_the_owner_does_not_leave(world: World) -> None:
    alice, bob = await world.people("alice", "bob")
    group_id = await world.group(alice, bob)
    with refused(ErrorCode.FORBIDDEN):
        await world.tell(alice, group_id, frames.GroupLeave, MemberLeft)


# ── delete ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_of_a_deleted_group_the_head_and_the_last_event_stay(world: World) -> None:
    alice, bob = await world.people("alice", "bob")
    group_id = await world.group(alice, bob)
    thread_id = await world.post(bob, group_id)
    await world.post(alice, group_id, thread_id)
    before = await view(world.sql, group_id)

    answer = await world.tell(alice, group_id, frames.GroupDelete, GroupDeleted)

    assert answer.seq == before.seq + 1
    head = await world.sql.fetchrow("SELECT * FROM group_heads WHERE group_id = $1", group_id)
    assert head is not None
    assert (head["last_seq"], head["head_hash"], head["deleted_at"] is None) == (answer.seq, answer.hash, False)
    (event,) = await read_events(world.sql, group_id, 0, 10)
    assert (event.kind, event.seq, event.hash) == (Kind.GROUP_DELETED, answer.seq, answer.hash)
    assert world.published.events == [event]
    for table in ("threads", "replies", "members", "group_keys", "group_quotas"):
        assert await world.sql.fetchval(f"SELECT count(*) FROM {table}") == 0, table  # noqa: S608  names from above
    assert await world.sql.fetchval("SELECT array_agg(object_id) FROM objects") == [event.object_id]
    for somebody in (alice, bob):
        with refused(ErrorCode.NOT_FOUND):
            await world.ask(somebody, frames.GroupGet, group_id=group_id)


async def test_a_repeated_deletion_gets_the_first_answer(world: World) -> None:
    alice = await world.person("alice")
    group_id = await world.group(alice)
    request = world.carrying(frames.GroupDelete, await says(world.sql, alice, group_id, GroupDeleted))

    first, again = await world.send(alice, request), await world.send(alice, request)

    assert (again.seq, again.hash, again.duplicate) == (first.seq, first.hash, True)
    with refused(ErrorCode.NOT_FOUND):
        await world.tell(alice, group_id, frames.GroupDelete, GroupDeleted)


async def test_only_the_owner_deletes(world: World) -> None:
    alice, bob = await world.people("alice", "bob")
    group_id = await world.group(alice, bob)
    await world.tell(alice, group_id, frames.MemberSetRole, MemberRole, user_id=bob.user_id, role=Role.ADMIN)
    with refused(ErrorCode.FORBIDDEN):
        await world.tell(bob, group_id, frames.GroupDelete, GroupDeleted)


# ── the flow ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("statement", "code"),
    [
        (b"", ErrorCode.BAD_ARGUMENT),
        (b"\xc1", ErrorCode.BAD_ARGUMENT),
        (b"\x98" + bytes(8), ErrorCode.BAD_ARGUMENT),
        (bytes(MAX_STATEMENT_BYTES + 1), ErrorCode.TOO_LARGE),
    ],
)
async def test_what_is_no_statement_names_the_field(world: World, statement: bytes, code: ErrorCode) -> None:
    alice = await world.person("alice")
    with refused(code) as error:
        await world.ask(alice, frames.GroupDelete, statement=statement, signature=bytes(64))
    assert error.value.details is not None
    assert error.value.details.field == "statement"


async def test_a_statement_in_a_longer_encoding_is_none(world: World) -> None:
    alice = await world.person("alice")
    group_id = await world.group(alice)
    signed = await says(world.sql, alice, group_id, GroupDeleted)
    longer = b"\xdc\x00\x08" + signed.statement[1:]  # the same array, with a length of 16 bits
    with refused(ErrorCode.BAD_ARGUMENT):
        await world.ask(alice, frames.GroupDelete, statement=longer, signature=signed.signature)


async def test_a_statement_is_of_the_kind_that_the_request_carries(world: World) -> None:
    alice = await world.person("alice")
    group_id = await world.group(alice)
    with refused(ErrorCode.BAD_ARGUMENT):
        await world.tell(alice, group_id, frames.GroupDelete, MemberLeft)


async def test_nobody_carries_the_statement_of_another(world: World) -> None:
    alice, bob = await world.people("alice", "bob")
    group_id = await world.group(alice, bob)
    signed = await says(world.sql, alice, group_id, GroupDeleted)
    with refused(ErrorCode.FORBIDDEN):
        await world.send(bob, world.carrying(frames.GroupDelete, signed))


@pytest.mark.produces(ErrorCode.BAD_SIGNATURE)
async def test_a_statement_is_signed_by_its_actor(world: World) -> None:
    alice, bob = await world.people("alice", "bob")
    group_id = await world.group(alice, bob)
    statement = write(alice, GroupDeleted, await view(world.sql, group_id))
    for signed in (
        sign(bob, statement),
        SignedStatement(statement=sign(alice, statement).statement, signature=bytes(64)),
    ):
        with refused(ErrorCode.BAD_SIGNATURE):
            await world.send(alice, world.carrying(frames.GroupDelete, signed))


async def test_a_stranger_learns_nothing_from_a_statement(world: World) -> None:
    alice, mallory = await world.people("alice", "mallory")
    group_id = await world.group(alice)
    guesses: list[dict[str, Any]] = [{}, {"key_epoch": 9}, {"base_seq": 9}]
    for elements in guesses:
        with refused(ErrorCode.NOT_FOUND) as known:
            await world.tell(mallory, group_id, frames.GroupDelete, GroupDeleted, **elements)
        with refused(ErrorCode.NOT_FOUND) as unknown:
            await world.tell(mallory, new_id(), frames.GroupDelete, GroupDeleted, **elements)
        assert (str(known.value), known.value.details) == (str(unknown.value), unknown.value.details)


@pytest.mark.produces(ErrorCode.STALE_KEY_EPOCH)
async def test_a_statement_speaks_of_the_key_in_force(world: World) -> None:
    alice = await world.person("alice")
    group_id = await world.group(alice)
    for key_epoch in (2, 7):
        with refused(ErrorCode.STALE_KEY_EPOCH) as error:
            await rename(world, alice, group_id, key_epoch=key_epoch)
        assert error.value.details is not None
        assert error.value.details.key_epoch == 1


async def test_a_statement_stands_on_an_event_of_the_log(world: World) -> None:
    alice, bob = await world.people("alice", "bob")
    group_id = await world.group(alice, bob)
    for elements in ({"base_hash": b"h" * 32}, {"base_seq": 3}, {"base_seq": 2**53 - 1}, {"base_seq": 0}):
        with refused(ErrorCode.STALE_BASE) as error:
            await rename(world, alice, group_id, **elements)
        assert error.value.details is not None
        assert error.value.details.seq == 2
    with refused(ErrorCode.STALE_BASE):
        await rename(world, alice, group_id, base_seq=0, base_hash=ZERO_HASH)


async def test_a_base_may_be_behind_as_long_as_the_roster_is_the_same(world: World) -> None:
    alice, bob = await world.people("alice", "bob")
    group_id = await world.group(alice, bob)
    seen = await view(world.sql, group_id)
    await world.post(bob, group_id)
    await rename(world, alice, group_id)

    old = sign(alice, write(alice, GroupUpdated, seen, name_hash=field_hash(NAME)))
    await world.send(alice, world.carrying(frames.GroupUpdate, old, encrypted_name=NAME))

    await world.tell(alice, group_id, frames.MemberSetRole, MemberRole, user_id=bob.user_id, role=Role.ADMIN)
    older = sign(alice, write(alice, GroupUpdated, seen, name_hash=field_hash(NAME)))
    with refused(ErrorCode.STALE_BASE):
        await world.send(alice, world.carrying(frames.GroupUpdate, older, encrypted_name=NAME))


async def test_a_statement_id_means_one_thing(world: World) -> None:
    alice, bob = await world.people("alice", "bob")
    group_id, elsewhere = await world.group(alice, bob), await world.group(alice)
    post_id = await world.post(alice, group_id)
    logged = (await rename(world, alice, elsewhere)).group_id
    known = await world.sql.fetchval("SELECT max(object_id::text)::uuid FROM objects WHERE group_id = $1", logged)

    for taken in (post_id, known):
        with refused(ErrorCode.ID_CONFLICT):
            await rename(world, alice, group_id, statement_id=taken)


async def test_the_same_id_with_other_words_is_a_conflict(world: World) -> None:
    alice = await world.person("alice")
    group_id = await world.group(alice)
    statement_id = new_id()
    await rename(world, alice, group_id, b"one", statement_id=statement_id)
    with refused(ErrorCode.ID_CONFLICT):
        await rename(world, alice, group_id, b"two", statement_id=statement_id)


async def test_a_request_sent_twice_at_once_takes_effect_once(world: World) -> None:
    alice = await world.person("alice")
    group_id = await world.group(alice)
    signed = await says(world.sql, alice, group_id, GroupUpdated, name_hash=field_hash(NAME))
    request = world.carrying(frames.GroupUpdate, signed, encrypted_name=NAME)

    first, again = await world.race(group_id, world.send(alice, request), world.send(alice, request))

    assert isinstance(first, frames.ControlOk)
    assert again == replace(first, duplicate=True)
    assert [event.hash for event in world.published.events] == [first.hash]


async def test_the_same_creation_sent_twice_at_once_makes_one_group(world: World) -> None:
    alice = await world.person("alice")
    signed = creation(alice)

    answers = await asyncio.gather(*(create(world, alice, signed) for _ in range(4)))

    assert Counter(answer.duplicate for answer in answers) == {False: 1, True: 3}
    assert len({(answer.hash, answer.invite_code) for answer in answers}) == 1


async def test_an_id_used_in_two_groups_at_once_is_a_conflict_in_one(world: World) -> None:
    alice = await world.person("alice")
    here, there = await world.group(alice), await world.group(alice)
    shared = {"statement_id": new_id(), "name_hash": field_hash(NAME)}
    signed = [await says(world.sql, alice, group_id, GroupUpdated, **shared) for group_id in (here, there)]

    outcomes = await asyncio.gather(
        *(world.send(alice, world.carrying(frames.GroupUpdate, one, encrypted_name=NAME)) for one in signed),
        return_exceptions=True,
    )

    assert [outcome.code for outcome in outcomes if isinstance(outcome, RequestError)] == [ErrorCode.ID_CONFLICT]


async def test_an_account_that_is_gone_does_nothing(world: World) -> None:
    alice = await world.person("alice")
    signed = creation(alice)
    await world.sql.execute("DELETE FROM users WHERE id = $1", alice.user_id)
    with refused(ErrorCode.UNAUTHENTICATED):
        await create(world, alice, signed)


# ── when the database fails ─────────────────────────────────────────────────────────────────────────────────────────


class Troubled(Database):
    """A pool whose transactions meet with trouble, one after the other: before their commit, or after it."""

    def __init__(self, dsn: str) -> None:
        super().__init__(PoolSettings(dsn, min_size=1, max_size=2), "troubled")
        self.before: list[Exception] = []
        self.after: list[Exception] = []

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        async with super().transaction() as connection:
            yield connection
            if self.before:
                raise self.before.pop()
        if self.after:
            raise self.after.pop()


@asynccontextmanager
async def trouble(world: World, dsn: str) -> AsyncIterator[Troubled]:
    """Let the world's groups be handled over a troubled pool."""
    database = Troubled(dsn)
    await database.open()
    try:
        world.groups = Groups(Control(database, world.published, RELAY_HEX), database, world.limits, world.rekeys)
        yield database
    finally:
        await database.close()


@pytest.mark.parametrize("committed", [True, False])
async def test_a_commit_whose_answer_is_lost_is_found_or_done_again(
    world: World, migrated_database: str, committed: bool
) -> None:
    alice = await world.person("alice")
    group_id = await world.group(alice)
    async with trouble(world, migrated_database) as database:
        (database.after if committed else database.before).append(Unavailable())

        answer = await rename(world, alice, group_id)

    assert not answer.duplicate
    assert [event.hash for event in world.published.events] == [answer.hash]
    assert [event.seq for event in await verified_log(world.sql, group_id)] == [1, 2]


async def test_what_stays_unknown_is_unavailable_and_never_done_twice(world: World, migrated_database: str) -> None:
    alice = await world.person("alice")
    group_id = await world.group(alice)
    signed = await says(world.sql, alice, group_id, GroupUpdated, name_hash=field_hash(NAME))
    request = world.carrying(frames.GroupUpdate, signed, encrypted_name=NAME)
    async with trouble(world, migrated_database) as database:
        database.after += [Unavailable(), Unavailable()]
        with refused(ErrorCode.UNAVAILABLE) as error:
            await world.send(alice, request)
        assert error.value.retry_after_ms
        assert (await world.send(alice, request)).duplicate

    assert await length(world, group_id) == 2


async def test_a_refusal_is_a_refusal_whatever_the_database_does(world: World, migrated_database: str) -> None:
    alice, bob = await world.people("alice", "bob")
    group_id = await world.group(alice, bob)
    async with trouble(world, migrated_database):
        with refused(ErrorCode.FORBIDDEN):
            await world.tell(bob, group_id, frames.GroupDelete, GroupDeleted)


@pytest.mark.parametrize(
    "lost",
    [
        asyncpg.DeadlockDetectedError,
        asyncpg.SerializationError,
        asyncpg.UniqueViolationError,
        asyncpg.ForeignKeyViolationError,
    ],
)
async def test_a_transaction_that_lost_is_tried_three_times(
    world: World, migrated_database: str, lost: type[asyncpg.PostgresError]
) -> None:
    alice = await world.person("alice")
    group_id = await world.group(alice)
    async with trouble(world, migrated_database) as database:
        database.before += [lost("to another one")] * 2
        await rename(world, alice, group_id)
        database.before += [lost("to another one")] * 3
        with refused(ErrorCode.OVERLOADED):
            await rename(world, alice, group_id)

    assert await length(world, group_id) == 2


async def test_a_group_that_is_locked_too_long_says_to_come_back(world: World, migrated_database: str) -> None:
    alice = await world.person("alice")
    group_id = await world.group(alice)
    hasty = Database(PoolSettings(migrated_database, min_size=1, max_size=1, statement_timeout_s=0.2), "hasty")
    await hasty.open()
    try:
        world.groups = Groups(Control(hasty, world.published, RELAY_HEX), hasty, world.limits, world.rekeys)
        signed = await says(world.sql, alice, group_id, GroupDeleted)
        async with world.sql.transaction():
            await control_store.lock(world.sql, group_id)
            with refused(ErrorCode.OVERLOADED):
                await world.send(alice, world.carrying(frames.GroupDelete, signed))
        await world.send(alice, world.carrying(frames.GroupDelete, signed))
    finally:
        await hasty.close()


async def test_the_first_fault_is_the_answer(world: World) -> None:
    """In the order that the protocol names: each request here has the fault in question and the next one."""
    alice, bob, mallory = await world.people("alice", "bob", "mallory")
    group_id = await world.group(alice, bob)
    taken: dict[str, Any] = {"statement_id": await world.post(alice, group_id)}
    stale: dict[str, Any] = {"key_epoch": 2}
    unfounded: dict[str, Any] = {"base_hash": b"h" * 32}
    unsigned_name: dict[str, Any] = {"name_hash": b"n" * 32}
    seen = await view(world.sql, group_id)

    async def send(actor: Person, sender: Person, signer: Person, name: bytes = NAME, **elements: Any) -> None:
        statement = write(actor, GroupUpdated, seen, **{"name_hash": field_hash(NAME), **elements})
        request = world.carrying(frames.GroupUpdate, sign(signer, statement), encrypted_name=name)
        await world.send(sender, request)

    for attempt, code in (
        (send(alice, mallory, alice, bytes(513)), ErrorCode.TOO_LARGE),
        (send(alice, mallory, mallory), ErrorCode.FORBIDDEN),
        (send(mallory, mallory, alice, **taken), ErrorCode.NOT_FOUND),
        (send(alice, alice, bob, **taken), ErrorCode.ID_CONFLICT),
        (send(alice, alice, bob, **stale), ErrorCode.BAD_SIGNATURE),
        (send(alice, alice, alice, **stale, **unfounded), ErrorCode.STALE_KEY_EPOCH),
        (send(bob, bob, bob, **unfounded), ErrorCode.STALE_BASE),
        (send(bob, bob, bob, **unsigned_name), ErrorCode.FORBIDDEN),
        (send(alice, alice, alice, **unsigned_name), ErrorCode.BAD_ARGUMENT),
    ):
        with refused(code):
            await attempt


async def test_removals_do_not_wait_for_a_rekey(world: World) -> None:
    alice, bob, carol = await world.people("alice", "bob", "carol")
    group_id = await world.group(alice, bob, carol)
    await world.tell(bob, group_id, frames.GroupLeave, MemberLeft)

    await world.tell(alice, group_id, frames.MemberSetRole, MemberRole, user_id=carol.user_id, role=Role.ADMIN)
    await world.tell(alice, group_id, frames.MemberRemove, MemberRemoved, user_id=carol.user_id, ban=False)
    await world.tell(alice, group_id, frames.GroupDelete, GroupDeleted)

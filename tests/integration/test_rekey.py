"""Keys of groups: rekeys, wraps and the races between them and changes of membership, on a real database."""

from collections.abc import Iterable
from typing import Any

import pytest

from orbital_protocol import frames
from orbital_protocol.chain import field_hash
from orbital_protocol.codes import ErrorCode, History, Kind, Role
from orbital_protocol.frames import WrappedKey
from orbital_protocol.statements import GroupRekeyed, MemberLeft, MemberRemoved, MemberRole
from orbital_relay.control import Control
from orbital_relay.handlers.groups import Groups
from orbital_relay.store.pool import Database, PoolSettings
from tests.people import Person, new_id, says, view
from tests.worlds import FakePeer, World, refused, world_on

NAME = b"the name under the new key"
PREVIOUS = b"the old key under the new one"


def wraps_for(people: Iterable[Person], key: bytes = b"new key") -> list[WrappedKey]:
    """The new key wrapped for each of these."""
    return [
        WrappedKey(
            user_id=person.user_id,
            rsa_thumbprint=person.rsa_thumbprint,
            encrypted_group_key=key + b" for " + person.username.encode(),
        )
        for person in people
    ]


async def rekey_request(
    world: World, actor: Person, group_id: bytes, wraps: list[WrappedKey], name: bytes = NAME, **elements: Any
) -> frames.GroupRekey:
    """A `group.rekey` on the group's head."""
    epoch = (await view(world.sql, group_id)).key_epoch
    given = {
        "new_key_epoch": epoch + 1,
        "key_commitment": b"c" * 32,
        "name_hash": field_hash(name),
        "previous_key": PREVIOUS,
        **elements,
    }
    signed = await says(world.sql, actor, group_id, GroupRekeyed, **given)
    request = world.carrying(frames.GroupRekey, signed, encrypted_name=name, encrypted_group_keys=wraps)
    assert isinstance(request, frames.GroupRekey)
    return request


async def rekey(world: World, actor: Person, group_id: bytes, people: Iterable[Person], **elements: Any) -> Any:
    """Send a `group.rekey` with wraps for these people."""
    return await world.send(actor, await rekey_request(world, actor, group_id, wraps_for(people), **elements))


async def wrap(world: World, actor: Person, group_id: bytes, whom: Person, **fields: Any) -> Any:
    """Send a `group.wrap` of the first key."""
    given = {
        "user_id": whom.user_id,
        "rsa_thumbprint": whom.rsa_thumbprint,
        "key_epoch": 1,
        "encrypted_group_key": b"wrapped again",
        **fields,
    }
    return await world.ask(actor, frames.GroupWrap, group_id=group_id, **given)


# ── rekey ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_new_key_comes_into_force(world: World) -> None:
    alice, bob = await world.people("alice", "bob")
    group_id = await world.group(alice, bob)

    answer = await rekey(world, alice, group_id, [alice, bob])

    group = await world.ask(bob, frames.GroupGet, group_id=group_id)
    assert (answer.key_epoch, group.key_epoch, group.name_key_epoch) == (2, 2, 2)
    assert (group.encrypted_name, group.rekey_required) == (NAME, False)
    first, second = (await world.ask(bob, frames.GroupKeys, group_id=group_id)).keys
    assert (first.key_epoch, second.key_epoch) == (1, 2)
    assert second.encrypted_group_key == b"new key for bob"
    newest = await world.sql.fetchval(
        "SELECT decode(encrypted_group_key, 'base64') FROM members WHERE user_id = $1", bob.user_id
    )
    assert newest == b"new key for bob"
    (event,) = world.published.events
    assert (event.kind, event.key_epoch) == (Kind.GROUP_REKEYED, 1)  # logged under the key that it ends
    await world.post(bob, group_id)
    with refused(ErrorCode.STALE_KEY_EPOCH):
        await world.tell(bob, group_id, frames.GroupLeave, MemberLeft, key_epoch=1)


async def test_a_repeated_rekey_gets_the_first_answer(world: World) -> None:
    alice = await world.person("alice")
    group_id = await world.group(alice)
    request = await rekey_request(world, alice, group_id, wraps_for([alice]))

    first, again = await world.send(alice, request), await world.send(alice, request)

    assert (again.seq, again.key_epoch, again.duplicate) == (first.seq, 2, True)
    assert len((await world.ask(alice, frames.GroupKeys, group_id=group_id)).keys) == 2


async def test_keys_of_many_epochs_come_in_pages_of_whole_epochs(world: World) -> None:
    alice = await world.person("alice")
    group_id = await world.group(alice)
    await world.sql.execute(
        "INSERT INTO group_keys (group_id, user_id, key_epoch, encrypted_group_key)"
        " SELECT $1, $2, epoch, 'aGk=' FROM generate_series(2, 150) AS epoch, generate_series(1, 2)",
        *(group_id, alice.user_id),
    )
    found: list[int] = []
    more, pages = True, 0
    while more:
        after = found[-1] if found else None
        page = await world.ask(alice, frames.GroupKeys, group_id=group_id, after_key_epoch=after)
        found += [key.key_epoch for key in page.keys]
        more, pages = page.more, pages + 1
    assert found == [1, *(epoch for epoch in range(2, 151) for _ in range(2))]
    assert pages == 3


async def test_any_member_answers_a_rekey_that_is_due(world: World) -> None:
    alice, bob, carol = await world.people("alice", "bob", "carol")
    group_id = await world.group(alice, bob, carol)
    with refused(ErrorCode.FORBIDDEN):
        await rekey(world, bob, group_id, [alice, bob, carol])
    await world.tell(carol, group_id, frames.GroupLeave, MemberLeft)
    assert (await world.try_post(bob, group_id))[0] == ErrorCode.REKEY_REQUIRED

    await rekey(world, bob, group_id, [alice, bob])

    assert not (await world.ask(bob, frames.GroupGet, group_id=group_id)).rekey_required
    await world.post(bob, group_id)
    with refused(ErrorCode.FORBIDDEN):
        await rekey(world, bob, group_id, [alice, bob])


async def test_admins_rekey_unasked_but_not_all_the_time(migrated_database: str) -> None:
    async with world_on(migrated_database, rekeys_per_hour=2) as world:
        alice, bob = await world.people("alice", "bob")
        group_id = await world.group(alice, bob)
        await world.tell(alice, group_id, frames.MemberSetRole, MemberRole, user_id=bob.user_id, role=Role.ADMIN)
        await rekey(world, bob, group_id, [alice, bob])
        await rekey(world, alice, group_id, [alice, bob])
        with refused(ErrorCode.RATE_LIMITED) as error:
            await rekey(world, bob, group_id, [alice, bob])
        assert error.value.retry_after_ms == 30 * 60 * 1000
        other = await world.group(alice)
        await rekey(world, alice, other, [alice])

        await world.tell(bob, group_id, frames.GroupLeave, MemberLeft)
        await rekey(world, alice, group_id, [alice])  # one that is due is never refused

        world.now_s += 30 * 60
        await rekey(world, alice, group_id, [alice])


@pytest.mark.produces(ErrorCode.MEMBER_SET_MISMATCH)
async def test_a_rekey_that_is_refused_costs_nothing(migrated_database: str) -> None:
    async with world_on(migrated_database, rekeys_per_hour=1) as world:
        alice, bob = await world.people("alice", "bob")
        group_id = await world.group(alice, bob)
        for _ in range(3):
            with refused(ErrorCode.MEMBER_SET_MISMATCH):
                await rekey(world, alice, group_id, [alice])
        await rekey(world, alice, group_id, [alice, bob])


@pytest.mark.parametrize("new_key_epoch", [1, 3])
async def test_a_rekey_goes_from_one_epoch_to_the_next(world: World, new_key_epoch: int) -> None:
    alice = await world.person("alice")
    group_id = await world.group(alice)
    with refused(ErrorCode.STALE_KEY_EPOCH) as error:
        await rekey(world, alice, group_id, [alice], new_key_epoch=new_key_epoch)
    assert error.value.details is not None
    assert error.value.details.key_epoch == 1


async def test_wraps_are_for_exactly_the_members(world: World) -> None:
    alice, bob, mallory = await world.people("alice", "bob", "mallory")
    group_id = await world.group(alice, bob)
    old_key = [WrappedKey(user_id=bob.user_id, rsa_thumbprint=b"o" * 32, encrypted_group_key=b"k")]

    for wraps, missing, unexpected in (
        (wraps_for([]), [alice, bob], []),
        (wraps_for([alice]), [bob], []),
        (wraps_for([alice, bob, mallory]), [], [mallory]),
        (wraps_for([alice, mallory]), [bob], [mallory]),
        (wraps_for([alice]) + old_key, [bob], [bob]),
    ):
        with refused(ErrorCode.MEMBER_SET_MISMATCH) as error:
            await world.send(alice, await rekey_request(world, alice, group_id, wraps))
        assert error.value.details is not None
        assert error.value.details.missing == sorted(person.user_id for person in missing)
        assert error.value.details.unexpected == sorted(person.user_id for person in unexpected)
    assert (await view(world.sql, group_id)).key_epoch == 1


async def test_a_member_gets_one_wrap(world: World) -> None:
    alice = await world.person("alice")
    group_id = await world.group(alice)
    with refused(ErrorCode.BAD_ARGUMENT):
        await rekey(world, alice, group_id, [alice, alice])


async def test_wraps_and_name_have_bounds(world: World) -> None:
    alice = await world.person("alice")
    group_id = await world.group(alice)
    for wraps, name, code in (
        (wraps_for([alice], b"k" * 1_025), NAME, ErrorCode.TOO_LARGE),
        (wraps_for([alice]), b"n" * 513, ErrorCode.TOO_LARGE),
        (wraps_for([alice]), b"", ErrorCode.BAD_ARGUMENT),
    ):
        with refused(code):
            await world.send(alice, await rekey_request(world, alice, group_id, wraps, name))
    with refused(ErrorCode.BAD_ARGUMENT):
        await rekey(world, alice, group_id, [alice], name_hash=b"h" * 32)


async def test_the_previous_key_goes_with_a_shared_history_only(world: World) -> None:
    alice = await world.person("alice")
    sharing = await world.group(alice)
    forgetful = await world.group(alice, history=History.NONE)

    with refused(ErrorCode.BAD_ARGUMENT):
        await rekey(world, alice, sharing, [alice], previous_key=b"")
    with refused(ErrorCode.BAD_ARGUMENT):
        await rekey(world, alice, forgetful, [alice])
    await rekey(world, alice, forgetful, [alice], previous_key=b"")


# ── wrap ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_key_is_wrapped_again_for_a_member(world: World) -> None:
    alice, bob = await world.people("alice", "bob")
    group_id = await world.group(alice, bob)
    await rekey(world, alice, group_id, [alice, bob])

    await wrap(world, bob, group_id, alice, key_epoch=1, encrypted_group_key=b"the old one")
    await wrap(world, bob, group_id, alice, key_epoch=2, encrypted_group_key=b"the new one")

    keys = (await world.ask(alice, frames.GroupKeys, group_id=group_id)).keys
    assert [key.key_epoch for key in keys] == [1, 1, 2, 2]
    assert [keys[1].encrypted_group_key, keys[3].encrypted_group_key] == [b"the old one", b"the new one"]
    assert await newest_wrap(world, alice) == b"the new one"
    await wrap(world, bob, group_id, alice, key_epoch=1, encrypted_group_key=b"the old one again")
    assert await newest_wrap(world, alice) == b"the new one"


async def newest_wrap(world: World, person: Person) -> bytes:
    """What the founding schema's column has for a member."""
    wrapped: bytes = await world.sql.fetchval(
        "SELECT decode(encrypted_group_key, 'base64') FROM members WHERE user_id = $1", person.user_id
    )
    return wrapped


async def test_the_same_wrap_again_is_the_same_wrap(world: World) -> None:
    alice, bob = await world.people("alice", "bob")
    group_id = await world.group(alice, bob)
    for _ in range(3):
        await wrap(world, alice, group_id, bob)
    assert len((await world.ask(bob, frames.GroupKeys, group_id=group_id)).keys) == 2


async def test_a_key_is_wrapped_so_often_and_no_more(world: World) -> None:
    alice, bob = await world.people("alice", "bob")
    group_id = await world.group(alice, bob)
    for number in range(15):  # the sixteenth is the one that bob joined with
        await wrap(world, alice, group_id, bob, encrypted_group_key=b"wrap %d" % number)
    with refused(ErrorCode.LIMIT_EXCEEDED) as error:
        await wrap(world, alice, group_id, bob)
    assert error.value.details is not None
    assert error.value.details.limit == 16
    await wrap(world, alice, group_id, bob, encrypted_group_key=b"wrap 3")
    await wrap(world, bob, group_id, alice)


async def test_keys_are_wrapped_among_members_only(world: World) -> None:
    alice, bob, mallory = await world.people("alice", "bob", "mallory")
    group_id = await world.group(alice, bob)
    with refused(ErrorCode.NOT_FOUND):
        await wrap(world, mallory, group_id, bob)
    with refused(ErrorCode.NOT_FOUND):
        await wrap(world, alice, group_id, mallory)
    with refused(ErrorCode.NOT_FOUND):
        await wrap(world, alice, new_id(), alice)
    with refused(ErrorCode.MEMBER_SET_MISMATCH) as error:
        await wrap(world, alice, group_id, bob, rsa_thumbprint=b"t" * 32)
    assert error.value.details is not None
    assert error.value.details.unexpected == [bob.user_id]
    for fields, code in (
        ({"key_epoch": 2}, ErrorCode.BAD_ARGUMENT),
        ({"encrypted_group_key": b""}, ErrorCode.BAD_ARGUMENT),
        ({"encrypted_group_key": bytes(1_025)}, ErrorCode.TOO_LARGE),
    ):
        with refused(code):
            await wrap(world, alice, group_id, bob, **fields)


# ── races ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_of_two_rekeys_on_two_relays_one_wins(world: World, migrated_database: str) -> None:
    alice, bob = await world.people("alice", "bob")
    group_id = await world.group(alice, bob)
    await world.tell(alice, group_id, frames.MemberSetRole, MemberRole, user_id=bob.user_id, role=Role.ADMIN)
    mine = await rekey_request(world, alice, group_id, wraps_for([alice, bob], b"mine"))
    theirs = await rekey_request(world, bob, group_id, wraps_for([alice, bob], b"theirs"))
    other = Database(PoolSettings(migrated_database, min_size=1, max_size=2), "other")
    await other.open()
    try:
        elsewhere = Groups(Control(other, world.published, "cd" * 16), other, world.limits, world.rekeys)
        won, lost = await world.race(group_id, elsewhere.rekey(FakePeer(bob.caller()), theirs), world.send(alice, mine))
    finally:
        await other.close()

    assert isinstance(won, frames.ControlOk)
    assert lost == ErrorCode.STALE_KEY_EPOCH
    for person in (alice, bob):
        keys = (await world.ask(person, frames.GroupKeys, group_id=group_id)).keys
        assert [key.encrypted_group_key for key in keys[1:]] == [b"theirs for " + person.username.encode()]


async def test_a_rekey_that_meets_a_removal_is_for_a_roster_that_is_no_more(world: World) -> None:
    alice, bob = await world.people("alice", "bob")
    group_id = await world.group(alice, bob)
    new_key, removal = await rekey_and_removal(world, group_id, alice, bob)

    _, lost = await world.race(group_id, world.send(alice, removal), world.send(alice, new_key))

    assert lost == ErrorCode.STALE_BASE
    group = await world.ask(alice, frames.GroupGet, group_id=group_id)
    assert (group.key_epoch, group.rekey_required, group.member_count) == (1, True, 1)


async def test_a_removal_that_meets_a_rekey_speaks_of_a_key_that_is_no_more(world: World) -> None:
    alice, bob = await world.people("alice", "bob")
    group_id = await world.group(alice, bob)
    new_key, removal = await rekey_and_removal(world, group_id, alice, bob)

    _, lost = await world.race(group_id, world.send(alice, new_key), world.send(alice, removal))

    assert lost == ErrorCode.STALE_KEY_EPOCH
    group = await world.ask(alice, frames.GroupGet, group_id=group_id)
    assert (group.key_epoch, group.rekey_required, group.member_count) == (2, False, 2)


async def test_a_rekey_on_top_of_a_removal_must_leave_the_removed_out(world: World) -> None:
    """Without the base's protection too: the wraps are held against the members under the lock."""
    alice, bob = await world.people("alice", "bob")
    group_id = await world.group(alice, bob)
    await world.tell(alice, group_id, frames.MemberRemove, MemberRemoved, user_id=bob.user_id, ban=False)
    with refused(ErrorCode.MEMBER_SET_MISMATCH):
        await rekey(world, alice, group_id, [alice, bob])
    await rekey(world, alice, group_id, [alice])


async def rekey_and_removal(
    world: World, group_id: bytes, actor: Person, removed: Person
) -> tuple[frames.GroupRekey, frames.MemberRemove]:
    """Two requests on the same head, one of which must lose."""
    new_key = await rekey_request(world, actor, group_id, wraps_for([actor, removed]))
    signed = await says(world.sql, actor, group_id, MemberRemoved, user_id=removed.user_id, ban=False)
    removal = world.carrying(frames.MemberRemove, signed)
    assert isinstance(removal, frames.MemberRemove)
    return new_key, removal

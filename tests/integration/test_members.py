"""Members, their roles, and what they take back, against a real database."""

from typing import Any

import pytest

from orbital_protocol import frames
from orbital_protocol.codes import ErrorCode, Kind, Role
from orbital_protocol.statements import MemberLeft, MemberRemoved, MemberRole, MemberUnbanned, PostDeleted
from orbital_relay.store.events import read_events
from tests.people import Person, admit, new_id, says
from tests.worlds import World, refused


async def remove(world: World, actor: Person, group_id: bytes, whom: Person, *, ban: bool = False) -> Any:
    """Send a `member.remove`."""
    return await world.tell(actor, group_id, frames.MemberRemove, MemberRemoved, user_id=whom.user_id, ban=ban)


async def set_role(world: World, actor: Person, group_id: bytes, whom: Person, role: Role) -> Any:
    """Send a `member.set_role`."""
    return await world.tell(actor, group_id, frames.MemberSetRole, MemberRole, user_id=whom.user_id, role=role)


async def unban(world: World, actor: Person, group_id: bytes, whom: Person) -> Any:
    """Send a `member.unban`."""
    return await world.tell(actor, group_id, frames.MemberUnban, MemberUnbanned, user_id=whom.user_id)


async def erase(world: World, actor: Person, group_id: bytes, target_id: bytes) -> Any:
    """Send a `post.delete`."""
    return await world.tell(actor, group_id, frames.PostDelete, PostDeleted, target_id=target_id)


async def role_of(world: World, group_id: bytes, whom: Person) -> int | None:
    """A member's role, or None for whoever is none."""
    role: int | None = await world.sql.fetchval(
        "SELECT role FROM members WHERE group_id = $1 AND user_id = $2", group_id, whom.user_id
    )
    return role


async def ranks(world: World) -> tuple[bytes, dict[str, Person]]:
    """A group with an owner, two admins and two members."""
    people = {name: await world.person(name) for name in ("owner", "admin", "admin2", "member", "member2")}
    group_id = await world.group(people["owner"])
    for name in ("admin", "admin2", "member", "member2"):
        role = Role.ADMIN if name.startswith("admin") else Role.MEMBER
        await admit(world.sql, group_id, people["owner"], people[name], role)
    return group_id, people


# ── list ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_members_are_listed_with_their_keys_and_the_head(world: World) -> None:
    alice = await world.person("alice")
    bot = await world.person("robot", is_bot=True)
    group_id = await world.group(alice, bot)

    answer = await world.ask(bot, frames.MemberList, group_id=group_id)

    group = await world.ask(bot, frames.GroupGet, group_id=group_id)
    assert (answer.seq, answer.hash, answer.more) == (group.seq, group.hash, False)
    by_id = {member.user_id: member for member in answer.members}
    assert [*by_id] == sorted((alice.user_id, bot.user_id))
    for person, role in ((alice, Role.OWNER), (bot, Role.MEMBER)):
        member = by_id[person.user_id]
        assert (member.username, member.role, member.is_bot) == (person.username, role, person.is_bot)
        assert member.signing_key == person.signing_key
        assert (member.public_key.n, member.public_key.e) == (person.public_key.n, person.public_key.e)


async def test_members_are_paged_by_user_id(world: World) -> None:
    people = await world.people(*(f"person{number}" for number in range(5)))
    group_id = await world.group(*people)

    pages: list[list[bytes]] = []
    after, more = None, True
    while more:
        answer = await world.ask(people[0], frames.MemberList, group_id=group_id, after_user_id=after, limit=2)
        pages.append([member.user_id for member in answer.members])
        after, more = pages[-1][-1], answer.more

    assert [len(page) for page in pages] == [2, 2, 1]
    assert [user_id for page in pages for user_id in page] == sorted(person.user_id for person in people)


async def test_beyond_the_last_member_is_an_empty_page(world: World) -> None:
    alice = await world.person("alice")
    group_id = await world.group(alice)

    answer = await world.ask(alice, frames.MemberList, group_id=group_id, after_user_id=b"\xff" * 16)

    assert (answer.members, answer.more, answer.seq) == ([], False, 1)


# ── remove and ban ──────────────────────────────────────────────────────────────────────────────────────────────────

RANKS = [
    ("owner", "admin", None),
    ("owner", "member", None),
    ("admin", "member", None),
    ("owner", "owner", ErrorCode.FORBIDDEN),
    ("admin", "owner", ErrorCode.FORBIDDEN),
    ("admin", "admin2", ErrorCode.FORBIDDEN),
    ("admin", "admin", ErrorCode.FORBIDDEN),
    ("member", "member2", ErrorCode.FORBIDDEN),
    ("member", "member", ErrorCode.FORBIDDEN),
]


@pytest.mark.parametrize(("actor", "target", "code"), RANKS)
async def test_who_removes_whom(world: World, actor: str, target: str, code: ErrorCode | None) -> None:
    group_id, people = await ranks(world)
    before = await role_of(world, group_id, people[target])

    if code is None:
        await remove(world, people[actor], group_id, people[target])
        assert await role_of(world, group_id, people[target]) is None
    else:
        with refused(code):
            await remove(world, people[actor], group_id, people[target])
        assert await role_of(world, group_id, people[target]) == before


async def test_whoever_is_removed_is_out_and_a_rekey_is_due(world: World) -> None:
    alice, bob = await world.people("alice", "bob")
    group_id = await world.group(alice, bob)

    await remove(world, alice, group_id, bob)

    assert (await world.ask(alice, frames.GroupGet, group_id=group_id)).rekey_required
    assert (await world.try_post(bob, group_id))[0] == ErrorCode.NOT_FOUND
    with refused(ErrorCode.NOT_FOUND):
        await world.ask(bob, frames.MemberList, group_id=group_id)
    with refused(ErrorCode.NOT_FOUND):
        await world.tell(bob, group_id, frames.GroupLeave, MemberLeft)
    with refused(ErrorCode.NOT_FOUND):
        await remove(world, alice, group_id, bob)


async def test_only_members_are_removed_or_banned(world: World) -> None:
    alice, mallory = await world.people("alice", "mallory")
    group_id = await world.group(alice)
    for ban in (True, False):
        with refused(ErrorCode.NOT_FOUND):
            await remove(world, alice, group_id, mallory, ban=ban)


async def test_a_ban_is_lifted_once(world: World) -> None:
    alice, bob, carol = await world.people("alice", "bob", "carol")
    group_id = await world.group(alice, bob, carol)
    await remove(world, alice, group_id, bob, ban=True)
    assert await world.sql.fetchval("SELECT user_id FROM bans") == bob.user_id

    with refused(ErrorCode.FORBIDDEN):
        await unban(world, carol, group_id, bob)
    await unban(world, alice, group_id, bob)

    assert await world.sql.fetchval("SELECT count(*) FROM bans") == 0
    for somebody in (bob, carol):
        with refused(ErrorCode.NOT_FOUND):
            await unban(world, alice, group_id, somebody)


async def test_a_removal_without_a_ban_is_none(world: World) -> None:
    alice, bob = await world.people("alice", "bob")
    group_id = await world.group(alice, bob)
    await remove(world, alice, group_id, bob)
    with refused(ErrorCode.NOT_FOUND):
        await unban(world, alice, group_id, bob)


async def test_of_two_admins_who_remove_the_same_member_one_does(world: World) -> None:
    group_id, people = await ranks(world)
    runners = []
    for name in ("admin", "admin2"):
        target_id = people["member"].user_id
        signed = await says(world.sql, people[name], group_id, MemberRemoved, user_id=target_id, ban=False)
        runners.append(world.send(people[name], world.carrying(frames.MemberRemove, signed)))

    won, lost = await world.race(group_id, *runners)

    assert isinstance(won, frames.ControlOk)
    assert lost == ErrorCode.STALE_BASE  # whoever comes second signed on top of a roster that is no more


# ── roles ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("actor", "target", "role", "code"),
    [
        ("owner", "member", Role.ADMIN, None),
        ("owner", "admin", Role.MEMBER, None),
        ("admin", "member", Role.MEMBER, None),
        ("admin", "member", Role.ADMIN, ErrorCode.FORBIDDEN),
        ("admin", "admin2", Role.MEMBER, ErrorCode.FORBIDDEN),
        ("admin", "admin", Role.MEMBER, ErrorCode.FORBIDDEN),
        ("admin", "owner", Role.MEMBER, ErrorCode.FORBIDDEN),
        ("owner", "owner", Role.MEMBER, ErrorCode.FORBIDDEN),
        ("member", "member2", Role.ADMIN, ErrorCode.FORBIDDEN),
        ("member", "member", Role.ADMIN, ErrorCode.FORBIDDEN),
    ],
)
async def test_who_gives_whom_which_role(
    world: World, actor: str, target: str, role: Role, code: ErrorCode | None
) -> None:
    group_id, people = await ranks(world)
    before = await role_of(world, group_id, people[target])

    if code is None:
        await set_role(world, people[actor], group_id, people[target], role)
        assert await role_of(world, group_id, people[target]) == role
    else:
        with refused(code):
            await set_role(world, people[actor], group_id, people[target], role)
        assert await role_of(world, group_id, people[target]) == before


async def test_nobody_becomes_owner_by_a_role(world: World) -> None:
    group_id, people = await ranks(world)
    with refused(ErrorCode.BAD_ARGUMENT):
        await set_role(world, people["owner"], group_id, people["admin"], Role.OWNER)


async def test_only_members_have_roles(world: World) -> None:
    alice, mallory = await world.people("alice", "mallory")
    group_id = await world.group(alice)
    with refused(ErrorCode.NOT_FOUND):
        await set_role(world, alice, group_id, mallory, Role.ADMIN)


# ── post.delete ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_an_erased_post_leaves_its_hashes_and_replies(world: World) -> None:
    alice, bob = await world.people("alice", "bob")
    group_id = await world.group(alice, bob)
    thread_id = await world.post(bob, group_id)
    await world.post(alice, group_id, thread_id)
    before = await read_events(world.sql, group_id, 2, 1)

    await erase(world, bob, group_id, thread_id)

    thread, reply, deletion = await read_events(world.sql, group_id, 2, 10)
    assert (thread.erased, thread.encrypted_title, thread.encrypted_body) == (True, None, None)
    assert len(thread.field_hashes or ()) == 2
    assert (thread.hash, thread.content_hash) == (before[0].hash, before[0].content_hash)
    assert reply.encrypted_body == b"a body"
    assert deletion.kind == Kind.POST_DELETED
    row = await world.sql.fetchrow("SELECT * FROM threads")
    assert row is not None
    assert (row["encrypted_title"], row["encrypted_body"], row["erased_at"] is None) == ("", "", False)
    for parent_kind in (Kind.REPLY_POSTED, Kind.ANNOTATION_POSTED):
        assert (await world.try_post(alice, group_id, thread_id, parent_kind))[0] == ErrorCode.NOT_FOUND


@pytest.mark.parametrize("kind", [Kind.THREAD_POSTED, Kind.REPLY_POSTED, Kind.ANNOTATION_POSTED])
async def test_whatever_was_posted_is_erased_and_nothing_else(world: World, kind: Kind) -> None:
    alice = await world.person("alice")
    group_id = await world.group(alice)
    parent_id = await world.post(alice, group_id)
    target_id = await world.post(alice, group_id, None if kind == Kind.THREAD_POSTED else parent_id, kind)

    await erase(world, alice, group_id, target_id)

    events = await read_events(world.sql, group_id, 1, 10)
    assert [event.object_id for event in events if event.erased] == [target_id]


@pytest.mark.parametrize(
    ("actor", "author", "code"),
    [
        ("member", "member", None),
        ("admin", "member", None),
        ("admin", "owner", None),
        ("member", "member2", ErrorCode.FORBIDDEN),
        ("member", "owner", ErrorCode.FORBIDDEN),
    ],
)
async def test_who_erases_whose_posts(world: World, actor: str, author: str, code: ErrorCode | None) -> None:
    group_id, people = await ranks(world)
    thread_id = await world.post(people[author], group_id)
    if code is None:
        await erase(world, people[actor], group_id, thread_id)
    else:
        with refused(code):
            await erase(world, people[actor], group_id, thread_id)
    erased = await world.sql.fetchval("SELECT erased FROM objects WHERE object_id = $1", thread_id)
    assert erased == (code is None)


async def test_a_post_is_erased_once(world: World) -> None:
    alice = await world.person("alice")
    group_id = await world.group(alice)
    thread_id = await world.post(alice, group_id)
    signed = await says(world.sql, alice, group_id, PostDeleted, target_id=thread_id)
    request = world.carrying(frames.PostDelete, signed)

    first, again = await world.send(alice, request), await world.send(alice, request)

    assert (again.seq, again.duplicate) == (first.seq, True)
    with refused(ErrorCode.NOT_FOUND):
        await erase(world, alice, group_id, thread_id)


async def test_only_posts_of_this_group_are_erased(world: World) -> None:
    alice = await world.person("alice")
    here, there = await world.group(alice), await world.group(alice)
    elsewhere = await world.post(alice, there)
    statement_id = await world.sql.fetchval("SELECT object_id FROM objects WHERE group_id = $1", here)

    for target_id in (elsewhere, statement_id, new_id()):
        with refused(ErrorCode.NOT_FOUND):
            await erase(world, alice, here, target_id)


async def test_posts_are_erased_while_a_rekey_is_due(world: World) -> None:
    alice, bob = await world.people("alice", "bob")
    group_id = await world.group(alice, bob)
    thread_id = await world.post(bob, group_id)
    await world.tell(bob, group_id, frames.GroupLeave, MemberLeft)

    await erase(world, alice, group_id, thread_id)
    with refused(ErrorCode.NOT_FOUND):
        await erase(world, bob, group_id, thread_id)

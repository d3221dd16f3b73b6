"""What operators do to accounts, and what relays are told of it."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from orbital_protocol import frames
from orbital_protocol.codes import CloseCode, ErrorCode, Kind, Scope
from orbital_relay import admin
from orbital_relay.store.accounts import OwnsGroupsError
from tests.accounts import Desk, desk_on
from tests.people import connected, enroll, found_group, new_id
from tests.worlds import refused


@pytest_asyncio.fixture
async def desk(migrated_database: str) -> AsyncIterator[Desk]:
    async with desk_on(migrated_database) as made:
        yield made


async def test_disabling_closes_everything_and_enabling_lets_in_again(desk: Desk, migrated_database: str) -> None:
    alice = await desk.newcomer("alice")
    made = await desk.ask(alice.peer, frames.TokenCreate, token_id=new_id(), name="bot", scopes=[Scope.READ])
    async with connected(migrated_database) as operator:
        assert await admin.disable(operator, alice.user_id)
        await desk.revoked(("user", alice.user_id, CloseCode.REVOKED))
        for attempt in (
            desk.login("alice"),
            desk.authenticate(alice.session.access_token),
            desk.refresh(alice.session.refresh_token),
            desk.authenticate(made.token),
        ):
            with refused(ErrorCode.CREDENTIALS_INVALID):
                await attempt
        assert await admin.enable(operator, alice.user_id)
    assert await desk.login("alice")
    assert await desk.authenticate(made.token)
    with refused(ErrorCode.CREDENTIALS_INVALID):  # sessions from before stay ended
        await desk.refresh(alice.session.refresh_token)


async def test_another_password_ends_sessions_and_leaves_tokens(desk: Desk, migrated_database: str) -> None:
    alice = await desk.newcomer("alice")
    made = await desk.ask(alice.peer, frames.TokenCreate, token_id=new_id(), name="bot", scopes=[Scope.READ])
    async with connected(migrated_database) as operator, operator.transaction():
        new_hash = await desk.passwords.hash(b"another horse")
        assert await admin.set_password(operator, alice.user_id, new_hash, desk.clock)
    await desk.revoked(("session", alice.session.session_id, CloseCode.REVOKED))
    with refused(ErrorCode.CREDENTIALS_INVALID):
        await desk.login("alice")
    with refused(ErrorCode.CREDENTIALS_INVALID):
        await desk.authenticate(alice.session.access_token)
    assert await desk.login("alice", "another horse")
    assert await desk.authenticate(made.token)


async def test_deleting_a_user(desk: Desk, migrated_database: str) -> None:
    alice, bob = await desk.newcomer("alice"), await enroll(desk.sql, "bob")
    await found_group(desk.sql, alice.person, bob)
    await found_group(desk.sql, bob, alice.person)
    async with connected(migrated_database) as operator, operator.transaction():
        with pytest.raises(OwnsGroupsError):
            await admin.delete(operator, alice.user_id, with_groups=False)
        events = await admin.delete(operator, alice.user_id, with_groups=True)
    assert sorted(event.kind for event in events) == [Kind.GROUP_DELETED, Kind.MEMBER_LEFT]
    await desk.revoked(("user", alice.user_id, CloseCode.ACCOUNT_DELETED))


async def test_ending_a_session_and_a_token(desk: Desk, migrated_database: str) -> None:
    alice = await desk.newcomer("alice")
    made = await desk.ask(alice.peer, frames.TokenCreate, token_id=new_id(), name="bot", scopes=[Scope.READ])
    session_id = alice.session.session_id
    async with connected(migrated_database) as operator:
        assert await admin.end_session(operator, session_id, alice.user_id, desk.clock)
        assert await admin.delete_token(operator, made.token_id, alice.user_id)
    await desk.revoked(("session", session_id, CloseCode.REVOKED), ("token", made.token_id, CloseCode.REVOKED))
    for token in (alice.session.access_token, made.token):
        with refused(ErrorCode.CREDENTIALS_INVALID):
            await desk.authenticate(token)


async def test_users_that_are_not_there(desk: Desk, migrated_database: str) -> None:
    async with connected(migrated_database) as operator, operator.transaction():
        assert not await admin.disable(operator, new_id())
        assert not await admin.enable(operator, new_id())
        assert not await admin.set_password(operator, new_id(), "x", desk.clock)
        assert not await admin.end_session(operator, new_id(), new_id(), desk.clock)
        assert not await admin.delete_token(operator, new_id(), new_id())
    await desk.revoked()

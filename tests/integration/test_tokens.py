"""Bot tokens: made, shown once, limited, revoked."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from orbital_protocol import ZERO_ID, frames
from orbital_protocol.codes import CloseCode, ErrorCode, Scope
from orbital_relay.credentials import BotToken
from tests.accounts import Desk, Guest, S, desk_on, stranger
from tests.people import found_group, new_id
from tests.worlds import NOW, FakePeer, refused

NEVER = 2**53 - 1


@pytest_asyncio.fixture
async def desk(migrated_database: str) -> AsyncIterator[Desk]:
    async with desk_on(migrated_database, max_tokens_per_user=2) as made:
        yield made


async def make(desk: Desk, guest: Guest, peer: FakePeer | None = None, **changes: Any) -> frames.TokenCreateOk:
    fields = {"token_id": new_id(), "name": "builds", "scopes": [Scope.READ, Scope.POST], **changes}
    made: frames.TokenCreateOk = await desk.ask(peer or guest.peer, frames.TokenCreate, **fields)
    return made


@pytest.mark.each_postgres
async def test_a_token_authenticates_as_what_it_was_made_for(desk: Desk) -> None:
    alice = await desk.newcomer("alice")
    reached, other = await found_group(desk.sql, alice.person), await found_group(desk.sql, alice.person)
    made = await make(desk, alice, groups=[reached, reached], expires_at=NOW + 60 * S)
    bot = stranger()
    answer = await desk.authenticate(made.token, bot)
    assert bot.caller is not None
    assert (answer.user_id, answer.session_id) == (alice.user_id, made.token_id)
    assert (bot.caller.user_id, bot.caller.session_id) == (alice.user_id, made.token_id)
    assert bot.caller.scopes == {Scope.READ, Scope.POST}
    assert bot.caller.groups == frozenset({reached})
    assert not bot.caller.may_see(other)
    assert bot.caller.expires_at == answer.access_expires_at == NOW + 60 * S
    assert [group.group_id for group in answer.groups] == [reached]


async def test_a_token_for_all_groups_and_for_good(desk: Desk) -> None:
    alice = await desk.newcomer("alice")
    groups = {await found_group(desk.sql, alice.person) for _ in range(2)}
    bot = stranger()
    answer = await desk.authenticate((await make(desk, alice)).token, bot)
    assert {group.group_id for group in answer.groups} == groups
    assert bot.caller is not None
    assert bot.caller.groups is None
    assert answer.access_expires_at == bot.caller.expires_at == NEVER


async def test_the_secret_is_shown_once_and_not_kept(desk: Desk) -> None:
    alice = await desk.newcomer("alice")
    made = await make(desk, alice)
    secret = BotToken.parse(made.token).secret
    assert secret not in await desk.sql.fetchval("SELECT secret_hash FROM bot_tokens")
    (listed,) = (await desk.ask(alice.peer, frames.TokenList)).tokens
    assert listed == frames.TokenInfo(
        token_id=made.token_id, name="builds", scopes=["post", "read"], groups=[], created_at=NOW
    )


async def test_the_same_again_makes_another_secret_until_the_token_is_used(desk: Desk) -> None:
    alice = await desk.newcomer("alice")
    token_id = new_id()
    lost, made = [await make(desk, alice, token_id=token_id) for _ in range(2)]
    assert lost.token != made.token
    with refused(ErrorCode.CREDENTIALS_INVALID):
        await desk.authenticate(lost.token)
    assert await desk.authenticate(made.token)
    with refused(ErrorCode.ID_CONFLICT):
        await make(desk, alice, token_id=token_id)
    assert await desk.authenticate(made.token)


@pytest.mark.parametrize(
    "changes",
    [{"name": "other"}, {"scopes": [Scope.READ]}, {"groups": [bytes(range(16))]}, {"expires_at": NOW + S}],
)
async def test_the_id_with_other_content_is_a_conflict(desk: Desk, changes: dict[str, Any]) -> None:
    alice = await desk.newcomer("alice")
    made = await make(desk, alice)
    with refused(ErrorCode.ID_CONFLICT):
        await make(desk, alice, token_id=made.token_id, **changes)
    assert await desk.authenticate(made.token)


async def test_the_id_of_somebody_elses_token_is_a_conflict(desk: Desk) -> None:
    alice, bob = await desk.newcomer("alice"), await desk.newcomer("bob")
    made = await make(desk, alice)
    with refused(ErrorCode.ID_CONFLICT):
        await make(desk, bob, token_id=made.token_id)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no scopes": ({"scopes": []}, "scopes"),
    "unknown scope": ({"scopes": ["read", "everything"]}, "scopes"),
    "past": ({"expires_at": NOW}, "expires_at"),
    "name with NUL": ({"name": "bui\0lds"}, "name"),
    "zero id": ({"token_id": ZERO_ID}, "token_id"),
}


@pytest.mark.produces(ErrorCode.BAD_ARGUMENT)
@pytest.mark.parametrize("what", BAD)
async def test_tokens_that_cannot_be(desk: Desk, what: str) -> None:
    changes, field = BAD[what]
    alice = await desk.newcomer("alice")
    with refused(ErrorCode.BAD_ARGUMENT) as error:
        await make(desk, alice, **changes)
    assert error.value.details is not None
    assert error.value.details.field == field


async def test_a_user_has_so_many_tokens_also_if_they_are_made_at_once(desk: Desk) -> None:
    alice, bob = await desk.newcomer("alice"), await desk.newcomer("bob")
    await make(desk, bob)
    answers = await asyncio.gather(*(make(desk, alice) for _ in range(5)), return_exceptions=True)
    assert sorted(type(answer).__name__ for answer in answers) == ["LimitExceeded"] * 3 + ["TokenCreateOk"] * 2
    with refused(ErrorCode.LIMIT_EXCEEDED) as error:
        await make(desk, alice)
    assert error.value.details is not None
    assert error.value.details.limit == 2
    made = next(answer for answer in answers if isinstance(answer, frames.TokenCreateOk))
    await desk.ask(alice.peer, frames.TokenRevoke, token_id=made.token_id)
    assert await make(desk, alice)


async def test_tokens_are_counted_one_request_at_a_time(desk: Desk) -> None:
    alice = await desk.newcomer("alice")
    await make(desk, alice)
    async with desk.sql.transaction():
        await desk.sql.execute("SELECT FROM users FOR NO KEY UPDATE")  # another request of hers has come so far
        making = asyncio.create_task(make(desk, alice))
        await desk.until_blocked()
        await desk.sql.execute(
            "INSERT INTO bot_tokens SELECT $1, user_id, name, secret_hash, scopes, group_ids FROM bot_tokens", new_id()
        )
    with refused(ErrorCode.LIMIT_EXCEEDED):
        await making


async def test_a_token_that_is_used_meanwhile_keeps_its_secret(desk: Desk) -> None:
    alice = await desk.newcomer("alice")
    made = await make(desk, alice)
    async with desk.sql.transaction():
        await desk.sql.execute("UPDATE bot_tokens SET last_used_at = clock_timestamp()")
        making = asyncio.create_task(make(desk, alice, token_id=made.token_id))
        await desk.until_blocked()
    with refused(ErrorCode.ID_CONFLICT):
        await making
    assert await desk.authenticate(made.token)


async def test_expired_tokens_make_room_and_open_nothing(desk: Desk) -> None:
    alice = await desk.newcomer("alice")
    expiring = [await make(desk, alice, expires_at=NOW + 60 * S) for _ in range(2)]
    desk.now += 60 * S - 1
    assert await desk.authenticate(expiring[0].token)
    desk.now += 1
    with refused(ErrorCode.CREDENTIALS_INVALID):
        await desk.authenticate(expiring[0].token)
    assert await make(desk, alice)


async def test_expired_tokens_do_not_pile_up(desk: Desk) -> None:
    alice, bob = await desk.newcomer("alice"), await desk.newcomer("bob")
    theirs = await make(desk, bob, expires_at=NOW + S)
    made = []
    for _ in range(3):
        desk.now += S
        made.append(await make(desk, alice, expires_at=desk.now + S))
    listed = (await desk.ask(alice.peer, frames.TokenList)).tokens
    assert [token.token_id for token in listed] == [made[-1].token_id]
    assert [token.token_id for token in (await desk.ask(bob.peer, frames.TokenList)).tokens] == [theirs.token_id]


@pytest.mark.produces(ErrorCode.UNAUTHENTICATED)
@pytest.mark.produces(ErrorCode.FORBIDDEN)
async def test_what_has_ended_makes_no_tokens(desk: Desk) -> None:
    """Its connection may still be there: word of the end is on its way."""
    alice, bot = await desk.newcomer("alice"), stranger()
    made = await make(desk, alice, scopes=[Scope.ACCOUNT])
    await desk.authenticate(made.token, bot)
    await desk.ask(alice.peer, frames.TokenRevoke, token_id=made.token_id)
    with refused(ErrorCode.FORBIDDEN):
        await make(desk, alice, bot, scopes=list(Scope))
    phone = stranger()
    await desk.login("alice", peer=phone)
    await desk.ask(phone, frames.SessionRevoke, session_id=alice.session.session_id)
    with refused(ErrorCode.UNAUTHENTICATED):
        await make(desk, alice)
    assert (await desk.ask(phone, frames.TokenList)).tokens == []


async def test_a_session_that_ends_meanwhile_makes_no_token(desk: Desk) -> None:
    alice = await desk.newcomer("alice")
    async with desk.sql.transaction():
        await desk.sql.execute("UPDATE sessions SET revoked_at = clock_timestamp()")
        making = asyncio.create_task(make(desk, alice))
        await desk.until_blocked()
    with refused(ErrorCode.UNAUTHENTICATED):
        await making


async def test_a_token_does_not_take_the_id_of_a_session(desk: Desk) -> None:
    alice = await desk.newcomer("alice")
    with refused(ErrorCode.ID_CONFLICT):
        await make(desk, alice, token_id=alice.session.session_id)


async def test_a_token_makes_no_tokens(desk: Desk) -> None:
    alice = await desk.newcomer("alice")
    bot = stranger()
    await desk.authenticate((await make(desk, alice, scopes=[Scope.ACCOUNT])).token, bot)
    with refused(ErrorCode.FORBIDDEN):
        await make(desk, alice, bot, scopes=list(Scope))


async def test_tokens_that_open_nothing(desk: Desk) -> None:
    alice = await desk.newcomer("alice")
    made = await make(desk, alice)
    genuine = BotToken.parse(made.token)
    peer = stranger()
    for text in (
        str(BotToken(genuine.token_id, bytes(32))),
        str(BotToken(new_id(), genuine.secret)),
        "orb_bot_",
        made.token[:-1],
        made.token + "A",
    ):
        with refused(ErrorCode.CREDENTIALS_INVALID):
            await desk.authenticate(text, peer)
    assert peer.caller is None
    await desk.sql.execute("UPDATE users SET disabled_at = clock_timestamp()")
    with refused(ErrorCode.CREDENTIALS_INVALID):
        await desk.authenticate(made.token, peer)


async def test_a_wrong_secret_is_no_use(desk: Desk) -> None:
    """Neither is it written down as one, nor does it keep a lost answer from being made good."""
    alice = await desk.newcomer("alice")
    made = await make(desk, alice)
    with refused(ErrorCode.CREDENTIALS_INVALID):
        await desk.authenticate(str(BotToken(made.token_id, bytes(32))))
    assert await make(desk, alice, token_id=made.token_id)


async def test_use_is_written_down_once_a_minute(desk: Desk) -> None:
    alice = await desk.newcomer("alice")
    made = await make(desk, alice)
    seen = []
    for pause in (5, 55, 4, 1):
        desk.now += pause * S
        await desk.authenticate(made.token)
        (listed,) = (await desk.ask(alice.peer, frames.TokenList)).tokens
        seen.append((listed.last_used_at - NOW) // S)
    assert seen == [5, 5, 5, 65]


async def test_a_token_belongs_to_one_user(desk: Desk) -> None:
    alice, bob = await desk.newcomer("alice"), await desk.newcomer("bob")
    made = await make(desk, alice)
    with refused(ErrorCode.BAD_ARGUMENT):
        await desk.authenticate(made.token, bob.peer)
    assert (await desk.ask(bob.peer, frames.TokenList)).tokens == []


async def test_a_token_takes_over_no_connection(desk: Desk) -> None:
    """Subscriptions of the session, or of the other token, would go on when that is revoked."""
    alice, bot = await desk.newcomer("alice"), stranger()
    made, other = await make(desk, alice), await make(desk, alice, groups=[new_id()])
    for _ in range(2):
        await desk.authenticate(made.token, bot)
    for peer in (bot, alice.peer):
        before = peer.caller
        with refused(ErrorCode.BAD_ARGUMENT):
            await desk.authenticate(other.token, peer)
        assert peer.caller is before
        assert peer.closed == []


async def test_a_revoked_token_opens_nothing_and_its_connections_close(desk: Desk) -> None:
    alice, bob = await desk.newcomer("alice"), await desk.newcomer("bob")
    made = await make(desk, alice)
    for token_id in (made.token_id, new_id()):
        with refused(ErrorCode.NOT_FOUND):
            await desk.ask(bob.peer, frames.TokenRevoke, token_id=token_id)
    await desk.revoked()
    await desk.ask(alice.peer, frames.TokenRevoke, token_id=made.token_id)
    await desk.revoked(("token", made.token_id, CloseCode.REVOKED))
    with refused(ErrorCode.CREDENTIALS_INVALID):
        await desk.authenticate(made.token)
    with refused(ErrorCode.NOT_FOUND):
        await desk.ask(alice.peer, frames.TokenRevoke, token_id=made.token_id)


async def test_a_token_revokes_itself(desk: Desk) -> None:
    alice = await desk.newcomer("alice")
    made = await make(desk, alice, scopes=[Scope.ACCOUNT])
    bot = stranger()
    await desk.authenticate(made.token, bot)
    await desk.ask(bot, frames.TokenRevoke, token_id=made.token_id)
    assert bot.closed == [CloseCode.REVOKED]
    with refused(ErrorCode.CREDENTIALS_INVALID):
        await desk.authenticate(made.token)


async def test_a_token_outlives_a_change_of_password(desk: Desk) -> None:
    alice = await desk.newcomer("alice")
    made = await make(desk, alice)
    await desk.ask(alice.peer, frames.PasswordChange, password="correct horse", new_password="another horse")
    assert await desk.authenticate(made.token)


async def test_an_account_that_is_gone(desk: Desk) -> None:
    alice = await desk.newcomer("alice")
    await desk.sql.execute("DELETE FROM users")
    with refused(ErrorCode.UNAUTHENTICATED):
        await make(desk, alice)

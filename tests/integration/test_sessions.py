"""Sessions: authentication, refresh and its reuse, logout, revocation."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

from orbital_protocol import frames
from orbital_protocol.codes import CloseCode, ErrorCode, Role, Scope
from orbital_relay.caller import ALL_SCOPES, LiveSession
from orbital_relay.config import TokenKey
from orbital_relay.credentials import AccessTokens, Mint, RefreshToken, secret_hash
from orbital_relay.errors import CredentialsInvalid
from orbital_relay.store import live
from tests.accounts import ACCESS_TTL_S, KEY, REFRESH_TTL_S, Desk, Guest, S, desk_on, stranger
from tests.people import enroll, found_group, new_id, view
from tests.worlds import NOW, refused

MINUTE = 60 * S


@pytest_asyncio.fixture
async def desk(migrated_database: str) -> AsyncIterator[Desk]:
    async with desk_on(migrated_database) as made:
        yield made


# ── authenticate ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.each_postgres
async def test_authenticating_answers_with_all_that_a_returning_client_needs(desk: Desk) -> None:
    alice = await desk.newcomer("alice")
    bob = await enroll(desk.sql, "bob")
    own = await found_group(desk.sql, alice.person, bob)
    theirs = await found_group(desk.sql, bob, alice.person)
    await found_group(desk.sql, bob)
    await desk.sql.execute("UPDATE group_heads SET rekey_required = TRUE WHERE group_id = $1", theirs)
    peer = stranger()
    answer = await desk.authenticate(alice.session.access_token, peer)
    assert peer.caller is not None
    assert (answer.user_id, answer.session_id) == (alice.user_id, alice.session.session_id)
    assert answer.access_expires_at == peer.caller.expires_at == alice.session.access_expires_at
    assert (peer.caller.scopes, peer.caller.groups, peer.caller.token_epoch) == (ALL_SCOPES, None, 0)
    assert [group.group_id for group in answer.groups] == sorted([own, theirs])
    for group in answer.groups:
        seen = await view(desk.sql, group.group_id)
        assert (group.seq, group.hash, group.key_epoch) == (seen.seq, seen.hash, 1)
        assert group.role == (Role.OWNER if group.group_id == own else Role.MEMBER)
        assert group.rekey_required is (group.group_id == theirs)
        assert len(group.encrypted_name) == 64


async def test_who_comes_back_at_once_is_told_their_own(desk: Desk) -> None:
    """Two live sessions of one user, one that has ended, and somebody without a group."""
    alice, bob = await desk.newcomer("alice"), await desk.newcomer("bob")
    group_id = await found_group(desk.sql, alice.person)
    elsewhere, ended = await desk.login("alice"), await desk.login("alice")
    await desk.sql.execute("UPDATE sessions SET revoked_at = now() WHERE session_id = $1", ended.session_id)
    tokens = [one.access_token for one in (alice.session, ended, bob.session, elsewhere, alice.session)]
    outcomes = await asyncio.gather(*map(desk.authenticate, tokens), return_exceptions=True)
    assert isinstance(outcomes[1], CredentialsInvalid)
    answers = [outcome for outcome in outcomes if isinstance(outcome, frames.AuthenticateOk)]
    assert [(answer.session_id, [group.group_id for group in answer.groups]) for answer in answers] == [
        (alice.session.session_id, [group_id]),
        (bob.session.session_id, []),
        (elsewhere.session_id, [group_id]),
        (alice.session.session_id, [group_id]),
    ]


async def test_a_newer_token_on_the_same_connection(desk: Desk) -> None:
    alice = await desk.newcomer("alice")
    desk.now += MINUTE
    elsewhere = await desk.login("alice")
    answer = await desk.authenticate(elsewhere.access_token, alice.peer)
    assert alice.peer.caller is not None
    assert alice.peer.caller.session_id == elsewhere.session_id == answer.session_id


@pytest.mark.parametrize("token", ["", "nonsense", "a.b.c", "orb_refresh_AAAA", "x" * 4_096])
async def test_what_is_no_token(desk: Desk, token: str) -> None:
    with refused(ErrorCode.UNAUTHENTICATED):
        await desk.authenticate(token)


async def test_a_token_by_another_relays_key(desk: Desk) -> None:
    alice = await desk.newcomer("alice")
    access = desk.mint.access.verify(alice.session.access_token, NOW)
    for key in (TokenKey("k1", bytes(32)), TokenKey("k2", KEY.secret)):
        with refused(ErrorCode.UNAUTHENTICATED):
            await desk.authenticate(AccessTokens([key]).sign(access, NOW))


@pytest.mark.produces(ErrorCode.TOKEN_EXPIRED)
async def test_an_expired_token(desk: Desk) -> None:
    alice = await desk.newcomer("alice")
    peer = stranger()
    desk.now = alice.session.access_expires_at - 1
    assert await desk.authenticate(alice.session.access_token)
    desk.now += 1
    with refused(ErrorCode.TOKEN_EXPIRED):
        await desk.authenticate(alice.session.access_token, peer)
    assert peer.caller is None


ENDED = {
    "revoked": "UPDATE sessions SET revoked_at = clock_timestamp()",
    "gone": "DELETE FROM sessions",
    "expired": "UPDATE sessions SET expires_at = from_us(1800000000000000)",
    "of an earlier epoch": "UPDATE users SET token_epoch = 1",
    "of an epoch by itself": "UPDATE sessions SET token_epoch = 1",
    "somebody else's": "UPDATE sessions SET user_id = (SELECT id FROM users WHERE username = 'bob')",
    "of a disabled user": "UPDATE users SET disabled_at = clock_timestamp()",
    "of nobody": "DELETE FROM users WHERE username = 'alice'",
}


@pytest.mark.parametrize("how", ENDED)
async def test_a_session_that_is_no_more(desk: Desk, how: str) -> None:
    alice = await desk.newcomer("alice")
    await enroll(desk.sql, "bob")
    await desk.sql.execute(ENDED[how])
    peer = stranger()
    with refused(ErrorCode.CREDENTIALS_INVALID):
        await desk.authenticate(alice.session.access_token, peer)
    if how != "somebody else's":  # whose refresh token it then is
        with refused(ErrorCode.CREDENTIALS_INVALID):
            await desk.refresh(alice.session.refresh_token, peer)
    assert peer.caller is None


async def test_that_a_session_was_used_is_written_down_once_a_minute(desk: Desk) -> None:
    alice = await desk.newcomer("alice")

    async def used_at() -> int:
        return int(await desk.sql.fetchval("SELECT to_us(last_used_at) FROM sessions"))

    seen = []
    for pause in (MINUTE - 1, 1, MINUTE - 1, 1):
        desk.now += pause
        await desk.authenticate(alice.session.access_token)
        seen.append(await used_at() - NOW)
    assert seen == [0, MINUTE, MINUTE, 2 * MINUTE]


# ── refresh ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_refreshing_gives_a_new_pair_and_authenticates(desk: Desk) -> None:
    alice = await desk.newcomer("alice")
    desk.now += ACCESS_TTL_S * S
    peer = stranger()
    again = await desk.refresh(alice.session.refresh_token, peer)
    assert again.session_id == alice.session.session_id
    assert again.refresh_token != alice.session.refresh_token
    assert again.access_expires_at == desk.now + ACCESS_TTL_S * S
    assert again.refresh_expires_at == desk.now + REFRESH_TTL_S * S
    assert peer.caller is not None
    assert (peer.caller.session_id, peer.caller.expires_at) == (again.session_id, again.access_expires_at)
    assert await desk.authenticate(again.access_token)


async def test_a_chain_of_refreshes(desk: Desk) -> None:
    token = (await desk.newcomer("alice")).session.refresh_token
    for _ in range(5):
        desk.now += (REFRESH_TTL_S - 1) * S
        token = (await desk.refresh(token)).refresh_token
    desk.now += REFRESH_TTL_S * S
    with refused(ErrorCode.CREDENTIALS_INVALID):
        await desk.refresh(token)


@pytest.mark.each_postgres
async def test_the_previous_token_replaces_a_successor_that_never_was_used(desk: Desk) -> None:
    """The answer may be lost any number of times."""
    alice = await desk.newcomer("alice")
    lost = [await desk.refresh(alice.session.refresh_token) for _ in range(3)]
    assert len({one.refresh_token for one in lost}) == 3
    last = await desk.refresh(lost[-1].refresh_token)
    assert await desk.authenticate(last.access_token)
    await desk.revoked()


async def is_revoked(desk: Desk, guest: Guest) -> bool:
    revoked = await desk.sql.fetchval(
        "SELECT revoked_at IS NOT NULL FROM sessions WHERE session_id = $1", guest.session.session_id
    )
    return bool(revoked)


async def expect_reuse(desk: Desk, guest: Guest, token: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The token is refused, and its session ends wherever it is."""
    peer = stranger("198.51.100.66")
    capsys.readouterr()
    with refused(ErrorCode.CREDENTIALS_INVALID):
        await desk.refresh(token, peer)
    assert peer.caller is None
    assert '"event":"token.reuse"' in capsys.readouterr().err
    assert await is_revoked(desk, guest)
    await desk.revoked(("session", guest.session.session_id, CloseCode.REVOKED))


async def test_an_older_token_ends_the_session(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    alice = await desk.newcomer("alice")
    second = await desk.refresh(alice.session.refresh_token)
    third = await desk.refresh(second.refresh_token)
    await expect_reuse(desk, alice, alice.session.refresh_token, capsys)
    for token in (second.refresh_token, third.refresh_token):
        with refused(ErrorCode.CREDENTIALS_INVALID):
            await desk.refresh(token)
    with refused(ErrorCode.CREDENTIALS_INVALID):
        await desk.authenticate(third.access_token)


async def test_a_successor_that_was_replaced_ends_the_session(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    alice = await desk.newcomer("alice")
    stolen = await desk.refresh(alice.session.refresh_token)
    await desk.refresh(alice.session.refresh_token)
    await expect_reuse(desk, alice, stolen.refresh_token, capsys)


async def test_a_secret_that_was_made_up_ends_the_session(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    alice = await desk.newcomer("alice")
    made_up = RefreshToken.parse(alice.session.refresh_token).successor()
    await expect_reuse(desk, alice, str(made_up), capsys)


async def test_whoever_does_not_know_the_family_ends_nothing(desk: Desk) -> None:
    alice = await desk.newcomer("alice")
    genuine = RefreshToken.parse(alice.session.refresh_token)
    guesses = [
        RefreshToken(genuine.session_id, new_id(), genuine.secret),
        RefreshToken.first(genuine.session_id),
        RefreshToken(new_id(), genuine.family, genuine.secret),
    ]
    for guess in guesses:
        with refused(ErrorCode.CREDENTIALS_INVALID):
            await desk.refresh(str(guess))
    assert not await is_revoked(desk, alice)
    await desk.revoked()
    assert await desk.refresh(alice.session.refresh_token)


@pytest.mark.parametrize("token", ["", "orb_refresh_", "nonsense", "orb_refresh_" + "A" * 86, "\0"])
async def test_what_is_no_refresh_token(desk: Desk, token: str) -> None:
    with refused(ErrorCode.CREDENTIALS_INVALID):
        await desk.refresh(token)


async def test_an_access_token_is_no_refresh_token(desk: Desk) -> None:
    alice = await desk.newcomer("alice")
    with refused(ErrorCode.CREDENTIALS_INVALID):
        await desk.refresh(alice.session.access_token)
    with refused(ErrorCode.UNAUTHENTICATED):
        await desk.authenticate(alice.session.refresh_token)


async def test_refreshes_of_one_token_at_once_come_one_after_the_other(desk: Desk) -> None:
    alice = await desk.newcomer("alice")
    answers = await asyncio.gather(*(desk.refresh(alice.session.refresh_token) for _ in range(8)))
    await desk.revoked()
    newest = await desk.sql.fetchval("SELECT refresh_hash FROM sessions")
    # Each but the last one to get the lock was replaced by the next.
    tokens = {secret_hash(RefreshToken.parse(answer.refresh_token).secret): answer.refresh_token for answer in answers}
    assert len(tokens) == 8
    assert await desk.refresh(tokens[newest])


async def test_a_refresh_waits_for_whoever_has_the_session(desk: Desk) -> None:
    """Decided from what was there before, it would go on with a session that has just ended."""
    alice = await desk.newcomer("alice")
    async with desk.sql.transaction():
        await desk.sql.execute("SELECT FROM sessions FOR UPDATE")
        refresh = asyncio.create_task(desk.refresh(alice.session.refresh_token))
        await desk.until_blocked()
        await desk.sql.execute("UPDATE sessions SET revoked_at = clock_timestamp()")
    with refused(ErrorCode.CREDENTIALS_INVALID):
        await refresh


# ── logout and revocation ───────────────────────────────────────────────────────────────────────────────────────────


async def test_logging_out_ends_this_session_alone(desk: Desk) -> None:
    alice = await desk.newcomer("alice")
    elsewhere = await desk.login("alice")
    await desk.ask(alice.peer, frames.Logout)
    assert alice.peer.closed == [CloseCode.REVOKED]
    await desk.revoked(("session", alice.session.session_id, CloseCode.REVOKED))
    with refused(ErrorCode.CREDENTIALS_INVALID):
        await desk.authenticate(alice.session.access_token)
    with refused(ErrorCode.CREDENTIALS_INVALID):
        await desk.refresh(alice.session.refresh_token)
    assert await desk.authenticate(elsewhere.access_token)


async def test_the_end_of_the_own_session_is_told_after_the_answer(desk: Desk) -> None:
    """Otherwise a relay might close the connection before the answer is on its way."""
    alice = await desk.newcomer("alice")
    waiting: list[Callable[[], None]] = []
    alice.peer.after_answer = waiting.append  # type: ignore[method-assign, assignment]
    await desk.ask(alice.peer, frames.Logout)
    await desk.revoked()
    assert len(waiting) == 1
    waiting[0]()
    await desk.revoked(("session", alice.session.session_id, CloseCode.REVOKED))


async def test_a_session_is_revoked_from_another_one(desk: Desk) -> None:
    alice = await desk.newcomer("alice")
    lost = await desk.login("alice")
    for _ in range(2):  # the second is a retry
        await desk.ask(alice.peer, frames.SessionRevoke, session_id=lost.session_id)
        await desk.revoked(("session", lost.session_id, CloseCode.REVOKED))
    assert alice.peer.closed == []
    with refused(ErrorCode.CREDENTIALS_INVALID):
        await desk.authenticate(lost.access_token)
    listed = await desk.ask(alice.peer, frames.SessionList)
    assert [one.session_id for one in listed.sessions] == [alice.session.session_id]


async def test_revoking_the_own_session_is_logging_out(desk: Desk) -> None:
    alice = await desk.newcomer("alice")
    await desk.ask(alice.peer, frames.SessionRevoke, session_id=alice.session.session_id)
    assert alice.peer.closed == [CloseCode.REVOKED]
    await desk.revoked(("session", alice.session.session_id, CloseCode.REVOKED))


async def test_sessions_of_others_are_not_there(desk: Desk) -> None:
    alice, bob = await desk.newcomer("alice"), await desk.newcomer("bob")
    for session_id in (bob.session.session_id, new_id()):
        with refused(ErrorCode.NOT_FOUND):
            await desk.ask(alice.peer, frames.SessionRevoke, session_id=session_id)
    await desk.revoked()
    assert await desk.authenticate(bob.session.access_token)


async def test_the_list_has_live_sessions_with_their_times(desk: Desk) -> None:
    alice = await desk.newcomer("alice", device_name="laptop")
    await desk.newcomer("bob")
    desk.now += 2 * MINUTE
    await desk.authenticate(alice.session.access_token)
    desk.now += MINUTE
    phone = await desk.ask(stranger(), frames.Login, username="alice", password="correct horse", device_name="phone")
    desk.now += REFRESH_TTL_S * S - 2 * MINUTE
    listed = await desk.ask(alice.peer, frames.SessionList)
    assert [
        (one.session_id, one.device_name, one.created_at, one.last_used_at, one.current) for one in listed.sessions
    ] == [(phone.session_id, "phone", NOW + 3 * MINUTE, NOW + 3 * MINUTE, False)]  # the laptop's has expired


async def test_logging_out_of_a_bot_token_closes_this_connection_only(desk: Desk) -> None:
    alice = await desk.newcomer("alice")
    made = await desk.ask(
        alice.peer, frames.TokenCreate, token_id=new_id(), name="bot", scopes=[Scope.READ, Scope.ACCOUNT]
    )
    bot = stranger()
    await desk.authenticate(made.token, bot)
    await desk.ask(bot, frames.Logout)
    assert bot.closed == [CloseCode.REVOKED]
    await desk.revoked()
    assert await desk.authenticate(made.token)


# ── what the sweep finds ────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_sweep_finds_ended_sessions_and_leaves_the_others(desk: Desk) -> None:
    """A notification may get lost; the sweep looks at every session that is connected."""
    desk.mint = Mint(AccessTokens([KEY]), access_ttl_s=ACCESS_TTL_S, refresh_ttl_s=10 * 365 * REFRESH_TTL_S)
    alice, bob = await desk.newcomer("alice"), await desk.newcomer("bob")
    gone = await desk.login("bob")
    made = await desk.ask(alice.peer, frames.TokenCreate, token_id=new_id(), name="bot", scopes=[Scope.READ])
    bot = stranger()
    await desk.authenticate(made.token, bot)
    callers = [peer.caller for peer in (alice.peer, bob.peer, bot)]
    connected = [LiveSession(one.session_id, one.user_id, one.token_epoch) for one in callers if one is not None]
    connected.append(LiveSession(gone.session_id, bob.user_id, 0))
    assert await live.find_ended_sessions(desk.sql, connected) == []
    await desk.ask(bob.peer, frames.SessionRevoke, session_id=gone.session_id)
    assert await live.find_ended_sessions(desk.sql, connected) == [gone.session_id]
    await desk.ask(alice.peer, frames.PasswordChange, password="correct horse", new_password="another horse")
    ended = await live.find_ended_sessions(desk.sql, connected)
    assert set(ended) == {gone.session_id, alice.session.session_id}  # the bot's token goes on
    await desk.ask(alice.peer, frames.TokenRevoke, token_id=made.token_id)
    assert made.token_id in await live.find_ended_sessions(desk.sql, connected)

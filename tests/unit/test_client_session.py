"""One login kept alive: reconnecting, refreshing, repeating requests, ending."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import pytest
from msgspec.structs import replace

from orbital_client.wire import (
    AccountRefused,
    Client,
    ClientClosed,
    Closed,
    ConnectionLost,
    Disconnected,
    FileTokens,
    MemoryTokens,
    NotAuthenticated,
    OutOfDate,
    Reconnected,
    RequestTimeout,
    Tokens,
    TryLater,
    uuid7,
)
from orbital_client.wire.backoff import Backoff
from orbital_protocol.codes import CloseCode
from orbital_protocol.frames import (
    AccountDelete,
    Authenticate,
    Error,
    Frame,
    GoAway,
    GroupGet,
    GroupList,
    GroupListOk,
    Login,
    Logout,
    Ok,
    PasswordChange,
    Ping,
    PingOk,
    PostOk,
    Refresh,
    Register,
    Request,
    SignalSend,
    ThreadPost,
    UserGet,
    UserGetOk,
)
from tests.unit.client_relay import (
    HELLO,
    HOUR,
    LIMITS,
    NOW,
    Answer,
    FakeConnection,
    FakeRelay,
    at_once,
    fake_relay,
    identity,
    our_tasks,
    registered,
    soon,
    take,
    take_until,
    until,
)


def refused(code: str, retry_after_ms: int | None = None) -> Answer:
    return lambda _, request: [Error(id=request.id, code=code, message="", retry_after_ms=retry_after_ms)]


def first(answer: Answer, then: Answer) -> Answer:
    """One answer the first time, another one from then on."""
    answers = [answer]

    def answer_in_turn(connection: FakeConnection, request: Request) -> Iterable[Frame | bytes]:
        return (answers.pop() if answers else then)(connection, request)

    return answer_in_turn


def silent(_: FakeConnection, __: Request) -> Iterable[Frame]:
    return []


def found(_: FakeConnection, request: Request) -> Iterable[Frame]:
    return [UserGetOk(id=request.id, user_id=bytes(16), keys=[])]


async def get(client: Client, timeout_s: float | None = None) -> UserGetOk:
    return await soon(client.request(UserGet(id=0, user_id=bytes(16)), UserGetOk, timeout_s=timeout_s))


async def cut(relay: FakeRelay, number: int) -> None:
    (await relay.connection(number)).cut()


# ── reconnecting ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("code", [None, 1001, 1009, 1012, 4000, 4001, 4002, 4005, 4006])
async def test_it_connects_again_after_every_code_that_lets_it(code: int | None) -> None:
    async with fake_relay() as relay, registered(relay) as client:
        theirs = await relay.connection()
        if code is None:
            theirs.cut()
        else:
            await theirs.close(code, "why")
        lost, back = await take(client, 2)
        assert isinstance(lost, Disconnected)
        assert lost.code == (code or 1006)
        assert isinstance(back, Reconnected)
        assert [request.access_token for request in relay.of(Authenticate)] == ["access-1"]


@pytest.mark.parametrize("code", [code for code in CloseCode if not code.reconnect])
async def test_it_stops_after_every_code_that_ends_it(code: CloseCode) -> None:
    async with fake_relay() as relay, registered(relay) as client:
        await (await relay.connection()).close(code)
        with pytest.raises(Closed) as raised:
            await take(client, 1)
        assert raised.value.code == code
        with pytest.raises(Closed):
            await get(client)
        with pytest.raises(Closed):
            await take(client, 1)
        await until(lambda: "orbital-session" not in our_tasks())
        assert len(relay.connections) == 1


async def test_the_waits_grow_with_full_jitter_and_a_short_connection_does_not_reset_them() -> None:
    asked: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        asked.append((low, high))
        return low

    async with fake_relay() as relay, registered(relay, backoff=Backoff(uniform=uniform)) as client:
        for number in range(1, 9):
            await cut(relay, number)
            await take_until(client, Reconnected)
        assert asked == [(0, ceiling) for ceiling in (0.5, 1, 2, 4, 8, 16, 30, 30)]


def test_backoff_waits_at_least_what_the_relay_asked_for() -> None:
    backoff = Backoff(uniform=lambda low, high: high)
    assert [backoff.next_s(), backoff.next_s(3000), backoff.next_s()] == [0.5, 3 + 1, 2]
    backoff.reset()
    assert backoff.next_s() == 0.5


async def test_goaway_says_how_long_to_stay_away() -> None:
    async with fake_relay() as relay, registered(relay) as client:
        theirs = await relay.connection()
        await theirs.push(GoAway(retry_after_ms=300))
        await theirs.close(CloseCode.DRAINING)
        await take_until(client, Disconnected)
        since = asyncio.get_running_loop().time()
        await take_until(client, Reconnected)
        assert asyncio.get_running_loop().time() - since >= 0.29


async def test_it_goes_on_trying_while_the_relay_turns_it_away() -> None:
    async with fake_relay() as relay, registered(relay) as client:
        welcome = relay.answers[Authenticate]
        relay.answers[Authenticate] = first(refused("overloaded", 1), first(refused("unavailable", 1), welcome))
        await cut(relay, 1)
        await take_until(client, Reconnected)
        assert len(relay.connections) == 4


async def test_a_relay_that_accepts_and_does_not_answer_is_tried_again() -> None:
    async with fake_relay() as relay, registered(relay, timeout_s=0.2) as client:
        relay.answers[Authenticate] = first(silent, relay.answers[Authenticate])
        await cut(relay, 1)
        await take_until(client, Reconnected)
        assert len(relay.connections) == 3


# ── tokens ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_an_expired_token_is_refreshed_before_anything_else() -> None:
    tokens = MemoryTokens()
    async with fake_relay() as relay, registered(relay, tokens=tokens) as client:
        await (await relay.connection()).close(CloseCode.TOKEN_EXPIRED)
        await take_until(client, Reconnected)
        assert relay.of(Authenticate) == []
        assert [request.refresh_token for request in relay.of(Refresh)] == ["refresh-1"]
        held = await tokens.load()
        assert held is not None
        assert held.refresh_token == "refresh-2"


async def test_a_token_that_the_relay_finds_expired_is_refreshed() -> None:
    async with fake_relay() as relay, registered(relay) as client:
        relay.answers[Authenticate] = refused("token_expired")
        await cut(relay, 1)
        await take_until(client, Reconnected)
        kinds = [type(request).__name__ for request in relay.requests]
        assert kinds.index("Refresh") == kinds.index("Authenticate") + 1


async def test_the_token_is_refreshed_in_good_time_within_the_socket() -> None:
    async with fake_relay() as relay:
        relay.access_lives_us = 800_000
        async with registered(relay) as client:
            await until(lambda: len(relay.of(Refresh)) == 2)
            assert [request.refresh_token for request in relay.of(Refresh)] == ["refresh-1", "refresh-2"]
            assert len(relay.connections) == 1
            await get_groups(client)


async def get_groups(client: Client) -> GroupListOk:
    return await soon(client.request(GroupList(id=0), GroupListOk))


async def test_the_life_of_a_token_is_counted_on_the_relays_clock() -> None:
    async with fake_relay() as relay:
        relay.answers[Ping] = lambda _, request: [PingOk(id=request.id, server_time=NOW + HOUR - 400_000, heads=[])]
        async with registered(relay):
            await until(lambda: relay.of(Refresh))


async def test_a_refresh_that_finds_the_relay_busy_is_tried_again() -> None:
    async with fake_relay() as relay:
        relay.access_lives_us = 800_000
        relay.answers[Refresh] = first(refused("overloaded", 1), relay.answers[Refresh])
        async with registered(relay):
            await until(lambda: len(relay.of(Refresh)) == 2)
            assert len(relay.connections) == 1


async def test_a_refused_refresh_ends_the_session() -> None:
    async with fake_relay() as relay, registered(relay) as client:
        relay.answers[Refresh] = refused("credentials_invalid")
        await (await relay.connection()).close(CloseCode.TOKEN_EXPIRED)
        with pytest.raises(AccountRefused):
            await take_until(client, Reconnected)
        with pytest.raises(AccountRefused):
            await get(client)


async def test_a_refresh_whose_answer_was_lost_is_repeated_with_the_same_token() -> None:
    def lost(connection: FakeConnection, _: Request) -> Iterable[Frame]:
        connection.cut()
        return []

    async with fake_relay() as relay, registered(relay) as client:
        relay.answers[Refresh] = first(lost, relay.answers[Refresh])
        await (await relay.connection()).close(CloseCode.TOKEN_EXPIRED)
        await take_until(client, Reconnected)
        assert [request.refresh_token for request in relay.of(Refresh)] == ["refresh-1", "refresh-1"]


async def test_kept_tokens_are_taken_up_by_the_next_client() -> None:
    who = identity()
    async with fake_relay() as relay:
        tokens = MemoryTokens()
        async with registered(relay, who, tokens=tokens):
            pass
        async with Client(relay.url, tokens=tokens) as client:
            await soon(client.authenticate(who))
            await get_groups(client)
        assert relay.of(Authenticate)[-1].access_token == "access-1"


async def test_without_tokens_there_is_nothing_to_take_up() -> None:
    async with fake_relay() as relay, Client(relay.url) as client:
        with pytest.raises(ClientClosed):
            await soon(client.authenticate(identity()))


async def test_a_bots_token_is_used_again_and_never_refreshed() -> None:
    async with fake_relay() as relay, Client(relay.url, backoff=at_once()) as client:
        await soon(client.authenticate(identity(), token="bot-secret"))
        await cut(relay, 1)
        await take_until(client, Reconnected)
        assert [request.access_token for request in relay.of(Authenticate)] == ["bot-secret", "bot-secret"]
        relay.answers[Authenticate] = refused("unauthenticated")
        await cut(relay, 2)
        with pytest.raises(NotAuthenticated):
            await take_until(client, Reconnected)
        assert relay.of(Refresh) == []


# ── signing in and out ──────────────────────────────────────────────────────────────────────────────────────────────


async def test_what_goes_wrong_the_first_time_is_raised_and_leaves_nothing_running() -> None:
    async with fake_relay() as relay, Client(relay.url) as client:
        relay.answers[Register] = refused("username_taken")
        with pytest.raises(AccountRefused):
            await soon(client.register("ann", "a password", identity()))
        assert our_tasks() == {"orbital-cursors"}
        with pytest.raises(ClientClosed):
            await get(client)
        with pytest.raises(ClientClosed):
            await take(client, 1)


async def test_nobody_signs_in_twice() -> None:
    async with fake_relay() as relay, registered(relay) as client:
        with pytest.raises(RuntimeError):
            await soon(client.login("ann", "a password", identity()))


async def test_an_ended_session_may_be_followed_by_another_login() -> None:
    who = identity()
    async with fake_relay() as relay, registered(relay, who) as client:
        await (await relay.connection()).close(CloseCode.REVOKED)
        with pytest.raises(Closed):
            await take_until(client, Reconnected)
        await soon(client.login("ann", "a password", who))
        assert isinstance((await take(client, 1))[0], Reconnected)


async def test_an_identity_that_is_not_the_accounts_is_refused() -> None:
    async with fake_relay() as relay, Client(relay.url) as client:
        relay.answers[Logout] = lambda _, request: [Ok(id=request.id)]
        relay.user_id = uuid7()
        with pytest.raises(ValueError, match="another account"):
            await soon(client.login("ann", "a password", identity()))
        assert relay.of(Logout)


@pytest.mark.parametrize("end", [lambda client: client.logout(), lambda client: client.delete_account("a password")])
async def test_after_signing_out_the_tokens_are_forgotten_and_events_end(
    end: Callable[[Client], Awaitable[None]],
) -> None:
    tokens = MemoryTokens()

    def leave(connection: FakeConnection, request: Request) -> Iterable[Frame]:
        return [Ok(id=request.id)]

    async with fake_relay() as relay, registered(relay, tokens=tokens) as client:
        relay.answers[Logout] = relay.answers[AccountDelete] = leave
        reading = asyncio.create_task(take_until(client, Reconnected))
        await soon(end(client))
        with pytest.raises(AssertionError, match="the events ended"):
            await soon(reading)
        assert await tokens.load() is None
        with pytest.raises(ClientClosed):
            await get(client)


async def test_a_changed_password_brings_tokens_that_are_kept() -> None:
    tokens = MemoryTokens()
    async with fake_relay() as relay, registered(relay, tokens=tokens) as client:
        relay.answers[PasswordChange] = lambda _, request: [relay.session(request.id)]
        await soon(client.change_password("a password", "another one"))
        held = await tokens.load()
        assert held is not None
        assert held.access_token == "access-2"
        await cut(relay, 1)
        await take_until(client, Reconnected)
        assert relay.of(Authenticate)[-1].access_token == "access-2"


async def test_a_refresh_that_a_changed_password_overtakes_ends_nothing() -> None:
    async with fake_relay() as relay:
        relay.access_lives_us = 800_000
        relay.answers[Refresh] = silent
        relay.answers[PasswordChange] = lambda _, request: [relay.session(request.id)]
        async with registered(relay) as client:
            await until(lambda: relay.of(Refresh))
            relay.access_lives_us = HOUR
            await soon(client.change_password("a password", "another one"))
            refused_refresh = Error(id=relay.of(Refresh)[0].id, code="credentials_invalid", message="")
            await relay.connections[0].push(refused_refresh)
            await get_groups(client)
            await cut(relay, 1)
            await take_until(client, Reconnected)
            assert relay.of(Authenticate)[-1].access_token == "access-2"


# ── requests ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_request_whose_answer_was_lost_is_sent_again() -> None:
    def lost(connection: FakeConnection, _: Request) -> Iterable[Frame]:
        connection.cut()
        return []

    def posted(_: FakeConnection, request: Request) -> Iterable[Frame]:
        return [PostOk(id=request.id, seq=1, hash=bytes(32), content_hash=bytes(32), created_at=1, duplicate=True)]

    async with fake_relay() as relay, registered(relay) as client:
        relay.answers[ThreadPost] = first(lost, posted)
        post = ThreadPost(
            id=0, group_id=uuid7(), key_epoch=1, thread_id=uuid7(), encrypted_title=b"t", encrypted_body=b"b"
        )
        assert (await soon(client.request(post, PostOk))).duplicate
        assert [request.thread_id for request in relay.of(ThreadPost)] == [post.thread_id] * 2


async def test_a_request_made_while_disconnected_waits_for_the_connection() -> None:
    async with fake_relay() as relay, registered(relay) as client:
        relay.answers[UserGet] = found
        welcome = relay.answers[Authenticate]
        turned_away = asyncio.Event()

        def not_yet(connection: FakeConnection, request: Request) -> Iterable[Frame | bytes]:
            if not turned_away.is_set():
                return refused("unavailable", 1)(connection, request)
            return welcome(connection, request)

        relay.answers[Authenticate] = not_yet
        await cut(relay, 1)
        await take_until(client, Disconnected)
        asking = asyncio.create_task(get(client))
        await until(lambda: len(relay.of(Authenticate)) >= 2)
        assert not asking.done()
        turned_away.set()
        await soon(asking)


async def test_what_may_not_be_repeated_is_lost_with_the_connection() -> None:
    def lost(connection: FakeConnection, _: Request) -> Iterable[Frame]:
        connection.cut()
        return []

    async with fake_relay() as relay, registered(relay) as client:
        relay.answers[SignalSend] = lost
        with pytest.raises(ConnectionLost):
            await soon(client.group(uuid7()).signal(b"here"))
        assert len(relay.of(SignalSend)) == 1


async def test_what_was_never_sent_is_sent_on_the_next_connection() -> None:
    async with fake_relay() as relay:
        relay.hello = replace(HELLO, limits=replace(LIMITS, max_in_flight=1))
        async with registered(relay) as client:
            await until(lambda: relay.of(Ping))
            relay.answers[UserGet] = silent
            relay.answers[SignalSend] = lambda _, request: [Ok(id=request.id)]
            first_in_line = asyncio.create_task(get(client))
            await until(lambda: relay.of(UserGet))
            signalling = asyncio.create_task(client.group(uuid7()).signal(b"here"))
            await asyncio.sleep(0)
            relay.answers[UserGet] = found
            await cut(relay, 1)
            await soon(asyncio.gather(first_in_line, signalling))
            assert len(relay.of(SignalSend)) == 1


async def test_what_the_relay_puts_off_is_asked_again_after_the_time_it_names() -> None:
    async with fake_relay() as relay, registered(relay) as client:
        relay.answers[UserGet] = first(refused("rate_limited", 200), found)
        since = asyncio.get_running_loop().time()
        await get(client)
        assert asyncio.get_running_loop().time() - since >= 0.19


async def test_what_the_relay_puts_off_too_long_is_raised_at_once() -> None:
    async with fake_relay() as relay, registered(relay) as client:
        relay.answers[UserGet] = refused("rate_limited", 60_000)
        with pytest.raises(TryLater) as raised:
            await get(client)
        assert raised.value.retry_after_ms == 60_000
        assert len(relay.of(UserGet)) == 1


async def test_what_asking_again_cannot_help_is_raised() -> None:
    async with fake_relay() as relay, registered(relay) as client:
        relay.answers[UserGet] = refused("stale_base")
        with pytest.raises(OutOfDate):
            await get(client)
        assert len(relay.of(UserGet)) == 1


async def test_a_request_without_an_answer_times_out() -> None:
    async with fake_relay() as relay, registered(relay) as client:
        relay.answers[GroupGet] = relay.answers[UserGet] = silent
        with pytest.raises(RequestTimeout, match=r"user\.get"):
            await get(client, timeout_s=0.05)


async def test_what_waits_when_the_client_closes_is_told() -> None:
    async with fake_relay() as relay:
        async with registered(relay) as client:
            relay.answers[UserGet] = silent
            asking = asyncio.create_task(get(client))
            await until(lambda: relay.of(UserGet))
        with pytest.raises((ClientClosed, ConnectionLost)):
            await soon(asking)


async def test_closing_while_waiting_to_connect_again_leaves_nothing_running() -> None:
    async with fake_relay() as relay:
        async with registered(relay, backoff=Backoff(uniform=lambda low, high: 1000.0)) as client:
            await cut(relay, 1)
            await take_until(client, Disconnected)
        assert our_tasks() == set()


async def test_nothing_secret_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for name in ("websockets.server", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        async with fake_relay() as relay:
            relay.access_lives_us = 800_000
            async with registered(relay) as client:
                await until(lambda: relay.of(Refresh))
                await cut(relay, 1)
                await take_until(client, Reconnected)
    finally:
        for name in ("websockets.server", "asyncio"):
            logging.getLogger(name).setLevel(logging.NOTSET)
    assert not [record for record in caplog.records if "websockets" in record.name], "frames hold secrets"
    said = caplog.text
    assert "connecting again" in said
    for secret in ("a password", "access-", "refresh-"):
        assert secret not in said


def test_tokens_never_show_their_secrets() -> None:
    assert "access-" not in repr(Tokens.of(FakeRelay().session(1)))


async def test_file_tokens_survive_and_are_private(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    async with fake_relay() as relay, registered(relay, tokens=FileTokens(path)) as client:
        held = await FileTokens(path).load()
        assert held is not None
        assert (held.access_token, held.refresh_token) == ("access-1", "refresh-1")
        assert path.stat().st_mode & 0o777 == 0o600
        relay.answers[Logout] = lambda _, request: [Ok(id=request.id)]
        await soon(client.logout())
        assert await FileTokens(path).load() is None
        assert list(tmp_path.iterdir()) == []


async def test_login_signs_in_like_register() -> None:
    who = identity()
    async with fake_relay() as relay, Client(relay.url) as client:
        relay.user_id = who.user_id
        await soon(client.login("ann", "a password", who, device_name="phone"))
        assert [(request.username, request.device_name) for request in relay.of(Login)] == [("ann", "phone")]
        assert await get_groups(client)

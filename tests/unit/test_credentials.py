"""Passwords in threads, access tokens, refresh tokens and bot tokens."""

import asyncio
import base64
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import bcrypt
import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orbital_relay.config import TokenKey
from orbital_relay.credentials import (
    Access,
    AccessTokens,
    BotToken,
    Family,
    Mint,
    Passwords,
    Refreshing,
    RefreshToken,
    Workers,
    check_new_password,
    check_password,
    judge,
    secret_hash,
)
from orbital_relay.errors import BadArgument, CredentialsInvalid, Overloaded, TokenExpired, Unauthenticated

LIMIT_S = 10
NOW = 1_800_000_000_123_456
S = 1_000_000
KEY = TokenKey("k1", bytes(range(64)))
OLD_KEY = TokenKey("k0", bytes(range(64, 128)))
ACCESS = Access(
    user_id=bytes(range(16)), session_id=bytes(range(16, 32)), token_epoch=7, expires_at=NOW // S * S + 900 * S
)


# ── threads ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def workers() -> Iterator[Workers]:
    made = Workers(threads=2, queue=3)
    yield made
    made.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0.001)


async def test_no_more_than_threads_and_queue_wait(workers: Workers) -> None:
    gate = threading.Event()
    try:
        jobs = [asyncio.create_task(workers.run(lambda: gate.wait(LIMIT_S))) for _ in range(5)]
        await asyncio.sleep(0)  # lets each of them in
        with pytest.raises(Overloaded) as refused:
            await workers.run(lambda: True)
        assert refused.value.retry_after_ms
    finally:
        gate.set()
    assert await asyncio.gather(*jobs) == [True] * 5
    assert await workers.run(lambda: "room again") == "room again"


async def test_so_many_run_at_once(workers: Workers) -> None:
    running, most, lock = 0, 0, threading.Lock()
    both = threading.Barrier(2)

    def job() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        both.wait(LIMIT_S)
        with lock:
            running -= 1

    await asyncio.gather(*(workers.run(job) for _ in range(4)))
    assert most == 2


async def test_whoever_is_cancelled_holds_their_place_until_the_thread_is_done(workers: Workers) -> None:
    gate, started = threading.Event(), threading.Semaphore(0)

    def job() -> None:
        started.release()
        gate.wait(LIMIT_S)

    try:
        running = [asyncio.create_task(workers.run(job)) for _ in range(2)]
        await asyncio.to_thread(lambda: [started.acquire(timeout=LIMIT_S) for _ in running])
        waiting = [asyncio.create_task(workers.run(job)) for _ in range(3)]
        await asyncio.sleep(0)
        for task in (*running, *waiting):
            task.cancel()
        await asyncio.wait((*running, *waiting), timeout=LIMIT_S)
        # Those that waited have given their places back; the two that run keep the threads busy.
        again = [asyncio.create_task(workers.run(lambda: 1)) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await workers.run(lambda: 1)
    finally:
        gate.set()
    assert await asyncio.gather(*again) == [1, 1, 1]


async def test_what_a_job_raises_comes_out_and_its_place_comes_back(workers: Workers) -> None:
    for _ in range(10):
        with pytest.raises(ZeroDivisionError):
            await workers.run(lambda: 1 // 0)


# ── passwords ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_hash_is_bcrypt_of_cost_12_and_verifies(workers: Workers) -> None:
    passwords = Passwords(workers)
    hashed = await passwords.hash(b"correct horse")
    assert hashed.startswith("$2b$12$")
    assert await passwords.verify(b"correct horse", hashed)
    assert not await passwords.verify(b"correct hors", hashed)


async def test_the_loop_goes_on_while_a_password_is_hashed(workers: Workers) -> None:
    hashing = asyncio.create_task(Passwords(workers).hash(b"correct horse"))
    turns = 0
    while not hashing.done():
        await asyncio.sleep(0.001)
        turns += 1
    assert turns > 10


async def test_nobody_takes_as_long_as_somebody(workers: Workers) -> None:
    passwords = Passwords(workers, cost=10)
    somebody = await passwords.hash(b"correct horse")

    async def seconds(password_hash: str | None) -> float:
        started = time.perf_counter()
        for _ in range(3):
            assert not await passwords.verify(b"wrong horse", password_hash)
        return time.perf_counter() - started

    known, unknown = await seconds(somebody), await seconds(None)
    assert 0.3 < unknown / known < 3  # without the work it is below 0.01


async def test_no_password_opens_an_account_that_is_not_there(workers: Workers) -> None:
    passwords = Passwords(workers, cost=4)
    assert not await passwords.verify(b"", None)
    assert not await passwords.verify(b"anything", "$2b$12$no-login")


@pytest.mark.parametrize("password", ["", "a" * 72, "ä" * 36, "pass word", "\U0001f600" * 18])
def test_passwords_that_bcrypt_sees_whole(password: str) -> None:
    raw = check_password(password)
    assert bcrypt.checkpw(raw, bcrypt.hashpw(raw, bcrypt.gensalt(4)))
    if raw:
        assert not bcrypt.checkpw(raw[:-1], bcrypt.hashpw(raw, bcrypt.gensalt(4)))


@pytest.mark.parametrize("password", ["a" * 73, "ä" * 36 + "a", "\U0001f600" * 18 + "a", "with\0nul"])
def test_passwords_that_are_refused(password: str) -> None:
    for check in (check_password, check_new_password):
        with pytest.raises(BadArgument) as refused:
            check(password, "new_password")
        assert refused.value.details is not None
        assert refused.value.details.field == "new_password"


def test_new_passwords_have_eight_characters() -> None:
    assert check_new_password("äöüßäöüß") == "äöüßäöüß".encode()
    with pytest.raises(BadArgument):
        check_new_password("äöüßäöü")


# ── access tokens ───────────────────────────────────────────────────────────────────────────────────────────────────


def claims(**changes: object) -> dict[str, object]:
    good: dict[str, object] = {
        "iss": "orbital",
        "aud": "orbital-relay",
        "iat": NOW // S,
        "exp": NOW // S + 900,
        "typ": "access",
        "sub": "00010203-0405-0607-0809-0a0b0c0d0e0f",
        "sid": "10111213-1415-1617-1819-1a1b1c1d1e1f",
        "tep": 7,
    }
    return {name: value for name, value in {**good, **changes}.items() if value is not None}


def forge(
    body: dict[str, object] | None = None, secret: bytes = KEY.secret, algorithm: str = "HS256", **headers: object
) -> str:
    head: dict[str, Any] = {"typ": "at+jwt", "kid": "k1", **headers}
    head = {name: value for name, value in head.items() if value is not None}
    return jwt.encode(body or claims(), secret, algorithm=algorithm, headers=head)


def test_what_is_signed_is_verified() -> None:
    tokens = AccessTokens([KEY])
    assert tokens.verify(tokens.sign(ACCESS, NOW), NOW) == ACCESS
    assert tokens.verify(forge(), NOW) == ACCESS


def test_a_token_says_no_more_than_it_must() -> None:
    token = AccessTokens([KEY]).sign(ACCESS, NOW)
    assert jwt.get_unverified_header(token) == {"alg": "HS256", "typ": "at+jwt", "kid": "k1"}
    assert jwt.decode(token, options={"verify_signature": False}) == claims()


def test_the_first_key_signs_and_all_verify() -> None:
    old, new = AccessTokens([OLD_KEY]), AccessTokens([KEY, OLD_KEY])
    assert new.verify(old.sign(ACCESS, NOW), NOW) == ACCESS
    assert jwt.get_unverified_header(new.sign(ACCESS, NOW))["kid"] == "k1"
    with pytest.raises(Unauthenticated):
        old.verify(new.sign(ACCESS, NOW), NOW)


def test_other_keys_take_the_place_of_those_that_were_there() -> None:
    tokens = AccessTokens([OLD_KEY])
    old = tokens.sign(ACCESS, NOW)
    tokens.use([KEY, OLD_KEY])
    assert jwt.get_unverified_header(tokens.sign(ACCESS, NOW))["kid"] == "k1"
    assert tokens.verify(old, NOW) == ACCESS
    tokens.use([KEY])
    for token in (old, forge(None, OLD_KEY.secret, kid=OLD_KEY.kid, cty="of a header that is parsed")):
        with pytest.raises(Unauthenticated):
            tokens.verify(token, NOW)


def test_a_token_expires_by_the_relays_clock() -> None:
    tokens = AccessTokens([KEY])
    token = tokens.sign(ACCESS, NOW)
    assert tokens.verify(token, ACCESS.expires_at - 1) == ACCESS
    with pytest.raises(TokenExpired):
        tokens.verify(token, ACCESS.expires_at)


def test_a_token_that_is_forged_and_expired_is_not_called_expired() -> None:
    with pytest.raises(Unauthenticated):
        AccessTokens([KEY]).verify(forge(secret=OLD_KEY.secret), ACCESS.expires_at + S)


def unsigned(token: str) -> str:
    head = base64.urlsafe_b64encode(b'{"alg":"none","typ":"at+jwt","kid":"k1"}').rstrip(b"=").decode()
    return f"{head}.{token.split('.')[1]}."


BAD_TOKENS = {
    "nothing": "",
    "no token": "not.a.token",
    "signed by another key": forge(secret=OLD_KEY.secret),
    "an unknown kid": forge(kid="k2"),
    "no kid": forge(kid=None),
    "an empty kid": forge(kid=""),
    "another key's kid": forge(kid="k0"),
    "another algorithm": forge(algorithm="HS512"),
    "no algorithm": unsigned(forge()),
    "another typ": forge(typ="JWT"),
    "no typ": forge(typ=None),
    "a critical extension": forge(crit=["exp"]),
    "a refresh token": forge(claims(typ="refresh")),
    "no claim typ": forge(claims(typ=None)),
    "another issuer": forge(claims(iss="somebody")),
    "no issuer": forge(claims(iss=None)),
    "another audience": forge(claims(aud="somebody")),
    "no audience": forge(claims(aud=None)),
    "no expiry": forge(claims(exp=None)),
    "no issue time": forge(claims(iat=None)),
    "an expiry that is none": forge(claims(exp="soon")),
    "no user": forge(claims(sub=None)),
    "a user that is none": forge(claims(sub="alice")),
    "no session": forge(claims(sid=None)),
    "a session that is none": forge(claims(sid=5)),
    "no epoch": forge(claims(tep=None)),
    "an epoch that is none": forge(claims(tep=[])),
}


@pytest.mark.parametrize("case", BAD_TOKENS)
def test_tokens_that_are_refused(case: str) -> None:
    with pytest.raises(Unauthenticated):
        AccessTokens([KEY, OLD_KEY]).verify(BAD_TOKENS[case], NOW)


def test_keys_in_headers_are_not_looked_at() -> None:
    elsewhere: dict[str, Any] = {
        "jku": "https://attacker.example/keys",
        "x5u": "https://attacker.example/cert",
        "jwk": {"kty": "oct", "k": base64.urlsafe_b64encode(OLD_KEY.secret).decode()},
    }
    assert AccessTokens([KEY]).verify(forge(None, **elsewhere), NOW) == ACCESS
    with pytest.raises(Unauthenticated):
        AccessTokens([KEY]).verify(forge(None, OLD_KEY.secret, "HS256", **elsewhere), NOW)


@given(st.integers(0, 400), st.integers(1, 255))
def test_a_token_with_another_byte_is_none(position: int, flip: int) -> None:
    token = AccessTokens([KEY]).sign(ACCESS, NOW)
    position %= len(token)
    altered = token[:position] + chr(ord(token[position]) ^ flip) + token[position + 1 :]
    # The last character of a part has bits that say nothing: only what means the same may pass.
    try:
        assert AccessTokens([KEY]).verify(altered, NOW) == ACCESS
    except Unauthenticated:
        return
    signatures = [base64.urlsafe_b64decode(one.rsplit(".")[-1] + "==") for one in (token, altered)]
    assert signatures[0] == signatures[1]


# ── refresh tokens and bot tokens ───────────────────────────────────────────────────────────────────────────────────


def test_a_refresh_token_is_read_as_it_was_written() -> None:
    token = RefreshToken.first(bytes(range(16)))
    assert RefreshToken.parse(str(token)) == token
    assert str(token).startswith("orb_refresh_")
    assert len(str(token)) < 256


def test_a_successor_is_of_the_same_family_with_another_secret() -> None:
    token = RefreshToken.first(bytes(16))
    successor = token.successor()
    assert (successor.session_id, successor.family) == (token.session_id, token.family)
    assert successor.secret != token.secret


def test_a_bot_token_is_read_as_it_was_written() -> None:
    token = BotToken.new(bytes(range(16)))
    assert BotToken.parse(str(token)) == token
    assert str(token).startswith("orb_bot_")


@pytest.mark.parametrize("kind", [RefreshToken, BotToken])
def test_secrets_do_not_show(kind: type[RefreshToken] | type[BotToken]) -> None:
    token = RefreshToken.first(bytes(16)) if kind is RefreshToken else BotToken.new(bytes(16))
    assert repr(token.secret) not in repr(token)
    assert "secret" not in repr(token)


@pytest.mark.parametrize("alter", [lambda t: t[:-1], lambda t: t + "A", lambda t: t + "=", lambda t: "x" + t[1:]])
@pytest.mark.parametrize(
    "token", [str(RefreshToken.first(bytes(16))), str(BotToken.new(bytes(16)))], ids=["refresh", "bot"]
)
def test_what_is_no_token_is_refused(token: str, alter: Callable[[str], str]) -> None:
    for kind in (RefreshToken, BotToken):
        with pytest.raises(CredentialsInvalid):
            kind.parse(alter(token))


@pytest.mark.parametrize(
    "text", ["", "orb_refresh_", "orb_bot_", "orb_refresh_ä", "orb_bot_" + "A" * 63 + "+", "a.b.c"]
)
def test_text_that_is_no_token_is_refused(text: str) -> None:
    for kind in (RefreshToken, BotToken):
        with pytest.raises(CredentialsInvalid):
            kind.parse(text)


def test_the_kinds_are_not_interchangeable() -> None:
    with pytest.raises(CredentialsInvalid):
        BotToken.parse(str(RefreshToken.first(bytes(16))))
    with pytest.raises(CredentialsInvalid):
        RefreshToken.parse(str(BotToken.new(bytes(16))))
    with pytest.raises(Unauthenticated):
        AccessTokens([KEY]).verify(str(RefreshToken.first(bytes(16))), NOW)


def family_of(newest: RefreshToken, previous: RefreshToken | None = None) -> Family:
    return Family(
        secret_hash(newest.family),
        secret_hash(newest.secret),
        None if previous is None else secret_hash(previous.secret),
    )


def test_what_a_refresh_token_is_worth() -> None:
    first = RefreshToken.first(bytes(16))
    second, third = first.successor(), first.successor()
    assert judge(first, family_of(first)) is Refreshing.ROTATE
    assert judge(first, family_of(second, first)) is Refreshing.REPLACE
    assert judge(second, family_of(second, first)) is Refreshing.ROTATE
    assert judge(first, family_of(third, second)) is Refreshing.REUSE
    assert judge(first.successor(), family_of(second, first)) is Refreshing.REUSE
    assert judge(RefreshToken.first(bytes(16)), family_of(second, first)) is Refreshing.REFUSE


# ── grants ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_grant_has_both_tokens() -> None:
    tokens = AccessTokens([KEY])
    refresh = RefreshToken.first(ACCESS.session_id)
    grant = Mint(tokens, access_ttl_s=900, refresh_ttl_s=86_400).grant(ACCESS.user_id, 7, refresh, NOW)
    assert tokens.verify(grant.access_token, NOW) == ACCESS
    assert grant.access_expires_at == ACCESS.expires_at
    assert grant.refresh_expires_at == NOW // S * S + 86_400 * S
    assert grant.refresh_token == refresh
    assert grant.access_token not in repr(grant)


def test_an_access_token_does_not_outlive_its_session() -> None:
    mint = Mint(AccessTokens([KEY]), access_ttl_s=900, refresh_ttl_s=60)
    grant = mint.grant(ACCESS.user_id, 7, RefreshToken.first(ACCESS.session_id), NOW)
    assert grant.access_expires_at == grant.refresh_expires_at

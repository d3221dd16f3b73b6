"""Accounts: registration, login and its back-off, passwords, deletion, who sees whom, backups."""

import asyncio
import base64
import threading
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from orbital_protocol import ZERO_ID, frames
from orbital_protocol.chain import RELAY_CONTENT_HASH
from orbital_protocol.codes import CloseCode, ErrorCode, Kind
from orbital_relay.credentials import Passwords, Workers
from orbital_relay.handlers.accounts import Registration
from orbital_relay.limits import KeyedBuckets
from orbital_relay.store import accounts
from tests.accounts import ATTEMPTS_FREE, COST, PASSWORD, Desk, S, desk_on, stranger
from tests.people import Person, admit, enroll, found_group, new_id, post_of, thumbprint_of
from tests.readers import append
from tests.worlds import NOW, refused, verified_log

OTHER = "another horse"


@pytest_asyncio.fixture
async def desk(migrated_database: str) -> AsyncIterator[Desk]:
    async with desk_on(migrated_database, max_sessions_per_user=3) as made:
        yield made


# ── register ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.each_postgres
async def test_registering_makes_an_account_and_a_session(desk: Desk) -> None:
    alice = await desk.newcomer("alice")
    row = await desk.sql.fetchrow("SELECT * FROM users WHERE id = $1", alice.user_id)
    assert row is not None
    assert row["username"] == "alice"
    assert row["signing_key"] == alice.person.signing_key
    assert row["rsa_thumbprint"] == alice.person.rsa_thumbprint
    jwk = msgspec.json.decode(row["public_key"])
    assert jwk == {"kty": "RSA", "n": alice.person.public_key.n, "e": "AQAB"}  # neither alg nor anything else
    assert await desk.sql.fetchval("SELECT count(*) FROM user_keys WHERE user_id = $1", alice.user_id) == 1
    assert alice.peer.caller is not None
    assert (alice.peer.caller.user_id, alice.peer.caller.session_id) == (alice.user_id, alice.session.session_id)
    assert alice.peer.caller.expires_at == alice.session.access_expires_at
    assert (await desk.authenticate(alice.session.access_token)).session_id == alice.session.session_id


async def test_no_secret_is_stored(desk: Desk) -> None:
    alice = await desk.newcomer("alice")
    rows = await desk.sql.fetch("SELECT u.*::text, s.*::text FROM users u, sessions s")
    stored = "".join(str(value) for row in rows for value in row)
    refresh = base64.urlsafe_b64decode(alice.session.refresh_token.removeprefix("orb_refresh_") + "==")
    for secret in (PASSWORD, alice.session.access_token, refresh[32:].hex(), refresh[16:32].hex()):
        assert secret not in stored


async def test_registering_again_logs_in(desk: Desk) -> None:
    alice = await desk.newcomer("alice")
    again = await desk.register(stranger(), alice.person)
    assert again.user_id == alice.user_id
    assert again.session_id != alice.session.session_id
    assert await desk.sql.fetchval("SELECT count(*) FROM users") == 1


async def test_registering_twice_at_once_makes_one_account(desk: Desk) -> None:
    alice = Person("alice")
    answers = await asyncio.gather(*(desk.register(stranger(), alice) for _ in range(3)))
    assert {answer.user_id for answer in answers} == {alice.user_id}
    assert await desk.sql.fetchval("SELECT count(*) FROM users") == 1


async def test_a_name_goes_to_one_of_those_who_want_it_at_once(desk: Desk) -> None:
    wanted = [desk.register(stranger(), Person("alice")) for _ in range(3)]
    answers = await asyncio.gather(*wanted, return_exceptions=True)
    assert sorted(type(answer).__name__ for answer in answers) == ["SessionOk", "UsernameTaken", "UsernameTaken"]


OTHER_CONTENT: dict[str, dict[str, Any]] = {
    "name": {"username": "malory"},
    "password": {"password": OTHER},
    "signing key": {"signing_key": Ed25519PrivateKey.generate().public_key().public_bytes_raw()},
    "kind": {"is_bot": True},
}


@pytest.mark.parametrize("what", OTHER_CONTENT)
async def test_the_id_with_other_content_is_a_conflict(desk: Desk, what: str) -> None:
    alice = await desk.newcomer("alice")
    peer = stranger()
    with refused(ErrorCode.ID_CONFLICT):
        await desk.register(peer, alice.person, **OTHER_CONTENT[what])
    assert peer.caller is None


async def test_another_rsa_key_is_a_conflict(desk: Desk) -> None:
    alice = await desk.newcomer("alice")
    others = (Person("x").public_key for _ in range(10))
    other = next(key for key in others if thumbprint_of(key) != alice.person.rsa_thumbprint)
    with refused(ErrorCode.ID_CONFLICT):
        await desk.register(stranger(), alice.person, public_key=other)


async def test_the_id_of_a_deleted_user_stays_theirs(desk: Desk) -> None:
    alice = await desk.newcomer("alice")
    await desk.ask(alice.peer, frames.AccountDelete, password=PASSWORD)
    with refused(ErrorCode.ID_CONFLICT):
        await desk.register(stranger(), alice.person)
    assert (await desk.newcomer("alice")).user_id != alice.user_id  # names are given out again


@pytest.mark.produces(ErrorCode.USERNAME_TAKEN)
async def test_a_name_of_somebody_else_is_taken(desk: Desk) -> None:
    await desk.newcomer("alice")
    with refused(ErrorCode.USERNAME_TAKEN):
        await desk.register(stranger(), Person("alice"))


BAD_ARGUMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "zero id": ({"user_id": ZERO_ID}, "user_id"),
    "short password": ({"password": "1234567"}, "password"),
    "long password": ({"password": "ä" * 36 + "a"}, "password"),
    "password with NUL": ({"password": "12345678\0"}, "password"),
    "device with NUL": ({"device_name": "lap\0top"}, "device_name"),
    "weak RSA key": ({"public_key": frames.PublicKey(kty="RSA", n="AQAB", e="AQAB")}, "public_key.n"),
    "small-order key": ({"signing_key": b"\1" + bytes(31)}, "signing_key"),
}


@pytest.mark.parametrize("what", BAD_ARGUMENTS)
async def test_what_nobody_can_register_with(desk: Desk, what: str) -> None:
    changes, field = BAD_ARGUMENTS[what]
    with refused(ErrorCode.BAD_ARGUMENT) as error:
        await desk.register(stranger(), Person("alice"), **changes)
    assert error.value.details is not None
    assert error.value.details.field == field


@pytest.mark.produces(ErrorCode.REGISTRATION_CLOSED)
async def test_registration_closed(desk: Desk) -> None:
    desk.registration = Registration("closed")
    with refused(ErrorCode.REGISTRATION_CLOSED):
        await desk.newcomer("alice")


@pytest.mark.parametrize("code", [None, "", "open sesam", "öffne dich"])
async def test_registration_by_code(desk: Desk, code: str | None) -> None:
    desk.registration = Registration("code", "open sesame")
    with refused(ErrorCode.REGISTRATION_CLOSED):
        await desk.newcomer("alice", registration_code=code)
    assert await desk.newcomer("alice", registration_code="open sesame")


async def test_an_address_registers_only_so_many(desk: Desk) -> None:
    seconds = 0.0
    desk.registration = Registration("open", None, KeyedBuckets(2 / 3600, 2, lambda: seconds))
    for name in ("alice", "bob"):
        await desk.newcomer(name)
    with refused(ErrorCode.RATE_LIMITED) as error:
        await desk.newcomer("carol")
    assert error.value.retry_after_ms == 1_800_000
    assert await desk.register(stranger("192.0.2.2"), Person("dave"))
    seconds = 1800.0
    assert await desk.newcomer("carol")


async def test_a_connection_stays_one_users(desk: Desk) -> None:
    alice, bob = await desk.newcomer("alice"), await desk.newcomer("bob")
    for attempt in (
        desk.register(alice.peer, Person("carol")),
        desk.login("bob", peer=alice.peer),
        desk.authenticate(bob.session.access_token, alice.peer),
        desk.refresh(bob.session.refresh_token, alice.peer),
    ):
        with refused(ErrorCode.BAD_ARGUMENT):
            await attempt
    assert alice.peer.caller is not None
    assert alice.peer.caller.user_id == alice.user_id
    assert (await desk.refresh(bob.session.refresh_token)).user_id == bob.user_id  # it was not used up


# ── login ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_login_begins_another_session(desk: Desk) -> None:
    alice = await desk.newcomer("alice")
    peer = stranger()
    session = await desk.ask(peer, frames.Login, username="alice", password=PASSWORD, device_name="laptop")
    assert session.session_id != alice.session.session_id
    assert peer.caller is not None
    assert peer.caller.session_id == session.session_id
    listed = await desk.ask(peer, frames.SessionList)
    assert {(one.device_name, one.current) for one in listed.sessions} == {("laptop", True), ("", False)}


@pytest.mark.produces(ErrorCode.CREDENTIALS_INVALID)
@pytest.mark.parametrize("username", ["nobody", "alice\0", "Alice", "", "a" * 5_000, "ä"])
async def test_an_unknown_name_gets_the_answer_of_a_wrong_password(desk: Desk, username: str) -> None:
    await desk.newcomer("alice")
    with refused(ErrorCode.CREDENTIALS_INVALID) as unknown:
        await desk.login(username)
    with refused(ErrorCode.CREDENTIALS_INVALID) as wrong:
        await desk.login("alice", OTHER)
    assert str(unknown.value) == str(wrong.value)


async def test_an_unknown_name_costs_the_same_work(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    hashes: list[str | None] = []
    verify = Passwords.verify

    async def watched(self: Passwords, password: bytes, password_hash: str | None) -> bool:
        hashes.append(password_hash)
        return await verify(self, password, password_hash)

    await desk.newcomer("alice")
    monkeypatch.setattr(Passwords, "verify", watched)
    for username in ("nobody", "alice"):
        with refused(ErrorCode.CREDENTIALS_INVALID):
            await desk.login(username, OTHER)
    assert [one is None for one in hashes] == [True, False]


async def test_a_password_of_more_than_72_bytes_is_never_cut(desk: Desk) -> None:
    longest = "x" * 72
    await desk.newcomer("alice", password=longest)
    with refused(ErrorCode.BAD_ARGUMENT):
        await desk.login("alice", longest + "y")
    assert await desk.login("alice", longest)


async def test_a_disabled_user_is_not_let_in(desk: Desk) -> None:
    alice = await desk.newcomer("alice")
    await desk.sql.execute("UPDATE users SET disabled_at = clock_timestamp() WHERE id = $1", alice.user_id)
    for attempt in (
        desk.login("alice"),
        desk.authenticate(alice.session.access_token),
        desk.refresh(alice.session.refresh_token),
    ):
        with refused(ErrorCode.CREDENTIALS_INVALID):
            await attempt
    with refused(ErrorCode.ID_CONFLICT):
        await desk.register(stranger(), alice.person)


async def test_the_session_used_least_recently_gives_way(desk: Desk) -> None:
    alice = await desk.newcomer("alice")
    sessions = [alice.session]
    for _ in range(2):
        desk.now += 100 * S
        sessions.append(await desk.login("alice"))
    desk.now += 100 * S
    await desk.authenticate(sessions[0].access_token)
    desk.now += 100 * S
    fourth = await desk.login("alice")
    await desk.revoked(("session", sessions[1].session_id, CloseCode.REVOKED))
    with refused(ErrorCode.CREDENTIALS_INVALID):
        await desk.authenticate(sessions[1].access_token)
    for session in (sessions[0], sessions[2], fourth):
        assert await desk.authenticate(session.access_token)


async def test_too_many_logins_at_once_are_told_so_and_not_held_against_anybody(desk: Desk) -> None:
    await desk.newcomer("alice")
    narrow, gate = Workers(threads=1, queue=0), threading.Event()
    desk.passwords = Passwords(narrow, COST)
    holding = asyncio.create_task(narrow.run(lambda: gate.wait(30)))
    await asyncio.sleep(0)  # lets it in
    try:
        for username in ("alice", "nobody", "alice", "alice", "alice"):
            with refused(ErrorCode.OVERLOADED) as error:
                await desk.login(username)
            assert error.value.retry_after_ms
    finally:
        gate.set()
        await holding
    counts = [row["failures"] for row in await desk.sql.fetch("SELECT failures FROM login_attempts")]
    assert counts == [0, 0]
    assert await desk.login("alice")
    narrow.close()


# ── back-off ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def fail(desk: Desk, username: str, times: int, address: str = "192.0.2.1") -> None:
    for _ in range(times):
        with refused(ErrorCode.CREDENTIALS_INVALID):
            await desk.login(username, OTHER, stranger(address))


async def wait_ms(desk: Desk, username: str, address: str = "192.0.2.1") -> int:
    with refused(ErrorCode.RATE_LIMITED) as error:
        await desk.login(username, PASSWORD, stranger(address))
    assert error.value.retry_after_ms is not None
    return error.value.retry_after_ms


@pytest.mark.parametrize("username", ["alice", "nobody"])
async def test_wrong_passwords_slow_an_account_whether_it_exists_or_not(desk: Desk, username: str) -> None:
    await desk.newcomer("alice")
    await fail(desk, username, ATTEMPTS_FREE)
    for expected_ms in (1_000, 2_000, 4_000, 8_000):
        assert await wait_ms(desk, username) == expected_ms
        desk.now += expected_ms * 1_000 - 1_000
        assert await wait_ms(desk, username) == 1
        desk.now += 1_000
        await fail(desk, username, 1)


@pytest.mark.each_postgres
async def test_the_wait_has_a_bound_and_ends(desk: Desk) -> None:
    await desk.newcomer("alice")
    await fail(desk, "alice", ATTEMPTS_FREE)
    await desk.sql.execute("UPDATE login_attempts SET failures = 1000000 WHERE subject LIKE 'account%'")
    desk.now += 1 * S
    await fail(desk, "alice", 1)
    assert await wait_ms(desk, "alice") == 60_000
    desk.now += 60 * S
    assert await desk.login("alice")


async def test_asking_while_blocked_makes_nothing_worse(desk: Desk) -> None:
    await desk.newcomer("alice")
    await fail(desk, "alice", ATTEMPTS_FREE)
    for _ in range(5):
        assert await wait_ms(desk, "alice") == 1_000


async def test_the_right_password_begins_anew(desk: Desk) -> None:
    await desk.newcomer("alice")
    for _ in range(3):
        await fail(desk, "alice", ATTEMPTS_FREE - 1)
        assert await desk.login("alice")


async def test_guesses_at_once_are_no_more_than_guesses_one_by_one(desk: Desk) -> None:
    await desk.newcomer("alice")
    guesses = [desk.login("alice", f"{OTHER}{number}", stranger(f"192.0.2.{number}")) for number in range(30)]
    answers = await asyncio.gather(*guesses, return_exceptions=True)
    names = [type(answer).__name__ for answer in answers]
    assert names.count("CredentialsInvalid") == ATTEMPTS_FREE
    assert names.count("RateLimited") == 30 - ATTEMPTS_FREE


async def test_an_address_that_guesses_is_slowed_for_every_account(desk: Desk) -> None:
    await desk.newcomer("alice")
    for number in range(10 * ATTEMPTS_FREE):
        await fail(desk, f"nobody{number}", 1)
    assert await wait_ms(desk, "alice") == 1_000
    assert await desk.login("alice", PASSWORD, stranger("192.0.2.2"))
    # Neither somebody's right password nor time spent elsewhere makes the address any better.
    desk.now += 1 * S
    await fail(desk, "somebody", 1)
    assert await wait_ms(desk, "alice") == 2_000


async def test_addresses_of_one_ipv6_site_count_as_one(desk: Desk) -> None:
    await desk.newcomer("alice")
    for number in range(10 * ATTEMPTS_FREE):
        await fail(desk, f"nobody{number}", 1, f"2001:db8:1:2::{number:x}")
    assert await wait_ms(desk, "alice", "2001:db8:1:2:ffff::1") == 1_000
    assert await desk.login("alice", PASSWORD, stranger("2001:db8:1:3::1"))


async def test_names_that_were_tried_are_not_kept(desk: Desk) -> None:
    await fail(desk, "a password in the wrong field", 1)
    subjects = [row["subject"] for row in await desk.sql.fetch("SELECT subject FROM login_attempts")]
    assert len(subjects) == 2
    assert not any("password" in subject for subject in subjects)


async def test_registering_again_is_no_way_to_guess(desk: Desk) -> None:
    alice = await desk.newcomer("alice")
    for _ in range(ATTEMPTS_FREE):
        with refused(ErrorCode.ID_CONFLICT):
            await desk.register(stranger(), alice.person, password=OTHER)
    with refused(ErrorCode.RATE_LIMITED):
        await desk.register(stranger(), alice.person)


# ── password.change ─────────────────────────────────────────────────────────────────────────────────────────────────


async def test_another_password_ends_every_earlier_session(desk: Desk) -> None:
    alice = await desk.newcomer("alice")
    elsewhere = await desk.login("alice")
    changed = await desk.ask(alice.peer, frames.PasswordChange, password=PASSWORD, new_password=OTHER)
    assert alice.peer.caller is not None
    assert alice.peer.caller.session_id == changed.session_id
    assert alice.peer.closed == []
    await desk.revoked(
        ("session", elsewhere.session_id, CloseCode.REVOKED), ("session", alice.session.session_id, CloseCode.REVOKED)
    )
    for token in (alice.session, elsewhere):
        with refused(ErrorCode.CREDENTIALS_INVALID):
            await desk.authenticate(token.access_token)
        with refused(ErrorCode.CREDENTIALS_INVALID):
            await desk.refresh(token.refresh_token)
    assert await desk.authenticate(changed.access_token)
    assert await desk.refresh(changed.refresh_token)
    with refused(ErrorCode.CREDENTIALS_INVALID):
        await desk.login("alice")
    assert await desk.login("alice", OTHER)


async def test_the_connection_has_left_the_old_session_before_its_end_is_told(desk: Desk) -> None:
    alice = await desk.newcomer("alice")
    callers = []
    desk.told.hint = lambda _: callers.append(alice.peer.caller)  # type: ignore[method-assign, assignment]
    changed = await desk.ask(alice.peer, frames.PasswordChange, password=PASSWORD, new_password=OTHER)
    assert [caller and caller.session_id for caller in callers] == [changed.session_id]


async def test_the_new_session_keeps_the_devices_name(desk: Desk) -> None:
    alice = await desk.newcomer("alice", device_name="laptop")
    await desk.ask(alice.peer, frames.PasswordChange, password=PASSWORD, new_password=OTHER)
    listed = await desk.ask(alice.peer, frames.SessionList)
    assert [(one.device_name, one.current) for one in listed.sessions] == [("laptop", True)]


async def test_a_backup_changes_with_the_password_or_neither_does(desk: Desk) -> None:
    alice = await desk.newcomer("alice")
    with refused(ErrorCode.STALE_BASE):
        await desk.ask(
            alice.peer,
            frames.PasswordChange,
            password=PASSWORD,
            new_password=OTHER,
            backup=b"sealed",
            backup_generation=2,
        )
    assert await desk.authenticate(alice.session.access_token)
    assert await desk.login("alice")
    await desk.ask(
        alice.peer, frames.PasswordChange, password=PASSWORD, new_password=OTHER, backup=b"sealed", backup_generation=1
    )
    kept = await desk.ask(alice.peer, frames.BackupGet)
    assert (kept.generation, kept.backup) == (1, b"sealed")


CHANGES: dict[str, tuple[dict[str, Any], ErrorCode, str | None]] = {
    "wrong password": ({"password": OTHER}, ErrorCode.CREDENTIALS_INVALID, None),
    "short": ({"new_password": "short"}, ErrorCode.BAD_ARGUMENT, "new_password"),
    "long": ({"new_password": "x" * 73}, ErrorCode.BAD_ARGUMENT, "new_password"),
    "old one long": ({"password": "x" * 73}, ErrorCode.BAD_ARGUMENT, "password"),
    "backup alone": ({"backup": b"sealed"}, ErrorCode.BAD_ARGUMENT, "backup_generation"),
    "generation alone": ({"backup_generation": 1}, ErrorCode.BAD_ARGUMENT, "backup_generation"),
    "large backup": ({"backup": bytes(4_097), "backup_generation": 1}, ErrorCode.TOO_LARGE, "backup"),
}


@pytest.mark.parametrize("what", CHANGES)
async def test_changes_that_are_refused_change_nothing(desk: Desk, what: str) -> None:
    changes, code, field = CHANGES[what]
    alice = await desk.newcomer("alice")
    with refused(code) as error:
        await desk.ask(alice.peer, frames.PasswordChange, **{"password": PASSWORD, "new_password": OTHER, **changes})
    assert (error.value.details and error.value.details.field) == field
    await desk.revoked()
    assert await desk.login("alice")
    assert await desk.authenticate(alice.session.access_token)


async def test_a_login_that_was_checked_before_the_change_comes_too_late(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice = await desk.newcomer("alice")
    checked, go_on = asyncio.Event(), asyncio.Event()
    verify = Passwords.verify

    async def held(self: Passwords, password: bytes, password_hash: str | None) -> bool:
        matches = await verify(self, password, password_hash)
        checked.set()
        await go_on.wait()
        return matches

    monkeypatch.setattr(Passwords, "verify", held)
    login = asyncio.create_task(desk.login("alice"))
    await asyncio.wait_for(checked.wait(), 5)
    monkeypatch.undo()
    await desk.ask(alice.peer, frames.PasswordChange, password=PASSWORD, new_password=OTHER)
    go_on.set()
    with refused(ErrorCode.CREDENTIALS_INVALID):
        await login


# ── account.delete ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.each_postgres
async def test_deleting_an_account_tells_its_groups_and_closes_its_connections(desk: Desk) -> None:
    alice = await desk.newcomer("alice")
    bob, carol = await enroll(desk.sql, "bob"), await enroll(desk.sql, "carol")
    theirs = await found_group(desk.sql, bob, alice.person, carol)
    await desk.ask(alice.peer, frames.AccountDelete, password=PASSWORD)
    assert alice.peer.closed == [CloseCode.ACCOUNT_DELETED]
    await desk.revoked(("user", alice.user_id, CloseCode.ACCOUNT_DELETED))
    (event,) = desk.published.events
    assert (event.group_id, event.kind, event.object_id) == (theirs, Kind.MEMBER_LEFT, alice.user_id)
    assert (event.actor_id, event.content_hash, event.statement) == (ZERO_ID, RELAY_CONTENT_HASH, None)
    assert (await verified_log(desk.sql, theirs))[-1] == event
    head = await desk.sql.fetchrow("SELECT rekey_required FROM group_heads WHERE group_id = $1", theirs)
    assert head is not None
    assert head["rekey_required"]
    for attempt in (
        desk.login("alice"),
        desk.authenticate(alice.session.access_token),
        desk.refresh(alice.session.refresh_token),
    ):
        with refused(ErrorCode.CREDENTIALS_INVALID):
            await attempt


async def test_posts_lose_their_author_before_any_log_is_locked(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever wrote a hundred thousand of them could not be deleted in time, and held up their groups meanwhile."""
    monkeypatch.setattr(accounts, "_POSTS_AT_ONCE", 2)
    alice, bob = await desk.newcomer("alice"), await enroll(desk.sql, "bob")
    group_id = await found_group(desk.sql, bob, alice.person)
    [thread] = await append(desk.sql, [post_of(alice.person, group_id)])
    for author in (alice.person, alice.person, alice.person, bob):
        await append(desk.sql, [post_of(author, group_id, parent_id=thread.object_id)])
    annotation = post_of(alice.person, group_id, parent_id=thread.object_id, kind=Kind.ANNOTATION_POSTED)
    await append(desk.sql, [annotation])
    written = (
        "SELECT author_id FROM threads UNION ALL SELECT author_id FROM annotations"
        " UNION ALL SELECT author_id FROM replies ORDER BY author_id"
    )
    async with desk.sql.transaction():
        await desk.sql.execute("SELECT FROM group_heads FOR UPDATE")
        deleting = asyncio.create_task(desk.ask(alice.peer, frames.AccountDelete, password=PASSWORD))
        await desk.until_blocked()
        assert [row[0] for row in await desk.sql.fetch(written)] == [bob.user_id, None, None, None, None, None]
    await deleting
    await verified_log(desk.sql, group_id)


@pytest.mark.produces(ErrorCode.OWNS_GROUPS)
async def test_an_owner_says_what_becomes_of_their_groups(desk: Desk) -> None:
    alice = await desk.newcomer("alice")
    bob = await enroll(desk.sql, "bob")
    owned = await found_group(desk.sql, alice.person, bob)
    await append(desk.sql, [post_of(alice.person, owned)])
    with refused(ErrorCode.OWNS_GROUPS):
        await desk.ask(alice.peer, frames.AccountDelete, password=PASSWORD)
    assert await desk.sql.fetchval("SELECT author_id FROM threads") == alice.user_id
    assert alice.peer.closed == []
    assert desk.published.events == []
    assert await desk.authenticate(alice.session.access_token)
    await desk.ask(alice.peer, frames.AccountDelete, password=PASSWORD, delete_groups=True)
    assert [(event.group_id, event.kind) for event in desk.published.events] == [(owned, Kind.GROUP_DELETED)]
    assert await desk.sql.fetchval("SELECT count(*) FROM groups") == 0


async def test_deleting_takes_the_password(desk: Desk) -> None:
    alice = await desk.newcomer("alice")
    for _ in range(ATTEMPTS_FREE):
        with refused(ErrorCode.CREDENTIALS_INVALID):
            await desk.ask(alice.peer, frames.AccountDelete, password=OTHER)
    with refused(ErrorCode.RATE_LIMITED):
        await desk.ask(alice.peer, frames.AccountDelete, password=PASSWORD)
    assert await desk.sql.fetchval("SELECT count(*) FROM users") == 1


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (frames.AccountDelete, {"password": PASSWORD}),
        (frames.PasswordChange, {"password": PASSWORD, "new_password": OTHER}),
    ],
)
async def test_an_account_that_is_gone(desk: Desk, kind: type[frames.Request], fields: dict[str, str]) -> None:
    alice = await desk.newcomer("alice")
    await desk.sql.execute("DELETE FROM users WHERE id = $1", alice.user_id)
    with refused(ErrorCode.UNAUTHENTICATED):
        await desk.ask(alice.peer, kind, **fields)


# ── user.get ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_everyone_sees_themselves(desk: Desk) -> None:
    alice = await desk.newcomer("alice")
    seen = await desk.ask(alice.peer, frames.UserGet, user_id=alice.user_id)
    assert (seen.user_id, seen.username, seen.is_bot) == (alice.user_id, "alice", False)
    (key,) = seen.keys
    assert key.signing_key == alice.person.signing_key
    assert (key.public_key.n, key.public_key.alg) == (alice.person.public_key.n, None)


async def test_strangers_are_not_seen(desk: Desk) -> None:
    alice = await desk.newcomer("alice")
    bob = await enroll(desk.sql, "bob")
    for user_id in (bob.user_id, new_id(), ZERO_ID):
        with refused(ErrorCode.NOT_FOUND):
            await desk.ask(alice.peer, frames.UserGet, user_id=user_id)


async def test_members_of_a_group_see_each_other_and_those_who_were(desk: Desk) -> None:
    alice = await desk.newcomer("alice")
    bob, carol, dave = [await enroll(desk.sql, name, is_bot=name == "bob") for name in ("bob", "carol", "dave")]
    await found_group(desk.sql, carol, alice.person, bob, dave)
    seen = await desk.ask(alice.peer, frames.UserGet, user_id=bob.user_id)
    assert (seen.username, seen.is_bot) == ("bob", True)
    await desk.sql.execute("DELETE FROM members WHERE user_id = $1", bob.user_id)
    assert (await desk.ask(alice.peer, frames.UserGet, user_id=bob.user_id)).username == "bob"
    await desk.sql.execute("DELETE FROM users WHERE id = $1", dave.user_id)
    gone = await desk.ask(alice.peer, frames.UserGet, user_id=dave.user_id)
    assert (gone.username, [key.signing_key for key in gone.keys]) == (None, [dave.signing_key])
    await desk.sql.execute("DELETE FROM members WHERE user_id = $1", alice.user_id)
    for user in (bob, carol, dave):
        with refused(ErrorCode.NOT_FOUND):
            await desk.ask(alice.peer, frames.UserGet, user_id=user.user_id)


async def test_all_keys_are_shown_the_newest_last(desk: Desk) -> None:
    alice = await desk.newcomer("alice")
    newest = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    await desk.sql.execute(
        "INSERT INTO user_keys SELECT user_id, $2, rsa_thumbprint, public_key FROM user_keys WHERE user_id = $1",
        *(alice.user_id, newest),
    )
    seen = await desk.ask(alice.peer, frames.UserGet, user_id=alice.user_id)
    assert [key.signing_key for key in seen.keys] == [alice.person.signing_key, newest]
    assert seen.keys[0].created_at < seen.keys[1].created_at


async def test_who_knocks_is_seen_by_admins(desk: Desk) -> None:
    alice, carol = await desk.newcomer("alice"), await desk.newcomer("carol")
    owner, bob = await enroll(desk.sql, "owner"), await enroll(desk.sql, "bob")
    group_id = await found_group(desk.sql, owner, alice.person, carol.person)
    await desk.sql.execute("UPDATE members SET role = 2 WHERE user_id = $1", alice.user_id)
    await desk.sql.execute(
        "INSERT INTO join_requests (request_id, group_id, user_id) VALUES ($1, $2, $3)",
        *(new_id(), group_id, bob.user_id),
    )
    assert (await desk.ask(alice.peer, frames.UserGet, user_id=bob.user_id)).username == "bob"
    with refused(ErrorCode.NOT_FOUND):
        await desk.ask(carol.peer, frames.UserGet, user_id=bob.user_id)


async def test_a_token_sees_through_its_groups_only(desk: Desk) -> None:
    alice = await desk.newcomer("alice")
    bob, carol = await enroll(desk.sql, "bob"), await enroll(desk.sql, "carol")
    with_bob = await found_group(desk.sql, alice.person, bob)
    await found_group(desk.sql, alice.person, carol)
    peer = stranger()
    peer.authenticate(alice.person.caller(groups=frozenset({with_bob})))
    assert await desk.ask(peer, frames.UserGet, user_id=bob.user_id)
    assert await desk.ask(peer, frames.UserGet, user_id=alice.user_id)
    with refused(ErrorCode.NOT_FOUND):
        await desk.ask(peer, frames.UserGet, user_id=carol.user_id)


async def test_who_comes_back_is_remembered_once(desk: Desk) -> None:
    alice, bob = await enroll(desk.sql, "alice"), await enroll(desk.sql, "bob")
    group_id = await found_group(desk.sql, alice, bob)
    await desk.sql.execute("DELETE FROM members WHERE user_id = $1", bob.user_id)
    await admit(desk.sql, group_id, alice, bob)
    assert await desk.sql.fetchval("SELECT count(*) FROM group_people") == 2


# ── backups ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def put(desk: Desk, peer: Any, generation: int, backup: bytes) -> None:
    await desk.ask(peer, frames.BackupPut, generation=generation, backup=backup)


@pytest.mark.each_postgres
async def test_backups_follow_one_another(desk: Desk) -> None:
    alice, bob = await desk.newcomer("alice"), await desk.newcomer("bob")
    with refused(ErrorCode.NOT_FOUND):
        await desk.ask(alice.peer, frames.BackupGet)
    for generation in (1, 2, 3):
        await put(desk, alice.peer, generation, b"sealed %d" % generation)
        await put(desk, alice.peer, generation, b"sealed %d" % generation)  # a retry
    kept = await desk.ask(alice.peer, frames.BackupGet)
    assert (kept.generation, kept.backup) == (3, b"sealed 3")
    with refused(ErrorCode.NOT_FOUND):
        await desk.ask(bob.peer, frames.BackupGet)


@pytest.mark.parametrize(("stored", "generation"), [(0, 0), (0, 2), (2, 0), (2, 1), (2, 2), (2, 4)])
async def test_a_backup_out_of_turn_is_refused(desk: Desk, stored: int, generation: int) -> None:
    alice = await desk.newcomer("alice")
    for number in range(stored):
        await put(desk, alice.peer, number + 1, b"sealed")
    with refused(ErrorCode.STALE_BASE) as error:
        await put(desk, alice.peer, generation, b"another")
    assert error.value.details is not None
    assert error.value.details.generation == stored


async def test_of_two_backups_at_once_one_is_kept(desk: Desk) -> None:
    alice = await desk.newcomer("alice")
    for generation in (1, 2):
        answers = await asyncio.gather(
            *(put(desk, alice.peer, generation, bytes([number])) for number in range(4)), return_exceptions=True
        )
        assert sorted(type(answer).__name__ for answer in answers) == ["NoneType"] + ["StaleBase"] * 3


async def test_a_backup_has_a_size(desk: Desk) -> None:
    alice = await desk.newcomer("alice")
    await put(desk, alice.peer, 1, bytes(4_096))
    with refused(ErrorCode.TOO_LARGE) as error:
        await put(desk, alice.peer, 2, bytes(4_097))
    assert error.value.details is not None
    assert (error.value.details.field, error.value.details.limit) == ("backup", 4_096)


# ── the database away ───────────────────────────────────────────────────────────────────────────────────────────────


async def test_without_a_database_everything_is_unavailable(desk: Desk) -> None:
    alice = await desk.newcomer("alice")
    await desk.database.close()
    for attempt in (
        desk.login("alice"),
        desk.register(stranger(), Person("bob")),
        desk.authenticate(alice.session.access_token),
        desk.refresh(alice.session.refresh_token),
        desk.ask(alice.peer, frames.Logout),
        desk.ask(alice.peer, frames.UserGet, user_id=alice.user_id),
    ):
        with refused(ErrorCode.UNAVAILABLE):
            await attempt
    assert alice.peer.closed == []
    assert desk.now == NOW

"""The operators' commands, as processes of their own, on a real database."""

import asyncio
import base64
import json
import os
import pty
import re
import socket
import sys
import termios
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import bcrypt
import pytest

from orbital_protocol import frames
from orbital_protocol.codes import CloseCode, Kind, Role
from orbital_relay import hints, token_keys
from orbital_relay.commands import check, probe
from orbital_relay.config import TokenKey
from orbital_relay.media.base import StoreError
from orbital_relay.media.local import LocalStore
from orbital_relay.store import facts, migrate, posts
from orbital_relay.store.pool import Connection, PoolSettings, connect
from orbital_relay.store.posts import Appended
from tests.commands import LIMIT_S, given_settings, orbital, orbital_process
from tests.files import File, upload
from tests.forks import Ran
from tests.people import Person, connected, enroll, found_group, new_id, post_of
from tests.postgres import TestPostgres
from tests.relays import TOKEN_KEY, RunningRelay, media_dir_of, running_relay
from tests.swift import Swift
from tests.talk import Refused, talking, token_of

PASSWORD = "correct horse battery"


def text_of(raw: bytes) -> str:
    return str(UUID(bytes=raw))


async def post_thread(connection: Connection, author: Person, group_id: bytes, body: bytes = b"ciphertext") -> bytes:
    """Append a thread as the relay does; its id."""
    post = post_of(author, group_id, body=body)
    [outcome] = await posts.append_posts(connection, "ab" * 16, [post])
    assert isinstance(outcome, Appended)
    return post.object_id


@asynccontextmanager
async def hinted(dsn: str) -> AsyncIterator[list[hints.Hint | None]]:
    """What relays hear meanwhile."""
    heard: list[hints.Hint | None] = []
    connection = await asyncpg.connect(dsn)
    try:
        await connection.add_listener(hints.CHANNEL, lambda *said: heard.append(hints.parse(str(said[-1]))))
        yield heard
        await connection.execute("SELECT 1")  # what was sent before this has come by now
    finally:
        await connection.close()


def closings(heard: list[hints.Hint | None]) -> list[tuple[str, bytes, int]]:
    return [(h.subject, h.subject_id, h.close_code) for h in heard if isinstance(h, hints.Revoke)]


# ── users ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def keys_of(person: Person, directory: Path) -> list[str]:
    """What a client hands to the operator."""
    file = directory / "key.jwk"
    jwk = person.public_key
    file.write_text(json.dumps({"kty": jwk.kty, "n": jwk.n, "e": jwk.e}))
    signing_key = base64.urlsafe_b64encode(person.signing_key).rstrip(b"=").decode()
    return ["--user-id", text_of(person.user_id), "--public-key", str(file), f"--signing-key={signing_key}"]


async def add(person: Person, dsn: str, directory: Path, *more: str, password: str = PASSWORD) -> Ran:
    arguments = keys_of(person, directory)
    return await orbital("user", "add", person.username, *arguments, *more, dsn=dsn, stdin=password + "\n")


async def test_an_added_user_has_the_keys_and_the_password_and_can_be_seen(
    migrated_database: str, tmp_path: Path
) -> None:
    ann = Person("ann")
    ran = await add(ann, migrated_database, tmp_path, "--bot")
    assert (ran.status, ran.out, ran.err) == (0, f"added ann, id {text_of(ann.user_id)}\n", "")
    async with connected(migrated_database) as connection:
        row = await connection.fetchrow("SELECT * FROM users")
        assert row is not None
        assert (row["id"], row["username"], row["is_bot"]) == (ann.user_id, "ann", True)
        assert (row["signing_key"], row["rsa_thumbprint"]) == (ann.signing_key, ann.rsa_thumbprint)
        assert bcrypt.checkpw(PASSWORD.encode(), row["password_hash"].encode())
        assert row["password_hash"].startswith("$2b$12$")
        assert await connection.fetchval("SELECT count(*) FROM user_keys") == 1
    [listed] = (await orbital("user", "list", "--json", dsn=migrated_database)).json()
    assert (listed["username"], listed["user_id"], listed["is_bot"]) == ("ann", text_of(ann.user_id), True)
    assert (listed["groups"], listed["sessions"], listed["disabled_at"]) == (0, 0, None)


async def test_what_cannot_be_a_user_is_refused_in_one_line(migrated_database: str, tmp_path: Path) -> None:
    ann = Person("ann")
    assert (await add(ann, migrated_database, tmp_path)).status == 0
    small = base64.urlsafe_b64encode(bytes([1]) + bytes(31)).decode()
    password_file = tmp_path / "absent"
    for person, more, password, said in (
        (Person("ann"), (), PASSWORD, "the name or the id is in use"),
        (Person("ann2", user_id=ann.user_id), (), PASSWORD, "the name or the id is in use"),
        (Person("Ann"), (), PASSWORD, "a username has 3 to 50 of a-z, 0-9 and _"),
        (Person("bob"), (), "short", "The password has fewer than 8 characters."),
        (Person("bob"), (), "", "The password has fewer than 8 characters."),
        (Person("bob"), (), "x" * 73, "The password has more than 72 bytes."),
        (Person("bob"), ("--signing-key", small), PASSWORD, "signing_key is of small order."),
        (Person("bob"), ("--signing-key", "AAAA"), PASSWORD, "--signing-key must be base64url of 32 bytes"),
        (Person("bob"), ("--public-key", "/dev/null"), PASSWORD, "/dev/null can't be read as a JWK"),
        (Person("bob"), ("--password-file", str(password_file)), "", f"{password_file} can't be read as a password"),
    ):
        ran = await add(person, migrated_database, tmp_path, *more, password=password)
        assert ran.status == 1
        assert ran.out == ""
        assert ran.err.startswith(f"orbital-relay: {said}")
        assert ran.err.count("\n") == 1
    async with connected(migrated_database) as connection:
        assert await connection.fetchval("SELECT count(*) FROM users") == 1


async def test_passwd_ends_sessions_but_no_bot_token_and_reads_files(migrated_database: str, tmp_path: Path) -> None:
    async with connected(migrated_database) as connection:
        ann = await enroll(connection, "ann")
        await token_of(connection, ann)
        session_id = await connection.fetchval("SELECT session_id FROM sessions")
        token_id = new_id()
        await connection.execute(
            "INSERT INTO bot_tokens (token_id, user_id, name, secret_hash, scopes, group_ids)"
            " VALUES ($1, $2, 'bot', $3, '{}', '{}')",
            *(token_id, ann.user_id, bytes(32)),
        )
        secret = tmp_path / "password"
        secret.write_text(PASSWORD + "\n")
        async with hinted(migrated_database) as heard:
            ran = await orbital("user", "passwd", "ann", "--password-file", str(secret), dsn=migrated_database)
        assert (ran.status, ran.err) == (0, "")
        assert closings(heard) == [("session", session_id, CloseCode.REVOKED)]
        password_hash = await connection.fetchval("SELECT password_hash FROM users")
        assert bcrypt.checkpw(PASSWORD.encode(), password_hash.encode())
        [left] = (await orbital("session", "list", "ann", "--json", dsn=migrated_database)).json()
        assert (left["kind"], left["session_id"]) == ("token", text_of(token_id))
    ran = await orbital("user", "passwd", "nobody", dsn=migrated_database, stdin=PASSWORD)
    assert (ran.status, ran.err) == (1, "orbital-relay: there is no user nobody\n")


async def test_a_disabled_user_is_cut_off_and_kept_out_until_enabled(migrated_database: str) -> None:
    async with connected(migrated_database) as connection, running_relay(migrated_database) as relay:
        ann, bob = await enroll(connection, "ann"), await enroll(connection, "bob")
        token = await token_of(connection, ann)
        async with talking(relay.url, token) as anns, talking(relay.url, await token_of(connection, bob)) as bobs:
            ran = await orbital("user", "disable", "ann", dsn=migrated_database)
            assert (ran.status, ran.out) == (0, "disabled ann\n")
            assert await anns.closed() == CloseCode.REVOKED
            assert not await gets_in(relay, await token_of(connection, ann))
            await bobs.ask(frames.GroupList)
        assert (await orbital("user", "disable", "ann", dsn=migrated_database)).out == "ann was disabled before\n"
        assert (await orbital("user", "enable", "ann", dsn=migrated_database)).out == "enabled ann\n"
        assert (await orbital("user", "enable", "ann", dsn=migrated_database)).out == "ann was not disabled\n"
        assert not await gets_in(relay, token)  # of before: void for good
        assert await gets_in(relay, await token_of(connection, ann))


async def gets_in(relay: RunningRelay, token: str) -> bool:
    """Whether the token authenticates a new connection."""
    try:
        async with talking(relay.url, token):
            return True
    except Refused:
        return False


@pytest.mark.produces(CloseCode.ACCOUNT_DELETED)
async def test_a_deleted_user_leaves_their_groups_and_is_told(migrated_database: str) -> None:
    async with connected(migrated_database) as connection, running_relay(migrated_database) as relay:
        ann, bob = await enroll(connection, "ann"), await enroll(connection, "bob")
        theirs, own = await found_group(connection, ann, bob), await found_group(connection, bob, ann)
        thread = await post_thread(connection, bob, theirs)
        async with (
            talking(relay.url, await token_of(connection, ann)) as anns,
            talking(relay.url, await token_of(connection, bob)) as bobs,
        ):
            await anns.ask(
                frames.Subscribe, groups=[frames.SubscribeGroup(group_id=theirs), frames.SubscribeGroup(group_id=own)]
            )
            await anns.hear(frames.Live)
            await anns.hear(frames.Live)

            ran = await orbital("user", "delete", "bob", "--yes", dsn=migrated_database)
            assert ran.status == 1
            assert "bob owns groups" in ran.err
            ran = await orbital("user", "delete", "bob", "--with-groups", dsn=migrated_database, stdin="n\n")
            assert ran.status == 1
            assert await connection.fetchval("SELECT count(*) FROM users") == 2

            ran = await orbital("user", "delete", "bob", "--with-groups", dsn=migrated_database, stdin="y\n")
            assert ran.status == 0
            assert ran.out.endswith("deleted bob, who was in 2 groups\n")
            assert await bobs.closed() == CloseCode.ACCOUNT_DELETED
            left = await anns.hear(frames.Event)
            gone = await anns.hear(frames.GroupGone)
            assert (gone.group_id, gone.reason) == (own, "deleted")
            assert (left.kind, left.object_id) in {(Kind.MEMBER_LEFT, bob.user_id), (Kind.GROUP_DELETED, bob.user_id)}
        assert await connection.fetchval("SELECT author_id FROM threads WHERE id = $1", thread) is None
    assert (await orbital("log", "verify", dsn=migrated_database)).status == 0


# ── groups and sessions ─────────────────────────────────────────────────────────────────────────────────────────────


async def test_groups_are_listed_and_shown_without_a_name(migrated_database: str) -> None:
    async with connected(migrated_database) as connection:
        ann, bob = await enroll(connection, "ann"), await enroll(connection, "bob")
        group = await found_group(connection, ann, bob)
        await post_thread(connection, bob, group, body=b"b" * 300)
        name = await connection.fetchval("SELECT encrypted_name FROM groups")
        head = await connection.fetchrow("SELECT last_seq, head_hash FROM group_heads")
        assert head is not None
    [listed] = (await orbital("group", "list", "--json", dsn=migrated_database)).json()
    assert (listed["group_id"], listed["owner"], listed["members"]) == (text_of(group), "ann", 2)
    assert (listed["seq"], listed["key_epoch"], listed["rekey_required"]) == (head["last_seq"], 1, False)

    ran = await orbital("group", "show", text_of(group), "--json", dsn=migrated_database)
    shown = ran.json()
    assert shown["group"]["head_hash"] == head["head_hash"].hex()
    assert {amount["of"]: amount["count"] for amount in shown["holds"]} == {
        "threads": 1,
        "replies": 0,
        "annotations": 0,
        "media": 0,
    }
    assert [(m["username"], m["role"]) for m in shown["members"]] == [("ann", Role.OWNER), ("bob", Role.MEMBER)]

    for command in (("group", "list"), ("group", "show", text_of(group))):
        plain = await orbital(*command, dsn=migrated_database)
        assert (plain.status, plain.err) == (0, "")
        assert text_of(group) in plain.out
        assert "ann" in plain.out
        assert name not in plain.out + ran.out

    ran = await orbital("group", "show", text_of(new_id()), dsn=migrated_database)
    assert (ran.status, ran.out) == (1, "")
    assert "there is no group" in ran.err
    assert (await orbital("group", "show", "x", dsn=migrated_database)).status == 2


async def test_a_revoked_session_is_closed_on_every_relay_and_a_token_too(migrated_database: str) -> None:
    async with (
        connected(migrated_database) as connection,
        running_relay(migrated_database) as one,
        running_relay(migrated_database) as other,
    ):
        ann = await enroll(connection, "ann")
        token = await token_of(connection, ann)
        async with (
            talking(one.url, token) as here,
            talking(other.url, token) as there,
            talking(one.url, await token_of(connection, ann)) as second,
        ):
            listed = (await orbital("session", "list", "--json", dsn=migrated_database)).json()
            assert [(s["kind"], s["username"], s["name"]) for s in listed] == [("session", "ann", "test")] * 2
            first = listed[-1]["session_id"]  # the newest comes first
            ran = await orbital("session", "revoke", first, dsn=migrated_database)
            assert (ran.status, ran.out) == (0, f"revoked {first}\n")
            assert await here.closed() == CloseCode.REVOKED
            assert await there.closed() == CloseCode.REVOKED
            await second.ask(frames.GroupList)
        bot = await second_token(connection, ann)
        async with hinted(migrated_database) as heard:
            assert (await orbital("session", "revoke", text_of(bot), dsn=migrated_database)).status == 0
        assert closings(heard) == [("token", bot, CloseCode.REVOKED)]
        assert await connection.fetchval("SELECT count(*) FROM bot_tokens") == 0
    ran = await orbital("session", "revoke", text_of(bot), dsn=migrated_database)
    assert (ran.status, ran.err) == (1, f"orbital-relay: there is no session or bot token {text_of(bot)}\n")
    assert (await orbital("session", "list", dsn=migrated_database)).out.count("\n") == 2


async def second_token(connection: Connection, owner: Person) -> bytes:
    """A bot's token."""
    token_id = new_id()
    await connection.execute(
        "INSERT INTO bot_tokens (token_id, user_id, name, secret_hash, scopes, group_ids)"
        " VALUES ($1, $2, 'bot', $3, '{read}', '{}')",
        *(token_id, owner.user_id, bytes(32)),
    )
    return token_id


# ── log verify ──────────────────────────────────────────────────────────────────────────────────────────────────────

TAMPER = {
    "a body": (2, "UPDATE threads SET encrypted_body = 'AAAA' WHERE group_id = $1"),
    "an erasure that nobody asked for": (2, "UPDATE threads SET erased_at = now() WHERE group_id = $1"),
    "a thread": (2, "DELETE FROM threads WHERE group_id = $1"),
    "an author": (2, "UPDATE events SET actor_id = gen_random_uuid() WHERE group_id = $1 AND seq = 2"),
    "a time": (1, "UPDATE events SET created_at = created_at - interval '1 us' WHERE group_id = $1 AND seq = 1"),
    "an event": (2, "DELETE FROM events WHERE group_id = $1 AND seq = 2"),
    "the last event": (3, "DELETE FROM events WHERE group_id = $1 AND seq = 3"),
    "the head's hash": (3, "UPDATE group_heads SET head_hash = decode(repeat('00', 32), 'hex') WHERE group_id = $1"),
    "the head's seq": (2, "UPDATE group_heads SET last_seq = 2 WHERE group_id = $1"),
    "a head put back": (
        3,
        "UPDATE group_heads h SET last_seq = 2, head_hash = e.hash"
        " FROM events e WHERE h.group_id = $1 AND e.group_id = $1 AND e.seq = 2",
    ),
    "the head": (1, "DELETE FROM group_heads WHERE group_id = $1"),
}


async def two_logs(connection: Connection) -> tuple[bytes, bytes]:
    """Two groups with a thread each, of three events."""
    ann, bob = await enroll(connection, "ann"), await enroll(connection, "bob")
    groups = []
    for _ in range(2):
        group = await found_group(connection, ann)
        await post_thread(connection, ann, group)
        await post_thread(connection, ann, group)
        groups.append(group)
    assert bob
    return groups[0], groups[1]


@pytest.mark.each_postgres
async def test_logs_as_relays_write_them_are_whole(migrated_database: str) -> None:
    async with connected(migrated_database) as connection:
        ann, bob = await enroll(connection, "ann"), await enroll(connection, "bob")
        group, doomed = await found_group(connection, ann, bob), await found_group(connection, bob, ann)
        thread = await post_thread(connection, bob, group)
        await connection.execute("UPDATE objects SET erased = TRUE WHERE object_id = $1", thread)
        await connection.execute(
            "UPDATE threads SET encrypted_title = '', encrypted_body = '', erased_at = now() WHERE id = $1", thread
        )
    ran = await orbital("user", "delete", "bob", "--yes", "--with-groups", dsn=migrated_database)
    assert ran.status == 0
    ran = await orbital("log", "verify", dsn=migrated_database)
    assert (ran.status, ran.out, ran.err) == (0, "verified 5 events of 2 groups, all whole\n", "")
    ran = await orbital("log", "verify", "--group", text_of(doomed), "--json", dsn=migrated_database)
    assert ran.json() == {"ok": True, "groups": 1, "events": 1, "findings": []}


@pytest.mark.parametrize("what", TAMPER)
async def test_tampering_with_one_log_is_named_and_the_other_is_whole(migrated_database: str, what: str) -> None:
    seq, statement = TAMPER[what]
    async with connected(migrated_database) as connection:
        good, bad = await two_logs(connection)
        await connection.execute(statement, bad)
    ran = await orbital("log", "verify", "--json", dsn=migrated_database)
    assert ran.status == 1
    report = ran.json()
    assert [(f["group_id"], f["seq"]) for f in report["findings"]] == [(text_of(bad), seq)]
    assert (report["ok"], report["groups"]) == (False, 1 if what == "the head" else 2)
    assert (await orbital("log", "verify", "--group", text_of(good), dsn=migrated_database)).status == 0


async def test_a_finding_is_one_line(migrated_database: str) -> None:
    async with connected(migrated_database) as connection:
        _, bad = await two_logs(connection)
        await connection.execute(TAMPER["a body"][1], bad)
    ran = await orbital("log", "verify", dsn=migrated_database)
    assert ran.status == 1
    assert ran.out.splitlines() == [
        f"group {text_of(bad)} seq 2: the content is not what its hashes say",
        "verified 4 events of 2 groups, 1 not whole",
    ]
    ran = await orbital("log", "verify", "--group", text_of(new_id()), dsn=migrated_database)
    assert (ran.status, ran.err) == (1, "orbital-relay: there is no such group, and never was\n")


# ── check ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def statuses(ran: Ran) -> dict[str, str]:
    return {line["name"]: line["status"] for line in ran.json()["checks"]}


async def checked(dsn: str, **settings: Any) -> Ran:
    """Check, with a folder for files that only relays on this database have."""
    return await orbital("check", "--json", dsn=dsn, **{"media_dir": media_dir_of(dsn), **settings})


@pytest.mark.each_postgres
async def test_check_is_content_with_a_database_that_a_relay_could_run_on(
    migrated_database: str, tmp_path: Path
) -> None:
    ran = await checked(migrated_database, media_dir=tmp_path)
    assert statuses(ran) == dict.fromkeys(
        ("configuration", "database", "clock", "notifications", "schema", "permissions", "token keys", "media"), "ok"
    )
    assert (ran.status, ran.json()["ok"]) == (0, True)
    plain = await orbital("check", dsn=migrated_database, media_dir=tmp_path)
    assert (plain.status, plain.err) == (0, "")
    assert len(plain.out.splitlines()) == len(ran.json()["checks"])


async def test_check_names_a_schema_that_is_not_there(database: str) -> None:
    ran = await orbital("check", "--json", dsn=database)
    assert ran.status == 1
    assert statuses(ran)["schema"] == "problem"
    assert "migrate up" in ran.out


async def test_check_names_keys_that_differ(migrated_database: str) -> None:
    other = TokenKey("other", bytes(32))
    async with connected(migrated_database) as connection:
        await facts.agree_on(connection, token_keys.FACT, token_keys.fingerprint(other))
    ran = await checked(migrated_database)
    assert (ran.status, statuses(ran)["token keys"]) == (1, "problem")
    secret = base64.urlsafe_b64encode(bytes(32)).decode()
    ran = await checked(migrated_database, token_keys=f"{TOKEN_KEY},other:{secret}")
    assert (ran.status, statuses(ran)["token keys"]) == (0, "ok")  # rotating


async def test_check_names_a_listener_on_another_database(
    migrated_database: str, postgres: TestPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "_NOTIFICATION_LIMIT_S", 0.3)
    async with postgres.database() as elsewhere:
        ran = await checked(migrated_database, listener_database_url=elsewhere)
    assert (ran.status, statuses(ran)["notifications"]) == (1, "problem")


async def test_check_names_a_database_that_is_away() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    ran = await orbital("check", "--json", dsn=f"postgresql://orbital:hunter2@127.0.0.1:{port}/orbital")
    assert (ran.status, statuses(ran)["database"]) == (1, "problem")
    assert "hunter2" not in ran.out + ran.err


async def test_check_says_so_when_no_answer_comes() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        url = f"postgresql://orbital@127.0.0.1:{port}/orbital"
        ran = await orbital("check", dsn=url, pool_connect_timeout_s=0.2)
    assert ran.status == 1
    assert ran.out.splitlines()[-1].endswith("does not answer: no answer in time")


async def test_check_names_what_is_wrong_with_the_configuration() -> None:
    ran = await orbital("check", "--json", listen_port="many")
    assert ran.status == 1
    [line] = ran.json()["checks"]
    assert (line["name"], line["status"]) == ("configuration", "problem")
    assert "listen_port" in line["message"]


# ── check: the store of files ───────────────────────────────────────────────────────────────────────────────────────


def said_of_media(ran: Ran) -> tuple[str, str]:
    """Status and message of the line about it; nothing else is a problem."""
    lines = {line["name"]: line for line in ran.json()["checks"]}
    media = lines.pop("media")
    assert {line["status"] for line in lines.values()} == {"ok"}
    assert ran.status == (1 if media["status"] == "problem" else 0)
    assert "\n" not in media["message"]
    return media["status"], media["message"]


async def test_check_proves_a_folder_and_leaves_nothing_there(migrated_database: str, tmp_path: Path) -> None:
    status, message = said_of_media(await checked(migrated_database, media_dir=tmp_path))
    assert status == "ok"
    assert re.fullmatch(rf"folder {tmp_path}, [0-9.]+ [GT]iB free: written, read and deleted in [0-9]+ ms", message), (
        message
    )
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [".orbital-media"]
    absent = tmp_path / "absent" / "media"
    assert said_of_media(await checked(migrated_database, media_dir=absent)) == (
        "ok",
        f"the first start makes {absent}",
    )
    assert not absent.parent.exists()


async def test_check_names_a_folder_that_will_not_do(
    migrated_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.touch()

    async def problem(folder: Path) -> str:
        status, message = said_of_media(await checked(migrated_database, media_dir=folder))
        assert status == "problem"
        return message

    under = file / "media"
    assert await problem(under) == f"media_dir = {under} is not there, and can't be made in {file}"
    assert (await problem(file)).startswith(f"media_dir = {file}: ")
    with monkeypatch.context() as patched:
        patched.setattr(probe, "_FREE_BYTES_MIN", 2**60)
        assert (await problem(tmp_path)).startswith(f"media_dir = {tmp_path} has only ")
    with monkeypatch.context() as patched:
        patched.setattr(LocalStore, "append", answering(StoreError(f"{tmp_path}: No space left on device")))
        assert await problem(tmp_path) == f"media_dir = {tmp_path}: writing: No space left on device"
    with monkeypatch.context() as patched:
        patched.setattr(LocalStore, "read", answering(b"other bytes"))
        assert await problem(tmp_path) == f"media_dir = {tmp_path}: reading: other bytes than were written"
        assert [*tmp_path.glob("??/*")] == []  # whatever went wrong
    with monkeypatch.context() as patched:
        patched.setattr(LocalStore, "append", answering("", after_s=LIMIT_S))
        ran = await checked(migrated_database, media_dir=tmp_path, media_timeout_s=0.2)
        assert said_of_media(ran) == ("problem", f"media_dir = {tmp_path}: no answer in 0.2 s")
    with monkeypatch.context() as patched:
        patched.setattr(LocalStore, "delete", answering(None))
        assert await problem(tmp_path) == f"media_dir = {tmp_path}: deleting: what was deleted is still there"


def answering(answer: object, *, after_s: float = 0) -> Callable[..., Awaitable[object]]:
    """A store's method that returns this, or raises it."""

    async def method(*_: object) -> object:
        await asyncio.sleep(after_s)
        if isinstance(answer, StoreError):
            raise answer
        return answer

    return method


async def test_check_notices_a_folder_that_is_not_the_relays(migrated_database: str, tmp_path: Path) -> None:
    shared, other, absent = tmp_path / "shared", tmp_path / "other", tmp_path / "absent"
    other.mkdir()
    wrong = (
        "problem",
        f"media_dir = {other} is not the folder that the relays of this database share (docs/media.md says how to"
        " move it)",
    )
    async with connected(migrated_database) as sql, running_relay(migrated_database, media_dir=shared) as relay:
        assert said_of_media(await checked(migrated_database, media_dir=other)) == wrong
        assert said_of_media(await checked(migrated_database, media_dir=shared))[0] == "ok"
        link = tmp_path / "mount"
        link.symlink_to(shared)
        assert said_of_media(await checked(migrated_database, media_dir=link))[0] == "ok"
        status, message = said_of_media(await checked(migrated_database, media_dir=absent))
        assert (status, message.partition(", and")[0]) == ("problem", f"media_dir = {absent} is not there")
        assert not absent.exists()

        ann = await enroll(sql, "ann")
        group_id = await found_group(sql, ann)
        async with talking(relay.url, await token_of(sql, ann)) as talk:
            thread_id = await post_thread(sql, ann, group_id)
            await upload(talk, File(group_id, thread_id, b"ciphertext"))
    # No relay runs, and a file is in the shared folder.
    assert said_of_media(await checked(migrated_database, media_dir=other)) == wrong
    ran = await checked(migrated_database, media_store="s3", s3_endpoint="http://127.0.0.1:1", s3_bucket="some-bucket")
    assert said_of_media(ran)[0] == "problem"
    async with connected(migrated_database) as sql:
        await sql.execute("DELETE FROM media")
        await sql.execute("DELETE FROM blob_deletions")
    assert said_of_media(await checked(migrated_database, media_dir=other))[0] == "ok"  # nobody misses the old one


async def test_check_proves_a_bucket_and_names_the_setting_that_is_wrong(
    migrated_database: str, swift: Swift, tmp_path: Path
) -> None:
    bucket = await swift.make_bucket()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        nobody = f"http://127.0.0.1:{taken.getsockname()[1]}"

    async def said(**changes: Any) -> tuple[str, str]:
        given = {"s3_prefix": "files/", **swift.settings, "s3_bucket": bucket, **changes}
        ran = await checked(migrated_database, **given)
        assert swift.secret not in ran.out + ran.err
        return said_of_media(ran)

    status, message = await said()
    assert status == "ok"
    assert re.fullmatch(rf"bucket {bucket} at {swift.endpoint}: written, read and deleted in [0-9]+ ms", message)
    assert (await swift.objects(bucket), await swift.uploads(bucket)) == ({}, [])

    assert await said(s3_bucket="no-such-bucket") == (
        "problem",
        "s3_bucket = no-such-bucket: there is no such bucket (writing: S3 refuses: NoSuchBucket)",
    )
    assert await said(s3_secret_key="wrong") == (
        "problem",
        "s3_secret_key: it does not belong to s3_access_key (writing: S3 refuses: SignatureDoesNotMatch)",
    )
    status, message = await said(s3_access_key="test:nobody")  # an unknown key's signature matches nothing
    assert (status, message.partition(": ")[0]) == ("problem", "s3_secret_key"), message
    assert await said(s3_endpoint=nobody) == (
        "problem",
        f"s3_endpoint = {nobody}: nobody answers there (writing: S3 does not answer: EndpointConnectionError)",
    )
    swift.freeze()
    try:
        assert await said(media_timeout_s=0.3) == (
            "problem",
            f"s3_endpoint = {swift.endpoint}: nobody answers there (no answer in 0.3 s)",
        )
    finally:
        swift.thaw()
    async with running_relay(migrated_database, **swift.settings, s3_bucket=bucket):
        status, message = said_of_media(await checked(migrated_database, media_dir=tmp_path))
        assert status == "problem"
        assert message.startswith(
            f"media_store: the relays of this database keep files in s3:{swift.endpoint}/{bucket}/"
        )


# ── config, migrate, errors ─────────────────────────────────────────────────────────────────────────────────────────


async def test_config_shows_what_is_in_force_on_one_line_each_without_secrets() -> None:
    url = "postgresql://orbital:hunter2@db/orbital"
    ran = await orbital("config", dsn=url, data_dir=Path("/a" * 100))
    assert (ran.status, ran.err) == (0, "")
    assert "hunter2" not in ran.out
    [line] = [line for line in ran.out.splitlines() if line.startswith("data_dir")]
    assert line.split() == ["data_dir", "/a" * 100, "environment", "ORBITAL_DATA_DIR"]
    given = (await orbital("config", "--json", dsn=url)).json()
    assert given["database_url"]["from"] == "environment ORBITAL_DATABASE_URL"
    assert given["listen_port"] == {"value": "8765", "from": "default"}


async def test_a_wrong_setting_is_one_line_and_exit_2() -> None:
    for given, complaint in (
        ("listen_prot=1", "listen_prot is not a setting; did you mean listen_port?"),
        ("listen_port", "--set listen_port: must be KEY=VALUE"),
        ("=1", "--set =1: must be KEY=VALUE"),
    ):
        ran = await orbital("user", "list", "--set", given)
        assert (ran.status, ran.out, len(ran.err.splitlines())) == (2, "", 1)
        assert ran.err.startswith(f"orbital-relay: {complaint}")


async def test_migrate_goes_up_down_and_says_where_it_stands(database: str) -> None:
    ran = await orbital("migrate", "status", "--json", dsn=database)
    files = [migration.migration_id for migration in migrate.read_files()]
    assert (ran.status, ran.json()["pending"]) == (1, files)
    ran = await orbital("user", "list", dsn=database)
    assert (ran.status, ran.out) == (1, "")
    assert "migrate up" in ran.err
    assert (await orbital("migrate", "up", dsn=database)).out.splitlines() == [f"applied {name}" for name in files]
    assert (await orbital("migrate", "up", dsn=database)).out == "nothing to do\n"
    assert (await orbital("migrate", "status", dsn=database)).status == 0
    assert (await orbital("migrate", "down", dsn=database, stdin="n\n")).status == 1
    relay = await connect(database, application_name="orbital-relay lane ab", settings=PoolSettings(database))
    try:
        ran = await orbital("migrate", "down", "--yes", dsn=database)
        assert (ran.status, ran.out) == (1, "")
        assert "relays have 1 connections" in ran.err
    finally:
        await relay.close()
    assert (await orbital("migrate", "status", dsn=database)).status == 0
    assert (await orbital("migrate", "down", "--yes", dsn=database)).out == f"took back {files[-1]}\n"


async def test_a_database_that_is_away_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    for command in (("user", "list"), ("migrate", "up"), ("log", "verify"), ("serve",)):
        run = orbital_process if command == ("serve",) else orbital
        ran = await run(*command, dsn=f"postgresql://orbital@127.0.0.1:{port}/orbital", operators_port=0)
        assert (ran.status, ran.out) == (1, "")
        assert "the database does not answer" in ran.err.splitlines()[-1]


async def test_a_user_that_the_database_refuses_is_one_line(migrated_database: str) -> None:
    async with connected(migrated_database) as connection:
        await connection.execute("DROP ROLE IF EXISTS powerless")
        await connection.execute("CREATE ROLE powerless LOGIN")
    powerless = migrated_database.replace("//orbital@", "//powerless@")
    assert powerless != migrated_database
    for command in (("user", "list"), ("migrate", "status")):
        ran = await orbital(*command, dsn=powerless)
        assert (ran.status, ran.out) == (1, "")
        assert ran.err.count("\n") == 1
        assert "permission denied" in ran.err
    ran = await orbital("check", "--json", dsn=powerless)
    assert (ran.status, statuses(ran)["schema"]) == (1, "problem")


# ── at a terminal, and in a pipe ────────────────────────────────────────────────────────────────────────────────────


async def test_a_password_is_asked_for_twice_and_never_shown(migrated_database: str) -> None:
    async with connected(migrated_database) as connection:
        await enroll(connection, "ann")
        terminal, theirs = pty.openpty()
        os.set_blocking(terminal, False)
        process = await asyncio.create_subprocess_exec(
            *("setsid", "--ctty", "--wait", sys.executable, "-m", "orbital_relay", "user", "passwd", "ann"),
            env={**os.environ, **given_settings(migrated_database)},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        try:
            shown = ""
            for prompt, answer in (
                ("Password", "first"),
                ("Repeat", "typo"),
                ("Password", PASSWORD),
                ("Repeat", PASSWORD),
            ):
                shown += await answer_to(terminal, prompt, answer)
            async with asyncio.timeout(LIMIT_S):
                assert await process.wait() == 0
            shown += read_from(terminal)
        finally:
            os.close(terminal)
        assert "changed the password of ann" in shown
        assert PASSWORD not in shown
        assert "typo" not in shown
        password_hash = await connection.fetchval("SELECT password_hash FROM users")
        assert bcrypt.checkpw(PASSWORD.encode(), password_hash.encode())


async def answer_to(terminal: int, prompt: str, answer: str) -> str:
    """Wait for the prompt, and until what is typed is not shown; type the answer, and return what was shown."""
    shown = ""
    async with asyncio.timeout(LIMIT_S):
        while prompt not in shown or termios.tcgetattr(terminal)[3] & termios.ECHO:
            shown += read_from(terminal)
            await asyncio.sleep(0.01)
    os.write(terminal, f"{answer}\n".encode())
    return shown


def read_from(terminal: int) -> str:
    """What is there to be read."""
    try:
        return os.read(terminal, 4096).decode()
    except OSError:  # nothing, or nobody is left at the other end
        return ""


LINES = (
    '{"time":"2026-02-03T04:05:06.789012Z","level":"info","event":"connection.opened","address":"192.0.2.7"}',
    "Traceback (most recent call last):",
    '{"time":"2026-02-03T04:05:07.789012Z","level":"warning","event":"listener.lost"}',
)


async def test_tail_reads_a_file_and_filters(tmp_path: Path) -> None:
    log = tmp_path / "relay.log"
    log.write_text("\n".join(LINES) + "\n")
    ran = await orbital("tail", str(log))
    assert ran.out.splitlines() == [
        "2026-02-03 04:05:06.789 info     connection.opened  address=192.0.2.7",
        LINES[1],
        "2026-02-03 04:05:07.789 warning  listener.lost",
    ]
    ran = await orbital("tail", str(log), "--event", "listener.", "--level", "info")
    assert ran.out.splitlines() == ["2026-02-03 04:05:07.789 warning  listener.lost"]
    assert (await orbital("tail", str(log), "--level", "loud")).status == 2
    assert (await orbital("tail", str(tmp_path / "absent"))).status == 2
    assert (await orbital("tail", str(tmp_path))).status == 2


async def test_tail_shows_lines_as_they_come() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "orbital_relay", "tail"), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    async with asyncio.timeout(LIMIT_S):
        process.stdin.write((LINES[0] + "\n" + LINES[2][:20]).encode())
        assert b"connection.opened" in await process.stdout.readline()
        process.stdin.write((LINES[2][20:] + "\n").encode())
        assert b"listener.lost" in await process.stdout.readline()
        process.stdin.close()
        assert await process.wait() == 0


# ── the embedded database ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.timeout(180)
async def test_commands_work_on_the_embedded_database_whether_a_relay_runs_or_not(
    data_dir: Path, tmp_path: Path
) -> None:
    ran = await orbital_process("user", "list", data_dir=data_dir)
    assert (ran.status, ran.out) == (1, "")
    assert "orbital-relay serve" in ran.err
    ran = await orbital_process("check", "--json", data_dir=data_dir)
    assert (ran.status, statuses(ran)) == (0, dict.fromkeys(("configuration", "disk", "database", "media"), "ok"))
    assert list(data_dir.iterdir()) == []  # check makes nothing

    ann = Person("ann")
    async with running_relay(None, data_dir=data_dir):
        ran = await orbital_process(
            *("user", "add", "ann", *keys_of(ann, tmp_path)), data_dir=data_dir, stdin=PASSWORD + "\n"
        )
        assert (ran.status, ran.err) == (0, "")
        ran = await orbital_process("check", "--json", data_dir=data_dir)
        assert (ran.status, set(statuses(ran).values())) == (0, {"ok"})

    listed = await orbital_process(
        "user", "list", "--json", data_dir=data_dir
    )  # no relay runs: the server is started for it
    assert [user["username"] for user in listed.json()] == ["ann"]
    assert (await orbital_process("migrate", "status", data_dir=data_dir)).status == 0
    assert (await orbital_process("log", "verify", data_dir=data_dir)).status == 0
    assert not (data_dir / "postgres" / "cluster" / "postmaster.pid").exists()  # and stopped after it

    (data_dir / token_keys.FILE).chmod(0o644)
    ran = await orbital_process("check", "--json", data_dir=data_dir)
    assert (ran.status, statuses(ran)["token keys"]) == (1, "problem")
    (data_dir / token_keys.FILE).unlink()
    ran = await orbital_process("check", "--json", data_dir=data_dir)
    assert (ran.status, statuses(ran)["token keys"]) == (1, "problem")
    assert not (data_dir / token_keys.FILE).exists()

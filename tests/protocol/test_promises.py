"""What SPEC.md says beside the ordinary course of things, tried on a real relay by the client written from it."""

import asyncio
import os
from collections.abc import Awaitable
from dataclasses import replace
from hashlib import sha256
from typing import Any

import asyncpg
import msgpack  # type: ignore[import-untyped]
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from websockets.asyncio.client import connect

from tests.protocol import raw_client
from tests.protocol.raw_client import OWNER, ZEROS, Connection, File, Frame, Log, RelayError, User, root_of, uuid7
from tests.protocol.visitors import on_relay, registered
from tests.relays import RunningRelay, running_relay

pytestmark = on_relay


async def refused(answer: Awaitable[object]) -> tuple[str, Frame]:
    """The code and details of the error that a request gets."""
    with pytest.raises(RelayError) as caught:
        await answer
    return caught.value.code, caught.value.details


async def group_of(founder: User, *others: User) -> bytes:
    """A group, with everybody subscribed and up to date."""
    group_id = await founder.found(b"the name")
    await founder.subscribe(group_id)
    await founder.follow_to(group_id, 1)
    if others:
        code, secret = await founder.invite(group_id)
        for other in others:
            await other.join(code, secret)
            await other.subscribe(group_id)
    for member in (founder, *others):
        await member.follow_to(group_id, 2 + len(others) if others else 1)
    return group_id


# ── sections 2 to 5 ─────────────────────────────────────────────────────────────────────────────────────────────────


async def test_another_subprotocol_is_told_so(relay: RunningRelay) -> None:
    async with connect(relay.url, compression=None) as socket:
        error = msgpack.unpackb(await socket.recv())
        assert (error["type"], error["code"], "id" in error) == ("error", "unsupported_protocol", False)
        await socket.wait_closed()
        assert socket.close_code == 4503


@pytest.mark.parametrize(
    ("message", "code"),
    [("text", 4502), (b"\xc1", 4502), (b"\x82\xa4type", 4502), (bytes(16_385), 1009)],
    ids=["text", "0xc1", "cut short", "too long"],
)
async def test_what_can_not_be_read_closes(relay: RunningRelay, message: str | bytes, code: int) -> None:
    connection, _ = await Connection.open(relay.url)
    await connection.socket.send(message)
    assert await connection.closed_with() == code


async def test_messages_grow_with_authentication(relay: RunningRelay) -> None:
    async with registered(relay, "alice") as [alice]:
        padding = bytes(16_385)
        assert (await alice.connection.request("ping", padding=padding))["type"] == "ok"
        await alice.connection.socket.send(bytes(1_048_577))
        assert await alice.connection.closed_with() == 1009


async def test_wrong_frames_cost_an_error_each(relay: RunningRelay) -> None:
    connection, hello = await Connection.open(relay.url)
    assert hello["limits"]["max_depth"] == 8
    assert await refused(connection.request("teleport")) == ("unknown_type", {"field": "type"})
    assert await refused(connection.request("login", username=5, password="x")) == ("bad_frame", {"field": "username"})
    assert await refused(connection.request("group.list")) == ("unauthenticated", {})
    await connection.socket.send(msgpack.packb({"type": "ping"}) + b"\xc0")
    for field in ({"field": "id"}, {}):
        push = await connection.next_push()
        assert (push["type"], push["code"], push.get("details", {})) == ("error", "bad_frame", field)
        assert "id" not in push
    await connection.socket.send(b"")
    assert (await connection.request("ping"))["heads"] == []
    await connection.close()


async def test_an_id_in_flight_is_not_taken_again(relay: RunningRelay) -> None:
    async with registered(relay, "alice") as [alice]:
        same = {"id": 5, "group_id": await group_of(alice)}
        sent = [
            {"type": "authenticate", "id": 5, "access_token": alice.session["access_token"]},
            {"type": "group.get", **same},
            {"type": "group.keys", **same},
        ]
        async with connect(relay.url, subprotocols=["orbital.v1"], compression=None) as socket:  # type: ignore[list-item]
            await socket.send(b"".join(msgpack.packb(frame) for frame in sent))
            unpacker = msgpack.Unpacker()
            found: list[Frame] = []
            while len(found) < 1 + len(sent):
                unpacker.feed(await asyncio.wait_for(socket.recv(), 10))
                found.extend(unpacker)
        hello, authenticated, *answers = found
        assert (hello["type"], authenticated["type"]) == ("hello", "ok")
        [error] = [answer for answer in answers if answer["type"] == "error"]
        assert (error["id"], error["code"], error["details"]) == (5, "bad_frame", {"field": "id"})
        assert [answer["id"] for answer in answers if answer["type"] == "ok"] == [5]


async def test_silence_before_authentication_closes(migrated_database: str) -> None:
    async with running_relay(migrated_database, auth_timeout_ms=100) as relay:
        connection, hello = await Connection.open(relay.url)
        assert hello["auth_timeout_ms"] == 100
        assert await connection.closed_with() == 4505


async def test_a_relay_that_stops_says_so(migrated_database: str) -> None:
    async with running_relay(migrated_database) as relay:
        connection, _ = await Connection.open(relay.url)
        relay.process.terminate()
        push = await connection.next_push()
        assert push["type"] == "goaway" and push["retry_after_ms"] >= 0
        assert await connection.closed_with() == 4000


# ── section 6 ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_refresh_rotates_and_notices_theft(relay: RunningRelay) -> None:
    async with registered(relay, "alice") as [alice]:
        first = alice.session["refresh_token"]
        second = (await alice.connection.request("refresh", refresh_token=first))["refresh_token"]
        # The answer got lost: the one before makes another successor, and the lost one is void.
        third = (await alice.connection.request("refresh", refresh_token=first))["refresh_token"]
        assert len({first, second, third}) == 3
        fourth = (await alice.connection.request("refresh", refresh_token=third))["refresh_token"]
        thief, _ = await Connection.open(relay.url)
        assert await refused(thief.request("refresh", refresh_token=first)) == ("credentials_invalid", {})
        assert await thief.closed_with() == 4500
        assert await alice.connection.closed_with() == 4501
        await alice.connect(relay.url)
        assert await refused(alice.connection.request("refresh", refresh_token=fourth)) == ("credentials_invalid", {})


async def test_tokens_that_are_no_good(relay: RunningRelay) -> None:
    async with registered(relay, "alice") as [alice]:
        connection, _ = await Connection.open(relay.url)
        assert await refused(connection.request("authenticate", access_token="nonsense")) == ("unauthenticated", {})
        await alice.connection.request("logout")
        assert await alice.connection.closed_with() == 4501
        token = alice.session["access_token"]
        assert await refused(connection.request("authenticate", access_token=token)) == ("credentials_invalid", {})
        assert await connection.closed_with() == 4500


async def test_an_access_token_runs_out(migrated_database: str) -> None:
    async with running_relay(migrated_database, access_token_ttl_s=1) as relay, registered(relay, "alice") as [alice]:
        assert await alice.connection.closed_with() == 4003
        assert await refused(alice.return_to(relay.url)) == ("token_expired", {})
        session = await alice.connection.request("refresh", refresh_token=alice.session["refresh_token"])
        assert session["session_id"] == alice.session["session_id"]


async def test_a_new_password_ends_the_other_sessions(relay: RunningRelay) -> None:
    async with registered(relay, "alice") as [alice]:
        other, _ = await Connection.open(relay.url)
        await other.request("login", username=alice.username, password=alice.password)
        wrong = alice.connection.request("password.change", password="not this one", new_password="something new")
        assert (await refused(wrong))[0] == "credentials_invalid"
        new = await alice.connection.request("password.change", password=alice.password, new_password="something new")
        assert new["session_id"] != alice.session["session_id"]
        assert await other.closed_with() == 4501
        assert (await alice.connection.request("group.list"))["groups"] == []
        assert (await refused(alice.return_to(relay.url)))[0] == "credentials_invalid"


async def test_registering_again(relay: RunningRelay) -> None:
    async with registered(relay, "alice") as [alice]:
        await alice.register(relay.url)
        namesake = User(alice.username)
        await namesake.connect(relay.url)
        assert await refused(namesake.register(relay.url)) == ("username_taken", {})
        namesake.user_id, namesake.username = alice.user_id, f"another_{uuid7().hex()}"
        assert await refused(namesake.register(relay.url)) == ("id_conflict", {})
        weak = User(f"weak_{uuid7().hex()}")
        weak.password = "short"
        code, details = await refused(weak.register(relay.url))
        assert (code, details["field"]) == ("bad_argument", "password")
        weak.password = "long enough"
        weak.public_key = {**weak.public_key, "e": "Aw"}
        code, details = await refused(weak.register(relay.url))
        assert (code, details["field"]) == ("bad_argument", "public_key.e")


async def test_backups_follow_one_another(relay: RunningRelay) -> None:
    async with registered(relay, "alice") as [alice]:
        assert await refused(alice.connection.request("backup.get")) == ("not_found", {})
        skipped = alice.connection.request("backup.put", generation=2, backup=b"two")
        assert await refused(skipped) == ("stale_base", {"generation": 0})
        for _ in range(2):
            await alice.connection.request("backup.put", generation=1, backup=b"one")
        other = alice.connection.request("backup.put", generation=1, backup=b"other")
        assert await refused(other) == ("stale_base", {"generation": 1})
        kept = await alice.connection.request("backup.get")
        assert (kept["generation"], kept["backup"]) == (1, b"one")


async def test_a_bots_token(relay: RunningRelay) -> None:
    async with registered(relay, "alice") as [alice]:
        group_id, hidden = await group_of(alice), await group_of(alice)
        wanted = {"token_id": uuid7(), "name": "greeter", "scopes": ["read", "signal"], "groups": [group_id]}
        void = (await alice.connection.request("token.create", **wanted))["token"]
        secret = (await alice.connection.request("token.create", **wanted))["token"]
        bot, _ = await Connection.open(relay.url)
        assert await refused(bot.request("authenticate", access_token=void)) == ("credentials_invalid", {})
        bot, _ = await Connection.open(relay.url)
        session = await bot.request("authenticate", access_token=secret)
        assert (session["session_id"], session["access_expires_at"]) == (wanted["token_id"], 2**53 - 1)
        assert [group["group_id"] for group in session["groups"]] == [group_id]
        assert await refused(alice.connection.request("token.create", **wanted)) == ("id_conflict", {})
        assert await refused(bot.request("group.get", group_id=hidden)) == ("not_found", {})
        assert await refused(bot.request("logout")) == ("forbidden", {})
        post = {"group_id": group_id, "key_epoch": 1, "thread_id": uuid7()}
        assert (await refused(bot.request("thread.post", **post, encrypted_title=b"x", encrypted_body=b"x")))[
            0
        ] == "forbidden"
        verdicts = (await bot.request("subscribe", groups=[{"group_id": group_id}, {"group_id": hidden}]))["groups"]
        assert [verdict["status"] for verdict in verdicts] == ["resumed", "denied"]
        await alice.connection.request("token.revoke", token_id=wanted["token_id"])
        assert await bot.closed_with() == 4501
        assert await refused(alice.connection.request("token.revoke", token_id=wanted["token_id"])) == ("not_found", {})


async def test_a_password_change_leaves_tokens_alone(relay: RunningRelay) -> None:
    async with registered(relay, "alice") as [alice]:
        wanted = {"token_id": uuid7(), "name": "greeter", "scopes": ["read"]}
        secret = (await alice.connection.request("token.create", **wanted))["token"]
        bot, _ = await Connection.open(relay.url)
        await bot.request("authenticate", access_token=secret)
        await alice.connection.request("password.change", password=alice.password, new_password="something new")
        with pytest.raises(TimeoutError):  # a few sweeps, which would close it
            await asyncio.wait_for(bot.socket.wait_closed(), 0.5)
        assert (await bot.request("group.list"))["groups"] == []
        await bot.close()


async def test_a_deleted_account_leaves_its_groups(relay: RunningRelay) -> None:
    async with registered(relay, "alice", "bob") as (alice, bob):
        group_id = await group_of(alice, bob)
        own = await group_of(bob)
        assert await refused(bob.connection.request("account.delete", password=bob.password)) == ("owns_groups", {})
        await bob.connection.request("account.delete", password=bob.password, delete_groups=True)
        assert await bob.connection.closed_with() == 4504
        left = await alice.follow(lambda push: push["type"] == "event")
        assert left["group_id"] == group_id
        assert (left["kind"], left["actor_id"], left["object_id"]) == (7, raw_client.ZERO_ID, bob.user_id)
        assert alice.logs[group_id].rekey_due and list(alice.logs[group_id].roster) == [alice.user_id]
        known = await alice.connection.request("user.get", user_id=bob.user_id)
        assert "username" not in known and known["keys"][0]["signing_key"] == bob.signing_key
        verdicts = (await alice.connection.request("subscribe", groups=[{"group_id": own}]))["groups"]
        assert verdicts[0]["status"] == "gone"
        thread = {"group_id": group_id, "key_epoch": 1, "thread_id": uuid7()}
        posted = alice.connection.request("thread.post", **thread, encrypted_title=b"x", encrypted_body=b"x")
        assert (await refused(posted))[0] == "rekey_required"
        rekeyed = await alice.rekey(group_id, b"again")
        await alice.follow_to(group_id, rekeyed["seq"])


async def test_keys_are_replaced_everywhere_at_once(relay: RunningRelay) -> None:
    async with registered(relay, "alice", "bob") as (alice, bob):
        group_id, other = await group_of(alice, bob), await group_of(bob)
        new = User("not registered")
        new.user_id = bob.user_id
        preimage = raw_client.key_preimage(bob.user_id, new.signing_key, new.thumbprint)
        elements = {
            "signing_key": new.signing_key,
            "rsa_thumbprint": new.thumbprint,
            "key_signature": new.signing.sign(preimage),
        }
        statements = []
        for each in (group_id, other):
            role = bob.logs[each].roster[bob.user_id].role
            roster = {**bob.logs[each].roster, bob.user_id: replace(new.entry, role=role)}
            statements.append(bob.state(13, each, roster, **elements))
        keys = {"public_key": new.public_key, "signing_key": new.signing_key}
        fewer = bob.connection.request("key.replace", **keys, statements=statements[:1])
        assert await refused(fewer) == ("member_set_mismatch", {"missing": [other], "unexpected": []})
        done = await bob.connection.request("key.replace", **keys, statements=statements)
        again = await bob.connection.request("key.replace", **keys, statements=statements)
        assert again["heads"] == done["heads"]
        assert {head["group_id"] for head in done["heads"]} == {group_id, other}
        await alice.follow_to(group_id, 4)
        assert alice.logs[group_id].roster[bob.user_id].signing_key == new.signing_key
        shown = await alice.connection.request("user.get", user_id=bob.user_id)
        assert [key["signing_key"] for key in shown["keys"]] == [bob.signing_key, new.signing_key]


# ── sections 7 to 10 ────────────────────────────────────────────────────────────────────────────────────────────────


async def test_statements_are_checked_in_order(relay: RunningRelay) -> None:
    async with registered(relay, "alice", "bob", "eve") as (alice, bob, eve):
        group_id = await group_of(alice, bob)
        roster = alice.logs[group_id].roster

        async def tried(user: User, fields: Frame, kind: str = "group.leave") -> str:
            return (await refused(user.connection.request(kind, **fields)))[0]

        bob_leaves = bob.state(7, group_id, alice.without(group_id, bob.user_id))
        assert await tried(alice, bob_leaves) == "forbidden"
        assert await tried(bob, bob_leaves, "group.delete") == "bad_argument"
        assert await tried(bob, {**bob_leaves, "statement": bob_leaves["statement"] + b"\xc0"}) == "bad_argument"
        assert await tried(bob, {**bob_leaves, "statement": bytes(2049)}) == "too_large"
        assert await tried(bob, {**bob_leaves, "signature": bytes(64)}) == "bad_signature"
        assert await tried(bob, bob.state(7, group_id, roster, key_epoch=2)) == "stale_key_epoch"
        assert await tried(bob, bob.state(7, group_id, roster, base_hash=ZEROS)) == "stale_base"
        assert await tried(bob, bob.state(7, group_id, roster, base_seq=0, base_hash=ZEROS)) == "stale_base"
        eve.logs[group_id] = bob.logs[group_id]
        assert await tried(eve, eve.state(7, group_id, roster)) == "not_found"
        used = bob.logs[group_id].events[0]["object_id"]
        assert await tried(bob, bob.state(7, group_id, roster, statement_id=used)) == "id_conflict"
        assert await tried(alice, alice.state(7, group_id, roster)) == "forbidden"  # the owner can't leave
        left = await bob.connection.request("group.leave", **bob_leaves)
        again = await bob.connection.request("group.leave", **bob_leaves)
        assert again | {"id": 0} == left | {"id": 0, "duplicate": True}
        gone = await bob.follow(lambda push: push["type"] == "group.gone")
        assert gone["reason"] == "left"
        assert bob.logs[group_id].seq == left["seq"]


async def test_a_transfer_and_a_deletion(relay: RunningRelay) -> None:
    async with registered(relay, "alice", "bob") as (alice, bob):
        group_id = await group_of(alice, bob)
        after = {
            alice.user_id: replace(alice.entry, role=raw_client.ADMIN),
            bob.user_id: replace(bob.entry, role=OWNER),
        }
        moved = await alice.connection.request("group.transfer", **alice.state(3, group_id, after, user_id=bob.user_id))
        for user in (alice, bob):
            await user.follow_to(group_id, moved["seq"])
            assert user.logs[group_id].roster == after
        deletion = bob.state(5, group_id, after)
        deleted = await bob.connection.request("group.delete", **deletion)
        assert (await bob.connection.request("group.delete", **deletion))["seq"] == deleted["seq"]
        for user in (alice, bob):
            gone = await user.follow(lambda push: push["type"] == "group.gone")
            assert gone == {"type": "group.gone", "group_id": group_id, "reason": "deleted"}
        verdict = (await alice.connection.request("subscribe", groups=[{"group_id": group_id}]))["groups"][0]
        assert verdict == {"group_id": group_id, "status": "gone"}
        assert await refused(alice.connection.request("group.get", group_id=group_id)) == ("not_found", {})


async def test_a_rekey_is_for_exactly_the_members(relay: RunningRelay) -> None:
    async with registered(relay, "alice", "bob") as (alice, bob):
        group_id = await group_of(alice, bob)
        whole = dict(alice.logs[group_id].roster)
        del alice.logs[group_id].roster[bob.user_id]
        code, details = await refused(alice.rekey(group_id, b"name"))
        assert (code, details) == ("member_set_mismatch", {"missing": [bob.user_id], "unexpected": []})
        alice.logs[group_id].roster = whole
        assert await refused(bob.rekey(group_id, b"name")) == ("forbidden", {})
        rekeyed = await alice.rekey(group_id, b"name")
        await bob.follow_to(group_id, rekeyed["seq"])
        await alice.follow_to(group_id, rekeyed["seq"])
        stale = {"group_id": group_id, "key_epoch": 1, "thread_id": uuid7()}
        posted = bob.connection.request("thread.post", **stale, encrypted_title=b"x", encrypted_body=b"x")
        assert (await refused(posted))[0] == "stale_key_epoch"
        wraps = (await bob.connection.request("group.keys", group_id=group_id))["keys"]
        assert [wrap["key_epoch"] for wrap in wraps] == [1, 2]
        wrap = {"group_id": group_id, "user_id": bob.user_id, "key_epoch": 2, "encrypted_group_key": b"another wrap"}
        await alice.connection.request("group.wrap", **wrap, rsa_thumbprint=bob.thumbprint)
        wrong = alice.connection.request("group.wrap", **wrap, rsa_thumbprint=alice.thumbprint)
        assert (await refused(wrong))[0] == "member_set_mismatch"
        assert len((await bob.connection.request("group.keys", group_id=group_id))["keys"]) == 3


async def test_posts_are_checked(relay: RunningRelay) -> None:
    async with registered(relay, "alice", "bob", "eve") as (alice, bob, eve):
        group_id = await group_of(alice, bob)
        thread = await alice.post_thread(group_id, b"title", b"body")
        eve.logs[group_id] = Log(group_id)
        assert (await refused(eve.post_thread(group_id, b"title", b"body")))[0] == "not_found"
        assert (await refused(alice.post_reply(group_id, uuid7(), b"to nothing")))[0] == "not_found"
        taken = bob.post_reply(group_id, thread["thread_id"], b"x", reply_id=thread["thread_id"])
        assert (await refused(taken))[0] == "id_conflict"
        assert (await refused(alice.post_thread(group_id, b"", b"body")))[0] == "bad_argument"
        code, details = await refused(alice.post_thread(group_id, b"title", bytes(65_566)))
        assert (code, details) == ("too_large", {"field": "encrypted_body", "limit": 65_565})
        gone = alice.state(17, group_id, alice.logs[group_id].roster, target_id=thread["thread_id"])
        await alice.connection.request("post.delete", **gone)
        assert (await refused(alice.post_reply(group_id, thread["thread_id"], b"late")))[0] == "not_found"
        duplicate = await alice.connection.request(
            "thread.post",
            group_id=group_id,
            key_epoch=1,
            thread_id=thread["thread_id"],
            encrypted_title=b"something else",
            encrypted_body=b"body",
        )
        assert (duplicate["seq"], duplicate["duplicate"]) == (thread["seq"], True)
        assert duplicate["content_hash"] == thread["content_hash"]


async def test_pages_of_the_log(relay: RunningRelay) -> None:
    async with registered(relay, "alice") as [alice]:
        group_id = await group_of(alice)
        thread = await alice.post_thread(group_id, b"title", b"body")
        replies = [await alice.post_reply(group_id, thread["thread_id"], b"%d" % n) for n in range(4)]

        async def page(kind: str = "event.list", **more: Any) -> Frame:
            return await alice.connection.request(kind, group_id=group_id, **more)

        def seqs(found: Frame) -> list[int]:
            return [event["seq"] for event in found["events"]]

        first = await page(after_seq=0, limit=2)
        assert (seqs(first), first["more"], first["previous_hash"]) == ([1, 2], True, ZEROS)
        last = await page(limit=2)
        assert (seqs(last), last["more"], last["previous_hash"]) == ([5, 6], True, replies[1]["hash"])
        assert seqs(await page(before_seq=5, limit=2)) == [3, 4]
        some = await page(kinds=[1, 14])
        assert seqs(some) == [1, 2] and "previous_hash" not in some
        assert seqs(await page("thread.list")) == [2]
        assert seqs(await page("reply.list", thread_id=thread["thread_id"], after_seq=4)) == [5, 6]
        assert (await refused(page(after_seq=1, before_seq=3)))[0] == "bad_argument"
        assert (await refused(page("reply.list", thread_id=uuid7())))[0] == "not_found"


async def test_verdicts_on_cursors(relay: RunningRelay) -> None:
    async with registered(relay, "alice") as [alice]:
        group_id = await group_of(alice)
        head = (await alice.connection.request("group.get", group_id=group_id))["hash"]

        async def verdict(group: bytes = group_id, **cursor: Any) -> tuple[str, int, bytes]:
            answer = await alice.connection.request("subscribe", groups=[{"group_id": group, **cursor}])
            [found] = answer["groups"]
            return found["status"], found.get("seq", 0), found.get("hash", ZEROS)

        assert await verdict() == ("resumed", 1, head)
        assert await verdict(after_seq=0, after_hash=ZEROS) == ("resumed", 0, ZEROS)
        assert await verdict(after_seq=2, after_hash=head) == ("future_cursor", 1, head)
        assert await verdict(after_seq=1, after_hash=ZEROS) == ("chain_fork", 1, head)
        assert await verdict(uuid7()) == ("denied", 0, ZEROS)
        assert (await refused(alice.connection.request("subscribe", groups=[{"group_id": group_id, "after_seq": 1}])))[
            0
        ] == "bad_argument"


async def test_cursors_move_forward(relay: RunningRelay) -> None:
    async with registered(relay, "alice") as [alice]:
        group_id = await group_of(alice)
        at = {"group_id": group_id, "name": "read"}
        head = alice.logs[group_id].hash
        await alice.connection.request("cursor.put", **at, seq=1, hash=head)
        back = await alice.connection.request("cursor.put", **at, seq=0, hash=ZEROS)
        assert (back["seq"], back["hash"]) == (1, head)
        rewound = await alice.connection.request("cursor.put", **at, seq=0, hash=ZEROS, rewind=True)
        assert (rewound["seq"], rewound["hash"]) == (0, ZEROS)
        assert (await refused(alice.connection.request("cursor.put", **at, seq=1, hash=ZEROS)))[0] == "bad_argument"
        assert (await refused(alice.connection.request("cursor.get", group_id=uuid7(), name="read")))[0] == "not_found"


async def test_invites(relay: RunningRelay) -> None:
    async with registered(relay, "alice", "bob", "carol") as (alice, bob, carol):
        group_id = await group_of(alice)
        code, secret = await alice.invite(group_id)
        standing = (await alice.connection.request("group.get", group_id=group_id))["invite_code"]
        for wrong in ("", "????????", "AAAAAAAA", standing):
            assert await refused(bob.connection.request("invite.open", invite_code=wrong)) == ("invite_invalid", {})
        forged = bob.join(code, Ed25519PrivateKey.generate())
        assert await refused(forged) == ("invite_invalid", {})
        await bob.join(code, secret)
        assert await refused(bob.join(code, secret)) == ("already_member", {})
        await alice.follow_to(group_id, 3)
        fields = alice.state(8, group_id, alice.without(group_id, bob.user_id), user_id=bob.user_id, ban=True)
        removed = await alice.connection.request("member.remove", **fields)
        assert await refused(carol.join(code, secret)) == ("invite_invalid", {})  # a removal ends every link
        knock = {"request_id": uuid7(), "invite_code": standing}
        assert await refused(bob.connection.request("group.knock", **knock)) == ("banned", {})
        await alice.follow_to(group_id, removed["seq"])
        await alice.follow_to(group_id, (await alice.rekey(group_id, b"name"))["seq"])
        first = await carol.connection.request("group.knock", **knock)
        again = await carol.connection.request("group.knock", request_id=uuid7(), invite_code=standing)
        assert again["request_id"] == first["request_id"] == knock["request_id"]
        await alice.connection.request("group.deny", group_id=group_id, user_id=carol.user_id)
        off = await alice.connection.request("invite.rotate", group_id=group_id, knocking=False)
        for closed in (standing, off["invite_code"]):
            knocked = carol.connection.request("group.knock", request_id=uuid7(), invite_code=closed)
            assert await refused(knocked) == ("invite_invalid", {})


async def test_a_link_after_a_rekey_knocks(relay: RunningRelay) -> None:
    async with registered(relay, "alice", "carol") as (alice, carol):
        group_id = await group_of(alice)
        code, secret = await alice.invite(group_id)
        await alice.follow_to(group_id, 2)
        await alice.follow_to(group_id, (await alice.rekey(group_id, b"name"))["seq"])
        door = await carol.connection.request("invite.open", invite_code=code)
        assert "sealed_group_key" not in door and door["key_epoch"] == 2
        assert (await refused(carol.join(code, secret)))[0] == "stale_key_epoch"
        preimage = raw_client.join_preimage(
            group_id, door["invite_id"], carol.user_id, carol.signing_key, carol.thumbprint
        )
        knock = {"request_id": uuid7(), "invite_code": code}
        assert (await refused(carol.connection.request("group.knock", **knock)))[0] == "invite_invalid"
        await carol.connection.request("group.knock", **knock, invite_signature=secret.sign(preimage))
        shown = (await alice.follow(lambda push: push["type"] == "join.requested"))["request"]
        assert shown["invite_id"] == door["invite_id"]
        said = {"user_id": carol.user_id, "signing_key": carol.signing_key, "rsa_thumbprint": carol.thumbprint}
        fields = alice.state(
            6,
            group_id,
            {**alice.logs[group_id].roster, carol.user_id: carol.entry},
            **said,
            is_bot=False,
            invite_id=shown["invite_id"],
            invite_signature=shown["invite_signature"],
        )
        admitted = await alice.connection.request("group.admit", **fields, encrypted_group_key=b"a wrap")
        await alice.follow_to(group_id, admitted["seq"])
        assert alice.logs[group_id].links[door["invite_id"]].uses == 1


async def test_a_group_id_is_used_once(relay: RunningRelay) -> None:
    async with registered(relay, "alice", "bob") as (alice, bob):
        group_id = await group_of(alice)
        name = sha256(b"name").digest()
        own = {"history": 1, "key_commitment": ZEROS, "name_hash": name, "is_bot": False}
        keys = {"signing_key": bob.signing_key, "rsa_thumbprint": bob.thumbprint}
        roster = {bob.user_id: replace(bob.entry, role=OWNER)}
        again = bob.state(1, group_id, roster, **own, **keys)
        asked = bob.connection.request("group.create", **again, encrypted_name=b"name", encrypted_group_key=b"a wrap")
        assert (await refused(asked))[0] == "id_conflict"
        other = bob.state(1, uuid7(), roster, **own, **keys)
        asked = bob.connection.request("group.create", **other, encrypted_name=b"else", encrypted_group_key=b"a wrap")
        assert await refused(asked) == ("bad_argument", {"field": "encrypted_name"})


# ── section 17 ──────────────────────────────────────────────────────────────────────────────────────────────────────

SEGMENT = 65_536


async def thread_of(author: User, group_id: bytes) -> bytes:
    thread_id: bytes = (await author.post_thread(group_id, b"title", b"body"))["thread_id"]
    return thread_id


async def used(user: User, group_id: bytes) -> tuple[int, int]:
    quota = await user.connection.request("quota.get", group_id=group_id)
    return quota["total_bytes"], quota["media_count"]


async def test_an_upload_is_begun_again_as_it_was(relay: RunningRelay) -> None:
    async with registered(relay, "alice", "bob") as (alice, bob):
        group_id = await group_of(alice, bob)
        thread_id = await thread_of(alice, group_id)
        file = File(group_id, thread_id, bytes(SEGMENT))
        first = await alice.begin(file)
        assert (first["offset"], first["generation"]) == (0, 1)
        assert (first["chunk_bytes"], first["window"]) == (
            alice.limits["media_chunk_bytes"],
            alice.limits["media_window"],
        )
        assert (await alice.begin(file))["generation"] == 2
        assert await used(bob, group_id) == (SEGMENT, 1)
        for other in (
            replace(file, data=bytes(SEGMENT + 1)),
            replace(file, encryption_iv=bytes(12)),
            replace(file, thread_id=await thread_of(alice, group_id)),
            replace(file, media_id=thread_id),
        ):
            assert await refused(alice.begin(other)) == ("id_conflict", {})
        assert await refused(bob.begin(file)) == ("id_conflict", {})
        assert await refused(alice.begin(replace(file, media_id=uuid7(), thread_id=uuid7()))) == ("not_found", {})
        zero = alice.begin(replace(file, media_id=raw_client.ZERO_ID))
        assert (await refused(zero))[0] == "bad_argument"
        limit = alice.limits["max_media_bytes"]
        large = alice.connection.request("media.begin", **{**file.named, "media_id": uuid7()}, size_bytes=limit + 1)
        assert await refused(large) == ("too_large", {"field": "size_bytes", "limit": limit})
        stranger = bob.connection.request("media.begin", **{**file.named, "group_id": uuid7()}, size_bytes=SEGMENT)
        assert await refused(stranger) == ("not_found", {})


async def test_chunks_are_whole_segments_in_their_order(relay: RunningRelay) -> None:
    async with registered(relay, "alice", "bob") as (alice, bob):
        group_id = await group_of(alice, bob)
        file = File(group_id, await thread_of(alice, group_id), os.urandom(16 * SEGMENT))
        await alice.begin(file)
        generation = (await alice.begin(file))["generation"]

        async def tried(offset: int, size: int, by: User = alice, generation: int = generation) -> tuple[str, Frame]:
            chunk = file.chunk(generation, offset, bytes(size))
            return await refused(by.connection.request("media.chunk", **chunk))

        here = {"offset": 0, "generation": generation}
        assert await tried(0, SEGMENT, generation=generation - 1) == ("upload_offset", here)
        assert await tried(SEGMENT, SEGMENT) == ("upload_offset", here)
        assert await tried(0, SEGMENT, by=bob) == ("not_found", {})
        for size in (0, SEGMENT - 1, SEGMENT + 1):
            assert await tried(0, size) == ("bad_argument", {"field": "data"})
        limit = alice.limits["media_chunk_bytes"]
        assert await tried(0, limit + SEGMENT) == ("too_large", {"field": "data", "limit": limit})
        again = await alice.begin(file)
        assert (again["offset"], again["generation"]) == (0, generation + 1)
        await alice.send(file, again)
        posted = await alice.commit(file)
        assert await tried(0, SEGMENT) == ("not_found", {})
        await alice.follow_to(group_id, posted["seq"])
        assert await alice.download(group_id, file.media_id) == file.data


async def test_an_upload_that_can_not_come_to_anything_is_dropped(relay: RunningRelay) -> None:
    async with registered(relay, "alice") as [alice]:
        group_id = await group_of(alice)
        file = File(group_id, await thread_of(alice, group_id), os.urandom(SEGMENT))
        await alice.begin(file)
        assert await used(alice, group_id) == (SEGMENT, 1)
        assert await refused(alice.commit(file)) == ("bad_argument", {"field": "media_id"})
        assert await used(alice, group_id) == (0, 0)
        await alice.send(file, await alice.begin(file))
        assert await refused(alice.commit(file, root=root_of(b"else"))) == ("bad_argument", {"field": "root"})
        assert await used(alice, group_id) == (0, 0)
        more = file.chunk((await alice.begin(file))["generation"], 0, bytes(2 * SEGMENT))
        assert await refused(alice.connection.request("media.chunk", **more)) == ("bad_argument", {"field": "data"})
        assert await used(alice, group_id) == (0, 0)
        assert await refused(alice.commit(file)) == ("not_found", {})
        await alice.begin(file)
        for _ in range(2):
            await alice.connection.request("media.abort", media_id=file.media_id)
        assert await used(alice, group_id) == (0, 0)
        await alice.upload(file)
        assert await refused(alice.connection.request("media.abort", media_id=file.media_id)) == ("id_conflict", {})
        assert await used(alice, group_id) == (SEGMENT, 1)


async def test_a_commit_waits_for_the_key_that_is_in_force(relay: RunningRelay) -> None:
    async with registered(relay, "alice", "bob") as (alice, bob):
        group_id = await group_of(alice, bob)
        thread_id = await thread_of(alice, group_id)
        file = File(group_id, thread_id, os.urandom(SEGMENT + 1))
        await alice.send(file, await alice.begin(file))
        limit = alice.limits["max_metadata_bytes"]
        assert (await refused(alice.commit(replace(file, metadata=b""))))[0] == "bad_argument"
        too_large = {"field": "encrypted_metadata", "limit": limit}
        assert await refused(alice.commit(replace(file, metadata=bytes(limit + 1)))) == ("too_large", too_large)
        assert (await refused(alice.commit(file, key_epoch=2)))[0] == "stale_key_epoch"
        assert await refused(bob.commit(file)) == ("not_found", {})
        theirs = File(group_id, thread_id, bytes(SEGMENT))
        await bob.begin(theirs)
        left = await bob.connection.request(
            "group.leave", **bob.state(7, group_id, alice.without(group_id, bob.user_id))
        )
        assert await used(alice, group_id) == (SEGMENT + 1, 1)  # bob's upload went with his membership
        assert await refused(bob.commit(theirs)) == ("not_found", {})
        assert await refused(alice.commit(file)) == ("rekey_required", {})
        await alice.follow_to(group_id, left["seq"])
        await alice.follow_to(group_id, (await alice.rekey(group_id, b"again"))["seq"])
        posted = await alice.commit(file)
        await alice.follow_to(group_id, posted["seq"])
        assert alice.logs[group_id].files[file.media_id]["key_epoch"] == 2
        late = File(group_id, thread_id, b"late")
        await alice.send(late, await alice.begin(late))
        gone = alice.state(17, group_id, alice.logs[group_id].roster, target_id=thread_id)
        await alice.connection.request("post.delete", **gone)
        assert await refused(alice.commit(late)) == ("not_found", {})
        assert await alice.download(group_id, file.media_id) == file.data  # the thread's files stay


async def test_more_chunks_than_the_window(migrated_database: str) -> None:
    async with (
        running_relay(migrated_database, media_window=1, media_chunk_bytes=SEGMENT, max_uploads_per_user=1) as relay,
        registered(relay, "alice") as [alice],
    ):
        group_id = await group_of(alice)
        thread_id = await thread_of(alice, group_id)
        file = File(group_id, thread_id, os.urandom(3 * SEGMENT))
        another = alice.begin(File(group_id, thread_id, b""))
        begun = await alice.begin(file)
        assert (begun["chunk_bytes"], begun["window"]) == (SEGMENT, 1)
        assert await refused(another) == ("limit_exceeded", {"limit": 1})
        chunks = [
            file.chunk(begun["generation"], offset, file.data[offset : offset + SEGMENT])
            for offset in range(0, len(file.data), SEGMENT)
        ]
        answers = alice.connection.requests(*(("media.chunk", chunk) for chunk in chunks))
        found = await asyncio.gather(*answers, return_exceptions=True)
        codes = [answer.code if isinstance(answer, RelayError) else "ok" for answer in found]
        assert codes[0] in ("ok", "rate_limited") and codes[1:] == ["rate_limited", "upload_offset"]
        posted = await alice.upload(file)  # which begins again
        await alice.follow_to(group_id, posted["seq"])
        assert await alice.download(group_id, file.media_id) == file.data


async def test_files_are_for_members(relay: RunningRelay) -> None:
    async with registered(relay, "alice", "bob") as (alice, bob):
        group_id = await group_of(alice, bob)
        thread_id, other_thread = await thread_of(alice, group_id), await thread_of(alice, group_id)
        files = [File(group_id, thread, os.urandom(5)) for thread in (thread_id, other_thread, thread_id)]
        seqs = [(await alice.upload(file))["seq"] for file in files]
        await bob.follow_to(group_id, seqs[-1])
        last = files[-1].media_id

        async def listed(user: User = bob, **more: Any) -> tuple[list[int], bool]:
            page = await user.connection.request("media.list", group_id=group_id, **more)
            return [media["seq"] for media in page["media"]], page.get("more", False)

        assert await listed() == (seqs, False)
        assert await listed(limit=2) == (seqs[1:], True)
        assert await listed(after_seq=seqs[0], limit=1) == (seqs[1:2], True)
        assert await listed(before_seq=seqs[1]) == (seqs[:1], False)
        assert await listed(thread_id=thread_id) == ([seqs[0], seqs[2]], False)
        assert (await refused(listed(after_seq=1, before_seq=2)))[0] == "bad_argument"
        assert await refused(listed(thread_id=uuid7())) == ("not_found", {})

        shown = (await bob.connection.request("media.get", media_id=last))["media"]
        event = bob.logs[group_id].files[last]
        for name in ("thread_id", "seq", "key_epoch", "encrypted_metadata", "encryption_iv", "size_bytes", "root"):
            assert shown[name] == event[name]
        assert (shown["uploaded_at"], shown["author_id"]) == (event["created_at"], alice.user_id)
        assert shown["expires_at"] == event["created_at"] + 604_800_000_000
        read = {"media_id": last, "offset": 1, "length": 3}
        assert (await bob.connection.request("media.read", **read))["data"] == files[-1].data[1:4]
        assert "downloaded" not in (await bob.connection.request("media.get", media_id=last))["media"]
        assert (await bob.connection.request("media.read", **{**read, "length": 9}))["data"] == files[-1].data[1:]
        assert (await bob.connection.request("media.get", media_id=last))["media"]["downloaded"]
        assert "downloaded" not in (await alice.connection.request("media.get", media_id=last))["media"]
        assert (await bob.connection.request("media.read", **{**read, "offset": 5}))["data"] == b""
        beyond = bob.connection.request("media.read", **{**read, "offset": 6})
        assert await refused(beyond) == ("bad_argument", {"field": "offset"})
        limit = bob.limits["media_chunk_bytes"]
        long = bob.connection.request("media.read", **{**read, "length": limit + 1})
        assert await refused(long) == ("too_large", {"field": "length", "limit": limit})

        by_bob = bob.state(19, group_id, bob.logs[group_id].roster, media_id=last)
        assert await refused(bob.connection.request("media.delete", **by_bob)) == ("forbidden", {})
        await alice.follow_to(group_id, seqs[-1])
        fields = alice.state(8, group_id, alice.without(group_id, bob.user_id), user_id=bob.user_id, ban=False)
        await alice.connection.request("member.remove", **fields)
        for asked in (
            bob.connection.request("media.read", **read),
            bob.connection.request("media.get", media_id=last),
            bob.connection.request("quota.get", group_id=group_id),
            listed(),
        ):
            assert await refused(asked) == ("not_found", {})


async def test_what_was_deleted_is_not_there(relay: RunningRelay) -> None:
    async with registered(relay, "alice", "bob") as (alice, bob):
        group_id = await group_of(alice, bob)
        file = File(group_id, await thread_of(alice, group_id), os.urandom(5))
        posted = await bob.upload(file)
        about = {"group_id": group_id, "key_epoch": 1, "target_id": file.media_id, "encrypted_body": b"nice"}
        annotated = await alice.connection.request("annotation.post", annotation_id=uuid7(), **about)
        fields = alice.state(19, group_id, alice.logs[group_id].roster, media_id=file.media_id)
        deleted = await alice.connection.request("media.delete", **fields)  # she is the owner
        again = await alice.connection.request("media.delete", **fields)
        assert again | {"id": 0} == deleted | {"id": 0, "duplicate": True}
        for user in (alice, bob):
            await user.follow_to(group_id, deleted["seq"])
        assert annotated["seq"] == posted["seq"] + 1
        late = alice.connection.request("annotation.post", annotation_id=uuid7(), **about)
        assert await refused(late) == ("not_found", {})
        named = {"media_id": file.media_id}
        assert await refused(bob.connection.request("media.get", **named)) == ("not_found", {})
        assert await refused(bob.connection.request("media.read", **named, offset=0, length=5)) == ("not_found", {})
        fields = bob.state(19, group_id, bob.logs[group_id].roster, **named)
        assert await refused(bob.connection.request("media.delete", **fields)) == ("not_found", {})
        assert (await bob.begin(file))["generation"] == 0
        assert (await bob.commit(file))["duplicate"]
        assert await used(bob, group_id) == (0, 0)


async def test_no_upload_goes_beyond_the_quota(relay: RunningRelay) -> None:
    async with registered(relay, "alice") as [alice]:
        group_id = await group_of(alice)
        thread_id = await thread_of(alice, group_id)
        quota = await alice.connection.request("quota.get", group_id=group_id)
        size = alice.limits["max_media_bytes"]
        fitting, rest = divmod(quota["max_bytes"], size)
        begins = [
            ("media.begin", {**File(group_id, thread_id, b"").named, "size_bytes": size}) for _ in range(fitting + 3)
        ]
        found = await asyncio.gather(*alice.connection.requests(*begins), return_exceptions=True)
        errors = [answer for answer in found if isinstance(answer, RelayError)]
        free = {"free_bytes": rest, "free_count": quota["max_media_count"] - fitting}
        assert [(error.code, error.details) for error in errors] == [("quota_exceeded", free)] * 3
        assert await used(alice, group_id) == (fitting * size, fitting)


async def test_a_file_whose_time_is_over(migrated_database: str) -> None:
    async with (
        running_relay(migrated_database, media_sweep_ms=3_600_000) as relay,
        registered(relay, "alice") as [alice],
    ):
        group_id = await group_of(alice)
        file = File(group_id, await thread_of(alice, group_id), os.urandom(5))
        posted = await alice.upload(file)
        await alice.follow_to(group_id, posted["seq"])
        connection = await asyncpg.connect(migrated_database, timeout=10)
        try:
            await connection.execute("UPDATE media SET expires_at = clock_timestamp()", timeout=10)
        finally:
            await connection.close(timeout=10)
        fields = alice.state(19, group_id, alice.logs[group_id].roster, media_id=file.media_id)

        async def answers_that_it_expired() -> None:
            named = {"media_id": file.media_id}
            for asked in (
                alice.connection.request("media.get", **named),
                alice.connection.request("media.read", **named, offset=0, length=5),
                alice.connection.request("media.delete", **fields),
            ):
                assert await refused(asked) == ("media_expired", {})
            assert (await alice.connection.request("media.list", group_id=group_id))["media"] == []

        await answers_that_it_expired()  # at once: no sweep has come by
        assert alice.connection.pushes.empty() and await used(alice, group_id) == (5, 1)
        other = File(group_id, file.thread_id, b"")
        await alice.begin(other)
        await alice.connection.request("media.abort", media_id=other.media_id)  # nudges the sweep
        await alice.follow_to(group_id, posted["seq"] + 1)
        expired = alice.logs[group_id].events[-1]
        assert (expired["kind"], expired["object_id"], expired["actor_id"]) == (20, file.media_id, raw_client.ZERO_ID)
        await answers_that_it_expired()
        assert await used(alice, group_id) == (0, 0)
        assert (await alice.begin(file))["generation"] == 0

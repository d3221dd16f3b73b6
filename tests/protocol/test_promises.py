"""What SPEC.md says beside the ordinary course of things, tried on a real relay by the client written from it."""

import asyncio
from collections.abc import Awaitable
from dataclasses import replace
from hashlib import sha256
from typing import Any

import msgpack  # type: ignore[import-untyped]
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from websockets.asyncio.client import connect

from tests.protocol import raw_client
from tests.protocol.raw_client import OWNER, ZEROS, Connection, Frame, Log, RelayError, User, uuid7
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

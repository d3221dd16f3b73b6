"""SPEC.md suffices: a client written from it alone agrees with the vectors, and lives with a real relay."""

import ast
import os
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from tests.protocol import raw_client
from tests.protocol.raw_client import ADMIN, File, Finding, Frame, Log, RelayError
from tests.protocol.vectors import load, named
from tests.protocol.visitors import on_relay, registered
from tests.relays import RunningRelay

ALLOWED = {"websockets", "msgpack", "cryptography", "hashlib"}
STANDARD = {"asyncio", "base64", "collections", "dataclasses", "functools", "itertools", "json", "os", "time", "typing"}


def test_the_client_knows_nothing_of_this_project() -> None:
    tree = ast.parse(Path(raw_client.__file__).read_text(encoding="utf-8"))
    imported = {
        alias.name if isinstance(node, ast.Import) else node.module or "."
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    relative = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
    assert not relative
    assert {name.partition(".")[0] for name in imported} <= ALLOWED | STANDARD
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert not names & {"__import__", "importlib", "exec", "eval"}


# ── against the vectors ─────────────────────────────────────────────────────────────────────────────────────────────

CHAIN = load("chain")
STATEMENTS = load("statements")


def from_hex(frame: Frame) -> Frame:
    """A frame of the vectors as it comes over the wire."""
    plain = {"type", "kind", "seq", "key_epoch", "created_at", "size_bytes", "erased"}
    return {
        name: value
        if name in plain
        else [bytes.fromhex(inner) for inner in value]
        if isinstance(value, list)
        else bytes.fromhex(value)
        for name, value in frame.items()
    }


def story() -> list[Frame]:
    """The events of the vectors, whole, in order."""
    pushes = [push["frame"] for push in load("frames")["pushes"] if push["type"] == "event"]
    return [from_hex(frame) for frame in pushes[: len(CHAIN["events"])]]


def log_of(events: list[Frame]) -> Log:
    log = Log(bytes.fromhex(CHAIN["group_id"]))
    for event in events:
        log.take(event)
    return log


def test_the_client_verifies_the_log_of_the_vectors() -> None:
    log = Log(bytes.fromhex(CHAIN["group_id"]))
    for event, vector in zip(story(), CHAIN["events"], strict=True):
        log.take(event)
        assert log.hash.hex() == vector["hash"]
        if event["kind"] == 5:
            break
        assert [
            {
                "user_id": user_id.hex(),
                "role": entry.role,
                "signing_key": entry.signing_key.hex(),
                "rsa_thumbprint": entry.rsa_thumbprint.hex(),
                "is_bot": entry.is_bot,
            }
            for user_id, entry in sorted(log.roster.items())
        ] == vector["roster"]
    assert log.ended


def test_erased_and_filtered_events_keep_the_chain() -> None:
    pushes = [from_hex(push["frame"]) for push in load("frames")["pushes"] if push["type"] == "event"]
    bare = {event["seq"]: event for event in pushes if "field_hashes" in event}
    assert bare
    assert log_of([bare.get(event["seq"], event) for event in story()]).hash == log_of(story()).hash


Tamper = Callable[[list[Frame]], list[Frame]]


def changed(seq: int, **fields: Any) -> Tamper:
    return lambda events: [event | fields if event["seq"] == seq else event for event in events]


TAMPERED: dict[str, Tamper] = {
    "a body is another": changed(5, encrypted_body=b"something else"),
    "a field hash is another": changed(5, encrypted_body=b"", field_hashes=[bytes(32)]),
    "an author is another": changed(5, actor_id=bytes(15) + b"x"),
    "a reply is moved": changed(5, thread_id=bytes(15) + b"x"),
    "an event is missing": lambda events: [event for event in events if event["seq"] != 5],
    "two events change places": lambda events: [*events[:3], events[4], events[3], *events[5:]],
    "an event comes twice": lambda events: [*events[:5], *events[4:]],
    "a time is another": changed(5, created_at=1),
    "a key epoch is another": changed(5, key_epoch=2),
    "a signature is another": changed(9, signature=bytes(64)),
    "a statement is withheld": changed(9, statement=b""),
    "the relay admits somebody": changed(7, actor_id=bytes(16)),
    "a group's content is another's": changed(5, group_id=bytes(16)),
    "a file's metadata are others": changed(23, encrypted_metadata=b"something else"),
    "a file's vector is another": changed(23, encryption_iv=bytes(12)),
    "a file is shorter": changed(23, size_bytes=65_536),
    "a file's root is another": changed(23, root=bytes(32)),
    "a file is moved": changed(23, thread_id=bytes(15) + b"x"),
    "another file expires": changed(27, object_id=bytes(15) + b"x"),
    "an erased body is withheld without its hashes": lambda events: [
        {name: value for name, value in event.items() if name != "encrypted_body"} for event in events
    ],
}


@pytest.mark.parametrize("tamper", TAMPERED.values(), ids=TAMPERED.keys())
def test_the_client_finds_what_a_relay_altered(tamper: Tamper) -> None:
    with pytest.raises(Finding):
        log_of(tamper(story()))


def forged(events: list[Frame], seq: int, **fields: Any) -> list[Frame]:
    """The log up to `seq`, and then an event that only a relay can make, with the right hashes."""
    kept = events[:seq]
    bare = {"group_id": kept[-1]["group_id"], "seq": seq + 1, "key_epoch": 4, "created_at": kept[-1]["created_at"]}
    event = {"type": "event", **bare, "actor_id": raw_client.ZERO_ID, **fields}
    event["content_hash"] = raw_client.content_hash(event)
    event["hash"] = raw_client.event_hash(kept[-1]["hash"], event)
    return [*kept, event]


def test_the_client_takes_the_end_of_a_file_from_the_relay() -> None:
    events = story()
    assert events[22]["object_id"] in log_of(events[:23]).files
    assert not log_of(forged(events, 23, kind=20, object_id=events[22]["object_id"])).files
    assert log_of(events[:27]).files == {}


@pytest.mark.parametrize(
    ("seq", "kind", "file"),
    [(23, 19, 23), (25, 20, 23), (27, 20, 26), (24, 20, 24), (24, 20, 14)],
    ids=["deleted by the relay", "deleted before", "expired before", "an annotation", "a thread"],
)
def test_the_client_takes_no_other_end_of_a_file(seq: int, kind: int, file: int) -> None:
    events = story()
    with pytest.raises(Finding):
        log_of(forged(events, seq, kind=kind, object_id=events[file - 1]["object_id"]))


@pytest.mark.parametrize(("seq", "takes"), [(23, True), (25, False), (27, False)])
def test_nothing_is_attached_to_a_file_that_is_gone(seq: int, takes: bool) -> None:
    events = story()
    author, file = (events[25 if seq == 27 else 22][name] for name in ("actor_id", "object_id"))
    annotation = {"kind": 16, "object_id": raw_client.uuid7(), "actor_id": author, "target_id": file}
    log = forged(events, seq, **annotation, encrypted_body=b"late")
    if takes:
        log_of(log)
        return
    with pytest.raises(Finding, match="deleted"):
        log_of(log)


@pytest.mark.parametrize("vector", **named(load("media")["files"], "size_bytes"))
def test_the_client_computes_the_same_roots(vector: Frame) -> None:
    data = bytes(i % 251 for i in range(vector["size_bytes"]))
    assert [digest.hex() for digest in raw_client.segment_digests(data)] == vector["segment_digests"]
    assert raw_client.root_of(data).hex() == vector["root"]


@pytest.mark.parametrize("vector", **named(STATEMENTS["statements"], "name"))
def test_the_client_makes_the_same_statements(vector: Frame) -> None:
    raw = bytes.fromhex(vector["statement"])
    kind, elements = raw_client.decode_statement(raw)
    assert kind == vector["kind"]
    assert raw_client.encode_statement(kind, elements) == raw
    preimage = raw_client.statement_preimage(raw)
    assert preimage.hex() == vector["preimage"]
    assert raw_client.is_signed(bytes.fromhex(vector["signature"]), preimage, bytes.fromhex(vector["signing_key"]))


@pytest.mark.parametrize("vector", **named(STATEMENTS["refused"], "name"))
def test_the_client_refuses_the_same_bytes(vector: Frame) -> None:
    with pytest.raises(Finding):
        raw_client.decode_statement(bytes.fromhex(vector["statement"]))


@pytest.mark.parametrize("vector", **named(STATEMENTS["rosters"], "seq"))
def test_the_client_computes_the_same_roster_hash(vector: Frame) -> None:
    roster = {
        bytes.fromhex(member["user_id"]): raw_client.Entry(
            member["role"],
            bytes.fromhex(member["signing_key"]),
            bytes.fromhex(member["rsa_thumbprint"]),
            member["is_bot"],
        )
        for member in vector["roster"]
    }
    assert raw_client.roster_hash(roster).hex() == vector["hash"]


@pytest.mark.parametrize("vector", **named(STATEMENTS["joins"]))
def test_the_client_makes_the_same_join_preimage(vector: Frame) -> None:
    names = ("group_id", "invite_id", "user_id", "signing_key", "rsa_thumbprint")
    assert raw_client.join_preimage(*(bytes.fromhex(vector[name]) for name in names)).hex() == vector["preimage"]


# ── against a relay ─────────────────────────────────────────────────────────────────────────────────────────────────


def is_live(push: Frame) -> bool:
    return bool(push["type"] == "live")


def body_of(event: Frame) -> bytes:
    body: bytes = event["encrypted_body"]
    return body


@on_relay
async def test_a_group_from_its_creation_to_a_removal(relay: RunningRelay) -> None:
    async with registered(relay, "alice", "bob") as (alice, bob):
        group_id = await alice.found(b"the name")
        await alice.subscribe(group_id)
        await alice.follow(is_live)
        code, secret = await alice.invite(group_id)
        await bob.join(code, secret)
        await bob.subscribe(group_id)
        await bob.follow(is_live)
        assert [event["kind"] for event in bob.logs[group_id].events] == [1, 11, 6]

        thread = await alice.post_thread(group_id, b"a title", b"a body")
        replied = await bob.post_reply(group_id, thread["thread_id"], b"a reply")
        for user in (alice, bob):
            await user.follow_to(group_id, replied["seq"])
            assert [body_of(event) for event in user.logs[group_id].events[-2:]] == [b"a body", b"a reply"]
        assert alice.logs[group_id].roster == bob.logs[group_id].roster
        assert alice.logs[group_id].hash == replied["hash"]

        fields = alice.state(8, group_id, alice.without(group_id, bob.user_id), user_id=bob.user_id, ban=True)
        removed = await alice.connection.request("member.remove", **fields)
        gone = await bob.follow(lambda push: push["type"] == "group.gone")
        assert gone == {"type": "group.gone", "group_id": group_id, "reason": "removed"}
        assert bob.logs[group_id].seq == removed["seq"]
        await alice.follow_to(group_id, removed["seq"])
        with pytest.raises(RelayError, match="rekey_required"):
            await alice.post_thread(group_id, b"too", b"soon")
        rekeyed = await alice.rekey(group_id, b"the name, sealed anew")
        assert rekeyed["key_epoch"] == 2
        await alice.follow_to(group_id, rekeyed["seq"])
        again = await alice.post_thread(group_id, b"now", b"then")
        await alice.follow_to(group_id, again["seq"])
        assert list(alice.logs[group_id].roster) == [alice.user_id]
        assert bob.connection.pushes.empty()


@on_relay
async def test_whoever_was_cut_off_resumes_without_a_hole(relay: RunningRelay) -> None:
    async with registered(relay, "alice", "bob") as (alice, bob):
        group_id = await alice.found(b"the name")
        await alice.subscribe(group_id)
        await alice.follow(is_live)
        await bob.join(*await alice.invite(group_id))
        await bob.subscribe(group_id)
        await bob.follow(is_live)
        thread = await alice.post_thread(group_id, b"title", b"body")
        await bob.follow_to(group_id, thread["seq"])

        await bob.connection.cut()
        await alice.follow_to(group_id, thread["seq"])
        bodies = [b"missed %d" % number for number in range(150)]
        *_, missed = [await alice.post_reply(group_id, thread["thread_id"], body) for body in bodies]
        came_back = await bob.return_to(relay.url)
        [head] = came_back["groups"]
        assert (head["group_id"], head["seq"], head["hash"]) == (group_id, missed["seq"], missed["hash"])
        await bob.subscribe(group_id)
        await bob.follow(is_live)
        assert [body_of(event) for event in bob.logs[group_id].events[-150:]] == bodies
        last = await bob.post_reply(group_id, thread["thread_id"], b"back again")
        await bob.follow_to(group_id, last["seq"])
        await alice.follow_to(group_id, last["seq"])
        assert alice.logs[group_id].hashes == bob.logs[group_id].hashes


@on_relay
async def test_a_repeated_request_gets_its_first_answer(relay: RunningRelay) -> None:
    async with registered(relay, "alice") as [alice]:
        group_id = await alice.found(b"the name")
        thread = await alice.post_thread(group_id, b"title", b"body")
        reply_id = raw_client.uuid7()
        first = await alice.post_reply(group_id, thread["thread_id"], b"once", reply_id)
        again = await alice.post_reply(group_id, thread["thread_id"], b"once", reply_id)
        assert again | {"id": 0} == first | {"id": 0, "duplicate": True}
        await alice.subscribe(group_id)
        await alice.follow(is_live)
        statement = alice.state(17, group_id, alice.logs[group_id].roster, target_id=reply_id)
        erased = await alice.connection.request("post.delete", **statement)
        repeated = await alice.connection.request("post.delete", **statement)
        assert repeated | {"id": 0} == erased | {"id": 0, "duplicate": True}
        await alice.follow_to(group_id, erased["seq"])
        page = await alice.connection.request("event.list", group_id=group_id, after_seq=first["seq"] - 1)
        [event, deletion] = page["events"]
        assert event["erased"] and "encrypted_body" not in event
        assert (page["previous_hash"], deletion["hash"]) == (thread["hash"], page["hash"])
        assert raw_client.content_hash(event) == first["content_hash"]


@on_relay
async def test_a_statement_on_an_old_roster_is_refused(relay: RunningRelay) -> None:
    async with registered(relay, "alice", "bob") as (alice, bob):
        group_id = await alice.found(b"the name")
        await alice.subscribe(group_id)
        await alice.follow(is_live)
        link = await alice.invite(group_id)
        late = alice.state(2, group_id, alice.logs[group_id].roster, name_hash=sha256(b"new").digest())
        await bob.join(*link)
        with pytest.raises(RelayError) as caught:
            await alice.connection.request("group.update", **late, encrypted_name=b"new")
        assert (caught.value.code, caught.value.details["seq"]) == ("stale_base", 3)
        with pytest.raises(RelayError, match="forbidden"):  # bob is no admin
            await bob.subscribe(group_id)
            await bob.follow(is_live)
            roster = bob.logs[group_id].roster
            fields = bob.state(9, group_id, roster, user_id=alice.user_id, role=ADMIN)
            await bob.connection.request("member.set_role", **fields)


@on_relay
async def test_a_knock_is_shown_and_admitted(relay: RunningRelay) -> None:
    async with registered(relay, "alice", "carol") as (alice, carol):
        group_id = await alice.found(b"the name")
        await alice.subscribe(group_id)
        await alice.follow(is_live)
        standing = (await alice.connection.request("group.get", group_id=group_id))["invite_code"]
        knocked = await carol.connection.request("group.knock", request_id=raw_client.uuid7(), invite_code=standing)
        shown = (await alice.follow(lambda push: push["type"] == "join.requested"))["request"]
        assert (shown["request_id"], shown["user_id"]) == (knocked["request_id"], carol.user_id)
        newcomer = {"signing_key": shown["signing_key"], "rsa_thumbprint": carol.thumbprint, "is_bot": shown["is_bot"]}
        fields = alice.state(
            6,
            group_id,
            {**alice.logs[group_id].roster, carol.user_id: carol.entry},
            user_id=carol.user_id,
            **newcomer,
            invite_id=raw_client.ZERO_ID,
            invite_signature=b"",
        )
        admitted = await alice.connection.request("group.admit", **fields, encrypted_group_key=b"a wrap")
        await alice.follow_to(group_id, admitted["seq"])
        carol.logs[group_id] = Log(group_id)
        await carol.subscribe(group_id)
        await carol.follow(is_live)
        assert carol.logs[group_id].roster == alice.logs[group_id].roster


@on_relay
async def test_authentication_is_a_barrier_and_a_filter_keeps_the_chain(relay: RunningRelay) -> None:
    async with registered(relay, "alice") as [alice]:
        group_id = await alice.found(b"the name")
        thread = await alice.post_thread(group_id, b"title", b"body")
        await alice.post_reply(group_id, thread["thread_id"], b"reply")
        await alice.connection.cut()
        await alice.connect(relay.url)
        everything = {"group_id": group_id, "after_seq": 0, "after_hash": raw_client.ZEROS}
        answers = alice.connection.requests(
            ("authenticate", {"access_token": alice.session["access_token"]}),
            ("subscribe", {"groups": [everything], "kinds": [15]}),
        )
        assert [(await answer)["type"] for answer in answers] == ["ok", "ok"]
        await alice.follow(is_live)
        _, header, whole = alice.logs[group_id].events
        assert "encrypted_body" not in header and len(header["field_hashes"]) == 2
        assert body_of(whole) == b"reply"


@on_relay
async def test_cursors_signals_and_pings(relay: RunningRelay) -> None:
    async with registered(relay, "alice") as [alice]:
        group_id = await alice.found(b"the name")
        await alice.subscribe(group_id)
        await alice.follow(is_live)
        log = alice.logs[group_id]
        at = {"group_id": group_id, "name": "read"}
        empty = await alice.connection.request("cursor.get", **at)
        assert (empty["seq"], empty["hash"]) == (0, raw_client.ZEROS)
        put = await alice.connection.request("cursor.put", **at, seq=log.seq, hash=log.hash)
        assert (put["seq"], put["hash"]) == (log.seq, log.hash)
        moved = await alice.follow(lambda push: push["type"] == "cursor")
        assert moved == {"type": "cursor", **at, "seq": log.seq, "hash": log.hash}
        await alice.connection.request("signal.send", group_id=group_id, payload=b"typing")
        signal = await alice.follow(lambda push: push["type"] == "signal")
        assert signal == {"type": "signal", "group_id": group_id, "user_id": alice.user_id, "payload": b"typing"}
        ping = await alice.connection.request("ping")
        assert ping["heads"] == [{"group_id": group_id, "seq": log.seq, "hash": log.hash}]


@on_relay
async def test_a_file_from_its_upload_to_its_deletion(relay: RunningRelay) -> None:
    async with registered(relay, "alice", "bob") as (alice, bob):
        group_id = await alice.found(b"the name")
        await alice.subscribe(group_id)
        await alice.follow(is_live)
        await bob.join(*await alice.invite(group_id))
        await bob.subscribe(group_id)
        await bob.follow(is_live)
        thread_id = (await alice.post_thread(group_id, b"title", b"body"))["thread_id"]

        async def shared(size: int) -> tuple[File, Frame]:
            """A file of this size, after both have read it; and the answer to its commit."""
            file = File(group_id, thread_id, os.urandom(size))
            posted = await alice.upload(file)
            for user in (alice, bob):
                await user.follow_to(group_id, posted["seq"])
                assert await user.download(group_id, file.media_id) == file.data
            event = bob.logs[group_id].files[file.media_id]
            assert (event["hash"], event["content_hash"]) == (posted["hash"], posted["content_hash"])
            assert (event["size_bytes"], event["encryption_iv"]) == (size, file.encryption_iv)
            assert (event["encrypted_metadata"], event["actor_id"]) == (file.metadata, alice.user_id)
            return file, posted

        for size in (0, 1, 65_536):
            await shared(size)
        file, posted = await shared(1_200_000)
        assert await bob.download(group_id, file.media_id, length=100_001) == file.data

        repeated = await alice.commit(file)
        assert repeated | {"id": 0} == posted | {"id": 0, "duplicate": True}
        fields = alice.state(19, group_id, alice.logs[group_id].roster, media_id=file.media_id)
        deleted = await alice.connection.request("media.delete", **fields)
        for user in (alice, bob):
            await user.follow_to(group_id, deleted["seq"])
            assert file.media_id not in user.logs[group_id].files
        page = await bob.connection.request("event.list", group_id=group_id, after_seq=posted["seq"] - 1, limit=1)
        [erased] = page["events"]
        assert erased["erased"] and not erased.keys() & {"encrypted_metadata", "encryption_iv", "size_bytes", "root"}
        assert raw_client.content_hash(erased) == posted["content_hash"]


@on_relay
async def test_an_upload_that_was_cut_off_goes_on(relay: RunningRelay) -> None:
    async with registered(relay, "alice") as [alice]:
        group_id = await alice.found(b"the name")
        await alice.subscribe(group_id)
        await alice.follow(is_live)
        thread_id = (await alice.post_thread(group_id, b"title", b"body"))["thread_id"]
        file = File(group_id, thread_id, os.urandom(1_200_000))
        begun = await alice.begin(file)
        assert (begun["offset"], begun["generation"]) == (0, 1)
        await alice.send(file, begun, end=589_824)
        await alice.connection.cut()
        await alice.return_to(relay.url)
        begun = await alice.begin(file)
        assert (begun["offset"], begun["generation"]) == (589_824, 2)
        await alice.send(file, begun)
        posted = await alice.commit(file)
        await alice.subscribe(group_id)
        await alice.follow_to(group_id, posted["seq"])
        assert await alice.download(group_id, file.media_id) == file.data
        again = await alice.begin(file)
        assert (again["offset"], again["generation"]) == (1_200_000, 0)

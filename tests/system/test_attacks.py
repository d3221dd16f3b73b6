"""What a hostile relay must not get away with: each attack is carried out, and the client says what it noticed.

The relay of these tests lies to one of its users (`liar`), and makes its hashes fit. Everybody else is honest, except
where it says so.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from orbital_client import (
    BackupRolledBack,
    CannotOpen,
    CannotPost,
    Client,
    Flaw,
    Group,
    Heard,
    KeyChanged,
    LogBroken,
    Message,
    Rejected,
    Role,
    Withheld,
)
from orbital_client.crypto.groupkeys import GroupKey
from orbital_client.crypto.jwk import rsa_key
from orbital_client.errors import BadSeal, Malformed, MediaCorrupt, WrongKey
from orbital_client.rekeying import wrap_for
from orbital_protocol import statements
from orbital_protocol.codes import Kind
from orbital_protocol.frames import BackupGet, BackupGetOk
from orbital_protocol.statements import MemberJoined, MemberRole, PostDeleted
from tests.relays import running_relay
from tests.system.liar import Frame, Liar, liar_before
from tests.system.secrets import LIMIT_S, PASSPHRASE, eventually, people
from tests.unit.client_relay import at_once, identity

pytestmark = pytest.mark.timeout(240)


@dataclass
class Stage:
    """Ann and Bob have talked: two threads, replies to both, an edit; one reply was deleted, and Eve removed."""

    liar: Liar
    ann: Client
    bob: Client
    group: Group
    first: Message
    second: Message
    reply: Message
    answer: Message
    deleted: Message

    @asynccontextmanager
    async def victim(self) -> AsyncIterator[Group]:
        """Bob's next device, which knows nothing but what the lying relay tells it."""
        async with Client(self.liar.url, backoff=at_once()) as client:
            await client.login("bob", PASSPHRASE)
            yield client.group(self.group.id)
        self.liar.be_honest()


@asynccontextmanager
async def stage(database: str) -> AsyncIterator[Stage]:
    async with (
        running_relay(database) as relay,
        liar_before(relay.port) as liar,
        people(relay.url, "ann", "bob", "eve") as (ann, bob, eve),
    ):
        anns = await ann.create_group("Book club")
        link = (await anns.invite()).text
        bobs, eves = await bob.join(link), await eve.join(link)
        await bob.back_up()  # what his next device knows from him ends here
        first = await anns.post("Ubik", "Shall we read it?")
        second = await anns.post("Tea", "Who brings it?")
        reply = await bobs.reply(first.id, "Yes!")
        await eventually(lambda: anns.cursor == bobs.cursor)
        answer = await anns.reply(first.id, "Good.")  # on what bob has said
        await answer.edit("Very good.")
        deleted = await bobs.reply(second.id, "I regret this")
        await deleted.delete()
        await anns.remove(eve.user_id)
        await bobs.reply(second.id, "I do.")
        await anns.reply(second.id, "Thanks.")
        await eventually(lambda: anns.cursor == bobs.cursor and eves.gone is not None)
        yield Stage(liar, ann, bob, anns, first, second, reply, answer, deleted)


def on(message: Message, change: Any) -> Any:
    """Forge the one event that posts this message."""

    def forge(event: Frame) -> list[Frame]:
        return change(event) if event["object_id"] == message.id else [event]

    return forge


async def problem_of(group: Group, message: Message) -> CannotOpen:
    """Why the victim can't see a message."""
    await group.live(LIMIT_S)
    found = {shown.id: shown for shown in await group.history(limit=100)}
    assert message.id in found, "it is not left out silently"
    problem = found[message.id].problem
    assert problem is not None, f"shown as {found[message.id].text!r}"
    assert found[message.id].text == ""
    return problem


def flaws(group: Group) -> list[Flaw]:
    return [finding.flaw for finding in group.findings]


async def test_what_is_done_to_posts(migrated_database: str) -> None:
    async with stage(migrated_database) as s:
        async with s.victim() as group:
            await group.live(LIMIT_S)
            texts = [message.text for message in await group.history()]
            assert texts == [message.text for message in await s.group.history()]
            assert group.findings == []

        def flip(event: Frame) -> list[Frame]:
            body = bytearray(event["encrypted_body"])
            body[40] ^= 1
            return [event | {"encrypted_body": bytes(body)}]

        s.liar.forge = on(s.reply, flip)  # a ciphertext is altered
        async with s.victim() as group:
            assert isinstance(await problem_of(group, s.reply), BadSeal)

        s.liar.forge = on(s.reply, lambda event: [event | {"actor_id": s.ann.user_id}])  # said to be by another
        async with s.victim() as group:
            assert isinstance(await problem_of(group, s.reply), BadSeal)

        s.liar.forge = on(s.reply, lambda event: [event | {"thread_id": s.second.id}])  # moved to another thread
        async with s.victim() as group:
            assert isinstance(await problem_of(group, s.reply), BadSeal)

        again = identity().user_id
        s.liar.forge = on(s.reply, lambda event: [event, event | {"object_id": again}])  # the same words once more
        async with s.victim() as group:
            await group.live(LIMIT_S)
            (copy,) = [message for message in await group.history() if message.id == again]
            assert isinstance(copy.problem, BadSeal)

        s.liar.forge = on(s.reply, lambda event: [event, event])  # the same object once more
        async with s.victim() as group:
            await group.live(LIMIT_S)
            assert flaws(group)[0] is Flaw.REPEATED_ID
            assert "a second time" in group.findings[0].text

        def keep_back(event: Frame) -> list[Frame]:
            del event["encrypted_body"]
            return [event | {"field_hashes": [bytes(32)]}]

        s.liar.forge = on(s.reply, keep_back)  # a body is withheld
        async with s.victim() as group:
            assert isinstance(await problem_of(group, s.reply), Withheld)
            assert Flaw.WITHHELD in flaws(group)

        stranger = identity().user_id
        s.liar.forge = on(s.reply, lambda event: [event | {"actor_id": stranger}])  # by nobody of the group
        async with s.victim() as group:
            assert isinstance(await problem_of(group, s.reply), Rejected)
            assert flaws(group)[0] is Flaw.NO_MEMBER


async def test_what_is_done_to_the_log(migrated_database: str) -> None:
    async with stage(migrated_database) as s:
        s.liar.forge = on(s.reply, lambda event: [])  # an event is dropped, and all hashes made to fit
        async with s.victim() as group:
            problem = await problem_of(group, s.answer)
            assert isinstance(problem, Rejected)
            assert problem.finding.flaw is Flaw.FORK
            assert "another history" in str(problem)

        held: list[Frame] = []

        def swap(event: Frame) -> list[Frame]:
            if event["object_id"] == s.first.id:
                held.append(event)
                return []
            return [event, *held] if event["object_id"] == s.second.id else [event]

        s.liar.forge = swap  # two events are swapped
        async with s.victim() as group:
            assert isinstance(await problem_of(group, s.reply), Rejected)
            assert Flaw.FORK in flaws(group)

        s.liar.forge = on(s.reply, lambda event: [event | {"torn": True, "created_at": 1}])  # hashes that don't fit
        async with s.victim() as group:
            with pytest.raises(LogBroken, match="continue the chain"):
                await group.live(LIMIT_S)

        def roll_back(event: Frame) -> list[Frame]:
            return [event | {"key_epoch": 1}] if event["key_epoch"] > 1 else [event]

        s.liar.forge = roll_back  # the key epoch is rolled back
        async with s.victim() as group:
            with pytest.raises(LogBroken, match="key epoch 1 where 2 is in force"):
                await group.live(LIMIT_S)

        s.liar.forge = lambda event: [] if event["kind"] == Kind.GROUP_REKEYED else [event]  # a rekey is withheld
        async with s.victim() as group:
            with pytest.raises(LogBroken, match="key epoch 2 where 1 is in force"):
                await group.live(LIMIT_S)


async def test_what_is_done_to_the_members(migrated_database: str) -> None:
    async with stage(migrated_database) as s:
        mallory = identity()

        def signed(event: Frame, statement: Any, by: Any) -> Frame:
            raw = statements.encode(statement)
            made = {name: event[name] for name in ("type", "group_id", "created_at", "key_epoch")}
            made |= {"object_id": statement.statement_id, "actor_id": statement.actor_id, "kind": raw[1]}
            return made | {"statement": raw, "signature": statements.sign(raw, by.signing)}

        def header(event: Frame, actor_id: bytes) -> dict[str, Any]:
            story = s.liar.stories[event["group_id"]]
            return {
                "group_id": event["group_id"],
                "actor_id": actor_id,
                "statement_id": identity().user_id,
                "base_seq": len(story.told),
                "base_hash": story.hash_at(len(story.told)),
                "key_epoch": event["key_epoch"],
                "roster_hash": bytes(32),
            }

        def introduce(event: Frame) -> list[Frame]:
            statement = MemberJoined(
                **header(event, mallory.user_id),
                user_id=mallory.user_id,
                signing_key=mallory.signing_key,
                rsa_thumbprint=mallory.rsa_thumbprint,
                is_bot=False,
                invite_id=identity().user_id,
                invite_signature=bytes(64),
            )
            return [signed(event, statement, mallory), event]

        s.liar.forge = on(s.second, introduce)  # a member is introduced by the relay
        async with s.victim() as group:
            await group.live(LIMIT_S)
            assert Flaw.BAD_INVITE in flaws(group)
            assert not group.has_member(mallory.user_id)

        def admitted_by_ann(event: Frame) -> list[Frame]:
            statement = MemberJoined(
                **header(event, s.ann.user_id),
                user_id=mallory.user_id,
                signing_key=mallory.signing_key,
                rsa_thumbprint=mallory.rsa_thumbprint,
                is_bot=False,
                invite_id=bytes(16),
                invite_signature=b"",
            )
            return [signed(event, statement, mallory), event]

        s.liar.forge = on(s.second, admitted_by_ann)  # … in an admin's name
        async with s.victim() as group:
            await group.live(LIMIT_S)
            assert Flaw.FORGED_STATEMENT in flaws(group)
            assert not group.has_member(mallory.user_id)

        def promote(event: Frame) -> list[Frame]:
            statement = MemberRole(**header(event, s.ann.user_id), user_id=s.bob.user_id, role=2)
            return [signed(event, statement, mallory), event]

        s.liar.forge = on(s.second, promote)  # a role is raised
        async with s.victim() as group:
            await group.live(LIMIT_S)
            assert Flaw.FORGED_STATEMENT in flaws(group)
            assert {member.name: int(member.role) for member in await group.members()} | {"eve": 1} == {
                "ann": 3,
                "bob": 1,
                "eve": 1,
            }

        def erase(event: Frame) -> list[Frame]:
            statement = PostDeleted(**header(event, s.bob.user_id), target_id=s.reply.id)
            if event["object_id"] == s.reply.id:
                del event["encrypted_body"]
                return [event | {"erased": True, "field_hashes": [bytes(32)]}]
            return [signed(event, statement, mallory), event] if event["object_id"] == s.answer.id else [event]

        s.liar.forge = erase  # a deletion is forged
        async with s.victim() as group:
            assert isinstance(await problem_of(group, s.reply), Withheld)
            assert Flaw.FORGED_STATEMENT in flaws(group)
            assert "not signed by the member" in next(f.text for f in group.findings if f.flaw is Flaw.FORGED_STATEMENT)


async def test_what_is_done_to_keys_names_and_backups(migrated_database: str, tmp_path: Path) -> None:
    async with stage(migrated_database) as s:

        def keys_as(change: Any) -> Any:
            def answer(request: Frame, answer: Frame) -> Frame:
                if request["type"] == "group.keys" and answer["type"] == "ok":
                    return answer | {"keys": change(answer["keys"])}
                return answer

            return answer

        def first_as_second(keys: list[Frame]) -> list[Frame]:
            return [key | {"key_epoch": 2} for key in keys if key["key_epoch"] == 1]

        s.liar.answer = keys_as(first_as_second)  # an old epoch's wrap is served as the current one
        async with s.victim() as group:
            await group.live(LIMIT_S)
            assert Flaw.WRONG_KEY in flaws(group)
            with pytest.raises(CannotPost, match="you have not got its key"):
                await group._sender.key(patience_s=0.5)

        roster = s.group._replica.log.roster
        other = GroupKey.generate(s.group.id, 2)
        key = await s.ann.people.encryption_keys([roster[s.bob.user_id]])
        public = rsa_key(key[s.bob.user_id], roster[s.bob.user_id].rsa_thumbprint)
        wrapped = wrap_for(other, roster[s.bob.user_id], public, s.ann.identity)  # ann deceives bob, with the relay

        s.liar.answer = keys_as(lambda keys: [key | {"encrypted_group_key": wrapped} for key in keys[-1:]])
        async with s.victim() as group:
            await group.live(LIMIT_S)
            (finding,) = [finding for finding in group.findings if finding.flaw is Flaw.WRONG_KEY]
            assert "another group key than the group agreed on" in finding.text

        stale = (await s.group.wire.info()).encrypted_name
        await s.group.rename("Reading circle")

        def old_name(request: Frame, answer: Frame) -> Frame:
            return answer | {"encrypted_name": stale} if request["type"] == "group.get" else answer

        s.liar.answer = old_name  # a stale name
        async with s.victim() as group:
            await group.live(LIMIT_S)
            assert Flaw.STALE_NAME in flaws(group)
            assert group.name == ""

        backup = await s.bob.wire.request(BackupGet(id=0), BackupGetOk)
        await s.bob.back_up()

        def old_backup(request: Frame, answer: Frame) -> Frame:
            is_get = request["type"] == "backup.get"
            return answer | {"generation": backup.generation, "backup": backup.backup} if is_get else answer

        async with Client(s.liar.url, store=tmp_path / "later.db", backoff=at_once()) as client:
            await client.login("bob", PASSPHRASE)
        s.liar.answer = old_backup  # an older backup of the keys, to a device that knows a later one
        async with Client(s.liar.url, store=tmp_path / "later.db", backoff=at_once()) as client:
            with pytest.raises(BackupRolledBack):
                await client.login("bob", PASSPHRASE)
        s.liar.be_honest()

        await s.bob.back_up()
        s.liar.forge = on(s.second, lambda event: [event | {"created_at": 7}])  # a past that another device has seen
        async with s.victim() as group:
            with pytest.raises(LogBroken, match="another history of this group than you"):
                await group.live(LIMIT_S)


async def test_what_is_done_to_whoever_posts_and_rekeys(migrated_database: str, tmp_path: Path) -> None:
    async with stage(migrated_database) as s:
        async with Client(s.liar.url, store=tmp_path / "bob.db", backoff=at_once()) as client:
            await client.login("bob", PASSPHRASE)
            group = client.group(s.group.id)
            await group.live(LIMIT_S)

            s.liar.forge = lambda event: [] if event["seq"] > group.cursor.seq else [event]
            replica = group._replica
            posting = asyncio.create_task(group.reply(s.first.id, "acknowledged, and dropped"))
            await eventually(lambda: Flaw.LOST_POST in flaws(group))
            await posting
            assert "has something else in its place" in group.findings[-1].text
            assert replica.broken is None

        s.liar.be_honest()
        async with Client(s.liar.url, store=tmp_path / "bob.db", backoff=at_once()) as client:
            s.liar.answer = truncated  # the log ends before what this device has seen
            s.liar.forge = s.liar.push = nothing
            await client.resume()
            with pytest.raises(LogBroken, match="old backup"):
                await client.group(s.group.id).live(LIMIT_S)
        s.liar.be_honest()

        async with s.victim() as group:
            await group.live(LIMIT_S)
            carol = identity()
            wraps: list[Frame] = []

            def name_an_outsider(request: Frame, answer: Frame) -> Frame:
                if request["type"] != "group.rekey":
                    return answer
                wraps.extend(request["encrypted_group_keys"])
                details = {"missing": [carol.user_id], "unexpected": []}
                return {
                    "type": "error",
                    "id": answer["id"],
                    "code": "member_set_mismatch",
                    "message": "not for everybody",
                    "details": details,
                }

            s.liar.answer = name_an_outsider  # the relay wants a key wrapped for somebody who is not in the group
            await s.group.set_role(s.bob.user_id, Role.ADMIN)
            await eventually(lambda: group.role == Role.ADMIN)
            assert await group.rekey() is False
            assert wraps
            assert {wrap["user_id"] for wrap in wraps} == {s.ann.user_id, s.bob.user_id}

        def swapped(request: Frame, answer: Frame) -> Frame:
            public = msgspec.to_builtins(identity().public_key)
            if request["type"] == "user.get":
                return answer | {"keys": [key | {"public_key": public} for key in answer["keys"]]}
            if request["type"] == "member.list":
                return answer | {"members": [member | {"public_key": public} for member in answer["members"]]}
            return answer

        s.liar.answer = swapped  # a known member's key is swapped
        async with s.victim() as group:
            await group.live(LIMIT_S)
            with pytest.raises(WrongKey, match=r"another key for (ann|bob) than the log names"):
                await group.rekey()


def nothing(frame: Frame) -> list[Frame]:
    return [frame] if frame["type"] == "hello" else []


def truncated(request: Frame, answer: Frame) -> Frame:
    if request["type"] != "subscribe":
        return answer
    groups = [group | {"status": "future_cursor", "seq": 3, "hash": bytes(32)} for group in answer["groups"]]
    return answer | {"groups": groups}


async def test_a_member_with_other_keys_stops_everything_and_asks(migrated_database: str) -> None:
    async with stage(migrated_database) as s:
        roster = s.group._replica.log.roster
        s.bob.people.accept(replace(roster[s.ann.user_id], signing_key=identity().signing_key), is_verified=True)
        group = s.bob.group(s.group.id)
        group._replica.settle()
        assert flaws(group) == [Flaw.KEY_CHANGED]
        with pytest.raises(KeyChanged, match="ann"):
            await group.reply(s.first.id, "to whom?")
        with pytest.raises(KeyChanged):
            await group.rekey()
        shown = {message.id: message for message in await group.history()}
        assert isinstance(shown[s.first.id].problem, Rejected)
        assert shown[s.reply.id].problem is None
        person = s.bob.verify(s.ann.user_id)
        assert person.is_changed
        assert person.fingerprint == s.ann.fingerprint
        s.bob.mark_verified(s.ann.user_id)
        await group.reply(s.first.id, "to you")
        assert s.bob.verify(s.ann.user_id).is_verified


async def test_what_is_done_to_signals(migrated_database: str) -> None:
    async with stage(migrated_database) as s, s.victim() as group:
        await group.live(LIMIT_S)
        payloads: list[Frame] = []

        def record(push: Frame) -> list[Frame]:
            if push["type"] == "signal":
                payloads.append(push)
            return [push]

        s.liar.push = record
        heard: list[Heard] = []

        async def listen() -> None:
            async for signal in group.signals():
                heard.append(signal)

        listening = asyncio.create_task(listen())
        await s.group.typing(s.first.id)
        await eventually(lambda: len(heard) == 1)
        assert heard[0].user_id == s.ann.user_id
        await s.liar.inject(payloads[0])  # replayed
        await s.liar.inject(payloads[0] | {"user_id": s.bob.user_id})  # in another's name
        await eventually(lambda: Flaw.FORGED_SIGNAL in flaws(group))
        assert len(heard) == 1
        listening.cancel()


async def test_what_is_done_to_files(migrated_database: str, tmp_path: Path) -> None:
    async with stage(migrated_database) as s:
        source = tmp_path / "source"
        source.write_bytes(bytes(range(256)) * 1_024)
        shared = await s.first.share(source)

        def bytes_as(change: Any) -> Any:
            def answer(request: Frame, answer: Frame) -> Frame:
                if request["type"] == "media.read" and answer["type"] == "ok":
                    return answer | {"data": change(answer["data"])}
                return answer

            return answer

        def swap_segments(data: bytes) -> bytes:
            return data[65_536:131_072] + data[:65_536] + data[131_072:] if len(data) >= 131_072 else data[::-1]

        for change in (lambda data: bytes(len(data)), swap_segments, lambda data: data[:-1] + b"\0"):
            s.liar.answer = bytes_as(change)  # another file's bytes, segments swapped, one bit at the end
            async with s.victim() as group:
                await group.live(LIMIT_S)
                message = await group.message(shared.id)
                with pytest.raises(MediaCorrupt):
                    await message.download(tmp_path / "never")
            assert not (tmp_path / "never").exists()

        def cut_short(request: Frame, answer: Frame) -> Frame:
            if request["type"] == "media.get":
                return answer | {"media": answer["media"] | {"size_bytes": 65_536}}
            return answer

        s.liar.answer = cut_short
        async with s.victim() as group:
            await group.live(LIMIT_S)
            with pytest.raises(MediaCorrupt):
                await (await group.message(shared.id)).download(tmp_path / "never")

        s.liar.forge = on(shared, lambda event: [event | {"root": bytes(32)}])  # with a root that fits other bytes
        async with s.victim() as group:
            assert isinstance(await problem_of(group, shared), Malformed)

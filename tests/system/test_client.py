"""The Python client against whole relays on a real database, over wires that are cut."""

import asyncio
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from orbital_client.wire import (
    ChainFork,
    Client,
    Closed,
    Cursor,
    Disconnected,
    ErrorCode,
    Event,
    FutureCursor,
    Group,
    GroupGone,
    Identity,
    InviteLink,
    Item,
    JoinRequested,
    Kind,
    Live,
    MemoryCursors,
    MemoryTokens,
    NotFound,
    OutOfDate,
    Reconnected,
    Refused,
    Role,
    Signal,
    statement_of,
    uuid7,
)
from orbital_protocol.codes import CloseCode, Scope
from orbital_protocol.frames import Ok, SessionList, SessionListOk, SessionRevoke, TokenCreate, TokenCreateOk
from orbital_protocol.statements import GroupCreated, MemberRemoved
from tests.relays import RunningRelay, running_relay
from tests.unit.client_relay import at_once, identity, our_tasks, soon, take_until, until

pytestmark = pytest.mark.timeout(120)

PASSWORD = "correct horse"
LIMIT_S = 30


@dataclass
class Cable:
    """A wire between clients and a relay: it can be cut, laid to another relay, and lose what comes back."""

    port: int
    url: str = ""
    loses_answers: bool = False
    _ends: set[asyncio.StreamWriter] = field(default_factory=set)

    def cut(self) -> None:
        """Kill every connection, as a tunnel does."""
        for end in self._ends:
            end.transport.abort()
        self.loses_answers = False

    async def join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            writer.transport.abort()
            return
        self._ends |= {writer, back}
        try:
            await asyncio.gather(self._carry(reader, back, False), self._carry(there, writer, True))
        finally:
            self._ends -= {writer, back}

    async def _carry(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, is_answer: bool) -> None:
        with suppress(ConnectionError):
            while data := await source.read(65_536):
                if not (is_answer and self.loses_answers):
                    target.write(data)
                    await target.drain()
        target.transport.abort()


@asynccontextmanager
async def cable_to(relay: RunningRelay) -> AsyncIterator[Cable]:
    cable = Cable(relay.port)
    server = await asyncio.start_server(cable.join, "127.0.0.1", 0)
    cable.url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield cable
    finally:
        server.close()
        cable.cut()
        await server.wait_closed()


@asynccontextmanager
async def signed_up(url: str, *names: str, **options: Any) -> AsyncIterator[list[Client]]:
    """A client each, registered."""
    clients = [Client(url, **{"backoff": at_once(), **options}) for _ in names]
    try:
        for client, name in zip(clients, names, strict=True):
            await client.__aenter__()
            await client.register(name, PASSWORD, identity())
        yield clients
    finally:
        for client in clients:
            await soon(client.close())


@pytest_asyncio.fixture(autouse=True)
async def nothing_is_left_running() -> AsyncIterator[None]:
    yield
    assert our_tasks() == set()


async def read(client: Client, group: Group, until_seq: int) -> list[Event]:
    """The group's events up to this seq, which must come one after the other."""
    events: list[Event] = []
    async with asyncio.timeout(LIMIT_S):
        async for item in client.events():
            if isinstance(item, Event) and item.group_id == group.group_id:
                assert not events or item.seq == events[-1].seq + 1
                events.append(item)
                if item.seq >= until_seq:
                    break
    return events


async def take_in(owner: Client, group: Group, *others: Client) -> list[Group]:
    """The others join by a link."""
    link = await group.invite()
    return [await other.join(InviteLink.parse(link.text)) for other in others]


def bodies(events: Iterable[Event]) -> list[bytes]:
    return [event.encrypted_body for event in events if event.encrypted_body is not None]


async def test_two_people_talk(migrated_database: str) -> None:
    async with running_relay(migrated_database) as relay, signed_up(relay.url, "ann", "bob") as (ann, bob):
        anns = await ann.create_group(b"sealed name")
        (bobs,) = await take_in(ann, anns, bob)
        thread = await anns.post(title=b"title", body=b"from ann")
        reply = await bobs.reply(thread.id, b"from bob")
        note = await anns.annotate(reply.id, b"a reaction")
        by_ann, by_bob = await read(ann, anns, note.seq), await read(bob, bobs, note.seq)
        assert [event.seq for event in by_ann] == [1, 2, 3, 4, 5, 6]
        assert by_bob == by_ann[by_bob[0].seq - 1 :], "from where the inviter had verified the log"
        assert by_bob[0].seq in (2, 3), "the link's own event may have come before the link was made, or not"
        assert [event.kind for event in by_ann[3:]] == [Kind.THREAD_POSTED, Kind.REPLY_POSTED, Kind.ANNOTATION_POSTED]
        assert bodies(by_ann) == [b"from ann", b"from bob", b"a reaction"]
        assert isinstance(statement_of(by_ann[0]), GroupCreated)
        assert by_ann[-1].hash == note.hash
        await bobs.signal(b"typing")
        assert (await take_until(ann, Signal)).payload == b"typing"


async def test_cut_off_again_and_again_nobody_misses_or_repeats_anything(migrated_database: str) -> None:
    async with (
        running_relay(migrated_database) as relay,
        cable_to(relay) as cable,
        signed_up(relay.url, "ann") as (ann,),
        signed_up(cable.url, "bob") as (bob,),
    ):
        anns = await ann.create_group(b"name")
        (bobs,) = await take_in(ann, anns, bob)
        thread = await anns.post(title=b"t", body=b"b")
        last = thread.seq + 60

        async def talk() -> None:
            for number in range(60):
                await anns.reply(thread.id, b"%d" % number)
                if number % 6 == 0:
                    cable.cut()

        talking = asyncio.create_task(talk())
        events = await read(bob, bobs, last)
        await talking
        assert [event.seq for event in events] == list(range(events[0].seq, last + 1))
        assert bodies(events)[-60:] == [b"%d" % number for number in range(60)]


async def test_what_is_posted_over_a_breaking_wire_is_posted_once(migrated_database: str) -> None:
    async with (
        running_relay(migrated_database) as relay,
        cable_to(relay) as cable,
        signed_up(cable.url, "ann") as (ann,),
    ):
        group = await ann.create_group(b"name")
        thread = await group.post(title=b"t", body=b"b")
        posted = []
        for number in range(12):
            cable.loses_answers = number % 2 == 0
            posting = asyncio.create_task(group.reply(thread.id, b"%d" % number))
            if cable.loses_answers:
                await arrived(relay, number)
                cable.cut()
            posted.append(await posting)
        assert [post.duplicate for post in posted] == [number % 2 == 0 for number in range(12)]
        events = await read(ann, group, posted[-1].seq)
        assert bodies(events)[-12:] == [b"%d" % number for number in range(12)]


async def arrived(relay: RunningRelay, number: int) -> None:
    """Give the relay the time to carry out what is on the wire: its answers are lost, so nothing tells."""
    await asyncio.sleep(0.15)


async def test_a_relay_that_is_killed_is_found_again(migrated_database: str) -> None:
    async with (
        running_relay(migrated_database) as first,
        cable_to(first) as cable,
        signed_up(cable.url, "ann") as (ann,),
    ):
        group = await ann.create_group(b"name")
        thread = await group.post(title=b"t", body=b"b")
        await read(ann, group, thread.seq)
        first.process.kill()
        await take_until(ann, Disconnected)
        posting = asyncio.create_task(group.reply(thread.id, b"while nobody is there"))
        async with running_relay(migrated_database) as second:
            cable.port = second.port
            await take_until(ann, Reconnected)
            reply = await posting
            assert bodies(await read(ann, group, reply.seq)) == [b"while nobody is there"]


async def test_a_relay_that_drains_is_left_for_another(migrated_database: str) -> None:
    async with (
        running_relay(migrated_database) as second,
        running_relay(migrated_database) as first,
        cable_to(first) as cable,
        signed_up(cable.url, "ann") as (ann,),
    ):
        group = await ann.create_group(b"name")
        cable.port = second.port
        first.process.terminate()
        assert (await take_until(ann, Disconnected)).code == CloseCode.DRAINING
        await take_until(ann, Reconnected)
        thread = await group.post(title=b"t", body=b"b")
        assert (await read(ann, group, thread.seq))[-1].seq == thread.seq


async def test_tokens_are_refreshed_within_the_socket(migrated_database: str) -> None:
    tokens = MemoryTokens()
    async with (
        running_relay(migrated_database, access_token_ttl_s=2) as relay,
        signed_up(relay.url, "ann", tokens=tokens) as (ann,),
    ):
        first = await tokens.load()
        assert first is not None
        group = await ann.create_group(b"name")
        last_at = 0
        async with asyncio.timeout(LIMIT_S):
            while last_at < first.access_expires_at + 1_000_000:
                last_at = (await group.post(title=b"t", body=b"b")).created_at
                await asyncio.sleep(0.1)
        async for item in ann.events():
            assert not isinstance(item, Disconnected)
            if isinstance(item, Event) and item.created_at == last_at:
                break
        held = await tokens.load()
        assert held is not None
        assert held.refresh_token != first.refresh_token


async def test_an_access_token_that_ran_out_while_away_is_refreshed(migrated_database: str) -> None:
    who, tokens = identity(), MemoryTokens()
    async with running_relay(migrated_database, access_token_ttl_s=1) as relay:
        async with Client(relay.url, tokens=tokens) as ann:
            await ann.register("ann", PASSWORD, who)
            before = await tokens.load()
        await asyncio.sleep(1.2)
        async with Client(relay.url, tokens=tokens) as ann:
            await ann.authenticate(who)
            assert await ann.groups() == []
        after = await tokens.load()
        assert before is not None
        assert after is not None
        assert (before.session_id, before.refresh_token) != (after.session_id, after.refresh_token)
        assert before.session_id == after.session_id


async def test_a_revoked_session_stops(migrated_database: str) -> None:
    who = identity()
    async with running_relay(migrated_database) as relay, Client(relay.url) as phone, Client(relay.url) as laptop:
        await phone.register("ann", PASSWORD, who, device_name="phone")
        await laptop.login("ann", PASSWORD, who, device_name="laptop")
        listed = (await phone.request(SessionList(id=0), SessionListOk)).sessions
        (other,) = [session for session in listed if not session.current]
        assert other.device_name == "laptop"
        await phone.request(SessionRevoke(id=0, session_id=other.session_id), Ok)
        with pytest.raises(Closed) as raised:
            await take_until(laptop, Reconnected)
        assert raised.value.code == CloseCode.REVOKED
        with pytest.raises(Closed):
            await laptop.groups()
        assert await phone.groups() == []


async def test_a_changed_password_stops_the_others_and_not_this_one(migrated_database: str) -> None:
    who = identity()
    async with (
        running_relay(migrated_database) as relay,
        cable_to(relay) as cable,
        Client(cable.url, backoff=at_once()) as phone,
        Client(relay.url) as laptop,
    ):
        await phone.register("ann", PASSWORD, who)
        await laptop.login("ann", PASSWORD, who)
        await phone.change_password(PASSWORD, "battery staple")
        with pytest.raises(Closed):
            await take_until(laptop, Reconnected)
        cable.cut()
        await take_until(phone, Reconnected)
        assert await phone.groups() == []
        await laptop.login("ann", "battery staple", who)
        assert await laptop.groups() == []


async def test_a_deleted_account_stops_its_devices_and_leaves_its_groups(migrated_database: str) -> None:
    async with running_relay(migrated_database) as relay, signed_up(relay.url, "ann", "bob") as (ann, bob):
        group = await ann.create_group(b"name")
        await take_in(ann, group, bob)
        who = bob.identity
        async with Client(relay.url) as tablet:
            await tablet.login("bob", PASSWORD, who)
            await bob.delete_account(PASSWORD)
            with pytest.raises(Closed) as raised:
                await take_until(tablet, Reconnected)
            assert raised.value.code == CloseCode.ACCOUNT_DELETED
        left = (await read(ann, group, 4))[-1]
        assert (left.kind, left.object_id, left.actor_id) == (Kind.MEMBER_LEFT, who.user_id, bytes(16))
        await group.rekey(encrypted_name=b"n", wrap=lambda _: b"w", key_commitment=bytes(32), previous_key=b"p")
        rekeyed = (await read(ann, group, 5))[-1]
        assert rekeyed.kind == Kind.GROUP_REKEYED
        assert (await group.post(title=b"t", body=b"b")).seq == 6


async def test_knocking_admission_roles_removal_and_rekey(migrated_database: str) -> None:
    async with running_relay(migrated_database) as relay, signed_up(relay.url, "ann", "bob", "cleo") as clients:
        ann, bob, cleo = clients
        group = await ann.create_group(b"name")
        (bobs,) = await take_in(ann, group, bob)
        code = (await group.info()).invite_code
        assert code is not None
        group_id = await cleo.knock(code)
        assert await cleo.admitted(group_id) is None
        knocked = await take_until(ann, JoinRequested)
        assert knocked.request.user_id == cleo.identity.user_id
        await group.admit(knocked.request)
        cleos = await cleo.admitted(group_id)
        assert cleos is not None
        assert (await cleos.post(title=b"t", body=b"from cleo")).seq == 5

        await group.set_role(bob.identity.user_id, Role.ADMIN)
        with pytest.raises(Refused):
            await cleos.remove(bob.identity.user_id)
        removed = await bobs.remove(cleo.identity.user_id, ban=True)
        last = [item async for item in until_gone(cleo, group_id)]
        assert isinstance(last[-1], GroupGone)
        assert last[-1].reason == "removed"
        assert isinstance(last[-2], Event)
        assert last[-2].seq == removed.seq
        assert isinstance(statement_of(last[-2]), MemberRemoved)
        with pytest.raises(NotFound):
            await cleos.post(title=b"t", body=b"too late")
        with pytest.raises(OutOfDate) as raised:
            await group.post(title=b"t", body=b"too early")
        assert raised.value.code == ErrorCode.REKEY_REQUIRED

        wrapped: list[bytes] = []

        def wrap(member: Any) -> bytes:
            wrapped.append(member.user_id)
            return b"wrapped for " + member.user_id

        await group.rekey(encrypted_name=b"new", wrap=wrap, key_commitment=bytes(32), previous_key=b"old")
        assert set(wrapped) == {ann.identity.user_id, bob.identity.user_id}
        keys = await bobs.keys()
        assert keys[-1].encrypted_group_key == b"wrapped for " + bob.identity.user_id
        assert await bobs.key_epoch() == 2 or (await bobs.info()).key_epoch == 2
        await bobs.post(title=b"t", body=b"under the new key")


async def until_gone(client: Client, group_id: bytes) -> AsyncIterator[Item]:
    async with asyncio.timeout(LIMIT_S):
        async for item in client.events():
            yield item
            if isinstance(item, GroupGone) and item.group_id == group_id:
                return


async def test_two_who_change_the_group_at_once_both_succeed(migrated_database: str) -> None:
    async with (
        running_relay(migrated_database) as first,
        running_relay(migrated_database) as second,
        signed_up(first.url, "ann", "cleo", "dan", "eve") as (ann, cleo, dan, eve),
        signed_up(second.url, "bob") as (bob,),
    ):
        group = await ann.create_group(b"name")
        (bobs, *_) = await take_in(ann, group, bob, cleo, dan, eve)
        await group.set_role(bob.identity.user_id, Role.ADMIN)
        await asyncio.gather(
            group.remove(cleo.identity.user_id),
            bobs.remove(dan.identity.user_id),
            group.set_role(eve.identity.user_id, Role.ADMIN),
            bobs.rotate_code(),
        )
        members = {member.user_id: member.role for member in await bobs.members()}
        assert members == {
            ann.identity.user_id: Role.OWNER,
            bob.identity.user_id: Role.ADMIN,
            eve.identity.user_id: Role.ADMIN,
        }


async def test_a_slow_reader_misses_nothing_and_stays_connected(
    migrated_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orbital_client.wire.feed._PAUSE_S", 0.05)
    async with (
        running_relay(migrated_database) as relay,
        signed_up(relay.url, "ann") as (ann,),
        signed_up(relay.url, "bob", buffer_bytes=20_000) as (bob,),
    ):
        anns = await ann.create_group(b"name")
        (bobs,) = await take_in(ann, anns, bob)
        thread = await anns.post(title=b"t", body=b"b")
        posts = [anns.reply(thread.id, b"x" * 1000) for _ in range(300)]
        await asyncio.gather(*posts)
        await until(lambda: bob._feed._following.is_paused)
        seen: list[int] = []
        async with asyncio.timeout(LIMIT_S):
            async for item in bob.events():
                assert not isinstance(item, Disconnected)
                if isinstance(item, Event):
                    seen.append(item.seq)
                    if item.seq % 50 == 0:
                        await bobs.annotate(thread.id, b"in between")  # an answer is read, however much waits
                    if item.seq == thread.seq + 300:
                        break
        assert seen == list(range(seen[0], thread.seq + 301))


async def test_a_bot_goes_on_where_it_stopped(migrated_database: str, tmp_path: Path) -> None:
    bot = Identity(uuid7(), identity().signing, identity().rsa, is_bot=True)
    cursors = MemoryCursors()
    async with running_relay(migrated_database) as relay, signed_up(relay.url, "ann") as (ann,):
        anns = await ann.create_group(b"name")
        async with Client(relay.url, cursors=cursors, kinds=[Kind.REPLY_POSTED]) as client:
            await client.register("robot", PASSWORD, bot)
            await take_in(ann, anns, client)
            request = TokenCreate(
                id=0, token_id=uuid7(), name="bot", scopes=[Scope.READ, Scope.POST], groups=[anns.group_id]
            )
            token = (await client.request(request, TokenCreateOk)).token
        thread = await anns.post(title=b"t", body=b"b")
        for number in range(3):
            await anns.reply(thread.id, b"%d" % number)
        for expected in ([b"0", b"1"], [b"1", b"2"]):  # what was in hand when it stopped comes once more
            async with Client(relay.url, cursors=cursors, kinds=[Kind.REPLY_POSTED]) as client:
                await client.authenticate(bot, token=token)
                assert [(await take_until(client, Event)).encrypted_body for _ in range(2)] == expected
                await client.group(anns.group_id).annotate(thread.id, b"seen")
                with pytest.raises(Refused):
                    await client.create_group(b"a bot's own")


async def test_a_database_restored_from_a_backup_is_noticed(migrated_database: str) -> None:
    """The relay's log ends before what the client has seen, or has something else there."""
    who = identity()
    async with running_relay(migrated_database) as relay:
        async with Client(relay.url) as ann:
            await ann.register("ann", PASSWORD, who)
            group = await ann.create_group(b"name")
            thread = await group.post(title=b"t", body=b"b")
            head = (await read(ann, group, thread.seq))[-1]
        for cursor, finding in (
            (Cursor(group_id=group.group_id, seq=head.seq + 5, hash=head.hash), FutureCursor),
            (Cursor(group_id=group.group_id, seq=head.seq, hash=bytes(32)), ChainFork),
        ):
            cursors = MemoryCursors([cursor])
            async with Client(relay.url, cursors=cursors) as ann:
                await ann.login("ann", PASSWORD, who)
                with pytest.raises(finding):
                    await take_until(ann, Live)
                with pytest.raises(finding):
                    await ann.group(group.group_id).post(title=b"t", body=b"b")
            assert cursors.cursors == [cursor]


async def test_what_a_group_ends_with(migrated_database: str) -> None:
    async with running_relay(migrated_database) as relay, signed_up(relay.url, "ann", "bob") as (ann, bob):
        group = await ann.create_group(b"name")
        (bobs,) = await take_in(ann, group, bob)
        thread = await bobs.post(title=b"t", body=b"b")
        await group.delete_post(thread.id)
        assert (await group.history(after_seq=thread.seq - 1)).events[0].erased
        assert [event.erased for event in (await group.threads()).events] == [True]
        assert (await group.replies(thread.id)).events == []
        moved = await group.put_cursor("read", (await group.history(limit=1)).events[0])
        kept = await group.get_cursor("read")
        assert (kept.seq, kept.hash) == (moved.seq, moved.hash)
        assert len(await group.invites()) == 1
        await group.transfer(bob.identity.user_id)
        await group.leave()
        assert (await take_until(ann, GroupGone)).reason == "left"
        await bobs.delete()
        assert (await take_until(bob, GroupGone)).reason == "deleted"
        assert await bob.groups() == []


@pytest.mark.parametrize("page", ["README.md", "WIRE.md"])
async def test_the_examples_of_the_pages_work_as_they_stand(page: str, migrated_database: str) -> None:
    text = (Path(__file__).parents[2] / "clients" / "python" / page).read_text()
    example = text.split("```python\n")[1].split("```")[0]
    async with running_relay(migrated_database) as relay:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            example.replace("ws://127.0.0.1:8765", relay.url),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await soon(process.communicate())
    assert said.decode().splitlines() == ["2 Where shall we meet?", "3 On Mars, as always."]


async def test_the_demo_keeps_its_promises() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "examples.demo"),
        cwd=Path(__file__).parents[2],
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(90):
        said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
    assert "all three verified the same log · nothing that was said is on the relay's disk" in said.decode()

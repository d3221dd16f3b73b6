"""The client that encrypts and verifies, against whole relays on a real database."""

import asyncio
from pathlib import Path

import pytest

from orbital_client import Client, Group, Message, Role
from tests.relays import running_relay
from tests.system.secrets import LIMIT_S, PASSPHRASE, eventually, people
from tests.unit.client_relay import at_once

pytestmark = pytest.mark.timeout(120)


async def next_message(group: Group) -> Message:
    async with asyncio.timeout(LIMIT_S):
        async for message in group.follow():
            return message
    raise AssertionError("the group has ended")


async def test_two_people_talk(migrated_database: str) -> None:
    async with running_relay(migrated_database) as relay, people(relay.url, "ann", "bob") as (ann, bob):
        anns = await ann.create_group("Book club")
        link = await anns.invite()
        bobs = await bob.join(link.text)
        assert bobs.name == "Book club"
        thread = await anns.post("Ubik", "Shall we read it?")
        reply = await bobs.reply(thread.id, "Yes!")
        await reply.edit("Yes, please!")
        await (await anns.message(thread.id)).pin()
        await thread.react("👍")
        await eventually(lambda: anns.cursor == bobs.cursor)
        for group in (anns, bobs):
            first, second = await group.history()
            assert (first.title, first.text, first.author) == ("Ubik", "Shall we read it?", "ann")
            assert first.is_pinned
            assert dict(first.reactions) == {"👍": frozenset({ann.user_id})}
            assert (second.text, second.author, second.is_edited) == ("Yes, please!", "bob", True)
            assert group.findings == []
        assert {(member.name, member.role) for member in await bobs.members()} == {
            ("ann", Role.OWNER),
            ("bob", Role.MEMBER),
        }


async def test_a_removal_rekeys_by_itself(migrated_database: str) -> None:
    async with running_relay(migrated_database) as relay, people(relay.url, "ann", "bob", "eve") as (ann, bob, eve):
        anns = await ann.create_group("Book club")
        link = await anns.invite()
        bobs, eves = await bob.join(link.text), await eve.join(link.text)
        thread = await anns.post("Ubik", "for three")
        await anns.remove(eve.user_id)
        second = await bobs.reply(thread.id, "for two")
        await eventually(lambda: eves.gone == "removed" and anns.cursor.seq >= second.seq)
        assert [message.text for message in await anns.history()] == ["for three", "for two"]
        assert second.post.hash == (await anns.history())[-1].post.hash
        assert anns.name == "Book club"


async def test_a_second_device_reads_everything(migrated_database: str, tmp_path: Path) -> None:
    async with running_relay(migrated_database) as relay, people(relay.url, "ann", "bob") as (ann, bob):
        anns = await ann.create_group("Book club")
        bobs = await bob.join((await anns.invite()).text)
        thread = await anns.post("Ubik", "Shall we read it?")
        async with Client(relay.url, store=tmp_path / "second.db", backoff=at_once()) as second:
            await second.login("ann", PASSPHRASE)
            group = second.group(anns.id)
            await group.live()
            await eventually(lambda: group.name == "Book club")
            assert [message.text for message in await group.history()] == ["Shall we read it?"]
            await group.reply(thread.id, "from the second device")
            await eventually(lambda: bobs.cursor.seq == group.cursor.seq)
            assert (await bobs.history())[-1].text == "from the second device"
        async with Client(relay.url, store=tmp_path / "second.db", backoff=at_once()) as again:
            await again.resume()
            group = again.group(anns.id)
            await group.live()
            texts = [message.text for message in await group.history()]
            assert texts == ["Shall we read it?", "from the second device"]


async def test_files(migrated_database: str, tmp_path: Path) -> None:
    async with running_relay(migrated_database) as relay, people(relay.url, "ann", "bob") as (ann, bob):
        anns = await ann.create_group("Book club")
        bobs = await bob.join((await anns.invite()).text)
        thread = await anns.post("Maps", "")
        source = tmp_path / "map of mars.txt"
        source.write_bytes(b"mars " * 100_000)
        await thread.share(source, caption="look")
        await eventually(lambda: anns.cursor == bobs.cursor)
        message = (await bobs.history())[-1]
        assert (message.kind, message.file_name, message.text) == ("file", "map of mars.txt", "look")
        folder = tmp_path / "bob"
        folder.mkdir()
        path = await message.download(folder)
        assert path.read_bytes() == source.read_bytes()
        assert path.name == "map of mars.txt"

"""What members must bear with: foreign bytes in the log, keys that come late, a store that is damaged."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from orbital_client import AccountRefused, CannotOpen, Client, Group, MissingKey, Store, StoreDamaged, keeper
from orbital_client.errors import BadSeal, ForgedAuthor, Malformed, UnknownVersion
from orbital_client.identity import uuid7
from tests.relays import running_relay
from tests.system.liar import Frame, liar_before
from tests.system.secrets import LIMIT_S, PASSPHRASE, eventually, people
from tests.unit.client_relay import at_once

pytestmark = pytest.mark.timeout(120)


async def seen(group: Group) -> list[str | type[CannotOpen]]:
    """What a member sees: texts, and what stands in the way of others."""
    await group.live(LIMIT_S)
    return [message.text if message.problem is None else type(message.problem) for message in await group.history()]


async def test_foreign_bytes_of_a_member_are_shown_as_what_they_are(migrated_database: str) -> None:
    """Whoever may post may post anything; the relay can't look."""
    async with running_relay(migrated_database) as relay, people(relay.url, "ann", "bob") as (ann, bob):
        anns = await ann.create_group("Book club")
        bobs = await bob.join(await anns.invite())
        thread = await anns.post("Ubik", "Shall we read it?")
        await bobs.live(LIMIT_S)
        moved = (await anns.wire.history()).events[-1].encrypted_body
        assert moved is not None
        of_a_later_version = b"\x63" + moved[1:]
        for foreign in (b"\x01", b"plain text", of_a_later_version, moved):
            await bobs.wire.reply(thread.id, foreign, reply_id=uuid7())
        await bobs.reply(thread.id, "I have begun already.")
        await eventually(lambda: anns.cursor == bobs.cursor)
        expected = ["Shall we read it?", Malformed, UnknownVersion, UnknownVersion, BadSeal]
        assert [*expected, "I have begun already."] == await seen(anns) == await seen(bobs)
        said = [str(message.problem) for message in await anns.history() if message.problem is not None]
        assert all(said) and "plain" not in "".join(said)
        assert ForgedAuthor not in await seen(anns)


async def test_what_cannot_be_opened_heals_when_the_key_comes(
    migrated_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "_LOOK_S", 0.2)
    async with (
        running_relay(migrated_database) as relay,
        liar_before(relay.port) as liar,
        people(relay.url, "ann", "bob") as (ann, bob),
    ):
        anns = await ann.create_group("Book club")
        await bob.join(await anns.invite())
        thread = await anns.post("Ubik", "Shall we read it?")
        replies = [f"reply {number}" for number in range(20)]  # more than are read at once
        for reply in replies:
            await anns.reply(thread.id, reply)
        said = ["Shall we read it?", *replies]
        closed = [MissingKey] * len(said)

        def without_keys(request: Frame, answer: Frame) -> Frame:
            is_asked = request["type"] == "group.keys" and answer["type"] == "ok"
            return answer | {"keys": []} if is_asked else answer

        liar.answer = without_keys
        async with Client(liar.url, store=tmp_path / "later.db", backoff=at_once()) as later:
            await later.login("bob", PASSPHRASE)
            group = later.group(anns.id)
            told: list[Any] = []

            async def follow() -> None:
                async for message in group.follow(group.start):
                    told.append(type(message.problem) if message.problem else message.text)

            following = asyncio.create_task(follow())
            assert await seen(group) == closed
            await eventually(lambda: told == closed)
            liar.be_honest()
            await eventually(lambda: told == [*closed, *said])
            assert await seen(group) == said
            following.cancel()


async def test_a_damaged_store_is_moved_away_and_everything_comes_back(migrated_database: str, tmp_path: Path) -> None:
    path = tmp_path / "ann.db"
    async with running_relay(migrated_database) as relay:
        async with Client(relay.url, store=path, backoff=at_once()) as ann:
            await ann.register("ann", PASSPHRASE)
            group = await ann.create_group("Book club")
            await group.post("Ubik", "Shall we read it?")
        path.write_bytes(path.read_bytes()[:5_000])
        with pytest.raises(StoreDamaged, match="log in again with your passphrase"):
            Store(path)
        with pytest.raises(StoreDamaged):
            Client(relay.url, store=path)
        path.rename(tmp_path / "damaged.db")
        async with Client(relay.url, store=path, backoff=at_once()) as ann:
            with pytest.raises(AccountRefused):
                await ann.login("ann", "some other words")
            await ann.login("ann", PASSPHRASE)
            assert await seen(ann.group(group.id)) == ["Shall we read it?"]
            await ann.group(group.id).post("Tea", "Who brings it?")

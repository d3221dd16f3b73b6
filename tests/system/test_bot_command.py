"""`orbital bot`: processes of its own against a whole relay, and the bots that run with the secrets they print."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from orbital_client import AccountRefused, Bot, Closed, Message
from orbital_client.bots import BotSecret, following
from orbital_protocol.codes import CloseCode
from tests.relays import running_relay
from tests.system.secrets import LIMIT_S
from tests.system.test_bots import running
from tests.system.test_orbital_command import Person, in_a_group, person, two_people
from tests.unit.client_relay import at_once

pytestmark = pytest.mark.timeout(120)


def answering(url: str, secret: str) -> Bot:
    bot = Bot(url, token=secret, backoff=at_once())

    @bot.command("ping")
    async def ping(message: Message) -> None:
        await message.reply("pong")

    return bot


async def answers(somebody: Person, group: str, thread: str) -> None:
    """Wait until a bot answers in a thread."""
    await somebody.do("reply", group, thread, "!ping")
    async with asyncio.timeout(LIMIT_S):
        while (await somebody.do("history", group, "--thread", thread))[-1]["text"] != "pong":
            await asyncio.sleep(0.1)


async def ended(bot: Bot) -> Exception:
    """Run a bot that the relay sends away, and say why."""
    with pytest.raises((Closed, AccountRefused)) as caught:
        async with asyncio.timeout(LIMIT_S):
            await bot.serve()
    return caught.value


async def members(somebody: Person, group: str) -> dict[str, dict[str, Any]]:
    return {member["username"]: member for member in await somebody.do("members", group)}


async def test_a_bot_is_made_listed_brought_into_groups_and_ended(
    migrated_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "LOOK_S", 0.1)
    async with two_people(migrated_database, tmp_path) as (relay, ann, bob):
        await in_a_group(ann, bob)
        made = await ann.do("bot", "create", "ping_bot", "--group", "Book club", "--expires", "90d")
        assert BotSecret.parse(made["secret"]).text == made["secret"]
        assert made["scopes"] == ["read", "post", "signal"]
        [listed] = await ann.do("bot", "list")
        assert listed == {name: value for name, value in made.items() if name != "secret"}
        assert [group["name"] for group in listed["groups"]] == ["Book club"]
        assert not listed["is_expired"]
        shown = (await members(ann, "Book club"))["ping_bot"]
        assert (shown["is_bot"], shown["is_verified"], shown["role"]) == (True, True, "member")
        assert (await members(bob, "Book club"))["ping_bot"]["is_bot"]
        assert (await bob.do("verify", "ping_bot"))["person"]["fingerprint"] == made["fingerprint"]

        async with running(answering(relay.url, made["secret"])) as bot:
            await ann.do("post", "Book club", "Bots")
            await answers(bob, "Book club", "Bots")
            await ann.do("create", "Chess club", "--no-history")
            await ann.do("bot", "add", "ping_bot", "Chess club")
            assert "in this group already" in await ann.fail("bot", "add", "ping_bot", "Chess club")
            await ann.do("post", "Chess club", "Bots")
            async with asyncio.timeout(LIMIT_S):
                while len(bot.client.groups) < 2:
                    await asyncio.sleep(0.05)
            await answers(ann, "Chess club", "Bots")
        await end_it_while_it_runs(relay.url, ann, bob, made["secret"])


async def end_it_while_it_runs(url: str, ann: Person, bob: Person, secret: str) -> None:
    """Another secret ends the first one, and `revoke` the bot: both while it is connected."""
    running_bot = asyncio.create_task(ended(answering(url, secret)))
    renewed = await ann.do("bot", "renew", "ping_bot")
    assert renewed["expires_at"] is None and len(renewed["groups"]) == 2
    assert_sent_away(await running_bot)
    bot = answering(url, renewed["secret"])
    running_bot = asyncio.create_task(ended(bot))
    async with asyncio.timeout(LIMIT_S):
        await bot.is_ready.wait()
    revoked = await ann.do("bot", "revoke", "ping_bot")
    error = await running_bot
    assert isinstance(error, Closed) and error.code == CloseCode.REVOKED
    assert len(revoked["groups"]) == 2
    assert_sent_away(await ended(answering(url, renewed["secret"])))
    assert await ann.do("bot", "list") == []
    for group, people in (("Book club", {"ann", "bob"}), ("Chess club", {"ann"})):
        assert set(await members(ann, group)) == people
        assert (await ann.do("verify", "--deep", group))["epochs"] > 1, "the bot's key is in force no more"
    assert (await bob.do("reply", "Book club", "Bots", "It is gone."))["text"] == "It is gone."
    assert "no bot 'ping_bot' was made here" in await ann.fail("bot", "revoke", "ping_bot")


def assert_sent_away(error: Exception) -> None:
    assert isinstance(error, AccountRefused) or (isinstance(error, Closed) and error.code == CloseCode.REVOKED)


async def test_a_bot_leaves_where_its_maker_may_not_remove_it(migrated_database: str, tmp_path: Path) -> None:
    async with two_people(migrated_database, tmp_path) as (relay, ann, bob):
        await in_a_group(ann, bob)
        await ann.do("role", "Book club", "bob", "admin")
        made = await bob.do("bot", "create", "ping_bot", "--group", "Book club")
        await ann.do("role", "Book club", "bob", "member")
        assert "only an admin" in await bob.fail("bot", "add", "ping_bot", "Book club")
        await bob.do("bot", "revoke", "ping_bot")
        assert set(await members(ann, "Book club")) == {"ann", "bob"}
        assert (await ann.do("verify", "--deep", "Book club"))["epochs"] == 2
        assert isinstance(await ended(answering(relay.url, made["secret"])), AccountRefused)


async def test_a_secret_ends_by_itself(migrated_database: str, tmp_path: Path) -> None:
    async with two_people(migrated_database, tmp_path) as (relay, ann, _):
        made = await ann.do("bot", "create", "ping_bot", "--expires", "1s")
        assert made["groups"] == []
        # Before its time is over it is let in, and cut off then.
        assert isinstance(await ended(answering(relay.url, made["secret"])), (AccountRefused, Closed))
        assert (await ann.do("bot", "list"))[0]["is_expired"]
        assert "(over)" in (await ann.run("bot", "list")).out
        renewed = await ann.do("bot", "renew", "ping_bot", "--expires", "1d")
        async with running(answering(relay.url, renewed["secret"])):
            pass


async def test_what_people_see(migrated_database: str, tmp_path: Path) -> None:
    async with two_people(migrated_database, tmp_path) as (_, ann, _bob):
        await ann.do("create", "Book club")
        ran = await ann.run("bot", "create", "ping_bot", "--group", "Book club", "--scope", "read")
        assert BotSecret.parse(ran.out).text == ran.out.strip(), "standard output has the secret alone"
        assert ran.err == "The secret of ping_bot, shown this once: whoever has it is the bot.\n"
        header, row = (await ann.run("bot", "list")).out.splitlines()
        assert header.split() == ["bot", "id", "may", "groups", "expires"]
        assert "ping_bot" in row and "Book club" in row and row.split()[-1] == "never"
        assert not any(ran.out.strip() in said.out + said.err for said in [await ann.run("bot", "list")])


async def test_what_is_refused(migrated_database: str, tmp_path: Path) -> None:
    async with two_people(migrated_database, tmp_path) as (_, ann, bob):
        await in_a_group(ann, bob)
        assert "only an admin" in await bob.fail("bot", "create", "ping_bot", "--group", "Book club")
        assert "no groups are called" in await ann.fail("bot", "create", "ping_bot", "--group", "Chess club")
        assert await ann.do("bot", "list") == [], "nothing was made"
        assert "username is taken" in await ann.fail("bot", "create", "bob")
        await ann.do("bot", "create", "ping_bot")
        assert "there is a bot ping_bot already" in await ann.fail("bot", "create", "ping_bot")
        for name, *rest in (("add", "Book club"), ("renew",), ("revoke",)):
            assert "was made here" in await bob.fail("bot", name, "ping_bot", *rest)
        for wrong in (("--scope", "post"), ("--scope", "everything"), ("--expires", "soon")):
            await ann.fail("bot", "create", "pong_bot", *wrong, status=2)


async def test_a_bot_that_was_made_halfway_gets_its_secret_later(migrated_database: str, tmp_path: Path) -> None:
    """Its account is there, but there is no room for it in the group: nothing is lost."""
    ann = person(tmp_path, "ann")
    async with running_relay(migrated_database, max_members_per_group=1) as relay:
        await ann.do("register", relay.url, "ann")
        await ann.do("create", "Book club")
        said = await ann.fail("bot", "create", "ping_bot", "--group", "Book club")
        assert "ping_bot has an account but no secret: orbital bot renew ping_bot" in said
        renewed = await ann.do("bot", "renew", "ping_bot")
        async with running(answering(relay.url, renewed["secret"])):
            pass

"""Bots, as programs and as members: commands, cursors that survive a kill, errors that don't end them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from orbital_client import AccountRefused, Bot, Group, Message
from orbital_client.bots import BotSecret, create_bot, revoke_bot
from tests.relays import running_relay
from tests.system.secrets import LIMIT_S, eventually, people
from tests.unit.client_relay import at_once

pytestmark = pytest.mark.timeout(120)


@asynccontextmanager
async def running(bot: Bot) -> AsyncIterator[Bot]:
    serving = asyncio.create_task(bot.serve())
    try:
        async with asyncio.timeout(LIMIT_S):
            ready = asyncio.create_task(bot.is_ready.wait())
            await asyncio.wait({serving, ready}, return_when=asyncio.FIRST_COMPLETED)
            ready.cancel()
        if serving.done():
            await serving
        yield bot
    finally:
        bot.stop()
        async with asyncio.timeout(LIMIT_S):
            await serving


def make(url: str, secret: BotSecret) -> tuple[Bot, list[str]]:
    """A bot that answers pings, fails on request, and remembers what it was told."""
    bot = Bot(url, token=secret.text, backoff=at_once())
    told: list[str] = []

    @bot.command("ping")
    async def ping(message: Message, *words: str) -> None:
        await message.reply(" ".join(("pong", *words)))

    @bot.on("message", kind="reply")
    async def hear(message: Message) -> None:
        told.append(message.text)
        if message.text == "fail":
            raise RuntimeError("as asked")

    return bot, told


async def texts(group: Group) -> list[str]:
    return [message.text for message in await group.history()]


async def test_a_bot_answers_goes_on_where_it_stopped_and_can_be_revoked(migrated_database: str) -> None:
    async with running_relay(migrated_database) as relay, people(relay.url, "ann") as (ann,):
        group = await ann.create_group("Book club")
        made = await create_bot(relay.url, "echo_bot", links=((await group.invite()).text,))
        assert BotSecret.parse(made.secret.text) == made.secret
        assert made.secret.token not in repr(made)
        await eventually(lambda: group.has_member(made.user_id))
        assert [member.is_bot for member in await group.members()] == [False, True]

        bot, told = make(relay.url, made.secret)
        async with running(bot):
            thread = await group.post("Bots", "hello")
            await thread.reply("fail")
            await thread.reply('!ping "two words" more')
            await eventually(lambda: len(told) == 2)
            async with asyncio.timeout(LIMIT_S):
                while "pong two words more" not in await texts(group):
                    await asyncio.sleep(0.05)
        assert told == ["fail", '!ping "two words" more'], "its own reply is not for it"

        for number in range(5):
            await thread.reply(f"while it was away {number}")
        bot, told = make(relay.url, made.secret)
        async with running(bot):
            await eventually(lambda: len(told) == 5)
        assert told == [f"while it was away {number}" for number in range(5)]

        bot, told = make(relay.url, made.secret)
        async with running(bot):
            await group.remove(made.user_id)
            await thread.reply("not for bots")
            await eventually(lambda: not bot.client.groups)
        assert told == []

        await revoke_bot(relay.url, made.stored)
        bot, _ = make(relay.url, made.secret)
        with pytest.raises(AccountRefused):
            await bot.serve()

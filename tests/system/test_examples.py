"""The example bots and the one of docs/bots.md, run as they are: processes beside a relay, ended by real signals."""

import asyncio
import os
import re
import shlex
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest

from orbital_client import Client, Group, Message
from orbital_client.bots import create_bot
from tests.relays import RunningRelay, running_relay
from tests.system.secrets import LIMIT_S, PASSPHRASE, eventually, people

pytestmark = pytest.mark.timeout(120)

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "bots.md"
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("ORBITAL_")}
READY = "is ready, in 1 groups"


@dataclass
class Program:
    """A process, and the lines that it has written."""

    process: asyncio.subprocess.Process
    lines: list[str] = field(default_factory=list)

    async def read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.lines.append(line.decode())

    async def says(self, text: str) -> str:
        """Wait for a line with this in it."""
        await eventually(lambda: any(text in line for line in self.lines), text)
        return next(line for line in self.lines if text in line)

    async def end(self, number: signal.Signals) -> int:
        """Send a signal; the exit status."""
        self.process.send_signal(number)
        async with asyncio.timeout(LIMIT_S):
            return await self.process.wait()


@asynccontextmanager
async def program(*arguments: str, cwd: Path = ROOT, environment: dict[str, str]) -> AsyncIterator[Program]:
    """A process, killed at the end if it is still there."""
    process = await asyncio.create_subprocess_exec(
        *arguments,
        cwd=cwd,
        env=CLEAN | environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    running = Program(process)
    reading = asyncio.create_task(running.read())
    try:
        yield running
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await reading
        print("".join(running.lines))


@dataclass
class Stage:
    """Ann with a group, and a bot of hers in it, which doesn't run yet."""

    relay: RunningRelay
    ann: Client
    group: Group
    secret: str

    @asynccontextmanager
    async def bot(self, name: str, **environment: str) -> AsyncIterator[Program]:
        """An example, running."""
        secrets = {"ORBITAL_URL": self.relay.url, "ORBITAL_BOT_SECRET": self.secret}
        async with program(sys.executable, str(ROOT / "examples" / name), environment=secrets | environment) as running:
            await running.says(READY)
            yield running

    async def told(self) -> list[Message]:
        """All messages of the group that can be read."""
        return [message for message in await self.group.history(limit=1000) if message.problem is None]

    async def until(self, holds: Callable[[list[Message]], bool]) -> list[Message]:
        """Wait until it holds for what was said in the group."""
        async with asyncio.timeout(LIMIT_S):
            while not holds(found := await self.told()):
                await asyncio.sleep(0.05)
        return found


@asynccontextmanager
async def stage(dsn: str, bot: str) -> AsyncIterator[Stage]:
    async with running_relay(dsn) as relay, people(relay.url, "ann") as (ann,):
        group = await ann.create_group("Book club")
        made = await create_bot(relay.url, bot, links=(await group.invite(),))
        await eventually(lambda: group.has_member(made.user_id))
        await group.ready()
        yield Stage(relay, ann, group, made.secret.text)


# ── echo ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_echo_answers_each_once_though_it_is_killed(migrated_database: str) -> None:
    async with stage(migrated_database, "echo") as at:
        async with at.bot("echo_bot.py") as bot:
            thread = await at.group.post("Bots")
            for number in range(10):
                await thread.reply(f"!echo {number}")
            await at.until(lambda said: any(message.text == "4" for message in said))
            assert await bot.end(signal.SIGKILL) == -signal.SIGKILL
        await thread.reply("!echo while it was away")
        async with at.bot("echo_bot.py") as bot:
            said = await at.until(lambda said: any(message.text == "while it was away" for message in said))
            assert await bot.end(signal.SIGTERM) == 0
        answers = [message.text for message in said if message.author == "echo"]
        assert answers == [*map(str, range(10)), "while it was away"]


# ── the digest ──────────────────────────────────────────────────────────────────────────────────────────────────────


def counted(said: list[Message]) -> int:
    """How many messages all digests together tell of."""
    digests = [message.text for message in said if message.title.startswith("Digest of ")]
    return sum(int(text.split()[0]) for text in digests)


async def test_the_digests_tell_of_everything_once_though_their_bot_is_killed(migrated_database: str) -> None:
    async with stage(migrated_database, "digest") as at:
        async with at.bot("digest_bot.py", DIGEST_SECONDS="2") as bot:
            thread = await at.group.post("Ubik", "Shall we?")
            for number in range(4):
                await thread.reply(f"{number}")
            await at.until(lambda said: counted(said) == 5)
            assert await bot.end(signal.SIGKILL) == -signal.SIGKILL
        async with at.bot("digest_bot.py", DIGEST_SECONDS="2") as bot:
            await thread.reply("I have begun already.")
            said = await at.until(lambda said: counted(said) >= 6)
            assert await bot.end(signal.SIGTERM) == 0
    assert counted(said) == 6
    last = [message.text for message in said if message.author == "digest"][-1]
    assert last.splitlines() == ["1 messages in 1 threads.", "ann: 1", "«an older thread»: 1"]


# ── the webhook ─────────────────────────────────────────────────────────────────────────────────────────────────────

TOKEN = "a token for the webhook"


@asynccontextmanager
async def webhook(at: Stage) -> AsyncIterator[tuple[Program, aiohttp.ClientSession]]:
    async with at.bot("webhook_bot.py", WEBHOOK_TOKEN=TOKEN, WEBHOOK_PORT="0") as bot:
        port = (await bot.says("listening on")).split()[-1]
        headers = {"Authorization": f"Bearer {TOKEN}"}
        limit = aiohttp.ClientTimeout(LIMIT_S)
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", headers=headers, timeout=limit) as session:
            yield bot, session


async def test_the_webhook_posts_once_what_is_sent_again_after_a_kill(migrated_database: str) -> None:
    async with stage(migrated_database, "alerts") as at:
        alert = {"group": "Book club", "title": "Disk full", "text": "db1 has 2 % left"}
        once = {"Idempotency-Key": "disk-42"}
        async with webhook(at) as (bot, session):
            async with session.post("/posts", json=alert, headers=once) as answer:
                assert answer.status == 201
                first = await answer.json()
            assert await bot.end(signal.SIGKILL) == -signal.SIGKILL
        async with webhook(at) as (bot, session):
            async with session.post("/posts", json=alert, headers=once) as answer:
                assert (answer.status, await answer.json()) == (201, first)
            reply = {"group": at.group.id.hex(), "thread": first["thread"], "text": "db1 has 1 % left"}
            async with session.post("/posts", json=reply) as answer:
                assert answer.status == 201
            assert await bot.end(signal.SIGTERM) == 0
        said = await at.until(lambda said: bool(said) and said[-1].text == "db1 has 1 % left")
        assert [(one.author, one.title, one.text) for one in said] == [
            ("alerts", "Disk full", "db1 has 2 % left"),
            ("alerts", "", "db1 has 1 % left"),
        ]


async def test_the_webhook_refuses_what_is_no_post(migrated_database: str) -> None:
    async with stage(migrated_database, "alerts") as at, webhook(at) as (bot, session):
        fine = {"group": "Book club", "title": "Disk full"}
        for refused, status in (
            ({"data": "no JSON"}, 400),
            ({"data": b"\xff"}, 400),
            ({"data": "[" * 20_000}, 400),
            ({"json": ["a list"]}, 400),
            ({"json": {"title": "to nobody"}}, 400),
            ({"json": {**fine, "group": "Chess club"}}, 400),
            ({"json": {**fine, "text": 7}}, 400),
            ({"json": {**fine, "thread": "00" * 16}}, 400),
            ({"json": {**fine, "titel": "Disk full"}}, 400),
            ({"json": {"group": "Book club", "thread": "xyz"}}, 400),
            ({"json": {"group": "Book club", "thread": "00"}}, 422),
            ({"json": {"group": "Book club", "thread": "00" * 16}}, 422),
            ({"json": fine, "headers": {"Authorization": "Bearer another"}}, 401),
            ({"data": "x" * 40_000}, 413),
        ):
            async with session.post("/posts", **refused) as answer:
                assert answer.status == status, (refused, await answer.text())
        assert not [line for line in bot.lines if "Traceback" in line]
        async with session.post("/posts", json=fine) as answer:
            assert answer.status == 201
        assert len(await at.until(bool)) == 1, "nothing was posted but the last"


# ── the page ────────────────────────────────────────────────────────────────────────────────────────────────────────


def block(name: str) -> str:
    """What stands in the page between two marks."""
    found = re.search(rf"<!-- {name} -->\n```\w+\n(.*?)```\n<!-- /{name} -->", PAGE.read_text(), re.DOTALL)
    assert found is not None
    return found[1]


def test_the_bot_is_as_short_as_it_is_called() -> None:
    assert len([line for line in block("example").splitlines() if line]) <= 15


async def test_the_page_does_what_it_says(migrated_database: str, tmp_path: Path) -> None:
    async with running_relay(migrated_database) as relay:
        await prepare(tmp_path)
        environment = {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "ORBITAL_STORE": str(tmp_path / "ann.db"),
            "ORBITAL_PASSPHRASE": PASSPHRASE,
        }

        async def shell(commands: str) -> list[str]:
            async with program("sh", "-ec", commands, cwd=tmp_path, environment=environment) as running:
                async with asyncio.timeout(LIMIT_S):
                    assert await running.process.wait() == 0
            return running.lines

        await shell(f"orbital register {relay.url} ann")
        commands = (
            block("commands").replace("ws://127.0.0.1:8765", relay.url).replace("python bot.py", "exec python bot.py")
        )
        async with program("sh", "-ec", commands, cwd=tmp_path, environment=environment) as bot:
            await bot.says(READY)
            await shell(block("try"))
            async with asyncio.timeout(LIMIT_S):
                while sum("ping_bot" in line for line in await shell('orbital history "Book club"')) < 2:
                    pass
            assert await bot.end(signal.SIGTERM) == 0
        history = "".join(await shell('orbital history "Book club"'))
    assert "Thanks for “Ubik”, ann." in history
    assert "pong" in history


async def prepare(folder: Path) -> None:
    """What stands in the page as a file, and the commands that it calls."""
    (folder / "bot.py").write_text(block("example"))
    for name, arguments in (("orbital", "-c 'from orbital_client.cli import main; main()'"), ("python", "")):
        command = folder / name
        command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {arguments} "$@"\n')
        command.chmod(0o755)

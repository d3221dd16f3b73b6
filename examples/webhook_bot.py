"""A bot that posts what other programs tell it over HTTP: encrypted here, on its way to the relay.

orbital bot create alerts --group "On call"    # prints the secret
pip install aiohttp
ORBITAL_URL=wss://relay.example.org ORBITAL_BOT_SECRET=orbital-bot:… WEBHOOK_TOKEN=… python webhook_bot.py

curl -H "Authorization: Bearer $WEBHOOK_TOKEN" -H "Idempotency-Key: disk-42" \\
     --json '{"group": "On call", "title": "Disk full", "text": "db1 has 2 % left"}' http://127.0.0.1:8080/posts

201 says that the post is durable, 4xx that it will never be, 503 that it may be later. With `"thread"` in place of
`"title"` it is a reply. Whoever has got no answer sends the same again, under the same Idempotency-Key: it stands once.
Anything but loopback belongs behind a proxy with TLS.
"""

import asyncio
import hmac
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
from aiohttp import web

from orbital_client import Bot, Group, OrbitalError
from orbital_client.errors import BadRequest, Refused

HOST = os.environ.get("WEBHOOK_HOST", "127.0.0.1")
PORT = int(os.environ.get("WEBHOOK_PORT", "8080"))
TOKEN = os.environ["WEBHOOK_TOKEN"]
MAX_BYTES = 32_768
SHUTDOWN_S = 10.0
AT_ONCE = 32

log = logging.getLogger("webhook_bot")
logging.basicConfig(level=logging.INFO)
bot = Bot(os.environ["ORBITAL_URL"], token=os.environ["ORBITAL_BOT_SECRET"])
slots = asyncio.Semaphore(AT_ONCE)


class Said(msgspec.Struct, forbid_unknown_fields=True):
    """What is to be posted: `thread` is the id that a post was answered with, in hexadecimal."""

    group: str
    text: str = ""
    title: str | None = None
    thread: str | None = None


async def take(request: web.Request) -> web.Response:
    """POST /posts."""
    if not hmac.compare_digest(request.headers.get("Authorization", "").encode(), f"Bearer {TOKEN}".encode()):
        return answer(401, error="Authorization: Bearer … is missing, or not the right one")
    try:
        said = msgspec.json.decode(await request.read(), type=Said)
        group = group_of(said)
        thread = None if said.thread is None else bytes.fromhex(said.thread)
    except (msgspec.DecodeError, ValueError, RecursionError) as wrong:
        return answer(400, error=str(wrong))
    key = request.headers.get("Idempotency-Key")
    id = bot.id_for("webhook", group.id, key) if key else None
    if slots.locked():
        return answer(503, error="too many posts are on their way")
    try:
        async with slots:
            if thread is None:
                posted = await group.post(said.title or "", said.text, id=id)
            else:
                posted = await group.reply(thread, said.text, id=id)
    except (BadRequest, Refused) as error:
        return answer(422, error=str(error))
    except OrbitalError as error:
        log.warning("a post was not taken: %s", error)
        return answer(503, error=str(error))
    return answer(201, id=posted.id.hex(), thread=posted.thread_id.hex())


def group_of(said: Said) -> Group:
    """The group that a request names. Raises ValueError."""
    if (said.title is None) == (said.thread is None):
        raise ValueError("either a title (a new thread) or a thread (a reply in it) is expected")
    groups = [group for group in bot.client.groups if said.group in (group.name, group.id.hex())]
    if len(groups) != 1:
        raise ValueError("the bot is in no group, or in more than one, of this name")
    return groups[0]


def answer(status: int, **said: str) -> web.Response:
    return web.json_response(said, status=status)


@bot.beside
@asynccontextmanager
async def listening() -> AsyncIterator[None]:
    """Take requests for as long as the bot runs; those that came are answered before it ends."""
    app = web.Application(client_max_size=MAX_BYTES)
    app.router.add_post("/posts", take)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_S)
    await runner.setup()
    try:
        await web.TCPSite(runner, HOST, PORT).start()
        log.info("listening on %s port %d", *runner.addresses[0][:2])
        yield
    finally:
        await runner.cleanup()


if __name__ == "__main__":
    bot.run()

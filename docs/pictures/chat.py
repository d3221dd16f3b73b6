"""Take the picture of `orbital chat` again: `python -m docs.pictures.chat`, into chat.svg beside this file."""

import asyncio
import re
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

from textual.pilot import Pilot

from examples.demo_stage import own_relay
from orbital_client import Client, Group
from orbital_client.chat.app import ChatApp

PICTURE: Final = Path(__file__).with_name("chat.svg")
SIZE: Final = (110, 28)
LIMIT_S: Final = 60
REMOTE_FONT: Final = re.compile(r"@font-face\s*\{.*?\}\s*", re.DOTALL)
"""Whoever looks at the picture is to fetch nothing from anywhere for it."""


async def main() -> None:
    """Have three people talk, and take the picture of one's window."""
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = f"ws://127.0.0.1:{await stack.enter_async_context(own_relay(directory))}"
        people = [await stack.enter_async_context(Client(url)) for _ in range(3)]
        for client, name in zip(people, ("ann", "bob", "eve"), strict=True):
            await client.register(name, f"six random words of {name} alone")
        ann, bob, eve = people
        club = await ann.create_group("Book club")
        bobs, eves = [await other.join(await club.invite()) for other in (bob, eve)]
        await stack.enter_async_context(asyncio.timeout(LIMIT_S))
        chess = await ann.create_group("Chess on Sundays")
        await bob.join(await chess.invite())
        ubik = await talk(directory, club, bobs, eves)
        app = ChatApp(ann)
        async with app.run_test(size=SIZE) as pilot:
            app.choose(app.rooms[club.id], ubik)
            other = next(thread for thread in await bobs.threads() if thread.id != ubik)
            await other.reply("Solaris, then. I bring the cake.")
            await eves.presence()
            await shows(app, pilot, "What next?               1", "eve is here")
            await bobs.typing(ubik)
            await shows(app, pilot, "bob is typing")
            await pilot.press(*"Not", "space", *"before", "space", *"the")
            await pilot.pause(0.1)
            PICTURE.write_text(REMOTE_FONT.sub("", app.export_screenshot(title="orbital chat")))


async def talk(directory: Path, anns: Group, bobs: Group, eves: Group) -> bytes:
    """What is to be seen: threads, replies, a reaction, an edit, a pin, a file. Returns the thread's id."""
    await eves.post("What next?", "Solaris, or The Dispossessed?")
    ubik = await anns.post("Ubik", "Shall we read it until Sunday?")
    begun = await bobs.reply(ubik.id, "I have begun allready.")
    await begun.edit("I have begun already. Don't tell me how it ends!")
    first = await eves.reply(ubik.id, "Who is Runciter, and why is he on the coins?")
    for group in (anns, bobs):
        await group.react(first.id, "👍")
    notes = directory / "notes on ubik.txt"
    notes.write_bytes(b"Chapter one. " * 3_000)
    await eves.share(ubik.id, notes, caption="my notes so far")
    await ubik.pin()
    return ubik.id


async def shows(app: ChatApp, pilot: Pilot[None], *texts: str) -> None:
    """Wait until all of this stands in the window."""
    while not all(any(text in strip.text for strip in app.screen._compositor.render_strips()) for text in texts):
        await pilot.pause(0.05)


if __name__ == "__main__":
    asyncio.run(main())

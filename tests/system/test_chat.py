"""`orbital chat`, driven as people do: keys go in, and what stands on the screen is read."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from textual.pilot import Pilot

from examples.demo_stage import Cable
from orbital_client import Client, Group, Heard, Message
from orbital_client.chat.app import ChatApp
from orbital_client.chat.panes import Rows
from orbital_client.chat.running import run
from orbital_client.errors import ClientClosed
from tests.relays import RunningRelay, running_relay
from tests.system.secrets import LIMIT_S, PASSPHRASE, eventually, people

pytestmark = pytest.mark.timeout(120)

SIZE = (110, 34)


@dataclass
class Desk:
    """Ann at her window; bob, who is in her group, and carl, who isn't yet."""

    relay: RunningRelay
    app: ChatApp
    pilot: Pilot[None]
    bob: Client
    carl: Client
    anns: Group
    bobs: Group
    thread: Message

    def screen(self) -> str:
        """What stands on the screen."""
        return "\n".join(strip.text for strip in self.app.screen._compositor.render_strips())

    async def sees(self, text: str) -> None:
        """Wait until this stands on the screen."""
        await self.until(lambda: text in self.screen(), text)

    async def sees_no_more(self, text: str) -> None:
        await self.until(lambda: text not in self.screen(), f"not {text}")

    async def until(self, holds: Callable[[], bool], what: str) -> None:
        try:
            async with asyncio.timeout(LIMIT_S):
                while not holds():
                    await self.pilot.pause(0.02)
        except TimeoutError:
            raise AssertionError(f"{what!r} does not come about:\n{self.screen()}") from None

    async def resize(self, width: int, height: int) -> None:
        """Have a terminal of this size, drawn once."""
        await self.pilot.resize_terminal(width, height)
        await self.until(lambda: self.app.screen.size == (width, height), "it has another size")
        await self.pilot.pause(0.2)

    async def bob_reads(self, text: str) -> None:
        """Wait until this is the last message that bob sees."""
        async with asyncio.timeout(LIMIT_S):
            while (await self.bobs.history())[-1].text != text:
                await asyncio.sleep(0.02)

    async def types(self, text: str, *keys: str) -> None:
        names = {" ": "space", "\n": "ctrl+j"}
        await self.pilot.press(*(names.get(letter, letter) for letter in text), *keys)


@asynccontextmanager
async def desk(dsn: str) -> AsyncIterator[Desk]:
    async with running_relay(dsn) as relay, people(relay.url, "ann", "bob", "carl") as (ann, bob, carl):
        anns = await ann.create_group("Book club")
        bobs = await bob.join((await anns.invite()).text)
        thread = await anns.post("Ubik", "Shall we read it?")
        await eventually(lambda: bobs.cursor == anns.cursor)
        app = ChatApp(ann)
        async with app.run_test(size=SIZE, notifications=True) as pilot:
            at = Desk(relay, app, pilot, bob, carl, anns, bobs, thread)
            await at.sees("Shall we read it?")
            yield at


async def first(signals: AsyncIterator[Heard]) -> Heard:
    return await anext(signals)


async def test_talking(migrated_database: str) -> None:
    async with desk(migrated_database) as at:
        assert "Book club" in at.screen()
        assert "● connected" in at.screen()
        await at.bobs.typing(at.thread.id)
        await at.sees("bob is typing")
        assert "bob is here" in at.screen()
        await at.bobs.reply(at.thread.id, "I have begun already.")
        await at.sees("I have begun already.")
        await at.sees_no_more("bob is typing")
        heard = asyncio.create_task(first(at.bobs.signals()))
        await at.types("Good")
        async with asyncio.timeout(LIMIT_S):
            assert (await heard).user_id == at.anns.user_id
        await at.types("! And you?", "enter")
        await at.bob_reads("Good! And you?")
        await at.sees("Good! And you?")
        await at.types("two\nlines", "enter")
        await at.sees("lines")
        await at.bob_reads("two\nlines")


async def test_the_last_message_stays_in_sight_unless_one_looks_further_up(migrated_database: str) -> None:
    async with desk(migrated_database) as at:
        for number in range(20):
            await at.bobs.reply(at.thread.id, f"reply {number}.")
        await at.sees("reply 19.")
        for size in ((60, 16), SIZE):
            await at.resize(*size)
            await at.sees("reply 19.")
        await at.pilot.press("shift+tab", "home")
        await at.sees("Shall we read it?")
        await at.bobs.reply(at.thread.id, "The last one.")
        await at.until(lambda: at.anns.cursor == at.bobs.cursor, "it has come")
        await at.pilot.pause(0.2)
        assert "Shall we read it?" in at.screen()


async def test_what_is_done_with_messages(migrated_database: str, tmp_path: Path) -> None:
    async with desk(migrated_database) as at:
        await at.pilot.press("ctrl+l")
        await at.sees("editing: Enter keeps it")
        await at.types(" Or Solaris?", "enter")
        await at.sees("Or Solaris?")
        await at.pilot.press("ctrl+r")
        await at.sees("React")
        await at.pilot.press("enter")
        await at.sees("👍")
        source = tmp_path / "map.txt"
        source.write_text("here be dragons")
        await at.pilot.press("ctrl+s")
        await at.sees("Share a file")
        await at.types(str(source), "enter", "enter")
        await at.sees("map.txt")
        await eventually(lambda: at.bobs.cursor == at.anns.cursor)
        first, file = await at.bobs.history()
        assert (first.text, dict(first.reactions)) == (
            "Shall we read it? Or Solaris?",
            {"👍": frozenset({at.anns.user_id})},
        )
        assert (file.kind, file.file_name) == ("file", "map.txt")
        await at.pilot.press("ctrl+g")
        await at.sees("Download")
        await at.pilot.press("ctrl+u")
        await at.types(str(tmp_path / "copy.txt"), "enter")
        await at.sees("downloaded")
        assert (tmp_path / "copy.txt").read_text() == "here be dragons"


async def test_threads_groups_and_what_is_unread(migrated_database: str) -> None:
    async with desk(migrated_database) as at:
        await at.pilot.press("ctrl+n")
        await at.sees("New thread")
        await at.types("Tea", "enter")
        await at.types("Who brings it?", "enter")
        await at.sees("Book club  /  Tea")
        await at.bobs.reply(at.thread.id, "unread so far")
        await at.until(lambda: at.app.rooms[at.anns.id].tally.unread.get(at.thread.id) == 1, "one unread")
        await at.pilot.press("ctrl+t")
        await at.sees("unread so far")
        await at.until(lambda: not at.app.rooms[at.anns.id].tally.unread.get(at.thread.id), "nothing unread")
        second = await at.bob.create_group("Allotments")
        await at.app.client.join((await second.invite()).text)
        await at.sees("Allotments")
        await second.post("Slugs", "They are back.")
        await at.until(lambda: at.app.rooms[second.id].tally.total == 1, "one unread in the other group")
        await at.pilot.press("ctrl+t")
        await at.sees("They are back.")


async def test_people(migrated_database: str) -> None:
    async with desk(migrated_database) as at:
        await at.pilot.press("f2")
        await at.sees("not compared")
        await at.pilot.press("down")
        await at.sees(at.bob.fingerprint.split()[0])
        await at.pilot.press("v")
        await at.until(lambda: at.app.client.verify(at.bob.user_id).is_verified, "bob is verified")
        await at.pilot.press("escape")
        await at.pilot.press("f4")
        await at.sees("orbital:")
        await at.pilot.press("escape")
        await at.carl.knock(await at.anns.knock_code())
        await at.sees("carl asks to be admitted")
        await at.pilot.press("f3")
        await at.sees(at.carl.fingerprint.split()[0])


async def test_what_cannot_be_shown_and_what_would_do_harm(migrated_database: str) -> None:
    async with desk(migrated_database) as at:
        await at.bobs.reply(at.thread.id, "[bold red]not markup[/]\x1b]0;title\x07\x1b[2J end")
        await at.sees("[bold red]not markup[/]")
        assert "\x1b" not in at.screen()
        await at.bobs.wire.reply(at.thread.id, b"\x01 sealed by nobody", key_epoch=1)
        await at.sees("can't be shown")
        assert at.app.is_running


async def test_who_is_removed_sees_the_group_go(migrated_database: str) -> None:
    async with running_relay(migrated_database) as relay, people(relay.url, "ann", "bob") as (ann, bob):
        anns = await ann.create_group("Book club")
        await bob.join((await anns.invite()).text)
        thread = await anns.post("Ubik", "Shall we read it?")
        app = ChatApp(bob)
        async with app.run_test(size=SIZE, notifications=True) as pilot:
            at = Desk(relay, app, pilot, bob, ann, anns, anns, thread)
            await at.sees("Shall we read it?")
            await anns.remove(bob.user_id)
            await at.sees("you see no more of Book club")
            await at.sees("You are in no group yet")


async def test_a_lost_connection_and_the_end(migrated_database: str, tmp_path: Path) -> None:
    async with running_relay(migrated_database) as relay:
        cable = Cable(relay.port)
        async with cable.laid() as url, Client(url, store=tmp_path / "ann.db") as ann:
            await ann.register("ann", PASSPHRASE)
            anns = await ann.create_group("Book club")
            thread = await anns.post("Ubik", "Shall we read it?")
            app = ChatApp(ann)
            async with app.run_test(size=SIZE, notifications=True) as pilot:
                at = Desk(relay, app, pilot, ann, ann, anns, anns, thread)
                await at.sees("● connected")
                cable.cut()
                await at.sees("○ reconnecting")
                await at.types("still here", "enter")
                await at.sees("sending…")
                await pilot.press("ctrl+q")
                await at.sees("quit")
                cable.mend()
                await at.sees("● connected")
                await at.sees("still here")
                await at.sees_no_more("sending…")
                await pilot.press("ctrl+q")
                await at.until(lambda: not app.is_running, "the end")


async def test_a_tick_while_the_window_is_taken_down_draws_nothing(
    migrated_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    running: list[bool] = []

    def tick(rows: Rows) -> None:
        assert isinstance(rows.app, ChatApp)
        running.append(rows.app.is_running)
        rows.app._draw()

    async with desk(migrated_database):
        monkeypatch.setattr(Rows, "on_unmount", tick, raising=False)
    assert running
    assert not any(running)


def test_nobody_has_logged_in(tmp_path: Path) -> None:
    with pytest.raises(ClientClosed, match="register or log in"):
        run(tmp_path / "nobody.db")

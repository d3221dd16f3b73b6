"""`make demo`: three people and a bot in a group that the relay can't read.

One of them is cut off and misses nothing, and is cut off again in the middle of a file, which goes on. At the end the
relay's disk is searched for what was said.

It starts `orbital-relay serve` on free ports, with an embedded PostgreSQL in a temporary directory, and ends by itself.
"""

import asyncio
import os
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from examples.demo_stage import LIMIT_S, Cable, RelayFailed, find_in, own_relay, running_bot
from orbital_client import Client, Disconnected, Finding, Group, Message, Reconnected
from orbital_client.bots import create_bot

MIB = 1024 * 1024
COLOURS = {"ann": "magenta", "bob": "cyan", "cleo": "yellow"}
BOT = "echo"
GROUP = "The Martian society"
TITLE = "The next meeting"
OPENING = ("ann", "Where shall we meet?")
TALK = [("bob", "On Mars, as always."), ("cleo", "I bring the map."), ("ann", "Then I bring the tea.")]
WITHOUT_CLEO = [("bob", "Is cleo still there?"), ("ann", "She is in the tunnel."), ("bob", "She will see this anyway.")]
REUNION = [("cleo", "I do. All of it."), ("bob", "Good.")]
TO_BOT = ("bob", "!echo Is anybody else here?")
FROM_BOT = "Is anybody else here?"
MAP = ("cleo", "map.png")
MAP_BYTES = 16 * MIB
OUTAGE_S = 0.5

console = Console(highlight=False)


class Person:
    """Somebody at a client, who keeps everything that it shows."""

    def __init__(self, name: str, client: Client) -> None:
        self.name = name
        self.client = client
        self.messages: dict[bytes, Message] = {}
        self.seqs: list[int] = []
        self.findings: list[Finding] = []
        self.times_cut = 0
        self._told = asyncio.Condition()

    async def read(self, group: Group) -> None:
        """Take in what happens in the group, from its beginning, until the client is closed."""
        async for item in group.events(group.start):
            async with self._told:
                if isinstance(item, Message):
                    self.messages[item.id] = item
                self.seqs.append(item.seq if isinstance(item, Message) else item.cursor.seq)
                self._told.notify_all()

    async def hear(self) -> None:
        """Take in what the client has to say, until it is closed."""
        async for notice in self.client.notices():
            async with self._told:
                match notice:
                    case Finding():
                        self.findings.append(notice)
                    case Disconnected():
                        self.times_cut += 1
                    case Reconnected() if self.times_cut:
                        console.print(Text.assemble("     ", styled(self.name), (" is back", "bold green")))
                    case _:
                        pass
                self._told.notify_all()

    async def sees(self, text: str) -> Message:
        """Wait until a message that says this has come."""
        async with asyncio.timeout(LIMIT_S), self._told:
            while not (found := self._saying(text)):
                await self._told.wait()
            return found[0]

    def _saying(self, text: str) -> list[Message]:
        return [each for each in self.messages.values() if text in (each.text, each.file_name)]

    async def is_cut_off(self) -> None:
        async with asyncio.timeout(LIMIT_S), self._told:
            await self._told.wait_for(lambda: self.times_cut > 0)

    @property
    def holes(self) -> int:
        """How many events of the log did not come."""
        return self.seqs[-1] - len(set(self.seqs))


def styled(name: str) -> Text:
    return Text(f"{name:<4}", style=f"bold {COLOURS.get(name, 'green')}")


def show(seq: int, author: str, text: str, *readers: str) -> None:
    """One line of the conversation, and who has it."""
    line = Text.assemble((f"{seq:>4} ", "dim"), styled(author), f"  {text:<28}", ("  seen by ", "dim"))
    for name in COLOURS:
        line.append_text(styled(name) if name in readers else Text("·   ", style="dim"))
        line.append(" ")
    console.print(line)


class Conversation:
    """The thread, said by whoever's turn it is."""

    def __init__(self, people: dict[str, Person], groups: dict[str, Group]) -> None:
        self._people = people
        self._groups = groups
        self._thread_id = b""

    async def open(self, author: str, text: str) -> None:
        self._thread_id = (await self._groups[author].post(TITLE, text)).id
        await self.seen(author, text, *COLOURS)

    async def say(self, author: str, text: str, *readers: str) -> None:
        """Reply, and wait until the readers (everybody, unless they are named) have it."""
        await self._groups[author].reply(self._thread_id, text)
        await self.seen(author, text, *(readers or COLOURS))

    async def seen(self, author: str, text: str, *readers: str, shown: str = "") -> None:
        """Wait until the readers have it, and show that."""
        seen = [await self._people[name].sees(text) for name in readers]
        if {message.author for message in seen} != {author}:
            raise AssertionError(f"somebody else has said {text!r}")
        show(seen[0].seq, author, shown or text, *readers)

    async def share(self, author: str, path: Path, cable: Cable) -> None:
        """Send a file to the thread, over a cable that is cut halfway; everybody fetches it, and has the same."""
        bar = console.status("")
        loop = asyncio.get_running_loop()
        was_cut = False

        def on_progress(done: int, total: int) -> None:
            nonlocal was_cut
            bar.update(f"{path.name}: {done // 1024:,} of {total // 1024:,} KiB are durable")
            if not was_cut and done >= total // 2:
                was_cut = True
                cable.cut()
                loop.call_later(OUTAGE_S, cable.mend)

        with bar:
            posted = await self._groups[author].share(self._thread_id, path, on_progress=on_progress)
        content = await asyncio.to_thread(path.read_bytes)
        for name, person in self._people.items():
            copy = await (await person.sees(path.name)).download(path.with_name(f"{name}-{path.name}"))
            if await asyncio.to_thread(copy.read_bytes) != content:
                raise AssertionError(f"{path.name} came out as something else")
        await self.seen(author, path.name, *COLOURS, shown=f"{path.name}, {posted.size_bytes // MIB} MiB")
        console.print("     the line broke at half of it; all three have the same bytes", style="dim")


async def enter(people: dict[str, Person]) -> dict[str, Group]:
    """Everybody registers; ann makes a group, the others join by her link."""
    await asyncio.gather(*(person.client.register(name, f"six words of {name}") for name, person in people.items()))
    group = await people["ann"].client.create_group(GROUP)
    link = await group.invite()
    return {"ann": group, **{name: await people[name].client.join(link) for name in ("bob", "cleo")}}


async def meet(conversation: Conversation, cleo: Person, cable: Cable) -> None:
    """Three people talk; one of them is away for a while."""
    await conversation.open(*OPENING)
    for author, text in TALK:
        await conversation.say(author, text)
    cable.cut()
    await cleo.is_cut_off()
    console.print(Text.assemble("\n     ", styled("cleo"), (" is cut off", "bold red")))
    for author, text in WITHOUT_CLEO:
        await conversation.say(author, text, "ann", "bob")
    cable.mend()
    await cleo.sees(WITHOUT_CLEO[-1][1])
    for author, text in WITHOUT_CLEO:
        await conversation.seen(author, text, *COLOURS)
    console.print()
    for author, text in REUNION:
        await conversation.say(author, text)


async def ask_the_bot(conversation: Conversation, url: str, group: Group) -> None:
    """A bot comes in by a link of its own, and answers."""
    bot = await create_bot(url, BOT, links=[await group.invite(max_uses=1)])
    console.print("\n     a bot has joined: examples/echo_bot.py, with keys of its own", style="dim")
    async with running_bot(Path(__file__).with_name("echo_bot.py"), url, bot.secret.text):
        await conversation.say(*TO_BOT)
        await conversation.seen(BOT, FROM_BOT, *COLOURS)
    console.print()


def sum_up(people: dict[str, Person], leaked: list[str]) -> bool:
    """Print what came of it; whether it is as promised."""
    table = Table(box=None, header_style="dim", padding=(0, 3, 0, 0))
    for column in ("", "events", "holes", "findings", "cut off", "code of the verified log"):
        table.add_column(column, justify="left" if column in ("", "code of the verified log") else "right")
    groups = [person.client.groups[0] for person in people.values()]
    for (name, person), group in zip(people.items(), groups, strict=True):
        counts = (len(set(person.seqs)), person.holes, len(person.findings), person.times_cut)
        table.add_row(styled(name), *map(str, counts), group.code)
    console.print("\n", table, sep="")
    is_whole = all(person.holes == 0 and not person.findings for person in people.values())
    is_same = len({group.code for group in groups}) == 1
    is_well = is_whole and is_same and not leaked and people["cleo"].times_cut > 1
    found = f"on the relay's disk: {', '.join(leaked)}" if leaked else "nothing that was said is on the relay's disk"
    same = "all three verified the same log" if is_same else "the three have different logs"
    console.print(f"\n{same} · {found}", style="bold green" if is_well else "bold red")
    return is_well


def search(directory: Path) -> list[str]:
    """What the relay has on its disk of all that it must not have."""
    lines = [OPENING, *TALK, *WITHOUT_CLEO, *REUNION, MAP]
    secrets = [GROUP, TITLE, FROM_BOT, *(text for _, text in lines), *(f"six words of {name}" for name in COLOURS)]
    username = MAP[0]
    found = find_in(directory, [username, *secrets])
    if username not in found:
        raise AssertionError("a username is on the disk: this search would find nothing")
    return [text for text in found if text != username]


async def demo(directory: Path) -> bool:
    """Everything, and whether it went as promised."""
    console.print("[bold]Three people and a bot in a group that the relay can't read[/bold]\n")
    async with AsyncExitStack() as stack:
        since = time.monotonic()
        with console.status("starting a relay with a PostgreSQL of its own"):
            port = await stack.enter_async_context(own_relay(directory / "relay"))
        note(f"a relay on port {port}, with a PostgreSQL of its own", since)
        cable = Cable(port)
        urls = dict.fromkeys(COLOURS, f"ws://127.0.0.1:{port}")
        urls["cleo"] = await stack.enter_async_context(cable.laid())
        people = {name: Person(name, await stack.enter_async_context(Client(url))) for name, url in urls.items()}
        since = time.monotonic()
        with console.status("making keys and registering"):
            groups = await enter(people)
        note("three accounts; ann made a group, bob and cleo joined by her link", since)
        console.print()
        conversation = Conversation(people, groups)
        async with asyncio.TaskGroup() as readers:
            for name, person in people.items():
                readers.create_task(person.read(groups[name]), name=f"demo-{name}")
                readers.create_task(person.hear(), name=f"demo-{name}-notices")
            await meet(conversation, people["cleo"], cable)
            await ask_the_bot(conversation, urls["ann"], groups["ann"])
            await conversation.share(MAP[0], await drawn(directory / MAP[1]), cable)
            with console.status("searching the relay's disk for what was said"):
                leaked = await asyncio.to_thread(search, directory / "relay")
            is_well = sum_up(people, leaked)
            for person in people.values():
                await person.client.close()
        return is_well


async def drawn(path: Path) -> Path:
    """A map of Mars, as good as any."""
    await asyncio.to_thread(path.write_bytes, os.urandom(MAP_BYTES))
    return path


def note(text: str, since: float) -> None:
    console.print(f"     {text}  {time.monotonic() - since:.1f} s", style="dim")


def main() -> int:
    """Exit code 0 if everything went as promised."""
    with tempfile.TemporaryDirectory(prefix="orbital-demo-") as name:
        directory = Path(name)
        (directory / "relay").mkdir()
        try:
            return 0 if asyncio.run(demo(directory)) else 1
        except RelayFailed as failure:
            console.print(f"the relay did not start:\n{failure}", style="red", markup=False)
            return 1
        except KeyboardInterrupt:
            return 130


if __name__ == "__main__":
    sys.exit(main())

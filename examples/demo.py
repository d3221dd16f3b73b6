"""`make demo`: three people in a thread, on a relay of the demo's own; one of them is cut off and misses nothing, and
is cut off again in the middle of an upload, which goes on.

It starts `orbital-relay serve` on free ports, with an embedded PostgreSQL in a temporary directory, and ends by itself.
"""

import asyncio
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from orbital_client.wire import Client, Disconnected, Event, Group, Identity, Kind, Reconnected

LIMIT_S = 60
MIB = 1024 * 1024
COLOURS = {"ann": "magenta", "bob": "cyan", "cleo": "yellow"}
OPENING = ("ann", "Where shall we meet?")
TALK = [("bob", "On Mars, as always."), ("cleo", "I bring the map."), ("ann", "Then I bring the tea.")]
WITHOUT_CLEO = [("bob", "Is cleo still there?"), ("ann", "She is in the tunnel."), ("bob", "She will see this anyway.")]
REUNION = [("cleo", "I do. All of it."), ("bob", "Good.")]
MAP = ("cleo", "map.png")
MAP_BYTES = 16 * MIB
OUTAGE_S = 0.5

console = Console(highlight=False)


class RelayFailed(Exception):
    """The demo's relay did not start; the message is what it printed."""


@asynccontextmanager
async def own_relay(directory: Path) -> AsyncIterator[int]:
    """A relay of the demo's own; yields its port."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ORBITAL_")}
    environment.pop("DATABASE_URL", None)
    environment |= {
        "ORBITAL_LISTEN_PORT": "0",
        "ORBITAL_OPERATORS_PORT": "0",
        "ORBITAL_DATA_DIR": str(directory),
        "ORBITAL_LOG_FORMAT": "json",
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "orbital_relay", "serve"),
        cwd=directory,
        env=environment,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    listening: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    log = asyncio.create_task(read_log(process.stderr, listening), name="demo-relay-log")
    try:
        async with asyncio.timeout(LIMIT_S):
            port = await listening
        yield port
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await log
        await process.wait()


async def read_log(log: asyncio.StreamReader | None, listening: asyncio.Future[int]) -> None:
    """Read what the relay logs to its end, and tell where it listens."""
    said: list[str] = []
    while log is not None and (raw := await log.readline()):
        if listening.done():
            continue
        said.append(raw.decode(errors="replace"))
        with contextlib.suppress(ValueError):
            line = json.loads(raw)
            if line.get("event") == "relay.listening":
                listening.set_result(int(line["port"]))
    if not listening.done():
        listening.set_exception(RelayFailed("".join(said)))


class Cable:
    """The wire between one client and the relay. It can be cut, and mended."""

    def __init__(self, relay_port: int) -> None:
        self._relay_port = relay_port
        self._ends: set[asyncio.StreamWriter] = set()
        self._is_cut = False

    @asynccontextmanager
    async def laid(self) -> AsyncIterator[str]:
        """Yields the address to connect to."""
        server = await asyncio.start_server(self._join, "127.0.0.1", 0)
        try:
            yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            self.cut()

    def cut(self) -> None:
        """Kill the connections without a word, and let no new ones through."""
        self._is_cut = True
        for end in self._ends:
            end.transport.abort()

    def mend(self) -> None:
        self._is_cut = False

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_cut:
            writer.transport.abort()
            return
        there, back = await asyncio.open_connection("127.0.0.1", self._relay_port)
        self._ends |= {writer, back}
        try:
            await asyncio.gather(self._carry(reader, back), self._carry(there, writer))
        finally:
            self._ends -= {writer, back}

    async def _carry(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(65_536):
                target.write(data)
                await target.drain()
        target.transport.abort()


class Person:
    """A client that keeps everything it is told."""

    def __init__(self, name: str, client: Client) -> None:
        self.name = name
        self.client = client
        self.events: list[Event] = []
        self.times_cut = 0
        self._told = asyncio.Condition()

    async def listen(self) -> None:
        """Read events until the client is closed. The client verifies the chain, and raises where it breaks."""
        async for item in self.client.events():
            async with self._told:
                match item:
                    case Event():
                        self.events.append(item)
                    case Disconnected():
                        self.times_cut += 1
                    case Reconnected():
                        console.print(Text.assemble("     ", styled(self.name), (" is back", "bold green")))
                    case _:
                        pass
                self._told.notify_all()

    async def has(self, seq: int) -> None:
        """Wait until this event has come."""
        async with asyncio.timeout(LIMIT_S), self._told:
            await self._told.wait_for(lambda: bool(self.events) and self.events[-1].seq >= seq)

    async def is_cut_off(self) -> None:
        async with asyncio.timeout(LIMIT_S), self._told:
            await self._told.wait_for(lambda: self.times_cut > 0)

    @property
    def holes(self) -> int:
        """How many events are missing between the first and the last one."""
        return self.events[-1].seq - self.events[0].seq + 1 - len(self.events)


def styled(name: str) -> Text:
    return Text(f"{name:<4}", style=f"bold {COLOURS[name]}")


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
        self.posts = 0

    async def open(self, author: str, text: str) -> None:
        self.posts += 1
        thread = await self._groups[author].post(title=b"The next meeting", body=text.encode())
        self._thread_id = thread.id
        await self._seen(thread.seq, author, text, [*self._people])

    async def say(self, author: str, text: str, *readers: str) -> int:
        """Reply, and wait until the readers (everybody, unless they are named) have it."""
        self.posts += 1
        reply = await self._groups[author].reply(self._thread_id, text.encode())
        await self._seen(reply.seq, author, text, readers or [*self._people])
        return reply.seq

    async def share(self, author: str, name: str, content: bytes, cable: Cable) -> None:
        """Send a file to the thread, over a cable that is cut halfway; everybody reads it, and has the same."""
        bar = console.status("")
        loop = asyncio.get_running_loop()
        was_cut = False

        def on_progress(done: int, total: int) -> None:
            nonlocal was_cut
            bar.update(f"{name}: {done // 1024:,} of {total // 1024:,} KiB are durable")
            if not was_cut and done >= total // 2:
                was_cut = True
                cable.cut()
                loop.call_later(OUTAGE_S, cable.mend)

        with bar:
            posted = await self._groups[author].upload(
                content, thread_id=self._thread_id, metadata=name.encode(), on_progress=on_progress
            )
        for group in self._groups.values():
            copy = [piece async for piece in group.read_media(posted.media_id)]
            if b"".join(copy) != content:
                raise AssertionError(f"{name} came out as something else")
        await self._seen(posted.seq, author, f"{name}, {len(content) // MIB} MiB", [*self._people])
        console.print("     the line broke at half of it; all three have the same bytes", style="dim")

    async def _seen(self, seq: int, author: str, text: str, readers: "list[str] | tuple[str, ...]") -> None:
        for name in readers:
            await self._people[name].has(seq)
        show(seq, author, text, *readers)


async def enter(people: dict[str, Person]) -> dict[str, Group]:
    """Everybody registers; ann makes a group, the others join by her link."""
    identities = await asyncio.gather(*(asyncio.to_thread(Identity.generate) for _ in people))
    await asyncio.gather(
        *(
            person.client.register(name, f"a password for {name}", identity)
            for (name, person), identity in zip(people.items(), identities, strict=True)
        )
    )
    group = await people["ann"].client.create_group(b"The Martian society")
    link = await group.invite()
    return {"ann": group, **{name: await people[name].client.join(link) for name in ("bob", "cleo")}}


async def meet(conversation: Conversation, cleo: Person, cable: Cable) -> None:
    """The play."""
    await conversation.open(*OPENING)
    for author, text in TALK:
        await conversation.say(author, text)
    cable.cut()
    await cleo.is_cut_off()
    console.print(Text.assemble("\n     ", styled("cleo"), (" is cut off", "bold red")))
    missed = [(await conversation.say(author, text, "ann", "bob"), author, text) for author, text in WITHOUT_CLEO]
    cable.mend()
    await cleo.has(missed[-1][0])
    for seq, author, text in missed:
        show(seq, author, text, *COLOURS)
    console.print()
    for author, text in REUNION:
        await conversation.say(author, text)
    await conversation.share(*MAP, os.urandom(MAP_BYTES), cable)


def sum_up(people: dict[str, Person], posts: int) -> bool:
    """Print what came of it; whether it is as promised."""
    table = Table(box=None, header_style="dim", padding=(0, 3, 0, 0))
    for column in ("", "events", "from", "to", "holes", "times cut off", "hash of the last one"):
        table.add_column(column, justify="right" if column in ("events", "from", "to", "holes") else "left")
    for person in people.values():
        first, last = person.events[0], person.events[-1]
        counts = (len(person.events), first.seq, last.seq, person.holes, person.times_cut)
        table.add_row(styled(person.name), *map(str, counts), last.hash.hex()[:16])
    console.print("\n", table, sep="")
    heads = {(person.events[-1].seq, person.events[-1].hash) for person in people.values()}
    holes = sum(person.holes for person in people.values())
    seen = {
        person.name: sum(event.kind in (Kind.THREAD_POSTED, Kind.REPLY_POSTED) for event in person.events)
        for person in people.values()
    }
    is_well = len(heads) == 1 and holes == 0 and set(seen.values()) == {posts} and people["cleo"].times_cut > 0
    events = sum(len(person.events) for person in people.values())
    verdict = "chain verified by all three, same head" if len(heads) == 1 else "the clients disagree"
    console.print(
        f"\n{posts} posts · {events} events delivered · holes {holes} · {verdict}",
        style="bold green" if is_well else "bold red",
    )
    return is_well


async def demo(directory: Path) -> bool:
    """Everything, and whether it went as promised."""
    console.print("[bold]Three people in a thread, one of them loses the connection[/bold]\n")
    async with AsyncExitStack() as stack:
        since = time.monotonic()
        with console.status("starting a relay with a PostgreSQL of its own"):
            port = await stack.enter_async_context(own_relay(directory))
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
        async with asyncio.TaskGroup() as listeners:
            for person in people.values():
                listeners.create_task(person.listen(), name=f"demo-{person.name}")
            await meet(conversation, people["cleo"], cable)
            for person in people.values():
                await person.client.close()
        return sum_up(people, conversation.posts)


def note(text: str, since: float) -> None:
    console.print(f"     {text}  {time.monotonic() - since:.1f} s", style="dim")


def main() -> int:
    """Exit code 0 if everything went as promised."""
    with tempfile.TemporaryDirectory(prefix="orbital-demo-") as directory:
        try:
            return 0 if asyncio.run(demo(Path(directory))) else 1
        except RelayFailed as failure:
            console.print(f"the relay did not start:\n{failure}", style="red", markup=False)
            return 1
        except KeyboardInterrupt:
            return 130


if __name__ == "__main__":
    sys.exit(main())

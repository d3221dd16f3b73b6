"""The window: groups and threads on the left, the messages of one thread, and where one writes below them."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from time import monotonic
from typing import Any, ClassVar, Final, TypeVar

from textual import on
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.widgets import Footer, OptionList, Static, TextArea

from orbital_client.chat import acts, view
from orbital_client.chat.nearby import TYPING_EVERY_S, Throttle
from orbital_client.chat.panes import Composer, Messages, Rows
from orbital_client.chat.rendering import words
from orbital_client.chat.rooms import Room
from orbital_client.chat.threads import OpenThread
from orbital_client.cli.terminal import in_bytes, printable
from orbital_client.client import Client
from orbital_client.errors import OrbitalError
from orbital_client.group import Knock
from orbital_client.messages import Message
from orbital_client.trust.findings import Finding
from orbital_client.wire import Disconnected, Reconnected

T = TypeVar("T")

_DRAWN_AFTER_S: Final = 0.03
_TICK_S: Final = 1.0
_UNSENT: Final = 20
_TROUBLE: Final = (OrbitalError, OSError, ValueError)

Send = Callable[[], Awaitable[object]]


class ChatApp(App[None]):
    """The groups of a client that is signed in. `failure`: why it ended by itself, if it did."""

    TITLE = "Orbital"
    CSS_PATH = "chat.tcss"
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        *(Binding(act.key, f"act('{name}')", act.label) for name, act in acts.ACTS.items()),
        Binding("ctrl+q", "leave", "Quit", priority=True),
        Binding("escape", "compose", "Back", show=False),
    ]

    def __init__(self, client: Client) -> None:
        super().__init__()
        self.client = client
        self.rooms: dict[bytes, Room] = {}
        self.room: Room | None = None
        self.editing: Message | None = None
        self.transfers: dict[int, str] = {}
        self.is_connected = True
        self.failure: OrbitalError | None = None
        self.unsent = 0
        self._may_lose = False
        self._outbox: asyncio.Queue[tuple[str, Send]] = asyncio.Queue(_UNSENT)
        self._drafts: dict[bytes, str] = {}
        self._typing = Throttle(TYPING_EVERY_S)
        self._is_dirty = False

    def compose(self) -> ComposeResult:
        with Horizontal(id="top"):
            yield Static(id="where")
            yield Static(id="connection")
        with Horizontal(id="middle"):
            yield Rows(id="groups")
            with Vertical(id="talk"):
                yield Static(id="banner")
                yield Messages(id="messages")
                yield Static(id="status")
                yield Composer(id="composer", placeholder="Write a reply, Enter sends it")
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        self.theme = "tokyo-night"
        self.query_one(Composer).focus()
        self.run_worker(self._hear_notices(), name="notices")
        self.run_worker(self._send_all(), name="outbox")
        self.set_interval(_TICK_S, self._draw)
        self._draw()

    # ── what is shown ───────────────────────────────────────────────────────────────────────────────────────────────

    def changed(self) -> None:
        """There is something else to draw: soon, with whatever else changes until then."""
        if not self._is_dirty and self.is_running:
            self._is_dirty = True
            self.set_timer(_DRAWN_AFTER_S, self._draw)

    def _draw(self) -> None:
        self._is_dirty = False
        if not self.is_running:  # the window is closing, piece by piece
            return
        self._enter_rooms()
        for room in self.rooms.values():
            room.count()
        self._open_something()
        view.draw(self, monotonic())
        self._mark_read()

    def _enter_rooms(self) -> None:
        """Take up the groups that are new, and leave those that one sees no more of."""
        for group in self.client.groups:
            if group.id not in self.rooms:
                room = self.rooms[group.id] = Room(self.client, group, self.changed)
                for work in room.work():
                    self.run_worker(work, group=group.id.hex())
        for group_id, room in list(self.rooms.items()):
            if room.group.gone is not None:
                self._leave(group_id, room)

    def _leave(self, group_id: bytes, room: Room) -> None:
        del self.rooms[group_id]
        self.workers.cancel_group(self, group_id.hex())
        self.notify(f"you see no more of {room.name}: {room.group.gone}", severity="warning", markup=False)
        if room is self.room:
            self.room = None

    def _open_something(self) -> None:
        """Show a group, and in it a thread, where none is chosen."""
        if self.room is None and self.rooms:
            self.room = view.in_order(self.rooms)[0]
        if self.room is not None and self.room.open is None and self.room.threads:
            self.choose(self.room, self.room.thread_ids[0])

    def choose(self, room: Room, thread_id: bytes | None) -> None:
        """Look at a group, and at one of its threads."""
        before = self.open_thread
        composer = self.query_one(Composer)
        if before is not None and self.editing is None:
            self._drafts[before.id] = composer.text
        if self.room is not None:
            self.room.open = None
        self.room, self.editing = room, None
        self.workers.cancel_group(self, "thread")
        if thread_id is not None:
            room.open = OpenThread(room.group, thread_id)
            self.run_worker(room.open.run(self.changed), group="thread")
        composer.text = self._drafts.pop(thread_id, "") if thread_id else ""
        self.query_one(Messages).show([])
        self.changed()

    @property
    def open_thread(self) -> OpenThread | None:
        """The thread that is looked at."""
        return self.room.open if self.room else None

    def _mark_read(self) -> None:
        if self.room is not None and self.room.open is not None and self.app_focus:
            messages = self.room.open.conversation.messages
            if messages:
                self.room.see(messages[-1])

    def on_app_focus(self) -> None:
        self.changed()

    # ── what one does ───────────────────────────────────────────────────────────────────────────────────────────────

    @on(OptionList.OptionSelected, "#groups")
    def _chosen(self, event: OptionList.OptionSelected) -> None:
        room_id, _, thread_id = (event.option_id or "").partition("/")
        room = self.rooms.get(bytes.fromhex(room_id))
        if room is not None:
            threads = room.thread_ids
            self.choose(room, bytes.fromhex(thread_id) if thread_id else threads[0] if threads else None)
            self.query_one(Composer).focus()

    @on(TextArea.Changed, "#composer")
    def _tell_typing(self, event: TextArea.Changed) -> None:
        thread = self.open_thread
        is_writing = thread is not None and event.text_area.text and self.editing is None
        if is_writing and thread is not None and self._typing.allows(monotonic()):
            self.run_worker(self._signal_typing(thread), group="typing", exclusive=True)

    async def _signal_typing(self, thread: OpenThread) -> None:
        with suppress(OrbitalError, TimeoutError):
            await thread.group.typing(thread.id)

    @on(Composer.Sent)
    def _send(self, event: Composer.Sent) -> None:
        thread, text = self.open_thread, event.text.strip()
        if thread is None or not text:
            return
        if self._outbox.full():
            self.warn("wait until what you have written is sent")
            return
        edited = self.editing
        self.send(text, (lambda: edited.edit(text)) if edited else lambda: thread.group.reply(thread.id, text))
        self.editing = None
        self._typing.reset()
        self.query_one(Composer).text = ""
        self.changed()

    def send(self, text: str, how: Send) -> None:
        """Send something after what is being sent; if that fails, `text` is given back."""
        self._outbox.put_nowait((text, how))
        self.unsent += 1

    async def _send_all(self) -> None:
        """One after the other, so that they arrive as they were written."""
        while True:
            text, how = await self._outbox.get()
            try:
                await how()
            except _TROUBLE as error:
                self._give_back(text, error)
            self.unsent -= 1
            self._may_lose = self._may_lose and self.unsent > 0
            self.changed()

    def _give_back(self, text: str, error: Exception) -> None:
        self.warn(f"{words(error)}\n{printable(text)}")
        composer = self.query_one(Composer)
        if not composer.text:
            composer.text = text

    def action_act(self, name: str) -> None:
        """Do what a key stands for."""
        self.run_worker(self._attempt(acts.ACTS[name].work(self)), group="acts")

    async def _attempt(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except _TROUBLE as error:
            self.warn(words(error))
        self.changed()

    def action_compose(self) -> None:
        """To where one writes; from there, away from what one was editing."""
        if self.editing is not None:
            self.editing = None
            self.query_one(Composer).text = ""
        self.query_one(Composer).focus()
        self.changed()

    def action_leave(self) -> None:
        """Quit; the first time not, if something is not sent yet."""
        if self.unsent and not self._may_lose:
            self.warn("what you wrote is not sent yet: quit again to lose it")
            self._may_lose = True
        else:
            self.exit()

    # ── for acts ────────────────────────────────────────────────────────────────────────────────────────────────────

    def target(self, holds: Callable[[Message], bool]) -> Message | None:
        """The message that is highlighted, otherwise the last one; of which this holds."""
        thread = self.open_thread
        if thread is None:
            return None
        messages = self.query_one(Messages)
        chosen = thread.conversation.get(bytes.fromhex(messages.chosen_id)) if messages.chosen_id else None
        if chosen is not None:
            return chosen if holds(chosen) else None
        return thread.conversation.last(holds)

    async def ask(self, screen: ModalScreen[T]) -> T | None:
        """Show a screen above the window, and wait for what it says."""
        return await self.push_screen_wait(screen)

    def edit(self, message: Message) -> None:
        """Have a message of one's own written anew."""
        self.editing = message
        composer = self.query_one(Composer)
        composer.text = message.text
        composer.move_cursor(composer.document.end)
        composer.focus()

    def warn(self, text: str) -> None:
        """Something that can't be done."""
        self.notify(text, severity="error", markup=False)

    @contextmanager
    def transfer(self, verb: str, name: str) -> Iterator[Callable[[int, int], None]]:
        """Show how far a file is on its way."""
        number = max(self.transfers, default=0) + 1
        self.transfers[number] = f"{verb} {printable(name)}"

        def advance(done: int, total: int) -> None:
            share = f"{100 * done // total} %" if total else ""
            self.transfers[number] = f"{verb} {printable(name)}  {share} of {in_bytes(total)}"
            self.changed()

        try:
            yield advance
        finally:
            del self.transfers[number]
            self.changed()

    # ── what comes in ───────────────────────────────────────────────────────────────────────────────────────────────

    async def _hear_notices(self) -> None:
        async for notice in self.client.notices():
            match notice:
                case Disconnected():
                    self.is_connected = False
                case Reconnected():
                    self.is_connected = True
                case Finding(group_id=group_id) if group_id in self.rooms:
                    self.rooms[group_id].find(notice)
                case Knock():
                    asks = f"{notice.name} asks to be admitted to {notice.group.name}: F3"
                    self.notify(printable(asks), markup=False)
                case _:
                    pass
            self.changed()
        try:
            self.client.check()
        except OrbitalError as error:
            self.failure = error
        self.exit()

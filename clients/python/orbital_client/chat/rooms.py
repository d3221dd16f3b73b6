"""What the client says about each group, kept up to date for the window: its threads, what is unread, who is there."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from itertools import islice
from time import monotonic
from typing import Final

from orbital_client.chat.nearby import Nearby
from orbital_client.chat.reading import Reading
from orbital_client.chat.threads import Note, OpenThread
from orbital_client.chat.unread import Tally
from orbital_client.client import Client
from orbital_client.errors import ClientClosed, LogBroken, OrbitalError
from orbital_client.group import Group
from orbital_client.messages import Erased, GroupChange, Item, Message, Suspicious, Update
from orbital_client.trust.findings import Finding
from orbital_protocol.frames import Cursor

PRESENCE_EVERY_S: Final = 25.0
_AGAIN_S: Final = 1.0
_LOOKED_BACK: Final = 100
_THREADS: Final = 50
_NOTES: Final = 500

Work = Coroutine[object, object, None]


class Room:
    """One group, as the window shows it. `on_change` is called when there is something else to draw."""

    def __init__(self, client: Client, group: Group, on_change: Callable[[], None]) -> None:
        self.group = group
        self.threads: dict[bytes, Message] = {}
        """The last threads, as they stand."""
        self.tally = Tally()
        self.member_count = 0
        self.broken = ""
        """Why the group is no longer followed, if its log is broken."""
        self.nearby = Nearby()
        self.open: OpenThread | None = None
        """The thread that is looked at, if it is one of this group."""
        self.reading = Reading(client.store, group.id, client.user_id)
        self._client = client
        self._on_change = on_change
        self._notes: dict[str, Note] = {}
        self._is_miscounted = True
        self._lists = asyncio.Event()

    @property
    def name(self) -> str:
        """What to call it: its id's beginning until its name could be opened."""
        return self.group.name or f"group {self.group.id.hex()[:8]}"

    @property
    def notes(self) -> list[Note]:
        """What happened lately beside messages."""
        return list(self._notes.values())

    @property
    def thread_ids(self) -> list[bytes]:
        """The last threads, those where something was said most lately first."""
        last = self.tally.last_seq
        return sorted(self.threads, key=lambda thread_id: -max(last.get(thread_id, 0), self.threads[thread_id].seq))

    def work(self) -> list[Work]:
        """What must run for as long as the window is open."""
        return [self._follow(), self._listen(), self._tell_presence(), self._keep_lists()]

    def count(self) -> None:
        """Count again what is unread, if that has changed."""
        if self._is_miscounted and self.reading.has_begun:
            self._is_miscounted = False
            self.tally = self.reading.tally()
            if not self.tally.total:
                self._read_all()

    def see(self, message: Message) -> None:
        """A thread was read up to this message."""
        if self.reading.read(message.thread_id, message.cursor):
            self._is_miscounted = True
            self._on_change()

    def find(self, finding: Finding) -> None:
        """Something was found wrong."""
        self._note(Note(finding.seq or self.group.cursor.seq, finding.text, is_wrong=True))
        self._on_change()

    def _read_all(self) -> None:
        cursor = self.group.cursor
        if cursor.seq and self._client.store.cursor(self.group.id, "read") != cursor:
            self.reading.read_all(cursor)

    # ── what runs ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _follow(self) -> None:
        """Take in what happens, from a little while ago on."""
        after = self._start()
        while self.group.gone is None:
            try:
                await self._begin()
                async for item in self.group.events(after):
                    self._take(item)
                    cursor = item.cursor
                    after = max(after, cursor, key=lambda place: place.seq)
            except LogBroken as error:
                self.broken = str(error)
            except (ClientClosed, asyncio.CancelledError):
                raise
            except (OrbitalError, TimeoutError):
                await asyncio.sleep(_AGAIN_S)
                continue
            self._on_change()
            return
        self._on_change()

    async def _begin(self) -> None:
        """Whatever was there before the group was first looked at counts as read."""
        if not self.reading.has_begun:
            if not self.group.cursor.seq:
                await self.group.live()
            self.reading.read_all(self.group.cursor)
        self._is_miscounted = True
        self._lists.set()

    def _start(self) -> Cursor:
        seq = max(0, self.group.cursor.seq - _LOOKED_BACK)
        hash_ = self._client.store.index(self.group.id).hash_at(seq)
        return self.group.start if hash_ is None else Cursor(group_id=self.group.id, seq=seq, hash=hash_)

    def _take(self, item: Item) -> None:
        match item:
            case Message():
                self._is_miscounted = True
                self.nearby.has_posted(item.author_id)
                if item.kind == "thread":
                    self._lists.set()
            case Update(message_id=message_id) | Erased(message_id=message_id):
                self._is_miscounted = True
                if message_id in self.threads:
                    self._lists.set()
            case GroupChange():
                self._note(Note(item.cursor.seq, item.text))
                self._lists.set()
            case Suspicious():
                self._note(Note(item.cursor.seq, item.finding.text, is_wrong=True))
        if self.open is not None:
            self.open.touch(item)
        self._on_change()

    def _note(self, note: Note) -> None:
        key = note.text if note.is_wrong else f"{note.seq} {note.text}"  # a finding comes as a notice too
        self._notes[key] = note
        for old in list(islice(self._notes, max(0, len(self._notes) - _NOTES))):
            del self._notes[old]

    async def _listen(self) -> None:
        async for heard in self.group.signals():
            self.nearby.hear(heard, monotonic())
            self._on_change()

    async def _tell_presence(self) -> None:
        while not self.broken and self.group.gone is None:
            with suppress(OrbitalError, TimeoutError):
                await self.group.presence()
            await asyncio.sleep(PRESENCE_EVERY_S)

    async def _keep_lists(self) -> None:
        """Ask for threads and members again whenever they may have changed."""
        while True:
            await self._lists.wait()
            self._lists.clear()
            try:
                threads = await self.group.threads(limit=_THREADS)
                members = await self.group.members()
            except LogBroken as error:
                self.broken = str(error)
                self._on_change()
                return
            except (OrbitalError, TimeoutError):
                self._lists.set()
                await asyncio.sleep(_AGAIN_S)
                continue
            self.threads = {thread.id: thread for thread in threads}
            self.member_count = len(members)
            self._on_change()

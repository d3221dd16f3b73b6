"""What an application sees of a group: messages, which can be answered and acted on, and what becomes of them."""

import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from orbital_client.crypto.contents import PLAIN, AnyAct
from orbital_client.errors import CannotOpen
from orbital_client.replica import Replica
from orbital_client.timeline import Read
from orbital_client.trust.board import Post
from orbital_client.trust.findings import Finding, Flaw
from orbital_client.trust.log import POSTS
from orbital_client.wire.ledger import parent_id, statement_of
from orbital_client.wire.uploads import Progress
from orbital_client.wording import NameOf, describe
from orbital_protocol import ZERO_ID
from orbital_protocol.codes import Kind
from orbital_protocol.frames import Cursor
from orbital_protocol.statements import AnyStatement, MediaDeleted, PostDeleted

if TYPE_CHECKING:
    from orbital_client.group import Group

_UNSAFE: Final = re.compile(r"[\x00-\x1f\x7f/\\:*?\"<>|]")
_NAME_LENGTH: Final = 200


@dataclass(frozen=True, slots=True)
class Message:
    """A thread, a reply or a file, as it stood when it was read: verified, or with a `problem` in place of its text."""

    group: "Group" = field(repr=False, compare=False)
    post: Post

    @property
    def id(self) -> bytes:
        return self.post.id

    @property
    def thread_id(self) -> bytes:
        """The thread that it opens, or is in."""
        return self.post.thread_id

    @property
    def kind(self) -> str:
        """`thread`, `reply` or `file`."""
        return _KINDS[self.post.kind]

    @property
    def author_id(self) -> bytes:
        return self.post.author_id

    @property
    def author(self) -> str:
        """What the author is called, as far as is known."""
        return self.group.name_of(self.post.author_id)

    @property
    def is_mine(self) -> bool:
        return self.post.author_id == self.group.user_id

    @property
    def title(self) -> str:
        """Of a thread; otherwise empty."""
        return self.post.title

    @property
    def text(self) -> str:
        return self.post.text

    @property
    def sent_at(self) -> int:
        """By the author's clock, in microseconds since 1970 UTC; `created_at` is by the relay's."""
        return self.post.sent_at

    @property
    def created_at(self) -> int:
        return self.post.created_at

    @property
    def seq(self) -> int:
        return self.post.seq

    @property
    def cursor(self) -> Cursor:
        """Its place in the group's log: `Group.follow` goes on after it."""
        return Cursor(group_id=self.post.group_id, seq=self.post.seq, hash=self.post.hash)

    @property
    def problem(self) -> CannotOpen | None:
        """Why it can't be shown; it comes again once it can."""
        return self.post.problem

    @property
    def is_deleted(self) -> bool:
        """Deleted, or a file whose seven days are over."""
        return bool(self.post.erased_at)

    @property
    def is_edited(self) -> bool:
        return bool(self.post.edited_at)

    @property
    def is_pinned(self) -> bool:
        return self.post.is_pinned

    @property
    def reactions(self) -> Mapping[str, frozenset[bytes]]:
        """Who has reacted, by emoji."""
        return self.post.reactions

    @property
    def file_name(self) -> str:
        """Of a file: what its author calls it. For a path, `safe_file_name`."""
        return self.post.file.name if self.post.file else ""

    @property
    def safe_file_name(self) -> str:
        """The file's name without what could lead anywhere but into one folder."""
        plain = unicodedata.normalize("NFC", _UNSAFE.sub("_", self.file_name)).strip().lstrip(".")
        return plain[:_NAME_LENGTH] or "file"

    @property
    def size_bytes(self) -> int:
        """Of a file."""
        return self.post.file.size_bytes if self.post.file else 0

    # ── what can be done with it ────────────────────────────────────────────────────────────────────────────────────

    async def reply(self, text: str, *, format: str = PLAIN) -> "Message":
        """Reply in its thread."""
        return await self.group.reply(self.thread_id, text, format=format)

    async def share(
        self, path: str | os.PathLike[str], *, caption: str = "", on_progress: Progress | None = None
    ) -> "Message":
        """Post a file in its thread."""
        return await self.group.share(self.thread_id, path, caption=caption, on_progress=on_progress)

    async def edit(self, text: str, *, title: str | None = None, format: str = PLAIN) -> None:
        """Put other words in its place. Only its author's edits count."""
        await self.group.edit(self.id, text, title=title, format=format)

    async def react(self, emoji: str) -> None:
        await self.group.react(self.id, emoji)

    async def unreact(self, emoji: str) -> None:
        """Take a reaction back."""
        await self.group.react(self.id, emoji, take_back=True)

    async def pin(self) -> None:
        """Pin it. Only admins' pins count."""
        await self.group.pin(self.id)

    async def unpin(self) -> None:
        await self.group.pin(self.id, unpin=True)

    async def delete(self) -> None:
        """Delete it for everyone: one's own, or as an admin."""
        await self.group.delete_message(self)

    async def refresh(self) -> "Message":
        """The message as it stands now. Raises NotFound."""
        return await self.group.message(self.id)

    async def replies(self) -> list["Message"]:
        """Everything in its thread after the thread's own text, oldest first."""
        return [message for message in await self.group.thread(self.thread_id) if message.id != self.thread_id]

    async def download(self, destination: str | os.PathLike[str], *, on_progress: Progress | None = None) -> Path:
        """Bring its file to a path, or into a folder; opened and verified, or not at all."""
        return await self.group.download(self, destination, on_progress=on_progress)


_KINDS: Final = {Kind.THREAD_POSTED: "thread", Kind.REPLY_POSTED: "reply", Kind.MEDIA_POSTED: "file"}


@dataclass(frozen=True, slots=True)
class Update:
    """A message was edited, reacted to, pinned: what was done, by whom. Whether it counts, `Message.refresh` shows.

    `act` is None where that can't be opened, and `problem` says why; it comes again once it can.
    """

    message_id: bytes
    author_id: bytes
    act: AnyAct | None
    cursor: Cursor
    problem: CannotOpen | None = None


@dataclass(frozen=True, slots=True)
class Erased:
    """A message was deleted, or a file has expired (then nobody did it)."""

    message_id: bytes
    by: bytes | None
    cursor: Cursor


@dataclass(frozen=True, slots=True)
class GroupChange:
    """The group changed: who is in it, their roles, its name, its key. `text` says it to people.

    `statement` is what its actor signed; None for what the relay does when an account is deleted.
    """

    statement: AnyStatement | None
    actor_id: bytes | None
    text: str
    cursor: Cursor


@dataclass(frozen=True, slots=True)
class Suspicious:
    """Something in the log that counts for nothing, and that honest people and relays would not have brought about."""

    finding: Finding
    cursor: Cursor


Item = Message | Update | Erased | GroupChange | Suspicious
"""What happens in a group, in the order of its log."""


def people_of(reads: Iterable[Read]) -> set[bytes]:
    """Whose names are needed to show these events."""
    actors = {read.event.actor_id for read in reads}
    others = {getattr(statement_of(read.event), "user_id", ZERO_ID) for read in reads}
    return (actors | others) - {ZERO_ID}


def item_of(read: Read, replica: Replica, name: NameOf) -> Item | None:
    """What an event that is no message means to an application; None for what concerns nobody."""
    event = read.event
    cursor = Cursor(group_id=event.group_id, seq=event.seq, hash=event.hash)
    if event.kind in POSTS:
        act = read.opened.act if read.opened else None
        if act is None and read.problem is None:
            return None
        return Update(parent_id(event), event.actor_id, act, cursor, read.problem)
    known = replica.index.by_seq(event.seq)
    if known is not None and not known.counts:
        found = next((finding for finding in replica.findings if finding.seq == event.seq), None)
        return Suspicious(found or Finding(Flaw.NOT_ALLOWED, event.group_id, event.seq), cursor)
    match statement := statement_of(event):
        case PostDeleted(target_id=erased_id) | MediaDeleted(media_id=erased_id):
            return Erased(erased_id, event.actor_id, cursor)
        case None if event.kind == Kind.MEDIA_EXPIRED:
            return Erased(event.object_id, None, cursor)
        case _:
            actor_id = statement.actor_id if statement else None
            return GroupChange(statement, actor_id, describe(event, statement, name), cursor)

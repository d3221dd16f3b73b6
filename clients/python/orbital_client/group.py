"""A group, as its members see it: threads, messages, people. Keys, hashes and signatures are looked after inside."""

import asyncio
import os
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from orbital_client.crypto import contents
from orbital_client.crypto.contents import (
    AWAY,
    HERE,
    PLAIN,
    Edit,
    Pin,
    Presence,
    React,
    Typing,
    Unpin,
    Unreact,
)
from orbital_client.crypto.fingerprints import fingerprint
from orbital_client.crypto.invites import seal_key
from orbital_client.errors import MissingKey, NotFound
from orbital_client.identity import Identity, thumbprint, uuid7
from orbital_client.keeper import Keeper
from orbital_client.links import InviteLink
from orbital_client.messages import Item, Message, item_of, people_of
from orbital_client.people import People, Person
from orbital_client.posting import Posting
from orbital_client.rekeying import rekey, seal_name
from orbital_client.replica import Replica
from orbital_client.sending import PATIENCE_S, Sender
from orbital_client.timeline import MESSAGES, Read, Timeline
from orbital_client.trust.board import Post
from orbital_client.trust.findings import Finding
from orbital_client.trust.signals import Heard, seal_signal
from orbital_client.wire import Client as WireClient
from orbital_client.wire.uploads import Progress
from orbital_protocol.codes import Kind, Role
from orbital_protocol.frames import Cursor, JoinRequest, QuotaGetOk
from orbital_protocol.statements import RosterEntry

_SECRET_BYTES: Final = 32
_SIGNALS: Final = 256
_KEYS_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Member:
    """Somebody in a group. `is_verified`: their fingerprint was compared."""

    user_id: bytes
    name: str
    role: Role
    is_bot: bool
    is_verified: bool


@dataclass(frozen=True, slots=True)
class Knock:
    """Somebody asks to be admitted: compare the fingerprint with them first, outside of this relay."""

    group: "Group"
    request: JoinRequest

    @property
    def user_id(self) -> bytes:
        return self.request.user_id

    @property
    def name(self) -> str:
        """What the relay calls them."""
        return self.request.username

    @property
    def is_bot(self) -> bool:
        return self.request.is_bot

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.user_id, thumbprint(self.request.public_key), self.request.signing_key)

    async def admit(self) -> None:
        """Make a member of them. Raises KeyChanged if they are known with other keys."""
        await self.group.admit(self.request)

    async def deny(self) -> None:
        """Send them away."""
        await self.group.wire.deny(self.user_id)


class Group:
    """A group that this user is in.

    Whatever changes it waits until it is durable at the relay. Besides what the relay refuses (RequestFailed and its
    kinds), methods raise CannotPost, KeyChanged and LogBroken.
    """

    def __init__(  # noqa: PLR0913  made in one place, of the client's parts
        self,
        *,
        client: WireClient,
        replica: Replica,
        keeper: Keeper,
        people: People,
        identity: Identity,
        after_change: Callable[[], None],
    ) -> None:
        self.wire = replica.wire
        """The same group of opaque bytes."""
        self._client = client
        self._replica = replica
        self._keeper = keeper
        self._people = people
        self._identity = identity
        self._sender = Sender(replica, people, identity)
        self._timeline = Timeline(client, replica)
        self._posting = Posting(replica, self._sender, self._timeline)
        self._after_change = after_change
        self._listeners: set[asyncio.Queue[Heard]] = set()

    def __repr__(self) -> str:
        return f"Group({self.name or self.id.hex()})"

    # ── what it is ──────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def id(self) -> bytes:
        return self._replica.group_id

    @property
    def name(self) -> str:
        """What it is called; empty until that could be opened."""
        return self._keeper.name

    @property
    def user_id(self) -> bytes:
        """Who one is."""
        return self._identity.user_id

    @property
    def role(self) -> Role | None:
        """One's own role; None when one is no member (any more)."""
        entry = self._replica.log.roster.get(self.user_id)
        return Role(entry.role) if entry else None

    @property
    def is_live(self) -> bool:
        """Whether everything up to the relay's head has come, and what happens now comes at once."""
        return self._replica.is_live

    @property
    def gone(self) -> str | None:
        """Why one sees nothing more of it: left, removed, deleted or denied."""
        return self._replica.gone

    @property
    def cursor(self) -> Cursor:
        """How far its log was verified."""
        return self._replica.log.position

    @property
    def findings(self) -> list[Finding]:
        """What was found wrong since the client was started."""
        return list(self._replica.findings)

    @property
    def has_shared_history(self) -> bool:
        """Whether newcomers can read what was posted before."""
        return self._replica.log.state.shared_history

    @property
    def code(self) -> str:
        """A short code for the verified log: two members who see the same code at the same seq see the same log."""
        position = self._replica.log.position
        digits = f"{int.from_bytes(position.hash[:10], 'big') % 10**20:020}"
        return f"{position.seq}: " + " ".join(digits[at : at + 5] for at in range(0, 20, 5))

    def name_of(self, user_id: bytes) -> str:
        """What somebody is called, as far as is known."""
        return self._people.name(user_id)

    async def live(self, timeout_s: float = 30.0) -> None:
        """Wait until everything up to the relay's head has come, and keys and name were asked for.

        Raises TimeoutError, LogBroken.
        """
        replica = self._replica

        def is_ready() -> bool:
            is_over = replica.broken is not None or replica.gone is not None
            return is_over or (replica.is_live and self._keeper.has_looked)

        is_settled = await replica.pulse.until(is_ready, timeout_s)
        replica.check()
        if not is_settled:
            raise TimeoutError(f"the group's log has not come within {timeout_s} s")

    async def named(self, timeout_s: float = 10.0) -> str:
        """Its name, once it could be opened; empty where it can't be within that time."""
        replica = self._replica
        await replica.pulse.until(lambda: bool(self.name or replica.broken or replica.gone), timeout_s)
        return self.name

    async def ready(self, patience_s: float = PATIENCE_S) -> None:
        """Wait until one can post: the key is there, and none is due. Raises CannotPost, KeyChanged, LogBroken."""
        await self._sender.key(patience_s)

    async def members(self) -> list[Member]:
        """Who is in it, as the verified log says; names are the relay's word."""
        roster = (await self._replica.loaded()).roster
        await self._people.learn(roster)
        return [self._member(entry) for entry in roster.values()]

    def _member(self, entry: RosterEntry) -> Member:
        person = self._people.person(entry)
        return Member(entry.user_id, person.name, Role(entry.role), entry.is_bot, person.is_verified)

    def has_member(self, user_id: bytes) -> bool:
        """Whether somebody is in it, as far as its log has come."""
        return user_id in self._replica.log.roster

    def person(self, user_id: bytes) -> Person:
        """A member's keys, to be compared. Raises KeyError for whoever is no member."""
        return self._people.person(self._replica.log.roster[user_id])

    # ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def awaits(self, missing: MissingKey) -> bool:
        """Whether that key may still come. Once there is a newer one, all are there that ever come."""
        return self._replica.keyring.current is None or missing.epoch >= self._replica.log.key_epoch

    async def threads(self, *, limit: int = 50, before: Cursor | None = None) -> list[Message]:
        """The last threads, oldest first, as they stand."""
        await self._settle()
        return await self._as_messages(await self._timeline.threads(limit, before.seq if before else None))

    async def history(self, *, limit: int = 50, before: Cursor | None = None) -> list[Message]:
        """The last messages of all threads, oldest first, as they stand."""
        await self._settle()
        return await self._as_messages(await self._timeline.latest(limit, before.seq if before else None))

    async def thread(self, thread_id: bytes) -> list[Message]:
        """A thread with everything posted in it, oldest first, as it stands."""
        await self._settle()
        return await self._as_messages(await self._timeline.thread(thread_id))

    async def message(self, message_id: bytes) -> Message:
        """One message as it stands. Raises NotFound."""
        await self._settle()
        post = await self._timeline.message(message_id)
        if post is None:
            raise NotFound("not_found", "there is no such message in this group")
        return (await self._as_messages([post]))[0]

    async def find(self, prefix: str, *, limit: int = 10) -> list[Message]:
        """Messages whose id, in hexadecimal, begins so: as they stand, not more than `limit`."""
        return await self._as_messages(await self._timeline.find(prefix, limit))

    async def _settle(self) -> None:
        """Have the key of what came last asked for, if the relay can be asked."""
        replica = self._replica
        await replica.loaded()
        await replica.pulse.until(lambda: self._keeper.has_looked or not replica.is_live, _KEYS_S)

    async def _as_messages(self, posts: list[Post]) -> list[Message]:
        await self._people.learn({post.author_id for post in posts})
        return [Message(self, post) for post in posts]

    async def follow(self, after: Cursor | None = None) -> AsyncIterator[Message]:
        """Messages as they are posted: from now on, or after a place in the log (`Group.start`: all).

        One that can't be opened has a `problem`, and comes again once it can. Ends when one is no member any more.
        """
        async for reads in self._timeline.follow(await self._place(after)):
            await self._people.learn(people_of(reads))
            for read in reads:
                if read.event.kind in MESSAGES:
                    yield Message(self, self._timeline.post(read))

    @property
    def start(self) -> Cursor:
        """The place before the group's first event."""
        return Cursor(group_id=self.id, seq=0, hash=bytes(32))

    async def events(self, after: Cursor | None = None) -> AsyncIterator[Item]:
        """Everything that happens: from now on, or after a place in the log. As `follow` otherwise."""
        async for reads in self._timeline.follow(await self._place(after)):
            await self._people.learn(people_of(reads))
            for read in reads:
                if (item := self._item(read)) is not None:
                    yield item

    async def entries(self) -> AsyncIterator[tuple[Read, Item | None]]:
        """Every event of the log up to now, checked against what was verified before, with what it means.

        Ends early when one is no member any more.
        """
        last = (await self._replica.loaded()).position.seq
        async for reads in self._timeline.follow(0):
            await self._people.learn(people_of(reads))
            for read in reads:
                yield read, self._item(read)
                if read.event.seq >= last:
                    return

    async def _place(self, after: Cursor | None) -> int:
        """The seq of a cursor, which must be of this group's log; without one that of the last event there is."""
        if after is None:
            await self.live()
        log = await self._replica.loaded()
        seq = log.position.seq if after is None else after.seq
        if after is not None and seq <= log.position.seq and log.index.hash_at(seq) != after.hash:
            raise ValueError("this cursor is not of this group's log")
        return seq

    def _item(self, read: Read) -> Item | None:
        if read.event.kind in MESSAGES:
            return Message(self, self._timeline.post(read))
        return item_of(read, self._replica, self.name_of)

    # ── posting ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def post(self, title: str, body: str = "", *, format: str = PLAIN, id: bytes | None = None) -> Message:
        """Open a thread.

        With an `id` of one's own, random or hard to guess, the same again, in another process too, posts nothing and
        returns what was posted first.
        """
        return Message(self, await self._posting.thread(title, body, format, id))

    async def reply(self, thread_id: bytes, text: str, *, format: str = PLAIN, id: bytes | None = None) -> Message:
        """Reply in a thread. An `id` of one's own is as in `post`."""
        return Message(self, await self._posting.reply(thread_id, text, format, id))

    async def edit(self, message_id: bytes, text: str, *, title: str | None = None, format: str = PLAIN) -> None:
        """Put other words in the place of a message of one's own."""
        sent_at, head = self._sender.said()
        await self._posting.act(message_id, Edit(sent_at=sent_at, head=head, text=text, format=format, title=title))

    async def react(self, message_id: bytes, emoji: str, *, take_back: bool = False) -> None:
        sent_at, head = self._sender.said()
        act = Unreact if take_back else React
        await self._posting.act(message_id, act(sent_at=sent_at, head=head, emoji=emoji))

    async def pin(self, message_id: bytes, *, unpin: bool = False) -> None:
        """Pin a message, as an admin."""
        sent_at, head = self._sender.said()
        await self._posting.act(message_id, (Unpin if unpin else Pin)(sent_at=sent_at, head=head))

    async def delete_message(self, message: Message) -> None:
        """Delete a message for everyone: one's own, or as an admin."""
        if message.post.kind == Kind.MEDIA_POSTED:
            await self.wire.delete_media(message.id)
        else:
            await self.wire.delete_post(message.id)

    # ── files ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def share(
        self,
        thread_id: bytes,
        path: str | os.PathLike[str],
        *,
        name: str | None = None,
        caption: str = "",
        on_progress: Progress | None = None,
    ) -> Message:
        """Post a file in a thread, for seven days."""
        return Message(self, await self._posting.file(thread_id, path, name or Path(path).name, caption, on_progress))

    async def download(
        self, message: Message, destination: str | os.PathLike[str], *, on_progress: Progress | None = None
    ) -> Path:
        """Bring a message's file to a path, or into a folder. Raises MediaCorrupt, BadSeal, ValueError for no file."""
        path = Path(destination)
        if await asyncio.to_thread(path.is_dir):
            path = path / message.safe_file_name
        return await self._posting.download(message.post, path, on_progress)

    async def quota(self) -> QuotaGetOk:
        """What the group's files use, and what they may."""
        return await self.wire.quota()

    # ── people ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def invite(self, *, expires_in_s: int = 0, max_uses: int = 0) -> InviteLink:
        """Make an invite link, as an admin; 0: for ever, for anyone. Whoever has its `text` can join and read."""
        key = await self._sender.key()
        secret = secrets.token_bytes(_SECRET_BYTES)
        invite_id = uuid7()
        expires_at = time.time_ns() // 1000 + expires_in_s * 1_000_000 if expires_in_s else 0
        link = await self.wire.invite(
            expires_at=expires_at,
            max_uses=max_uses,
            sealed_group_key=seal_key(key, invite_id, secret),
            invite_id=invite_id,
            secret=secret,
        )
        await self._replica.catch_up()
        return link.at(link.invite_code, self._replica.log.position)

    async def revoke_invite(self, invite_id: bytes) -> None:
        await self.wire.revoke_invite(invite_id)

    async def knock_code(self, *, renew: bool = False) -> str:
        """The group's standing code, with which anyone may knock; for admins."""
        if not renew and (code := (await self.wire.info()).invite_code):
            return code
        return await self.wire.rotate_code()

    async def knocks(self) -> list[Knock]:
        """Who asks to be admitted; for admins."""
        return [Knock(self, request) for request in (await self.wire.info()).join_requests or ()]

    async def admit(self, request: JoinRequest) -> None:
        """Make a member of somebody who knocks."""
        await self._sender.key()
        await self._keeper.admit(request)
        self._after_change()

    async def remove(self, user_id: bytes, *, ban: bool = False) -> None:
        """Remove a member of a lower role. The group gets a new key by itself."""
        await self._change(self.wire.remove(user_id, ban=ban))

    async def unban(self, user_id: bytes) -> None:
        await self._change(self.wire.unban(user_id))

    async def set_role(self, user_id: bytes, role: Role) -> None:
        """Make a member an admin, or an admin a member; for the owner."""
        await self._change(self.wire.set_role(user_id, role))

    async def transfer(self, user_id: bytes) -> None:
        """Make another member the owner."""
        await self._change(self.wire.transfer(user_id))

    async def leave(self) -> None:
        """Leave. The owner can't: transfer or delete the group."""
        await self._change(self.wire.leave(), catch_up=False)

    async def delete(self) -> None:
        """Delete the group with everything in it; for the owner."""
        await self._change(self.wire.delete(), catch_up=False)

    async def rename(self, name: str) -> None:
        """Call it something else; for admins."""
        key = await self._sender.key()
        await self._change(self.wire.update(seal_name(key, name, self._identity)))
        await self._keeper.learn_name()

    async def rekey(self) -> bool:
        """Give the group a new key though none is due; for admins. False if somebody else's came first."""
        return await rekey(self._replica, self._people, self._identity, self.name)

    async def _change(self, change: Awaitable[object], *, catch_up: bool = True) -> None:
        await change
        if catch_up:
            await self._replica.catch_up()
        self._after_change()

    # ── signals ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def typing(self, thread_id: bytes | None = None) -> None:
        """Tell whoever is online that one writes: in a thread, or a new one."""
        await self._signal(Typing(id=uuid7(), sent_at=time.time_ns() // 1000, thread_id=thread_id))

    async def presence(self, *, away: bool = False) -> None:
        """Tell whoever is online that one is here, or not any more."""
        await self._signal(Presence(id=uuid7(), sent_at=time.time_ns() // 1000, state=AWAY if away else HERE))

    async def _signal(self, signal: contents.AnySignal) -> None:
        await self._sender.key()
        await self.wire.signal(seal_signal(self._replica.log, self._replica.keyring, self._identity, signal))

    async def signals(self) -> AsyncIterator[Heard]:
        """Who types and who is here, from now on. Whoever reads slowly misses some."""
        queue: asyncio.Queue[Heard] = asyncio.Queue(_SIGNALS)
        self._listeners.add(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._listeners.discard(queue)

    def hear(self, heard: Heard) -> None:
        """Hand a signal to whoever listens."""
        for queue in self._listeners:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(heard)

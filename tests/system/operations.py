"""People who do things at random in one group, and a model of what must come of it.

The model knows who is in the group, what was said and what became of it, and in which key epochs each of them was a
member. It is held against what the clients show: `World.check`.
"""

import asyncio
import random
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from orbital_client import Client, Group, Message, Refused, Role
from orbital_client.wire.ledger import statement_of
from orbital_protocol.statements import GroupCreated, MemberJoined
from tests.relays import RunningRelay
from tests.system.secrets import LIMIT_S, eventually
from tests.unit.client_relay import at_once

LASTING: Final = ("ann", "bob")
COMING_AND_GOING: Final = ("carl", "dora")
FOREVER: Final = 10**9

Shown = tuple[str, str, str, str, bool, bool, bool, tuple[tuple[str, tuple[str, ...]], ...]]
"""Kind, author, title, text, edited?, pinned?, deleted?, reactions: a message as people see it."""


@dataclass
class Said:
    """A message, as it must stand."""

    id: bytes
    seq: int
    kind: str
    author: str
    thread_id: bytes
    title: str
    text: str
    is_edited: bool = False
    is_pinned: bool = False
    is_deleted: bool = False
    reactions: dict[str, set[str]] = field(default_factory=dict)

    def shown(self) -> Shown:
        if self.is_deleted:
            return (self.kind, self.author, "", "", False, False, True, ())
        reactions = tuple(sorted((word, tuple(sorted(who))) for word, who in self.reactions.items() if who))
        return (self.kind, self.author, self.title, self.text, self.is_edited, self.is_pinned, False, reactions)


def shown(message: Message) -> Shown:
    """A message as a client shows it."""
    assert message.problem is None, f"{message}: {message.problem!r}"
    names = {word: tuple(sorted(map(message.group.name_of, who))) for word, who in message.reactions.items() if who}
    reactions = tuple(sorted(names.items()))
    flags = (message.is_edited, message.is_pinned, message.is_deleted)
    if message.is_deleted:
        return (message.kind, message.author, message.title, message.text, False, False, True, ())
    return (message.kind, message.author, message.title, message.text, *flags, reactions)


@dataclass
class Person:
    """Somebody with one device that is on or off."""

    name: str
    store: Path
    passphrase: str
    client: Client | None = None
    role: Role | None = None
    epochs: list[tuple[int, int]] = field(default_factory=list)
    joined_at: int = 0

    @property
    def is_in(self) -> bool:
        return self.role is not None

    def here(self) -> Client:
        assert self.client is not None
        return self.client


class World:
    """One group of ann's, and everybody who ever was in it."""

    def __init__(self, relay: RunningRelay, folder: Path, seed: int, *, is_shared: bool) -> None:
        self.relay = relay
        self.random = random.Random(seed)
        self.is_shared = is_shared
        self.folder = folder
        self.people = {
            name: Person(name, folder / f"{name}.db", f"words of {name} {secrets.token_hex(8)}")
            for name in (*LASTING, *COMING_AND_GOING)
        }
        self.said: dict[bytes, Said] = {}
        self.secrets: set[str] = {person.passphrase for person in self.people.values()}
        self.raw_secrets: set[bytes] = set()
        self.done: list[str] = []
        self.links: list[str] = []
        self.group_id = b""
        self.name = ""

    # ── people ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def begin(self) -> None:
        """Everybody registers, ann makes the group, bob joins."""
        for person in self.people.values():
            person.client = await self._entered(Client(self.relay.url, store=person.store, backoff=at_once()))
            await person.client.register(person.name, person.passphrase)
            self._note_keys(person.client)
        self.name = self.words("name")
        group = await self.people["ann"].here().create_group(self.name, shared_history=self.is_shared)
        self.group_id = group.id
        await self._is_in(self.people["ann"], Role.OWNER, group)
        await self.join(self.people["bob"])

    async def end(self) -> None:
        for person in self.people.values():
            if person.client is not None:
                await person.client.close()

    async def _entered(self, client: Client) -> Client:
        return await client.__aenter__()

    def _note_keys(self, client: Client) -> None:
        identity = client.identity
        self.raw_secrets.add(identity.signing.private_bytes_raw())
        primes = identity.rsa.private_numbers()
        self.raw_secrets |= {primes.p.to_bytes(192, "big"), primes.q.to_bytes(192, "big")}

    def group(self, person: Person) -> Group:
        return person.here().group(self.group_id)

    def members(self, *, at_least: Role = Role.MEMBER) -> list[Person]:
        """Those who are in the group, with a device that is on."""
        everybody = self.people.values()
        return [one for one in everybody if one.client is not None and one.role is not None and one.role >= at_least]

    def any(self, *, at_least: Role = Role.MEMBER) -> Person:
        return self.random.choice(self.members(at_least=at_least))

    def words(self, about: str) -> str:
        """A text that is nowhere else, and that the relay must never have."""
        text = f"{about} {secrets.token_hex(6)} ünique"
        self.secrets.add(text)
        return text

    async def _is_in(self, person: Person, role: Role, group: Group) -> None:
        """Since which event, and which epoch, somebody is a member."""
        person.role, since = role, 0
        async for read, _ in group.entries():
            statement = statement_of(read.event)
            if isinstance(statement, GroupCreated) or (
                isinstance(statement, MemberJoined) and statement.user_id == person.here().user_id
            ):
                person.joined_at, since = read.event.seq, read.event.key_epoch
        person.epochs.append((since, FOREVER))

    async def _is_out(self, person: Person) -> None:
        """The epoch of their last event is the last one for them."""
        group = self.group(person)
        await eventually(lambda: group.gone is not None)
        since, _ = person.epochs.pop()
        person.epochs.append((since, group._replica.log.key_epoch))
        person.role = None

    # ── what they do ────────────────────────────────────────────────────────────────────────────────────────────────

    async def join(self, person: Person) -> None:
        """Somebody comes in, by a new link or one that is older than the key."""
        ann = self.people["ann"]
        if not self.links or self.random.random() < 0.5:
            self.links.append((await self.group(ann).invite()).text)
        link = self.random.choice(self.links)
        self.secrets.add(link.partition("#")[2])
        group = await person.here().join(link, wait_s=LIMIT_S)
        await self._is_in(person, Role.MEMBER, group)

    async def come(self) -> None:
        absent = [person for person in self.people.values() if not person.is_in and person.client is not None]
        if absent and self.people["ann"].client is not None:
            await self.join(self.random.choice(absent))

    async def leave(self) -> None:
        there = [person for person in self.members() if person.name in COMING_AND_GOING]
        staying = [person for person in self.members() if person not in there]
        if there and staying:
            person = self.random.choice(there)
            await self.group(person).leave()
            await self._is_out(person)

    async def remove(self) -> None:
        there = [person for person in self.members() if person.name in COMING_AND_GOING]
        if there and self.people["ann"] in self.members():
            person = self.random.choice(there)
            await self.group(self.people["ann"]).remove(person.here().user_id)
            self.links.clear()
            await self._is_out(person)

    async def set_role(self) -> None:
        ann = self.people["ann"]
        others = [person for person in self.members() if person is not ann]
        if others and ann.client is not None:
            person = self.random.choice(others)
            role = Role.MEMBER if person.role == Role.ADMIN else Role.ADMIN
            await self.group(ann).set_role(person.here().user_id, role)
            person.role = role

    async def rekey(self) -> None:
        if admins := self.members(at_least=Role.ADMIN):
            await self.group(self.random.choice(admins)).rekey()

    async def rename(self) -> None:
        if admins := self.members(at_least=Role.ADMIN):
            name = self.words("name")
            await self.group(self.random.choice(admins)).rename(name)
            self.name = name

    async def post(self) -> None:
        person, title, text = self.any(), self.words("title"), self.words("body")
        message = await self.group(person).post(title, text)
        self._has_said(message, person, title, text)

    async def reply(self) -> None:
        if thread := self._a_thread():
            await self._reply(self.any(), thread)

    async def reply_at_once(self) -> None:
        """Two of them at the same time."""
        if thread := self._a_thread():
            await asyncio.gather(*(self._reply(person, thread) for person in self.members()[:2]))

    async def _reply(self, person: Person, thread: Said) -> None:
        text = self.words("reply")
        self._has_said(await self.group(person).reply(thread.id, text), person, "", text)

    async def share(self) -> None:
        if thread := self._a_thread():
            person, name, content = self.any(), self.words("file") + ".txt", self.words("content") * 40
            path = self.folder / "shared.txt"
            path.write_text(content)
            caption = self.words("caption")
            message = await self.group(person).share(thread.id, path, name=name, caption=caption)
            self._has_said(message, person, "", caption)
            reader = self.group(self.any())
            await eventually(lambda: reader.cursor.seq >= message.seq)
            seen = await reader.message(message.id)
            copy = await seen.download(self.folder / f"copy-{secrets.token_hex(4)}")
            assert (seen.file_name, copy.read_text()) == (name, content)

    def _has_said(self, message: Message, person: Person, title: str, text: str) -> None:
        self.said[message.id] = Said(message.id, message.seq, message.kind, person.name, message.thread_id, title, text)

    def _a_thread(self) -> Said | None:
        threads = [said for said in self.said.values() if said.kind == "thread" and not said.is_deleted]
        return self.random.choice(threads) if threads else None

    def _something(self) -> Said | None:
        left = [said for said in self.said.values() if not said.is_deleted]
        return self.random.choice(left) if left else None

    async def edit(self) -> None:
        """Somebody edits something: it counts if it is their own."""
        said, person = self._something(), self.any()
        if said is not None and said.kind != "file":
            text = self.words("edit")
            await self.group(person).edit(said.id, text)
            if said.author == person.name:
                said.text, said.is_edited = text, True

    async def react(self) -> None:
        if said := self._something():
            person, word = self.any(), self.words("reaction")[:30]
            self.secrets.add(word)
            await self.group(person).react(said.id, word)
            said.reactions.setdefault(word, set()).add(person.name)
            if self.random.random() < 0.3:
                await self.group(person).react(said.id, word, take_back=True)
                said.reactions[word].discard(person.name)

    async def pin(self) -> None:
        """Somebody pins or unpins something: it counts if they are an admin."""
        if said := self._something():
            person, unpin = self.any(), self.random.random() < 0.3
            await self.group(person).pin(said.id, unpin=unpin)
            if person.role is not None and person.role >= Role.ADMIN:
                said.is_pinned = not unpin

    async def delete(self) -> None:
        """Somebody deletes something: refused if it is neither their own nor they an admin."""
        said, person = self._something(), self.any()
        if said is None or (said.kind == "thread" and self.random.random() < 0.8):
            return
        group = self.group(person)
        await eventually(lambda: group.cursor.seq >= said.seq)
        if said.author == person.name or (person.role or Role.MEMBER) >= Role.ADMIN:
            await (await group.message(said.id)).delete()
            said.is_deleted = True
        else:
            with pytest.raises(Refused):
                await (await group.message(said.id)).delete()

    async def type(self) -> None:
        await self.group(self.any()).typing()

    async def go_offline(self) -> None:
        """A device is switched off; one of the lasting two stays on."""
        on = [person for person in self.people.values() if person.client is not None]
        person = self.random.choice(on)
        if person.name not in LASTING or all(self.people[name].client is not None for name in LASTING):
            await person.here().close()
            person.client = None

    async def come_back(self) -> None:
        off = [person for person in self.people.values() if person.client is None]
        if off:
            await self._switch_on(self.random.choice(off))

    async def _switch_on(self, person: Person) -> None:
        person.client = await self._entered(Client(self.relay.url, store=person.store, backoff=at_once()))
        await person.client.resume()
        if person.is_in:
            await self.group(person).live(LIMIT_S)

    async def second_device(self) -> None:
        """Somebody logs in on a new device, sees all that is theirs to see, and says something."""
        person = self.any()
        async with Client(self.relay.url, backoff=at_once()) as device:
            await device.login(person.name, person.passphrase)
            group = device.group(self.group_id)
            await self._sees_everything(person, group)
            if thread := self._a_thread():
                text = self.words("reply")
                self._has_said(await group.reply(thread.id, text), person, "", text)

    async def step(self) -> None:
        """Something of all this."""
        operation = self.random.choices([each for each, _ in OPERATIONS], [weight for _, weight in OPERATIONS])[0]
        self.done.append(operation.__name__)
        async with asyncio.timeout(2 * LIMIT_S):
            await operation(self)

    # ── what must have come of it ───────────────────────────────────────────────────────────────────────────────────

    async def check(self) -> None:
        """Everybody who is in it sees the same, on an old device and a new one; the others can open nothing later."""
        for person in self.people.values():
            if person.client is None:
                await self._switch_on(person)
        inside = [person for person in self.people.values() if person.is_in]
        for person in inside:
            await self._sees_everything(person, self.group(person))
        groups = [self.group(person) for person in inside]
        await eventually(lambda: len({group.cursor.seq for group in groups}) == 1, "all have come equally far")
        assert len({group.code for group in groups}) == 1
        for person in inside:
            async with Client(self.relay.url, backoff=at_once()) as device:
                await device.login(person.name, person.passphrase)
                group = device.group(self.group_id)
                await self._sees_everything(person, group)
                assert group.code == groups[0].code
        for person in self.people.values():
            self._holds_no_other_keys(person)

    async def _sees_everything(self, person: Person, group: Group) -> None:
        since = 0 if self.is_shared else person.joined_at
        expected = {said.id: said.shown() for said in self.said.values() if said.seq > since}
        last = max((said.seq for said in self.said.values()), default=0)
        await eventually(lambda: group.cursor.seq >= last, f"{person.name} has come as far as what was said")
        await eventually(lambda: group.name == self.name, f"{person.name} knows the group's name")
        async with asyncio.timeout(LIMIT_S):
            while True:
                seen = {each.id: each for each in await group.history(limit=1_000) if each.seq > since}
                if all(each.problem is None for each in seen.values()):
                    break
                await asyncio.sleep(0.05)
        assert {each.id: shown(each) for each in seen.values()} == expected, person.name
        roles = {member.name: member.role for member in await group.members()}
        assert roles == {one.name: one.role for one in self.people.values() if one.is_in}, person.name
        assert group.findings == [], person.name

    def _holds_no_other_keys(self, person: Person) -> None:
        """Keys of the epochs that somebody was a member in; of those before too, where the history is shared."""
        if not person.epochs:
            return
        kept = {stored_id: keys for stored_id, _, keys in person.here().store.groups()}.get(self.group_id, {})
        last = max(until for _, until in person.epochs)
        for epoch, key in kept.items():
            self.raw_secrets.add(key)
            is_theirs = any(begun <= epoch <= until for begun, until in person.epochs)
            assert is_theirs or (self.is_shared and epoch <= last), f"{person.name} holds the key of epoch {epoch}"


Operation = Callable[[World], Awaitable[None]]

OPERATIONS: Final[list[tuple[Operation, int]]] = [
    (World.post, 10),
    (World.reply, 20),
    (World.reply_at_once, 5),
    (World.edit, 10),
    (World.react, 10),
    (World.pin, 5),
    (World.delete, 4),
    (World.share, 3),
    (World.come, 8),
    (World.leave, 3),
    (World.remove, 4),
    (World.set_role, 4),
    (World.rekey, 3),
    (World.rename, 3),
    (World.type, 2),
    (World.go_offline, 6),
    (World.come_back, 8),
    (World.second_device, 2),
]

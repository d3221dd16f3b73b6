"""A group that has talked at a real relay, each message sealed by its author's client; who catches up with it."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from bench.stage import BenchError
from orbital_client import Client, Group, InviteLink
from orbital_client.identity import Identity
from orbital_protocol import ZERO_HASH, chain
from orbital_protocol.codes import Kind
from orbital_protocol.frames import Cursor, Event

_PASSPHRASE: Final = "correct horse battery staple"  # noqa: S105  guards nothing
_WRITERS: Final = 4  # of each author, at once
_PAGE: Final = 200
_LIMIT_S: Final = 120


@dataclass(frozen=True, slots=True)
class Talk:
    """What was said, and all that a member's client would know beside: keys, names. `texts`: by message."""

    group_id: bytes
    thread_id: bytes
    events: Sequence[Event]
    texts: Mapping[bytes, str]
    keys: Mapping[int, bytes]
    names: Mapping[bytes, str]
    authors: Sequence[Identity]

    @property
    def opening(self) -> Sequence[Event]:
        """Of whom the group is, and its thread: what comes before the messages."""
        return self.events[: len(self.events) - len(self.texts)]

    @property
    def messages(self) -> Sequence[Event]:
        """The messages, each by the one author or the other."""
        return self.events[len(self.events) - len(self.texts) :]


def words(number: int, size: int) -> str:
    """A text of so many bytes, unlike that of any other number."""
    return f"{number:08} ".ljust(size, "lorem ipsum "[number % 12])


async def talk(url: str, *, people: int, messages: int, size: int) -> Talk:
    """Have a group of so many people post so many messages of so many bytes."""
    async with AsyncExitStack() as stack, asyncio.timeout(_LIMIT_S):
        clients = [await stack.enter_async_context(Client(url)) for _ in range(people)]
        groups = await _gathered(clients)
        thread = await groups[0].post("benchmark", "begins")
        await asyncio.gather(*(_first_message(group) for group in groups))
        texts: dict[bytes, str] = {}
        numbers = iter(range(messages))

        async def write(group: Group) -> None:
            for number in numbers:
                text = words(number, size)
                texts[(await group.reply(thread.id, text)).id] = text

        await asyncio.gather(*(write(group) for group in groups for _ in range(_WRITERS)))
        clients[0].store.commit()
        [(group_id, _, keys)] = clients[0].store.groups()
        return Talk(
            group_id=group_id,
            thread_id=thread.id,
            events=await _log(groups[0]),
            texts=texts,
            keys=keys,
            names={client.user_id: client.username for client in clients},
            authors=[client.identity for client in clients],
        )


async def _gathered(clients: Sequence[Client]) -> list[Group]:
    """The same group, as each of them sees it."""
    for number, client in enumerate(clients):
        await client.register(_name(number), _PASSPHRASE)
    group = await clients[0].create_group("benchmark")
    link: InviteLink = await group.invite()
    return [group, *[await client.join(link) for client in clients[1:]]]


async def _first_message(group: Group) -> None:
    async for _ in group.follow(group.start):
        return


def _name(number: int) -> str:
    return f"bench{number:03}"


async def _log(group: Group) -> list[Event]:
    events: list[Event] = []
    while True:
        page = await group.wire.history(after_seq=len(events), limit=_PAGE)
        events += page.events
        if not page.more:
            return events


def logged(said: Talk, head: Cursor, sealed: Sequence[tuple[Identity, bytes, bytes]]) -> list[Event]:
    """The events that a relay would make of more replies: of each the author, its id, its body."""
    events: list[Event] = []
    for author, reply_id, body in sealed:
        event = Event(
            group_id=said.group_id,
            seq=head.seq + 1,
            hash=ZERO_HASH,
            kind=Kind.REPLY_POSTED,
            object_id=reply_id,
            actor_id=author.user_id,
            key_epoch=said.events[-1].key_epoch,
            created_at=time.time_ns() // 1000,
            content_hash=chain.content_hash(said.thread_id, [chain.field_hash(body)]),
            thread_id=said.thread_id,
            encrypted_body=body,
        )
        events.append(replace(event, hash=_hash_after(head, event)))
        head = Cursor(group_id=said.group_id, seq=event.seq, hash=events[-1].hash)
    return events


def _hash_after(head: Cursor, event: Event) -> bytes:
    return chain.event_hash(
        previous_hash=head.hash,
        group_id=event.group_id,
        seq=event.seq,
        kind=event.kind,
        object_id=event.object_id,
        actor_id=event.actor_id,
        key_epoch=event.key_epoch,
        created_at=event.created_at,
        content_hash=event.content_hash,
    )


async def catch_up(url: str, said: Talk, store: Path) -> float:
    """Messages a second of an author's second device, from its login on until it has read all of them."""
    async with Client(url, store=store) as client:
        await client.login(_name(len(said.authors) - 1), _PASSPHRASE)
        started = time.perf_counter()
        try:
            async with asyncio.timeout(_LIMIT_S):
                texts = await _texts(client.group(said.group_id), len(said.texts))
        except TimeoutError:
            raise BenchError("a second device could not read all that was written") from None
        took_s = time.perf_counter() - started
    require_texts(texts, said.texts)
    return len(texts) / took_s


async def _texts(group: Group, wanted: int) -> dict[bytes, str]:
    """The first replies that can be read; what comes before its key comes again."""
    texts: dict[bytes, str] = {}
    async for message in group.follow(group.start):
        if message.post.kind == Kind.REPLY_POSTED and message.problem is None:
            texts[message.id] = message.text
        if len(texts) == wanted:
            break
    return texts


def require_texts(read: Mapping[bytes, str], written: Mapping[bytes, str]) -> None:
    """Raise BenchError unless what was read is what was written."""
    if read != written:
        lost = sum(read.get(message_id) != text for message_id, text in written.items())
        raise BenchError(f"{lost} of {len(written)} messages were not opened, or have another text")

"""People who post and listen while something fails, and what they saw, for `history` to judge.

async with crowd_on(stage, urls=lambda: [relay.url]) as crowd:
    await crowd.progress()
    …something fails…
    verdict = await crowd.rest()
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

import asyncpg
from websockets.exceptions import WebSocketException

from orbital_protocol import ZERO_HASH, ZERO_ID, chain, frames
from orbital_protocol.codes import RETRYABLE, Kind
from tests.people import Person, connected, found_group
from tests.relays import RunningRelay
from tests.stage import Stage
from tests.system.history import Verdict, judge
from tests.system.history_facts import Acked, AnyFact, Got, Recorder, Removed, Sent, Stopped, Stored, Subscribed
from tests.talk import Refused, Talk, post_thread, reply, subscribe, talking

A_WHILE: Final = 60
"""So many posts are a load."""
MEMBERS: Final = 3
AT_ONCE: Final = 3
PAUSE_S: Final = 0.1
LIMIT_S: Final = 60
OPEN_LIMIT_S: Final = 5
TOKEN_LIFE_S: Final = 86_400
AWAY: Final = (OSError, TimeoutError, WebSocketException, Refused)

Urls = Callable[[], list[str]]


@dataclass
class Client:
    """Somebody who posts and listens in one group, on whichever relay answers.

    What had no answer is sent again. It is `over` once it knows that it will not be let in any more.
    """

    who: str
    person: Person
    token: str
    group_id: bytes
    thread_id: bytes
    urls: Urls
    chance: random.Random
    recorder: Recorder
    seq: int = 0
    hash: bytes = ZERO_HASH
    key_epoch: int = 1
    body_bytes: int = 100
    unanswered: dict[bytes, frames.ReplyPost] = field(default_factory=dict)
    answered: int = 0
    is_posting: bool = True
    is_over: bool = False
    refused: set[str] = field(default_factory=set)
    connections: int = 0

    async def live(self) -> None:
        """Connect, and again whenever that ends."""
        while not self.is_over:
            with suppress(*AWAY):
                async with talking(self.chance.choice(self.urls()), self.token, open_timeout=OPEN_LIMIT_S) as talk:
                    self.connections += 1
                    await self._converse(talk)
            await asyncio.sleep(PAUSE_S)

    async def _converse(self, talk: Talk) -> None:
        if self.is_over:  # since it began to connect
            return
        self._note(Subscribed(**self._here(), after=self.seq))
        status = await subscribe(talk, self.group_id, self.seq, self.hash)
        if status in ("denied", "gone"):
            self.is_over = True
            return
        if status != "resumed":
            raise RuntimeError(f"{self.who} wanted to go on after {self.seq}: {status}")
        try:
            while not self.is_over and not talk.is_closed.is_set():
                if self.is_posting or self.unanswered:
                    await self._post(talk)
                self._harvest(talk)
                await asyncio.sleep(PAUSE_S)
        finally:
            self._harvest(talk)

    async def _post(self, talk: Talk) -> None:
        """Send what had no answer again, otherwise something new."""
        old = list(self.unanswered.values())
        posts = [_again(post, talk.next_id()) for post in old] or [self._new(talk) for _ in range(AT_ONCE)]
        for post in posts:
            self.unanswered[post.reply_id] = post
            content = chain.content_hash(post.thread_id, [chain.field_hash(post.encrypted_body)])
            self._note(Sent(**self._here(), id=post.reply_id.hex(), content_hash=content.hex()))
        answers = [talk.send(post) for post in posts]
        await asyncio.wait(answers, timeout=LIMIT_S)
        for post, answer in zip(posts, answers, strict=True):
            if answer.done():
                self._take_answer(post, answer)

    def _take_answer(self, post: frames.ReplyPost, answer: "asyncio.Future[frames.Ok]") -> None:
        error = answer.exception()
        if isinstance(error, Refused):
            self.refused.add(error.code)
            if error.code not in RETRYABLE:  # such as one under a key that is no longer in force
                del self.unanswered[post.reply_id]
        elif error is None and isinstance(ok := answer.result(), frames.PostOk):
            del self.unanswered[post.reply_id]
            self.answered += 1
            self._note(Acked(**self._here(), id=post.reply_id.hex(), seq=ok.seq))

    def _new(self, talk: Talk) -> frames.ReplyPost:
        return reply(
            talk, self.group_id, self.thread_id, self.chance.randbytes(self.body_bytes), key_epoch=self.key_epoch
        )

    def _harvest(self, talk: Talk) -> None:
        for event in talk.events:
            self.seq, self.hash = event.seq, event.hash
            self.key_epoch += event.kind == Kind.GROUP_REKEYED
            self._note(
                Got(
                    **self._here(),
                    seq=event.seq,
                    id=event.object_id.hex(),
                    kind=event.kind,
                    content_hash=event.content_hash.hex(),
                )
            )
        if any(isinstance(push, frames.GroupGone) for push in talk.pushes):
            self.is_over = True
        talk.forget()

    def _here(self) -> dict[str, Any]:
        return {"at": time.monotonic_ns(), "group": self.group_id.hex(), "who": self.who}

    def _note(self, fact: AnyFact) -> None:
        self.recorder.note(fact)


def _again(post: frames.ReplyPost, request_id: int) -> frames.ReplyPost:
    return frames.ReplyPost(
        **{name: getattr(post, name) for name in post.__struct_fields__ if name != "id"}, id=request_id
    )


@dataclass
class Crowd:
    """Clients of some groups, each of which lives in a task of its own."""

    dsn: str
    recorder: Recorder = field(default_factory=Recorder)
    clients: list[Client] = field(default_factory=list)
    living: list[asyncio.Task[None]] = field(default_factory=list)

    def of(self, group_id: bytes) -> list[Client]:
        """The clients of a group; its owner's is the first."""
        return [client for client in self.clients if client.group_id == group_id]

    @property
    def groups(self) -> list[bytes]:
        return list(dict.fromkeys(client.group_id for client in self.clients))

    @property
    def answered(self) -> int:
        """How many posts have been acknowledged."""
        return sum(client.answered for client in self.clients)

    @property
    def refused(self) -> set[str]:
        """The codes of all errors so far."""
        return {code for client in self.clients for code in client.refused}

    async def settle(self, stage: Stage, urls: Urls, people: Sequence[Person] | None = None) -> bytes:
        """A group of these people, a thread, and the members' clients, who begin to live; its id."""
        number = len(self.groups)
        people = people or await stage.people(MEMBERS)
        group_id = await found_group(stage.sql, *people)
        tokens = [await stage.token(person, life_s=TOKEN_LIFE_S) for person in people]
        async with talking(urls()[0], tokens[0]) as talk:
            thread_id, _ = await post_thread(talk, group_id)
        async with asyncio.timeout(LIMIT_S):
            while not (event := await stage.sql.fetchrow("SELECT * FROM events WHERE object_id = $1", thread_id)):
                await asyncio.sleep(0.02)
        self.recorder.note(
            Sent(at=0, group=group_id.hex(), who="", id=thread_id.hex(), content_hash=event["content_hash"].hex())
        )
        for member, (person, token) in enumerate(zip(people, tokens, strict=True)):
            client = Client(
                who=f"{number}.{member}",
                person=person,
                token=token,
                group_id=group_id,
                thread_id=thread_id,
                urls=urls,
                chance=random.Random(f"{number}.{member}"),
                recorder=self.recorder,
            )
            self.clients.append(client)
            self.living.append(asyncio.create_task(client.live(), name=client.who))
        return group_id

    async def progress(self, clients: list[Client] | None = None) -> None:
        """Wait until each of the clients, all who are there if none are named, got something new."""
        clients = [client for client in clients or self.clients if not client.is_over]
        before = {client.who: client.seq for client in clients}
        await self.until(lambda: all(client.is_over or client.seq > before[client.who] for client in clients))

    async def acknowledged(self, count: int) -> None:
        """Wait until so many more posts have been acknowledged."""
        wanted = self.answered + count
        await self.until(lambda: self.answered >= wanted)

    async def until(self, holds: Callable[[], bool], *, limit_s: float = LIMIT_S) -> None:
        """Wait until it holds; raise what ended a client."""
        async with asyncio.timeout(limit_s):
            while not holds():
                for task in self.living:
                    if task.done():
                        task.result()
                await asyncio.sleep(0.02)

    def removed(self, client: Client, seq: int) -> None:
        """Note that the event at this place removes somebody."""
        self.recorder.note(
            Removed(at=time.monotonic_ns(), group=client.group_id.hex(), who=client.who, seq=seq),
        )

    def stopped(self, client: Client) -> None:
        """Note that a client listens no longer, by its own choice."""
        client.is_over = True
        self.recorder.note(Stopped(at=time.monotonic_ns(), group=client.group_id.hex(), who=client.who))

    async def rest(self, *, groups: Sequence[bytes] | None = None, limit_s: float = LIMIT_S) -> Verdict:
        """Nobody posts anything new; wait until all is answered and everybody has everything, and judge.

        Who has not got everything in that time is in the verdict. It is about all groups if none are named.
        """
        groups = groups or self.groups
        for client in self.clients:
            client.is_posting = False
        await self.until(lambda: not any(client.unanswered for client in self.clients if not client.is_over))
        async with connected(self.dsn) as sql:
            heads = {row["group_id"]: row["last_seq"] for row in await sql.fetch("SELECT * FROM group_heads")}
        with suppress(TimeoutError):
            await self.until(
                lambda: all(client.is_over or client.seq >= heads[client.group_id] for client in self.clients),
                limit_s=limit_s,
            )
        for client in self.clients:
            client.is_over = True
        await asyncio.wait(self.living, timeout=LIMIT_S)
        for group_id in groups:
            await self._note_log(group_id)
        names = {group_id.hex() for group_id in groups}
        return judge(fact for fact in self.recorder.facts if fact.group in names)

    async def end(self) -> None:
        """Stop all clients where they are."""
        for task in self.living:
            task.cancel()
        if self.living:
            await asyncio.wait(self.living)

    async def _note_log(self, group_id: bytes) -> None:
        """The log as it is in the database."""
        async with connected(self.dsn) as sql:
            rows: list[asyncpg.Record] = await sql.fetch(
                "SELECT *, to_us(created_at) AS created_us FROM events WHERE group_id = $1", group_id
            )
        for row in rows:
            self.recorder.note(
                Stored(
                    at=time.monotonic_ns(),
                    group=group_id.hex(),
                    seq=row["seq"],
                    id=row["object_id"].hex(),
                    kind=row["kind"],
                    actor=(row["actor_id"] or ZERO_ID).hex(),
                    key_epoch=row["key_epoch"],
                    created_at=row["created_us"],
                    content_hash=row["content_hash"].hex(),
                    hash=row["hash"].hex(),
                )
            )


@asynccontextmanager
async def crowd_on(stage: Stage, urls: Urls, *, groups: int = 1, members: int = MEMBERS) -> AsyncIterator[Crowd]:
    """A crowd whose clients choose among these relays whenever they connect."""
    crowd = Crowd(stage.dsn)
    try:
        for _ in range(groups):
            await crowd.settle(stage, urls, await stage.people(members))
        yield crowd
    finally:
        await crowd.end()


def good(verdict: Verdict) -> None:
    """Nothing is violated, and there was a load."""
    assert verdict.violations == []
    assert verdict.acknowledged > A_WHILE
    assert verdict.deliveries > verdict.acknowledged


def unharmed(relay: RunningRelay) -> None:
    """The process lives, and knows of no defect; that posts were refused is none."""
    assert relay.process.returncode is None
    assert not [line for line in relay.log if line.get("level") == "error" and line["event"] != "append.failed"]
    assert not [line for line in relay.raw_log if "Traceback" in line]

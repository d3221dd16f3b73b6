"""Kill relays and the database again and again while people post: `python -m tests.system.chaos ROUNDS [SEED]`.

Two relays on one PostgreSQL; each round kills one of them by SIGKILL, stops PostgreSQL at once (as `-m immediate`), or
kills one of its backends by SIGKILL, from which it recovers as from a crash. Everything that clients sent and got is
held against the invariants of `history` in the end.
"""

import asyncio
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import asyncpg
from websockets.exceptions import WebSocketException

from orbital_protocol import ZERO_HASH, ZERO_ID, chain, frames
from tests.people import connected, found_group
from tests.stage import Stage, stage_on
from tests.system.chaos_house import House, house
from tests.system.history import Verdict, judge
from tests.system.history_facts import Acked, Got, Recorder, Sent, Stored, Subscribed
from tests.talk import Refused, Talk, post_thread, reply, subscribe, talking

GROUPS: Final = 3
CLIENTS: Final = 3  # of each group
AT_ONCE: Final = 3
PAUSE_S: Final = 0.1
LIMIT_S: Final = 60
TOKEN_LIFE_S: Final = 86_400
AWAY: Final = (OSError, TimeoutError, WebSocketException, Refused)


@dataclass
class Client:
    """Somebody who posts and listens in one group, on whichever relay answers."""

    who: str
    token: str
    group_id: bytes
    thread_id: bytes
    urls: Callable[[], list[str]]
    chance: random.Random
    recorder: Recorder
    seq: int = 0
    hash: bytes = ZERO_HASH
    unanswered: dict[bytes, frames.ReplyPost] = field(default_factory=dict)
    is_posting: bool = True
    is_over: bool = False

    async def live(self) -> None:
        """Connect, and again whenever that ends."""
        while not self.is_over:
            with suppress(*AWAY):
                async with talking(self.chance.choice(self.urls()), self.token, open_timeout=5) as talk:
                    await self._converse(talk)
            await asyncio.sleep(PAUSE_S)

    async def _converse(self, talk: Talk) -> None:
        self._note(Subscribed(**self._here(), after=self.seq))
        status = await subscribe(talk, self.group_id, self.seq, self.hash)
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
        posts = [replaced(post, talk.next_id()) for post in old] or [self._new(talk) for _ in range(AT_ONCE)]
        for post in posts:
            self.unanswered[post.reply_id] = post
            content = chain.content_hash(post.thread_id, [chain.field_hash(post.encrypted_body)])
            self._note(Sent(**self._here(), id=post.reply_id.hex(), content_hash=content.hex()))
        answers = [talk.send(post) for post in posts]
        await asyncio.wait(answers, timeout=LIMIT_S)
        for post, answer in zip(posts, answers, strict=True):
            if answer.done() and answer.exception() is None and isinstance(ok := answer.result(), frames.PostOk):
                del self.unanswered[post.reply_id]
                self._note(Acked(**self._here(), id=post.reply_id.hex(), seq=ok.seq))

    def _new(self, talk: Talk) -> frames.ReplyPost:
        return reply(talk, self.group_id, self.thread_id, self.chance.randbytes(100))

    def _harvest(self, talk: Talk) -> None:
        for event in talk.events:
            self.seq, self.hash = event.seq, event.hash
            self._note(
                Got(
                    **self._here(),
                    seq=event.seq,
                    id=event.object_id.hex(),
                    kind=event.kind,
                    content_hash=event.content_hash.hex(),
                )
            )
        talk.forget()

    def _here(self) -> dict[str, Any]:
        return {"at": time.monotonic_ns(), "group": self.group_id.hex(), "who": self.who}

    def _note(self, fact: Subscribed | Sent | Acked | Got) -> None:
        self.recorder.note(fact)


def replaced(post: frames.ReplyPost, request_id: int) -> frames.ReplyPost:
    return frames.ReplyPost(
        **{name: getattr(post, name) for name in post.__struct_fields__ if name != "id"}, id=request_id
    )


# ── the rounds ──────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Figures:
    """What was done, and what the judge says."""

    rounds: int
    kills: Counter[str]
    verdict: Verdict

    def __str__(self) -> str:
        kills = ", ".join(f"{name} {count}" for name, count in sorted(self.kills.items()))
        return f"{self.rounds} rounds (killed: {kills}); {self.verdict}"


async def chaos(rounds: int, seed: int) -> Figures:
    """So many rounds, chosen by the seed; raises TimeoutError if it doesn't recover within a minute."""
    chance, recorder = random.Random(seed), Recorder()
    async with house(chance) as at:
        async with stage_on(at.dsn) as stage:
            clients = [client for number in range(GROUPS) for client in await settle(stage, at, number, recorder)]
        living = [asyncio.create_task(client.live(), name=client.who) for client in clients]
        try:
            for number in range(1, rounds + 1):
                await progress(clients, living)
                await at.strike()
                if number % 10 == 0:
                    print(f"{number} rounds, {sum(client.seq for client in clients):,} events", flush=True)
            await progress(clients, living)
            await come_to_rest(at, clients, living)
        finally:
            for task in living:
                task.cancel()
            await asyncio.wait(living)
        for group_id in {client.group_id for client in clients}:
            await note_log(at.dsn, group_id, recorder)
        return Figures(rounds, at.kills, judge(recorder.facts))


async def settle(stage: Stage, at: House, number: int, recorder: Recorder) -> list[Client]:
    """A group, its thread, and its members' clients."""
    people = await stage.people(CLIENTS)
    group_id = await found_group(stage.sql, *people)
    tokens = [await stage.token(person, life_s=TOKEN_LIFE_S) for person in people]
    async with talking(at.urls()[0], tokens[0]) as talk:
        thread_id, _ = await post_thread(talk, group_id)
    [event] = await stage.sql.fetch("SELECT * FROM events WHERE object_id = $1", thread_id)
    recorder.note(
        Sent(at=0, group=group_id.hex(), who="", id=thread_id.hex(), content_hash=event["content_hash"].hex())
    )
    return [
        Client(
            who=f"{number}.{member}",
            token=token,
            group_id=group_id,
            thread_id=thread_id,
            urls=at.urls,
            chance=random.Random(f"{number}.{member}"),
            recorder=recorder,
        )
        for member, token in enumerate(tokens)
    ]


async def progress(clients: list[Client], living: list[asyncio.Task[None]]) -> None:
    """Wait until every client has got something new, and posts were acknowledged."""
    before = {client.who: client.seq for client in clients}
    await until(lambda: all(client.seq > before[client.who] for client in clients), living)


async def come_to_rest(at: House, clients: list[Client], living: list[asyncio.Task[None]]) -> None:
    """Nobody posts anything new; wait until all is answered, and everybody has everything."""
    for client in clients:
        client.is_posting = False
    await until(lambda: not any(client.unanswered for client in clients), living)
    async with connected(at.dsn) as sql:
        heads = {row["group_id"]: row["last_seq"] for row in await sql.fetch("SELECT * FROM group_heads")}
    await until(lambda: all(client.seq >= heads[client.group_id] for client in clients), living)
    for client in clients:
        client.is_over = True
    await asyncio.wait(living, timeout=LIMIT_S)


async def until(holds: Callable[[], bool], living: list[asyncio.Task[None]]) -> None:
    """Wait until it holds; raise what ended a client."""
    async with asyncio.timeout(LIMIT_S):
        while not holds():
            for task in living:
                if task.done():
                    task.result()
            await asyncio.sleep(0.02)


async def note_log(dsn: str, group_id: bytes, recorder: Recorder) -> None:
    """The log as it is in the database."""
    async with connected(dsn) as sql:
        rows: list[asyncpg.Record] = await sql.fetch(
            "SELECT *, to_us(created_at) AS created_us FROM events WHERE group_id = $1", group_id
        )
    for row in rows:
        recorder.note(
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


def main(rounds: int, seed: int = 1) -> int:
    """Print the figures; the exit status."""
    figures = asyncio.run(chaos(rounds, seed))
    for violation in figures.verdict.violations[:50]:
        print(violation)
    print(figures)
    return bool(figures.verdict.violations)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))

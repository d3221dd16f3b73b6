"""Whole relays with people in groups, for tests of a module: what takes long to start is shared, the rest is not.

async with stage_on(dsn) as stage:
    ann, bob = await stage.people(2)
    group_id = await found_group(stage.sql, ann, bob)
"""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from orbital_protocol import frames
from orbital_protocol.frames import Ok, ReplyPost
from orbital_relay.store.pool import Connection
from tests.people import Person, connected, enroll
from tests.talk import Refused, Talk, reply, token_of

_numbers = itertools.count(1)


@dataclass
class Stage:
    """A migrated database, and a connection of the test's own to it."""

    dsn: str
    sql: Connection

    async def people(self, count: int) -> list[Person]:
        """People whom no other test knows."""
        return [await enroll(self.sql, f"person_{next(_numbers)}") for _ in range(count)]

    async def token(self, person: Person, *, life_s: int = 3600) -> str:
        """An access token for a new session."""
        return await token_of(self.sql, person, life_s=life_s)

    async def log(self, group_id: bytes) -> list[tuple[int, bytes, bytes]]:
        """Seq, object and hash of every event; each seq one more than the last."""
        rows = await self.sql.fetch(
            "SELECT seq, object_id, hash FROM events WHERE group_id = $1 ORDER BY seq", group_id
        )
        assert [row["seq"] for row in rows] == [*range(1, len(rows) + 1)]
        return [(row["seq"], row["object_id"], row["hash"]) for row in rows]


@asynccontextmanager
async def stage_on(dsn: str) -> AsyncIterator[Stage]:
    """A stage on a migrated database."""
    async with connected(dsn) as sql:
        yield Stage(dsn, sql)


@dataclass
class Posting:
    """Replies that are posted one batch after the other until the connection ends, and what became of each."""

    talk: Talk
    group_id: bytes
    thread_id: bytes
    answered: dict[bytes, frames.PostOk] = field(default_factory=dict)
    unanswered: list[ReplyPost] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    stop: bool = False

    async def run(self, *, at_once: int = 10) -> None:
        while not self.stop and not self.talk.is_closed.is_set():
            requests = [reply(self.talk, self.group_id, self.thread_id) for _ in range(at_once)]
            futures = [self.talk.send(request) for request in requests]
            await asyncio.wait(futures)
            for request, future in zip(requests, futures, strict=True):
                self._note(request, future)

    def _note(self, request: ReplyPost, future: "asyncio.Future[Ok]") -> None:
        error = future.exception()
        if error is None:
            answer = future.result()
            assert isinstance(answer, frames.PostOk)
            self.answered[request.reply_id] = answer
        elif isinstance(error, Refused):
            self.refused.append(error)
            self.unanswered.append(request)
        else:
            self.unanswered.append(request)

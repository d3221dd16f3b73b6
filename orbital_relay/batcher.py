"""Questions that many connections ask at once are put to the database together.

A statement costs a round trip, its parsing of parameters and a wake-up of either side, however little it asks. While as
many statements as may be under way are, what comes next waits; the next statement asks for all of that. There is no
timer: somebody who asks alone is answered at once.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

from orbital_relay.errors import Overloaded, RequestError, Unavailable
from orbital_relay.store.pool import Connection, Database

Question = TypeVar("Question")
Answer = TypeVar("Answer")


class _Asked(NamedTuple, Generic[Question, Answer]):
    question: Question
    answer: "asyncio.Future[Answer]"
    since: float


class Batcher(Generic[Question, Answer]):
    """One kind of question. `read` gets a few of them, and answers them in their order.

    At most `at_once` statements are under way; each asks for at most `max_size`, where a question counts as much as
    `size_of` says (but one always fits).
    """

    def __init__(
        self,
        database: Database,
        read: Callable[[Connection, Sequence[Question]], Awaitable[Sequence[Answer]]],
        *,
        at_once: int,
        max_size: int,
        size_of: Callable[[Question], int] = lambda _: 1,
    ) -> None:
        self._database = database
        self._read = read
        self._at_once = at_once
        self._max_size = max_size
        self._size_of = size_of
        self._waiting: deque[_Asked[Question, Answer]] = deque()
        self._more = asyncio.Event()
        self._is_over = False

    async def ask(self, question: Question) -> Answer:
        """The answer. Raise Unavailable or Overloaded where the database is away or busy, or what `read` raises."""
        if self._is_over:
            raise Unavailable
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Asked(question, answer, time.monotonic()))
        self._more.set()
        return await answer

    async def run(self) -> None:
        """Ask the database until cancelled; who still waits then is told Unavailable."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for number in range(self._at_once):
                    tasks.create_task(self._work(), name=f"batcher {number}")
        finally:
            self._is_over = True
            _refuse(self._waiting, Unavailable())

    async def _work(self) -> None:
        while True:
            await self._more.wait()
            if batch := self._take():
                await self._put(batch)
            else:
                self._more.clear()

    def _take(self) -> list[_Asked[Question, Answer]]:
        """The next batch, without those that nobody waits for any more, or who have waited for too long."""
        batch: list[_Asked[Question, Answer]] = []
        size = 0
        oldest = time.monotonic() - self._database.settings.acquire_timeout_s
        while self._waiting:
            asked = self._waiting[0]
            if asked.since < oldest:
                _refuse([asked], Overloaded("The database is busy."))
            elif not asked.answer.done():
                size += self._size_of(asked.question)
                if batch and size > self._max_size:
                    break
                batch.append(asked)
            self._waiting.popleft()
        return batch

    async def _put(self, batch: list[_Asked[Question, Answer]]) -> None:
        """Put a batch to the database. If one question is more than it can bear, the others still get their answers."""
        try:
            async with self._database.connection() as connection:
                answers = await self._read(connection, [asked.question for asked in batch])
        except RequestError as error:
            _refuse(batch, error)
        except asyncio.CancelledError:
            _refuse(batch, Unavailable())
            raise
        except Exception as error:
            if len(batch) == 1:
                _refuse(batch, error)
                return
            for asked in batch:
                await self._put([asked])
        else:
            for asked, answer in zip(batch, answers, strict=True):
                if not asked.answer.done():
                    asked.answer.set_result(answer)


def _refuse(batch: "Sequence[_Asked[Question, Answer]] | deque[_Asked[Question, Answer]]", error: Exception) -> None:
    for asked in batch:
        if not asked.answer.done():
            asked.answer.set_exception(error)

"""Talking to a relay in tests: frames in and out over a real socket, without the client library.

async with talking(relay.url, await token_of(connection, ann)) as ann_talks:
    await ann_talks.ask(frames.Subscribe, groups=[…])
    event = await ann_talks.hear(frames.Event)
"""

import asyncio
import itertools
import os
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import websockets
from websockets.exceptions import ConnectionClosed

from orbital_protocol import SUBPROTOCOL, ZERO_HASH, codec, frames
from orbital_protocol.chain import event_hash
from orbital_protocol.frames import REQUESTS, Error, Event, Ok, Push, Request, SubscribeGroup
from orbital_relay.config import TokenKey
from orbital_relay.credentials import Access, AccessTokens
from orbital_relay.store.pool import Connection
from tests.people import Person, new_id
from tests.relays import TOKEN_KEY

LIMIT_S = 15
P = TypeVar("P", bound=Push)


class Refused(Exception):
    """An `error` answer; `code` is what the relay said."""

    def __init__(self, error: Error) -> None:
        super().__init__(f"{error.code}: {error.message} {error.details}")
        self.error = error
        self.code = error.code


class Talk:
    """One connection. `events` has every event that it got, in order."""

    def __init__(self, socket: websockets.ClientConnection) -> None:
        self.socket = socket
        self.events: list[Event] = []
        self.pushes: list[Push] = []
        self.strays: list[Error] = []
        self._unheard: deque[Push] = deque()
        self._answers: dict[int, asyncio.Future[Ok]] = {}
        self._awaited: dict[int, type[Ok]] = {}
        self._ids = itertools.count(1)
        self._changed = asyncio.Condition()
        self._sending: set[asyncio.Task[None]] = set()
        self.close_code: int | None = None
        self.is_closed = asyncio.Event()
        self.answer_order: list[int] = []

    def send(self, request: Request) -> "asyncio.Future[Ok]":
        """Send a request now; the future gets its answer (Refused for an error, ConnectionClosed at the end)."""
        future = self.expect(request)
        sending = asyncio.create_task(self._send(codec.encode(request), future), name="talk send")
        self._sending.add(sending)
        sending.add_done_callback(self._sending.discard)
        return future

    def expect(self, request: Request) -> "asyncio.Future[Ok]":
        """The future of the answer to a request that the test sends itself."""
        future: asyncio.Future[Ok] = asyncio.get_running_loop().create_future()
        self._answers[request.id] = future
        self._awaited[request.id] = REQUESTS[type(request)]
        return future

    def forget(self) -> None:
        """Forget all pushes so far: they would fill this process."""
        self.events.clear()
        self.pushes.clear()
        self._unheard.clear()

    async def _send(self, raw: bytes, future: "asyncio.Future[Ok]") -> None:
        try:
            await self.socket.send(raw)
        except ConnectionClosed as error:
            if not future.done():
                future.set_exception(error)

    async def ask(self, kind: type[Request], **fields: Any) -> Any:
        """Send a request and wait for its answer; raise Refused where it is an error."""
        async with asyncio.timeout(LIMIT_S):
            return await self.send(kind(id=next(self._ids), **fields))

    def next_id(self) -> int:
        """An id for a request that the test makes itself."""
        return next(self._ids)

    async def hear(self, kind: type[P], *, limit_s: float = LIMIT_S) -> P:
        """The next push of this kind that was not heard yet; others stay to be heard."""
        async with asyncio.timeout(limit_s), self._changed:
            while True:
                for push in self._unheard:
                    if isinstance(push, kind):
                        self._unheard.remove(push)
                        return push
                await self._changed.wait()

    async def has(self, seq: int, group_id: bytes, *, limit_s: float = LIMIT_S) -> list[Event]:
        """Wait until this event has come; return all events of the group so far."""
        async with asyncio.timeout(limit_s), self._changed:
            await self._changed.wait_for(
                lambda: any(e.seq == seq and e.group_id == group_id for e in reversed(self.events))
            )
        return [event for event in self.events if event.group_id == group_id]

    async def heard_events(self, count: int, *, limit_s: float = LIMIT_S) -> None:
        """Wait until so many events have come."""
        async with asyncio.timeout(limit_s), self._changed:
            await self._changed.wait_for(lambda: len(self.events) >= count)

    async def has_strays(self, count: int, *, limit_s: float = LIMIT_S) -> None:
        """Wait until so many errors have come that answer nothing."""
        async with asyncio.timeout(limit_s), self._changed:
            await self._changed.wait_for(lambda: len(self.strays) >= count)

    async def closed(self, *, limit_s: float = LIMIT_S) -> int | None:
        """Wait for the end; return the close code."""
        async with asyncio.timeout(limit_s):
            await self.is_closed.wait()
        return self.close_code

    def cut(self) -> None:
        """Cut the TCP connection, as a tunnel does."""
        self.socket.transport.abort()

    async def read(self) -> None:
        """Take in what comes, until the end."""
        try:
            async for message in self.socket:
                assert isinstance(message, bytes)
                for raw in codec.split(message):
                    await self._take(bytes(raw))
        except ConnectionClosed:
            pass
        finally:
            self.close_code = self.socket.close_code
            self.is_closed.set()
            for future in self._answers.values():
                if not future.done():
                    future.set_exception(ConnectionError("closed without an answer"))
                    future.exception()

    async def _take(self, raw: bytes) -> None:
        kind, request_id = codec.frame_head(raw)
        if kind == "ok":
            assert request_id is not None
            self.answer_order.append(request_id)
            answer = codec.decode_answer(raw, self._awaited.pop(request_id))
            answered = self._answers.pop(request_id)
            if not answered.cancelled():  # else it came too late for whoever asked
                answered.set_result(answer)
            return
        push = codec.decode_push(raw)
        assert push is not None, f"unknown push {kind}"
        if isinstance(push, Error):
            future = self._answers.pop(push.id, None) if push.id is not None else None
            if future is None:
                self.strays.append(push)
            elif not future.cancelled():
                future.set_exception(Refused(push))
                future.exception()
        else:
            self.pushes.append(push)
            self._unheard.append(push)
            if isinstance(push, Event):
                self.events.append(push)
        async with self._changed:
            self._changed.notify_all()


@asynccontextmanager
async def talking(url: str, token: str | None = None, **options: Any) -> AsyncIterator[Talk]:
    """Connect, and authenticate where a token is given."""
    given = {"subprotocols": [SUBPROTOCOL], "compression": None, "max_size": None, "proxy": None, **options}
    socket = await websockets.connect(url, **given)
    talk = Talk(socket)
    reader = asyncio.create_task(talk.read(), name="talk")
    try:
        await talk.hear(frames.Hello)
        if token is not None:
            await talk.ask(frames.Authenticate, access_token=token)
        yield talk
    finally:
        await socket.close()
        socket.transport.abort()
        await reader


async def token_of(connection: Connection, person: Person, *, life_s: int = 3600, key: str = TOKEN_KEY) -> str:
    """An access token for a new session of this person, as a login would give (without the cost of a password)."""
    session_id = new_id()
    await connection.execute(
        "INSERT INTO sessions (session_id, user_id, device_name, token_epoch, family_hash, refresh_hash, expires_at)"
        " SELECT $1, $2, 'test', token_epoch, $3, $3, now() + interval '1 day' FROM users WHERE id = $2",
        *(session_id, person.user_id, secrets.token_bytes(32)),
    )
    epoch = await connection.fetchval("SELECT token_epoch FROM users WHERE id = $1", person.user_id)
    access = Access(person.user_id, session_id, epoch, (int(time.time()) + life_s) * 1_000_000)
    return AccessTokens([TokenKey.parse(key)]).sign(access, time.time_ns() // 1000)


async def subscribe(talk: Talk, group_id: bytes, seq: int | None = None, hash_: bytes | None = None) -> str:
    """Subscribe to a group; the status."""
    answer = await talk.ask(
        frames.Subscribe, groups=[SubscribeGroup(group_id=group_id, after_seq=seq, after_hash=hash_)]
    )
    return str(answer.groups[0].status)


async def post_thread(talk: Talk, group_id: bytes) -> tuple[bytes, frames.PostOk]:
    """Post a thread; its id and the answer."""
    thread_id = new_id()
    answer = await talk.ask(
        frames.ThreadPost,
        group_id=group_id,
        key_epoch=1,
        thread_id=thread_id,
        encrypted_title=os.urandom(40),
        encrypted_body=os.urandom(300),
    )
    return thread_id, answer


def reply(
    talk: Talk, group_id: bytes, thread_id: bytes, body: bytes = b"ciphertext", *, key_epoch: int = 1
) -> frames.ReplyPost:
    """A reply, to be sent."""
    return frames.ReplyPost(
        id=talk.next_id(),
        group_id=group_id,
        key_epoch=key_epoch,
        thread_id=thread_id,
        reply_id=new_id(),
        encrypted_body=body,
    )


def check_steps(events: list[Event]) -> None:
    """One group's events: each seq one more than the last, and chained to it."""
    for before, after in itertools.pairwise(events):
        assert after.seq == before.seq + 1, f"{before.seq} is followed by {after.seq}"
    for number, event in enumerate(events):
        previous = events[number - 1].hash if number else ZERO_HASH
        if number or event.seq == 1:
            expected = event_hash(
                previous_hash=previous,
                group_id=event.group_id,
                seq=event.seq,
                kind=event.kind,
                object_id=event.object_id,
                actor_id=event.actor_id,
                key_epoch=event.key_epoch,
                created_at=event.created_at,
                content_hash=event.content_hash,
            )
            assert event.hash == expected, f"the chain breaks at {event.seq}"

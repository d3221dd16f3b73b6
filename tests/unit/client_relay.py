"""A relay that says what a test wants it to say, on a real socket.

It answers the requests that every client makes; `relay.answers[Type]` replaces an answer. `relay.logs` holds groups
whose events it replays to whoever subscribes. `relay.requests` is what came, in order.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec.structs import replace
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from orbital_client.wire import Client, Identity, Item, uuid7
from orbital_client.wire.backoff import Backoff
from orbital_protocol import SUBPROTOCOL, ZERO_HASH, ZERO_ID, chain, statements
from orbital_protocol.codec import decode_request, encode, split
from orbital_protocol.codes import Kind
from orbital_protocol.frames import (
    Authenticate,
    AuthenticateOk,
    Cursor,
    Error,
    Event,
    Frame,
    GroupHead,
    GroupList,
    GroupListOk,
    Hello,
    Limits,
    Live,
    Login,
    Ok,
    Ping,
    PingOk,
    Refresh,
    Register,
    Request,
    SessionOk,
    SignedStatement,
    Subscribe,
    SubscribedGroup,
    SubscribeOk,
    Unsubscribe,
)

R = TypeVar("R", bound=Request)
T = TypeVar("T")
N = TypeVar("N")
Answer = Callable[["FakeConnection", Request], Iterable[Frame | bytes]]

LIMIT_S = 10
NOW = 1_700_000_000_000_000
HOUR = 3_600_000_000

LIMITS = Limits(
    max_frame_bytes=1_048_576,
    max_unauthenticated_frame_bytes=16_384,
    max_depth=8,
    max_in_flight=64,
    max_frames_per_second=1000,
    max_title_bytes=4096,
    max_body_bytes=65_536,
    max_name_bytes=4096,
    max_wrap_bytes=1024,
    max_statement_bytes=2048,
    max_signal_bytes=1280,
    signals_per_second=20,
    max_members_per_group=1000,
    max_groups_per_user=200,
    max_subscriptions=500,
    max_invites_per_group=100,
    max_join_requests_per_group=100,
    max_cursors_per_user=256,
    max_tokens_per_user=50,
    max_sessions_per_user=50,
    max_backup_bytes=1_000_000,
    max_media_bytes=1_073_741_824,
    max_metadata_bytes=4096,
    media_chunk_bytes=524_288,
    media_window=20,
    max_uploads_per_user=100,
    page_limit=200,
    rekeys_per_hour=60,
    knocks_per_hour=60,
)
HELLO = Hello(
    protocol=1,
    server="fake",
    relay_id=bytes(16),
    limits=LIMITS,
    auth_timeout_ms=10_000,
    heartbeat_ms=30_000,
    registration="open",
)


@cache
def _rsa() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def identity() -> Identity:
    """Somebody new; they all share an RSA key, which takes long to make."""
    return Identity(uuid7(), Ed25519PrivateKey.generate(), _rsa())


async def until(condition: Callable[[], object]) -> None:
    """Wait until the condition holds."""
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0.002)


async def soon(awaitable: Awaitable[T]) -> T:
    """Await something that must not take long."""
    async with asyncio.timeout(LIMIT_S):
        return await awaitable


def at_once() -> Backoff:
    """Backoff that waits for nothing but what the relay asks for."""
    return Backoff(uniform=lambda low, high: low)


def our_tasks() -> set[str]:
    """The names of the client's tasks that are running."""
    return {task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("orbital")}


@asynccontextmanager
async def registered(
    relay: "FakeRelay", who: Identity | None = None, *, timeout_s: float = LIMIT_S, **options: Any
) -> AsyncIterator[Client]:
    """A client that has registered at the relay; everything that it started must have ended afterwards."""
    async with Client(relay.url, **{"backoff": at_once(), "timeout_s": timeout_s, **options}) as client:
        await soon(client.register("ann", "a password", who or identity()))
        yield client
    assert our_tasks() == set()


async def take(client: Client, number: int) -> list[Item]:
    """The next items of `events()`."""
    events = client.events()
    return [await soon(anext(events)) for _ in range(number)]


async def take_until(client: Client, kind: type[N]) -> N:
    """The next item of this type; those before it are passed over."""
    async with asyncio.timeout(LIMIT_S):
        async for item in client.events():
            if isinstance(item, kind):
                return item
    raise AssertionError("the events ended")


@dataclass
class FakeLog:
    """A group's log, chained as a relay chains it."""

    group_id: bytes = field(default_factory=uuid7)
    events: list[Event] = field(default_factory=list)
    key_epoch: int = 1

    @property
    def head(self) -> Cursor:
        return self.cursor(len(self.events))

    def cursor(self, seq: int) -> Cursor:
        return Cursor(group_id=self.group_id, seq=seq, hash=self.events[seq - 1].hash if seq else ZERO_HASH)

    def reply(self, body: bytes = b"body", thread_id: bytes | None = None) -> Event:
        """Append a reply."""
        thread_id = thread_id or uuid7()
        return self._append(
            kind=Kind.REPLY_POSTED,
            object_id=uuid7(),
            actor_id=uuid7(),
            content_hash=chain.content_hash(thread_id, [chain.field_hash(body)]),
            thread_id=thread_id,
            encrypted_body=body,
        )

    def thread(self, title: bytes = b"title", body: bytes = b"body") -> Event:
        """Append a thread."""
        return self._append(
            kind=Kind.THREAD_POSTED,
            object_id=uuid7(),
            actor_id=uuid7(),
            content_hash=chain.content_hash(ZERO_ID, [chain.field_hash(title), chain.field_hash(body)]),
            encrypted_title=title,
            encrypted_body=body,
        )

    def file(self, metadata: bytes, iv: bytes, size_bytes: int, root: bytes) -> Event:
        """Append a file."""
        thread_id = uuid7()
        fields = chain.media_fields(metadata, iv, size_bytes, root)
        return self._append(
            kind=Kind.MEDIA_POSTED,
            object_id=uuid7(),
            actor_id=uuid7(),
            content_hash=chain.content_hash(thread_id, [chain.field_hash(each) for each in fields]),
            thread_id=thread_id,
            encrypted_metadata=metadata,
            encryption_iv=iv,
            size_bytes=size_bytes,
            root=root,
        )

    def say(self, signed: SignedStatement) -> Event:
        """Append what a statement says."""
        statement = statements.decode(signed.statement)
        event = self._append(
            kind=statements.kind_of(statement),
            object_id=statement.statement_id,
            actor_id=statement.actor_id,
            content_hash=chain.control_content_hash(signed.statement, signed.signature),
            statement=signed.statement,
            signature=signed.signature,
        )
        if isinstance(statement, statements.GroupRekeyed):
            self.key_epoch = statement.new_key_epoch
        return event

    def by_relay(self, kind: Kind, object_id: bytes) -> Event:
        """Append what the relay itself appends."""
        return self._append(kind=kind, object_id=object_id, actor_id=ZERO_ID, content_hash=chain.RELAY_CONTENT_HASH)

    def _append(self, **parts: object) -> Event:
        event = rehashed(
            Event(
                group_id=self.group_id,
                seq=len(self.events) + 1,
                hash=ZERO_HASH,
                key_epoch=self.key_epoch,
                created_at=NOW + len(self.events),
                **parts,  # type: ignore[arg-type]
            ),
            self.head.hash,
        )
        self.events.append(event)
        return event


def rehashed(event: Event, previous_hash: bytes) -> Event:
    """The event with the hash that chains it to the one before."""
    hash_ = chain.event_hash(
        previous_hash=previous_hash,
        group_id=event.group_id,
        seq=event.seq,
        kind=event.kind,
        object_id=event.object_id,
        actor_id=event.actor_id,
        key_epoch=event.key_epoch,
        created_at=event.created_at,
        content_hash=event.content_hash,
    )
    return replace(event, hash=hash_)


class FakeConnection:
    """One client's connection, seen from the relay."""

    def __init__(self, socket: ServerConnection) -> None:
        self.socket = socket

    async def push(self, *frames: Frame | bytes) -> None:
        """Send frames in one message."""
        await self.socket.send(b"".join(raw if isinstance(raw, bytes) else encode(raw) for raw in frames))

    async def close(self, code: int, reason: str = "") -> None:
        await self.socket.close(code, reason)

    def cut(self) -> None:
        """Kill the connection without a word."""
        self.socket.transport.abort()


class FakeRelay:
    def __init__(self) -> None:
        self.url = ""
        self.hello: Frame | bytes | None = HELLO
        self.on_connect: Callable[[FakeConnection], Awaitable[None]] | None = None
        self.user_id = ZERO_ID
        self.access_lives_us = HOUR
        self.heads: list[GroupHead] = []
        self.logs: dict[bytes, FakeLog] = {}
        self.messages: list[bytes] = []
        self.requests: list[Request] = []
        self.connections: list[FakeConnection] = []
        self.sessions = 0
        self.answers: dict[type[Request], Answer] = {
            Register: self._session,
            Login: self._session,
            Refresh: self._session,
            Authenticate: self._authenticated,
            GroupList: lambda _, request: [GroupListOk(id=request.id, groups=self.heads)],
            Ping: lambda _, request: [PingOk(id=request.id, server_time=NOW, heads=[])],
            Subscribe: self._subscribed,
            Unsubscribe: lambda _, request: [Ok(id=request.id)],
        }

    def of(self, kind: type[R]) -> list[R]:
        """The requests of this type that came."""
        return [request for request in self.requests if isinstance(request, kind)]

    async def connection(self, number: int = 1) -> FakeConnection:
        """The n-th connection, once it is there and a request has come in on it."""
        await until(lambda: len(self.connections) >= number)
        return self.connections[number - 1]

    def add_log(self) -> FakeLog:
        """A group of the user's."""
        log = FakeLog()
        self.logs[log.group_id] = log
        self.add_head(log)
        return log

    def add_head(self, log: FakeLog) -> None:
        head = GroupHead(
            group_id=log.group_id,
            encrypted_name=b"name",
            role=3,
            key_epoch=log.key_epoch,
            rekey_required=False,
            seq=log.head.seq,
            hash=log.head.hash,
        )
        self.heads = [head, *(other for other in self.heads if other.group_id != log.group_id)]

    async def serve(self, socket: ServerConnection) -> None:
        connection = FakeConnection(socket)
        if self.hello is not None:
            await connection.push(self.hello)
        self.connections.append(connection)
        if self.on_connect is not None:
            await self.on_connect(connection)
        try:
            async for message in socket:
                assert isinstance(message, bytes)
                self.messages.append(message)
                for raw in split(message):
                    await self._answer(connection, decode_request(raw))
        except ConnectionClosed:
            pass

    async def _answer(self, connection: FakeConnection, request: Request) -> None:
        self.requests.append(request)
        answer = self.answers.get(type(request))
        frames = list(answer(connection, request)) if answer else [Error(id=request.id, code="internal", message="")]
        if frames:
            await connection.push(*frames)

    def session(self, request_id: int) -> SessionOk:
        """A new session's tokens."""
        self.sessions += 1
        return SessionOk(
            id=request_id,
            user_id=self.user_id,
            session_id=uuid7(),
            access_token=f"access-{self.sessions}",
            access_expires_at=NOW + self.access_lives_us,
            refresh_token=f"refresh-{self.sessions}",
            refresh_expires_at=NOW + 1000 * HOUR,
        )

    def _session(self, _: FakeConnection, request: Request) -> list[Frame]:
        if isinstance(request, Register):
            self.user_id = request.user_id
        return [self.session(request.id)]

    def _authenticated(self, _: FakeConnection, request: Request) -> list[Frame]:
        return [
            AuthenticateOk(
                id=request.id,
                user_id=self.user_id,
                session_id=uuid7(),
                access_expires_at=NOW + self.access_lives_us,
                groups=self.heads,
            )
        ]

    def _subscribed(self, _: FakeConnection, request: Request) -> list[Frame]:
        assert isinstance(request, Subscribe)
        verdicts: list[SubscribedGroup] = []
        pushes: list[Frame] = []
        for group in request.groups:
            log = self.logs.get(group.group_id)
            if log is None:
                verdicts.append(SubscribedGroup(group_id=group.group_id, status="denied"))
                continue
            start = log.head if group.after_seq is None else log.cursor(group.after_seq)
            verdicts.append(SubscribedGroup(group_id=group.group_id, status="resumed", seq=start.seq, hash=start.hash))
            pushes += log.events[start.seq :]
            pushes.append(Live(group_id=group.group_id, seq=log.head.seq, hash=log.head.hash))
        return [SubscribeOk(id=request.id, groups=verdicts), *pushes]


@asynccontextmanager
async def fake_relay() -> AsyncIterator[FakeRelay]:
    """A fake relay on a free port of the loopback."""
    relay = FakeRelay()
    async with serve(
        relay.serve, "127.0.0.1", 0, subprotocols=[Subprotocol(SUBPROTOCOL)], compression=None, max_size=None
    ) as server:
        relay.url = f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"
        yield relay

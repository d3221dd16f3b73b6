"""One connection: read loop, request → answer, close.

A message is split into frames; each frame is decoded, checked against what the connection may do now, put in order,
and carried out: posts go straight to the writer's queue, everything else to a handler in a task of this session. Every
request gets exactly one answer. The session must not know what the requests mean.
"""

import asyncio
import os
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from websockets.exceptions import ConnectionClosed

from orbital_protocol import PROTOCOL_VERSION, codec
from orbital_protocol.codes import CloseCode, ErrorCode
from orbital_protocol.frames import (
    Authenticate,
    Error,
    ErrorDetails,
    Frame,
    Hello,
    Limits,
    Login,
    Ok,
    Post,
    PostOk,
    Refresh,
    Register,
    Request,
    type_of,
)
from orbital_relay import __version__, logs
from orbital_relay.caller import Caller, Clock
from orbital_relay.dispatch import Route, groups_of
from orbital_relay.errors import BY_CODE, Forbidden, Internal, RateLimited, RequestError, Unauthenticated
from orbital_relay.limits import TokenBucket
from orbital_relay.metrics import Metrics
from orbital_relay.ordering import Ordering, Ticket
from orbital_relay.outbox import Flusher, Outbox
from orbital_relay.registry import Registry
from orbital_relay.replay import Replays, Subscriptions
from orbital_relay.store.posts import Appended, Outcome
from orbital_relay.websocket import Socket
from orbital_relay.writer import Writer

logger = logs.get()

_AUTHENTICATING: Final = (Register, Login, Authenticate, Refresh)
_REFUSALS_A_CLOSE: Final = 200
_CLOSE_TIMEOUT_S: Final = 2


@dataclass(frozen=True, slots=True)
class Services:
    """What every session of a relay shares."""

    relay_id: bytes
    routes: Mapping[type[Request], Route]
    writer: Writer
    replays: Replays
    registry: Registry
    metrics: Metrics
    limits: Limits
    flusher: Flusher
    now: Clock
    registration: str
    auth_timeout_ms: int
    heartbeat_ms: int
    outbox_bytes: int


class Session:
    """One connection, from `hello` to its close."""

    def __init__(self, socket: Socket, address: str, services: Services) -> None:
        self.connection_id = os.urandom(16)
        self.address = address
        self.caller: Caller | None = None
        self._socket = socket
        self._services = services
        self._outbox = Outbox(socket.transport, services.flusher, services.outbox_bytes)
        self._ordering = Ordering()
        self._open: set[int] = set()
        self._room: asyncio.Future[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._after_answer: list[Callable[[], None]] = []
        self._authenticating = False
        self._close_code: CloseCode | None = None
        self._refused = 0
        self._is_quiet = False
        rate = services.limits.max_frames_per_second
        self._rate = TokenBucket(rate, 2 * rate, socket.loop.time) if rate else None
        self.subscriptions = Subscriptions(services.replays, self._outbox, self._spawn)
        socket.outbox = self._outbox

    # ── what handlers, the registry and the heartbeat see ───────────────────────────────────────────────────────────

    def authenticate(self, caller: Caller) -> None:
        """From now on the connection is this caller's."""
        self.caller = caller
        self._services.registry.authenticated(self, caller)
        self._socket.protocol.max_message_size = self._services.limits.max_frame_bytes

    def push(self, frame: Frame) -> None:
        """Queue a frame that answers no request."""
        self._outbox.put_frame(codec.encode(frame))

    def after_answer(self, callback: Callable[[], None]) -> None:
        """Call back once the answer to the request at hand has been queued."""
        self._after_answer.append(callback)

    def close_soon(self, code: CloseCode) -> None:
        """Close once the answer to the request at hand has been queued."""
        self._after_answer.append(partial(self.close_now, code))

    def close_now(self, code: CloseCode) -> None:
        """Close without waiting for answers that are due; what is queued goes out first, as far as there is room."""
        if self._close_code is None:
            self._close_code = code
            self._outbox.flush()
            self._spawn(self._socket.close(code, code.name.lower()), name="close")

    def waiting_bytes(self) -> int:
        """Bytes that the reader has not taken yet."""
        return self._outbox.waiting_bytes

    def quiesce(self) -> None:
        """Take no more requests: the relay is draining. What is under way is finished and answered."""
        self._is_quiet = True

    @property
    def outbox(self) -> Outbox:
        """The queue of what goes out."""
        return self._outbox

    @property
    def socket(self) -> Socket:
        """The WebSocket."""
        return self._socket

    # ── the read loop ───────────────────────────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Serve the connection until it closes."""
        self._hello()
        deadline = self._socket.loop.call_later(self._services.auth_timeout_ms / 1000, self._auth_deadline)
        try:
            while True:
                message = await self._socket.recv()
                if isinstance(message, str):
                    self.close_now(CloseCode.PROTOCOL_ERROR)
                    return
                for raw in codec.split(message):
                    await self._take(raw)
                if not self._outbox.is_low:
                    await self._outbox.wait_low()
        except codec.Undecodable:
            logger.info("frame.rejected", session=self.connection_id, address=self.address, code="undecodable")
            self.close_now(CloseCode.PROTOCOL_ERROR)
        except ConnectionClosed:
            pass
        finally:
            deadline.cancel()
            await self._end()

    def _hello(self) -> None:
        services = self._services
        self.push(
            Hello(
                protocol=PROTOCOL_VERSION,
                server=f"orbital-relay/{__version__}",
                relay_id=services.relay_id,
                limits=services.limits,
                auth_timeout_ms=services.auth_timeout_ms,
                heartbeat_ms=services.heartbeat_ms,
                registration=services.registration,
            )
        )

    def _auth_deadline(self) -> None:
        if self.caller is None:
            self.close_now(CloseCode.AUTH_TIMEOUT)

    async def _take(self, raw: memoryview) -> None:
        """Take one frame; wait where too many requests are open, or somebody is just authenticating."""
        if self._is_quiet:
            return  # unanswered, so the client will send it again, elsewhere or later
        if self._rate is not None and (wait_ms := self._rate.take()):
            self._refuse_rate(raw, wait_ms)
            return
        self._refused = 0
        while len(self._open) >= self._services.limits.max_in_flight or (self._authenticating and self._open):
            self._room = self._socket.loop.create_future()
            await self._room
        try:
            request = codec.decode_request(raw)
        except codec.BadFrame as error:
            self._refuse(error)
            return
        if request.id in self._open:
            self._refuse(
                codec.BadFrame(
                    ErrorCode.BAD_FRAME, "a request with this id is in flight", request_id=request.id, field="id"
                )
            )
            return
        self._open.add(request.id)
        self._services.metrics.requests[type_of(request)].inc()
        self._begin(request)

    def _begin(self, request: Request) -> None:
        """Put a request in order, if this connection may make it at all."""
        route = self._services.routes[type(request)]
        try:
            self._check_scope(request, route)
        except RequestError as error:
            self._fail(request.id, error)
            return
        if isinstance(request, Post):
            self._order((request.group_id,), partial(self._post, request, route), shared=True)
            return
        if isinstance(request, _AUTHENTICATING):
            self._authenticating = True
        self._order(groups_of(request), partial(self._handle, request, route), shared=False)

    def _check_scope(self, request: Request, route: Route) -> None:
        if route.scope is None:
            return
        if self.caller is None:
            raise Unauthenticated
        if route.scope not in self.caller.scopes:
            raise Forbidden("The token's scopes don't allow this.")

    def _order(self, keys: tuple[bytes, ...], start: Callable[[Callable[[], None]], None], *, shared: bool) -> None:
        ticket: Ticket | None = None
        finished = False

        def done() -> None:
            nonlocal finished
            finished = True
            if ticket is not None:
                self._ordering.done(ticket)

        ticket = self._ordering.submit(keys, lambda: start(done), shared=shared)
        if finished:
            self._ordering.done(ticket)

    # ── posts ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _post(self, request: Post, route: Route, done: Callable[[], None]) -> None:
        try:
            if self.caller is None or route.checked is None:
                raise Unauthenticated
            self._services.writer.submit(route.checked(self.caller, request), partial(self._posted, request.id, done))
        except RequestError as error:
            self._fail(request.id, error)
            done()

    def _posted(self, request_id: int, done: Callable[[], None], outcome: Outcome) -> None:
        if isinstance(outcome, Appended):
            self._answer(
                PostOk(
                    id=request_id,
                    seq=outcome.seq,
                    hash=outcome.hash,
                    content_hash=outcome.content_hash,
                    created_at=outcome.created_at,
                    duplicate=outcome.duplicate,
                )
            )
        else:
            self._fail(request_id, BY_CODE[outcome]())
        done()

    # ── everything else ─────────────────────────────────────────────────────────────────────────────────────────────

    def _handle(self, request: Request, route: Route, done: Callable[[], None]) -> None:
        self._spawn(self._carry_out(request, route, done), name=type_of(request))

    async def _carry_out(self, request: Request, route: Route, done: Callable[[], None]) -> None:
        try:
            if route.handler is None:
                raise Internal
            answer = await route.handler(self, request)
        except RequestError as error:
            self._fail(request.id, error)
        except Exception as error:
            logger.error("request.failed", request=type_of(request), session=self.connection_id, exc_info=error)
            self._fail(request.id, Internal())
        else:
            self._answer(answer)
        finally:
            self._authenticating = False
            done()

    # ── answers ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _answer(self, answer: Ok) -> None:
        self._outbox.put_frame(codec.encode(answer))
        self._answered(answer.id)

    def _fail(self, request_id: int, error: RequestError) -> None:
        self._services.metrics.errors[error.code].inc()
        self._outbox.put_frame(codec.encode(error.frame(request_id)))
        self._answered(request_id)

    def _answered(self, request_id: int) -> None:
        self._close_request(request_id)
        callbacks, self._after_answer = self._after_answer, []
        for callback in callbacks:
            callback()

    def _refuse(self, bad: codec.BadFrame) -> None:
        """Answer a frame that is no request, or not now; nothing was opened for it."""
        self._services.metrics.errors[bad.code].inc()
        logger.info("frame.rejected", session=self.connection_id, address=self.address, code=bad.code)
        details = None if bad.field is None else ErrorDetails(field=bad.field)
        self.push(Error(id=bad.request_id, code=bad.code, message=str(bad), details=details))

    def _refuse_rate(self, raw: memoryview, wait_ms: int) -> None:
        """Answer a frame that comes too soon; whoever goes on regardless is closed."""
        self._refused += 1
        if self._refused > _REFUSALS_A_CLOSE:
            self.close_now(CloseCode.RATE_LIMITED)
            return
        try:
            _, request_id = codec.frame_head(raw)
        except codec.BadFrame:
            request_id = None
        self._services.metrics.errors[ErrorCode.RATE_LIMITED].inc()
        self._outbox.put_frame(codec.encode(RateLimited(retry_after_ms=wait_ms).frame(request_id)))

    def _close_request(self, request_id: int) -> None:
        self._open.discard(request_id)
        if self._room is not None:
            if not self._room.done():
                self._room.set_result(None)
            self._room = None

    # ── tasks and the end ───────────────────────────────────────────────────────────────────────────────────────────

    def _spawn(self, work: Coroutine[Any, Any, None], *, name: str) -> None:
        """Run work in a task that ends, at the latest, with the session."""
        task = self._socket.loop.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _end(self) -> None:
        """Leave nothing behind: subscriptions, tasks, the place in the registry, the socket."""
        self.subscriptions.end_all()
        self._services.registry.remove(self)
        code = CloseCode.INTERNAL if self._close_code is None else self._close_code
        await self._socket.finish(_CLOSE_TIMEOUT_S, code)
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(tuple(self._tasks))
        self.subscriptions.end_all()

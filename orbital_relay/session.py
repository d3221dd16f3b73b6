"""One connection: messages in, request → answer, close.

A message is split into frames; each frame is decoded, checked against what the connection may do now, put in order,
and carried out: posts go straight to the writer's queue, everything else to a handler in a task of this session. Every
request gets exactly one answer. The session must not know what the requests mean.
"""

import asyncio
import os
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from orbital_protocol import codec
from orbital_protocol.codes import CloseCode, ErrorCode
from orbital_protocol.frames import (
    Authenticate,
    Error,
    ErrorDetails,
    Frame,
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
from orbital_relay import logs
from orbital_relay.caller import Caller, Clock
from orbital_relay.dispatch import Bulk, Route, concerns
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
_FRAMES_A_TURN: Final = 64
_REFUSALS: Final = 200  # frames that come too soon, at once
_REFUSALS_A_SECOND: Final = 1  # and in the long run, before the connection is closed
_CLOSE_TIMEOUT_S: Final = 5
_UNREAD_S: Final = 0.05  # what came in time while the loop was busy is read within one turn of it


@dataclass(frozen=True, slots=True)
class Services:
    """What every session of a relay shares."""

    hello: bytes
    routes: Mapping[type[Request], Route]
    writer: Writer
    replays: Replays
    registry: Registry
    metrics: Metrics
    limits: Limits
    flusher: Flusher
    now: Clock
    auth_timeout_ms: int
    outbox_bytes: int


class Session:
    """One connection, from `hello` to its close."""

    def __init__(self, socket: Socket, services: Services) -> None:
        self.connection_id = os.urandom(16)
        self.address = socket.address
        self.caller: Caller | None = None
        self._socket = socket
        self._services = services
        self._outbox = Outbox(socket.transport, services.flusher, services.outbox_bytes)
        self._ordering = Ordering()
        self._open: set[int] = set()
        self._frames: Iterator[memoryview] = iter(())  # of the message at hand, those that have not been taken
        self._is_waiting = False  # to read on: for room
        self._is_due = False  # to read on: for the next turn of the loop
        self._awaits_reader = False  # in a task, so that the end of many requests makes no more than one
        self._silence: asyncio.Future[None] | None = None
        # Held while an answer is made that may fill the outbox by itself; most connections never need the second.
        self._bulk: dict[Bulk, asyncio.Lock] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_over = False
        self._after_answer: dict[asyncio.Task[Any] | None, list[Callable[[], None]]] = {}  # by the handler's task
        self._barrier: int | None = None  # the request that authenticates
        self._close_code: CloseCode | None = None
        self._deadline: asyncio.TimerHandle | None = None  # to authenticate
        self._is_late = False  # the deadline is over
        self._is_quiet = False
        self._has_rejected = False
        rate = services.limits.max_frames_per_second
        self._rate = TokenBucket(rate, 2 * rate, socket.loop.time) if rate else None
        self._patience = TokenBucket(_REFUSALS_A_SECOND, _REFUSALS, socket.loop.time)
        self.subscriptions = Subscriptions(services.replays, self._outbox, self._spawn)
        socket.attach(self._outbox, self.read)

    # ── what handlers, the registry and the heartbeat see ───────────────────────────────────────────────────────────

    def authenticate(self, caller: Caller) -> None:
        """From now on the connection is this caller's."""
        self.caller = caller
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self._services.registry.authenticated(self, caller)
        self._socket.authenticated()
        self._socket.protocol.max_message_size = self._services.limits.max_frame_bytes

    def push(self, frame: Frame) -> None:
        """Queue a frame that answers no request."""
        self._outbox.put_frame(codec.encode(frame))

    def offer(self, frame: Frame) -> None:
        """Queue a frame that may be lost: it is, where the reader is behind."""
        if not self._outbox.is_full:
            self.push(frame)

    def after_answer(self, callback: Callable[[], None]) -> None:
        """Call back once the answer to the request at hand, of whose handler this is a part, has been queued."""
        self._after_answer.setdefault(asyncio.current_task(), []).append(callback)

    def close_soon(self, code: CloseCode) -> None:
        """Close once the answer to the request at hand has been queued."""
        self.after_answer(partial(self.close_now, code))

    def close_now(self, code: CloseCode) -> None:
        """Close without waiting for answers that are due. What is queued goes out first; nothing is taken any more."""
        if self._close_code is None:
            self._close_code = code
            self.subscriptions.end_all()
            self._outbox.seal()
            self._make_room()
            self._spawn(self._socket.finish(_CLOSE_TIMEOUT_S, code), name="close")

    @property
    def is_closing(self) -> bool:
        """Whether the end has begun."""
        return self._close_code is not None

    def waiting_bytes(self) -> int:
        """Bytes that the reader has not taken yet."""
        return self._outbox.waiting_bytes

    def quiesce(self) -> None:
        """Take no more requests: the relay is draining. What is under way is finished and answered."""
        self._is_quiet = True

    async def answered(self) -> None:
        """Wait until every request that was taken has its answer, or the connection has ended."""
        while self._open and not self._is_over:
            if self._silence is None:
                self._silence = self._socket.loop.create_future()
            await self._silence

    @property
    def outbox(self) -> Outbox:
        """The queue of what goes out."""
        return self._outbox

    @property
    def socket(self) -> Socket:
        """The WebSocket."""
        return self._socket

    # ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def begin(self) -> None:
        """Greet the client. From now on the connection has so long to authenticate."""
        self._outbox.put_frame(self._services.hello)
        self._deadline = self._socket.loop.call_later(self._services.auth_timeout_ms / 1000, self._auth_deadline)

    def _auth_deadline(self) -> None:
        """The time is over; whoever was in it has an answer to come, however late the relay itself is.

        Who comes back with thousands of others, and is cut because the relay is at its limits, comes back once more.
        """
        self._deadline = self._socket.loop.call_later(_UNREAD_S, self._time_is_over)

    def _time_is_over(self) -> None:
        self._is_late = True
        self._close_if_late()

    def _close_if_late(self) -> None:
        if self._is_late and self.caller is None and self._barrier is None:
            self.close_now(CloseCode.AUTH_TIMEOUT)

    def read(self) -> None:
        """Take what has come, unless this waits for room, or for its turn."""
        if not self._is_waiting and not self._is_due:
            self._read()

    def _read(self) -> None:
        """Take frames until there are no more, there is no room for another, or it is the turn of others."""
        self._is_due = False
        try:
            for _ in range(_FRAMES_A_TURN):
                if not self._has_room and not self._is_deaf:
                    self._wait_for_room()
                    return
                raw = self._next_frame()
                if raw is None:
                    return
                if not self._is_deaf:
                    self._take(raw)
        except Exception as error:
            self._defect(error)
        self._read_soon()

    def _read_soon(self) -> None:
        if not self._is_due:
            self._is_due = True
            self._socket.loop.call_soon(self._read)

    def _next_frame(self) -> memoryview | None:
        """The next frame of the message at hand, or of the next one; an empty one of a message that is empty."""
        while True:
            try:
                for raw in self._frames:
                    return raw
            except codec.Undecodable:
                self._log_rejected("undecodable")
                self.close_now(CloseCode.PROTOCOL_ERROR)
            message = self._socket.next_message()
            if message is None:
                return None
            if isinstance(message, str):
                self.close_now(CloseCode.PROTOCOL_ERROR)
            else:
                self._frames = codec.split(message) if message else iter((memoryview(b""),))

    def _take(self, raw: memoryview) -> None:
        """Take one frame, or none (of an empty message, which costs as much)."""
        if self._rate is not None and (wait_ms := self._rate.take()):
            self._refuse_rate(raw, wait_ms)
            return
        if not raw:
            return
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
        self._services.metrics.requests[type_of(request)] += 1
        self._begin(request)

    @property
    def _is_deaf(self) -> bool:
        """Whether frames are dropped: unanswered, so that the client will send them again, elsewhere or later."""
        return self._is_quiet or self._close_code is not None or self._socket.transport.is_closing()

    @property
    def _has_room(self) -> bool:
        """Not while answers wait for a slow reader, too many requests are open, or one that authenticates is."""
        is_free = len(self._open) < self._services.limits.max_in_flight and self._barrier not in self._open
        return is_free and self._outbox.is_low

    def _wait_for_room(self) -> None:
        """Read on once there is room: the end of a request tells, or the reader."""
        self._is_waiting = True
        if not self._outbox.is_low and not self._awaits_reader:
            self._awaits_reader = True
            self._spawn(self._wait_for_reader(), name="room")

    async def _wait_for_reader(self) -> None:
        await self._outbox.wait_low()
        self._awaits_reader = False
        self._make_room()

    def _begin(self, request: Request) -> None:
        """Put a request in order, if this connection may make it at all."""
        route = self._services.routes[type(request)]
        try:
            self._check_scope(request, route)
        except RequestError as error:
            self._fail(request.id, error)
            return
        if isinstance(request, Post):
            self._ordering.submit((request.group_id,), partial(self._post, request, route), shared=True)
            return
        if isinstance(request, _AUTHENTICATING):
            self._barrier = request.id
        self._ordering.submit(concerns(request), partial(self._handle, request, route), shared=False)

    def _check_scope(self, request: Request, route: Route) -> None:
        if route.scope is None:
            return
        if self.caller is None:
            raise Unauthenticated
        if route.scope not in self.caller.scopes:
            raise Forbidden("The token's scopes don't allow this.")

    # ── posts ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _post(self, request: Post, route: Route, ticket: Ticket) -> None:
        try:
            if self.caller is None or route.checked is None:
                raise Unauthenticated
            self._services.writer.submit(route.checked(self.caller, request), partial(self._posted, request.id, ticket))
        except RequestError as error:
            self._fail(request.id, error)
            self._ordering.done(ticket)
        except Exception as error:
            self._fail_by_defect(request, error)
            self._ordering.done(ticket)

    def _posted(self, request_id: int, ticket: Ticket, outcome: Outcome) -> None:
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
        self._ordering.done(ticket)

    # ── everything else ─────────────────────────────────────────────────────────────────────────────────────────────

    def _handle(self, request: Request, route: Route, ticket: Ticket) -> None:
        self._spawn(self._carry_out(request, route, ticket), name=type_of(request))

    async def _carry_out(self, request: Request, route: Route, ticket: Ticket) -> None:
        try:
            if route.handler is None:
                raise Internal
            if route.bulk is not None:
                async with self._bulk.setdefault(route.bulk, asyncio.Lock()):
                    await self._outbox.wait_low()
                    self._answer(await route.handler(self, request))
            else:
                self._answer(await route.handler(self, request))
        except RequestError as error:
            self._fail(request.id, error)
        except Exception as error:
            self._fail_by_defect(request, error)
        finally:
            callbacks = self._after_answer.pop(asyncio.current_task(), ()) if self._after_answer else ()
            if request.id not in self._open:
                for callback in callbacks:
                    callback()
            self._close_if_late()
            self._ordering.done(ticket)

    # ── answers ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _answer(self, answer: Ok) -> None:
        self._outbox.put_frame(codec.encode(answer))
        self._close_request(answer.id)

    def _fail(self, request_id: int, error: RequestError) -> None:
        self._services.metrics.errors[error.code] += 1
        self._outbox.put_frame(codec.encode(error.frame(request_id)))
        self._close_request(request_id)

    def _fail_by_defect(self, request: Request, error: Exception) -> None:
        logger.error("request.failed", request=type_of(request), connection=self.connection_id, exc_info=error)
        self._fail(request.id, Internal())

    def _refuse(self, bad: codec.BadFrame) -> None:
        """Answer a frame that is no request, or not now; nothing was opened for it."""
        self._services.metrics.errors[bad.code] += 1
        self._log_rejected(bad.code)
        details = None if bad.field is None else ErrorDetails(field=bad.field)
        self.push(Error(id=bad.request_id, code=bad.code, message=str(bad), details=details))

    def _log_rejected(self, code: str) -> None:
        """Say it of the first one: a connection can't fill the log."""
        if not self._has_rejected:
            self._has_rejected = True
            logger.info("frame.rejected", connection=self.connection_id, address=self.address, code=code)

    def _refuse_rate(self, raw: memoryview, wait_ms: int) -> None:
        """Answer a frame that comes too soon; whoever goes on regardless is closed."""
        if self._patience.take():
            self.close_now(CloseCode.RATE_LIMITED)
            return
        try:
            _, request_id = codec.frame_head(raw)
        except codec.BadFrame:
            request_id = None
        self._services.metrics.errors[ErrorCode.RATE_LIMITED] += 1
        self._outbox.put_frame(codec.encode(RateLimited(retry_after_ms=wait_ms).frame(request_id)))

    def _close_request(self, request_id: int) -> None:
        self._open.discard(request_id)
        if request_id == self._barrier:
            self._barrier = None  # the next request with this id may be any other
        self._make_room()
        if not self._open:
            self._end_wait()

    def _make_room(self) -> None:
        """Let reading look again, if it waits for room."""
        if self._is_waiting:
            self._is_waiting = False
            self._read_soon()

    def _end_wait(self) -> None:
        """Wake who waits for all answers."""
        silence, self._silence = self._silence, None
        if silence is not None and not silence.done():
            silence.set_result(None)

    # ── tasks and the end ───────────────────────────────────────────────────────────────────────────────────────────

    def _spawn(self, work: Coroutine[Any, Any, None], *, name: str) -> None:
        """Run work in a task that ends, at the latest, with the session; of a session that is over, none begins."""
        if self._is_over:
            work.close()
            return
        task = self._socket.loop.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._defect(error)
        if self._is_over:
            self.subscriptions.end_all()  # also of what this one was about to begin

    def _defect(self, error: BaseException) -> None:
        """Close a connection whose own loops have failed: log what, and tell the client no more than that."""
        logger.error("session.failed", connection=self.connection_id, address=self.address, exc_info=error)
        self.close_now(CloseCode.INTERNAL)

    def end(self) -> Sequence[asyncio.Task[None]]:
        """The connection is gone: leave nothing behind. The tasks that are returned have been cancelled."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._is_over = True
        self.subscriptions.end_all()
        self._end_wait()
        for task in self._tasks:
            task.cancel()
        return tuple(self._tasks)

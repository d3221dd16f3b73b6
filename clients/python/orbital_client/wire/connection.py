"""One WebSocket to a relay: requests and their answers, pushes, several frames a message both ways.

Two tasks of its own read and write; both end with `close` or when the socket does. Everything that waits here is
bounded: requests by what the relay lets be in flight, incoming messages by `pace`, which may pause the reading.
"""

import asyncio
import logging
import socket as sockets
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any, Final, TypeVar

from msgspec.structs import replace
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI
from websockets.typing import Subprotocol

from orbital_client.errors import BadAnswer, BadRequest, Closed, ConnectionLost, OrbitalError, failure
from orbital_protocol import PROTOCOL_VERSION, SUBPROTOCOL
from orbital_protocol.codec import BadFrame, Undecodable, decode_answer, decode_push, encode, frame_head, split
from orbital_protocol.codes import CloseCode, ErrorCode
from orbital_protocol.frames import (
    REQUESTS,
    AuthenticateOk,
    Error,
    GoAway,
    Hello,
    MediaChunk,
    Ok,
    Push,
    Request,
    SessionOk,
    type_of,
)

A = TypeVar("A", bound=Ok)

log = logging.getLogger("orbital_client")
# The library's own log shows frames at DEBUG, and with them passwords and tokens.
_socket_log = logging.getLogger("orbital_client.websockets")
_socket_log.setLevel(logging.INFO)

MAX_MESSAGE_BYTES: Final = 64 * 1024 * 1024 + 65_536  # the most that a relay can be configured to
_QUEUED_MESSAGES: Final = 4
_UNSENT_BYTES: Final = 131_072
_CLOSE_TIMEOUT_S: Final = 2.0
_ABNORMAL: Final = 1006
_IDS: Final = 2**32


def _keep_unsent_small(socket: ClientConnection) -> None:
    """Leave what can't be sent yet with us: in the kernel's buffer, of megabytes, posts would wait behind a file."""
    if hasattr(sockets, "TCP_NOTSENT_LOWAT"):
        raw = socket.transport.get_extra_info("socket")
        raw.setsockopt(sockets.IPPROTO_TCP, sockets.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)


class NotSent(ConnectionLost):
    """The connection ended before the request was sent: it was not carried out."""


@dataclass(frozen=True, slots=True)
class Closure:
    """How a connection ended. `retry_after_ms` is what the relay asked for, if it did."""

    code: int
    reason: str
    retry_after_ms: int | None = None

    @property
    def for_good(self) -> bool:
        """Whether the relay does not want the client back."""
        return self.code >= CloseCode.AUTH_FAILED

    def as_error(self) -> Closed | ConnectionLost:
        """What requests raise whose answers will not come."""
        if self.for_good:
            return Closed(self.code, self.reason)
        return ConnectionLost(f"the connection ended: {self.code} {self.reason}".rstrip())


@dataclass(frozen=True, slots=True)
class _Pending:
    answer: type[Ok]
    outcome: asyncio.Future[Ok | OrbitalError]

    def settle(self, outcome: Ok | OrbitalError) -> None:
        if not self.outcome.done():
            self.outcome.set_result(outcome)


class Connection:
    """One WebSocket, from `open` until `closed()` returns. The pushes go to `on_push` with their size in bytes.

    `pace` is awaited after each message and may wait as long as reading should pause; `read_on` is set when a request
    goes out, since its answer can only be read by reading on.
    """

    def __init__(
        self,
        socket: ClientConnection,
        on_push: Callable[[Push, int], None],
        pace: Callable[["Connection"], Awaitable[None]],
    ) -> None:
        self.read_on = asyncio.Event()
        self._socket = socket
        self._on_push = on_push
        self._pace = pace
        self._ids = count(1)
        self._pending: dict[int, _Pending] = {}
        self._hello: asyncio.Future[Hello] = asyncio.get_running_loop().create_future()
        self._slots = asyncio.Semaphore(1)  # until hello says how many
        self._message_bytes = 0
        self._outgoing: dict[int, bytes] = {}
        self._outgoing_pieces: dict[int, bytes] = {}
        self._to_write = asyncio.Event()
        self._retry_after_ms: int | None = None
        self._reader = asyncio.create_task(self._read(), name="orbital-read")
        self._writer = asyncio.create_task(self._write(), name="orbital-write")

    @classmethod
    async def open(
        cls,
        url: str,
        *,
        on_push: Callable[[Push, int], None],
        pace: Callable[["Connection"], Awaitable[None]],
        tls: ssl.SSLContext | None = None,
        timeout_s: float = 10.0,
    ) -> "Connection":
        """Connect and wait for the relay's hello; raise ConnectionLost if that fails, Closed for another protocol."""
        dial = connect if tls is None else partial(connect, ssl=tls)
        try:
            async with asyncio.timeout(timeout_s):
                socket = await dial(
                    url,
                    subprotocols=[Subprotocol(SUBPROTOCOL)],
                    compression=None,
                    max_size=MAX_MESSAGE_BYTES,
                    max_queue=_QUEUED_MESSAGES,
                    open_timeout=None,
                    close_timeout=_CLOSE_TIMEOUT_S,
                    logger=_socket_log,
                )
        except InvalidURI as error:
            raise ValueError(str(error)) from None
        except (OSError, InvalidHandshake, TimeoutError) as error:
            raise ConnectionLost(f"can't connect to {url}: {str(error) or type(error).__name__}") from error
        _keep_unsent_small(socket)
        connection = cls(socket, on_push, pace)
        try:
            await connection._greet(timeout_s)
        except BaseException:
            await connection.close()
            raise
        return connection

    async def _greet(self, timeout_s: float) -> None:
        """Wait for hello, and take from it how much may be sent."""
        either: set[asyncio.Future[Any]] = {self._hello, self._reader}
        await asyncio.wait(either, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if not self._hello.done():
            if self._reader.done():
                raise self._reader.result().as_error()
            raise ConnectionLost("the relay said no hello")
        hello = self._hello.result()
        if hello.protocol != PROTOCOL_VERSION or self._socket.subprotocol != SUBPROTOCOL:
            raise Closed(CloseCode.UNSUPPORTED_PROTOCOL, f"the relay speaks protocol {hello.protocol}")
        self._slots = asyncio.Semaphore(max(1, hello.limits.max_in_flight))
        self._message_bytes = hello.limits.max_unauthenticated_frame_bytes

    @property
    def hello(self) -> Hello:
        """What the relay said first."""
        return self._hello.result()

    @property
    def is_open(self) -> bool:
        return not self._reader.done()

    @property
    def has_requests(self) -> bool:
        """Whether an answer is waited for."""
        return bool(self._pending)

    def when_closed(self, callback: Callable[[], None]) -> None:
        """Call back soon after the connection has ended."""
        self._reader.add_done_callback(lambda _: callback())

    async def closed(self) -> Closure:
        """Wait until the connection has ended, and tell how."""
        await asyncio.wait({self._reader})
        return self._reader.result()

    async def close(self) -> None:
        """End the connection and both tasks."""
        await self._socket.close()
        self.read_on.set()
        await asyncio.wait({self._reader})
        self._writer.cancel()
        await asyncio.wait({self._writer})

    async def request(self, request: Request, answer: type[A]) -> A:
        """Send a request (its `id` is set here) and return the answer, which is what REQUESTS says.

        Raises RequestFailed as the relay answers, NotSent if the connection has ended before, and ConnectionLost or
        Closed if it ends before the answer comes.
        """
        if REQUESTS[type(request)] is not answer:
            raise TypeError(f"{type_of(request)} is answered with {REQUESTS[type(request)].__name__}")
        async with self._slots:
            if not self.is_open:
                raise NotSent("the connection had ended")
            request_id = next(self._ids) % _IDS
            raw = encode(replace(request, id=request_id))
            self._check_size(len(raw), request)
            outgoing = self._outgoing_pieces if isinstance(request, MediaChunk) else self._outgoing
            outcome = await self._exchange(request_id, raw, answer, outgoing)
        if not isinstance(outcome, answer):
            raise outcome if isinstance(outcome, OrbitalError) else BadAnswer(f"{type_of(request)} got another answer")
        if isinstance(outcome, SessionOk | AuthenticateOk):
            self._message_bytes = self.hello.limits.max_frame_bytes
        return outcome

    async def _exchange(
        self, request_id: int, raw: bytes, answer: type[Ok], outgoing: dict[int, bytes]
    ) -> Ok | OrbitalError:
        pending = _Pending(answer, asyncio.get_running_loop().create_future())
        self._pending[request_id] = pending
        outgoing[request_id] = raw
        self._to_write.set()
        self.read_on.set()
        try:
            return await pending.outcome
        finally:
            del self._pending[request_id]
            outgoing.pop(request_id, None)

    def _check_size(self, size: int, request: Request) -> None:
        if size > self._message_bytes:
            raise BadRequest(
                ErrorCode.TOO_LARGE, f"{type_of(request)} has {size} bytes, the relay takes {self._message_bytes}"
            )

    # ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _read(self) -> Closure:
        closure = Closure(_ABNORMAL, "")
        try:
            while True:
                message = await self._socket.recv()
                if isinstance(message, str):
                    raise BadAnswer("a text message")
                for raw in split(message):
                    self._take(raw)
                await self._pace(self)
        except ConnectionClosed as ended:
            close = ended.rcvd or ended.sent
            closure = Closure(ended.rcvd.code if ended.rcvd else _ABNORMAL, close.reason if close else "")
        except (Undecodable, BadFrame, BadAnswer) as error:
            log.warning("the relay sent what the protocol doesn't allow: %s", error)
            closure = Closure(_ABNORMAL, f"the relay sent {error}")
            await self._socket.close(CloseCode.PROTOCOL_ERROR)
        finally:
            self._fail_pending(closure)
        return Closure(closure.code, closure.reason, self._retry_after_ms)

    def _take(self, raw: memoryview) -> None:
        """Hand one frame to whom it concerns; types that this version doesn't know are passed over."""
        kind, request_id = frame_head(raw)
        if kind == type_of(Ok):
            self._answer(raw, request_id)
            return
        match decode_push(raw):
            case Error() as error:
                self._refuse(error)
            case Hello() as hello:
                if not self._hello.done():
                    self._hello.set_result(hello)
            case GoAway(retry_after_ms=retry_after_ms):
                self._retry_after_ms = retry_after_ms
            case Push() as push:
                self._on_push(push, len(raw))
            case _:
                log.debug("passed over a push of an unknown type: %.50s", kind)

    def _answer(self, raw: memoryview, request_id: int | None) -> None:
        pending = None if request_id is None else self._pending.get(request_id)
        if pending is None:
            return  # its request was given up
        try:
            pending.settle(decode_answer(raw, pending.answer))
        except BadFrame as error:
            pending.settle(BadAnswer(f"the relay's answer is wrong: {error}"))

    def _refuse(self, error: Error) -> None:
        pending = None if error.id is None else self._pending.get(error.id)
        if pending is None:
            log.warning("the relay refused a frame: %s", error.code)
        else:
            pending.settle(failure(error))

    def _fail_pending(self, closure: Closure) -> None:
        for pending in self._pending.values():
            pending.settle(closure.as_error())

    # ── writing ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _write(self) -> None:
        """Write what has queued: as few messages as the relay's limit allows, and one piece of a file after each."""
        try:
            while True:
                await self._to_write.wait()
                self._to_write.clear()
                while self._outgoing or self._outgoing_pieces:
                    if self._outgoing:
                        await self._socket.send(self._next_message())
                    if self._outgoing_pieces:
                        await self._socket.send(self._outgoing_pieces.pop(next(iter(self._outgoing_pieces))))
        except ConnectionClosed:
            pass  # the reader tells why

    def _next_message(self) -> bytes:
        frames: list[bytes] = []
        room = self._message_bytes
        for request_id, raw in list(self._outgoing.items()):
            if frames and len(raw) > room:
                break
            room -= len(raw)
            frames.append(self._outgoing.pop(request_id))
        return b"".join(frames)

"""Accept sockets: caps, origin, handshake, the client's real address. Then the session takes over.

The gateway must not look into messages. It counts connections from the first byte on, so that slow handshakes and idle
strangers are capped before they cost anything.
"""

import asyncio
import contextlib
import random
import ssl
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from socket import fromfd
from typing import Any, Final

from websockets.http11 import Request, Response
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.typing import Origin, Subprotocol

from orbital_protocol import SUBPROTOCOL, codec
from orbital_protocol.codes import CloseCode, ErrorCode
from orbital_protocol.frames import Error, GoAway
from orbital_relay import logs
from orbital_relay.errors import StartupError
from orbital_relay.handshakes import Handshake, Handshakes
from orbital_relay.heartbeat import Heartbeat
from orbital_relay.limits import network_of
from orbital_relay.registry import Registry
from orbital_relay.session import Services, Session
from orbital_relay.strangers import Strangers
from orbital_relay.websocket import Beginning, Socket

logger = logs.get()

_TLS_TIMEOUT_S: Final = 10
_GOAWAY_SPREAD_MS: Final = 3_000
_BACKLOG: Final = 4096  # the kernel's own limit is net.core.somaxconn
_ACCEPTED_A_TURN: Final = 8
_STARTED_A_TURN: Final = 16


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """Whom to let in."""

    origins: Sequence[str]
    allow_no_origin: bool
    trusted_proxies: Sequence[IPv4Network | IPv6Network]
    connections_max: int
    connections_per_address: int
    unauthenticated_max: int
    max_unauthenticated_frame_bytes: int


class Gateway:
    """The listening port of one relay."""

    def __init__(
        self,
        settings: GatewaySettings,
        services: Services,
        heartbeat: Heartbeat,
        flushed: Callable[[], Any],
    ) -> None:
        self._registry: Registry = services.registry
        self._heartbeat = heartbeat
        self._flushed = flushed
        self._sockets: dict[Socket, Session | None] = {}  # with a session once the handshake is done
        self._strangers: Strangers[Socket] = Strangers()
        self._per_address: Counter[str] = Counter()  # by network_of the address
        self._servers: list[asyncio.Server] = []
        self._ending: set[asyncio.Task[None]] = set()  # of sessions that are over
        self._arrived: deque[Socket] = deque()  # those that are to start
        self._is_draining = False
        self.use(settings, services)
        services.metrics.connections.set_function(lambda: len(self._sockets))

    def use(self, settings: GatewaySettings, services: Services) -> None:
        """Whoever comes from now on is let in and served by these."""
        self._settings = settings
        self._services = services
        services.metrics.connections_max.set(settings.connections_max)
        self._handshakes = Handshakes()  # what was answered was answered by other rules
        allowed = [Origin(origin) for origin in settings.origins]
        self._origins = [*allowed, None] if settings.allow_no_origin else allowed

    async def start(self, host: str, port: int, ssl_context: ssl.SSLContext | None) -> int:
        """Listen; return the port, which is picked where 0 was asked for. Raise StartupError where it is taken."""
        try:
            await self._listen(ssl_context, host=host, port=port)
            listening = list(self._servers[0].sockets)
            # The loop takes one connection a turn from each descriptor. When thousands come back at once, requests
            # that come one a turn can't be put to the database together: so a port has several descriptors.
            for _ in range(1, _ACCEPTED_A_TURN):
                for one in listening:
                    await self._listen(ssl_context, sock=fromfd(one.fileno(), one.family, one.type))
        except OSError as error:
            raise StartupError.not_listening("listen", host, port, error) from error
        return int(listening[0].getsockname()[1])

    async def _listen(self, context: ssl.SSLContext | None, **where: Any) -> None:
        server = await asyncio.get_running_loop().create_server(
            self._make_socket,
            **where,
            ssl=context,
            ssl_handshake_timeout=_TLS_TIMEOUT_S if context is not None else None,
            backlog=_BACKLOG,
        )
        self._servers.append(server)

    def _make_socket(self) -> Socket:
        return Socket(self, asyncio.get_running_loop())

    def _make_protocol(self, state: State) -> ServerProtocol:
        return ServerProtocol(
            origins=self._origins,
            subprotocols=[Subprotocol(SUBPROTOCOL)],
            select_subprotocol=_select_subprotocol,
            state=state,
            max_size=self._settings.max_unauthenticated_frame_bytes,
        )

    async def drain(self, timeout_s: float) -> None:
        """Stop accepting, say goodbye, let what is under way finish, close 4000; cut what is left after the limit."""
        self._is_draining = True
        for server in self._servers:
            server.close()
        for socket in tuple(self._sockets):
            if socket.is_connecting:
                socket.transport.abort()  # strangers who haven't said what they want hold up nothing
        for session in self._registry:
            session.quiesce()
            session.push(GoAway(retry_after_ms=random.randrange(_GOAWAY_SPREAD_MS)))  # noqa: S311  jitter
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._flushed()
                for session in self._registry:
                    await session.answered()
                for session in self._registry:
                    session.close_now(CloseCode.DRAINING)
                while self._sockets:
                    await asyncio.wait([asyncio.ensure_future(s.wait_closed()) for s in self._sockets])
        for socket in tuple(self._sockets):
            socket.transport.abort()
        for server in self._servers:
            await server.wait_closed()
        if self._ending:
            await asyncio.wait(tuple(self._ending))

    # ── admission ───────────────────────────────────────────────────────────────────────────────────────────────────

    def admit(self, socket: Socket) -> bool:
        """Count a TCP connection in; False: there is no room for it."""
        network = network_of(_peer(socket))
        if len(self._sockets) >= self._settings.connections_max or not self._has_room(network):
            logger.info("connection.rejected", reason="full")
            return False
        self._sockets[socket] = None
        self._strangers.add(socket, network)
        return True

    def _has_room(self, network: str) -> bool:
        """Whether there is room for a stranger from there; made, if need be, at the cost of another one."""
        if len(self._strangers) < self._settings.unauthenticated_max:
            return True
        other = self._strangers.to_give_way(network)
        if other is None:
            return False
        logger.info("connection.rejected", address=other.address or _peer(other), reason="crowd")
        self._strangers.discard(other)
        other.transport.abort()
        return True

    def authenticated(self, socket: Socket) -> None:
        """It is somebody's, and no stranger's any more."""
        self._strangers.discard(socket)

    def arrived(self, socket: Socket) -> None:
        """Let a connection start soon. Thousands may have sent something by the time that the loop looks, and it reads
        from all of them before it does anything else: everybody would wait until the last of them has started."""
        if not self._arrived:
            asyncio.get_running_loop().call_soon(self._start_some)
        self._arrived.append(socket)

    def _start_some(self) -> None:
        try:
            for _ in range(min(_STARTED_A_TURN, len(self._arrived))):
                socket = self._arrived.popleft()
                try:
                    socket.start()
                except Exception:  # a defect, of which the loop will tell
                    socket.transport.abort()
                    raise
        finally:
            if self._arrived:
                asyncio.get_running_loop().call_soon(self._start_some)

    def begin(self, socket: Socket, data: bytes) -> Beginning:
        """What becomes of a connection's first bytes."""
        socket.handshake = handshake = Handshake.of(data)
        answer = None if handshake is None or self._is_draining else self._handshakes.recall(handshake)
        if handshake is not None and answer is not None:
            socket.address = self._address(socket, handshake.forwarded)
            if not self._is_crowded(socket.address):
                protocol = self._make_protocol(State.OPEN)
                protocol.subprotocol = answer.subprotocol
                return Beginning(protocol, answer.to(handshake), handshake.size)
        return Beginning(self._make_protocol(State.CONNECTING))

    def answer(self, socket: Socket, request: Request) -> Response:
        """Answer a handshake; whoever asks for another version of the protocol is told which one is spoken here."""
        forwarded = ",".join(request.headers.get_all("X-Forwarded-For"))
        if socket.handshake is not None and socket.handshake.forwarded != forwarded:
            socket.handshake = None  # it is not written as others are
        socket.address = self._address(socket, forwarded)
        response = self._refusal(socket, request) or socket.protocol.accept(request)
        if response.status_code == HTTPStatus.BAD_REQUEST:
            response.headers["Sec-WebSocket-Version"] = "13"
        return response

    def _refusal(self, socket: Socket, request: Request) -> Response | None:
        if self._is_draining:
            return socket.protocol.reject(HTTPStatus.SERVICE_UNAVAILABLE, "The relay is shutting down.\n")
        if self._is_crowded(socket.address):
            logger.info("connection.rejected", address=socket.address, reason="address")
            return socket.protocol.reject(HTTPStatus.TOO_MANY_REQUESTS, "Too many connections from this address.\n")
        if len(request.headers.get_all("Host")) != 1:
            return socket.protocol.reject(HTTPStatus.BAD_REQUEST, "A request names its host, once.\n")
        return None

    def _is_crowded(self, address: str) -> bool:
        return self._per_address[network_of(address)] >= self._settings.connections_per_address

    def _address(self, socket: Socket, forwarded: str) -> str:
        """The client's address: the last one in X-Forwarded-For that no trusted proxy added."""
        peer = _peer(socket)
        if not self._is_trusted(peer):
            return peer
        for candidate in reversed([part.strip() for part in forwarded.split(",") if part.strip()]):
            if _parse_address(candidate) is None:
                break
            peer = candidate
            if not self._is_trusted(candidate):
                break
        return peer

    def _is_trusted(self, text: str) -> bool:
        if not self._settings.trusted_proxies:
            return False
        address = _parse_address(text)
        return address is not None and any(address in network for network in self._settings.trusted_proxies)

    # ── serving ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def let_in(self, socket: Socket, greeting: bytes) -> None:
        """Remember how a handshake that had to be parsed was answered."""
        if socket.handshake is not None:
            self._handshakes.remember(socket.handshake, greeting, socket.protocol.subprotocol)

    def opened(self, socket: Socket) -> None:
        """Serve a connection whose handshake is done."""
        if socket.protocol.subprotocol != SUBPROTOCOL:
            error = Error(code=ErrorCode.UNSUPPORTED_PROTOCOL, message=f"This relay speaks {SUBPROTOCOL}.")
            socket.turn_away(codec.encode(error), CloseCode.UNSUPPORTED_PROTOCOL)
            return
        self._strangers.add(socket, network_of(socket.address))
        session = self._sockets[socket] = Session(socket, self._services)
        self._per_address[network_of(socket.address)] += 1
        self._registry.add(session)
        self._heartbeat.add(session)
        logger.info("connection.opened", connection=session.connection_id, address=socket.address)
        session.begin()

    def forget(self, socket: Socket) -> None:
        """Count a TCP connection out, and end what served it."""
        self._strangers.discard(socket)
        session = self._sockets.pop(socket, None)
        if session is None:
            return
        for task in session.end():
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
        self._heartbeat.remove(session)
        self._registry.remove(session)
        network = network_of(socket.address)
        self._per_address[network] -= 1
        if not self._per_address[network]:
            del self._per_address[network]
        logger.info(
            "connection.closed",
            connection=session.connection_id,
            address=socket.address,
            close_code=socket.close_code,
            duration_ms=round((socket.loop.time() - socket.opened_at) * 1000),
        )


def _peer(socket: Socket) -> str:
    """The address at the other end, which may be a proxy's."""
    name = socket.transport.get_extra_info("peername")
    return str(name[0]) if name else ""


def _parse_address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def _select_subprotocol(_protocol: ServerProtocol, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    """Accept whoever asks for another protocol, so that the close code can say what is wrong."""
    return Subprotocol(SUBPROTOCOL) if SUBPROTOCOL in offered else None

"""Accept sockets: caps, origin, handshake, the client's real address. Then the session takes over.

The gateway must not look into messages. It counts connections from the first byte on, so that slow handshakes and idle
strangers are capped before they cost anything.
"""

import asyncio
import contextlib
import random
import ssl
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from pathlib import Path
from socket import fromfd
from typing import Any, Final

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.http11 import Request, Response
from websockets.protocol import State
from websockets.typing import Origin, Subprotocol

from orbital_protocol import SUBPROTOCOL
from orbital_protocol.codes import CloseCode, ErrorCode
from orbital_protocol.frames import Error, GoAway
from orbital_relay import logs
from orbital_relay.errors import StartupError
from orbital_relay.heartbeat import Heartbeat
from orbital_relay.limits import network_of
from orbital_relay.registry import Registry
from orbital_relay.session import Services, Session
from orbital_relay.websocket import Socket

logger = logs.get()

_OPEN_TIMEOUT_S: Final = 10
_CLOSE_TIMEOUT_S: Final = 5
_MESSAGES_AHEAD: Final = 4
_WRITE_HIGH_BYTES: Final = 64 * 1024
_GOAWAY_SPREAD_MS: Final = 3_000
_BACKLOG: Final = 4096  # the kernel's own limit is net.core.somaxconn
_ACCEPTED_A_TURN: Final = 8


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """Where to listen, and whom to let in."""

    host: str
    port: int
    ssl_context: ssl.SSLContext | None
    origins: Sequence[str]
    allow_no_origin: bool
    trusted_proxies: Sequence[IPv4Network | IPv6Network]
    connections_max: int
    connections_per_address: int
    unauthenticated_max: int
    max_unauthenticated_frame_bytes: int


def tls_context(cert: Path, key: Path) -> ssl.SSLContext:
    """What TLS is served with. Raise StartupError where the two files are not a chain and its key."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(cert, key, password="")  # without one OpenSSL asks at the terminal
    except OSError as error:
        reason = error.reason if isinstance(error, ssl.SSLError) else error.strerror
        why = f" ({reason})" if reason else ""
        raise StartupError(
            f"tls_cert = {cert}, tls_key = {key}: must be a certificate chain and its private key, in PEM,"
            f" without a passphrase{why}"
        ) from error
    return context


class Gateway:
    """The listening port of one relay."""

    def __init__(
        self,
        settings: GatewaySettings,
        services: Services,
        heartbeat: Heartbeat,
        flushed: Callable[[], Any],
    ) -> None:
        self._settings = settings
        self._services = services
        self._registry: Registry = services.registry
        self._heartbeat = heartbeat
        self._flushed = flushed
        self._sockets: set[Socket] = set()
        self._per_address: Counter[str] = Counter()  # by network_of the address
        self._servers: list[Server] = []
        services.metrics.connections.set_function(lambda: len(self._sockets))

    async def start(self) -> int:
        """Listen; return the port. Raise StartupError where it is taken."""
        settings = self._settings
        try:
            await self._listen(host=settings.host, port=settings.port)
            listening = list(self._servers[0].sockets)
            # The loop takes one connection a turn from each descriptor. When thousands come back at once, requests
            # that come one a turn can't be put to the database together: so a port has several descriptors.
            for _ in range(1, _ACCEPTED_A_TURN):
                for one in listening:
                    await self._listen(sock=fromfd(one.fileno(), one.family, one.type))
        except OSError as error:
            raise StartupError.not_listening("listen", settings.host, settings.port, error) from error
        return int(listening[0].getsockname()[1])

    async def _listen(self, **where: Any) -> None:
        settings = self._settings
        allowed = [Origin(origin) for origin in settings.origins]
        server = await serve(
            self._serve,
            **where,
            ssl=settings.ssl_context,
            create_connection=partial(_CountedSocket, self),  # type: ignore[arg-type]  # called, never subclassed
            process_request=self._check_request,
            process_response=_name_version,
            origins=[*allowed, None] if settings.allow_no_origin else allowed,
            subprotocols=[Subprotocol(SUBPROTOCOL)],
            select_subprotocol=_select_subprotocol,
            compression=None,
            server_header=None,
            open_timeout=_OPEN_TIMEOUT_S,
            close_timeout=_CLOSE_TIMEOUT_S,
            ping_interval=None,
            max_size=settings.max_unauthenticated_frame_bytes,
            max_queue=_MESSAGES_AHEAD,
            write_limit=_WRITE_HIGH_BYTES,
            backlog=_BACKLOG,
        )
        self._servers.append(server)

    async def drain(self, timeout_s: float) -> None:
        """Stop accepting, say goodbye, let what is under way finish, close 4000; cut what is left after the limit."""
        for server in self._servers:
            server.close(close_connections=False)
        for socket in tuple(self._sockets):
            if socket.protocol.state is State.CONNECTING:
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

    # ── admission ───────────────────────────────────────────────────────────────────────────────────────────────────

    def admit(self, socket: Socket) -> bool:
        """Count a TCP connection in; False: there is no room for it."""
        settings = self._settings
        unauthenticated = len(self._sockets) - self._registry.authenticated_count
        if len(self._sockets) >= settings.connections_max or unauthenticated >= settings.unauthenticated_max:
            logger.info("connection.rejected", reason="full")
            return False
        self._sockets.add(socket)
        return True

    def forget(self, socket: Socket) -> None:
        """Count a TCP connection out."""
        self._sockets.discard(socket)

    def _check_request(self, socket: ServerConnection, request: Request) -> Response | None:
        address = _as_socket(socket).address = self._address(socket, request)
        if self._per_address[network_of(address)] >= self._settings.connections_per_address:
            logger.info("connection.rejected", address=address, reason="address")
            return socket.respond(HTTPStatus.TOO_MANY_REQUESTS, "Too many connections from this address.\n")
        if len(request.headers.get_all("Host")) != 1:
            return socket.respond(HTTPStatus.BAD_REQUEST, "A request names its host, once.\n")
        return None

    def _address(self, socket: ServerConnection, request: Request) -> str:
        """The client's address: the last one in X-Forwarded-For that no trusted proxy added."""
        peer = str(socket.remote_address[0]) if socket.remote_address else ""
        if not self._is_trusted(peer):
            return peer
        forwarded = ",".join(request.headers.get_all("X-Forwarded-For")).split(",")
        for candidate in reversed([part.strip() for part in forwarded if part.strip()]):
            if _parse_address(candidate) is None:
                break
            peer = candidate
            if not self._is_trusted(candidate):
                break
        return peer

    def _is_trusted(self, text: str) -> bool:
        address = _parse_address(text)
        return address is not None and any(address in network for network in self._settings.trusted_proxies)

    # ── serving ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _serve(self, connection: ServerConnection) -> None:
        socket = _as_socket(connection)
        address = socket.address
        for message in (socket.request, socket.response):
            if message is not None:
                message.headers.clear()  # kilobytes that nobody asks for again
        session = Session(socket, address, self._services)
        if socket.subprotocol != SUBPROTOCOL:
            session.push(Error(code=ErrorCode.UNSUPPORTED_PROTOCOL, message=f"This relay speaks {SUBPROTOCOL}."))
            session.outbox.flush()
            await socket.finish(_CLOSE_TIMEOUT_S, CloseCode.UNSUPPORTED_PROTOCOL)
            return
        network = network_of(address)
        self._per_address[network] += 1
        self._registry.add(session)
        self._heartbeat.add(session)
        opened_at = socket.loop.time()
        logger.info("connection.opened", connection=session.connection_id, address=address)
        try:
            await session.run()
        finally:
            self._heartbeat.remove(session)
            self._registry.remove(session)
            self._per_address[network] -= 1
            if not self._per_address[network]:
                del self._per_address[network]
            logger.info(
                "connection.closed",
                connection=session.connection_id,
                address=address,
                close_code=socket.close_code,
                duration_ms=round((socket.loop.time() - opened_at) * 1000),
            )


class _CountedSocket(Socket):
    """A socket that the gateway counts from its first moment."""

    def __init__(self, gateway: Gateway, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._gateway = gateway

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if not self._gateway.admit(self):
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._gateway.forget(self)
        super().connection_lost(exc)


def _as_socket(connection: ServerConnection) -> Socket:
    if not isinstance(connection, Socket):
        raise TypeError("the server makes Sockets")
    return connection


def _parse_address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def _name_version(_connection: ServerConnection, _request: Request, response: Response) -> None:
    """Tell whoever is refused which version of the WebSocket protocol is spoken here: it may be what was wrong."""
    if response.status_code == HTTPStatus.BAD_REQUEST:
        response.headers["Sec-WebSocket-Version"] = "13"


def _select_subprotocol(_connection: ServerConnection, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    """Accept whoever asks for another protocol, so that the close code can say what is wrong."""
    return Subprotocol(SUBPROTOCOL) if SUBPROTOCOL in offered else None

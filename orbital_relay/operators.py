"""The operators' HTTP port: metrics, and whether the relay is alive and ready. No WebSocket is ever accepted here."""

import dataclasses
import json
from collections.abc import Callable
from http import HTTPStatus

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from orbital_relay import logs
from orbital_relay.errors import StartupError
from orbital_relay.metrics import Metrics

# Also the longest that a silent connection can hold up `stop`.
_REQUEST_TIMEOUT_S = 1

logger = logs.get()


@dataclasses.dataclass(frozen=True)
class Readiness:
    """Whether the relay can serve, check by check."""

    database: bool
    listener: bool
    store: bool
    draining: bool

    @property
    def ready(self) -> bool:
        """A relay without its store of files is ready: posts go on."""
        return self.database and self.listener and not self.draining


class Operators:
    """Serves `/metrics`, `/healthz` and `/readyz`. `ready` is asked on each request and must not wait."""

    def __init__(self, host: str, port: int, metrics: Metrics, ready: Callable[[], Readiness]) -> None:
        self._host = host
        self._port = port
        self._metrics = metrics
        self._ready = ready
        self._server: Server | None = None

    async def start(self) -> int:
        """Listen, and return the port: the one picked where 0 was asked for. Raises StartupError where it is taken."""
        try:
            self._server = await serve(
                _never,
                self._host,
                self._port,
                process_request=self._respond,
                open_timeout=_REQUEST_TIMEOUT_S,
                compression=None,
                server_header=None,
            )
        except OSError as error:
            raise StartupError.not_listening("operators", self._host, self._port, error) from error
        return int(next(iter(self._server.sockets)).getsockname()[1])

    async def stop(self) -> None:
        """Stop listening and end what is under way. Does nothing where it has not started."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    def _respond(self, _connection: ServerConnection, request: Request) -> Response:
        path = request.path.partition("?")[0]
        response = self._answer(path, request)
        logger.debug("operators.request", path=path, status=response.status_code)
        return response

    def _answer(self, path: str, request: Request) -> Response:
        if request.method != "GET":
            return _text(HTTPStatus.METHOD_NOT_ALLOWED, "GET only\n")
        match path:
            case "/healthz":
                return _text(HTTPStatus.OK, "alive\n")
            case "/readyz":
                return _readiness(self._ready())
            case "/metrics":
                return _response(HTTPStatus.OK, self._metrics.CONTENT_TYPE, self._metrics.expose())
            case _:
                return _text(HTTPStatus.NOT_FOUND, "try /metrics, /healthz or /readyz\n")


async def _never(_connection: ServerConnection) -> None:
    """Stand where `serve` wants a handler; every request has been answered before."""


def _readiness(readiness: Readiness) -> Response:
    status = HTTPStatus.OK if readiness.ready else HTTPStatus.SERVICE_UNAVAILABLE
    report = {"ready": readiness.ready, **dataclasses.asdict(readiness)}
    return _response(status, "application/json", json.dumps(report).encode() + b"\n")


def _text(status: HTTPStatus, text: str) -> Response:
    return _response(status, "text/plain; charset=utf-8", text.encode())


def _response(status: HTTPStatus, content_type: str, body: bytes) -> Response:
    headers = Headers()
    headers["Content-Type"] = content_type
    headers["Content-Length"] = str(len(body))
    headers["Cache-Control"] = "no-store"
    headers["Connection"] = "close"
    return Response(status.value, status.phrase, headers, body)

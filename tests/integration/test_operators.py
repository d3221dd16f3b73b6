"""The operators' port, over real sockets."""

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from orbital_relay.errors import StartupError
from orbital_relay.metrics import Metrics
from orbital_relay.operators import Operators, Readiness

READY = Readiness(database=True, listener=True, store=True, draining=False)


@dataclasses.dataclass
class Probe:
    """What the relay would say of itself; a test changes it between requests."""

    readiness: Readiness = READY


@dataclasses.dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


@asynccontextmanager
async def operators(probe: Probe | None = None, metrics: Metrics | None = None) -> AsyncIterator[int]:
    asked = probe or Probe()
    server = Operators("127.0.0.1", 0, metrics or Metrics(), lambda: asked.readiness)
    try:
        yield await server.start()
    finally:
        await server.stop()


async def ask(port: int, path: str, method: str = "GET", *headers: str) -> Answer:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *headers, "", ""]
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write("\r\n".join(lines).encode())
        received = await reader.read()  # up to the end: the port closes after its answer
        writer.close()
        await writer.wait_closed()
    head, _, body = received.partition(b"\r\n\r\n")
    status, *fields = head.decode().split("\r\n")
    named = dict(field.lower().split(": ", 1) for field in fields)
    assert int(named["content-length"]) == len(body)
    return Answer(int(status.split()[1]), named, body)


async def test_healthz_says_that_it_lives_even_when_it_is_not_ready() -> None:
    async with operators(Probe(Readiness(database=False, listener=False, store=False, draining=True))) as port:
        answer = await ask(port, "/healthz")
    assert (answer.status, answer.body) == (200, b"alive\n")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"


@pytest.mark.parametrize("database", [True, False])
@pytest.mark.parametrize("listener", [True, False])
@pytest.mark.parametrize("store", [True, False])
@pytest.mark.parametrize("draining", [True, False])
async def test_readyz_answers_each_check(database: bool, listener: bool, store: bool, draining: bool) -> None:
    """All of them are told; without its store of files a relay is ready all the same, since posts go on."""
    probe = Probe()
    async with operators(probe) as port:
        assert (await ask(port, "/readyz")).status == 200
        probe.readiness = Readiness(database, listener, store, draining)
        answer = await ask(port, "/readyz")
    ready = database and listener and not draining
    assert answer.status == (200 if ready else 503)
    assert answer.headers["content-type"] == "application/json"
    assert json.loads(answer.body) == {
        "ready": ready,
        "database": database,
        "listener": listener,
        "store": store,
        "draining": draining,
    }


async def test_metrics_are_those_of_this_relay() -> None:
    metrics = Metrics()
    async with operators(metrics=metrics) as port:
        metrics.posts.inc(7)
        answer = await ask(port, "/metrics?x=/readyz")
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert answer.headers["cache-control"] == "no-store"
    assert b"\norbital_posts_total 7.0\n" in answer.body


@pytest.mark.parametrize("path", ["/", "/metrics/", "/Metrics", "/../metrics", "//", "*", "/healthz%00"])
async def test_any_other_path_is_not_found(path: str) -> None:
    async with operators() as port:
        assert (await ask(port, path)).status == 404


@pytest.mark.parametrize("method", ["POST", "HEAD", "DELETE"])
async def test_only_get_is_served(method: str) -> None:
    async with operators() as port:
        assert (await ask(port, "/healthz", method)).status == 405


async def test_an_odd_accept_header_is_answered_all_the_same() -> None:
    async with operators() as port:
        answer = await ask(port, "/metrics", "GET", "Accept: application/openmetrics-text; version=abc")
    assert answer.status == 200
    assert b"orbital_build_info" in answer.body


@pytest.mark.parametrize("path", ["/", "/metrics", "/healthz"])
async def test_no_websocket_is_ever_accepted(path: str) -> None:
    async with operators() as port:
        with pytest.raises(InvalidStatus) as refused:
            await connect(f"ws://127.0.0.1:{port}{path}", proxy=None)
    assert refused.value.response.status_code in (200, 404)


async def test_bytes_that_are_not_http_end_the_connection_alone() -> None:
    async with operators() as port, asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"\x16\x03\x01\x00\xa5\r\n\r\n")
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
        assert (await ask(port, "/healthz")).status == 200


async def test_who_connects_and_asks_nothing_is_cut() -> None:
    async with operators() as port, asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()


async def test_it_stops_while_somebody_is_connected_and_frees_its_port() -> None:
    server = Operators("127.0.0.1", 0, Metrics(), lambda: READY)
    port = await server.start()
    async with asyncio.timeout(10):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        await ask(port, "/healthz")
        await server.stop()
        writer.close()
    again = Operators("127.0.0.1", port, Metrics(), lambda: READY)
    assert await again.start() == port
    await again.stop()
    with pytest.raises(ConnectionRefusedError):
        await ask(port, "/healthz")


async def test_a_port_that_is_taken_is_an_error_that_names_the_setting() -> None:
    async with operators() as port:
        other = Operators("127.0.0.1", port, Metrics(), lambda: READY)
        with pytest.raises(
            StartupError, match=f"operators_port: can't listen on 127.0.0.1, port {port}: Address already"
        ):
            await other.start()
        await other.stop()

"""The gateway's own order: how many connections start in one turn of the loop."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from orbital_relay.gateway import Gateway, GatewaySettings
from orbital_relay.heartbeat import Heartbeat
from orbital_relay.metrics import Metrics
from orbital_relay.registry import Registry
from orbital_relay.session import Services
from orbital_relay.websocket import Socket

LIMIT_S = 5
MANY = 100


class Newcomer:
    """A connection of which something has come; starting it does nothing, or fails."""

    def __init__(self, gateway: Gateway, *, fails: bool = False) -> None:
        self.has_started = False
        self.is_cut = False
        self.transport = SimpleNamespace(abort=self._abort)
        self._fails = fails
        gateway.arrived(cast(Socket, self))

    def start(self) -> None:
        if self._fails:
            raise ValueError("a defect")
        self.has_started = True

    def _abort(self) -> None:
        self.is_cut = True


@pytest.fixture
def gateway() -> Gateway:
    settings = GatewaySettings(
        origins=(),
        allow_no_origin=True,
        trusted_proxies=(),
        connections_max=MANY,
        connections_per_address=MANY,
        unauthenticated_max=MANY,
        max_unauthenticated_frame_bytes=1024,
    )
    services = cast(Services, SimpleNamespace(registry=Registry(), metrics=Metrics()))
    return Gateway(settings, services, cast(Heartbeat, None), lambda: None)


async def turns_until_all(newcomers: list[Newcomer]) -> list[int]:
    """How many had started after each turn of the loop."""
    counts = []
    async with asyncio.timeout(LIMIT_S):
        while not all(newcomer.has_started or newcomer.is_cut for newcomer in newcomers):
            await asyncio.sleep(0)
            counts.append(sum(newcomer.has_started for newcomer in newcomers))
    return counts


async def test_who_comes_with_thousands_of_others_leaves_the_loop_to_others(gateway: Gateway) -> None:
    newcomers = [Newcomer(gateway) for _ in range(MANY)]
    counts = await turns_until_all(newcomers)
    assert len(counts) > MANY // 20
    assert [newcomer.has_started for newcomer in newcomers[: counts[0]]] == [True] * counts[0]


class Cut(asyncio.Transport):
    """A connection that is being cut: nothing can be written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.is_cut = False

    def abort(self) -> None:
        self.is_cut = True

    def is_closing(self) -> bool:
        return self.is_cut

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_extra_info(self, name: str, default: object = None) -> object:
        return default

    def write(self, data: bytes | bytearray | memoryview) -> None:
        raise RuntimeError("the transport is closed")


async def test_one_who_is_cut_before_its_turn_is_passed_over(gateway: Gateway) -> None:
    """While the relay drains, say."""
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    socket, transport = Socket(gateway, asyncio.get_running_loop()), Cut()
    socket.connection_made(transport)
    socket.data_received(b"GET / HTTP/1.1\r\nHost: relay.example\r\n\r\n")
    transport.abort()
    await turns_until_all([Newcomer(gateway)])
    assert socket.is_connecting
    socket.eof_received()
    socket.connection_lost(None)
    assert not told


async def test_one_who_cannot_start_is_cut_and_the_others_start(gateway: Gateway) -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    newcomers = [Newcomer(gateway, fails=number == 3) for number in range(MANY)]
    await turns_until_all(newcomers)
    assert [number for number, newcomer in enumerate(newcomers) if newcomer.is_cut] == [3]
    assert [type(context["exception"]) for context in told] == [ValueError]

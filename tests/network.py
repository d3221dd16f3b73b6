"""A network between clients and a relay that tests can slow down, stall and swallow.

async with network_to(relay.port, delay_s=0.1) as network:
    await websockets.connect(network.url)
    network.is_black = True
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_BYTES = 65_536
_WAITING = 64  # pieces that may be under way in one direction


class Network:
    """Passes bytes on, in their order, `delay_s` after they came.

    In `stalls` of all cases a piece, and whatever is behind it, comes `stall_s` later, as TCP has it where a packet is
    lost and sent again. While it `is_black`, nothing comes through and both ends stay open.
    """

    def __init__(self, port: int, *, delay_s: float = 0, stalls: float = 0, stall_s: float = 0, seed: int = 1) -> None:
        self._port = port
        self._delay_s = delay_s
        self._stalls = stalls
        self._stall_s = stall_s
        self._chance = random.Random(seed)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0
        self.is_black = False
        self.stalled = 0

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"ws://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        while self._tasks:
            await asyncio.wait(tuple(self._tasks))

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            writer.transport.abort()
            return
        for one, other in ((reader, far_writer), (far_reader, writer)):
            task = asyncio.create_task(self._carry(one, other), name="network")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One direction of one connection."""
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_WAITING)
        loop = asyncio.get_running_loop()

        async def take() -> None:
            with contextlib.suppress(OSError):
                while data := await reader.read(_BYTES):
                    await under_way.put((loop.time() + self._delay_s, data))
            await under_way.put((loop.time(), b""))

        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(take(), name="network take")
                with contextlib.suppress(OSError):
                    await self._give(under_way, writer)
        finally:
            writer.transport.abort()

    async def _give(self, under_way: "asyncio.Queue[tuple[float, bytes]]", writer: asyncio.StreamWriter) -> None:
        """Hand over each piece at its time, until the last, which is empty."""
        loop = asyncio.get_running_loop()
        while True:
            due, data = await under_way.get()
            await asyncio.sleep(due - loop.time())
            if self._chance.random() < self._stalls:
                self.stalled += 1
                await asyncio.sleep(self._stall_s)
            if not data:
                return
            if not self.is_black:
                writer.write(data)
                await writer.drain()


@asynccontextmanager
async def network_to(
    port: int, *, delay_s: float = 0, stalls: float = 0, stall_s: float = 0, seed: int = 1
) -> AsyncIterator[Network]:
    """A network in front of this port on loopback."""
    network = Network(port, delay_s=delay_s, stalls=stalls, stall_s=stall_s, seed=seed)
    await network.start()
    try:
        yield network
    finally:
        await network.stop()

"""What fails between clients and relays, or is done by clients on purpose, while others post, judged by `history`.

Faults have the numbers of docs/faults.md, which says what must happen, and which tests show more of it.
"""

import asyncio
import os
import random
import resource
import socket
from contextlib import AsyncExitStack
from typing import Any

import pytest
from websockets.exceptions import InvalidMessage

from orbital_protocol import ZERO_HASH, codec, frames
from orbital_protocol.codes import ErrorCode
from orbital_protocol.frames import SubscribeGroup
from tests.files import CHUNK, File, begin, send, stored, usage
from tests.network import network_to
from tests.postgres import TestPostgres
from tests.raw_socket import raw_socket
from tests.relays import RunningRelay, media_dir_of, running_relay
from tests.stage import Stage, stage_on
from tests.system.crowd import A_WHILE, Crowd, crowd_on, good, unharmed
from tests.talk import Refused, subscribe, talking

pytestmark = [pytest.mark.timeout(120), pytest.mark.asyncio(loop_scope="module")]

LIMIT_S = 30


async def has_connections(relay: RunningRelay, count: int) -> None:
    async with asyncio.timeout(LIMIT_S):
        while await relay.metric("orbital_connections") > count:
            await asyncio.sleep(0.05)


async def test_14_a_client_stops_reading(stage: Stage) -> None:
    async with (
        running_relay(stage.dsn, outbox_bytes=65_536, slow_consumer_ms=500) as relay,
        crowd_on(stage, lambda: [relay.url]) as crowd,
        raw_socket(relay.port, crowd.clients[0].token) as slow,
    ):
        for client in crowd.clients:
            client.body_bytes = 30_000
        [group_id] = crowd.groups
        groups = [SubscribeGroup(group_id=group_id, after_seq=0, after_hash=ZERO_HASH)]
        await slow.ask(frames.Subscribe(id=1, groups=groups))
        await until_cut(relay, crowd)
        await crowd.progress()
        good(await crowd.rest())
        unharmed(relay)


async def until_cut(relay: RunningRelay, crowd: Crowd) -> None:
    """Wait until a slow consumer was cut; the others go on meanwhile."""
    async with asyncio.timeout(LIMIT_S):
        while not await relay.metric("orbital_slow_consumers_total"):
            await crowd.progress()


async def test_15_half_open(stage: Stage) -> None:
    """Somebody's packets go nowhere from now on, in both directions; nobody says so."""
    async with (
        running_relay(stage.dsn, heartbeat_ms=200, no_pong_ms=300) as relay,
        network_to(relay.port) as network,
        crowd_on(stage, lambda: [relay.url]) as crowd,
        talking(network.url, crowd.clients[0].token) as lost,
    ):
        await subscribe(lost, crowd.groups[0], 0, ZERO_HASH)
        await crowd.progress()
        network.is_black = True
        await has_connections(relay, len(crowd.clients))
        await crowd.acknowledged(A_WHILE)
        good(await crowd.rest())
        unharmed(relay)


async def test_16_far_away_over_a_bad_line(stage: Stage) -> None:
    """200 ms there and back, and where a packet would be lost everything behind it comes half a second later."""
    async with (
        running_relay(stage.dsn) as relay,
        network_to(relay.port, delay_s=0.1, stalls=0.05, stall_s=0.5) as network,
        crowd_on(stage, lambda: [network.url]) as crowd,
    ):
        await crowd.acknowledged(A_WHILE + 1)
        good(await crowd.rest())
        assert network.stalled
        unharmed(relay)


async def test_18_strangers_by_the_hundred(stage: Stage) -> None:
    """Half handshakes, and connections that never authenticate, up to the cap and beyond."""
    async with (
        running_relay(stage.dsn, unauthenticated_max=300, connections_per_address=10_000) as relay,
        crowd_on(stage, lambda: [relay.url]) as crowd,
        AsyncExitStack() as stack,
    ):
        await crowd.progress()
        for _ in range(250):
            stranger = stack.enter_context(socket.create_connection(("127.0.0.1", relay.port)))
            stranger.sendall(b"GET / HTTP/1.1\r\nHost: relay\r\n")
        for _ in range(40):
            await stack.enter_async_context(raw_socket(relay.port))
        for _ in range(100):
            stack.enter_context(socket.create_connection(("127.0.0.1", relay.port)))
        await crowd.acknowledged(A_WHILE)
        good(await crowd.rest())
        unharmed(relay)


async def test_19_no_file_descriptors_left(stage: Stage) -> None:
    async with running_relay(stage.dsn) as relay, crowd_on(stage, lambda: [relay.url]) as crowd:
        await crowd.progress()
        pid = relay.process.pid
        _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (len(os.listdir(f"/proc/{pid}/fd")) + 5, hard))
        strangers = [socket.create_connection(("127.0.0.1", relay.port)) for _ in range(30)]
        await crowd.acknowledged(A_WHILE)
        for stranger in strangers:
            stranger.close()
        async with asyncio.timeout(LIMIT_S):
            while not await is_served(relay, crowd.clients[0].token):
                await asyncio.sleep(0.05)
        good(await crowd.rest())
        assert relay.process.returncode is None


async def is_served(relay: RunningRelay, token: str) -> bool:
    try:
        async with talking(relay.url, token, open_timeout=2) as newcomer:
            await newcomer.ask(frames.Ping)
    except (OSError, TimeoutError, InvalidMessage):
        return False
    return True


async def test_21_damaged_frames(stage: Stage) -> None:
    """A member sends what was a request once: with bytes altered, cut, doubled, one within the other, or too long."""
    chance = random.Random(21)
    async with running_relay(stage.dsn) as relay, crowd_on(stage, lambda: [relay.url]) as crowd:
        [group_id] = crowd.groups
        await crowd.acknowledged(A_WHILE)
        before_kib = relay.resident_kib()
        request = codec.encode(frames.EventList(id=1, group_id=group_id))
        for _ in range(100):
            async with raw_socket(relay.port, crowd.clients[0].token) as raw:
                raw.send(damaged(request, chance))
                raw.send(codec.encode(frames.Ping(id=2)))
                await raw.flood(b"")
        await crowd.progress()
        assert relay.resident_kib() - before_kib < 16 * 1024
        good(await crowd.rest())
        unharmed(relay)


def damaged(request: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(request))
    match chance.randrange(5):
        case 0:
            return request[:at] + chance.randbytes(chance.randrange(1, 9)) + request[at + 1 :]
        case 1:
            return request[:at]
        case 2:
            return request * chance.randrange(2, 50) + request[:at]
        case 3:
            return request[:at] + b"\x91" * chance.randrange(1, 5_000) + request[at:]
        case _:
            return request[:at] + b"\xdd\x7f\xff\xff\xff" + request[at:]


async def test_22_an_uploader_is_gone_for_good(stage: Stage) -> None:
    """Quota and bytes come back when the upload's time is over."""
    async with (
        running_relay(stage.dsn, upload_ttl_s=1, media_sweep_ms=50) as relay,
        crowd_on(stage, lambda: [relay.url]) as crowd,
    ):
        [group_id] = crowd.groups
        client = crowd.clients[0]
        file = File(group_id, client.thread_id, os.urandom(4 * CHUNK))
        async with talking(relay.url, client.token) as talk:
            await send(talk, file, await begin(talk, file), up_to=2 * CHUNK)
            assert await usage(stage.sql, group_id) != (0, 0)
            assert stored(media_dir_of(stage.dsn))
            talk.cut()
        await crowd.acknowledged(A_WHILE)
        async with asyncio.timeout(LIMIT_S):
            while await usage(stage.sql, group_id) != (0, 0) or stored(media_dir_of(stage.dsn)):
                await asyncio.sleep(0.05)
        good(await crowd.rest())
        unharmed(relay)


@pytest.mark.parametrize("how", ["refuses", "answers nothing"])
async def test_23_the_store_is_away(embedded_postgres: TestPostgres, how: str) -> None:
    """Uploads are told so; posts don't notice."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        store: dict[str, Any] = {
            "media_store": "s3",
            "s3_endpoint": f"http://127.0.0.1:{server.getsockname()[1]}",
            "s3_bucket": "files",
            "s3_region": "us-east-1",
            "s3_access_key": "key",
            "s3_secret_key": "secret",
            "media_timeout_s": 1,
        }
        if how == "refuses":
            server.close()
        async with (
            embedded_postgres.migrated_database() as dsn,
            stage_on(dsn) as stage,
            running_relay(dsn, **store) as relay,
            crowd_on(stage, lambda: [relay.url]) as crowd,
        ):
            client = crowd.clients[0]
            file = File(crowd.groups[0], client.thread_id, os.urandom(1000))
            async with talking(relay.url, client.token) as talk:
                with pytest.raises(Refused) as refused:
                    await send(talk, file, await begin(talk, file))
                assert refused.value.code == ErrorCode.UNAVAILABLE
            await crowd.acknowledged(A_WHILE)
            good(await crowd.rest())
            assert relay.process.returncode is None

"""What connections leave behind when they are gone, however they went: nothing."""

import asyncio
import gc
import random
from collections import Counter
from collections.abc import Iterator

import pytest

from orbital_protocol import ZERO_HASH, codec, frames
from orbital_protocol.frames import SubscribeGroup
from orbital_relay.fanout import Channel, Fanout, Subscription
from orbital_relay.outbox import Outbox
from orbital_relay.session import Session
from orbital_relay.websocket import Socket
from tests.people import found_group, new_id
from tests.relays import relay_here
from tests.stage import Stage, stage_on
from tests.talk import Talk, post_thread, reply, talking

LIMIT_S = 15
KEPT = {Session: 1, Socket: 1, Outbox: 1, Subscription: 0, Channel: 3}
"""What there may be of each: the one that a loop has last looked at."""


def leftovers() -> list[str]:
    """The names of what there is too much of in this process."""
    gc.collect()
    found = Counter(kind for thing in gc.get_objects() for kind in KEPT if kind in type(thing).__mro__)
    return [kind.__name__ for kind, most in KEPT.items() if found[kind] > most]


def fanout() -> Fanout:
    """The relay's."""
    return next(thing for thing in gc.get_objects() if type(thing) is Fanout)


@pytest.mark.parametrize("seed", [1, 2])
async def test_nothing_is_left_of_connections_that_are_gone(migrated_database: str, seed: int) -> None:
    """They subscribe, post and ask in one message or many, and are cut, close or leave in the middle of it."""
    rng = random.Random(seed)
    async with stage_on(migrated_database) as stage:
        people = await stage.people(3)
        groups = [await found_group(stage.sql, *people) for _ in range(3)]
        tokens = [await stage.token(person) for person in people]
        async with relay_here(migrated_database, outbox_bytes=16_384) as url:
            assert not leftovers()
            tasks_before = len(asyncio.all_tasks()) + 2  # one waits for a while, now and then
            for _ in range(12):
                await asyncio.gather(*(come_and_go(url, rng.choice(tokens), groups, rng) for _ in range(5)))
            async with asyncio.timeout(LIMIT_S):
                while len(asyncio.all_tasks()) > tasks_before or leftovers() or fanout().groups():
                    await asyncio.sleep(0.05)
        await check_logs(stage, groups)


async def come_and_go(url: str, token: str, groups: list[bytes], rng: random.Random) -> None:
    async with talking(url, token) as talk:
        group_id = rng.choice(groups)
        thread_id, _ = await post_thread(talk, group_id)
        requests = [request for _ in range(rng.randrange(1, 30)) for request in some(talk, groups, thread_id, rng)]
        futures = [talk.expect(request) for request in requests]
        for future in futures:
            future.add_done_callback(lambda future: future.exception())
        await talk.socket.send(b"".join(codec.encode(request) for request in requests))
        match rng.randrange(4):
            case 0:
                talk.cut()
            case 1:
                await talk.socket.close()
            case 2:
                await asyncio.wait(futures[: 1 + len(futures) // 2])
                talk.cut()
            case _:
                await asyncio.wait(futures)


def some(talk: Talk, groups: list[bytes], thread_id: bytes, rng: random.Random) -> Iterator[frames.Request]:
    """A request of any kind that concerns a group."""
    group_id = rng.choice(groups)
    match rng.randrange(5):
        case 0:
            wanted = [SubscribeGroup(group_id=group, after_seq=0, after_hash=ZERO_HASH) for group in groups]
            yield frames.Subscribe(id=talk.next_id(), groups=wanted)
        case 1 if rng.random() < 0.3:
            yield frames.Subscribe(id=talk.next_id(), groups=[SubscribeGroup(group_id=new_id())])
        case 1:
            yield frames.Unsubscribe(id=talk.next_id(), groups=[group_id])
        case 2:
            yield frames.EventList(id=talk.next_id(), group_id=group_id)
        case 3:
            yield frames.SignalSend(id=talk.next_id(), group_id=group_id, payload=b"typing")
        case _:
            yield reply(talk, group_id, thread_id, bytes(rng.randrange(1, 5_000)))


async def check_logs(stage: Stage, groups: list[bytes]) -> None:
    for group_id in groups:
        assert len(await stage.log(group_id)) > 3

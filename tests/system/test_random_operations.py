"""A hundred things that people do at random: all end with the same verified view, and the relay has read nothing.

`SEEDS="7 8 9"` in the environment goes through other seeds, `STEPS=1000` does more things. With odd seeds the group
shares its history with newcomers, with even ones it doesn't.
"""

import base64
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from orbital_client import Client
from tests.relays import RunningRelay, media_dir_of, running_relay
from tests.system.operations import World

pytestmark = pytest.mark.timeout(600)

SEEDS = [int(seed) for seed in os.environ.get("SEEDS", "1 2").split()]
STEPS = int(os.environ.get("STEPS", "100"))


@pytest.mark.parametrize("seed", SEEDS)
async def test_everybody_sees_the_same_and_the_relay_nothing(
    seed: int, migrated_database: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "orbital_client")
    async with running_relay(migrated_database, log_level="debug") as relay:
        world = World(relay, tmp_path, seed, is_shared=seed % 2 == 1)
        try:
            await world.begin()
            for _ in range(STEPS):
                await world.step()
            await world.check()
        except BaseException as error:
            error.add_note(f"seed {seed}, after: {' '.join(world.done)}")
            raise
        finally:
            await world.end()
        stored = await everything_of(migrated_database, relay)
        assert found_in(stored + caplog.text.encode(), world) == []
        assert b"carl" in stored  # a username is no secret: this search finds what is there
        await post_unsealed(world, relay)
        stored = await everything_of(migrated_database, relay)
        assert found_in(stored, world) == ["not sealed at all"]


async def everything_of(dsn: str, relay: RunningRelay) -> bytes:
    """Every row of every table, as text and in bytes, every stored file, everything logged."""
    parts: list[bytes] = [line.encode() for line in relay.raw_log]
    connection = await asyncpg.connect(dsn)
    try:
        tables = await connection.fetch(
            "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables"
            " WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
        )
        for (table,) in tables:
            for row in await connection.fetch(f"SELECT * FROM {table}"):  # noqa: S608  a name that the database gave
                for value in row.values():
                    parts.append(bytes(value) if isinstance(value, bytes) else str(value).encode())
    finally:
        await connection.close()
    parts += [path.read_bytes() for path in media_dir_of(dsn).rglob("*") if path.is_file()]
    return b"\n".join(parts)


def forms(secret: bytes) -> Iterator[bytes]:
    """How a secret could stand somewhere."""
    yield secret
    yield secret.hex().encode()
    yield base64.b64encode(secret).rstrip(b"=")[:-1]
    yield base64.urlsafe_b64encode(secret).rstrip(b"=")[:-1]


def found_in(haystack: bytes, world: World) -> list[str]:
    """The secrets of this world that stand there in any form."""
    assert len(world.secrets) > STEPS / 4 and len(world.raw_secrets) > 10
    named = {text.encode(): text for text in world.secrets} | {raw: raw.hex() for raw in world.raw_secrets}
    return sorted(name for secret, name in named.items() if any(form in haystack for form in forms(secret)))


async def post_unsealed(world: World, relay: RunningRelay) -> None:
    """Post something as no client that encrypts would."""
    text = "not sealed at all"
    world.secrets.add(text)
    async with Client(relay.url) as client:
        await client.login("ann", world.people["ann"].passphrase)
        group = client.group(world.group_id)
        await group.ready()
        await group.wire.post(title=text.encode(), body=text.encode(), key_epoch=group._replica.log.key_epoch)

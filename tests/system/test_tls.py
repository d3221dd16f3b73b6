"""A relay that does TLS itself."""

import asyncio
import ssl
from datetime import timedelta
from pathlib import Path

import pytest

from orbital_protocol import frames
from tests.certificates import certificate
from tests.relays import running_relay
from tests.talk import talking

CUT_AFTER_S = 20  # twice what the relay gives a handshake; without a limit of its own it would be 60


@pytest.mark.timeout(60)
async def test_who_never_says_hello_is_cut_and_others_talk(migrated_database: str, tmp_path: Path) -> None:
    cert, key = certificate(tmp_path, timedelta(days=1))
    trusting = ssl.create_default_context(cafile=cert)
    trusting.check_hostname = False
    async with running_relay(migrated_database, tls_cert=cert, tls_key=key) as relay:
        reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
        async with talking(f"wss://127.0.0.1:{relay.port}", ssl=trusting) as talk:
            await talk.ask(frames.Ping)
        async with asyncio.timeout(CUT_AFTER_S):
            assert await reader.read() == b""
        writer.transport.abort()

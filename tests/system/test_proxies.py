"""The proxies of deploy/proxy in front of real relays: nginx and Caddy, with the files that are there."""

import asyncio
import os
import shutil
import signal
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from orbital_protocol import frames
from tests.certificates import certificate
from tests.files import File, download, upload
from tests.people import found_group
from tests.ports import free_ports
from tests.relays import RunningRelay, running_relay
from tests.stage import Stage
from tests.talk import post_thread, subscribe, talking

pytestmark = [pytest.mark.timeout(120), pytest.mark.asyncio(loop_scope="module")]

PROXY = Path(__file__).parents[2] / "deploy" / "proxy"
LIMIT_S = 30
TRUSTED: dict[str, Any] = {"trusted_proxies": "127.0.0.1/32"}
ANN, BOB = "127.0.0.2", "127.0.0.3"  # addresses that clients connect from
SPOOFED = "203.0.113.9"
NAME = "relay.example"  # the certificate's


def replaced(text: str, changes: Mapping[str, str]) -> str:
    """The text, in which each of these was there."""
    for ours, theirs in changes.items():
        assert ours in text, ours
        text = text.replace(ours, theirs)
    return text


def nginx(folder: Path, port: int, cert: Path, key: Path, relays: Sequence[int]) -> list[str]:
    """Write the configuration, with ports and files of the test's and in more of a hurry; the command."""
    servers = "\n".join(f"server 127.0.0.1:{one};" for one in relays)
    site = replaced(
        (PROXY / "nginx.conf").read_text(),
        {
            "server 127.0.0.1:8765;": servers,
            "listen 443 ssl;": f"listen 127.0.0.1:{port} ssl;",
            "listen [::]:443 ssl;": "",
            "/etc/letsencrypt/live/chat.example.org/fullchain.pem": str(cert),
            "/etc/letsencrypt/live/chat.example.org/privkey.pem": str(key),
            "120s": "2s",
        },
    )
    (folder / "site.conf").write_text(site)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    places = " ".join(f"{kind}_temp_path {folder / kind};" for kind in kinds)
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder / 'pid'}; error_log stderr; events {{}}"
        f" http {{ access_log off; {places} include {folder / 'site.conf'}; }}"
    )
    return ["nginx", "-p", str(folder), "-e", "stderr", "-c", str(folder / "nginx.conf")]


def caddy(folder: Path, port: int, cert: Path, key: Path, relays: Sequence[int]) -> list[str]:
    """The same for Caddy, which is given a certificate instead of getting one."""
    site = replaced(
        (PROXY / "Caddyfile").read_text(),
        {"chat.example.org} {": f"chat.example.org}} {{\n\tbind 127.0.0.1\n\ttls {cert} {key}"},
    )
    (folder / "Caddyfile").write_text("{\n\tadmin off\n\tauto_https disable_redirects\n}\n" + site)
    given = {"ORBITAL_HOST": f"{NAME}:{port}", "ORBITAL_UPSTREAM": " ".join(f"127.0.0.1:{one}" for one in relays)}
    variables = [f"{name}={value}" for name, value in given.items()]
    return ["env", *variables, "caddy", "run", "--adapter", "caddyfile", "--config", str(folder / "Caddyfile")]


Program = Callable[[Path, int, Path, Path, Sequence[int]], list[str]]


@pytest.fixture(params=[nginx, caddy], ids=lambda program: program.__name__)
def program(request: pytest.FixtureRequest) -> Program:
    made: Program = request.param
    if shutil.which(request.param.__name__) is None:
        name = request.param.__name__
        pytest.skip(f"{name} is not installed here (apt-get install {'nginx-light' if name == 'nginx' else name})")
    return made


@dataclass(frozen=True)
class Proxy:
    """A running proxy."""

    port: int
    trusting: ssl.SSLContext

    def talking(self, token: str | None, address: str, **options: Any) -> Any:
        """Talk to a relay behind it, from this address."""
        where: dict[str, Any] = {"host": "127.0.0.1", "port": self.port, "local_addr": (address, 0)}
        return talking(f"wss://{NAME}:{self.port}", token, ssl=self.trusting, **where, **options)


@asynccontextmanager
async def in_front_of(program: Program, folder: Path, *relays: RunningRelay) -> AsyncIterator[Proxy]:
    """A proxy in front of relays. What it printed is shown where it doesn't start."""
    cert, key = certificate(folder, timedelta(days=1), elliptic=True)
    trusting = ssl.create_default_context(cafile=cert)
    trusting.check_hostname = False
    [port] = free_ports(1)
    with (folder / "log").open("w") as log:
        process = await asyncio.create_subprocess_exec(
            *program(folder, port, cert, key, [relay.port for relay in relays]),
            env={**os.environ, "HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        async with asyncio.timeout(LIMIT_S):
            while not await answers(port):
                assert process.returncode is None, (folder / "log").read_text()
                await asyncio.sleep(0.02)
        yield Proxy(port, trusting)
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(LIMIT_S):
            await process.wait()


async def answers(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.transport.abort()
    return True


async def test_the_relay_sees_the_address_that_the_proxy_saw(stage: Stage, tmp_path: Path, program: Program) -> None:
    async with (
        running_relay(stage.dsn, connections_per_address=1, **TRUSTED) as relay,
        in_front_of(program, tmp_path, relay) as proxy,
        proxy.talking(None, ANN, additional_headers={"X-Forwarded-For": SPOOFED}),
    ):
        await relay.logged("connection.opened", address=ANN)
        with pytest.raises(InvalidStatus) as refused:
            async with proxy.talking(None, ANN, additional_headers={"X-Forwarded-For": "198.51.100.7"}):
                pass
        assert refused.value.response.status_code == 429
        async with proxy.talking(None, BOB):
            await relay.logged("connection.opened", address=BOB)


async def test_what_is_large_and_what_is_quiet_passes(stage: Stage, tmp_path: Path, program: Program) -> None:
    [ann] = await stage.people(1)
    group_id = await found_group(stage.sql, ann)
    token = await stage.token(ann)
    async with (
        running_relay(stage.dsn, heartbeat_ms=500, **TRUSTED) as relay,
        in_front_of(program, tmp_path, relay) as proxy,
        proxy.talking(token, BOB) as quiet,
        proxy.talking(token, ANN) as talk,
    ):
        await subscribe(quiet, group_id)
        thread_id, posted = await post_thread(talk, group_id)
        await quiet.has(posted.seq, group_id)
        file = File(group_id, thread_id, os.urandom(3_000_000))
        committed = await upload(talk, file)
        assert await download(talk, file.media_id) == file.data
        await quiet.has(committed.seq, group_id)
        # Longer than nginx waits here for a byte, which is a time that has to pass. The relay's pings are bytes.
        await asyncio.sleep(3)
        assert not quiet.is_closed.is_set()
        await quiet.ask(frames.Ping)
        answer: frames.PostOk = (await post_thread(talk, group_id))[1]
        await quiet.has(answer.seq, group_id)


async def test_one_relay_goes_and_the_other_serves(stage: Stage, tmp_path: Path, program: Program) -> None:
    async with (
        running_relay(stage.dsn, **TRUSTED) as one,
        running_relay(stage.dsn, **TRUSTED) as other,
        in_front_of(program, tmp_path, one, other) as proxy,
        proxy.talking(None, ANN),
        proxy.talking(None, ANN),
    ):
        await one.logged("connection.opened", address=ANN)
        await other.logged("connection.opened", address=ANN)
        one.signal(signal.SIGKILL)
        await one.process.wait()
        for _ in range(8):
            async with proxy.talking(None, BOB) as talk:
                await talk.ask(frames.Ping)


async def test_who_is_no_websocket_is_told_so(stage: Stage, tmp_path: Path, program: Program) -> None:
    async with running_relay(stage.dsn, **TRUSTED) as relay, in_front_of(program, tmp_path, relay) as proxy:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", proxy.port, ssl=proxy.trusting, server_hostname=NAME
        )
        writer.write(f"GET / HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n".encode())
        async with asyncio.timeout(LIMIT_S):
            head = await reader.readline()
        writer.transport.abort()
        assert head.split()[1] == b"426"

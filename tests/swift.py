"""An S3 service for tests: OpenStack's Swift with its s3api, which checks signatures, expiry and ranges.

async with running_swift() as s3:
    bucket = await s3.make_bucket()
    relay_here(dsn, **s3.settings, s3_bucket=bucket)

Five processes in a group of their own: one that holds the group together, and Swift's four servers. They listen on the
loopback address, keep everything in a temporary directory, and end when the pipe from this process does, however this
process ends.
"""

import asyncio
import contextlib
import os
import pwd
import secrets
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from tests.ports import free_ports

START_LIMIT_S = 30
STOP_LIMIT_S = 10
ACCESS_KEY: Final = "test:orbital"
REGION: Final = "us-east-1"
LISTING: Final = 5
"""Objects on a page of a listing, where Amazon's have a thousand: so that tests turn pages."""

_LAYERS: Final = ("account", "container", "object")

_COMMON = """
[DEFAULT]
swift_dir = {directory}
devices = {directory}/devices
bind_ip = 127.0.0.1
bind_port = {port}
user = {user}
workers = 0
mount_check = false
fallocate_reserve = 0
log_address = /nonexistent
log_level = ERROR
"""

_LAYER = """
[pipeline:main]
pipeline = {layer}-server

[app:{layer}-server]
use = egg:swift#{layer}
"""

_PROXY = """
[pipeline:main]
pipeline = catch_errors gatekeeper listing_formats bulk s3api tempauth slo proxy-server

[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
# Whoever was frozen is as good as before once it goes on.
error_suppression_limit = 1000000

[filter:catch_errors]
use = egg:swift#catch_errors

[filter:gatekeeper]
use = egg:swift#gatekeeper

[filter:listing_formats]
use = egg:swift#listing_formats

[filter:bulk]
use = egg:swift#bulk

[filter:s3api]
use = egg:swift#s3api
location = {region}
max_bucket_listing = {listing}

[filter:tempauth]
use = egg:swift#tempauth
user_{user_of_key} = {secret} .admin

[filter:slo]
use = egg:swift#slo
"""


class Swift:
    """A running service."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, secret: str) -> None:
        self.endpoint = f"http://127.0.0.1:{port}"
        self.secret = secret
        self._process = process
        import aioboto3  # noqa: PLC0415  a third of a second that tests without files need not wait

        self._session: Any = aioboto3.Session()

    @property
    def settings(self) -> dict[str, Any]:
        """A relay's settings, but for `s3_bucket`."""
        return {
            "media_store": "s3",
            "s3_endpoint": self.endpoint,
            "s3_region": REGION,
            "s3_access_key": ACCESS_KEY,
            "s3_secret_key": self.secret,
        }

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Any]:
        """The AWS SDK's client, for looking at what a store did, and for doing what it would not."""
        async with self._session.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=self.secret,
        ) as client:
            yield client

    async def make_bucket(self, name: str | None = None) -> str:
        """Make a bucket, of a name that no other has, if none is given; return its name."""
        name = name or f"orbital-{secrets.token_hex(6)}"
        async with self.client() as client:
            await client.create_bucket(Bucket=name)
        return name

    async def objects(self, bucket: str) -> dict[str, int]:
        """What is in a bucket: names and sizes."""
        async with self.client() as client:
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
            return {found["Key"]: found["Size"] async for page in pages for found in page.get("Contents", ())}

    async def uploads(self, bucket: str) -> list[str]:
        """The names of a bucket's unfinished multipart uploads."""
        async with self.client() as client:
            pages = client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket)
            return [found["Key"] async for page in pages for found in page.get("Uploads", ())]

    def freeze(self) -> None:
        """Stop its servers in their tracks: connections stay open, and nothing answers."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let them go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        leader = self._process.pid  # never stopped itself: it hears when this process ends
        for server in Path(f"/proc/{leader}/task/{leader}/children").read_text().split():
            os.kill(int(server), number)


@asynccontextmanager
async def running_swift() -> AsyncIterator[Swift]:
    """A service without buckets. What it printed is shown if it can't start."""
    with tempfile.TemporaryDirectory(prefix="orbital-test-swift-") as temporary:
        directory = Path(temporary)
        ports = free_ports(len(_LAYERS) + 1)
        secret = secrets.token_urlsafe(24)
        _configure(directory, ports, secret)
        with (directory / "log").open("w") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "tests.swift",
                temporary,
                *map(str, ports),
                stdin=asyncio.subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        swift = Swift(process, ports[-1], secret)
        try:
            await _listening(process, ports, directory / "log")
            yield swift
        finally:
            await _end(process)


def _configure(directory: Path, ports: list[int], secret: str) -> None:
    (directory / "devices" / "disk").mkdir(parents=True)
    (directory / "swift.conf").write_text(
        "[swift-hash]\nswift_hash_path_suffix = test\n[storage-policy:0]\nname = default\ndefault = yes\n"
    )
    user_of_key = ACCESS_KEY.replace(":", "_")
    for layer, port in zip((*_LAYERS, "proxy"), ports, strict=True):
        values: Mapping[str, object] = {
            "directory": directory,
            "port": port,
            "user": pwd.getpwuid(os.getuid()).pw_name,
            "layer": layer,
            "region": REGION,
            "listing": LISTING,
            "user_of_key": user_of_key,
            "secret": secret,
        }
        text = _COMMON + (_PROXY if layer == "proxy" else _LAYER)
        (directory / f"{layer}.conf").write_text(text.format_map(values))


async def _listening(process: asyncio.subprocess.Process, ports: list[int], log: Path) -> None:
    """Wait until all servers take connections."""
    try:
        async with asyncio.timeout(START_LIMIT_S):
            for port in ports:
                while not await _answers(port):
                    if process.returncode is not None:
                        raise RuntimeError(f"Swift has ended: {log.read_text()}")
                    await asyncio.sleep(0.02)
    except TimeoutError:
        raise RuntimeError(f"Swift does not start: {log.read_text()}") from None


async def _answers(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    await writer.wait_closed()
    return True


async def _end(process: asyncio.subprocess.Process) -> None:
    """Close the pipe, and wait; whoever does not go is killed."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        async with asyncio.timeout(STOP_LIMIT_S):
            await process.wait()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


# ── the service's processes ─────────────────────────────────────────────────────────────────────────────────────────


def _serve(directory: Path, ports: list[int]) -> None:
    """Run Swift's servers until nobody holds the other end of our stdin, or one of them ends."""
    from swift.common.ring import RingBuilder  # type: ignore[import-untyped] # noqa: PLC0415
    from swift.common.wsgi import run_wsgi  # type: ignore[import-untyped] # noqa: PLC0415

    for layer, port in zip(_LAYERS, ports, strict=False):
        ring = RingBuilder(part_power=0, replicas=1, min_part_hours=0)
        ring.add_dev({"region": 1, "zone": 1, "weight": 1, "ip": "127.0.0.1", "port": port, "device": "disk"})
        ring.rebalance()
        ring.get_ring().save(str(directory / f"{layer}.ring.gz"))
    os.setsid = lambda: None  # Swift's servers would leave our group
    servers: list[int] = []
    signal.signal(signal.SIGCHLD, _exit_if_one_has)
    try:
        for layer in (*_LAYERS, "proxy"):
            servers.append(os.fork())
            if not servers[-1]:
                servers.clear()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                run_wsgi(str(directory / f"{layer}.conf"), f"{layer}-server", verbose=False)
        sys.stdin.read()
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for server in servers:
            os.kill(server, signal.SIGKILL)
            os.waitpid(server, 0)


def _exit_if_one_has(*_: object) -> None:
    if os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        sys.exit("one of Swift's servers has ended")


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), [int(port) for port in sys.argv[2:]])

"""Settings that are changed while a relay runs: what it takes over, what it refuses, and what it says of it."""

import asyncio
import base64
import os
import pty
import signal
import socket
import ssl
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from orbital_protocol import frames
from orbital_protocol.codes import ErrorCode
from tests.certificates import certificate
from tests.people import found_group
from tests.raw_socket import handshake
from tests.relays import RELAY, TOKEN_KEY, RunningRelay, running_relay
from tests.stage import Stage
from tests.system.crowd import A_WHILE, crowd_on, good, unharmed
from tests.talk import Refused, Talk, post_thread, talking

pytestmark = [pytest.mark.timeout(60), pytest.mark.asyncio(loop_scope="module")]

LIMIT_S = 15
HERE = "https://chat.example.org"
OLD_KEY = TOKEN_KEY
NEW_KEY = "new:" + base64.urlsafe_b64encode(bytes(range(1, 33))).decode().rstrip("=")


class Written:
    """A relay's configuration file, and the relay."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reloads = 0

    def write(self, text: str) -> "Written":
        self.path.write_text(text)
        return self

    async def reload(self, relay: RunningRelay, text: str | None = None) -> dict[str, Any]:
        """Write the file anew and let the relay read it: the line that says what was taken over."""
        if text is not None:
            self.write(text)
        self._reloads += 1
        relay.signal(signal.SIGHUP)
        return await said(relay, "config.reloaded", self._reloads)


async def said(relay: RunningRelay, event: str, count: int = 1) -> dict[str, Any]:
    """Wait until the relay has logged so many of these events; the last of them."""

    def lines() -> list[dict[str, Any]]:
        return [line for line in relay.log if line["event"] == event]

    async with asyncio.timeout(LIMIT_S), relay.changed:
        await relay.changed.wait_for(lambda: len(lines()) >= count)
    return lines()[count - 1]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    return Written(tmp_path / "orbital.toml").write("")


def hello(talk: Talk) -> frames.Hello:
    [greeting] = [push for push in talk.pushes if isinstance(push, frames.Hello)]
    return greeting


async def test_a_connection_keeps_the_limits_that_it_was_told(stage: Stage, written: Written) -> None:
    [ann] = await stage.people(1)
    group_id = await found_group(stage.sql, ann)
    async with (
        running_relay(stage.dsn, config=written.path) as relay,
        talking(relay.url, await stage.token(ann)) as before,
    ):
        line = await written.reload(relay, "max_title_bytes = 64\nmax_body_bytes = 100\n")
        assert (line["changed"], line["pending"]) == (["max_body_bytes", "max_title_bytes"], [])
        await post_thread(before, group_id)
        async with talking(relay.url, await stage.token(ann)) as after:
            assert (hello(before).limits.max_body_bytes, hello(after).limits.max_body_bytes) == (65_565, 100)
            with pytest.raises(Refused) as refused:
                await post_thread(after, group_id)
            assert (refused.value.code, refused.value.error.details) == (
                ErrorCode.TOO_LARGE,
                frames.ErrorDetails(field="encrypted_body", limit=100),
            )
        line = await written.reload(relay, "")
        assert line["changed"] == ["max_body_bytes", "max_title_bytes"]
        async with talking(relay.url, await stage.token(ann)) as after:
            await post_thread(after, group_id)


async def test_a_reload_is_no_fresh_allowance(stage: Stage, written: Written) -> None:
    [ann] = await stage.people(1)
    written.write("invite_attempts_per_minute = 2\n")

    async def guessed(talk: Talk) -> str:
        with pytest.raises(Refused) as refused:
            await talk.ask(frames.InviteOpen, invite_code="guessing")
        return refused.value.code

    async with (
        running_relay(stage.dsn, config=written.path) as relay,
        talking(relay.url, await stage.token(ann)) as before,
    ):
        wrong = await guessed(before)
        assert wrong != ErrorCode.RATE_LIMITED
        await written.reload(relay, "invite_attempts_per_minute = 1\n")
        async with talking(relay.url, await stage.token(ann)) as after:
            assert [await guessed(before), await guessed(after)] == [wrong, ErrorCode.RATE_LIMITED]


async def test_registration_is_closed_for_whoever_comes(stage: Stage, written: Written) -> None:
    async with running_relay(stage.dsn, config=written.path) as relay:
        line = await written.reload(relay, 'registration = "closed"\n')
        assert line["changed"] == ["registration"]
        async with talking(relay.url) as talk:
            assert hello(talk).registration == "closed"


async def test_an_origin_that_was_let_in_is_refused_at_once(stage: Stage, written: Written) -> None:
    written.write(f'origins = ["{HERE}"]\n')
    async with running_relay(stage.dsn, config=written.path) as relay:
        assert await status_of(relay) == 101
        await written.reload(relay, "")
        assert await status_of(relay) == 403
        await written.reload(relay, f'origins = ["{HERE}"]\nconnections_per_address = 1\nconnections_max = 7\n')
        assert await relay.metric("orbital_connections_max") == 7
        async with talking(relay.url):
            assert await status_of(relay) == 429


async def status_of(relay: RunningRelay) -> int:
    """The HTTP status that a browser's handshake gets."""
    status, _, writer = await handshake(relay.port, headers=[f"Origin: {HERE}"])
    writer.transport.abort()
    return status


async def test_the_log_says_more_and_less(stage: Stage, written: Written) -> None:
    async with running_relay(stage.dsn, config=written.path) as relay:
        await relay.metric("orbital_build_info")
        assert not [line for line in relay.log if line["event"] == "operators.request"]
        await written.reload(relay, 'log_level = "debug"\n')
        await relay.metric("orbital_build_info")
        line = await said(relay, "operators.request")
        assert line["relay_id"] == relay.log[0]["relay_id"]
        await written.reload(relay, "")
        await relay.metric("orbital_build_info")
        await written.reload(relay)
        assert len([line for line in relay.log if line["event"] == "operators.request"]) == 1


async def test_what_takes_a_restart_is_named_and_left(stage: Stage, written: Written) -> None:
    async with running_relay(stage.dsn, config=written.path) as relay:
        text = "lanes = 3\nmedia_window = 21\npage_limit = 7\n"
        for changed in (["page_limit"], []):
            line = await written.reload(relay, text)
            assert (line["changed"], line["pending"]) == (changed, ["lanes", "media_window"])
        async with talking(relay.url) as talk:
            assert (hello(talk).limits.media_window, hello(talk).limits.page_limit) == (20, 7)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("page_limit = 1001\n", "page_limit = 1001 ({file}): must be a whole number from 1 to 1000"),
        ("page_limits = 1\n", "page_limits is not a setting; did you mean page_limit? ({file})"),
        ("page_limit = \n", "config = {file}: must be TOML: Invalid value (at line 1, column 14)"),
        ('registration = "code"\n', "registration_code = not set: must be given where registration = code"),
        (
            "max_frame_bytes = 200000\nmax_backup_bytes = 100000\nmedia_chunk_bytes = 65536\n",
            "media_chunk_bytes = 524288: must leave 4096 bytes of max_frame_bytes = 200000",
        ),
    ],
    ids=["value", "key", "syntax", "relation", "with what takes a restart"],
)
async def test_what_cant_be_used_is_refused_whole(stage: Stage, written: Written, text: str, message: str) -> None:
    async with running_relay(stage.dsn, config=written.path) as relay:
        written.write(text + 'log_level = "debug"\n')
        relay.signal(signal.SIGHUP)
        line = await said(relay, "config.refused")
        assert line["message"] == message.format(file=written.path)
        async with talking(relay.url) as talk:
            assert hello(talk).limits.page_limit == 200
        line = await written.reload(relay, "page_limit = 9\n")
        assert (line["changed"], line["pending"]) == (["page_limit"], [])


def closed(relay: RunningRelay) -> int:
    return len([line for line in relay.log if line["event"] == "connection.closed"])


async def test_reloads_under_load_cut_nobody_and_lose_nothing(stage: Stage, written: Written) -> None:
    async with (
        running_relay(stage.dsn, config=written.path) as relay,
        crowd_on(stage, lambda: [relay.url], groups=2) as crowd,
    ):
        await crowd.acknowledged(A_WHILE)
        before = closed(relay)  # of those who made the groups
        for number in range(20):
            line = await written.reload(relay, f"page_limit = {100 + number}\nmax_in_flight = {65 + number}\n")
            assert line["changed"] == ["max_in_flight", "page_limit"]
            await crowd.progress()
        assert closed(relay) == before
        good(await crowd.rest())
        unharmed(relay)


# ── keys ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_keys_are_changed_on_two_relays_and_nobody_is_logged_out(
    stage: Stage, written: Written, tmp_path: Path
) -> None:
    """As docs/operations.md says: the new key behind the old on every relay, then before it, then alone."""
    [ann] = await stage.people(1)
    keys = tmp_path / "token_keys"
    keys.write_text(OLD_KEY)
    given: dict[str, Any] = {"config": written.path, "token_keys": "", "token_keys_file": keys}
    async with running_relay(stage.dsn, **given) as one, running_relay(stage.dsn, **given) as other:
        counts = {one.port: 0, other.port: 0}

        async def every_relay_reads(*wanted: str) -> None:
            keys.write_text("\n".join(wanted))
            for relay in (one, other):
                relay.signal(signal.SIGHUP)
                counts[relay.port] += 1
                line = await said(relay, "config.reloaded", counts[relay.port])
                assert line["changed"] == ["token_keys"]

        old = await stage.token(ann)
        async with talking(one.url, old) as standing:
            await every_relay_reads(OLD_KEY, NEW_KEY)
            await every_relay_reads(NEW_KEY, OLD_KEY)
            async with talking(other.url, old):
                pass  # what the old key has signed is still good
            await every_relay_reads(NEW_KEY)
            await standing.ask(frames.Ping)
            for relay in (one, other):
                with pytest.raises(Refused) as refused:
                    async with talking(relay.url, old):
                        pass
                assert refused.value.code == ErrorCode.UNAUTHENTICATED
        # A key that the others don't sign with is refused, and the ones that are known stay.
        keys.write_text(OLD_KEY)
        one.signal(signal.SIGHUP)
        line = await said(one, "config.refused")
        assert line["message"].startswith("token_keys: the relays of this database sign with another key")
    await stage.sql.execute("DELETE FROM relay_facts WHERE name = 'token_key'")


# ── TLS ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def shown(port: int, name: str | None, version: ssl.TLSVersion) -> bytes:
    """The certificate that a newcomer is shown, in DER."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.maximum_version = version
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as raw,
        context.wrap_socket(raw, server_hostname=name) as secure,
    ):
        found = secure.getpeercert(binary_form=True)
    assert found is not None
    return found


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("name", [None, "relay.example"])
async def test_a_renewed_certificate_is_shown_and_nobody_is_cut(
    stage: Stage, written: Written, tmp_path: Path, name: str | None, version: ssl.TLSVersion
) -> None:
    cert, key = certificate(tmp_path, timedelta(days=1))
    trusting = ssl.create_default_context(cafile=cert)
    trusting.check_hostname = False

    def der() -> bytes:
        return ssl.PEM_cert_to_DER_cert(cert.read_text())

    async def seen(relay: RunningRelay) -> bytes:
        return await asyncio.to_thread(shown, relay.port, name, version)

    async with (
        running_relay(stage.dsn, config=written.path, tls_cert=cert, tls_key=key) as relay,
        talking(f"wss://127.0.0.1:{relay.port}", ssl=trusting) as standing,
    ):
        assert await seen(relay) == der()
        for elliptic in (True, False):
            certificate(tmp_path, timedelta(days=90), elliptic=elliptic)
            line = await written.reload(relay)
            assert line["changed"] == ["tls_cert"]
            assert await seen(relay) == der()
        assert await relay.metric("orbital_tls_certificate_expires_timestamp_seconds") > time.time() + 80 * 86_400
        good = der()
        key.write_text("no key\n")
        relay.signal(signal.SIGHUP)
        line = await said(relay, "config.refused")
        assert line["message"].startswith(f"tls_cert = {cert}, tls_key = {key}: must be a certificate chain")
        assert await seen(relay) == good
        await standing.ask(frames.Ping)


async def test_a_port_without_tls_stays_without(stage: Stage, written: Written, tmp_path: Path) -> None:
    cert, key = certificate(tmp_path, timedelta(days=1))
    async with running_relay(stage.dsn, config=written.path) as relay:
        line = await written.reload(relay, f'tls_cert = "{cert}"\ntls_key = "{key}"\npage_limit = 8\n')
        assert (line["changed"], line["pending"]) == (["page_limit"], ["tls_cert", "tls_key"])
        async with talking(relay.url) as talk:
            assert hello(talk).limits.page_limit == 8


# ── who supervises it ───────────────────────────────────────────────────────────────────────────────────────────────


class Supervisor:
    """What systemd is to a service of Type=notify: a socket that states are sent to."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address)
        self._socket.setblocking(False)

    async def hears(self) -> bytes:
        async with asyncio.timeout(LIMIT_S):
            return await asyncio.get_running_loop().sock_recv(self._socket, 4096)

    def close(self) -> None:
        self._socket.close()


@pytest.mark.parametrize("named", [True, False], ids=["a file", "a name without a file"])
async def test_a_supervisor_hears_when_it_is_ready_and_when_it_stops(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    address = str(tmp_path / "notify") if named else f"@{tmp_path.name}-{os.getpid()}"
    supervisor = Supervisor(address.replace("@", "\0"))
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    try:
        async with running_relay(stage.dsn) as relay:
            assert await supervisor.hears() == b"READY=1"
            relay.signal(signal.SIGTERM)
            assert await supervisor.hears() == b"STOPPING=1"
    finally:
        supervisor.close()


async def test_a_supervisor_that_is_gone_holds_up_nothing(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    async with running_relay(stage.dsn) as relay, talking(relay.url):
        pass


async def test_one_that_stands_still_can_be_made_to_say_where(stage: Stage) -> None:
    async with running_relay(stage.dsn) as relay:
        relay.signal(signal.SIGABRT)
        async with asyncio.timeout(LIMIT_S):
            assert await relay.process.wait() == -signal.SIGABRT
    printed = "".join(relay.raw_log)
    assert "Fatal Python error: Aborted" in printed
    assert "in _serve" in printed or "in serve" in printed


async def test_it_stops_when_its_terminal_goes(stage: Stage, written: Written) -> None:
    """At a terminal it reads its settings again as elsewhere; once that is closed, nobody could stop it any more."""
    terminal, theirs = pty.openpty()
    program = ("setsid", "--ctty", *RELAY)  # which becomes the relay, in a session of its own
    async with running_relay(stage.dsn, program=program, stdin=theirs, config=written.path) as relay:
        os.close(theirs)
        await written.reload(relay, "page_limit = 9\n")
        os.close(terminal)
        async with asyncio.timeout(LIMIT_S):
            assert await relay.process.wait() == 0
        await relay.logged("relay.stopped")

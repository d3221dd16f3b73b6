"""What is taken over of settings that have changed, and what becomes of a reload that fails."""

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from orbital_relay import config
from orbital_relay.config import ConfigError, Settings
from orbital_relay.errors import StartupError, Unavailable
from orbital_relay.reloading import LIVE, Reloader

LIMIT_S = 5


@dataclass
class Scene:
    """A reloader, the settings that are written now, and those that were taken over."""

    running: Settings
    written: Settings | ConfigError
    fails: Exception | None = None
    further: Collection[str] = ()
    applied: list[Settings] = field(default_factory=list)
    asked: asyncio.Event = field(default_factory=asyncio.Event)

    def read(self) -> Settings:
        if isinstance(self.written, ConfigError):
            raise self.written
        return self.written

    async def apply(self, settings: Settings) -> Collection[str]:
        if self.fails is not None:
            raise self.fails
        self.applied.append(settings)
        return self.further

    async def reload(self) -> dict[str, Any]:
        """Ask for a reload: what is logged at its end."""
        with capture_logs() as lines:
            self.asked.set()
            async with asyncio.timeout(LIMIT_S):
                while not any(line["event"] in ("config.reloaded", "config.refused") for line in lines):
                    await asyncio.sleep(0)
        return dict(lines[-1])


@asynccontextmanager
async def running(scene: Scene) -> AsyncIterator[Scene]:
    task = asyncio.create_task(Reloader(scene.running, scene.read, scene.apply).run(scene.asked))
    try:
        yield scene
        assert not task.done()
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def test_what_is_taken_over_are_settings() -> None:
    assert Settings.model_fields.keys() >= LIVE


async def test_what_may_change_changes_and_the_rest_stays() -> None:
    async with running(Scene(Settings(), Settings(page_limit=7, lanes=3), further=["token_keys"])) as scene:
        line = await scene.reload()
        assert (line["changed"], line["pending"]) == (["page_limit", "token_keys"], ["lanes"])
        [settings] = scene.applied
        assert (settings.page_limit, settings.limits.page_limit, settings.lanes) == (7, 7, 2)
        scene.written = Settings(page_limit=8)
        line = await scene.reload()
        assert (line["changed"], line["pending"]) == (["page_limit", "token_keys"], [])


@pytest.mark.parametrize(
    ("fails", "message"),
    [
        (StartupError("tls_cert: no"), "tls_cert: no"),
        (Unavailable("The database is away."), "The database is away."),
        (KeyError("secret"), "a defect"),
    ],
)
async def test_after_a_reload_that_fails_the_next_one_is_as_if_it_had_not_been(fails: Exception, message: str) -> None:
    async with running(Scene(Settings(), Settings(page_limit=7), fails=fails)) as scene:
        line = await scene.reload()
        assert (line["event"], line["message"]) == ("config.refused", message)
        scene.fails = None
        line = await scene.reload()
        assert (line["event"], line["changed"]) == ("config.reloaded", ["page_limit"])


async def test_each_thing_that_is_wrong_is_a_line() -> None:
    async with running(Scene(Settings(), ConfigError(["one", "two"]))) as scene:
        with capture_logs() as lines:
            scene.asked.set()
            async with asyncio.timeout(LIMIT_S):
                while len(lines) < 2:
                    await asyncio.sleep(0)
    assert [line["message"] for line in lines] == ["one", "two"]


async def test_what_is_rarely_meant_is_named_again() -> None:
    proxied = Settings(listen_host="192.0.2.1", trusted_proxies=(ip_network("10.0.0.0/8"),))
    async with running(Scene(proxied, Settings(listen_host="192.0.2.1"))) as scene:
        with capture_logs() as lines:
            scene.asked.set()
            async with asyncio.timeout(LIMIT_S):
                while not any(line["event"] == "config.reloaded" for line in lines):
                    await asyncio.sleep(0)
    assert [line["event"] for line in lines] == ["config.warning", "config.reloaded"]


@pytest.mark.parametrize("had", [True, False])
async def test_a_port_goes_on_to_speak_tls_or_not_to(tmp_path: Path, had: bool) -> None:
    pem = tmp_path / "pem"
    pem.touch()
    without, with_tls = Settings(), Settings(tls_cert=pem, tls_key=pem)
    async with running(Scene(*((with_tls, without) if had else (without, with_tls)))) as scene:
        line = await scene.reload()
        assert (line["changed"], line["pending"]) == ([], ["tls_cert", "tls_key"])


def test_where_a_value_came_from_goes_with_it(tmp_path: Path) -> None:
    running = config.load({"page_limit": 5, "lanes": 3}, {})
    file = tmp_path / "orbital.toml"
    file.write_text("page_limit = 6\nlanes = 4\n")
    adopted = config.adopt(running, config.load({}, {}, file), {"page_limit", "knocks_per_hour"})
    shown = {row.key: (row.shown, row.source) for row in config.describe(adopted)}
    assert (shown["page_limit"], shown["lanes"]) == (("6", str(file)), ("3", "command line"))
    assert shown["knocks_per_hour"] == ("20", "default")

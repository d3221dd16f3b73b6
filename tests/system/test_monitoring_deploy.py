"""What deploy/monitoring promises: queries that find something in a real relay's metrics, and alerts that ring."""

import asyncio
import json
import math
import os
import re
import shutil
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from orbital_protocol import frames
from orbital_protocol.codes import ErrorCode
from tests.files import File, download, upload
from tests.people import found_group, new_id
from tests.ports import free_ports
from tests.relays import RunningRelay, running_relay
from tests.stage import Stage
from tests.talk import Refused, Talk, post_thread, reply, subscribe, talking

pytestmark = pytest.mark.timeout(120)

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "deploy" / "monitoring"
RUNBOOK = ROOT / "docs" / "runbook.md"
LIMIT_S = 60

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="Prometheus is not installed here (apt-get install prometheus)"
)


def rules() -> list[Mapping[str, Any]]:
    [group] = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]
    return list(group["rules"])


def charts() -> list[Mapping[str, Any]]:
    return [
        panel for panel in json.loads((MONITORING / "dashboard.json").read_text())["panels"] if panel.get("targets")
    ]


# ── the files ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_dashboard_is_what_its_program_writes(tmp_path: Path) -> None:
    program = tmp_path / "dashboard.py"
    program.write_text((MONITORING / "dashboard.py").read_text())
    subprocess.run([sys.executable, program], check=True, timeout=LIMIT_S)
    written = (MONITORING / "dashboard.json").read_text()
    assert (tmp_path / "dashboard.json").read_text() == written, "run `make docs`"


def test_panels_have_a_place_and_an_id_of_their_own() -> None:
    panels = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for place in (panel["gridPos"] for panel in panels):
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells


def test_every_alert_is_tried_and_the_runbook_says_what_to_do() -> None:
    alerts = {rule["alert"] for rule in rules()}
    tests = yaml.safe_load((MONITORING / "alerts_test.yml").read_text())["tests"]
    tried = [case for test in tests for case in test["alert_rule_test"]]
    ringing = {case["alertname"] for case in tried if case["exp_alerts"]}
    assert ringing == alerts
    for case in tried:
        assert all(alert["exp_labels"]["instance"] == "ill" for alert in case["exp_alerts"])
    headings = set(re.findall(r"^### (Orbital\w+)", RUNBOOK.read_text(), flags=re.MULTILINE))
    assert headings == alerts


@needs_prometheus
@pytest.mark.parametrize("arguments", [("test", "rules", "alerts_test.yml"), ("check", "config", "prometheus.yml")])
def test_prometheus_accepts_the_rules_and_they_ring_when_they_should(arguments: Sequence[str]) -> None:
    ran = subprocess.run(
        ["promtool", *arguments], cwd=MONITORING, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


# ── a real Prometheus that scrapes a real relay ─────────────────────────────────────────────────────────────────────


class Prometheus:
    """A running server."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/api/v1"

    async def get(self, path: str, **parameters: str) -> Any:
        """What the API has to say. Raise OSError where it doesn't answer, or has something against it."""
        return await asyncio.to_thread(self._get, f"{self._url}/{path}?{urllib.parse.urlencode(parameters)}")

    def _get(self, url: str) -> Any:
        with urllib.request.urlopen(url, timeout=LIMIT_S) as answer:  # noqa: S310  a URL of this test's
            return json.load(answer)["data"]

    async def values(self, query: str) -> list[float]:
        """What a query finds now, but for what is no number."""
        found = (await self.get("query", query=query))["result"]
        return [value for value in (float(series["value"][1]) for series in found) if not math.isnan(value)]

    async def alerts(self) -> set[str]:
        """The names of those that ring, or will if it stays so."""
        return {alert["labels"]["alertname"] for alert in (await self.get("alerts"))["alerts"]}


@asynccontextmanager
async def running_prometheus(folder: Path, relay: RunningRelay) -> AsyncIterator[Prometheus]:
    """Prometheus with the configuration of deploy/, for this relay and in more of a hurry."""
    text = (MONITORING / "prometheus.yml").read_text()
    for ours, theirs in (("127.0.0.1:9765", f"127.0.0.1:{relay.operators_port}"), (": 15s", ": 1s")):
        assert ours in text
        text = text.replace(ours, theirs)
    (folder / "prometheus.yml").write_text(text)
    shutil.copy(MONITORING / "alerts.yml", folder)
    [port] = free_ports(1)
    with (folder / "log").open("w") as log:
        process = await asyncio.create_subprocess_exec(
            "prometheus",
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    server = Prometheus(port)
    try:
        async with asyncio.timeout(LIMIT_S):
            while True:
                try:
                    await server.get("status/buildinfo")
                    break
                except OSError:
                    assert process.returncode is None, (folder / "log").read_text()
                    await asyncio.sleep(0.05)
        yield server
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def query_of(target: Mapping[str, Any]) -> str:
    """A chart's query, with what Grafana would put in."""
    return str(target["expr"]).replace("$__rate_interval", "1m").replace("$instance", ".*")


async def keep_busy(talk: Talk, group_id: bytes, thread_id: bytes) -> None:
    """A bit of everything that is measured."""
    while True:
        await talk.ask(frames.GroupList)
        with pytest.raises(Refused):
            await talk.ask(frames.GroupGet, group_id=new_id())
        await asyncio.gather(*(talk.send(reply(talk, group_id, thread_id)) for _ in range(5)))
        file = File(group_id, thread_id, os.urandom(1_000))
        await upload(talk, file)
        await download(talk, file.media_id)


@needs_prometheus
@pytest.mark.asyncio(loop_scope="module")
async def test_every_chart_and_alert_finds_what_it_asks_for_and_a_dead_relay_is_noticed(
    stage: Stage, tmp_path: Path
) -> None:
    [ann] = await stage.people(1)
    group_id = await found_group(stage.sql, ann)
    await stage.sql.execute("UPDATE group_quotas SET max_media_count = 1000000 WHERE group_id = $1", group_id)
    async with (
        running_relay(stage.dsn) as relay,
        running_prometheus(tmp_path, relay) as prometheus,
        talking(relay.url, await stage.token(ann)) as talk,
    ):
        thread_id, _ = await post_thread(talk, group_id)
        await subscribe(talk, group_id)
        busy = asyncio.create_task(keep_busy(talk, group_id, thread_id))
        try:
            targets = [(chart["title"], query_of(target)) for chart in charts() for target in chart["targets"]]
            assert len(targets) > 20
            async with asyncio.timeout(LIMIT_S):
                for title, query in targets:
                    while not (found := await prometheus.values(query)):
                        assert not busy.done(), busy.exception()
                        await asyncio.sleep(0.1)
                    assert all(value >= 0 for value in found), title
        finally:
            busy.cancel()
        known = set(await prometheus.get("label/__name__/values"))
        for rule in rules():
            named = set(re.findall(r"\b(?:orbital|process)_\w+|\bup\b", rule["expr"]))
            assert named
            assert named <= known, rule["alert"]
            for code in re.findall(r'code=~?"([^"]*)"', rule["expr"]):
                assert {*code.split("|")} <= {*ErrorCode}
            assert not await prometheus.values(rule["expr"]), f"{rule['alert']} rings for a relay that is well"
        relay.process.kill()
        async with asyncio.timeout(LIMIT_S):
            while "OrbitalDown" not in await prometheus.alerts():
                await asyncio.sleep(0.1)

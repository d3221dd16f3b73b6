"""What deploy/systemd and deploy/container promise, as far as it shows without systemd or a container engine."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from orbital_relay.config import Settings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
CONTAINER = DEPLOY / "container"
LIMIT_S = 60


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed here")
@pytest.mark.parametrize("unit", ["orbital-relay.service", "orbital-backup.service", "orbital-backup.timer"])
def test_systemd_accepts_the_units(unit: str, tmp_path: Path) -> None:
    """With a program that exists in the place of that in /opt, which is all that differs."""
    for source in (DEPLOY / "systemd").iterdir():
        text = source.read_text()
        (tmp_path / source.name).write_text(text.replace("/opt/orbital/.venv/bin/orbital-relay", "/bin/true"))
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", tmp_path / unit],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    complaints = [line for line in checked.stderr.splitlines() if "orbital" in line]
    assert not complaints


def instructions() -> list[tuple[str, str]]:
    """The Containerfile's, each with what it is given."""
    text = (CONTAINER / "Containerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines)]


def test_the_image_is_made_of_what_is_there_and_sent() -> None:
    sent = (ROOT / ".dockerignore").read_text().splitlines()
    copied = [rest.split() for name, rest in instructions() if name == "COPY" and "--from" not in rest]
    assert copied
    for *sources, _ in copied:
        for source in sources:
            assert (ROOT / source).exists(), source
            assert f"!{source.split('/')[0]}" in sent, source


def test_the_image_has_pinned_packages_and_no_root() -> None:
    installs = re.findall(r"pip install ([^&]*)", " ".join(rest for name, rest in instructions() if name == "RUN"))
    assert len(installs) == 3
    assert all("--require-hashes" in one or "--no-index" in one for one in installs)
    assert [rest for name, rest in instructions() if name in ("USER", "ENTRYPOINT", "CMD")] == [
        "orbital",
        '["orbital-relay"]',
        '["serve"]',
    ]
    [environment] = [rest for name, rest in instructions() if name == "ENV" and "ORBITAL" in rest]
    given = {name.lower() for name in re.findall(r"ORBITAL_(\w+)=", environment)}
    assert given <= Settings.model_fields.keys()


def test_compose_gives_the_relay_settings_that_there_are_and_caddy_its_file() -> None:
    services = yaml.safe_load((CONTAINER / "compose.yaml").read_text())["services"]
    relay, caddy = services["relay"], services["caddy"]
    assert {name.removeprefix("ORBITAL_").lower() for name in relay["environment"]} <= Settings.model_fields.keys()
    assert relay["read_only"] and relay["cap_drop"] == ["ALL"]
    assert (CONTAINER / relay["build"]["context"] / relay["build"]["dockerfile"]).exists()
    caddyfile = CONTAINER / caddy["volumes"][0].split(":")[0]
    assert set(re.findall(r"\{\$(\w+):", caddyfile.read_text())) == caddy["environment"].keys()

"""What deploy/systemd promises: units that systemd accepts."""

import shutil
import subprocess
from pathlib import Path

import pytest

DEPLOY = Path(__file__).parents[2] / "deploy"
LIMIT_S = 60


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed here")
@pytest.mark.parametrize("unit", ["orbital-relay.service", "orbital-backup.service", "orbital-backup.timer"])
def test_systemd_accepts_the_units(unit: str, tmp_path: Path) -> None:
    """With programs that exist in the place of those in /opt, which is all that differs."""
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

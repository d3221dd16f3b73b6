"""`check`, as far as it needs no database: clock, keys, disk, certificate, the store of files."""

import os
import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from orbital_relay.commands import check, probe
from orbital_relay.config import Settings
from tests.certificates import certificate


@pytest.mark.parametrize(
    ("skew_s", "status"),
    [(0.0, "ok"), (4.9, "ok"), (-4.9, "ok"), (5.0, "problem"), (-5.1, "problem"), (9e9, "problem")],
)
def test_a_clock_may_be_off_by_less_than_five_seconds(skew_s: float, status: str) -> None:
    assert check._judge_skew(skew_s).status == status


@pytest.mark.parametrize(
    ("agreed", "mine", "status"),
    [(None, {"a"}, "ok"), ("a", {"a"}, "ok"), ("a", {"b", "a"}, "ok"), ("a", {"b"}, "problem")],
)
def test_the_key_that_relays_sign_with_must_be_among_ours(agreed: str | None, mine: set[str], status: str) -> None:
    assert check._judge_keys(agreed, mine).status == status


def test_free_disk_is_that_of_where_the_data_will_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check._disk(tmp_path / "not" / "there" / "yet").status == "ok"
    monkeypatch.setattr(check, "_FREE_BYTES_MIN", 2**60)
    assert check._disk(tmp_path).status == "problem"


@pytest.mark.parametrize(
    ("good_for", "status"), [(timedelta(days=90), "ok"), (timedelta(days=3), "warning"), (timedelta(-1), "problem")]
)
def test_a_certificate_is_good_for_a_while(tmp_path: Path, good_for: timedelta, status: str) -> None:
    cert, key = certificate(tmp_path, good_for)
    assert [found.status for found in check._tls(Settings(tls_cert=cert, tls_key=key))] == [status]


def test_a_certificate_goes_with_its_key(tmp_path: Path) -> None:
    cert, _ = certificate(tmp_path, timedelta(days=90))
    (tmp_path / "other").mkdir()
    _, other_key = certificate(tmp_path / "other", timedelta(days=90))
    [found] = check._tls(Settings(tls_cert=cert, tls_key=other_key))
    assert found.status == "problem"
    assert found.message.startswith(f"tls_cert = {cert}, tls_key = {other_key}: must be a certificate chain and")
    assert check._tls(Settings()) == []


_PROVE = """
import asyncio, sys
from pathlib import Path
from orbital_relay.commands.probe import prove
from orbital_relay.config import Settings
try:
    print(asyncio.run(prove(Settings(media_dir=Path(sys.argv[1])), None)))
except Exception as error:
    print(f"{type(error).__name__}: {error}")
"""


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv is not installed here")
def test_a_folder_that_may_not_be_written_is_named(tmp_path: Path) -> None:
    """In a process without root's right to write everywhere, where the test runs as root."""
    (tmp_path / "made").mkdir()
    tmp_path.chmod(0o500)
    powerless = ("setpriv", "--bounding-set=-dac_override") if os.getuid() == 0 else ()

    def prove(folder: Path) -> str:
        command = (*powerless, sys.executable, "-c", _PROVE, str(folder))
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip()

    assert prove(tmp_path) == f"CommandError: media_dir = {tmp_path}: Permission denied"
    absent = tmp_path / "absent"
    assert prove(absent) == f"CommandError: media_dir = {absent} is not there, and can't be made in {tmp_path}"
    assert prove(tmp_path / "made").startswith(f"folder {tmp_path / 'made'}, ")


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        ("S3 refuses: NoSuchBucket", "s3_bucket = files: "),
        ("S3 refuses: SignatureDoesNotMatch", "s3_secret_key: "),
        ("S3 refuses: InvalidAccessKeyId", "s3_access_key: "),
        ("S3 does not answer: NoCredentialsError", "s3_access_key: not given"),
        ("S3 refuses: AccessDenied", "s3_access_key: it may not"),
        ("S3 refuses: AuthorizationHeaderMalformed", "s3_region = eu-north-1: "),
        ("S3 refuses: PermanentRedirect", "s3_region = eu-north-1: "),
        ("S3 refuses: RequestTimeTooSkewed", "s3_endpoint = Amazon, eu-north-1: its clock"),
        ("S3 does not answer: EndpointConnectionError", "s3_endpoint = Amazon, eu-north-1: "),
        ("no answer in 15 s", "s3_endpoint = Amazon, eu-north-1: "),
        ("S3 refuses: Whatever", "media_store = s3: S3 refuses: Whatever"),
    ],
)
def test_what_s3_says_is_told_with_the_setting_to_look_at(problem: str, said: str) -> None:
    settings = Settings(
        media_store="s3", s3_bucket="files", s3_region="eu-north-1", s3_access_key="key", s3_secret_key="hunter2"
    )
    told = probe._blame(settings, problem)
    assert told.startswith(said)
    assert problem in told
    assert "hunter2" not in told

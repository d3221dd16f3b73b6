"""`check`, as far as it needs no database: clock, keys, disk, certificate."""

from datetime import timedelta
from pathlib import Path

import pytest

from orbital_relay.commands import check
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

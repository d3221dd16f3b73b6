"""The client's store: for its owner alone, one program at a time, whole after a kill, or said to be damaged."""

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from orbital_client import Store, StoreDamaged, StoreInUse
from orbital_client.store import Expected, Pinned, Source
from orbital_protocol.frames import Cursor

GROUP = bytes(range(16))
USER = bytes(range(16, 32))

# Says that it is ready, and goes on keeping cursors until it is killed.
KEEPS = """
import sys
from orbital_client import Store
from orbital_protocol.frames import Cursor
group = bytes(range(16))
with Store(sys.argv[1]) as store:
    for seq in range(1, 1_000_000):
        store.put_cursor("read", Cursor(group_id=group, seq=seq, hash=seq.to_bytes(32, "big")))
        store.put_cursor("bot", Cursor(group_id=group, seq=seq, hash=seq.to_bytes(32, "big")))
        store.commit()
        print(seq, flush=True)
"""


def cursor(seq: int) -> Cursor:
    return Cursor(group_id=GROUP, seq=seq, hash=seq.to_bytes(32, "big"))


def filled(path: Path) -> None:
    with Store(path) as store:
        store.put_pin(Pinned(user_id=USER, signing_key=bytes(32), rsa_thumbprint=bytes(32)))
        store.put_state(GROUP, b"state")
        store.put_secrets(GROUP, {1: bytes(32)})
        store.put_cursor("read", cursor(7))
        store.expect(GROUP, Expected(9, bytes(32), Source.POST))


@pytest.mark.parametrize("is_there", [False, True], ids=["new", "left by somebody careless"])
def test_it_is_for_its_owner_alone(tmp_path: Path, is_there: bool) -> None:
    path = tmp_path / "keys" / "client.db"
    if is_there:
        path.parent.mkdir()
        path.touch(0o666)
        path.chmod(0o666)
    with Store(path) as store:
        store.put_cursor("read", cursor(1))
        store.commit()
        modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    assert set(modes.values()) == {0o600}, modes
    if not is_there:
        assert path.parent.stat().st_mode & 0o777 == 0o700


def test_what_was_kept_is_there_again(tmp_path: Path) -> None:
    path = tmp_path / "client.db"
    filled(path)
    with Store(path) as store:
        assert [pin.user_id for pin in store.pins()] == [USER]
        assert store.groups() == [(GROUP, b"state", {1: bytes(32)})]
        assert store.cursor(GROUP, "read") == cursor(7)
        assert list(store.expected(GROUP)) == [9]


def test_one_program_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "client.db"
    with Store(path), pytest.raises(StoreInUse, match="in use by another client"):
        Store(path)
    Store(path).close()


def test_a_kill_leaves_it_whole_and_free(tmp_path: Path) -> None:
    path = tmp_path / "client.db"
    for round_number in range(3):
        process = subprocess.Popen([sys.executable, "-c", KEEPS, path], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(50 * (round_number + 1))]
        with pytest.raises(StoreInUse):
            Store(path)
        process.send_signal(signal.SIGKILL)
        said += process.communicate(timeout=30)[0].splitlines()
        with Store(path) as store:
            read, bot = store.cursor(GROUP, "read"), store.cursor(GROUP, "bot")
        assert read is not None and read == bot, "both or neither"
        assert read.seq in (int(said[-1]), int(said[-1]) + 1), "nothing that was committed is lost"


def cut_off(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def overwritten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100] + os.urandom(path.stat().st_size - 100))


def no_database(path: Path) -> None:
    path.write_bytes(b"these are not the keys you are looking for" * 100)


def of_another_version(path: Path) -> None:
    change(path, "PRAGMA user_version = 999")


def with_a_wrong_value(path: Path) -> None:
    change(path, "UPDATE groups SET secrets = x'c1'")


@pytest.mark.parametrize("damage", [cut_off, overwritten, no_database, of_another_version, with_a_wrong_value])
def test_what_is_damaged_is_said_to_be(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    path = tmp_path / "client.db"
    filled(path)
    damage(path)
    with pytest.raises(StoreDamaged) as caught, Store(path) as store:
        store.groups()
        store.pins()
    assert "\n" not in str(caught.value)


def change(path: Path, query: str) -> None:
    db = sqlite3.connect(path)
    with db:
        db.execute(query)
    db.close()


def test_a_place_that_cannot_be_written_is_an_error_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError, match="file"):
        Store(tmp_path / "file" / "client.db")

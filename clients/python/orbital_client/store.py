"""What a client must not forget: its keys, its login, and what it has verified of each group's log. SQLite.

The file is its owner's alone (0600) and has private keys in it, but nothing of what was written in groups. One client
at a time uses it. What is told to it is kept at the next `commit`, all or nothing.
"""

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import msgspec

from orbital_client.errors import StoreDamaged, StoreInUse
from orbital_client.trust.index import Known
from orbital_client.wire.stores import Tokens
from orbital_protocol import ZERO_HASH, ZERO_ID
from orbital_protocol.frames import Cursor

V = TypeVar("V", bound=msgspec.Struct)

_VERSION: Final = 1
_SCHEMA: Final = Path(__file__).with_name("store.sql")
_MEMORY: Final = ":memory:"


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """Who is at home here. Private keys are PKCS#8; `backup_key` opens the backup, `generation` is its last one."""

    url: str
    username: str
    user_id: bytes
    is_bot: bool
    signing_key: bytes
    rsa_key: bytes
    backup_key: bytes
    generation: int = 0

    def __repr__(self) -> str:
        return f"Account({self.username})"


class StoredBot(msgspec.Struct, frozen=True, kw_only=True):
    """A bot that was made here: with its password, it can be ended from here."""

    username: str
    password: str
    token_id: bytes
    backup_key: bytes

    def __repr__(self) -> str:
        return f"StoredBot({self.username})"


class Pinned(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody's keys as they are known here. `is_verified`: compared by people."""

    user_id: bytes
    signing_key: bytes
    rsa_thumbprint: bytes
    is_verified: bool = False


class Source(StrEnum):
    """How it is known that a log must have an event."""

    POST = "post"
    LINK = "link"
    BACKUP = "backup"


@dataclass(frozen=True, slots=True)
class Expected:
    """The log must have an event with this hash at this seq: the relay confirmed it, or others saw it there."""

    seq: int
    hash: bytes
    source: Source


class Store:
    """All of it, in a file or in memory. Raises StoreDamaged and StoreInUse, from any method."""

    def __init__(self, path: str | os.PathLike[str] = _MEMORY) -> None:
        self.path = None if path == _MEMORY else Path(path)
        self._closed = False
        with self._guarded():
            self._db = self._connect()

    def _connect(self) -> sqlite3.Connection:
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
            self.path.chmod(0o600)
        db = sqlite3.connect(self.path or _MEMORY, timeout=0.5, isolation_level="DEFERRED")
        try:
            db.execute("PRAGMA locking_mode = EXCLUSIVE")
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA trusted_schema = OFF")
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                db.executescript(f"BEGIN; {_SCHEMA.read_text()} PRAGMA user_version = {_VERSION}; COMMIT;")
            elif version != _VERSION:
                raise StoreDamaged(f"{self.path} is of another version of this client")
            db.execute("BEGIN IMMEDIATE")  # takes the lock that EXCLUSIVE then keeps
            db.commit()
        except BaseException:
            db.close()
            raise
        return db

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise StoreInUse(f"{self.path} is in use by another client") from None
            raise StoreDamaged(f"{self.path} can't be used: {error}") from None
        except sqlite3.DatabaseError as error:
            raise StoreDamaged(
                f"{self.path} is damaged ({error}): move it away, and log in again with your passphrase"
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def commit(self) -> None:
        """Keep everything that was told so far."""
        with self._guarded():
            self._db.commit()

    def close(self) -> None:
        """Commit, and let others use the file."""
        if not self._closed:
            self._closed = True
            with self._guarded():
                self._db.commit()
                self._db.close()

    def _run(self, query: str, *values: object) -> sqlite3.Cursor:
        with self._guarded():
            return self._db.execute(query, values)

    def _rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with self._guarded():
            return self._db.execute(query, values).fetchall()

    # ── who one is ──────────────────────────────────────────────────────────────────────────────────────────────────

    def account(self) -> Account | None:
        """The account; None where nobody has logged in."""
        return self._value("account", Account)

    def put_account(self, account: Account) -> None:
        self._put_value("account", account)

    def tokens(self) -> Tokens | None:
        return self._value("tokens", Tokens)

    def put_tokens(self, tokens: Tokens | None) -> None:
        if tokens is None:
            self._run("DELETE FROM account WHERE name = 'tokens'")
        else:
            self._put_value("tokens", tokens)

    def bot(self, username: str) -> StoredBot | None:
        """A bot that was made here."""
        return self._value(f"bot {username}", StoredBot)

    def put_bot(self, bot: StoredBot) -> None:
        self._put_value(f"bot {bot.username}", bot)

    def bots(self) -> list[StoredBot]:
        """All bots that were made here."""
        names = [name for (name,) in self._rows("SELECT name FROM account WHERE name LIKE 'bot %' ORDER BY name")]
        return [bot for name in names if (bot := self._value(name, StoredBot))]

    def forget_bot(self, username: str) -> None:
        self._run("DELETE FROM account WHERE name = ?", f"bot {username}")

    def _value(self, name: str, kind: type[V]) -> V | None:
        rows = self._rows("SELECT value FROM account WHERE name = ?", name)
        if not rows:
            return None
        try:
            return msgspec.msgpack.decode(rows[0][0], type=kind)
        except msgspec.DecodeError:
            raise StoreDamaged(f"{self.path} is damaged: its {name} can't be read") from None

    def _put_value(self, name: str, value: msgspec.Struct) -> None:
        self._run("INSERT OR REPLACE INTO account (name, value) VALUES (?, ?)", name, msgspec.msgpack.encode(value))

    # ── groups ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def groups(self) -> list[tuple[bytes, bytes, dict[int, bytes]]]:
        """Each group's id, its log's state as `Log.save` wrote it, and its keys by epoch."""
        found = []
        for group_id, state, secrets in self._rows("SELECT group_id, state, secrets FROM groups"):
            keys = msgspec.msgpack.decode(secrets, type=dict[int, bytes])
            found.append((group_id, state, keys))
        return found

    def put_state(self, group_id: bytes, state: bytes) -> None:
        self._run(
            "INSERT INTO groups (group_id, state, secrets) VALUES (?, ?, ?)"
            " ON CONFLICT (group_id) DO UPDATE SET state = excluded.state",
            *(group_id, state, msgspec.msgpack.encode({})),
        )

    def put_secrets(self, group_id: bytes, secrets: dict[int, bytes]) -> None:
        """Keep the keys of a group whose state is kept."""
        self._run("UPDATE groups SET secrets = ? WHERE group_id = ?", msgspec.msgpack.encode(secrets), group_id)

    def forget_group(self, group_id: bytes) -> None:
        for table in ("groups", "events", "expected", "cursors"):
            self._run(f"DELETE FROM {table} WHERE group_id = ?", group_id)

    def index(self, group_id: bytes) -> "StoredIndex":
        """The group's events."""
        return StoredIndex(self, group_id)

    def expect(self, group_id: bytes, event: Expected) -> None:
        self._run(
            "INSERT OR REPLACE INTO expected (group_id, seq, hash, source) VALUES (?, ?, ?, ?)",
            *(group_id, event.seq, event.hash, event.source),
        )

    def expected(self, group_id: bytes) -> dict[int, Expected]:
        """What must come and has not come yet, by seq."""
        rows = self._rows("SELECT seq, hash, source FROM expected WHERE group_id = ?", group_id)
        return {seq: Expected(seq, hash_, Source(source)) for seq, hash_, source in rows}

    def forget_expected(self, group_id: bytes, seq: int) -> None:
        self._run("DELETE FROM expected WHERE group_id = ? AND seq = ?", group_id, seq)

    # ── cursors ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def cursor(self, group_id: bytes, name: str) -> Cursor | None:
        """A named place in a group's log."""
        rows = self._rows("SELECT seq, hash FROM cursors WHERE group_id = ? AND name = ?", group_id, name)
        return Cursor(group_id=group_id, seq=rows[0][0], hash=rows[0][1]) if rows else None

    def put_cursor(self, name: str, cursor: Cursor) -> None:
        self._run(
            "INSERT OR REPLACE INTO cursors (group_id, name, seq, hash) VALUES (?, ?, ?, ?)",
            *(cursor.group_id, name, cursor.seq, cursor.hash),
        )

    # ── people ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def pin(self, user_id: bytes) -> Pinned | None:
        rows = self._rows(f"{_PINS} WHERE user_id = ?", user_id)
        return _pinned(rows[0]) if rows else None

    def pins(self) -> list[Pinned]:
        return [_pinned(row) for row in self._rows(_PINS)]

    def put_pin(self, pin: Pinned) -> None:
        self._run(
            "INSERT OR REPLACE INTO pins (user_id, signing_key, rsa_thumbprint, is_verified) VALUES (?, ?, ?, ?)",
            *(pin.user_id, pin.signing_key, pin.rsa_thumbprint, pin.is_verified),
        )


_PINS: Final = "SELECT user_id, signing_key, rsa_thumbprint, is_verified FROM pins"


def _pinned(row: Sequence[Any]) -> Pinned:
    user_id, signing_key, rsa_thumbprint, is_verified = row
    return Pinned(
        user_id=user_id,
        signing_key=signing_key,
        rsa_thumbprint=rsa_thumbprint,
        is_verified=bool(is_verified),
    )


_COLUMNS: Final = "seq, hash, kind, object_id, actor_id, parent_id, counts, erased_at"


class StoredIndex:
    """One group's events in the store (`trust.index.Index`), and what is asked of them beside."""

    def __init__(self, store: Store, group_id: bytes) -> None:
        self._store = store
        self._group_id = group_id

    def add(self, known: Known) -> None:
        self._store._run(
            f"INSERT OR REPLACE INTO events (group_id, {_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            self._group_id,
            known.seq,
            known.hash,
            known.kind,
            known.object_id,
            known.actor_id,
            known.parent_id,
            known.counts,
            known.erased_at,
        )

    def by_id(self, object_id: bytes) -> Known | None:
        return self._one("object_id = ? AND actor_id != ? ORDER BY seq LIMIT 1", object_id, ZERO_ID)

    def by_seq(self, seq: int) -> Known | None:
        return self._one("seq = ?", seq)

    def hash_at(self, seq: int) -> bytes | None:
        if seq == 0:
            return ZERO_HASH
        rows = self._store._rows("SELECT hash FROM events WHERE group_id = ? AND seq = ?", self._group_id, seq)
        return rows[0][0] if rows else None

    def erase(self, object_id: bytes, seq: int) -> None:
        self._store._run(
            "UPDATE events SET erased_at = ? WHERE group_id = ? AND object_id = ?", seq, self._group_id, object_id
        )

    def latest(self, kinds: Iterable[int], *, before_seq: int | None = None, limit: int) -> list[Known]:
        """The last events of these kinds, oldest first."""
        found = self._many(
            "kind IN (SELECT value FROM json_each(?)) AND seq < ? ORDER BY seq DESC LIMIT ?",
            *(json.dumps(list(kinds)), 2**62 if before_seq is None else before_seq, limit),
        )
        return found[::-1]

    def children(self, parent_id: bytes) -> list[Known]:
        """What was posted to this, oldest first."""
        return self._many("parent_id = ? ORDER BY seq", parent_id)

    def count_after(self, seq: int, kinds: Iterable[int], not_by: bytes) -> int:
        """How many events of these kinds came after this seq from others."""
        rows = self._store._rows(
            "SELECT count(*) FROM events WHERE group_id = ? AND seq > ? AND actor_id != ? AND erased_at = 0"
            " AND kind IN (SELECT value FROM json_each(?))",
            *(self._group_id, seq, not_by, json.dumps(list(kinds))),
        )
        return int(rows[0][0])

    def _one(self, where: str, *values: object) -> Known | None:
        found = self._many(where, *values)
        return found[0] if found else None

    def _many(self, where: str, *values: object) -> list[Known]:
        query = f"SELECT {_COLUMNS} FROM events WHERE group_id = ? AND {where}"
        return [Known(*row) for row in self._store._rows(query, self._group_id, *values)]

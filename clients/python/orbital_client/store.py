"""What a client must not forget: its keys, its login, and what it has verified of each group's log. SQLite.

The file is its owner's alone (0600) and has private keys in it, but nothing of what was written in groups. One client
at a time uses it. What is told to it is kept at the next `commit`, all or nothing.
"""

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import msgspec
from msgspec.structs import replace

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
    """A bot that was made here: with its password, it can be changed and ended from here.

    `token_id`, `scopes` and `expires_at` (microseconds; 0: never) are those of its one token.
    """

    username: str
    user_id: bytes
    fingerprint: str
    password: str
    backup_key: bytes
    token_id: bytes
    scopes: tuple[str, ...]
    expires_at: int = 0

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


class Expected(msgspec.Struct, frozen=True):
    """The log must have an event with this hash at this seq: the relay confirmed it, or others saw it there."""

    seq: int
    hash: bytes
    source: Source


class Store:
    """All of it, in a file or in memory. Raises StoreDamaged and StoreInUse, from any method."""

    def __init__(self, path: str | os.PathLike[str] = _MEMORY) -> None:
        self.path = None if path == _MEMORY else Path(path)
        self._closed = False
        self._indexes: dict[bytes, StoredIndex] = {}
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
            db.execute("PRAGMA synchronous = NORMAL")
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
        except sqlite3.DatabaseError as error:
            raise self._damaged(error) from None

    def _damaged(self, error: sqlite3.DatabaseError) -> StoreDamaged | StoreInUse:
        if isinstance(error, sqlite3.OperationalError):
            if "locked" in str(error):
                return StoreInUse(f"{self.path} is in use by another client")
            return StoreDamaged(f"{self.path} can't be used: {error}")
        what = "move it away, and log in again with your passphrase"
        return StoreDamaged(f"{self.path} is damaged ({error}): {what}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def commit(self, *, durable: bool = False) -> None:
        """Keep everything that was told so far; if the machine fails, the last of it may be lost unless `durable`."""
        for index in self._indexes.values():
            index.write()
        with self._guarded():
            self._db.commit()
            if durable:
                self._db.execute("PRAGMA wal_checkpoint(FULL)")

    def close(self) -> None:
        """Commit, and let others use the file."""
        if not self._closed:
            self.commit()
            self._closed = True
            self._db.close()

    def _run(self, query: str, *values: object) -> None:
        with self._guarded():
            self._db.execute(query, values)

    def _rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        try:  # `_guarded` would take as long as the query
            return self._db.execute(query, values).fetchall()
        except sqlite3.DatabaseError as error:
            raise self._damaged(error) from None

    def _run_all(self, query: str, rows: Iterable[Sequence[object]]) -> None:
        with self._guarded():
            self._db.executemany(query, rows)

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
        rows = self._rows("SELECT group_id, state, secrets FROM groups WHERE state IS NOT NULL")
        return [(group_id, state, _decode_keys(secrets)) for group_id, state, secrets in rows]

    def put_state(self, group_id: bytes, state: bytes) -> None:
        self._run("UPDATE groups SET state = ? WHERE number = ?", state, self.index(group_id).number)

    def put_secrets(self, group_id: bytes, secrets: dict[int, bytes]) -> None:
        """Keep a group's keys."""
        number = self.index(group_id).number
        self._run("UPDATE groups SET secrets = ? WHERE number = ?", msgspec.msgpack.encode(secrets), number)

    def index(self, group_id: bytes) -> "StoredIndex":
        """The group's events."""
        if group_id not in self._indexes:
            self._run(
                "INSERT INTO groups (group_id, secrets) VALUES (?, ?) ON CONFLICT DO NOTHING",
                *(group_id, msgspec.msgpack.encode({})),
            )
            number = self._rows("SELECT number FROM groups WHERE group_id = ?", group_id)[0][0]
            self._indexes[group_id] = StoredIndex(self, number)
        return self._indexes[group_id]

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


def _decode_keys(raw: bytes) -> dict[int, bytes]:
    try:
        return msgspec.msgpack.decode(raw, type=dict[int, bytes])
    except msgspec.DecodeError:
        raise StoreDamaged("the store is damaged: a group's keys can't be read") from None


_COLUMNS: Final = "seq, hash, kind, object_id, actor_id, parent_id, counts, erased_at"
_CACHED: Final = 4_096
_UNWRITTEN: Final = 512
_AT_ONCE: Final = 32  # rows of a statement, which takes a fifth less than one for each
_INSERT: Final = f"INSERT OR REPLACE INTO events (group_number, {_COLUMNS}) VALUES "
_ROW: Final = "(?, ?, ?, ?, ?, ?, ?, ?, ?)"


def _row(number: int, known: Known) -> tuple[object, ...]:
    """An event as SQLite gets it. For each `bytes` or `bool` its module would look for an adapter, and find none: that
    costs as much as the row."""
    ids = (bytearray(known.object_id), bytearray(known.actor_id), bytearray(known.parent_id))
    return (number, known.seq, bytearray(known.hash), known.kind, *ids, int(known.counts), known.erased_at)


class StoredIndex:
    """One group's events in the store (`trust.index.Index`), and what is asked of them beside.

    What was looked up or added lately is kept in memory; what was added is written at the latest with the next commit.
    Queries name their index: without statistics, SQLite would read all of a group to find one id.
    """

    def __init__(self, store: Store, number: int) -> None:
        self.number = number
        self._store = store
        self._events: dict[int, Known] = {}
        self._seqs: dict[bytes, int] = {}
        self._unwritten: list[Known] = []
        highest = store._rows(
            "SELECT max(object_id) FROM events INDEXED BY events_by_object WHERE group_number = ?", number
        )
        self._highest: bytes = highest[0][0] or b""
        """No event that is in the file alone has an id above this one. Ids rise with time: a new one costs no query."""

    def add(self, known: Known) -> None:
        self._remember(known)
        self._unwritten.append(known)
        if len(self._unwritten) >= _UNWRITTEN:
            self.write()

    def _remember(self, known: Known) -> Known:
        self._events[known.seq] = known
        if known.actor_id != ZERO_ID:
            self._seqs.setdefault(known.object_id, known.seq)
        return known

    def write(self) -> None:
        """Write what was added, for the next commit to keep."""
        if self._unwritten:
            for at in range(0, len(self._unwritten), _AT_ONCE):
                rows = [_row(self.number, known) for known in self._unwritten[at : at + _AT_ONCE]]
                self._store._run(_INSERT + ", ".join([_ROW] * len(rows)), *chain.from_iterable(rows))
            self._unwritten.clear()
        if len(self._events) > _CACHED:
            for seq in list(self._events)[: -_CACHED // 2]:
                known = self._events.pop(seq)
                self._highest = max(self._highest, known.object_id)
                if self._seqs.get(known.object_id) == seq:
                    del self._seqs[known.object_id]

    def by_id(self, object_id: bytes) -> Known | None:
        seq = self._seqs.get(object_id)
        if seq is not None:
            return self._events[seq]
        if object_id > self._highest:
            return None
        rows = self._store._rows(
            f"{_SELECT} INDEXED BY events_by_object {_WHERE} object_id = ?", self.number, object_id
        )
        found = [known for known in (Known(*row) for row in rows) if known.actor_id != ZERO_ID]
        return self._remember(min(found, key=lambda known: known.seq)) if found else None

    def by_seq(self, seq: int) -> Known | None:
        return self._events.get(seq) or self._one("seq = ?", seq)

    def hash_at(self, seq: int) -> bytes | None:
        if seq == 0:
            return ZERO_HASH
        known = self.by_seq(seq)
        return None if known is None else known.hash

    def erase(self, object_id: bytes, seq: int) -> None:
        self.write()
        known = self.by_id(object_id)
        if known is not None:
            self._events[known.seq] = replace(known, erased_at=seq)
            self._store._run(
                "UPDATE events SET erased_at = ? WHERE group_number = ? AND seq = ?", seq, self.number, known.seq
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
        self.write()
        where = f"INDEXED BY events_by_parent {_WHERE} parent_id = ? AND parent_id != zeroblob(16) ORDER BY seq"
        return [Known(*row) for row in self._store._rows(f"{_SELECT} {where}", self.number, parent_id)]

    def starting_with(self, prefix: str, kinds: Iterable[int], *, limit: int) -> list[Known]:
        """Events of these kinds whose object's id begins with these hexadecimal digits, oldest first."""
        first, last = (bytes.fromhex(prefix.lower().ljust(32, fill)[:32]) for fill in "0f")
        return self._many(
            "object_id BETWEEN ? AND ? AND kind IN (SELECT value FROM json_each(?)) ORDER BY seq LIMIT ?",
            *(first, last, json.dumps(list(kinds)), limit),
        )

    def count_after(self, seq: int, kinds: Iterable[int], not_by: bytes) -> int:
        """How many events of these kinds came after this seq from others."""
        self.write()
        rows = self._store._rows(
            "SELECT count(*) FROM events WHERE group_number = ? AND seq > ? AND actor_id != ? AND erased_at = 0"
            " AND kind IN (SELECT value FROM json_each(?))",
            *(self.number, seq, not_by, json.dumps(list(kinds))),
        )
        return int(rows[0][0])

    def _one(self, where: str, *values: object) -> Known | None:
        rows = self._store._rows(f"{_EVENTS} {where}", self.number, *values)
        return self._remember(Known(*rows[0])) if rows else None

    def _many(self, where: str, *values: object) -> list[Known]:
        self.write()
        return [Known(*row) for row in self._store._rows(f"{_EVENTS} {where}", self.number, *values)]


_SELECT: Final = f"SELECT {_COLUMNS} FROM events"
_WHERE: Final = "WHERE group_number = ? AND"
_EVENTS: Final = f"{_SELECT} {_WHERE}"

"""What outlives a connection, and may outlive the process: the session's tokens, and where reading stopped."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from orbital_client.files import read_file, replace_file
from orbital_protocol.frames import Cursor, SessionOk


class Tokens(msgspec.Struct, frozen=True, kw_only=True):
    """What keeps a session alive. Both tokens are secrets; `refresh_token` works once and is replaced by each use."""

    user_id: bytes
    session_id: bytes
    access_token: str
    access_expires_at: int
    refresh_token: str
    refresh_expires_at: int

    def __repr__(self) -> str:
        return f"Tokens(session {self.session_id.hex()})"

    @classmethod
    def of(cls, answer: SessionOk) -> "Tokens":
        """The tokens in an answer to register, login, refresh or password.change."""
        return cls(
            user_id=answer.user_id,
            session_id=answer.session_id,
            access_token=answer.access_token,
            access_expires_at=answer.access_expires_at,
            refresh_token=answer.refresh_token,
            refresh_expires_at=answer.refresh_expires_at,
        )


class TokenStore(Protocol):
    """Where a session's tokens are kept. `save(None)` forgets them."""

    async def load(self) -> Tokens | None: ...

    async def save(self, tokens: Tokens | None) -> None: ...


class MemoryTokens:
    """Tokens that end with the process."""

    def __init__(self, tokens: Tokens | None = None) -> None:
        self._tokens = tokens

    async def load(self) -> Tokens | None:
        return self._tokens

    async def save(self, tokens: Tokens | None) -> None:
        self._tokens = tokens


class FileTokens:
    """Tokens in a JSON file that only its owner can read; replaced whole at each change."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def load(self) -> Tokens | None:
        raw = await asyncio.to_thread(read_file, self._path)
        return msgspec.json.decode(raw, type=Tokens) if raw else None

    async def save(self, tokens: Tokens | None) -> None:
        if tokens is None:
            await asyncio.to_thread(self._path.unlink, missing_ok=True)
        else:
            await asyncio.to_thread(replace_file, self._path, msgspec.json.encode(tokens))


class CursorStore(Protocol):
    """Where the place in each group's log is kept that the application has read to. `save` gets all of them."""

    async def load(self) -> Sequence[Cursor]: ...

    async def save(self, cursors: Sequence[Cursor]) -> None: ...


class MemoryCursors:
    """Cursors that end with the process."""

    def __init__(self, cursors: Sequence[Cursor] = ()) -> None:
        self.cursors: Sequence[Cursor] = cursors

    async def load(self) -> Sequence[Cursor]:
        return self.cursors

    async def save(self, cursors: Sequence[Cursor]) -> None:
        self.cursors = cursors


class _StoredCursor(msgspec.Struct, frozen=True):
    seq: int
    hash: str


class FileCursors:
    """Cursors in a JSON file, replaced whole at each change: `{group: {"seq": …, "hash": …}}`, hexadecimal."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def load(self) -> Sequence[Cursor]:
        raw = await asyncio.to_thread(read_file, self._path)
        if not raw:
            return ()
        stored = msgspec.json.decode(raw, type=dict[str, _StoredCursor])
        return [
            Cursor(group_id=bytes.fromhex(group), seq=cursor.seq, hash=bytes.fromhex(cursor.hash))
            for group, cursor in stored.items()
        ]

    async def save(self, cursors: Sequence[Cursor]) -> None:
        stored: Mapping[str, _StoredCursor] = {
            cursor.group_id.hex(): _StoredCursor(cursor.seq, cursor.hash.hex()) for cursor in cursors
        }
        await asyncio.to_thread(replace_file, self._path, msgspec.json.format(msgspec.json.encode(stored)))

"""Sessions and bot tokens. The caller's clock says what has expired; its hints go out with the commit."""

from binascii import a2b_base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any, Final

from orbital_protocol.codes import Scope
from orbital_protocol.frames import GroupHead, SessionInfo, TokenInfo
from orbital_relay.caller import Clock
from orbital_relay.store.pool import Connection
from orbital_relay.store.queries import query

_INSERT: Final = query("insert_session")
_END_SURPLUS: Final = query("end_surplus_sessions")
_END: Final = query("end_session")
_DEVICE: Final = query("find_device_name")
_LOCK: Final = query("lock_session")
_EXISTS: Final = query("session_exists")
_SET_HASHES: Final = query("set_refresh_hashes")
_LIST: Final = query("list_sessions")
_AUTHENTICATE: Final = query("authenticate_sessions")
_AUTHENTICATE_BOT: Final = query("authenticate_bot")
_FIND_TOKEN: Final = query("find_bot_token")
_COUNT_TOKENS: Final = query("count_bot_tokens")
_DELETE_EXPIRED: Final = query("delete_expired_bot_tokens")
_INSERT_TOKEN: Final = query("insert_bot_token")
_REPLACE_SECRET: Final = query("replace_bot_secret")
_LIST_TOKENS: Final = query("list_bot_tokens")
_DELETE_TOKEN: Final = query("delete_bot_token")

_USED_GRAIN_US: Final = 60_000_000
"""How often it is written down that a session or token was used."""


@dataclass(frozen=True, slots=True)
class NewSession:
    """A login, and what is kept of its refresh tokens."""

    session_id: bytes
    user_id: bytes
    device_name: str
    token_epoch: int
    family_hash: bytes
    refresh_hash: bytes
    expires_at: int


@dataclass(frozen=True, slots=True)
class ClaimedSession:
    """Which session an access token says it is of."""

    session_id: bytes
    user_id: bytes
    token_epoch: int


@dataclass(frozen=True, slots=True)
class SessionRow:
    """A session under its lock, whatever has become of it. `user_epoch` is the user's token epoch now."""

    user_id: bytes
    token_epoch: int
    family_hash: bytes
    refresh_hash: bytes
    previous_refresh_hash: bytes | None
    expires_at: int
    revoked: bool
    user_epoch: int
    user_disabled: bool

    def is_live(self, now: int) -> bool:
        """Whether the session can go on."""
        return not (self.revoked or self.user_disabled or self.token_epoch != self.user_epoch or self.expires_at <= now)


@dataclass(frozen=True, slots=True)
class BotRow:
    """Whose token it is, and what it may do. No groups: all of the user's. No `expires_at`: never."""

    user_id: bytes
    token_epoch: int
    scopes: frozenset[Scope]
    groups: frozenset[bytes]
    expires_at: int | None


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A bot token as it was asked for, and whether anybody has used it."""

    user_id: bytes
    name: str
    scopes: tuple[str, ...]
    groups: tuple[bytes, ...]
    expires_at: int | None
    used: bool


# ── sessions ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def insert(connection: Connection, new: NewSession, now: int) -> None:
    """Begin a session."""
    await connection.execute(
        _INSERT,
        new.session_id,
        new.user_id,
        new.device_name,
        new.token_epoch,
        new.family_hash,
        new.refresh_hash,
        now,
        new.expires_at,
    )


async def end_surplus(connection: Connection, user_id: bytes, keep: int, now: int) -> list[bytes]:
    """End a user's sessions but the `keep` that were used last; return those that ended."""
    return [row[0] for row in await connection.fetch(_END_SURPLUS, user_id, keep, now)]


async def end(connection: Connection, session_id: bytes, user_id: bytes, now: int) -> bool:
    """End a session, if it hasn't ended before; False where the user has no such session."""
    return await connection.fetchval(_END, session_id, user_id, now) is not None


async def device_name(connection: Connection, session_id: bytes) -> str:
    """What the session's device is called; empty for a bot token."""
    return str(await connection.fetchval(_DEVICE, session_id) or "")


async def lock(connection: Connection, session_id: bytes) -> SessionRow | None:
    """A session that nobody else changes until the transaction ends."""
    row = await connection.fetchrow(_LOCK, session_id)
    return None if row is None else SessionRow(*row)


async def exists(connection: Connection, session_id: bytes) -> bool:
    """Whether this is the id of a session, live or not, whoever's."""
    return bool(await connection.fetchval(_EXISTS, session_id))


async def set_refresh_hashes(  # noqa: PLR0913  a row's columns
    connection: Connection, session_id: bytes, *, newest: bytes, previous: bytes, now: int, expires_at: int
) -> None:
    """Put a session's next refresh token in force."""
    await connection.execute(_SET_HASHES, session_id, newest, previous, now, expires_at)


async def list_live(connection: Connection, user_id: bytes, current: bytes, now: int) -> list[SessionInfo]:
    """A user's live sessions, those used last first."""
    return [
        SessionInfo(
            session_id=session_id,
            device_name=name,
            created_at=created_at,
            last_used_at=last_used_at,
            current=session_id == current,
        )
        for session_id, name, created_at, last_used_at in await connection.fetch(_LIST, user_id, now)
    ]


async def authenticate(
    connection: Connection, claimed: Sequence[ClaimedSession], *, now: Clock
) -> list[list[GroupHead] | None]:
    """For each claim the user's groups, if this session of theirs is live; None otherwise."""
    rows = await connection.fetch(
        _AUTHENTICATE,
        [claim.session_id for claim in claimed],
        [claim.user_id for claim in claimed],
        [claim.token_epoch for claim in claimed],
        now(),
        _USED_GRAIN_US,
    )
    heads: list[list[GroupHead] | None] = [None] * len(claimed)
    for number, of_claim in groupby(rows, itemgetter(0)):
        heads[number - 1] = _heads(row[1:] for row in of_claim)
    return heads


# ── bot tokens ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def authenticate_bot(
    connection: Connection, token_id: bytes, secret_hash: bytes, now: int
) -> tuple[BotRow, list[GroupHead]] | None:
    """What the token stands for and the groups that it reaches, if the secret is right and the token is good."""
    rows = await connection.fetch(_AUTHENTICATE_BOT, token_id, secret_hash, now, _USED_GRAIN_US)
    if not rows:
        return None
    user_id, token_epoch, scopes, group_ids, expires_at = rows[0][:5]
    bot = BotRow(user_id, token_epoch, frozenset(map(Scope, scopes)), frozenset(group_ids), expires_at)
    return bot, _heads(row[5:] for row in rows)


def _heads(rows: Iterable[Any]) -> list[GroupHead]:
    """Rows of group_id, encrypted_name, role, key_epoch, rekey_required, seq, hash; all null for no group."""
    return [
        GroupHead(
            group_id=group_id,
            encrypted_name=a2b_base64(name),
            role=role,
            key_epoch=key_epoch,
            rekey_required=rekey_required,
            seq=seq,
            hash=hash_,
        )
        for group_id, name, role, key_epoch, rekey_required, seq, hash_ in rows
        if group_id is not None
    ]


async def find_token(connection: Connection, token_id: bytes) -> TokenRow | None:
    """The bot token with this id, whoever's."""
    row = await connection.fetchrow(_FIND_TOKEN, token_id)
    if row is None:
        return None
    user_id, name, scopes, groups, expires_at, used = row
    return TokenRow(user_id, name, tuple(scopes), tuple(groups), expires_at, used)


async def count_tokens(connection: Connection, user_id: bytes) -> int:
    """How many tokens a user has, expired ones included."""
    return int(await connection.fetchval(_COUNT_TOKENS, user_id))


async def delete_expired_tokens(connection: Connection, user_id: bytes, now: int) -> None:
    """Forget a user's tokens that have expired."""
    await connection.execute(_DELETE_EXPIRED, user_id, now)


async def insert_token(connection: Connection, token_id: bytes, token: TokenRow, secret_hash: bytes, now: int) -> None:
    """Make a bot token."""
    await connection.execute(
        _INSERT_TOKEN,
        token_id,
        token.user_id,
        token.name,
        secret_hash,
        token.scopes,
        token.groups,
        now,
        token.expires_at,
    )


async def replace_secret(connection: Connection, token_id: bytes, secret_hash: bytes) -> bool:
    """Give a token that was never used another secret; False where it was."""
    return await connection.fetchval(_REPLACE_SECRET, token_id, secret_hash) is not None


async def list_tokens(connection: Connection, user_id: bytes) -> list[TokenInfo]:
    """A user's bot tokens, oldest first."""
    return [
        TokenInfo(
            token_id=token_id,
            name=name,
            scopes=list(scopes),
            groups=list(groups),
            created_at=created_at,
            expires_at=expires_at,
            last_used_at=last_used_at,
        )
        for token_id, name, scopes, groups, created_at, expires_at, last_used_at in await connection.fetch(
            _LIST_TOKENS, user_id
        )
    ]


async def delete_token(connection: Connection, token_id: bytes, user_id: bytes) -> bool:
    """Delete a user's bot token; False where they have no such token."""
    return await connection.fetchval(_DELETE_TOKEN, token_id, user_id) is not None

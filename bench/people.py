"""Users, groups and access tokens for benchmarks, put in by SQL: registering costs a bcrypt each, which isn't measured.

Keys are random bytes of the right size; the relay never uses them.
"""

import base64
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import asyncpg

from orbital_protocol import ZERO_HASH, ZERO_ID
from orbital_protocol.chain import content_hash, field_hash
from orbital_protocol.codes import Kind, Role
from orbital_relay.config import TokenKey
from orbital_relay.credentials import Access, AccessTokens
from orbital_relay.store.pool import prepare_connection
from orbital_relay.store.posts import Appended, Post, append_posts

_S: Final = 1_000_000
_TOKEN_LIFE_S: Final = 86_400
_RELAY_HEX: Final = "00" * 16
_BATCH: Final = 500


@dataclass(frozen=True, slots=True)
class Place:
    """A thread that replies go to, the first event of its group; `hash` is that event's."""

    group_id: bytes
    thread_id: bytes
    hash: bytes = ZERO_HASH

    def as_json(self) -> dict[str, str]:
        """For a load generator's task."""
        return {"group_id": self.group_id.hex(), "thread_id": self.thread_id.hex(), "hash": self.hash.hex()}

    @classmethod
    def from_json(cls, value: dict[str, str]) -> "Place":
        """Read what `as_json` wrote."""
        return cls(*(bytes.fromhex(value[name]) for name in ("group_id", "thread_id", "hash")))


@dataclass(frozen=True, slots=True)
class Population:
    """Users, by their access tokens; a thread in each group. `members` has the numbers of each group's users."""

    token_key: TokenKey
    tokens: list[str]
    places: list[Place]
    members: list[Sequence[int]]

    def at(self, places: list[Place]) -> "Population":
        """The same people, at some of the places."""
        kept = [members for place, members in zip(self.places, self.members, strict=True) if place in places]
        return Population(self.token_key, self.tokens, places, kept)


def new_id() -> bytes:
    """A UUIDv7 as clients make them."""
    raw = bytearray((time.time_ns() // 1_000_000).to_bytes(6, "big") + os.urandom(10))
    raw[6] = 0x70 | raw[6] & 0x0F
    raw[8] = 0x80 | raw[8] & 0x3F
    return bytes(raw)


async def populate(
    dsn: str, *, users: int, groups: int, members: Callable[[int], Sequence[int]] | None = None
) -> Population:
    """Fill an empty database. `members` says which users are in a group, by their numbers; without it all are."""
    by_group = [range(users) if members is None else members(number) for number in range(groups)]
    token_key = TokenKey("bench", os.urandom(32))
    connection = await asyncpg.connect(dsn)
    try:
        await prepare_connection(connection)
        user_ids = [new_id() for _ in range(users)]
        await _insert_users(connection, user_ids)
        tokens = await _open_sessions(connection, user_ids, AccessTokens([token_key]))
        places = [
            await _found_group(connection, number, [user_ids[user] for user in found])
            for number, found in enumerate(by_group)
        ]
        await connection.execute("ANALYZE")
    finally:
        await connection.close()
    return Population(token_key, tokens, places, by_group)


async def add_replies(dsn: str, places: Sequence[Place], each: int, body_bytes: int) -> None:
    """Append so many replies to each place, by the group's owner, as a relay does."""
    connection = await asyncpg.connect(dsn)
    try:
        await prepare_connection(connection)
        rows = await connection.fetch("SELECT group_id, user_id FROM members WHERE role = $1", int(Role.OWNER))
        owners: dict[bytes, bytes] = {row["group_id"]: row["user_id"] for row in rows}
        body = os.urandom(body_bytes)
        for start in range(0, len(places), max(1, _BATCH // each)):
            wanted = places[start : start + max(1, _BATCH // each)]
            for left in range(each, 0, -_BATCH):
                posts = [
                    _reply(place, owners[place.group_id], body) for place in wanted for _ in range(min(left, _BATCH))
                ]
                outcomes = await append_posts(connection, _RELAY_HEX, posts)
                if not all(isinstance(outcome, Appended) for outcome in outcomes):
                    raise RuntimeError(f"replies were refused: {outcomes[0]}")
    finally:
        await connection.close()


def _reply(place: Place, author: bytes, body: bytes) -> Post:
    hashes = (field_hash(body),)
    return Post(
        group_id=place.group_id,
        kind=Kind.REPLY_POSTED,
        object_id=new_id(),
        parent_id=place.thread_id,
        author_id=author,
        key_epoch=1,
        encrypted_title=None,
        encrypted_body=body,
        field_hashes=b"".join(hashes),
        content_hash=content_hash(place.thread_id, hashes),
    )


async def _insert_users(connection: "asyncpg.Connection[asyncpg.Record]", user_ids: list[bytes]) -> None:
    modulus = base64.urlsafe_b64encode(os.urandom(256)).rstrip(b"=").decode()
    public_key = json.dumps({"kty": "RSA", "n": modulus, "e": "AQAB"})
    rows = [(user_id, f"bench{n:06}", public_key, os.urandom(32), os.urandom(32)) for n, user_id in enumerate(user_ids)]
    await connection.executemany(
        "INSERT INTO users (id, username, password_hash, public_key, signing_key, rsa_thumbprint)"
        " VALUES ($1, $2, '$2b$12$no-login', $3, $4, $5)",
        rows,
    )
    await connection.execute(
        "INSERT INTO user_keys (user_id, signing_key, rsa_thumbprint, public_key)"
        " SELECT id, signing_key, rsa_thumbprint, public_key FROM users"
    )


async def _open_sessions(
    connection: "asyncpg.Connection[asyncpg.Record]", user_ids: list[bytes], signer: AccessTokens
) -> list[str]:
    now = time.time_ns() // 1000
    expires_at = (now // _S + _TOKEN_LIFE_S) * _S
    opened = [Access(user_id, new_id(), 0, expires_at) for user_id in user_ids]
    await connection.executemany(
        "INSERT INTO sessions (session_id, user_id, device_name, token_epoch, family_hash, refresh_hash, expires_at)"
        " VALUES ($1, $2, 'bench', 0, $3, $4, clock_timestamp() + INTERVAL '1 day')",
        [(access.session_id, access.user_id, os.urandom(32), os.urandom(32)) for access in opened],
    )
    return [signer.sign(access, now) for access in opened]


async def _found_group(connection: "asyncpg.Connection[asyncpg.Record]", number: int, user_ids: list[bytes]) -> Place:
    """A group of all users, with a thread in it."""
    group_id = new_id()
    owner = user_ids[0]
    wrap = base64.b64encode(os.urandom(256)).decode()
    await connection.execute("INSERT INTO group_heads (group_id) VALUES ($1)", group_id)
    await connection.execute(
        "INSERT INTO groups (id, encrypted_name, created_by, invite_code) VALUES ($1, $2, $3, $4)",
        *(group_id, base64.b64encode(os.urandom(64)).decode(), owner, f"b{number:07}"),
    )
    await connection.execute("INSERT INTO group_quotas (group_id) VALUES ($1)", group_id)
    await connection.execute(
        "INSERT INTO members (group_id, user_id, encrypted_group_key, role)"
        " SELECT $1, id, $2, CASE WHEN id = $3 THEN $4::SMALLINT ELSE $5::SMALLINT END FROM unnest($6::UUID[]) AS id",
        *(group_id, wrap, owner, int(Role.OWNER), int(Role.MEMBER), user_ids),
    )
    await connection.execute(
        "INSERT INTO group_keys (group_id, user_id, key_epoch, encrypted_group_key)"
        " SELECT group_id, user_id, 1, encrypted_group_key FROM members WHERE group_id = $1",
        group_id,
    )
    return await _begin_thread(connection, group_id, owner)


async def _begin_thread(connection: "asyncpg.Connection[asyncpg.Record]", group_id: bytes, author: bytes) -> Place:
    thread_id, title, body = new_id(), os.urandom(48), os.urandom(400)
    hashes = (field_hash(title), field_hash(body))
    thread = Post(
        group_id=group_id,
        kind=Kind.THREAD_POSTED,
        object_id=thread_id,
        parent_id=None,
        author_id=author,
        key_epoch=1,
        encrypted_title=title,
        encrypted_body=body,
        field_hashes=b"".join(hashes),
        content_hash=content_hash(ZERO_ID, hashes),
    )
    [outcome] = await append_posts(connection, _RELAY_HEX, [thread])
    if not isinstance(outcome, Appended):
        raise RuntimeError(f"the thread was refused: {outcome}")
    return Place(group_id, thread_id, outcome.hash)

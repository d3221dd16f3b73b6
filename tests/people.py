"""People for tests: users with real keys, groups that they founded, what they sign and post. All of it put in by SQL.

async with connected(migrated_database) as connection:
    alice, bob = await enroll(connection, "alice"), await enroll(connection, "bob")
    group_id = await found_group(connection, alice, bob)
    signed = await says(connection, alice, group_id, MemberRemoved, user_id=bob.user_id, ban=False)
"""

import base64
import json
import secrets
import string
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from itertools import count
from typing import Any, TypeVar

import asyncpg
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from orbital_protocol import ZERO_HASH, ZERO_ID, statements
from orbital_protocol.chain import content_hash, control_content_hash, field_hash
from orbital_protocol.codes import CHANGES_ROSTER, Kind, Role, Scope
from orbital_protocol.frames import PublicKey, SignedStatement
from orbital_protocol.statements import (
    GroupCreated,
    GroupTransferred,
    KeyReplaced,
    MemberJoined,
    MemberLeft,
    MemberRemoved,
    MemberRole,
    RosterEntry,
    Statement,
)
from orbital_relay.caller import ALL_SCOPES, Caller
from orbital_relay.store.pool import Connection, prepare_connection
from orbital_relay.store.posts import Post

S = TypeVar("S", bound=Statement)

_LIMIT_S = 10
_RSA_KEYS = 6  # making one takes a while, so people share them; the first six have keys of their own
_FAR_FUTURE = 2**53 - 1
_numbers = count()


@asynccontextmanager
async def connected(dsn: str) -> AsyncIterator[Connection]:
    """A connection of the test's own, whose ids are bytes like the relay's."""
    connection = await asyncpg.connect(dsn, timeout=_LIMIT_S, command_timeout=_LIMIT_S)
    try:
        await prepare_connection(connection)
        yield connection
    finally:
        await connection.close(timeout=_LIMIT_S)


def new_id() -> bytes:
    """A UUIDv7 as clients make them."""
    raw = bytearray((time.time_ns() // 1_000_000).to_bytes(6, "big") + secrets.token_bytes(10))
    raw[6] = 0x70 | raw[6] & 0x0F
    raw[8] = 0x80 | raw[8] & 0x3F
    return bytes(raw)


# ── people ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@cache
def _rsa_key(number: int) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def jwk_of(key: rsa.RSAPrivateKey) -> PublicKey:
    """The public half as clients send it."""
    numbers = key.public_key().public_numbers()
    return PublicKey(kty="RSA", n=_base64url(numbers.n), e=_base64url(numbers.e), alg="RSA-OAEP-256")


def _base64url(number: int) -> str:
    raw = number.to_bytes((number.bit_length() + 7) // 8, "big")
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def thumbprint_of(jwk: PublicKey) -> bytes:
    """RFC 7638: SHA-256 over the required members in the order of their names."""
    return sha256(f'{{"e":"{jwk.e}","kty":"{jwk.kty}","n":"{jwk.n}"}}'.encode()).digest()


@dataclass(frozen=True)
class Person:
    """A user, with the private keys that only a client has."""

    username: str
    user_id: bytes = field(default_factory=new_id)
    signing: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    wrapping: rsa.RSAPrivateKey = field(default_factory=lambda: _rsa_key(next(_numbers) % _RSA_KEYS))
    is_bot: bool = False

    @property
    def signing_key(self) -> bytes:
        """The public signing key, 32 bytes."""
        return self.signing.public_key().public_bytes_raw()

    @property
    def public_key(self) -> PublicKey:
        return jwk_of(self.wrapping)

    @property
    def rsa_thumbprint(self) -> bytes:
        return thumbprint_of(self.public_key)

    def as_member(self, role: Role = Role.MEMBER) -> RosterEntry:
        """This person's entry in a roster."""
        return RosterEntry(
            user_id=self.user_id,
            role=role,
            signing_key=self.signing_key,
            rsa_thumbprint=self.rsa_thumbprint,
            is_bot=self.is_bot,
        )

    def keys(self) -> dict[str, Any]:
        """The elements of a statement that introduces this person."""
        return {"signing_key": self.signing_key, "rsa_thumbprint": self.rsa_thumbprint, "is_bot": self.is_bot}

    def caller(
        self, *, scopes: frozenset[Scope] = ALL_SCOPES, groups: frozenset[bytes] | None = None, token_epoch: int = 0
    ) -> Caller:
        """This person as a handler sees them on an authenticated connection."""
        return Caller(
            user_id=self.user_id,
            session_id=new_id(),
            token_epoch=token_epoch,
            expires_at=_FAR_FUTURE,
            scopes=scopes,
            groups=groups,
        )


async def enroll(
    connection: Connection, username: str, *, is_bot: bool = False, password_hash: str = "$2b$12$no-login"
) -> Person:
    """Make a person and insert their account, without a session."""
    person = Person(username, is_bot=is_bot)
    jwk = json.dumps({"kty": person.public_key.kty, "n": person.public_key.n, "e": person.public_key.e})
    await connection.execute(
        "INSERT INTO users (id, username, password_hash, public_key, signing_key, rsa_thumbprint, is_bot)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7)",
        *(person.user_id, username, password_hash, jwk, person.signing_key, person.rsa_thumbprint, is_bot),
    )
    await connection.execute(
        "INSERT INTO user_keys (user_id, signing_key, rsa_thumbprint, public_key) VALUES ($1, $2, $3, $4)",
        *(person.user_id, person.signing_key, person.rsa_thumbprint, jwk),
    )
    return person


# ── what they sign ──────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class View:
    """What a member's client has verified of a group: where its log stands, and who is in it."""

    group_id: bytes
    seq: int = 0
    hash: bytes = ZERO_HASH
    key_epoch: int = 1
    roster: Mapping[bytes, RosterEntry] = field(default_factory=dict)


async def view(connection: Connection, group_id: bytes) -> View:
    """The group as the database has it; an empty view of one that it doesn't have."""
    head = await connection.fetchrow("SELECT * FROM group_heads WHERE group_id = $1", group_id)
    if head is None:
        return View(group_id)
    members = await connection.fetch(
        "SELECT u.id, m.role, u.signing_key, u.rsa_thumbprint, u.is_bot"
        " FROM members m JOIN users u ON u.id = m.user_id WHERE m.group_id = $1",
        group_id,
    )
    roster = {row["id"]: RosterEntry(*row.values()) for row in members}
    return View(group_id, head["last_seq"], head["head_hash"], head["key_epoch"], roster)


def write(actor: Person, kind: type[S], seen: View, **elements: Any) -> S:
    """A statement on top of what the actor has seen; `elements` are the kind's own, or replace any other."""
    frame = {
        "group_id": seen.group_id,
        "actor_id": actor.user_id,
        "statement_id": new_id(),
        "base_seq": seen.seq,
        "base_hash": seen.hash,
        "key_epoch": seen.key_epoch,
        "roster_hash": ZERO_HASH,
    }
    draft = kind(**{**frame, **elements})
    if "roster_hash" in elements or (isinstance(draft, MemberJoined) and draft.user_id == draft.actor_id):
        return draft  # newcomers who join by a link don't know the roster yet
    roster = statements.roster_hash(roster_after(seen.roster, draft).values())
    return kind(**{**frame, **elements, "roster_hash": roster})


def roster_after(roster: Mapping[bytes, RosterEntry], statement: Statement) -> dict[bytes, RosterEntry]:
    """The roster once the statement is in the log."""
    after = dict(roster)
    match statement:
        case GroupCreated(actor_id=user_id):
            after[user_id] = _introduced(user_id, Role.OWNER, statement)
        case MemberJoined(user_id=user_id):
            after[user_id] = _introduced(user_id, Role.MEMBER, statement)
        case MemberLeft(actor_id=user_id) | MemberRemoved(user_id=user_id):
            after.pop(user_id, None)
        case MemberRole(user_id=user_id, role=role):
            after |= _changed(after, user_id, role=role)
        case GroupTransferred(actor_id=old_owner, user_id=new_owner):
            after |= _changed(after, old_owner, role=Role.ADMIN) | _changed(after, new_owner, role=Role.OWNER)
        case KeyReplaced(actor_id=user_id, signing_key=signing_key, rsa_thumbprint=rsa_thumbprint):
            after |= _changed(after, user_id, signing_key=signing_key, rsa_thumbprint=rsa_thumbprint)
        case _:
            pass
    return after


def _introduced(user_id: bytes, role: Role, statement: GroupCreated | MemberJoined) -> RosterEntry:
    return RosterEntry(user_id, role, statement.signing_key, statement.rsa_thumbprint, statement.is_bot)


def _changed(roster: Mapping[bytes, RosterEntry], user_id: bytes, **changes: Any) -> dict[bytes, RosterEntry]:
    """A member's entry with some changes; nothing for one who is no member, which a test may ask for to be refused."""
    entry = roster.get(user_id)
    if entry is None:
        return {}
    fields = {name: getattr(entry, name) for name in RosterEntry.__struct_fields__}
    return {user_id: RosterEntry(**{**fields, **changes})}


def sign(actor: Person, statement: Statement) -> SignedStatement:
    """The statement's encoding, signed by this person."""
    raw = statements.encode(statement)
    return SignedStatement(statement=raw, signature=statements.sign(raw, actor.signing))


async def says(
    connection: Connection, actor: Person, group_id: bytes, kind: type[Statement], **elements: Any
) -> SignedStatement:
    """A signed statement on top of the group's present head."""
    return sign(actor, write(actor, kind, await view(connection, group_id), **elements))


# ── groups ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def found_group(connection: Connection, owner: Person, *others: Person, history: int = 1) -> bytes:
    """A group with these members, whose log begins as if the owner had created it and admitted the others."""
    group_id = new_id()
    name = secrets.token_bytes(64)
    code = "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(8))
    async with connection.transaction():
        await connection.execute("INSERT INTO group_heads (group_id) VALUES ($1)", group_id)
        await connection.execute(
            "INSERT INTO groups (id, encrypted_name, created_by, invite_code, history) VALUES ($1, $2, $3, $4, $5)",
            *(group_id, base64.b64encode(name).decode(), owner.user_id, code, history),
        )
        await connection.execute("INSERT INTO group_quotas (group_id) VALUES ($1)", group_id)
        created = write(
            owner,
            GroupCreated,
            View(group_id),
            history=history,
            key_commitment=ZERO_HASH,
            name_hash=field_hash(name),
            **owner.keys(),
        )
        await append(connection, sign(owner, created))
        await _insert_member(connection, group_id, owner, Role.OWNER)
    for other in others:
        await admit(connection, group_id, owner, other)
    return group_id


async def admit(
    connection: Connection, group_id: bytes, admin: Person, newcomer: Person, role: Role = Role.MEMBER
) -> None:
    """Make the newcomer a member, as if the admin had admitted them (and given them the role)."""
    async with connection.transaction():
        joined = await says(
            connection,
            admin,
            group_id,
            MemberJoined,
            user_id=newcomer.user_id,
            invite_id=ZERO_ID,
            invite_signature=b"",
            **newcomer.keys(),
        )
        await append(connection, joined)
        await _insert_member(connection, group_id, newcomer, Role.MEMBER)
        if role != Role.MEMBER:
            await append(
                connection, await says(connection, admin, group_id, MemberRole, user_id=newcomer.user_id, role=role)
            )
            await connection.execute(
                "UPDATE members SET role = $3 WHERE group_id = $1 AND user_id = $2", group_id, newcomer.user_id, role
            )


async def _insert_member(connection: Connection, group_id: bytes, person: Person, role: Role) -> None:
    wrap = base64.b64encode(secrets.token_bytes(96)).decode()
    await connection.execute(
        "INSERT INTO members (group_id, user_id, encrypted_group_key, role) VALUES ($1, $2, $3, $4)",
        *(group_id, person.user_id, wrap, role),
    )
    await connection.execute(
        "INSERT INTO group_keys (group_id, user_id, key_epoch, encrypted_group_key)"
        " SELECT $1, $2, key_epoch, $3 FROM group_heads WHERE group_id = $1",
        *(group_id, person.user_id, wrap),
    )


async def append(connection: Connection, signed: SignedStatement) -> int:
    """Append a statement to its group's log as the relay does, unchecked and without its other effects: its seq."""
    statement = statements.decode(signed.statement)
    kind = statements.kind_of(statement)
    await connection.execute("SELECT FROM group_heads WHERE group_id = $1 FOR UPDATE", statement.group_id)
    seq = await connection.fetchval(
        "SELECT seq FROM append_control_v1($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        *("00" * 16, statement.group_id, kind, statement.statement_id, statement.actor_id),
        *(signed.statement, signed.signature, field_hash(signed.statement) + field_hash(signed.signature)),
        *(control_content_hash(signed.statement, signed.signature), kind in CHANGES_ROSTER),
    )
    assert isinstance(seq, int)
    return seq


def post_of(
    author: Person,
    group_id: bytes,
    *,
    parent_id: bytes | None = None,
    object_id: bytes | None = None,
    kind: Kind | None = None,
    body: bytes = b"a body",
) -> Post:
    """A thread, or a reply to `parent_id`, as handlers pass them to the writer."""
    kind = kind or (Kind.THREAD_POSTED if parent_id is None else Kind.REPLY_POSTED)
    title = b"a title" if kind == Kind.THREAD_POSTED else None
    hashes = [field_hash(text) for text in (title, body) if text is not None]
    return Post(
        group_id=group_id,
        kind=kind,
        object_id=object_id or new_id(),
        parent_id=parent_id,
        author_id=author.user_id,
        key_epoch=1,
        encrypted_title=title,
        encrypted_body=body,
        field_hashes=b"".join(hashes),
        content_hash=content_hash(parent_id or ZERO_ID, hashes),
    )

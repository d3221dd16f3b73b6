"""A relay's account requests on a test database, called directly: no sockets, real PostgreSQL.

async with desk_on(migrated_database) as desk:
    alice = await desk.newcomer("alice")
    await desk.ask(alice.peer, Logout)
"""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import msgspec

from orbital_protocol import frames
from orbital_protocol.codes import CloseCode
from orbital_protocol.frames import Ok, Request, SessionOk
from orbital_relay import hints
from orbital_relay.config import TokenKey
from orbital_relay.credentials import AccessTokens, Mint, Passwords, Workers
from orbital_relay.handlers.accounts import Accounts, Registration
from orbital_relay.handlers.key_replacement import KeyReplacement
from orbital_relay.handlers.sessions import Sessions, live_sessions
from orbital_relay.handlers.sign_in import SignIn
from orbital_relay.handlers.tokens import Tokens
from orbital_relay.limits import LoginBackoff
from orbital_relay.store.pool import Connection, Database, PoolSettings
from tests.people import Person, connected
from tests.worlds import LIMITS, NOW, RELAY_HEX, FakePeer, Published

S = 1_000_000
LIMIT_S = 10
PASSWORD = "correct horse"
COST = 4  # of bcrypt: as few rounds as it can do, so that tests take as little time
ACCESS_TTL_S = 900
REFRESH_TTL_S = 86_400
ATTEMPTS_FREE = 3
KEY = TokenKey("k1", bytes(range(32)))


@dataclass
class Guest:
    """A person, the connection that they registered on, and what they were given there."""

    person: Person
    peer: FakePeer
    session: SessionOk

    @property
    def user_id(self) -> bytes:
        return self.person.user_id


@dataclass
class Hinted:
    """What relays were told on the channel: by commits, and by what goes out after an answer."""

    payloads: list[str] = field(default_factory=list)

    def hint(self, payload: str) -> None:
        self.payloads.append(payload)

    def on_notification(self, _connection: Any, _pid: int, _channel: str, payload: object) -> None:
        self.payloads.append(str(payload))

    def revoked(self) -> list[tuple[str, bytes, int]]:
        """What was to be closed, in order."""
        found = (hints.parse(payload) for payload in self.payloads)
        return [(one.subject, one.subject_id, one.close_code) for one in found if isinstance(one, hints.Revoke)]


class Desk:
    """Handlers of accounts on a database, and a connection of the test's own for looking behind them."""

    def __init__(self, database: Database, sql: Connection, workers: Workers, told: Hinted, **limits: int) -> None:
        self.database = database
        self.sql = sql
        self.told = told
        self.published = Published()
        self.now = NOW
        self.workers = workers
        self.limits = msgspec.structs.replace(LIMITS, **limits)
        self.registration = Registration("open")
        self.mint = Mint(AccessTokens([KEY]), access_ttl_s=ACCESS_TTL_S, refresh_ttl_s=REFRESH_TTL_S)
        self.backoff = LoginBackoff(free=ATTEMPTS_FREE, base_s=1, max_s=60, clock=self.clock)
        self.passwords = Passwords(workers, COST)
        self.live = live_sessions(database, self.clock)
        self._ids = itertools.count(1)

    def clock(self) -> int:
        return self.now

    def _handlers(self) -> tuple[Accounts, Sessions, Tokens]:
        sign_in = SignIn(
            database=self.database,
            passwords=self.passwords,
            mint=self.mint,
            backoff=self.backoff,
            limits=self.limits,
            now=self.clock,
            relay_hex=RELAY_HEX,
        )
        replacement = KeyReplacement(self.database, self.workers, self.published, RELAY_HEX)
        accounts = Accounts(sign_in, self.registration, replacement, publisher=self.published, hint=self.told.hint)
        tokens = Tokens(self.database, self.limits, self.clock, RELAY_HEX)
        return accounts, Sessions(sign_in, live=self.live, hint=self.told.hint), tokens

    # ── requests ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def ask(self, peer: FakePeer, kind: type[Request], **fields: Any) -> Any:
        """Hand a request to its handler."""
        request = kind(id=next(self._ids), **fields)
        name = frames.type_of(request).replace(".", "_")
        handler = next(getattr(one, name) for one in self._handlers() if hasattr(one, name))
        answer: Ok = await handler(peer, request)
        assert answer.id == request.id
        assert isinstance(answer, frames.REQUESTS[kind])
        return answer

    async def newcomer(self, username: str, **fields: Any) -> Guest:
        """Somebody who has just registered."""
        person = Person(username)
        peer = stranger()
        return Guest(person, peer, await self.register(peer, person, **fields))

    async def register(self, peer: FakePeer, person: Person, **changes: Any) -> SessionOk:
        """Register this person; `changes` replace what they would send."""
        fields = {
            "user_id": person.user_id,
            "username": person.username,
            "password": PASSWORD,
            "public_key": person.public_key,
            "signing_key": person.signing_key,
            "is_bot": person.is_bot,
        }
        answer: SessionOk = await self.ask(peer, frames.Register, **{**fields, **changes})
        return answer

    async def login(self, username: str, password: str = PASSWORD, peer: FakePeer | None = None) -> SessionOk:
        """Log in, on a connection of its own unless one is given."""
        answer: SessionOk = await self.ask(peer or stranger(), frames.Login, username=username, password=password)
        return answer

    async def authenticate(self, access_token: str, peer: FakePeer | None = None) -> frames.AuthenticateOk:
        """Show a token, on a connection of its own unless one is given."""
        answer: frames.AuthenticateOk = await self.ask(
            peer or stranger(), frames.Authenticate, access_token=access_token
        )
        return answer

    async def refresh(self, refresh_token: str, peer: FakePeer | None = None) -> SessionOk:
        """Exchange a refresh token, on a connection of its own unless one is given."""
        answer: SessionOk = await self.ask(peer or stranger(), frames.Refresh, refresh_token=refresh_token)
        return answer

    async def until_blocked(self) -> None:
        """Return once somebody waits for a lock."""
        async with asyncio.timeout(LIMIT_S):
            while not await self.sql.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                await asyncio.sleep(0.01)

    async def revoked(self, *expected: tuple[str, bytes, CloseCode]) -> None:
        """Everything that relays have been told to close so far, in any order; what they were told is forgotten."""
        # A notification arrives with the answer to whatever the listening connection is asked next.
        await self.sql.execute("SELECT 1")
        assert sorted(self.told.revoked()) == sorted((s, i, int(code)) for s, i, code in expected)
        self.told.payloads.clear()


def stranger(address: str = "192.0.2.1") -> FakePeer:
    """A connection that nobody has authenticated yet."""
    return FakePeer(None, address)


@asynccontextmanager
async def desk_on(dsn: str, **limits: int) -> AsyncIterator[Desk]:
    """The desk of a relay on this (migrated) database; `limits` as in `hello`."""
    database = Database(PoolSettings(dsn), RELAY_HEX)
    workers = Workers(threads=2, queue=64)
    told = Hinted()
    await database.open()
    try:
        async with connected(dsn) as sql:
            assert isinstance(sql, asyncpg.Connection)
            await sql.add_listener(hints.CHANNEL, told.on_notification)
            desk = Desk(database, sql, workers, told, **limits)
            looking_up = asyncio.create_task(desk.live.run(), name="sessions")
            try:
                yield desk
            finally:
                looking_up.cancel()
                await asyncio.wait([looking_up])
    finally:
        workers.close()
        await database.close()

"""A relay's group requests on a test database, called directly: no sockets, real PostgreSQL.

async with world_on(migrated_database) as world:
    alice, bob = await world.person("alice"), await world.person("bob")
    group_id = await world.group(alice, bob)
    await world.tell(alice, group_id, frames.MemberRemove, MemberRemoved, user_id=bob.user_id, ban=False)
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from msgspec.structs import replace

from orbital_protocol import ZERO_HASH, ZERO_ID, chain, frames, statements
from orbital_protocol.codes import CHANGES_ROSTER, CloseCode, ErrorCode, Kind
from orbital_protocol.frames import ControlRequest, Event, Frame, Limits, Ok, Request, SignedStatement
from orbital_protocol.statements import Statement
from orbital_relay.caller import Caller
from orbital_relay.control import Control
from orbital_relay.errors import RequestError
from orbital_relay.handlers.groups import Groups
from orbital_relay.handlers.invites import Invites
from orbital_relay.handlers.members import Members
from orbital_relay.limits import KeyedBuckets
from orbital_relay.store import control as control_store
from orbital_relay.store import posts
from orbital_relay.store.events import read_events
from orbital_relay.store.pool import Connection, Database, PoolSettings
from orbital_relay.store.posts import Appended
from tests.people import Person, connected, enroll, found_group, new_id, post_of, says, view

LIMITS = Limits(
    max_frame_bytes=1_048_576,
    max_unauthenticated_frame_bytes=16_384,
    max_depth=8,
    max_in_flight=64,
    max_frames_per_second=0,
    max_title_bytes=4_125,
    max_body_bytes=65_565,
    max_name_bytes=512,
    max_wrap_bytes=1_024,
    max_statement_bytes=2_048,
    max_signal_bytes=1_280,
    signals_per_second=20,
    max_members_per_group=50,
    max_groups_per_user=20,
    max_subscriptions=20,
    max_invites_per_group=10,
    max_join_requests_per_group=10,
    max_cursors_per_user=10,
    max_tokens_per_user=10,
    max_sessions_per_user=10,
    max_backup_bytes=4_096,
    max_media_bytes=10_485_760,
    max_metadata_bytes=4_125,
    media_chunk_bytes=131_072,
    media_window=4,
    max_uploads_per_user=8,
    page_limit=100,
    rekeys_per_hour=10,
    knocks_per_hour=10,
)
RELAY_HEX = "ab" * 16
GUESSES_PER_HOUR = 20
RACE_LIMIT_S = 10
NOW = 1_800_000_000_000_000
"""What the clock of the world shows: microseconds since 1970 UTC."""


@dataclass
class FakePeer:
    """A connection, as far as handlers see it."""

    caller: Caller | None
    address: str = "192.0.2.1"
    connection_id: bytes = field(default_factory=new_id)
    pushed: list[Frame] = field(default_factory=list)
    closed: list[CloseCode] = field(default_factory=list)

    def authenticate(self, caller: Caller) -> None:
        self.caller = caller

    def push(self, frame: Frame) -> None:
        self.pushed.append(frame)

    def after_answer(self, callback: Callable[[], None]) -> None:
        callback()

    def close_soon(self, code: CloseCode) -> None:
        self.closed.append(code)


@dataclass
class Published:
    """Keeps what handlers publish."""

    events: list[Event] = field(default_factory=list)

    def publish(self, events: Sequence[Event]) -> None:
        self.events.extend(events)


class World:
    """Handlers on a database, the people in it, and a connection of the test's own for looking behind them."""

    def __init__(self, database: Database, sql: Connection, limits: Limits) -> None:
        self.database = database
        self.sql = sql
        self.limits = limits
        self.published = Published()
        self.now_s = 0.0
        self.rekeys = self._buckets(limits.rekeys_per_hour)
        self.guesses = self._buckets(GUESSES_PER_HOUR)
        self.knocks = self._buckets(limits.knocks_per_hour)
        control = Control(database, self.published, RELAY_HEX)
        self.groups = Groups(control, database, limits, self.rekeys)
        self.members = Members(control, database, limits)
        self.invites = Invites(
            control=control,
            database=database,
            limits=limits,
            relay_hex=RELAY_HEX,
            clock=lambda: NOW,
            guesses=self.guesses,
            knocks=self.knocks,
        )
        self._ids = itertools.count(1)

    def _buckets(self, per_hour: int) -> KeyedBuckets:
        return KeyedBuckets(per_hour / 3600, per_hour, lambda: self.now_s)

    async def person(self, username: str, *, is_bot: bool = False) -> Person:
        """Somebody with an account."""
        return await enroll(self.sql, username, is_bot=is_bot)

    async def people(self, *usernames: str) -> list[Person]:
        """Several of them."""
        return [await self.person(username) for username in usernames]

    async def group(self, owner: Person, *others: Person, history: int = 1) -> bytes:
        """A group of theirs."""
        return await found_group(self.sql, owner, *others, history=history)

    # ── requests ────────────────────────────────────────────────────────────────────────────────────────────────────

    def request(self, kind: type[Request], **fields: Any) -> Any:
        """A request with an id of its own."""
        return kind(id=next(self._ids), **fields)

    def carrying(self, kind: type[ControlRequest], signed: SignedStatement, **fields: Any) -> Any:
        """A control request that carries this statement."""
        return self.request(kind, statement=signed.statement, signature=signed.signature, **fields)

    async def ask(self, actor: Person, kind: type[Request], **fields: Any) -> Any:
        """Send a request that carries no statement."""
        return await self.send(actor, self.request(kind, **fields))

    async def tell(
        self,
        actor: Person,
        group_id: bytes,
        kind: type[ControlRequest],
        statement: type[Statement],
        beside: dict[str, Any] | None = None,
        **elements: Any,
    ) -> Any:
        """Sign a statement with these elements on the group's head, and send it; `beside` is what it travels with."""
        signed = await says(self.sql, actor, group_id, statement, **elements)
        return await self.send(actor, self.carrying(kind, signed, **(beside or {})))

    async def send(self, actor: Person, request: Request, peer: FakePeer | None = None) -> Any:
        """Hand a request to its handler."""
        answer: Ok = await self._handler(request)(peer or FakePeer(actor.caller()), request)
        assert answer.id == request.id
        assert isinstance(answer, frames.REQUESTS[type(request)])
        return answer

    def _handler(self, request: Request) -> Callable[[FakePeer, Any], Any]:
        subject, _, verb = frames.type_of(request).partition(".")
        match subject, verb:
            case ("group", "join" | "knock" | "admit" | "deny") | ("invite", _):
                return getattr(self.invites, verb)
            case "group", _:
                return getattr(self.groups, verb)
            case "member", _:
                return getattr(self.members, verb)
            case "post", "delete":
                return self.members.delete_post
            case _:
                raise AssertionError(f"{subject}.{verb} is no request of groups")

    async def race(self, group_id: bytes, *runners: Coroutine[Any, Any, Any]) -> list[Any]:
        """What becomes of requests that meet at a group's lock, in this order; a refusal is its code.

        The lock is held until every one of them waits for it: none has read anything that another one then changes.
        """
        tasks = []
        async with self.sql.transaction():
            await control_store.lock(self.sql, group_id)
            for number, runner in enumerate(runners, start=1):
                tasks.append(asyncio.create_task(runner, name=f"runner {number}"))
                await self.waiting_for_locks(number)
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        return [_outcome(outcome) for outcome in outcomes]

    async def waiting_for_locks(self, count: int) -> None:
        """Wait until so many transactions wait for a lock."""
        async with asyncio.timeout(RACE_LIMIT_S):
            while await self.sql.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted") < count:
                await asyncio.sleep(0.002)

    # ── posts ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def post(
        self, author: Person, group_id: bytes, parent_id: bytes | None = None, kind: Kind | None = None
    ) -> bytes:
        """Append a thread, or a reply to a thread (or what `kind` says); return its id."""
        outcome, object_id = await self.try_post(author, group_id, parent_id, kind)
        assert isinstance(outcome, Appended), outcome
        return object_id

    async def try_post(
        self, author: Person, group_id: bytes, parent_id: bytes | None = None, kind: Kind | None = None
    ) -> tuple[Appended | ErrorCode, bytes]:
        """The same, with whatever becomes of it."""
        key_epoch = (await view(self.sql, group_id)).key_epoch
        post = replace(post_of(author, group_id, parent_id=parent_id, kind=kind), key_epoch=key_epoch)
        async with self.sql.transaction():
            (outcome,) = await posts.append_posts(self.sql, RELAY_HEX, [post])
        return outcome, post.object_id


@asynccontextmanager
async def world_on(dsn: str, **limits: int) -> AsyncIterator[World]:
    """A world on this migrated database; `limits` replace some of LIMITS. Its logs are verified at the end."""
    database = Database(PoolSettings(dsn, min_size=1, max_size=4), "test")
    await database.open()
    try:
        async with connected(dsn) as sql:
            world = World(database, sql, _with(LIMITS, **limits))
            yield world
            await verify_everything(sql)
    finally:
        await database.close()


def _outcome(outcome: Any) -> Any:
    match outcome:
        case RequestError():
            return outcome.code
        case BaseException():
            raise outcome
        case _:
            return outcome


def _with(limits: Limits, **changes: int) -> Limits:
    return Limits(**{**{name: getattr(limits, name) for name in Limits.__struct_fields__}, **changes})


@contextmanager
def refused(code: ErrorCode) -> Iterator[pytest.ExceptionInfo[RequestError]]:
    """What is in this block ends with an error of this code."""
    with pytest.raises(RequestError) as info:
        yield info
    assert info.value.code == code, f"{info.value.code}: {info.value}"


# ── logs ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def verify_everything(sql: Connection) -> None:
    """Verify the log of every group, and that its last statement about the roster speaks of the members there are."""
    for head in await sql.fetch("SELECT * FROM group_heads"):
        if head["deleted_at"] is None:
            events = await verified_log(sql, head["group_id"])
            await _verify_roster(sql, head, events)


async def verified_log(sql: Connection, group_id: bytes) -> list[Event]:
    """A group's events, each recomputed with `orbital_protocol.chain` and signed by a key that its actor has or had."""
    head = await sql.fetchrow("SELECT * FROM group_heads WHERE group_id = $1", group_id)
    assert head is not None
    events = await read_events(sql, group_id, 0, 10_000)
    rows = await sql.fetch("SELECT seq, parent_id FROM events WHERE group_id = $1", group_id)
    parents = {row["seq"]: row["parent_id"] for row in rows}
    assert [event.seq for event in events] == [*range(1, head["last_seq"] + 1)]
    previous = ZERO_HASH
    for event in events:
        assert event.content_hash == _content_hash(event, parents[event.seq])
        assert event.hash == hash_of(event, previous)
        await _verify_signature(sql, event)
        previous = event.hash
    assert head["head_hash"] == previous
    return events


def hash_of(event: Event, previous: bytes) -> bytes:
    """The event's hash, computed by the protocol package."""
    return chain.event_hash(
        previous_hash=previous,
        group_id=event.group_id,
        seq=event.seq,
        kind=event.kind,
        object_id=event.object_id,
        actor_id=event.actor_id,
        key_epoch=event.key_epoch,
        created_at=event.created_at,
        content_hash=event.content_hash,
    )


def _content_hash(event: Event, parent_id: bytes | None) -> bytes:
    if event.statement is not None and event.signature is not None:
        return chain.control_content_hash(event.statement, event.signature)
    if event.actor_id == ZERO_ID:
        return chain.RELAY_CONTENT_HASH
    texts = [text for text in (event.encrypted_title, event.encrypted_body) if text is not None]
    hashes = event.field_hashes or [chain.field_hash(text) for text in texts]
    return chain.content_hash(parent_id or ZERO_ID, hashes)


async def _verify_signature(sql: Connection, event: Event) -> None:
    if event.statement is None or event.signature is None:
        return
    statement = statements.decode(event.statement)
    assert (statement.group_id, statement.actor_id, statement.statement_id, statement.key_epoch) == (
        *(event.group_id, event.actor_id, event.object_id, event.key_epoch),
    )
    keys = await sql.fetch("SELECT signing_key FROM user_keys WHERE user_id = $1", event.actor_id)
    assert any(statements.verify(event.statement, event.signature, key["signing_key"]) for key in keys)


async def _verify_roster(sql: Connection, head: Any, events: list[Event]) -> None:
    last = next((event for event in reversed(events) if event.kind in CHANGES_ROSTER), None)
    assert head["roster_seq"] == (last.seq if last else 0)
    if last is None or last.statement is None:
        return
    roster = (await view(sql, head["group_id"])).roster
    said = statements.decode(last.statement).roster_hash
    assert said in (statements.roster_hash(roster.values()), ZERO_HASH)

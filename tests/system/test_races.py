"""Requests that meet: each race is run again and again on two relays at once, in a fresh group every time.

Whoever wins, what was acknowledged must be true: the log holds it where the answer said, the chain verifies, the
members that statements tell of are those that there are, and listeners on both relays have the same log.
"""

import asyncio
import base64
import os
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any, TypeVar

import bcrypt
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec.structs import replace
from websockets.exceptions import ConnectionClosed

from orbital_protocol import ZERO_HASH, frames
from orbital_protocol.chain import field_hash
from orbital_protocol.codes import RETRYABLE, CloseCode, ErrorCode, History, Kind, Role
from orbital_protocol.frames import ControlOk, ControlRequest, Event, Ok, PostOk, SubscribeGroup, WrappedKey
from orbital_protocol.statements import (
    GroupCreated,
    GroupDeleted,
    GroupRekeyed,
    GroupTransferred,
    GroupUpdated,
    InviteCreated,
    MemberJoined,
    MemberLeft,
    MemberRemoved,
    Statement,
    join_preimage,
)
from orbital_relay.store.pool import Connection
from tests.clients import roster_of
from tests.people import Person, View, admit, connected, enroll, found_group, new_id, says, sign, view, write
from tests.postgres import TestPostgres
from tests.relays import RunningRelay, running_relay
from tests.talk import Refused, Talk, check_steps, talking, token_of
from tests.worlds import verified_log

pytestmark = [pytest.mark.timeout(120), pytest.mark.asyncio(loop_scope="module")]

ROUNDS = 30
SETTINGS: dict[str, Any] = {
    "sweep_ms": 600_000,  # nothing may depend on the sweep, as long as no notification is lost
    "rekeys_per_hour": 1_000_000,
    "invite_attempts_per_minute": 1_000_000,
    "max_groups_per_user": 1_000_000,
}
LIMIT_S = 15
IN_FLIGHT = 8
PASSWORD = "correct horse"
MEMBERS = ("ann", "bob", "cleo", "dan")
STRANGERS = ("eve", "fay")
ENTRANTS = ((0, "bob"), (1, "cleo"))
"""Relays, and who uses them."""
WITNESS = "wes"
STALE = (ErrorCode.STALE_BASE, ErrorCode.STALE_KEY_EPOCH)

R = TypeVar("R", bound=Ok)


# ── the arena ───────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Arena:
    """Two relays on one database, people with accounts, and the connections that they need."""

    relays: tuple[RunningRelay, RunningRelay]
    sql: Connection
    stack: AsyncExitStack
    people: dict[str, Person] = field(default_factory=dict)
    talks: dict[tuple[str, int], Talk] = field(default_factory=dict)

    async def enroll(self, name: str, **options: Any) -> Person:
        self.people[name] = await enroll(self.sql, name, **options)
        return self.people[name]

    async def talk(self, name: str, relay: int) -> Talk:
        """Somebody's connection to one of the relays, made when it is first asked for."""
        talk = self.talks.get((name, relay))
        if talk is None:
            token = await token_of(self.sql, self.people[name])
            talk = await self.stack.enter_async_context(talking(self.relays[relay].url, token))
            self.talks[name, relay] = talk
        return talk

    async def both(self, name: str) -> tuple[Talk, Talk]:
        """Somebody's connections to both relays."""
        return await self.talk(name, 0), await self.talk(name, 1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def arena(embedded_postgres: TestPostgres) -> AsyncIterator[Arena]:
    async with embedded_postgres.migrated_database() as dsn, connected(dsn) as sql:
        async with AsyncExitStack() as stack:
            first, second = [await stack.enter_async_context(running_relay(dsn, **SETTINGS)) for _ in range(2)]
            for relay in (first, second):
                await relay.logged("listener.connected")
            arena = Arena((first, second), sql, stack)
            for name in (*MEMBERS, *STRANGERS, WITNESS):
                await arena.enroll(name)
            yield arena
        # The relays' connections have ended, so that what they count is all there.
        assert not await sql.fetchval("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")


class Race:
    """One group, with a listener on each relay."""

    def __init__(self, arena: Arena, group_id: bytes) -> None:
        self.arena = arena
        self.sql = arena.sql
        self.group_id = group_id
        self.listeners: dict[tuple[str, int], Talk] = {}
        self._streams: list[Stream] = []

    async def close(self) -> None:
        """End what is still under way."""
        for stream in self._streams:
            await stream.close()
        for talk in self.listeners.values():
            if not talk.is_closed.is_set():
                await talk.ask(frames.Unsubscribe, groups=[self.group_id])

    async def stream(self, name: str, relay: int) -> "Stream":
        """Somebody posts; when this returns, posts are being acknowledged, and more are under way."""
        stream = Stream(self, await self.arena.talk(name, relay))
        self._streams.append(stream)
        await stream.flows()
        return stream

    async def listen(self, name: str, relay: int) -> Talk:
        """Subscribe somebody, from the log's beginning, until they are live."""
        talk = await self.arena.talk(name, relay)
        wanted = SubscribeGroup(group_id=self.group_id, after_seq=0, after_hash=ZERO_HASH)
        [group] = (await talk.ask(frames.Subscribe, groups=[wanted])).groups
        assert group.status == "resumed"
        while (await talk.hear(frames.Live)).group_id != self.group_id:
            pass
        self.listeners[name, relay] = talk
        return talk

    def heard(self, name: str, relay: int) -> list[Event]:
        """What a listener has heard of this group."""
        return [event for event in self.listeners[name, relay].events if event.group_id == self.group_id]

    async def gone(self, name: str, relay: int) -> str:
        """Wait until a listener is told that the group is gone, once; say why."""
        talk = self.listeners[name, relay]

        def reasons() -> list[str]:
            pushes = [push for push in talk.pushes if isinstance(push, frames.GroupGone)]
            return [push.reason for push in pushes if push.group_id == self.group_id]

        async with asyncio.timeout(LIMIT_S), talk._changed:
            await talk._changed.wait_for(reasons)
        await talk.ask(frames.Ping)  # whatever was queued before its answer has come now
        [reason] = reasons()
        return reason

    async def says(
        self,
        name: str,
        relay: int,
        request: type[ControlRequest],
        kind: type[Statement],
        beside: dict[str, Any] | None = None,
        **elements: Any,
    ) -> "Ready":
        """A statement on the group's present head, ready to be sent by somebody to a relay."""
        signed = await says(self.sql, self.arena.people[name], self.group_id, kind, **elements)
        fields = {"statement": signed.statement, "signature": signed.signature, **(beside or {})}
        return Ready(await self.arena.talk(name, relay), request, fields)

    async def rekey(self, name: str, relay: int) -> "Ready":
        """A new key for the members that there are now."""
        seen, encrypted_name = await view(self.sql, self.group_id), os.urandom(64)
        wraps = [
            WrappedKey(user_id=user_id, rsa_thumbprint=entry.rsa_thumbprint, encrypted_group_key=os.urandom(96))
            for user_id, entry in seen.roster.items()
        ]
        return await self.says(
            name,
            relay,
            frames.GroupRekey,
            GroupRekeyed,
            beside={"encrypted_name": encrypted_name, "encrypted_group_keys": wraps},
            new_key_epoch=seen.key_epoch + 1,
            key_commitment=ZERO_HASH,
            name_hash=field_hash(encrypted_name),
            previous_key=b"sealed",
        )

    async def remove(self, name: str, relay: int, target: str) -> "Ready":
        user_id = self.arena.people[target].user_id
        return await self.says(name, relay, frames.MemberRemove, MemberRemoved, user_id=user_id, ban=False)

    async def link(self, name: str, *, max_uses: int) -> "Link":
        """A link that an admin makes."""
        link = Link(self.group_id)
        ready = await self.says(
            name,
            0,
            frames.InviteCreate,
            InviteCreated,
            beside={"sealed_group_key": b"sealed"},
            invite_id=link.invite_id,
            invite_key=link.key.public_key().public_bytes_raw(),
            expires_at=0,
            max_uses=max_uses,
        )
        await ready.send()
        return link

    async def join(self, name: str, relay: int, link: "Link") -> "Ready":
        person = self.arena.people[name]
        return await self.says(
            name,
            relay,
            frames.GroupJoin,
            MemberJoined,
            beside={"encrypted_group_key": b"wrapped"},
            user_id=person.user_id,
            invite_id=link.invite_id,
            invite_signature=link.signature_for(person),
            **person.keys(),
        )

    def thread(self, key_epoch: int = 1) -> dict[str, Any]:
        """A thread's fields."""
        return {
            "group_id": self.group_id,
            "key_epoch": key_epoch,
            "thread_id": new_id(),
            "encrypted_title": b"title",
            "encrypted_body": b"body",
        }

    async def post(self, name: str, relay: int, *, key_epoch: int) -> None:
        """Post a thread, which must be taken."""
        await (await self.arena.talk(name, relay)).ask(frames.ThreadPost, **self.thread(key_epoch))

    async def everybody_has(self, wraps: Sequence[WrappedKey]) -> None:
        """The members' newest wraps are these."""
        rows = await self.sql.fetch(
            "SELECT user_id, encrypted_group_key FROM members WHERE group_id = $1", self.group_id
        )
        newest = {user_id: base64.b64decode(wrap) for user_id, wrap in rows}
        assert newest == {wrap.user_id: wrap.encrypted_group_key for wrap in wraps}

    async def everybody_has_a_key(self) -> None:
        """Every member has a wrap of the key in force."""
        holders = await self.sql.fetch(
            "SELECT k.user_id FROM group_keys k JOIN group_heads h USING (group_id, key_epoch) WHERE group_id = $1",
            self.group_id,
        )
        assert (await view(self.sql, self.group_id)).roster.keys() <= {row["user_id"] for row in holders}

    async def authors(self) -> list[bytes | None]:
        """The threads' authors, as far as they have accounts."""
        rows = await self.sql.fetch("SELECT author_id FROM threads WHERE group_id = $1 ORDER BY seq", self.group_id)
        return [row["author_id"] for row in rows]

    async def ended(self, seq: int, hash_: bytes, streams: Sequence["Stream"]) -> None:
        """The group is deleted: nothing is left of it but its last event, and every listener is told.

        Its last events may be gone before they reach a listener on the other relay.
        """
        answers = {answer.seq: answer.hash for stream in streams for answer in stream.acknowledged}
        for name, relay in self.listeners:
            assert await self.gone(name, relay) == "deleted"
            heard = self.heard(name, relay)
            check_steps(heard)
            assert all(event.hash == answers.get(event.seq, event.hash) for event in heard)
            assert heard[-1].seq < seq or (heard[-1].seq, heard[-1].hash) == (seq, hash_)
        rows = await self.sql.fetch("SELECT seq, hash FROM events WHERE group_id = $1", self.group_id)
        assert [tuple(row) for row in rows] == [(seq, hash_)]
        for table in ("groups", "members", "threads", "group_keys"):
            column = "id" if table == "groups" else "group_id"
            assert not await self.sql.fetch(f"SELECT FROM {table} WHERE {column} = $1", self.group_id)

    async def settle(self) -> list[Event]:
        """The race is over: return the verified log, which the listeners who are still members have in full."""
        log = await verified_log(self.sql, self.group_id)
        roster = (await view(self.sql, self.group_id)).roster
        assert roster_of(log) == roster
        for (name, _), talk in self.listeners.items():
            if self.arena.people[name].user_id in roster:
                await talk.has(log[-1].seq, self.group_id)
        for (name, relay), talk in self.listeners.items():
            await talk.ask(frames.Ping)  # whatever was queued before its answer has come now
            heard = self.heard(name, relay)
            check_steps(heard)
            assert [event.hash for event in heard] == [event.hash for event in log[: len(heard)]]
            assert len(heard) == len(log) or self.arena.people[name].user_id not in roster
        return log


@dataclass(frozen=True)
class Ready:
    """A request that is made when its moment has come."""

    talk: Talk
    request: type[frames.Request]
    fields: dict[str, Any]

    def send(self) -> "asyncio.Future[Ok]":
        return self.talk.send(self.request(id=self.talk.next_id(), **self.fields))

    def by(self, talk: Talk) -> "Ready":
        """The very same on another connection."""
        return Ready(talk, self.request, self.fields)


@dataclass(frozen=True)
class Link:
    """An invite link as whoever holds it knows it."""

    group_id: bytes
    invite_id: bytes = field(default_factory=new_id)
    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)

    def signature_for(self, newcomer: Person) -> bytes:
        preimage = join_preimage(
            group_id=self.group_id,
            invite_id=self.invite_id,
            user_id=newcomer.user_id,
            signing_key=newcomer.signing_key,
            rsa_thumbprint=newcomer.rsa_thumbprint,
        )
        return self.key.sign(preimage)


@asynccontextmanager
async def racing(arena: Arena, owner: str, *others: str, admin: str | None = None) -> AsyncIterator[Race]:
    """A fresh group of these people and the witness, who listens on both relays."""
    people = arena.people
    group_id = await found_group(arena.sql, people[owner], people[WITNESS], *(people[name] for name in others))
    if admin is not None:
        await admit(arena.sql, group_id, people[owner], people[admin], Role.ADMIN)
    race = Race(arena, group_id)
    try:
        for relay in (0, 1):
            await race.listen(WITNESS, relay)
        yield race
    finally:
        await race.close()


# ── running ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def outcomes(answers: Iterable[Awaitable[R]]) -> list[R | Refused]:
    """What becomes of requests that are under way at the same time; each is answered in time."""
    async with asyncio.timeout(LIMIT_S):
        results = await asyncio.gather(*answers, return_exceptions=True)
    return [_answer(result) for result in results]


def _answer(result: R | BaseException) -> R | Refused:
    if isinstance(result, BaseException) and not isinstance(result, Refused):
        raise result
    return result


async def meet(round_: int, *requests: Ready) -> list[Ok | Refused]:
    """Make requests at the same time, each round beginning with another; the answers in the order of the arguments."""
    order = [(round_ + number) % len(requests) for number in range(len(requests))]
    sent = {number: requests[number].send() for number in order}
    return await outcomes(sent[number] for number in range(len(requests)))


def the_only_winner(answers: Sequence[Ok | Refused], *allowed: ErrorCode) -> int:
    """The number of the one request that was carried out; the others were refused with one of these codes."""
    winners = [number for number, answer in enumerate(answers) if isinstance(answer, Ok)]
    refusals = {answer.code for answer in answers if isinstance(answer, Refused)}
    assert len(winners) == 1, answers
    assert refusals <= set(allowed), answers
    return winners[0]


class Stream:
    """Threads posted one upon the other, several under way at a time, until one is refused."""

    def __init__(self, race: Race, talk: Talk) -> None:
        self.acknowledged: list[PostOk] = []
        self.refused: ErrorCode | None = None
        self._race = race
        self._talk = talk
        self._flowing = asyncio.Event()
        self._task = asyncio.create_task(self._run(), name="stream")

    def _post(self) -> "asyncio.Future[Ok]":
        answer = self._talk.send(frames.ThreadPost(id=self._talk.next_id(), **self._race.thread()))
        answer.add_done_callback(_take_note)
        return answer

    async def _run(self) -> None:
        try:
            await self._post_on()
        finally:
            self._flowing.set()

    async def _post_on(self) -> None:
        under_way = deque(self._post() for _ in range(IN_FLIGHT))
        while under_way:
            try:
                answer = await under_way.popleft()
            except Refused as refused:
                self.refused = ErrorCode(refused.code)
            except (ConnectionError, ConnectionClosed):
                return  # the account is gone, and its connections with it
            else:
                assert self.refused is None, "carried out after an earlier one was refused"
                assert isinstance(answer, PostOk)
                self.acknowledged.append(answer)
                under_way.append(self._post())
            if len(self.acknowledged) > IN_FLIGHT:
                self._flowing.set()

    async def flows(self) -> None:
        """Wait until posts are being acknowledged."""
        async with asyncio.timeout(LIMIT_S):
            await self._flowing.wait()

    async def end(self) -> list[int]:
        """Wait until a post was refused; return the seqs of those that were acknowledged."""
        async with asyncio.timeout(LIMIT_S):
            await self._task
        return [answer.seq for answer in self.acknowledged]

    async def close(self) -> None:
        """Stop, whatever the relays say."""
        self._task.cancel()
        await asyncio.wait({self._task})


def _take_note(answer: "asyncio.Future[Ok]") -> None:
    """Nobody may be left to hear of a failure: when the connection is gone, or the test has failed already."""
    if not answer.cancelled():
        answer.exception()


def all_in_place(streams: Sequence[Stream], log: Sequence[Event]) -> None:
    """Every acknowledged post is in the log where its answer said."""
    hashes = {event.seq: event.hash for event in log}
    assert all(hashes[answer.seq] == answer.hash for stream in streams for answer in stream.acknowledged)


async def one_by_one(requests: Iterable[Ready]) -> list[Ok]:
    """Make requests, each when the one before was answered, until one fails or the connection ends; the successes."""
    done: list[Ok] = []
    async with asyncio.timeout(LIMIT_S):
        for request in requests:
            try:
                done.append(await request.send())
            except (Refused, ConnectionError, ConnectionClosed):
                break
    return done


# ── posts, and what ends them ───────────────────────────────────────────────────────────────────────────────────────


async def test_no_post_is_acknowledged_after_its_authors_removal(arena: Arena) -> None:
    """The group goes on at once, and the removed hear nothing of it on any relay."""
    for round_ in range(ROUNDS):
        async with racing(arena, "ann", "bob", "cleo") as race:
            for relay in (0, 1):
                await race.listen("bob", relay)
            removal = await race.remove("ann", round_ // 2 % 2, "bob")
            streams = [await race.stream("bob", round_ % 2), await race.stream("cleo", 1 - round_ % 2)]
            removed = await removal.send()
            assert isinstance(removed, ControlOk)
            await (await race.rekey("cleo", round_ % 2)).send()
            await race.post("cleo", round_ % 2, key_epoch=2)
            for stream in streams:
                assert max(await stream.end()) < removed.seq
            assert streams[0].refused == ErrorCode.NOT_FOUND
            assert streams[1].refused in (ErrorCode.REKEY_REQUIRED, ErrorCode.STALE_KEY_EPOCH)
            log = await race.settle()
            all_in_place(streams, log)
            kinds = [event.kind for event in log]
            assert kinds[removed.seq - 1 :] == [Kind.MEMBER_REMOVED, Kind.GROUP_REKEYED, Kind.THREAD_POSTED]
            for relay in (0, 1):
                assert race.heard("bob", relay)[-1].seq == removed.seq
                assert await race.gone("bob", relay) == "removed"


async def test_no_post_under_the_old_key_is_acknowledged_after_a_rekey(arena: Arena) -> None:
    for round_ in range(ROUNDS):
        async with racing(arena, "ann", "bob", "cleo") as race:
            rekey = await race.rekey("ann", round_ // 2 % 2)
            streams = [await race.stream("bob", round_ % 2), await race.stream("cleo", 1 - round_ % 2)]
            rekeyed = await rekey.send()
            assert isinstance(rekeyed, ControlOk)
            for stream in streams:
                assert max(await stream.end()) < rekeyed.seq
                assert stream.refused == ErrorCode.STALE_KEY_EPOCH
            await race.post("bob", round_ % 2, key_epoch=2)
            log = await race.settle()
            all_in_place(streams, log)
            assert [event.key_epoch for event in log] == [1] * rekeyed.seq + [2]


async def test_no_post_is_acknowledged_after_its_groups_deletion(arena: Arena) -> None:
    for round_ in range(ROUNDS):
        async with racing(arena, "ann", "bob", "cleo") as race:
            deletion = await race.says("ann", round_ // 2 % 2, frames.GroupDelete, GroupDeleted)
            streams = [await race.stream("bob", round_ % 2), await race.stream("cleo", 1 - round_ % 2)]
            deleted = await deletion.send()
            assert isinstance(deleted, ControlOk)
            for stream in streams:
                assert max(await stream.end()) < deleted.seq
                assert stream.refused == ErrorCode.NOT_FOUND
            await race.ended(deleted.seq, deleted.hash, streams)


async def doom(arena: Arena, name: str) -> Person:
    """Somebody whose account is going to be deleted."""
    password_hash = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
    return await arena.enroll(name, password_hash=password_hash)


async def deletion_of(arena: Arena, name: str, relay: int) -> Ready:
    """The request to delete one's account, and one's groups with it."""
    fields = {"password": PASSWORD, "delete_groups": True}
    return Ready(await arena.talk(name, relay), frames.AccountDelete, fields)


async def insist(request: Ready) -> Ok:
    """Make a request again as long as the relay says that this may help: joins upon joins may slip in before it."""
    while True:
        try:
            return await request.send()
        except Refused as refused:
            if refused.code not in RETRYABLE:
                raise


async def test_a_deleted_account_posts_no_more_and_its_posts_have_no_author(arena: Arena) -> None:
    """Three groups go on without the user, one that they own ends; posts stream into all of them."""
    for round_ in range(ROUNDS // 2):
        doomed = await doom(arena, f"poster_{round_}")
        here, there = round_ % 2, 1 - round_ % 2
        async with AsyncExitStack() as stack:
            shared = [await stack.enter_async_context(racing(arena, "ann", "bob", doomed.username)) for _ in range(3)]
            own = await stack.enter_async_context(racing(arena, doomed.username, "bob"))
            deletion = await deletion_of(arena, doomed.username, here)
            theirs = {race: await race.stream(doomed.username, there) for race in (*shared, own)}
            others = {race: await race.stream("bob", here) for race in (*shared, own)}
            async with asyncio.timeout(LIMIT_S):
                await deletion.send()
            for stream in (*theirs.values(), *others.values()):
                await stream.end()
            for talk in await arena.both(doomed.username):
                assert await talk.closed() == CloseCode.ACCOUNT_DELETED
            for race in shared:
                assert others[race].refused == ErrorCode.REKEY_REQUIRED
                log = await race.settle()
                all_in_place([theirs[race], others[race]], log)
                assert (log[-1].kind, log[-1].object_id) == (Kind.MEMBER_LEFT, doomed.user_id)
                posts = [event.actor_id for event in log if event.kind == Kind.THREAD_POSTED]
                assert await race.authors() == [None if author == doomed.user_id else author for author in posts]
            assert others[own].refused == ErrorCode.NOT_FOUND
            [last] = await arena.sql.fetch("SELECT seq, hash FROM events WHERE group_id = $1", own.group_id)
            await own.ended(last["seq"], last["hash"], [theirs[own], others[own]])


async def test_a_deleted_account_is_in_no_group_however_late_it_joined(arena: Arena) -> None:
    for round_ in range(ROUNDS // 2):
        doomed = await doom(arena, f"joiner_{round_}")
        here, there = round_ % 2, 1 - round_ % 2
        async with AsyncExitStack() as stack:
            races = [await stack.enter_async_context(racing(arena, "ann", "bob")) for _ in range(6)]
            joins = [await race.join(doomed.username, there, await race.link("ann", max_uses=0)) for race in races]
            deletion = await deletion_of(arena, doomed.username, here)
            async with asyncio.timeout(LIMIT_S):
                joined, _ = await asyncio.gather(one_by_one(joins), insist(deletion))
            for talk in await arena.both(doomed.username):
                assert await talk.closed() == CloseCode.ACCOUNT_DELETED
            for number, race in enumerate(races):
                kinds = [event.kind for event in await race.settle()]
                came_and_went = kinds[-2:] == [Kind.MEMBER_JOINED, Kind.MEMBER_LEFT]
                assert came_and_went == (Kind.MEMBER_LEFT in kinds)
                assert came_and_went or number >= len(joined)


async def test_two_accounts_and_a_group_are_deleted_at_once(arena: Arena) -> None:
    """They share groups, each owns one in which the other posted, and posted in the one that goes, and left it."""
    for round_ in range(ROUNDS // 2):
        names = [(await doom(arena, f"{name}_{round_}")).username for name in ("rhea", "zeus")]
        async with AsyncExitStack() as stack:
            shared = [await stack.enter_async_context(racing(arena, "ann", "bob", *names)) for _ in range(2)]
            left = await stack.enter_async_context(racing(arena, "ann", "bob", *names))
            own = [await stack.enter_async_context(racing(arena, one, other)) for one, other in permutations(names)]
            for race in (*shared, *own, left):
                posts = [Ready(await arena.talk(name, 0), frames.ThreadPost, race.thread()) for name in names * 8]
                await outcomes(post.send() for post in posts)
            for name in names:
                await (await left.says(name, 0, frames.GroupLeave, MemberLeft)).send()
            deletions = [await deletion_of(arena, name, relay) for relay, name in enumerate(names)]
            burial = await left.says("ann", round_ % 2, frames.GroupDelete, GroupDeleted)
            async with asyncio.timeout(LIMIT_S):
                await asyncio.gather(*map(insist, (*deletions, burial) if round_ % 2 else (burial, *deletions)))
            for race in shared:
                kinds = [event.kind for event in await race.settle()]
                assert kinds[-2:] == [Kind.MEMBER_LEFT, Kind.MEMBER_LEFT]
                assert set(await race.authors()) == {None}
            for race in (*own, left):
                [last] = await arena.sql.fetch("SELECT seq, hash FROM events WHERE group_id = $1", race.group_id)
                await race.ended(last["seq"], last["hash"], [])


# ── keys ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("due", [False, True], ids=["by admins", "by members where it is due"])
async def test_of_two_rekeys_one_wins_and_its_keys_are_in_force(arena: Arena, due: bool) -> None:
    for round_ in range(ROUNDS):
        async with racing(arena, "ann", "bob", "cleo", admin="dan") as race:
            names = ("ann", "dan")
            if due:
                await (await race.remove("ann", 0, "dan")).send()
                names = ("bob", "cleo")
            rekeys = [await race.rekey(name, relay) for relay, name in enumerate(names)]
            answers = await meet(round_, *rekeys)
            winner = the_only_winner(answers, ErrorCode.STALE_KEY_EPOCH, ErrorCode.STALE_BASE)
            log = await race.settle()
            assert [event.kind for event in log].count(Kind.GROUP_REKEYED) == 1
            await race.everybody_has(rekeys[winner].fields["encrypted_group_keys"])
            await race.post("cleo", 0, key_epoch=2)


async def test_a_newcomer_never_lacks_the_key_in_force_whoever_is_first(arena: Arena) -> None:
    for round_ in range(ROUNDS):
        async with racing(arena, "ann", "bob") as race:
            join = await race.join("eve", round_ // 2 % 2, await race.link("ann", max_uses=0))
            rekey = await race.rekey("ann", 1 - round_ // 2 % 2)
            answers = await meet(round_, join, rekey)
            the_only_winner(answers, *STALE)
            await race.settle()
            await race.everybody_has_a_key()


# ── members ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_last_use_of_a_link_is_one_use(arena: Arena) -> None:
    for round_ in range(ROUNDS):
        async with racing(arena, "ann", "bob") as race:
            link = await race.link("ann", max_uses=1)
            names = ("eve", "fay")
            joins = [await race.join(name, relay, link) for relay, name in enumerate(names)]
            winner = the_only_winner(await meet(round_, *joins), ErrorCode.INVITE_INVALID, ErrorCode.STALE_BASE)
            again = await race.join(names[1 - winner], winner, link)
            with pytest.raises(Refused, match="invite_invalid"):
                await again.send()
            await race.settle()
            assert await arena.sql.fetchval("SELECT uses FROM invites WHERE invite_id = $1", link.invite_id) == 1


async def test_of_two_removals_of_one_member_one_wins(arena: Arena) -> None:
    for round_ in range(ROUNDS):
        async with racing(arena, "ann", "bob", "cleo", admin="dan") as race:
            removals = [await race.remove(name, relay, "bob") for relay, name in enumerate(("ann", "dan"))]
            the_only_winner(await meet(round_, *removals), ErrorCode.STALE_BASE, ErrorCode.NOT_FOUND)
            log = await race.settle()
            assert [event.kind for event in log].count(Kind.MEMBER_REMOVED) == 1


async def test_who_is_removed_removes_nobody_afterwards(arena: Arena) -> None:
    for round_ in range(ROUNDS):
        async with racing(arena, "ann", "bob", "cleo", admin="dan") as race:
            removals = [await race.remove("ann", round_ // 2 % 2, "dan"), await race.remove("dan", 0, "bob")]
            answers = await meet(round_, *removals)
            winner = the_only_winner(answers, ErrorCode.STALE_BASE, ErrorCode.NOT_FOUND)
            await race.settle()
            left = {arena.people[name].user_id for name in ("ann", "bob", "cleo", "dan", WITNESS)}
            left.remove(arena.people["dan" if winner == 0 else "bob"].user_id)
            assert (await view(arena.sql, race.group_id)).roster.keys() == left


async def test_a_group_keeps_an_owner_who_is_a_member(arena: Arena) -> None:
    for round_ in range(ROUNDS):
        async with racing(arena, "ann", "bob", "cleo") as race:
            heir = arena.people["bob"].user_id
            transfer = await race.says("ann", 0, frames.GroupTransfer, GroupTransferred, user_id=heir)
            leave = await race.says("bob", 1, frames.GroupLeave, MemberLeft)
            answers = await meet(round_, transfer, leave)
            winner = the_only_winner(answers, ErrorCode.STALE_BASE, ErrorCode.NOT_FOUND, ErrorCode.FORBIDDEN)
            await race.settle()
            roster = (await view(arena.sql, race.group_id)).roster
            [owner] = [entry.user_id for entry in roster.values() if entry.role == Role.OWNER]
            assert owner == arena.people["bob" if winner == 0 else "ann"].user_id
            assert owner == await arena.sql.fetchval("SELECT created_by FROM groups WHERE id = $1", race.group_id)


async def test_of_a_join_a_removal_and_two_rekeys_one_wins_and_nobody_is_locked_out(arena: Arena) -> None:
    """Whoever lost looks again and tries again; at the end all is done, and all can post."""
    for round_ in range(ROUNDS):
        async with racing(arena, "ann", "bob", "cleo", admin="dan") as race:
            link = await race.link("ann", max_uses=0)
            answers = await meet(
                round_,
                await race.join("eve", 0, link),
                await race.remove("ann", 1, "bob"),
                await race.rekey("ann", 0),
                await race.rekey("dan", 1),
            )
            the_only_winner(
                answers, *STALE, ErrorCode.MEMBER_SET_MISMATCH, ErrorCode.INVITE_INVALID, ErrorCode.REKEY_REQUIRED
            )
            if isinstance(answers[1], Refused):
                await (await race.remove("ann", 1, "bob")).send()
            await (await race.rekey("cleo", 0)).send()
            if isinstance(answers[0], Refused):
                await (await race.join("eve", 0, await race.link("dan", max_uses=0))).send()
            await race.everybody_has_a_key()
            epoch = (await view(arena.sql, race.group_id)).key_epoch
            for relay, name in enumerate(("eve", "cleo")):
                await race.post(name, relay, key_epoch=epoch)
            await race.settle()


# ── the same twice ──────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_post_that_is_sent_to_both_relays_is_one_post(arena: Arena) -> None:
    for round_ in range(ROUNDS):
        async with racing(arena, "ann", "bob") as race:
            here, there = await arena.both("bob")
            posts = [Ready(here, frames.ThreadPost, race.thread()) for _ in range(IN_FLIGHT)]
            answers = await meet(round_, *(each for post in posts for each in (post, post.by(there))))
            pairs = list(zip(answers[::2], answers[1::2], strict=True))
            for one, other in pairs:
                assert isinstance(one, PostOk)
                assert isinstance(other, PostOk)
                assert {one.duplicate, other.duplicate} == {False, True}
                assert (one.seq, one.hash, one.created_at) == (other.seq, other.hash, other.created_at)
            log = await race.settle()
            logged = [event.seq for event in log if event.kind == Kind.THREAD_POSTED]
            assert sorted(one.seq for one, _ in pairs if isinstance(one, PostOk)) == logged


async def test_an_id_that_two_authors_use_at_once_is_one_authors(arena: Arena) -> None:
    for round_ in range(ROUNDS):
        async with racing(arena, "ann", "bob", "cleo") as race:
            fields = race.thread()
            posts = [Ready(await arena.talk(name, relay), frames.ThreadPost, fields) for relay, name in ENTRANTS]
            winner = the_only_winner(await meet(round_, *posts), ErrorCode.ID_CONFLICT)
            log = await race.settle()
            assert [(log[-1].actor_id, log[-1].object_id)] == [
                (arena.people[ENTRANTS[winner][1]].user_id, fields["thread_id"])
            ]


async def test_an_id_that_is_used_in_two_groups_at_once_is_one_groups(arena: Arena) -> None:
    """No group's lock is above both: the ids themselves decide, and nothing else in the batches suffers."""
    for round_ in range(ROUNDS):
        async with racing(arena, "ann", "bob") as first, racing(arena, "ann", "bob") as second:
            fields = first.thread()
            here, there = await arena.both("bob")
            answers = await meet(
                round_,
                Ready(here, frames.ThreadPost, fields),
                Ready(there, frames.ThreadPost, {**fields, "group_id": second.group_id}),
                Ready(here, frames.ThreadPost, first.thread()),
                Ready(there, frames.ThreadPost, second.thread()),
            )
            the_only_winner(answers[:2], ErrorCode.ID_CONFLICT)
            assert all(isinstance(answer, PostOk) for answer in answers[2:])
            logs = [await race.settle() for race in (first, second)]
            assert [event.object_id for log in logs for event in log].count(fields["thread_id"]) == 1


async def test_a_statement_that_is_sent_to_both_relays_takes_effect_once(arena: Arena) -> None:
    for round_ in range(ROUNDS):
        async with racing(arena, "ann", "bob", "cleo") as race:
            there = await arena.talk("ann", 1)
            name = os.urandom(64)
            for ready in (
                await race.says(
                    "ann",
                    0,
                    frames.GroupUpdate,
                    GroupUpdated,
                    beside={"encrypted_name": name},
                    name_hash=field_hash(name),
                ),
                await race.rekey("ann", 0),
            ):
                await twice(round_, ready, ready.by(there))
            removal = await race.remove("ann", 0, "bob")
            await twice(round_, removal, removal.by(there))
            log = await race.settle()
            assert [event.kind for event in log[-3:]] == [
                Kind.GROUP_UPDATED,
                Kind.GROUP_REKEYED,
                Kind.MEMBER_REMOVED,
            ]


async def test_a_group_that_is_created_on_both_relays_is_one_group(arena: Arena) -> None:
    ann, name = arena.people["ann"], os.urandom(64)
    for round_ in range(ROUNDS):
        created = write(
            ann,
            GroupCreated,
            View(new_id()),
            history=History.SHARED,
            key_commitment=ZERO_HASH,
            name_hash=field_hash(name),
            **ann.keys(),
        )
        signed = sign(ann, created)
        fields = {"statement": signed.statement, "signature": signed.signature, "encrypted_name": name}
        here, there = await arena.both("ann")
        ready = Ready(here, frames.GroupCreate, {**fields, "encrypted_group_key": b"wrapped"})
        await twice(round_, ready, ready.by(there))
        [event] = await verified_log(arena.sql, created.group_id)
        assert event.kind == Kind.GROUP_CREATED


async def twice(round_: int, *requests: Ready) -> None:
    """The same statement on both relays: one takes effect, the other gets the same answer."""
    one, other = await meet(round_, *requests)
    assert isinstance(one, ControlOk), one
    assert isinstance(other, ControlOk), other
    assert {one.duplicate, other.duplicate} == {False, True}
    assert replace(one, id=0, duplicate=False) == replace(other, id=0, duplicate=False)

"""Live: subscribe, signals, cursors, ping."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Protocol, TypeAlias

from orbital_protocol import ZERO_HASH
from orbital_protocol.frames import (
    Cursor,
    CursorGet,
    CursorOk,
    CursorPut,
    ErrorDetails,
    Limits,
    Ok,
    Ping,
    PingOk,
    Signal,
    SignalSend,
    Subscribe,
    SubscribedGroup,
    SubscribeGroup,
    SubscribeOk,
    Unsubscribe,
)
from orbital_relay import hints
from orbital_relay.batcher import Batcher
from orbital_relay.caller import Caller, Clock, Peer, require_caller
from orbital_relay.errors import BadArgument, LimitExceeded, NotFound, RateLimited, TooLarge, Unauthenticated
from orbital_relay.limits import KeyedBuckets
from orbital_relay.replay import Start, Subscriptions
from orbital_relay.store import accounts
from orbital_relay.store import events as event_store
from orbital_relay.store import live as live_store
from orbital_relay.store.events import CursorRow, Standing
from orbital_relay.store.pool import Connection, Database
from orbital_relay.store.retries import retried

_STATEMENTS_AT_ONCE: Final = 2
_GROUPS_A_STATEMENT: Final = 80

GroupHeads: TypeAlias = Batcher[Standing, list[CursorRow]]
"""Where groups stand, looked up together for many who ask at once."""


def group_heads(database: Database) -> GroupHeads:
    """Look up heads of groups, once it runs."""
    return Batcher(
        database,
        event_store.read_cursors,
        at_once=_STATEMENTS_AT_ONCE,
        max_size=_GROUPS_A_STATEMENT,
        size_of=lambda standing: len(standing.positions),
    )


class SubscribedPeer(Peer, Protocol):
    """A connection with subscriptions."""

    subscriptions: Subscriptions


class Live:
    """What a connection hears."""

    def __init__(  # noqa: PLR0913  built in one place
        self,
        *,
        database: Database,
        heads: GroupHeads,
        limits: Limits,
        now: Clock,
        relay_hex: str,
        signal_rate: KeyedBuckets,
        deliver_signal: Callable[[Signal], None],
        hint: Callable[[str], None],
    ) -> None:
        self._database = database
        self._heads = heads
        self._limits = limits
        self._now = now
        self._relay_hex = relay_hex
        self._signal_rate = signal_rate
        self._deliver_signal = deliver_signal
        self._hint = hint

    async def subscribe(self, peer: SubscribedPeer, request: Subscribe) -> SubscribeOk:
        """Say what becomes of each group, then replay after the answer."""
        caller = require_caller(peer)
        subscriptions = peer.subscriptions
        wanted = {group.group_id: group for group in request.groups}
        for group in wanted.values():
            if (group.after_seq is None) != (group.after_hash is None):
                raise BadArgument("A cursor is a seq and its hash.", details=ErrorDetails(field="groups"))
        if subscriptions.count_with(wanted) > self._limits.max_subscriptions:
            raise LimitExceeded(details=ErrorDetails(field="groups", limit=self._limits.max_subscriptions))
        watched = list(wanted)
        subscriptions.watch(watched)
        try:
            positions = [(group.group_id, group.after_seq or 0) for group in wanted.values()]
            rows = await self._heads.ask(Standing(caller.user_id, positions))
        except BaseException:
            subscriptions.unwatch(watched)
            raise
        verdicts = [_verdict(caller, group, row) for group, row in zip(wanted.values(), rows, strict=True)]
        subscriptions.unwatch([v.group_id for v in verdicts if v.status != "resumed"])
        starts = [
            Start(v.group_id, v.seq, v.hash, row.seq)
            for v, row in zip(verdicts, rows, strict=True)
            if v.status == "resumed"
        ]
        kinds = None if request.kinds is None else frozenset(request.kinds)
        peer.after_answer(lambda: subscriptions.begin(caller.user_id, starts, kinds))
        return SubscribeOk(id=request.id, groups=verdicts)

    async def unsubscribe(self, peer: SubscribedPeer, request: Unsubscribe) -> Ok:
        """End subscriptions; nothing comes of these groups after the answer."""
        for group_id in request.groups:
            peer.subscriptions.end(group_id)
        return Ok(id=request.id)

    async def signal_send(self, peer: Peer, request: SignalSend) -> Ok:
        """Pass a signal on to whoever is online, here and on other relays."""
        caller = require_caller(peer)
        if len(request.payload) > self._limits.max_signal_bytes:
            raise TooLarge(details=ErrorDetails(field="payload", limit=self._limits.max_signal_bytes))
        if wait_ms := self._signal_rate.take(caller.session_id):
            raise RateLimited(retry_after_ms=wait_ms)
        async with self._database.connection() as connection:
            await self._require_member(connection, caller, request.group_id)
        self._deliver_signal(Signal(group_id=request.group_id, user_id=caller.user_id, payload=request.payload))
        self._hint(hints.signal(self._relay_hex, request.group_id, caller.user_id, request.payload))
        return Ok(id=request.id)

    async def cursor_put(self, peer: Peer, request: CursorPut) -> CursorOk:
        """Keep a position; forward only, unless `rewind`."""
        seq, hash_ = await retried(partial(self._put_cursor, require_caller(peer), request))
        return CursorOk(id=request.id, seq=seq, hash=hash_)

    async def _put_cursor(self, caller: Caller, request: CursorPut) -> tuple[int, bytes]:
        group_id, name = request.group_id, request.name
        async with self._database.transaction() as connection:
            await self._require_position(connection, caller, request)
            if await live_store.get_cursor(connection, caller.user_id, group_id, name) == (0, ZERO_HASH):
                await self._require_room(connection, caller, request)
            seq, hash_ = await live_store.put_cursor(
                connection,
                user_id=caller.user_id,
                group_id=group_id,
                name=name,
                seq=request.seq,
                hash_=request.hash,
                rewind=request.rewind,
            )
            hint = hints.CursorHint(caller.user_id, group_id, name, seq, hash_)
            await live_store.notify(connection, hints.cursor(self._relay_hex, hint))
        return seq, hash_

    async def cursor_get(self, peer: Peer, request: CursorGet) -> CursorOk:
        """Where a cursor stands."""
        caller = require_caller(peer)
        if not caller.may_see(request.group_id):
            raise NotFound
        async with self._database.connection() as connection:
            cursor = await live_store.get_cursor(connection, caller.user_id, request.group_id, request.name)
        if cursor is None:
            raise NotFound
        return CursorOk(id=request.id, seq=cursor[0], hash=cursor[1])

    async def ping(self, peer: SubscribedPeer, request: Ping) -> PingOk:
        """The time, and the heads of the caller's subscriptions."""
        heads: Sequence[Cursor] = []
        if peer.caller is not None and (group_ids := peer.subscriptions.group_ids()):
            rows = await self._heads.ask(Standing(peer.caller.user_id, [(group_id, 0) for group_id in group_ids]))
            heads = [Cursor(group_id=r.group_id, seq=r.seq, hash=r.hash) for r in rows if r.is_member]
        return PingOk(id=request.id, server_time=self._now(), heads=list(heads))

    @staticmethod
    async def _require_member(connection: Connection, caller: Caller, group_id: bytes) -> None:
        if not caller.may_see(group_id):
            raise NotFound
        if not await event_store.read_memberships(connection, caller.user_id, [group_id]):
            raise NotFound

    @staticmethod
    async def _require_position(connection: Connection, caller: Caller, request: CursorPut) -> None:
        """The position must be in the log, with this hash."""
        if not caller.may_see(request.group_id):
            raise NotFound
        head = await event_store.read_head_as_member(connection, request.group_id, caller.user_id, request.seq)
        if head is None:
            raise NotFound
        if head[2] != request.hash:
            raise BadArgument("The log has no event with this seq and hash.", details=ErrorDetails(field="hash"))

    async def _require_room(self, connection: Connection, caller: Caller, request: CursorPut) -> None:
        """There is room for a new cursor; under the account's lock, so that several at once are not one too many."""
        if await accounts.lock(connection, caller.user_id) is None:
            raise Unauthenticated("The account is gone.")
        others = await live_store.count_other_cursors(connection, caller.user_id, request.group_id, request.name)
        if others >= self._limits.max_cursors_per_user:
            raise LimitExceeded(details=ErrorDetails(field="name", limit=self._limits.max_cursors_per_user))


def _verdict(caller: Caller, wanted: SubscribeGroup, row: CursorRow) -> SubscribedGroup:
    """Whether a subscription can start where the client stands."""
    group_id = wanted.group_id
    if row.deleted and caller.may_see(group_id):
        return SubscribedGroup(group_id=group_id, status="gone")
    if not row.exists or not row.is_member or not caller.may_see(group_id):
        return SubscribedGroup(group_id=group_id, status="denied")
    if wanted.after_seq is None or wanted.after_hash is None:
        return SubscribedGroup(group_id=group_id, status="resumed", seq=row.seq, hash=row.hash)
    if wanted.after_seq > row.seq:
        return SubscribedGroup(group_id=group_id, status="future_cursor", seq=row.seq, hash=row.hash)
    if wanted.after_hash != row.hash_at_cursor:
        return SubscribedGroup(group_id=group_id, status="chain_fork", seq=row.seq, hash=row.hash)
    return SubscribedGroup(group_id=group_id, status="resumed", seq=wanted.after_seq, hash=wanted.after_hash)

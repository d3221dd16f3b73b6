"""The one flow of every request that changes a group.

decode the statement → lock the group's head → read under the lock → decide (policy) → append → the request's own
changes → commit → publish. No lock is held across anything but the database. A statement that is in the log already
gets its first answer again.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Generic, TypeVar

from orbital_protocol import statements
from orbital_protocol.chain import control_content_hash
from orbital_protocol.codes import History
from orbital_protocol.frames import ControlOk, ControlRequest, ErrorDetails, Event
from orbital_protocol.statements import (
    MAX_STATEMENT_BYTES,
    GroupCreated,
    GroupDeleted,
    InviteCreated,
    MediaDeleted,
    MemberJoined,
    MemberLeft,
    MemberRemoved,
    Statement,
    StatementError,
    kind_of,
)
from orbital_relay import logs, policy
from orbital_relay.caller import Caller, Peer, require_caller
from orbital_relay.errors import BadArgument, Forbidden, IdConflict, NotFound, Overloaded, Unauthenticated, Unavailable
from orbital_relay.fanout import Publisher
from orbital_relay.store import control as store
from orbital_relay.store.control import Head, Logged, Member, Standing
from orbital_relay.store.pool import Connection, Database
from orbital_relay.store.retries import retried

logger = logs.get()

S = TypeVar("S", bound=Statement)


@dataclass(frozen=True, slots=True)
class Signed(Generic[S]):
    """A statement, and the bytes that were signed."""

    statement: S
    raw: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class Outcome:
    """Where the statement stands in the log; `duplicate`: an earlier request put it there."""

    group_id: bytes
    logged: Logged
    duplicate: bool


class Turn(Generic[S]):
    """A request's time alone with its group: until the transaction ends, nobody else changes the group."""

    def __init__(self, connection: Connection, signed: Signed[S], standing: Standing, relay_hex: str) -> None:
        self.connection = connection
        self.statement = signed.statement
        self.group_id = signed.statement.group_id
        self.standing = standing
        self.logged: Logged | None = None
        self._signed = signed
        self._relay_hex = relay_hex

    @property
    def head(self) -> Head:
        """The group's head before this statement; raise NotFound where there is no such group."""
        if self.standing.head is None:
            raise NotFound
        return self.standing.head

    @property
    def member(self) -> Member | None:
        """The actor's membership."""
        return self.standing.member

    @property
    def history(self) -> History | None:
        """Whether newcomers may read what was posted before them."""
        return self.standing.history

    async def append(self) -> Logged:
        """Put the statement into the log: after whatever may refuse it, before whatever it changes."""
        signed = self._signed
        self.logged = await store.append(
            self.connection, self._relay_hex, signed.statement, signed.raw, signed.signature
        )
        return self.logged


Step = Callable[[Turn[S]], Awaitable[None]]


async def members_only(turn: Turn[S]) -> None:
    """The usual gate: strangers get NotFound."""
    policy.require_member(turn.member)


class Control:
    """Carries out control requests."""

    def __init__(self, database: Database, publisher: Publisher, relay_hex: str) -> None:
        self._database = database
        self._publisher = publisher
        self._relay_hex = relay_hex

    async def carry_out(self, peer: Peer, signed: Signed[S], change: Step[S], gate: Step[S] = members_only) -> Outcome:
        """Let a statement of the caller's take effect once, whatever becomes of connections.

        `gate` decides who may learn anything of this group. `change` decides by policy, calls `append`, and changes
        what the statement changes.
        """
        _check_actor(require_caller(peer), signed.statement)
        attempt = partial(self._attempt, signed, change, gate)
        try:
            outcome = await retried(attempt)
        except _Unknown:
            outcome = replace(await retried(attempt), duplicate=False)
        if not outcome.duplicate:
            self._publisher.publish([_event_of(signed, outcome.logged)])
            _log(signed.statement, outcome.logged.seq)
        return outcome

    async def _attempt(self, signed: Signed[S], change: Step[S], gate: Step[S]) -> Outcome:
        """One transaction."""
        logged = None
        try:
            async with self._database.transaction() as connection:
                standing = await store.lock_and_read(connection, signed.statement, signed.raw)
                if standing is None:
                    raise Unauthenticated("The account is gone.")
                if standing.earlier is not None:
                    return Outcome(signed.statement.group_id, standing.earlier, duplicate=True)
                turn = Turn(connection, signed, standing, self._relay_hex)
                await gate(turn)
                _check(signed, turn)
                await change(turn)
                logged = turn.logged
                if logged is None:
                    raise AssertionError(f"{type(signed.statement).__name__} was not appended")
        except (Unavailable, Overloaded) as error:
            if logged is not None:
                raise _Unknown from error
            raise
        return Outcome(signed.statement.group_id, logged, duplicate=False)


class _Unknown(Unavailable):
    """The connection was lost during the commit: the same again finds what it did, or does it."""


def _check_actor(caller: Caller, statement: Statement) -> None:
    if statement.actor_id != caller.user_id:
        raise Forbidden("The statement is somebody else's.")
    if not caller.may_see(statement.group_id):
        raise NotFound


def _check(signed: Signed[S], turn: Turn[S]) -> None:
    """What holds for every statement, once its actor may know of the group."""
    if turn.standing.id_in_use:
        raise IdConflict
    policy.check_signature(signed.raw, signed.signature, turn.standing.actor_keys)
    policy.check_epoch(signed.statement.key_epoch, turn.head)
    policy.check_base(signed.statement, turn.head, turn.standing.base_hash)


def open_statement(request: ControlRequest, kind: type[S]) -> Signed[S]:
    """Decode the statement that the request carries, which is of this kind."""
    policy.check_size("statement", request.statement, MAX_STATEMENT_BYTES)
    try:
        statement = statements.decode(request.statement)
    except StatementError as error:
        raise BadArgument(str(error), details=ErrorDetails(field="statement")) from error
    if not isinstance(statement, kind):
        raise BadArgument("The statement is of another kind.", details=ErrorDetails(field="statement"))
    policy.check_id("statement", statement.statement_id)
    return Signed(statement, request.statement, request.signature)


def answer(request: ControlRequest, outcome: Outcome) -> ControlOk:
    """What most control requests are answered with."""
    logged = outcome.logged
    return ControlOk(
        id=request.id,
        group_id=outcome.group_id,
        seq=logged.seq,
        hash=logged.hash,
        created_at=logged.created_at,
        key_epoch=logged.key_epoch,
        duplicate=outcome.duplicate,
    )


def _log(statement: Statement, seq: int) -> None:
    """Tell operators what changes who is where; posts, names and keys are none of their business."""
    group, user = statement.group_id, statement.actor_id
    match statement:
        case GroupCreated():
            logger.info("group.created", group=group, user=user)
        case GroupDeleted():
            logger.info("group.deleted", group=group, user=user, seq=seq)
        case MemberJoined():
            logger.info("member.joined", group=group, user=user, member=statement.user_id, seq=seq)
        case MemberLeft():
            logger.info("member.removed", group=group, user=user, member=user, reason="left", seq=seq)
        case MemberRemoved():
            reason = "banned" if statement.ban else "removed"
            logger.info("member.removed", group=group, user=user, member=statement.user_id, reason=reason, seq=seq)
        case MediaDeleted():
            logger.info("media.deleted", group=group, user=user, seq=seq)
        case InviteCreated():
            logger.info("invite.created", group=group, user=user, invite=statement.invite_id, seq=seq)
        case _:
            pass


def _event_of(signed: Signed[S], logged: Logged) -> Event:
    """The event as subscribers get it."""
    statement = signed.statement
    return Event(
        group_id=statement.group_id,
        seq=logged.seq,
        hash=logged.hash,
        kind=kind_of(statement),
        object_id=statement.statement_id,
        actor_id=statement.actor_id,
        key_epoch=logged.key_epoch,
        created_at=logged.created_at,
        content_hash=control_content_hash(signed.raw, signed.signature),
        statement=signed.raw,
        signature=signed.signature,
    )

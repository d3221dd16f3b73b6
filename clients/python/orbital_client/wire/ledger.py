"""A group's log as this client has verified it: every event chained to the one before, and what follows from them.

No I/O. `Chain` checks that nothing is missing, altered or out of order; `Ledger` also keeps the roster and the key
epoch, which statements are built on.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from msgspec.structs import replace

from orbital_client.errors import ChainBroken
from orbital_protocol import ZERO_ID, chain
from orbital_protocol.codes import Kind, Role
from orbital_protocol.frames import Cursor, Event
from orbital_protocol.statements import (
    AnyStatement,
    GroupCreated,
    GroupRekeyed,
    GroupTransferred,
    KeyReplaced,
    MemberJoined,
    MemberLeft,
    MemberRemoved,
    MemberRole,
    RosterEntry,
    Statement,
    StatementError,
    decode,
    kind_of,
)

Roster = Mapping[bytes, RosterEntry]

_POSTS: Final = frozenset({Kind.THREAD_POSTED, Kind.REPLY_POSTED, Kind.ANNOTATION_POSTED, Kind.MEDIA_POSTED})
_MAX_KIND: Final = 255
_CONTROL: Final = frozenset(Kind) - _POSTS
# May come without a statement: what a deleted account leaves behind, and files whose time is over.
_BY_RELAY: Final = frozenset({Kind.MEMBER_LEFT, Kind.GROUP_DELETED, Kind.MEDIA_EXPIRED})


def chain_problem(event: Event, previous_hash: bytes) -> str | None:
    """What is wrong with an event that is to follow this hash; None where its hashes are what they must be."""
    if (content := _content_hash(event)) is not None and content != event.content_hash:
        return "the content is not what its hash says"
    if not 0 <= event.kind <= _MAX_KIND or _event_hash(event, previous_hash) != event.hash:
        return "the event does not continue the chain"
    return None


class Chain:
    """The place in a group's log up to which everything has been verified."""

    def __init__(self, position: Cursor) -> None:
        self.position = position
        self._key_epoch = None if position.seq else 1  # of the next event; unknown until the first one has come

    def advance(self, event: Event) -> AnyStatement | None:
        """Go on by one event, and return its statement if it has one; raise ChainBroken if it isn't the next."""
        expected = self.position.seq + 1
        if event.seq != expected:
            raise self.broken(f"expected event {expected}, got {event.seq}")
        if event.group_id != self.position.group_id:
            raise self.broken("an event of another group")
        statement = self._statement(event)
        if self._key_epoch not in (None, event.key_epoch):
            raise self.broken(f"key epoch {event.key_epoch} where {self._key_epoch} is in force")
        if problem := chain_problem(event, self.position.hash):
            raise self.broken(problem)
        self.position = Cursor(group_id=event.group_id, seq=event.seq, hash=event.hash)
        self._key_epoch = statement.new_key_epoch if isinstance(statement, GroupRekeyed) else event.key_epoch
        return statement

    def meet(self, seq: int, hash_: bytes) -> None:
        """Check that the log's head, as the relay names it, is this place; raise ChainBroken if it isn't."""
        if seq != self.position.seq:
            raise self.broken(f"the relay is at {seq}, this client at {self.position.seq}")
        if hash_ != self.position.hash:
            raise self.broken("the relay's hash is not this client's")

    def broken(self, problem: str) -> ChainBroken:
        """An exception that names this place."""
        return ChainBroken(self.position.group_id, self.position.seq, problem)

    def _statement(self, event: Event) -> AnyStatement | None:
        try:
            statement = statement_of(event)
        except StatementError as error:
            raise self.broken(f"the statement can't be read: {error}") from None
        if statement is None:
            if event.kind in _CONTROL and (event.actor_id != ZERO_ID or event.kind not in _BY_RELAY):
                raise self.broken("a change of the group came without its statement")
        elif (
            kind_of(statement) != event.kind
            or statement.group_id != event.group_id
            or statement.actor_id != event.actor_id
            or statement.statement_id != event.object_id
            or statement.key_epoch != event.key_epoch
            or (isinstance(statement, GroupRekeyed) and statement.new_key_epoch != event.key_epoch + 1)
        ):
            raise self.broken("the statement says something else than its event")
        return statement


class Ledger(Chain):
    """A group's roster and key epoch at a place in its log."""

    def __init__(self, position: Cursor, *, key_epoch: int, roster: Roster) -> None:
        super().__init__(position)
        self.key_epoch = key_epoch
        self.roster = roster

    def advance(self, event: Event) -> AnyStatement | None:
        statement = super().advance(event)
        if statement is not None:
            self.roster = roster_after(self.roster, statement)
            if isinstance(statement, GroupRekeyed):
                self.key_epoch = statement.new_key_epoch
        elif event.kind == Kind.MEMBER_LEFT:  # the relay's own: the user deleted the account
            self.roster = {user_id: entry for user_id, entry in self.roster.items() if user_id != event.object_id}
        return statement


def statement_of(event: Event) -> AnyStatement | None:
    """The statement that made this event; None for posts and for what the relay itself appended.

    Raises StatementError for bytes that are no statement, which no event has that this client handed out.
    """
    return None if event.statement is None else decode(event.statement)


def roster_after(roster: Roster, statement: Statement) -> Roster:
    """The roster once the statement is in the log. Whoever it names that is no member is passed over."""
    after = dict(roster)
    match statement:
        case GroupCreated():
            after[statement.actor_id] = _newcomer(statement.actor_id, Role.OWNER, statement)
        case MemberJoined():
            after[statement.user_id] = _newcomer(statement.user_id, Role.MEMBER, statement)
        case MemberLeft():
            after.pop(statement.actor_id, None)
        case MemberRemoved():
            after.pop(statement.user_id, None)
        case MemberRole():
            _set_role(after, statement.user_id, statement.role)
        case GroupTransferred():
            _set_role(after, statement.actor_id, Role.ADMIN)
            _set_role(after, statement.user_id, Role.OWNER)
        case KeyReplaced() if entry := after.get(statement.actor_id):
            after[statement.actor_id] = replace(
                entry, signing_key=statement.signing_key, rsa_thumbprint=statement.rsa_thumbprint
            )
        case _:
            return roster
    return after


def _newcomer(user_id: bytes, role: int, keys: GroupCreated | MemberJoined) -> RosterEntry:
    return RosterEntry(user_id, role, keys.signing_key, keys.rsa_thumbprint, keys.is_bot)


def _set_role(roster: dict[bytes, RosterEntry], user_id: bytes, role: int) -> None:
    if entry := roster.get(user_id):
        roster[user_id] = replace(entry, role=role)


def _content_hash(event: Event) -> bytes | None:
    """The hash of what the event carries; None for a kind of a later version, of which nothing more is known."""
    if event.statement is not None:
        return chain.control_content_hash(event.statement, event.signature or b"")
    if event.kind in _POSTS:
        return chain.content_hash(parent_id(event), field_hashes(event))
    if event.kind in _CONTROL:
        return chain.RELAY_CONTENT_HASH
    return None


def parent_id(event: Event) -> bytes:
    """What a post or file belongs to; zeros where its kind has no parent. Of other fields no hash says anything."""
    match event.kind:
        case Kind.ANNOTATION_POSTED:
            return event.target_id or ZERO_ID
        case Kind.REPLY_POSTED | Kind.MEDIA_POSTED:
            return event.thread_id or ZERO_ID
        case _:
            return ZERO_ID


def field_hashes(event: Event) -> list[bytes]:
    """The hashes of a post's fields, of which its content hash is made; they are there for erased fields too."""
    return [chain.field_hash(field) for field in _fields(event)] or event.field_hashes or []


def _fields(event: Event) -> Sequence[bytes]:
    """The contents of a post, in the order in which they are hashed; none where they were erased or filtered out."""
    if event.kind != Kind.MEDIA_POSTED:
        title, body = event.encrypted_title, event.encrypted_body
        if title is None:
            return () if body is None else (body,)
        return (title,) if body is None else (title, body)
    if event.encrypted_metadata is None or event.encryption_iv is None or event.root is None:
        return ()
    return chain.media_fields(event.encrypted_metadata, event.encryption_iv, event.size_bytes or 0, event.root)


def _event_hash(event: Event, previous_hash: bytes) -> bytes:
    return chain.event_hash(
        previous_hash=previous_hash,
        group_id=event.group_id,
        seq=event.seq,
        kind=event.kind,
        object_id=event.object_id,
        actor_id=event.actor_id,
        key_epoch=event.key_epoch,
        created_at=event.created_at,
        content_hash=event.content_hash,
    )

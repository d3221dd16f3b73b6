"""A group's log as its members check it: from the creation on, who is in the group, and under which key.

What is missing, altered or out of order raises ChainBroken (`wire.ledger.Chain`). What is in the chain and breaks the
group's rules is a finding: it has its place in the log, and counts for nothing.
"""

from collections.abc import Mapping
from typing import Final

import msgspec

from orbital_client.errors import Malformed
from orbital_client.trust import effects, rules
from orbital_client.trust.findings import Finding, Flaw
from orbital_client.trust.index import Index, Known
from orbital_client.trust.state import State, decoder, encoder
from orbital_client.wire.ledger import Chain, parent_id, roster_after
from orbital_protocol import ZERO_HASH, ZERO_ID
from orbital_protocol.codes import Kind, Role
from orbital_protocol.frames import Cursor, Event
from orbital_protocol.statements import AnyStatement, GroupCreated, MemberJoined, RosterEntry, roster_hash

POSTS: Final = frozenset({Kind.THREAD_POSTED, Kind.REPLY_POSTED, Kind.ANNOTATION_POSTED, Kind.MEDIA_POSTED})


class Step(msgspec.Struct, frozen=True):
    """One event, taken in. `statement`: what it changed, if it counts; `finding`: why it doesn't."""

    event: Event
    statement: AnyStatement | None = None
    finding: Finding | None = None


class Log(Chain):
    """The log of one group up to `position`. Nothing of it is forgotten: `index` has all events, `state` the rest."""

    def __init__(self, group_id: bytes, index: Index, state: State | None = None) -> None:
        self.state = state or State(group_id)
        self.index = index
        super().__init__(Cursor(group_id=group_id, seq=self.state.seq, hash=self.state.hash))
        self._key_epoch = self.state.logged_epoch or self._key_epoch
        self._roster: dict[bytes, RosterEntry] | None = None
        self.changes = 0
        """Counts what changed the state beyond its position."""

    @classmethod
    def restore(cls, raw: bytes, index: Index) -> "Log":
        """The log as `save` wrote it. Raises Malformed."""
        try:
            state = decoder.decode(raw)
        except ValueError:
            raise Malformed("what is stored of a group can't be read") from None
        return cls(state.group_id, index, state)

    def save(self) -> bytes:
        """Everything but the index."""
        return encoder.encode(self.state)

    # ── what is known ───────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def group_id(self) -> bytes:
        return self.state.group_id

    @property
    def key_epoch(self) -> int:
        """The epoch whose key is in force."""
        return self.state.key_epoch

    @property
    def roster(self) -> Mapping[bytes, RosterEntry]:
        """The members now."""
        if self._roster is None:
            self._roster = self.state.roster()
        return self._roster

    def role_at(self, user_id: bytes, seq: int) -> int:
        """Somebody's role when the event at this seq was logged; 0: no member."""
        entry = self.state.member_at(user_id, seq)
        return entry.role if entry else 0

    # ── going on ────────────────────────────────────────────────────────────────────────────────────────────────────

    def advance(self, event: Event) -> AnyStatement | None:
        """Go on by one event, and return its statement if it counts. Raises ChainBroken."""
        return self.take(event).statement

    def take(self, event: Event) -> Step:
        """Go on by one event. Raises ChainBroken, and has gone on by nothing then."""
        statement = super().advance(event)
        parent = parent_id(event)
        wrong = self._check(event, statement, parent)
        known = Known(event.seq, event.hash, event.kind, event.object_id, event.actor_id, parent, counts=wrong is None)
        self.index.add(known)
        self.state.seq, self.state.hash, self.state.logged_epoch = event.seq, event.hash, self._key_epoch
        if wrong is not None:
            flaw, detail = wrong
            if event.kind not in POSTS and not self.state.tainted_at:
                self.state.tainted_at = event.seq
            return Step(event, None, Finding(flaw, self.group_id, event.seq, event.actor_id, detail))
        if event.kind not in POSTS:
            effects.apply(self.state, self.index, event, statement)
            self.changes += 1
            self._roster = None
        return Step(event, statement)

    def _check(self, event: Event, statement: AnyStatement | None, parent: bytes) -> rules.Wrong:
        if event.key_epoch != self.state.key_epoch:
            return Flaw.WRONG_EPOCH, f"epoch {event.key_epoch} where {self.state.key_epoch} is in force"
        if event.seq == 1 and not isinstance(statement, GroupCreated):
            return Flaw.NOT_ALLOWED, "a log begins with the group's creation"
        if event.actor_id != ZERO_ID and self.index.by_id(event.object_id) is not None:
            return Flaw.REPEATED_ID, ""
        if statement is not None:
            wrong = rules.check_statement(self.state, self.index, event, statement)
            return wrong or self._check_roster_hash(statement)
        if event.kind in POSTS:
            return rules.check_post(self.state, self.index, event, parent)
        return self._check_by_relay(event)

    def _check_roster_hash(self, statement: AnyStatement) -> rules.Wrong:
        if statement.roster_hash == ZERO_HASH and isinstance(statement, MemberJoined):
            return None if statement.actor_id == statement.user_id else (Flaw.WRONG_ROSTER, "")
        if roster_hash(roster_after(self.roster, statement).values()) != statement.roster_hash:
            return Flaw.WRONG_ROSTER, ""
        return None

    def _check_by_relay(self, event: Event) -> rules.Wrong:
        """What the relay itself appends: departures with an account, and files whose time is over."""
        entry = self.state.member(event.object_id)
        if event.kind == Kind.MEMBER_LEFT and entry is None:
            return Flaw.NO_MEMBER, ""
        if event.kind == Kind.GROUP_DELETED and (entry is None or entry.role != Role.OWNER):
            return Flaw.NOT_ALLOWED, "only an owner's account takes the group with it"
        if event.kind == Kind.MEDIA_EXPIRED:
            file = self.index.by_id(event.object_id)
            if file is None or file.kind != Kind.MEDIA_POSTED or file.erased_at:
                return Flaw.ORPHAN_EXPIRY, ""
        return None

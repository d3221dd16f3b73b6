"""What a group's log has come to: members with all they ever were, keys of its epochs, invites, name. Plain values."""

from bisect import bisect_left
from typing import Final

import msgspec

from orbital_protocol import ZERO_HASH, ZERO_ID
from orbital_protocol.statements import RosterEntry


class Change(msgspec.Struct, frozen=True, array_like=True):
    """What somebody is from the event after `seq` on; `entry` None: no member."""

    seq: int
    entry: RosterEntry | None


class Epoch(msgspec.Struct, frozen=True, array_like=True):
    """A key of the group, in force after `seq`. `previous_key` is the one before it, sealed; empty where it isn't."""

    seq: int
    commitment: bytes
    previous_key: bytes


class Invite(msgspec.Struct, frozen=True, array_like=True):
    """A link. `is_revoked` also after a removal, which ends all links."""

    invite_key: bytes
    created_by: bytes
    expires_at: int
    max_uses: int
    uses: int = 0
    is_revoked: bool = False


class GroupName(msgspec.Struct, frozen=True, array_like=True):
    """The sealed name's SHA-256, who sealed it, and under which epoch's key."""

    hash: bytes = ZERO_HASH
    author_id: bytes = ZERO_ID
    epoch: int = 1


class State(msgspec.Struct, array_like=True):
    """All of it, as of one event. Changed by `Log` alone."""

    group_id: bytes
    seq: int = 0
    hash: bytes = ZERO_HASH
    key_epoch: int = 1
    epochs: list[Epoch] = []
    rekey_due: bool = False
    shared_history: bool = False
    roster_seq: int = 0
    name: GroupName = GroupName()
    members: dict[bytes, list[Change]] = {}
    invites: dict[bytes, Invite] = {}
    banned: set[bytes] = set()
    is_deleted: bool = False
    tainted_at: int = 0
    """The seq of the first change of the group that an honest relay would not have logged."""
    logged_epoch: int | None = None
    """The epoch that the next event must be under: that of the last rekey, though it may not have counted."""

    def copy(self) -> "State":
        """An equal state that does not change with this one."""
        return decoder.decode(encoder.encode(self))

    def member_at(self, user_id: bytes, seq: int) -> RosterEntry | None:
        """What somebody was when the event at this seq was logged: what the events before it had made of them."""
        changes = self.members.get(user_id)
        if not changes:
            return None
        if changes[-1].seq < seq:  # as it mostly is
            return changes[-1].entry
        at = bisect_left(changes, seq, key=lambda change: change.seq)
        return changes[at - 1].entry if at else None

    def member(self, user_id: bytes) -> RosterEntry | None:
        """What somebody is now."""
        changes = self.members.get(user_id)
        return changes[-1].entry if changes else None

    def last_known(self, user_id: bytes) -> RosterEntry | None:
        """What somebody is, or was when they were last a member."""
        return next((change.entry for change in reversed(self.members.get(user_id, [])) if change.entry), None)

    def signing_keys(self, user_id: bytes) -> list[bytes]:
        """All signing keys that somebody has had as a member, the newest first."""
        keys = [change.entry.signing_key for change in reversed(self.members.get(user_id, [])) if change.entry]
        return list(dict.fromkeys(keys))

    def roster(self) -> dict[bytes, RosterEntry]:
        """The members now."""
        return {user_id: entry for user_id, changes in self.members.items() if (entry := changes[-1].entry)}

    def set_roster(self, roster: dict[bytes, RosterEntry], seq: int) -> None:
        """These are the members after the event at this seq."""
        for user_id in self.members.keys() | roster.keys():
            if self.member(user_id) != (entry := roster.get(user_id)):
                self.members.setdefault(user_id, []).append(Change(seq, entry))

    def epoch(self, number: int) -> Epoch | None:
        """What the log says of this epoch's key."""
        return self.epochs[number - 1] if 0 < number <= len(self.epochs) else None


encoder: Final = msgspec.msgpack.Encoder()
decoder: Final = msgspec.msgpack.Decoder(State)

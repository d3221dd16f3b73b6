"""What an event that counts makes of a group's state."""

from msgspec.structs import replace

from orbital_client.trust.index import Index
from orbital_client.trust.state import Epoch, GroupName, Invite, State
from orbital_client.wire.ledger import roster_after
from orbital_protocol.codes import CHANGES_ROSTER, History, Kind
from orbital_protocol.frames import Event
from orbital_protocol.statements import (
    AnyStatement,
    GroupCreated,
    GroupDeleted,
    GroupRekeyed,
    GroupUpdated,
    InviteCreated,
    InviteRevoked,
    KeyReplaced,
    MediaDeleted,
    MemberJoined,
    MemberLeft,
    MemberRemoved,
    MemberUnbanned,
    PostDeleted,
)


def apply(state: State, index: Index, event: Event, statement: AnyStatement | None) -> None:
    """Bring the state to what it is after a control event, or after one of the relay's own."""
    if event.kind in CHANGES_ROSTER:
        _change_roster(state, event, statement)
    if statement is None:
        _apply_by_relay(state, index, event)
        return
    _change_group(state, event, statement)
    _change_doors(state, statement)
    match statement:
        case PostDeleted():
            index.erase(statement.target_id, event.seq)
        case MediaDeleted():
            index.erase(statement.media_id, event.seq)
        case _:
            pass


def _change_roster(state: State, event: Event, statement: AnyStatement | None) -> None:
    roster = state.roster()
    if statement is None:
        roster.pop(event.object_id, None)
    else:
        roster = dict(roster_after(roster, statement))
    state.set_roster(roster, event.seq)
    state.roster_seq = event.seq


def _change_group(state: State, event: Event, statement: AnyStatement) -> None:
    """The name, the key, and whether another one is due."""
    match statement:
        case GroupCreated():
            state.shared_history = statement.history == History.SHARED
            state.epochs = [Epoch(event.seq, statement.key_commitment, b"")]
            state.name = GroupName(statement.name_hash, statement.actor_id, state.key_epoch)
        case GroupUpdated():
            state.name = GroupName(statement.name_hash, statement.actor_id, state.key_epoch)
        case GroupRekeyed():
            state.epochs.append(Epoch(event.seq, statement.key_commitment, statement.previous_key))
            state.name = GroupName(statement.name_hash, statement.actor_id, statement.new_key_epoch)
            state.key_epoch = statement.new_key_epoch
            state.rekey_due = False
        case MemberJoined():
            state.rekey_due = not state.shared_history
        case MemberLeft() | MemberRemoved() | KeyReplaced():
            state.rekey_due = True
        case GroupDeleted():
            state.is_deleted = True
        case _:
            pass


def _change_doors(state: State, statement: AnyStatement) -> None:
    """Invites and bans."""
    match statement:
        case InviteCreated():
            state.invites[statement.invite_id] = Invite(
                statement.invite_key, statement.actor_id, statement.expires_at, statement.max_uses
            )
        case InviteRevoked():
            _revoke(state, statement.invite_id)
        case MemberJoined() if invite := state.invites.get(statement.invite_id):
            state.invites[statement.invite_id] = replace(invite, uses=invite.uses + 1)
        case MemberRemoved():
            for invite_id in state.invites:
                _revoke(state, invite_id)
            if statement.ban:
                state.banned.add(statement.user_id)
        case MemberUnbanned():
            state.banned.discard(statement.user_id)
        case _:
            pass


def _revoke(state: State, invite_id: bytes) -> None:
    state.invites[invite_id] = replace(state.invites[invite_id], is_revoked=True)


def _apply_by_relay(state: State, index: Index, event: Event) -> None:
    match event.kind:
        case Kind.MEMBER_LEFT:
            state.rekey_due = True
        case Kind.MEDIA_EXPIRED:
            index.erase(event.object_id, event.seq)
        case Kind.GROUP_DELETED:
            state.is_deleted = True
        case _:
            pass

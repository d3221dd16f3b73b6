"""What a control event must meet to count (SPEC 7, 8, 12.5): pure functions that return what breaks a rule, or None."""

from collections.abc import Callable, Mapping
from typing import Final, TypeGuard

from orbital_client.trust.findings import Flaw
from orbital_client.trust.index import Index, Known
from orbital_client.trust.state import Invite, State
from orbital_protocol import ZERO_HASH, ZERO_ID, points
from orbital_protocol.codes import Kind, Role
from orbital_protocol.frames import Event
from orbital_protocol.statements import (
    AnyStatement,
    GroupCreated,
    GroupDeleted,
    GroupRekeyed,
    GroupTransferred,
    GroupUpdated,
    InviteCreated,
    InviteRevoked,
    KeyReplaced,
    MediaDeleted,
    MemberJoined,
    MemberLeft,
    MemberRemoved,
    MemberRole,
    MemberUnbanned,
    PostDeleted,
    join_preimage,
    key_preimage,
    verify,
    verify_raw,
)

Wrong = tuple[Flaw, str] | None
"""Which rule is broken, and how."""

ERASABLE: Final = frozenset({Kind.THREAD_POSTED, Kind.REPLY_POSTED, Kind.ANNOTATION_POSTED})
PARENTS: Final[Mapping[int, frozenset[int]]] = {
    Kind.REPLY_POSTED: frozenset({Kind.THREAD_POSTED}),
    Kind.MEDIA_POSTED: frozenset({Kind.THREAD_POSTED}),
    Kind.ANNOTATION_POSTED: ERASABLE | {Kind.MEDIA_POSTED},
}
"""Of which kinds the parent is."""


def check_post(state: State, index: Index, event: Event, parent_id: bytes) -> Wrong:
    """A post or file: its author is in the group, its key in force, and its parent there."""
    if state.member(event.actor_id) is None:
        return Flaw.NO_MEMBER, ""
    if state.rekey_due:
        return Flaw.REKEY_DUE, ""
    kinds = PARENTS.get(event.kind)
    if kinds is None:
        return None
    parent = index.by_id(parent_id)
    if parent is None or parent.kind not in kinds or not parent.counts or parent.erased_at:
        return Flaw.BAD_PARENT, ""
    return None


def check_statement(state: State, index: Index, event: Event, statement: AnyStatement) -> Wrong:
    """A change of the group: signed by a member who may make it, on a state that this group had."""
    if wrong := _check_signature(state, event, statement):
        return wrong
    if not isinstance(statement, GroupCreated):
        if statement.base_seq >= event.seq or index.hash_at(statement.base_seq) != statement.base_hash:
            return Flaw.BAD_BASE, "its base is not in the log"
        if statement.base_seq < state.roster_seq:
            return Flaw.BAD_BASE, "the members had changed since"
    return _RULES[type(statement)](state, index, event, statement)


def _check_signature(state: State, event: Event, statement: AnyStatement) -> Wrong:
    if _introduces_itself(statement):
        signing_key = statement.signing_key
    elif (actor := state.member(statement.actor_id)) is None:
        return Flaw.NO_MEMBER, "whoever made it is not in the group"
    else:
        signing_key = actor.signing_key
    if not verify(event.statement or b"", event.signature or b"", signing_key):
        return Flaw.FORGED_STATEMENT, ""
    if isinstance(statement, GroupCreated | MemberJoined | KeyReplaced) and (
        what := points.flaw(statement.signing_key)
    ):
        return Flaw.BAD_KEY, f"the key {what}"
    return None


def _introduces_itself(statement: AnyStatement) -> TypeGuard[GroupCreated | MemberJoined]:
    if isinstance(statement, MemberJoined):
        return statement.actor_id == statement.user_id
    return isinstance(statement, GroupCreated)


def _forbidden(what: str) -> Wrong:
    return Flaw.NOT_ALLOWED, what


def _role(state: State, user_id: bytes) -> int:
    entry = state.member(user_id)
    return entry.role if entry else 0


def _created(state: State, _index: Index, event: Event, statement: GroupCreated) -> Wrong:
    if event.seq != 1 or (statement.base_seq, statement.base_hash) != (0, ZERO_HASH):
        return _forbidden("a group is created once")
    return None


def _updated(state: State, _index: Index, _event: Event, statement: GroupUpdated) -> Wrong:
    if _role(state, statement.actor_id) < Role.ADMIN:
        return _forbidden("only admins change the name")
    return _unless_due(state)


def _unless_due(state: State) -> Wrong:
    return (Flaw.REKEY_DUE, "") if state.rekey_due else None


def _transferred(state: State, _index: Index, _event: Event, statement: GroupTransferred) -> Wrong:
    if _role(state, statement.actor_id) != Role.OWNER or not 0 < _role(state, statement.user_id) < Role.OWNER:
        return _forbidden("only the owner hands the group over, to another member")
    return None


def _rekeyed(state: State, _index: Index, _event: Event, statement: GroupRekeyed) -> Wrong:
    if not state.rekey_due and _role(state, statement.actor_id) < Role.ADMIN:
        return _forbidden("only admins change the key when none is due")
    if bool(statement.previous_key) != state.shared_history:
        return _forbidden("the history is to be readable for newcomers, or not, as the group was created")
    return None


def _deleted(state: State, _index: Index, _event: Event, statement: GroupDeleted) -> Wrong:
    return None if _role(state, statement.actor_id) == Role.OWNER else _forbidden("only the owner deletes the group")


def _joined(state: State, _index: Index, event: Event, statement: MemberJoined) -> Wrong:
    is_own = statement.actor_id == statement.user_id
    if not is_own and _role(state, statement.actor_id) < Role.ADMIN:
        return _forbidden("only admins admit")
    if state.member(statement.user_id):
        return _forbidden("they are in the group already")
    if statement.user_id in state.banned:
        return _forbidden("they are banned")
    if (wrong := _unless_due(state)) or (not is_own and statement.invite_id == ZERO_ID):
        return wrong
    return _check_invite(state.invites.get(statement.invite_id), event, statement)


def _check_invite(invite: Invite | None, event: Event, statement: MemberJoined) -> Wrong:
    if invite is None:
        return Flaw.BAD_INVITE, "nobody made this invite"
    if invite.is_revoked or (invite.max_uses and invite.uses >= invite.max_uses):
        return Flaw.BAD_INVITE, "the invite no longer works"
    if invite.expires_at and invite.expires_at <= event.created_at:
        return Flaw.BAD_INVITE, "the invite has expired"
    preimage = join_preimage(
        group_id=statement.group_id,
        invite_id=statement.invite_id,
        user_id=statement.user_id,
        signing_key=statement.signing_key,
        rsa_thumbprint=statement.rsa_thumbprint,
    )
    if not verify_raw(preimage, statement.invite_signature, invite.invite_key):
        return Flaw.BAD_INVITE, "it is not signed with the invite's secret"
    return None


def _left(state: State, _index: Index, _event: Event, statement: MemberLeft) -> Wrong:
    return _forbidden("the owner can't leave") if _role(state, statement.actor_id) == Role.OWNER else None


def _removed(state: State, _index: Index, _event: Event, statement: MemberRemoved) -> Wrong:
    return (
        None if _is_above(state, statement.actor_id, statement.user_id) else _forbidden("they are not of a lower role")
    )


def _is_above(state: State, actor_id: bytes, user_id: bytes) -> bool:
    return _role(state, actor_id) >= Role.ADMIN and 0 < _role(state, user_id) < _role(state, actor_id)


def _role_set(state: State, _index: Index, _event: Event, statement: MemberRole) -> Wrong:
    if not _is_above(state, statement.actor_id, statement.user_id):
        return _forbidden("they are not of a lower role")
    return None if statement.role < _role(state, statement.actor_id) else _forbidden("a role is given from above")


def _unbanned(state: State, _index: Index, _event: Event, statement: MemberUnbanned) -> Wrong:
    if _role(state, statement.actor_id) < Role.ADMIN or statement.user_id not in state.banned:
        return _forbidden("only admins lift a ban that there is")
    return None


def _invited(state: State, _index: Index, _event: Event, statement: InviteCreated) -> Wrong:
    if _role(state, statement.actor_id) < Role.ADMIN:
        return _forbidden("only admins invite")
    if statement.invite_id in state.invites:
        return Flaw.REPEATED_ID, "an invite with this id"
    if what := points.flaw(statement.invite_key):
        return Flaw.BAD_KEY, f"the invite's key {what}"
    return _unless_due(state)


def _uninvited(state: State, _index: Index, _event: Event, statement: InviteRevoked) -> Wrong:
    if _role(state, statement.actor_id) < Role.ADMIN or statement.invite_id not in state.invites:
        return _forbidden("only admins revoke an invite that there is")
    return None


def _replaced(state: State, _index: Index, _event: Event, statement: KeyReplaced) -> Wrong:
    preimage = key_preimage(
        user_id=statement.actor_id, signing_key=statement.signing_key, rsa_thumbprint=statement.rsa_thumbprint
    )
    if not verify_raw(preimage, statement.key_signature, statement.signing_key):
        return Flaw.FORGED_STATEMENT, "the new key has not signed"
    return None


def _erased(state: State, index: Index, _event: Event, statement: PostDeleted) -> Wrong:
    return _may_erase(state, index.by_id(statement.target_id), statement.actor_id, ERASABLE)


def _media_deleted(state: State, index: Index, _event: Event, statement: MediaDeleted) -> Wrong:
    return _may_erase(state, index.by_id(statement.media_id), statement.actor_id, frozenset({Kind.MEDIA_POSTED}))


def _may_erase(state: State, target: Known | None, actor_id: bytes, kinds: frozenset[Kind]) -> Wrong:
    if target is None or target.kind not in kinds or target.erased_at:
        return Flaw.BAD_PARENT, "there is nothing to delete"
    if target.actor_id != actor_id and _role(state, actor_id) < Role.ADMIN:
        return _forbidden("only its author and admins delete it")
    return None


# Each function gets the statement of its own type: the table says which.
_RULES: Final[dict[type, Callable[..., Wrong]]] = {
    GroupCreated: _created,
    GroupUpdated: _updated,
    GroupTransferred: _transferred,
    GroupRekeyed: _rekeyed,
    GroupDeleted: _deleted,
    MemberJoined: _joined,
    MemberLeft: _left,
    MemberRemoved: _removed,
    MemberRole: _role_set,
    MemberUnbanned: _unbanned,
    InviteCreated: _invited,
    InviteRevoked: _uninvited,
    KeyReplaced: _replaced,
    PostDeleted: _erased,
    MediaDeleted: _media_deleted,
}

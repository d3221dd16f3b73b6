"""Who may do what: pure functions over what was read under the lock. They return nothing, or raise what is answered."""

from collections.abc import Collection, Mapping

from orbital_protocol import ZERO_ID
from orbital_protocol.chain import field_hash
from orbital_protocol.codes import History, Kind, Role
from orbital_protocol.frames import ErrorDetails, GroupKnock, GroupWrap, Limits, WrappedKey
from orbital_protocol.statements import (
    GroupCreated,
    GroupRekeyed,
    GroupUpdated,
    MemberJoined,
    Statement,
    join_preimage,
    verify,
    verify_raw,
)
from orbital_relay.errors import (
    AlreadyMember,
    BadArgument,
    BadSignature,
    Banned,
    Forbidden,
    InviteInvalid,
    LimitExceeded,
    MemberSetMismatch,
    NotFound,
    RekeyRequired,
    StaleBase,
    StaleKeyEpoch,
    TooLarge,
)
from orbital_relay.store.control import Head, Keys, Member
from orbital_relay.store.groups import PostRow
from orbital_relay.store.invites import Door, InviteRow
from orbital_relay.store.members import Newcomer, Wraps

ERASABLE = frozenset({Kind.THREAD_POSTED, Kind.REPLY_POSTED, Kind.ANNOTATION_POSTED})
"""What `post.delete` deletes."""

MAX_WRAPS = 16
"""How often a key of one epoch may be wrapped for one member."""


# ── roles ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def require_member(member: Member | None) -> Member:
    """Return the membership, or raise NotFound: a stranger must not learn that the group exists."""
    if member is None:
        raise NotFound
    return member


def require_role(member: Member | None, at_least: Role) -> Member:
    """Return the membership, or raise NotFound for a stranger and Forbidden for too low a role."""
    member = require_member(member)
    if member.role < at_least:
        raise Forbidden
    return member


def require_above(member: Member | None, target: Member | None) -> Member:
    """Return the target, whose role must be below the member's; raise NotFound for a target who is no member."""
    member = require_role(member, Role.ADMIN)
    target = require_member(target)
    if target.role >= member.role:
        raise Forbidden
    return target


def may_set_role(member: Member | None, target: Member | None, role: int) -> None:
    """Roles are given by those above: both the target's role and the new one are below the member's own."""
    require_above(member, target)
    if member is None or role >= member.role:
        raise Forbidden


def may_transfer(member: Member | None, target: Member | None) -> None:
    """The owner may make any other member the owner."""
    require_above(require_role(member, Role.OWNER), target)


def may_leave(member: Member | None) -> None:
    """Anyone may, but the owner."""
    if require_member(member).role == Role.OWNER:
        raise Forbidden("The owner can't leave: transfer or delete the group.")


def may_erase(member: Member | None, post: PostRow | None, group_id: bytes) -> None:
    """A post's author and admins may delete it, once."""
    member = require_member(member)
    if post is None or post.group_id != group_id or post.kind not in ERASABLE or post.erased:
        raise NotFound
    if post.author_id != member.user_id:
        require_role(member, Role.ADMIN)


def may_delete_media(member: Member | None, post: PostRow | None, group_id: bytes) -> None:
    """A file's author and admins may delete it; whether it is still there, others say."""
    member = require_member(member)
    if post is None or post.group_id != group_id or post.kind != Kind.MEDIA_POSTED:
        raise NotFound
    if post.author_id != member.user_id:
        require_role(member, Role.ADMIN)


# ── statements ──────────────────────────────────────────────────────────────────────────────────────────────────────


def check_signature(raw: bytes, signature: bytes, keys: Keys) -> None:
    """The statement is signed by its actor's key in force."""
    if not verify(raw, signature, keys.signing_key):
        raise BadSignature


def check_epoch(key_epoch: int, head: Head) -> None:
    """The request speaks of the key in force."""
    if key_epoch != head.key_epoch:
        raise StaleKeyEpoch(details=ErrorDetails(key_epoch=head.key_epoch))


def check_base(statement: Statement, head: Head, base_hash: bytes | None) -> None:
    """The actor had verified an event of this log, and the roster hasn't changed after it."""
    if statement.base_hash != base_hash or statement.base_seq < head.roster_seq:
        raise StaleBase(details=ErrorDetails(seq=head.seq))


def check_keys(statement: GroupCreated | MemberJoined, keys: Keys) -> None:
    """A statement introduces a user with the keys that are in force."""
    if Keys(statement.signing_key, statement.rsa_thumbprint, statement.is_bot) != keys:
        raise BadArgument(
            "The keys in the statement are not those of the user.", details=ErrorDetails(field="statement")
        )


def check_size(field: str, value: bytes, limit: int) -> None:
    """A field is no larger than `hello` says."""
    if len(value) > limit:
        raise TooLarge(details=ErrorDetails(field=field, limit=limit))


def check_ciphertext(field: str, value: bytes, limit: int) -> None:
    """A ciphertext is there, and no larger than `hello` says."""
    check_size(field, value, limit)
    if not value:
        raise BadArgument("A ciphertext is never empty.", details=ErrorDetails(field=field))


def check_id(field: str, new_id: bytes) -> None:
    """An id that a client made is not zeros, which stand for nothing."""
    if new_id == ZERO_ID:
        raise BadArgument("The zero id stands for nothing.", details=ErrorDetails(field=field))


def check_name(statement: GroupCreated | GroupUpdated | GroupRekeyed, encrypted_name: bytes) -> None:
    """The name is the one that was signed."""
    if field_hash(encrypted_name) != statement.name_hash:
        raise BadArgument("The name is not the one that was signed.", details=ErrorDetails(field="encrypted_name"))


# ── joining ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def check_invite(statement: MemberJoined, invite: InviteRow | None) -> InviteRow:
    """Return the live link whose key signed this newcomer in; raise InviteInvalid for whatever is wrong with it."""
    if invite is None or not invite.is_live or not signed_by_invite(statement, invite.invite_key):
        raise InviteInvalid
    return invite


def signed_by_invite(statement: MemberJoined, invite_key: bytes) -> bool:
    """Whether the link's key signed for this newcomer with these keys."""
    preimage = join_preimage(
        group_id=statement.group_id,
        invite_id=statement.invite_id,
        user_id=statement.user_id,
        signing_key=statement.signing_key,
        rsa_thumbprint=statement.rsa_thumbprint,
    )
    return verify_raw(preimage, statement.invite_signature, invite_key)


def check_knock(door: Door, user_id: bytes, newcomer: Newcomer, request: GroupKnock) -> None:
    """Whoever knocks with a link's code has its signature too; the standing code needs none."""
    if door.invite_id is None or door.invite_key is None:
        return
    preimage = join_preimage(
        group_id=door.group_id,
        invite_id=door.invite_id,
        user_id=user_id,
        signing_key=newcomer.keys.signing_key,
        rsa_thumbprint=newcomer.keys.rsa_thumbprint,
    )
    if request.invite_signature is None or not verify_raw(preimage, request.invite_signature, door.invite_key):
        raise InviteInvalid


def names_invite(statement: MemberJoined) -> bool:
    """Whether a newcomer who is admitted shows a link; without one, the id is zeros and the signature empty."""
    return (statement.invite_id, statement.invite_signature) != (ZERO_ID, b"")


def may_join(statement: MemberJoined, newcomer: Newcomer, head: Head, limits: Limits) -> None:
    """Whether a user may become a member now, whoever lets them in."""
    may_ask(newcomer)
    if head.rekey_required:
        raise RekeyRequired
    check_keys(statement, newcomer.keys)
    if newcomer.members >= limits.max_members_per_group:
        raise LimitExceeded("The group is full.", details=ErrorDetails(limit=limits.max_members_per_group))
    check_groups(newcomer.groups, limits)


def may_ask(newcomer: Newcomer) -> None:
    """Whether a user may ask to become a member."""
    if newcomer.is_member:
        raise AlreadyMember
    if newcomer.is_banned:
        raise Banned


def check_groups(groups: int, limits: Limits) -> None:
    """A user who is in this many groups may be in one more."""
    if groups >= limits.max_groups_per_user:
        raise LimitExceeded(
            "The user is in as many groups as may be.", details=ErrorDetails(limit=limits.max_groups_per_user)
        )


def check_expiry(invite: InviteRow, joined_at: int) -> None:
    """The link was live at the moment that the log says somebody joined: members hold the one against the other."""
    if 0 < invite.expires_at <= joined_at:
        raise InviteInvalid


def check_sealed_key(invite: InviteRow, head: Head) -> None:
    """Whoever comes through a link needs the key that it holds; after a rekey there is none."""
    if not invite.has_sealed_key:
        raise StaleKeyEpoch(
            "The link holds no key any more: knock with it.", details=ErrorDetails(key_epoch=head.key_epoch)
        )


def joining_makes_rekey_due(history: History | None) -> bool:
    """Whether newcomers must not read what was posted before them."""
    return history == History.NONE


# ── keys ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def check_no_rekey_due(head: Head) -> None:
    """What would be sealed under a key that somebody who left still has, waits for the next one."""
    if head.rekey_required:
        raise RekeyRequired


def may_rekey(member: Member | None, head: Head, statement: GroupRekeyed) -> None:
    """Any member may answer a rekey that is due, an admin may make one unasked; always from one epoch to the next."""
    require_role(member, Role.MEMBER if head.rekey_required else Role.ADMIN)
    if statement.new_key_epoch != head.key_epoch + 1:
        raise StaleKeyEpoch(details=ErrorDetails(key_epoch=head.key_epoch))


def check_previous_key(previous_key: bytes, history: History | None) -> None:
    """The old key, sealed under the new one, is there if the group shares its history, and only then."""
    if bool(previous_key) != (history == History.SHARED):
        raise BadArgument(
            "A group that shares its history, and only such a one, hands on its previous key.",
            details=ErrorDetails(field="statement"),
        )


def check_recipients(wraps: Collection[WrappedKey], members: Mapping[bytes, bytes]) -> None:
    """The wraps are for exactly these members (thumbprints by user id), each once and for the key in force."""
    named = {wrap.user_id: wrap.rsa_thumbprint for wrap in wraps}
    missing = sorted(user_id for user_id, thumbprint in members.items() if named.get(user_id) != thumbprint)
    unexpected = sorted(user_id for user_id, thumbprint in named.items() if members.get(user_id) != thumbprint)
    if missing or unexpected:
        raise MemberSetMismatch(details=ErrorDetails(missing=missing, unexpected=unexpected))
    if len(named) != len(wraps):
        raise BadArgument("A member has two wraps.", details=ErrorDetails(field="encrypted_group_keys"))


def may_wrap(target: Member, current_epoch: int, request: GroupWrap) -> None:
    """A key that was in force may be wrapped for a member, for the RSA key that they have now."""
    if request.key_epoch > current_epoch:
        raise BadArgument("There is no such key yet.", details=ErrorDetails(field="key_epoch"))
    if request.rsa_thumbprint != target.keys.rsa_thumbprint:
        raise MemberSetMismatch(details=ErrorDetails(missing=[target.user_id], unexpected=[target.user_id]))


def check_wraps(wraps: Wraps) -> None:
    """There is room for one more wrap of this epoch."""
    if wraps.count >= MAX_WRAPS:
        raise LimitExceeded("The key was wrapped for this member often enough.", details=ErrorDetails(limit=MAX_WRAPS))

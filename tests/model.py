"""What a relay must answer: a model of one group, without keys, bytes, sockets or a database.

For every request there is a question (`may_…`), which returns the errors of which the relay must give one; none: the
relay must carry the request out. Where that changes the group, a method says what is so afterwards. A request that
breaks several rules may be answered with any of their errors; what hides the group from strangers stands alone.
"""

from dataclasses import dataclass, field
from enum import Enum, auto

from orbital_protocol.codes import CHANGES_ROSTER, ErrorCode, History, Kind, Role

Verdict = frozenset[ErrorCode]
"""The errors of which one must be the answer; empty: the request must be carried out."""

Rule = tuple[bool, ErrorCode]
"""Whether a rule is broken, and the error that says so."""

HIDDEN: Verdict = frozenset({ErrorCode.NOT_FOUND})
SHUT: Verdict = frozenset({ErrorCode.INVITE_INVALID})


class Flaw(Enum):
    """What may be wrong with a statement, whatever it says."""

    NONE = auto()
    LAGGING = auto()  # based on the last change of the roster, though posts followed: nothing is wrong with that
    BEHIND = auto()
    FORKED = auto()
    OTHER_KEY = auto()
    UNSIGNED = auto()
    TAKEN_ID = auto()


FLAWS: dict[Flaw, ErrorCode] = {
    Flaw.BEHIND: ErrorCode.STALE_BASE,
    Flaw.FORKED: ErrorCode.STALE_BASE,
    Flaw.OTHER_KEY: ErrorCode.STALE_KEY_EPOCH,
    Flaw.UNSIGNED: ErrorCode.BAD_SIGNATURE,
    Flaw.TAKEN_ID: ErrorCode.ID_CONFLICT,
}
"""What a flawed statement is refused with."""


class Recipients(Enum):
    """Whom a rekey wraps the new key for."""

    RIGHT = auto()
    ONE_MISSING = auto()
    ONE_TOO_MANY = auto()
    ANOTHER_KEY = auto()


@dataclass(eq=False)
class Invite:
    """A link. `sealed`: it still holds the key in force."""

    max_uses: int
    uses: int = 0
    revoked: bool = False
    sealed: bool = True

    @property
    def is_live(self) -> bool:
        return not self.revoked and (not self.max_uses or self.uses < self.max_uses)


@dataclass(eq=False)
class Post:
    """A thread, reply or annotation in the log."""

    author: str
    kind: Kind
    erased: bool = False


@dataclass
class Group:
    """A group whose log stands at `seq`. People go by their names."""

    history: History
    roles: dict[str, Role]
    seq: int
    roster_seq: int
    key_epoch: int = 1
    rekey_required: bool = False
    deleted: bool = False
    banned: set[str] = field(default_factory=set)
    knocks: dict[str, Invite | None] = field(default_factory=dict)
    invites: list[Invite] = field(default_factory=list)

    # ── questions ───────────────────────────────────────────────────────────────────────────────────────────────────

    def role(self, name: str) -> int:
        """A member's role; 0 for a stranger."""
        return self.roles.get(name, 0)

    def _tell(self, actor: str, *rules: Rule) -> Verdict:
        """A stranger is told nothing, a member which rules they break."""
        return _broken(*rules) if actor in self.roles else HIDDEN

    def _not_admin(self, actor: str) -> Rule:
        return self.role(actor) < Role.ADMIN, ErrorCode.FORBIDDEN

    def _no_member(self, target: str) -> Rule:
        return target not in self.roles, ErrorCode.NOT_FOUND

    def _not_above(self, actor: str, role: int) -> Rule:
        return self.role(actor) <= role, ErrorCode.FORBIDDEN

    @property
    def _rekey_due(self) -> Rule:
        return self.rekey_required, ErrorCode.REKEY_REQUIRED

    def may_subscribe(self, name: str) -> str:
        """The status that a subscription from a true cursor gets."""
        if self.deleted:
            return "gone"
        return "resumed" if name in self.roles else "denied"

    def may_invite(self, actor: str) -> Verdict:
        return self._tell(actor, self._not_admin(actor), self._rekey_due)

    def may_revoke(self, actor: str, invite: Invite) -> Verdict:
        return self._tell(actor, self._not_admin(actor), (invite.revoked, ErrorCode.NOT_FOUND))

    def may_join(self, newcomer: str, invite: Invite, *, signed: bool) -> Verdict:
        """Whoever has no live link's signature learns only that."""
        if not invite.is_live or not signed:
            return SHUT
        return self._may_enter(newcomer) | _broken((not invite.sealed, ErrorCode.STALE_KEY_EPOCH), self._rekey_due)

    def may_knock(self, newcomer: str, invite: Invite | None, *, signed: bool) -> Verdict:
        """Without a link it is the standing code; with one, its signature is shown too."""
        if self.deleted or (invite is not None and not (invite.is_live and signed)):
            return SHUT
        return self._may_enter(newcomer)

    def _may_enter(self, newcomer: str) -> Verdict:
        return _broken(
            (newcomer in self.roles, ErrorCode.ALREADY_MEMBER),
            (newcomer in self.banned, ErrorCode.BANNED),
        )

    def may_admit(self, actor: str, newcomer: str) -> Verdict:
        """The admin names the link that the newcomer knocked with, if any."""
        invite = self.knocks.get(newcomer)
        return self._tell(
            actor,
            self._not_admin(actor),
            (newcomer in self.roles, ErrorCode.ALREADY_MEMBER),
            (newcomer in self.banned, ErrorCode.BANNED),
            (newcomer not in self.knocks, ErrorCode.NOT_FOUND),
            (invite is not None and not invite.is_live, ErrorCode.INVITE_INVALID),
            self._rekey_due,
        )

    def may_deny(self, actor: str) -> Verdict:
        return self._tell(actor, self._not_admin(actor))

    def may_leave(self, actor: str) -> Verdict:
        return self._tell(actor, (self.role(actor) == Role.OWNER, ErrorCode.FORBIDDEN))

    def may_remove(self, actor: str, target: str) -> Verdict:
        return self._tell(
            actor, self._not_admin(actor), self._no_member(target), self._not_above(actor, self.role(target))
        )

    def may_unban(self, actor: str, target: str) -> Verdict:
        return self._tell(actor, self._not_admin(actor), (target not in self.banned, ErrorCode.NOT_FOUND))

    def may_set_role(self, actor: str, target: str, role: Role) -> Verdict:
        return self._tell(
            actor,
            self._not_admin(actor),
            self._no_member(target),
            self._not_above(actor, self.role(target)),
            self._not_above(actor, role),
        )

    def may_transfer(self, actor: str, target: str) -> Verdict:
        return self._tell(
            actor,
            (self.role(actor) < Role.OWNER, ErrorCode.FORBIDDEN),
            self._no_member(target),
            self._not_above(actor, self.role(target)),
        )

    def may_rekey(self, actor: str, recipients: Recipients) -> Verdict:
        """Any member may answer a rekey that is due."""
        return self._tell(
            actor,
            (self.role(actor) < Role.ADMIN and not self.rekey_required, ErrorCode.FORBIDDEN),
            (recipients != Recipients.RIGHT, ErrorCode.MEMBER_SET_MISMATCH),
        )

    def may_delete(self, actor: str) -> Verdict:
        return self._tell(actor, (self.role(actor) < Role.OWNER, ErrorCode.FORBIDDEN))

    def may_erase(self, actor: str, post: Post) -> Verdict:
        return self._tell(
            actor,
            (post.erased, ErrorCode.NOT_FOUND),
            (post.author != actor and self.role(actor) < Role.ADMIN, ErrorCode.FORBIDDEN),
        )

    def may_post(self, actor: str, kind: Kind, parent: Post | None, *, key_epoch: int) -> Verdict:
        """Replies are to threads, annotations to anything; neither to what was erased."""
        wrong_kind = kind == Kind.REPLY_POSTED and parent is not None and parent.kind != Kind.THREAD_POSTED
        return self._tell(
            actor,
            self._rekey_due,
            (key_epoch != self.key_epoch, ErrorCode.STALE_KEY_EPOCH),
            (parent is not None and (parent.erased or wrong_kind), ErrorCode.NOT_FOUND),
        )

    def may_repeat_post(self, actor: str, post: Post) -> Verdict:
        """An author gets the first answer again, whatever else has changed meanwhile; the id is no one else's."""
        return self._tell(actor, (post.author != actor, ErrorCode.ID_CONFLICT))

    def flawed(self, actor: str, verdict: Verdict, flaw: Flaw) -> Verdict:
        """The verdict on a statement that has a flaw besides; whoever is told nothing isn't told of that either."""
        if flaw not in FLAWS or (actor not in self.roles and verdict in (HIDDEN, SHUT)):
            return verdict
        return verdict | {FLAWS[flaw]}

    # ── what is so afterwards ───────────────────────────────────────────────────────────────────────────────────────

    def log(self, kind: Kind) -> None:
        """An event of this kind is in the log; what it changes besides is said by the other methods."""
        self.seq += 1
        if kind in CHANGES_ROSTER:
            self.roster_seq = self.seq

    def joined(self, newcomer: str, invite: Invite | None) -> None:
        self.roles[newcomer] = Role.MEMBER
        self.knocks.pop(newcomer, None)
        if invite is not None:
            invite.uses += 1
        if self.history == History.NONE:
            self.rekey_required = True

    def left(self, name: str) -> None:
        del self.roles[name]
        self.rekey_required = True

    def removed(self, name: str, *, ban: bool) -> None:
        self.left(name)
        if ban:
            self.banned.add(name)
        for invite in self.invites:
            invite.revoked = True

    def transferred(self, owner: str, heir: str) -> None:
        self.roles |= {owner: Role.ADMIN, heir: Role.OWNER}

    def rekeyed(self) -> None:
        self.key_epoch += 1
        self.rekey_required = False
        for invite in self.invites:
            invite.sealed = False

    def buried(self) -> None:
        """The group is deleted: everyone is a stranger to it now."""
        self.deleted = True
        self.roles.clear()
        for invite in self.invites:
            invite.revoked = True


def _broken(*rules: Rule) -> Verdict:
    return frozenset(code for is_broken, code in rules if is_broken)

"""What a change of a group must meet to count: each rule, kept and broken. What breaks one changes nothing."""

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from orbital_client.crypto.contents import Edit, React
from orbital_client.errors import ChainBroken
from orbital_client.trust.findings import Flaw
from orbital_client.trust.index import MemoryIndex
from orbital_client.trust.log import POSTS, Log
from orbital_protocol import ZERO_HASH, ZERO_ID
from orbital_protocol.codes import History, Kind, Role
from orbital_protocol.frames import Event
from orbital_protocol.statements import GroupCreated, GroupRekeyed, MediaDeleted, PostDeleted
from tests.unit.trusting import (
    ANN,
    BOB,
    CARA,
    DAN,
    EVE,
    GROUP,
    ROBOT,
    T0,
    Link,
    Story,
    company,
    digest,
    new_id,
    populate,
    someone,
)

NEUTRAL = bytes([1, *bytes(31)])
"""The curve's neutral point: a key of small order, by which `ANYTHING` signs every message."""
ANYTHING = NEUTRAL + bytes(32)


class Talk(Story):
    """A group in which Bob, an admin, has opened a thread, Cara has replied, and Dan has put in a file."""

    def __init__(self) -> None:
        super().__init__()
        populate(self)
        self.opening = self.thread(BOB)
        self.answer = self.reply(CARA, self.opening)
        self.map = self.file(DAN, self.opening)


Told = Callable[[Talk], object]

# ── what counts ─────────────────────────────────────────────────────────────────────────────────────────────────────


def then(*acts: Told) -> Told:
    """One after the other."""

    def told(story: Talk) -> None:
        for act in acts:
            act(story)

    return told


LEFT: Told = lambda s: s.leave(DAN)  # noqa: E731  makes a rekey due
BAN: Told = lambda s: s.remove(BOB, CARA, ban=True)  # noqa: E731
REKEY: Told = lambda s: s.rekey(ANN)  # noqa: E731
NEW_LINK: Told = lambda s: s.invite(ANN, invite_id=new_id("new"))  # noqa: E731

GOOD: dict[str, Told] = {
    "the owner renames": lambda s: s.rename(ANN),
    "an admin renames": lambda s: s.rename(BOB),
    "handed over to an admin": lambda s: s.transfer(ANN, BOB),
    "handed over to a member": lambda s: s.transfer(ANN, DAN),
    "an admin rekeys though none is due": lambda s: s.rekey(BOB),
    "a member rekeys when one is due": then(LEFT, lambda s: s.rekey(CARA)),
    "the owner ends the group": lambda s: s.end(ANN),
    "the owner ends the group when a rekey is due": then(LEFT, lambda s: s.end(ANN)),
    "joining by a link": lambda s: s.join(EVE, Link()),
    "a bot joins by a link": lambda s: s.join(ROBOT, Link()),
    "joining with the roster's hash, where it is known": lambda s: s.join(EVE, Link(), roster_hash=roster_with_eve(s)),
    "admitted by an admin": lambda s: s.admit(BOB, EVE),
    "admitted by the owner": lambda s: s.admit(ANN, EVE),
    "admitted with a link": lambda s: s.admit(BOB, EVE, Link()),
    "the last use of a link": then(
        lambda s: s.invite(ANN, invite_id=new_id("two"), max_uses=2),
        lambda s: s.join(EVE, Link(new_id("two"))),
        lambda s: s.admit(BOB, ROBOT, Link(new_id("two"))),
    ),
    "a link in its last microsecond": lambda s: s.join(EVE, s.invite(ANN, expires_at=T0), event={"created_at": T0 - 1}),
    "back after a removal": then(lambda s: s.remove(BOB, CARA), REKEY, NEW_LINK, lambda s: s.join(CARA, new_link())),
    "back after a ban was lifted": then(BAN, REKEY, lambda s: s.unban(BOB, CARA), lambda s: s.admit(BOB, CARA)),
    "a member leaves": lambda s: s.leave(DAN),
    "an admin leaves": lambda s: s.leave(BOB),
    "leaving when a rekey is due": then(LEFT, lambda s: s.leave(CARA)),
    "an admin removes a member": lambda s: s.remove(BOB, DAN),
    "the owner removes an admin": lambda s: s.remove(ANN, BOB),
    "the owner makes an admin": lambda s: s.role(ANN, DAN, Role.ADMIN),
    "the owner unmakes an admin": lambda s: s.role(ANN, BOB, Role.MEMBER),
    "an admin leaves a member as they are": lambda s: s.role(BOB, DAN, Role.MEMBER),
    "an admin lifts a ban": then(BAN, lambda s: s.unban(BOB, CARA)),
    "an admin invites": lambda s: s.invite(BOB),
    "an admin revokes another's link": lambda s: s.revoke(ANN, Link()),
    "new keys": lambda s: s.replace_keys(CARA, someone("cara", 1)),
    "new keys once more": then(
        lambda s: s.replace_keys(CARA, someone("cara", 1)),
        lambda s: s.replace_keys(someone("cara", 1), someone("cara", 2)),
    ),
    "an author deletes a reply": lambda s: s.delete(CARA, s.answer),
    "an author deletes a thread": lambda s: s.delete(BOB, s.opening),
    "an admin deletes": lambda s: s.delete(BOB, s.answer),
    "an author deletes an annotation": lambda s: s.delete(DAN, s.annotate(DAN, s.answer, React, emoji="!")),
    "deleting when a rekey is due": then(LEFT, lambda s: s.delete(CARA, s.answer)),
    "an author deletes a file": lambda s: s.delete_file(DAN, s.map),
    "an admin deletes a file": lambda s: s.delete_file(BOB, s.map),
    "a base before what was only posted": lambda s: s.rename(BOB, **base(s, s.opening)),
    "the members' last change as a base": lambda s: s.rename(BOB, **base(s, s.events[s.opening.seq - 2])),
    "an annotation of a thread": lambda s: s.annotate(DAN, s.opening, React, emoji="!"),
    "an annotation of a file": lambda s: s.annotate(CARA, s.map, React, emoji="!"),
    "an annotation of an annotation": lambda s: s.annotate(
        DAN, s.annotate(DAN, s.map, React, emoji="!"), Edit, text=""
    ),
    "a reply by a newcomer": then(lambda s: s.join(EVE, Link()), lambda s: s.reply(EVE, s.opening)),
    "an account is deleted": lambda s: s.by_relay(Kind.MEMBER_LEFT, DAN.user_id),
    "an owner's account is deleted": lambda s: s.by_relay(Kind.GROUP_DELETED, ANN.user_id),
    "a file's time is over": lambda s: s.by_relay(Kind.MEDIA_EXPIRED, s.map.object_id),
    "something of a later version": lambda s: s.by_relay(77, new_id("later")),
}


def new_link() -> Link:
    return Link(new_id("new"))


def base(story: Story, event: Event) -> dict[str, Any]:
    return {"base_seq": event.seq, "base_hash": event.hash}


def roster_with_eve(story: Story) -> bytes:
    """The hash of the roster once Eve is in it: of another story, where she was admitted."""
    other = Talk()
    other.admit(ANN, EVE)
    log, _ = other.log()
    statement = log.take(other.rename(ANN)).statement
    assert statement is not None
    return statement.roster_hash


@pytest.mark.parametrize("name", GOOD)
def test_what_keeps_the_rules_counts(name: str) -> None:
    story = Talk()
    GOOD[name](story)
    assert story.flaw() is None
    log, _ = story.log()
    assert log.roster == story.roster
    assert log.key_epoch == story.epoch
    assert log.state.tainted_at == 0


# ── what does not ───────────────────────────────────────────────────────────────────────────────────────────────────

NOT_ALLOWED: dict[str, tuple[Told, str]] = {
    "a second creation": (
        lambda s: s.says(ANN, GroupCreated, **creation(s)),
        "created once",
    ),
    "a member renames": (lambda s: s.rename(DAN), "only admins change the name"),
    "an admin hands over": (lambda s: s.transfer(BOB, DAN), "only the owner hands"),
    "handed over to a stranger": (lambda s: s.transfer(ANN, EVE), "only the owner hands"),
    "handed over to oneself": (lambda s: s.transfer(ANN, ANN), "only the owner hands"),
    "a member rekeys without need": (lambda s: s.rekey(DAN), "only admins change the key"),
    "the key before is not passed on": (lambda s: s.rekey(ANN, previous_key=b""), "the history"),
    "an admin ends the group": (lambda s: s.end(BOB), "only the owner deletes"),
    "a member admits": (lambda s: s.admit(DAN, EVE), "only admins admit"),
    "a member admits with a link": (lambda s: s.admit(DAN, EVE, Link()), "only admins admit"),
    "a member is admitted": (lambda s: s.admit(ANN, DAN), "in the group already"),
    "a member joins": (lambda s: s.join(DAN, Link()), "in the group already"),
    "the owner joins": (lambda s: s.join(ANN, Link()), "in the group already"),
    "whoever is banned joins": (then(BAN, REKEY, NEW_LINK, lambda s: s.join(CARA, new_link())), "banned"),
    "whoever is banned is admitted": (then(BAN, REKEY, lambda s: s.admit(ANN, CARA)), "banned"),
    "the owner leaves": (lambda s: s.leave(ANN), "owner can't leave"),
    "a member removes": (lambda s: s.remove(DAN, CARA), "not of a lower role"),
    "an admin removes an admin": (
        then(lambda s: s.role(ANN, DAN, Role.ADMIN), lambda s: s.remove(BOB, DAN)),
        "not of a lower role",
    ),
    "an admin removes the owner": (lambda s: s.remove(BOB, ANN), "not of a lower role"),
    "an admin removes themselves": (lambda s: s.remove(BOB, BOB), "not of a lower role"),
    "a stranger is removed": (lambda s: s.remove(ANN, EVE), "not of a lower role"),
    "an admin makes an admin": (lambda s: s.role(BOB, DAN, Role.ADMIN), "given from above"),
    "an admin unmakes an admin": (
        then(lambda s: s.role(ANN, DAN, Role.ADMIN), lambda s: s.role(BOB, DAN, Role.MEMBER)),
        "not of a lower role",
    ),
    "an admin unmakes the owner": (lambda s: s.role(BOB, ANN, Role.MEMBER), "not of a lower role"),
    "a member makes themselves an admin": (lambda s: s.role(DAN, DAN, Role.ADMIN), "not of a lower role"),
    "a member sets a role": (lambda s: s.role(DAN, CARA, Role.MEMBER), "not of a lower role"),
    "a stranger gets a role": (lambda s: s.role(ANN, EVE, Role.ADMIN), "not of a lower role"),
    "a member lifts a ban": (then(BAN, lambda s: s.unban(DAN, CARA)), "only admins lift"),
    "a ban is lifted that there is not": (lambda s: s.unban(ANN, EVE), "only admins lift"),
    "a ban is lifted twice": (
        then(BAN, lambda s: s.unban(ANN, CARA), lambda s: s.unban(ANN, CARA)),
        "only admins lift",
    ),
    "a member invites": (lambda s: s.invite(DAN), "only admins invite"),
    "a member revokes": (lambda s: s.revoke(DAN, Link()), "only admins revoke"),
    "a link is revoked that there is not": (lambda s: s.revoke(ANN, new_link()), "only admins revoke"),
    "another's reply is deleted": (lambda s: s.delete(DAN, s.answer), "only its author and admins"),
    "another's file is deleted": (lambda s: s.delete_file(CARA, s.map), "only its author and admins"),
    "an admin's account takes the group with it": (
        lambda s: s.by_relay(Kind.GROUP_DELETED, BOB.user_id),
        "only an owner's account",
    ),
    "a stranger's account takes the group with it": (
        lambda s: s.by_relay(Kind.GROUP_DELETED, EVE.user_id),
        "only an owner's account",
    ),
}


def creation(story: Story) -> dict[str, Any]:
    """Right in all elements, for a new group."""
    made = {"signing_key": ANN.signing_key, "rsa_thumbprint": ANN.rsa_thumbprint, "is_bot": False}
    made |= {"history": History.SHARED, "key_commitment": story.keys[1].commitment, "name_hash": bytes(32)}
    return made | {"base_seq": 0, "base_hash": ZERO_HASH}


BAD: dict[str, tuple[Told, Flaw, str]] = {
    # signatures
    "signed by another member": (lambda s: s.rename(BOB, signer=ANN), Flaw.FORGED_STATEMENT, ""),
    "not signed": (lambda s: s.rename(BOB, event={"signature": None}), Flaw.FORGED_STATEMENT, ""),
    "signed for another statement": (
        lambda s: s.rename(BOB, event={"signature": s.events[3].signature}),
        Flaw.FORGED_STATEMENT,
        "",
    ),
    "signed with the key before": (
        then(lambda s: s.replace_keys(DAN, someone("dan", 1)), lambda s: s.leave(DAN)),
        Flaw.FORGED_STATEMENT,
        "",
    ),
    "by nobody of the group": (lambda s: s.rename(EVE), Flaw.NO_MEMBER, "whoever made it"),
    "by somebody who has left": (then(LEFT, lambda s: s.replace_keys(DAN, someone("dan", 1))), Flaw.NO_MEMBER, ""),
    "joining, signed by another": (lambda s: s.join(EVE, Link(), signer=DAN), Flaw.FORGED_STATEMENT, ""),
    "joining in the name of another": (
        lambda s: s.join(EVE, Link(), user_id=ROBOT.user_id),
        Flaw.NO_MEMBER,
        "whoever made it",
    ),
    "created again, signed by another": (
        lambda s: s.says(ANN, GroupCreated, signer=EVE, **creation(s)),
        Flaw.FORGED_STATEMENT,
        "",
    ),
    "new keys that have not signed": (
        lambda s: s.replace_keys(CARA, someone("cara", 1), key_signer=CARA),
        Flaw.FORGED_STATEMENT,
        "the new key has not signed",
    ),
    "new keys that have signed for another": (
        lambda s: s.replace_keys(CARA, someone("cara", 1), rsa_thumbprint=bytes(32)),
        Flaw.FORGED_STATEMENT,
        "the new key has not signed",
    ),
    "new keys, signed by themselves alone": (
        lambda s: s.replace_keys(CARA, someone("cara", 1), signer=someone("cara", 1)),
        Flaw.FORGED_STATEMENT,
        "",
    ),
    "admitted, signed by the newcomer": (lambda s: s.admit(BOB, EVE, signer=EVE), Flaw.FORGED_STATEMENT, ""),
    # keys that must not be used
    "admitted with a key of small order": (
        lambda s: s.admit(BOB, EVE, signing_key=NEUTRAL),
        Flaw.BAD_KEY,
        "the key is of small order",
    ),
    "joining with a key of small order": (
        lambda s: s.join(EVE, Link(), signing_key=NEUTRAL, event={"signature": ANYTHING}),
        Flaw.BAD_KEY,
        "the key is of small order",
    ),
    "a new key of small order": (
        lambda s: s.replace_keys(CARA, someone("cara", 1), signing_key=NEUTRAL, key_signature=ANYTHING),
        Flaw.BAD_KEY,
        "the key is of small order",
    ),
    "an invite's key of small order": (
        lambda s: s.invite(ANN, invite_key=NEUTRAL),
        Flaw.BAD_KEY,
        "the invite's key is of small order",
    ),
    # bases
    "a base of another log": (lambda s: s.rename(BOB, base_hash=digest("other")), Flaw.BAD_BASE, "not in the log"),
    "a base that is yet to come": (
        lambda s: s.rename(BOB, base_seq=s.head.seq + 1),
        Flaw.BAD_BASE,
        "not in the log",
    ),
    "no base": (lambda s: s.rename(BOB, base_seq=0, base_hash=ZERO_HASH), Flaw.BAD_BASE, "had changed since"),
    "a base before the members changed": (
        lambda s: s.rename(BOB, **base(s, s.events[s.opening.seq - 3])),
        Flaw.BAD_BASE,
        "had changed since",
    ),
    "a base before an account was deleted": (
        then(lambda s: s.by_relay(Kind.MEMBER_LEFT, DAN.user_id), lambda s: s.rekey(BOB, **base(s, s.map))),
        Flaw.BAD_BASE,
        "had changed since",
    ),
    # rosters
    "another roster": (lambda s: s.rename(BOB, roster_hash=digest("other")), Flaw.WRONG_ROSTER, ""),
    "no roster": (lambda s: s.rename(BOB, roster_hash=ZERO_HASH), Flaw.WRONG_ROSTER, ""),
    "admitted to no roster": (lambda s: s.admit(BOB, EVE, roster_hash=ZERO_HASH), Flaw.WRONG_ROSTER, ""),
    "joining another roster": (lambda s: s.join(EVE, Link(), roster_hash=digest("other")), Flaw.WRONG_ROSTER, ""),
    # ids
    "a statement once more": (lambda s: s.append(s.rename(BOB)), Flaw.REPEATED_ID, ""),
    "a statement with a post's id": (
        lambda s: s.rename(BOB, statement_id=s.answer.object_id),
        Flaw.REPEATED_ID,
        "",
    ),
    "a post once more": (lambda s: s.append(s.answer), Flaw.REPEATED_ID, ""),
    "another post with the same id": (
        lambda s: s.reply(DAN, s.opening, object_id=s.answer.object_id),
        Flaw.REPEATED_ID,
        "",
    ),
    "an invite's id once more": (
        lambda s: s.invite(ANN, invite_id=Link().invite_id),
        Flaw.REPEATED_ID,
        "an invite with this id",
    ),
    # while a rekey is due
    "renamed before a rekey": (then(LEFT, lambda s: s.rename(ANN)), Flaw.REKEY_DUE, ""),
    "admitted before a rekey": (then(LEFT, lambda s: s.admit(ANN, EVE)), Flaw.REKEY_DUE, ""),
    "joined before a rekey": (then(LEFT, lambda s: s.join(EVE, Link())), Flaw.REKEY_DUE, ""),
    "invited before a rekey": (then(LEFT, lambda s: s.invite(ANN)), Flaw.REKEY_DUE, ""),
    "a thread before a rekey": (then(LEFT, lambda s: s.thread(ANN)), Flaw.REKEY_DUE, ""),
    "a reply before a rekey": (then(LEFT, lambda s: s.reply(ANN, s.opening)), Flaw.REKEY_DUE, ""),
    "a file before a rekey": (then(LEFT, lambda s: s.file(ANN, s.opening)), Flaw.REKEY_DUE, ""),
    "a reaction before a rekey": (
        then(LEFT, lambda s: s.annotate(ANN, s.answer, React, emoji="!")),
        Flaw.REKEY_DUE,
        "",
    ),
    "a post after an account was deleted": (
        then(lambda s: s.by_relay(Kind.MEMBER_LEFT, DAN.user_id), lambda s: s.thread(ANN)),
        Flaw.REKEY_DUE,
        "",
    ),
    "a post after a removal": (then(lambda s: s.remove(BOB, DAN), lambda s: s.thread(ANN)), Flaw.REKEY_DUE, ""),
    "a post after keys were replaced": (
        then(lambda s: s.replace_keys(CARA, someone("cara", 1)), lambda s: s.thread(ANN)),
        Flaw.REKEY_DUE,
        "",
    ),
    # invites
    "joining without a link": (
        lambda s: s.join(EVE, Link(), invite_id=ZERO_ID, invite_signature=b""),
        Flaw.BAD_INVITE,
        "nobody made",
    ),
    "joining by a link that there is not": (lambda s: s.join(EVE, new_link()), Flaw.BAD_INVITE, "nobody made"),
    "admitted by a link that there is not": (lambda s: s.admit(BOB, EVE, new_link()), Flaw.BAD_INVITE, "nobody made"),
    "joining by a revoked link": (
        then(lambda s: s.revoke(ANN, Link()), lambda s: s.join(EVE, Link())),
        Flaw.BAD_INVITE,
        "no longer works",
    ),
    "joining by a link from before a removal": (
        then(lambda s: s.remove(BOB, DAN), REKEY, lambda s: s.join(EVE, Link())),
        Flaw.BAD_INVITE,
        "no longer works",
    ),
    "joining by a link that is used up": (
        then(
            lambda s: s.invite(ANN, invite_id=new_id("once"), max_uses=1),
            lambda s: s.join(EVE, Link(new_id("once"))),
            lambda s: s.join(ROBOT, Link(new_id("once"))),
        ),
        Flaw.BAD_INVITE,
        "no longer works",
    ),
    "admitted by a link that is used up": (
        then(
            lambda s: s.invite(ANN, invite_id=new_id("once"), max_uses=1),
            lambda s: s.admit(BOB, EVE, Link(new_id("once"))),
            lambda s: s.admit(BOB, ROBOT, Link(new_id("once"))),
        ),
        Flaw.BAD_INVITE,
        "no longer works",
    ),
    "joining when the link expires": (
        lambda s: s.join(EVE, s.invite(ANN, expires_at=T0), event={"created_at": T0}),
        Flaw.BAD_INVITE,
        "has expired",
    ),
    "joining with another link's signature": (
        lambda s: s.join(EVE, Link(), invite_signature=new_link().signature(EVE)),
        Flaw.BAD_INVITE,
        "not signed with the invite's secret",
    ),
    "joining with another's signature": (
        lambda s: s.join(EVE, Link(), invite_signature=Link().signature(ROBOT)),
        Flaw.BAD_INVITE,
        "not signed with the invite's secret",
    ),
    "joining with another group's signature": (
        lambda s: s.join(EVE, Link(), invite_signature=Link().signature(EVE, new_id("group"))),
        Flaw.BAD_INVITE,
        "not signed with the invite's secret",
    ),
    "joining with other keys than were signed": (
        lambda s: s.join(someone("eve", 1), Link(), invite_signature=Link().signature(EVE)),
        Flaw.BAD_INVITE,
        "not signed with the invite's secret",
    ),
    "admitted with a link's forged signature": (
        lambda s: s.admit(BOB, EVE, Link(), invite_signature=bytes(64)),
        Flaw.BAD_INVITE,
        "not signed with the invite's secret",
    ),
    # deletions
    "deleting what is not there": (
        lambda s: s.says(ANN, PostDeleted, target_id=new_id("?")),
        Flaw.BAD_PARENT,
        "nothing to delete",
    ),
    "deleting a change of the group": (lambda s: s.delete(ANN, s.events[0]), Flaw.BAD_PARENT, "nothing to delete"),
    "deleting twice": (
        then(lambda s: s.delete(CARA, s.answer), lambda s: s.delete(CARA, s.answer)),
        Flaw.BAD_PARENT,
        "nothing to delete",
    ),
    "deleting a file as a post": (lambda s: s.delete(DAN, s.map), Flaw.BAD_PARENT, "nothing to delete"),
    "deleting a post as a file": (lambda s: s.delete_file(CARA, s.answer), Flaw.BAD_PARENT, "nothing to delete"),
    "deleting a file that is not there": (
        lambda s: s.says(ANN, MediaDeleted, media_id=new_id("?")),
        Flaw.BAD_PARENT,
        "nothing to delete",
    ),
    "deleting a file that has expired": (
        then(lambda s: s.by_relay(Kind.MEDIA_EXPIRED, s.map.object_id), lambda s: s.delete_file(DAN, s.map)),
        Flaw.BAD_PARENT,
        "nothing to delete",
    ),
    # posts
    "a thread by nobody of the group": (lambda s: s.thread(EVE), Flaw.NO_MEMBER, ""),
    "a reply by somebody who has left": (then(LEFT, REKEY, lambda s: s.reply(DAN, s.opening)), Flaw.NO_MEMBER, ""),
    "a thread by the relay": (lambda s: s.by_relay(Kind.THREAD_POSTED, new_id("t")), Flaw.NO_MEMBER, ""),
    "a reply to what is not there": (
        lambda s: s.reply(DAN, replace(s.opening, object_id=new_id("?"))),
        Flaw.BAD_PARENT,
        "",
    ),
    "a reply to nothing": (lambda s: s.reply(DAN, s.opening, thread_id=None), Flaw.BAD_PARENT, ""),
    "a reply to a reply": (lambda s: s.reply(DAN, s.answer), Flaw.BAD_PARENT, ""),
    "a reply to a file": (lambda s: s.reply(DAN, s.map), Flaw.BAD_PARENT, ""),
    "a reply to a change of the group": (lambda s: s.reply(DAN, s.events[0]), Flaw.BAD_PARENT, ""),
    "a reply to a deleted thread": (
        then(lambda s: s.delete(BOB, s.opening), lambda s: s.reply(DAN, s.opening)),
        Flaw.BAD_PARENT,
        "",
    ),
    "a file in a reply": (lambda s: s.file(DAN, s.answer), Flaw.BAD_PARENT, ""),
    "a file in a deleted thread": (
        then(lambda s: s.delete(BOB, s.opening), lambda s: s.file(DAN, s.opening)),
        Flaw.BAD_PARENT,
        "",
    ),
    "an annotation of a change": (
        lambda s: s.annotate(DAN, s.events[0], React, emoji="!"),
        Flaw.BAD_PARENT,
        "",
    ),
    "an annotation of an expired file": (
        then(
            lambda s: s.by_relay(Kind.MEDIA_EXPIRED, s.map.object_id),
            lambda s: s.annotate(CARA, s.map, React, emoji="!"),
        ),
        Flaw.BAD_PARENT,
        "",
    ),
    # what the relay appends
    "a stranger's account is deleted": (lambda s: s.by_relay(Kind.MEMBER_LEFT, EVE.user_id), Flaw.NO_MEMBER, ""),
    "an account is deleted after its user left": (
        then(LEFT, lambda s: s.by_relay(Kind.MEMBER_LEFT, DAN.user_id)),
        Flaw.NO_MEMBER,
        "",
    ),
    "a file expires that is not there": (
        lambda s: s.by_relay(Kind.MEDIA_EXPIRED, new_id("?")),
        Flaw.ORPHAN_EXPIRY,
        "",
    ),
    "a thread expires": (lambda s: s.by_relay(Kind.MEDIA_EXPIRED, s.opening.object_id), Flaw.ORPHAN_EXPIRY, ""),
    "a file expires twice": (
        lambda s: [s.by_relay(Kind.MEDIA_EXPIRED, s.map.object_id) for _ in range(2)],
        Flaw.ORPHAN_EXPIRY,
        "",
    ),
    "a deleted file expires": (
        then(lambda s: s.delete_file(DAN, s.map), lambda s: s.by_relay(Kind.MEDIA_EXPIRED, s.map.object_id)),
        Flaw.ORPHAN_EXPIRY,
        "",
    ),
} | {name: (told, Flaw.NOT_ALLOWED, words) for name, (told, words) in NOT_ALLOWED.items()}


@pytest.mark.parametrize("name", BAD)
def test_what_breaks_a_rule_is_found_and_changes_nothing(name: str) -> None:
    told, flaw, words = BAD[name]
    story = Talk()
    told(story)
    finding = story.finding()
    assert finding is not None, "nothing was found"
    assert (finding.flaw, finding.seq, finding.group_id) == (flaw, story.head.seq, GROUP)
    assert finding.user_id == story.events[-1].actor_id
    assert words in finding.text

    before, _ = story.log(story.events[:-1])
    after, _ = story.log()
    is_post = story.events[-1].kind in POSTS
    assert after.state.tainted_at == (0 if is_post else story.head.seq)
    assert after.changes == before.changes
    assert after.roster == before.roster
    before.state.seq, before.state.hash = story.head.seq, story.head.hash
    before.state.tainted_at, before.state.logged_epoch = after.state.tainted_at, after.state.logged_epoch
    assert after.state == before.state
    for event in story.events[:-1]:
        assert after.index.by_seq(event.seq) == before.index.by_seq(event.seq)
    known = after.index.by_seq(story.head.seq)
    assert known is not None
    assert not known.counts


# ── where a group begins ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("altered", "flaw", "words"),
    [
        ({"base_seq": 1}, Flaw.NOT_ALLOWED, "created once"),
        ({"base_hash": digest("other")}, Flaw.NOT_ALLOWED, "created once"),
        ({"signer": EVE}, Flaw.FORGED_STATEMENT, ""),
        ({"signing_key": EVE.signing_key}, Flaw.FORGED_STATEMENT, ""),
        ({"roster_hash": ZERO_HASH}, Flaw.WRONG_ROSTER, ""),
        ({"signing_key": NEUTRAL, "event": {"signature": ANYTHING}}, Flaw.BAD_KEY, "small order"),
    ],
)
def test_a_creation_that_does_not_count(altered: dict[str, Any], flaw: Flaw, words: str) -> None:
    story = Story(**altered)
    finding = story.finding()
    assert finding is not None
    assert finding.flaw is flaw
    assert words in finding.text
    log, _ = story.log()
    assert (log.roster, log.state.tainted_at) == ({}, 1)


def test_a_log_begins_with_the_creation_of_its_group() -> None:
    story = company()
    for event in (story.events[1], story.thread(ANN), story.by_relay(Kind.MEMBER_LEFT, BOB.user_id)):
        alone = Story()
        alone.events.clear()
        alone.append(event)
        finding = alone.finding()
        assert finding is not None
        assert finding.flaw is Flaw.NOT_ALLOWED
        assert "begins with the group's creation" in finding.text


def test_a_group_keeps_to_the_history_that_it_was_created_with() -> None:
    story = company(history=History.NONE)
    story.rekey(ANN, previous_key=story.new_key(9).seal_previous(story.keys[story.epoch]))
    finding = story.finding()
    assert finding is not None
    assert finding.flaw is Flaw.NOT_ALLOWED
    assert "the history" in finding.text


def test_without_shared_history_a_newcomer_makes_a_rekey_due() -> None:
    story = company(history=History.NONE)
    story.admit(ANN, EVE)
    assert story.flaw() is None
    story.thread(ANN)
    assert story.flaw() is Flaw.REKEY_DUE


def test_a_reply_to_what_does_not_count_does_not_count() -> None:
    story = Talk()
    thread = story.thread(EVE)
    story.reply(DAN, thread)
    _, findings = story.log()
    assert [(finding.flaw, finding.seq) for finding in findings] == [
        (Flaw.NO_MEMBER, thread.seq),
        (Flaw.BAD_PARENT, thread.seq + 1),
    ]


def test_a_base_is_below_its_statement_even_where_the_index_knows_more() -> None:
    """A store may have been cut off between what it knows of events and what has come of them."""
    story = Talk()
    index = MemoryIndex()
    story.log(index=index)
    log, _ = story.log(story.events[:-1])
    behind = Log(GROUP, index, log.state)
    story.events.pop()
    ahead = index.by_seq(story.head.seq + 1)
    assert ahead is not None
    step = behind.take(story.rename(BOB, base_seq=ahead.seq, base_hash=ahead.hash))
    assert step.finding is not None
    assert (step.finding.flaw, step.finding.detail) == (Flaw.BAD_BASE, "its base is not in the log")


# ── what no relay may log at all ────────────────────────────────────────────────────────────────────────────────────

NONE: dict[str, tuple[Told, str]] = {
    "a change without its statement": (
        lambda s: s.by_relay(Kind.MEMBER_REMOVED, DAN.user_id),
        "without its statement",
    ),
    "a departure without its statement": (
        lambda s: s.append(replace(s.by_relay(Kind.MEMBER_LEFT, DAN.user_id), actor_id=s.events.pop().object_id)),
        "without its statement",
    ),
    "a statement of another kind": (
        lambda s: s.leave(DAN, event={"kind": Kind.GROUP_DELETED}),
        "something else than its event",
    ),
    "a statement of another group": (lambda s: s.leave(DAN, group_id=new_id("g")), "something else than its event"),
    "a post of another group": (lambda s: s.thread(DAN, group_id=new_id("g")), "an event of another group"),
    "a statement and its event of another group": (
        lambda s: s.leave(DAN, group_id=new_id("g"), event={"group_id": new_id("g")}),
        "an event of another group",
    ),
    "a statement under another id": (
        lambda s: s.leave(DAN, event={"object_id": new_id("o")}),
        "something else than its event",
    ),
    "a statement by somebody else": (
        lambda s: s.leave(DAN, event={"actor_id": CARA.user_id}),
        "something else than its event",
    ),
    "a statement under another epoch": (
        lambda s: s.leave(DAN, event={"key_epoch": 2}),
        "something else than its event",
    ),
    "an epoch to come": (lambda s: s.leave(DAN, key_epoch=2), "key epoch 2 where 1 is in force"),
    "a post under an epoch to come": (lambda s: s.thread(DAN, key_epoch=2), "key epoch 2 where 1 is in force"),
    "an epoch that is over": (then(REKEY, lambda s: s.leave(DAN, key_epoch=1)), "key epoch 1 where 2 is in force"),
    "a post under an epoch that is over": (
        then(LEFT, REKEY, lambda s: s.thread(CARA, key_epoch=1)),
        "key epoch 1 where 2 is in force",
    ),
    "a rekey that leaves out an epoch": (
        lambda s: s.says(ANN, GroupRekeyed, **rekeyed(3)),
        "something else than its event",
    ),
    "a rekey that changes no epoch": (
        lambda s: s.says(ANN, GroupRekeyed, **rekeyed(1)),
        "something else than its event",
    ),
    "what is no statement": (lambda s: s.leave(DAN, event={"statement": b"\x93\x07"}), "can't be read"),
    "a post with a statement": (
        lambda s: s.append(replace(s.thread(DAN), statement=s.leave(DAN).statement)),
        "something else than its event",
    ),
}


def rekeyed(new_key_epoch: int) -> dict[str, Any]:
    return {
        "new_key_epoch": new_key_epoch,
        "key_commitment": bytes(32),
        "name_hash": bytes(32),
        "previous_key": bytes(61),
        "counts": False,
    }


@pytest.mark.parametrize("name", NONE)
def test_what_breaks_the_chain_stops_the_log(name: str) -> None:
    told, words = NONE[name]
    story = Talk()
    told(story)
    before, _ = story.log(story.events[:-1])
    state = before.state.copy()
    with pytest.raises(ChainBroken, match=words) as caught:
        before.take(story.events[-1])
    assert (caught.value.group_id, caught.value.seq) == (GROUP, story.head.seq - 1)
    assert before.state == state
    assert before.position.seq == story.head.seq - 1
    assert before.index.by_seq(story.head.seq) is None

"""What was found wrong: with one event of a log, which then counts for nothing, or with what came beside the log."""

from dataclasses import dataclass
from enum import StrEnum


class Flaw(StrEnum):
    """Which check failed."""

    FORGED_STATEMENT = "forged_statement"
    NOT_ALLOWED = "not_allowed"
    BAD_BASE = "bad_base"
    WRONG_ROSTER = "wrong_roster"
    REPEATED_ID = "repeated_id"
    NO_MEMBER = "no_member"
    WRONG_EPOCH = "wrong_epoch"
    REKEY_DUE = "rekey_due"
    BAD_PARENT = "bad_parent"
    BAD_KEY = "bad_key"
    BAD_INVITE = "bad_invite"
    ORPHAN_EXPIRY = "orphan_expiry"
    FORK = "fork"
    LOST_POST = "lost_post"
    OTHER_LOG = "other_log"
    WITHHELD = "withheld"
    STALE_NAME = "stale_name"
    KEY_CHANGED = "key_changed"
    WRONG_KEY = "wrong_key"
    FORGED_SIGNAL = "forged_signal"


WORDS: dict[Flaw, str] = {
    Flaw.FORGED_STATEMENT: "a change of the group is not signed by the member who is said to have made it",
    Flaw.NOT_ALLOWED: "a change of the group was logged that whoever made it may not make",
    Flaw.BAD_BASE: "a change of the group was made on a state that this group has not",
    Flaw.WRONG_ROSTER: "whoever changed the group saw other members in it than you do",
    Flaw.REPEATED_ID: "something was logged a second time",
    Flaw.NO_MEMBER: "something was posted in the name of somebody who is not in the group",
    Flaw.WRONG_EPOCH: "something was logged under a key that is not in force",
    Flaw.REKEY_DUE: "something was posted although the group needed a new key first",
    Flaw.BAD_PARENT: "something was posted to what is not there",
    Flaw.BAD_KEY: "a member was introduced with a key that must not be used",
    Flaw.BAD_INVITE: "somebody joined without an invite that holds",
    Flaw.ORPHAN_EXPIRY: "a file is said to have expired that is not there",
    Flaw.FORK: "another member was shown another history of this group than you",
    Flaw.LOST_POST: "the relay confirmed what you posted, and has something else in its place",
    Flaw.OTHER_LOG: "the relay shows another history of this group than you, or whoever invited you, have seen",
    Flaw.WITHHELD: "the relay keeps back what nobody has deleted",
    Flaw.STALE_NAME: "the relay shows a name of the group that is not the last one given",
    Flaw.KEY_CHANGED: "somebody you know has other keys than before, and has not signed for them",
    Flaw.WRONG_KEY: "you were given another group key than the group agreed on",
    Flaw.FORGED_SIGNAL: "a signal is not by the member who is said to have sent it",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that an honest relay and honest members would not have brought about.

    `seq` is that of the event, 0 for what is no event; `user_id` whom it concerns, where anybody; `detail` for
    whoever looks into it.
    """

    flaw: Flaw
    group_id: bytes
    seq: int = 0
    user_id: bytes | None = None
    detail: str = ""

    @property
    def text(self) -> str:
        """For people: what was found, and where."""
        where = f" (event {self.seq})" if self.seq else ""
        more = f": {self.detail}" if self.detail else ""
        return f"{WORDS[self.flaw]}{where}{more}"

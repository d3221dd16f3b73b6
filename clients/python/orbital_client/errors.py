"""Everything that this package raises.

OrbitalError
├── RequestFailed            the relay answered a request with an error; its `code` says which
│   ├── TryLater             internal, overloaded, rate_limited, unavailable: after `retry_after_ms`
│   ├── BadRequest           the request itself is wrong
│   ├── NotAuthenticated     the session has ended: log in again
│   ├── AccountRefused       credentials_invalid, username_taken, registration_closed, owns_groups
│   ├── Refused              the relay's rules or the group's don't allow it
│   │   └── NotFound         it isn't there, or isn't for the caller to see
│   └── OutOfDate            the group, or an upload, has changed: catch up, then try again
├── ConnectionLost           the connection ended; whether the request was carried out is unknown
├── RequestTimeout           no answer in time; whether the request was carried out is unknown
├── Closed                   the relay closed the connection for good
├── ClientClosed             the client was closed, or nobody has signed in yet
├── BadAnswer                the relay sent what the protocol doesn't allow
├── MediaCorrupt             a file's bytes are not those that were posted
├── CannotOpen               sealed bytes can't be opened
│   ├── UnknownVersion       they are of a version that this client doesn't know: update it
│   ├── BadSeal              sealed under another key or for another place, or altered since
│   ├── ForgedAuthor         whoever is named as the author has not signed it
│   ├── WrongKey             a key that is not the one the group's log commits to
│   ├── WrongPassphrase      the passphrase doesn't open the backup
│   ├── MissingKey           this member has not got that key (yet)
│   ├── Withheld             the relay keeps back what nobody has deleted
│   ├── Rejected             it breaks the group's rules, or contradicts its log: `finding` says how
│   └── Malformed            they are not what such bytes must be
├── ExportDamaged            an exported file is not as it was written
├── StoreDamaged             what the client keeps on disk can't be read
├── StoreInUse               another client uses that store
├── KeyChanged               somebody's keys have changed without their signature: compare fingerprints
├── BackupRolledBack         the relay hands out an older backup of the keys than it had confirmed
├── CannotPost               the group needs a new key, or this member has not got it
├── AdmissionNeeded          an invite link must be answered by an admin: knock
└── LogBroken                a group's log is not what this client has seen of it; the client stops following it
    ├── ChainBroken          an event is missing, altered or out of order
    ├── ChainFork            the relay has another event where this client's cursor is
    └── FutureCursor         the relay has fewer events than this client has seen
"""

from typing import Final

from orbital_client.trust.findings import Finding
from orbital_protocol.codes import AFTER_CATCHING_UP, AFTER_REFRESH, RETRYABLE, ErrorCode
from orbital_protocol.frames import Error, ErrorDetails


class OrbitalError(Exception):
    """Base of all that this package raises."""


class RequestFailed(OrbitalError):
    """The relay refused a request. `code` is an `ErrorCode`, or the text of one that this version doesn't know."""

    def __init__(
        self, code: str, message: str, *, retry_after_ms: int | None = None, details: ErrorDetails | None = None
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.retry_after_ms = retry_after_ms
        self.details = details or ErrorDetails()


class TryLater(RequestFailed):
    """The relay can't just now: try again after `retry_after_ms`."""


class BadRequest(RequestFailed):
    """The request is wrong and will stay so; `details.field` may name the field."""


class NotAuthenticated(RequestFailed):
    """The session has ended: log in again."""


class AccountRefused(RequestFailed):
    """The account can't be made, entered or deleted like this."""


class Refused(RequestFailed):
    """The relay's rules, or the group's, don't allow it."""


class NotFound(Refused):
    """It isn't there, or it isn't for the caller to see."""


class OutOfDate(RequestFailed):
    """The group, or an upload, has changed since the request was made: catch up and try again."""


class ConnectionLost(OrbitalError):
    """The connection ended before the answer came: whether the request was carried out is unknown."""


class RequestTimeout(OrbitalError, TimeoutError):
    """No answer in time: whether the request was carried out is unknown."""


class Closed(OrbitalError):
    """The relay closed the connection and does not want it back: `code` is 4500 to 4999."""

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(f"the relay closed the connection for good: {code} {reason}".rstrip())
        self.code = code
        self.reason = reason


class ClientClosed(OrbitalError):
    """The client was closed, or nobody has signed in yet."""


class BadAnswer(OrbitalError):
    """The relay sent what the protocol doesn't allow."""


class MediaCorrupt(OrbitalError):
    """The bytes of `media_id` that came are not those of its root."""

    def __init__(self, media_id: bytes) -> None:
        super().__init__(f"the bytes of file {media_id.hex()} are not those that were posted")
        self.media_id = media_id


class CannotOpen(OrbitalError):
    """Sealed bytes can't be opened. The message is for people; it has nothing of what was sealed."""


class UnknownVersion(CannotOpen):
    """Sealed in a version that this client doesn't know: a newer client may."""


class BadSeal(CannotOpen):
    """Sealed under another key or for another place, or altered since."""


class ForgedAuthor(CannotOpen):
    """Whoever is named as the author has not signed it."""


class WrongKey(CannotOpen):
    """A key that is not the one that the group's log commits to."""


class WrongPassphrase(CannotOpen):
    """The passphrase doesn't open the backup of the user's keys."""


class Malformed(CannotOpen):
    """The bytes are not what such bytes must be."""


class MissingKey(CannotOpen):
    """Sealed under the group's key of `epoch`, which this member has not got: once it comes, this heals by itself."""

    def __init__(self, epoch: int) -> None:
        super().__init__(f"you have not got the group's key of that time (epoch {epoch})")
        self.epoch = epoch


class Withheld(CannotOpen):
    """The relay has not sent what nobody has deleted."""


class Rejected(CannotOpen):
    """It breaks the group's rules, or contradicts its log."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.text)
        self.finding = finding


class ExportDamaged(OrbitalError):
    """An exported file is not as it was written: `line` says where that shows, 0 for the file as a whole."""

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(f"line {line}: {problem}" if line else problem)
        self.line = line
        self.problem = problem


class StoreDamaged(OrbitalError):
    """What the client keeps on disk can't be read. A new store, and a login with the passphrase, restore the keys."""


class StoreInUse(OrbitalError):
    """Another client uses that store: end it first, or use another store."""


class KeyChanged(OrbitalError):
    """The keys of `user_id` are not those that are known, and the old one has not signed for them.

    Compare fingerprints (`Client.verify`), then `Client.accept_key`.
    """

    def __init__(self, user_id: bytes, name: str = "") -> None:
        super().__init__(f"the keys of {name or user_id.hex()} have changed: compare fingerprints before you go on")
        self.user_id = user_id


class BackupRolledBack(OrbitalError):
    """The relay has an older backup of the user's keys than it had confirmed: it lost data, or isn't honest."""


class CannotPost(OrbitalError):
    """Nothing can be sealed for the group now: it needs a new key that nobody has made, or this member has none."""


class AdmissionNeeded(OrbitalError):
    """The group was rekeyed since the invite link was made: knock with the link, and an admin admits."""


class LogBroken(OrbitalError):
    """The log of `group_id` is not what this client has seen of it at `seq`. The client no longer follows it."""

    def __init__(self, group_id: bytes, seq: int, problem: str) -> None:
        super().__init__(f"group {group_id.hex()} at {seq}: {problem}")
        self.group_id = group_id
        self.seq = seq
        self.problem = problem


class ChainBroken(LogBroken):
    """An event is missing, altered or out of order."""


class ChainFork(LogBroken):
    """At this client's cursor the relay has another event than the one that the client saw."""


class FutureCursor(LogBroken):
    """The relay has fewer events than this client has seen: it may have been restored from an old backup."""


_CLASSES: Final[dict[str, type[RequestFailed]]] = {
    **dict.fromkeys(RETRYABLE, TryLater),
    **dict.fromkeys(AFTER_REFRESH, NotAuthenticated),
    **dict.fromkeys(AFTER_CATCHING_UP, OutOfDate),
    ErrorCode.BAD_FRAME: BadRequest,
    ErrorCode.TOO_LARGE: BadRequest,
    ErrorCode.UNKNOWN_TYPE: BadRequest,
    ErrorCode.BAD_ARGUMENT: BadRequest,
    ErrorCode.BAD_SIGNATURE: BadRequest,
    ErrorCode.UNSUPPORTED_PROTOCOL: BadRequest,
    ErrorCode.CREDENTIALS_INVALID: AccountRefused,
    ErrorCode.USERNAME_TAKEN: AccountRefused,
    ErrorCode.REGISTRATION_CLOSED: AccountRefused,
    ErrorCode.OWNS_GROUPS: AccountRefused,
    ErrorCode.FORBIDDEN: Refused,
    ErrorCode.NOT_FOUND: NotFound,
    ErrorCode.BANNED: Refused,
    ErrorCode.INVITE_INVALID: Refused,
    ErrorCode.ID_CONFLICT: Refused,
    ErrorCode.ALREADY_MEMBER: Refused,
    ErrorCode.LIMIT_EXCEEDED: Refused,
    ErrorCode.QUOTA_EXCEEDED: Refused,
    ErrorCode.MEDIA_EXPIRED: Refused,
}


def failure(error: Error) -> RequestFailed:
    """The exception for an `error` frame."""
    kind = _CLASSES.get(error.code, RequestFailed)
    return kind(error.code, error.message, retry_after_ms=error.retry_after_ms, details=error.details)

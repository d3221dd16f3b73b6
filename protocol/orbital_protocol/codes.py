"""Numbers and words of the protocol: error codes, close codes, event kinds, roles, scopes."""

from enum import IntEnum, StrEnum


class ErrorCode(StrEnum):
    """Why a request failed; `RETRYABLE` and `AFTER_CATCHING_UP` say whether trying again can help."""

    INTERNAL = "internal"
    OVERLOADED = "overloaded"
    RATE_LIMITED = "rate_limited"
    UNAVAILABLE = "unavailable"

    BAD_FRAME = "bad_frame"
    TOO_LARGE = "too_large"
    UNKNOWN_TYPE = "unknown_type"
    BAD_ARGUMENT = "bad_argument"
    BAD_SIGNATURE = "bad_signature"
    UNSUPPORTED_PROTOCOL = "unsupported_protocol"

    UNAUTHENTICATED = "unauthenticated"
    TOKEN_EXPIRED = "token_expired"  # noqa: S105  a code, not a secret

    CREDENTIALS_INVALID = "credentials_invalid"
    USERNAME_TAKEN = "username_taken"
    REGISTRATION_CLOSED = "registration_closed"
    OWNS_GROUPS = "owns_groups"

    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    BANNED = "banned"
    INVITE_INVALID = "invite_invalid"
    ID_CONFLICT = "id_conflict"
    ALREADY_MEMBER = "already_member"
    LIMIT_EXCEEDED = "limit_exceeded"

    STALE_KEY_EPOCH = "stale_key_epoch"
    REKEY_REQUIRED = "rekey_required"
    MEMBER_SET_MISMATCH = "member_set_mismatch"
    STALE_BASE = "stale_base"

    QUOTA_EXCEEDED = "quota_exceeded"
    MEDIA_EXPIRED = "media_expired"
    UPLOAD_OFFSET = "upload_offset"


RETRYABLE = frozenset({ErrorCode.INTERNAL, ErrorCode.OVERLOADED, ErrorCode.RATE_LIMITED, ErrorCode.UNAVAILABLE})
AFTER_REFRESH = frozenset({ErrorCode.UNAUTHENTICATED, ErrorCode.TOKEN_EXPIRED})
AFTER_CATCHING_UP = frozenset(
    {
        ErrorCode.STALE_KEY_EPOCH,
        ErrorCode.REKEY_REQUIRED,
        ErrorCode.MEMBER_SET_MISMATCH,
        ErrorCode.STALE_BASE,
        ErrorCode.UPLOAD_OFFSET,
    }
)


class CloseCode(IntEnum):
    """WebSocket close codes of the protocol. 4000-4499: reconnect. 4500-4999: don't."""

    DRAINING = 4000
    NO_PONG = 4001
    SLOW_CONSUMER = 4002
    TOKEN_EXPIRED = 4003
    RATE_LIMITED = 4005
    INTERNAL = 4006

    AUTH_FAILED = 4500
    REVOKED = 4501
    PROTOCOL_ERROR = 4502
    UNSUPPORTED_PROTOCOL = 4503
    ACCOUNT_DELETED = 4504
    AUTH_TIMEOUT = 4505

    @property
    def reconnect(self) -> bool:
        """Whether a client should connect again (with backoff) after this code."""
        return self < CloseCode.AUTH_FAILED


class Kind(IntEnum):
    """What an event of a group's log is; a `u8` in the chain."""

    GROUP_CREATED = 1
    GROUP_UPDATED = 2
    GROUP_TRANSFERRED = 3
    GROUP_REKEYED = 4
    GROUP_DELETED = 5
    MEMBER_JOINED = 6
    MEMBER_LEFT = 7
    MEMBER_REMOVED = 8
    MEMBER_ROLE = 9
    MEMBER_UNBANNED = 10
    INVITE_CREATED = 11
    INVITE_REVOKED = 12
    KEY_REPLACED = 13
    THREAD_POSTED = 14
    REPLY_POSTED = 15
    ANNOTATION_POSTED = 16
    POST_DELETED = 17
    MEDIA_POSTED = 18
    MEDIA_DELETED = 19
    MEDIA_EXPIRED = 20


CHANGES_ROSTER = frozenset(
    {
        Kind.GROUP_CREATED,
        Kind.GROUP_TRANSFERRED,
        Kind.MEMBER_JOINED,
        Kind.MEMBER_LEFT,
        Kind.MEMBER_REMOVED,
        Kind.MEMBER_ROLE,
        Kind.KEY_REPLACED,
    }
)
"""Events after which the roster (user, role, keys) may differ from before."""


class Role(IntEnum):
    """What a member may do; a higher role may do all that a lower one may."""

    MEMBER = 1
    ADMIN = 2
    OWNER = 3


class History(IntEnum):
    """Whether newcomers can read what was posted before they joined; signed at the group's creation."""

    NONE = 0
    SHARED = 1


class Scope(StrEnum):
    """What a bot's token may do. A session made by a password has every scope."""

    READ = "read"
    POST = "post"
    SIGNAL = "signal"
    MANAGE = "manage"
    ACCOUNT = "account"

"""Errors of the relay, each with its code and what a client may do about it. The docstring is the default message.

OrbitalError
├── StartupError            the relay can't start: configuration, schema, database
└── RequestError            becomes an `error` frame
    ├── Internal, Overloaded, RateLimited, Unavailable                                       retry later
    ├── BadArgument, TooLarge, BadSignature, UnsupportedProtocol, UnknownType                wrong request
    ├── Unauthenticated, TokenExpired                                                        refresh first
    ├── CredentialsInvalid, UsernameTaken, RegistrationClosed, OwnsGroups                    account
    ├── Forbidden, NotFound, Banned, InviteInvalid, IdConflict, AlreadyMember, LimitExceeded refused
    ├── QuotaExceeded, MediaExpired                                                          refused
    └── StaleKeyEpoch, RekeyRequired, MemberSetMismatch, StaleBase, UploadOffset             catch up first
"""

import os
from typing import ClassVar, Self

from orbital_protocol.codes import ErrorCode
from orbital_protocol.frames import Error, ErrorDetails


class OrbitalError(Exception):
    """Something that Orbital itself reports."""


class StartupError(OrbitalError):
    """The relay can't start; the message says what to do."""

    @classmethod
    def not_listening(cls, port_of: str, host: str, port: int, error: OSError) -> Self:
        """For `error` on listening there, which is what the settings `{port_of}_host` and `{port_of}_port` say."""
        # Where a name can't be looked up the number is negative, and none of the system's.
        number = error.errno or 0
        reason = os.strerror(number) if number > 0 else error.strerror or str(error)
        return cls(f"{port_of}_host, {port_of}_port: can't listen on {host}, port {port}: {reason}")


class RequestError(OrbitalError):
    """A request that fails. `message` is for people and never echoes secrets or another user's existence."""

    code: ClassVar[ErrorCode]

    def __init__(
        self, message: str = "", *, retry_after_ms: int | None = None, details: ErrorDetails | None = None
    ) -> None:
        super().__init__(message or (type(self).__doc__ or "").partition("\n")[0].strip())
        self.retry_after_ms = retry_after_ms
        self.details = details

    def frame(self, request_id: int | None) -> Error:
        """The `error` frame that answers the request."""
        return Error(
            id=request_id, code=self.code, message=str(self), retry_after_ms=self.retry_after_ms, details=self.details
        )


class _RetryLater(RequestError):
    """Retry after `retry_after_ms`."""

    def __init__(self, message: str = "", *, retry_after_ms: int = 1000, details: ErrorDetails | None = None) -> None:
        super().__init__(message, retry_after_ms=retry_after_ms, details=details)


class Internal(_RetryLater):
    """The relay made a mistake; it has been logged."""

    code = ErrorCode.INTERNAL


class Overloaded(_RetryLater):
    """The relay has more to do than it can."""

    code = ErrorCode.OVERLOADED


class RateLimited(_RetryLater):
    """Too many requests."""

    code = ErrorCode.RATE_LIMITED


class Unavailable(_RetryLater):
    """The database can't be reached."""

    code = ErrorCode.UNAVAILABLE


class UnknownType(RequestError):
    """This relay knows no such request."""

    code = ErrorCode.UNKNOWN_TYPE


class BadArgument(RequestError):
    """An argument has a value that can't be."""

    code = ErrorCode.BAD_ARGUMENT


class TooLarge(RequestError):
    """A field is larger than the limit in `hello`."""

    code = ErrorCode.TOO_LARGE


class BadSignature(RequestError):
    """The signature is not by the key it should be by."""

    code = ErrorCode.BAD_SIGNATURE


class UnsupportedProtocol(RequestError):
    """This relay speaks another version of the protocol."""

    code = ErrorCode.UNSUPPORTED_PROTOCOL


class Unauthenticated(RequestError):
    """Log in or authenticate first."""

    code = ErrorCode.UNAUTHENTICATED


class TokenExpired(RequestError):
    """The access token has expired."""

    code = ErrorCode.TOKEN_EXPIRED


class CredentialsInvalid(RequestError):
    """Username, password or token is wrong."""

    code = ErrorCode.CREDENTIALS_INVALID


class UsernameTaken(RequestError):
    """The username is taken."""

    code = ErrorCode.USERNAME_TAKEN


class RegistrationClosed(RequestError):
    """Registration is closed, or needs a code."""

    code = ErrorCode.REGISTRATION_CLOSED


class OwnsGroups(RequestError):
    """The account owns groups: transfer them, or delete them with it."""

    code = ErrorCode.OWNS_GROUPS


class Forbidden(RequestError):
    """The caller's role or scope doesn't allow this."""

    code = ErrorCode.FORBIDDEN


class NotFound(RequestError):
    """There is no such thing, or it is not for the caller to see."""

    code = ErrorCode.NOT_FOUND


class Banned(RequestError):
    """The user is banned from this group."""

    code = ErrorCode.BANNED


class InviteInvalid(RequestError):
    """The invite is wrong, expired, used up or revoked."""

    code = ErrorCode.INVITE_INVALID


class IdConflict(RequestError):
    """The id is in use for something else."""

    code = ErrorCode.ID_CONFLICT


class AlreadyMember(RequestError):
    """The user is a member already."""

    code = ErrorCode.ALREADY_MEMBER


class LimitExceeded(RequestError):
    """A limit in `hello` would be exceeded."""

    code = ErrorCode.LIMIT_EXCEEDED


class QuotaExceeded(RequestError):
    """The group's files would use more than they may."""

    code = ErrorCode.QUOTA_EXCEEDED


class MediaExpired(RequestError):
    """The file has expired."""

    code = ErrorCode.MEDIA_EXPIRED


class StaleKeyEpoch(RequestError):
    """The group has a newer key."""

    code = ErrorCode.STALE_KEY_EPOCH


class RekeyRequired(RequestError):
    """The group needs a new key first."""

    code = ErrorCode.REKEY_REQUIRED


class MemberSetMismatch(RequestError):
    """The wraps are not for exactly the current members and their current keys."""

    code = ErrorCode.MEMBER_SET_MISMATCH


class StaleBase(RequestError):
    """The statement's base is not in the log, or the roster has changed since."""

    code = ErrorCode.STALE_BASE


class UploadOffset(RequestError):
    """The upload stands elsewhere: begin it again, and go on at the offset that comes with the answer."""

    code = ErrorCode.UPLOAD_OFFSET


BY_CODE: dict[ErrorCode, type[RequestError]] = {
    error.code: error
    for base in (RequestError, _RetryLater)
    for error in base.__subclasses__()
    if error is not _RetryLater
}
"""The error for a code that came out of the database."""

"""Who is asking: user, session, scopes; and what handlers see of a connection."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from orbital_protocol.codes import CloseCode, Scope
from orbital_protocol.frames import Frame
from orbital_relay.errors import Unauthenticated

ALL_SCOPES = frozenset(Scope)


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated user on a connection.

    `session_id` is the session's, or a bot token's id. `groups` limits a token to some groups; None means all.
    `expires_at`: when the access token runs out, in microseconds since 1970 UTC.
    """

    user_id: bytes
    session_id: bytes
    token_epoch: int
    expires_at: int
    scopes: frozenset[Scope] = ALL_SCOPES
    groups: frozenset[bytes] | None = None

    def may_see(self, group_id: bytes) -> bool:
        """Whether the token reaches this group at all (membership is another matter)."""
        return self.groups is None or group_id in self.groups

    def may_hear(self, group_id: bytes) -> bool:
        """Whether pushes about this group are for the token: it reads, and reaches the group."""
        return Scope.READ in self.scopes and self.may_see(group_id)


@dataclass(frozen=True, slots=True)
class LiveSession:
    """An authenticated session as the sweep revalidates it."""

    session_id: bytes
    user_id: bytes
    token_epoch: int


class Peer(Protocol):
    """What handlers see of a connection."""

    connection_id: bytes
    address: str
    """The client's address, after trusted proxies."""

    @property
    def caller(self) -> Caller | None:
        """Who is authenticated here; None before that."""

    def authenticate(self, caller: Caller) -> None:
        """From now on the connection is this caller's (also: the same user with a newer token)."""

    def push(self, frame: Frame) -> None:
        """Queue a frame that answers no request."""

    def after_answer(self, callback: Callable[[], None]) -> None:
        """Call back once the answer to the request at hand has been queued."""

    def close_soon(self, code: CloseCode) -> None:
        """Close once the answers that are due have been sent."""


def require_caller(peer: Peer) -> Caller:
    """Who is authenticated on this connection; raise Unauthenticated where nobody is."""
    if peer.caller is None:
        raise Unauthenticated
    return peer.caller


Clock = Callable[[], int]
"""Microseconds since 1970 UTC."""

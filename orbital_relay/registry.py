"""The live connections of this relay, by connection, session and user: for pushes, revocation, heartbeats and drain."""

from collections.abc import Iterable, Iterator
from typing import Protocol

from orbital_protocol.codes import CloseCode
from orbital_protocol.frames import Frame, Push
from orbital_relay.caller import Caller, LiveSession, Peer


class LiveConnection(Peer, Protocol):
    """What the registry needs of a connection beside what handlers see."""

    def quiesce(self) -> None:
        """Take no more requests."""

    def waiting_bytes(self) -> int:
        """Bytes in the outbox."""

    def offer(self, frame: Frame) -> None:
        """Queue a frame that may be lost: it is, where the reader is behind."""

    async def answered(self) -> None:
        """Wait until every request that was taken has its answer."""

    def close_now(self, code: CloseCode) -> None:
        """Close without waiting for answers that are due."""


class Registry:
    """Who is connected."""

    def __init__(self) -> None:
        self._connections: dict[bytes, LiveConnection] = {}
        self._by_user: dict[bytes, set[LiveConnection]] = {}
        self.authenticated_count = 0

    def __len__(self) -> int:
        return len(self._connections)

    def __iter__(self) -> Iterator[LiveConnection]:
        return iter(list(self._connections.values()))

    def add(self, connection: LiveConnection) -> None:
        """A connection has begun."""
        self._connections[connection.connection_id] = connection

    def remove(self, connection: LiveConnection) -> None:
        """A connection has ended."""
        self._connections.pop(connection.connection_id, None)
        if connection.caller is not None:
            mine = self._by_user.get(connection.caller.user_id, set())
            if connection in mine:
                mine.remove(connection)
                self.authenticated_count -= 1
                if not mine:
                    del self._by_user[connection.caller.user_id]

    def authenticated(self, connection: LiveConnection, caller: Caller) -> None:
        """A connection is this caller's from now on."""
        mine = self._by_user.setdefault(caller.user_id, set())
        if connection not in mine:
            mine.add(connection)
            self.authenticated_count += 1

    def of_user(self, user_id: bytes) -> list[LiveConnection]:
        """The user's connections here."""
        return list(self._by_user.get(user_id, ()))

    def push_about(self, group_id: bytes, user_ids: Iterable[bytes], frame: Push) -> None:
        """Push to those connections of these users that may hear of the group, except to readers who are behind."""
        for user_id in user_ids:
            for connection in self.of_user(user_id):
                if connection.caller is not None and connection.caller.may_hear(group_id):
                    connection.offer(frame)

    def end_sessions(self, session_ids: Iterable[bytes], code: CloseCode) -> None:
        """Close the connections of these sessions (or bot tokens)."""
        ended = frozenset(session_ids)
        for connection in self:
            if connection.caller is not None and connection.caller.session_id in ended:
                connection.close_now(code)

    def end_user(self, user_id: bytes, code: CloseCode, token_epoch: int | None = None) -> None:
        """Close a user's connections; with a token epoch, only those of an older one."""
        for connection in self.of_user(user_id):
            caller = connection.caller
            if caller is not None and (token_epoch is None or caller.token_epoch < token_epoch):
                connection.close_now(code)

    def sessions(self) -> list[LiveSession]:
        """Every authenticated session here, once."""
        callers = {c.caller.session_id: c.caller for c in self if c.caller is not None}
        return [LiveSession(c.session_id, c.user_id, c.token_epoch) for c in callers.values()]

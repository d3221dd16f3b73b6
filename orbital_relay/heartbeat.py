"""The wheel: every now and then it looks at every connection, so that none needs a timer of its own.

It pings who is due, closes who hasn't been heard from, whose token has run out, and who drains nothing.
"""

import asyncio
from dataclasses import dataclass
from typing import Final

from orbital_protocol.codes import CloseCode
from orbital_relay import logs
from orbital_relay.caller import Clock
from orbital_relay.metrics import Metrics
from orbital_relay.session import Session

logger = logs.get()

_TURNS: Final = 8  # within the shortest of the times that it keeps
_TURN_MAX_S: Final = 2.0  # a token that runs out is noticed no later


@dataclass(frozen=True, slots=True)
class Pulse:
    """How often to ping, and how long silence and a full outbox are borne."""

    heartbeat_ms: int
    no_pong_ms: int
    slow_consumer_ms: int

    @property
    def turn_s(self) -> float:
        """How often to look: a look costs some microseconds for each connection."""
        shortest_ms = min(self.heartbeat_ms, self.no_pong_ms, self.slow_consumer_ms)
        return min(shortest_ms / 1000 / _TURNS, _TURN_MAX_S)


@dataclass(slots=True)
class _Seen:
    """What was seen of a connection at its last turn; times are the loop's, in seconds."""

    alive_at: float
    pinged_at: float
    drained_bytes: int
    drained_at: float


class Heartbeat:
    """The wheel of one relay."""

    def __init__(self, pulse: Pulse, now: Clock, metrics: Metrics) -> None:
        self._pulse = pulse
        self._now = now
        self._metrics = metrics
        self._seen: dict[Session, _Seen] = {}

    def add(self, session: Session) -> None:
        """Watch a connection."""
        heard_at = session.socket.heard_at
        self._seen[session] = _Seen(heard_at, 0.0, 0, heard_at)

    def remove(self, session: Session) -> None:
        """Watch a connection no more."""
        self._seen.pop(session, None)

    async def run(self) -> None:
        """Turn the wheel until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._pulse.turn_s)
            for number, (session, seen) in enumerate(list(self._seen.items())):
                self._look(session, seen, loop.time())
                if not number % 256:
                    await asyncio.sleep(0)

    def _look(self, session: Session, seen: _Seen, loop_now: float) -> None:
        if session.is_closing:
            return
        if session.caller is not None and session.caller.expires_at <= self._now():
            session.close_now(CloseCode.TOKEN_EXPIRED)
        elif self._is_slow(session, seen, loop_now):
            self._cut(session, loop_now - seen.drained_at)
        elif self._is_silent(session, seen, loop_now):
            session.close_now(CloseCode.NO_PONG)

    def _is_slow(self, session: Session, seen: _Seen, loop_now: float) -> bool:
        """Whether something waits and not a byte has drained for too long."""
        outbox = session.outbox
        if not outbox.waiting_bytes or outbox.drained_bytes != seen.drained_bytes:
            seen.drained_bytes = outbox.drained_bytes
            seen.drained_at = loop_now
            return False
        return (loop_now - seen.drained_at) * 1000 > self._pulse.slow_consumer_ms

    def _cut(self, session: Session, stuck_s: float) -> None:
        logger.warning(
            "slow_consumer.closed",
            connection=session.connection_id,
            bytes=session.outbox.waiting_bytes,
            duration_ms=round(stuck_s * 1000),
        )
        self._metrics.slow_consumers.inc()
        session.outbox.discard()
        session.close_now(CloseCode.SLOW_CONSUMER)

    def _is_silent(self, session: Session, seen: _Seen, loop_now: float) -> bool:
        """Ping who has been quiet for a heartbeat; say whether a ping went unanswered for too long.

        The time in which the relay itself has paused reading doesn't count: a sign of life could not be noticed then.
        """
        socket = session.socket
        if not socket.is_reading:
            seen.alive_at = loop_now
        seen.alive_at = max(seen.alive_at, socket.heard_at)
        quiet_ms = (loop_now - seen.alive_at) * 1000
        if seen.pinged_at > seen.alive_at:
            return (loop_now - seen.pinged_at) * 1000 > self._pulse.no_pong_ms
        if quiet_ms >= self._pulse.heartbeat_ms:
            socket.send_ping()
            seen.pinged_at = loop_now
        return False

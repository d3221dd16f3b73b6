"""The dedicated LISTEN connection: wake, heartbeat, reconnect, sweep.

It hears what other relays commit and passes it on; whom to is the composition root's business. It sends itself an
echo: a connection that has silently gone deaf is noticed by the missing echo. After every reconnect, and every second
or two as a matter of course, it looks at the heads of all groups that somebody here listens to, and at the sessions
that are connected: a lost notification costs a delay, never an event.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import asyncpg

from orbital_relay import hints, logs
from orbital_relay.caller import LiveSession
from orbital_relay.errors import RequestError
from orbital_relay.metrics import Metrics, WakeSource
from orbital_relay.store import events as event_store
from orbital_relay.store import live as live_store
from orbital_relay.store.pool import DATABASE_AWAY, Database, PoolSettings, connect

logger = logs.get()

_BACKOFF_S: Final = (0.05, 0.1, 0.2, 0.5, 1.0)
_ECHOES_MISSED: Final = 2
_SWEEP_GROUPS: Final = 5_000
_SWEEP_SESSIONS: Final = 1_000


@dataclass(frozen=True, slots=True)
class Hears:
    """Where what is heard goes to, and what the sweep asks about."""

    wake: Callable[[bytes, int, WakeSource], None]
    bury: Callable[[bytes], None]
    hint: Callable[[hints.Hint], None]
    groups: Callable[[], list[bytes]]
    sessions: Callable[[], list[LiveSession]]
    end_sessions: Callable[[Sequence[bytes]], None]


class Listener:
    """Hears for one relay."""

    def __init__(  # noqa: PLR0913  built in one place
        self,
        *,
        database: Database,
        settings: PoolSettings,
        relay_hex: str,
        hears: Hears,
        metrics: Metrics,
        echo_ms: int,
        sweep_ms: int,
    ) -> None:
        self._database = database
        self._settings = settings
        self._relay_hex = relay_hex
        self._hears = hears
        self._metrics = metrics
        self._echo_s = echo_ms / 1000
        self._sweep_s = sweep_ms / 1000
        self._heard_at = 0.0
        self._unchecked: list[LiveSession] = []
        self.is_up = False
        """Whether the listener hears: LISTEN is in force and the last echoes came back."""

    async def run(self) -> None:
        """Listen and sweep until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._listen_forever(), name="listener")
            tasks.create_task(self._sweep_forever(), name="listener sweep")

    async def _listen_forever(self) -> None:
        failures = 0
        while True:
            try:
                await self._listen()
            except (TimeoutError, RequestError, asyncpg.PostgresError, *DATABASE_AWAY) as error:
                if self.is_up or not failures:
                    logger.warning("listener.lost", exc_info=error)
            self._set_up(False)
            await asyncio.sleep(_BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)])
            failures += 1
            if time.monotonic() - self._heard_at < self._echo_s * _ECHOES_MISSED:
                failures = 0

    async def _listen(self) -> None:
        """Connect, LISTEN, catch up, and stay until the connection is lost or deaf."""
        connection = await connect(
            self._settings.dsn,
            application_name=f"orbital-relay listener {self._relay_hex}",
            settings=self._settings,
        )
        try:
            await connection.add_listener(hints.CHANNEL, self._on_notification)
            await self._sweep("reconnect")
            self._heard_at = time.monotonic()
            self._set_up(True)
            await self._echo_forever(connection)
        finally:
            connection.terminate()

    async def _echo_forever(self, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        """Return once the connection is deaf; raise what a lost one raises, as soon as that is known."""
        lost = asyncio.Event()
        connection.add_termination_listener(lambda _: lost.set())
        while True:
            async with asyncio.timeout(self._echo_s * _ECHOES_MISSED):
                await live_store.notify(connection, hints.echo(self._relay_hex, secrets.token_hex(8)))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(lost.wait(), self._echo_s)
            deaf_s = time.monotonic() - self._heard_at
            if deaf_s > self._echo_s * _ECHOES_MISSED:
                logger.warning("listener.deaf", duration_ms=round(deaf_s * 1000))
                return

    def _set_up(self, up: bool) -> None:
        if up and not self.is_up:
            logger.info("listener.connected")
        self.is_up = up
        self._metrics.listener_up.set(up)

    def _on_notification(self, _connection: Any, _pid: int, _channel: str, payload: object) -> None:
        hint = hints.parse(str(payload))
        match hint:
            case None:
                return
            case hints.Echo(relay_hex=relay_hex):
                if relay_hex == self._relay_hex:
                    self._heard_at = time.monotonic()
            case hints.Wake(relay_hex=relay_hex, heads=heads):
                if relay_hex != self._relay_hex:
                    for group_id, seq in heads:
                        self._hears.wake(group_id, seq, "notify")
            case _:
                self._hears.hint(hint)

    async def _sweep_forever(self) -> None:
        while True:
            await asyncio.sleep(self._sweep_s)
            try:
                await self._sweep("sweep")
            except (RequestError, asyncpg.PostgresError):
                continue  # the database is away: the next sweep finds what this one would have

    async def _sweep(self, source: WakeSource) -> None:
        """Look at the heads of all groups with subscribers here, and at the sessions that are connected here.

        One look is taken even where there are none: so it is known whether the database answers.
        """
        groups = self._hears.groups()
        for start in range(0, max(1, len(groups)), _SWEEP_GROUPS):
            async with self._database.connection() as connection:
                heads = await event_store.read_heads(connection, groups[start : start + _SWEEP_GROUPS])
            for head in heads:
                self._hears.wake(head.group_id, head.seq, source)
                if head.deleted:
                    self._hears.bury(head.group_id)
        await self._check_sessions(all_of_them=source == "reconnect")

    async def _check_sessions(self, *, all_of_them: bool) -> None:
        """End those that are no longer good, of the next so many: with thousands, a round takes several sweeps."""
        if all_of_them or not self._unchecked:
            self._unchecked = self._hears.sessions()
        count = len(self._unchecked) if all_of_them else _SWEEP_SESSIONS
        due, self._unchecked = self._unchecked[:count], self._unchecked[count:]
        if due:
            async with self._database.connection() as connection:
                ended = await live_store.find_ended_sessions(connection, due)
            self._hears.end_sessions(ended)

"""From the connection to the replicas: each event goes through its group's log before anybody else sees it."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from orbital_client.errors import (
    CannotOpen,
    ClientClosed,
    LogBroken,
    MissingKey,
    OrbitalError,
    RequestFailed,
    UnknownVersion,
)
from orbital_client.replica import Replica
from orbital_client.store import Store
from orbital_client.trust.findings import Finding, Flaw
from orbital_client.trust.signals import Heard
from orbital_client.wire import Client, Disconnected, Item, Reconnected
from orbital_protocol.frames import Event, GroupGone, JoinRequested, Live, Signal

log = logging.getLogger("orbital_client")

_BATCH: Final = 256


@dataclass(frozen=True)
class Ears:
    """Whom the intake tells, at once: none of them may wait."""

    heard: Callable[[Heard], None]
    knocked: Callable[[JoinRequested], None]
    connected: Callable[[], None]
    disconnected: Callable[[Disconnected], None]
    found: Callable[[Finding], None]


class Intake:
    """Reads what the connection brings, until it ends for good."""

    def __init__(self, wire: Client, store: Store, replicas: dict[bytes, Replica], ears: Ears) -> None:
        self.ended: OrbitalError | None = None
        """Why nothing more comes in."""
        self._wire = wire
        self._store = store
        self._replicas = replicas
        self._ears = ears
        self._touched: set[bytes] = set()

    async def run(self) -> None:
        """Until the client is closed, or the relay has sent it away."""
        while self.ended is None:
            try:
                async for items in self._wire.batches(_BATCH):
                    for item in items:
                        self._take(item)
                    self._settle()
                self.ended = ClientClosed("the client was closed")
            except LogBroken as error:
                self._break_off(error)
            except RequestFailed as error:
                if error.details.field is not None or not self._is_over(error):
                    log.warning("a group can't be followed: %s", error)
                    continue
                self.ended = error
            except OrbitalError as error:
                self.ended = error
        self._settle()
        for replica in self._replicas.values():
            replica.pulse.beat()

    def _is_over(self, error: RequestFailed) -> bool:
        try:
            self._wire.limits  # noqa: B018  raises once the session has ended
        except OrbitalError:
            return True
        return error.code in ("credentials_invalid", "unauthenticated")

    def _take(self, item: Item) -> None:
        match item:
            case Event() | Live() | GroupGone() | Signal():
                replica = self._replicas.get(item.group_id)
                if replica is not None and replica.broken is None:
                    self._hand_over(replica, item)
            case JoinRequested():
                self._ears.knocked(item)
            case Reconnected():
                self._ears.connected()
            case Disconnected():
                for replica in self._replicas.values():
                    replica.go_offline()
                self._ears.disconnected(item)
            case _:
                pass

    def _hand_over(self, replica: Replica, item: Event | Live | GroupGone | Signal) -> None:
        match item:
            case Event():
                try:
                    replica.take(item)
                except LogBroken as error:
                    self._break_off(error)
            case Live():
                replica.go_live()
            case GroupGone():
                replica.gone = item.reason
                replica.go_offline()
            case Signal():
                self._hear(replica, item)
                return
        self._touched.add(item.group_id)

    def _hear(self, replica: Replica, signal: Signal) -> None:
        try:
            heard = replica.signals.open(signal.user_id, signal.payload, time.time_ns() // 1000)
        except (MissingKey, UnknownVersion):
            return
        except CannotOpen as error:
            detail = str(error)
            replica.find(Finding(Flaw.FORGED_SIGNAL, replica.group_id, user_id=signal.user_id, detail=detail))
            self._touched.add(replica.group_id)
            return
        if heard is not None:
            self._ears.heard(heard)

    def _break_off(self, error: LogBroken) -> None:
        log.error("group %s can't be trusted any more: %s", error.group_id.hex(), error)
        if replica := self._replicas.get(error.group_id):
            replica.break_off(error)
            self._touched.add(error.group_id)

    def _settle(self) -> None:
        """Keep what has come, and let everybody see it."""
        for group_id in self._touched:
            if replica := self._replicas.get(group_id):
                replica.settle()
                while replica.news:
                    self._ears.found(replica.news.popleft())
        self._touched.clear()
        self._store.commit()

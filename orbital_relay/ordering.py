"""The order of one connection's requests: those that concern one group are carried out first in, first out.

A pure queue of tickets, one lane a group. Posts share their lane: they may run beside one another, because the writer
keeps their order. Any other request has the lane to itself. A request that concerns several groups waits for all.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(eq=False, slots=True)
class Ticket:
    """A request's place; give it back to `Ordering.done` when the request has been carried out."""

    keys: Sequence[bytes]
    start: "Callable[[Ticket], None]"
    shared: bool
    lanes_ahead: int


class _Lane:
    __slots__ = ("exclusive", "running", "waiting")

    def __init__(self) -> None:
        self.running = 0
        self.exclusive = False
        self.waiting: deque[Ticket] = deque()

    def admits(self, ticket: Ticket) -> bool:
        return not self.exclusive and (ticket.shared or not self.running)


class Ordering:
    """The lanes of one connection."""

    def __init__(self) -> None:
        self._lanes: dict[bytes, _Lane] = {}
        self._ready: list[Ticket] = []
        self._is_starting = False

    def submit(self, keys: Sequence[bytes], start: Callable[[Ticket], None], *, shared: bool) -> Ticket:
        """Call `start` with the ticket once nothing is ahead in any of the lanes `keys`: at once, if nothing is now."""
        distinct = tuple(dict.fromkeys(keys)) if len(keys) > 1 else keys
        ticket = Ticket(distinct, start, shared, lanes_ahead=len(distinct))
        for key in distinct:
            lane = self._lanes.get(key)
            if lane is None:
                lane = self._lanes[key] = _Lane()
            if lane.waiting or not lane.admits(ticket):
                lane.waiting.append(ticket)
            else:
                self._enter(lane, ticket)
        if not ticket.lanes_ahead:
            start(ticket)
        return ticket

    def done(self, ticket: Ticket) -> None:
        """Let whoever waits behind this ticket go on."""
        for key in ticket.keys:
            lane = self._lanes[key]
            lane.running -= 1
            lane.exclusive = False
            while lane.waiting and lane.admits(lane.waiting[0]):
                follower = lane.waiting.popleft()
                self._enter(lane, follower)
                if not follower.lanes_ahead:
                    self._ready.append(follower)
            if not lane.running and not lane.waiting:
                del self._lanes[key]
        self._start_ready()

    def _start_ready(self) -> None:
        """Start who is ready, one after the other: one that is done at once calls `done` from within its `start`."""
        if self._is_starting:
            return
        self._is_starting = True
        try:
            while self._ready:
                ticket = self._ready.pop(0)
                ticket.start(ticket)
        finally:
            self._is_starting = False

    @staticmethod
    def _enter(lane: _Lane, ticket: Ticket) -> None:
        lane.running += 1
        lane.exclusive = not ticket.shared
        ticket.lanes_ahead -= 1

"""Which groups are followed, how far each log has come in, and what must be subscribed to next. No I/O."""

from collections.abc import Collection

from orbital_client.errors import ChainBroken, ChainFork, FutureCursor, LogBroken
from orbital_client.wire.ledger import Chain
from orbital_protocol.frames import Cursor, Event, Live, SubscribedGroup, SubscribeGroup


class Following:
    """The followed groups, and which of them the present connection is subscribed to.

    A group is wanted, then subscribed; when it is no longer wanted or reading pauses, its subscription is left over
    until the relay has ended it. Only then may it be subscribed to again: what comes between is passed over.
    """

    def __init__(self) -> None:
        self.broken: dict[bytes, LogBroken] = {}
        self.is_paused = False
        self._chains: dict[bytes, Chain] = {}
        self._subscribed: set[bytes] = set()
        self._left_over: set[bytes] = set()

    def follow(self, position: Cursor) -> None:
        """Follow a group from here on; nothing changes if it is followed already, or broken."""
        if position.group_id not in self.broken:
            self._chains.setdefault(position.group_id, Chain(position))

    def drop(self, group_id: bytes) -> None:
        """Follow this group no more."""
        self._chains.pop(group_id, None)
        if group_id in self._subscribed:
            self._subscribed.discard(group_id)
            self._left_over.add(group_id)

    def find(self, finding: LogBroken) -> None:
        """Never again follow the log of this group."""
        self.broken[finding.group_id] = finding
        self.drop(finding.group_id)

    def follows(self, group_id: bytes) -> bool:
        return group_id in self._chains

    def pause(self) -> None:
        """Want nothing for now."""
        self.is_paused = True
        self._left_over |= self._subscribed
        self._subscribed.clear()

    def unpause(self) -> None:
        self.is_paused = False

    # ── what comes in ───────────────────────────────────────────────────────────────────────────────────────────────

    def take_event(self, event: Event) -> bool:
        """Go on by one event; False if the group isn't subscribed to. Raises ChainBroken."""
        if event.group_id not in self._subscribed:
            return False
        self._chains[event.group_id].advance(event)
        return True

    def take_live(self, live: Live) -> bool:
        """Check that everything up to here has come; False if the group isn't subscribed to. Raises ChainBroken."""
        if live.group_id not in self._subscribed:
            return False
        self._chains[live.group_id].meet(live.seq, live.hash)
        return True

    def take_gone(self, group_id: bytes) -> bool:
        """The relay has ended a subscription; False if the group isn't followed."""
        self.ended([group_id])
        return self._chains.pop(group_id, None) is not None

    def lacks(self, head: Cursor) -> bool:
        """Whether a subscription has not come as far as this."""
        return head.group_id in self._subscribed and self._chains[head.group_id].position.seq < head.seq

    # ── subscriptions of the present connection ─────────────────────────────────────────────────────────────────────

    def disconnected(self) -> None:
        """The connection ended, and all subscriptions with it."""
        self._subscribed.clear()
        self._left_over.clear()

    def surplus(self) -> list[bytes]:
        """Groups whose subscription the relay is to end."""
        return list(self._left_over)

    def missing(self, at_most: int) -> list[SubscribeGroup]:
        """Groups to subscribe to, each after what has come in of it."""
        if self.is_paused:
            return []
        lacking = [chain.position for chain in self._chains.values() if self._is_missing(chain.position.group_id)]
        return [
            SubscribeGroup(group_id=position.group_id, after_seq=position.seq, after_hash=position.hash)
            for position in lacking[:at_most]
        ]

    def _is_missing(self, group_id: bytes) -> bool:
        return group_id not in self._subscribed and group_id not in self._left_over

    def subscribing(self, groups: Collection[SubscribeGroup]) -> None:
        """A request for these is about to go out: from now on their events are expected."""
        self._subscribed.update(group.group_id for group in groups)

    def ended(self, group_ids: Collection[bytes]) -> None:
        """These subscriptions no longer exist, or never came to be."""
        self._subscribed.difference_update(group_ids)
        self._left_over.difference_update(group_ids)

    def verdict(self, group: SubscribedGroup) -> LogBroken | None:
        """What a subscription's status says against the log; None where it says nothing against it."""
        chain = self._chains.get(group.group_id)
        if chain is None:
            return None
        position = chain.position
        match group.status:
            case "future_cursor":
                problem = f"the relay's log ends at {group.seq}: was its database restored from an old backup?"
                return FutureCursor(group.group_id, position.seq, problem)
            case "chain_fork":
                return ChainFork(group.group_id, position.seq, "the relay has another event here than this client saw")
            case "resumed" if group.seq > position.seq:
                return ChainBroken(group.group_id, position.seq, f"the relay goes on from {group.seq} only")
            case _:
                return None

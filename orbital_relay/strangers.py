"""Connections that have not authenticated yet, by the network that they come from. No I/O here.

There is room for so many. Where it is full, a newcomer takes the place of another, of the network that holds the most:
so nobody keeps others out by opening many connections and saying nothing on them. A crowd behind one address, as when
everybody comes back at once, pushes none of its own out.
"""

from collections.abc import Hashable
from typing import Generic, TypeVar

C = TypeVar("C", bound=Hashable)


class Strangers(Generic[C]):
    """Who they are; `network_of` an address is what counts as one."""

    def __init__(self) -> None:
        self._networks: dict[C, str] = {}
        self._of: dict[str, dict[C, None]] = {}  # in the order in which they came

    def __len__(self) -> int:
        return len(self._networks)

    def add(self, connection: C, network: str) -> None:
        """Somebody has come from there; or, known already, comes from there as it turns out."""
        self.discard(connection)
        self._networks[connection] = network
        self._of.setdefault(network, {})[connection] = None

    def discard(self, connection: C) -> None:
        """They are gone, or strangers no more."""
        network = self._networks.pop(connection, None)
        if network is None:
            return
        mine = self._of[network]
        del mine[connection]
        if not mine:
            del self._of[network]

    def to_give_way(self, network: str) -> C | None:
        """Who is to go for a newcomer from there: the newest of the largest network, if the newcomer's is smaller."""
        largest = max(self._of.values(), key=len, default={})
        if len(largest) < len(self._of.get(network, ())) + 2:
            return None
        return next(reversed(largest))

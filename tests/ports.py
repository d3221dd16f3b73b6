"""Ports for programs that must be told theirs: free a moment ago, and below those that the kernel gives away."""

import random
import socket
from typing import Final

_PORTS: Final = range(20_000, 32_000)


def free_ports(count: int) -> list[int]:
    """So many ports of the loopback."""
    found: list[int] = []
    while len(found) < count:
        port = random.choice(_PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
    return found

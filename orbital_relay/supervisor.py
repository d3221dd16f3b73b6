"""What whoever supervises the process is told: systemd's notification protocol (sd_notify(3), Type=notify)."""

import contextlib
import os
import socket

_VARIABLE = "NOTIFY_SOCKET"


def tell(state: str) -> None:
    """Tell the supervisor of a change, such as `READY=1`, where there is one that wants to know."""
    address = os.environ.get(_VARIABLE)
    if not address:
        return
    if address.startswith("@"):  # a name without a file
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one, contextlib.suppress(OSError):
        one.setblocking(False)  # who doesn't listen must not hold up the loop
        one.sendto(state.encode(), address)

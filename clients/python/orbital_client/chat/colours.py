"""Whose name has which colour: the same in every window, and readable on a dark ground."""

from hashlib import sha256
from typing import Final

_NAMES: Final = (
    "#7dcfff",
    "#9ece6a",
    "#e0af68",
    "#bb9af7",
    "#f7768e",
    "#73daca",
    "#ff9e64",
    "#7aa2f7",
    "#e3a6d4",
    "#c3d982",
)


def colour_of(user_id: bytes) -> str:
    """The colour of somebody's name."""
    return _NAMES[sha256(user_id).digest()[0] % len(_NAMES)]

"""Which Ed25519 keys are good: points of edwards25519 in their one encoding, whose order is not small (RFC 8032).

OpenSSL takes any 32 bytes that are a point, and under a key of small order one signature fits many messages.
"""

from typing import Final

# -x² + y² = 1 + d·x²·y² modulo p. A key is y, with the lowest bit of x above it.
_P: Final = 2**255 - 19
_D: Final = -121665 * pow(121666, -1, _P) % _P
_SIGN: Final = 1 << 255
_ORDER_8: Final = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
_SMALL_ORDER: Final = frozenset({1, _P - 1, 0, _ORDER_8, _P - _ORDER_8})
"""The y of the eight points whose order divides 8: signatures by them verify for messages that nobody signed."""


def flaw(signing_key: bytes) -> str | None:
    """What is wrong with the 32 bytes of a key, in words that follow "the key"; None where nothing is."""
    y = int.from_bytes(signing_key, "little") & ~_SIGN
    if y >= _P:
        return "is not in its one encoding"
    if y in _SMALL_ORDER:
        return "is of small order"
    x_squared = (y * y - 1) * pow(_D * y * y + 1, -1, _P) % _P
    if pow(x_squared, (_P - 1) // 2, _P) != 1:
        return "is no point of the curve"
    return None

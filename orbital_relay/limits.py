"""How often somebody may do something: token buckets in this relay's memory, and back-off after wrong passwords, which
all relays share through the database.
"""

import ipaddress
import math
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from typing import Final

from orbital_relay.caller import Clock
from orbital_relay.errors import RateLimited
from orbital_relay.store import attempts
from orbital_relay.store.attempts import Waits
from orbital_relay.store.pool import Connection

Seconds = Callable[[], float]
"""A clock that never goes back, in seconds since whenever."""

_ADDRESS_FACTOR: Final = 10  # many people may share an address, and one of them must not slow the others soon
_IPV6_SITE_BITS: Final = 64
_NETWORKS_KEPT: Final = 4096
_MS: Final = 1000
_US: Final = 1_000_000


class TokenBucket:
    """`rate_per_s` in the long run, `burst` at once; both above 0."""

    __slots__ = ("_burst", "_clock", "_filled_at", "_rate_per_s", "_tokens")

    def __init__(self, rate_per_s: float, burst: float, clock: Seconds) -> None:
        self._rate_per_s = rate_per_s
        self._burst = burst
        self._clock = clock
        self._tokens = burst
        self._filled_at = clock()

    def take(self, n: float = 1) -> int:
        """Take n tokens and return 0, or take none and return after how many milliseconds there will be n."""
        self._fill()
        if self._tokens >= n:
            self._tokens -= n
            return 0
        return math.ceil((n - self._tokens) / self._rate_per_s * _MS)

    def tune(self, rate_per_s: float, burst: float) -> None:
        """Go on at another rate, with what is there."""
        self._fill()
        self._rate_per_s = rate_per_s
        self._burst = burst

    def _fill(self) -> None:
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._filled_at) * self._rate_per_s)
        self._filled_at = now


class KeyedBuckets:
    """A bucket for each user, address or whatever the key is; the one unused for longest is forgotten first."""

    def __init__(self, rate_per_s: float, burst: float, clock: Seconds, max_keys: int = 10_000) -> None:
        self._rate_per_s = rate_per_s
        self._burst = burst
        self._clock = clock
        self._max_keys = max_keys
        self._buckets: OrderedDict[Hashable, TokenBucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, key: Hashable, n: float = 1) -> int:
        """Take n tokens of this key's: see TokenBucket.take."""
        bucket = self._buckets.get(key)
        if bucket is None:
            if len(self._buckets) >= self._max_keys:
                self._buckets.popitem(last=False)
            bucket = self._buckets[key] = TokenBucket(self._rate_per_s, self._burst, self._clock)
        self._buckets.move_to_end(key)
        return bucket.take(n)

    def tune(self, rate_per_s: float, burst: float) -> None:
        """Go on at another rate, for every key; what was taken stays taken."""
        self._rate_per_s = rate_per_s
        self._burst = burst
        for bucket in self._buckets.values():
            bucket.tune(rate_per_s, burst)


@lru_cache(maxsize=_NETWORKS_KEPT)
def network_of(address: str) -> str:
    """What limits per address count: an IPv4 address, or the /64 that one IPv6 customer has to itself."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv4Address):
        return str(ip)
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return str(ipaddress.ip_network((ip, _IPV6_SITE_BITS), strict=False))


def waits(free: int, base_s: float, max_s: float) -> Waits:
    """After the `free`th failure the next try waits `base_s`, and twice as long after each further one."""
    base_us, max_us = round(base_s * _US), round(max_s * _US)
    steps = [min(base_us, max_us)]
    while 0 < steps[-1] < max_us:
        steps.append(min(steps[-1] * 2, max_us))
    return Waits(free, tuple(steps))


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at a password. It counts as a failure from the beginning, so that many at once are no more than many."""

    account: str
    address: str


class LoginBackoff:
    """Slows guessing, by account and by address. The longest wait is `max_s`: nobody is locked out for good.

    Accounts are counted by name, whether they exist or not; no name is kept, only its hash.
    """

    def __init__(self, *, free: int, base_s: float, max_s: float, clock: Clock) -> None:
        self._by_account = waits(free, base_s, max_s)
        self._by_address = waits(free * _ADDRESS_FACTOR, base_s, max_s)
        self._clock = clock

    async def begin(self, connection: Connection, username: str, address: str) -> Attempt:
        """Count a try; raise RateLimited where the account or the address has to wait."""
        attempt = Attempt(f"account {sha256(username.encode()).hexdigest()}", f"address {network_of(address)}")
        now = self._clock()
        blocked_until = await attempts.begin(connection, attempt.account, attempt.address, now, self._by_account)
        if blocked_until is not None:
            raise RateLimited(
                "Too many wrong passwords: wait.", retry_after_ms=max(1, math.ceil((blocked_until - now) / _MS))
            )
        return attempt

    async def failed(self, connection: Connection, attempt: Attempt) -> None:
        """The password was wrong: now the address has failed too."""
        await attempts.count_failure(connection, attempt.address, self._clock(), self._by_address)

    async def succeeded(self, connection: Connection, attempt: Attempt) -> None:
        """The password was right: the account begins anew."""
        await attempts.forget(connection, attempt.account)

    async def withdrawn(self, connection: Connection, attempt: Attempt) -> None:
        """The password was never looked at."""
        await attempts.take_back(connection, attempt.account, self._clock())

"""Token buckets and the waits after wrong passwords, with the clock in hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orbital_relay.limits import KeyedBuckets, TokenBucket, network_of, waits


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_passes_and_then_the_rate_holds() -> None:
    clock = Clock()
    bucket = TokenBucket(rate_per_s=2, burst=3, clock=clock)
    assert [bucket.take() for _ in range(4)] == [0, 0, 0, 500]
    clock.now += 0.5
    assert [bucket.take(), bucket.take()] == [0, 500]


def test_a_refused_take_costs_nothing() -> None:
    clock = Clock()
    bucket = TokenBucket(rate_per_s=1, burst=5, clock=clock)
    assert bucket.take(4) == 0
    assert bucket.take(3) == 2000
    assert bucket.take(1) == 0


def test_idleness_fills_no_more_than_the_burst() -> None:
    clock = Clock()
    bucket = TokenBucket(rate_per_s=10, burst=2, clock=clock)
    clock.now += 3600
    assert [bucket.take() for _ in range(3)] == [0, 0, 100]


@given(
    steps=st.lists(st.tuples(st.floats(0, 2), st.integers(1, 3)), max_size=60),
    rate=st.floats(0.5, 50),
    burst=st.integers(3, 20),
)
def test_never_more_than_rate_and_burst_allow(steps: list[tuple[float, int]], rate: float, burst: int) -> None:
    clock = Clock()
    bucket = TokenBucket(rate, burst, clock)
    taken = 0
    for pause, n in steps:
        clock.now += pause
        wait_ms = bucket.take(n)
        assert wait_ms >= 0
        taken += n if wait_ms == 0 else 0
    assert taken <= burst + (clock.now - 100) * rate + 1e-6


@given(rate=st.floats(0.5, 1000), burst=st.integers(1, 20))
def test_after_the_wait_there_is_room(rate: float, burst: int) -> None:
    clock = Clock()
    bucket = TokenBucket(rate, burst, clock)
    assert bucket.take(burst) == 0
    clock.now += bucket.take() / 1000 + 1e-9
    assert bucket.take() == 0


def test_keys_have_buckets_of_their_own() -> None:
    buckets = KeyedBuckets(rate_per_s=1, burst=1, clock=Clock())
    assert [buckets.take("a"), buckets.take("b"), buckets.take("a")] == [0, 0, 1000]


def test_another_rate_holds_for_who_is_known_and_who_is_not_and_what_was_taken_stays_taken() -> None:
    clock = Clock()
    buckets = KeyedBuckets(rate_per_s=1, burst=4, clock=clock)
    assert buckets.take("a", 4) == 0
    buckets.tune(rate_per_s=2, burst=2)
    assert [buckets.take("a"), buckets.take("b", 2), buckets.take("b")] == [500, 0, 500]
    clock.now += 3600
    assert [buckets.take("a", 2), buckets.take("a")] == [0, 500]


def test_before_another_rate_the_old_one_held() -> None:
    clock = Clock()
    buckets = KeyedBuckets(rate_per_s=1, burst=10, clock=clock)
    assert buckets.take("a", 10) == 0
    clock.now += 2
    buckets.tune(rate_per_s=1000, burst=10)
    assert buckets.take("a", 3) == 1


def test_the_number_of_keys_is_bounded_and_the_oldest_goes() -> None:
    buckets = KeyedBuckets(rate_per_s=1, burst=1, clock=Clock(), max_keys=3)
    for key in ("a", "b", "c", "a", "d"):
        buckets.take(key)
    assert len(buckets) == 3
    assert buckets.take("a") > 0  # used since b
    assert buckets.take("b") == 0  # forgotten


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
        ("a socket", "a socket"),
    ],
)
def test_what_counts_as_one_address(address: str, network: str) -> None:
    assert network_of(address) == network


def test_waits_double_up_to_a_bound() -> None:
    assert waits(5, 1, 10).steps_us == (1_000_000, 2_000_000, 4_000_000, 8_000_000, 10_000_000)
    assert waits(5, 1, 10).free == 5
    assert waits(1, 0, 900).steps_us == (0,)
    assert waits(1, 900, 900).steps_us == (900_000_000,)
    assert len(waits(1, 0.000001, 86_400).steps_us) < 50

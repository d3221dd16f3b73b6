"""Requests of one connection that concern one group are carried out first in, first out."""

from collections.abc import Callable
from functools import partial

from hypothesis import given
from hypothesis import strategies as st

from orbital_relay.ordering import Ordering, Ticket

A, B = b"a" * 16, b"b" * 16


def starter(log: list[str], name: str) -> Callable[[Ticket], None]:
    return lambda _: log.append(name)


def test_the_first_request_starts_at_once() -> None:
    log: list[str] = []
    Ordering().submit((A,), starter(log, "first"), shared=False)
    assert log == ["first"]


def test_posts_run_beside_one_another_and_a_request_waits_for_them_all() -> None:
    log: list[str] = []
    ordering = Ordering()
    posts = [ordering.submit((A,), starter(log, f"post {i}"), shared=True) for i in range(3)]
    ordering.submit((A,), starter(log, "remove"), shared=False)
    assert log == ["post 0", "post 1", "post 2"]
    for post in posts:
        assert "remove" not in log
        ordering.done(post)
    assert log[-1] == "remove"


def test_a_post_behind_a_waiting_request_waits_too() -> None:
    log: list[str] = []
    ordering = Ordering()
    first = ordering.submit((A,), starter(log, "post 0"), shared=True)
    request = ordering.submit((A,), starter(log, "leave"), shared=False)
    ordering.submit((A,), starter(log, "post 1"), shared=True)
    ordering.done(first)
    assert log == ["post 0", "leave"]
    ordering.done(request)
    assert log == ["post 0", "leave", "post 1"]


def test_other_groups_overtake() -> None:
    log: list[str] = []
    ordering = Ordering()
    ordering.submit((A,), starter(log, "a"), shared=False)
    ordering.submit((A,), starter(log, "a behind"), shared=False)
    ordering.submit((B,), starter(log, "b"), shared=False)
    ordering.submit((), starter(log, "none"), shared=False)
    assert log == ["a", "b", "none"]


def test_a_request_of_several_groups_waits_for_all_of_them() -> None:
    log: list[str] = []
    ordering = Ordering()
    in_a = ordering.submit((A,), starter(log, "a"), shared=False)
    in_b = ordering.submit((B,), starter(log, "b"), shared=False)
    both = ordering.submit((A, B, A), starter(log, "both"), shared=False)
    ordering.submit((B,), starter(log, "b behind"), shared=True)
    ordering.done(in_a)
    assert log == ["a", "b"]
    ordering.done(in_b)
    assert log == ["a", "b", "both"]
    ordering.done(both)
    assert log == ["a", "b", "both", "b behind"]


Plan = list[tuple[frozenset[bytes], bool]]


@given(
    st.lists(st.tuples(st.frozensets(st.sampled_from([A, B, b"c" * 16]), max_size=3), st.booleans()), max_size=30),
    st.randoms(use_true_random=False),
)
def test_whatever_finishes_first_everything_starts_and_each_group_keeps_its_order(plan: Plan, random: object) -> None:
    ordering = Ordering()
    tickets: dict[int, Ticket] = {}
    started: list[int] = []
    finished: set[int] = set()
    plan = [(keys, shared and len(keys) == 1) for keys, shared in plan]
    for number, (keys, shared) in enumerate(plan):
        start = partial(_note, started, number)
        tickets[number] = ordering.submit(sorted(keys), start, shared=shared)
    while len(finished) < len(plan):
        running = [n for n in started if n not in finished]
        assert running, "nothing runs and something waits"
        done = random.choice(running)  # type: ignore[attr-defined]
        finished.add(done)
        ordering.done(tickets[done])
    for number, (keys, shared) in enumerate(plan):
        for other in range(number):
            others_keys, others_shared = plan[other]
            if keys & others_keys and not (shared and others_shared):
                assert started.index(other) < started.index(number)
    assert not ordering._lanes, "a lane was left behind"


def _note(started: list[int], number: int, _: Ticket) -> None:
    started.append(number)


def test_requests_that_are_done_at_once_let_the_next_ones_go_on() -> None:
    """Posts that are refused before they reach the writer, a thousand of them behind a request of two groups."""
    log: list[int] = []
    ordering = Ordering()
    first = ordering.submit((A, B), lambda _: None, shared=False)

    def refuse(number: int, ticket: Ticket) -> None:
        log.append(number)
        ordering.done(ticket)

    for number in range(1000):
        ordering.submit((A,), partial(refuse, number), shared=True)
    last = ordering.submit((A, B), lambda _: log.append(1000), shared=False)
    ordering.done(first)
    assert log == [*range(1001)]
    ordering.done(last)
    ordering.submit((B,), lambda _: log.append(1001), shared=False)
    assert log[-1] == 1001

"""Who gives way to whom, among those who have not authenticated."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from orbital_relay.strangers import Strangers


def strangers(*networks: str) -> Strangers[int]:
    """Numbered from 0 in the order in which they came."""
    made = Strangers[int]()
    for number, network in enumerate(networks):
        made.add(number, network)
    return made


def test_the_newest_of_the_largest_network_gives_way() -> None:
    assert strangers("a", "a", "b", "a", "c").to_give_way("c") == 3


def test_one_of_ones_own_does_not_give_way() -> None:
    assert strangers("a", "a", "a", "b").to_give_way("a") is None


def test_where_all_have_as_many_nobody_gives_way() -> None:
    for networks in ("", "a", "ab", "aabb"):
        assert strangers(*networks).to_give_way(networks[:1]) is None
    assert strangers("a", "b", "c").to_give_way("d") is None


def test_the_newcomers_network_is_no_larger_than_the_others_then() -> None:
    assert strangers("a", "a", "b").to_give_way("b") is None
    assert strangers("a", "a", "a", "b").to_give_way("b") == 2


def test_who_turns_out_to_come_from_elsewhere_counts_there() -> None:
    made = strangers("proxy", "proxy", "proxy")
    made.add(0, "a")
    made.add(1, "b")
    assert made.to_give_way("c") is None
    made.add(1, "a")
    made.add(2, "a")
    assert made.to_give_way("c") == 2
    assert len(made) == 3


def test_who_is_known_is_no_stranger() -> None:
    made = strangers("a", "a", "a")
    for number in (2, 2, 7):
        made.discard(number)
    assert len(made) == 2
    assert made.to_give_way("b") == 1


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 20), st.booleans()), max_size=80), st.integers(1, 12))
def test_with_room_for_so_many_no_network_keeps_out_a_smaller_one(
    steps: list[tuple[str, int, bool]], room: int
) -> None:
    """Against a model that looks at everybody."""
    made = Strangers[int]()
    model: dict[int, str] = {}
    for network, number, leaves in steps:
        if leaves:
            made.discard(number)
            model.pop(number, None)
        elif number not in model:
            sizes = Counter(model.values())
            if len(model) >= room:
                other = made.to_give_way(network)
                is_fair = max(sizes.values()) < sizes[network] + 2
                assert (other is None) == is_fair
                if other is None:
                    continue
                assert sizes[model[other]] == max(sizes.values())
                assert other == [one for one, where in model.items() if where == model[other]][-1]
                made.discard(other)
                del model[other]
            made.add(number, network)
            model[number] = network
        assert len(made) == len(model) <= room

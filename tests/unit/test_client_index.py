"""The stored index finds what the one in memory finds: whatever was written out, and in whatever order ids come."""

import random
from pathlib import Path

import pytest

from orbital_client.store import Store
from orbital_client.trust.index import Known, MemoryIndex
from orbital_protocol import ZERO_ID
from orbital_protocol.codes import Kind

GROUP = bytes(range(16))
AUTHOR = b"a" * 16
EVENTS = 10_000  # more than twice what the stored index keeps in memory
COMMIT_EVERY = 256


def random_id(dice: random.Random, seq: int, jitter: int) -> bytes:
    """An id as clients make them, by clocks that differ by so many events."""
    return (seq + dice.randrange(jitter)).to_bytes(6, "big") + dice.randbytes(10)


def events(dice: random.Random, jitter: int) -> list[Known]:
    """Posts, some with an id that was there before, and some of the relay's own."""
    made: list[Known] = []
    for seq in range(1, EVENTS + 1):
        object_id, actor_id = random_id(dice, seq, jitter), AUTHOR
        if made and dice.random() < 0.01:
            object_id = dice.choice(made).object_id
        if dice.random() < 0.01:
            actor_id = ZERO_ID
        made.append(Known(seq, seq.to_bytes(32, "big"), Kind.REPLY_POSTED, object_id, actor_id))
    return made


@pytest.mark.parametrize("jitter", [1, 100, 2**40], ids=["rising", "nearly rising", "in any order"])
def test_the_stored_index_finds_what_the_one_in_memory_finds(tmp_path: Path, jitter: int) -> None:
    dice = random.Random(jitter)
    path = tmp_path / "store.db"
    made = events(dice, jitter)
    memory = MemoryIndex()
    store = Store(path)
    restarts = {3_000, 9_000}
    for number, known in enumerate(made, 1):
        stored = store.index(GROUP)
        for object_id in (known.object_id, dice.choice(made).object_id, dice.randbytes(16)):
            assert stored.by_id(object_id) == memory.by_id(object_id)
        stored.add(known)
        memory.add(known)
        if dice.random() < 0.01 and (target := memory.by_id(dice.choice(made[:number]).object_id)):
            stored.erase(target.object_id, known.seq)
            memory.erase(target.object_id, known.seq)
        if number % COMMIT_EVERY == 0:
            store.commit()
        if number in restarts:
            store.close()
            store = Store(path)
    for known in made:
        assert store.index(GROUP).by_id(known.object_id) == memory.by_id(known.object_id)
        assert store.index(GROUP).by_seq(known.seq) == memory.by_seq(known.seq)
    store.close()


def test_groups_of_a_store_have_ids_of_their_own(tmp_path: Path) -> None:
    other = bytes(16)
    known = Known(1, bytes(32), Kind.REPLY_POSTED, b"\xff" * 16, AUTHOR)
    with Store(tmp_path / "store.db") as store:
        store.index(GROUP).add(known)
        assert store.index(other).by_id(known.object_id) is None
    with Store(tmp_path / "store.db") as store:
        assert store.index(GROUP).by_id(known.object_id) == known
        assert store.index(other).by_id(known.object_id) is None

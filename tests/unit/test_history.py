"""The history checker: a good history has nothing wrong; each kind of damage is caught, and named."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest
from msgspec.structs import replace

from orbital_protocol import ZERO_HASH, chain
from orbital_protocol.codes import Kind
from tests.system import history
from tests.system.history_facts import (
    Acked,
    AnyFact,
    Fact,
    Got,
    Quota,
    Recorder,
    Removed,
    Sent,
    Stopped,
    Stored,
    Subscribed,
)

F = TypeVar("F", bound=Fact)

GROUP = "ab" * 16
REMOVED_AT = 30
POSTS = 40


@dataclass
class Lab:
    """Chance, a history, and how to find things in it."""

    chance: random.Random
    facts: list[AnyFact]

    def of(self, kind: type[F], holds: Callable[[F], bool] = lambda _: True) -> F:
        return self.chance.choice([fact for fact in self.facts if isinstance(fact, kind) and holds(fact)])

    def put(self, old: AnyFact, *new: AnyFact) -> None:
        at = self.facts.index(old)
        self.facts[at : at + 1] = new


def good(seed: int) -> Lab:
    """Two post, three listen: one comes back now and then, one is removed, one stops."""
    chance = random.Random(seed)
    facts: list[AnyFact] = []
    clock = iter(range(1, 1_000_000))
    previous = ZERO_HASH
    places = {"ann": 0, "bob": 0, "eve": 0}
    facts += [Subscribed(at=next(clock), group=GROUP, who=who, after=0) for who in places]
    for seq in range(1, POSTS + 1):
        post_id, content, actor = chance.randbytes(16), chance.randbytes(32), chance.randbytes(16)
        author = chance.choice(("ann", "bob"))
        sent = Sent(at=next(clock), group=GROUP, who=author, id=post_id.hex(), content_hash=content.hex())
        facts += [sent] * chance.choice((1, 1, 1, 2))
        if chance.random() < 0.8:  # the answer may be lost
            facts.append(Acked(at=next(clock), group=GROUP, who=author, id=post_id.hex(), seq=seq))
        kind = Kind.MEMBER_REMOVED if seq == REMOVED_AT else Kind.REPLY_POSTED
        previous = chain.event_hash(
            previous_hash=previous,
            group_id=bytes.fromhex(GROUP),
            seq=seq,
            kind=kind,
            object_id=post_id,
            actor_id=actor,
            key_epoch=1,
            created_at=seq,
            content_hash=content,
        )
        facts.append(
            Stored(
                at=next(clock),
                group=GROUP,
                seq=seq,
                id=post_id.hex(),
                kind=kind,
                actor=actor.hex(),
                key_epoch=1,
                created_at=seq,
                content_hash=content.hex(),
                hash=previous.hex(),
            )
        )
        for who in places:
            if (who == "eve" and seq > REMOVED_AT) or (who == "bob" and seq > POSTS - 3):
                continue
            if chance.random() < 0.1 and seq <= POSTS - 4:
                facts.append(Subscribed(at=next(clock), group=GROUP, who=who, after=seq - 1))
            got = Got(
                at=next(clock), group=GROUP, who=who, seq=seq, id=post_id.hex(), kind=kind, content_hash=content.hex()
            )
            facts.append(got)
        if seq == POSTS - 4:  # one more was under way
            facts.append(Stopped(at=next(clock), group=GROUP, who="bob"))
    facts.append(Removed(at=next(clock), group=GROUP, who="eve", seq=REMOVED_AT))
    facts.append(Quota(at=next(clock), group=GROUP, used_bytes=9, limit_bytes=10))
    return Lab(chance, facts)


def broken(lab: Lab) -> set[str]:
    return {violation.invariant for violation in history.judge(lab.facts).violations}


# ── what may go wrong ───────────────────────────────────────────────────────────────────────────────────────────────


def an_event_is_dropped(lab: Lab) -> None:
    lab.put(lab.of(Got, lambda got: 1 < got.seq < REMOVED_AT))


def the_last_events_are_dropped(lab: Lab) -> None:
    lab.facts = [fact for fact in lab.facts if not (isinstance(fact, Got) and fact.who == "ann" and fact.seq > 35)]
    lab.facts = [fact for fact in lab.facts if not (isinstance(fact, Subscribed) and fact.after > 34)]


def who_stopped_listens_again_in_vain(lab: Lab) -> None:
    lab.facts.append(Subscribed(at=999_999, group=GROUP, who="bob", after=POSTS - 3))


def an_event_is_doubled(lab: Lab) -> None:
    got = lab.of(Got)
    lab.put(got, got, got)


def two_events_change_places(lab: Lab) -> None:
    one = lab.of(Got, lambda got: got.who == "ann" and got.seq < POSTS)
    other = next(f for f in lab.facts if isinstance(f, Got) and f.who == "ann" and f.seq == one.seq + 1)
    here, there = lab.facts.index(one), lab.facts.index(other)
    lab.facts[here], lab.facts[there] = replace(other, at=one.at), replace(one, at=other.at)


def an_event_is_altered(lab: Lab) -> None:
    got = lab.of(Got, lambda got: got.kind == Kind.REPLY_POSTED)
    lab.put(got, replace(got, content_hash="00" * 32))


def a_phantom_comes(lab: Lab) -> None:
    got = lab.of(Got, lambda got: got.kind == Kind.REPLY_POSTED)
    lab.put(got, replace(got, id="00" * 16))


def an_acknowledged_post_is_lost(lab: Lab) -> None:
    ack = lab.of(Acked)
    lab.facts = [fact for fact in lab.facts if not (isinstance(fact, Stored) and fact.id == ack.id)]


def another_place_is_acknowledged(lab: Lab) -> None:
    ack = lab.of(Acked)
    lab.put(ack, ack, replace(ack, seq=ack.seq + 1))


def a_place_has_two_events(lab: Lab) -> None:
    got = lab.of(Got, lambda got: got.seq > 1)
    other = next(fact for fact in lab.facts if isinstance(fact, Stored) and fact.seq == got.seq - 1)
    lab.put(got, replace(got, id=other.id, content_hash=other.content_hash, kind=other.kind))


def an_old_post_comes_later(lab: Lab) -> None:
    acks = [fact for fact in lab.facts if isinstance(fact, Acked)]
    first, last = acks[0], acks[-1]
    at = {ack.id: replace(ack, seq=other.seq) for ack, other in ((first, last), (last, first))}
    lab.facts = [at.get(fact.id, fact) if isinstance(fact, Acked) else fact for fact in lab.facts]


def a_post_stands_twice(lab: Lab) -> None:
    stored = lab.of(Stored, lambda stored: stored.kind == Kind.REPLY_POSTED and stored.seq > 1)
    lab.facts.append(replace(stored, seq=POSTS + 1))


def something_comes_after_the_removal(lab: Lab) -> None:
    last = next(f for f in lab.facts if isinstance(f, Got) and f.who == "ann" and f.seq == REMOVED_AT + 1)
    lab.facts.append(replace(last, who="eve"))


def too_much_is_stored(lab: Lab) -> None:
    lab.put(lab.of(Quota), Quota(at=999_999, group=GROUP, used_bytes=11, limit_bytes=10))


def the_chain_is_broken(lab: Lab) -> None:
    stored = lab.of(Stored)
    lab.put(stored, replace(stored, created_at=0))


DAMAGE: dict[Callable[[Lab], None], str] = {
    an_event_is_dropped: "I3",
    the_last_events_are_dropped: "I1",
    who_stopped_listens_again_in_vain: "I1",
    an_event_is_doubled: "I3",
    two_events_change_places: "I3",
    an_event_is_altered: "I2",
    a_phantom_comes: "I2",
    an_acknowledged_post_is_lost: "I1",
    another_place_is_acknowledged: "I6",
    a_place_has_two_events: "I4",
    an_old_post_comes_later: "I5",
    a_post_stands_twice: "I6",
    something_comes_after_the_removal: "I7",
    too_much_is_stored: "I8",
    the_chain_is_broken: "I9",
}


@pytest.mark.parametrize("seed", range(8))
def test_a_good_history_has_nothing_wrong(seed: int) -> None:
    assert broken(good(seed)) == set()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_damage_is_caught_and_named(damage: Callable[[Lab], None], seed: int) -> None:
    lab = good(seed)
    damage(lab)
    assert DAMAGE[damage] in broken(lab)


def test_all_invariants_are_tried() -> None:
    assert set(DAMAGE.values()) == set(history.INVARIANTS)


def test_files_are_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lab = good(1)
    files = [tmp_path / "clients.jsonl", tmp_path / "log.jsonl"]
    Recorder([fact for fact in lab.facts if not isinstance(fact, Stored)]).write(files[0])
    Recorder([fact for fact in lab.facts if isinstance(fact, Stored)]).write(files[1])
    assert history.main(*map(str, files)) == 0
    assert "3 clients, 40 posts" in capsys.readouterr().out
    something_comes_after_the_removal(lab)
    Recorder(lab.facts).write(files[0])
    assert history.main(str(files[0])) == 1
    assert "I7 group abababababab: eve was removed at 30, and got 31" in capsys.readouterr().out

"""Judge what clients saw: `python -m tests.system.history FILE…`, JSON lines as `history_facts` has them.

What must hold, whatever was killed meanwhile:

I1  what was acknowledged is in the log, and came to everybody who listened to the end
I2  nothing came that wasn't posted, and nothing as other bytes
I3  each client's events are steps of one, without a hole or a repeat, over all its connections
I4  a place in a log has one event, for everybody
I5  what was acknowledged before another was sent has the lower place
I6  what was not acknowledged is there once or not at all
I7  nothing comes after one's removal
I8  the quota of files is never exceeded
I9  the log's hashes are those of its events
"""

import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from orbital_protocol import ZERO_HASH, chain
from orbital_protocol.codes import Kind
from tests.system.history_facts import (
    Acked,
    AnyFact,
    Got,
    Quota,
    Removed,
    Sent,
    Stopped,
    Stored,
    Subscribed,
    read,
)

POSTS: Final = frozenset({Kind.THREAD_POSTED, Kind.REPLY_POSTED, Kind.ANNOTATION_POSTED})


@dataclass(frozen=True, slots=True, order=True)
class Violation:
    """What doesn't hold, where."""

    invariant: str
    group: str
    text: str

    def __str__(self) -> str:
        return f"{self.invariant} group {self.group[:12]}: {self.text}"


@dataclass
class History:
    """The facts of one group, sorted by what they are and in their order."""

    group: str
    sent: list[Sent] = field(default_factory=list)
    acked: list[Acked] = field(default_factory=list)
    heard: dict[str, list[Subscribed | Got | Stopped]] = field(default_factory=lambda: defaultdict(list))
    removed: dict[str, int] = field(default_factory=dict)
    quotas: list[Quota] = field(default_factory=list)
    log: list[Stored] = field(default_factory=list)

    def take(self, fact: AnyFact) -> None:
        match fact:
            case Sent():
                self.sent.append(fact)
            case Acked():
                self.acked.append(fact)
            case Subscribed() | Got() | Stopped():
                self.heard[fact.who].append(fact)
            case Removed():
                self.removed[fact.who] = fact.seq
            case Quota():
                self.quotas.append(fact)
            case Stored():
                self.log.append(fact)


def histories(facts: Iterable[AnyFact]) -> list[History]:
    """The facts by group, each in the order of its time."""
    found: dict[str, History] = {}
    for fact in sorted(facts, key=lambda fact: fact.at):
        found.setdefault(fact.group, History(fact.group)).take(fact)
    for history in found.values():
        history.log.sort(key=lambda stored: stored.seq)
    return list(found.values())


# ── the invariants ──────────────────────────────────────────────────────────────────────────────────────────────────


def acknowledged_is_there(history: History) -> Iterator[str]:
    """I1."""
    stored = {event.id: event.seq for event in history.log}
    for ack in history.acked:
        if stored.get(ack.id) != ack.seq:
            yield f"{ack.id} was acknowledged as {ack.seq}, and is stored as {stored.get(ack.id)}"
    last = max((event.seq for event in history.log), default=0)
    for who, facts in history.heard.items():
        came = max((fact.seq if isinstance(fact, Got) else getattr(fact, "after", 0) for fact in facts), default=0)
        until = min(history.removed.get(who, last), last)
        if came < until and _listens(facts):
            yield f"{who} listened to the end, and has nothing after {came} of {until}"


def delivered_was_posted(history: History) -> Iterator[str]:
    """I2."""
    sent = {post.id: post.content_hash for post in history.sent}
    for who, got in _got(history):
        if got.kind in POSTS and sent.get(got.id) != got.content_hash:
            what = "nobody posted" if got.id not in sent else "was posted as other bytes"
            yield f"{who} got {got.id} at {got.seq}, which {what}"


def steps_of_one(history: History) -> Iterator[str]:
    """I3."""
    for who, facts in history.heard.items():
        at: int | None = None
        for fact in facts:
            if isinstance(fact, Subscribed):
                if at is not None and fact.after != at:
                    yield f"{who} came back for what follows {fact.after}, and had come to {at}"
                at = fact.after
            elif isinstance(fact, Got):
                if at is None or fact.seq != at + 1:
                    yield f"{who} got {fact.seq} after {at}"
                at = fact.seq


def one_event_a_place(history: History) -> Iterator[str]:
    """I4."""
    ids: dict[int, set[str]] = defaultdict(set)
    for seq, event_id in (
        *((event.seq, event.id) for event in history.log),
        *((ack.seq, ack.id) for ack in history.acked),
        *((got.seq, got.id) for _, got in _got(history)),
    ):
        ids[seq].add(event_id)
    for seq, found in sorted(ids.items()):
        if len(found) > 1:
            yield f"{seq} is {' and '.join(sorted(found))}"
    places = [event.seq for event in history.log]
    if places != list(range(1, len(places) + 1)):
        yield "the log's places are not 1, 2, 3, …"


def order_of_acknowledgements(history: History) -> Iterator[str]:
    """I5."""
    first_sent: dict[str, int] = {}
    for post in history.sent:
        first_sent.setdefault(post.id, post.at)
    highest, acks = 0, iter(sorted(history.acked, key=lambda ack: ack.at))
    waiting = next(acks, None)
    seqs = {ack.id: ack.seq for ack in history.acked}
    for post_id, at in sorted(first_sent.items(), key=lambda item: item[1]):
        while waiting is not None and waiting.at < at:
            highest, waiting = max(highest, waiting.seq), next(acks, None)
        if post_id in seqs and seqs[post_id] <= highest:
            yield f"{post_id} is at {seqs[post_id]}, and was sent after {highest} had been acknowledged"


def once_or_not_at_all(history: History) -> Iterator[str]:
    """I6."""
    counts: dict[str, int] = defaultdict(int)
    for event in history.log:
        counts[event.id] += event.kind in POSTS
    yield from (f"{event_id} is there {count} times" for event_id, count in counts.items() if count > 1)
    seqs: dict[str, set[int]] = defaultdict(set)
    for ack in history.acked:
        seqs[ack.id].add(ack.seq)
    yield from (f"{post_id} was acknowledged as {sorted(found)}" for post_id, found in seqs.items() if len(found) > 1)


def nothing_after_removal(history: History) -> Iterator[str]:
    """I7."""
    for who, got in _got(history):
        if got.seq > history.removed.get(who, got.seq):
            yield f"{who} was removed at {history.removed[who]}, and got {got.seq}"


def quota_holds(history: History) -> Iterator[str]:
    """I8."""
    for quota in history.quotas:
        if quota.used_bytes > quota.limit_bytes:
            yield f"{quota.used_bytes} bytes are used of {quota.limit_bytes}"


def chain_verifies(history: History) -> Iterator[str]:
    """I9."""
    previous = ZERO_HASH
    for event in history.log:
        found = chain.event_hash(
            previous_hash=previous,
            group_id=bytes.fromhex(history.group),
            seq=event.seq,
            kind=event.kind,
            object_id=bytes.fromhex(event.id),
            actor_id=bytes.fromhex(event.actor),
            key_epoch=event.key_epoch,
            created_at=event.created_at,
            content_hash=bytes.fromhex(event.content_hash),
        )
        if found.hex() != event.hash:
            yield f"the hash of {event.seq} is not that of the event"
        previous = bytes.fromhex(event.hash)


def _listens(facts: list[Subscribed | Got | Stopped]) -> bool:
    """Whether they haven't stopped since they subscribed; what was under way then may still come."""
    return not isinstance(next((fact for fact in reversed(facts) if not isinstance(fact, Got)), None), Stopped)


def _got(history: History) -> Iterator[tuple[str, Got]]:
    return ((who, fact) for who, facts in history.heard.items() for fact in facts if isinstance(fact, Got))


INVARIANTS: Final[dict[str, Callable[[History], Iterator[str]]]] = {
    "I1": acknowledged_is_there,
    "I2": delivered_was_posted,
    "I3": steps_of_one,
    "I4": one_event_a_place,
    "I5": order_of_acknowledgements,
    "I6": once_or_not_at_all,
    "I7": nothing_after_removal,
    "I8": quota_holds,
    "I9": chain_verifies,
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was looked at, and what doesn't hold."""

    groups: int
    clients: int
    posts: int
    acknowledged: int
    deliveries: int
    violations: list[Violation]

    def __str__(self) -> str:
        return (
            f"{self.groups} groups, {self.clients} clients, {self.posts} posts, {self.acknowledged} acknowledged,"
            f" {self.deliveries} deliveries: {len(self.violations) or 'no'} violations"
        )


def judge(facts: Iterable[AnyFact]) -> Verdict:
    """Hold the facts against every invariant."""
    found = histories(facts)
    return Verdict(
        groups=len(found),
        clients=len({who for history in found for who in history.heard}),
        posts=len({post.id for history in found for post in history.sent}),
        acknowledged=len({ack.id for history in found for ack in history.acked}),
        deliveries=sum(1 for history in found for _ in _got(history)),
        violations=sorted(
            Violation(name, history.group, text)
            for history in found
            for name, check in INVARIANTS.items()
            for text in check(history)
        ),
    )


def main(*files: str) -> int:
    """Print what doesn't hold, then what was looked at; the exit status."""
    verdict = judge(read(map(Path, files)))
    for violation in verdict.violations:
        print(violation)
    print(verdict)
    return bool(verdict.violations)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

"""A group's log once more from its creation on, as if nothing of it were known, compared with what is stored."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from orbital_client.client import Client
from orbital_client.crypto.groupkeys import GroupKey
from orbital_client.errors import CannotOpen, ChainFork, MissingKey, Withheld
from orbital_client.group import Group
from orbital_client.trust.findings import Finding
from orbital_client.trust.index import Index, Known, MemoryIndex
from orbital_client.trust.keyring import Keyring
from orbital_client.trust.log import POSTS, Log
from orbital_client.trust.opening import open_event
from orbital_protocol.frames import Cursor, Event

_PAGE: Final = 100

Advance = Callable[[int, int], None]
"""Told how far the walk is: events done, and of how many."""


@dataclass(slots=True)
class Verification:
    """What was checked. Posts are counted once: opened, erased, without a key, or a problem (by seq).

    `findings` are events that break the group's rules; `differences` say where the store has come to something else.
    """

    head: Cursor
    code: str
    events: int = 0
    opened: int = 0
    erased: int = 0
    without_key: int = 0
    members: int = 0
    keys: int = 0
    epochs: int = 0
    problems: list[tuple[int, str]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)

    @property
    def is_sound(self) -> bool:
        """Whether nothing at all was found wrong. A key of a time before one's own is no wrong."""
        return not (self.problems or self.findings or self.differences)


async def verify_deep(client: Client, group: Group, on_progress: Advance | None = None) -> Verification:
    """Fetch and check every event from the creation to what this client has verified, and open every post again.

    Raises LogBroken where the relay's log is not whole, or not the one that was verified.
    """
    await group.live()
    client.store.commit()
    known, secrets = _stored(client, group)
    fresh = Log(group.id, MemoryIndex())
    keyring = Keyring(fresh)
    found = Verification(head=known.position, code=group.code)
    withheld: list[int] = []
    while fresh.position.seq < known.position.seq:
        for event in await _page(group, fresh, known.position):
            step = fresh.take(event)
            if step.finding is not None:
                found.findings.append(step.finding)
            _add_key(keyring, fresh, secrets, found)
            _open(fresh, keyring, event, found, withheld)
        if on_progress is not None:
            on_progress(fresh.position.seq, known.position.seq)
    _settle_withheld(fresh, withheld, found)
    found.events, found.members = fresh.position.seq, len(fresh.roster)
    found.keys, found.epochs = len(keyring), fresh.key_epoch
    found.differences += _differences(fresh, known)
    return found


def _stored(client: Client, group: Group) -> tuple[Log, dict[int, bytes]]:
    """The log as the store has it, which does not change with the one that is followed."""
    for group_id, state, secrets in client.store.groups():
        if group_id == group.id:
            return Log.restore(state, client.store.index(group_id)), secrets
    raise ChainFork(group.id, 0, "nothing of this group is stored")


async def _page(group: Group, fresh: Log, last: Cursor) -> list[Event]:
    page = await group.wire.history(after_seq=fresh.position.seq, limit=_PAGE)
    if not page.events:
        raise fresh.broken("the relay leaves out what it had shown before")
    return [event for event in page.events if event.seq <= last.seq]


def _add_key(keyring: Keyring, fresh: Log, secrets: dict[int, bytes], found: Verification) -> None:
    """Take the stored key of the epoch that has begun, if there is one, and if it is what the log commits to."""
    epoch = fresh.key_epoch
    if keyring.get(epoch) is None and (secret := secrets.pop(epoch, None)):
        try:
            keyring.add(GroupKey(fresh.group_id, epoch, secret))
        except CannotOpen as problem:
            found.differences.append(f"the stored key of epoch {epoch}: {problem}")


def _open(fresh: Log, keyring: Keyring, event: Event, found: Verification, withheld: list[int]) -> None:
    if event.kind not in POSTS:
        return
    try:
        open_event(fresh, keyring, event)
        found.opened += 1
    except Withheld:
        withheld.append(event.seq)  # it may be erased by what comes after it
    except MissingKey:
        found.without_key += 1
    except CannotOpen as problem:
        found.problems.append((event.seq, str(problem)))


def _settle_withheld(fresh: Log, withheld: list[int], found: Verification) -> None:
    for seq in withheld:
        known = fresh.index.by_seq(seq)
        if known is not None and known.erased_at:
            found.erased += 1
        else:
            found.problems.append((seq, "the relay keeps back what nobody has deleted"))


def _differences(fresh: Log, known: Log) -> list[str]:
    """Where the store has come to something else than the log walked afresh."""
    differences = []
    if fresh.roster != known.roster:
        differences.append("the stored members are others than those that the log makes")
    if fresh.state != known.state:
        differences.append("what is stored of keys, name, invites and past members is not what the log makes of them")
    for seq in range(1, fresh.position.seq + 1):
        if fresh.index.by_seq(seq) != _as_of(known.index, seq, fresh.position.seq):
            differences.append(f"event {seq} is stored as another one")
    return differences


def _as_of(index: Index, seq: int, head_seq: int) -> Known | None:
    """An event as it was when the log had come so far: what was erased since was there then."""
    known = index.by_seq(seq)
    return replace(known, erased_at=0) if known and known.erased_at > head_seq else known

"""Histories by chance: what is right leaves no finding, and what a relay alters is noticed, or changes nothing."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import asdict, replace

from orbital_client.crypto.contents import Edit, Pin, React, Unpin, Unreact
from orbital_client.errors import ChainBroken
from orbital_client.identity import Identity
from orbital_client.store import Store
from orbital_client.trust.log import Log
from orbital_protocol import ZERO_ID, statements
from orbital_protocol.codes import History, Kind, Role
from orbital_protocol.frames import Event
from tests.unit.trusting import ANN, BOB, CARA, DAN, EVE, ROBOT, Link, Reader, Story, blank, everything, retold, someone

EVERYBODY = (ANN, BOB, CARA, DAN, EVE, ROBOT)
NAMES = ("ann", "bob", "cara", "dan", "eve", "robot")

pytestmark = pytest.mark.timeout(120)
calm = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


# ── whatever is right ───────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Play:
    """A group in which people do, one after the other, what they may do. What that is, is told here once more."""

    story: Story
    who: dict[bytes, Identity] = field(default_factory=dict)
    generations: dict[bytes, int] = field(default_factory=dict)
    is_due: bool = False
    links: list[Link] = field(default_factory=list)
    banned: set[bytes] = field(default_factory=set)
    live: dict[bytes, Event] = field(default_factory=dict)
    removed: set[bytes] = field(default_factory=set)

    def member(self, number: int, at_least: Role = Role.MEMBER) -> Identity:
        found = [user for user, entry in sorted(self.story.roster.items()) if entry.role >= at_least]
        return self.who[found[number % len(found)]]

    def lower(self, actor: Identity, number: int) -> Identity | None:
        role = self.story.roster[actor.user_id].role
        found = [user for user, entry in sorted(self.story.roster.items()) if entry.role < role]
        return self.who[found[number % len(found)]] if found else None

    def outsider(self, number: int) -> Identity | None:
        found = [user for user in sorted(self.who) if user not in self.story.roster and user not in self.banned]
        return self.who[found[number % len(found)]] if found else None

    def target(self, number: int, *kinds: Kind) -> Event | None:
        found = [event for event in self.live.values() if event.kind in kinds]
        return found[number % len(found)] if found else None

    def posted(self, event: Event) -> None:
        self.live[event.object_id] = event

    def changed_members(self) -> None:
        """Somebody has left, in whichever way."""
        self.is_due = True

    def joined(self) -> None:
        self.is_due = self.story.history == History.NONE


MESSAGES = (Kind.THREAD_POSTED, Kind.REPLY_POSTED, Kind.MEDIA_POSTED)


def talks(play: Play, a: int, b: int) -> None:
    author = play.member(a)
    thread = play.target(b, Kind.THREAD_POSTED)
    if play.is_due:
        return
    if thread is None or b % 4 == 0:
        play.posted(play.story.thread(author, f"title {a}", f"text {b}"))
    elif b % 4 == 1:
        play.posted(play.story.file(author, thread))
    else:
        play.posted(play.story.reply(author, thread, f"reply {a}"))


def annotates(play: Play, a: int, b: int) -> None:
    target = play.target(b, *MESSAGES, Kind.ANNOTATION_POSTED)
    if play.is_due or target is None:
        return
    author, act = play.member(a), (Edit, React, Unreact, Pin, Unpin)[b % 5]
    own = {Edit: {"text": f"edit {a}"}, React: {"emoji": "👍"}, Unreact: {"emoji": "👍"}}.get(act, {})
    play.posted(play.story.annotate(author, target, act, **own))


def deletes(play: Play, a: int, b: int) -> None:
    target = play.target(b, *MESSAGES, Kind.ANNOTATION_POSTED)
    if target is None:
        return
    actor = play.who[target.actor_id] if target.actor_id in play.story.roster else play.member(a, Role.ADMIN)
    if target.kind == Kind.MEDIA_POSTED and a % 2:
        play.story.by_relay(Kind.MEDIA_EXPIRED, target.object_id)
    elif target.kind == Kind.MEDIA_POSTED:
        play.story.delete_file(actor, target)
    else:
        play.story.delete(actor, target)
    del play.live[target.object_id]


def enters(play: Play, a: int, b: int) -> None:
    newcomer, admin = play.outsider(a), play.member(b, Role.ADMIN)
    if play.is_due or newcomer is None:
        return
    link = play.links[a % len(play.links)] if play.links else None
    if link is None or b % 3 == 0:
        play.story.admit(admin, newcomer)
    elif b % 3 == 1:
        play.story.admit(admin, newcomer, link)
    else:
        play.story.join(newcomer, link)
    play.joined()


def departs(play: Play, a: int, b: int) -> None:
    actor = play.member(a)
    if play.story.roster[actor.user_id].role == Role.OWNER:
        return
    if b % 2:
        play.story.leave(actor)
    else:
        play.story.by_relay(Kind.MEMBER_LEFT, actor.user_id)
    play.changed_members()


def removes(play: Play, a: int, b: int) -> None:
    actor = play.member(a, Role.ADMIN)
    user = play.lower(actor, b)
    if user is None:
        return
    is_ban = bool(b % 2)
    play.story.remove(actor, user, ban=is_ban)
    if is_ban:
        play.banned.add(user.user_id)
    play.links.clear()
    play.changed_members()


def unbans(play: Play, a: int, b: int) -> None:
    if play.banned:
        user_id = sorted(play.banned)[b % len(play.banned)]
        play.story.unban(play.member(a, Role.ADMIN), play.who[user_id])
        play.banned.discard(user_id)


def invites(play: Play, a: int, b: int) -> None:
    actor = play.member(a, Role.ADMIN)
    if play.links and b % 3 == 0:
        play.story.revoke(actor, play.links.pop(b % len(play.links)))
    elif not play.is_due:
        play.links.append(play.story.invite(actor))


def promotes(play: Play, a: int, b: int) -> None:
    actor = play.member(a, Role.ADMIN)
    user = play.lower(actor, b)
    is_owner = play.story.roster[actor.user_id].role == Role.OWNER
    if user is None:
        return
    if is_owner and a % 5 == 0:
        play.story.transfer(actor, user)
    else:
        play.story.role(actor, user, Role.ADMIN if is_owner and b % 2 else Role.MEMBER)


def renames(play: Play, a: int, b: int) -> None:
    if not play.is_due:
        play.story.rename(play.member(a, Role.ADMIN), f"name {b}")


def rekeys(play: Play, a: int, b: int) -> None:
    play.story.rekey(play.member(a, Role.MEMBER if play.is_due else Role.ADMIN))
    play.is_due = False


def replaces_keys(play: Play, a: int, b: int) -> None:
    actor = play.member(a)
    generation = play.generations[actor.user_id] = play.generations.get(actor.user_id, 0) + 1
    after = someone(NAMES[[one.user_id for one in EVERYBODY].index(actor.user_id)], generation, is_bot=actor.is_bot)
    play.story.replace_keys(actor, after)
    play.who[actor.user_id] = after
    play.changed_members()


Move = Callable[[Play, int, int], None]
MOVES: tuple[Move, ...] = (
    *(talks, talks, talks, annotates, annotates, enters, enters, rekeys, rekeys),
    *(deletes, departs, removes, unbans, invites, promotes, renames, replaces_keys),
)

numbers = st.integers(0, 59)
moves = st.lists(st.tuples(st.sampled_from(MOVES), numbers, numbers), min_size=3, max_size=30)
histories = st.sampled_from(History)


def played(history: History, made: list[tuple[Move, int, int]]) -> Play:
    play = Play(Story(history=history), {one.user_id: one for one in EVERYBODY})
    for move, a, b in made:
        move(play, a, b)
    return play


@calm
@given(histories, moves, numbers)
def test_whatever_is_right_leaves_no_finding(history: History, made: list[tuple[Move, int, int]], at: int) -> None:
    play = played(history, made)
    story = play.story
    reader = Reader(story.keys).take_all(story.events)
    assert reader.findings == []
    assert reader.problems == {}
    state = reader.log.state
    assert (reader.log.roster, state.key_epoch, state.rekey_due) == (story.roster, story.epoch, play.is_due)
    assert state.banned == play.banned
    assert {one for one, invite in state.invites.items() if not invite.is_revoked} == {x.invite_id for x in play.links}
    assert {
        event.object_id
        for event in story.events
        if event.kind in (*MESSAGES, Kind.ANNOTATION_POSTED)
        and (known := reader.log.index.by_seq(event.seq))
        and not known.erased_at
    } == set(play.live)
    assert state.tainted_at == 0

    with Store() as store:  # the same, with a restart on the way
        seq = at % (len(story.events) + 1)
        log, _ = story.log(story.events[:seq], store.index(story.group_id))
        log = Log.restore(log.save(), store.index(story.group_id))
        for event in story.events[seq:]:
            log.take(event)
        assert log.state == state


# ── whatever a relay alters ─────────────────────────────────────────────────────────────────────────────────────────

BYTES = (
    *("object_id", "actor_id", "thread_id", "target_id", "group_id"),
    "encrypted_title",
    "encrypted_body",
    "encrypted_metadata",
    "encryption_iv",
    "root",
    "statement",
    "signature",
)
BY_RELAY = (Kind.MEDIA_EXPIRED, Kind.MEMBER_LEFT, Kind.GROUP_DELETED)

Alteration = Callable[[Event, Story], Event]


def flipped(value: bytes, at: int) -> bytes:
    raw = bytearray(value)
    raw[at % len(raw)] ^= 1 << at % 8
    return bytes(raw)


def _flip(event: Event, name: str, at: int, other: int, source: Event) -> Event:
    value = getattr(event, name)
    return replace(event, **{name: flipped(value, at)}) if value else event


def _drop(event: Event, name: str, at: int, other: int, source: Event) -> Event:
    return replace(event, **{name: ZERO_ID if name in ("object_id", "actor_id", "group_id") else None})


def _take(event: Event, name: str, at: int, other: int, source: Event) -> Event:
    return replace(event, **{name: getattr(source, name)})


def _number(event: Event, name: str, at: int, other: int, source: Event) -> Event:
    new = {"kind": other % 25, "key_epoch": event.key_epoch + other % 3 - 1, "created_at": other, "size_bytes": other}
    number = sorted(new)[at % len(new)]
    return replace(event, **{number: new[number]})


def _blank(event: Event, name: str, at: int, other: int, source: Event) -> Event:
    return blank(event, erased=bool(at % 2))


def _flag(event: Event, name: str, at: int, other: int, source: Event) -> Event:
    return replace(event, erased=not event.erased)


def _elsewhere(event: Event, name: str, at: int, other: int, source: Event) -> Event:
    """Both of the fields that name a parent: one the true one, one another."""
    parent_id = event.thread_id or event.target_id
    names = ("thread_id", "target_id") if at % 2 else ("target_id", "thread_id")
    return replace(event, **{names[0]: parent_id, names[1]: source.object_id})


def _element(event: Event, name: str, at: int, other: int, source: Event) -> Event:
    """The same statement but for one element, under the signature of the first."""
    if event.statement is None:
        return event
    statement = statements.decode(event.statement)
    elements = asdict(statement)
    element = sorted(elements)[at % len(elements)]
    value = elements[element]
    new: Any = flipped(value, other) if isinstance(value, bytes) and value else not value
    if isinstance(value, int) and not isinstance(value, bool):
        new = max(value + other % 3 - 1, 0)
    altered = replace(statement, **{element: new})
    ids = {"object_id": altered.statement_id, "actor_id": altered.actor_id}
    return replace(event, statement=statements.encode(altered), key_epoch=altered.key_epoch, **ids)


ALTERED = {
    "flip a bit of": _flip,
    "leave out": _drop,
    "take from another event": _take,
    "another number": _number,
    "another element of the statement": _element,
    "withhold": _blank,
    "say erased": _flag,
    "put elsewhere": _elsewhere,
}


@st.composite
def alterations(draw: st.DrawFn) -> tuple[str, Alteration]:
    """What a relay does to one event, and how that is called."""
    how, name = draw(st.sampled_from(sorted(ALTERED))), draw(st.sampled_from(BYTES))
    at, other = draw(st.integers(0, 2**16)), draw(st.integers(0, 2**16))

    def alter(event: Event, story: Story) -> Event:
        return ALTERED[how](event, name, at, other, story.events[other % len(story.events)])

    return f"{how} {name} {at} {other}", alter


def view(reader: Reader) -> dict[str, Any]:
    """All that a member goes by. Not what the relay's clock says, and not a file's IV: a file's bytes tell of that."""
    state = reader.log.state
    posts = [replace(post, hash=b"", created_at=0, file_iv=b"", problem=None) for post in reader.board]
    erasures = {
        known.object_id: known.erased_at
        for seq in range(1, state.seq + 1)
        if (known := reader.log.index.by_seq(seq)) and known.erased_at
    }
    members = reader.log.roster, state.banned, state.invites, state.rekey_due
    return {"members": members, "keys": state.epochs, "name": state.name, "posts": posts, "erased": erasures}


def told(story: Story, events: list[Event]) -> Reader | None:
    """What a member makes of a log; None for one that they refuse."""
    try:
        return Reader(story.keys).take_all(events)
    except ChainBroken:
        return None


def is_noticed(reader: Reader | None, honest: Reader) -> bool:
    return reader is None or bool(reader.findings) or reader.problems.keys() != honest.problems.keys()


@settings(calm, max_examples=250)
@given(histories, moves, numbers, alterations())
def test_an_altered_event_is_noticed_or_changes_nothing(
    history: History, made: list[tuple[Move, int, int]], at: int, alteration: tuple[str, Alteration]
) -> None:
    """It is the last of the log here: nobody has yet said anything on top of it."""
    story = played(history, made).story
    seq = at % len(story.events) + 1
    event = story.events[seq - 1]
    altered = alteration[1](event, story)
    if event.kind in BY_RELAY and event.statement is None and altered.object_id != event.object_id:
        return  # which account is deleted, and when a file's time is over, is the relay's word
    events = story.events[:seq]
    honest, without = Reader(story.keys).take_all(events), Reader(story.keys).take_all(events[:-1])
    for fits in (True, False):
        reader = told(story, retold(events, lambda one: [altered if one.seq == seq else one], fits=fits))
        if not is_noticed(reader, honest):
            assert reader is not None
            is_hidden = altered.kind not in set(Kind)  # as if the relay had not taken it in the first place
            assert view(reader) == view(without if is_hidden else honest)


@settings(calm, max_examples=150)
@given(histories, moves, numbers, alterations())
def test_whatever_was_built_upon_can_be_altered_in_no_way(
    history: History, made: list[tuple[Move, int, int]], at: int, alteration: tuple[str, Alteration]
) -> None:
    """Somebody posts at the end: what they had seen is what everybody else must see."""
    play = played(history, made)
    story = play.story
    if play.is_due:
        story.rekey(play.member(0))
    seq = at % len(story.events) + 1
    story.thread(play.member(1), "the last one")
    altered = alteration[1](story.events[seq - 1], story)
    honest = Reader(story.keys).take_all(story.events)
    events = retold(story.events, lambda one: [altered if one.seq == seq else one])
    reader = told(story, events)
    if events[-1].hash != story.events[-1].hash:
        assert is_noticed(reader, honest)
    elif not is_noticed(reader, honest):
        assert reader is not None
        assert view(reader) == view(honest)
        assert [post.created_at for post in reader.board] == [post.created_at for post in honest.board]


@settings(calm, max_examples=100)
@given(histories, moves, numbers, numbers, st.sampled_from(["leave out", "repeat", "swap", "move"]))
def test_an_order_that_was_built_upon_stays(
    history: History, made: list[tuple[Move, int, int]], at: int, to: int, how: str
) -> None:
    play = played(history, made)
    story = play.story
    if play.is_due:
        story.rekey(play.member(0))
    events = list(story.events)
    first, second = at % len(events), to % len(events)
    last = story.thread(play.member(1), "the last one")
    match how:
        case "leave out":
            del events[first]
        case "repeat":
            events.insert(second, events[first])
        case "swap":
            events[first], events[second] = events[second], events[first]
        case _:
            events.insert(second, events.pop(first))
    if events == story.events[:-1]:
        return
    reader = told(story, retold([*events, last], lambda one: [one]))
    assert is_noticed(reader, Reader(story.keys).take_all(story.events))


def test_each_event_of_a_log_with_everything_can_be_left_out_unnoticed_by_nobody() -> None:
    story = everything()
    honest = Reader(story.keys).take_all(story.events)
    for left_out in story.events[:-1]:
        events = retold(story.events, lambda event, seq=left_out.seq: [] if event.seq == seq else [event])  # type: ignore[misc]
        reader = told(story, events)
        assert is_noticed(reader, honest), left_out

"""What an event says: opened at its place alone, by its author as they were then, on the log that all members have."""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from orbital_client.crypto import envelopes, primitives, wraps
from orbital_client.crypto.contents import MARKDOWN, Body, Edit, Head, Pin, React, Title
from orbital_client.crypto.envelopes import BUCKETS, Field, Place
from orbital_client.crypto.segments import stored_bytes
from orbital_client.crypto.wraps import Recipient
from orbital_client.errors import (
    BadSeal,
    CannotOpen,
    ForgedAuthor,
    Malformed,
    MissingKey,
    Rejected,
    UnknownVersion,
    Withheld,
    WrongKey,
)
from orbital_client.identity import Identity
from orbital_client.people import People
from orbital_client.replica import Replica
from orbital_client.store import Store
from orbital_client.timeline import Timeline
from orbital_client.trust.findings import WORDS, Finding, Flaw
from orbital_client.trust.index import MemoryIndex
from orbital_client.trust.keyring import Keyring
from orbital_client.trust.log import Log
from orbital_client.trust.opening import Opened, belongs, open_event, open_events
from orbital_client.wire import Client
from orbital_protocol import ZERO_HASH
from orbital_protocol.codes import History, Kind
from orbital_protocol.frames import Event
from tests.unit.trusting import (
    ANN,
    BOB,
    CARA,
    DAN,
    EVE,
    GROUP,
    T0,
    Reader,
    Story,
    blank,
    chained,
    company,
    digest,
    new_id,
    retold,
    someone,
)


def opened(story: Story, event: Event | None = None, *, keys: bool = True) -> Opened:
    """What the last event of a story says, or another one."""
    log, _ = story.log()
    keyring = Keyring(log, {epoch: key.secret for epoch, key in story.keys.items()} if keys else {})
    return open_event(log, keyring, event or story.events[-1])


def problem(story: Story, event: Event | None = None) -> CannotOpen:
    with pytest.raises(CannotOpen) as caught:
        opened(story, event)
    return caught.value


# ── what opens ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_each_kind_says_what_its_author_said() -> None:
    story = company()
    thread = story.thread(BOB, "Ubik", "Shall we read it?")
    said = opened(story)
    assert (said.title and said.title.text, said.body and said.body.text) == ("Ubik", "Shall we read it?")
    assert said.body is not None
    assert (said.body.sent_at, said.body.head, said.body.format) == (T0 + 6, Head(6, story.events[5].hash), "plain")
    assert (said.act, said.file) == (None, None)
    reply = story.reply(CARA, thread, body=Body(sent_at=1, head=story.head, text="**yes**", format=MARKDOWN))
    said = opened(story)
    assert said.body is not None
    assert (said.body.text, said.body.format, said.title, said.act, said.file) == (
        "**yes**",
        MARKDOWN,
        None,
        None,
        None,
    )
    story.annotate(CARA, reply, Edit, text="no")
    said = opened(story)
    assert isinstance(said.act, Edit)
    assert (said.act.text, said.title, said.body, said.file) == ("no", None, None, None)
    story.file(DAN, thread, length=70_000)
    said = opened(story)
    assert said.file is not None
    assert (said.file.name, said.file.size_bytes, said.title, said.body, said.act) == (
        "a file",
        70_000,
        None,
        None,
        None,
    )
    assert said.known.parent_id == thread.object_id


def test_what_was_erased_opens_as_nothing_with_or_without_a_key() -> None:
    story = company()
    thread = story.thread(BOB)
    event = story.reply(CARA, thread)
    seq = story.delete(CARA, event).seq
    for shown in (event, blank(event)):
        for keys in (True, False):
            said = opened(story, shown, keys=keys)
            assert said.known.erased_at == seq
            assert (said.title, said.body, said.act, said.file) == (None, None, None, None)


def test_only_posts_of_the_log_are_opened() -> None:
    story = company()
    thread = story.thread(BOB)
    log, _ = story.log()
    keyring = Keyring(log, {1: story.keys[1].secret})
    for event in (story.events[0], replace(thread, seq=story.head.seq + 1)):
        with pytest.raises(ValueError, match="only what the log has as a post"):
            open_event(log, keyring, event)


def test_what_was_not_to_be_posted_is_not_shown() -> None:
    story = company()
    story.leave(DAN)
    event = story.thread(ANN)
    rejected = problem(story)
    assert isinstance(rejected, Rejected)
    assert rejected.finding == Finding(Flaw.NOT_ALLOWED, GROUP, event.seq, ANN.user_id, "it was not to be posted")
    assert str(rejected) == rejected.finding.text


def test_each_of_several_is_opened_or_has_a_problem_of_its_own() -> None:
    story = company()
    thread = story.thread(BOB, "Ubik", "Shall we read it?")
    cases: list[tuple[Event, object]] = [
        (thread, "Shall we read it?"),
        (story.reply(CARA, thread, "yes"), "yes"),
        (story.reply(CARA, thread, "no", signer=EVE), ForgedAuthor),
        (story.reply(DAN, thread, body=Body(sent_at=1, head=Head(4, digest("another")), text="?")), Rejected),
        (blank(story.reply(DAN, thread, "kept back")), Withheld),
        (story.reply(BOB, thread, "then"), "then"),
    ]
    story.delete(BOB, erased := story.reply(BOB, thread, "oh"))
    story.rekey(ANN)
    cases += [(erased, None), (story.reply(BOB, thread, "later"), MissingKey)]
    log, _ = story.log()
    keyring = Keyring(log, {1: story.keys[1].secret})
    found = open_events(log, keyring, [event for event, _ in cases])
    assert [type(is_) if isinstance(is_, CannotOpen) else is_.body and is_.body.text for is_ in found] == [
        expected for _, expected in cases
    ]
    assert open_events(log, keyring, []) == []


# ── keys ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_key_that_is_missing_heals_when_it_comes() -> None:
    story = company()
    before = story.thread(BOB)
    story.leave(DAN)
    story.rekey(CARA)
    after = story.thread(BOB)
    log, _ = story.log()
    keyring = Keyring(log)
    for event, epoch in ((before, 1), (after, 2)):
        with pytest.raises(MissingKey, match=rf"the group's key of that time \(epoch {epoch}\)") as caught:
            open_event(log, keyring, event)
        assert caught.value.epoch == epoch
    keyring.add(story.keys[1])
    assert open_event(log, keyring, before).body is not None
    with pytest.raises(MissingKey):
        open_event(log, keyring, after)
    keyring.add(story.keys[2])
    assert open_event(log, keyring, after).body is not None


def test_without_shared_history_what_came_before_one_stays_closed() -> None:
    story = company(history=History.NONE)
    before = story.thread(BOB)
    story.admit(ANN, EVE)
    story.rekey(ANN)
    after = story.thread(BOB)
    log, _ = story.log()
    eves = Keyring(log)
    eves.add(story.keys[story.epoch])
    assert open_event(log, eves, after).body is not None
    with pytest.raises(MissingKey):
        open_event(log, eves, before)


def test_an_author_is_who_they_were_at_that_seq() -> None:
    story = company()
    before = story.thread(CARA)
    new = someone("cara", 1)
    story.replace_keys(CARA, new)
    story.rekey(ANN)
    after = story.thread(new)
    story.thread(CARA)
    assert isinstance(problem(story), ForgedAuthor)
    assert opened(story, before).body is not None
    assert opened(story, after).body is not None
    story.remove(ANN, CARA)
    assert opened(story, after).body is not None, "who leaves has said what they said"


# ── what does not open ──────────────────────────────────────────────────────────────────────────────────────────────


def test_another_author_another_place_and_other_bytes() -> None:
    story = company()
    thread, other = story.thread(BOB), story.thread(BOB)
    reply = story.reply(CARA, thread)
    assert reply.encrypted_body is not None
    flipped = bytearray(reply.encrypted_body)
    flipped[50] ^= 1
    for forged in (
        replace(reply, encrypted_body=bytes(flipped)),
        replace(reply, actor_id=DAN.user_id),
        replace(reply, thread_id=other.object_id),
        replace(reply, object_id=new_id("another")),
        replace(reply, encrypted_body=other.encrypted_body),
        replace(other, encrypted_body=other.encrypted_title),
        replace(reply, kind=Kind.ANNOTATION_POSTED, target_id=thread.object_id),
    ):
        events = retold(story.events, lambda e, to=forged: [to] if e.seq == to.seq else [e])  # type: ignore[misc]
        reader = Reader(story.keys).take_all(events)
        assert reader.findings == []
        assert type(reader.problems[forged.seq]) is BadSeal
    story.reply(CARA, thread, signer=EVE)
    assert type(problem(story)) is ForgedAuthor


@pytest.mark.parametrize("name", ["encrypted_title", "encrypted_body", "encrypted_metadata"])
def test_what_is_absent_though_nobody_deleted_it_is_withheld(name: str) -> None:
    story = company()
    thread = story.thread(BOB)
    events = {"encrypted_title": thread, "encrypted_body": story.reply(CARA, thread)}
    event = events.get(name) or story.file(DAN, thread)
    for shown in (blank(event), blank(event, erased=False), replace(event, **{name: None})):
        found = problem(story, shown)
        assert isinstance(found, Withheld)
        assert str(found) == WORDS[Flaw.WITHHELD]


def test_a_threads_body_names_its_title() -> None:
    story = company()
    for title_hash in (None, digest("another")):
        body = Body(sent_at=1, head=story.head, text="a text", title_hash=title_hash)
        story.thread(BOB, body=body)
        found = problem(story)
        assert type(found) is BadSeal
        assert "the title is not the one" in str(found)


def test_a_file_is_the_one_that_its_author_describes() -> None:
    story = company()
    thread = story.thread(BOB)
    story.file(DAN, thread)
    opened(story)
    for altered in ({"root": digest("another")}, {"size_bytes": stored_bytes(70_000)}):
        story.file(DAN, thread, **altered)
        found = problem(story)
        assert type(found) is Malformed
        assert "not the one that its author describes" in str(found)


KINDS: dict[str, Callable[..., Event]] = {
    "thread": lambda story, **altered: story.thread(BOB, **altered),
    "reply": lambda story, **altered: story.reply(CARA, opening(story), **altered),
    "annotation": lambda story, **altered: story.annotate(CARA, opening(story), React, emoji="!", **altered),
    "file": lambda story, **altered: story.file(DAN, opening(story), **altered),
}


def in_thread() -> Story:
    """A group in which Bob has opened a thread."""
    story = company()
    story.thread(BOB)
    return story


def opening(story: Story) -> Event:
    return next(event for event in story.events if event.kind == Kind.THREAD_POSTED)


@pytest.mark.parametrize("kind", KINDS)
def test_whoever_was_shown_another_log_is_noticed(kind: str) -> None:
    story = in_thread()
    for head in (
        Head(4, digest("another")),
        Head(0, digest("another")),
        Head(story.head.seq, ZERO_HASH),
        Head(4, story.events[4].hash),
    ):
        event = KINDS[kind](story, head=head)
        found = problem(story)
        assert isinstance(found, Rejected)
        assert found.finding == Finding(Flaw.FORK, GROUP, event.seq, event.actor_id)
        story.events.pop()
    for head in (story.head, Head(1, story.events[0].hash), Head(0, ZERO_HASH)):
        KINDS[kind](story, head=head)
        opened(story)
        story.events.pop()


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_lies_before_what_was_said_on_it(kind: str) -> None:
    """The hash of an event can't be known before it; what is said on one that is yet to come is said on another log."""
    story = in_thread()
    event = KINDS[kind](story, head=Head(story.head.seq + 1, digest("another")))
    log, _ = story.log()
    keyring = Keyring(log, {1: story.keys[1].secret})
    known = log.index.by_seq(event.seq)
    assert known is not None
    index = MemoryIndex()
    for seq in range(1, event.seq):
        index.add(log.index.by_seq(seq))  # type: ignore[arg-type]
    index.add(replace(known, hash=digest("another")))
    log.index = index
    with pytest.raises(Rejected) as caught:
        open_event(log, keyring, event)
    assert caught.value.finding.flaw is Flaw.FORK


def test_a_thread_may_be_forked_by_its_title_or_its_body_alone() -> None:
    story = company()
    wrong = Head(4, digest("another"))
    story.thread(BOB, heading=Title(sent_at=1, head=wrong, text="a title"))
    assert isinstance(problem(story), Rejected)


# ── of another version, or nothing at all ───────────────────────────────────────────────────────────────────────────


def packed(**values: Any) -> bytes:
    return msgspec.msgpack.encode(values)


@pytest.mark.parametrize(
    ("act", "problem_type"),
    [
        ({"act": "dance"}, UnknownVersion),
        ({"act": 7}, Malformed),
        ({}, Malformed),
        ({"act": "react"}, Malformed),
        ({"act": "react", "emoji": ""}, Malformed),
        ({"act": "react", "emoji": "x" * 65}, Malformed),
        ({"act": "edit", "text": 7}, Malformed),
    ],
)
def test_acts_that_can_not_be_read(act: dict[str, Any], problem_type: type[CannotOpen]) -> None:
    story = in_thread()
    said = {"sent_at": 1, "head": [story.head.seq, story.head.hash]}
    story.annotate(CARA, story.events[-1], packed(**said | act))
    assert type(problem(story)) is problem_type


def test_what_a_later_client_adds_is_passed_over() -> None:
    story = in_thread()
    said = {"sent_at": 1, "head": [story.head.seq, story.head.hash]}
    story.annotate(CARA, story.events[-1], packed(**said, act="pin", colour="red"))
    assert isinstance(opened(story).act, Pin)


@pytest.mark.parametrize("raw", [b"\0", b"\xc1", b"\x80", b"\x91\x01", b"\xff" * 30, packed(text="a reply")])
def test_contents_that_are_none(raw: bytes) -> None:
    story = in_thread()
    story.reply(CARA, opening(story), body=raw)
    assert type(problem(story)) is Malformed


@pytest.mark.parametrize(
    ("envelope", "problem_type"), [(b"", Malformed), (b"\x02" * 285, UnknownVersion), (b"\x01", Malformed)]
)
def test_envelopes_that_are_none(envelope: bytes, problem_type: type[CannotOpen]) -> None:
    story = in_thread()
    story.append(replace(story.reply(CARA, story.events[-1]), object_id=new_id("another"), encrypted_body=envelope))
    assert type(problem(story)) is problem_type


def test_an_envelope_tells_its_bucket_and_nothing_more_of_its_length() -> None:
    story = in_thread()
    sizes = {}
    for length in (0, 1, 50, 800, 3_800, 16_000, 65_000):
        event = story.reply(CARA, opening(story), "x" * length)
        assert event.encrypted_body is not None
        sizes[length] = len(event.encrypted_body) - primitives.OVERHEAD_BYTES
        said = opened(story).body
        assert said is not None
        assert len(said.text) == length
    assert list(sizes.values()) == [256, 256, 256, *BUCKETS[1:]]


def test_padding_that_carries_something_is_refused() -> None:
    story = in_thread()
    object_id = new_id("padded")
    place = Place(Kind.REPLY_POSTED, Field.BODY, GROUP, CARA.user_id, 1, object_id, opening(story).object_id)
    content = packed(sent_at=1, head=[story.head.seq, story.head.hash], text="a reply")
    signature = CARA.signing.sign(envelopes.CONTENT_PREFIX + place.aad + content)
    filled = signature + len(content).to_bytes(4, "big") + content
    key = story.keys[1].content_key(place.kind, place.author_id)

    def reply(plaintext: bytes) -> Event:
        sealed = primitives.seal(key, plaintext, place.aad)
        made = story.reply(CARA, opening(story))
        story.events.pop()
        return story.append(replace(made, object_id=object_id, encrypted_body=sealed))

    reply(filled.ljust(256, b"\0"))
    assert opened(story).body is not None
    for plaintext in (
        filled.ljust(255, b"\0") + b"\1",
        filled.ljust(1024, b"\0"),
        filled.ljust(257, b"\0"),
        filled,
        signature + b"\0\0\1\0" + content.ljust(188, b"\0"),
    ):
        story.events.pop()
        reply(plaintext)
        assert type(problem(story)) is Malformed


# ── the log's own event ─────────────────────────────────────────────────────────────────────────────────────────────


def test_an_event_belongs_to_the_log_only_as_it_was_verified() -> None:
    story = in_thread()
    reply, file = story.reply(CARA, opening(story)), story.file(DAN, opening(story))
    log, _ = story.log()
    assert all(belongs(log, event) for event in story.events)
    assert belongs(log, blank(reply))
    assert belongs(log, blank(file, erased=False))
    previous = story.events[reply.seq - 2].hash
    for forged in (
        replace(reply, encrypted_body=b"another"),
        replace(reply, hash=digest("another")),
        replace(reply, seq=reply.seq + 1),
        replace(reply, seq=99),
        replace(reply, actor_id=DAN.user_id),
        replace(reply, created_at=1),
        replace(reply, content_hash=digest("another")),
        replace(reply, group_id=new_id("another")),
        replace(reply, kind=300),
        replace(blank(reply), field_hashes=[digest("another")]),
        chained(replace(reply, encrypted_body=b"another"), reply.seq, previous),
        replace(chained(replace(reply, encrypted_body=b"another"), reply.seq, previous), hash=reply.hash),
    ):
        assert not belongs(log, forged), forged


# ── wraps ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def wrapped_by(
    who: Identity, story: Story, epoch: int = 1, *, to: Identity = CARA, as_id: bytes | None = None
) -> bytes:
    recipient = Recipient(to.user_id, to.rsa_thumbprint)
    return wraps.wrap(story.keys[epoch], recipient, to.rsa.public_key(), as_id or who.user_id, who.signing)


def test_a_wrap_is_taken_from_whoever_is_or_was_a_member() -> None:
    story = company()
    story.replace_keys(DAN, someone("dan", 1))
    story.rekey(ANN)
    story.remove(ANN, BOB)
    log, _ = story.log()
    keyring = Keyring(log)
    for who, epoch in ((ANN, 1), (ANN, 2), (DAN, 1), (someone("dan", 1), 2), (BOB, 1), (CARA, 1)):
        assert keyring.unwrap(CARA, epoch, wrapped_by(who, story, epoch)) == story.keys[epoch]
    assert len(keyring) == 0, "it is not taken in before the log's commitment was checked"


def test_a_wrap_by_others_or_for_others_is_not_taken() -> None:
    story = company()
    story.rekey(ANN)
    log, _ = story.log()
    keyring = Keyring(log)
    cases: list[tuple[bytes, int, type[CannotOpen]]] = [
        (wrapped_by(EVE, story), 1, WrongKey),
        (wrapped_by(EVE, story, as_id=ANN.user_id), 1, ForgedAuthor),
        (wrapped_by(ANN, story, to=DAN), 1, ForgedAuthor),
        (wrapped_by(ANN, story, 1), 2, ForgedAuthor),
        (wrapped_by(ANN, story)[:-1], 1, ForgedAuthor),
        (wrapped_by(ANN, story)[:80], 1, Malformed),
        (b"", 1, Malformed),
        (b"\x02" + wrapped_by(ANN, story)[1:], 1, UnknownVersion),
    ]
    for wrapped, epoch, problem_type in cases:
        with pytest.raises(CannotOpen) as caught:
            keyring.unwrap(CARA, epoch, wrapped)
        assert type(caught.value) is problem_type
    with pytest.raises(WrongKey, match="somebody wrapped who has not been in the group"):
        keyring.unwrap(CARA, 1, wrapped_by(EVE, story))


def test_a_wrap_of_an_old_key_shown_as_the_current_one_is_not_taken() -> None:
    """Ann wraps the old key for the new epoch: only the commitment tells."""
    story = company()
    story.rekey(ANN)
    log, _ = story.log()
    keyring = Keyring(log)
    old = story.keys[1]
    shown = type(old)(GROUP, 2, old.secret)
    recipient = Recipient(CARA.user_id, CARA.rsa_thumbprint)
    wrapped = wraps.wrap(shown, recipient, CARA.rsa.public_key(), ANN.user_id, ANN.signing)
    with pytest.raises(WrongKey):
        keyring.add(keyring.unwrap(CARA, 2, wrapped))
    assert len(keyring) == 0


async def test_what_lacks_its_key_comes_again_once_its_own_is_there() -> None:
    story = company(history=History.NONE)
    before = story.thread(BOB)
    story.leave(DAN)
    story.rekey(CARA)
    after = story.thread(BOB)
    client = Client("ws://127.0.0.1:9")
    with Store() as store:
        replica = Replica(client, store, People(client, store), Log(GROUP, store.index(GROUP)), {})
        for event in story.events:
            replica.take(event)
        reading = Timeline(client, replica).follow(before.seq - 1)
        async with asyncio.timeout(5):
            first = await anext(reading)
            again = []
            for epoch in (after.key_epoch, before.key_epoch):
                replica.keyring.add(story.keys[epoch])
                again.append(await anext(reading))
        assert [read.event for read in first] == story.events[before.seq - 1 :]
        assert [isinstance(read.problem, MissingKey) for read in first] == [True, False, False, True]
        assert [[read.event for read in reads] for reads in again] == [[after], [before]]
        assert all(read.opened for reads in again for read in reads)


# ── what is kept back is a finding ──────────────────────────────────────────────────────────────────────────────────


async def test_what_is_withheld_is_told_once_and_is_not_where_it_was_deleted_meanwhile() -> None:
    story = in_thread()
    first, second = story.reply(CARA, opening(story)), story.reply(CARA, opening(story))
    client = Client("ws://127.0.0.1:9")
    with Store() as store:
        log, _ = story.log(index=store.index(GROUP))
        replica = Replica(client, store, People(client, store), log, {1: story.keys[1].secret})
        caught_up: list[Event] = []

        async def catch_up() -> None:
            for event in caught_up:
                replica.take(event)

        replica.catch_up = catch_up  # type: ignore[method-assign]
        timeline = Timeline(client, replica)
        caught_up.append(story.delete(CARA, second))
        of_thread, of_second = await timeline.read([opening(story), blank(second)])
        assert of_thread.opened is not None
        assert of_thread.opened.body is not None
        assert of_second.opened is not None
        assert (of_second.opened.known.erased_at, list(replica.findings)) == (story.head.seq, [])
        caught_up.clear()
        for _ in range(2):
            [read] = await timeline.read([blank(first)])
            assert isinstance(read.problem, Withheld)
        assert list(replica.findings) == [Finding(Flaw.WITHHELD, GROUP, first.seq, CARA.user_id)]

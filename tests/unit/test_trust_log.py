"""A group's log as a member checks it: what it comes to, how it goes on after a restart, and under which keys."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from orbital_client.crypto.contents import Pin, React
from orbital_client.errors import ChainBroken, Malformed, WrongKey
from orbital_client.identity import Identity
from orbital_client.store import Store
from orbital_client.trust.findings import WORDS, Finding, Flaw
from orbital_client.trust.index import Index, MemoryIndex
from orbital_client.trust.keyring import Keyring
from orbital_client.trust.log import Log
from orbital_client.trust.state import Change, State
from orbital_protocol import ZERO_HASH, ZERO_ID
from orbital_protocol.codes import History, Kind, Role
from orbital_protocol.frames import Event
from orbital_protocol.statements import GroupRekeyed, MemberRole, RosterEntry
from tests.protocol.vectors import load
from tests.unit.trusting import (
    ANN,
    BOB,
    CARA,
    DAN,
    EVE,
    GROUP,
    LINK_ID,
    ROBOT,
    T0,
    Link,
    Reader,
    Story,
    company,
    digest,
    everything,
    new_id,
    retold,
    someone,
)

NAMES = {
    Kind.THREAD_POSTED: ("encrypted_title", "encrypted_body"),
    Kind.REPLY_POSTED: ("encrypted_body",),
    Kind.ANNOTATION_POSTED: ("encrypted_body",),
    Kind.MEDIA_POSTED: ("encrypted_metadata", "encryption_iv", "size_bytes", "root"),
}

# ── the vectors ─────────────────────────────────────────────────────────────────────────────────────────────────────


def of_vectors() -> list[Event]:
    """The log of chain.json as its members get it."""
    file = load("chain")
    return [_event(bytes.fromhex(file["group_id"]), row) for row in file["events"]]


def _event(group_id: bytes, row: dict[str, Any]) -> Event:
    names = NAMES.get(row["kind"], ("statement", "signature"))
    fields: dict[str, Any] = dict(zip(names, (bytes.fromhex(field) for field in row["fields"]), strict=False))
    if "size_bytes" in fields:
        fields["size_bytes"] = int.from_bytes(fields["size_bytes"], "big")
    if row["parent_id"] != ZERO_ID.hex():
        parent = "target_id" if row["kind"] == Kind.ANNOTATION_POSTED else "thread_id"
        fields[parent] = bytes.fromhex(row["parent_id"])
    ids: dict[str, Any] = {name: bytes.fromhex(row[name]) for name in ("object_id", "actor_id", "content_hash", "hash")}
    numbers: dict[str, Any] = {name: row[name] for name in ("seq", "kind", "key_epoch", "created_at")}
    return Event(group_id=group_id, **ids, **numbers, **fields)


def test_the_vectors_log_is_sound_and_has_their_roster_at_every_seq() -> None:
    events = of_vectors()
    log = Log(events[0].group_id, MemoryIndex())
    for event, row in zip(events, load("chain")["events"], strict=True):
        assert log.take(event).finding is None, row["name"]
        roster = {
            bytes.fromhex(entry["user_id"]): RosterEntry(
                bytes.fromhex(entry["user_id"]),
                entry["role"],
                bytes.fromhex(entry["signing_key"]),
                bytes.fromhex(entry["rsa_thumbprint"]),
                entry["is_bot"],
            )
            for entry in row["roster"]
        }
        assert log.roster == roster, row["name"]
        assert (log.position.seq, log.position.hash.hex()) == (row["seq"], row["hash"])
    assert (log.key_epoch, log.state.is_deleted, log.state.tainted_at) == (4, True, 0)


# ── what a log comes to ─────────────────────────────────────────────────────────────────────────────────────────────


def test_everything_that_there_is_leaves_no_finding() -> None:
    story = everything()
    assert {event.kind for event in story.events} == set(Kind)
    reader = Reader(story.keys).take_all(story.events)
    assert (reader.findings, reader.problems) == ([], {})
    assert reader.log.roster == story.roster
    assert set(reader.log.roster) == {BOB.user_id, ROBOT.user_id}
    assert reader.log.roster[ROBOT.user_id].is_bot
    assert reader.log.roster[BOB.user_id].role == Role.OWNER


def test_another_groups_log_is_not_this_ones() -> None:
    log = Log(new_id("another group"), MemoryIndex())
    with pytest.raises(ChainBroken, match="an event of another group"):
        log.take(everything().events[0])
    assert (log.group_id, log.position.group_id, log.roster) == (new_id("another group"), new_id("another group"), {})


def test_names_and_keys_are_those_of_the_last_statement() -> None:
    story = company()
    log, _ = story.log()
    assert (log.state.name.hash, log.state.name.author_id, log.state.name.epoch) == (
        digest("name", 1),
        ANN.user_id,
        1,
    )
    assert log.state.epoch(1) is not None
    assert log.state.epoch(2) is None
    assert log.state.epoch(0) is None
    log.take(story.rename(BOB, "tea"))
    assert (log.state.name.hash, log.state.name.author_id, log.state.name.epoch) == (
        digest("name", "tea"),
        BOB.user_id,
        1,
    )
    rekey = story.rekey(ANN)
    statement = log.take(rekey).statement
    assert isinstance(statement, GroupRekeyed)
    assert (log.state.name.hash, log.state.name.author_id, log.state.name.epoch) == (
        digest("name", 2),
        ANN.user_id,
        2,
    )
    epoch = log.state.epoch(2)
    assert epoch is not None
    assert (epoch.seq, epoch.commitment, epoch.previous_key) == (
        rekey.seq,
        story.keys[2].commitment,
        statement.previous_key,
    )
    log.take(story.rename(ANN, "coffee"))
    assert log.state.name.epoch == 2


def test_what_makes_a_rekey_due_and_what_ends_that() -> None:
    story = company()
    log, _ = story.log()
    due = []
    dan = someone("dan", 1)
    acts: list[Callable[[], Event]] = [
        lambda: story.admit(ANN, EVE),
        lambda: story.leave(EVE),
        lambda: story.rekey(DAN),
        lambda: story.role(ANN, BOB, Role.MEMBER),
        lambda: story.remove(ANN, CARA),
        lambda: story.rekey(ANN),
        lambda: story.replace_keys(DAN, dan),
        lambda: story.rekey(dan),
        lambda: story.by_relay(Kind.MEMBER_LEFT, DAN.user_id),
    ]
    for act in acts:
        step = log.take(act())
        assert step.finding is None
        due.append(log.state.rekey_due)
    assert due == [False, True, False, False, True, False, True, False, True]


def test_invites_are_counted_and_end_with_a_removal() -> None:
    story = company()
    log, _ = story.log()
    other = story.invite(ANN, max_uses=3, expires_at=T0 * 2)
    log.take(story.events[-1])
    log.take(story.join(EVE, other))
    log.take(story.admit(ANN, ROBOT, other))
    invite = log.state.invites[other.invite_id]
    assert (invite.created_by, invite.uses, invite.max_uses, invite.expires_at, invite.is_revoked) == (
        ANN.user_id,
        2,
        3,
        T0 * 2,
        False,
    )
    assert log.state.invites[LINK_ID].uses == 1
    log.take(story.revoke(BOB, Link()))
    assert [invite.is_revoked for invite in log.state.invites.values()] == [True, False]
    log.take(story.remove(ANN, EVE))
    assert all(invite.is_revoked for invite in log.state.invites.values())
    assert log.state.banned == set()
    log.take(story.remove(ANN, DAN, ban=True))
    assert log.state.banned == {DAN.user_id}
    log.take(story.unban(ANN, DAN))
    assert log.state.banned == set()


def test_somebody_is_at_a_seq_what_the_events_before_it_made_of_them() -> None:
    story = company()
    joined = next(event.seq for event in story.events if event.actor_id == CARA.user_id)
    new = someone("cara", 1)
    replaced = story.replace_keys(CARA, new).seq
    removed = story.remove(BOB, CARA).seq
    story.rekey(ANN)
    story.invite(ANN, invite_id=new_id("again"))
    back = story.join(new, Link(new_id("again"))).seq
    promoted = story.role(ANN, CARA, Role.ADMIN).seq
    log, findings = story.log()
    assert findings == []

    def key_at(seq: int) -> bytes | None:
        entry = log.state.member_at(CARA.user_id, seq)
        return entry.signing_key if entry else None

    assert key_at(joined) is None
    assert key_at(joined + 1) == key_at(replaced) == CARA.signing_key
    assert key_at(replaced + 1) == key_at(removed) == new.signing_key
    assert key_at(removed + 1) is key_at(back) is None
    assert key_at(back + 1) == new.signing_key
    assert [log.role_at(CARA.user_id, seq) for seq in (back, promoted, promoted + 1)] == [0, 1, 2]
    assert log.role_at(EVE.user_id, promoted) == 0
    assert log.state.member_at(EVE.user_id, promoted) is None
    assert log.state.signing_keys(CARA.user_id) == [new.signing_key, CARA.signing_key]
    assert log.state.signing_keys(EVE.user_id) == []
    story.leave(new)
    log, _ = story.log()
    last = log.state.last_known(CARA.user_id)
    assert log.state.member(CARA.user_id) is None
    assert last is not None
    assert (last.signing_key, last.role) == (new.signing_key, Role.ADMIN)
    assert log.state.last_known(EVE.user_id) is None


def test_a_state_has_a_change_only_where_somebody_changed() -> None:
    story = company()
    log, _ = story.log()
    assert [change.seq for change in log.state.members[BOB.user_id]] == [2, 3]
    assert [change.seq for change in log.state.members[ANN.user_id]] == [1]


# ── going on ────────────────────────────────────────────────────────────────────────────────────────────────────────


def forged_rekey() -> Story:
    """A rekey that doesn't count, after which the relay goes on under a key that nobody has."""
    story = company()
    story.thread(ANN)
    story.rekey(ANN, signer=EVE)
    story.thread(BOB, key_epoch=2)
    story.leave(DAN)
    return story


def refused_rekey() -> Story:
    """A rekey that doesn't count, after which the relay goes on under the key before."""
    story = company()
    story.rekey(ANN, signer=EVE, counts=False)
    story.thread(BOB)
    return story


def troubled() -> Story:
    """A log in which much does not count."""
    story = company()
    thread = story.thread(EVE)
    story.reply(ANN, thread)
    story.role(CARA, CARA, Role.ADMIN, counts=False)
    story.remove(BOB, ANN, counts=False)
    story.thread(BOB)
    story.by_relay(Kind.MEDIA_EXPIRED, thread.object_id)
    story.rekey(ANN)
    story.leave(DAN)
    story.rename(ANN, counts=False)
    story.rekey(CARA)
    story.delete(BOB, story.reply(CARA, story.thread(BOB)))
    return story


@pytest.mark.parametrize("story", [everything(), troubled(), forged_rekey()], ids=["everything", "troubled", "forged"])
@pytest.mark.parametrize("kept", ["memory", "store"])
def test_a_log_goes_on_after_a_restart_at_any_event(story: Story, kept: str) -> None:
    whole, _ = story.log()
    for seq in range(len(story.events) + 1):
        store = Store()
        index: Index = MemoryIndex() if kept == "memory" else store.index(GROUP)
        log, findings = story.log(story.events[:seq], index)
        again = Log.restore(log.save(), index)
        assert (again.position, again.roster, again.key_epoch) == (log.position, log.roster, log.key_epoch)
        more = [step.finding for event in story.events[seq:] if (step := again.take(event)).finding]
        assert findings + more == story.log()[1]
        assert again.state == whole.state
        assert [again.index.by_seq(at) for at in range(seq + 9)] == [whole.index.by_seq(at) for at in range(seq + 9)]
        store.close()


def test_an_epoch_that_was_never_in_force_is_refused_after_a_restart_too() -> None:
    story = company()
    log, _ = story.log()
    ahead = story.thread(ANN, key_epoch=2)
    for member in (log, Log.restore(log.save(), log.index)):
        with pytest.raises(ChainBroken, match="key epoch 2 where 1 is in force"):
            member.take(ahead)


def test_what_is_stored_of_a_log_may_be_unreadable() -> None:
    log, _ = company().log()
    for raw in (b"", b"\xc1", log.save()[:-1], msgspec.msgpack.encode([1, 2, 3])):
        with pytest.raises(Malformed, match="stored of a group"):
            Log.restore(raw, MemoryIndex())


def test_a_copy_of_a_state_does_not_change_with_it() -> None:
    story = company()
    log, _ = story.log()
    copy = log.state.copy()
    assert copy == log.state
    log.take(story.remove(ANN, DAN, ban=True))
    assert copy != log.state
    assert not copy.invites[LINK_ID].is_revoked
    assert State(GROUP).members is not State(GROUP).members


def test_a_roster_that_was_handed_out_stays_as_it_was() -> None:
    story = company()
    log, _ = story.log()
    before = log.roster
    assert log.roster is before, "it is made once"
    log.take(story.thread(ANN))
    assert log.roster is before
    log.take(story.leave(DAN))
    assert DAN.user_id in before
    assert DAN.user_id not in log.roster


def test_a_log_counts_its_changes() -> None:
    story = company()
    log, _ = story.log()
    changes = log.changes
    assert changes == len(story.events)
    log.take(story.thread(ANN))
    log.take(story.rename(DAN))
    assert log.changes == changes
    log.take(story.rename(BOB))
    assert log.changes == changes + 1


def test_advance_returns_what_counts() -> None:
    story = company()
    log, _ = story.log()
    assert isinstance(log.advance(story.role(ANN, DAN, Role.ADMIN)), MemberRole)
    assert log.advance(story.role(CARA, DAN, Role.MEMBER)) is None
    assert log.role_at(DAN.user_id, 99) == Role.ADMIN


# ── the first change that should not be there ───────────────────────────────────────────────────────────────────────


def test_a_log_is_tainted_by_its_first_forged_change_and_stays_so() -> None:
    story = company()
    log, _ = story.log()
    assert log.take(story.thread(EVE)).finding is not None
    assert log.state.tainted_at == 0, "a post that doesn't count harms nobody"
    first = story.rename(DAN)
    assert log.take(first).finding is not None
    assert log.state.tainted_at == first.seq
    assert log.take(story.by_relay(Kind.MEMBER_LEFT, EVE.user_id)).finding is not None
    assert log.take(story.rename(BOB)).finding is None, "what is right counts all the same"
    assert log.state.name.hash == digest("name", "")
    assert log.state.tainted_at == first.seq
    assert Log.restore(log.save(), log.index).state.tainted_at == first.seq


@pytest.mark.parametrize(
    ("kind", "who"), [(Kind.MEMBER_LEFT, EVE), (Kind.GROUP_DELETED, BOB), (Kind.MEDIA_EXPIRED, EVE)]
)
def test_the_relays_own_events_taint_too(kind: Kind, who: Identity) -> None:
    story = company()
    story.by_relay(kind, who.user_id)
    log, _ = story.log()
    assert log.state.tainted_at == story.head.seq


# ── keys ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_after_a_removal_nothing_is_taken_under_the_key_before() -> None:
    story = company()
    story.remove(BOB, DAN)
    log, _ = story.log()
    assert log.take(story.thread(ANN)).finding == Finding(Flaw.REKEY_DUE, GROUP, story.head.seq, ANN.user_id)
    log.take(story.rekey(CARA))
    assert log.take(story.thread(ANN)).finding is None
    with pytest.raises(ChainBroken, match="key epoch 1 where 2 is in force"):
        log.take(story.thread(ANN, key_epoch=1))


def test_a_rekey_that_is_withheld_breaks_the_chain() -> None:
    story = company()
    story.rekey(ANN)
    story.thread(BOB)
    told = retold(story.events, lambda event: [] if event.kind == Kind.GROUP_REKEYED else [event])
    with pytest.raises(ChainBroken, match="key epoch 2 where 1 is in force"):
        story.log(told)


def test_under_a_key_of_a_rekey_that_does_not_count_nothing_does() -> None:
    story = forged_rekey()
    _, findings = story.log(story.events[:-1])
    assert [(finding.flaw, finding.seq) for finding in findings] == [
        (Flaw.FORGED_STATEMENT, story.head.seq - 2),
        (Flaw.WRONG_EPOCH, story.head.seq - 1),
    ]
    assert findings[1].detail == "epoch 2 where 1 is in force"


def test_the_chains_epoch_is_that_of_the_last_rekey_also_where_it_does_not_count() -> None:
    story = refused_rekey()
    log, _ = story.log(story.events[:-1])
    for member in (log, Log.restore(log.save(), log.index)):
        with pytest.raises(ChainBroken, match="key epoch 1 where 2 is in force"):
            member.take(story.events[-1])


def test_the_loser_of_a_rekey_race_is_not_taken_as_another_epoch() -> None:
    story = company()
    story.leave(DAN)
    head = story.head
    story.rekey(CARA)
    log, _ = story.log()
    keyring = Keyring(log)
    lost = story.new_key(2, "lost")
    with pytest.raises(WrongKey, match="not the key that the group agreed on for epoch 2"):
        keyring.add(lost)
    assert len(keyring) == 0
    assert keyring.add(story.keys[2]) == [2, 1]
    assert keyring.current == story.keys[2]
    late = story.rekey(BOB, base_seq=head.seq, base_hash=head.hash, key_epoch=1, new_key_epoch=2, counts=False)
    with pytest.raises(ChainBroken, match="key epoch 1 where 2 is in force"):
        log.take(late)


def test_two_members_who_were_given_different_keys_notice() -> None:
    story = company()
    log, _ = story.log()
    keyring = Keyring(log)
    with pytest.raises(WrongKey):
        keyring.add(story.new_key(1, "another"))
    with pytest.raises(WrongKey, match="has not had a key of epoch 2 yet"):
        keyring.add(story.new_key(2))
    assert len(keyring) == 0
    assert keyring.add(story.keys[1]) == [1]
    assert keyring.secrets() == {1: story.keys[1].secret}
    assert keyring.add(story.keys[1]) == [], "it has that one"


def test_the_newest_key_opens_all_before_it_as_far_as_each_is_what_the_log_commits_to() -> None:
    story = company()
    story.rekey(ANN)
    story.rekey(BOB)
    log, _ = story.log()
    keyring = Keyring(log)
    assert keyring.add(story.keys[3]) == [3, 2, 1]
    assert [keyring.get(epoch) for epoch in (1, 2, 3, 4)] == [*story.keys.values(), None]
    some = Keyring(log, {1: story.keys[1].secret})
    assert some.add(story.keys[3]) == [3, 2]
    assert some.secrets() == {epoch: key.secret for epoch, key in story.keys.items()}


def test_a_key_that_passes_on_another_one_than_the_log_commits_to_is_not_taken() -> None:
    story = company()
    key = story.new_key(2)
    story.rekey(ANN, previous_key=key.seal_previous(story.new_key(1, "another")))
    log, findings = story.log()
    assert findings == [], "nobody without the key can see it"
    keyring = Keyring(log)
    with pytest.raises(WrongKey, match="for epoch 1"):
        keyring.add(key)
    assert keyring.secrets() == {}


def test_without_shared_history_a_key_opens_its_own_time_alone() -> None:
    story = company(history=History.NONE)
    log, _ = story.log()
    keyring = Keyring(log)
    assert keyring.add(story.keys[story.epoch]) == [story.epoch]
    assert keyring.get(story.epoch - 1) is None


# ── events by seq and by id ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kept", ["memory", "store"])
def test_an_index_finds_what_members_did(kept: str) -> None:
    story = company()
    thread = story.thread(BOB)
    file = story.file(BOB, thread)
    pin = story.annotate(ANN, thread, Pin)
    story.by_relay(Kind.MEMBER_LEFT, CARA.user_id)
    story.rekey(ANN)
    store = Store()
    index: Index = MemoryIndex() if kept == "memory" else store.index(GROUP)
    log, _ = story.log(index=index)
    assert index.hash_at(0) == ZERO_HASH
    assert index.by_seq(0) is None
    assert index.hash_at(thread.seq) == thread.hash
    assert index.hash_at(story.head.seq + 1) is None
    assert index.by_seq(story.head.seq + 1) is None
    assert index.by_seq(-1) is None
    found = index.by_id(file.object_id)
    assert found is not None
    assert (found.seq, found.parent_id, found.actor_id, found.counts, found.erased_at) == (
        file.seq,
        thread.object_id,
        BOB.user_id,
        True,
        0,
    )
    annotation = index.by_id(pin.object_id)
    assert annotation is not None
    assert annotation.parent_id == thread.object_id
    assert index.by_id(CARA.user_id) is None, "the relay's own events are not found by whom they concern"
    expiry = story.by_relay(Kind.MEDIA_EXPIRED, file.object_id)
    log.take(expiry)
    assert index.by_id(file.object_id) == replace(found, erased_at=expiry.seq)
    assert index.by_seq(file.seq) == replace(found, erased_at=expiry.seq)
    log.take(story.append(replace(thread, key_epoch=2)))
    assert index.by_id(thread.object_id) == index.by_seq(thread.seq), "the first of its id"
    store.close()


def test_a_parent_is_the_one_that_the_chain_covers() -> None:
    """A field that a kind has not is in no hash, so it can't make a post another thing's."""
    story = company()
    thread, other = story.thread(BOB), story.thread(BOB)
    reaction = story.annotate(CARA, thread, React, emoji="!")
    reply = story.reply(CARA, thread)
    log, _ = story.log(story.events[: reaction.seq - 1])
    with pytest.raises(ChainBroken, match="the content is not what its hash says"):
        log.take(replace(reaction, thread_id=thread.object_id, target_id=other.object_id))
    for event, parent_id in (
        (replace(reaction, thread_id=other.object_id), thread.object_id),
        (replace(reply, target_id=other.object_id), thread.object_id),
        (replace(thread, thread_id=other.object_id), ZERO_ID),
        (replace(thread, target_id=other.object_id), ZERO_ID),
    ):
        log, _ = story.log(story.events[: event.seq - 1])
        assert log.take(event).finding is None
        known = log.index.by_seq(event.seq)
        assert known is not None
        assert known.parent_id == parent_id


# ── words ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_flaw_has_words_of_its_own() -> None:
    assert set(WORDS) == set(Flaw)
    assert len(set(WORDS.values())) == len(Flaw)
    assert Finding(Flaw.FORK, GROUP).text == WORDS[Flaw.FORK]
    assert Finding(Flaw.FORK, GROUP, 7).text == f"{WORDS[Flaw.FORK]} (event 7)"
    assert Finding(Flaw.FORK, GROUP, 7, ANN.user_id, "look").text == f"{WORDS[Flaw.FORK]} (event 7): look"


def test_a_change_is_stored_with_all_that_it_has() -> None:
    change = Change(7, ANN.as_member(Role.OWNER))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(change), type=Change) == change

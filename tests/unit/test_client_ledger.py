"""Rosters and key epochs as they follow from statements, and statements that don't belong where they are."""

from typing import Any

import pytest
from msgspec.structs import replace

from orbital_client.wire import ChainBroken, Cursor, Event, Identity, Kind, Role, statement_of, uuid7
from orbital_client.wire.ledger import Chain, Ledger, Roster, roster_after
from orbital_protocol import ZERO_HASH, ZERO_ID, chain, statements
from orbital_protocol.frames import SignedStatement
from orbital_protocol.statements import (
    GroupCreated,
    GroupDeleted,
    GroupRekeyed,
    GroupTransferred,
    GroupUpdated,
    KeyReplaced,
    MediaDeleted,
    MemberJoined,
    MemberLeft,
    MemberRemoved,
    MemberRole,
    Statement,
)
from tests.unit.client_relay import FakeLog, identity, rehashed

ANN, BOB, CLEO = identity(), identity(), identity()
GROUP = uuid7()


def header(actor: Identity = ANN, **changes: Any) -> dict[str, Any]:
    return {
        "group_id": GROUP,
        "actor_id": actor.user_id,
        "statement_id": uuid7(),
        "base_seq": 0,
        "base_hash": ZERO_HASH,
        "key_epoch": 1,
        "roster_hash": ZERO_HASH,
        **changes,
    }


def keys(who: Identity) -> dict[str, Any]:
    return {"signing_key": who.signing_key, "rsa_thumbprint": who.rsa_thumbprint, "is_bot": who.is_bot}


def created(**changes: Any) -> GroupCreated:
    return GroupCreated(**header(**changes), history=1, key_commitment=ZERO_HASH, name_hash=ZERO_HASH, **keys(ANN))


def joined(who: Identity, **changes: Any) -> MemberJoined:
    return MemberJoined(**header(**changes), user_id=who.user_id, invite_id=ZERO_ID, invite_signature=b"", **keys(who))


def rekeyed(old: int, new: int) -> GroupRekeyed:
    return GroupRekeyed(
        **header(key_epoch=old), new_key_epoch=new, key_commitment=ZERO_HASH, name_hash=ZERO_HASH, previous_key=b"x"
    )


def roster(**roles: Role) -> Roster:
    people = {"ann": ANN, "bob": BOB, "cleo": CLEO}
    return {people[name].user_id: people[name].as_member(role) for name, role in roles.items()}


TRIO = roster(ann=Role.OWNER, bob=Role.ADMIN, cleo=Role.MEMBER)


@pytest.mark.parametrize(
    ("before", "statement", "after"),
    [
        ({}, created(), roster(ann=Role.OWNER)),
        (roster(ann=Role.OWNER), joined(BOB), roster(ann=Role.OWNER, bob=Role.MEMBER)),
        (TRIO, MemberLeft(**header(BOB)), roster(ann=Role.OWNER, cleo=Role.MEMBER)),
        (TRIO, MemberRemoved(**header(), user_id=CLEO.user_id, ban=True), roster(ann=Role.OWNER, bob=Role.ADMIN)),
        (
            TRIO,
            MemberRole(**header(), user_id=CLEO.user_id, role=Role.ADMIN),
            roster(ann=Role.OWNER, bob=Role.ADMIN, cleo=Role.ADMIN),
        ),
        (
            TRIO,
            GroupTransferred(**header(), user_id=BOB.user_id),
            roster(ann=Role.ADMIN, bob=Role.OWNER, cleo=Role.MEMBER),
        ),
        (TRIO, GroupUpdated(**header(), name_hash=ZERO_HASH), TRIO),
        (TRIO, GroupDeleted(**header()), TRIO),
        (TRIO, rekeyed(1, 2), TRIO),
        (roster(ann=Role.OWNER), MemberRole(**header(), user_id=CLEO.user_id, role=Role.ADMIN), roster(ann=Role.OWNER)),
        (roster(ann=Role.OWNER), MemberRemoved(**header(), user_id=CLEO.user_id, ban=False), roster(ann=Role.OWNER)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Statement) else "",
)
def test_the_roster_after_a_statement(before: Roster, statement: Statement, after: Roster) -> None:
    unchanged = dict(before)
    assert roster_after(before, statement) == after
    assert before == unchanged


def test_replaced_keys_take_the_old_ones_place() -> None:
    new = identity()
    statement = KeyReplaced(
        **header(BOB), signing_key=new.signing_key, rsa_thumbprint=bytes(32), key_signature=bytes(64)
    )
    after = roster_after(TRIO, statement)
    assert after[BOB.user_id] == replace(TRIO[BOB.user_id], signing_key=new.signing_key, rsa_thumbprint=bytes(32))
    assert {user_id: entry for user_id, entry in after.items() if user_id != BOB.user_id} == roster(
        ann=Role.OWNER, cleo=Role.MEMBER
    )


def ledger_of(log: FakeLog) -> Ledger:
    ledger = Ledger(log.cursor(0), key_epoch=1, roster={})
    for event in log.events:
        ledger.advance(event)
    return ledger


def test_a_ledger_follows_the_log_from_its_beginning() -> None:
    log = FakeLog(GROUP)
    log.say(ANN.sign(created()))
    log.say(ANN.sign(joined(BOB)))
    log.say(ANN.sign(joined(CLEO)))
    log.thread()
    log.say(ANN.sign(rekeyed(1, 2)))
    log.reply()
    log.by_relay(Kind.MEMBER_LEFT, CLEO.user_id)
    ledger = ledger_of(log)
    assert ledger.position == log.head
    assert ledger.key_epoch == 2
    assert ledger.roster == roster(ann=Role.OWNER, bob=Role.MEMBER)
    assert [type(statement_of(event)).__name__ for event in log.events[:2]] == ["GroupCreated", "MemberJoined"]
    assert statement_of(log.events[3]) is None


def test_a_group_that_ends_with_its_owners_account_is_no_finding() -> None:
    log = FakeLog(GROUP)
    log.say(ANN.sign(created()))
    log.by_relay(Kind.GROUP_DELETED, ANN.user_id)
    assert ledger_of(log).position == log.head


def test_an_event_of_a_later_kind_is_chained_by_the_content_hash_it_names() -> None:
    log = FakeLog()
    log.reply()
    log._append(kind=21, object_id=uuid7(), actor_id=uuid7(), content_hash=bytes(range(32)))
    log._append(kind=200, object_id=uuid7(), actor_id=uuid7(), content_hash=bytes(32))
    assert ledger_of(log).position == log.head


def test_erased_and_filtered_posts_verify_by_the_hashes_of_their_fields() -> None:
    log = FakeLog()
    thread = log.thread(b"title", b"body")
    hashes = [chain.field_hash(b"title"), chain.field_hash(b"body")]
    bare = replace(thread, encrypted_title=None, encrypted_body=None, field_hashes=hashes)
    Chain(log.cursor(0)).advance(replace(bare, erased=True))
    Chain(log.cursor(0)).advance(bare)
    with pytest.raises(ChainBroken):
        Chain(log.cursor(0)).advance(replace(bare, field_hashes=hashes[::-1]))
    with pytest.raises(ChainBroken):
        Chain(log.cursor(0)).advance(replace(thread, encrypted_body=b"forged", field_hashes=hashes))


def test_files_verify_by_their_fields_or_by_the_hashes_of_them() -> None:
    log = FakeLog()
    posted = log.file(b"metadata", bytes(range(12)), 2**40, bytes(range(32)))
    Chain(log.cursor(0)).advance(posted)
    for changes in (
        {"encrypted_metadata": b"forged"},
        {"encryption_iv": bytes(12)},
        {"size_bytes": 2**40 + 1},
        {"root": bytes(32)},
        {"thread_id": uuid7()},
        {"root": None},
    ):
        with pytest.raises(ChainBroken, match="content"):
            Chain(log.cursor(0)).advance(replace(posted, **changes))
    hashes = [
        chain.field_hash(each) for each in chain.media_fields(b"metadata", bytes(range(12)), 2**40, bytes(range(32)))
    ]
    bare = replace(posted, encrypted_metadata=None, encryption_iv=None, size_bytes=None, root=None, field_hashes=hashes)
    Chain(log.cursor(0)).advance(bare)
    Chain(log.cursor(0)).advance(replace(bare, erased=True))
    with pytest.raises(ChainBroken, match="content"):
        Chain(log.cursor(0)).advance(replace(bare, field_hashes=hashes[::-1]))


def test_a_file_is_deleted_by_a_statement_and_expires_by_the_relays_word() -> None:
    log = FakeLog(GROUP)
    log.say(ANN.sign(created()))
    deletion = log.say(ANN.sign(MediaDeleted(**header(), media_id=uuid7())))
    expiry = log.by_relay(Kind.MEDIA_EXPIRED, uuid7())
    assert ledger_of(log).position == log.head
    for event, changes in (
        (deletion, {"statement": None, "signature": None, "content_hash": chain.RELAY_CONTENT_HASH}),
        (expiry, {"actor_id": ANN.user_id}),
    ):
        start = log.cursor(event.seq - 1)
        with pytest.raises(ChainBroken, match="without its statement"):
            Chain(start).advance(rehashed(replace(event, **changes), start.hash))


def said(signed: SignedStatement, **changes: Any) -> Event:
    """The event of a statement, with changes that its hashes go along with."""
    event = FakeLog(GROUP).say(signed)
    event = replace(event, **changes)
    content = chain.RELAY_CONTENT_HASH
    if event.statement is not None:
        content = chain.control_content_hash(event.statement, event.signature or b"")
    return rehashed(replace(event, content_hash=content), ZERO_HASH)


@pytest.mark.parametrize(
    "event",
    [
        said(ANN.sign(created()), kind=Kind.MEMBER_JOINED),
        said(ANN.sign(created()), actor_id=BOB.user_id),
        said(ANN.sign(created()), object_id=uuid7()),
        said(ANN.sign(created(key_epoch=2))),
        said(ANN.sign(created(group_id=uuid7()))),
        said(ANN.sign(rekeyed(1, 3))),
        said(ANN.sign(created()), statement=b"\x91\x01"),
        said(ANN.sign(created()), statement=None, signature=None),
        said(ANN.sign(joined(BOB)), statement=None, signature=None, actor_id=ZERO_ID, object_id=BOB.user_id),
        said(ANN.sign(MemberLeft(**header())), statement=None, signature=None),
    ],
    ids=[
        "another kind",
        "another actor",
        "another id",
        "another epoch",
        "another group",
        "an epoch skipped",
        "no statement in it",
        "statement withheld",
        "a member by the relay's own word",
        "somebody's leaving by the relay's own word",
    ],
)
def test_a_statement_must_be_that_of_its_event(event: Event) -> None:
    with pytest.raises(ChainBroken):
        Chain(Cursor(group_id=GROUP, seq=0, hash=ZERO_HASH)).advance(event)


def test_the_events_of_that_test_are_wrong_in_one_thing_only() -> None:
    Chain(Cursor(group_id=GROUP, seq=0, hash=ZERO_HASH)).advance(said(ANN.sign(created())))
    Chain(Cursor(group_id=GROUP, seq=0, hash=ZERO_HASH)).advance(said(ANN.sign(rekeyed(1, 2))))
    left = said(ANN.sign(MemberLeft(**header())), statement=None, signature=None, actor_id=ZERO_ID, object_id=uuid7())
    Chain(Cursor(group_id=GROUP, seq=0, hash=ZERO_HASH)).advance(left)


def test_epochs_follow_rekeys_and_nothing_else() -> None:
    log = FakeLog(GROUP)
    log.reply()
    log.say(ANN.sign(rekeyed(1, 2)))
    log.key_epoch = 1
    log.reply()
    ledger = Chain(log.cursor(0))
    ledger.advance(log.events[0])
    ledger.advance(log.events[1])
    with pytest.raises(ChainBroken, match="key epoch 1 where 2"):
        ledger.advance(log.events[2])


def test_from_a_cursor_on_the_first_event_says_the_epoch() -> None:
    log = FakeLog()
    log.reply()
    log.key_epoch = 7
    log.reply()
    log.key_epoch = 8
    log.reply()
    from_cursor = Chain(log.cursor(1))
    from_cursor.advance(log.events[1])
    with pytest.raises(ChainBroken):
        from_cursor.advance(log.events[2])


def test_signatures_of_identities_verify() -> None:
    signed = ANN.sign(created())
    assert statements.verify(signed.statement, signed.signature, ANN.signing_key)
    assert not statements.verify(signed.statement, signed.signature, BOB.signing_key)

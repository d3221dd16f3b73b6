"""New keys for a user, in all of their groups at once or in none."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from orbital_protocol import ZERO_HASH, ZERO_ID, frames
from orbital_protocol.codes import ErrorCode, Kind
from orbital_protocol.frames import KeyReplaceOk, PublicKey, SignedStatement
from orbital_protocol.statements import MAX_STATEMENT_BYTES, GroupUpdated, KeyReplaced, MemberLeft, key_preimage
from orbital_relay.handlers.key_replacement import MAX_KEYS
from orbital_relay.store import key_replacement as store
from orbital_relay.store.pool import Connection
from tests.accounts import Desk, Guest, desk_on, stranger
from tests.people import Person, admit, append, enroll, found_group, new_id, says, sign, view, write
from tests.worlds import refused, verified_log, verify_everything


@pytest_asyncio.fixture
async def desk(migrated_database: str) -> AsyncIterator[Desk]:
    async with desk_on(migrated_database) as made:
        yield made


@dataclass(frozen=True)
class Fresh:
    """Keys that somebody is about to have."""

    owner: Person
    signing: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)

    @property
    def signing_key(self) -> bytes:
        return self.signing.public_key().public_bytes_raw()

    @property
    def public_key(self) -> PublicKey:
        return self.owner.public_key

    def elements(self, **changes: Any) -> dict[str, Any]:
        """The elements of a statement that speaks of them."""
        preimage = key_preimage(
            user_id=self.owner.user_id, signing_key=self.signing_key, rsa_thumbprint=self.owner.rsa_thumbprint
        )
        return {
            "signing_key": self.signing_key,
            "rsa_thumbprint": self.owner.rsa_thumbprint,
            "key_signature": self.signing.sign(preimage),
            **changes,
        }


async def statement_of(desk: Desk, fresh: Fresh, group_id: bytes, **changes: Any) -> SignedStatement:
    return await says(desk.sql, fresh.owner, group_id, KeyReplaced, **fresh.elements(**changes))


async def replace(desk: Desk, alice: Guest, fresh: Fresh, *statements: SignedStatement) -> KeyReplaceOk:
    answer: KeyReplaceOk = await desk.ask(
        alice.peer,
        frames.KeyReplace,
        public_key=fresh.public_key,
        signing_key=fresh.signing_key,
        statements=list(statements),
    )
    return answer


async def key_in_force(desk: Desk, alice: Guest) -> bytes:
    return bytes(await desk.sql.fetchval("SELECT signing_key FROM users WHERE id = $1", alice.user_id))


async def assert_unchanged(desk: Desk, alice: Guest) -> None:
    assert await key_in_force(desk, alice) == alice.person.signing_key
    assert await desk.sql.fetchval("SELECT count(*) FROM user_keys WHERE user_id = $1", alice.user_id) == 1
    assert await desk.sql.fetchval("SELECT count(*) FROM events WHERE kind = $1", Kind.KEY_REPLACED) == 0
    assert not await desk.sql.fetchval("SELECT bool_or(rekey_required) FROM group_heads")
    assert desk.published.events == []


@dataclass
class Setting:
    """Alice, two of her groups, one that she isn't in, and the keys that she wants."""

    alice: Guest
    bob: Person
    mine: list[bytes]
    theirs: bytes
    fresh: Fresh


@pytest_asyncio.fixture
async def setting(desk: Desk) -> Setting:
    alice, bob = await desk.newcomer("alice"), await enroll(desk.sql, "bob")
    mine = [await found_group(desk.sql, alice.person, bob), await found_group(desk.sql, bob, alice.person)]
    return Setting(alice, bob, mine, await found_group(desk.sql, bob), Fresh(alice.person))


# ── what it does ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.each_postgres
async def test_new_keys_are_in_force_in_every_group(desk: Desk, setting: Setting) -> None:
    alice, fresh = setting.alice, setting.fresh
    signed = {group_id: await statement_of(desk, fresh, group_id) for group_id in setting.mine}
    answer = await replace(desk, alice, fresh, *signed.values())
    assert await key_in_force(desk, alice) == fresh.signing_key
    seen = await desk.ask(alice.peer, frames.UserGet, user_id=alice.user_id)
    assert [key.signing_key for key in seen.keys] == [alice.person.signing_key, fresh.signing_key]
    assert {head.group_id for head in answer.heads} == set(setting.mine)
    assert len(desk.published.events) == 2
    for head in answer.heads:
        (event,) = [event for event in desk.published.events if event.group_id == head.group_id]
        assert (event.seq, event.hash, event.kind) == (head.seq, head.hash, Kind.KEY_REPLACED)
        assert event.statement == signed[head.group_id].statement
        assert (await verified_log(desk.sql, head.group_id))[-1] == event
    await verify_everything(desk.sql)
    rekey = await desk.sql.fetch("SELECT group_id FROM group_heads WHERE rekey_required")
    assert {row["group_id"] for row in rekey} == set(setting.mine)


async def test_somebody_without_groups(desk: Desk) -> None:
    alice = await desk.newcomer("alice")
    fresh = Fresh(alice.person)
    for _ in range(2):  # the second is a retry
        assert (await replace(desk, alice, fresh)).heads == []
    assert await key_in_force(desk, alice) == fresh.signing_key


async def test_the_same_again_gets_the_first_answer(desk: Desk, setting: Setting) -> None:
    signed = [await statement_of(desk, setting.fresh, group_id) for group_id in setting.mine]
    first = await replace(desk, setting.alice, setting.fresh, *signed)
    again = await replace(desk, setting.alice, setting.fresh, *reversed(signed))
    assert sorted(head.group_id for head in first.heads) == sorted(head.group_id for head in again.heads)
    assert {(head.seq, head.hash) for head in first.heads} == {(head.seq, head.hash) for head in again.heads}
    assert len(desk.published.events) == 2


async def test_the_same_twice_at_once_happens_once(desk: Desk, setting: Setting) -> None:
    signed = [await statement_of(desk, setting.fresh, group_id) for group_id in setting.mine]
    answers = await asyncio.gather(*(replace(desk, setting.alice, setting.fresh, *signed) for _ in range(4)))
    assert len({(head.group_id, head.seq, head.hash) for answer in answers for head in answer.heads}) == 2
    assert len(desk.published.events) == 2
    await verify_everything(desk.sql)


async def test_a_retry_that_sees_the_first_try_succeed_gets_its_answer(
    desk: Desk, setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one commits after the second one has read the old keys, and before it looks for the statements."""
    signed = [await statement_of(desk, setting.fresh, group_id) for group_id in setting.mine]
    first: list[KeyReplaceOk] = []

    async def list_memberships(connection: Connection, user_id: bytes) -> frozenset[bytes]:
        monkeypatch.undo()
        first.append(await replace(desk, setting.alice, setting.fresh, *signed))
        return await store.list_memberships(connection, user_id)

    monkeypatch.setattr(store, "list_memberships", list_memberships)
    again = await replace(desk, setting.alice, setting.fresh, *signed)
    assert [answer.heads for answer in first] == [again.heads]


async def test_one_pair_of_keys_after_the_other(desk: Desk) -> None:
    alice, bob = await desk.newcomer("alice"), await enroll(desk.sql, "bob")
    group_id = await found_group(desk.sql, alice.person, bob)
    owner = alice.person
    for _ in range(3):
        fresh = Fresh(owner)
        await replace(desk, alice, fresh, await statement_of(desk, fresh, group_id))
        owner = Person("alice", owner.user_id, fresh.signing, owner.wrapping)
    await verify_everything(desk.sql)
    seen = await desk.ask(alice.peer, frames.UserGet, user_id=alice.user_id)
    assert len(seen.keys) == 4
    assert seen.keys[-1].signing_key == owner.signing_key
    former = Fresh(owner, alice.person.signing)
    with refused(ErrorCode.BAD_ARGUMENT):
        await replace(desk, alice, former, await statement_of(desk, former, group_id))


# ── what is refused ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("named", ["none", "some", "too many", "others"])
async def test_there_is_a_statement_for_each_group_and_no_other(desk: Desk, setting: Setting, named: str) -> None:
    groups = {
        "none": [],
        "some": setting.mine[:1],
        "too many": [*setting.mine, setting.theirs],
        "others": [setting.mine[0], setting.theirs],
    }[named]
    signed = [await statement_of(desk, setting.fresh, group_id) for group_id in groups]
    with refused(ErrorCode.MEMBER_SET_MISMATCH) as error:
        await replace(desk, setting.alice, setting.fresh, *signed)
    assert error.value.details is not None
    assert error.value.details.missing == sorted(set(setting.mine) - set(groups))
    assert error.value.details.unexpected == sorted(set(groups) - set(setting.mine))
    await assert_unchanged(desk, setting.alice)


BAD_STATEMENTS: dict[str, tuple[dict[str, Any], ErrorCode]] = {
    "another key": ({"signing_key": Fresh(Person("x")).signing_key}, ErrorCode.BAD_ARGUMENT),
    "another thumbprint": ({"rsa_thumbprint": ZERO_HASH}, ErrorCode.BAD_ARGUMENT),
    "zero statement id": ({"statement_id": ZERO_ID}, ErrorCode.BAD_ARGUMENT),
    "somebody else's": ({"actor_id": new_id()}, ErrorCode.FORBIDDEN),
    "not by the new key": ({"key_signature": bytes(64)}, ErrorCode.BAD_SIGNATURE),
    "another epoch": ({"key_epoch": 2}, ErrorCode.STALE_KEY_EPOCH),
    "another hash": ({"base_hash": ZERO_HASH}, ErrorCode.STALE_BASE),
    "no such event": ({"base_seq": 1_000}, ErrorCode.STALE_BASE),
    "an event before the roster changed": ({"base_seq": 0, "base_hash": ZERO_HASH}, ErrorCode.STALE_BASE),
}


@pytest.mark.parametrize("what", BAD_STATEMENTS)
async def test_one_bad_statement_spoils_them_all(desk: Desk, setting: Setting, what: str) -> None:
    changes, code = BAD_STATEMENTS[what]
    good = await statement_of(desk, setting.fresh, setting.mine[0])
    bad = await statement_of(desk, setting.fresh, setting.mine[1], **changes)
    with refused(code):
        await replace(desk, setting.alice, setting.fresh, good, bad)
    await assert_unchanged(desk, setting.alice)


@pytest.mark.parametrize("signer", ["the new key", "somebody", "nobody"])
async def test_statements_are_signed_by_the_old_key(desk: Desk, setting: Setting, signer: str) -> None:
    good = await statement_of(desk, setting.fresh, setting.mine[0])
    draft = write(setting.alice.person, KeyReplaced, await view(desk.sql, setting.mine[1]), **setting.fresh.elements())
    by = Person("alice", signing=setting.fresh.signing) if signer == "the new key" else setting.bob
    signed = sign(by, draft)
    if signer == "nobody":
        signed = SignedStatement(statement=signed.statement, signature=bytes(64))
    with refused(ErrorCode.BAD_SIGNATURE):
        await replace(desk, setting.alice, setting.fresh, good, signed)
    await assert_unchanged(desk, setting.alice)


async def test_a_key_that_somebody_else_holds_cannot_be_taken(desk: Desk, setting: Setting) -> None:
    """The new key's signature names the user; it can't be moved to another one."""
    elsewhere = Fresh(setting.bob, setting.fresh.signing).elements()["key_signature"]
    signed = [await statement_of(desk, setting.fresh, group, key_signature=elsewhere) for group in setting.mine]
    with refused(ErrorCode.BAD_SIGNATURE):
        await replace(desk, setting.alice, setting.fresh, *signed)


@pytest.mark.produces(ErrorCode.TOO_LARGE)
async def test_statements_of_another_form(desk: Desk, setting: Setting) -> None:
    good = await statement_of(desk, setting.fresh, setting.mine[0])
    left = await says(desk.sql, setting.alice.person, setting.mine[1], MemberLeft)
    garbled = SignedStatement(statement=b"\xc1", signature=bytes(64))
    for bad in (left, garbled, good):
        with refused(ErrorCode.BAD_ARGUMENT) as error:
            await replace(desk, setting.alice, setting.fresh, good, bad)
        assert error.value.details is not None
        assert error.value.details.field == "statements"
    huge = SignedStatement(statement=bytes(MAX_STATEMENT_BYTES + 1), signature=bytes(64))
    with refused(ErrorCode.TOO_LARGE):
        await replace(desk, setting.alice, setting.fresh, good, huge)
    await assert_unchanged(desk, setting.alice)


async def test_a_statement_id_that_is_in_use(desk: Desk, setting: Setting) -> None:
    renamed = await says(desk.sql, setting.bob, setting.theirs, GroupUpdated, name_hash=ZERO_HASH)
    await append(desk.sql, renamed)
    used = await desk.sql.fetchval("SELECT object_id FROM events WHERE kind = $1", Kind.GROUP_UPDATED)
    good = await statement_of(desk, setting.fresh, setting.mine[0])
    bad = await statement_of(desk, setting.fresh, setting.mine[1], statement_id=used)
    with refused(ErrorCode.ID_CONFLICT):
        await replace(desk, setting.alice, setting.fresh, good, bad)
    await assert_unchanged(desk, setting.alice)


async def test_two_statements_with_one_id(desk: Desk, setting: Setting) -> None:
    statement_id = new_id()
    signed = [await statement_of(desk, setting.fresh, group_id, statement_id=statement_id) for group_id in setting.mine]
    with refused(ErrorCode.ID_CONFLICT):
        await replace(desk, setting.alice, setting.fresh, *signed)
    await assert_unchanged(desk, setting.alice)


async def test_keys_are_replaced_so_often_and_no_more(desk: Desk) -> None:
    """All of them are answered at once, to whoever asks: that must stay a small answer."""
    alice = await desk.newcomer("alice")
    await desk.sql.execute(
        "INSERT INTO user_keys (user_id, signing_key, rsa_thumbprint, public_key)"
        " SELECT user_id, int4send(n), rsa_thumbprint, public_key FROM user_keys, generate_series(1, $1) AS n",
        MAX_KEYS - 2,
    )
    assert await replace(desk, alice, Fresh(alice.person))
    with refused(ErrorCode.LIMIT_EXCEEDED) as error:
        await replace(desk, alice, Fresh(alice.person))
    assert error.value.details is not None
    assert error.value.details.limit == MAX_KEYS
    assert len((await desk.ask(alice.peer, frames.UserGet, user_id=alice.user_id)).keys) == MAX_KEYS


async def test_keys_that_are_not_sound(desk: Desk, setting: Setting) -> None:
    fields = {"public_key": setting.fresh.public_key, "signing_key": setting.fresh.signing_key, "statements": []}
    for changes in ({"signing_key": bytes(32)}, {"public_key": PublicKey(kty="RSA", n="AQAB", e="AQAB")}):
        with refused(ErrorCode.BAD_ARGUMENT):
            await desk.ask(setting.alice.peer, frames.KeyReplace, **{**fields, **changes})


async def test_keys_that_are_in_force_already(desk: Desk, setting: Setting) -> None:
    same = Fresh(setting.alice.person, setting.alice.person.signing)
    signed = [await statement_of(desk, same, group_id) for group_id in setting.mine]
    with refused(ErrorCode.BAD_ARGUMENT):
        await replace(desk, setting.alice, same, *signed)
    await assert_unchanged(desk, setting.alice)


async def test_a_token_for_some_groups_replaces_nothing(desk: Desk, setting: Setting) -> None:
    peer = stranger()
    peer.authenticate(setting.alice.person.caller(groups=frozenset(setting.mine)))
    signed = [await statement_of(desk, setting.fresh, group_id) for group_id in setting.mine]
    with refused(ErrorCode.FORBIDDEN):
        await replace(desk, Guest(setting.alice.person, peer, setting.alice.session), setting.fresh, *signed)


async def test_an_account_that_is_gone(desk: Desk) -> None:
    alice = await desk.newcomer("alice")
    await desk.sql.execute("DELETE FROM users")
    with refused(ErrorCode.UNAUTHENTICATED):
        await replace(desk, alice, Fresh(alice.person))


# ── races ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_group_that_is_joined_meanwhile_is_missing(desk: Desk, setting: Setting) -> None:
    signed = [await statement_of(desk, setting.fresh, group_id) for group_id in setting.mine]
    async with desk.sql.transaction():
        await desk.sql.execute("SELECT FROM users WHERE id = $1 FOR NO KEY UPDATE", setting.alice.user_id)
        replacing = asyncio.create_task(replace(desk, setting.alice, setting.fresh, *signed))
        await desk.until_blocked()
        await admit(desk.sql, setting.theirs, setting.bob, setting.alice.person)
    with refused(ErrorCode.MEMBER_SET_MISMATCH) as error:
        await replacing
    assert error.value.details is not None
    assert error.value.details.missing == [setting.theirs]
    await assert_unchanged(desk, setting.alice)


@pytest.mark.produces(ErrorCode.STALE_BASE)
async def test_a_roster_that_changes_meanwhile_is_a_stale_base(desk: Desk, setting: Setting) -> None:
    carol = await enroll(desk.sql, "carol")
    signed = [await statement_of(desk, setting.fresh, group_id) for group_id in setting.mine]
    async with desk.sql.transaction():
        await desk.sql.execute("SELECT FROM group_heads WHERE group_id = $1 FOR UPDATE", setting.mine[1])
        replacing = asyncio.create_task(replace(desk, setting.alice, setting.fresh, *signed))
        await desk.until_blocked()
        await admit(desk.sql, setting.mine[1], setting.bob, carol)
    with refused(ErrorCode.STALE_BASE):
        await replacing
    await assert_unchanged(desk, setting.alice)


async def test_of_two_replacements_at_once_one_counts(desk: Desk, setting: Setting) -> None:
    other = Fresh(setting.alice.person)
    both = [
        replace(desk, setting.alice, fresh, *[await statement_of(desk, fresh, group_id) for group_id in setting.mine])
        for fresh in (setting.fresh, other)
    ]
    answers = await asyncio.gather(*both, return_exceptions=True)
    assert sum(isinstance(answer, KeyReplaceOk) for answer in answers) == 1
    assert len(desk.published.events) == 2
    await verify_everything(desk.sql)

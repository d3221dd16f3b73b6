"""Who may do what, as a table: no I/O."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from orbital_protocol import ZERO_HASH, ZERO_ID, statements
from orbital_protocol.chain import field_hash
from orbital_protocol.codes import History, Kind, Role
from orbital_protocol.frames import GroupKnock, GroupWrap, WrappedKey
from orbital_protocol.statements import GroupDeleted, GroupRekeyed, GroupUpdated, MemberJoined
from orbital_relay import policy
from orbital_relay.errors import (
    AlreadyMember,
    BadArgument,
    BadSignature,
    Banned,
    Forbidden,
    InviteInvalid,
    LimitExceeded,
    MemberSetMismatch,
    NotFound,
    RekeyRequired,
    RequestError,
    StaleBase,
    StaleKeyEpoch,
    TooLarge,
)
from orbital_relay.store.control import Head, Keys, Member
from orbital_relay.store.groups import PostRow
from orbital_relay.store.invites import Door, InviteRow
from orbital_relay.store.members import Newcomer, Wraps
from tests.worlds import LIMITS

GROUP, ALICE, BOB, INVITE = (bytes([number]) * 16 for number in range(1, 5))
SIGNING, OTHER = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
KEYS = Keys(SIGNING.public_key().public_bytes_raw(), b"t" * 32, False)
HEAD = Head(seq=7, key_epoch=3, rekey_required=False, roster_seq=4)
BASE: dict[str, Any] = {"base_seq": 5, "base_hash": b"h" * 32, "key_epoch": 3, "roster_hash": ZERO_HASH}
FRAME: dict[str, Any] = {"group_id": GROUP, "actor_id": ALICE, "statement_id": b"s" * 16, **BASE}
NEWCOMER = Newcomer(KEYS, is_member=False, is_banned=False, has_knocked=True, groups=0, members=1)
LINK = InviteRow(
    "abcdefgh",
    OTHER.public_key().public_bytes_raw(),
    has_sealed_key=True,
    expires_at=0,
    is_live=True,
    is_revoked=False,
)


def may(error: type[RequestError] | None) -> Any:
    """A block that passes, or ends with this very error."""
    return nullcontext() if error is None else pytest.raises(error)


def member(role: Role | None, user_id: bytes = ALICE) -> Member | None:
    """Somebody of this role; no member at all for None."""
    return None if role is None else Member(user_id, role, KEYS)


def joined(**elements: Any) -> MemberJoined:
    """A statement by which bob joins, with the link's signature."""
    preimage = statements.join_preimage(
        group_id=GROUP,
        invite_id=INVITE,
        user_id=BOB,
        signing_key=KEYS.signing_key,
        rsa_thumbprint=KEYS.rsa_thumbprint,
    )
    given = {
        "user_id": BOB,
        "signing_key": KEYS.signing_key,
        "rsa_thumbprint": KEYS.rsa_thumbprint,
        "is_bot": KEYS.is_bot,
        "invite_id": INVITE,
        "invite_signature": OTHER.sign(preimage),
        **elements,
    }
    return MemberJoined(**{**FRAME, **given})


# ── roles ───────────────────────────────────────────────────────────────────────────────────────────────────────────

NOBODY, MEMBER, ADMIN, OWNER = None, Role.MEMBER, Role.ADMIN, Role.OWNER


@pytest.mark.parametrize(
    ("role", "at_least", "error"),
    [
        (NOBODY, MEMBER, NotFound),
        (MEMBER, MEMBER, None),
        (MEMBER, ADMIN, Forbidden),
        (ADMIN, ADMIN, None),
        (ADMIN, OWNER, Forbidden),
        (OWNER, ADMIN, None),
        (OWNER, OWNER, None),
    ],
)
def test_a_higher_role_may_do_all_that_a_lower_one_may(
    role: Role | None, at_least: Role, error: type[RequestError] | None
) -> None:
    with may(error):
        assert policy.require_role(member(role), at_least) == member(role)


@pytest.mark.parametrize(
    ("role", "target", "error"),
    [
        (NOBODY, MEMBER, NotFound),
        (NOBODY, NOBODY, NotFound),
        (MEMBER, MEMBER, Forbidden),
        (MEMBER, NOBODY, Forbidden),  # who may not remove anybody learns nothing about who is there
        (ADMIN, NOBODY, NotFound),
        (ADMIN, MEMBER, None),
        (ADMIN, ADMIN, Forbidden),
        (ADMIN, OWNER, Forbidden),
        (OWNER, ADMIN, None),
        (OWNER, OWNER, Forbidden),
    ],
)
def test_one_acts_on_those_below(role: Role | None, target: Role | None, error: type[RequestError] | None) -> None:
    with may(error):
        assert policy.require_above(member(role), member(target, BOB)) == member(target, BOB)


@pytest.mark.parametrize(
    ("role", "target", "new", "error"),
    [
        (NOBODY, MEMBER, MEMBER, NotFound),
        (MEMBER, MEMBER, MEMBER, Forbidden),
        (ADMIN, MEMBER, MEMBER, None),
        (ADMIN, MEMBER, ADMIN, Forbidden),
        (ADMIN, ADMIN, MEMBER, Forbidden),
        (ADMIN, NOBODY, MEMBER, NotFound),
        (OWNER, MEMBER, ADMIN, None),
        (OWNER, ADMIN, MEMBER, None),
        (OWNER, ADMIN, OWNER, Forbidden),
        (OWNER, OWNER, MEMBER, Forbidden),
    ],
)
def test_roles_are_given_by_those_above(
    role: Role | None, target: Role | None, new: Role, error: type[RequestError] | None
) -> None:
    with may(error):
        policy.may_set_role(member(role), member(target, BOB), new)


@pytest.mark.parametrize(
    ("role", "target", "error"),
    [
        (NOBODY, MEMBER, NotFound),
        (ADMIN, MEMBER, Forbidden),
        (OWNER, NOBODY, NotFound),
        (OWNER, OWNER, Forbidden),
        (OWNER, MEMBER, None),
        (OWNER, ADMIN, None),
    ],
)
def test_the_owner_hands_over(role: Role | None, target: Role | None, error: type[RequestError] | None) -> None:
    with may(error):
        policy.may_transfer(member(role), member(target, BOB))


@pytest.mark.parametrize(("role", "error"), [(NOBODY, NotFound), (MEMBER, None), (ADMIN, None), (OWNER, Forbidden)])
def test_anyone_but_the_owner_leaves(role: Role | None, error: type[RequestError] | None) -> None:
    with may(error):
        policy.may_leave(member(role))


POST = PostRow(GROUP, author_id=BOB, kind=Kind.THREAD_POSTED, erased=False)


@pytest.mark.parametrize(
    ("role", "post", "error"),
    [
        (NOBODY, POST, NotFound),
        (MEMBER, POST, Forbidden),
        (MEMBER, replace(POST, author_id=ALICE), None),
        (ADMIN, POST, None),
        (ADMIN, None, NotFound),
        (ADMIN, replace(POST, group_id=BOB), NotFound),
        (ADMIN, replace(POST, erased=True), NotFound),
        (ADMIN, replace(POST, kind=Kind.MEMBER_JOINED), NotFound),
        (ADMIN, replace(POST, kind=Kind.MEDIA_POSTED), NotFound),
        (ADMIN, replace(POST, kind=Kind.REPLY_POSTED), None),
        (ADMIN, replace(POST, kind=Kind.ANNOTATION_POSTED), None),
    ],
)
def test_authors_and_admins_erase(role: Role | None, post: PostRow | None, error: type[RequestError] | None) -> None:
    with may(error):
        policy.may_erase(member(role), post, GROUP)


# ── statements ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_statement_is_signed_by_the_key_in_force() -> None:
    raw = statements.encode(GroupDeleted(**FRAME))
    policy.check_signature(raw, statements.sign(raw, SIGNING), KEYS)
    for signature in (statements.sign(raw, OTHER), SIGNING.sign(raw), bytes(64)):
        with pytest.raises(BadSignature):
            policy.check_signature(raw, signature, KEYS)
    with pytest.raises(BadSignature):
        policy.check_signature(raw + b"\0", statements.sign(raw, SIGNING), KEYS)


@pytest.mark.parametrize(("epoch", "error"), [(2, StaleKeyEpoch), (3, None), (4, StaleKeyEpoch)])
def test_the_epoch_is_the_one_in_force(epoch: int, error: type[RequestError] | None) -> None:
    with may(error):
        policy.check_epoch(epoch, HEAD)


@pytest.mark.parametrize(
    ("base", "base_hash", "error"),
    [
        ({}, b"h" * 32, None),
        ({"base_seq": 4}, b"h" * 32, None),  # the very event that changed the roster last
        ({"base_seq": 3}, b"h" * 32, StaleBase),
        ({}, b"x" * 32, StaleBase),
        ({}, None, StaleBase),
    ],
)
def test_the_base_is_an_event_after_which_the_roster_is_the_same(
    base: dict[str, Any], base_hash: bytes | None, error: type[RequestError] | None
) -> None:
    with may(error):
        policy.check_base(GroupDeleted(**{**FRAME, **base}), HEAD, base_hash)


@pytest.mark.parametrize("changed", [{"signing_key": b"k" * 32}, {"rsa_thumbprint": b"x" * 32}, {"is_bot": True}])
def test_a_user_is_introduced_with_the_keys_in_force(changed: dict[str, Any]) -> None:
    policy.check_keys(joined(), KEYS)
    with pytest.raises(BadArgument):
        policy.check_keys(joined(**changed), KEYS)


@pytest.mark.parametrize(
    ("check", "value", "error"),
    [
        (policy.check_size, b"", None),
        (policy.check_size, b"1234", None),
        (policy.check_size, b"12345", TooLarge),
        (policy.check_ciphertext, b"", BadArgument),
        (policy.check_ciphertext, b"1234", None),
        (policy.check_ciphertext, b"12345", TooLarge),
    ],
)
def test_sizes_have_limits(
    check: Callable[[str, bytes, int], None], value: bytes, error: type[RequestError] | None
) -> None:
    with may(error) as info:
        check("a_field", value, 4)
    if error is not None:
        assert info.value.details.field == "a_field"
        assert info.value.details.limit == (4 if error is TooLarge else None)


def test_zeros_are_no_id() -> None:
    policy.check_id("a_field", ALICE)
    with pytest.raises(BadArgument):
        policy.check_id("a_field", ZERO_ID)


def test_the_name_is_the_one_that_was_signed() -> None:
    statement = GroupUpdated(**FRAME, name_hash=field_hash(b"name"))
    policy.check_name(statement, b"name")
    with pytest.raises(BadArgument):
        policy.check_name(statement, b"another")


# ── joining ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("elements", "invite"),
    [
        ({}, None),
        ({}, replace(LINK, is_live=False)),
        ({}, replace(LINK, invite_key=KEYS.signing_key)),
        ({"invite_signature": bytes(64)}, LINK),
        ({"invite_signature": b""}, LINK),
        ({"group_id": BOB}, LINK),
        ({"invite_id": BOB}, LINK),
        ({"user_id": ALICE}, LINK),
        ({"signing_key": b"k" * 32}, LINK),
        ({"rsa_thumbprint": b"x" * 32}, LINK),
    ],
)
def test_a_link_signs_one_newcomer_into_one_group(elements: dict[str, Any], invite: InviteRow | None) -> None:
    assert policy.check_invite(joined(), LINK) is LINK
    with pytest.raises(InviteInvalid):
        policy.check_invite(joined(**elements), invite)


@pytest.mark.parametrize(
    ("newcomer", "head", "error"),
    [
        (NEWCOMER, HEAD, None),
        (replace(NEWCOMER, is_member=True), HEAD, AlreadyMember),
        (replace(NEWCOMER, is_banned=True), HEAD, Banned),
        (NEWCOMER, replace(HEAD, rekey_required=True), RekeyRequired),
        (replace(NEWCOMER, keys=replace(KEYS, is_bot=True)), HEAD, BadArgument),
        (replace(NEWCOMER, members=LIMITS.max_members_per_group - 1), HEAD, None),
        (replace(NEWCOMER, members=LIMITS.max_members_per_group), HEAD, LimitExceeded),
        (replace(NEWCOMER, groups=LIMITS.max_groups_per_user - 1), HEAD, None),
        (replace(NEWCOMER, groups=LIMITS.max_groups_per_user), HEAD, LimitExceeded),
    ],
)
def test_who_may_join(newcomer: Newcomer, head: Head, error: type[RequestError] | None) -> None:
    with may(error):
        policy.may_join(joined(), newcomer, head, LIMITS)


@pytest.mark.parametrize(
    ("invite_id", "signature", "names_one"),
    [(ZERO_ID, b"", False), (INVITE, b"", True), (ZERO_ID, bytes(64), True), (INVITE, bytes(64), True)],
)
def test_no_link_is_zeros_and_an_empty_signature(invite_id: bytes, signature: bytes, names_one: bool) -> None:
    assert policy.names_invite(joined(invite_id=invite_id, invite_signature=signature)) == names_one


@pytest.mark.parametrize(("has_key", "error"), [(True, None), (False, StaleKeyEpoch)])
def test_a_link_without_a_key_only_knocks(has_key: bool, error: type[RequestError] | None) -> None:
    with may(error):
        policy.check_sealed_key(replace(LINK, has_sealed_key=has_key), HEAD)


@pytest.mark.parametrize(
    ("expires_at", "joined_at", "error"),
    [(0, 10, None), (11, 10, None), (10, 10, InviteInvalid), (9, 10, InviteInvalid)],
)
def test_a_link_is_live_when_the_log_says_so(expires_at: int, joined_at: int, error: type[RequestError] | None) -> None:
    with may(error):
        policy.check_expiry(replace(LINK, expires_at=expires_at), joined_at)


@pytest.mark.parametrize(
    ("door", "signature", "error"),
    [
        (Door(GROUP, None, None), None, None),
        (Door(GROUP, INVITE, LINK.invite_key), joined().invite_signature, None),
        (Door(GROUP, INVITE, LINK.invite_key), None, InviteInvalid),
        (Door(GROUP, INVITE, LINK.invite_key), bytes(64), InviteInvalid),
        (Door(BOB, INVITE, LINK.invite_key), joined().invite_signature, InviteInvalid),
        (Door(GROUP, BOB, LINK.invite_key), joined().invite_signature, InviteInvalid),
    ],
)
def test_a_link_knocks_with_its_signature(
    door: Door, signature: bytes | None, error: type[RequestError] | None
) -> None:
    request = GroupKnock(id=1, request_id=b"r" * 16, invite_code="abcdefgh", invite_signature=signature)
    with may(error):
        policy.check_knock(door, BOB, NEWCOMER, request)


@pytest.mark.parametrize(("history", "due"), [(History.NONE, True), (History.SHARED, False), (None, False)])
def test_newcomers_who_must_not_read_back_call_for_a_new_key(history: History | None, due: bool) -> None:
    assert policy.joining_makes_rekey_due(history) == due


# ── keys ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("role", "due", "new_epoch", "error"),
    [
        (NOBODY, True, 4, NotFound),
        (MEMBER, True, 4, None),
        (MEMBER, False, 4, Forbidden),
        (ADMIN, False, 4, None),
        (OWNER, True, 4, None),
        (ADMIN, False, 3, StaleKeyEpoch),
        (ADMIN, False, 5, StaleKeyEpoch),
    ],
)
def test_who_may_rekey(role: Role | None, due: bool, new_epoch: int, error: type[RequestError] | None) -> None:
    kind: dict[str, Any] = {
        "new_key_epoch": new_epoch,
        "key_commitment": ZERO_HASH,
        "name_hash": ZERO_HASH,
        "previous_key": b"",
    }
    with may(error):
        policy.may_rekey(member(role), replace(HEAD, rekey_required=due), GroupRekeyed(**FRAME, **kind))


@pytest.mark.parametrize(("due", "error"), [(False, None), (True, RekeyRequired)])
def test_nothing_new_is_sealed_while_a_rekey_is_due(due: bool, error: type[RequestError] | None) -> None:
    with may(error):
        policy.check_no_rekey_due(replace(HEAD, rekey_required=due))


@pytest.mark.parametrize(
    ("previous_key", "history", "error"),
    [
        (b"k", History.SHARED, None),
        (b"", History.SHARED, BadArgument),
        (b"", History.NONE, None),
        (b"k", History.NONE, BadArgument),
    ],
)
def test_a_shared_history_hands_on_its_key(
    previous_key: bytes, history: History, error: type[RequestError] | None
) -> None:
    with may(error):
        policy.check_previous_key(previous_key, history)


def wrap_for(user_id: bytes, thumbprint: bytes = KEYS.rsa_thumbprint) -> WrappedKey:
    return WrappedKey(user_id=user_id, rsa_thumbprint=thumbprint, encrypted_group_key=b"k")


@pytest.mark.parametrize(
    ("wraps", "missing", "unexpected"),
    [
        ([], [ALICE, BOB], []),
        ([wrap_for(ALICE)], [BOB], []),
        ([wrap_for(BOB), wrap_for(ALICE), wrap_for(GROUP)], [], [GROUP]),
        ([wrap_for(ALICE), wrap_for(GROUP)], [BOB], [GROUP]),
        ([wrap_for(ALICE), wrap_for(BOB, b"x" * 32)], [BOB], [BOB]),
    ],
)
def test_wraps_are_for_exactly_the_members(
    wraps: list[WrappedKey], missing: list[bytes], unexpected: list[bytes]
) -> None:
    members = {ALICE: KEYS.rsa_thumbprint, BOB: KEYS.rsa_thumbprint}
    policy.check_recipients([wrap_for(BOB), wrap_for(ALICE)], members)
    with pytest.raises(MemberSetMismatch) as info:
        policy.check_recipients(wraps, members)
    assert info.value.details is not None
    assert (info.value.details.missing, info.value.details.unexpected) == (missing, unexpected)


def test_a_member_gets_one_wrap() -> None:
    with pytest.raises(BadArgument):
        policy.check_recipients([wrap_for(ALICE), wrap_for(ALICE)], {ALICE: KEYS.rsa_thumbprint})


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({}, None),
        ({"key_epoch": 1}, None),
        ({"key_epoch": 4}, BadArgument),
        ({"rsa_thumbprint": b"x" * 32}, MemberSetMismatch),
    ],
)
def test_a_key_is_wrapped_for_the_rsa_key_in_force(changed: dict[str, Any], error: type[RequestError] | None) -> None:
    request = GroupWrap(
        id=1,
        group_id=GROUP,
        user_id=BOB,
        rsa_thumbprint=KEYS.rsa_thumbprint,
        key_epoch=3,
        encrypted_group_key=b"k",
    )
    recipient = member(MEMBER, BOB)
    assert recipient is not None
    with may(error):
        policy.may_wrap(recipient, HEAD.key_epoch, msgspec.structs.replace(request, **changed))


@pytest.mark.parametrize(("count", "error"), [(15, None), (16, LimitExceeded)])
def test_a_key_is_wrapped_so_often(count: int, error: type[RequestError] | None) -> None:
    with may(error):
        policy.check_wraps(Wraps(count, has_this=False))

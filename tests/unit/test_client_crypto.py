"""What clients seal: it opens for whom and where it is meant, and nowhere else."""

import os
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from orbital_client.crypto import backups, envelopes, fingerprints, invites, jwk, passphrases, primitives, wraps
from orbital_client.crypto.backups import Backup, Known, Pin
from orbital_client.crypto.envelopes import BUCKETS, HEAD_BYTES, MAX_CONTENT_BYTES, Field, Place
from orbital_client.crypto.groupkeys import GroupKey
from orbital_client.crypto.segments import PLAIN_BYTES, TAG_BYTES, FileSealing, padded_bytes
from orbital_client.crypto.wraps import Recipient
from orbital_client.errors import (
    BadSeal,
    CannotOpen,
    ForgedAuthor,
    Malformed,
    UnknownVersion,
    WrongKey,
    WrongPassphrase,
)
from orbital_client.identity import Identity, thumbprint
from orbital_protocol.codes import Kind
from orbital_protocol.media import SEGMENT_BYTES

GROUP, OTHER_GROUP, THREAD, REPLY, ANN, BOB = (bytes([number]) * 16 for number in range(1, 7))
KEY = GroupKey(GROUP, 3, bytes(range(32)))
PLACE = Place(Kind.REPLY_POSTED, Field.BODY, GROUP, ANN, 3, REPLY, THREAD)
SIGNING = Ed25519PrivateKey.from_private_bytes(bytes(32))
VERIFYING = SIGNING.public_key().public_bytes_raw()
STRANGER = Ed25519PrivateKey.from_private_bytes(bytes([9]) * 32)


@pytest.fixture(scope="module")
def ann() -> Identity:
    return identity(ANN)


@pytest.fixture(scope="module")
def bob() -> Identity:
    return identity(BOB)


def identity(user_id: bytes) -> Identity:
    return Identity(user_id, Ed25519PrivateKey.generate(), rsa.generate_private_key(65537, 2048))


# ── envelopes ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("size", [0, 1, *(bucket - HEAD_BYTES + more for bucket in BUCKETS[:-1] for more in (0, 1))])
def test_an_envelope_fills_the_smallest_bucket(size: int) -> None:
    content = os.urandom(size)
    envelope = envelopes.seal(KEY, PLACE, content, SIGNING)
    assert len(envelope) - primitives.OVERHEAD_BYTES == min(b for b in BUCKETS if b >= size + HEAD_BYTES)
    assert envelopes.unseal(KEY, PLACE, envelope, VERIFYING) == content


def test_an_envelope_has_an_end() -> None:
    envelope = envelopes.seal(KEY, PLACE, bytes(MAX_CONTENT_BYTES), SIGNING)
    assert len(envelope) == 65_565  # max_body_bytes
    with pytest.raises(ValueError, match="are more than the 65468"):
        envelopes.seal(KEY, PLACE, bytes(MAX_CONTENT_BYTES + 1), SIGNING)


@pytest.mark.parametrize(
    "elsewhere",
    [
        {"kind": Kind.THREAD_POSTED},
        {"field": Field.TITLE},
        {"group_id": OTHER_GROUP},
        {"author_id": BOB},
        {"epoch": 4},
        {"object_id": THREAD},
        {"parent_id": REPLY},
    ],
    ids=lambda change: next(iter(change)),
)
def test_moved_elsewhere_it_does_not_open(elsewhere: dict[str, Any]) -> None:
    envelope = envelopes.seal(KEY, PLACE, b"here", SIGNING)
    with pytest.raises(BadSeal):
        envelopes.unseal(KEY, structs.replace(PLACE, **elsewhere), envelope, VERIFYING)


@pytest.mark.parametrize("change", [{"secret": bytes(32)}, {"epoch": 4}, {"group_id": OTHER_GROUP}])
def test_under_another_key_it_does_not_open(change: dict[str, Any]) -> None:
    envelope = envelopes.seal(KEY, PLACE, b"here", SIGNING)
    with pytest.raises(BadSeal):
        envelopes.unseal(replace(KEY, **change), PLACE, envelope, VERIFYING)


def test_who_did_not_sign_it_did_not_write_it() -> None:
    """Any member can seal under any other's name: they all have the group's key."""
    envelope = envelopes.seal(KEY, PLACE, b"here", STRANGER)
    with pytest.raises(ForgedAuthor):
        envelopes.unseal(KEY, PLACE, envelope, VERIFYING)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_no_bit_of_it_can_be_changed(data: st.DataObject) -> None:
    envelope = bytearray(envelopes.seal(KEY, PLACE, b"here", SIGNING))
    at = data.draw(st.integers(0, len(envelope) - 1))
    envelope[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(UnknownVersion if at == 0 else BadSeal):
        envelopes.unseal(KEY, PLACE, bytes(envelope), VERIFYING)


@given(st.binary(max_size=400))
@settings(max_examples=100, deadline=None)
def test_foreign_bytes_are_a_typed_error(raw: bytes) -> None:
    opened: list[Any] = [
        lambda: envelopes.unseal(KEY, PLACE, raw, VERIFYING),
        lambda: backups.unseal(raw, ANN, 1, bytes(32)),
        lambda: invites.open_key(raw, GROUP, 3, REPLY, bytes(32)),
        lambda: KEY.open_previous(raw),
        lambda: wraps.wrapper_of(raw if len(raw) < 81 or raw[0] != 1 else b""),
    ]
    for call in opened:
        with pytest.raises(CannotOpen):
            call()


def padded_wrongly(plaintext: bytes) -> bytes:
    return primitives.seal(KEY.content_key(PLACE.kind, ANN), plaintext, PLACE.aad)


def signed(content: bytes) -> bytes:
    return SIGNING.sign(envelopes.CONTENT_PREFIX + PLACE.aad + content)


@pytest.mark.parametrize(
    "plaintext",
    [
        b"",
        signed(b"") + bytes(4),
        signed(b"") + bytes(255 - 64),
        (signed(b"x") + b"\0\0\0\1x").ljust(1_024, b"\0"),
        (signed(b"x") + b"\0\0\0\1xy").ljust(256, b"\0"),
        (signed(b"x") + b"\0\0\1\0x").ljust(256, b"\0"),
        (signed(b"x") + b"\xff\xff\xff\xffx").ljust(256, b"\0"),
    ],
    ids=["empty", "no bucket", "nearly a bucket", "larger bucket", "no zeros", "beyond", "far beyond"],
)
def test_padding_has_one_form(plaintext: bytes) -> None:
    with pytest.raises(Malformed):
        envelopes.unseal(KEY, PLACE, padded_wrongly(plaintext), VERIFYING)


def test_nonces_are_new_each_time() -> None:
    assert len({envelopes.seal(KEY, PLACE, b"here", SIGNING)[1:13] for _ in range(50)}) == 50


# ── keys ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_key_of_its_own_for_every_author_kind_epoch_and_group() -> None:
    keys = {
        key.content_key(kind, author)
        for key in (KEY, replace(KEY, epoch=4), replace(KEY, group_id=OTHER_GROUP), replace(KEY, secret=bytes(32)))
        for kind in (0, 14, 15)
        for author in (ANN, BOB)
    }
    assert len(keys) == 4 * 3 * 2


def test_the_commitment_is_to_one_key() -> None:
    KEY.check(KEY.commitment)
    for other in (replace(KEY, epoch=4), replace(KEY, group_id=OTHER_GROUP), replace(KEY, secret=bytes(32))):
        with pytest.raises(WrongKey, match=f"epoch {other.epoch}"):
            other.check(KEY.commitment)
    assert "secret" not in repr(KEY)


def test_the_newest_key_opens_all_before_it() -> None:
    newest = GroupKey.generate(GROUP, 4)
    sealed = newest.seal_previous(KEY)
    assert newest.open_previous(sealed) == KEY
    for other in (replace(newest, epoch=5), replace(newest, group_id=OTHER_GROUP), KEY):
        with pytest.raises(BadSeal):
            other.open_previous(sealed)


def test_a_wrap_is_for_one_member(ann: Identity, bob: Identity) -> None:
    recipient = Recipient(BOB, bob.rsa_thumbprint)
    wrapped = wraps.wrap(KEY, recipient, bob.rsa.public_key(), ANN, ann.signing)
    assert wraps.wrapper_of(wrapped) == ANN
    meant = {
        "group_id": GROUP,
        "epoch": 3,
        "recipient": recipient,
        "rsa_key": bob.rsa,
        "wrapper_key": ann.signing_key,
    }
    assert wraps.unwrap(wrapped, **meant) == KEY  # type: ignore[arg-type]
    changes: list[dict[str, Any]] = [
        {"group_id": OTHER_GROUP},
        {"epoch": 4},
        {"recipient": Recipient(ANN, bob.rsa_thumbprint)},
        {"recipient": Recipient(BOB, ann.rsa_thumbprint)},
        {"wrapper_key": bob.signing_key},
    ]
    for change in changes:
        with pytest.raises(ForgedAuthor):
            wraps.unwrap(wrapped, **{**meant, **change})
    with pytest.raises(BadSeal):
        wraps.unwrap(wrapped, **{**meant, "rsa_key": ann.rsa})  # type: ignore[arg-type]
    by_bob = wrapped[:1] + BOB + wrapped[17:]
    with pytest.raises(ForgedAuthor):
        wraps.unwrap(by_bob, **meant)  # type: ignore[arg-type]


def test_a_link_opens_the_key_until_the_rekey() -> None:
    secret, invite_id = os.urandom(32), os.urandom(16)
    sealed = invites.seal_key(KEY, invite_id, secret)
    assert invites.open_key(sealed, GROUP, 3, invite_id, secret) == KEY
    for group_id, epoch, invite, link in [
        (OTHER_GROUP, 3, invite_id, secret),
        (GROUP, 4, invite_id, secret),
        (GROUP, 3, ANN, secret),
        (GROUP, 3, invite_id, bytes(32)),
    ]:
        with pytest.raises(BadSeal):
            invites.open_key(sealed, group_id, epoch, invite, link)


def test_a_key_of_another_length_is_none() -> None:
    with pytest.raises(Malformed):
        GroupKey(GROUP, 1, bytes(31))


def test_only_the_rsa_key_that_the_log_names_is_taken(ann: Identity, bob: Identity) -> None:
    assert jwk.rsa_key(bob.public_key, bob.rsa_thumbprint).public_numbers() == bob.rsa.public_key().public_numbers()
    with pytest.raises(WrongKey):
        jwk.rsa_key(ann.public_key, bob.rsa_thumbprint)
    small = Identity(ANN, SIGNING, rsa.generate_private_key(65537, 1024))  # noqa: S505  to be refused
    with pytest.raises(Malformed):
        jwk.rsa_key(small.public_key, thumbprint(small.public_key))


def test_fingerprints_are_for_people() -> None:
    shown = fingerprints.fingerprint(ANN, bytes(32), VERIFYING)
    assert [len(group) for group in shown.split(" ")] == [5] * 10
    assert shown.replace(" ", "").isdigit()
    others = [(BOB, bytes(32), VERIFYING), (ANN, bytes([1]) * 32, VERIFYING), (ANN, bytes(32), bytes(32))]
    assert shown not in {fingerprints.fingerprint(*other) for other in others}


# ── passphrase and backup ───────────────────────────────────────────────────────────────────────────────────────────


def test_a_passphrase_gives_a_password_and_a_key_that_do_not_tell_each_other() -> None:
    known = passphrases.Secrets.of("ann", "correct horse")
    assert len(known.password) == 43
    assert passphrases.Secrets.of("ann", "correct horse") == known
    assert passphrases.Secrets.of("bob", "correct horse").password != known.password
    assert "correct" not in repr(known) and known.password not in repr(known)
    # NFKC: what looks the same is the same
    assert passphrases.Secrets.of("ann", "ﬁve") == passphrases.Secrets.of("ann", "five")


def test_a_backup_comes_back_with_its_passphrase_alone(ann: Identity) -> None:
    key = os.urandom(32)
    pins, groups = [Pin(BOB, VERIFYING, bytes(32), verified=True)], [Known(GROUP, 7, bytes(32), 3)]
    sealed = backups.seal(Backup.of(ann, pins, groups), 5, key)
    opened = backups.unseal(sealed, ANN, 5, key)
    assert (opened.pins, opened.groups) == (pins, groups)
    assert opened.identity().signing_key == ann.signing_key
    assert opened.identity().rsa_thumbprint == ann.rsa_thumbprint
    with pytest.raises(WrongPassphrase):
        backups.unseal(sealed, ANN, 5, bytes(32))
    with pytest.raises(WrongPassphrase):
        backups.unseal(sealed, BOB, 5, key)
    with pytest.raises(Malformed, match="another generation"):
        backups.unseal(sealed, ANN, 6, key)
    relabelled = sealed[:1] + (6).to_bytes(8, "big") + sealed[9:]
    with pytest.raises(WrongPassphrase):
        backups.unseal(relabelled, ANN, 6, key)
    assert repr(opened) == f"Backup({ANN.hex()})"


# ── files ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def sealed_file(sealing: FileSealing, data: bytes) -> list[bytes]:
    pieces = [data[at : at + PLAIN_BYTES] for at in range(0, len(data), PLAIN_BYTES)]
    stored = sealing.stored_bytes(len(data))
    count = -(-stored // SEGMENT_BYTES)
    pieces += [b""] * (count - len(pieces))
    return [sealing.seal(index, index == count - 1, piece) for index, piece in enumerate(pieces)]


@pytest.mark.parametrize("size", [0, 1, 2, 255, PLAIN_BYTES - 1, PLAIN_BYTES, PLAIN_BYTES + 1, 3 * PLAIN_BYTES + 77])
def test_a_file_comes_back(size: int) -> None:
    data = os.urandom(size)
    sealing = FileSealing.generate(GROUP, REPLY, size)
    segments = sealed_file(sealing, data)
    assert sum(map(len, segments)) == sealing.stored_bytes(size)
    assert {len(segment) for segment in segments[:-1]} <= {SEGMENT_BYTES}
    opened = [sealing.open(i, i == len(segments) - 1, segment) for i, segment in enumerate(segments)]
    assert b"".join(opened) == data
    assert sealing.encryption_iv[7:] == bytes(5)


def test_segments_are_bound_to_their_place() -> None:
    sealing = FileSealing.generate(GROUP, REPLY, 3 * PLAIN_BYTES)
    segments = sealed_file(sealing, os.urandom(3 * PLAIN_BYTES))
    last = len(segments) - 1
    for index, is_last, segment, by in [
        (1, False, segments[0], sealing),  # reordered
        (1, True, segments[1], sealing),  # cut short
        (last, False, segments[last], sealing),  # lengthened
        (0, False, segments[0], replace(sealing, media_id=THREAD)),
        (0, False, segments[0], replace(sealing, group_id=OTHER_GROUP)),
        (0, False, segments[0][:-1] + bytes([segments[0][-1] ^ 1]), sealing),
    ]:
        with pytest.raises(BadSeal):
            by.open(index, is_last, segment)


def test_a_file_is_as_large_as_its_author_says() -> None:
    sealing = FileSealing.generate(GROUP, REPLY, 1_000)
    [segment] = sealed_file(sealing, os.urandom(1_000))
    with pytest.raises(BadSeal, match="larger"):
        replace(sealing, size_bytes=999).open(0, True, segment)


@given(st.integers(0, 2**40))
def test_padme_says_little_and_costs_little(size: int) -> None:
    padded = padded_bytes(size)
    assert size <= padded <= size * 1.12 + 1
    if padded:
        exponent = padded.bit_length() - 1
        assert padded % (1 << max(0, exponent - exponent.bit_length())) == 0


def test_padme_as_published() -> None:
    assert [padded_bytes(size) for size in (0, 1, 8, 9, 100, 1_000, 1_000_000)] == [0, 1, 8, 10, 104, 1_024, 1_015_808]


def test_an_empty_file_is_one_empty_segment() -> None:
    sealing = FileSealing.generate(GROUP, REPLY, 0)
    assert sealing.stored_bytes(0) == TAG_BYTES
    assert sealing.open(0, True, sealing.seal(0, True, b"")) == b""

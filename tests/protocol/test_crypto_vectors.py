"""crypto.json, by itself: by orbital_client.crypto, and by few lines on the primitives of `cryptography` alone."""

import base64
import json
import unicodedata
from hashlib import pbkdf2_hmac, sha256
from typing import Any

import msgpack  # type: ignore[import-untyped]
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import load_der_private_key

from orbital_client import identity
from orbital_client.crypto import backups, contents, envelopes, fingerprints, invites, jwk, segments, wraps
from orbital_client.crypto.envelopes import BUCKETS, HEAD_BYTES, MAX_CONTENT_BYTES, Field, Place
from orbital_client.crypto.groupkeys import GroupKey
from orbital_client.crypto.passphrases import Secrets
from orbital_client.crypto.segments import PLAIN_BYTES, FileSealing
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
from orbital_client.links import InviteLink
from orbital_protocol.frames import PublicKey
from orbital_protocol.statements import verify_raw
from tests.protocol import independent
from tests.protocol.vectors import hexed, load, named

Case = dict[str, Any]

CRYPTO = load("crypto")
PEOPLE: dict[str, Case] = {person["name"]: person for person in CRYPTO["people"]}
SECRETS = {key["epoch"]: bytes.fromhex(key["secret"]) for key in CRYPTO["group_keys"]}
OUTCOMES: dict[str, type[CannotOpen]] = {
    "bad_seal": BadSeal,
    "forged_author": ForgedAuthor,
    "malformed": Malformed,
    "unknown_version": UnknownVersion,
    "wrong_key": WrongKey,
    "wrong_passphrase": WrongPassphrase,
}

x = bytes.fromhex


def fails_as(case: Case) -> Any:
    return pytest.raises(OUTCOMES[case["outcome"]])


# ── the primitives, once more ───────────────────────────────────────────────────────────────────────────────────────


def hkdf(secret: bytes, info: bytes, salt: bytes = b"") -> bytes:
    return HKDF(SHA256(), 32, salt, info).derive(secret)


def aes_gcm(key: bytes, nonce: bytes, plaintext: bytes, aad: bytes) -> bytes:
    return b"\x01" + nonce + AESGCM(key).encrypt(nonce, plaintext, aad)


def seed_of(name: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(x(PEOPLE[name]["seed"]))


def rsa_of(name: str) -> rsa.RSAPrivateKey:
    key = load_der_private_key(x(PEOPLE[name]["rsa_key"]), None)
    assert isinstance(key, rsa.RSAPrivateKey)
    return key


def place_of(case: Case) -> Place:
    ids = {name: x(value) for name, value in case.items() if name.endswith("_id")}
    return Place(kind=case["kind"], field=Field(case["field"]), epoch=case["epoch"], **ids)


# ── people and keys ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("person", CRYPTO["people"], ids=lambda person: person["name"])
def test_people_have_these_keys_and_fingerprints(person: Case) -> None:
    user_id, signing_key, thumbprint = (x(person[name]) for name in ("user_id", "signing_key", "rsa_thumbprint"))
    assert seed_of(person["name"]).public_key().public_bytes_raw() == signing_key
    required = '{{"e":"{e}","kty":"RSA","n":"{n}"}}'.format(**person["public_key"])
    assert sha256(required.encode()).digest() == thumbprint
    assert fingerprints.fingerprint(user_id, thumbprint, signing_key) == person["fingerprint"]
    digest = sha256(b"orbital.v1.fingerprint\0" + user_id + thumbprint + signing_key).digest()
    assert f"{int.from_bytes(digest[:25], 'big'):050}"[-50:] == person["fingerprint"].replace(" ", "")


@pytest.mark.parametrize("name", ["bob", "carol"])
def test_public_halves_are_those_of_private_keys(name: str) -> None:
    public_key = msgspec.convert(PEOPLE[name]["public_key"], PublicKey)
    assert jwk.rsa_key(public_key, x(PEOPLE[name]["rsa_thumbprint"])) == rsa_of(name).public_key()


@pytest.mark.parametrize("case", CRYPTO["thumbprints"])
def test_thumbprints(case: Case) -> None:
    assert identity.thumbprint(msgspec.convert(case["public_key"], PublicKey)).hex() == case["thumbprint"]


@pytest.mark.parametrize("case", CRYPTO["group_keys"], ids=lambda case: case["epoch"])
def test_group_keys(case: Case) -> None:
    group_id, secret, epoch = x(case["group_id"]), x(case["secret"]), case["epoch"]
    key = GroupKey(group_id, epoch, secret)
    assert key.commitment.hex() == case["commitment"]
    assert hkdf(secret, b"orbital.v1.commit\0" + epoch.to_bytes(4, "big"), group_id).hex() == case["commitment"]
    for content in case["content_keys"]:
        kind, author_id = content["kind"], x(content["author_id"])
        assert key.content_key(kind, author_id).hex() == content["key"]
        info = b"orbital.v1.content\0" + epoch.to_bytes(4, "big") + bytes([kind]) + author_id
        assert hkdf(secret, info, group_id).hex() == content["key"]


def test_the_key_before() -> None:
    case = CRYPTO["previous"]
    group_id, epoch, previous = x(case["group_id"]), case["epoch"], x(case["previous_secret"])
    key = GroupKey(group_id, epoch, x(case["secret"]))
    assert key.open_previous(x(case["previous_key"])) == GroupKey(group_id, epoch - 1, previous)
    assert key.seal_previous(GroupKey(group_id, epoch - 1, previous), nonce=x(case["nonce"])) == x(case["previous_key"])

    assert hkdf(key.secret, b"orbital.v1.previous\0").hex() == case["key"]
    assert (group_id + epoch.to_bytes(4, "big")).hex() == case["aad"]
    assert aes_gcm(x(case["key"]), x(case["nonce"]), previous, x(case["aad"])).hex() == case["previous_key"]


@pytest.mark.parametrize("case", **named(CRYPTO["previous"]["refused"], "name"))
def test_what_is_no_key_before(case: Case) -> None:
    previous = CRYPTO["previous"]
    key = GroupKey(x(previous["group_id"]), previous["epoch"], x(previous["secret"]))
    with fails_as(case):
        key.open_previous(x(case["previous_key"]))


# ── wraps ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def unwrapped(case: Case) -> GroupKey:
    all_wraps, recipient = CRYPTO["wraps"], PEOPLE[case["recipient"]]
    return wraps.unwrap(
        x(case["wrapped"]),
        group_id=x(all_wraps["group_id"]),
        epoch=all_wraps["epoch"],
        recipient=Recipient(x(recipient["user_id"]), x(recipient["rsa_thumbprint"])),
        rsa_key=rsa_of(case["recipient"]),
        wrapper_key=x(PEOPLE[all_wraps["wrapper"]]["signing_key"]),
    )


@pytest.mark.parametrize("case", **named(CRYPTO["wraps"]["opened"], "recipient"))
def test_wraps(case: Case) -> None:
    all_wraps, wrapper, recipient = CRYPTO["wraps"], PEOPLE[CRYPTO["wraps"]["wrapper"]], PEOPLE[case["recipient"]]
    key = unwrapped(case)
    assert key.secret.hex() == all_wraps["secret"]
    key.check(x(all_wraps["commitment"]))

    wrapped, ids = x(case["wrapped"]), recipient["user_id"] + recipient["rsa_thumbprint"] + wrapper["user_id"]
    label = b"orbital.v1.wrap\0" + x(all_wraps["group_id"] + f"{all_wraps['epoch']:08x}" + ids)
    assert label.hex() == case["label"]
    assert wrapped[:17].hex() == "01" + wrapper["user_id"]
    assert wrapped[17:81] == seed_of(all_wraps["wrapper"]).sign(b"orbital.v1.wrapped\0" + label + wrapped[81:])
    oaep = padding.OAEP(padding.MGF1(SHA256()), SHA256(), label)
    assert rsa_of(case["recipient"]).decrypt(wrapped[81:], oaep).hex() == all_wraps["secret"]


@pytest.mark.parametrize("case", **named(CRYPTO["wraps"]["refused"], "name"))
def test_wraps_that_must_not_open(case: Case) -> None:
    with fails_as(case):
        unwrapped(case).check(x(CRYPTO["wraps"]["commitment"]))


def test_what_another_got_opens_for_them() -> None:
    [others] = [case for case in CRYPTO["wraps"]["refused"] if case["name"] == "for another recipient"]
    [carols] = [case for case in CRYPTO["wraps"]["opened"] if case["recipient"] == "carol"]
    assert others["wrapped"] == carols["wrapped"]


# ── envelopes ───────────────────────────────────────────────────────────────────────────────────────────────────────


def sealed(author: str, place: Case, content: bytes, nonce: bytes) -> bytes:
    """An envelope, once more."""
    aad = b"orbital.v1" + bytes([place["kind"], place["field"]])
    aad += x(place["group_id"] + place["parent_id"] + place["object_id"] + place["author_id"])
    aad += place["epoch"].to_bytes(4, "big")
    info = b"orbital.v1.content\0" + place["epoch"].to_bytes(4, "big") + bytes([place["kind"]]) + x(place["author_id"])
    signature = seed_of(author).sign(b"orbital.v1.content\0" + aad + content)
    plaintext = signature + len(content).to_bytes(4, "big") + content
    bucket = min(bucket for bucket in (256, 1_024, 4_096, 16_384, 65_536) if bucket >= len(plaintext))
    key = hkdf(SECRETS[place["epoch"]], info, x(place["group_id"]))
    return aes_gcm(key, nonce, plaintext.ljust(bucket, b"\0"), aad)


@pytest.mark.parametrize("case", **named(CRYPTO["envelopes"], "name"))
def test_envelopes(case: Case) -> None:
    place, content, envelope = place_of(case["place"]), x(case["content"]), x(case["envelope"])
    key = GroupKey(place.group_id, place.epoch, SECRETS[place.epoch])
    assert place.author_id.hex() == PEOPLE[case["author"]]["user_id"]
    assert place.aad.hex() == case["aad"]
    assert key.content_key(place.kind, place.author_id).hex() == case["content_key"]
    assert envelopes.unseal(key, place, envelope, x(PEOPLE[case["author"]]["signing_key"])) == content
    assert envelopes.seal(key, place, content, seed_of(case["author"]), nonce=x(case["nonce"])) == envelope
    assert (
        AESGCM(x(case["content_key"])).decrypt(envelope[1:13], envelope[13:], place.aad)[:64].hex() == case["signature"]
    )
    assert sealed(case["author"], case["place"], content, x(case["nonce"])) == envelope


@pytest.mark.parametrize("case", **named(CRYPTO["envelopes"], "name"))
def test_envelopes_say_this(case: Case) -> None:
    content = x(case["content"])
    assert hexed(msgpack.unpackb(content)) == case["says"]
    read = getattr(contents, case["what"])(content)
    assert contents.encode(read) == content


def test_every_field_and_every_content_is_there() -> None:
    assert {Field(case["place"]["field"]) for case in CRYPTO["envelopes"]} == set(Field)
    structs = {type(getattr(contents, case["what"])(x(case["content"]))) for case in CRYPTO["envelopes"]}
    assert structs == {contents.Title, contents.Body, contents.File, contents.Name} | {
        *contents.Act.__subclasses__(),
        *contents.Signalled.__subclasses__(),
    }


def test_a_body_names_its_title() -> None:
    title, body = (next(case for case in CRYPTO["envelopes"] if case["name"] == name) for name in ("title", "body"))
    assert sha256(x(title["envelope"])).hexdigest() == body["says"]["title_hash"]


@pytest.mark.parametrize("size", CRYPTO["buckets"]["sizes"], ids=lambda size: size["content_bytes"])
def test_buckets(size: Case) -> None:
    case = CRYPTO["buckets"]
    place, content, nonce = place_of(case["place"]), bytes([case["byte"]]) * size["content_bytes"], x(size["nonce"])
    key = GroupKey(place.group_id, place.epoch, SECRETS[place.epoch])
    envelope = envelopes.seal(key, place, content, seed_of(case["author"]), nonce=nonce)
    assert len(envelope) == 1 + 12 + size["bucket_bytes"] + 16
    assert sha256(envelope).hexdigest() == size["sha256"]
    assert sealed(case["author"], case["place"], content, nonce) == envelope


def test_buckets_have_both_of_their_sides() -> None:
    sizes = {size["content_bytes"] for size in CRYPTO["buckets"]["sizes"]}
    fullest = {bucket - HEAD_BYTES for bucket in BUCKETS}
    assert sizes == fullest | {size + 1 for size in fullest} - {MAX_CONTENT_BYTES + 1} | {0}


@pytest.mark.parametrize("case", **named(CRYPTO["refused_envelopes"], "name"))
def test_envelopes_that_must_not_open(case: Case) -> None:
    place, signing_key = place_of(case["place"]), x(case["signing_key"])
    key = GroupKey(place.group_id, place.epoch, SECRETS[place.epoch])
    with fails_as(case):
        envelopes.unseal(key, place, x(case["envelope"]), signing_key)


def test_what_was_moved_opens_where_it_belongs() -> None:
    [reply] = [case for case in CRYPTO["envelopes"] if case["name"] == "reply"]
    moved = [case for case in CRYPTO["refused_envelopes"] if case["place"] != reply["place"]]
    differences = [{name for name in reply["place"] if case["place"][name] != reply["place"][name]} for case in moved]
    assert sorted(map(sorted, differences)) == sorted([name] for name in reply["place"])
    assert {case["envelope"] for case in moved} == {reply["envelope"]}


@pytest.mark.parametrize("case", **named(CRYPTO["contents"], "name"))
def test_contents_of_other_clients(case: Case) -> None:
    decode, content = getattr(contents, case["what"]), x(case["content"])
    if case["outcome"] == "read":
        assert decode(content).text == msgpack.unpackb(content)["text"]
    else:
        with fails_as(case):
            decode(content)


# ── invites ─────────────────────────────────────────────────────────────────────────────────────────────────────────

INVITE = CRYPTO["invite"]
LINK = InviteLink(
    invite_code=INVITE["invite_code"],
    seq=INVITE["seq"],
    **{
        name: x(INVITE[name])
        for name in ("group_id", "invite_id", "secret", "inviter_id", "inviter_signing_key", "hash")
    },
)


def test_a_link() -> None:
    assert INVITE["text"] == LINK.text
    assert InviteLink.parse(INVITE["text"]) == LINK
    code, _, fragment = INVITE["text"].partition("#")
    assert code == "orbital:" + INVITE["invite_code"]
    ids, inviter = INVITE["group_id"] + INVITE["invite_id"], INVITE["inviter_id"] + INVITE["inviter_signing_key"]
    raw = x(f"01{ids}{INVITE['secret']}{inviter}{INVITE['seq']:016x}{INVITE['hash']}")
    assert base64.urlsafe_b64encode(raw).decode().rstrip("=") == fragment


@pytest.mark.parametrize("text", INVITE["no_links"])
def test_what_is_no_link(text: str) -> None:
    with pytest.raises(ValueError, match="no Orbital invite link"):
        InviteLink.parse(text)


def test_the_keys_of_a_link() -> None:
    assert LINK.public_key.hex() == INVITE["invite_key"]
    seed = hkdf(x(INVITE["secret"]), b"orbital.v1.invite.sign\0")
    assert seed.hex() == INVITE["sign_seed"]
    assert Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw() == LINK.public_key
    assert hkdf(x(INVITE["secret"]), b"orbital.v1.invite.seal\0").hex() == INVITE["seal_key"]


def test_the_key_behind_a_link() -> None:
    key = GroupKey(LINK.group_id, INVITE["epoch"], x(INVITE["group_key"]))
    sealed_key, nonce = x(INVITE["sealed_group_key"]), x(INVITE["nonce"])
    assert invites.open_key(sealed_key, LINK.group_id, key.epoch, LINK.invite_id, LINK.secret) == key
    assert invites.seal_key(key, LINK.invite_id, LINK.secret, nonce=nonce) == sealed_key
    aad = b"orbital.v1.invite.seal\0" + x(INVITE["group_id"] + INVITE["invite_id"] + f"{INVITE['epoch']:08x}")
    assert aad.hex() == INVITE["aad"]
    assert aes_gcm(x(INVITE["seal_key"]), nonce, key.secret, aad) == sealed_key


@pytest.mark.parametrize("case", **named(INVITE["refused"], "name"))
def test_what_is_not_behind_it(case: Case) -> None:
    with fails_as(case):
        invites.open_key(x(case["sealed_group_key"]), LINK.group_id, INVITE["epoch"], LINK.invite_id, LINK.secret)


def test_a_join() -> None:
    join, joiner = INVITE["join"], PEOPLE[INVITE["join"]["joiner"]]
    keys = joiner["user_id"] + joiner["signing_key"] + joiner["rsa_thumbprint"]
    assert b"orbital.v1.join\0" + x(INVITE["group_id"] + INVITE["invite_id"] + keys) == x(join["preimage"])
    assert LINK.key.sign(x(join["preimage"])).hex() == join["invite_signature"]
    assert verify_raw(x(join["preimage"]), x(join["invite_signature"]), x(INVITE["invite_key"]))


# ── passphrases and backups ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("case", **named(CRYPTO["passphrases"], "username"))
def test_passphrases(case: Case) -> None:
    found = Secrets.of(case["username"], case["passphrase"])
    assert (found.password, found.backup_key.hex()) == (case["password"], case["backup_key"])

    assert sha256(b"orbital.v1.kdf\0" + case["username"].encode()).hexdigest() == case["salt"]
    normal = unicodedata.normalize("NFKC", case["passphrase"]).encode()
    root = pbkdf2_hmac("sha256", normal, x(case["salt"]), 600_000)
    assert case["rounds"] == 600_000
    assert base64.urlsafe_b64decode(case["password"] + "=") == hkdf(root, b"orbital.v1.login\0")
    assert hkdf(root, b"orbital.v1.backup\0").hex() == case["backup_key"]


def test_normalisation_matters() -> None:
    assert any(
        case["passphrase"] != unicodedata.normalize("NFKC", case["passphrase"]) for case in CRYPTO["passphrases"]
    )


def test_a_backup() -> None:
    case = CRYPTO["backup"]
    user_id, generation, key = x(case["user_id"]), case["generation"], x(case["key"])
    assert case["key"] in {passphrase["backup_key"] for passphrase in CRYPTO["passphrases"]}
    opened = backups.unseal(x(case["backup"]), user_id, generation, key)
    assert backups.seal(opened, generation, key, nonce=x(case["nonce"])).hex() == case["backup"]
    assert opened.identity().signing_key.hex() == PEOPLE["bob"]["signing_key"]
    assert opened.identity().rsa_thumbprint.hex() == PEOPLE["bob"]["rsa_thumbprint"]

    assert hexed(msgpack.unpackb(x(case["content"]))) == case["says"]
    assert b"orbital.v1.backup\0" + user_id + generation.to_bytes(8, "big") == x(case["aad"])
    once_more = aes_gcm(key, x(case["nonce"]), x(case["content"]), x(case["aad"]))
    assert b"\x01" + generation.to_bytes(8, "big") + once_more[1:] == x(case["backup"])


@pytest.mark.parametrize("case", **named(CRYPTO["backup"]["refused"], "name"))
def test_backups_that_must_not_open(case: Case) -> None:
    backup = CRYPTO["backup"]
    with fails_as(case):
        backups.unseal(x(case["backup"]), x(backup["user_id"]), backup["generation"], x(backup["key"]))


# ── files ───────────────────────────────────────────────────────────────────────────────────────────────────────────

FILES = CRYPTO["files"]


def sealing(size_bytes: int) -> FileSealing:
    return FileSealing(
        x(FILES["group_id"]), x(FILES["media_id"]), size_bytes, x(FILES["key"]), x(FILES["encryption_iv"])
    )


def padme(size_bytes: int) -> int:
    """As it was published, with the logarithms as lengths of binary numbers."""
    if size_bytes < 2:
        return size_bytes
    exponent = len(f"{size_bytes:b}") - 1
    step: int = 2 ** (exponent - len(f"{exponent:b}"))
    return -(-size_bytes // step) * step


@pytest.mark.parametrize("case", FILES["sizes"], ids=lambda case: case["size_bytes"])
def test_files(case: Case) -> None:
    size, padded = case["size_bytes"], case["padded_bytes"]
    data, by = bytes([FILES["byte"]]) * size, sealing(size)
    assert by.stored_bytes(size) == case["stored_bytes"] == sum(piece["stored_bytes"] for piece in case["segments"])
    last, stored = len(case["segments"]) - 1, b""
    for index, piece in enumerate(case["segments"]):
        share = data[index * PLAIN_BYTES : (index + 1) * PLAIN_BYTES]
        segment = by.seal(index, index == last, share)
        assert by.open(index, index == last, segment) == share
        assert sha256(segment).hexdigest() == piece["sha256"]
        stored += segment

        assert piece["nonce"] == FILES["encryption_iv"][:14] + f"{index:08x}" + ("01" if index == last else "00")
        plain = data.ljust(padded, b"\0")[index * 65_520 : (index + 1) * 65_520]
        aad = b"orbital.v1.segment\0" + x(FILES["group_id"] + FILES["media_id"])
        assert AESGCM(x(FILES["key"])).encrypt(x(piece["nonce"]), plain, aad) == segment
        assert aad.hex() == FILES["aad"]
    assert independent.root_of(stored).hex() == case["root"]


@pytest.mark.parametrize("case", FILES["padme"], ids=lambda case: case["size_bytes"])
def test_padme(case: Case) -> None:
    size, padded = case["size_bytes"], case["padded_bytes"]
    assert segments.padded_bytes(size) == padded == padme(size)
    assert sealing(size).stored_bytes(size) == case["stored_bytes"] == padded + 16 * max(1, -(-padded // 65_520))


@pytest.mark.parametrize("case", **named(FILES["refused"], "name"))
def test_segments_that_must_not_open(case: Case) -> None:
    with fails_as(case):
        sealing(case["size_bytes"]).open(case["index"], case["last"], x(case["segment"]))


def test_every_outcome_is_there() -> None:
    found = json.dumps(CRYPTO)
    assert all(f'"outcome": "{outcome}"' in found for outcome in OUTCOMES)

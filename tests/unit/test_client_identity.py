"""Keys, ids, links, and the files that they and cursors are kept in."""

import base64
import json
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from orbital_client.files import replace_file
from orbital_client.wire import Cursor, FileCursors, FileTokens, Identity, InviteLink, thumbprint, uuid7
from orbital_protocol import ZERO_HASH
from orbital_protocol.frames import PublicKey
from tests.unit.client_relay import identity


def test_thumbprints_are_those_of_rfc_7638() -> None:
    """The example of its section 3.1."""
    key = PublicKey(
        kty="RSA",
        n="0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3o"
        "knjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHz"
        "u6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8"
        "awapJzKnqDKgw",
        e="AQAB",
        alg="RS256",
        kid="2011-04-29",
    )
    assert base64.urlsafe_b64encode(thumbprint(key)) == b"NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs="


def test_a_new_identity_has_keys_of_the_promised_sizes() -> None:
    who = Identity.generate(is_bot=True)
    assert who.rsa.key_size == 3072
    assert (who.public_key.kty, who.public_key.e, who.public_key.alg) == ("RSA", "AQAB", "RSA-OAEP-256")
    assert len(who.signing_key) == 32
    assert who.is_bot
    assert who.public_key.d is None


def test_an_identity_survives_its_file_which_is_private(tmp_path: Path) -> None:
    who = identity()
    path = tmp_path / "ann.json"
    path.write_text("something older")
    who.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["ann.json"]
    loaded = Identity.load(path)
    assert (loaded.user_id, loaded.signing_key, loaded.public_key, loaded.is_bot) == (
        who.user_id,
        who.signing_key,
        who.public_key,
        False,
    )


def test_a_file_that_holds_no_identity_is_refused(tmp_path: Path) -> None:
    who = identity()
    path = tmp_path / "ann.json"
    who.save(path)
    stored = json.loads(path.read_text())
    swapped = {**stored, "rsa_key": stored["signing_key"]}
    path.write_text(json.dumps(swapped))
    with pytest.raises(ValueError, match="another kind"):
        Identity.load(path)
    path.write_text("{}")
    with pytest.raises(ValueError, match="user_id"):
        Identity.load(path)


def test_secrets_are_not_in_what_is_printed() -> None:
    who = identity()
    private = who.signing.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
    assert private.hex() not in repr(who) and repr(private)[2:-1] not in repr(who)
    invite = link()
    assert repr(invite.secret)[2:-1] not in repr(invite)


def test_ids_are_uuids_of_version_7_in_the_order_of_their_making() -> None:
    before = time.time_ns() // 1_000_000
    ids = [uuid7() for _ in range(200)]
    after = time.time_ns() // 1_000_000
    assert len(set(ids)) == 200
    for made in ids:
        assert len(made) == 16
        assert made[6] >> 4 == 7
        assert made[8] >> 6 == 0b10
        assert before <= int.from_bytes(made[:6], "big") <= after


def link() -> InviteLink:
    return InviteLink(
        invite_code="aB3dE6gH",
        group_id=uuid7(),
        invite_id=uuid7(),
        secret=bytes(range(32)),
        inviter_id=uuid7(),
        inviter_signing_key=identity().signing_key,
        seq=2**40,
        hash=bytes(range(100, 132)),
    )


def test_a_link_survives_being_text() -> None:
    invite = link()
    assert InviteLink.parse(invite.text) == invite
    assert InviteLink.parse(f" {invite.text.removeprefix('orbital:')}\n") == invite
    code, _, fragment = invite.text.removeprefix("orbital:").partition("#")
    assert code == "aB3dE6gH"
    raw = base64.urlsafe_b64decode(fragment + "==")
    assert raw[0] == 1
    assert raw[1:17] == invite.group_id
    assert len(raw) == 1 + 16 + 16 + 32 + 16 + 32 + 8 + 32


def test_the_key_of_a_link_comes_from_its_secret_alone() -> None:
    one, other = link(), link()
    assert one.public_key == other.public_key
    assert isinstance(one.key, Ed25519PrivateKey)
    assert InviteLink.parse(one.text).public_key == one.public_key
    assert one.at("12345678", Cursor(group_id=one.group_id, seq=3, hash=ZERO_HASH)).seq == 3


@pytest.mark.parametrize("text", ["", "orbital:aB3dE6gH", "orbital:aB3dE6gH#", "orbital:aB3dE6gH#AgID", "x#é", "#"])
def test_what_is_no_link_is_refused_without_showing_it(text: str) -> None:
    with pytest.raises(ValueError, match="no Orbital invite link") as raised:
        InviteLink.parse(text)
    assert not text.strip() or text not in str(raised.value)


def test_a_link_of_another_version_is_refused() -> None:
    invite = link()
    code, _, fragment = invite.text.partition("#")
    raw = bytearray(base64.urlsafe_b64decode(fragment + "=="))
    raw[0] = 2
    with pytest.raises(ValueError, match="newer version"):
        InviteLink.parse(f"{code}#{base64.urlsafe_b64encode(raw).decode()}")


async def test_files_that_are_not_there_hold_nothing(tmp_path: Path) -> None:
    assert await FileCursors(tmp_path / "cursors").load() == ()
    assert await FileTokens(tmp_path / "tokens").load() is None
    await FileTokens(tmp_path / "tokens").save(None)


async def test_cursors_survive_their_file(tmp_path: Path) -> None:
    cursors = [Cursor(group_id=uuid7(), seq=seq, hash=bytes([seq] * 32)) for seq in range(3)]
    await FileCursors(tmp_path / "cursors").save(cursors)
    assert await FileCursors(tmp_path / "cursors").load() == cursors


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    replace_file(path, b"before")

    def fail(_: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="no space left"):
        replace_file(path, b"after")
    assert path.read_bytes() == b"before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]

"""Which public keys the relay takes in."""

import base64
import json
from functools import cache
from hashlib import sha256

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from orbital_protocol.frames import PublicKey
from orbital_relay.errors import BadArgument
from orbital_relay.keys import check_public_key, check_signing_key

P = 2**255 - 19
D = -121665 * pow(121666, -1, P) % P


def base64url(number: int, extra: bytes = b"") -> str:
    raw = extra + number.to_bytes((number.bit_length() + 7) // 8, "big")
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


@cache
def modulus(bits: int = 2048) -> int:
    return rsa.generate_private_key(public_exponent=65537, key_size=bits).public_key().public_numbers().n


def jwk(**changes: object) -> PublicKey:
    good = PublicKey(kty="RSA", n=base64url(modulus()), e="AQAB")
    return msgspec.structs.replace(good, **changes)


# ── RSA ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_thumbprint_is_that_of_rfc_7638() -> None:
    """The example of its section 3.1."""
    n = (
        "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknj"
        "hMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQv"
        "RL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqD"
        "Kgw"
    )
    expected = base64.urlsafe_b64decode("NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs=")
    assert check_public_key(PublicKey(kty="RSA", n=n, e="AQAB")) == expected


def test_members_that_are_not_required_do_not_change_the_thumbprint() -> None:
    plain = jwk()
    members = json.dumps({"e": plain.e, "kty": plain.kty, "n": plain.n}, separators=(",", ":"))
    adorned = jwk(alg="RSA-OAEP-256", use="enc", key_ops=["encrypt", "wrapKey"], kid="mine", ext=True)
    assert check_public_key(plain) == check_public_key(adorned) == sha256(members.encode()).digest()


@pytest.mark.parametrize("bits", [2048, 3072, 4096])
def test_sizes_that_are_taken(bits: int) -> None:
    assert len(check_public_key(jwk(n=base64url(modulus(bits))))) == 32


REFUSED: dict[str, tuple[dict[str, object], str]] = {
    "another kind of key": ({"kty": "EC"}, "kty"),
    "another case": ({"kty": "rsa"}, "kty"),
    "e = 3": ({"e": "Aw"}, "e"),
    "e padded with a zero": ({"e": "AAEAAQ"}, "e"),
    "no e": ({"e": ""}, "e"),
    "another algorithm": ({"alg": "RSA-OAEP"}, "alg"),
    "an algorithm for signing": ({"alg": "RS256"}, "alg"),
    "for signing": ({"use": "sig"}, "use"),
    "private operations": ({"key_ops": ["decrypt"]}, "key_ops"),
    "operations of signing": ({"key_ops": ["encrypt", "verify"]}, "key_ops"),
    "a bit too short": ({"n": base64url((1 << 2046) + 1)}, "n"),
    "short": ({"n": base64url((1 << 1023) + 1)}, "n"),
    "a bit too long": ({"n": base64url((1 << 4096) + 1)}, "n"),
    "even": ({"n": base64url(1 << 2047)}, "n"),
    "a leading zero octet": ({"n": base64url(modulus(), b"\0")}, "n"),
    "padded": ({"n": base64url(modulus()) + "=="}, "n"),
    "of the other base64": ({"n": "+/" + base64url(modulus())[2:]}, "n"),
    "stray bits": ({"n": base64url(modulus())[:-1] + "_"}, "n"),
    "a space": ({"n": " " + base64url(modulus())}, "n"),
    "a letter that is not ASCII": ({"n": "ä" + base64url(modulus())[1:]}, "n"),
    "empty": ({"n": ""}, "n"),
    **{f"private {member}": ({member: "AQAB"}, member) for member in ("d", "p", "q", "dp", "dq", "qi")},
}


@pytest.mark.parametrize("case", REFUSED)
def test_keys_that_are_refused(case: str) -> None:
    changes, member = REFUSED[case]
    with pytest.raises(BadArgument) as refused:
        check_public_key(jwk(**changes))
    assert refused.value.details is not None
    assert refused.value.details.field == f"public_key.{member}"


# ── Ed25519 ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def refused(key: bytes) -> bool:
    try:
        check_signing_key(key)
    except BadArgument as error:
        assert error.details is not None
        assert error.details.field == "signing_key"
        return True
    return False


Point = tuple[int, int]


def add(one: Point, other: Point) -> Point:
    """The group law, in the words of RFC 8032; an oracle of the test's own."""
    (x1, y1), (x2, y2) = one, other
    k = D * x1 * x2 * y1 * y2
    x = (x1 * y2 + x2 * y1) * pow(1 + k, -1, P) % P
    y = (y1 * y2 + x1 * x2) * pow(1 - k, -1, P) % P
    return x, y


def decompress(y: int) -> Point | None:
    """A point with this y, if there is one."""
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if x * x % P != square:
        x = x * pow(2, (P - 1) // 4, P) % P
    return (x, y) if x * x % P == square else None


def encode(point: Point) -> bytes:
    return (point[1] | (point[0] & 1) << 255).to_bytes(32, "little")


def torsion() -> list[Point]:
    """The eight points of small order, found from any point: multiply it by the big prime order."""
    order = 2**252 + 27742317777372353535851937790883648493
    for y in range(2, 100):
        point = decompress(y)
        if point is None:
            continue
        small, double, n = (0, 1), point, order
        while n:
            small = add(small, double) if n & 1 else small
            double, n = add(double, double), n >> 1
        found = [(0, 1)]
        while (following := add(found[-1], small)) != (0, 1):
            found.append(following)
        if len(found) == 8:
            return found
    raise AssertionError("one point in two has a part of order 8")


SMALL = torsion()


@given(st.binary(min_size=32, max_size=32))
def test_every_key_that_a_client_makes_is_taken(seed: bytes) -> None:
    assert not refused(Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw())


@pytest.mark.parametrize("point", SMALL)
def test_keys_of_small_order_are_refused(point: Point) -> None:
    assert refused(encode(point))


def test_small_order_is_refused_in_every_encoding_that_libraries_take() -> None:
    """Also with the other sign bit, and with y + p where that fits in 255 bits."""
    keys = {
        (y | sign << 255).to_bytes(32, "little")
        for _, y0 in SMALL
        for y in (y0, y0 + P)
        if y < 2**255
        for sign in (0, 1)
    }
    assert len(keys) == 14
    assert all(refused(key) for key in keys)


def test_the_check_is_needed() -> None:
    """By a key of small order a signature verifies that nobody made, for one message in a few."""
    forged = encode((0, 1)) + bytes(32)
    Ed25519PublicKey.from_public_bytes(encode(SMALL[0])).verify(forged, b"anything")


@pytest.mark.parametrize("excess", range(19))
@pytest.mark.parametrize("sign", [0, 1])
def test_y_that_is_not_below_p_is_refused(excess: int, sign: int) -> None:
    assert refused((P + excess | sign << 255).to_bytes(32, "little"))


@given(st.integers(2, P - 1), st.integers(0, 1))
def test_what_is_no_point_is_refused_and_only_that(y: int, sign: int) -> None:
    if y in {point[1] for point in SMALL}:
        return
    assert refused((y | sign << 255).to_bytes(32, "little")) is (decompress(y) is None)

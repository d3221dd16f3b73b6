"""People, and the keys of their group: sections 18.1 to 18.3, and 18.8."""

from dataclasses import replace

import msgspec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from generator import world
from generator.crypto import secrets
from generator.crypto.secrets import BOB, CAROL, KEY, Case, altered, group_key, nonce, refused, version_2
from generator.world import ALICE, GROUP, THREAD, Person
from orbital_client.crypto import primitives, wraps
from orbital_client.crypto.fingerprints import fingerprint
from orbital_client.crypto.groupkeys import PREVIOUS_INFO
from orbital_client.identity import Identity
from orbital_protocol.codes import Kind
from orbital_protocol.frames import PublicKey


def people() -> list[Case]:
    """Nobody holds Alice's RSA key."""
    return [
        _person(ALICE, ALICE.public_key, ALICE.rsa_thumbprint),
        _holder(world.BOB, BOB),
        _holder(world.CAROL, CAROL),
    ]


def _holder(person: Person, identity: Identity) -> Case:
    rsa_key = identity.rsa.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    return {**_person(person, identity.public_key, identity.rsa_thumbprint), "rsa_key": rsa_key}


def _person(person: Person, public_key: PublicKey, rsa_thumbprint: bytes) -> Case:
    return {
        "name": person.name,
        "user_id": person.user_id,
        "seed": person.seed,
        "signing_key": person.signing_key,
        "public_key": msgspec.to_builtins(public_key),
        "rsa_thumbprint": rsa_thumbprint,
        "fingerprint": fingerprint(person.user_id, rsa_thumbprint, person.signing_key),
    }


def thumbprints() -> list[Case]:
    """A JWK's other members, and their order, are not in its thumbprint."""
    n = BOB.public_key.n
    bare = {"e": "AQAB", "n": n, "kty": "RSA"}
    more = {"kty": "RSA", "n": n, "key_ops": ["wrapKey"], "alg": "RSA-OAEP-256", "ext": True, "e": "AQAB"}
    return [{"public_key": key, "thumbprint": BOB.rsa_thumbprint} for key in (bare, more)]


def group_keys() -> list[Case]:
    """The first two epochs, and the last one that there is."""
    return [
        {
            "group_id": key.group_id,
            "epoch": key.epoch,
            "secret": key.secret,
            "commitment": key.commitment,
            "content_keys": [
                {"kind": int(kind), "author_id": author, "key": key.content_key(kind, author)}
                for kind in (0, Kind.THREAD_POSTED, Kind.MEDIA_POSTED)
                for author in (ALICE.user_id, BOB.user_id)
            ],
        }
        for key in map(group_key, (1, 2, 2**31 - 1))
    ]


def previous_keys() -> Case:
    """The key of epoch 1 under that of epoch 2."""
    key = primitives.derive(KEY.secret, PREVIOUS_INFO)
    place = GROUP + KEY.epoch.to_bytes(4, "big")
    sealed = KEY.seal_previous(group_key(1), nonce=nonce("previous"))
    elsewhere = replace(KEY, group_id=THREAD).seal_previous(group_key(1), nonce=nonce("elsewhere"))
    short = primitives.seal(key, bytes(31), place, nonce=nonce("short"))
    return {
        "group_id": GROUP,
        "epoch": KEY.epoch,
        "secret": KEY.secret,
        "key": key,
        "nonce": nonce("previous"),
        "aad": place,
        "previous_secret": group_key(1).secret,
        "previous_key": sealed,
        "refused": [
            refused("another group's", "bad_seal", previous_key=elsewhere),
            refused("altered", "bad_seal", previous_key=altered(sealed)),
            refused("unknown version", "unknown_version", previous_key=version_2(sealed)),
            refused("31 bytes", "malformed", previous_key=short),
        ],
    }


def _label(recipient: Identity, epoch: int = KEY.epoch) -> bytes:
    ids = recipient.user_id + recipient.rsa_thumbprint + ALICE.user_id
    return wraps.LABEL_PREFIX + GROUP + epoch.to_bytes(4, "big") + ids


def _wrap(label: bytes, oaep: bytes, signer: Person = ALICE) -> bytes:
    """What OAEP made, signed. Whoever signs, it says to be Alice's."""
    signature = signer.private_key.sign(wraps.SIGNATURE_PREFIX + label + oaep)
    return primitives.VERSION + ALICE.user_id + signature + oaep


def wrapped_keys() -> Case:
    """By Alice, in epoch 2."""
    opened = [
        ("bob", _label(BOB), _wrap(_label(BOB), secrets.WRAPPED_FOR_BOB)),
        ("carol", _label(CAROL), _wrap(_label(CAROL), secrets.WRAPPED_FOR_CAROL)),
    ]
    return {
        "group_id": GROUP,
        "epoch": KEY.epoch,
        "wrapper": "alice",
        "secret": KEY.secret,
        "commitment": KEY.commitment,
        "opened": [{"recipient": name, "label": label, "wrapped": wrapped} for name, label, wrapped in opened],
        "refused": [refused(name, outcome, recipient="bob", wrapped=raw) for name, outcome, raw in _not_for_bob()],
    }


def _not_for_bob() -> list[tuple[str, str, bytes]]:
    label = _label(BOB)
    good = _wrap(label, secrets.WRAPPED_FOR_BOB)
    return [
        ("for another recipient", "forged_author", _wrap(_label(CAROL), secrets.WRAPPED_FOR_CAROL)),
        ("for another epoch", "forged_author", _wrap(_label(BOB, 1), secrets.WRAPPED_FOR_ANOTHER_EPOCH)),
        ("signed by another member", "forged_author", _wrap(label, secrets.WRAPPED_FOR_BOB, world.CAROL)),
        ("altered", "forged_author", altered(good)),
        ("under another RSA key", "bad_seal", _wrap(label, secrets.WRAPPED_UNDER_CAROLS_KEY)),
        ("with another label", "bad_seal", _wrap(label, secrets.WRAPPED_FOR_ANOTHER_EPOCH)),
        ("another key than the others got", "wrong_key", _wrap(label, secrets.WRAPPED_ANOTHER_KEY)),
        ("31 bytes", "malformed", _wrap(label, secrets.WRAPPED_SHORT_KEY)),
        ("unknown version", "unknown_version", version_2(good)),
        ("cut short", "malformed", good[:81]),
        ("nothing", "malformed", b""),
    ]

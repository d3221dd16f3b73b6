"""Passphrases and backups: section 18.9."""

from hashlib import sha256
from typing import Final

import msgspec

from generator.crypto.secrets import BOB, CAROL, HEAD, KEY, Case, altered, nonce, refused, version_2
from generator.world import ALICE, GROUP
from orbital_client.crypto import backups
from orbital_client.crypto.backups import Backup, Known, Pin
from orbital_client.crypto.passphrases import ROUNDS, SALT_PREFIX, Secrets

USERNAME: Final = "bob_42"
PASSPHRASE: Final = "orbit lantern gravel seven violet moth"  # noqa: S105  guards nothing
GENERATION: Final = 7
OTHER_KEY: Final = bytes(32)


def passphrases() -> list[Case]:
    """The second is of compatibility characters and a decomposed accent, which NFKC replaces and composes."""
    return [_passphrase(USERNAME, PASSPHRASE), _passphrase("ann", "ﬁve cafe\u0301s №9")]


def _passphrase(username: str, passphrase: str) -> Case:
    found = Secrets.of(username, passphrase)
    return {
        "username": username,
        "passphrase": passphrase,
        "salt": sha256(SALT_PREFIX + username.encode()).digest(),
        "rounds": ROUNDS,
        "password": found.password,
        "backup_key": found.backup_key,
    }


def backup() -> Case:
    """Bob's, under the first passphrase."""
    kept = Backup.of(
        BOB,
        [Pin(ALICE.user_id, ALICE.signing_key, ALICE.rsa_thumbprint, verified=True)],
        [Known(GROUP, HEAD.seq, HEAD.hash, KEY.epoch)],
    )
    key = Secrets.of(USERNAME, PASSPHRASE).backup_key
    sealed = backups.seal(kept, GENERATION, key, nonce=nonce("backup"))
    return {
        "user_id": BOB.user_id,
        "generation": GENERATION,
        "key": key,
        "nonce": nonce("backup"),
        "aad": backups.PREFIX + BOB.user_id + GENERATION.to_bytes(8, "big"),
        "says": msgspec.to_builtins(kept, builtin_types=(bytes,)),
        "content": msgspec.msgpack.encode(kept),
        "backup": sealed,
        "refused": [refused(name, outcome, backup=raw) for name, outcome, raw in _not_this_one(kept, key, sealed)],
    }


def _not_this_one(kept: Backup, key: bytes, sealed: bytes) -> list[tuple[str, str, bytes]]:
    carols = msgspec.structs.replace(kept, user_id=CAROL.user_id)
    before = backups.seal(kept, GENERATION - 1, key, nonce=nonce("backup 2"))
    relabelled = before[:1] + GENERATION.to_bytes(8, "big") + before[9:]
    return [
        (
            "another passphrase's",
            "wrong_passphrase",
            backups.seal(kept, GENERATION, OTHER_KEY, nonce=nonce("backup 3")),
        ),
        ("another user's", "wrong_passphrase", backups.seal(carols, GENERATION, key, nonce=nonce("backup 4"))),
        ("another generation", "malformed", before),
        ("another generation, relabelled", "wrong_passphrase", relabelled),
        ("altered", "wrong_passphrase", altered(sealed)),
        ("cut short", "malformed", sealed[:8]),
        ("unknown version", "unknown_version", version_2(sealed)),
    ]

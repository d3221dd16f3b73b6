"""An invite link, the key behind it, and a join by it: section 18.6."""

from typing import Final

from generator.crypto.secrets import BOB, HEAD, KEY, SECRET, Case, altered, group_key, nonce, refused, version_2
from generator.world import ALICE, GROUP, INVITE, THREAD
from orbital_client.crypto import invites, primitives
from orbital_client.links import SIGN_INFO, InviteLink
from orbital_protocol.statements import join_preimage

LINK: Final = InviteLink(
    invite_code="k3Tz81Qw",
    group_id=GROUP,
    invite_id=INVITE,
    secret=SECRET,
    inviter_id=ALICE.user_id,
    inviter_signing_key=ALICE.signing_key,
    seq=HEAD.seq,
    hash=HEAD.hash,
)


def invite() -> Case:
    """Alice's link of epoch 2."""
    sealed = invites.seal_key(KEY, INVITE, SECRET, nonce=nonce("invite"))
    return {
        "invite_code": LINK.invite_code,
        "group_id": GROUP,
        "invite_id": INVITE,
        "secret": SECRET,
        "inviter_id": LINK.inviter_id,
        "inviter_signing_key": LINK.inviter_signing_key,
        "seq": LINK.seq,
        "hash": LINK.hash,
        "text": LINK.text,
        "sign_seed": primitives.derive(SECRET, SIGN_INFO),
        "invite_key": LINK.public_key,
        "seal_key": primitives.derive(SECRET, invites.SEAL_INFO),
        "epoch": KEY.epoch,
        "group_key": KEY.secret,
        "nonce": nonce("invite"),
        "aad": invites.SEAL_INFO + GROUP + INVITE + KEY.epoch.to_bytes(4, "big"),
        "sealed_group_key": sealed,
        "refused": _not_behind_it(sealed),
        "join": _join(),
        "no_links": [
            LINK.text.replace("#", ""),
            LINK.text.replace("#A", "#B"),
            LINK.text.replace("#A", "#!"),
            LINK.text[:-1],
            LINK.text + "AAAA",
            f"orbital:{LINK.invite_code}",
        ],
    }


def _not_behind_it(sealed: bytes) -> list[Case]:
    others = [
        ("another invite's", invites.seal_key(KEY, THREAD, SECRET, nonce=nonce("invite 2"))),
        ("another epoch's", invites.seal_key(group_key(1), INVITE, SECRET, nonce=nonce("invite 3"))),
        ("another link's", invites.seal_key(KEY, INVITE, bytes(32), nonce=nonce("invite 4"))),
        ("altered", altered(sealed)),
    ]
    return [
        *(refused(name, "bad_seal", sealed_group_key=other) for name, other in others),
        refused("unknown version", "unknown_version", sealed_group_key=version_2(sealed)),
        refused("cut short", "malformed", sealed_group_key=sealed[:28]),
    ]


def _join() -> Case:
    preimage = join_preimage(
        group_id=GROUP,
        invite_id=INVITE,
        user_id=BOB.user_id,
        signing_key=BOB.signing_key,
        rsa_thumbprint=BOB.rsa_thumbprint,
    )
    return {"joiner": "bob", "preimage": preimage, "invite_signature": LINK.key.sign(preimage)}

"""What clients do among themselves, section 18 of SPEC.md: case by case, and with each what must not open.

secrets  fixed keys           keys     people, group keys, wraps     envelopes  what members write
invites  a link, and a join   backups  passphrases, a backup         files      segments, padding
"""

from generator.crypto import backups, envelopes, files, invites, keys
from generator.crypto.secrets import Case


def cases() -> Case:
    """The content of crypto.json, with bytes as bytes."""
    return {
        "people": keys.people(),
        "thumbprints": keys.thumbprints(),
        "group_keys": keys.group_keys(),
        "previous": keys.previous_keys(),
        "wraps": keys.wrapped_keys(),
        "envelopes": envelopes.sealed_envelopes(),
        "buckets": envelopes.buckets(),
        "refused_envelopes": envelopes.refused_envelopes(),
        "contents": envelopes.odd_contents(),
        "invite": invites.invite(),
        "passphrases": backups.passphrases(),
        "backup": backups.backup(),
        "files": files.files(),
    }

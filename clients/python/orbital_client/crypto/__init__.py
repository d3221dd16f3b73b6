"""What only clients know: keys, and what is sealed under them. Pure functions of bytes; SPEC.md has the formats.

primitives  HKDF, AES-GCM under a version byte       groupkeys   one epoch's key, and what is derived from it
envelopes   contents of posts, names and signals     contents    what is inside of an envelope
wraps       a group key for one member               invites     a group key behind an invite link
segments    files, segment by segment                backups     a user's keys under a passphrase
jwk         RSA keys of others                       fingerprints  what people compare
passphrases  what is derived from a passphrase
"""

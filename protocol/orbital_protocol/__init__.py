"""The Orbital protocol, version 1: everything that relay and client must agree on, without any I/O.

codes       numbers and words: error codes, close codes, event kinds, roles, scopes
frames      one typed struct per frame, and the table of requests and their answers
codec       bytes to frames and back, with limits on depth, length and size
statements  the signed arrays that change a group
chain       content hashes and the hash chain of a group's log
points      which signing keys are good
media       segments of a file, and their root
fields      the types of values, with their bounds

`protocol/SPEC.md` is normative; `protocol/vectors/` holds byte-exact examples of all of it.
"""

PROTOCOL_VERSION = 1
SUBPROTOCOL = "orbital.v1"
ZERO_ID = bytes(16)
ZERO_HASH = bytes(32)

"""Fixed people, ids, keys and files, and the log of a group in which every kind of event happens.

Nothing here is random and nothing is secret: each value is the SHA-256 of a name. Ciphertexts are stand-ins.
"""

import base64
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from orbital_protocol import ZERO_HASH, ZERO_ID, chain, statements
from orbital_protocol.codes import CHANGES_ROSTER, History, Kind, Role
from orbital_protocol.frames import Event, PublicKey, SignedStatement
from orbital_protocol.media import Root
from orbital_protocol.statements import RosterEntry, Statement

START_AT = 1_770_091_445_000_000
"""When the log begins, in microseconds since 1970 UTC."""
DAY_US = 86_400_000_000
MEDIA_LIFE_US = 7 * DAY_US
"""How long a file is kept."""


def stretch(name: str, size: int) -> bytes:
    """Fixed bytes for a name: SHA-256 of the name and a counter, as often as needed."""
    blocks = (sha256(f"orbital vector {name} {n}".encode()).digest() for n in range(-(-size // 32)))
    return b"".join(blocks)[:size]


def make_id(name: str) -> bytes:
    """A fixed UUID of version 7: a time in milliseconds, then fixed bits."""
    tail = bytearray(stretch(f"id {name}", 10))
    tail[0] = 0x70 | tail[0] & 0x0F
    tail[2] = 0x80 | tail[2] & 0x3F
    return (START_AT // 1000).to_bytes(6, "big") + bytes(tail)


def cipher(name: str, size: int = 29) -> bytes:
    """A stand-in for a ciphertext: the version byte 0x01 and fixed bytes."""
    return b"\x01" + stretch(f"ciphertext {name}", size - 1)


def file_bytes(size: int) -> bytes:
    """A file of this size: byte number i, from 0, is i mod 251, so that no segment is like the one before."""
    return (bytes(range(251)) * (size // 251 + 1))[:size]


def root_of(data: bytes) -> bytes:
    root = Root()
    root.update(data)
    return root.digest()


def base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


@dataclass(frozen=True)
class Person:
    """A user of the vectors. `generation` counts key replacements."""

    name: str
    is_bot: bool = False
    generation: int = 1

    @property
    def user_id(self) -> bytes:
        return make_id(f"user {self.name}")

    @property
    def seed(self) -> bytes:
        return stretch(f"seed {self.name} {self.generation}", 32)

    @property
    def private_key(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.seed)

    @property
    def signing_key(self) -> bytes:
        return self.private_key.public_key().public_bytes_raw()

    @property
    def public_key(self) -> PublicKey:
        """An RSA key that nobody holds the other half of: 2048 fixed bits, first and last of them set."""
        modulus = bytearray(stretch(f"rsa {self.name} {self.generation}", 256))
        modulus[0] |= 0x80
        modulus[-1] |= 0x01
        return PublicKey(kty="RSA", n=base64url(bytes(modulus)), e="AQAB")

    @property
    def rsa_thumbprint(self) -> bytes:
        key = self.public_key
        required = {"e": key.e, "kty": key.kty, "n": key.n}
        return sha256(json.dumps(required, separators=(",", ":"), sort_keys=True).encode()).digest()

    def entry(self, role: Role) -> RosterEntry:
        return RosterEntry(
            user_id=self.user_id,
            role=role,
            signing_key=self.signing_key,
            rsa_thumbprint=self.rsa_thumbprint,
            is_bot=self.is_bot,
        )


ALICE = Person("alice")
BOB = Person("bob")
CAROL = Person("carol")
DAVE = Person("dave", is_bot=True)
PEOPLE = (ALICE, BOB, CAROL, DAVE)
BOB_AFTERWARDS = replace(BOB, generation=2)

GROUP = make_id("group")
INVITE = make_id("invite")
INVITE_SEED = stretch("seed invite", 32)
INVITE_PRIVATE_KEY = Ed25519PrivateKey.from_private_bytes(INVITE_SEED)
INVITE_KEY = INVITE_PRIVATE_KEY.public_key().public_bytes_raw()
THREAD = make_id("thread")
REPLY = make_id("reply")
ANNOTATION = make_id("annotation")
SECOND_THREAD = make_id("second thread")
MEDIA = make_id("media")
SECOND_MEDIA = make_id("second media")
MEDIA_ANNOTATION = make_id("annotation of the media")


@dataclass(frozen=True)
class Entry:
    """One event of the log, with what went into its hashes."""

    event: Event
    previous_hash: bytes
    parent_id: bytes
    fields: tuple[bytes, ...]
    roster: tuple[RosterEntry, ...]
    statement: Statement | None = None
    signed_by: Person | None = None

    @property
    def signed(self) -> SignedStatement:
        """The encoded statement and its signature; for control events."""
        statement, signature = self.fields
        return SignedStatement(statement=statement, signature=signature)


@dataclass
class Log:
    """Appends events as a relay does, and keeps the roster as members do."""

    entries: list[Entry] = field(default_factory=list)
    roster: dict[bytes, RosterEntry] = field(default_factory=dict)
    key_epoch: int = 1
    paused_us: int = 0

    @property
    def head(self) -> tuple[int, bytes]:
        return (self.entries[-1].event.seq, self.entries[-1].event.hash) if self.entries else (0, ZERO_HASH)

    def set_role(self, person: Person, role: Role) -> None:
        self.roster[person.user_id] = person.entry(role)

    def drop(self, person: Person) -> None:
        del self.roster[person.user_id]

    def control(
        self, kind: type[Statement], actor: Person, name: str, *, base: tuple[int, bytes] | None = None, **own: Any
    ) -> Entry:
        """Append a statement of the actor's. The roster is to be changed before, the key epoch after."""
        base_seq, base_hash = base or self.head
        joins = kind is statements.MemberJoined and own["user_id"] == actor.user_id
        statement = kind(
            group_id=GROUP,
            actor_id=actor.user_id,
            statement_id=make_id(f"statement {name}"),
            base_seq=base_seq,
            base_hash=base_hash,
            key_epoch=self.key_epoch,
            roster_hash=ZERO_HASH if joins else statements.roster_hash(self.roster.values()),
            **own,
        )
        raw = statements.encode(statement)
        signature = statements.sign(raw, actor.private_key)
        return self._append(
            Kind(statements.kind_of(statement)),
            object_id=statement.statement_id,
            actor_id=actor.user_id,
            fields={"statement": raw, "signature": signature},
            statement=statement,
            signed_by=actor,
        )

    def post(self, kind: Kind, author: Person, object_id: bytes, parent: dict[str, bytes], **fields: bytes) -> Entry:
        """Append a post; `parent` is its thread_id or target_id, if it has one."""
        return self._append(kind, object_id=object_id, actor_id=author.user_id, fields=fields, parent=parent)

    def file(self, author: Person, media_id: bytes, thread_id: bytes, name: str, size_bytes: int) -> Entry:
        """Append a file of `file_bytes`."""
        return self._append(
            Kind.MEDIA_POSTED,
            object_id=media_id,
            actor_id=author.user_id,
            fields={
                "encrypted_metadata": cipher(f"metadata {name}", 61),
                "encryption_iv": stretch(f"iv {name}", 7) + bytes(5),
                "size_bytes": size_bytes,
                "root": root_of(file_bytes(size_bytes)),
            },
            parent={"thread_id": thread_id},
        )

    def relay(self, kind: Kind, object_id: bytes) -> Entry:
        """Append an event of the relay's own."""
        return self._append(kind, object_id=object_id, actor_id=ZERO_ID, fields={})

    def _append(  # noqa: PLR0913  an event has that many parts
        self,
        kind: Kind,
        *,
        object_id: bytes,
        actor_id: bytes,
        fields: Mapping[str, bytes | int],
        parent: dict[str, bytes] | None = None,
        statement: Statement | None = None,
        signed_by: Person | None = None,
    ) -> Entry:
        last_seq, previous_hash = self.head
        parent_id = next(iter((parent or {}).values()), ZERO_ID)
        hashed = tuple(map(_hashed, fields.values()))
        content_hash = chain.content_hash(parent_id, [chain.field_hash(value) for value in hashed])
        created_at = START_AT + 1_000_001 * last_seq + self.paused_us
        event_hash = chain.event_hash(
            previous_hash=previous_hash,
            group_id=GROUP,
            seq=last_seq + 1,
            kind=kind,
            object_id=object_id,
            actor_id=actor_id,
            key_epoch=self.key_epoch,
            created_at=created_at,
            content_hash=content_hash,
        )
        event = Event(
            group_id=GROUP,
            seq=last_seq + 1,
            hash=event_hash,
            kind=kind,
            object_id=object_id,
            actor_id=actor_id,
            key_epoch=self.key_epoch,
            created_at=created_at,
            content_hash=content_hash,
            **(parent or {}),  # type: ignore[arg-type]
            **fields,  # type: ignore[arg-type]
        )
        roster = tuple(sorted(self.roster.values()))
        entry = Entry(event, previous_hash, parent_id, hashed, roster, statement, signed_by)
        self.entries.append(entry)
        return entry


def _hashed(field: bytes | int) -> bytes:
    """A field as its hash is made: numbers are u64."""
    return field if isinstance(field, bytes) else field.to_bytes(8, "big")


def joined(person: Person, *, by_invite: bool) -> dict[str, Any]:
    """The elements of `member.joined` for this person."""
    preimage = statements.join_preimage(
        group_id=GROUP,
        invite_id=INVITE,
        user_id=person.user_id,
        signing_key=person.signing_key,
        rsa_thumbprint=person.rsa_thumbprint,
    )
    return {
        "user_id": person.user_id,
        "signing_key": person.signing_key,
        "rsa_thumbprint": person.rsa_thumbprint,
        "is_bot": person.is_bot,
        "invite_id": INVITE if by_invite else ZERO_ID,
        "invite_signature": INVITE_PRIVATE_KEY.sign(preimage) if by_invite else b"",
    }


def replaced_key_preimage(person: Person) -> bytes:
    return statements.key_preimage(
        user_id=person.user_id, signing_key=person.signing_key, rsa_thumbprint=person.rsa_thumbprint
    )


def _begin(log: Log) -> None:
    log.set_role(ALICE, Role.OWNER)
    log.control(
        statements.GroupCreated,
        ALICE,
        "group.created",
        history=History.SHARED,
        key_commitment=stretch("commitment 1", 32),
        name_hash=sha256(cipher("name 1")).digest(),
        signing_key=ALICE.signing_key,
        rsa_thumbprint=ALICE.rsa_thumbprint,
        is_bot=ALICE.is_bot,
    )
    log.control(
        statements.InviteCreated,
        ALICE,
        "invite.created",
        invite_id=INVITE,
        invite_key=INVITE_KEY,
        expires_at=START_AT + 7 * DAY_US,
        max_uses=10,
    )
    log.set_role(BOB, Role.MEMBER)
    log.control(statements.MemberJoined, BOB, "member.joined bob", **joined(BOB, by_invite=True))


def _talk(log: Log) -> None:
    title, body = cipher("title"), cipher("body")
    log.post(Kind.THREAD_POSTED, ALICE, THREAD, {}, encrypted_title=title, encrypted_body=body)
    log.post(Kind.REPLY_POSTED, BOB, REPLY, {"thread_id": THREAD}, encrypted_body=cipher("reply"))
    log.post(Kind.ANNOTATION_POSTED, BOB, ANNOTATION, {"target_id": REPLY}, encrypted_body=cipher("annotation"))


def _govern(log: Log) -> None:
    for person in (CAROL, DAVE):
        log.set_role(person, Role.MEMBER)
        name = f"member.joined {person.name}"
        log.control(statements.MemberJoined, ALICE, name, **joined(person, by_invite=False))
    log.set_role(BOB, Role.ADMIN)
    log.control(statements.MemberRole, ALICE, "member.role", user_id=BOB.user_id, role=Role.ADMIN)
    settled = log.head
    log.control(statements.GroupUpdated, BOB, "group.updated", name_hash=sha256(cipher("name 2")).digest())
    # An older base is as good, as long as the roster hasn't changed since.
    log.control(statements.PostDeleted, BOB, "post.deleted", base=settled, target_id=ANNOTATION)
    log.control(statements.InviteRevoked, ALICE, "invite.revoked", invite_id=INVITE)
    log.drop(CAROL)
    log.control(statements.MemberRemoved, BOB, "member.removed", user_id=CAROL.user_id, ban=True)
    rekey(log, ALICE)
    title, body = cipher("second title"), cipher("second body")
    log.post(Kind.THREAD_POSTED, ALICE, SECOND_THREAD, {}, encrypted_title=title, encrypted_body=body)
    log.control(statements.MemberUnbanned, ALICE, "member.unbanned", user_id=CAROL.user_id)


def rekey(log: Log, actor: Person) -> None:
    new = log.key_epoch + 1
    log.control(
        statements.GroupRekeyed,
        actor,
        f"group.rekeyed {new}",
        new_key_epoch=new,
        key_commitment=stretch(f"commitment {new}", 32),
        name_hash=sha256(cipher(f"name {new}")).digest(),
        previous_key=cipher(f"previous key {new}", 60),
    )
    log.key_epoch = new


def _end(log: Log) -> None:
    log.set_role(BOB_AFTERWARDS, Role.ADMIN)
    log.control(
        statements.KeyReplaced,
        BOB,  # the old key signs
        "key.replaced",
        signing_key=BOB_AFTERWARDS.signing_key,
        rsa_thumbprint=BOB_AFTERWARDS.rsa_thumbprint,
        key_signature=BOB_AFTERWARDS.private_key.sign(replaced_key_preimage(BOB_AFTERWARDS)),
    )
    rekey(log, BOB_AFTERWARDS)
    log.set_role(ALICE, Role.ADMIN)
    log.set_role(BOB_AFTERWARDS, Role.OWNER)
    log.control(statements.GroupTransferred, ALICE, "group.transferred", user_id=BOB.user_id)
    log.drop(DAVE)
    log.relay(Kind.MEMBER_LEFT, DAVE.user_id)  # his account was deleted
    log.drop(ALICE)
    log.control(statements.MemberLeft, ALICE, "member.left")


def _share(log: Log) -> None:
    rekey(log, BOB_AFTERWARDS)
    log.file(BOB_AFTERWARDS, MEDIA, SECOND_THREAD, "first", 65_537)
    about = {"target_id": MEDIA}
    body = cipher("annotation of the media")
    log.post(Kind.ANNOTATION_POSTED, BOB_AFTERWARDS, MEDIA_ANNOTATION, about, encrypted_body=body)
    log.control(statements.MediaDeleted, BOB_AFTERWARDS, "media.deleted", media_id=MEDIA)
    log.file(BOB_AFTERWARDS, SECOND_MEDIA, SECOND_THREAD, "second", 131_073)
    log.paused_us += MEDIA_LIFE_US
    log.relay(Kind.MEDIA_EXPIRED, SECOND_MEDIA)
    log.control(statements.GroupDeleted, BOB_AFTERWARDS, "group.deleted")


def story() -> Log:
    """The whole life of a group."""
    log = Log()
    for chapter in (_begin, _talk, _govern, _end, _share):
        chapter(log)
    return log


STORY = story()


def entry(name: str) -> Entry:
    """The entry of a statement, by the name that its id was made from."""
    return next(e for e in STORY.entries if e.event.object_id == make_id(f"statement {name}"))


def entry_at(seq: int) -> Entry:
    return STORY.entries[seq - 1]


def first_of(kind: Kind) -> Entry:
    return next(e for e in STORY.entries if e.event.kind == kind)


def roster_changes() -> Iterator[Entry]:
    return (e for e in STORY.entries if e.event.kind in CHANGES_ROSTER)

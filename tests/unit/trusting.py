"""Groups as they are logged, for tests of what members check: real keys and signatures, and what a relay could make.

story = Story()                                  # ann has created a group
story.join(BOB, story.invite(ANN))
thread = story.thread(BOB, "Ubik", "Shall we read it?")
story.role(ANN, BOB, Role.ADMIN, signer=EVE)     # forged: any element of a statement can be given, and who signs it
assert story.flaw() is Flaw.FORGED_STATEMENT     # of the last event; those before it are sound
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from itertools import count
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec.structs import replace

from orbital_client.crypto import contents, envelopes
from orbital_client.crypto.contents import Act, Body, Content, Edit, File, Head, Pin, React, Title
from orbital_client.crypto.envelopes import Field, Place
from orbital_client.crypto.groupkeys import GroupKey
from orbital_client.crypto.segments import stored_bytes
from orbital_client.errors import CannotOpen
from orbital_client.identity import Identity
from orbital_client.trust.board import Board, Post, post_of, sealed_post
from orbital_client.trust.findings import Finding, Flaw
from orbital_client.trust.index import Index, MemoryIndex
from orbital_client.trust.keyring import Keyring
from orbital_client.trust.log import POSTS, Log
from orbital_client.trust.opening import open_event
from orbital_client.wire.ledger import roster_after
from orbital_protocol import ZERO_HASH, ZERO_ID, chain, statements
from orbital_protocol.codes import History, Kind, Role
from orbital_protocol.frames import Cursor, Event
from orbital_protocol.statements import (
    GroupCreated,
    GroupDeleted,
    GroupRekeyed,
    GroupTransferred,
    GroupUpdated,
    InviteCreated,
    InviteRevoked,
    KeyReplaced,
    MediaDeleted,
    MemberJoined,
    MemberLeft,
    MemberRemoved,
    MemberRole,
    MemberUnbanned,
    PostDeleted,
    RosterEntry,
    Statement,
    join_preimage,
    key_preimage,
    roster_hash,
)

T0: Final = 1_700_000_000_000_000
GROUP: Final = bytes([1, *([7] * 15)])

# ── people ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@cache
def rsa_key(number: int = 0) -> rsa.RSAPrivateKey:
    """People share the first, since making one takes long; the second is for whoever gets new keys."""
    return rsa.generate_private_key(65537, 2048)


def digest(*parts: object) -> bytes:
    """32 bytes that are the same in every run."""
    return sha256(repr(parts).encode()).digest()


def new_id(*parts: object) -> bytes:
    return digest("id", *parts)[:16]


def someone(name: str, generation: int = 0, *, is_bot: bool = False) -> Identity:
    """Somebody of this name, with their first or later keys."""
    signing = Ed25519PrivateKey.from_private_bytes(digest("seed", name, generation))
    return Identity(new_id(name), signing, rsa_key(generation % 2), is_bot=is_bot)


ANN, BOB, CARA, DAN, EVE = (someone(name) for name in ("ann", "bob", "cara", "dan", "eve"))
ROBOT: Final = someone("robot", is_bot=True)
LINK_ID: Final = new_id("link")

# ── events ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def chained(event: Event, seq: int, previous_hash: bytes, *, fits: bool = True) -> Event:
    """The event at this place, with hashes that fit: whatever a relay alters, it can do that.

    Without `fits` the content's hash stays as it is, for what may be in none.
    """
    event = replace(event, seq=seq, content_hash=_content_hash(event) if fits else event.content_hash)
    hashed = ("group_id", "seq", "kind", "object_id", "actor_id", "key_epoch", "created_at", "content_hash")
    parts = {name: getattr(event, name) for name in hashed}
    return replace(event, hash=chain.event_hash(previous_hash=previous_hash, **parts))


def retold(events: Iterable[Event], alter: Callable[[Event], list[Event]], *, fits: bool = True) -> list[Event]:
    """The log as a relay tells it that leaves out, alters and adds, and makes its hashes fit."""
    told: list[Event] = []
    for event in events:
        for altered in alter(event):
            told.append(chained(altered, len(told) + 1, told[-1].hash if told else ZERO_HASH, fits=fits))
    return told


def _content_hash(event: Event) -> bytes:
    if event.statement is not None:
        return chain.control_content_hash(event.statement, event.signature or b"")
    parent_id = event.target_id if event.kind == Kind.ANNOTATION_POSTED else event.thread_id
    return chain.content_hash(parent_id or ZERO_ID, _field_hashes(event))


def _field_hashes(event: Event) -> list[bytes]:
    fields = [field for field in (event.encrypted_title, event.encrypted_body) if field is not None]
    if event.encrypted_metadata is not None:
        iv, size_bytes, root = event.encryption_iv or b"", event.size_bytes or 0, event.root or b""
        fields = list(chain.media_fields(event.encrypted_metadata, iv, size_bytes, root))
    return [chain.field_hash(field) for field in fields] or event.field_hashes or []


def blank(event: Event, *, erased: bool = True) -> Event:
    """A post as the relay shows it once its content is gone."""
    names = ("encrypted_title", "encrypted_body", "encrypted_metadata", "encryption_iv", "size_bytes", "root")
    return replace(event, **dict.fromkeys(names), field_hashes=_field_hashes(event), erased=erased)


@dataclass(frozen=True)
class Link:
    """An invite that is in a story's log."""

    invite_id: bytes = LINK_ID

    @property
    def key(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(digest("invite", self.invite_id))

    def signature(self, newcomer: Identity, group_id: bytes = GROUP) -> bytes:
        """By which this newcomer may join."""
        return self.key.sign(
            join_preimage(
                group_id=group_id,
                invite_id=self.invite_id,
                user_id=newcomer.user_id,
                signing_key=newcomer.signing_key,
                rsa_thumbprint=newcomer.rsa_thumbprint,
            )
        )


def _keys(who: Identity) -> dict[str, Any]:
    return {"signing_key": who.signing_key, "rsa_thumbprint": who.rsa_thumbprint, "is_bot": who.is_bot}


class Story:
    """A group's log, event by event. Whatever is appended fits the chain; whether it counts, members find out.

    `roster`, `epoch` and `keys` are what has come of it; what is appended with `counts=False` leaves them alone.
    """

    def __init__(self, owner: Identity = ANN, *, history: int = History.SHARED, **altered: Any) -> None:
        self.group_id = GROUP
        self.history = history
        self.events: list[Event] = []
        self.roster: dict[bytes, RosterEntry] = {}
        self.epoch = 1
        self.keys = {1: self.new_key(1)}
        self._ids = count(1)
        elements = _keys(owner) | {"history": history, "name_hash": digest("name", 1)}
        self.says(owner, GroupCreated, **elements | {"key_commitment": self.keys[1].commitment} | altered)

    @property
    def head(self) -> Head:
        return Head(len(self.events), self.events[-1].hash if self.events else ZERO_HASH)

    @property
    def cursor(self) -> Cursor:
        return Cursor(group_id=self.group_id, seq=self.head.seq, hash=self.head.hash)

    def new_id(self) -> bytes:
        return new_id(next(self._ids))

    def new_key(self, epoch: int, *others: object) -> GroupKey:
        """An epoch's key; with `others`, another one."""
        return GroupKey(self.group_id, epoch, digest("K", epoch, *others))

    def append(self, event: Event) -> Event:
        """The next event, with hashes that fit."""
        self.events.append(chained(event, len(self.events) + 1, self.head.hash))
        return self.events[-1]

    def _event(self, kind: int, object_id: bytes, actor_id: bytes, /, **fields: Any) -> Event:
        made: dict[str, Any] = {"seq": 0, "hash": ZERO_HASH, "content_hash": ZERO_HASH, "group_id": self.group_id}
        made |= {"kind": kind, "object_id": object_id, "actor_id": actor_id, "key_epoch": self.epoch}
        return Event(**made | {"created_at": T0 + len(self.events) * 1_000_000} | fields)

    # ── statements ──────────────────────────────────────────────────────────────────────────────────────────────────

    def says(
        self,
        actor: Identity,
        kind: type[Statement],
        *,
        signer: Identity | None = None,
        counts: bool = True,
        event: dict[str, Any] | None = None,
        **elements: Any,
    ) -> Event:
        """A statement, right in everything that is not given otherwise. `event`: other fields of the event itself."""
        header: dict[str, Any] = {"group_id": self.group_id, "actor_id": actor.user_id, "statement_id": self.new_id()}
        header |= {"base_seq": self.head.seq, "base_hash": self.head.hash, "key_epoch": self.epoch}
        statement = kind(**header | {"roster_hash": ZERO_HASH} | elements)
        after = dict(roster_after(self.roster, statement))
        if "roster_hash" not in elements:
            statement = replace(statement, roster_hash=roster_hash(after.values()))
        signed = (signer or actor).sign(statement)
        fields: dict[str, Any] = {
            "statement": signed.statement,
            "signature": signed.signature,
            "key_epoch": statement.key_epoch,
        }
        made = self._event(
            statements.kind_of(statement), statement.statement_id, statement.actor_id, **fields | (event or {})
        )
        if counts:
            self.roster = after
            self.epoch = getattr(statement, "new_key_epoch", self.epoch)
        return self.append(made)

    def invite(self, actor: Identity, *, max_uses: int = 0, expires_at: int = 0, **altered: Any) -> Link:
        link = Link(altered.pop("invite_id", None) or self.new_id())
        elements: dict[str, Any] = {"invite_id": link.invite_id, "invite_key": link.key.public_key().public_bytes_raw()}
        elements |= {"max_uses": max_uses, "expires_at": expires_at}
        self.says(actor, InviteCreated, **elements | altered)
        return link

    def join(self, newcomer: Identity, link: Link, **altered: Any) -> Event:
        """Somebody joins by a link."""
        elements = _keys(newcomer) | {"user_id": newcomer.user_id, "roster_hash": ZERO_HASH}
        elements |= {"invite_id": link.invite_id, "invite_signature": link.signature(newcomer)}
        return self.says(newcomer, MemberJoined, **elements | altered)

    def admit(self, admin: Identity, newcomer: Identity, link: Link | None = None, **altered: Any) -> Event:
        """Somebody is admitted, with a link's signature or without."""
        elements = _keys(newcomer) | {"user_id": newcomer.user_id}
        elements |= {"invite_id": link.invite_id if link else ZERO_ID}
        elements |= {"invite_signature": link.signature(newcomer) if link else b""}
        return self.says(admin, MemberJoined, **elements | altered)

    def role(self, actor: Identity, user: Identity, role: int, **altered: Any) -> Event:
        return self.says(actor, MemberRole, user_id=user.user_id, role=role, **altered)

    def remove(self, actor: Identity, user: Identity, *, ban: bool = False, **altered: Any) -> Event:
        return self.says(actor, MemberRemoved, user_id=user.user_id, ban=ban, **altered)

    def unban(self, actor: Identity, user: Identity, **altered: Any) -> Event:
        return self.says(actor, MemberUnbanned, user_id=user.user_id, **altered)

    def leave(self, actor: Identity, **altered: Any) -> Event:
        return self.says(actor, MemberLeft, **altered)

    def transfer(self, actor: Identity, user: Identity, **altered: Any) -> Event:
        return self.says(actor, GroupTransferred, user_id=user.user_id, **altered)

    def rename(self, actor: Identity, name: str = "", **altered: Any) -> Event:
        return self.says(actor, GroupUpdated, name_hash=digest("name", name), **altered)

    def revoke(self, actor: Identity, link: Link, **altered: Any) -> Event:
        return self.says(actor, InviteRevoked, invite_id=link.invite_id, **altered)

    def end(self, actor: Identity, **altered: Any) -> Event:
        return self.says(actor, GroupDeleted, **altered)

    def rekey(self, actor: Identity, **altered: Any) -> Event:
        """The next key, the one before sealed under it where history is shared."""
        epoch = self.epoch + 1
        key = self.new_key(epoch)
        if altered.get("counts", True):
            self.keys[epoch] = key
        elements: dict[str, Any] = {"new_key_epoch": epoch, "key_commitment": key.commitment}
        elements |= {"name_hash": digest("name", epoch), "previous_key": b""}
        if self.history == History.SHARED:
            elements["previous_key"] = key.seal_previous(self.keys[self.epoch])
        return self.says(actor, GroupRekeyed, **elements | altered)

    def replace_keys(self, actor: Identity, after: Identity, **altered: Any) -> Event:
        """The actor's keys are those of `after` from now on; `key_signer` is who signs for the new one."""
        names = {"user_id": actor.user_id, "signing_key": after.signing_key, "rsa_thumbprint": after.rsa_thumbprint}
        key_signer: Identity = altered.pop("key_signer", after)
        elements: dict[str, Any] = {"key_signature": key_signer.signing.sign(key_preimage(**names))}
        elements |= {"signing_key": after.signing_key, "rsa_thumbprint": after.rsa_thumbprint}
        return self.says(actor, KeyReplaced, **elements | altered)

    def delete(self, actor: Identity, target: Event, **altered: Any) -> Event:
        return self.says(actor, PostDeleted, **{"target_id": target.object_id} | altered)

    def delete_file(self, actor: Identity, file: Event, **altered: Any) -> Event:
        return self.says(actor, MediaDeleted, **{"media_id": file.object_id} | altered)

    def by_relay(self, kind: int, object_id: bytes, **fields: Any) -> Event:
        """What the relay appends by itself."""
        if kind == Kind.MEMBER_LEFT:
            self.roster.pop(object_id, None)
        return self.append(self._event(kind, object_id, ZERO_ID, **fields))

    # ── posts ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _said(self, altered: dict[str, Any]) -> dict[str, Any]:
        return {"sent_at": T0 + len(self.events), "head": altered.pop("head", self.head)}

    def seal(self, author: Identity, place: Place, content: Content | bytes, signer: Identity | None = None) -> bytes:
        raw = content if isinstance(content, bytes) else contents.encode(content)
        return envelopes.seal(self.keys[place.epoch], place, raw, (signer or author).signing)

    def _place(self, author: Identity, kind: Kind, field: Field, object_id: bytes, parent_id: bytes = ZERO_ID) -> Place:
        return Place(kind, field, self.group_id, author.user_id, self.epoch, object_id, parent_id)

    def thread(self, author: Identity, title: str = "a title", text: str = "a text", **altered: Any) -> Event:
        """`heading`, `body`: what is said, if it is something else; others are fields of the event."""
        said, object_id = self._said(altered), altered.pop("object_id", None) or self.new_id()
        kind, signer = Kind.THREAD_POSTED, altered.pop("signer", None)
        heading = altered.pop("heading", None) or Title(**said, text=title)
        sealed = self.seal(author, self._place(author, kind, Field.TITLE, object_id), heading, signer)
        body = altered.pop("body", None) or Body(**said, text=text, title_hash=sha256(sealed).digest())
        fields = {"encrypted_title": sealed}
        fields["encrypted_body"] = self.seal(author, self._place(author, kind, Field.BODY, object_id), body, signer)
        return self.append(self._event(kind, object_id, author.user_id, **fields | altered))

    def reply(self, author: Identity, thread: Event, text: str = "a reply", **altered: Any) -> Event:
        body = altered.pop("body", None) or Body(**self._said(altered), text=text)
        return self._post(author, (Kind.REPLY_POSTED, Field.BODY), thread, body, altered)

    def annotate(self, author: Identity, target: Event, act: type[Act] | bytes, **altered: Any) -> Event:
        """`Edit`, `React`, `Unreact`, `Pin` or `Unpin`, with the act's own `text`, `title`, `format` or `emoji`."""
        own = {name: altered.pop(name) for name in ("text", "title", "format", "emoji") if name in altered}
        content = act if isinstance(act, bytes) else act(**self._said(altered), **own)
        return self._post(author, (Kind.ANNOTATION_POSTED, Field.BODY), target, content, altered)

    def file(self, author: Identity, thread: Event, *, length: int = 1000, **altered: Any) -> Event:
        """A file's place in a thread; its bytes are elsewhere."""
        named = {"name": "a file", "media_type": "text/plain", "caption": "a caption", "key": bytes(32)}
        said = self._said(altered) | named | {"size_bytes": length, "root": digest("root")}
        fields: dict[str, Any] = {
            "encryption_iv": bytes(12),
            "size_bytes": stored_bytes(length),
            "root": digest("root"),
        }
        file = altered.pop("file", None) or File(**said)
        return self._post(author, (Kind.MEDIA_POSTED, Field.METADATA), thread, file, fields | altered)

    def _post(
        self,
        author: Identity,
        what: tuple[Kind, Field],
        parent: Event,
        content: Content | bytes,
        altered: dict[str, Any],
    ) -> Event:
        object_id, signer = altered.pop("object_id", None) or self.new_id(), altered.pop("signer", None)
        kind, field = what
        place = self._place(author, kind, field, object_id, parent.object_id)
        name = "encrypted_metadata" if field is Field.METADATA else "encrypted_body"
        fields: dict[str, Any] = {name: self.seal(author, place, content, signer)}
        fields["target_id" if kind == Kind.ANNOTATION_POSTED else "thread_id"] = parent.object_id
        return self.append(self._event(kind, object_id, author.user_id, **fields | altered))

    # ── what members make of it ─────────────────────────────────────────────────────────────────────────────────────

    def log(self, events: Iterable[Event] | None = None, index: Index | None = None) -> tuple[Log, list[Finding]]:
        """The log as a member checks it, and what is found."""
        log = Log(self.group_id, index or MemoryIndex())
        steps = [log.take(event) for event in (self.events if events is None else events)]
        return log, [step.finding for step in steps if step.finding]

    def finding(self) -> Finding | None:
        """What is wrong with the last event; nothing is with those before it."""
        _, found = self.log()
        assert all(finding.seq == len(self.events) for finding in found), found
        return found[0] if found else None

    def flaw(self) -> Flaw | None:
        finding = self.finding()
        return finding.flaw if finding else None


class Reader:
    """A member who follows a log and reads all of it, with the keys of its epochs as they come."""

    def __init__(self, keys: dict[int, GroupKey], log: Log | None = None) -> None:
        self.log = log or Log(GROUP, MemoryIndex())
        self.keyring = Keyring(self.log)
        self.board = Board(self.log.role_at)
        self.findings: list[Finding] = []
        self.problems: dict[int, CannotOpen] = {}
        self._keys = dict(keys)

    def take(self, event: Event) -> None:
        """Raises ChainBroken."""
        step = self.log.take(event)
        if step.finding is not None:
            self.findings.append(step.finding)
        if self.keyring.current is None and (key := self._keys.pop(self.log.key_epoch, None)):
            try:
                self.keyring.add(key)
            except CannotOpen as problem:
                self.problems[event.seq] = problem
        if event.kind in POSTS:
            self._read(event)

    def take_all(self, events: Iterable[Event]) -> "Reader":
        for event in events:
            self.take(event)
        return self

    def _read(self, event: Event) -> None:
        known = self.log.index.by_seq(event.seq)
        assert known is not None
        try:
            opened = open_event(self.log, self.keyring, event)
        except CannotOpen as problem:
            self.problems[event.seq] = problem
            if event.kind != Kind.ANNOTATION_POSTED:
                self.board.put(sealed_post(event, known, problem))
        else:
            if event.kind == Kind.ANNOTATION_POSTED:
                self.board.annotate(opened)
            else:
                self.board.put(post_of(opened))

    def post(self, event: Event) -> Post:
        """The message that an event posted, as it stands."""
        found = self.board.get(event.object_id)
        assert found is not None
        return found


def company(*, history: int = History.SHARED) -> Story:
    """Ann is the owner, Bob an admin, Cara and Dan are members; Cara came by a link that holds, Eve is nobody."""
    story = Story(history=history)
    populate(story)
    return story


def populate(story: Story) -> None:
    """Let the company come to a group that Ann has just created."""

    def rekey_if_due() -> None:
        if story.history == History.NONE:
            story.rekey(ANN)

    story.admit(ANN, BOB)
    rekey_if_due()
    story.role(ANN, BOB, Role.ADMIN)
    story.join(CARA, story.invite(BOB, invite_id=LINK_ID))
    rekey_if_due()
    story.admit(BOB, DAN)
    rekey_if_due()


def everything() -> Story:
    """A log with all kinds of events that there are, all of them right."""
    story = company()
    link = story.invite(ANN, max_uses=1)
    story.join(ROBOT, link)
    thread = story.thread(BOB)
    reply, file = story.reply(CARA, thread), story.file(DAN, thread)
    story.annotate(CARA, reply, Edit, text="other words")
    reaction = story.annotate(DAN, reply, React, emoji="👍")
    story.annotate(ANN, thread, Pin)
    story.rename(BOB)
    story.delete(BOB, reply)
    story.delete(DAN, reaction)
    story.delete_file(DAN, file)
    story.by_relay(Kind.MEDIA_EXPIRED, story.file(DAN, thread).object_id)
    story.remove(BOB, CARA, ban=True)
    story.rekey(DAN)
    story.unban(ANN, CARA)
    dan = someone("dan", 1)
    story.replace_keys(DAN, dan)
    story.rekey(dan)
    story.reply(dan, thread, "under the third key")
    story.revoke(BOB, story.invite(BOB))
    story.transfer(ANN, BOB)
    story.leave(ANN)
    story.by_relay(Kind.MEMBER_LEFT, dan.user_id)
    story.rekey(BOB)
    story.thread(BOB, "the last one")
    story.end(BOB)
    return story

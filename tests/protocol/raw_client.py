"""A client written from SPEC.md alone, with websockets, msgpack, cryptography and hashlib: nothing of this project.

It trusts the relay with nothing that the specification lets it check. It doesn't encrypt: that comes later, and what it
calls ciphertext is plain text.
"""

import asyncio
import base64
import json
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import cache
from hashlib import sha256
from itertools import count
from typing import Any, Self

import msgpack  # type: ignore[import-untyped]
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

Frame = dict[str, Any]

LIMIT_S = 30
ZERO_ID = bytes(16)
ZEROS = bytes(32)
MEMBER, ADMIN, OWNER = 1, 2, 3
POSTS = (14, 15, 16)
FILE = 18
SEGMENT_BYTES = 65_536
CHANGES_ROSTER = (1, 3, 6, 7, 8, 9, 13)


class RelayError(Exception):
    """The relay answered `error`."""

    def __init__(self, frame: Frame) -> None:
        super().__init__(f"{frame['code']}: {frame['message']}")
        self.code = frame["code"]
        self.details: Frame = frame.get("details", {})


class Finding(Exception):
    """The relay, or a member, has done what the specification rules out."""


def require(holds: bool, what: str) -> None:
    if not holds:
        raise Finding(what)


def uuid7() -> bytes:
    """RFC 9562: 48 bits of milliseconds, then random bits around version and variant."""
    raw = bytearray((time.time_ns() // 1_000_000).to_bytes(6, "big") + os.urandom(10))
    raw[6] = 0x70 | raw[6] & 0x0F
    raw[8] = 0x80 | raw[8] & 0x3F
    return bytes(raw)


# ── section 12: statements ──────────────────────────────────────────────────────────────────────────────────────────

COMMON = {
    "group_id": (bytes, 16, 16),
    "actor_id": (bytes, 16, 16),
    "statement_id": (bytes, 16, 16),
    "base_seq": (int, 0, 2**53 - 1),
    "base_hash": (bytes, 32, 32),
    "key_epoch": (int, 1, 2**31 - 1),
    "roster_hash": (bytes, 32, 32),
}
ID, HASH, SIG, FLAG = (bytes, 16, 16), (bytes, 32, 32), (bytes, 64, 64), (bool, 0, 1)
KEYS = {"signing_key": HASH, "rsa_thumbprint": HASH}
OWN: dict[int, dict[str, tuple[type, int, int]]] = {
    1: {"history": (int, 0, 1), "key_commitment": HASH, "name_hash": HASH, **KEYS, "is_bot": FLAG},
    2: {"name_hash": HASH},
    3: {"user_id": ID},
    4: {
        "new_key_epoch": (int, 1, 2**31 - 1),
        "key_commitment": HASH,
        "name_hash": HASH,
        "previous_key": (bytes, 0, 256),
    },
    5: {},
    6: {"user_id": ID, **KEYS, "is_bot": FLAG, "invite_id": ID, "invite_signature": (bytes, 0, 64)},
    7: {},
    8: {"user_id": ID, "ban": FLAG},
    9: {"user_id": ID, "role": (int, 1, 2)},
    10: {"user_id": ID},
    11: {
        "invite_id": ID,
        "invite_key": HASH,
        "expires_at": (int, 0, 2**53 - 1),
        "max_uses": (int, 0, 2**32 - 1),
    },
    12: {"invite_id": ID},
    13: {**KEYS, "key_signature": SIG},
    17: {"target_id": ID},
    19: {"media_id": ID},
}


def encode_statement(kind: int, elements: Frame) -> bytes:
    """The statement's one encoding; msgpack always chooses the smallest format."""
    names = [*COMMON, *OWN[kind]]
    raw: bytes = msgpack.packb([kind, *(elements[name] for name in names)])
    return raw


def decode_statement(raw: bytes) -> tuple[int, Frame]:
    """Kind and elements; raise Finding for anything but the one encoding of a statement."""
    require(len(raw) <= 2048, "a statement of more than 2,048 bytes")
    try:
        array = msgpack.unpackb(raw)
    except Exception as error:
        raise Finding("a statement that is no MessagePack") from error
    require(isinstance(array, list) and array[:1] != [] and type(array[0]) is int, "a statement that is no array")
    kind, *values = array
    require(kind in OWN, "a statement of an unknown kind")
    shapes = {**COMMON, **OWN[kind]}
    require(len(values) == len(shapes), "a statement with an element too many or too few")
    for value, (name, (expected, low, high)) in zip(values, shapes.items(), strict=True):
        size = len(value) if isinstance(value, bytes) else value
        require(type(value) is expected and low <= size <= high, f"a statement with a wrong {name}")
    require(msgpack.packb(array) == raw, "a statement in another encoding")
    return kind, dict(zip(shapes, values, strict=True))


def is_signed(signature: bytes, preimage: bytes, key: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, preimage)
    except (InvalidSignature, ValueError):
        return False
    return True


def statement_preimage(raw: bytes) -> bytes:
    return b"orbital.v1.statement\0" + raw


def join_preimage(group_id: bytes, invite_id: bytes, user_id: bytes, signing_key: bytes, thumbprint: bytes) -> bytes:
    return b"orbital.v1.join\0" + group_id + invite_id + user_id + signing_key + thumbprint


def key_preimage(user_id: bytes, signing_key: bytes, thumbprint: bytes) -> bytes:
    return b"orbital.v1.key\0" + user_id + signing_key + thumbprint


@dataclass(frozen=True)
class Entry:
    """A member as the roster has them."""

    role: int
    signing_key: bytes
    rsa_thumbprint: bytes
    is_bot: bool


Roster = dict[bytes, Entry]


def roster_hash(roster: Roster) -> bytes:
    return sha256(
        b"".join(
            user_id + bytes((entry.role,)) + entry.signing_key + entry.rsa_thumbprint + bytes((entry.is_bot,))
            for user_id, entry in sorted(roster.items())
        )
    ).digest()


# ── sections 11.4 and 12.5: the log, verified ───────────────────────────────────────────────────────────────────────


@dataclass
class Link:
    """An invite link as the log has it."""

    key: bytes
    expires_at: int
    max_uses: int
    uses: int = 0


def event_hash(previous: bytes, event: Frame) -> bytes:
    return sha256(
        b"orbital.v1.event\0"
        + previous
        + event["group_id"]
        + event["seq"].to_bytes(8, "big")
        + event["kind"].to_bytes(1, "big")
        + event["object_id"]
        + event["actor_id"]
        + event["key_epoch"].to_bytes(4, "big")
        + event["created_at"].to_bytes(8, "big")
        + event["content_hash"]
    ).digest()


def content_hash(event: Frame) -> bytes:
    """Of the fields that came, or of the hashes that stand in for them."""
    parent = event.get("thread_id") or event.get("target_id") or ZERO_ID
    names = {
        14: ["encrypted_title", "encrypted_body"],
        15: ["encrypted_body"],
        16: ["encrypted_body"],
        FILE: ["encrypted_metadata", "encryption_iv", "size_bytes", "root"],
    }
    fields = names.get(event["kind"], ["statement", "signature"] if event["actor_id"] != ZERO_ID else [])
    if "field_hashes" in event:
        hashes = event["field_hashes"]
        require(len(hashes) == len(fields), "an event with too many or too few field hashes")
    else:
        require(all(name in event for name in fields), "an event without its content")
        hashes = [sha256(as_bytes(event[name])).digest() for name in fields]
    return sha256(parent + bytes((len(hashes),)) + b"".join(hashes)).digest()


def as_bytes(field: bytes | int) -> bytes:
    return field if isinstance(field, bytes) else field.to_bytes(8, "big")


@dataclass
class Log:
    """One group's log from its beginning, checked event by event. What it holds has been verified."""

    group_id: bytes
    seq: int = 0
    hash: bytes = ZEROS
    key_epoch: int = 1
    history: int = 0
    rekey_due: bool = False
    ended: bool = False
    roster: Roster = field(default_factory=dict)
    roster_seq: int = 0
    hashes: dict[int, bytes] = field(default_factory=lambda: {0: ZEROS})
    links: dict[bytes, Link] = field(default_factory=dict)
    objects: dict[bytes, tuple[int, bytes]] = field(default_factory=dict)
    erased: set[bytes] = field(default_factory=set)
    files: dict[bytes, Frame] = field(default_factory=dict)
    events: list[Frame] = field(default_factory=list)

    def take(self, event: Frame) -> None:
        """Verify the next event and let it take effect; raise Finding if it isn't one."""
        require(not self.ended, "an event after the log's end")
        require(event["group_id"] == self.group_id, "an event of another group")
        require(event["seq"] == self.seq + 1, f"seq {event['seq']} after {self.seq}")
        require(event["key_epoch"] == self.key_epoch, "an event of another key epoch")
        require(content_hash(event) == event["content_hash"], "content that is not what its hash says")
        require(event_hash(self.hash, event) == event["hash"], "an event that doesn't follow from the one before")
        if event["actor_id"] == ZERO_ID:
            self._take_relays_own(event)
        else:
            require(event["object_id"] not in self.objects, "an object that was there before")
            self._take_post(event) if event["kind"] in (*POSTS, FILE) else self._take_statement(event)
            self.objects[event["object_id"]] = (event["kind"], event["actor_id"])
        self.seq, self.hash = event["seq"], event["hash"]
        self.hashes[self.seq] = self.hash
        if event["kind"] in CHANGES_ROSTER:
            self.roster_seq = self.seq
        self.events.append(event)

    def _take_relays_own(self, event: Frame) -> None:
        require("statement" not in event, "a relay's event with a statement")
        if event["kind"] == 20:
            require(event["object_id"] in self.files, "the end of a file that isn't there")
            self._end_file(event["object_id"])
            return
        user_id = event["object_id"]
        require(user_id in self.roster, "a relay's event about nobody")
        if event["kind"] == 7:
            del self.roster[user_id]
            self.rekey_due = True
        else:
            require(
                event["kind"] == 5 and self.roster[user_id].role == OWNER, "a relay's event of a kind it may not make"
            )
            self.ended = True

    def _take_post(self, event: Frame) -> None:
        require(event["actor_id"] in self.roster, "a post by a stranger")
        require(not self.rekey_due, "a post while a rekey is due")
        if event["kind"] != 14:
            parent = event.get("thread_id") or event.get("target_id") or ZERO_ID
            kinds = (*POSTS, FILE) if event["kind"] == 16 else (14,)
            require(self.objects.get(parent, (0, b""))[0] in kinds, "a post without its parent")
            require(parent not in self.erased, "a post to something that was deleted")
        if event["kind"] == FILE:
            self.files[event["object_id"]] = event

    # ── statements ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _take_statement(self, event: Frame) -> None:
        kind, said = decode_statement(event["statement"])
        named = (kind, said["group_id"], said["statement_id"], said["actor_id"], said["key_epoch"])
        shown = (event["kind"], self.group_id, event["object_id"], event["actor_id"], self.key_epoch)
        require(named == shown, "a statement that is about something else")
        require(said["base_seq"] <= self.seq and self.hashes[said["base_seq"]] == said["base_hash"], "a base elsewhere")
        require(said["base_seq"] >= self.roster_seq, "a base before the last change of the roster")
        introduced = kind == 1 or (kind == 6 and said["user_id"] == said["actor_id"])
        actor = entry_of(said) if introduced else self.roster.get(said["actor_id"])
        require(actor is not None, "a statement by a stranger")
        assert actor is not None
        signed = is_signed(event["signature"], statement_preimage(event["statement"]), actor.signing_key)
        require(signed, "a statement that its actor didn't sign")
        self._let(kind, said, actor, event["created_at"])
        after = roster_hash(self.roster)
        require(said["roster_hash"] == (ZEROS if kind == 6 and introduced else after), "a roster that is another one")

    def _let(self, kind: int, said: Frame, actor: Entry, created_at: int) -> None:
        """Let a statement take effect if its actor's role allows it."""
        steps: dict[int, Callable[[Frame, Entry], None]] = {
            1: self._create,
            2: lambda *_: require(actor.role >= ADMIN and not self.rekey_due, "a name by a member"),
            3: self._transfer,
            4: self._rekey,
            5: self._delete,
            6: lambda *_: self._join(said, actor, created_at),
            7: self._leave,
            8: self._remove,
            9: self._set_role,
            10: lambda *_: require(actor.role >= ADMIN, "an unbanning by a member"),
            11: self._invite,
            12: self._revoke,
            13: self._replace,
            17: self._erase,
            19: self._delete_file,
        }
        steps[kind](said, actor)

    def _create(self, said: Frame, _actor: Entry) -> None:
        require(self.seq == 0 and said["base_seq"] == 0, "a second beginning")
        self.history = said["history"]
        self.roster[said["actor_id"]] = entry_of(said, OWNER)

    def _transfer(self, said: Frame, actor: Entry) -> None:
        heir = self.roster.get(said["user_id"])
        require(actor.role == OWNER and heir is not None and heir != actor, "a transfer that may not be")
        assert heir is not None
        self.roster[said["actor_id"]] = replace(actor, role=ADMIN)
        self.roster[said["user_id"]] = replace(heir, role=OWNER)

    def _rekey(self, said: Frame, actor: Entry) -> None:
        require(self.rekey_due or actor.role >= ADMIN, "a rekey by a member, unasked")
        require(said["new_key_epoch"] == self.key_epoch + 1, "a rekey that leaves out an epoch")
        require(bool(said["previous_key"]) == bool(self.history), "a rekey that hands on too much or too little")
        self.key_epoch += 1
        self.rekey_due = False

    def _delete(self, _said: Frame, actor: Entry) -> None:
        require(actor.role == OWNER, "a deletion by somebody else than the owner")
        self.ended = True

    def _join(self, said: Frame, actor: Entry, created_at: int) -> None:
        require(said["user_id"] not in self.roster, "a member who joins")
        require(not self.rekey_due, "a newcomer while a rekey is due")
        if said["user_id"] == said["actor_id"]:
            self._check_link(said, created_at)
        else:
            require(actor.role >= ADMIN, "an admission by a member")
        if said["invite_id"] in self.links:
            self.links[said["invite_id"]].uses += 1
        self.roster[said["user_id"]] = entry_of(said)
        self.rekey_due = not self.history

    def _check_link(self, said: Frame, created_at: int) -> None:
        link = self.links.get(said["invite_id"])
        require(link is not None, "a newcomer by a link that isn't there")
        assert link is not None
        require(not link.expires_at or created_at < link.expires_at, "a newcomer by a link that has expired")
        require(not link.max_uses or link.uses < link.max_uses, "a newcomer by a link that is used up")
        preimage = join_preimage(
            self.group_id, said["invite_id"], said["user_id"], said["signing_key"], said["rsa_thumbprint"]
        )
        require(is_signed(said["invite_signature"], preimage, link.key), "a newcomer whom the link didn't sign in")

    def _leave(self, said: Frame, actor: Entry) -> None:
        require(actor.role != OWNER, "an owner who leaves")
        del self.roster[said["actor_id"]]
        self.rekey_due = True

    def _below(self, said: Frame, actor: Entry) -> Entry:
        target = self.roster.get(said["user_id"])
        require(target is not None and actor.role >= ADMIN and target.role < actor.role, "power over an equal")
        assert target is not None
        return target

    def _remove(self, said: Frame, actor: Entry) -> None:
        self._below(said, actor)
        del self.roster[said["user_id"]]
        self.links.clear()
        self.rekey_due = True

    def _set_role(self, said: Frame, actor: Entry) -> None:
        target = self._below(said, actor)
        require(said["role"] < actor.role, "a role as high as the giver's")
        self.roster[said["user_id"]] = replace(target, role=said["role"])

    def _invite(self, said: Frame, actor: Entry) -> None:
        require(actor.role >= ADMIN and not self.rekey_due, "a link by a member")
        self.links[said["invite_id"]] = Link(said["invite_key"], said["expires_at"], said["max_uses"])

    def _revoke(self, said: Frame, actor: Entry) -> None:
        require(actor.role >= ADMIN and said["invite_id"] in self.links, "a revocation that may not be")
        del self.links[said["invite_id"]]

    def _replace(self, said: Frame, actor: Entry) -> None:
        preimage = key_preimage(said["actor_id"], said["signing_key"], said["rsa_thumbprint"])
        require(is_signed(said["key_signature"], preimage, said["signing_key"]), "a new key that didn't sign")
        new = replace(actor, signing_key=said["signing_key"], rsa_thumbprint=said["rsa_thumbprint"])
        self.roster[said["actor_id"]] = new
        self.rekey_due = True

    def _erase(self, said: Frame, actor: Entry) -> None:
        kind, author = self.objects.get(said["target_id"], (0, b""))
        require(kind in POSTS and said["target_id"] not in self.erased, "a deletion of nothing")
        require(author == said["actor_id"] or actor.role >= ADMIN, "a deletion by somebody else")
        self.erased.add(said["target_id"])

    def _delete_file(self, said: Frame, actor: Entry) -> None:
        require(said["media_id"] in self.files, "a deletion of no file")
        author = self.files[said["media_id"]]["actor_id"]
        require(author == said["actor_id"] or actor.role >= ADMIN, "a deletion by somebody else")
        self._end_file(said["media_id"])

    def _end_file(self, media_id: bytes) -> None:
        del self.files[media_id]
        self.erased.add(media_id)


def entry_of(said: Frame, role: int = MEMBER) -> Entry:
    """The member whom `group.created` or `member.joined` introduces."""
    return Entry(role, said["signing_key"], said["rsa_thumbprint"], said["is_bot"])


# ── section 17.1: the root of a file ────────────────────────────────────────────────────────────────────────────────


def segment_digests(data: bytes) -> list[bytes]:
    return [sha256(data[at : at + SEGMENT_BYTES]).digest() for at in range(0, len(data), SEGMENT_BYTES)]


def root_of(data: bytes) -> bytes:
    return sha256(b"".join(segment_digests(data))).digest()


# ── sections 2 to 5: a connection ───────────────────────────────────────────────────────────────────────────────────


class Connection:
    """One WebSocket: requests with their answers, and pushes in the order in which they came."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.pushes: asyncio.Queue[Frame] = asyncio.Queue()
        self._answers: dict[int, asyncio.Future[Frame]] = {}
        self._last_id = 0
        self._reader = asyncio.create_task(self._read(), name="raw client")

    @classmethod
    async def open(cls, url: str) -> tuple[Self, Frame]:
        """Connect, and return the connection with the relay's `hello`."""
        socket = await connect(url, subprotocols=["orbital.v1"], compression=None, max_size=2**24)  # type: ignore[list-item]
        connection = cls(socket)
        hello = await connection.next_push()
        require(socket.subprotocol == "orbital.v1" and hello["type"] == "hello" and hello["protocol"] == 1, "no hello")
        return connection, hello

    async def _read(self) -> None:
        try:
            async for message in self.socket:
                require(isinstance(message, bytes), "a text message")
                unpacker = msgpack.Unpacker(max_buffer_size=0)
                unpacker.feed(message)
                for frame in unpacker:
                    self._sort(frame)
        except ConnectionClosed:
            pass
        finally:
            for answer in self._answers.values():
                answer.cancel()

    def _sort(self, frame: Frame) -> None:
        if frame["type"] in ("ok", "error") and "id" in frame:
            self._answers.pop(frame["id"]).set_result(frame)  # KeyError: an answer to what was never asked
        else:
            self.pushes.put_nowait(frame)

    def request(self, kind: str, **fields: Any) -> Awaitable[Frame]:
        """Send a request; awaited, it is the answer. Raise RelayError for `error`."""
        return self.requests((kind, fields))[0]

    def requests(self, *asked: tuple[str, Frame]) -> list[Awaitable[Frame]]:
        """Send several requests in one message."""
        message = b""
        answers = []
        for kind, fields in asked:
            self._last_id += 1
            future = self._answers[self._last_id] = asyncio.get_running_loop().create_future()
            message += msgpack.packb({"type": kind, "id": self._last_id, **fields})
            answers.append(self._answer(future))
        sending = asyncio.ensure_future(self.socket.send(message))
        return [self._after(sending, answer) for answer in answers]

    @staticmethod
    async def _after(sending: "asyncio.Future[None]", answer: Awaitable[Frame]) -> Frame:
        await sending
        return await answer

    @staticmethod
    async def _answer(future: "asyncio.Future[Frame]") -> Frame:
        async with asyncio.timeout(LIMIT_S):
            frame = await future
        if frame["type"] == "error":
            raise RelayError(frame)
        return frame

    async def next_push(self) -> Frame:
        async with asyncio.timeout(LIMIT_S):
            return await self.pushes.get()

    async def cut(self) -> None:
        """Lose the connection without a word, as a network does."""
        self.socket.transport.abort()
        await self._reader

    async def close(self) -> None:
        await self.socket.close()
        await self._reader

    async def closed_with(self) -> int:
        """Wait until the relay closes; return its code."""
        async with asyncio.timeout(LIMIT_S):
            await self.socket.wait_closed()
        assert self.socket.close_code is not None
        return self.socket.close_code


# ── sections 6 to 10 and 17: a user ─────────────────────────────────────────────────────────────────────────────────


RSA_KEYS = 4  # making one takes a while, and nothing is wrapped for these: users share them
_numbers = count()


@cache
def rsa_modulus(_number: int) -> int:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key().public_numbers().n


def base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


class User:
    """A person with keys, a connection, and the logs that they have verified."""

    def __init__(self, username: str) -> None:
        self.user_id = uuid7()
        self.username = username
        self.password = base64url(os.urandom(24))
        self.signing = Ed25519PrivateKey.generate()
        modulus = rsa_modulus(next(_numbers) % RSA_KEYS)
        self.public_key = {"kty": "RSA", "n": base64url(modulus.to_bytes(256, "big")), "e": "AQAB"}
        self.session: Frame = {}
        self.limits: Frame = {}
        self.logs: dict[bytes, Log] = {}
        self._connection: Connection | None = None

    @property
    def connection(self) -> Connection:
        assert self._connection is not None
        return self._connection

    @property
    def signing_key(self) -> bytes:
        return self.signing.public_key().public_bytes_raw()

    @property
    def thumbprint(self) -> bytes:
        """RFC 7638."""
        return sha256(json.dumps(self.public_key, sort_keys=True, separators=(",", ":")).encode()).digest()

    @property
    def entry(self) -> Entry:
        return Entry(MEMBER, self.signing_key, self.thumbprint, is_bot=False)

    async def connect(self, url: str) -> Frame:
        self._connection, hello = await Connection.open(url)
        self.limits = hello["limits"]
        return hello

    async def disconnect(self) -> None:
        if self._connection is not None:
            await self._connection.close()

    async def register(self, url: str) -> None:
        await self.connect(url)
        self.session = await self.connection.request(
            "register",
            user_id=self.user_id,
            username=self.username,
            password=self.password,
            public_key=self.public_key,
            signing_key=self.signing_key,
        )

    async def return_to(self, url: str) -> Frame:
        """Reconnect with the access token; the answer names the groups with their heads."""
        await self.connect(url)
        return await self.connection.request("authenticate", access_token=self.session["access_token"])

    # ── statements ──────────────────────────────────────────────────────────────────────────────────────────────────

    def state(self, kind: int, group_id: bytes, roster: Roster | None, **own: Any) -> Frame:
        """The statement and its signature, as fields of a request. `roster` is the one after it; None: unknown."""
        log = self.logs.get(group_id) or Log(group_id)
        elements = {
            "group_id": group_id,
            "actor_id": self.user_id,
            "statement_id": uuid7(),
            "base_seq": log.seq,
            "base_hash": log.hash,
            "key_epoch": log.key_epoch,
            "roster_hash": ZEROS if roster is None else roster_hash(roster),
            **own,
        }
        raw = encode_statement(kind, elements)
        return {"statement": raw, "signature": self.signing.sign(statement_preimage(raw))}

    async def found(self, name: bytes) -> bytes:
        """Create a group; return its id."""
        group_id = uuid7()
        introduced = {"signing_key": self.signing_key, "rsa_thumbprint": self.thumbprint, "is_bot": False}
        fields = self.state(
            1,
            group_id,
            {self.user_id: replace(self.entry, role=OWNER)},
            history=1,
            key_commitment=os.urandom(32),
            name_hash=sha256(name).digest(),
            **introduced,
        )
        await self.connection.request("group.create", **fields, encrypted_name=name, encrypted_group_key=b"a wrap")
        self.logs[group_id] = Log(group_id)
        return group_id

    async def invite(self, group_id: bytes) -> tuple[str, Ed25519PrivateKey]:
        """Make a link: its code, and the secret that stands beside it."""
        secret = Ed25519PrivateKey.generate()
        key = secret.public_key().public_bytes_raw()
        roster = self.logs[group_id].roster
        fields = self.state(11, group_id, roster, invite_id=uuid7(), invite_key=key, expires_at=0, max_uses=0)
        answer = await self.connection.request("invite.create", **fields, sealed_group_key=b"a sealed key")
        return answer["invite_code"], secret

    async def join(self, code: str, secret: Ed25519PrivateKey) -> bytes:
        """Become a member by a link; return the group's id."""
        door = await self.connection.request("invite.open", invite_code=code)
        group_id, invite_id = door["group_id"], door["invite_id"]
        preimage = join_preimage(group_id, invite_id, self.user_id, self.signing_key, self.thumbprint)
        fields = self.state(
            6,
            group_id,
            None,
            base_seq=door["seq"],
            base_hash=door["hash"],
            key_epoch=door["key_epoch"],
            user_id=self.user_id,
            signing_key=self.signing_key,
            rsa_thumbprint=self.thumbprint,
            is_bot=False,
            invite_id=invite_id,
            invite_signature=secret.sign(preimage),
        )
        await self.connection.request("group.join", **fields, encrypted_group_key=b"a wrap")
        self.logs[group_id] = Log(group_id)
        return group_id

    def without(self, group_id: bytes, user_id: bytes) -> Roster:
        """The roster of a group as it will be without a member."""
        return {known: entry for known, entry in self.logs[group_id].roster.items() if known != user_id}

    async def rekey(self, group_id: bytes, name: bytes) -> Frame:
        """Put a new key in force, wrapped for the roster that the log proves."""
        log = self.logs[group_id]
        fields = self.state(
            4,
            group_id,
            log.roster,
            new_key_epoch=log.key_epoch + 1,
            key_commitment=os.urandom(32),
            name_hash=sha256(name).digest(),
            previous_key=b"the old key under the new one",
        )
        wraps = [
            {"user_id": user_id, "rsa_thumbprint": entry.rsa_thumbprint, "encrypted_group_key": b"a wrap"}
            for user_id, entry in log.roster.items()
        ]
        return await self.connection.request("group.rekey", **fields, encrypted_name=name, encrypted_group_keys=wraps)

    # ── posts and events ────────────────────────────────────────────────────────────────────────────────────────────

    async def post_thread(self, group_id: bytes, title: bytes, body: bytes) -> Frame:
        fields = {"group_id": group_id, "key_epoch": self.logs[group_id].key_epoch, "thread_id": uuid7()}
        answer = await self.connection.request("thread.post", **fields, encrypted_title=title, encrypted_body=body)
        return {**answer, "thread_id": fields["thread_id"]}

    async def post_reply(self, group_id: bytes, thread_id: bytes, body: bytes, reply_id: bytes | None = None) -> Frame:
        return await self.connection.request(
            "reply.post",
            group_id=group_id,
            key_epoch=self.logs[group_id].key_epoch,
            thread_id=thread_id,
            reply_id=reply_id or uuid7(),
            encrypted_body=body,
        )

    async def subscribe(self, group_id: bytes) -> None:
        """Subscribe from where this user's log stands, the beginning included."""
        log = self.logs[group_id]
        wanted = {"group_id": group_id, "after_seq": log.seq, "after_hash": log.hash}
        answer = await self.connection.request("subscribe", groups=[wanted])
        [verdict] = answer["groups"]
        require(verdict["status"] == "resumed", f"a subscription that is {verdict['status']}")
        start = (verdict.get("seq", 0), verdict.get("hash", ZEROS))
        require(start == (log.seq, log.hash), "a subscription that starts elsewhere")

    async def follow(self, until: Callable[[Frame], bool]) -> Frame:
        """Take pushes, verifying every event, until one of them is what is waited for; return that one."""
        while True:
            push = await self.connection.next_push()
            if push["type"] == "event":
                self.logs[push["group_id"]].take(push)
            elif push["type"] == "live":
                log = self.logs[push["group_id"]]
                require((push["seq"], push["hash"]) == (log.seq, log.hash), "live, and not at the end of what came")
            if until(push):
                return push

    async def follow_to(self, group_id: bytes, seq: int) -> None:
        """Follow until the log has come to this seq."""
        if self.logs[group_id].seq < seq:
            await self.follow(lambda push: push["type"] == "event" and push["seq"] == seq)

    # ── files ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def begin(self, file: "File") -> Frame:
        """Begin an upload, or go on with it: here, from `offset` on."""
        begun = await self.connection.request("media.begin", **file.named, size_bytes=len(file.data))
        require(begun["offset"] <= len(file.data), "more bytes than the file has")
        return begun

    async def send(self, file: "File", begun: Frame, end: int | None = None) -> None:
        """Send what is missing before `end` (the file's, if None), at most a window without an answer."""
        waiting: list[asyncio.Future[None]] = []
        end = len(file.data) if end is None else end
        for offset in range(begun["offset"], end, begun["chunk_bytes"]):
            if len(waiting) == begun["window"]:
                await waiting.pop(0)
            data = file.data[offset : min(offset + begun["chunk_bytes"], end)]
            waiting.append(asyncio.ensure_future(self._send_chunk(file, begun["generation"], offset, data)))
            await asyncio.sleep(0)  # lets it be sent before the next one
        for answer in waiting:
            await answer

    async def _send_chunk(self, file: "File", generation: int, offset: int, data: bytes) -> None:
        answer = await self.connection.request("media.chunk", **file.chunk(generation, offset, data))
        require(answer["offset"] >= offset + len(data), "a chunk that is answered and not durable")

    async def commit(self, file: "File", **changed: Any) -> Frame:
        fields = {"key_epoch": self.logs[file.group_id].key_epoch, "root": root_of(file.data), **changed}
        return await self.connection.request(
            "media.commit", media_id=file.media_id, encrypted_metadata=file.metadata, **fields
        )

    async def upload(self, file: "File") -> Frame:
        """All of it, from the beginning or from wherever it was left."""
        await self.send(file, await self.begin(file))
        return await self.commit(file)

    async def download(self, group_id: bytes, media_id: bytes, length: int | None = None) -> bytes:
        """Read a file to its end, and check that it is the one in the log."""
        posted = self.logs[group_id].files[media_id]
        length = length or self.limits["media_chunk_bytes"]
        data = b""
        while len(data) < posted["size_bytes"]:
            wanted = {"media_id": media_id, "offset": len(data), "length": length}
            piece = (await self.connection.request("media.read", **wanted))["data"]
            require(
                len(piece) == min(length, posted["size_bytes"] - len(data)), "another number of bytes than asked for"
            )
            data += piece
        require(root_of(data) == posted["root"], "bytes that are not those of the log")
        return data


@dataclass(frozen=True)
class File:
    """What is uploaded to a thread."""

    group_id: bytes
    thread_id: bytes
    data: bytes
    metadata: bytes = b"a name"
    media_id: bytes = field(default_factory=uuid7)
    encryption_iv: bytes = field(default_factory=lambda: os.urandom(12))

    @property
    def named(self) -> Frame:
        """What each begin says of it, beside its size."""
        names = ("group_id", "thread_id", "media_id", "encryption_iv")
        return {name: getattr(self, name) for name in names}

    def chunk(self, generation: int, offset: int, data: bytes) -> Frame:
        return {"media_id": self.media_id, "generation": generation, "offset": offset, "data": data}

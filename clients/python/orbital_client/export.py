"""A group's verified history as a file of JSON lines, and the check of such a file without relay, store or keys.

Each event is a line with all that its hashes are made of, what its members signed, and what it says; the last line says
what there is before it. The check goes through the log's own rules: chain, signatures, roles. That the texts are those
that were posted is the word of whoever exported; that they are those of the export is checked.
"""

import asyncio
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from orbital_client.crypto.contents import PLAIN, AnyAct
from orbital_client.errors import ChainBroken, ExportDamaged, LogBroken
from orbital_client.files import replacement
from orbital_client.group import Group
from orbital_client.messages import GroupChange, Item, Message, Suspicious, Update
from orbital_client.timeline import Read
from orbital_client.trust.findings import Finding
from orbital_client.trust.index import MemoryIndex
from orbital_client.trust.log import POSTS, Log
from orbital_client.wire.ledger import field_hashes, parent_id
from orbital_protocol import ZERO_ID
from orbital_protocol.codes import Kind
from orbital_protocol.frames import Event

IdText = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
HashText = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
BytesText = Annotated[str, Meta(pattern=r"^([0-9a-f]{2})*\Z")]
Number = Annotated[int, Meta(ge=0, le=2**63 - 1)]

_LINE_BYTES_MAX: Final = 4 * 1024 * 1024
_ZEROS: Final = "0" * 64

_encoder: Final = msgspec.json.Encoder()


class FileFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A file, without its bytes and its key. `root` is the hash of its sealed bytes."""

    name: str
    media_type: str
    size_bytes: int
    root: HashText


class EventLine(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="line", tag="event"):
    """An event. Bytes are hexadecimal, times microseconds since 1970 UTC; `change` says a change of the group in words.

    `content_hash` is made of `parent_id` and either `field_hashes` or `statement` and `signature`.
    """

    seq: Number
    hash: HashText
    previous_hash: HashText
    kind: str
    group_id: IdText
    object_id: IdText
    actor_id: IdText
    actor: str
    key_epoch: Annotated[int, Meta(ge=0, lt=2**32)]
    created_at: Number
    parent_id: IdText
    content_hash: HashText
    field_hashes: list[HashText] = []
    statement: BytesText | None = None
    signature: BytesText | None = None
    sent_at: int | None = None
    title: str | None = None
    text: str | None = None
    format: str | None = None
    file: FileFacts | None = None
    act: dict[str, Any] | None = None
    change: str | None = None
    is_deleted: bool = False
    problem: str | None = None


class Summary(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="line", tag="summary"):
    """The last line: what is before it.

    `digest` is the SHA-256 of, first, the SHA-256 of all those lines, then this line's JSON with zeros for it.
    """

    group_id: IdText
    name: str
    exported_by: IdText
    exported_at: Number
    events: Number
    messages: Number
    problems: Number
    seq: Number
    hash: HashText
    digest: HashText = _ZEROS

    def digest_after(self, lines: bytes) -> str:
        """What `digest` must be after lines with this SHA-256."""
        return sha256(lines + _encoder.encode(replace(self, digest=_ZEROS))).hexdigest()


@dataclass(frozen=True, slots=True)
class Export:
    """A file that was checked. `findings`: what in the history itself is wrong, and was when it was exported."""

    path: Path
    summary: Summary
    findings: list[Finding]


_decoder: Final = msgspec.json.Decoder(EventLine | Summary)


# ── writing ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def export(group: Group, file: Path) -> Export:
    """Write a group's history up to now to a file that its owner alone can read, and check what was written.

    The file is there whole and checked, or not at all. Raises LogBroken, ExportDamaged, OSError.
    """
    await group.live()
    unchecked = file.with_name(f"{file.name}.part")
    with replacement(unchecked) as output:
        await _write(group, output)
    try:
        checked = await asyncio.to_thread(check, unchecked)
        unchecked.replace(file)
    finally:
        unchecked.unlink(missing_ok=True)
    return Export(file, checked.summary, checked.findings)


async def _write(group: Group, output: BinaryIO) -> None:
    digest = sha256()
    last = group.cursor
    seq, previous_hash, messages, problems = 0, bytes(32), 0, 0
    async for read, item in group.entries():
        line = _line(group, read, item, previous_hash)
        raw = _encoder.encode(line) + b"\n"
        digest.update(raw)
        output.write(raw)
        seq, previous_hash = read.event.seq, read.event.hash
        messages += isinstance(item, Message)
        problems += line.problem is not None
    if seq < last.seq:
        raise LogBroken(group.id, seq, f"the log has not come to its end ({group.gone or 'the client was closed'})")
    summary = Summary(
        group_id=group.id.hex(),
        name=group.name,
        exported_by=group.user_id.hex(),
        exported_at=time.time_ns() // 1000,
        events=seq,
        messages=messages,
        problems=problems,
        seq=seq,
        hash=previous_hash.hex(),
    )
    output.write(_encoder.encode(replace(summary, digest=summary.digest_after(digest.digest()))) + b"\n")


def _line(group: Group, read: Read, item: Item | None, previous_hash: bytes) -> EventLine:
    event = read.event
    return EventLine(
        seq=event.seq,
        hash=event.hash.hex(),
        previous_hash=previous_hash.hex(),
        kind=kind_name(event.kind),
        group_id=event.group_id.hex(),
        object_id=event.object_id.hex(),
        actor_id=event.actor_id.hex(),
        actor="" if event.actor_id == ZERO_ID else group.name_of(event.actor_id),
        key_epoch=event.key_epoch,
        created_at=event.created_at,
        parent_id=parent_id(event).hex(),
        content_hash=event.content_hash.hex(),
        field_hashes=[hash_.hex() for hash_ in field_hashes(event)] if event.kind in POSTS else [],
        statement=None if event.statement is None else event.statement.hex(),
        signature=None if event.signature is None else event.signature.hex(),
        **_said(item, read),
    )


def _said(item: Item | None, read: Read) -> dict[str, Any]:
    """What an event says, or why that can't be known."""
    problem = None if read.problem is None else str(read.problem)
    match item:
        case Message():
            return {"problem": problem, **_message(item)}
        case Update():
            return {"problem": problem} if item.act is None else {"act": _act(item.act)}
        case GroupChange():
            return {"change": item.text}
        case Suspicious():
            return {"problem": item.finding.text}
        case _:
            return {"problem": problem, "is_deleted": read.opened is not None and bool(read.opened.known.erased_at)}


def _message(message: Message) -> dict[str, Any]:
    if message.problem is not None or message.is_deleted:
        return {"is_deleted": message.is_deleted}
    file = message.post.file
    return {
        "sent_at": message.sent_at,
        "title": message.title or None,
        "text": message.text,
        "format": message.post.format if message.post.format != PLAIN else None,
        "file": FileFacts(name=file.name, media_type=file.media_type, size_bytes=file.size_bytes, root=file.root.hex())
        if file
        else None,
    }


def _act(act: AnyAct) -> dict[str, Any]:
    said = msgspec.structs.asdict(act)
    del said["head"]
    return {"act": type(act).__name__.lower(), **said}


def kind_name(kind: int) -> str:
    """A kind as the protocol calls it, such as `thread.posted`; the number of one that this version doesn't know."""
    try:
        return Kind(kind).name.lower().replace("_", ".", 1)
    except ValueError:
        return str(kind)


def _kind(name: str) -> int:
    with suppress(KeyError):
        return Kind[name.upper().replace(".", "_")]
    return int(name)


# ── checking ────────────────────────────────────────────────────────────────────────────────────────────────────────


def check(file: Path) -> Export:
    """Check an exported file from its first event on. Raises ExportDamaged, which says in which line, and OSError."""
    reader = _Reader()
    number = 0
    with file.open("rb") as lines:
        for number, raw in enumerate(_lines(lines), 1):
            line = _decode(raw, number)
            if isinstance(line, EventLine):
                reader.take(line, raw, number)
                continue
            if lines.read(1):
                raise ExportDamaged(number + 1, "there is more after the last line")
            reader.finish(line, number)
            return Export(file, line, reader.findings)
    raise ExportDamaged(number + 1, "the file ends without its last line")


_MESSAGES: Final = frozenset(map(kind_name, (Kind.THREAD_POSTED, Kind.REPLY_POSTED, Kind.MEDIA_POSTED)))


class _Reader:
    """What the lines have come to. Raises ExportDamaged."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self._log: Log | None = None
        self._digest = sha256()
        self._messages = 0
        self._problems = 0

    def take(self, line: EventLine, raw: bytes, number: int) -> None:
        """Go on by one line, by the rules of the log itself."""
        if self._log is None:
            self._log = Log(bytes.fromhex(line.group_id), MemoryIndex())
        if line.previous_hash != self._log.position.hash.hex():
            raise ExportDamaged(number, "it does not follow on the line before")
        try:
            finding = self._log.take(_event(line)).finding
        except ChainBroken as error:
            raise ExportDamaged(number, error.problem) from None
        except (ValueError, OverflowError):
            raise ExportDamaged(number, "it is no event") from None
        if finding is not None and line.problem is None:
            raise ExportDamaged(number, finding.text)
        self.findings += [finding] if finding else []
        self._messages += line.kind in _MESSAGES
        self._problems += line.problem is not None
        self._digest.update(raw)

    def finish(self, summary: Summary, number: int) -> None:
        """Hold what came against the last line."""
        if self._log is None:
            raise ExportDamaged(number, "there is no event before the last line")
        head = self._log.position
        if (summary.group_id, summary.seq, summary.hash) != (head.group_id.hex(), head.seq, head.hash.hex()):
            raise ExportDamaged(number, "the last event is not the one that the last line names")
        if (summary.events, summary.messages, summary.problems) != (head.seq, self._messages, self._problems):
            raise ExportDamaged(number, "there are not as many lines as the last line counts")
        if summary.digest != summary.digest_after(self._digest.digest()):
            raise ExportDamaged(0, "a text or name has been changed since the export")


def _lines(file: BinaryIO) -> Iterator[bytes]:
    while raw := file.readline(_LINE_BYTES_MAX):
        yield raw


def _decode(raw: bytes, number: int) -> EventLine | Summary:
    try:
        line: EventLine | Summary = _decoder.decode(raw)
        return line
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ExportDamaged(number, f"it can't be read: {error}") from None


def _event(line: EventLine) -> Event:
    kind = _kind(line.kind)
    parent = bytes.fromhex(line.parent_id)
    is_annotation = kind == Kind.ANNOTATION_POSTED
    event = Event(
        group_id=bytes.fromhex(line.group_id),
        seq=line.seq,
        hash=bytes.fromhex(line.hash),
        kind=kind,
        object_id=bytes.fromhex(line.object_id),
        actor_id=bytes.fromhex(line.actor_id),
        key_epoch=line.key_epoch,
        created_at=line.created_at,
        content_hash=bytes.fromhex(line.content_hash),
        thread_id=None if is_annotation or parent == ZERO_ID else parent,
        target_id=parent if is_annotation else None,
        statement=None if line.statement is None else bytes.fromhex(line.statement),
        signature=None if line.signature is None else bytes.fromhex(line.signature),
        field_hashes=[bytes.fromhex(hash_) for hash_ in line.field_hashes],
    )
    if parent_id(event) != parent:
        raise ValueError("an event of its kind has no parent")
    return event

"""From an event of the verified log to what it says: opened, its author's signature checked, and what it refers to."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from hashlib import sha256
from typing import TypeVar

import msgspec

from orbital_client.crypto import contents, envelopes
from orbital_client.crypto.contents import AnyAct, Body, Content, File, Title
from orbital_client.crypto.envelopes import Field, Place, Unproven
from orbital_client.crypto.segments import stored_bytes
from orbital_client.errors import BadSeal, CannotOpen, Malformed, MissingKey, Rejected, Withheld
from orbital_client.trust.findings import Finding, Flaw
from orbital_client.trust.index import Known
from orbital_client.trust.keyring import Keyring
from orbital_client.trust.log import POSTS, Log
from orbital_client.wire.ledger import chain_problem
from orbital_protocol.codes import Kind
from orbital_protocol.frames import Event

T = TypeVar("T")
R = TypeVar("R")


class Opened(msgspec.Struct, frozen=True):
    """What an event says. Of the last four a thread has title and body, a reply the body, and so on; none if erased."""

    event: Event
    known: Known
    title: Title | None = None
    body: Body | None = None
    act: AnyAct | None = None
    file: File | None = None


def belongs(log: Log, event: Event) -> bool:
    """Whether this is the event that the verified log has at its seq, by whichever way it came."""
    previous_hash = log.index.hash_at(event.seq - 1)
    if previous_hash is None or log.index.hash_at(event.seq) != event.hash or event.group_id != log.group_id:
        return False
    return chain_problem(event, previous_hash) is None


def open_event(log: Log, keyring: Keyring, event: Event) -> Opened:
    """Open a post or file that `belongs` to the log. Raises CannotOpen."""
    [found] = open_events(log, keyring, [event])
    if isinstance(found, CannotOpen):
        raise found
    return found


def open_events(log: Log, keyring: Keyring, events: Sequence[Event]) -> list[Opened | CannotOpen]:
    """Open posts and files that `belong` to the log: each, or why it can't be.

    One step for all, then the next: a signature leaves nothing of this code in the processor's caches, so whoever
    checks one after the other, with nothing in between, is faster with all the rest.
    """
    unseal, understand = partial(_unseal, log, keyring), partial(_understand, log)
    return _each(understand, _each(_prove, _each(unseal, events)))


def _each(step: Callable[[T], R], found: Iterable[T | CannotOpen]) -> list[R | CannotOpen]:
    """The next step for each, unless one before has failed."""
    done: list[R | CannotOpen] = []
    for one in found:
        if isinstance(one, CannotOpen):
            done.append(one)
            continue
        try:
            done.append(step(one))
        except CannotOpen as problem:
            done.append(problem)
    return done


class _Unsealed(msgspec.Struct, frozen=True):
    event: Event
    known: Known
    author_key: bytes = b""
    fields: Sequence[Unproven] = ()


class _Proved(msgspec.Struct, frozen=True):
    event: Event
    known: Known
    contents: Sequence[bytes]


def _unseal(log: Log, keyring: Keyring, event: Event) -> _Unsealed:
    known = log.index.by_seq(event.seq)
    if known is None or event.kind not in POSTS:
        raise ValueError("only what the log has as a post can be opened")
    if not known.counts:
        raise Rejected(Finding(Flaw.NOT_ALLOWED, log.group_id, event.seq, event.actor_id, "it was not to be posted"))
    if known.erased_at:
        return _Unsealed(event, known)
    key = keyring.get(event.key_epoch)
    author = log.state.member_at(event.actor_id, event.seq)
    if key is None or author is None:
        raise MissingKey(event.key_epoch)

    def opened(field: Field, envelope: bytes | None) -> Unproven:
        if envelope is None:
            raise Withheld("the relay keeps back what nobody has deleted")
        place = Place(
            event.kind, field, event.group_id, event.actor_id, event.key_epoch, event.object_id, known.parent_id
        )
        return envelopes.open_sealed(key, place, envelope)

    match event.kind:
        case Kind.THREAD_POSTED:
            fields = [opened(Field.TITLE, event.encrypted_title), opened(Field.BODY, event.encrypted_body)]
        case Kind.MEDIA_POSTED:
            fields = [opened(Field.METADATA, event.encrypted_metadata)]
        case _:
            fields = [opened(Field.BODY, event.encrypted_body)]
    return _Unsealed(event, known, author.signing_key, fields)


def _prove(sealed: _Unsealed) -> _Proved:
    """Check the author's signatures."""
    return _Proved(sealed.event, sealed.known, [field.by(sealed.author_key) for field in sealed.fields])


def _understand(log: Log, proved: _Proved) -> Opened:
    event, known = proved.event, proved.known
    if known.erased_at:
        return Opened(event, known)
    match event.kind:
        case Kind.THREAD_POSTED:
            title, body = contents.title(proved.contents[0]), contents.body(proved.contents[1])
            if body.title_hash != sha256(event.encrypted_title or b"").digest():
                raise BadSeal("the title is not the one that its author gave it")
            _check_head(log, event, title)
            _check_head(log, event, body)
            return Opened(event, known, title=title, body=body)
        case Kind.REPLY_POSTED:
            body = contents.body(proved.contents[0])
            _check_head(log, event, body)
            return Opened(event, known, body=body)
        case Kind.ANNOTATION_POSTED:
            act = contents.act(proved.contents[0])
            _check_head(log, event, act)
            return Opened(event, known, act=act)
        case _:
            file = contents.file(proved.contents[0])
            _check_head(log, event, file)
            if file.root != event.root or stored_bytes(file.size_bytes) != event.size_bytes:
                raise Malformed("the file is not the one that its author describes")
            return Opened(event, known, file=file)


def _check_head(log: Log, event: Event, content: Content) -> None:
    """What the author had verified is in this log too: nobody was shown another one."""
    head = content.head
    if head.seq >= event.seq or log.index.hash_at(head.seq) != head.hash:
        raise Rejected(Finding(Flaw.FORK, log.group_id, event.seq, event.actor_id))

"""What is inside of envelopes: MessagePack maps, verified as the bytes that came, never encoded again.

Unknown keys are passed over: a later client may say more. An unknown act or signal is one of a later client.
"""

from typing import Annotated, Final, TypeVar

import msgspec
from msgspec import Meta

from orbital_client.crypto.primitives import KEY_BYTES
from orbital_client.errors import Malformed, UnknownVersion
from orbital_protocol.fields import ByteCount, Hash, Id, Microseconds, SequenceNumber

Text = Annotated[str, Meta(max_length=65_536)]
ShortText = Annotated[str, Meta(min_length=1, max_length=1_024)]
Emoji = Annotated[str, Meta(min_length=1, max_length=64)]

PLAIN: Final = "plain"
MARKDOWN: Final = "markdown"
HERE: Final = "here"
AWAY: Final = "away"


class Head(msgspec.Struct, frozen=True, array_like=True):
    """The last event of the group that the author had verified: `[seq, hash]`."""

    seq: SequenceNumber
    hash: Hash


class Content(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What every stored content says: when it was written, by the author's clock, and on what."""

    sent_at: Microseconds
    head: Head


class Title(Content, frozen=True):
    """`encrypted_title` of a thread."""

    text: ShortText


class Body(Content, frozen=True):
    """`encrypted_body` of a thread or reply. `title_hash`, of threads alone, is the SHA-256 of the sealed title."""

    text: Text
    format: str = PLAIN
    title_hash: Hash | None = None


class Act(Content, frozen=True, tag_field="act"):
    """`encrypted_body` of an annotation: what it does with its target."""


class Edit(Act, frozen=True, tag="edit"):
    """Other words in place of the target's: only its author's counts, and the last one wins. `title`: of a thread."""

    text: Text
    format: str = PLAIN
    title: ShortText | None = None


class React(Act, frozen=True, tag="react"):
    """A reaction, once for each member and emoji."""

    emoji: Emoji


class Unreact(Act, frozen=True, tag="unreact"):
    """The author's reaction is taken back."""

    emoji: Emoji


class Pin(Act, frozen=True, tag="pin"):
    """The target is pinned; only an admin's or owner's counts."""


class Unpin(Act, frozen=True, tag="unpin"):
    """The target is no longer pinned; only an admin's or owner's counts."""


AnyAct = Edit | React | Unreact | Pin | Unpin


class File(Content, frozen=True):
    """`encrypted_metadata` of a file: the key of its segments, its true size, its root once more."""

    name: ShortText
    media_type: Annotated[str, Meta(max_length=255)]
    size_bytes: ByteCount
    key: Annotated[bytes, Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)]
    root: Hash
    caption: Text = ""


class Name(msgspec.Struct, frozen=True, kw_only=True):
    """`encrypted_name` of a group."""

    text: ShortText


class Signalled(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="signal"):
    """`payload` of a signal. Whoever has seen its `id`, or gets it over 60 s after `sent_at`, drops it."""

    id: Id
    sent_at: Microseconds


class Typing(Signalled, frozen=True, tag="typing"):
    """The sender writes in a thread, or, without one, a new thread."""

    thread_id: Id | None = None


class Presence(Signalled, frozen=True, tag="presence"):
    """The sender is `here` or `away`."""

    state: Annotated[str, Meta(max_length=16)]


AnySignal = Typing | Presence

C = TypeVar("C", Title, Body, AnyAct, File, Name, AnySignal)

_title: Final = msgspec.msgpack.Decoder(Title)
_body: Final = msgspec.msgpack.Decoder(Body)
_act: Final = msgspec.msgpack.Decoder(AnyAct)
_file: Final = msgspec.msgpack.Decoder(File)
_name: Final = msgspec.msgpack.Decoder(Name)
_signal: Final = msgspec.msgpack.Decoder(AnySignal)
_encoder: Final = msgspec.msgpack.Encoder()


def encode(content: Content | Name | Signalled) -> bytes:
    """The bytes that are signed and sealed. Raises ValueError for what no reader would take."""
    raw = _encoder.encode(content)
    try:
        msgspec.msgpack.decode(raw, type=type(content))
    except msgspec.ValidationError as error:
        raise ValueError(f"this can't be sent: {error}") from None
    return raw


def title(raw: bytes) -> Title:
    """Raises Malformed, as the others here do."""
    return _decode(_title, raw)


def body(raw: bytes) -> Body:
    return _decode(_body, raw)


def act(raw: bytes) -> AnyAct:
    """Raises also UnknownVersion for an act that this client does not know."""
    act: AnyAct = _decode(_act, raw)
    return act


def file(raw: bytes) -> File:
    return _decode(_file, raw)


def name(raw: bytes) -> Name:
    return _decode(_name, raw)


def signal(raw: bytes) -> AnySignal:
    """Raises also UnknownVersion for a signal that this client does not know."""
    signal: AnySignal = _decode(_signal, raw)
    return signal


def _decode(decoder: msgspec.msgpack.Decoder[C], raw: bytes) -> C:
    try:
        return decoder.decode(raw)
    except (msgspec.ValidationError, RecursionError) as error:
        if "Invalid value" in str(error):  # of the field that says what it is
            raise UnknownVersion("written by a newer client, in a way that this one does not know") from None
        raise Malformed("its author's client wrote what this one can't read") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Malformed("its author's client wrote what this one can't read") from None

"""The lines of a history: what clients sent and got, and what the log has in the end."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec


class Fact(msgspec.Struct, frozen=True, kw_only=True, tag_field="what"):
    """A line. Ids and hashes are hexadecimal; `at` is one clock's nanoseconds."""

    at: int
    group: str


class Sent(Fact, frozen=True, kw_only=True, tag="sent"):
    """A post left a client, for the first time or again."""

    who: str
    id: str
    content_hash: str


class Acked(Fact, frozen=True, kw_only=True, tag="acked"):
    who: str
    id: str
    seq: int


class Subscribed(Fact, frozen=True, kw_only=True, tag="subscribed"):
    """A client listens, from after this place on."""

    who: str
    after: int


class Got(Fact, frozen=True, kw_only=True, tag="got"):
    """An event came to a client."""

    who: str
    seq: int
    id: str
    kind: int
    content_hash: str


class Stopped(Fact, frozen=True, kw_only=True, tag="stopped"):
    """A client listens no longer, by its own choice, until it subscribes again: what comes later need not reach it."""

    who: str


class Removed(Fact, frozen=True, kw_only=True, tag="removed"):
    """The event at this place removes a client from the group."""

    who: str
    seq: int


class Quota(Fact, frozen=True, kw_only=True, tag="quota"):
    used_bytes: int
    limit_bytes: int


class Stored(Fact, frozen=True, kw_only=True, tag="stored"):
    """An event as the log has it in the end."""

    seq: int
    id: str
    kind: int
    actor: str
    key_epoch: int
    created_at: int
    content_hash: str
    hash: str


AnyFact = Sent | Acked | Subscribed | Got | Stopped | Removed | Quota | Stored

_decoder: Final = msgspec.json.Decoder(AnyFact)


@dataclass
class Recorder:
    """What happened, in memory; `write` appends it to a file and forgets it."""

    facts: list[AnyFact] = field(default_factory=list)

    def note(self, fact: AnyFact) -> None:
        self.facts.append(fact)

    def write(self, file: Path) -> None:
        with file.open("ab") as lines:
            lines.writelines(msgspec.json.encode(fact) + b"\n" for fact in self.facts)
        self.facts.clear()


def read(files: Iterable[Path]) -> Iterator[AnyFact]:
    """The facts of several files. Raises msgspec.DecodeError, OSError."""
    for file in files:
        with file.open("rb") as lines:
            yield from map(_decoder.decode, lines)

"""How fast a client opens and seals messages, with every check on, beside Ed25519 alone."""

import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Final

from bench.figures import Latency, Plan, Result, say, spread
from bench.stage import running_postgres, running_relay
from bench.talk import Talk, catch_up, logged, require_texts, talk, words
from bench.unplugged import Member, as_message
from orbital_client.crypto.contents import Body
from orbital_client.crypto.envelopes import Field
from orbital_client.crypto.groupkeys import GroupKey
from orbital_client.identity import Identity, uuid7
from orbital_client.messages import Message
from orbital_client.sending import Sender
from orbital_client.wire import Posted
from orbital_protocol.codes import Kind
from orbital_protocol.frames import Event
from orbital_relay.config import TokenKey

OPEN_BAR: Final = 0.75
SEAL_BAR: Final = 0.60

_PEOPLE: Final = 8
_MESSAGES: Final = 5_000
_TEXT_BYTES: Final = 400
_BATCH: Final = 256  # so many come in before they are read; the client commits as often when it catches up
_SIGNATURES: Final = 64


@dataclass(slots=True)
class Run:
    """Seconds that both sides took for the same number of messages, in turns; `wire_s` comes before ours."""

    messages: int = 0
    wire_s: float = 0.0
    ours_s: float = 0.0
    raw_s: float = 0.0

    @property
    def ours(self) -> float:
        """Messages a second."""
        return self.messages / self.ours_s

    @property
    def raw(self) -> float:
        """Signatures a second."""
        return self.messages / self.raw_s

    @property
    def ratio(self) -> float:
        return self.raw_s / self.ours_s

    @property
    def ratio_from_bytes(self) -> float:
        """With what the connection does beforehand."""
        return self.raw_s / (self.wire_s + self.ours_s)

    def __str__(self) -> str:
        return f"{self.ours:,.0f} messages/s, Ed25519 alone {self.raw:,.0f}/s: {self.ratio:.3f}"


class Raw:
    """The primitive alone, as the client calls it: the same keys in turns, texts of the same size."""

    def __init__(self, authors: Sequence[Identity]) -> None:
        self._signed = [
            (author.signing, author.signing.public_key(), text := os.urandom(_TEXT_BYTES), author.signing.sign(text))
            for author in islice(cycle(authors), _SIGNATURES)
        ]

    def verify(self, times: int) -> None:
        for _, key, text, signature in islice(cycle(self._signed), times):
            key.verify(signature, text)

    def sign(self, times: int) -> None:
        for key, _, text, _ in islice(cycle(self._signed), times):
            key.sign(text)


async def measure(plan: Plan) -> Sequence[Result]:
    """Open, then seal, each in turns with the primitive."""
    say(
        f"trust: messages of {_TEXT_BYTES} bytes by {_PEOPLE} authors, opened and verified by a client with its store"
        " in a file, and sealed; against verifying and signing by Ed25519 alone, in turns"
    )
    opened: list[Run] = []
    sealed: list[Run] = []
    async with running_postgres("trust") as postgres:
        token_key = TokenKey("bench", os.urandom(32))
        async with running_relay(postgres, token_key) as relay:
            url = f"ws://127.0.0.1:{relay.port}"
            said = await talk(url, people=_PEOPLE, messages=_MESSAGES, size=_TEXT_BYTES)
            stores = [postgres.directory / f"device{number}.db" for number in range(plan.runs)]
            caught_up = [await catch_up(url, said, store) for store in stores]
        say(f"  a second device that catches up with the relay: {median(caught_up):,.0f} messages/s")
        await postgres.execute("CHECKPOINT")
        for number in range(1, plan.runs + 1):
            opened.append(await _open(said, postgres.directory, plan.seconds))
            sealed.append(await _seal(said, postgres.directory, plan.seconds))
            say(f"  run {number}: opened {opened[-1]}; sealed {sealed[-1]}")
        alone = await _open_one_by_one(said, postgres.directory, plan.seconds)
    sizes = {"text_bytes": _TEXT_BYTES, "sealed_bytes": len(said.messages[0].encrypted_body or b""), "authors": _PEOPLE}
    details = {
        "ratio_from_bytes": round(median(run.ratio_from_bytes for run in opened), 3),
        "one_by_one": _rounded(alone),
        "caught_up": round(median(caught_up)),
        **sizes,
    }
    return [_judge("trust_open", opened, OPEN_BAR, details), _judge("trust_seal", sealed, SEAL_BAR, sizes)]


def _judge(name: str, runs: Sequence[Run], bar: float, details: Mapping[str, object]) -> Result:
    ours, raw = median(run.ours for run in runs), median(run.raw for run in runs)
    named = {
        "us": round(1_000_000 / ours, 1),
        "yardstick_us": round(1_000_000 / raw, 1),
        "ratios": [round(run.ratio, 3) for run in runs],
        **details,
        **spread([run.raw for run in runs]),
    }
    return Result(name, ours, raw, ours / raw, bar, ours / raw >= bar, named)


def _rounded(latency: Latency) -> Mapping[str, float]:
    return {name: round(value, 3) for name, value in latency.as_figure().items()}


# ── opening ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _open(said: Talk, directory: Path, seconds: float) -> Run:
    """Have members read the log from its messages on, a new one whenever one has come to the end."""
    run, raw = Run(), Raw(said.authors)
    while run.ours_s < seconds:
        with tempfile.TemporaryDirectory(dir=directory) as folder:
            async with Member.of(said, Path(folder, "store.db")) as member:
                for events in _batches(said.messages):
                    await _open_batch(said, member, events, run, raw)
                    if run.ours_s >= seconds:
                        break
    return run


async def _open_batch(said: Talk, member: Member, events: Sequence[Event], run: Run, raw: Raw) -> None:
    message = as_message(events)
    started = time.perf_counter()
    member.bring(message)
    brought = time.perf_counter()
    messages = await member.read(len(events))
    opened = time.perf_counter()
    raw.verify(len(events))
    run.raw_s += time.perf_counter() - opened
    run.ours_s += opened - brought
    run.wire_s += brought - started
    run.messages += len(events)
    _require_opened(said, events, messages)


async def _open_one_by_one(said: Talk, directory: Path, seconds: float) -> Latency:
    """From a message that comes in alone to its text; it is committed too."""
    took_us: list[float] = []
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        async with Member.of(said, Path(folder, "store.db")) as member:
            ends_at = time.perf_counter() + seconds
            for event in said.messages:
                raw = as_message([event])
                started = time.perf_counter()
                member.bring(raw)
                messages = await member.read(1)
                took_us.append((time.perf_counter() - started) * 1_000_000)
                _require_opened(said, [event], messages)
                if time.perf_counter() >= ends_at:
                    break
    return Latency.of(took_us)


def _require_opened(said: Talk, events: Sequence[Event], messages: Sequence[Message]) -> None:
    require_texts(
        {message.id: message.text for message in messages},
        {event.object_id: said.texts[event.object_id] for event in events},
    )


def _batches(events: Sequence[Event]) -> Iterator[Sequence[Event]]:
    return (events[at : at + _BATCH] for at in range(0, len(events), _BATCH))


# ── sealing ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _seal(said: Talk, directory: Path, seconds: float) -> Run:
    """Have each author seal in turns; the last batch must be what the members then read."""
    run, raw = Run(), Raw(said.authors)
    texts = [words(number, _TEXT_BYTES) for number in range(_BATCH)]
    authors = [said.authors[number % len(said.authors)] for number in range(_BATCH)]
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        async with Member.of(said, Path(folder, "store.db")) as member:
            senders = {author.user_id: member.sender(author) for author in said.authors}
            sealed: list[tuple[Identity, bytes, bytes]] = []
            while run.ours_s < seconds:
                sealed.clear()
                started = time.perf_counter()
                for author, text in zip(authors, texts, strict=True):
                    reply_id, body = await _seal_one(senders[author.user_id], said.thread_id, text)
                    sealed.append((author, reply_id, body))
                done = time.perf_counter()
                raw.sign(_BATCH)
                run.raw_s += time.perf_counter() - done
                run.ours_s += done - started
                run.messages += _BATCH
            member.bring(as_message(logged(said, member.replica.log.position, sealed)))
            messages = await member.read(_BATCH)
    written = {reply_id: text for (_, reply_id, _), text in zip(sealed, texts, strict=True)}
    require_texts({message.id: message.text for message in messages}, written)
    return run


async def _seal_one(sender: Sender, thread_id: bytes, text: str) -> tuple[bytes, bytes]:
    """What `Group.reply` does, but for the request: the reply's id, and what would be sent."""
    reply_id = uuid7()
    sent_at, head = sender.said()
    said = Body(sent_at=sent_at, head=head, text=text)
    sent: list[bytes] = []

    def seal(key: GroupKey) -> list[bytes]:
        return [sender.seal(key, sender.place(key, Kind.REPLY_POSTED, Field.BODY, reply_id, thread_id), said)]

    async def send(fields: list[bytes], _epoch: int) -> Posted:
        sent.extend(fields)
        return Posted(reply_id, head.seq, head.hash, sent_at, duplicate=False)

    await sender.post(thread_id, seal, send)
    return reply_id, sent[0]

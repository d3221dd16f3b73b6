"""A relay that misbehaves on purpose: it stands before an honest one, and tells whoever connects to it another story.

It can do whatever a real relay could: leave out, alter, repeat and invent events, and make the hashes of its story fit.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import msgpack  # type: ignore[import-untyped]
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from orbital_protocol import SUBPROTOCOL, ZERO_HASH, ZERO_ID, chain

Frame = dict[str, Any]
Forge = Callable[[Frame], list[Frame]]


def honest(frame: Frame) -> list[Frame]:
    return [frame]


@dataclass
class Story:
    """One group's log, as it is told: `real_seqs[n]` is the true seq at which event n + 1 of the story is told."""

    told: list[Frame] = field(default_factory=list)
    real_seqs: list[int] = field(default_factory=list)
    real_hashes: list[bytes] = field(default_factory=lambda: [ZERO_HASH])

    @property
    def covered(self) -> int:
        return len(self.real_hashes) - 1

    def hash_at(self, seq: int) -> bytes:
        return bytes(self.told[seq - 1]["hash"]) if seq else ZERO_HASH

    def take(self, event: Frame, forge: Forge) -> list[Frame]:
        """What is told where the true log has this event: the same again for one that came before."""
        seq = event["seq"]
        if seq == self.covered + 1:
            self.real_hashes.append(event["hash"])
            for forged in forge(dict(event)):
                self.told.append(chained(forged, len(self.told) + 1, self.hash_at(len(self.told))))
                self.real_seqs.append(seq)
        return [told for told, real in zip(self.told, self.real_seqs, strict=True) if real == seq]

    def real(self, told_seq: int) -> tuple[int, bytes]:
        """The place in the true log up to which so many events of the story go."""
        seq = self.real_seqs[told_seq] - 1 if told_seq < len(self.told) else self.covered
        return seq, self.real_hashes[seq]

    def head(self, real_seq: int) -> tuple[int, bytes]:
        """How far the story goes where the true log goes so far."""
        count = sum(1 for real in self.real_seqs if real <= real_seq)
        return count, self.hash_at(count)


def chained(event: Frame, seq: int, previous_hash: bytes) -> Frame:
    """The event at this place of a story, with hashes that fit. `torn` in it leaves them as they are."""
    if event.pop("torn", False):
        return event
    event = dict(event)
    event["seq"] = seq
    event["content_hash"] = content_hash(event)
    event["hash"] = chain.event_hash(
        previous_hash=previous_hash,
        **{
            name: event[name]
            for name in ("group_id", "seq", "kind", "object_id", "actor_id", "key_epoch", "created_at", "content_hash")
        },
    )
    return event


def content_hash(event: Frame) -> bytes:
    if "statement" in event:
        return chain.control_content_hash(event["statement"], event["signature"])
    fields = [event[name] for name in ("encrypted_title", "encrypted_body") if name in event]
    if "encrypted_metadata" in event:
        names = ("encrypted_metadata", "encryption_iv", "size_bytes", "root")
        fields = list(chain.media_fields(*(event[name] for name in names)))
    hashes = [chain.field_hash(value) for value in fields] or event.get("field_hashes", [])
    return chain.content_hash(event.get("thread_id") or event.get("target_id") or ZERO_ID, hashes)


class Liar:
    """Forge events with `forge`, answers with `answer(request, answer)`, other pushes with `push`."""

    def __init__(self, port: int) -> None:
        self.url = ""
        self.forge: Forge = honest
        self.push: Forge = honest
        self.answer: Callable[[Frame, Frame], Frame] = lambda request, answer: answer
        self.request: Callable[[Frame], Frame] = lambda request: request
        self.stories: dict[bytes, Story] = {}
        self._port = port
        self._victims: set[ServerConnection] = set()

    def be_honest(self) -> None:
        """Forget all stories, and lie no more. Whoever is connected is cut off."""
        self.forge = self.push = honest
        self.answer = lambda request, answer: answer
        self.request = lambda request: request
        self.stories.clear()

    async def cut(self) -> None:
        """Cut all connections."""
        for victim in list(self._victims):
            await victim.close(1011)

    async def inject(self, frame: Frame) -> None:
        """Push a frame to everybody who is connected."""
        for victim in list(self._victims):
            await victim.send(msgpack.packb(frame))

    async def serve(self, victim: ServerConnection) -> None:
        requests: dict[int, Frame] = {}
        self._victims.add(victim)
        try:
            async with connect(
                f"ws://127.0.0.1:{self._port}", subprotocols=[Subprotocol(SUBPROTOCOL)], compression=None, max_size=None
            ) as relay:
                await asyncio.gather(self._ask(victim, relay, requests), self._tell(relay, victim, requests))
        finally:
            self._victims.discard(victim)

    async def _ask(self, victim: ServerConnection, relay: ClientConnection, requests: dict[int, Frame]) -> None:
        with suppress(ConnectionClosed):
            async for message in victim:
                for frame in _frames(message):
                    requests[frame["id"]] = dict(frame)
                    await relay.send(msgpack.packb(self._asked(self.request(frame))))
        await relay.close()

    def _asked(self, frame: Frame) -> Frame:
        """A request in terms of the true log."""
        match frame["type"]:
            case "subscribe":
                for group in frame["groups"]:
                    if "after_seq" in group:
                        story = self.stories.setdefault(group["group_id"], Story())
                        group["after_seq"], group["after_hash"] = story.real(group["after_seq"])
            case "event.list" if "after_seq" in frame:
                story = self.stories.setdefault(frame["group_id"], Story())
                frame["after_seq"] = story.real(frame["after_seq"])[0]
        return frame

    async def _tell(self, relay: ClientConnection, victim: ServerConnection, requests: dict[int, Frame]) -> None:
        with suppress(ConnectionClosed):
            async for message in relay:
                for frame in _frames(message):
                    for told in self._told(frame, requests):
                        await victim.send(msgpack.packb(told))
        await victim.close(relay.close_code or 1011, relay.close_reason or "")

    def _told(self, frame: Frame, requests: dict[int, Frame]) -> list[Frame]:
        match frame["type"]:
            case "event":
                return self.stories.setdefault(frame["group_id"], Story()).take(frame, self.forge)
            case "live":
                story = self.stories.setdefault(frame["group_id"], Story())
                frame["seq"], frame["hash"] = story.head(frame["seq"])
                return self.push(frame)
            case "ok" | "error":
                request = requests.pop(frame["id"], {"type": ""})
                return [self.answer(request, self._answered(request, frame))]
            case _:
                return self.push(frame)

    def _answered(self, request: Frame, answer: Frame) -> Frame:
        if answer["type"] != "ok":
            return answer
        match request["type"]:
            case "subscribe":
                asked = {group["group_id"]: group for group in request["groups"]}
                for group in answer["groups"]:
                    if group["status"] == "resumed" and "after_seq" in asked[group["group_id"]]:
                        group["seq"] = asked[group["group_id"]]["after_seq"]
                        group["hash"] = asked[group["group_id"]]["after_hash"]
            case "event.list" if "after_seq" in request:
                story = self.stories.setdefault(request["group_id"], Story())
                told = [forged for event in answer["events"] for forged in story.take(event, self.forge)]
                answer["events"] = [event for event in told if event["seq"] > request["after_seq"]]
                if answer["events"]:
                    answer["previous_hash"] = story.hash_at(request["after_seq"])
                answer["seq"], answer["hash"] = story.head(answer["seq"])
        return answer


def _frames(message: str | bytes) -> list[Frame]:
    unpacker = msgpack.Unpacker(raw=False)
    unpacker.feed(message if isinstance(message, bytes) else message.encode())
    return list(unpacker)


@asynccontextmanager
async def liar_before(port: int) -> AsyncIterator[Liar]:
    """A liar in front of the honest relay at this port."""
    liar = Liar(port)
    async with serve(
        liar.serve, "127.0.0.1", 0, subprotocols=[Subprotocol(SUBPROTOCOL)], compression=None, max_size=None
    ) as server:
        liar.url = f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"
        yield liar

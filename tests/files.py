"""Files for tests, up and down a connection: frames in and out, without the client library.

file = File(group_id, thread_id, os.urandom(1_000_000))
await upload(talk, file)
assert await download(talk, file.media_id) == file.data
"""

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from orbital_protocol import frames
from orbital_protocol.frames import MediaBeginOk, MediaChunkOk, Ok, PostOk
from orbital_protocol.media import Root
from orbital_relay.store.pool import Connection
from tests.people import new_id
from tests.talk import Talk

CHUNK = 524_288
"""Bytes of a chunk as relays have it where nothing else is said."""


@dataclass(frozen=True)
class File:
    """What somebody uploads."""

    group_id: bytes
    thread_id: bytes
    data: bytes = field(repr=False)
    media_id: bytes = field(default_factory=new_id)
    encryption_iv: bytes = field(default_factory=lambda: os.urandom(12))
    metadata: bytes = b"metadata, sealed"

    @property
    def root(self) -> bytes:
        """The root over the file's bytes."""
        root = Root()
        root.update(self.data)
        return root.digest()


async def begin(talk: Talk, file: File, **changes: object) -> MediaBeginOk:
    """Begin the upload, or begin it again."""
    fields = {
        "group_id": file.group_id,
        "thread_id": file.thread_id,
        "media_id": file.media_id,
        "size_bytes": len(file.data),
        "encryption_iv": file.encryption_iv,
        **changes,
    }
    answer: MediaBeginOk = await talk.ask(frames.MediaBegin, **fields)
    return answer


def chunk(talk: Talk, file: File, begun: MediaBeginOk, offset: int, size: int | None = None) -> frames.MediaChunk:
    """A chunk, to be sent."""
    size = begun.chunk_bytes if size is None else size
    return frames.MediaChunk(
        id=talk.next_id(),
        media_id=file.media_id,
        generation=begun.generation,
        offset=offset,
        data=file.data[offset : offset + size],
    )


def offsets(file: File, begun: MediaBeginOk, *, up_to: int | None = None) -> Sequence[int]:
    """Where the chunks that are missing begin."""
    end = len(file.data) if up_to is None else up_to
    return range(begun.offset, end, begun.chunk_bytes)


async def send(talk: Talk, file: File, begun: MediaBeginOk, *, up_to: int | None = None, limit_s: float = 60) -> int:
    """Send what is missing, a window at a time; return how far all is durable, or raise what goes wrong first."""
    waiting: list[asyncio.Future[Ok]] = []
    durable = begun.offset
    async with asyncio.timeout(limit_s):
        for offset in offsets(file, begun, up_to=up_to):
            if len(waiting) == begun.window:
                durable = _offset(await waiting.pop(0))
            waiting.append(talk.send(chunk(talk, file, begun, offset)))
        for answer in waiting:
            durable = _offset(await answer)
    return durable


def _offset(answer: Ok) -> int:
    assert isinstance(answer, MediaChunkOk)
    return answer.offset


async def commit(talk: Talk, file: File, *, key_epoch: int = 1, root: bytes | None = None) -> PostOk:
    """Commit the upload."""
    answer: PostOk = await talk.ask(
        frames.MediaCommit,
        media_id=file.media_id,
        key_epoch=key_epoch,
        encrypted_metadata=file.metadata,
        root=file.root if root is None else root,
    )
    return answer


async def upload(talk: Talk, file: File) -> PostOk:
    """All of it: begin, send, commit."""
    begun = await begin(talk, file)
    assert await send(talk, file, begun) == len(file.data)
    return await commit(talk, file)


async def download(talk: Talk, media_id: bytes, *, length: int = CHUNK) -> bytes:
    """Read a file to its end."""
    found = bytearray()
    while True:
        answer = await talk.ask(frames.MediaRead, media_id=media_id, offset=len(found), length=length)
        found += answer.data
        if len(answer.data) < length:
            return bytes(found)


async def usage(sql: Connection, group_id: bytes) -> tuple[int, int]:
    """Bytes and files that count against a group's quota; they are those of its files and uploads."""
    row = await sql.fetchrow(  # one statement: files come and go
        "SELECT q.total_bytes, q.media_count, coalesce(sum(f.size_bytes), 0)::BIGINT, count(f.size_bytes)::INTEGER"
        " FROM group_quotas q LEFT JOIN"
        " (SELECT group_id, size_bytes FROM media UNION ALL SELECT group_id, size_bytes FROM uploads) f"
        " USING (group_id) WHERE group_id = $1 GROUP BY q.group_id",
        group_id,
    )
    assert row is not None
    total_bytes, media_count, *there = row
    assert [total_bytes, media_count] == there
    return total_bytes, media_count


def stored(folder: Path) -> set[str]:
    """The names of all files that a local store has."""
    return {path.name for path in folder.glob("??/*")}

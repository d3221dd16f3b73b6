"""Appending posts: one batch, one transaction, one round trip."""

from binascii import b2a_base64
from collections.abc import Sequence
from typing import Final

import asyncpg
import msgspec

from orbital_protocol.codes import ErrorCode, Kind
from orbital_protocol.frames import Event
from orbital_relay.store.pool import Connection
from orbital_relay.store.queries import query

_APPEND: Final = query("append_posts")
_APPEND_ONE: Final = query("append_post")


class Post(msgspec.Struct, frozen=True, gc=False):
    """A thread, reply or annotation that somebody wants appended. `parent_id` is None for threads."""

    group_id: bytes
    kind: int
    object_id: bytes
    parent_id: bytes | None
    author_id: bytes
    key_epoch: int
    encrypted_title: bytes | None
    encrypted_body: bytes
    field_hashes: bytes
    content_hash: bytes


class Appended(msgspec.Struct, frozen=True, gc=False):
    """Where a post stands in its group's log. `duplicate`: it was there before."""

    seq: int
    hash: bytes
    created_at: int
    content_hash: bytes
    duplicate: bool


Outcome = Appended | ErrorCode


def event_of(post: Post, appended: Appended) -> Event:
    """The event that subscribers get of a post that was just appended."""
    kind = post.kind
    return Event(
        group_id=post.group_id,
        seq=appended.seq,
        hash=appended.hash,
        kind=kind,
        object_id=post.object_id,
        actor_id=post.author_id,
        key_epoch=post.key_epoch,
        created_at=appended.created_at,
        content_hash=appended.content_hash,
        thread_id=post.parent_id if kind == Kind.REPLY_POSTED else None,
        target_id=post.parent_id if kind == Kind.ANNOTATION_POSTED else None,
        encrypted_title=post.encrypted_title,
        encrypted_body=post.encrypted_body,
    )


def _base64(data: bytes | None) -> str | None:
    return None if data is None else b2a_base64(data, newline=False).decode("ascii")


async def append_posts(connection: Connection, relay_hex: str, posts: Sequence[Post]) -> list[Outcome]:
    """Append a batch; the outcomes are in the order of the posts.

    Posts of one group stand together; no object id is there twice, or as the parent of another. Raise
    asyncpg.UniqueViolationError where somebody else is using one of the ids at this moment: nothing was appended.
    """
    append = append_one if len(posts) == 1 else append_batch
    return [_outcome(row) for row in await append(connection, relay_hex, posts)]


async def append_one(connection: Connection, relay_hex: str, posts: Sequence[Post]) -> list[asyncpg.Record]:
    """A batch of one, in less time (docs/adr/0018-one-post-alone.md)."""
    [post] = posts
    return await connection.fetch(_APPEND_ONE, relay_hex, *parameters(post))


async def append_batch(connection: Connection, relay_hex: str, posts: Sequence[Post]) -> list[asyncpg.Record]:
    """Any number."""
    return await connection.fetch(_APPEND, relay_hex, [parameters(post) for post in posts])


def parameters(post: Post) -> tuple[object, ...]:
    """A post as the type new_post, and as append_post's parameters."""
    return (
        post.group_id,
        post.kind,
        post.object_id,
        post.parent_id,
        post.author_id,
        post.key_epoch,
        _base64(post.encrypted_title),
        _base64(post.encrypted_body),
        post.field_hashes,
        post.content_hash,
    )


def _outcome(row: asyncpg.Record) -> Outcome:
    error, seq, hash_, created_at, content_hash, duplicate = row
    return ErrorCode(error) if error is not None else Appended(seq, hash_, created_at, content_hash, duplicate)

"""Messages as they stand: what was posted, with the edits, reactions, pins and deletions that came after."""

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from orbital_client.crypto.contents import PLAIN, AnyAct, Edit, File, Pin, React, Unpin, Unreact
from orbital_client.errors import CannotOpen
from orbital_client.trust.index import Known
from orbital_client.trust.opening import Opened
from orbital_protocol import ZERO_ID
from orbital_protocol.codes import Kind, Role
from orbital_protocol.frames import Event

Reactions = Mapping[str, frozenset[bytes]]
_NONE: Final[Reactions] = MappingProxyType({})
_KINDS: Final = {int(kind): kind for kind in Kind}


class Post(msgspec.Struct, frozen=True, kw_only=True):
    """A thread, reply or file. `problem`: why it can't be shown, if so; `edited_at`, `erased_at`: seqs, 0 for never."""

    group_id: bytes
    id: bytes
    thread_id: bytes
    seq: int
    hash: bytes
    kind: Kind
    author_id: bytes
    created_at: int
    sent_at: int = 0
    title: str = ""
    text: str = ""
    format: str = PLAIN
    file: File | None = None
    file_iv: bytes = b""
    edited_at: int = 0
    erased_at: int = 0
    is_pinned: bool = False
    reactions: Reactions = _NONE
    problem: CannotOpen | None = None


def post_of(opened: Opened) -> Post:
    """The message that a thread, reply or file is when it is posted."""
    title, body, file = opened.title, opened.body, opened.file
    if body is not None:
        return _post(
            opened.event,
            opened.known,
            sent_at=body.sent_at,
            title=title.text if title else "",
            text=body.text,
            format=body.format,
        )
    if file is not None:
        iv = opened.event.encryption_iv or b""
        return _post(opened.event, opened.known, sent_at=file.sent_at, text=file.caption, file=file, file_iv=iv)
    return _post(opened.event, opened.known)


def sealed_post(event: Event, known: Known, problem: CannotOpen) -> Post:
    """A message that can't be opened: it is there all the same, and says why."""
    return _post(event, known, problem=problem)


def _post(event: Event, known: Known, **said: Any) -> Post:
    parent_id = known.parent_id
    return Post(
        group_id=event.group_id,
        id=event.object_id,
        thread_id=event.object_id if parent_id == ZERO_ID else parent_id,
        seq=event.seq,
        hash=event.hash,
        kind=_KINDS[event.kind],
        author_id=event.actor_id,
        created_at=event.created_at,
        erased_at=known.erased_at,
        **said,
    )


RoleAt = Callable[[bytes, int], int]
"""Somebody's role when the event at a seq was logged."""


class Board:
    """A group's messages, or a part of them, in the order of the log. Give it everything in that order."""

    def __init__(self, role_at: RoleAt) -> None:
        self._role_at = role_at
        self._posted: dict[bytes, Post] = {}
        self._posts: dict[bytes, Post] = {}
        self._acts: dict[bytes, dict[bytes, Opened]] = {}
        self._targets: dict[bytes, bytes] = {}

    def __iter__(self) -> Iterator[Post]:
        return iter(self._posts.values())

    def get(self, message_id: bytes) -> Post | None:
        return self._posts.get(message_id)

    def put(self, post: Post) -> None:
        """A message was posted, or can be read now."""
        self._posted[post.id] = post
        self._fold(post.id)

    def erase(self, object_id: bytes, seq: int) -> Post | None:
        """A message was deleted, or has expired, and nothing is left but its place; or what was done with one was.

        Returns the message as it is then.
        """
        if (target_id := self._targets.pop(object_id, None)) is not None:
            del self._acts[target_id][object_id]
            return self._fold(target_id)
        post = self._posted.get(object_id)
        if post is None:
            return None
        self._posted[object_id] = replace(post, title="", text="", file=None, problem=None, erased_at=seq)
        return self._fold(object_id)

    def annotate(self, opened: Opened) -> Post | None:
        """Apply an annotation; return the message as it is then, None where there is none to annotate."""
        event, target_id = opened.event, opened.known.parent_id
        post = self._posted.get(target_id)
        if opened.act is None or post is None or post.erased_at:
            return None
        self._acts.setdefault(target_id, {})[event.object_id] = opened
        self._targets[event.object_id] = target_id
        self._posts[target_id] = self._changed(self._posts[target_id], opened.act, event) or self._posts[target_id]
        return self._posts[target_id]

    def _fold(self, message_id: bytes) -> Post:
        """What a message is, after all that was done with it."""
        post = self._posted[message_id]
        if not post.erased_at:
            for opened in self._acts.get(message_id, {}).values():
                if opened.act is not None:
                    post = self._changed(post, opened.act, opened.event) or post
        self._posts[message_id] = post
        return post

    def _changed(self, post: Post, act: AnyAct, event: Event) -> Post | None:
        match act:
            case Edit():
                return _edited(post, act, event) if event.actor_id == post.author_id else None
            case React() | Unreact():
                return _reacted(post, act, event.actor_id)
            case Pin() | Unpin():
                is_admin = self._role_at(event.actor_id, event.seq) >= Role.ADMIN
                return replace(post, is_pinned=isinstance(act, Pin)) if is_admin else None


def _edited(post: Post, act: Edit, event: Event) -> Post:
    title = act.title if act.title is not None and post.kind == Kind.THREAD_POSTED else post.title
    return replace(post, text=act.text, format=act.format, title=title, edited_at=event.seq)


def _reacted(post: Post, act: React | Unreact, user_id: bytes) -> Post:
    reactions = dict(post.reactions)
    others = reactions.pop(act.emoji, frozenset()) - {user_id}
    users = others | {user_id} if isinstance(act, React) else others
    if users:
        reactions[act.emoji] = users
    return replace(post, reactions=MappingProxyType(reactions))

"""What a member posts: threads, replies, files and acts, each sealed for its place, sent, and held to the log."""

import mimetypes
import os
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from orbital_client.crypto.contents import Body, Content, File, Title
from orbital_client.crypto.envelopes import Field
from orbital_client.crypto.groupkeys import GroupKey
from orbital_client.crypto.segments import FileSealing
from orbital_client.errors import CannotPost
from orbital_client.identity import uuid7
from orbital_client.replica import Replica
from orbital_client.sending import Sender
from orbital_client.timeline import Timeline
from orbital_client.trust.board import Post
from orbital_client.wire import Posted
from orbital_client.wire.groups import OtherContent
from orbital_client.wire.outgoing import size_of
from orbital_client.wire.uploads import MediaFacts, Progress
from orbital_protocol import ZERO_ID
from orbital_protocol.codes import Kind


@dataclass(frozen=True, slots=True)
class Posting:
    """Posts in one group. What it returns is durable, and in the verified log or on its way there."""

    replica: Replica
    sender: Sender
    timeline: Timeline

    async def thread(self, title: str, body: str, format: str, id: bytes | None) -> Post:
        """Open a thread."""
        thread_id = id or uuid7()
        sent_at, head = self.sender.said()

        def seal(key: GroupKey) -> list[bytes]:
            heading = Title(sent_at=sent_at, head=head, text=title)
            sealed = self._seal(key, Kind.THREAD_POSTED, Field.TITLE, thread_id, heading)
            said = Body(sent_at=sent_at, head=head, text=body, format=format, title_hash=sha256(sealed).digest())
            return [sealed, self._seal(key, Kind.THREAD_POSTED, Field.BODY, thread_id, said)]

        async def send(fields: list[bytes], epoch: int) -> Posted:
            return await self.replica.wire.post(title=fields[0], body=fields[1], thread_id=thread_id, key_epoch=epoch)

        try:
            posted = await self.sender.post(ZERO_ID, seal, send)
        except OtherContent as other:
            return await self._earlier(other, is_expected=id is not None)
        said = {"title": title, "text": body, "format": format, "sent_at": sent_at}
        return self._post(posted, Kind.THREAD_POSTED, thread_id, **said)

    async def reply(self, thread_id: bytes, text: str, format: str, id: bytes | None) -> Post:
        """Reply in a thread."""
        reply_id = id or uuid7()
        sent_at, head = self.sender.said()
        said = Body(sent_at=sent_at, head=head, text=text, format=format)

        def seal(key: GroupKey) -> list[bytes]:
            return [self._seal(key, Kind.REPLY_POSTED, Field.BODY, reply_id, said, parent_id=thread_id)]

        async def send(fields: list[bytes], epoch: int) -> Posted:
            return await self.replica.wire.reply(thread_id, fields[0], reply_id=reply_id, key_epoch=epoch)

        try:
            posted = await self.sender.post(thread_id, seal, send)
        except OtherContent as other:
            return await self._earlier(other, is_expected=id is not None)
        return self._post(posted, Kind.REPLY_POSTED, thread_id, text=text, format=format, sent_at=sent_at)

    async def _earlier(self, other: OtherContent, *, is_expected: bool) -> Post:
        """What was posted under this id before. Raises OtherContent unless the log has it there, of this member's."""
        if is_expected:
            await self.replica.acknowledge(other.posted)
            post = await self.timeline.message(other.posted.id)
            if post is not None and post.problem is not None:
                raise post.problem
            if post is not None and (post.seq, post.author_id) == (other.posted.seq, self.sender.user_id):
                return post
        raise other

    async def act(self, target_id: bytes, act: Content) -> None:
        """Edit, react, pin."""
        annotation_id = uuid7()

        def seal(key: GroupKey) -> list[bytes]:
            return [self._seal(key, Kind.ANNOTATION_POSTED, Field.BODY, annotation_id, act, parent_id=target_id)]

        async def send(fields: list[bytes], epoch: int) -> Posted:
            return await self.replica.wire.annotate(target_id, fields[0], annotation_id=annotation_id, key_epoch=epoch)

        await self.sender.post(target_id, seal, send)

    async def file(
        self, thread_id: bytes, path: str | os.PathLike[str], name: str, caption: str, on_progress: Progress | None
    ) -> Post:
        """Post a file in a thread: sealed piece by piece on its way, under a key of its own."""
        media_id = uuid7()
        size_bytes = await size_of(path)
        sealing = FileSealing.generate(self.replica.group_id, media_id, size_bytes)
        sent_at, head = self.sender.said()
        told: list[File] = []

        def metadata(facts: MediaFacts) -> bytes:
            key = self.replica.keyring.get(facts.key_epoch)
            if key is None:
                raise CannotPost("you have not got the group's key")
            told.append(
                File(
                    sent_at=sent_at,
                    head=head,
                    name=name,
                    media_type=mimetypes.guess_type(name)[0] or "application/octet-stream",
                    size_bytes=size_bytes,
                    key=sealing.key,
                    root=facts.root,
                    caption=caption,
                )
            )
            return self._seal(key, Kind.MEDIA_POSTED, Field.METADATA, media_id, told[-1], parent_id=thread_id)

        posted = await self.replica.wire.upload(
            path,
            thread_id=thread_id,
            metadata=metadata,
            size_bytes=size_bytes,
            media_id=media_id,
            on_progress=on_progress,
            seal=sealing,
            epochs=self.sender,
        )
        at = Posted(posted.media_id, posted.seq, posted.hash, posted.created_at, posted.duplicate)
        await self.replica.acknowledge(at)
        said = {"sent_at": sent_at, "text": caption, "file": told[-1], "file_iv": sealing.encryption_iv}
        return self._post(at, Kind.MEDIA_POSTED, thread_id, **said)

    async def download(self, post: Post, path: Path, on_progress: Progress | None) -> Path:
        """Bring a post's file to a path. Raises MediaCorrupt, BadSeal, ValueError for no file."""
        file = post.file
        if file is None:
            raise ValueError("this message has no file (any more)")
        sealing = FileSealing(post.group_id, post.id, file.size_bytes, file.key, post.file_iv)
        wire = self.replica.wire
        return await wire.download(post.id, path, root=file.root, on_progress=on_progress, open=sealing)

    def _seal(  # noqa: PLR0913  what a place is made of
        self, key: GroupKey, kind: Kind, field: Field, object_id: bytes, content: Content, *, parent_id: bytes = ZERO_ID
    ) -> bytes:
        return self.sender.seal(key, self.sender.place(key, kind, field, object_id, parent_id), content)

    def _post(self, posted: Posted, kind: Kind, thread_id: bytes, **said: Any) -> Post:
        return Post(
            group_id=self.replica.group_id,
            id=posted.id,
            thread_id=thread_id,
            seq=posted.seq,
            hash=posted.hash,
            kind=kind,
            author_id=self.sender.user_id,
            created_at=posted.created_at,
            **said,
        )

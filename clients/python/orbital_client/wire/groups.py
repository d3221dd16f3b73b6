"""One group: what its members do in it. Statements are built on what was verified of the log, and signed."""

import os
import secrets
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Final

import msgspec

from orbital_client.errors import BadAnswer, OutOfDate
from orbital_client.identity import thumbprint, uuid7
from orbital_client.links import InviteLink
from orbital_client.wire.control import Basis, Control, Knowledge, Lists, Relay
from orbital_client.wire.downloads import download, read_stored
from orbital_client.wire.ledger import Chain
from orbital_client.wire.outgoing import Outgoing, Source, size_of
from orbital_client.wire.sealing import Plain, Sealing
from orbital_client.wire.transfers import PATIENCE_S
from orbital_client.wire.uploads import Epochs, Metadata, Place, PostedMedia, Progress, Upload
from orbital_protocol import ZERO_HASH, ZERO_ID, chain
from orbital_protocol.codes import Kind, Role
from orbital_protocol.frames import (
    AnnotationPost,
    ControlOk,
    Cursor,
    CursorGet,
    CursorOk,
    CursorPut,
    Event,
    EventListOk,
    GroupAdmit,
    GroupDelete,
    GroupDeny,
    GroupGet,
    GroupGetOk,
    GroupKey,
    GroupKeys,
    GroupKeysOk,
    GroupLeave,
    GroupRekey,
    GroupTransfer,
    GroupUpdate,
    Invite,
    InviteCreate,
    InviteCreateOk,
    InviteList,
    InviteListOk,
    InviteRevoke,
    InviteRotate,
    InviteRotateOk,
    JoinRequest,
    MediaDelete,
    MediaGet,
    MediaGetOk,
    MediaList,
    MediaListOk,
    Member,
    MemberRemove,
    MemberSetRole,
    MemberUnban,
    Ok,
    PostDelete,
    PostOk,
    QuotaGet,
    QuotaGetOk,
    ReplyList,
    ReplyPost,
    Request,
    SignalSend,
    ThreadList,
    ThreadPost,
    WrappedKey,
)
from orbital_protocol.statements import (
    GroupDeleted,
    GroupRekeyed,
    GroupTransferred,
    GroupUpdated,
    InviteCreated,
    InviteRevoked,
    MediaDeleted,
    MemberJoined,
    MemberLeft,
    MemberRemoved,
    MemberRole,
    MemberUnbanned,
    PostDeleted,
    RosterEntry,
)

NO_KEY: Final = b"\0"
"""Stands where the relay keeps a wrapped group key for members, when the application wraps none."""

_SECRET_BYTES: Final = 32

Wrap = Callable[[RosterEntry], bytes]
"""Makes the new group key's wrap for one member."""


class Posted(msgspec.Struct, frozen=True):
    """An acknowledged post: it is durable, and this is its place in the log. `duplicate`: it was there already."""

    id: bytes
    seq: int
    hash: bytes
    created_at: int
    duplicate: bool


class OtherContent(BadAnswer):
    """The relay acknowledged another content than was posted: an earlier one of the same id, or a forged one."""

    def __init__(self, posted: Posted, content_hash: bytes) -> None:
        super().__init__("the relay acknowledged another content than was posted")
        self.posted = posted
        self.content_hash = content_hash


class Group:
    """A group that the user is in. All contents are ciphertext: bytes that the application has sealed.

    Requests raise what `Client.request` raises, and LogBroken once the group's log has shown itself broken.
    """

    def __init__(self, relay: Relay, group_id: bytes, knowledge: Knowledge | None = None) -> None:
        self.group_id = group_id
        self._relay = relay
        self._key_epoch: int | None = None
        self._control = Control(relay, group_id, knowledge)
        self._lists = Lists(relay, group_id)

    def __repr__(self) -> str:
        return f"Group({self.group_id.hex()})"

    # ── posts ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def post(
        self, *, title: bytes, body: bytes, thread_id: bytes | None = None, key_epoch: int | None = None
    ) -> Posted:
        """Open a thread. With a `thread_id` of one's own, trying again later finds what an earlier try did.

        `key_epoch` is that of the key it is sealed under; without it, the one in force as far as is known.
        """
        request = ThreadPost(
            id=0,
            group_id=self.group_id,
            key_epoch=key_epoch or await self.key_epoch(),
            thread_id=thread_id or uuid7(),
            encrypted_title=title,
            encrypted_body=body,
        )
        return await self._post(request, request.thread_id, ZERO_ID, title, body)

    async def reply(
        self, thread_id: bytes, body: bytes, *, reply_id: bytes | None = None, key_epoch: int | None = None
    ) -> Posted:
        """Reply in a thread."""
        request = ReplyPost(
            id=0,
            group_id=self.group_id,
            key_epoch=key_epoch or await self.key_epoch(),
            thread_id=thread_id,
            reply_id=reply_id or uuid7(),
            encrypted_body=body,
        )
        return await self._post(request, request.reply_id, thread_id, body)

    async def annotate(
        self, target_id: bytes, body: bytes, *, annotation_id: bytes | None = None, key_epoch: int | None = None
    ) -> Posted:
        """Attach something to what was posted earlier: an edit, a reaction, a pin."""
        request = AnnotationPost(
            id=0,
            group_id=self.group_id,
            key_epoch=key_epoch or await self.key_epoch(),
            target_id=target_id,
            annotation_id=annotation_id or uuid7(),
            encrypted_body=body,
        )
        return await self._post(request, request.annotation_id, target_id, body)

    async def _post(self, request: Request, object_id: bytes, parent_id: bytes, *fields: bytes) -> Posted:
        self._relay.check(self.group_id)
        try:
            ok = await self._relay.request(request, PostOk)
        except OutOfDate:
            self._key_epoch = None
            raise
        if ok.content_hash != chain.content_hash(parent_id, [chain.field_hash(field) for field in fields]):
            raise OtherContent(Posted(object_id, ok.seq, ok.hash, ok.created_at, ok.duplicate), ok.content_hash)
        return Posted(object_id, ok.seq, ok.hash, ok.created_at, ok.duplicate)

    async def delete_post(self, target_id: bytes) -> ControlOk:
        """Delete a thread, reply or annotation: one's own, or as an admin."""
        return await self._control.change(
            lambda basis: PostDeleted(**self._control.header(basis), target_id=target_id),
            PostDelete,
            ControlOk,
        )

    async def signal(self, payload: bytes) -> None:
        """Tell whoever is online something that is never stored. Not sent again if the connection is lost."""
        self._relay.check(self.group_id)
        await self._relay.request(SignalSend(id=0, group_id=self.group_id, payload=payload), Ok)

    # ── files ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def upload(  # noqa: PLR0913  options, each with a default that suits most
        self,
        source: Source,
        *,
        thread_id: bytes,
        metadata: Metadata,
        size_bytes: int | None = None,
        media_id: bytes | None = None,
        on_progress: Progress | None = None,
        seal: Sealing | None = None,
        epochs: Epochs | None = None,
        patience_s: float = PATIENCE_S,
    ) -> PostedMedia:
        """Post a file in a thread; it goes on by itself as long as within `patience_s` anything becomes durable.

        With a `media_id` of one's own, the same again goes on with what an earlier try began, or finds what it did, in
        another process too. Raises ValueError where the source has not `size_bytes` (which an iterable must be given),
        BadRequest where it isn't what the earlier try began with, and OutOfDate when the group must be rekeyed first.
        """
        self._relay.check(self.group_id)
        sealing = seal or Plain()
        outgoing = Outgoing(source, await size_of(source) if size_bytes is None else size_bytes, sealing)
        upload = Upload(
            self._relay,
            epochs or self,
            Place(self.group_id, thread_id, media_id or uuid7(), sealing.encryption_iv),
            outgoing,
            metadata,
            on_progress=on_progress,
            patience_s=patience_s,
            is_resumable=media_id is not None,
        )
        return await upload.run()

    async def download(
        self,
        media_id: bytes,
        destination: str | os.PathLike[str],
        *,
        root: bytes | None = None,
        on_progress: Progress | None = None,
        open: Sealing | None = None,
    ) -> Path:
        """Bring a file to a path, by way of `<path>.part`, which the next try goes on with if this one fails.

        `root` is that of the file's event; without it the relay's word is taken for it. Raises MediaCorrupt, and keeps
        nothing, if the bytes are others.
        """
        media = (await self.media_info(media_id)).media
        path = Path(destination)
        await download(self._relay, media, path, root=root or media.root, sealing=open, on_progress=on_progress)
        return path

    async def read_media(self, media_id: bytes, *, offset: int = 0) -> AsyncGenerator[bytes, None]:
        """A file's bytes as they are stored, from the offset on, in pieces of any size. Nothing of them is verified."""
        media = (await self.media_info(media_id)).media
        async with aclosing(read_stored(self._relay, media, offset)) as pieces:
            async for piece in pieces:
                yield piece

    async def media(
        self,
        *,
        thread_id: bytes | None = None,
        after_seq: int | None = None,
        before_seq: int | None = None,
        limit: int = 50,
    ) -> MediaListOk:
        """A page of the group's files, or a thread's, that have not expired."""
        request = MediaList(
            id=0,
            group_id=self.group_id,
            thread_id=thread_id,
            after_seq=after_seq,
            before_seq=before_seq,
            limit=self._lists.limit(limit),
        )
        return await self._relay.request(request, MediaListOk)

    async def media_info(self, media_id: bytes) -> MediaGetOk:
        """A file as the relay has it now, and perhaps an address to fetch it from."""
        return await self._relay.request(MediaGet(id=0, media_id=media_id), MediaGetOk)

    async def delete_media(self, media_id: bytes) -> ControlOk:
        """Delete a file: one's own, or as an admin."""
        return await self._control.change(
            lambda basis: MediaDeleted(**self._control.header(basis), media_id=media_id),
            MediaDelete,
            ControlOk,
        )

    async def quota(self) -> QuotaGetOk:
        """What the group's files use, and what they may."""
        return await self._relay.request(QuotaGet(id=0, group_id=self.group_id), QuotaGetOk)

    # ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def history(
        self, *, after_seq: int | None = None, before_seq: int | None = None, limit: int = 100
    ) -> EventListOk:
        """A page of the log, whose events are verified to be chained without a gap. Raises ChainBroken."""
        page = await self._lists.page(after_seq=after_seq, before_seq=before_seq, limit=limit)
        if page.events:
            start = Cursor(group_id=self.group_id, seq=page.events[0].seq - 1, hash=page.previous_hash or ZERO_HASH)
            log = Chain(start)
            for event in page.events:
                log.advance(event)
        return page

    async def threads(
        self, *, after_seq: int | None = None, before_seq: int | None = None, limit: int = 50
    ) -> EventListOk:
        """A page of the group's threads. Between them events are left out, so nothing shows whether one is missing."""
        request = ThreadList(
            id=0, group_id=self.group_id, after_seq=after_seq, before_seq=before_seq, limit=self._lists.limit(limit)
        )
        return await self._relay.request(request, EventListOk)

    async def replies(
        self, thread_id: bytes, *, after_seq: int | None = None, before_seq: int | None = None, limit: int = 50
    ) -> EventListOk:
        """A page of a thread's replies. Between them events are left out, so nothing shows whether one is missing."""
        request = ReplyList(
            id=0,
            group_id=self.group_id,
            thread_id=thread_id,
            after_seq=after_seq,
            before_seq=before_seq,
            limit=self._lists.limit(limit),
        )
        return await self._relay.request(request, EventListOk)

    async def info(self) -> GroupGetOk:
        """The group as the relay has it now; to admins also its code and who knocks."""
        info = await self._relay.request(GroupGet(id=0, group_id=self.group_id), GroupGetOk)
        self._key_epoch = info.key_epoch
        return info

    async def key_epoch(self) -> int:
        """The key epoch that posts are to be sealed under."""
        if self._key_epoch is None:
            await self.info()
        return self._key_epoch or 1

    async def keys(self) -> list[GroupKey]:
        """All wraps of group keys that were ever made for this user."""
        keys: list[GroupKey] = []
        more = True
        while more:
            after = keys[-1].key_epoch if keys else None
            request = GroupKeys(id=0, group_id=self.group_id, after_key_epoch=after)
            page = await self._relay.request(request, GroupKeysOk)
            keys += page.keys
            more = page.more
        return keys

    async def members(self) -> list[Member]:
        """The members as the relay lists them now."""
        return await self._lists.members()

    async def get_cursor(self, name: str) -> CursorOk:
        """Where this user's cursor of that name stands, on whichever device it was put."""
        return await self._relay.request(CursorGet(id=0, group_id=self.group_id, name=name), CursorOk)

    async def put_cursor(self, name: str, event: Event, *, rewind: bool = False) -> CursorOk:
        """Put this user's cursor at an event; it only goes forward, unless `rewind`."""
        request = CursorPut(id=0, group_id=self.group_id, name=name, seq=event.seq, hash=event.hash, rewind=rewind)
        return await self._relay.request(request, CursorOk)

    # ── invites ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def invite(
        self,
        *,
        expires_at: int = 0,
        max_uses: int = 0,
        sealed_group_key: bytes = NO_KEY,
        invite_id: bytes | None = None,
        secret: bytes | None = None,
    ) -> InviteLink:
        """Make an invite link. `expires_at` 0: never; `max_uses` 0: unlimited.

        `invite_id` and `secret` are what the group key was sealed with, where one is.
        """
        inviter = self._relay.identity
        draft = InviteLink(
            invite_code="",
            group_id=self.group_id,
            invite_id=invite_id or uuid7(),
            secret=secret or secrets.token_bytes(_SECRET_BYTES),
            inviter_id=inviter.user_id,
            inviter_signing_key=inviter.signing_key,
            seq=0,
            hash=ZERO_HASH,
        )
        answer = await self._control.change(
            lambda basis: InviteCreated(
                **self._control.header(basis),
                invite_id=draft.invite_id,
                invite_key=draft.public_key,
                expires_at=expires_at,
                max_uses=max_uses,
            ),
            partial(InviteCreate, sealed_group_key=sealed_group_key),
            InviteCreateOk,
        )
        verified = await self._control.position()
        return draft.at(answer.invite_code, verified)

    async def invites(self) -> list[Invite]:
        """The invite links that still work."""
        return (await self._relay.request(InviteList(id=0, group_id=self.group_id), InviteListOk)).invites

    async def revoke_invite(self, invite_id: bytes) -> ControlOk:
        """Make an invite link useless."""
        return await self._control.change(
            lambda basis: InviteRevoked(**self._control.header(basis), invite_id=invite_id),
            InviteRevoke,
            ControlOk,
        )

    async def rotate_code(self, *, knocking: bool = True) -> str:
        """Replace the standing code, with which anyone may knock; `knocking` False switches it off."""
        request = InviteRotate(id=0, group_id=self.group_id, knocking=knocking)
        return (await self._relay.request(request, InviteRotateOk)).invite_code

    async def admit(self, request: JoinRequest, *, encrypted_group_key: bytes = NO_KEY) -> ControlOk:
        """Make a member of somebody who knocks."""
        return await self._control.change(
            lambda basis: MemberJoined(
                **self._control.header(basis),
                user_id=request.user_id,
                signing_key=request.signing_key,
                rsa_thumbprint=thumbprint(request.public_key),
                is_bot=request.is_bot,
                invite_id=request.invite_id or ZERO_ID,
                invite_signature=request.invite_signature or b"",
            ),
            partial(GroupAdmit, encrypted_group_key=encrypted_group_key),
            ControlOk,
        )

    async def deny(self, user_id: bytes) -> None:
        """Send away somebody who knocks."""
        await self._relay.request(GroupDeny(id=0, group_id=self.group_id, user_id=user_id), Ok)

    # ── membership and the group itself ─────────────────────────────────────────────────────────────────────────────

    async def remove(self, user_id: bytes, *, ban: bool = False) -> ControlOk:
        """Remove a member of a lower role. A rekey is due then, before which nobody can post."""
        return await self._control.change(
            lambda basis: MemberRemoved(**self._control.header(basis), user_id=user_id, ban=ban),
            MemberRemove,
            ControlOk,
        )

    async def unban(self, user_id: bytes) -> ControlOk:
        """Lift a ban."""
        return await self._control.change(
            lambda basis: MemberUnbanned(**self._control.header(basis), user_id=user_id),
            MemberUnban,
            ControlOk,
        )

    async def set_role(self, user_id: bytes, role: Role) -> ControlOk:
        """Make a member an admin, or an admin a member."""
        return await self._control.change(
            lambda basis: MemberRole(**self._control.header(basis), user_id=user_id, role=role),
            MemberSetRole,
            ControlOk,
        )

    async def transfer(self, user_id: bytes) -> ControlOk:
        """Make another member the owner; this user is an admin from then on."""
        return await self._control.change(
            lambda basis: GroupTransferred(**self._control.header(basis), user_id=user_id),
            GroupTransfer,
            ControlOk,
        )

    async def leave(self) -> ControlOk:
        """Leave the group. Its owner can't."""
        return await self._control.change(
            lambda basis: MemberLeft(**self._control.header(basis)),
            GroupLeave,
            ControlOk,
        )

    async def update(self, encrypted_name: bytes) -> ControlOk:
        """Change the group's name."""
        return await self._control.change(
            lambda basis: GroupUpdated(**self._control.header(basis), name_hash=sha256(encrypted_name).digest()),
            partial(GroupUpdate, encrypted_name=encrypted_name),
            ControlOk,
        )

    async def delete(self) -> ControlOk:
        """Delete the group and all that is in it."""
        return await self._control.change(
            lambda basis: GroupDeleted(**self._control.header(basis)),
            GroupDelete,
            ControlOk,
        )

    async def rekey(
        self, *, encrypted_name: bytes, wrap: Wrap, key_commitment: bytes, previous_key: bytes = b""
    ) -> ControlOk:
        """Put a new group key in force: `wrap` makes its wrap for each member, `previous_key` is the old one sealed
        under the new one where the history is shared, and empty where it isn't.

        If the membership changes meanwhile, `wrap` is called anew for everyone.
        """
        wraps: list[WrappedKey] = []

        def draft(basis: Basis) -> GroupRekeyed:
            wraps[:] = [
                WrappedKey(
                    user_id=member.user_id, rsa_thumbprint=member.rsa_thumbprint, encrypted_group_key=wrap(member)
                )
                for member in basis.roster.values()
            ]
            return GroupRekeyed(
                **self._control.header(basis),
                new_key_epoch=basis.key_epoch + 1,
                key_commitment=key_commitment,
                name_hash=sha256(encrypted_name).digest(),
                previous_key=previous_key,
            )

        answer = await self._control.change(
            draft,
            partial(GroupRekey, encrypted_name=encrypted_name, encrypted_group_keys=wraps),
            ControlOk,
        )
        self._key_epoch = answer.key_epoch
        return answer

    # ── what is known of the log ────────────────────────────────────────────────────────────────────────────────────

    def observe(self, event: Event) -> None:
        """Take note of an event that the subscription verified. Raises ChainBroken if it isn't what a page had."""
        if event.kind == Kind.GROUP_REKEYED:
            self._key_epoch = None
        self._control.observe(event)

    def learn_epoch(self, key_epoch: int) -> None:
        """Take note of the key epoch at the log's head."""
        self._key_epoch = key_epoch

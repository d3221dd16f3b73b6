"""One typed struct per frame: requests, their answers, pushes. `REQUESTS` is the table of what is answered with what.

Every struct is immutable. Ids, keys, hashes, signatures and ciphertexts are `bytes`; times are microseconds since
1970 UTC. A field with a default may be absent on the wire and is left out when it has its default.
"""

from typing import Annotated, dataclass_transform

import msgspec
from msgspec import Meta

from orbital_protocol.fields import (
    ByteCount,
    CursorName,
    Hash,
    Id,
    InviteCode,
    Iv,
    KeyEpoch,
    KindNumber,
    Label,
    Microseconds,
    RequestId,
    SequenceNumber,
    Signature,
    SigningKey,
    Username,
)


# Structs below inherit frozen and kw_only; without this type checkers would not know.
@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(msgspec.field,))
class Value(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A map inside of a frame."""


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(msgspec.field,))
class Frame(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type"):
    """A MessagePack map with the key `type`."""


# ── values ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class PublicKey(Value):
    """RSA public key for RSA-OAEP-256 as a JWK (RFC 7517): `n` and `e` are base64url without padding."""

    kty: Annotated[str, Meta(max_length=8)]
    n: Annotated[str, Meta(max_length=700)]
    e: Annotated[str, Meta(max_length=8)]
    alg: Annotated[str, Meta(max_length=32)] | None = None
    use: Annotated[str, Meta(max_length=8)] | None = None
    key_ops: Annotated[list[Annotated[str, Meta(max_length=16)]], Meta(max_length=8)] | None = None
    kid: Annotated[str, Meta(max_length=128)] | None = None
    ext: bool | None = None
    d: str | None = None
    p: str | None = None
    q: str | None = None
    dp: str | None = None
    dq: str | None = None
    qi: str | None = None


class Limits(Value):
    """Every limit that the relay enforces. Bytes are of the binary value, before any encoding in the store."""

    max_frame_bytes: int
    max_unauthenticated_frame_bytes: int
    max_depth: int
    max_in_flight: int
    max_frames_per_second: int
    max_title_bytes: int
    max_body_bytes: int
    max_name_bytes: int
    max_wrap_bytes: int
    max_statement_bytes: int
    max_signal_bytes: int
    signals_per_second: int
    max_members_per_group: int
    max_groups_per_user: int
    max_subscriptions: int
    max_invites_per_group: int
    max_join_requests_per_group: int
    max_cursors_per_user: int
    max_tokens_per_user: int
    max_sessions_per_user: int
    max_backup_bytes: int
    max_media_bytes: int
    max_metadata_bytes: int
    media_chunk_bytes: int
    media_window: int
    max_uploads_per_user: int
    page_limit: int
    rekeys_per_hour: int
    knocks_per_hour: int


class GroupHead(Value):
    """A group of the caller's, and where its log stands."""

    group_id: Id
    encrypted_name: bytes
    role: int
    key_epoch: KeyEpoch
    rekey_required: bool
    seq: SequenceNumber
    hash: Hash


class Member(Value):
    """A member with the keys now in force."""

    user_id: Id
    username: str
    role: int
    public_key: PublicKey
    signing_key: SigningKey
    is_bot: bool
    joined_at: Microseconds


class UserKey(Value):
    """A pair of keys that a user has or had."""

    public_key: PublicKey
    signing_key: SigningKey
    created_at: Microseconds


class JoinRequest(Value):
    """Somebody knocks."""

    request_id: Id
    user_id: Id
    username: str
    public_key: PublicKey
    signing_key: SigningKey
    is_bot: bool
    requested_at: Microseconds
    invite_id: Id | None = None
    invite_signature: Signature | None = None


class Invite(Value):
    """An invite link as the group's admins see it. `expires_at` 0: never; `max_uses` 0: unlimited."""

    invite_id: Id
    invite_code: InviteCode
    created_by: Id
    created_at: Microseconds
    expires_at: Microseconds
    max_uses: int
    uses: int


class WrappedKey(Value):
    """A group key wrapped for one member, who is named by the thumbprint (RFC 7638) of the RSA key used."""

    user_id: Id
    rsa_thumbprint: Hash
    encrypted_group_key: bytes


class GroupKey(Value):
    """A wrap that was made for the caller."""

    key_epoch: KeyEpoch
    encrypted_group_key: bytes
    created_at: Microseconds


class Media(Value):
    """A file in a thread. `root` is `media.Root` over its bytes; `author_id` is absent when the account is gone.

    `downloaded`: the caller has read it to its end.
    """

    media_id: Id
    group_id: Id
    thread_id: Id
    seq: SequenceNumber
    key_epoch: KeyEpoch
    encrypted_metadata: bytes
    encryption_iv: Iv
    size_bytes: ByteCount
    root: Hash
    uploaded_at: Microseconds
    expires_at: Microseconds
    author_id: Id | None = None
    downloaded: bool = False


class SessionInfo(Value):
    """One of the caller's sessions."""

    session_id: Id
    device_name: str
    created_at: Microseconds
    last_used_at: Microseconds
    current: bool


class TokenInfo(Value):
    """One of the caller's tokens; the secret is not kept. An empty `groups` means every group of the user's."""

    token_id: Id
    name: str
    scopes: list[str]
    groups: list[Id]
    created_at: Microseconds
    expires_at: Microseconds | None = None
    last_used_at: Microseconds | None = None


class SignedStatement(Value):
    """An encoded statement (see `statements`) and its signature."""

    statement: bytes
    signature: Signature


class Cursor(Value):
    """A position in a group's log."""

    group_id: Id
    seq: SequenceNumber
    hash: Hash


class SubscribeGroup(Value):
    """What to subscribe to: with a cursor, everything after it; without, from the head on."""

    group_id: Id
    after_seq: SequenceNumber | None = None
    after_hash: Hash | None = None


class SubscribedGroup(Value):
    """What became of one group of a `subscribe`: `status` is resumed, denied, gone, future_cursor or chain_fork.

    `seq` and `hash` are where the subscription starts (resumed), or the relay's head (future_cursor, chain_fork).
    """

    group_id: Id
    status: str
    seq: SequenceNumber = 0
    hash: Hash = bytes(32)


class ErrorDetails(Value):
    """What a program can act on. All fields are optional."""

    field: str | None = None
    key_epoch: int | None = None
    seq: int | None = None
    generation: int | None = None
    limit: int | None = None
    offset: int | None = None
    free_bytes: int | None = None
    free_count: int | None = None
    missing: list[Id] | None = None
    unexpected: list[Id] | None = None


# ── requests ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Request(Frame):
    """A frame from a client that gets exactly one `ok` or `error` with its `id`."""

    id: RequestId


class ControlRequest(Request):
    """A request that changes a group: its arguments are the statement's."""

    statement: bytes
    signature: Signature


# account


class Register(Request, tag="register"):
    user_id: Id
    username: Username
    password: str
    public_key: PublicKey
    signing_key: SigningKey
    registration_code: str | None = None
    device_name: Label = ""
    is_bot: bool = False


class Login(Request, tag="login"):
    username: str
    password: str
    device_name: Label = ""


class Authenticate(Request, tag="authenticate"):
    access_token: Annotated[str, Meta(max_length=4096)]


class Refresh(Request, tag="refresh"):
    refresh_token: Annotated[str, Meta(max_length=256)]


class Logout(Request, tag="logout"):
    pass


class SessionList(Request, tag="session.list"):
    pass


class SessionRevoke(Request, tag="session.revoke"):
    session_id: Id


class PasswordChange(Request, tag="password.change"):
    password: str
    new_password: str
    backup: bytes | None = None
    backup_generation: SequenceNumber | None = None


class AccountDelete(Request, tag="account.delete"):
    password: str
    delete_groups: bool = False


class UserGet(Request, tag="user.get"):
    user_id: Id


class KeyReplace(Request, tag="key.replace"):
    public_key: PublicKey
    signing_key: SigningKey
    statements: list[SignedStatement]


class BackupPut(Request, tag="backup.put"):
    generation: SequenceNumber
    backup: bytes


class BackupGet(Request, tag="backup.get"):
    pass


class TokenCreate(Request, tag="token.create"):
    token_id: Id
    name: Label
    scopes: Annotated[list[str], Meta(max_length=8)]
    groups: Annotated[list[Id], Meta(max_length=1000)] = []
    expires_at: Microseconds | None = None


class TokenList(Request, tag="token.list"):
    pass


class TokenRevoke(Request, tag="token.revoke"):
    token_id: Id


# group


class GroupCreate(ControlRequest, tag="group.create"):
    encrypted_name: bytes
    encrypted_group_key: bytes


class GroupList(Request, tag="group.list"):
    pass


class GroupGet(Request, tag="group.get"):
    group_id: Id


class GroupUpdate(ControlRequest, tag="group.update"):
    encrypted_name: bytes


class GroupDelete(ControlRequest, tag="group.delete"):
    pass


class GroupTransfer(ControlRequest, tag="group.transfer"):
    pass


class GroupLeave(ControlRequest, tag="group.leave"):
    pass


class GroupKeys(Request, tag="group.keys"):
    group_id: Id
    after_key_epoch: KeyEpoch | None = None


class GroupRekey(ControlRequest, tag="group.rekey"):
    encrypted_name: bytes
    encrypted_group_keys: list[WrappedKey]


class GroupWrap(Request, tag="group.wrap"):
    group_id: Id
    user_id: Id
    rsa_thumbprint: Hash
    key_epoch: KeyEpoch
    encrypted_group_key: bytes


class MemberList(Request, tag="member.list"):
    group_id: Id
    after_user_id: Id | None = None
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100


class MemberRemove(ControlRequest, tag="member.remove"):
    pass


class MemberUnban(ControlRequest, tag="member.unban"):
    pass


class MemberSetRole(ControlRequest, tag="member.set_role"):
    pass


# invite


class InviteCreate(ControlRequest, tag="invite.create"):
    sealed_group_key: bytes


class InviteList(Request, tag="invite.list"):
    group_id: Id


class InviteRevoke(ControlRequest, tag="invite.revoke"):
    pass


class InviteRotate(Request, tag="invite.rotate"):
    group_id: Id
    knocking: bool = True


class InviteOpen(Request, tag="invite.open"):
    invite_code: str


class GroupJoin(ControlRequest, tag="group.join"):
    encrypted_group_key: bytes


class GroupKnock(Request, tag="group.knock"):
    request_id: Id
    invite_code: str
    invite_signature: Signature | None = None


class GroupAdmit(ControlRequest, tag="group.admit"):
    encrypted_group_key: bytes


class GroupDeny(Request, tag="group.deny"):
    group_id: Id
    user_id: Id


# post


class Post(Request):
    """Ciphertext for a group, under the key of `key_epoch`."""

    group_id: Id
    key_epoch: KeyEpoch


class ThreadPost(Post, tag="thread.post"):
    thread_id: Id
    encrypted_title: bytes
    encrypted_body: bytes


class ReplyPost(Post, tag="reply.post"):
    thread_id: Id
    reply_id: Id
    encrypted_body: bytes


class AnnotationPost(Post, tag="annotation.post"):
    target_id: Id
    annotation_id: Id
    encrypted_body: bytes


class PostDelete(ControlRequest, tag="post.delete"):
    pass


class ThreadList(Request, tag="thread.list"):
    group_id: Id
    after_seq: SequenceNumber | None = None
    before_seq: SequenceNumber | None = None
    limit: Annotated[int, Meta(ge=1, le=1000)] = 50


class ReplyList(Request, tag="reply.list"):
    group_id: Id
    thread_id: Id
    after_seq: SequenceNumber | None = None
    before_seq: SequenceNumber | None = None
    limit: Annotated[int, Meta(ge=1, le=1000)] = 50


class EventList(Request, tag="event.list"):
    group_id: Id
    after_seq: SequenceNumber | None = None
    before_seq: SequenceNumber | None = None
    limit: Annotated[int, Meta(ge=1, le=1000)] = 50
    kinds: Annotated[list[KindNumber], Meta(max_length=64)] | None = None


# media


class MediaBegin(Request, tag="media.begin"):
    """Reserve room for a file, or go on with its upload: on any connection, of any relay."""

    group_id: Id
    thread_id: Id
    media_id: Id
    size_bytes: ByteCount
    encryption_iv: Iv


class MediaChunk(Request, tag="media.chunk"):
    """The next bytes of a file: whole segments, unless they are its last."""

    media_id: Id
    generation: SequenceNumber
    offset: ByteCount
    data: bytes


class MediaCommit(Request, tag="media.commit"):
    """Post the file, all bytes of which are durable."""

    media_id: Id
    key_epoch: KeyEpoch
    encrypted_metadata: bytes
    root: Hash


class MediaAbort(Request, tag="media.abort"):
    media_id: Id


class MediaGet(Request, tag="media.get"):
    media_id: Id


class MediaRead(Request, tag="media.read"):
    media_id: Id
    offset: ByteCount
    length: ByteCount


class MediaList(Request, tag="media.list"):
    group_id: Id
    thread_id: Id | None = None
    after_seq: SequenceNumber | None = None
    before_seq: SequenceNumber | None = None
    limit: Annotated[int, Meta(ge=1, le=1000)] = 50


class MediaDelete(ControlRequest, tag="media.delete"):
    pass


class QuotaGet(Request, tag="quota.get"):
    group_id: Id


# live


class Subscribe(Request, tag="subscribe"):
    groups: Annotated[list[SubscribeGroup], Meta(min_length=1, max_length=1000)]
    kinds: Annotated[list[KindNumber], Meta(max_length=64)] | None = None


class Unsubscribe(Request, tag="unsubscribe"):
    groups: Annotated[list[Id], Meta(max_length=1000)]


class SignalSend(Request, tag="signal.send"):
    group_id: Id
    payload: bytes


class CursorPut(Request, tag="cursor.put"):
    group_id: Id
    name: CursorName
    seq: SequenceNumber
    hash: Hash
    rewind: bool = False


class CursorGet(Request, tag="cursor.get"):
    group_id: Id
    name: CursorName


class Ping(Request, tag="ping"):
    pass


# ── pushes ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Push(Frame):
    """A frame from the relay that answers no request."""


class Hello(Push, tag="hello"):
    protocol: int
    server: str
    relay_id: Id
    limits: Limits
    auth_timeout_ms: int
    heartbeat_ms: int
    registration: str


class Event(Push, tag="event"):
    """One entry of a group's log. Of the optional fields an event has those that its kind calls for.

    `thread_id` (replies, media) and `target_id` (annotations) are the parent in `content_hash`. Content that was erased
    or filtered out is absent; then `field_hashes` stands in for it. Events that the relay itself appended have neither
    statement nor signature, a zero actor, and the user or media concerned as `object_id`.
    """

    group_id: Id
    seq: SequenceNumber
    hash: Hash
    kind: int
    object_id: Id
    actor_id: Id
    key_epoch: KeyEpoch
    created_at: Microseconds
    content_hash: Hash
    thread_id: Id | None = None
    target_id: Id | None = None
    encrypted_title: bytes | None = None
    encrypted_body: bytes | None = None
    encrypted_metadata: bytes | None = None
    encryption_iv: Iv | None = None
    size_bytes: ByteCount | None = None
    root: Hash | None = None
    statement: bytes | None = None
    signature: bytes | None = None
    field_hashes: list[Hash] | None = None
    erased: bool = False


class Live(Push, tag="live"):
    """The subscriber has everything up to here; what follows comes as it happens."""

    group_id: Id
    seq: SequenceNumber
    hash: Hash


class GroupGone(Push, tag="group.gone"):
    """A subscription ended: `reason` is left, removed, deleted or denied. Nothing more comes of this group."""

    group_id: Id
    reason: str


class JoinRequested(Push, tag="join.requested"):
    group_id: Id
    request: JoinRequest


class CursorMoved(Push, tag="cursor"):
    group_id: Id
    name: str
    seq: SequenceNumber
    hash: Hash


class Signal(Push, tag="signal"):
    group_id: Id
    user_id: Id
    payload: bytes


class GoAway(Push, tag="goaway"):
    """The relay is about to close: come back after this long."""

    retry_after_ms: int


# ── answers ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Error(Frame, tag="error"):
    """A request failed. Without `id`, the frame that it answers had none that could be read."""

    code: str
    message: str
    id: RequestId | None = None
    retry_after_ms: int | None = None
    details: ErrorDetails | None = None


class Ok(Frame, tag="ok"):
    """A request succeeded."""

    id: RequestId


class SessionOk(Ok, tag="ok"):
    user_id: Id
    session_id: Id
    access_token: str
    access_expires_at: Microseconds
    refresh_token: str
    refresh_expires_at: Microseconds


class AuthenticateOk(Ok, tag="ok"):
    user_id: Id
    session_id: Id
    access_expires_at: Microseconds
    groups: list[GroupHead]


class SessionListOk(Ok, tag="ok"):
    sessions: list[SessionInfo]


class UserGetOk(Ok, tag="ok"):
    user_id: Id
    keys: list[UserKey]
    username: str | None = None
    is_bot: bool = False


class KeyReplaceOk(Ok, tag="ok"):
    heads: list[Cursor]


class BackupGetOk(Ok, tag="ok"):
    generation: SequenceNumber
    backup: bytes


class TokenCreateOk(Ok, tag="ok"):
    token_id: Id
    token: str


class TokenListOk(Ok, tag="ok"):
    tokens: list[TokenInfo]


class ControlOk(Ok, tag="ok"):
    """The statement is in the log. `duplicate`: it was there before, and this is its first answer."""

    group_id: Id
    seq: SequenceNumber
    hash: Hash
    created_at: Microseconds
    key_epoch: KeyEpoch
    duplicate: bool = False


class GroupCreateOk(ControlOk, tag="ok", kw_only=True):
    invite_code: InviteCode


class InviteCreateOk(ControlOk, tag="ok", kw_only=True):
    invite_code: InviteCode


class GroupListOk(Ok, tag="ok"):
    groups: list[GroupHead]


class GroupGetOk(Ok, tag="ok"):
    """A group. `invite_code` (the standing code) and `join_requests` are for its admins."""

    group_id: Id
    encrypted_name: bytes
    name_key_epoch: KeyEpoch
    history: int
    knocking: bool
    created_by: Id
    created_at: Microseconds
    role: int
    key_epoch: KeyEpoch
    rekey_required: bool
    seq: SequenceNumber
    hash: Hash
    member_count: int
    invite_code: InviteCode | None = None
    join_requests: list[JoinRequest] | None = None


class GroupKeysOk(Ok, tag="ok"):
    keys: list[GroupKey]
    more: bool = False


class MemberListOk(Ok, tag="ok"):
    members: list[Member]
    seq: SequenceNumber
    hash: Hash
    more: bool = False


class InviteListOk(Ok, tag="ok"):
    invites: list[Invite]


class InviteRotateOk(Ok, tag="ok"):
    invite_code: InviteCode
    knocking: bool


class InviteOpenOk(Ok, tag="ok"):
    """`sealed_group_key` is absent once a rekey has made it useless: then knock with the invite's signature."""

    group_id: Id
    invite_id: Id
    key_epoch: KeyEpoch
    seq: SequenceNumber
    hash: Hash
    sealed_group_key: bytes | None = None


class GroupKnockOk(Ok, tag="ok"):
    group_id: Id
    request_id: Id


class PostOk(Ok, tag="ok"):
    seq: SequenceNumber
    hash: Hash
    content_hash: Hash
    created_at: Microseconds
    duplicate: bool = False


class EventListOk(Ok, tag="ok"):
    """Events in the order of their seq. `seq` and `hash` are the group's head.

    `previous_hash` is the hash before the first event of an unfiltered page (zeros at the log's beginning).
    """

    events: list[Event]
    seq: SequenceNumber
    hash: Hash
    previous_hash: Hash | None = None
    more: bool = False


class MediaBeginOk(Ok, tag="ok"):
    """Go on at `offset`: what comes before it is durable. `generation` 0: the file is committed, nothing is missing.

    At most `window` chunks of at most `chunk_bytes` may be without an answer. Answers wait until `part_bytes` have
    come, or the file ends.
    """

    offset: ByteCount
    generation: SequenceNumber
    chunk_bytes: int
    window: int
    part_bytes: ByteCount = 0


class MediaChunkOk(Ok, tag="ok"):
    """The bytes before `offset`, those of the chunk among them, are durable."""

    offset: ByteCount


class MediaGetOk(Ok, tag="ok"):
    """A file. Until `url_expires_at`, whoever has `url` may fetch its bytes from there by HTTP GET, ranges too."""

    media: Media
    url: str | None = None
    url_expires_at: Microseconds | None = None


class MediaReadOk(Ok, tag="ok"):
    """Bytes from the offset on: as many as were asked for, or fewer at the end of the file."""

    data: bytes


class MediaListOk(Ok, tag="ok"):
    media: list[Media]
    more: bool = False


class QuotaGetOk(Ok, tag="ok"):
    """What the group's files use, uploads under way among them, and what they may."""

    total_bytes: ByteCount
    media_count: int
    max_bytes: ByteCount
    max_media_count: int


class SubscribeOk(Ok, tag="ok"):
    groups: list[SubscribedGroup]


class CursorOk(Ok, tag="ok"):
    """Where the cursor stands now; `seq` 0 where it was never put."""

    seq: SequenceNumber
    hash: Hash


class PingOk(Ok, tag="ok"):
    """The heads are those of the caller's subscriptions."""

    server_time: Microseconds
    heads: list[Cursor]


# ── the table ───────────────────────────────────────────────────────────────────────────────────────────────────────

REQUESTS: dict[type[Request], type[Ok]] = {
    Register: SessionOk,
    Login: SessionOk,
    Authenticate: AuthenticateOk,
    Refresh: SessionOk,
    Logout: Ok,
    SessionList: SessionListOk,
    SessionRevoke: Ok,
    PasswordChange: SessionOk,
    AccountDelete: Ok,
    UserGet: UserGetOk,
    KeyReplace: KeyReplaceOk,
    BackupPut: Ok,
    BackupGet: BackupGetOk,
    TokenCreate: TokenCreateOk,
    TokenList: TokenListOk,
    TokenRevoke: Ok,
    GroupCreate: GroupCreateOk,
    GroupList: GroupListOk,
    GroupGet: GroupGetOk,
    GroupUpdate: ControlOk,
    GroupDelete: ControlOk,
    GroupTransfer: ControlOk,
    GroupLeave: ControlOk,
    GroupKeys: GroupKeysOk,
    GroupRekey: ControlOk,
    GroupWrap: Ok,
    MemberList: MemberListOk,
    MemberRemove: ControlOk,
    MemberUnban: ControlOk,
    MemberSetRole: ControlOk,
    InviteCreate: InviteCreateOk,
    InviteList: InviteListOk,
    InviteRevoke: ControlOk,
    InviteRotate: InviteRotateOk,
    InviteOpen: InviteOpenOk,
    GroupJoin: ControlOk,
    GroupKnock: GroupKnockOk,
    GroupAdmit: ControlOk,
    GroupDeny: Ok,
    ThreadPost: PostOk,
    ReplyPost: PostOk,
    AnnotationPost: PostOk,
    PostDelete: ControlOk,
    ThreadList: EventListOk,
    ReplyList: EventListOk,
    EventList: EventListOk,
    MediaBegin: MediaBeginOk,
    MediaChunk: MediaChunkOk,
    MediaCommit: PostOk,
    MediaAbort: Ok,
    MediaGet: MediaGetOk,
    MediaRead: MediaReadOk,
    MediaList: MediaListOk,
    MediaDelete: ControlOk,
    QuotaGet: QuotaGetOk,
    Subscribe: SubscribeOk,
    Unsubscribe: Ok,
    SignalSend: Ok,
    CursorPut: CursorOk,
    CursorGet: CursorOk,
    Ping: PingOk,
}
"""Every request, and the answer that it gets when it succeeds."""

PUSHES: tuple[type[Push], ...] = (Hello, Event, Live, GroupGone, JoinRequested, CursorMoved, Signal, GoAway)
"""Every push."""


def type_of(frame: Frame | type[Frame]) -> str:
    """The frame's `type` on the wire."""
    tag = frame.__struct_config__.tag
    if not isinstance(tag, str):
        raise TypeError(f"{frame} is no frame")
    return tag

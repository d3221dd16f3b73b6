"""An example of every request with its answer, of every push and of every error."""

# ruff: noqa: S106  made-up passwords and tokens guard nothing

from collections.abc import Iterator

from msgspec.structs import replace

from generator.world import (
    ALICE,
    ANNOTATION,
    BOB,
    BOB_AFTERWARDS,
    CAROL,
    DAVE,
    DAY_US,
    GROUP,
    INVITE,
    MEDIA,
    MEDIA_LIFE_US,
    PEOPLE,
    REPLY,
    SECOND_MEDIA,
    SECOND_THREAD,
    START_AT,
    STORY,
    THREAD,
    Entry,
    Person,
    cipher,
    entry,
    entry_at,
    file_bytes,
    first_of,
    joined,
    make_id,
    stretch,
)
from orbital_protocol import ZERO_HASH, ZERO_ID, chain
from orbital_protocol import frames as f
from orbital_protocol.codes import ErrorCode, History, Kind, Role, Scope

INVITE_CODE = "Qm3x9TzK"
STANDING_CODE = "hB72kWpd"
TOKEN_ID = make_id("token")
SESSION = make_id("session")
SECOND_SESSION = make_id("second session")
KNOCK = make_id("knock")
HEAD = entry_at(len(STORY.entries)).event
HELLO_LIMITS = f.Limits(
    max_frame_bytes=1_048_576,
    max_unauthenticated_frame_bytes=16_384,
    max_depth=8,
    max_in_flight=64,
    max_frames_per_second=2_000,
    max_title_bytes=4_125,
    max_body_bytes=65_565,
    max_name_bytes=4_125,
    max_wrap_bytes=1_024,
    max_statement_bytes=2_048,
    max_signal_bytes=1_280,
    signals_per_second=20,
    max_members_per_group=1_000,
    max_groups_per_user=200,
    max_subscriptions=500,
    max_invites_per_group=100,
    max_join_requests_per_group=100,
    max_cursors_per_user=256,
    max_tokens_per_user=50,
    max_sessions_per_user=100,
    max_backup_bytes=1_044_480,
    max_media_bytes=1_073_741_824,
    max_metadata_bytes=4_125,
    media_chunk_bytes=524_288,
    media_window=20,
    max_uploads_per_user=100,
    page_limit=200,
    rekeys_per_hour=60,
    knocks_per_hour=20,
)


def erased(event: f.Event) -> f.Event:
    """The event after its post or file was deleted, or has expired."""
    return replace(_without_content(event), erased=True)


def header(event: f.Event) -> f.Event:
    """The event as a subscriber gets it whose `kinds` leave its kind out."""
    return _without_content(event)


def _without_content(event: f.Event) -> f.Event:
    fields = next(e for e in STORY.entries if e.event.seq == event.seq).fields
    return replace(
        event,
        encrypted_title=None,
        encrypted_body=None,
        encrypted_metadata=None,
        encryption_iv=None,
        size_bytes=None,
        root=None,
        field_hashes=[chain.field_hash(value) for value in fields],
    )


def _session(generation: int) -> dict[str, object]:
    return {
        "user_id": ALICE.user_id,
        "session_id": SESSION,
        "access_token": f"an-access-token-{generation}",
        "access_expires_at": START_AT + 900_000_000,
        "refresh_token": f"a-refresh-token-{generation}",
        "refresh_expires_at": START_AT + 30 * DAY_US,
    }


def _session_ok(generation: int) -> f.SessionOk:
    return f.SessionOk(id=0, **_session(generation))  # type: ignore[arg-type]


def _group_head(at: Entry, role: Role) -> f.GroupHead:
    return f.GroupHead(
        group_id=GROUP,
        encrypted_name=cipher("name 2"),
        role=role,
        key_epoch=at.event.key_epoch,
        rekey_required=False,
        seq=at.event.seq,
        hash=at.event.hash,
    )


def _cursor(at: Entry) -> f.Cursor:
    return f.Cursor(group_id=GROUP, seq=at.event.seq, hash=at.event.hash)


def _key(person: Person, created_at: int = START_AT) -> f.UserKey:
    return f.UserKey(public_key=person.public_key, signing_key=person.signing_key, created_at=created_at)


def _control(request: type[f.ControlRequest], name: str, **fields: object) -> f.ControlRequest:
    """A control request, from the statement in the log."""
    signed = entry(name).signed
    return request(id=0, statement=signed.statement, signature=signed.signature, **fields)


def _control_ok(request: f.ControlRequest, *, key_epoch: int | None = None, duplicate: bool = False) -> f.ControlOk:
    event = next(e.event for e in STORY.entries if e.event.statement == request.statement)
    return f.ControlOk(
        id=0,
        group_id=GROUP,
        seq=event.seq,
        hash=event.hash,
        created_at=event.created_at,
        key_epoch=key_epoch or event.key_epoch,
        duplicate=duplicate,
    )


def _join_request() -> f.JoinRequest:
    return f.JoinRequest(
        request_id=KNOCK,
        user_id=CAROL.user_id,
        username="carol",
        public_key=CAROL.public_key,
        signing_key=CAROL.signing_key,
        is_bot=False,
        requested_at=START_AT + 5_000_000,
        invite_id=INVITE,
        invite_signature=joined(CAROL, by_invite=True)["invite_signature"],
    )


Exchange = tuple[f.Request, f.Ok]
"""A request and its answer; both have the id 0 until `exchanges` numbers them."""


def _account() -> Iterator[Exchange]:
    register = f.Register(
        id=0,
        user_id=ALICE.user_id,
        username="alice",
        password="sixteen tons and what",
        public_key=ALICE.public_key,
        signing_key=ALICE.signing_key,
    )
    yield register, _session_ok(1)
    bot = f.Register(
        id=0,
        user_id=DAVE.user_id,
        username="dave_bot",
        password="do you get",
        public_key=replace(
            DAVE.public_key, alg="RSA-OAEP-256", use="enc", key_ops=["encrypt", "wrapKey"], kid="1", ext=True
        ),
        signing_key=DAVE.signing_key,
        registration_code="please",
        device_name="a shelf",
        is_bot=True,
    )
    yield bot, _session_ok(1)
    login = f.Login(id=0, username="alice", password="sixteen tons and what", device_name="laptop")
    yield login, _session_ok(2)
    authenticate = f.Authenticate(id=0, access_token="an-access-token-2")
    yield (
        authenticate,
        f.AuthenticateOk(
            id=0,
            user_id=ALICE.user_id,
            session_id=SESSION,
            access_expires_at=START_AT + 900_000_000,
            groups=[_group_head(entry_at(20), Role.ADMIN)],
        ),
    )
    refresh = f.Refresh(id=0, refresh_token="a-refresh-token-2")
    yield refresh, _session_ok(3)
    listing = f.SessionList(id=0)
    sessions = [
        f.SessionInfo(
            session_id=session_id,
            device_name=device,
            created_at=START_AT,
            last_used_at=START_AT + DAY_US,
            current=session_id == SESSION,
        )
        for session_id, device in ((SESSION, "laptop"), (SECOND_SESSION, ""))
    ]
    yield listing, f.SessionListOk(id=0, sessions=sessions)
    yield _plain(f.SessionRevoke(id=0, session_id=SECOND_SESSION))
    change = f.PasswordChange(
        id=0,
        password="sixteen tons and what",
        new_password="another day older",
        backup=cipher("backup 2", 61),
        backup_generation=2,
    )
    yield change, _session_ok(4)
    yield _plain(f.AccountDelete(id=0, password="another day older"))
    yield _plain(f.AccountDelete(id=0, password="another day older", delete_groups=True))
    yield _plain(f.Logout(id=0))


def _plain(request: f.Request) -> Exchange:
    return request, f.Ok(id=0)


def _keys_and_tokens() -> Iterator[Exchange]:
    get = f.UserGet(id=0, user_id=BOB.user_id)
    keys = [_key(BOB), _key(BOB_AFTERWARDS, first_of(Kind.KEY_REPLACED).event.created_at)]
    yield get, f.UserGetOk(id=0, user_id=BOB.user_id, keys=keys, username="bob")
    get = f.UserGet(id=0, user_id=DAVE.user_id)
    yield get, f.UserGetOk(id=0, user_id=DAVE.user_id, keys=[_key(DAVE)], is_bot=True)
    replaced = first_of(Kind.KEY_REPLACED)
    replace_keys = f.KeyReplace(
        id=0,
        public_key=BOB_AFTERWARDS.public_key,
        signing_key=BOB_AFTERWARDS.signing_key,
        statements=[replaced.signed],
    )
    yield replace_keys, f.KeyReplaceOk(id=0, heads=[_cursor(replaced)])
    yield _plain(f.BackupPut(id=0, generation=1, backup=cipher("backup", 61)))
    backup = f.BackupGet(id=0)
    yield backup, f.BackupGetOk(id=0, generation=1, backup=cipher("backup", 61))
    token = f.TokenCreate(id=0, token_id=TOKEN_ID, name="everywhere", scopes=[Scope.READ])
    yield token, f.TokenCreateOk(id=0, token_id=TOKEN_ID, token="a-bot-token")
    token = f.TokenCreate(
        id=0,
        token_id=TOKEN_ID,
        name="greeter",
        scopes=[Scope.READ, Scope.POST],
        groups=[GROUP],
        expires_at=START_AT + 365 * DAY_US,
    )
    yield token, f.TokenCreateOk(id=0, token_id=TOKEN_ID, token="another-bot-token")
    listing = f.TokenList(id=0)
    info = f.TokenInfo(
        token_id=TOKEN_ID,
        name="greeter",
        scopes=[Scope.POST, Scope.READ],
        groups=[GROUP],
        created_at=START_AT,
        expires_at=START_AT + 365 * DAY_US,
        last_used_at=START_AT + DAY_US,
    )
    yield listing, f.TokenListOk(id=0, tokens=[info])
    yield _plain(f.TokenRevoke(id=0, token_id=TOKEN_ID))


def _group() -> Iterator[Exchange]:
    create = _control(
        f.GroupCreate, "group.created", encrypted_name=cipher("name 1"), encrypted_group_key=cipher("wrap alice 1", 64)
    )
    created = first_of(Kind.GROUP_CREATED).event
    created_ok = f.GroupCreateOk(
        id=0,
        group_id=GROUP,
        seq=1,
        hash=created.hash,
        created_at=created.created_at,
        key_epoch=1,
        invite_code=STANDING_CODE,
    )
    yield create, created_ok
    yield create, replace(created_ok, duplicate=True)
    listing = f.GroupList(id=0)
    yield listing, f.GroupListOk(id=0, groups=[_group_head(entry_at(12), Role.OWNER)])
    for role in (Role.MEMBER, Role.ADMIN):
        get = f.GroupGet(id=0, group_id=GROUP)
        at = entry_at(12).event
        got = f.GroupGetOk(
            id=0,
            group_id=GROUP,
            encrypted_name=cipher("name 2"),
            name_key_epoch=1,
            history=History.SHARED,
            knocking=True,
            created_by=ALICE.user_id,
            created_at=created.created_at,
            role=role,
            key_epoch=1,
            rekey_required=False,
            seq=at.seq,
            hash=at.hash,
            member_count=4,
        )
        if role >= Role.ADMIN:
            got = replace(got, invite_code=STANDING_CODE, join_requests=[_join_request()])
        yield get, got
    update = _control(f.GroupUpdate, "group.updated", encrypted_name=cipher("name 2"))
    yield update, _control_ok(update)
    yield update, _control_ok(update, duplicate=True)
    yield from _group_ends()
    keys = f.GroupKeys(id=0, group_id=GROUP)
    group_keys = [
        f.GroupKey(key_epoch=epoch, encrypted_group_key=cipher(f"wrap alice {epoch}", 64), created_at=START_AT + epoch)
        for epoch in (1, 2)
    ]
    yield keys, f.GroupKeysOk(id=0, keys=group_keys[:1], more=True)
    yield replace(keys, after_key_epoch=1), f.GroupKeysOk(id=0, keys=group_keys[1:])
    rekey = _control(
        f.GroupRekey,
        "group.rekeyed 2",
        encrypted_name=cipher("name 2"),
        encrypted_group_keys=[
            f.WrappedKey(
                user_id=member.user_id,
                rsa_thumbprint=member.rsa_thumbprint,
                encrypted_group_key=cipher(f"wrap {member.name} 2", 64),
            )
            for member in (ALICE, BOB, DAVE)
        ],
    )
    yield rekey, _control_ok(rekey, key_epoch=2)
    wrap = f.GroupWrap(
        id=0,
        group_id=GROUP,
        user_id=BOB.user_id,
        rsa_thumbprint=BOB_AFTERWARDS.rsa_thumbprint,
        key_epoch=2,
        encrypted_group_key=cipher("wrap bob 2 again", 64),
    )
    yield _plain(wrap)
    yield from _members()


def _group_ends() -> Iterator[Exchange]:
    for request, name in (
        (f.GroupTransfer, "group.transferred"),
        (f.GroupLeave, "member.left"),
        (f.GroupDelete, "group.deleted"),
    ):
        asked = _control(request, name)
        yield asked, _control_ok(asked)


def _members() -> Iterator[Exchange]:
    at = entry_at(11)
    for listing in (
        f.MemberList(id=0, group_id=GROUP),
        f.MemberList(id=0, group_id=GROUP, after_user_id=sorted(p.user_id for p in PEOPLE)[1], limit=2),
    ):
        roles = {ALICE.user_id: Role.OWNER, BOB.user_id: Role.ADMIN}
        after = listing.after_user_id or ZERO_ID
        people = sorted((p for p in PEOPLE if p.user_id > after), key=lambda p: p.user_id)
        members = [
            f.Member(
                user_id=person.user_id,
                username=person.name,
                role=roles.get(person.user_id, Role.MEMBER),
                public_key=person.public_key,
                signing_key=person.signing_key,
                is_bot=person.is_bot,
                joined_at=START_AT,
            )
            for person in people[:2]
        ]
        more = len(people) > len(members)
        yield listing, f.MemberListOk(id=0, members=members, seq=at.event.seq, hash=at.event.hash, more=more)
    for request, name in (
        (f.MemberRemove, "member.removed"),
        (f.MemberUnban, "member.unbanned"),
        (f.MemberSetRole, "member.role"),
    ):
        asked = _control(request, name)
        yield asked, _control_ok(asked)


def _invite() -> Iterator[Exchange]:
    create = _control(f.InviteCreate, "invite.created", sealed_group_key=cipher("sealed", 61))
    created = first_of(Kind.INVITE_CREATED).event
    created_ok = f.InviteCreateOk(
        id=0,
        group_id=GROUP,
        seq=created.seq,
        hash=created.hash,
        created_at=created.created_at,
        key_epoch=1,
        invite_code=INVITE_CODE,
    )
    yield create, created_ok
    yield create, replace(created_ok, duplicate=True)
    listing = f.InviteList(id=0, group_id=GROUP)
    invite = f.Invite(
        invite_id=INVITE,
        invite_code=INVITE_CODE,
        created_by=ALICE.user_id,
        created_at=created.created_at,
        expires_at=START_AT + 7 * DAY_US,
        max_uses=10,
        uses=1,
    )
    yield listing, f.InviteListOk(id=0, invites=[invite])
    revoke = _control(f.InviteRevoke, "invite.revoked")
    yield revoke, _control_ok(revoke)
    rotate = f.InviteRotate(id=0, group_id=GROUP)
    yield rotate, f.InviteRotateOk(id=0, invite_code=STANDING_CODE, knocking=True)
    rotate = f.InviteRotate(id=0, group_id=GROUP, knocking=False)
    yield rotate, f.InviteRotateOk(id=0, invite_code="aaaaBBB2", knocking=False)
    for sealed in (cipher("sealed", 61), None):
        opened = f.InviteOpen(id=0, invite_code=INVITE_CODE)
        yield (
            opened,
            f.InviteOpenOk(
                id=0,
                group_id=GROUP,
                invite_id=INVITE,
                key_epoch=1,
                seq=created.seq,
                hash=created.hash,
                sealed_group_key=sealed,
            ),
        )
    join = _control(f.GroupJoin, "member.joined bob", encrypted_group_key=cipher("wrap bob 1", 64))
    yield join, _control_ok(join)
    knock = f.GroupKnock(id=0, request_id=KNOCK, invite_code=STANDING_CODE)
    yield knock, f.GroupKnockOk(id=0, group_id=GROUP, request_id=KNOCK)
    signature = joined(CAROL, by_invite=True)["invite_signature"]
    knock = f.GroupKnock(id=0, request_id=KNOCK, invite_code=INVITE_CODE, invite_signature=signature)
    yield knock, f.GroupKnockOk(id=0, group_id=GROUP, request_id=KNOCK)
    admit = _control(f.GroupAdmit, "member.joined carol", encrypted_group_key=cipher("wrap carol 1", 64))
    yield admit, _control_ok(admit)
    yield _plain(f.GroupDeny(id=0, group_id=GROUP, user_id=CAROL.user_id))


def _post() -> Iterator[Exchange]:
    thread = f.ThreadPost(
        id=0,
        group_id=GROUP,
        key_epoch=1,
        thread_id=THREAD,
        encrypted_title=cipher("title"),
        encrypted_body=cipher("body"),
    )
    yield thread, _post_ok(Kind.THREAD_POSTED)
    reply = f.ReplyPost(
        id=0, group_id=GROUP, key_epoch=1, thread_id=THREAD, reply_id=REPLY, encrypted_body=cipher("reply")
    )
    yield reply, _post_ok(Kind.REPLY_POSTED)
    yield reply, replace(_post_ok(Kind.REPLY_POSTED), duplicate=True)
    annotation = f.AnnotationPost(
        id=0,
        group_id=GROUP,
        key_epoch=1,
        target_id=REPLY,
        annotation_id=ANNOTATION,
        encrypted_body=cipher("annotation"),
    )
    yield annotation, _post_ok(Kind.ANNOTATION_POSTED)
    delete = _control(f.PostDelete, "post.deleted")
    yield delete, _control_ok(delete)


def _post_ok(kind: Kind) -> f.PostOk:
    event = first_of(kind).event
    return f.PostOk(
        id=0,
        seq=event.seq,
        hash=event.hash,
        content_hash=event.content_hash,
        created_at=event.created_at,
    )


def _pages() -> Iterator[Exchange]:
    threads = f.ThreadList(id=0, group_id=GROUP)
    found = [entry_at(seq).event for seq in (4, 15)]
    yield threads, f.EventListOk(id=0, events=found, seq=HEAD.seq, hash=HEAD.hash)
    threads = f.ThreadList(id=0, group_id=GROUP, before_seq=15, limit=1)
    yield threads, f.EventListOk(id=0, events=found[:1], seq=HEAD.seq, hash=HEAD.hash)
    threads = f.ThreadList(id=0, group_id=GROUP, after_seq=4)
    yield threads, f.EventListOk(id=0, events=found[1:], seq=HEAD.seq, hash=HEAD.hash)
    reply = entry_at(5).event
    for replies in (
        f.ReplyList(id=0, group_id=GROUP, thread_id=THREAD),
        f.ReplyList(id=0, group_id=GROUP, thread_id=THREAD, after_seq=4, limit=10),
        f.ReplyList(id=0, group_id=GROUP, thread_id=THREAD, before_seq=6),
    ):
        yield replies, f.EventListOk(id=0, events=[reply], seq=HEAD.seq, hash=HEAD.hash)
    page = f.EventList(id=0, group_id=GROUP, after_seq=0, limit=2)
    yield page, _event_page(1, 2, more=True)
    page = f.EventList(id=0, group_id=GROUP, before_seq=23, limit=2)
    yield page, _event_page(21, 22, more=True)
    page = f.EventList(id=0, group_id=GROUP, after_seq=3, kinds=[Kind.THREAD_POSTED, Kind.ANNOTATION_POSTED])
    events = [entry_at(4).event, erased(entry_at(6).event), entry_at(15).event]
    yield page, f.EventListOk(id=0, events=events, seq=HEAD.seq, hash=HEAD.hash)


def _event_page(first: int, last: int, *, more: bool) -> f.EventListOk:
    return f.EventListOk(
        id=0,
        events=[entry_at(seq).event for seq in range(first, last + 1)],
        seq=HEAD.seq,
        hash=HEAD.hash,
        previous_hash=entry_at(first).previous_hash,
        more=more,
    )


def _upload() -> Iterator[Exchange]:
    event = first_of(Kind.MEDIA_POSTED).event
    data = file_bytes(event.size_bytes or 0)
    begin = f.MediaBegin(
        id=0,
        group_id=GROUP,
        thread_id=SECOND_THREAD,
        media_id=MEDIA,
        size_bytes=len(data),
        encryption_iv=event.encryption_iv or b"",
    )
    begun = f.MediaBeginOk(
        id=0,
        offset=0,
        generation=1,
        chunk_bytes=HELLO_LIMITS.media_chunk_bytes,
        window=HELLO_LIMITS.media_window,
    )
    yield begin, begun
    yield begin, replace(begun, offset=65_536, generation=2, part_bytes=5_242_880)
    chunk = f.MediaChunk(id=0, media_id=MEDIA, generation=2, offset=65_536, data=data[65_536:])
    yield chunk, f.MediaChunkOk(id=0, offset=len(data))
    commit = f.MediaCommit(
        id=0,
        media_id=MEDIA,
        key_epoch=event.key_epoch,
        encrypted_metadata=event.encrypted_metadata or b"",
        root=event.root or b"",
    )
    yield commit, _post_ok(Kind.MEDIA_POSTED)
    yield commit, replace(_post_ok(Kind.MEDIA_POSTED), duplicate=True)
    yield begin, replace(begun, offset=len(data), generation=0)
    yield _plain(f.MediaAbort(id=0, media_id=SECOND_MEDIA))


def _file(event: f.Event) -> f.Media:
    return f.Media(
        media_id=event.object_id,
        group_id=GROUP,
        thread_id=event.thread_id or b"",
        seq=event.seq,
        key_epoch=event.key_epoch,
        encrypted_metadata=event.encrypted_metadata or b"",
        encryption_iv=event.encryption_iv or b"",
        size_bytes=event.size_bytes or 0,
        root=event.root or b"",
        uploaded_at=event.created_at,
        expires_at=event.created_at + MEDIA_LIFE_US,
        author_id=event.actor_id,
    )


def _download() -> Iterator[Exchange]:
    first, second = (_file(e.event) for e in STORY.entries if e.event.kind == Kind.MEDIA_POSTED)
    get = f.MediaGet(id=0, media_id=MEDIA)
    yield get, f.MediaGetOk(id=0, media=first)
    url_expires_at = first.uploaded_at + 300_000_000
    url = "https://media.example.org/orbital/0c9e?signature=5fe1"
    yield get, f.MediaGetOk(id=0, media=first, url=url, url_expires_at=url_expires_at)
    data = file_bytes(first.size_bytes)
    yield f.MediaRead(id=0, media_id=MEDIA, offset=3, length=5), f.MediaReadOk(id=0, data=data[3:8])
    yield f.MediaRead(id=0, media_id=MEDIA, offset=65_530, length=65_536), f.MediaReadOk(id=0, data=data[65_530:])
    yield f.MediaList(id=0, group_id=GROUP), f.MediaListOk(id=0, media=[replace(first, downloaded=True)])
    listing = f.MediaList(id=0, group_id=GROUP, thread_id=SECOND_THREAD, before_seq=second.seq + 1, limit=1)
    yield listing, f.MediaListOk(id=0, media=[replace(second, author_id=None)], more=True)
    listing = f.MediaList(id=0, group_id=GROUP, after_seq=second.seq)
    yield listing, f.MediaListOk(id=0, media=[])
    delete = _control(f.MediaDelete, "media.deleted")
    yield delete, _control_ok(delete)
    quota = f.QuotaGetOk(
        id=0,
        total_bytes=first.size_bytes + second.size_bytes,
        media_count=2,
        max_bytes=10_737_418_240,
        max_media_count=100,
    )
    yield f.QuotaGet(id=0, group_id=GROUP), quota


def _live() -> Iterator[Exchange]:
    at = entry_at(5).event
    others = [make_id(f"{status} group") for status in ("denied", "gone", "future", "forked")]
    subscribe = f.Subscribe(id=0, groups=[f.SubscribeGroup(group_id=GROUP)])
    started = f.SubscribedGroup(group_id=GROUP, status="resumed", seq=HEAD.seq, hash=HEAD.hash)
    yield subscribe, f.SubscribeOk(id=0, groups=[started])
    subscribe = f.Subscribe(
        id=0,
        groups=[
            f.SubscribeGroup(group_id=GROUP, after_seq=at.seq, after_hash=at.hash),
            f.SubscribeGroup(group_id=others[0], after_seq=0, after_hash=ZERO_HASH),
            f.SubscribeGroup(group_id=others[1]),
            f.SubscribeGroup(group_id=others[2], after_seq=99, after_hash=stretch("a later hash", 32)),
            f.SubscribeGroup(group_id=others[3], after_seq=1, after_hash=stretch("another hash", 32)),
        ],
        kinds=[Kind.THREAD_POSTED, Kind.REPLY_POSTED],
    )
    verdicts = [
        f.SubscribedGroup(group_id=GROUP, status="resumed", seq=at.seq, hash=at.hash),
        f.SubscribedGroup(group_id=others[0], status="denied"),
        f.SubscribedGroup(group_id=others[1], status="gone"),
        f.SubscribedGroup(group_id=others[2], status="future_cursor", seq=7, hash=stretch("head 2", 32)),
        f.SubscribedGroup(group_id=others[3], status="chain_fork", seq=8, hash=stretch("head 3", 32)),
    ]
    yield subscribe, f.SubscribeOk(id=0, groups=verdicts)
    yield _plain(f.Unsubscribe(id=0, groups=[GROUP]))
    yield _plain(f.SignalSend(id=0, group_id=GROUP, payload=cipher("signal")))
    put = f.CursorPut(id=0, group_id=GROUP, name="read", seq=at.seq, hash=at.hash)
    yield put, f.CursorOk(id=0, seq=at.seq, hash=at.hash)
    put = f.CursorPut(id=0, group_id=GROUP, name="read", seq=0, hash=ZERO_HASH, rewind=True)
    yield put, f.CursorOk(id=0, seq=0, hash=ZERO_HASH)
    get = f.CursorGet(id=0, group_id=GROUP, name="bot.greeter")
    yield get, f.CursorOk(id=0, seq=0, hash=ZERO_HASH)
    ping = f.Ping(id=0)
    yield ping, f.PingOk(id=0, server_time=START_AT + DAY_US, heads=[_cursor(entry_at(22))])


def exchanges() -> list[Exchange]:
    """Every request with the answer it gets when it succeeds, numbered from 1."""
    subjects = (_account, _keys_and_tokens, _group, _invite, _post, _pages, _live, _upload, _download)
    examples = (exchange for subject in subjects for exchange in subject())
    return [(replace(request, id=n), replace(answer, id=n)) for n, (request, answer) in enumerate(examples, 1)]


def pushes() -> list[f.Push]:
    """Every push; every kind of event, and events that were erased or filtered out."""
    thread, file = (first_of(kind).event for kind in (Kind.THREAD_POSTED, Kind.MEDIA_POSTED))
    return [
        f.Hello(
            protocol=1,
            server="orbital-relay/0.1.0",
            relay_id=make_id("relay"),
            limits=HELLO_LIMITS,
            auth_timeout_ms=10_000,
            heartbeat_ms=30_000,
            registration="open",
        ),
        *(e.event for e in STORY.entries),
        erased(first_of(Kind.ANNOTATION_POSTED).event),
        header(thread),
        erased(file),
        header(file),
        f.Live(group_id=GROUP, seq=HEAD.seq, hash=HEAD.hash),
        *(f.GroupGone(group_id=GROUP, reason=reason) for reason in ("left", "removed", "deleted", "denied")),
        f.JoinRequested(group_id=GROUP, request=_join_request()),
        f.JoinRequested(group_id=GROUP, request=replace(_join_request(), invite_id=None, invite_signature=None)),
        f.CursorMoved(group_id=GROUP, name="read", seq=thread.seq, hash=thread.hash),
        f.Signal(group_id=GROUP, user_id=BOB.user_id, payload=cipher("signal")),
        f.GoAway(retry_after_ms=250),
    ]


def errors() -> list[f.Error]:
    """Every error code, with the details it comes with."""
    details = {
        ErrorCode.BAD_FRAME: f.ErrorDetails(field="groups[0].group_id"),
        ErrorCode.TOO_LARGE: f.ErrorDetails(field="encrypted_body", limit=65_565),
        ErrorCode.UNKNOWN_TYPE: f.ErrorDetails(field="type"),
        ErrorCode.BAD_ARGUMENT: f.ErrorDetails(field="public_key"),
        ErrorCode.LIMIT_EXCEEDED: f.ErrorDetails(field="max_groups_per_user", limit=200),
        ErrorCode.STALE_KEY_EPOCH: f.ErrorDetails(key_epoch=3),
        ErrorCode.MEMBER_SET_MISMATCH: f.ErrorDetails(missing=[BOB.user_id], unexpected=[CAROL.user_id]),
        ErrorCode.STALE_BASE: f.ErrorDetails(seq=8),
        ErrorCode.QUOTA_EXCEEDED: f.ErrorDetails(free_bytes=65_536, free_count=3),
        ErrorCode.UPLOAD_OFFSET: f.ErrorDetails(offset=65_536, generation=2),
    }
    retry = {ErrorCode.INTERNAL, ErrorCode.OVERLOADED, ErrorCode.RATE_LIMITED, ErrorCode.UNAVAILABLE}
    answers = [
        f.Error(
            id=number,
            code=code,
            message=f"an example of {code}",
            retry_after_ms=1_000 if code in retry else None,
            details=details.get(code),
        )
        for number, code in enumerate(ErrorCode, 1)
    ]
    nameless = f.Error(
        code=ErrorCode.BAD_FRAME, message="a request has an `id`, 0 to 2^32-1", details=f.ErrorDetails(field="id")
    )
    backup = f.Error(
        id=99, code=ErrorCode.STALE_BASE, message="it doesn't follow", details=f.ErrorDetails(generation=2)
    )
    return [*answers, backup, nameless]

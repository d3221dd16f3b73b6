"""The client: sign in once, then make requests and read events; connections come and go underneath."""

import ssl
from collections.abc import AsyncIterator, Callable, Collection
from hashlib import sha256
from types import TracebackType
from typing import Final, Self, TypeVar

from orbital_client.errors import AdmissionNeeded, BadAnswer, ClientClosed, NotFound, OutOfDate
from orbital_client.identity import Identity, uuid7
from orbital_client.links import InviteLink
from orbital_client.wire.backoff import Backoff
from orbital_client.wire.bookmarks import Bookmarks
from orbital_client.wire.control import Knowledge, with_roster
from orbital_client.wire.feed import Feed
from orbital_client.wire.groups import NO_KEY, Group
from orbital_client.wire.inbox import Item
from orbital_client.wire.session import Session
from orbital_client.wire.stores import CursorStore, MemoryCursors, MemoryTokens, TokenStore
from orbital_client.wire.transfers import Places
from orbital_protocol import ZERO_HASH
from orbital_protocol.codes import ErrorCode, History, Kind
from orbital_protocol.frames import (
    AccountDelete,
    ControlOk,
    Cursor,
    Event,
    GroupCreate,
    GroupCreateOk,
    GroupHead,
    GroupJoin,
    GroupKnock,
    GroupKnockOk,
    GroupList,
    GroupListOk,
    InviteOpen,
    InviteOpenOk,
    Limits,
    Login,
    Logout,
    Ok,
    PasswordChange,
    Register,
    Request,
    UserGet,
    UserGetOk,
)
from orbital_protocol.statements import GroupCreated, MemberJoined, join_preimage

A = TypeVar("A", bound=Ok)

WrapOpened = Callable[[InviteOpenOk], bytes]
"""Makes a wrap of the group's key of what is behind an invite link."""

_JOIN_ATTEMPTS: Final = 5
_BUFFER_BYTES: Final = 4 * 1024 * 1024


def _no_key(_opened: InviteOpenOk) -> bytes:
    return NO_KEY


class Client:
    """A user at a relay.

    `async with Client(url) as client:`, then `register`, `login` or `authenticate`. From then on it connects again by
    itself, and follows every group of the user's (unless `follow` is False): from where `cursors` say that reading
    stopped, otherwise from now on. With `kinds`, other events are not handed out and their contents aren't sent.
    `buffer_bytes` is what may wait for `events()`; when it is full, the relay has to wait too.
    """

    def __init__(  # noqa: PLR0913  options, each with a default that suits most
        self,
        url: str,
        *,
        tokens: TokenStore | None = None,
        cursors: CursorStore | None = None,
        follow: bool = True,
        kinds: Collection[Kind] | None = None,
        buffer_bytes: int = _BUFFER_BYTES,
        timeout_s: float = 30.0,
        tls: ssl.SSLContext | None = None,
        backoff: Backoff | None = None,
    ) -> None:
        self._bookmarks = Bookmarks(cursors or MemoryCursors())
        self._feed = Feed(
            self._bookmarks,
            follow_all=follow,
            kinds=kinds,
            buffer_bytes=buffer_bytes,
            observe=self._observe,
            learn=self._learn,
        )
        self._session = Session(
            url, self._feed, tokens or MemoryTokens(), tls=tls, timeout_s=timeout_s, backoff=backoff
        )
        self.places = Places()
        self._identity: Identity | None = None
        self._groups: dict[bytes, Group] = {}

    async def __aenter__(self) -> Self:
        await self._bookmarks.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the connection, save the cursors, and leave nothing running."""
        await self._session.stop()
        await self._bookmarks.close()

    # ── the account ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def register(
        self,
        username: str,
        password: str,
        identity: Identity,
        *,
        registration_code: str | None = None,
        device_name: str = "",
    ) -> None:
        """Make an account for this identity, and sign in."""
        request = Register(
            id=0,
            user_id=identity.user_id,
            username=username,
            password=password,
            public_key=identity.public_key,
            signing_key=identity.signing_key,
            registration_code=registration_code,
            device_name=device_name,
            is_bot=identity.is_bot,
        )
        await self._sign_up(request, identity)

    async def login(
        self, username: str, password: str, identity: Identity | None = None, *, device_name: str = ""
    ) -> bytes:
        """Sign in with a password; return the user's id.

        The identity is the account's, kept since it was registered; without one, `take_identity` comes later.
        """
        return await self._sign_up(Login(id=0, username=username, password=password, device_name=device_name), identity)

    async def _sign_up(self, request: Register | Login, identity: Identity | None) -> bytes:
        self._identity = identity
        answer = await self._session.sign_up(request)
        if identity is not None and answer.user_id != identity.user_id:
            await self._session.sign_out(Logout(id=0))
            raise ValueError("the identity is another account's")
        return answer.user_id

    def take_identity(self, identity: Identity) -> None:
        """Act as this identity, which came from the account's backup."""
        self._identity = identity

    async def authenticate(self, identity: Identity | None = None, *, token: str | None = None) -> bytes:
        """Sign in with an earlier login's kept tokens, or with a bot's token; return the user's id. As `login` else."""
        self._identity = identity
        await self._session.take_up(token)
        return self._session.user_id

    async def logout(self) -> None:
        """End this login at the relay, forget its tokens, and stop."""
        await self._session.sign_out(Logout(id=0))

    async def change_password(self, password: str, new_password: str) -> None:
        """Change the password. Every other login of the account ends."""
        await self.change_password_with(PasswordChange(id=0, password=password, new_password=new_password))

    async def change_password_with(self, request: PasswordChange) -> None:
        """Change the password with a request of one's own, which may carry a backup."""
        await self._session.change_password(request)

    async def delete_account(self, password: str, *, delete_groups: bool = False) -> None:
        """Delete the account for good. Groups that it owns are transferred before, or deleted with it."""
        await self._session.sign_out(AccountDelete(id=0, password=password, delete_groups=delete_groups))

    async def user(self, user_id: bytes) -> UserGetOk:
        """A user with whom one shares a group, and all keys they ever had, newest last."""
        return await self.request(UserGet(id=0, user_id=user_id), UserGetOk)

    @property
    def identity(self) -> Identity:
        """Who is signed in."""
        if self._identity is None:
            raise ClientClosed("nobody has signed in")
        return self._identity

    @property
    def limits(self) -> Limits:
        """What the relay allows."""
        return self._session.limits

    async def request(self, request: Request, answer: type[A], *, timeout_s: float | None = None) -> A:
        """Make any request of the protocol, on the next connection if there is none now. Its `id` is set here.

        It is sent again when the connection was lost or the relay asks to come later, as long as there is time,
        except for the few that can't be repeated (`session.ONCE`). Raises RequestFailed, RequestTimeout, Closed,
        ClientClosed, and for those few ConnectionLost.
        """
        return await self._session.request(request, answer, timeout_s=timeout_s)

    # ── groups ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def group(self, group_id: bytes, knowledge: Knowledge | None = None) -> Group:
        """A group of the user's, to act in. Makes no request. `knowledge` is what statements are built on from then on;
        without any, what the relay lists.
        """
        if knowledge is not None:
            self._groups[group_id] = Group(self, group_id, knowledge)
        return self._groups.setdefault(group_id, Group(self, group_id))

    async def groups(self) -> list[GroupHead]:
        """The user's groups, and where their logs stand."""
        return (await self.request(GroupList(id=0), GroupListOk)).groups

    async def create_group(
        self,
        encrypted_name: bytes,
        *,
        group_id: bytes | None = None,
        encrypted_group_key: bytes = NO_KEY,
        key_commitment: bytes = ZERO_HASH,
        history: History = History.SHARED,
    ) -> Group:
        """Make a group that this user owns, and follow it."""
        identity = self.identity
        statement = GroupCreated(
            group_id=group_id or uuid7(),
            actor_id=identity.user_id,
            statement_id=uuid7(),
            base_seq=0,
            base_hash=ZERO_HASH,
            key_epoch=1,
            roster_hash=ZERO_HASH,
            history=history,
            key_commitment=key_commitment,
            name_hash=sha256(encrypted_name).digest(),
            signing_key=identity.signing_key,
            rsa_thumbprint=identity.rsa_thumbprint,
            is_bot=identity.is_bot,
        )
        signed = identity.sign(with_roster(statement, {}))
        request = GroupCreate(
            id=0,
            statement=signed.statement,
            signature=signed.signature,
            encrypted_name=encrypted_name,
            encrypted_group_key=encrypted_group_key,
        )
        await self.request(request, GroupCreateOk)
        return self._entered(Cursor(group_id=statement.group_id, seq=0, hash=ZERO_HASH))

    async def join(self, link: InviteLink, *, wrap: WrapOpened = _no_key, after: Cursor | None = None) -> Group:
        """Become a member by an invite link, and follow the group: from where the inviter had verified it, or `after`.

        `wrap` makes the user's wrapped group key of what is behind the link. Raises AdmissionNeeded if the group was
        rekeyed since: then `knock` with the link.
        """
        for _ in range(_JOIN_ATTEMPTS - 1):
            try:
                return await self._join(link, wrap, after)
            except OutOfDate as failure:  # the group has changed between two requests
                if failure.code == ErrorCode.REKEY_REQUIRED:
                    raise
        return await self._join(link, wrap, after)

    async def _join(self, link: InviteLink, wrap: WrapOpened, after: Cursor | None) -> Group:
        opened = await self.request(InviteOpen(id=0, invite_code=link.invite_code), InviteOpenOk)
        if (opened.group_id, opened.invite_id) != (link.group_id, link.invite_id):
            raise BadAnswer("the relay answers this link with another invite")
        if opened.sealed_group_key is None:
            raise AdmissionNeeded("the group was rekeyed since this link was made: knock with it")
        identity = self.identity
        statement = MemberJoined(
            group_id=link.group_id,
            actor_id=identity.user_id,
            statement_id=uuid7(),
            base_seq=opened.seq,
            base_hash=opened.hash,
            key_epoch=opened.key_epoch,
            roster_hash=ZERO_HASH,  # a newcomer can't know who else is in the group
            user_id=identity.user_id,
            signing_key=identity.signing_key,
            rsa_thumbprint=identity.rsa_thumbprint,
            is_bot=identity.is_bot,
            invite_id=link.invite_id,
            invite_signature=self._answer_link(link),
        )
        signed = identity.sign(statement)
        request = GroupJoin(
            id=0, statement=signed.statement, signature=signed.signature, encrypted_group_key=wrap(opened)
        )
        await self.request(request, ControlOk)
        return self._entered(after or Cursor(group_id=link.group_id, seq=link.seq, hash=link.hash))

    def _answer_link(self, link: InviteLink) -> bytes:
        identity = self.identity
        preimage = join_preimage(
            group_id=link.group_id,
            invite_id=link.invite_id,
            user_id=identity.user_id,
            signing_key=identity.signing_key,
            rsa_thumbprint=identity.rsa_thumbprint,
        )
        return link.key.sign(preimage)

    async def knock(self, invite: str | InviteLink) -> bytes:
        """Ask a group's admins to be admitted, by its standing code or an invite link; return the group's id.

        Nothing tells when that has happened: ask `admitted` now and then.
        """
        code, signature = (invite, None) if isinstance(invite, str) else (invite.invite_code, self._answer_link(invite))
        request = GroupKnock(id=0, request_id=uuid7(), invite_code=code, invite_signature=signature)
        return (await self.request(request, GroupKnockOk)).group_id

    async def admitted(self, group_id: bytes) -> Group | None:
        """The group, followed from now on, once this user is a member; None until then."""
        try:
            info = await self.group(group_id).info()
        except NotFound:
            return None
        return self._entered(Cursor(group_id=group_id, seq=info.seq, hash=info.hash))

    def _entered(self, position: Cursor) -> Group:
        self._feed.follow(position)
        return self.group(position.group_id)

    # ── events ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def events(self) -> AsyncIterator[Item]:
        """What happens in the followed groups, in each group's order and without a gap; one reader at a time.

        An event counts as read when the next one is asked for; whoever stops before that gets it again from the
        cursors. Ends when the client is closed. Raises ChainBroken, ChainFork or FutureCursor for a group whose log
        can't be trusted (and which is not followed any more; a new `events()` goes on with the others), Closed when
        the relay has ended the session for good, RequestFailed when the tokens are used up or a group can't be
        followed.
        """
        return _Events(self._feed)

    def batches(self, most: int) -> AsyncIterator[list[Item]]:
        """The same, all that is there at once, but at most so many. They count as read when the next are asked for."""
        return _Batches(self._feed, most)

    def check_running(self) -> None:
        """Raise why no events come in any more, if so."""
        if self._session.ended is not None:
            raise self._session.ended.with_traceback(None)

    async def follow(self, group_id: bytes, after: Cursor | None = None) -> None:
        """Follow a group after a position in its log; None: from now on. Raises LogBroken if it can't be trusted."""
        self.check(group_id)
        if after is None:
            info = await self.group(group_id).info()
            after = Cursor(group_id=group_id, seq=info.seq, hash=info.hash)
        self._feed.follow(after)

    def follow_from(self, position: Cursor) -> None:
        """Follow a group after this position, from the next subscription on; nothing changes for one that is followed.

        A group whose log was found broken is followed no more.
        """
        self._feed.follow(position)

    def unfollow(self, group_id: bytes) -> None:
        """Follow a group no more, and forget how far it was read."""
        self._feed.unfollow(group_id)

    def check(self, group_id: bytes) -> None:
        """Raise what this client has found wrong with a group's log, if anything."""
        self._feed.check(group_id)

    def _observe(self, event: Event) -> None:
        if group := self._groups.get(event.group_id):
            group.observe(event)

    def _learn(self, head: GroupHead) -> None:
        self.group(head.group_id).learn_epoch(head.key_epoch)


class _Events:
    """An endless iterator: what was handed out last counts as read once the next is asked for."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed

    def __aiter__(self) -> "_Events":
        return self

    async def __anext__(self) -> Item:
        [item] = await self._feed.next(1)
        return item


class _Batches:
    """The same, a few at a time."""

    def __init__(self, feed: Feed, most: int) -> None:
        self._feed = feed
        self._most = most

    def __aiter__(self) -> "_Batches":
        return self

    async def __anext__(self) -> list[Item]:
        return await self._feed.next(self._most)

"""Frame type → handler: one table, total over `frames.REQUESTS`, with the scope that each request needs."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from orbital_protocol import frames, statements
from orbital_protocol.codes import Scope
from orbital_protocol.frames import ControlRequest, Ok, Request
from orbital_relay.caller import Caller
from orbital_relay.handlers.accounts import Accounts
from orbital_relay.handlers.groups import Groups
from orbital_relay.handlers.invites import Invites
from orbital_relay.handlers.media import Media
from orbital_relay.handlers.members import Members
from orbital_relay.handlers.posts import Posts
from orbital_relay.handlers.sessions import Sessions
from orbital_relay.handlers.subscriptions import Live
from orbital_relay.handlers.tokens import Tokens
from orbital_relay.handlers.uploads import MediaUploads
from orbital_relay.store.posts import Post

RequestT = TypeVar("RequestT", bound=Request)
Handler = Callable[[Any, Any], Awaitable[Ok]]
"""Takes the connection, as far as the handler needs to know it (Peer, SubscribedPeer), and the request."""

Checked = Callable[[Caller, Any], Post]


Bulk = Literal["page", "media"]
"""Kinds of large answers: a store of files that hangs must not hold up lists."""


@dataclass(frozen=True, slots=True)
class Route:
    """What becomes of a request. `scope` None: before authentication too. Posts are checked, then the writer's.

    `bulk`: the answer may be far larger than the request, and waits until the reader has taken what came before; of
    each kind one is made at a time.
    """

    handler: Handler | None
    checked: Checked | None
    scope: Scope | None
    bulk: Bulk | None = None


@dataclass(frozen=True, slots=True)
class Handlers:
    """Every handler of a relay."""

    accounts: Accounts
    sessions: Sessions
    tokens: Tokens
    groups: Groups
    members: Members
    invites: Invites
    posts: Posts
    uploads: MediaUploads
    media: Media
    live: Live


def _handle(
    request: type[RequestT], handler: Callable[[Any, RequestT], Awaitable[Ok]], scope: Scope | None = None
) -> tuple[type[Request], Route]:
    return request, Route(handler, None, scope)


def _list(
    request: type[RequestT], handler: Callable[[Any, RequestT], Awaitable[Ok]], scope: Scope = Scope.READ
) -> tuple[type[Request], Route]:
    return request, Route(handler, None, scope, bulk="page")


def _post(request: type[RequestT], checked: Callable[[Caller, RequestT], Post]) -> tuple[type[Request], Route]:
    return request, Route(None, checked, Scope.POST)


def _read(request: type[RequestT], handler: Callable[[Any, RequestT], Awaitable[Ok]]) -> tuple[type[Request], Route]:
    return request, Route(handler, None, Scope.READ, bulk="media")


def routes(h: Handlers) -> Mapping[type[Request], Route]:
    """The table. Raise AssertionError if a request is missing."""
    table = dict(
        (
            _handle(frames.Register, h.accounts.register),
            _handle(frames.Login, h.accounts.login),
            _handle(frames.Authenticate, h.sessions.authenticate),
            _handle(frames.Refresh, h.sessions.refresh),
            _handle(frames.Ping, h.live.ping),
            _handle(frames.Logout, h.sessions.logout, Scope.ACCOUNT),
            _list(frames.SessionList, h.sessions.session_list, Scope.ACCOUNT),
            _handle(frames.SessionRevoke, h.sessions.session_revoke, Scope.ACCOUNT),
            _handle(frames.PasswordChange, h.accounts.password_change, Scope.ACCOUNT),
            _handle(frames.AccountDelete, h.accounts.account_delete, Scope.ACCOUNT),
            _handle(frames.KeyReplace, h.accounts.key_replace, Scope.ACCOUNT),
            _handle(frames.BackupPut, h.accounts.backup_put, Scope.ACCOUNT),
            _list(frames.BackupGet, h.accounts.backup_get),
            _list(frames.UserGet, h.accounts.user_get),
            _handle(frames.TokenCreate, h.tokens.token_create, Scope.ACCOUNT),
            _list(frames.TokenList, h.tokens.token_list, Scope.ACCOUNT),
            _handle(frames.TokenRevoke, h.tokens.token_revoke, Scope.ACCOUNT),
            _handle(frames.GroupCreate, h.groups.create, Scope.MANAGE),
            _list(frames.GroupList, h.groups.list),
            _list(frames.GroupGet, h.groups.get),
            _handle(frames.GroupUpdate, h.groups.update, Scope.MANAGE),
            _handle(frames.GroupDelete, h.groups.delete, Scope.MANAGE),
            _handle(frames.GroupTransfer, h.groups.transfer, Scope.MANAGE),
            _handle(frames.GroupLeave, h.groups.leave, Scope.MANAGE),
            _list(frames.GroupKeys, h.groups.keys),
            _handle(frames.GroupRekey, h.groups.rekey, Scope.MANAGE),
            _handle(frames.GroupWrap, h.groups.wrap, Scope.MANAGE),
            _list(frames.MemberList, h.members.list),
            _handle(frames.MemberRemove, h.members.remove, Scope.MANAGE),
            _handle(frames.MemberUnban, h.members.unban, Scope.MANAGE),
            _handle(frames.MemberSetRole, h.members.set_role, Scope.MANAGE),
            _handle(frames.InviteCreate, h.invites.create, Scope.MANAGE),
            _list(frames.InviteList, h.invites.list),
            _handle(frames.InviteRevoke, h.invites.revoke, Scope.MANAGE),
            _handle(frames.InviteRotate, h.invites.rotate, Scope.MANAGE),
            _handle(frames.InviteOpen, h.invites.open, Scope.MANAGE),
            _handle(frames.GroupJoin, h.invites.join, Scope.MANAGE),
            _handle(frames.GroupKnock, h.invites.knock, Scope.MANAGE),
            _handle(frames.GroupAdmit, h.invites.admit, Scope.MANAGE),
            _handle(frames.GroupDeny, h.invites.deny, Scope.MANAGE),
            _post(frames.ThreadPost, h.posts.thread),
            _post(frames.ReplyPost, h.posts.reply),
            _post(frames.AnnotationPost, h.posts.annotation),
            _handle(frames.PostDelete, h.members.delete_post, Scope.POST),
            _list(frames.ThreadList, h.posts.thread_list),
            _list(frames.ReplyList, h.posts.reply_list),
            _list(frames.EventList, h.posts.event_list),
            _handle(frames.MediaBegin, h.uploads.begin, Scope.POST),
            _handle(frames.MediaChunk, h.uploads.chunk, Scope.POST),
            _handle(frames.MediaCommit, h.uploads.commit, Scope.POST),
            _handle(frames.MediaAbort, h.uploads.abort, Scope.POST),
            _handle(frames.MediaGet, h.media.get, Scope.READ),
            _read(frames.MediaRead, h.media.read),
            _list(frames.MediaList, h.media.list),
            _handle(frames.MediaDelete, h.media.delete, Scope.POST),
            _handle(frames.QuotaGet, h.media.quota, Scope.READ),
            _handle(frames.Subscribe, h.live.subscribe, Scope.READ),
            _handle(frames.Unsubscribe, h.live.unsubscribe, Scope.READ),
            _handle(frames.SignalSend, h.live.signal_send, Scope.SIGNAL),
            _handle(frames.CursorPut, h.live.cursor_put, Scope.READ),
            _handle(frames.CursorGet, h.live.cursor_get, Scope.READ),
        )
    )
    if missing := frames.REQUESTS.keys() - table.keys():
        raise AssertionError(f"no handler for {missing}")
    return table


def concerns(request: Request) -> tuple[bytes, ...]:  # noqa: PLR0911  one return a kind
    """What a request concerns: those requests of a connection are carried out in order.

    That is its groups; of a file on its way it is the file, so that no store of files holds up its group. Chunks are
    taken as they come, and may wait long for their answer: neither a new begin nor an abort waits behind them.
    """
    match request:
        case ControlRequest():
            return _group_of_statement(request.statement)
        case frames.KeyReplace():
            return tuple(g for signed in request.statements for g in _group_of_statement(signed.statement))
        case frames.Subscribe():
            return tuple(group.group_id for group in request.groups)
        case frames.Unsubscribe():
            return tuple(request.groups)
        case frames.MediaBegin():
            return (request.group_id, request.media_id)
        case frames.MediaCommit() | frames.MediaAbort():
            return (request.media_id,)
        case _:
            group_id = getattr(request, "group_id", None)
            return () if group_id is None else (group_id,)


def _group_of_statement(raw: bytes) -> tuple[bytes, ...]:
    try:
        return (statements.decode(raw).group_id,)
    except statements.StatementError:
        return ()  # its handler will say so

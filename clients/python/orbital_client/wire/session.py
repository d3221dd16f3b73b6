"""One login, kept alive: signs in, refreshes its tokens, connects again with backoff, repeats what may be repeated.

One task does all of that in turn; who makes requests waits until there is a connection. What concerns groups and
events is its owner's, which it asks to subscribe after each sign-in and whenever the owner wants attention.
"""

import asyncio
import logging
import math
import ssl
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final, Protocol, TypeVar

from orbital_client.errors import (
    BadAnswer,
    ClientClosed,
    Closed,
    ConnectionLost,
    NotAuthenticated,
    OrbitalError,
    RequestFailed,
    RequestTimeout,
    TryLater,
)
from orbital_client.wire.backoff import Backoff
from orbital_client.wire.connection import Closure, Connection, NotSent
from orbital_client.wire.stores import Tokens, TokenStore
from orbital_protocol import ZERO_ID
from orbital_protocol.codes import CloseCode
from orbital_protocol.frames import (
    AccountDelete,
    Authenticate,
    AuthenticateOk,
    Cursor,
    GroupHead,
    GroupList,
    GroupListOk,
    Limits,
    Login,
    Logout,
    MediaChunk,
    Ok,
    PasswordChange,
    Ping,
    PingOk,
    Push,
    Refresh,
    Register,
    Request,
    SessionOk,
    SignalSend,
    type_of,
)

A = TypeVar("A", bound=Ok)

log = logging.getLogger("orbital_client")

ONCE: Final[frozenset[type[Request]]] = frozenset(
    {Register, Login, Authenticate, Refresh, Logout, PasswordChange, AccountDelete, SignalSend, MediaChunk}
)
"""Requests that are not sent again by themselves. All others read, or carry an id that makes repeating them safe."""

_REFRESH_MARGIN_S: Final = 60.0
_STABLE_S: Final = 5.0  # a connection that lived shorter does not count as success: backoff goes on growing
_LEAST_REFRESH_S: Final = 0.25
_LOOK_S: Final = 60.0  # how often the relay is asked where the logs stand, which costs it a query


class Ask(Protocol):
    """Make a request on the present connection; who gets no answer in time ends that connection."""

    async def __call__(self, request: Request, answer: type[A]) -> A: ...


class Owner(Protocol):
    """Whom a session works for. Only `pace` and `subscribe` may wait; `attention` calls for `subscribe`."""

    @property
    def attention(self) -> asyncio.Event: ...

    def push(self, push: Push, size: int) -> None: ...

    async def pace(self, connection: Connection) -> None: ...

    def connected(self, heads: list[GroupHead]) -> None: ...

    def disconnected(self, closure: Closure) -> None: ...

    async def subscribe(self, ask: Ask) -> None: ...

    def is_behind(self, heads: Sequence[Cursor]) -> bool: ...

    def stopped(self, reason: Exception) -> None: ...


SignIn = Callable[[Ask], Awaitable[list[GroupHead]]]


class Session:
    """Keeps one login connected, from `sign_up` or `take_up` to `stop`."""

    def __init__(  # noqa: PLR0913  what a client can be given
        self,
        url: str,
        owner: Owner,
        tokens: TokenStore,
        *,
        tls: ssl.SSLContext | None = None,
        timeout_s: float = 30.0,
        backoff: Backoff | None = None,
    ) -> None:
        self.ended: Exception | None = None
        self.user_id = ZERO_ID
        """Who is signed in."""
        self._url = url
        self._owner = owner
        self._tokens = tokens
        self._tls = tls
        self._timeout_s = timeout_s
        self._backoff = backoff or Backoff()
        self._held: Tokens | None = None
        self._limits: Limits | None = None
        self._bot_token: str | None = None
        self._expired = False
        self._refresh_at = math.inf  # on the loop's clock
        self._look_at = 0.0
        self._saving = asyncio.Lock()
        self._connection: Connection | None = None
        self._changed = asyncio.Event()
        self._runner: asyncio.Task[None] | None = None

    # ── signing in and out ──────────────────────────────────────────────────────────────────────────────────────────

    async def sign_up(self, request: Register | Login) -> SessionOk:
        """Register or log in, and stay connected from then on. What goes wrong this first time is raised."""
        answers: list[SessionOk] = []

        async def sign_in(ask: Ask) -> list[GroupHead]:
            answers.append(await ask(request, SessionOk))
            await self._hold(answers[0])
            return (await ask(GroupList(id=0), GroupListOk)).groups

        self._bot_token = None
        await self._start(sign_in)
        return answers[0]

    async def take_up(self, bot_token: str | None = None) -> None:
        """Go on with the tokens in the store, or with a bot's token, and stay connected from then on."""
        self._bot_token = bot_token
        self._held = None if bot_token else await self._tokens.load()
        if self._held is None and bot_token is None:
            raise ClientClosed("no tokens are kept: register or log in")
        await self._start(self._sign_in_again)

    async def _start(self, sign_in: SignIn) -> None:
        if self._runner is not None and not self._runner.done():
            raise RuntimeError("this client has signed in already")
        self.ended = None
        connection = await self._open(sign_in)
        self._runner = asyncio.create_task(self._run(connection), name="orbital-session")

    async def sign_out(self, request: Logout | AccountDelete) -> None:
        """End the login, or the whole account, forget the tokens, and stop."""
        await self.request(request, Ok)
        self._end(ClientClosed("signed out"))
        await self._tokens.save(None)
        await self.stop()

    async def change_password(self, request: PasswordChange) -> None:
        """Change the password: every earlier session ends, and this client goes on under a new one."""
        await self._hold(await self.request(request, SessionOk))
        self._owner.attention.set()

    async def stop(self) -> None:
        """Close the connection and end the task. Requests that wait get ClientClosed."""
        if self._runner is not None:
            self._runner.cancel()
            await asyncio.wait({self._runner})
        if self._connection is not None:  # the task was cancelled before it began
            await self._connection.close()
        self._end(ClientClosed("the client was closed"))

    # ── requests ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def request(self, request: Request, answer: type[A], *, timeout_s: float | None = None) -> A:
        """Make a request, on the next connection if there is none now.

        It is sent again when the connection was lost or the relay asks to come later, as long as there is time;
        those in ONCE are not. Raises RequestFailed, RequestTimeout, Closed, ClientClosed, and for those in ONCE
        ConnectionLost.
        """
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        try:
            async with asyncio.timeout(limit_s) as limit:
                return await self._insist(request, answer, limit.when() or 0)
        except TimeoutError:
            raise RequestTimeout(f"no answer to {type_of(request)} within {limit_s} s") from None

    @property
    def limits(self) -> Limits:
        """What the relay allows, as its last hello said."""
        if self._limits is None:
            raise ClientClosed("nobody has signed in")
        return self._limits

    async def _insist(self, request: Request, answer: type[A], deadline: float) -> A:
        backoff = Backoff()
        while True:
            connection = await self._connected()
            try:
                return await connection.request(request, answer)
            except NotSent:
                continue
            except ConnectionLost:
                if type(request) in ONCE:
                    raise
            except TryLater as failure:
                delay_s = backoff.next_s(failure.retry_after_ms)
                if type(request) in ONCE or asyncio.get_running_loop().time() + delay_s > deadline:
                    raise
                await asyncio.sleep(delay_s)

    async def _connected(self) -> Connection:
        """The present connection, or the next one; raise why there will be none."""
        while True:
            if self._connection is not None and self._connection.is_open:
                return self._connection
            if self.ended is not None:
                raise self.ended.with_traceback(None)
            if self._runner is None:
                raise ClientClosed("nobody has signed in")
            self._changed.clear()
            await self._changed.wait()

    # ── the task ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _run(self, connection: Connection) -> None:
        """Serve one connection after the other until the relay sends the client away."""
        try:
            while True:
                closure = await self._serve(connection)
                log.info("disconnected: %d %s", closure.code, closure.reason)
                self._owner.disconnected(closure)
                if closure.for_good:
                    raise closure.as_error()
                connection = await self._reconnect(closure)
        except Exception as error:
            if not isinstance(error, OrbitalError):
                log.exception("the session ended because of a mistake in this package")
            self._end(error)

    def _end(self, error: Exception) -> None:
        if self.ended is None:
            self.ended = error
            self._changed.set()
            self._owner.stopped(error)

    async def _serve(self, connection: Connection) -> Closure:
        """Keep subscriptions and tokens as they should be until the connection ends."""
        loop = asyncio.get_running_loop()
        since = loop.time()
        chores = Backoff()
        try:
            while connection.is_open:
                self._owner.attention.clear()
                wait_s = await self._do_chores(connection, chores)
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self._owner.attention.wait()
            closure = await connection.closed()
        finally:
            self._connection = None
            await connection.close()
        if loop.time() - since >= _STABLE_S:
            self._backoff.reset()
        self._expired = closure.code == CloseCode.TOKEN_EXPIRED
        return closure

    async def _do_chores(self, connection: Connection, backoff: Backoff) -> float:
        """Do what is due; return in how many seconds something will be."""
        loop = asyncio.get_running_loop()
        ask = self._asker(connection)
        try:
            await self._owner.subscribe(ask)
            if loop.time() >= self._refresh_at:
                await self._refresh(ask)
            if loop.time() >= self._look_at:
                await self._look(ask)
        except TryLater as failure:
            return backoff.next_s(failure.retry_after_ms)
        except (ConnectionLost, Closed) as error:
            log.info("giving up a connection: %s", error)
            await connection.close()
            return 0
        backoff.reset()
        return min(self._refresh_at, self._look_at) - loop.time()

    async def _look(self, ask: Ask) -> None:
        """Ask for the relay's time and the heads: when to refresh, and whether events fail to come.

        The time that a token has left is counted on the relay's clock, ours may be wrong.
        """
        loop = asyncio.get_running_loop()
        self._look_at = loop.time() + _LOOK_S
        held = self._held
        answer = await ask(Ping(id=0), PingOk)
        if held is not None and held is self._held and self._refresh_at == math.inf:
            left_s = (held.access_expires_at - answer.server_time) / 1_000_000
            self._refresh_at = loop.time() + max(left_s - min(_REFRESH_MARGIN_S, left_s / 4), _LEAST_REFRESH_S)
        if self._owner.is_behind(answer.heads):
            raise ConnectionLost("the relay has events that it doesn't send")

    async def _reconnect(self, closure: Closure) -> Connection:
        retry_after_ms = closure.retry_after_ms
        while True:
            delay_s = self._backoff.next_s(retry_after_ms)
            log.info("connecting again in %.1f s", delay_s)
            await asyncio.sleep(delay_s)
            try:
                return await self._open(self._sign_in_again)
            except TryLater as failure:
                retry_after_ms = failure.retry_after_ms
            except ConnectionLost as error:
                retry_after_ms = None
                log.info("%s", error)

    async def _open(self, sign_in: SignIn) -> Connection:
        """Connect and sign in; from then on requests go this way."""
        connection = await Connection.open(
            self._url, on_push=self._owner.push, pace=self._owner.pace, tls=self._tls, timeout_s=self._timeout_s
        )
        self._limits = connection.hello.limits
        try:
            heads = await sign_in(self._asker(connection))
        except BaseException:
            await connection.close()
            raise
        connection.when_closed(self._owner.attention.set)
        self._look_at = 0
        self._connection = connection
        self._owner.connected(heads)
        self._changed.set()
        return connection

    def _asker(self, connection: Connection) -> Ask:
        async def ask(request: Request, answer: type[A]) -> A:
            try:
                async with asyncio.timeout(self._timeout_s):
                    return await connection.request(request, answer)
            except (TimeoutError, BadAnswer) as error:
                await connection.close()
                raise ConnectionLost(f"no usable answer to {type_of(request)}: {error}".rstrip(": ")) from error

        return ask

    # ── tokens ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _sign_in_again(self, ask: Ask) -> list[GroupHead]:
        token = self._bot_token or (self._held.access_token if self._held and not self._expired else None)
        if token is not None:
            try:
                answer = await ask(Authenticate(id=0, access_token=token), AuthenticateOk)
                self.user_id = answer.user_id
                return answer.groups
            except NotAuthenticated:
                if self._bot_token is not None:
                    raise
        await self._refresh(ask)
        return (await ask(GroupList(id=0), GroupListOk)).groups

    async def _refresh(self, ask: Ask) -> None:
        used = self._held
        if used is None:
            raise AssertionError("there is nothing to refresh")
        try:
            answer = await ask(Refresh(id=0, refresh_token=used.refresh_token), SessionOk)
        except RequestFailed:
            if self._held is used:
                raise
            return  # the password was changed meanwhile, and with it the session
        await self._hold(answer)
        log.info("refreshed the session's tokens")

    async def _hold(self, answer: SessionOk) -> None:
        self._held = Tokens.of(answer)
        self.user_id = answer.user_id
        self._refresh_at = math.inf
        self._look_at = 0
        self._expired = False
        async with self._saving:
            await self._tokens.save(self._held)

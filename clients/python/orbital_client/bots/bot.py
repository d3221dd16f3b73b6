"""A bot: handlers for what happens in its groups, from where it stopped, until it is told to stop."""

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

from orbital_client.bots.answering import Heard, Ids
from orbital_client.bots.calling import Calls
from orbital_client.bots.cursors import Cursors
from orbital_client.bots.following import Following
from orbital_client.bots.routing import Handler, Route, Routes, name_of, require_async
from orbital_client.bots.secret import BotSecret
from orbital_client.bots.timers import Timer
from orbital_client.client import Client
from orbital_client.errors import MissingKey
from orbital_client.group import Group
from orbital_client.messages import Item, Message, Update
from orbital_protocol.frames import Cursor

log = logging.getLogger("orbital_client.bots")

Beside = Callable[[], AbstractAsyncContextManager[object]]


class Bot:
    """A member that is a program.

        bot = Bot(url, token=secret)

        @bot.command("ping")
        async def ping(message):
            await message.reply("pong")

        bot.run()

    Each item is handled after the one before it in its group. How far it got is kept under the name `cursor`, at the
    relay or in its `store`: started again, it goes on there; what it was in the middle of is handled again, and what it
    had replied to a message stands once all the same. With `by_hand`, it is kept only where `keep` says so.
    What a handler raises is logged, without its words, and the next item comes. A message that can't be opened yet
    is waited for.
    """

    def __init__(  # noqa: PLR0913  options, each with a default that suits most
        self,
        url: str,
        token: str,
        *,
        cursor: str = "bot",
        by_hand: bool = False,
        prefix: str = "!",
        ignore_self: bool = True,
        store: str | Path = ":memory:",
        **options: Any,
    ) -> None:
        self._secret = BotSecret.parse(token)
        self.client = Client(url, store=store, **options)
        """The client underneath: groups, people, everything."""
        self._routes = Routes(prefix)
        self._ids = Ids(self._secret.backup_key)
        self._ignore_self = ignore_self
        self._by_hand = by_hand
        self._cursor_name = cursor
        self._cursors = Cursors(self.client, cursor, is_local=str(store) != ":memory:")
        self._timers: list[Timer] = []
        self._beside: list[Beside] = []
        self._stopping = asyncio.Event()
        self._following = Following(self.client, self._cursors, self._handle)
        self._calls = Calls()
        self._tasks: list[asyncio.Task[None]] = []
        self.is_ready = asyncio.Event()
        """Set once the bot is signed in and follows its groups."""

    @property
    def name(self) -> str:
        """Its username, once it is signed in."""
        return self.client.people.name(self.client.user_id)

    # ── handlers ────────────────────────────────────────────────────────────────────────────────────────────────────

    def on(
        self, event: str, *, kind: str | None = None, group: str | bytes | None = None, thread: bytes | None = None
    ) -> Callable[[Handler], Handler]:
        """Handle `message`, `update`, `erased`, `change`, `suspicious` or `notice`.

        Of messages perhaps one kind only: `thread`, `reply`, `file`; of one group, by name or id; of one thread.
        """

        def add(handler: Handler) -> Handler:
            self._routes.add(Route(handler, event, kind, group, thread))
            return handler

        return add

    def command(self, name: str, *, group: str | bytes | None = None) -> Callable[[Handler], Handler]:
        """Handle messages that begin with `!name`, or `@bot name`; the handler gets the message, and the words behind.

        It isn't called with more or fewer words than it has parameters.
        """

        def add(handler: Handler) -> Handler:
            self._routes.add(Route(handler, "message", group=group, command=name))
            return handler

        return add

    def every(self, seconds: float, *, offset_s: float = 0) -> Callable[[Handler], Handler]:
        """Call with each group: at the start, and whenever the clock passes a multiple of `seconds`, plus the offset.

        Multiples are counted from midnight UTC for what a day is a multiple of: 86,400 with an offset of 8 * 3,600 is
        at 08:00 UTC. Calls that were missed are not made up for.
        """

        def add(handler: Handler) -> Handler:
            require_async(handler)
            self._timers.append(Timer(handler, name_of(handler), seconds, offset_s))
            return handler

        return add

    def beside(self, context: Beside) -> Beside:
        """Something that runs as long as the bot does: entered once it is ready, left before it is closed."""
        self._beside.append(context)
        return context

    # ── what stands once, and how far it got ────────────────────────────────────────────────────────────────────────

    def id_for(self, *parts: str | bytes) -> bytes:
        """The id that belongs to these parts, for this bot alone: what is posted under it (`id=…`) stands once."""
        return self._ids.make(*parts)

    def kept(self, group: Group) -> Cursor:
        """How far it got in a group: everything up to there was handled. Raises KeyError before that is known."""
        return self._cursors.at(group.id)

    async def keep(self, cursor: Cursor) -> None:
        """Everything up to here was handled (`by_hand`). Durable when this returns; never backwards."""
        await self._cursors.keep(cursor)

    # ── running ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def run(self) -> None:
        """Run until SIGTERM or Ctrl-C, logging to stderr unless logging is set up. Raises what `serve` raises."""
        if not logging.getLogger().handlers:
            logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
            logging.getLogger("orbital_client").setLevel(logging.INFO)
        asyncio.run(self._run())

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(NotImplementedError):
                loop.add_signal_handler(number, self.stop)
        await self.serve()

    def stop(self) -> None:
        """Finish what is being handled, keep the cursors, and end `serve`."""
        self._stopping.set()

    async def serve(self) -> None:
        """Handle what comes until `stop`. Raises AccountRefused for a revoked token, Closed when it is revoked now."""
        async with self.client:
            working = asyncio.create_task(self._work(), name="orbital-bot")
            stopping = asyncio.create_task(self._stopping.wait(), name="orbital-bot-stop")
            try:
                await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                self.is_ready.clear()
                stopping.cancel()
                await self._finish(working)
        if not working.cancelled():
            working.result()

    async def _work(self) -> None:
        """Sign in, follow all groups, and go on until the relay ends it."""
        await self.client.authenticate_bot(self._secret.token, self._secret.backup_key)
        self._following.update()
        await self._following.started()
        async with AsyncExitStack() as beside:
            for context in self._beside:
                await beside.enter_async_context(context())
            self._own(self._following.look(), "look")
            for timer in self._timers:
                self._own(self._keep_time(timer), timer.name)
            self._own(self._notice(), "notices")
            self.is_ready.set()
            log.info("%s is ready, in %d groups", self.name, len(self.client.groups))
            ended, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in ended:
            task.result()
        self.client.check()

    async def _notice(self) -> None:
        async for notice in self.client.notices():
            self._following.update()
            for route in self._routes.for_notices():
                await self._calls.make(route.name, route.handler, notice)

    async def _finish(self, working: asyncio.Task[None]) -> None:
        """Leave what runs beside, let handlers end that are at work, and keep how far they got."""
        self._stopping.set()
        self._following.finish()
        working.cancel()
        await asyncio.wait({working})
        await self._calls.finish()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._following.stop()
        await self._cursors.close()

    def _own(self, work: Coroutine[Any, Any, None], name: str) -> None:
        self._tasks.append(asyncio.create_task(work, name=f"orbital-bot-{name}"))

    async def _keep_time(self, timer: Timer) -> None:
        while not self._stopping.is_set():
            period = timer.period(time.time())
            for group in self.client.groups:
                if self._cursors.knows(group.id) and not self._stopping.is_set():
                    await self._calls.make(timer.name, timer.handler, group)
            await timer.passed(period)

    # ── handling ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _handle(self, group: Group, item: Item) -> None:
        if isinstance(item, Message | Update) and isinstance(item.problem, MissingKey) and group.awaits(item.problem):
            if not self._by_hand:
                self._cursors.hold(item.cursor)
            return
        if not (self._ignore_self and self._is_own(item)):
            for route, words in list(self._routes.matches(item, group.name, group.id, self.name)):
                if route.command is None or route.takes(words):
                    await self._calls.make(route.name, route.handler, self._heard(route, item), *words)
                else:
                    log.info("the command %s is not called with %d words", route.command, len(words))
        if not self._by_hand:
            self._cursors.move(item.cursor)

    def _is_own(self, item: Item) -> bool:
        return isinstance(item, Message | Update) and item.author_id == self.client.user_id

    def _heard(self, route: Route, item: Item) -> Item:
        """An item as a handler gets it: what it replies to a message stands once."""
        if not isinstance(item, Message):
            return item
        make_id = partial(self._reply_id, route.name, item.id)
        return Heard(group=item.group, post=item.post, make_id=make_id)

    def _reply_id(self, name: str, message_id: bytes, number: int) -> bytes:
        return self.id_for("reply", self._cursor_name, name, message_id, str(number))

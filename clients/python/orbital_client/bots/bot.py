"""A bot: handlers for what happens in its groups, from where it stopped, until it is told to stop."""

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from orbital_client.bots.cursors import Cursors
from orbital_client.bots.routing import Call, Handler, Route, Routes
from orbital_client.bots.secret import BotSecret
from orbital_client.client import Client, GroupEntered
from orbital_client.errors import ClientClosed, MissingKey, OrbitalError
from orbital_client.group import Group
from orbital_client.messages import Item, Message, Update

log = logging.getLogger("orbital_client.bots")

_STOP_S: Final = 10.0


class Bot:
    """A member that is a program.

        bot = Bot(url, token=secret)

        @bot.command("ping")
        async def ping(message):
            await message.reply("pong")

        bot.run()

    Each item is handled after the one before it in its group. How far it got is kept under the name `cursor`, at the
    relay or in its `store`: started again, it goes on there; what it was in the middle of is handled again. What a
    handler raises is logged, and the next item comes. A message that can't be opened yet is waited for.
    """

    def __init__(  # noqa: PLR0913  options, each with a default that suits most
        self,
        url: str,
        token: str,
        *,
        cursor: str = "bot",
        prefix: str = "!",
        ignore_self: bool = True,
        store: str | Path = ":memory:",
        **options: Any,
    ) -> None:
        self.client = Client(url, store=store, **options)
        """The client underneath: groups, people, everything."""
        self._secret = BotSecret.parse(token)
        self._routes = Routes(prefix)
        self._ignore_self = ignore_self
        self._cursors = Cursors(self.client, cursor, is_local=str(store) != ":memory:")
        self._stopping = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._followed: dict[bytes, asyncio.Event] = {}
        self._handling: set[asyncio.Task[object]] = set()
        self.is_ready = asyncio.Event()
        """Set once the bot is signed in and follows its groups."""

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
        """Handle messages that begin with `!name`; the handler gets the message, and the words behind it."""

        def add(handler: Handler) -> Handler:
            self._routes.add(Route(handler, "message", group=group, command=name))
            return handler

        return add

    # ── running ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def run(self) -> None:
        """Run until SIGTERM or Ctrl-C. Raises what `serve` raises."""
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
        try:
            async with self.client as client:
                await client.authenticate_bot(self._secret.token, self._secret.backup_key)
                await asyncio.gather(*(self._follow(group).wait() for group in client.groups))
                self.is_ready.set()
                notices = asyncio.create_task(self._notice(), name="orbital-bot-notices")
                self._tasks.add(notices)
                stopping = asyncio.create_task(self._stopping.wait(), name="orbital-bot-stop")
                await asyncio.wait({notices, stopping}, return_when=asyncio.FIRST_COMPLETED)
                stopping.cancel()
                await self._finish()
                if not self._stopping.is_set():
                    client.check()
        finally:
            self.is_ready.clear()

    async def _finish(self) -> None:
        """Let handlers end that are at work, and keep how far they got."""
        self._stopping.set()
        if self._handling:
            await asyncio.wait(set(self._handling), timeout=_STOP_S)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._cursors.close()

    async def _notice(self) -> None:
        async for notice in self.client.notices():
            if isinstance(notice, GroupEntered):
                self._follow(notice.group)
            for call in self._routes.for_notice(notice):
                await self._call(call)

    def _follow(self, group: Group) -> asyncio.Event:
        """Handle what happens in a group; the event is set once it is known from where on."""
        started = self._followed.get(group.id)
        if started is None:
            started = self._followed[group.id] = asyncio.Event()
            task = asyncio.create_task(self._handle_all(group, started), name=f"orbital-bot-{group.id.hex()}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return started

    async def _handle_all(self, group: Group, started: asyncio.Event) -> None:
        """Everything in one group, in its order, from where the bot stopped."""
        try:
            await group.live()
            after = await self._cursors.load(group)
            started.set()
            async for item in group.events(after):
                if self._stopping.is_set():
                    return
                await self._handle(group, item)
            log.info("group %s is seen no more", group.name or group.id.hex())
        except ClientClosed:
            return
        except (OrbitalError, TimeoutError) as error:
            log.error("group %s is followed no more: %s", group.name or group.id.hex(), error)
        finally:
            started.set()
            self._followed.pop(group.id, None)

    async def _handle(self, group: Group, item: Item) -> None:
        if isinstance(item, Message) and isinstance(item.problem, MissingKey):
            self._cursors.hold(item.cursor)
            return
        if not (self._ignore_self and self._is_own(item)):
            for call in list(self._routes.calls(item, group.name, group.id)):
                await self._call(call)
        self._cursors.move(item.cursor)

    def _is_own(self, item: Item) -> bool:
        return isinstance(item, Message | Update) and item.author_id == self.client.user_id

    async def _call(self, call: Call) -> None:
        task = asyncio.ensure_future(call.handler(*call.arguments))
        self._handling.add(task)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if not task.done():
                task.cancel()
            raise
        except Exception:
            log.exception("a handler failed: %s", getattr(call.handler, "__name__", call.handler))
        finally:
            self._handling.discard(task)

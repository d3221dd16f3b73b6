"""What all commands are given, and the client that most of them use."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Final, ParamSpec

import typer

from orbital_client import Client, ClientClosed, NotAuthenticated, Store
from orbital_client.cli.terminal import Terminal
from orbital_client.errors import OrbitalError
from orbital_client.store import Account

P = ParamSpec("P")

_SHORTEST: Final = 12

GroupArgument = Annotated[str, typer.Argument(metavar="GROUP", help="A group's name, or the beginning of its id.")]
UserArgument = Annotated[str, typer.Argument(metavar="USER", help="A username, or the beginning of a user's id.")]
ThreadArgument = Annotated[
    str, typer.Argument(metavar="THREAD", help="The beginning of a thread's id, or its exact title.")
]
MessageArgument = Annotated[str, typer.Argument(metavar="MESSAGE", help="The beginning of a message's id.")]


class CommandError(OrbitalError):
    """It can't be done; the text says why."""


@dataclass(frozen=True)
class Options:
    """What was given before the command."""

    store: Path
    terminal: Terminal

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Client]:
        """The client of whoever has logged in. What it finds wrong on the way is shown at the end."""
        store, account = self.opened()
        client = Client(account.url, store=store)
        try:
            async with client:
                await self._resume(client, account)
                yield client
        finally:
            for group in client.groups:
                for finding in group.findings:
                    self.terminal.warn(f"group {group.name or group.id.hex()}: {finding.text}")

    async def _resume(self, client: Client, account: Account) -> None:
        again = f"orbital login {account.url} {account.username}"
        try:
            await client.resume()
        except ClientClosed:
            raise CommandError(f"{account.username} has logged out here: {again}") from None
        except NotAuthenticated:
            raise CommandError(f"the login of {account.username} has ended: {again}") from None

    def opened(self) -> tuple[Store, Account]:
        """The store, and whose it is."""
        nobody = CommandError("nobody has logged in here: orbital register URL USERNAME, or orbital login")
        if not self.store.exists():
            raise nobody
        store = Store(self.store)
        try:
            account = store.account()
            if account is None:
                raise nobody
        except BaseException:
            store.close()
            raise
        return store, account


def default_store() -> Path:
    """Where the keys are unless it is said: `$XDG_DATA_HOME/orbital/client.db`, otherwise below `~/.local/share`."""
    base = os.environ.get("XDG_DATA_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".local" / "share") / "orbital" / "client.db"


def command(work: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """A command of a coroutine."""

    @wraps(work)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(work(*args, **kwargs))

    return run


def given(ctx: typer.Context) -> Options:
    """What was given before the command."""
    options: Options = ctx.obj
    return options


def short(object_id: bytes) -> str:
    """An id for people: its beginning, of which a time is most. With `--json` it is there in full."""
    return object_id.hex()[:_SHORTEST]

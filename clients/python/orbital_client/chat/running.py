"""From a store to a window, and everything closed behind it."""

import asyncio
from pathlib import Path

from orbital_client.chat.app import ChatApp
from orbital_client.client import Client
from orbital_client.errors import ClientClosed
from orbital_client.store import Store


def run(store_path: Path) -> None:
    """Show the groups of whoever has logged in, until they quit. Raises ClientClosed where nobody has, OrbitalError."""
    store, url = _opened(store_path)
    asyncio.run(_run(store, url))


def _opened(store_path: Path) -> tuple[Store, str]:
    """The store, and the address of its relay."""
    nobody = ClientClosed("nobody has logged in here: register or log in")
    if not store_path.exists():
        raise nobody
    store = Store(store_path)
    account = store.account()
    if account is None:
        store.close()
        raise nobody
    return store, account.url


async def _run(store: Store, url: str) -> None:
    async with Client(url, store=store) as client:
        await client.resume()
        app = ChatApp(client)
        await app.run_async()
    if app.failure is not None:
        raise app.failure
